//! Which replica to ask, among those that may be asked.
//!
//! The nearest, unless another one that is drawn by lot promises to answer sooner: the power of two choices keeps load even
//! without looking at everyone (Mitzenmacher 2001), and the costs are those of a peak-sensitive average (Finagle's, as in
//! tower's `PeakEwma`). The leader takes part with the chance of one among its equals: near as it may be, most reads must
//! leave it alone, for it has the writes. All of it is arithmetic: chance is the caller's, and who the candidates are too.

use proto::LogIndex;
use std::time::Duration;

/// No replica is thought of as faster than this, so that what it has to do already counts.
const LEAST_LATENCY: Duration = Duration::from_micros(50);

/// How near a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// In this process.
    Here,
    /// In this zone.
    Zone,
    /// Anywhere.
    Elsewhere,
}

/// What is known of a replica.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// The last position that it was seen at.
    pub applied: LogIndex,
    /// How long it has made readers wait.
    pub waited: Duration,
    /// How long it has taken to answer, without that.
    pub latency: Duration,
    /// How many it hasn't answered yet.
    pub outstanding: u32,
}

impl Known {
    /// What it costs to read from it what shows this position.
    fn cost(&self, floor: LogIndex) -> Duration {
        let wait = if self.applied >= floor { Duration::ZERO } else { self.waited };
        self.latency.max(LEAST_LATENCY).saturating_mul(self.outstanding.saturating_add(1)) + wait
    }
}

/// A replica that may be asked.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its place among all replicas.
    pub place: usize,
    /// How near it is.
    pub nearness: Nearness,
    /// Whether it leads.
    pub leads: bool,
    /// What is known of it.
    pub known: Known,
}

/// Chooses one of the candidates, to read what shows `floor`; its place. There are `replicas` in all, those that may not be
/// asked included.
pub fn choose(
    candidates: &[Candidate],
    replicas: usize,
    floor: LogIndex,
    mut random: impl FnMut() -> u64,
) -> Option<usize> {
    let mut lot = |among: usize| (random() % among.max(1) as u64) as usize;
    let has_leader = candidates.iter().any(|candidate| candidate.leads);
    let takes_leader = has_leader && lot(replicas) == 0;
    let may = |candidate: &&Candidate| takes_leader || !candidate.leads;
    let nearest = candidates.iter().filter(may).map(|candidate| candidate.nearness).min()?;
    let near = || candidates.iter().filter(may).filter(|candidate| candidate.nearness == nearest);
    let first = near().nth(lot(near().count()))?;
    let others = || candidates.iter().filter(may).filter(|candidate| candidate.place != first.place);
    let second = others().nth(lot(others().count()));
    let better = second.filter(|second| second.known.cost(floor) < first.known.cost(floor));
    Some(better.unwrap_or(first).place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Nearness::{Elsewhere, Here, Zone};

    /// So many of a thousand choices fall on each place.
    fn shares(candidates: &[Candidate], floor: u64) -> Vec<usize> {
        let replicas = candidates.len();
        let mut shares = vec![0; replicas];
        let mut state = 1_u64;
        let mut random = || {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^ (bits >> 31)
        };
        for _ in 0..1000 {
            shares[choose(candidates, replicas, LogIndex(floor), &mut random).unwrap()] += 1;
        }
        shares
    }

    /// A replica: how near, its latency and how long it makes wait in ms, what it was seen at, what it hasn't answered.
    fn at(nearness: Nearness, latency: u64, waited: u64, applied: u64, outstanding: u32) -> Candidate {
        let (latency, waited) = (Duration::from_millis(latency), Duration::from_millis(waited));
        let known = Known { applied: LogIndex(applied), waited, latency, outstanding };
        Candidate { place: 0, nearness, leads: false, known }
    }

    /// The same; the one at `leader` leads.
    fn placed<const N: usize>(leader: usize, all: [Candidate; N]) -> Vec<Candidate> {
        let placed = |(place, one)| Candidate { place, leads: place == leader, ..one };
        all.into_iter().enumerate().map(placed).collect()
    }

    const NOBODY: usize = usize::MAX;

    #[test]
    fn each_gets_the_share_that_it_is_worth() {
        let even = |share: usize, of: usize| (of * 8 / 10..of * 12 / 10).contains(&share);
        type Check = fn(&[usize]) -> bool;
        let third: Check = |s| (270..400).contains(&s[0]);
        let table: Vec<(&str, Vec<Candidate>, Check)> = vec![
            ("alone", placed(0, [at(Elsewhere, 9, 9, 0, 9)]), |s| s == [1000]),
            (
                "the leader is near",
                placed(0, [at(Here, 1, 0, 9, 0), at(Elsewhere, 2, 0, 9, 0), at(Elsewhere, 2, 0, 9, 0)]),
                third,
            ),
            (
                "the leader is far",
                placed(0, [at(Elsewhere, 2, 0, 9, 0), at(Here, 1, 0, 9, 0), at(Elsewhere, 2, 0, 9, 0)]),
                |s| s == [0, 1000, 0],
            ),
            (
                "one that is behind costs what it waits",
                placed(0, [at(Elsewhere, 3, 0, 9, 0), at(Here, 1, 30, 4, 0), at(Elsewhere, 2, 0, 9, 0)]),
                |s| s[1] == 0 || s[1] < 200,
            ),
            (
                "a zone is nearer than elsewhere",
                placed(NOBODY, [at(Elsewhere, 1, 0, 9, 0), at(Zone, 1, 0, 9, 0), at(Elsewhere, 1, 0, 9, 0)]),
                |s| s == [0, 1000, 0],
            ),
            (
                "one that has much to do is left alone",
                placed(NOBODY, [at(Here, 1, 0, 9, 5), at(Zone, 3, 0, 9, 0), at(Zone, 3, 0, 9, 0)]),
                |s| s[0] == 0,
            ),
            (
                "of one that nothing is known of a wait is risked",
                placed(NOBODY, [at(Elsewhere, 0, 0, 0, 0), at(Elsewhere, 2, 0, 9, 0)]),
                |s| s == [1000, 0],
            ),
        ];
        for (what, candidates, check) in table {
            let shares = shares(&candidates, 5);
            assert!(check(&shares), "{what}: {shares:?}");
        }
        let alike = placed(NOBODY, [at(Zone, 1, 0, 9, 0), at(Zone, 1, 0, 9, 0), at(Zone, 1, 0, 9, 0)]);
        let shares = shares(&alike, 5);
        assert!(shares.iter().all(|share| even(*share, 333)), "{shares:?}");
    }

    #[test]
    fn a_wait_counts_only_for_who_has_to_wait() {
        let two = placed(NOBODY, [at(Here, 1, 30, 4, 0), at(Elsewhere, 2, 0, 9, 0)]);
        assert_eq!(shares(&two, 4), [1000, 0]);
        assert_eq!(shares(&two, 5), [0, 1000]);
    }

    #[test]
    fn who_may_not_be_asked_leaves_the_leader_no_more_than_its_share() {
        // Two of three may not be asked, and the third leads.
        let leader = placed(0, [at(Here, 1, 0, 9, 0)]);
        let chosen: Vec<_> = (0..3).map(|lot| choose(&leader, 3, LogIndex(0), || lot)).collect();
        assert_eq!(chosen, [Some(0), None, None]);
        assert_eq!(choose(&[], 3, LogIndex(0), || 0), None);
    }
}
