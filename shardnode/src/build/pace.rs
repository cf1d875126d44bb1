//! How much of its time a build may work.
//!
//! In come times: of the slices that are made, and, each second, of what nodes' leaders commit; out comes until when to rest. A build
//! works for a share of its time, which is small until something was heard. For a second now and then it rests, which shows how long
//! writers wait usually; if one node's wait longer while it works, its share is halved, else it grows, a little each second. A rate
//! bounds it, too. Where there is hardly a writer nothing can be known, so it works all of its time. It must never know a clock, nor what
//! is built.

use proto::NodeId;
use proto::services::Times;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How often nodes are asked.
const EVERY: Duration = Duration::from_secs(1);
/// How soon after it has begun.
const SOON: Duration = Duration::from_millis(200);
/// The second of these many in which it rests.
const CYCLE: u32 = 20;
/// The share of its time before anything is known.
const FIRST: f64 = 0.2;
/// The least.
const LEAST: f64 = 0.05;
/// So much longer than usual may those take who wait longest, without the last twentieth of them.
const MOST: f64 = 1.5;
const QUANTILE: f64 = 0.95;
/// By so much its share grows each second in which nobody minds.
const GROWTH: f64 = 1.1;
/// Of fewer nothing is said.
const ENOUGH: u64 = 40;
/// What is usual is what was so in so many of the seconds in which it rested.
const REMEMBERED: usize = 3;

/// How much of its time a build may work.
pub(crate) struct Pacer {
    share: f64,
    /// When nodes are to be asked; unless there is nothing to do.
    due: Option<Instant>,
    /// The second of the cycle, which begins when there are writers. It rests in the one after that.
    second: u32,
    heard: BTreeMap<NodeId, Heard>,
}

/// What was heard of a node.
#[derive(Default)]
struct Heard {
    last: Option<Times>,
    /// What came while the build worked, since it rested or since this was compared.
    working: Times,
    /// What came in each second in which it rested, the last one last.
    resting: VecDeque<Times>,
}

/// A slice of a build's work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    pub begun: Instant,
    pub ended: Instant,
    pub bytes: u64,
    /// How many bytes a second there may be; 0 for any number.
    pub rate: u64,
}

impl Default for Pacer {
    fn default() -> Self {
        Self { share: FIRST, due: None, second: 0, heard: BTreeMap::new() }
    }
}

impl Pacer {
    /// There is something to do from now on.
    pub fn begin(&mut self, now: Instant) {
        if self.due.is_none() {
            // What was heard last is old by now.
            self.heard.values_mut().for_each(|heard| heard.last = None);
            (self.due, self.second) = (Some(now), 0);
        }
    }

    /// There is nothing to do for now.
    pub fn end(&mut self) {
        self.due = None;
    }

    /// When nodes are to be asked what their leaders have committed, if there is something to do.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Until when it is to rest after a slice, by what is known so far.
    pub fn until(&self, slice: Slice) -> Instant {
        let Slice { begun, ended, bytes, rate } = slice;
        let took = ended.saturating_duration_since(begun);
        let by_rate = if rate == 0 { 0.0 } else { bytes as f64 / rate as f64 };
        let all = by_rate.max(took.as_secs_f64() / self.share);
        let until = begun + Duration::from_secs_f64(all);
        self.due.filter(|_| self.rests()).map_or(until, |due| until.max(due))
    }

