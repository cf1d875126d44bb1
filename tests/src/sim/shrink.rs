//! Making a failing run shorter: what it doesn't need to fail is taken out of its plan.
//!
//! Whole kinds of faults first, then halves and single faults, then clients. A shorter plan is another run (chance
//! falls otherwise), so it counts only if it fails, too; any failure will do.

use super::scenario::{Report, Variant};

/// The shortest failing run that was found in so many, of a whole plan with these kinds of faults and so many clients.
/// `run` runs one.
pub fn shrink(
    whole: &Variant,
    kinds: &[String],
    clients: usize,
    report: Report,
    runs: u64,
    run: impl FnMut(&Variant) -> Report,
) -> (Variant, Report) {
    let keep = (0..kinds.len()).collect();
    let mut search = Search { whole: whole.clone(), keep, clients, report, left: runs, run };
    search.drop_kinds(kinds);
    search.drop_faults();
    while search.clients > 1 && search.attempt(search.keep.clone(), search.clients - 1) {}
    (search.variant(search.keep.clone(), search.clients), search.report)
}

struct Search<R> {
    whole: Variant,
    keep: Vec<usize>,
    clients: usize,
    report: Report,
    left: u64,
    run: R,
}

impl<R: FnMut(&Variant) -> Report> Search<R> {
    fn variant(&self, keep: Vec<usize>, clients: usize) -> Variant {
        Variant { keep: Some(keep), clients: Some(clients), ..self.whole.clone() }
    }

    /// Takes a shorter plan, if it fails.
    fn attempt(&mut self, keep: Vec<usize>, clients: usize) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        let variant = self.variant(keep.clone(), clients);
        let report = (self.run)(&variant);
        let fails = report.failure.is_some();
        if fails {
            (self.keep, self.clients, self.report) = (keep, clients, report);
        }
        fails
    }

    fn drop_kinds(&mut self, kinds: &[String]) {
        let mut names = kinds.to_vec();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let keep = self.keep.iter().copied().filter(|place| kinds[*place] != name).collect();
            self.attempt(keep, self.clients);
        }
    }

    fn drop_faults(&mut self) {
        let mut size = self.keep.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < self.keep.len() {
                let mut keep = self.keep.clone();
                keep.drain(at..(at + size).min(keep.len()));
                if !self.attempt(keep, self.clients) {
                    at += size;
                }
            }
            size /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_stays() {
        let kinds: Vec<String> = ["a", "b", "a", "c", "b", "c", "c"].map(str::to_owned).into();
        let run = |variant: &Variant| {
            let needs = |place| variant.keep.as_ref().is_some_and(|keep| keep.contains(&place));
            let fails = needs(4) && needs(6) && variant.clients >= Some(2);
            Report { failure: fails.then(String::new), ..Report::default() }
        };
        let (variant, _) = shrink(&Variant::whole(1), &kinds, 5, Report::default(), 100, run);
        assert_eq!(variant, Variant { keep: Some(vec![4, 6]), clients: Some(2), ..Variant::whole(1) });
        assert_eq!(variant.arguments().join(" "), "--seed 1 --keep 4,6 --clients 2");
    }
}
