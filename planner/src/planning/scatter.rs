//! One fragment on several shards, whose rows are merged: a SELECT whose tables' rows lie together.
//!
//! The fragment is the SELECT itself, up to where rows of different shards meet: groups, DISTINCT, the order, the
//! limit. Shards do their part of those (each by a rule), the gather the rest: a stream where rows only have to be
//! put together, SQLite where they must be grouped or told apart.

use super::gather::{contains, is_certain};
use super::keys::Facts;
use super::lock::RowKeys;
use super::whole::same_hash;
use super::{Planner, key_places, key_types, on_shards, relations_of};
use crate::Rule;
use crate::bind::tree::{Body, Expr, ExprKind, From, JoinKind, Query, Relation, RelationSource, Select};
use crate::emit::query::sorted;
use crate::emit::{Naming, Relations, Writer, is_plain};
use crate::plan::{self, Fragment, Gather, KeyFilter, MergeKey, ScalarId, Source, SourceRows, Target};
use dialect::Type;
use dialect::key::key_sql;
use proto::WireError;
use proto::catalog::{Placement, Table};
use std::sync::Arc;

/// The gather's table.
const SOURCE: &str = "s";

/// Which tables a FROM item has.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// Reference tables and given rows alone: the same on every shard.
    Everywhere,
    /// A sharded one, too.
    Sharded,
}

impl Planner<'_, '_> {
    /// The plan that scatters the query, if its rows lie together.
    pub(super) fn scatter(&mut self, query: &Query) -> Result<Option<plan::Query>, WireError> {
        if !self.rules.has(Rule::PushFilter)
            || !self.rules.has(Rule::PushProjection)
            || !query.ctes.is_empty()
        {
            return Ok(None);
        }
        let Body::Select(select) = &query.body else { return Ok(None) };
        if !subqueries_everywhere(select) {
            return Ok(None);
        }
        let facts = Facts::of(select);
        let Some((target, lookup)) = self.together(select, &facts)? else { return Ok(None) };
        if select.grouped && !self.groups_lie_together(select, &facts) {
            return self.grouped(query, select, target);
        }
        self.merged(query, select, target, lookup, None).map(Some)
    }

    /// The plan of a SELECT that each shard runs over its own rows. A lock has rows come with their keys, in order, and
    /// cut by the gather alone.
    pub(super) fn merged(
        &mut self,
        query: &Query,
        select: &Select,
        target: Target,
        lookup: bool,
        lock: Option<&RowKeys>,
    ) -> Result<plan::Query, WireError> {
        let width = query.columns.len();
        let mut relations = Relations::new();
        on_shards(query, &mut relations);
        let order = (self.rules.has(Rule::PushOrder) || lock.is_some()) && !select.distinct;
        let distinct = select.distinct;
        let fragment_select =
            Select { distinct: distinct && self.rules.has(Rule::PushDistinct), ..select.clone() };
        let (limit, offset) = self.limits(query)?;
        // What the rows are to be ordered by: a column that is there, or one more with its key form.
        let mut keys = Vec::new();
        let mut extra: Vec<usize> = Vec::new();
        for key in &query.order_by {
            let ty = select.projection[key.column].ty.ty;
            let column = if key.column < width && (is_plain(ty) || !order) {
                key.column
            } else {
                let place = extra.iter().position(|known| *known == key.column);
                width
                    + place.unwrap_or_else(|| {
                        extra.push(key.column);
                        extra.len() - 1
                    })
            };
            keys.push(MergeKey { column, descending: key.descending, nulls_first: key.nulls_first });
        }
        let mut writer = Writer::new(self.binder, &mut self.scalars, &relations);
        let mut sql = String::from("SELECT ");
        if fragment_select.distinct && fragment_select.projection[..width].iter().all(|e| is_plain(e.ty.ty)) {
            sql += "DISTINCT ";
        }
        let mut columns: Vec<Type> = Vec::with_capacity(width + extra.len());
        let mut list = lock.map(|keys| keys.columns.clone()).unwrap_or_default();
        for expr in &select.projection[..width] {
            list.push(writer.expr(expr)?);
            columns.push(expr.ty.ty);
        }
        for place in &extra {
            let expr = &select.projection[*place];
            if order {
                list.push(writer.key(expr)?);
                columns.push(key_type(expr.ty.ty));
            } else {
                list.push(writer.expr(expr)?);
                columns.push(expr.ty.ty);
            }
        }
        if columns.is_empty() {
            list.push("NULL".to_owned());
            columns.push(Type::Text);
        }
        sql += &list.join(", ");
        sql += &format!(" FROM {}{}", writer.tables(&select.from)?, writer.conditions(&fragment_select)?);
        let ordered = order && !query.order_by.is_empty();
        if ordered {
            let mut by = Vec::with_capacity(query.order_by.len());
            for key in &query.order_by {
                let expr = &select.projection[key.column];
                let nullable = writer.nullable(expr, &select.from);
                let key_sql = writer.key(expr)?;
                by.push(sorted(
                    &crate::emit::query::constant_key(key_sql),
                    key.descending,
                    key.nulls_first,
                    nullable,
                ));
            }
            sql += &format!(" ORDER BY {}", by.join(", "));
        }
        let cut = self.rules.has(Rule::PushLimit)
            && lock.is_none()
            && !distinct
            && (ordered || query.order_by.is_empty());
        if cut && limit.is_some() {
            sql += &cut_sql(&mut writer, limit, offset);
        }
        let params = writer.params;
        let fragment = Fragment { target, sql: sql.into(), params, columns: columns.clone(), lookup };
        let simple = !distinct && (ordered || query.order_by.is_empty());
        let gather = if simple {
            Gather::Stream { order: if ordered { keys } else { Vec::new() }, offset, limit, visible: width }
        } else {
            let list = crate::emit::query::names(width);
            let relations = Relations::new();
            let mut writer = Writer::new(self.binder, &mut self.scalars, &relations);
            let plain = columns[..width].iter().all(|ty| is_plain(*ty));
            let word = if distinct && plain { "DISTINCT " } else { "" };
            let mut sql = format!("SELECT {word}{list} FROM {SOURCE}");
            if distinct && !plain {
                let by: Vec<_> = columns[..width]
                    .iter()
                    .enumerate()
                    .map(|(i, ty)| key_sql(*ty, &format!("a{i}")))
                    .collect();
                sql += &format!(" GROUP BY {}", by.join(", "));
            }
            if !keys.is_empty() {
                let by: Vec<_> = keys
                    .iter()
                    .map(|key| {
                        let sql = key_sql(columns[key.column], &format!("a{}", key.column));
                        sorted(&sql, key.descending, key.nulls_first, true)
                    })
                    .collect();
                sql += &format!(" ORDER BY {}", by.join(", "));
            }
            sql += &limit_sql(&mut writer, limit, offset);
            let params = writer.params;
            Gather::Sqlite { sources: vec![source(columns)], sql: sql.into(), params }
        };
        let lock = lock.map(|keys| self.locking(keys, limit, offset));
        Ok(plan::Query { fragments: vec![fragment], gather, lock })
    }

