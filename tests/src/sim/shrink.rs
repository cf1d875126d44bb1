//! Making a failing run shorter: what it doesn't need to fail is taken out of its plan.
//!
//! Whole kinds of faults first, then halves and single faults, then clients. A shorter plan is another run (chance
//! falls otherwise), so it counts only if it fails, too; any failure will do.

use super::scenario::{Report, Scenario};
use super::trace::Time;

/// The shortest failing plan that was found in so many runs, with its run; the plan that was given, if it doesn't fail.
pub fn shrink<S: Scenario>(plan: S, report: Report<S::Kind>, runs: u64) -> (S, Report<S::Kind>) {
    let mut search = Search { plan, report, left: runs };
    search.drop_kinds();
    search.drop_faults();
    search.drop_clients();
    (search.plan, search.report)
}

struct Search<S: Scenario> {
    plan: S,
    report: Report<S::Kind>,
    left: u64,
}

impl<S: Scenario> Search<S> {
    /// Takes a shorter plan, if it fails.
    fn attempt(&mut self, plan: S) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        match plan.clone().run() {
            Ok(report) if report.failure.is_some() => {
                (self.plan, self.report) = (plan, report);
                true
            }
            _ => false,
        }
    }

    fn with_faults(&self, faults: Vec<(Time, S::Fault)>) -> S {
        let mut plan = self.plan.clone();
        *plan.faults() = faults;
        plan
    }

    fn drop_kinds(&mut self) {
        let mut kinds: Vec<_> = self.plan.faults().iter().map(|(_, fault)| S::kind(fault)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            let mut faults = self.plan.faults().clone();
            faults.retain(|(_, fault)| S::kind(fault) != kind);
            self.attempt(self.with_faults(faults));
        }
    }

    fn drop_faults(&mut self) {
        let mut size = self.plan.faults().len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < self.plan.faults().len() {
                let mut faults = self.plan.faults().clone();
                faults.drain(at..(at + size).min(faults.len()));
                if !self.attempt(self.with_faults(faults)) {
                    at += size;
                }
            }
            size /= 2;
        }
    }

    fn drop_clients(&mut self) {
        while *self.plan.clients() > 1 {
            let mut plan = self.plan.clone();
            *plan.clients() -= 1;
            if !self.attempt(plan) {
                return;
            }
        }
    }
}