    /// Nodes were asked: by now their leaders have committed this much.
    pub fn hear(&mut self, now: Instant, told: Vec<(NodeId, Times)>) {
        let rested = self.rests();
        let is_first = self.heard.values().all(|heard| heard.last.is_none());
        if self.due.is_some() {
            self.due = Some(now + if is_first { SOON } else { EVERY });
        }
        // Who doesn't answer, or leads no more, is begun with anew.
        self.heard.retain(|node, _| told.iter().any(|(of, _)| of == node));
        let (mut worst, mut most): (Option<f64>, Option<u64>) = (None, None);
        for (node, times) in told {
            let heard = self.heard.entry(node).or_default();
            let news = heard.last.as_ref().and_then(|last| times.since(last));
            heard.last = Some(times);
            let Some(news) = news else {
                heard.working = Times::default();
                continue;
            };
            most = most.max(Some(news.total()));
            if rested {
                heard.rested(news);
            } else if let Some(ratio) = heard.worked(news) {
                worst = Some(worst.map_or(ratio, |worst| worst.max(ratio)));
            }
        }
        let Some(most) = most else { return };
        // Resting where hardly anybody writes would show nothing.
        let are_enough = most * REMEMBERED as u64 >= ENOUGH;
        if are_enough || self.second > 0 {
            self.second = (self.second + 1) % CYCLE;
        }
        self.share = match worst {
            _ if rested => self.share,
            _ if !are_enough && self.second == 0 => 1.0,
            Some(worst) if worst > MOST => (self.share / 2.0).max(LEAST),
            _ => (self.share * GROWTH).min(1.0),
        };
    }

    /// Whether this is the second in which it rests.
    fn rests(&self) -> bool {
        self.second == 1
    }
}

impl Heard {
    fn rested(&mut self, news: Times) {
        self.working = Times::default();
        if self.resting.len() == REMEMBERED {
            self.resting.pop_front();
        }
        self.resting.push_back(news);
    }

