//! Emission: the bound tree as SQL for SQLite.
//!
//! In come expressions and queries, and where each relation's rows are (a shard's table, or a table of the gather).
//! Out goes SQL with parameters `?1..` and the scalars that fill them. Comparison, order and grouping are always of
//! key forms. Nothing here decides what runs where.

mod expression;
pub(crate) mod query;
pub(crate) mod scalars;

pub(crate) use expression::is_plain;

use crate::bind::Binder;
use crate::bind::tree::{Expr, RelId};
use crate::plan::ScalarId;
use proto::catalog::Table;
use scalars::Scalars;
use std::collections::HashMap;
use std::sync::Arc;

/// How a relation's columns are written.
#[derive(Clone, Debug)]
pub(crate) enum Naming {
    /// A table of a shard, under its alias `r<n>`.
    Table(Arc<Table>),
    /// The table that a writing statement is about: its columns stand alone.
    Target(Arc<Table>),
    /// A table of the gather: its name, and for each column of the relation its place in it.
    Source(String, Vec<Option<u32>>),
}

/// Where relations are. One that isn't here is a subquery or a WITH query, whose columns are `a0`, `a1`, ..
pub(crate) type Relations = HashMap<RelId, Naming>;

/// Writes SQL.
pub(crate) struct Writer<'w, 'b, 'a> {
    pub binder: &'b Binder<'a>,
    pub scalars: &'w mut Scalars,
    pub relations: &'w Relations,
    /// The scalars behind `?1..` (behind `?<first + 1>..` in a statement whose rows come first).
    pub params: Vec<ScalarId>,
    /// Parameters that the statement has before `params`.
    first: usize,
    places: HashMap<ScalarId, usize>,
    /// Expressions that are columns already: what shards have computed.
    pub computed: Vec<(Expr, String)>,
    /// Constants are written out: what is written has no parameters.
    pub inline: bool,
}

impl<'w, 'b, 'a> Writer<'w, 'b, 'a> {
    pub(crate) fn new(binder: &'b Binder<'a>, scalars: &'w mut Scalars, relations: &'w Relations) -> Self {
        Writer {
            binder,
            scalars,
            relations,
            params: Vec::new(),
            first: 0,
            places: HashMap::new(),
            computed: Vec::new(),
            inline: false,
        }
    }

    /// The same, for a statement whose first parameters are a row's.
    pub(crate) fn after_row(mut self, width: usize) -> Self {
        self.first = width;
        self
    }

    /// A parameter that has this scalar's value.
    pub(crate) fn param(&mut self, scalar: ScalarId) -> String {
        let next = self.params.len();
        let place = *self.places.entry(scalar).or_insert(next);
        if place == next {
            self.params.push(scalar);
        }
        format!("?{}", self.first + place + 1)
    }
}
