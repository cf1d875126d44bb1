//! Queries that are run first: subqueries that lock rows, and what a write reads that isn't where it writes.
//!
//! In comes a bound statement; out goes the same with such subqueries replaced by their rows, or their one value, and
//! these queries beside it. PostgreSQL runs a subquery that refers to nothing outside of it once, too, and a locking one
//! had better be run once: each run would lock rows. What refers to the statement's own rows can't be run first.

use super::Planner;
use crate::bind::insert::{Insert, Rows};
use crate::bind::lock::lock_name;
use crate::bind::modify::Modify;
use crate::bind::tree::{Body, Cte, Expr, ExprKind, From, Query, RelId, Relation, RelationSource, Select};
use crate::bind::walk::grow;
use crate::plan::{Scalar, ScalarId};
use dialect::Type;
use proto::WireError;
use std::collections::BTreeSet;

/// Which subqueries are run first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// Those that lock rows.
    Locking,
    /// All that can be.
    All,
}

impl Planner<'_, '_> {
    /// Has a query's subqueries that lock rows run first. Its own lock is none of theirs.
    pub(crate) fn lift_query(&mut self, query: &mut Query) -> Result<(), WireError> {
        grow(|| self.lift_within(query, Which::Locking))
    }

    /// The same for an INSERT.
    pub(crate) fn lift_insert(&mut self, insert: &mut Insert) -> Result<(), WireError> {
        match &mut insert.rows {
            Rows::Query(query, _) => self.lift_query(query),
            Rows::Values(_) => Ok(()),
        }
    }

    /// The same for an UPDATE or DELETE, whose WITH is run first in any case.
    pub(crate) fn lift_modify(&mut self, modify: &mut Modify) -> Result<(), WireError> {
        let mut used = BTreeSet::new();
        let Modify { table: _, rel: _, from, ctes, sets, filter, returning: _ } = modify;
        for from in from.iter() {
            used_ctes_from(from, &mut used);
        }
        for expr in sets.iter().flatten().map(|(_, e)| e).chain(filter.iter()) {
            expr.each_shallow_query(&mut |query| used_ctes(query, &mut used));
        }
        for cte in ctes.iter() {
            used_ctes(&cte.query, &mut used);
        }
        for Cte { id, mut query } in std::mem::take(ctes) {
            if used.contains(&id) {
                self.lift_within(&mut query, Which::Locking)?;
                let rows = self.run_first(&query, false)?;
                self.known.insert(id, rows);
            }
        }
        for from in from {
            self.lift_from(from, Which::Locking)?;
        }
        for expr in sets.iter_mut().flatten().map(|(_, e)| e).chain(filter) {
            self.lift_expr(expr, Which::Locking)?;
        }
        Ok(())
    }

    /// Has all that an UPDATE or DELETE reads beside its table run first.
    pub(super) fn lift_all(&mut self, modify: &mut Modify) -> Result<(), WireError> {
        let Modify { table: _, rel: _, from, ctes: _, sets, filter, returning: _ } = modify;
        for from in from.iter_mut() {
            self.lift_relations(from, filter.as_ref())?;
        }
        for expr in sets.iter_mut().flatten().map(|(_, e)| e).chain(filter) {
            self.lift_expr(expr, Which::All)?;
        }
        Ok(())
    }

    fn lift_within(&mut self, query: &mut Query, which: Which) -> Result<(), WireError> {
        let mut used = BTreeSet::new();
        used_ctes(query, &mut used);
        for Cte { id, query: mut inner } in std::mem::take(&mut query.ctes) {
            // PostgreSQL doesn't run what nobody reads.
            if !used.contains(&id) {
                continue;
            }
            self.lift_within(&mut inner, which)?;
            if locks(&inner).is_some() {
                let rows = self.run_first(&inner, false)?;
                self.known.insert(id, rows);
            } else {
                query.ctes.push(Cte { id, query: inner });
            }
        }
        match &mut query.body {
            Body::Select(select) => {
                let Select { from, filter, group_by, having, projection, .. } = &mut **select;
                for from in from {
                    self.lift_from(from, which)?;
                }
                for expr in filter.iter_mut().chain(group_by).chain(having).chain(projection) {
                    self.lift_expr(expr, which)?;
                }
            }
            Body::Values(rows) => {
                for expr in rows.iter_mut().flatten() {
                    self.lift_expr(expr, which)?;
                }
            }
            Body::SetOperation { op: _, all: _, left, right } => {
                self.lift_within(left, which)?;
                self.lift_within(right, which)?;
            }
        }
        Ok(())
    }