    /// How much longer it takes than usual.
    fn worked(&mut self, news: Times) -> Option<f64> {
        self.working.add(&news);
        let mut usual = Times::default();
        self.resting.iter().for_each(|times| usual.add(times));
        if self.working.total() < ENOUGH || usual.total() < ENOUGH {
            return None;
        }
        let working = std::mem::take(&mut self.working);
        let (now, usual) = (working.quantile(QUANTILE)?, usual.quantile(QUANTILE)?);
        Some(now.as_secs_f64() / usual.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

    /// A build, and nodes whose leaders take so many milliseconds for each of so many batches in a second.
    struct World {
        pacer: Pacer,
        now: Instant,
        counts: [[u64; Times::PLACES]; 2],
    }

    impl World {
        fn new() -> Self {
            let (mut pacer, now) = (Pacer::default(), Instant::now());
            pacer.begin(now);
            let mut world = Self { pacer, now, counts: [[0; Times::PLACES]; 2] };
            world.pass([(0, 1.0); 2]);
            world
        }

        /// Nodes are asked once more, which is mostly after a second. Says whether the build rested until then.
        fn pass(&mut self, batches: [(u64, f64); 2]) -> bool {
            let rested = self.pacer.rests();
            self.now = self.pacer.due().unwrap();
            for (counts, (count, millis)) in self.counts.iter_mut().zip(batches) {
                counts[Times::place(Duration::from_secs_f64(millis / 1000.0))] += count;
            }
            let told = NODES.into_iter().zip(self.counts).map(|(node, counts)| (node, Times::of(counts)));
            self.pacer.hear(self.now, told.collect());
            rested
        }

        fn rest_after(&self, took: Duration, bytes: u64, rate: u64) -> Duration {
            let slice = Slice { begun: self.now, ended: self.now + took, bytes, rate };
            self.pacer.until(slice).saturating_duration_since(slice.ended)
        }
    }

    const SLICE: Duration = Duration::from_millis(10);

    #[test]
    fn it_rests_for_a_second_in_twenty() {
        let mut world = World::new();
        let rested: Vec<usize> = (0..60).filter(|_| world.pass([(100, 2.0); 2])).collect();
        assert_eq!(rested, [1, 21, 41]);
        assert_eq!(world.pacer.share, 1.0);
        let mut world = World::new();
        // Few, and then more.
        assert!(!(0..60).any(|_| world.pass([(10, 2.0); 2])));
        assert_eq!((0..3).filter(|_| world.pass([(20, 2.0); 2])).collect::<Vec<_>>(), [1]);
        let mut world = World::new();
        world.pass([(100, 2.0); 2]);
        assert_eq!(world.rest_after(SLICE, 1, 0), EVERY - SLICE);
        assert_eq!(world.pacer.due(), Some(world.now + EVERY));
    }

    #[test]
    fn it_begins_slowly_and_hears_soon_whether_anybody_writes() {
        let mut world = World::new();
        assert_eq!(world.rest_after(SLICE, 1, 0), SLICE * 4);
        assert_eq!(world.pacer.due(), Some(world.now + SOON));
        world.pass([(0, 1.0); 2]);
        assert_eq!(world.rest_after(SLICE, 1, 0), Duration::ZERO, "nobody does");
        let mut world = World::new();
        world.pass([(100, 1.0), (0, 1.0)]);
        world.pass([(500, 1.0), (0, 1.0)]);
        assert!(world.pacer.share < FIRST * 1.5, "somebody does");
    }

    #[test]
    fn its_share_is_halved_when_writers_wait_and_grows_when_they_do_not() {
        let mut world = World::new();
        let usual = [(100, 2.0), (1000, 1.0)];
        for _ in 0..30 {
            world.pass(usual);
        }
        assert_eq!(world.pacer.share, 1.0);
        // One node's suffice.
        world.pass([(100, 2.0), (1000, 2.0)]);
        assert_eq!(world.pacer.share, 0.5);
        assert_eq!(world.rest_after(SLICE, 1, 0), SLICE);
        for _ in 0..9 {
            world.pass([(100, 4.0), (1000, 1.0)]);
        }
        assert_eq!(world.pacer.share, LEAST);
        assert_eq!(world.rest_after(SLICE, 1, 0), SLICE * 19);
        for _ in 0..60 {
            world.pass(usual);
        }
        assert_eq!(world.pacer.share, 1.0);
    }

    #[test]
    fn what_is_usual_is_of_late() {
        let mut world = World::new();
        for second in 0..200 {
            // Everything becomes slower, whether it rests or not.
            world.pass([(100, if second < 100 { 1.0 } else { 3.0 }); 2]);
        }
        assert_eq!(world.pacer.share, 1.0);
    }

    #[test]
    fn of_few_batches_it_judges_once_they_are_enough() {
        let mut world = World::new();
        let mut low = 1.0_f64;
        for _ in 0..200 {
            let millis = if world.pacer.rests() { 1.0 } else { 9.0 };
            world.pass([(15, millis), (0, 1.0)]);
            low = low.min(world.pacer.share);
        }
        assert!(low < 0.3, "{low}");
        let mut world = World::new();
        for _ in 0..200 {
            let millis = if world.pacer.rests() { 1.0 } else { 9.0 };
            world.pass([(1, millis), (0, 1.0)]);
            assert_eq!(world.pacer.share, 1.0, "one in a second tells nothing");
        }
    }

    #[test]
    fn who_began_anew_or_was_not_heard_says_nothing() {
        let mut world = World::new();
        for _ in 0..3 {
            world.pass([(100, 1.0); 2]);
        }
        let share = world.pacer.share;
        world.pacer.hear(world.now, Vec::new());
        world.pass([(100, 9.0); 2]);
        world.counts = [[0; Times::PLACES]; 2];
        world.pass([(100, 9.0); 2]);
        assert_eq!(world.pacer.share, share);
    }

    #[test]
    fn a_rate_bounds_it() {
        let mut world = World::new();
        world.pass([(0, 1.0); 2]);
        let mib = 1 << 20;
        assert_eq!(world.rest_after(SLICE, mib, 4 * mib), Duration::from_millis(240));
        assert_eq!(world.rest_after(SLICE, mib, 1000 * mib), Duration::ZERO);
    }

    #[test]
    fn while_there_is_nothing_to_do_nobody_is_asked() {
        let mut world = World::new();
        world.pass([(100, 1.0); 2]);
        world.pacer.end();
        assert_eq!(world.pacer.due(), None);
        assert!(world.rest_after(SLICE, 1, 0) < EVERY - SLICE, "nothing is waited for");
        // An answer that comes late begins nothing.
        world.pacer.hear(world.now, Vec::new());
        assert_eq!(world.pacer.due(), None);
        world.pacer.begin(world.now);
        assert_eq!(world.pacer.due(), Some(world.now));
    }
}
