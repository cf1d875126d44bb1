//! The simulator: a replicated group and its clients in one thread, from one seed.
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
mod file_disk;
mod history;
mod linear;
mod log_disk;
mod network;
mod node;
pub mod plan;
pub mod random;
mod rows;
pub mod shrink;
mod trace;
pub mod world;

use plan::Plan;
use std::path::PathBuf;
use world::{Report, World};

/// Where files are kept in memory, if the system has such a place.
fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Runs a plan.
///
/// # Errors
/// If there is no place for the files, or no runtime.
pub fn run(plan: Plan) -> std::io::Result<Report> {
    let directory = tempfile::Builder::new().prefix("shoal-sim").tempdir_in(scratch())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let world = World::new(plan, directory.path());
    Ok(runtime.block_on(tokio::task::unconstrained(world.run())))
}
