//! Kills a random node every so many seconds, and starts it again a moment later.

use super::{Failure, PATIENCE, Stage};
use std::time::{Duration, Instant};
use tests::sim::random::Random;
use tests::wait;

/// How long a victim is away.
const AWAY: Duration = Duration::from_secs(3);

/// Goes on until the end, and says how many were killed. `done` counts what clients have done, which must go on each time.
pub fn kill(
    stage: &mut Stage,
    every: Duration,
    end: Instant,
    seed: u64,
    done: impl Fn() -> u64,
) -> Result<u32, Failure> {
    let mut random = Random::stream(seed, "victims", 0);
    let mut kills = 0;
    while Instant::now() + every < end {
        wait::pause(every.saturating_sub(AWAY));
        let victim = random.within(0..stage.nodes.count() as u64) as usize;
        let led = stage.led(victim, (victim + 1) % stage.nodes.count()).unwrap_or_default();
        println!("node {victim} is killed, which leads {led:?}");
        stage.nodes.kill(victim);
        kills += 1;
        wait::pause(AWAY);
        stage.nodes.restart(victim);
        let before = done();
        let served = wait::until(PATIENCE, wait::LOOK, || if done() > before { Ok(()) } else { Err(()) });
        if served.is_err() {
            return Err(format!("nothing was done for {PATIENCE:?} after node {victim} came back").into());
        }
    }
    wait::pause(end.saturating_duration_since(Instant::now()));
    Ok(kills)
}
