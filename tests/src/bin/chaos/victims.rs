//! Kills a random node every so many seconds, and starts it again a moment later.

use super::{Failure, PATIENCE, Stage};
use std::time::{Duration, Instant};
use tests::sim::random::Random;
use tests::wait;

/// How long a victim is away.
const AWAY: Duration = Duration::from_secs(3);

/// Goes on until the end, and says how many were killed. `done` counts what clients have done, which must go on each time; once
/// they have given up it counts nothing, and that is the end.
pub fn kill(
    stage: &mut Stage,
    every: Duration,
    end: Instant,
    seed: u64,
    done: impl Fn() -> Option<u64>,
) -> Result<u32, Failure> {
    let mut random = Random::stream(seed, "victims", 0);
    let mut kills = 0;
    let given_up = || if done().is_none() { Ok(()) } else { Err(()) };
    while Instant::now() + every < end {
        if wait::until(every.saturating_sub(AWAY), wait::LOOK, given_up).is_ok() {
            return Ok(kills);
        }
        let victim = random.within(0..stage.nodes.count() as u64) as usize;
        let led = stage.led(victim, (victim + 1) % stage.nodes.count()).unwrap_or_default();
        println!("node {victim} is killed, which leads {led:?}");
        stage.nodes.kill(victim);
        kills += 1;
        wait::pause(AWAY);
        stage.nodes.restart(victim);
        let before = done();
        let goes_on = || if done().is_none_or(|now| Some(now) > before) { Ok(()) } else { Err(()) };
        let served = wait::until(PATIENCE, wait::LOOK, goes_on);
        if served.is_err() {
            return Err(format!("nothing was done for {PATIENCE:?} after node {victim} came back").into());
        }
    }
    // Whoever gives up says why.
    let _ = wait::until(end.saturating_duration_since(Instant::now()), wait::LOOK, given_up);
    Ok(kills)
}
