//! The simulator: a replicated group and its clients in one thread, from one seed. Its second part, a whole cluster, is
//! [`cluster`].
//!
//! 1. [`plan`] draws from the seed how the group is set up, and which faults strike when.
//! 2. [`world`] runs it: the hosts, consensus and engines of production, whose loops are turned by hand (`node`), on a
//!    simulated network (`network`), clocks (`clock`), and disks that lose what wasn't synced (`log_disk`,
//!    `file_disk`).
//! 3. Clients (`client`) append, swap, read, and repeat what they heard no answer of. What they did and saw is judged
//!    from outside (`history`, `linear`).
//! 4. Then all is healed, and everything must become live and equal again.
//! 5. A run that fails is made shorter ([`shrink`]): the faults that it doesn't need are taken out.
//!
//! Nothing here may read a real clock, draw real randomness or depend on the order of a hash map: the same seed must
//! give the same run.

mod client;
mod clock;
pub mod cluster;
mod file_disk;
mod history;
mod linear;
mod log_disk;
mod network;
mod node;
pub mod plan;
pub mod random;
mod rows;
pub mod scenario;
pub mod shrink;
mod trace;
pub mod world;

use plan::{Fault, Kind, Plan};
use scenario::{Report, Scenario};
use std::path::PathBuf;
use trace::Time;
use world::World;

/// Where files are kept in memory, if the system has such a place.
fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

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
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let world = World::new(self, directory.path());
        Ok(runtime.block_on(tokio::task::unconstrained(world.run())))
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
}