    fn lift_from(&mut self, from: &mut From, which: Which) -> Result<(), WireError> {
        match from {
            From::Relation(relation) => {
                match &mut relation.source {
                    RelationSource::Query(query) => {
                        self.lift_within(query, which)?;
                        if locks(query).is_some() {
                            relation.source = RelationSource::Rows(self.run_first(query, false)?);
                        }
                    }
                    RelationSource::Cte(id) => {
                        if let Some(rows) = self.known.get(id) {
                            relation.source = RelationSource::Rows(*rows);
                        }
                    }
                    RelationSource::Table(_) | RelationSource::System(_) | RelationSource::Rows(_) => {}
                }
                Ok(())
            }
            From::Join { kind: _, left, right, on } => {
                self.lift_from(left, which)?;
                self.lift_from(right, which)?;
                on.iter_mut().try_for_each(|on| self.lift_expr(on, which))
            }
        }
    }

    fn lift_expr(&mut self, expr: &mut Expr, which: Which) -> Result<(), WireError> {
        grow(|| {
            expr.each_part_mut(&mut |part| self.lift_expr(part, which))?;
            let (query, single) = match &mut expr.kind {
                ExprKind::Subquery(query) => (query, true),
                ExprKind::Exists(query) | ExprKind::InQuery(_, query, _) => (query, false),
                _ => return Ok(()),
            };
            self.lift_within(query, Which::Locking)?;
            let is_wanted = which == Which::All && !is_correlated(query) && !reads_rows_alone(query);
            if locks(query).is_none() && !is_wanted {
                return Ok(());
            }
            let found = self.run_first(query, single)?;
            if single {
                expr.kind = ExprKind::Known(found);
            } else {
                **query = self.all_of(query, found);
            }
            Ok(())
        })
    }

    /// `SELECT * FROM` a query's rows.
    fn all_of(&mut self, query: &Query, rows: ScalarId) -> Query {
        let id = self.binder.new_relation();
        let columns = || query.columns.iter().map(|column| column.ty);
        let types = columns().map(|ty| ty.ty).collect();
        let relation = Relation { id, source: RelationSource::Rows(rows), types };
        let projection = columns()
            .enumerate()
            .map(|(place, ty)| Expr { kind: ExprKind::Column(id, place as u32), ty })
            .collect();
        let select = Select {
            from: vec![From::Relation(relation)],
            filter: None,
            grouped: false,
            group_by: Vec::new(),
            having: None,
            projection,
            distinct: false,
            locks: Vec::new(),
        };
        Query {
            ctes: Vec::new(),
            body: Body::Select(Box::new(select)),
            order_by: Vec::new(),
            limit: None,
            offset: None,
            columns: query.columns.clone(),
        }
    }

    /// Has the relations of a FROM item run first, each with the conditions that concern it alone.
    fn lift_relations(&mut self, from: &mut From, filter: Option<&Expr>) -> Result<(), WireError> {
        let relation = match from {
            From::Relation(relation) => relation,
            From::Join { kind: _, left, right, on } => {
                self.lift_relations(left, None)?;
                self.lift_relations(right, None)?;
                return on.iter_mut().try_for_each(|on| self.lift_expr(on, Which::All));
            }
        };
        if matches!(relation.source, RelationSource::Rows(_)) {
            return Ok(());
        }
        let id = relation.id;
        let mut conditions = Vec::new();
        if let Some(filter) = filter {
            super::keys::conjuncts(filter, &mut conditions);
        }
        let own = |condition: &&&Expr| !condition.has_query() && condition.relations() == [id];
        let mut own: Vec<Expr> = conditions.iter().filter(own).map(|e| (*e).clone()).collect();
        let filter = match own.len() {
            0 | 1 => own.pop(),
            _ => Some(Expr::new(ExprKind::And(own), Type::Bool)),
        };
        let projection: Vec<Expr> = relation
            .types
            .iter()
            .enumerate()
            .map(|(place, ty)| Expr::new(ExprKind::Column(id, place as u32), *ty))
            .collect();
        let columns = projection
            .iter()
            .map(|e| crate::plan::OutputColumn { name: String::new(), ty: e.ty, origin: None })
            .collect();
        let select = Select {
            from: vec![From::Relation(relation.clone())],
            filter,
            grouped: false,
            group_by: Vec::new(),
            having: None,
            projection,
            distinct: false,
            locks: Vec::new(),
        };
        let query = Query {
            ctes: Vec::new(),
            body: Body::Select(Box::new(select)),
            order_by: Vec::new(),
            limit: None,
            offset: None,
            columns,
        };
        relation.source = RelationSource::Rows(self.run_first(&query, false)?);
        Ok(())
    }

