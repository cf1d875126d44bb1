//! Planning: what shards run, and what the router does with their rows.
//!
//! In comes a bound statement, out goes a plan. Three ways, the first that fits: the whole query on one shard
//! ([`whole`]), one fragment on several shards whose rows are merged ([`scatter`]), or each table's rows gathered and
//! the whole query run in the router ([`gather`]). The last is always right, and with all rules off it is the only
//! one. Nothing here knows which shards there are.

mod first;
mod gather;
pub(crate) mod keys;
mod lock;
mod scatter;
mod whole;
pub(crate) mod write;

use crate::Rules;
use crate::bind::Binder;
use crate::bind::tree::{Body, Expr, ExprKind, From, Query, Relation, RelationSource, Select};
use crate::emit::scalars::Scalars;
use crate::emit::{Naming, Relations, Writer};
use crate::plan::{self, Environment, Gather, KeyFilter, ScalarId, Target};
use dialect::Type;
use dialect::functions::Volatility;
use proto::WireError;
use proto::catalog::{Placement, Table};
use std::collections::HashMap;
use std::sync::Arc;

/// A statement being planned.
pub(crate) struct Planner<'b, 'a> {
    pub binder: &'b mut Binder<'a>,
    pub scalars: Scalars,
    pub rules: Rules,
    /// See [`plan::Plan::first`].
    pub first: Vec<plan::Query>,
    /// The queries of WITH that are run first, and their rows.
    pub known: HashMap<u32, ScalarId>,
}

impl<'b, 'a> Planner<'b, 'a> {
    pub(crate) fn new(binder: &'b mut Binder<'a>) -> Self {
        let rules = binder.context.settings.rules;
        Planner { binder, scalars: Scalars::default(), rules, first: Vec::new(), known: HashMap::new() }
    }

    /// A query's fragments and gather.
    pub(crate) fn query(&mut self, query: &Query) -> Result<plan::Query, WireError> {
        refuse_volatile(query)?;
        let mut tables = false;
        query.each_relation(&mut |relation| {
            tables |= matches!(relation.source, RelationSource::Table(_) | RelationSource::System(_));
        });
        if !tables {
            let relations = Relations::new();
            let mut writer = Writer::new(self.binder, &mut self.scalars, &relations);
            let sql = writer.query(query)?.into();
            let params = writer.params;
            return Ok(plan::Query {
                fragments: Vec::new(),
                gather: Gather::Sqlite { sources: Vec::new(), sql, params },
                lock: None,
            });
        }
        if let Some((select, lock)) = lock::of(query) {
            return self.locked(query, select, lock);
        }
        if let Some(plan) = self.whole(query)? {
            return Ok(plan);
        }
        if let Some(plan) = self.scatter(query)? {
            return Ok(plan);
        }
        self.gather(query)
    }

    /// Where a table's rows are.
    pub(crate) fn target(&self, table: &Table, filter: KeyFilter) -> Result<Target, WireError> {
        Ok(match &table.placement {
            Placement::Sharded { keyspace, key: _ } => {
                Target::Keyspace { keyspace: *keyspace, key: key_types(table)?, filter }
            }
            Placement::Single { keyspace } => {
                Target::Keyspace { keyspace: *keyspace, key: Vec::new(), filter }
            }
            Placement::Reference => Target::Any,
        })
    }
}

/// The types of a table's shard key.
pub(crate) fn key_types(table: &Table) -> Result<Vec<Type>, WireError> {
    let places = key_places(table);
    places
        .into_iter()
        .map(|place| Ok(crate::bind::from::column_type(table, &table.columns[place])?.ty))
        .collect()
}

/// The places of a table's shard key; none for a table that has none.
pub(crate) fn key_places(table: &Table) -> Vec<usize> {
    match &table.placement {
        Placement::Sharded { keyspace: _, key } => {
            key.iter().filter_map(|id| table.columns.iter().position(|c| c.id == *id)).collect()
        }
        Placement::Single { .. } | Placement::Reference => Vec::new(),
    }
}

/// Whether an expression gives something else each time it is evaluated.
pub(crate) fn is_volatile(expr: &Expr) -> bool {
    let mut found = false;
    expr.each_deep(&mut |e| {
        found |= match &e.kind {
            ExprKind::Environment(Environment::Random | Environment::RandomUuid, _)
            | ExprKind::NextValue(..) => true,
            ExprKind::Call(operation, _) => operation.0.function.volatility == Volatility::Volatile,
            _ => false,
        };
    });
    found
}

/// PostgreSQL evaluates volatile functions for each row; Shoal evaluates them once. So over rows they're refused.
fn refuse_volatile(query: &Query) -> Result<(), WireError> {
    let mut result = Ok(());
    visit_selects(query, &mut |select| {
        if select.from.is_empty() || result.is_err() {
            return;
        }
        let lists = select.filter.iter().chain(&select.group_by).chain(&select.having);
        let mut exprs: Vec<&Expr> = lists.chain(&select.projection).collect();
        select.from.iter().for_each(|from| conditions(from, &mut exprs));
        if exprs.into_iter().any(is_volatile) {
            result = Err(WireError::unsupported("a volatile function over the rows of a table")
                .with_hint("Call it in a statement of its own, or in a column's DEFAULT."));
        }
    });
    result
}

fn conditions<'q>(from: &'q From, exprs: &mut Vec<&'q Expr>) {
    if let From::Join { kind: _, left, right, on } = from {
        conditions(left, exprs);
        conditions(right, exprs);
        exprs.extend(on);
    }
}

/// Calls `f` with every SELECT of a query, at any depth.
pub(crate) fn visit_selects<'q>(query: &'q Query, f: &mut dyn FnMut(&'q Select)) {
    for cte in &query.ctes {
        visit_selects(&cte.query, f);
    }
    match &query.body {
        Body::Select(select) => {
            f(select);
            for from in &select.from {
                from.each_relation(&mut |relation| {
                    if let RelationSource::Query(query) = &relation.source {
                        visit_selects(query, f);
                    }
                });
            }
        }
        Body::Values(_) => {}
        Body::SetOperation { op: _, all: _, left, right } => {
            visit_selects(left, f);
            visit_selects(right, f);
        }
    }
    query.each_own_expr(&mut |expr| expr.each_shallow_query(&mut |query| visit_selects(query, f)));
}

/// The tables of a query, at any depth, as the shards have them.
pub(crate) fn on_shards<'q>(query: &'q Query, relations: &mut Relations) {
    query.each_relation(&mut |relation: &'q Relation| {
        if let RelationSource::Table(table) = &relation.source {
            relations.insert(relation.id, Naming::Table(Arc::clone(table)));
        }
    });
}

/// The relations of a SELECT's FROM.
pub(crate) fn relations_of(select: &Select) -> Vec<&Relation> {
    let mut found = Vec::new();
    for from in &select.from {
        from.each_relation(&mut |relation| found.push(relation));
    }
    found
}

/// A query's types, as its rows have them.
pub(crate) fn types_of(query: &Query) -> Vec<Type> {
    query.columns.iter().map(|c| c.ty.ty).collect()
}
