//! What kinds of simulations have in common: a plan that is drawn from a seed, run, and made shorter when it fails.

use super::trace::{Time, Trace};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;

/// A plan of one kind of simulation.
pub trait Scenario: Clone {
    /// A kind of fault.
    type Kind: Copy + Ord + Display + Send + 'static;
    /// Something that goes wrong.
    type Fault: Clone;

    /// All kinds of faults.
    const KINDS: &'static [Self::Kind];

    /// What this seed has in store.
    fn draw(seed: u64) -> Self;

    /// Runs it.
    ///
    /// # Errors
    /// If there is no place for the files, or no runtime.
    fn run(self) -> std::io::Result<Report<Self::Kind>>;

    /// What happens when.
    fn faults(&mut self) -> &mut Vec<(Time, Self::Fault)>;

    /// A fault's kind.
    fn kind(fault: &Self::Fault) -> Self::Kind;

    /// How many clients there are.
    fn clients(&mut self) -> &mut usize;
}

/// What a run was.
pub struct Report<K> {
    /// Why it failed.
    pub failure: Option<String>,
    /// How often each kind of fault happened.
    pub faults: BTreeMap<K, u64>,
    /// How often something worth counting happened.
    pub counts: BTreeMap<Cow<'static, str>, u64>,
    /// What happened.
    pub trace: Trace,
}

impl<K> Default for Report<K> {
    fn default() -> Self {
        Self { failure: None, faults: BTreeMap::new(), counts: BTreeMap::new(), trace: Trace::default() }
    }
}