    fn limits(&mut self, query: &Query) -> Result<(Option<ScalarId>, Option<ScalarId>), WireError> {
        let limit = match &query.limit {
            Some(limit) => Some(self.scalars.row_count(limit, false, self.binder)?),
            None => None,
        };
        let offset = match &query.offset {
            Some(offset) => Some(self.scalars.row_count(offset, true, self.binder)?),
            None => None,
        };
        Ok((limit, offset))
    }

    /// Groups of rows that several shards have: each shard aggregates its own, the gather merges.
    fn grouped(
        &mut self,
        query: &Query,
        select: &Select,
        target: Target,
    ) -> Result<Option<plan::Query>, WireError> {
        if !self.rules.has(Rule::PushAggregate) {
            return Ok(None);
        }
        let mut aggregates: Vec<&Expr> = Vec::new();
        let mut bare: Vec<&Expr> = Vec::new();
        for expr in select.projection.iter().chain(&select.having) {
            if expr.has_query() {
                return Ok(None);
            }
            parts(expr, &select.group_by, &mut aggregates, &mut bare);
        }
        let partial = |expr: &Expr| match &expr.kind {
            ExprKind::Aggregate(call) => {
                !call.distinct && call.order_by.is_empty() && call.resolved.aggregate.partial.is_some()
            }
            _ => false,
        };
        if !aggregates.iter().all(|e| partial(e)) || select.group_by.iter().any(Expr::has_query) {
            return Ok(None);
        }
        let id = self.binder.new_relation();
        let mut relations = Relations::new();
        on_shards(query, &mut relations);
        let mut writer = Writer::new(self.binder, &mut self.scalars, &relations);
        let (mut list, mut columns, mut computed) = (Vec::new(), Vec::new(), Vec::new());
        let name = |place: usize| format!("r{}.a{place}", id.0);
        for expr in select.group_by.iter().chain(bare.iter().copied()) {
            computed.push((expr.clone(), name(list.len())));
            list.push(writer.expr(expr)?);
            columns.push(expr.ty.ty);
        }
        for expr in aggregates {
            let ExprKind::Aggregate(call) = &expr.kind else { continue };
            let Some(partial) = &call.resolved.aggregate.partial else { continue };
            let args = call.args.iter().map(|e| writer.expr(e)).collect::<Result<Vec<_>, _>>()?;
            let filter = writer.filter(call)?;
            let mut merged = Vec::with_capacity(partial.columns.len());
            for column in partial.columns {
                merged.push(column.merge_sql(&name(list.len())));
                list.push(call.resolved.partial_sql(column, &args, &filter));
                columns.push(column.ty);
            }
            computed.push((expr.clone(), partial.finish_sql(&merged)));
        }
        if list.is_empty() {
            list.push("count(*)".to_owned());
            columns.push(Type::Int8);
        }
        let shard_select = Select { having: None, distinct: false, ..select.clone() };
        let mut sql = format!("SELECT {} FROM {}", list.join(", "), writer.tables(&select.from)?);
        sql += &writer.conditions(&shard_select)?;
        let params = writer.params;
        let fragment = Fragment { target, sql: sql.into(), params, columns: columns.clone(), lookup: false };
        // The gather is the same query over the partial results, with what they hold in place of what it was.
        let types = columns.clone();
        let relation = Relation { id, source: RelationSource::System(SOURCE), types };
        let gather = Query {
            body: Body::Select(Box::new(Select {
                from: vec![From::Relation(relation)],
                filter: None,
                ..select.clone()
            })),
            ..query.clone()
        };
        let relations = Relations::from([(id, Naming::Source(SOURCE.to_owned(), Vec::new()))]);
        let mut writer = Writer::new(self.binder, &mut self.scalars, &relations);
        writer.computed = computed;
        let sql = writer.query(&gather)?.into();
        let params = writer.params;
        let gather = Gather::Sqlite { sources: vec![source(columns)], sql, params };
        Ok(Some(plan::Query { fragments: vec![fragment], gather, lock: None }))
    }

