//! What kinds of simulations have in common: a plan that is drawn from a seed, made shorter perhaps, and run.

use super::trace::{Time, Trace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A plan of one kind of simulation.
pub trait Scenario: Sized {
    /// Something that goes wrong.
    type Fault;

    /// The names of all kinds of faults.
    fn kinds() -> Vec<String>;

    /// What this seed has in store.
    fn draw(seed: u64) -> Self;

    /// Runs it.
    ///
    /// # Errors
    /// If there is no place for the files, or no runtime.
    fn run(self) -> std::io::Result<Report>;

    /// What happens when.
    fn faults(&mut self) -> &mut Vec<(Time, Self::Fault)>;

    /// The name of a fault's kind.
    fn kind(fault: &Self::Fault) -> String;

    /// How many clients there are.
    fn clients(&mut self) -> &mut usize;

    /// Has reads of several shards judged as one state of them all, too.
    fn demand_cuts(&mut self) {}

    /// Has some clients read from any replica.
    fn demand_sessions(&mut self) {}

    /// Has an admin reshard.
    fn demand_reshards(&mut self) {}

    /// Has nodes die and return, and nothing else go wrong; what their routers had prepared must be free in time.
    fn demand_deaths(&mut self) {}
}

/// A seed's plan, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The seed.
    pub seed: u64,
    /// Which of its faults happen, by their places; all if it isn't said.
    pub keep: Option<Vec<usize>>,
    /// How many clients there are; as many as the seed says if it isn't said.
    pub clients: Option<usize>,
    /// Whether reads of several shards must see one state of them all.
    pub cuts: bool,
    /// Whether some clients read from any replica.
    pub sessions: bool,
    /// Whether an admin reshards.
    pub reshards: bool,
    /// Whether nodes die, and nothing else goes wrong.
    pub deaths: bool,
}

impl Variant {
    /// All of a seed's plan.
    pub fn whole(seed: u64) -> Self {
        Self { seed, keep: None, clients: None, cuts: false, sessions: false, reshards: false, deaths: false }
    }

    /// The plan.
    pub fn plan<S: Scenario>(&self) -> S {
        let mut plan = S::draw(self.seed);
        // They draw other faults, so they come before any are left out.
        if self.deaths {
            plan.demand_deaths();
        }
        if self.sessions {
            plan.demand_sessions();
        }
        if self.reshards {
            plan.demand_reshards();
        }
        if let Some(keep) = &self.keep {
            let mut place = 0..;
            plan.faults().retain(|_| place.next().is_some_and(|place| keep.contains(&place)));
        }
        if let Some(clients) = self.clients {
            *plan.clients() = clients;
        }
        if self.cuts {
            plan.demand_cuts();
        }
        plan
    }

    /// What `sim` is told to run it.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--seed".to_owned(), self.seed.to_string()];
        if let Some(keep) = &self.keep {
            let keep: Vec<String> = keep.iter().map(usize::to_string).collect();
            arguments.extend(["--keep".to_owned(), keep.join(",")]);
        }
        if let Some(clients) = self.clients {
            arguments.extend(["--clients".to_owned(), clients.to_string()]);
        }
        if self.cuts {
            arguments.push("--cuts".to_owned());
        }
        if self.sessions {
            arguments.push("--sessions".to_owned());
        }
        if self.reshards {
            arguments.push("--reshards".to_owned());
        }
        if self.deaths {
            arguments.push("--deaths".to_owned());
        }
        arguments
    }
}

/// What a run was.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Why it failed.
    pub failure: Option<String>,
    /// How often each kind of fault happened.
    pub faults: BTreeMap<String, u64>,
    /// How often something worth counting happened.
    pub counts: BTreeMap<String, u64>,
    /// What happened, for people.
    pub lines: Vec<String>,
    /// When anything happened, and a hash of all up to there.
    pub moments: Vec<(Time, u64)>,
}

impl Report {
    /// A run that has come to its end.
    pub fn new(trace: &Trace, failure: Option<String>) -> Self {
        let (lines, moments) = (trace.lines().collect(), trace.moments().to_vec());
        Self { failure, lines, moments, ..Self::default() }
    }

    /// One that never was.
    pub fn failed(why: String) -> Self {
        Self { failure: Some(why), ..Self::default() }
    }

    /// After how many things, and when, another run of the same seed first differs from this one.
    pub fn parts_from(&self, other: &Self) -> Option<(usize, Time)> {
        let same = self.moments.iter().zip(&other.moments).take_while(|(one, other)| one == other).count();
        let (one, other) = (self.moments.get(same), other.moments.get(same));
        one.or(other).map(|(time, _)| (same, *time))
    }
}
