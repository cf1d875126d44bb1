//! The simulator, second part: a whole cluster with its clients in one thread, from one seed.
//!
//! # What is real
//!
//! Everything that a node runs: replicas with their consensus and engines, [`shardnode::ShardNode`] and
//! [`shardnode::Agent`], [`coordinator::Coordinator`] with its workers, [`router::Router`] from the bytes of a client's
//! connection on, and between nodes the clients and servers of `proto::transport`, with their frames, credit, cancels and
//! reconnections. Clients are tokio-postgres and speak SQL. SQLite is SQLite.
//!
//! # What is virtual, and where the seams are
//!
//! | what | seam | here |
//! |---|---|---|
//! | time | tokio's clock, which a runtime can pause; `proto::machine::now`; `replica::simulation::Clock` | each node has a clock of its own, fast or slow (`clock`) |
//! | threads of a host | `replica::simulation::Loops` | turned by hand (`node`) |
//! | tasks | a single-threaded runtime for each node | run until nobody has anything to do (`tasks`); dropped, they die as a process does |
//! | blocking pools, time of day, chance | `proto::machine::Machine` | in the one thread; by the node's clock; from the seed |
//! | Raft's messages | `proto::services::RaftTransport` | lost, repeated and late (`network`) |
//! | streams between nodes | `proto::transport::simulation` | in order or not at all, late; they break when somebody dies or is cut off for long (`wires`) |
//! | a client's connection | `router::Router::converse` | a pipe in memory; it breaks when the node dies |
//! | disks | SQLite's VFS; `replica::simulation::LogStore` | lose what wasn't synced (`file_disk`, `log_disk`) |
//!
//! # A run
//!
//! 1. [`plan`] draws from the seed how the cluster is set up, and which faults strike when.
//! 2. [`world`] founds it: three nodes, each of which is router, shardnode and coordinator. A client makes the tables.
//! 3. Clients (`clients`) move money between accounts and append to lists, a transaction at a time, on one shard and on
//!    several, and read them, while faults strike. Some, if asked for, carry a token from router to router, and hand it on, and
//!    read from any replica; others read at bounded staleness, or whatever there is.
//!    In some, if asked for, an admin has shards split and merged meanwhile (`admin`), and some faults wait for its switches.
//!    Of one kind of run nodes die and nothing else goes wrong, and what their routers had prepared must soon be free (`world/deaths.rs`).
//! 4. All is healed. Everybody must get somewhere again; then nothing may be left of any transaction.
//! 5. What clients did, saw and were told is judged from outside (`history`).
//!
//! Nothing here may read a real clock, draw real randomness or depend on the order of a hash map. What is simulated may
//! not either: where two runs of a seed differ, look for a `HashMap` of foldhash's that is walked through, a `select!` by lot,
//! or an address by which something is known when another may have come there.

mod admin;
mod clients;
mod history;
mod node;
pub mod plan;
mod tasks;
mod wires;
pub mod world;

use super::scenario::{Report, Scenario};
use super::scratch;
use super::trace::Time;
use plan::{Fault, Kind, Plan};
use world::World;

/// What is counted of routers that die.
pub const LEFT: &str = "routers that left something prepared";

impl Scenario for Plan {
    type Fault = Fault;

    fn kinds() -> Vec<String> {
        Kind::ALL.iter().map(Kind::to_string).collect()
    }

    fn draw(seed: u64) -> Self {
        Plan::new(seed)
    }

    fn run(self) -> std::io::Result<Report> {
        let directory = tempfile::Builder::new().prefix("shoal-sim").tempdir_in(scratch())?;
        Ok(World::new(self, directory.path())?.run())
    }

    fn faults(&mut self) -> &mut Vec<(Time, Fault)> {
        &mut self.faults
    }

    fn kind(fault: &Fault) -> String {
        fault.kind().to_string()
    }

    fn clients(&mut self) -> &mut usize {
        &mut self.clients
    }

    fn demand_cuts(&mut self) {
        self.cuts = true;
    }

    fn demand_sessions(&mut self) {
        Plan::demand_sessions(self);
    }

    fn demand_reshards(&mut self) {
        Plan::demand_reshards(self);
    }

    fn demand_deaths(&mut self) {
        Plan::demand_deaths(self);
    }
}