    /// Whether all rows of a group are on one shard: the shard key is grouped by.
    fn groups_lie_together(&self, select: &Select, facts: &Facts<'_>) -> bool {
        // A row that an outer join made up has no key, so it may be on any shard.
        let certain = |rel| select.from.iter().all(|from| !contains(from, rel) || is_certain(from, rel));
        let classes = facts.equal();
        let grouped: Vec<_> = select
            .group_by
            .iter()
            .filter_map(|e| match e.kind {
                ExprKind::Column(rel, column) if certain(rel) => Some(classes.find((rel, column))),
                _ => None,
            })
            .collect();
        relations_of(select).iter().any(|relation| match &relation.source {
            RelationSource::Table(table) => {
                let places = key_places(table);
                !places.is_empty()
                    && certain(relation.id)
                    && places
                        .iter()
                        .all(|place| grouped.contains(&classes.find((relation.id, *place as u32))))
            }
            _ => false,
        })
    }

    /// Where a SELECT's tables can be joined shard by shard; `None` if they can't.
    pub(super) fn together(
        &mut self,
        select: &Select,
        facts: &Facts<'_>,
    ) -> Result<Option<(Target, bool)>, WireError> {
        let mut sides = Vec::with_capacity(select.from.len());
        for from in &select.from {
            let Some(side) = side(from) else { return Ok(None) };
            sides.push(side);
        }
        if !sides.contains(&Side::Sharded) {
            return Ok(None);
        }
        let relations = relations_of(select);
        // Rows can be locked on shards alone, whatever the rules are.
        if relations.len() > 1 && !self.rules.has(Rule::PushJoin) && select.locks.is_empty() {
            return Ok(None);
        }
        let classes = facts.classes();
        let mut anchor: Option<(&Relation, &Arc<Table>)> = None;
        for relation in &relations {
            let table = match &relation.source {
                RelationSource::Table(table) => table,
                RelationSource::Rows(_) => continue,
                _ => return Ok(None),
            };
            if !matches!(table.placement, Placement::Sharded { .. }) {
                continue;
            }
            let Some((first, first_table)) = anchor else {
                anchor = Some((relation, table));
                continue;
            };
            let (Placement::Sharded { keyspace: a, .. }, Placement::Sharded { keyspace: b, .. }) =
                (&first_table.placement, &table.placement)
            else {
                return Ok(None);
            };
            let (own, other) = (key_places(first_table), key_places(table));
            let (own_types, other_types) = (key_types(first_table)?, key_types(table)?);
            let same = a == b
                && own.len() == other.len()
                && own.iter().zip(&other).all(|(x, y)| {
                    classes.find((first.id, *x as u32)) == classes.find((relation.id, *y as u32))
                })
                && own_types.iter().zip(&other_types).all(|(x, y)| same_hash(*x, *y));
            if !same {
                return Ok(None);
            }
        }
        let Some((relation, table)) = anchor else { return Ok(None) };
        let (filter, lookup) = if self.rules.has(Rule::RouteByKey) {
            self.key_filter(relation.id, table, facts, &classes)?
        } else {
            (KeyFilter::All, false)
        };
        let lookup = lookup && relations.len() == 1;
        Ok(Some((self.target(table, filter)?, lookup)))
    }
}