    /// Plans a query to be run first.
    fn run_first(&mut self, query: &Query, single: bool) -> Result<ScalarId, WireError> {
        if is_correlated(query) {
            let name = locks(query).map_or("a query", lock_name);
            return Err(WireError::unsupported(format!(
                "{name} in a subquery that depends on the rows around it"
            ))
            .with_hint("Lock the rows with a SELECT of its own, then use their keys."));
        }
        let columns = u16::try_from(query.columns.len());
        let columns = columns.map_err(|_| WireError::internal("a query has too many columns"))?;
        let planned = self.query(query)?;
        self.first.push(planned);
        Ok(self.scalars.push(Scalar::Query { place: self.first.len() - 1, columns, single }))
    }
}

/// The lock of a query's own rows.
fn locks(query: &Query) -> Option<proto::services::RowLock> {
    match &query.body {
        Body::Select(select) => select.locks.first().map(|lock| lock.mode),
        Body::Values(_) | Body::SetOperation { .. } => None,
    }
}

/// The queries of WITH that a query reads, at any depth.
fn used_ctes(query: &Query, used: &mut BTreeSet<u32>) {
    query.each_relation(&mut |relation| {
        if let RelationSource::Cte(id) = relation.source {
            used.insert(id);
        }
    });
}

fn used_ctes_from(from: &From, used: &mut BTreeSet<u32>) {
    from.each_relation(&mut |relation| match &relation.source {
        RelationSource::Cte(id) => {
            used.insert(*id);
        }
        RelationSource::Query(query) => used_ctes(query, used),
        RelationSource::Table(_) | RelationSource::System(_) | RelationSource::Rows(_) => {}
    });
}

/// Whether a query reads nothing but rows that were found first.
fn reads_rows_alone(query: &Query) -> bool {
    let mut alone = true;
    query.each_relation(&mut |relation| {
        alone &= matches!(relation.source, RelationSource::Rows(_) | RelationSource::Query(_));
    });
    alone
}

/// Whether a query refers to something outside of it.
fn is_correlated(query: &Query) -> bool {
    let (mut own, mut made, mut read) = (BTreeSet::<RelId>::new(), BTreeSet::new(), BTreeSet::new());
    query.each_relation(&mut |relation| {
        own.insert(relation.id);
    });
    each_cte(query, &mut made);
    used_ctes(query, &mut read);
    let mut outside = !read.is_subset(&made);
    query.each_expr(&mut |expr| {
        if let ExprKind::Column(rel, _) = expr.kind {
            outside |= !own.contains(&rel);
        }
    });
    outside
}

fn each_cte(query: &Query, made: &mut BTreeSet<u32>) {
    for cte in &query.ctes {
        made.insert(cte.id);
        each_cte(&cte.query, made);
    }
    match &query.body {
        Body::Select(select) => {
            for from in &select.from {
                from.each_relation(&mut |relation| {
                    if let RelationSource::Query(query) = &relation.source {
                        each_cte(query, made);
                    }
                });
            }
        }
        Body::SetOperation { op: _, all: _, left, right } => {
            each_cte(left, made);
            each_cte(right, made);
        }
        Body::Values(_) => {}
    }
    query.each_own_expr(&mut |expr| expr.each_shallow_query(&mut |query| each_cte(query, made)));
}
