//! Golden scripts: what a group does, told event by event.
//!
//! A script under `scripts/` is a list of commands with what each of them brought about: every message that was sent and
//! that arrived or got lost, every write of the log, every change of what a replica is, every answer to a client, and what
//! the replica's own log says. The hosts are those of production on real files; their clocks, turns and network are the
//! script's ([`crate::simulation`]). `UPDATE_GOLDENFILES=1 cargo test -p replica golden` records what happens now; what
//! is recorded is to be read before it is committed.

mod cluster;
mod journal;
mod seen;
mod words;

use cluster::{Cluster, Link};
use goldenscript::Context;
use std::error::Error;
use std::path::Path;

/// From the package's directory, where tests run. Not a path of when this was compiled: worktrees may share what is compiled, and one
/// must never record into another.
const SCRIPTS: &str = "src/golden/scripts";

/// What a script can say. Nodes are numbers.
#[derive(goldenscript::Command)]
enum Command {
    /// `found 1 2 3`: these nodes start, each with its replica of a new group.
    Found(Vec<u64>),
    /// `found_from 1 "INSERT .."`: this node starts, and founds the group by itself with a database that was made elsewhere.
    FoundFrom { node: u64, sql: String },
    /// `start 4`: a node that is down, or new, starts with whatever is on its disk.
    Start(u64),
    /// `crash 2`: its process dies.
    Crash(u64),
    /// `doom 2 log-reset`: its process dies right before its log is next reset for an image; with `swap`, right after.
    Doom { node: u64, before: String },
    /// `tick 1 2 times=11`: so many ticks pass for these nodes, and for no other.
    Tick {
        nodes: Vec<u64>,
        #[arg(key)]
        times: Option<u64>,
    },
    /// `pass 20`: so many ticks pass for all nodes that run, and all that they send arrives.
    Pass(u64),
    /// `deliver from=1 to=2 count=1`: what is on its way arrives, first sent first, until nothing (of that) is.
    Deliver {
        #[arg(key)]
        from: Option<u64>,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        count: Option<u64>,
    },
    /// `lose from=1`: what is on its way gets lost.
    Lose {
        #[arg(key)]
        from: Option<u64>,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        count: Option<u64>,
    },
    /// `cut 1`: what the node sends or is sent gets lost.
    Cut(u64),
    /// All ways are open again.
    Heal,
    /// `write 1 "INSERT .." request=7.1`: a client sends a transaction to a node; `request` names it.
    Write {
        node: u64,
        sql: String,
        #[arg(key)]
        request: Option<String>,
    },
    /// `read 1`: a client asks for all rows as they are now; with `session=5`, as of that index or later; with `stale=20`, as
    /// they were no longer ago than so many ticks.
    Read {
        node: u64,
        #[arg(key)]
        session: Option<u64>,
        #[arg(key)]
        stale: Option<u32>,
    },
    /// `members 1 1 2 3 4`: somebody asks node 1 to have these nodes be the voters; with `rebuild=3`, node 3 by a new member.
    Members {
        node: u64,
        voters: Vec<u64>,
        #[arg(key)]
        rebuild: Option<u64>,
    },
    /// `transfer 1 2`: somebody asks node 1 to have node 2 lead.
    Transfer { node: u64, to: u64 },
    /// `rows 2`: what a node's database has, committed or not in the group's eyes.
    Rows(u64),
    /// `log 1`: what a node's log has.
    Log(u64),
    /// What every replica is.
    Status,
}

struct Runner(Cluster);

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let cluster = &mut self.0;
        match command {
            Command::Found(nodes) => cluster.found(nodes),
            Command::FoundFrom { node, sql } => cluster.found_from(*node, sql),
            Command::Start(node) => cluster.start(*node),
            Command::Crash(node) => cluster.crash(*node),
            Command::Doom { node, before } => cluster.doom(*node, before.parse()?),
            Command::Tick { nodes, times } => cluster.tick(nodes, times.unwrap_or(1)),
            Command::Pass(times) => cluster.pass(*times),
            Command::Deliver { from, to, count } => {
                cluster.deliver(Link { from: *from, to: *to }, count.unwrap_or(u64::MAX))
            }
            Command::Lose { from, to, count } => {
                cluster.lose(Link { from: *from, to: *to }, count.unwrap_or(u64::MAX))
            }
            Command::Cut(node) => cluster.cut(*node),
            Command::Heal => cluster.heal(),
            Command::Write { node, sql, request } => cluster.write(*node, sql, request.as_deref())?,
            Command::Read { node, session, stale } => cluster.read(*node, *session, *stale),
            Command::Members { node, voters, rebuild } => cluster.members(*node, voters, *rebuild),
            Command::Transfer { node, to } => cluster.transfer(*node, *to),
            Command::Rows(node) => return Ok(cluster.rows(*node)),
            Command::Log(node) => return Ok(cluster.log(*node)),
            Command::Status => return Ok(cluster.status()),
        }
        Ok(cluster.take_events())
    }
}

fn play(name: &str) {
    goldenscript::run(&mut Runner(Cluster::new()), Path::new(SCRIPTS).join(name)).unwrap();
}

/// One test for each script, of its name.
macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                play(concat!(stringify!($name), ".txt"));
            }
        )*

        #[test]
        fn every_script_is_played() {
            let scripts = std::fs::read_dir(SCRIPTS).unwrap().count();
            assert_eq!(scripts, [$(stringify!($name)),*].len());
        }
    };
}

scripts! { election founding append reads sleep lost_leader snapshot install_crash members }