/// What a FROM item has, if joining it shard by shard gives each row once.
fn side(from: &From) -> Option<Side> {
    match from {
        From::Relation(relation) => match &relation.source {
            RelationSource::Table(table) => match table.placement {
                Placement::Sharded { .. } => Some(Side::Sharded),
                Placement::Reference => Some(Side::Everywhere),
                Placement::Single { .. } => None,
            },
            RelationSource::Rows(_) => Some(Side::Everywhere),
            RelationSource::Query(_) | RelationSource::Cte(_) | RelationSource::System(_) => None,
        },
        From::Join { kind, left, right, on: _ } => {
            let (left, right) = (side(left)?, side(right)?);
            let both = if left == Side::Sharded || right == Side::Sharded {
                Side::Sharded
            } else {
                Side::Everywhere
            };
            match kind {
                JoinKind::Inner => Some(both),
                // A row of a reference table that finds no partner on one shard may find one on another.
                JoinKind::Left if left == Side::Everywhere && right == Side::Sharded => None,
                JoinKind::Right if right == Side::Everywhere && left == Side::Sharded => None,
                JoinKind::Left | JoinKind::Right => Some(both),
                JoinKind::Full if both == Side::Sharded => None,
                JoinKind::Full => Some(both),
            }
        }
    }
}

/// Whether all subqueries of a SELECT's expressions read reference tables alone.
pub(super) fn subqueries_everywhere(select: &Select) -> bool {
    let lists = select.filter.iter().chain(&select.group_by).chain(&select.having);
    let mut exprs: Vec<&Expr> = lists.chain(&select.projection).collect();
    select.from.iter().for_each(|from| super::conditions(from, &mut exprs));
    let mut fine = true;
    for expr in exprs {
        expr.each_shallow_query(&mut |query| {
            query.each_relation(&mut |relation| {
                fine &= match &relation.source {
                    RelationSource::Table(table) => matches!(table.placement, Placement::Reference),
                    RelationSource::Query(_) | RelationSource::Rows(_) => true,
                    RelationSource::Cte(_) | RelationSource::System(_) => false,
                };
            });
        });
    }
    fine
}

/// The aggregates of an expression, and the columns outside of them and of what is grouped by.
fn parts<'q>(expr: &'q Expr, group_by: &[Expr], aggregates: &mut Vec<&'q Expr>, bare: &mut Vec<&'q Expr>) {
    crate::bind::walk::grow(|| {
        if group_by.contains(expr) {
            return;
        }
        match expr.kind {
            ExprKind::Aggregate(_) => {
                if !aggregates.contains(&expr) {
                    aggregates.push(expr);
                }
            }
            ExprKind::Column(..) => {
                if !bare.contains(&expr) {
                    bare.push(expr);
                }
            }
            _ => expr.each_part(&mut |part| parts(part, group_by, aggregates, bare)),
        }
    });
}

/// The type that a key form is sent as.
fn key_type(ty: Type) -> Type {
    match ty {
        // Bytes that compare as the number does. As a numeric they couldn't be read back.
        Type::Numeric => Type::Bytea,
        ty => ty,
    }
}

fn source(columns: Vec<Type>) -> Source {
    Source { name: SOURCE.to_owned(), columns, rows: SourceRows::Fragment(0) }
}

/// The most of anything that is added to another.
pub(super) const HALF: i64 = i64::MAX / 2;

fn limit_sql(writer: &mut Writer<'_, '_, '_>, limit: Option<ScalarId>, offset: Option<ScalarId>) -> String {
    let mut sql = String::new();
    if limit.is_none() && offset.is_none() {
        return sql;
    }
    sql += &match limit {
        Some(limit) => format!(" LIMIT coalesce({}, -1)", writer.param(limit)),
        None => " LIMIT -1".to_owned(),
    };
    if let Some(offset) = offset {
        sql += &format!(" OFFSET coalesce({}, 0)", writer.param(offset));
    }
    sql
}

/// The most rows of a shard that can matter: limit and offset together, without overflow.
fn cut_sql(writer: &mut Writer<'_, '_, '_>, limit: Option<ScalarId>, offset: Option<ScalarId>) -> String {
    let Some(limit) = limit else { return String::new() };
    let limit = writer.param(limit);
    match offset {
        None => format!(" LIMIT coalesce({limit}, -1)"),
        Some(offset) => {
            let offset = writer.param(offset);
            format!(" LIMIT coalesce(min({limit}, {HALF}) + min(coalesce({offset}, 0), {HALF}), -1)")
        }
    }
}
