//! The plan that is always right: each table's rows come to the router, where the whole query runs.
//!
//! Rules make it cheaper: only the columns that somebody reads, only the rows that the table's own conditions let
//! through, only from the shards that can have them. The gather's SQL stays the whole query all the same.

use super::keys::{Facts, conjuncts};
use super::{Planner, relations_of, visit_selects};
use crate::Rule;
use crate::bind::tree::{Expr, ExprKind, From, JoinKind, Query, RelId, RelationSource, Select};
use crate::emit::{Naming, Relations, Writer};
use crate::plan::{self, Fragment, Gather, KeyFilter, Source, SourceRows};
use dialect::Type;
use dialect::physical::{column_name, table_name};
use proto::WireError;
use proto::catalog::Table;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A table to gather.
struct Gathered {
    table: Arc<Table>,
    filter: KeyFilter,
    lookup: bool,
    conditions: Vec<Expr>,
}

impl Planner<'_, '_> {
    pub(super) fn gather(&mut self, query: &Query) -> Result<plan::Query, WireError> {
        let mut tables: HashMap<RelId, Gathered> = HashMap::new();
        let mut order: Vec<RelId> = Vec::new();
        let mut selects = Vec::new();
        visit_selects(query, &mut |select| selects.push(select));
        let mut sources = Vec::new();
        let mut relations = Relations::new();
        for select in selects {
            for relation in relations_of(select) {
                let id = relation.id;
                match &relation.source {
                    RelationSource::Query(_) | RelationSource::Cte(_) | RelationSource::Rows(_) => {}
                    RelationSource::System(system) => {
                        let name = format!("s{}", id.0);
                        relations.insert(id, Naming::Source(name.clone(), Vec::new()));
                        let (columns, rows) = (relation.types.clone(), SourceRows::System(system));
                        sources.push(Source { name, columns, rows });
                    }
                    RelationSource::Table(table) => {
                        if !tables.contains_key(&id) {
                            order.push(id);
                        }
                        let gathered = self.gathered(id, table, select)?;
                        tables.insert(id, gathered);
                    }
                }
            }
        }
        let mut fragments = Vec::with_capacity(order.len());
        let used = used_columns(query);
        for id in order {
            let Some(Gathered { table, filter, lookup, conditions }) = tables.remove(&id) else { continue };
            let all = !self.rules.has(Rule::PushProjection);
            let (mut list, mut types, mut places) = (Vec::new(), Vec::new(), Vec::new());
            for (place, column) in table.columns.iter().enumerate() {
                if !all && !used.contains(&(id, place as u32)) {
                    places.push(None);
                    continue;
                }
                places.push(Some(list.len() as u32));
                list.push(format!("r{}.{}", id.0, column_name(column.id)));
                types.push(crate::bind::from::column_type(&table, column)?.ty);
            }
            if list.is_empty() {
                list.push("1".to_owned());
                types.push(Type::Int4);
            }
            let naming = Relations::from([(id, Naming::Table(Arc::clone(&table)))]);
            let mut writer = Writer::new(self.binder, &mut self.scalars, &naming);
            let mut sql = format!("SELECT {} FROM {} AS r{}", list.join(", "), table_name(table.id), id.0);
            if !conditions.is_empty() {
                let conditions = conditions.iter().map(|e| writer.expr(e)).collect::<Result<Vec<_>, _>>()?;
                sql += &format!(" WHERE {}", conditions.join(" AND "));
            }
            let params = writer.params;
            let target = self.target(&table, filter)?;
            let name = format!("s{}", id.0);
            let rows = SourceRows::Fragment(fragments.len());
            fragments.push(Fragment { target, sql: sql.into(), params, columns: types.clone(), lookup });
            sources.push(Source { name: name.clone(), columns: types, rows });
            relations.insert(id, Naming::Source(name, places));
        }
        let mut writer = Writer::new(self.binder, &mut self.scalars, &relations);
        let sql = writer.query(query)?.into();
        let params = writer.params;
        Ok(plan::Query { fragments, gather: Gather::Sqlite { sources, sql, params }, lock: None })
    }

    /// What of a table has to come, by the conditions of the SELECT whose FROM it stands in.
    fn gathered(&mut self, id: RelId, table: &Arc<Table>, select: &Select) -> Result<Gathered, WireError> {
        let facts = Facts::of(select);
        let classes = facts.classes();
        let (filter, lookup) = if self.rules.has(Rule::RouteByKey) {
            self.key_filter(id, table, &facts, &classes)?
        } else {
            (KeyFilter::All, false)
        };
        let mut conditions = Vec::new();
        if self.rules.has(Rule::PushFilter) {
            let mut own = Vec::new();
            let mut found = Vec::new();
            if let Some(filter) = &select.filter
                && select.from.iter().all(|from| !contains(from, id) || is_certain(from, id))
            {
                conjuncts(filter, &mut found);
            }
            for from in &select.from {
                join_conditions(from, id, &mut found);
            }
            for condition in found {
                let mut only = true;
                condition.each_deep(&mut |e| {
                    only &= match e.kind {
                        ExprKind::Column(rel, _) => rel == id,
                        ExprKind::Aggregate(_) => false,
                        _ => e.query().is_none(),
                    };
                });
                if only {
                    own.push(condition.clone());
                }
            }
            conditions = own;
        }
        // Without the condition in the fragment, its rows aren't found by key.
        let lookup = lookup && !conditions.is_empty();
        Ok(Gathered { table: Arc::clone(table), filter, lookup, conditions })
    }
}

pub(super) fn contains(from: &From, id: RelId) -> bool {
    let mut found = false;
    from.each_relation(&mut |relation| found |= relation.id == id);
    found
}

/// Whether a relation's rows in the join's result are always rows of its own, never made up by an outer join.
pub(super) fn is_certain(from: &From, id: RelId) -> bool {
    match from {
        From::Relation(_) => true,
        From::Join { kind, left, right, on: _ } => {
            let (in_left, in_right) = (contains(left, id), contains(right, id));
            match kind {
                JoinKind::Full => false,
                JoinKind::Left if in_right => false,
                JoinKind::Right if in_left => false,
                _ => (!in_left || is_certain(left, id)) && (!in_right || is_certain(right, id)),
            }
        }
    }
}

/// The join conditions that a relation's rows must satisfy to be in the join's result.
fn join_conditions<'q>(from: &'q From, id: RelId, found: &mut Vec<&'q Expr>) {
    let From::Join { kind, left, right, on } = from else { return };
    let (in_left, in_right) = (contains(left, id), contains(right, id));
    if let Some(on) = on {
        let applies = match kind {
            JoinKind::Inner => in_left && is_certain(left, id) || in_right && is_certain(right, id),
            JoinKind::Left => in_right && is_certain(right, id),
            JoinKind::Right => in_left && is_certain(left, id),
            JoinKind::Full => false,
        };
        if applies {
            conjuncts(on, found);
        }
    }
    join_conditions(left, id, found);
    join_conditions(right, id, found);
}

/// The columns that a query reads, at any depth.
fn used_columns(query: &Query) -> BTreeSet<(RelId, u32)> {
    let mut used = BTreeSet::new();
    query.each_expr(&mut |expr| {
        if let ExprKind::Column(rel, column) = expr.kind {
            used.insert((rel, column));
        }
    });
    used
}
