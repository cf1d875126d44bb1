//! Statements that write: INSERT, UPDATE, DELETE, COPY.

use super::keys::Facts;
use super::scatter::subqueries_everywhere;
use super::{Planner, is_volatile, key_places, key_types};
use crate::Rule;
use crate::bind::copy::BoundCopy;
use crate::bind::insert::{Conflict, Filler, Insert, Returning, Rows};
use crate::bind::modify::Modify;
use crate::bind::tree::{Body, Expr, ExprKind, From, Lock, Query, RelId, Relation, RelationSource, Select};
use crate::emit::{Naming, Relations, Writer};
use crate::plan::{
    self, Action, CopyIn, CopyOut, Fragment, InsertRows, InsertTarget, KeyFilter, OutputColumn, RowValue,
    Target,
};
use dialect::physical::{column_name, key_column, rowid_column, table_name};
use proto::catalog::{Placement, Table};
use proto::services::{LockWait, RowLock};
use proto::{ColumnId, WireError};
use std::sync::Arc;

impl Planner<'_, '_> {
    /// An INSERT's plan and the columns of its RETURNING.
    pub(crate) fn insert(
        &mut self,
        insert: &Insert,
    ) -> Result<(Action, Option<Vec<OutputColumn>>), WireError> {
        let Insert { table, rel, rows, conflict, returning } = insert;
        let mut plan = self.insert_rows(table, *rel, conflict.as_ref(), returning.as_ref())?;
        plan.rows = match rows {
            Rows::Values(rows) => {
                let mut values = Vec::with_capacity(rows.len());
                for row in rows {
                    values.push(row.iter().map(|e| self.scalar(e)).collect::<Result<Vec<_>, _>>()?);
                }
                InsertRows::Values(values)
            }
            Rows::Query(query, fillers) => {
                let query = self.query(query)?;
                InsertRows::Query { query, row: self.fillers(fillers)? }
            }
        };
        Ok((Action::Insert(plan), returning.as_ref().map(|r| r.columns.clone())))
    }

    fn fillers(&mut self, fillers: &[Filler]) -> Result<Vec<RowValue>, WireError> {
        fillers
            .iter()
            .map(|filler| {
                Ok(match filler {
                    Filler::Input(place) => RowValue::Input(*place),
                    Filler::Default(expr) => match &expr.kind {
                        ExprKind::NextValue(sequence, _) => RowValue::NextValue(*sequence),
                        ExprKind::Environment(fact, number) if *number > 0 => RowValue::Environment(*fact),
                        _ if is_volatile(expr) => {
                            return Err(WireError::unsupported(
                                "this volatile default where rows come from a query or COPY",
                            )
                            .with_hint("Give the column a value in the statement."));
                        }
                        _ => RowValue::Fixed(self.scalar(expr)?),
                    },
                })
            })
            .collect()
    }

    /// The statement that adds a row, its rows left out.
    fn insert_rows(
        &mut self,
        table: &Arc<Table>,
        rel: RelId,
        conflict: Option<&Conflict>,
        returning: Option<&Returning>,
    ) -> Result<plan::Insert, WireError> {
        let width = table.columns.len();
        let columns: Vec<_> = table.columns.iter().map(|c| column_name(c.id)).collect();
        let values: Vec<_> = (1..=width).map(|i| format!("?{i}")).collect();
        let name = table_name(table.id);
        let mut sql = format!("INSERT INTO {name} ({}) VALUES ({})", columns.join(", "), values.join(", "));
        let relations = Relations::from([(rel, Naming::Target(Arc::clone(table)))]);
        let mut touch = 0;
        let mut writer = Writer::new(self.binder, &mut self.scalars, &relations).after_row(width);
        if let Some(conflict) = conflict {
            let mut action = String::new();
            match &conflict.update {
                None => action += " DO NOTHING",
                Some(update) => {
                    let shard_key = key_places(table);
                    let mut sets = Vec::with_capacity(update.sets.len());
                    for (place, value) in &update.sets {
                        refuse_key_change(table, *place, &shard_key)?;
                        if is_volatile(value) {
                            return Err(volatile_error("ON CONFLICT DO UPDATE"));
                        }
                        let value = not_null_key(table, *place, writer.expr(value)?);
                        sets.push(format!("{} = {value}", column_name(table.columns[*place].id)));
                    }
                    action += &format!(" DO UPDATE SET {}", sets.join(", "));
                    if let Some(filter) = &update.filter {
                        // PostgreSQL locks the row that it leaves as it is, too, so the shard is told of it.
                        let unique = table.indexes.iter().filter(|index| index.unique);
                        let mut keys = table.primary_key.clone();
                        keys.extend(unique.flat_map(|index| index.columns.iter().map(|c| c.column)));
                        let is_key = |place: &usize| keys.contains(&table.columns[*place].id);
                        let strong = u8::from(update.sets.iter().any(|(place, _)| is_key(place)));
                        let key: Vec<_> = table.primary_key.iter().map(|id| column_name(*id)).collect();
                        action += &format!(
                            " WHERE CASE WHEN {} THEN 1 ELSE pg_spare({strong}, {}) END",
                            writer.expr(filter)?,
                            key.join(", ")
                        );
                    }
                    touch = key_width(table)?;
                }
            }
            for target in conflict_targets(table, &conflict.columns)? {
                sql += &format!(" ON CONFLICT{target}{action}");
            }
        }
        let mut types = Vec::new();
        let mut list = Vec::new();
        if touch > 0 {
            for id in &table.primary_key {
                list.push(column_name(*id));
                let column =
                    table.column(*id).ok_or_else(|| WireError::internal("a key's column is missing"))?;
                types.push(crate::bind::from::column_type(table, column)?.ty);
            }
        }
        if let Some(returning) = returning {
            for expr in &returning.exprs {
                if is_volatile(expr) {
                    return Err(volatile_error("RETURNING"));
                }
                list.push(writer.expr(expr)?);
                types.push(expr.ty.ty);
            }
            if list.is_empty() {
                list.push("NULL".to_owned());
            }
        }
        if !list.is_empty() {
            sql += &format!(" RETURNING {}", list.join(", "));
        }
        let params = writer.params;
        let target = match &table.placement {
            Placement::Sharded { keyspace, key: _ } => {
                let key = key_places(table).into_iter().zip(key_types(table)?).collect();
                InsertTarget::Sharded { keyspace: *keyspace, key }
            }
            Placement::Single { keyspace } => InsertTarget::Single(*keyspace),
            Placement::Reference => InsertTarget::Everywhere,
        };
        let not_null: Vec<(usize, ColumnId)> = table
            .columns
            .iter()
            .enumerate()
            .filter(|(_, c)| c.not_null || table.primary_key.contains(&c.id))
            .map(|(place, c)| (place, c.id))
            .collect();
        Ok(plan::Insert {
            table: table.id,
            target,
            sql: sql.into(),
            width,
            params,
            rows: InsertRows::Values(Vec::new()),
            not_null,
            touch,
            returning: returning.map(|r| r.exprs.iter().map(|e| e.ty.ty).collect()),
        })
    }

    /// An UPDATE's or DELETE's plan.
    pub(crate) fn modify(
        &mut self,
        modify: &mut Modify,
    ) -> Result<(Action, Option<Vec<OutputColumn>>), WireError> {
        let what = if modify.sets.is_some() { "UPDATE" } else { "DELETE" };
        let mut placed = self.modify_target(modify)?;
        if placed.is_none() {
            self.lift_all(modify)?;
            placed = self.modify_target(modify)?;
        }
        let (target, lookup) = placed.ok_or_else(|| {
            WireError::unsupported(format!("{what} with a subquery over other shards' rows"))
                .with_hint("Run the subquery first and pass its result, or give the shard key of each table.")
        })?;
        let Modify { table, rel, from, ctes: _, sets, filter, returning } = &*modify;
        let all = exprs_of(modify);
        if all.iter().any(|e| is_volatile(e)) {
            return Err(volatile_error(what));
        }
        let shard_key = key_places(table);
        if let Some(sets) = sets
            && sets.iter().any(|(place, _)| shard_key.contains(place))
        {
            return self.moves(modify, sets);
        }
        let target = match target {
            Target::Any => Target::Everywhere,
            target => target,
        };
        let mut relations = Relations::from([(*rel, Naming::Table(Arc::clone(table)))]);
        for expr in &all {
            expr.each_shallow_query(&mut |query| super::on_shards(query, &mut relations));
        }
        for item in from {
            item.each_relation(&mut |relation| {
                if let RelationSource::Table(table) = &relation.source {
                    relations.insert(relation.id, Naming::Table(Arc::clone(table)));
                }
            });
        }
        let mut writer = Writer::new(self.binder, &mut self.scalars, &relations);
        let name = table_name(table.id);
        let mut sql = match sets {
            None => format!("DELETE FROM {name} AS r{}", rel.0),
            Some(sets) => {
                let mut list = Vec::with_capacity(sets.len());
                for (place, value) in sets {
                    let value = not_null_key(table, *place, writer.expr(value)?);
                    list.push(format!("{} = {value}", column_name(table.columns[*place].id)));
                }
                format!("UPDATE {name} AS r{} SET {}", rel.0, list.join(", "))
            }
        };
        if !from.is_empty() && sets.is_none() {
            // SQLite's DELETE names one table: what stands beside it finds the rows.
            sql = format!("DELETE FROM {name} WHERE rowid IN (SELECT r{0}.rowid FROM {name} AS r{0}", rel.0);
            sql += &format!(", {}", writer.tables(from)?);
        } else if !from.is_empty() {
            sql += &format!(" FROM {}", writer.tables(from)?);
        }
        if let Some(filter) = filter {
            sql += &format!(" WHERE {}", writer.expr(filter)?);
        }
        if !from.is_empty() && sets.is_none() {
            sql.push(')');
        }
        let params = std::mem::take(&mut writer.params);
        let mut columns = Vec::new();
        let key: Vec<String> = table.primary_key.iter().map(|id| column_name(*id)).collect();
        let mut locking_sql = format!("{sql} RETURNING {}", key.join(", "));
        let params = match returning {
            None => params,
            Some(returning) => {
                // RETURNING sees the table's columns by their own names alone.
                let relations = Relations::from([(*rel, Naming::Target(Arc::clone(table)))]);
                let mut writer =
                    Writer::new(self.binder, &mut self.scalars, &relations).after_row(params.len());
                let mut list = Vec::with_capacity(returning.exprs.len());
                for expr in &returning.exprs {
                    list.push(writer.expr(expr)?);
                    columns.push(expr.ty.ty);
                }
                for shown in &list {
                    locking_sql += &format!(", {shown}");
                }
                if list.is_empty() {
                    list.push("NULL".to_owned());
                }
                sql += &format!(" RETURNING {}", list.join(", "));
                params.into_iter().chain(writer.params).collect()
            }
        };
        let fragment = Fragment { target, sql: sql.into(), params, columns, lookup };
        let modify = plan::Modify {
            delete: sets.is_none(),
            table: table.id,
            fragment,
            locking_sql: locking_sql.into(),
            touch: key_width(table)?,
            moves: None,
        };
        Ok((Action::Modify(modify), returning.as_ref().map(|r| r.columns.clone())))
    }

    /// The plan of an UPDATE that changes the shard key.
    fn moves(
        &mut self,
        modify: &Modify,
        sets: &[(usize, Expr)],
    ) -> Result<(Action, Option<Vec<OutputColumn>>), WireError> {
        let Modify { table, rel, from, ctes: _, sets: _, filter, returning } = modify;
        let column = |place: usize| -> Result<Expr, WireError> {
            let ty = crate::bind::from::column_type(table, &table.columns[place])?;
            Ok(Expr { kind: ExprKind::Column(*rel, place as u32), ty })
        };
        let key = table.primary_key.iter().map(|id| {
            let place = table.columns.iter().position(|c| c.id == *id);
            place.ok_or_else(|| WireError::internal("a key's column is missing"))
        });
        let key: Vec<usize> = key.collect::<Result<_, _>>()?;
        let shard_key = key_places(table);
        let mut projection = Vec::new();
        for place in key.iter().chain(&shard_key) {
            projection.push(column(*place)?);
        }
        let before = projection.len();
        for place in 0..table.columns.len() {
            let set = sets.iter().find(|(set, _)| *set == place);
            projection.push(match set {
                Some((_, value)) => value.clone(),
                None => column(place)?,
            });
        }
        let columns =
            projection.iter().map(|e| OutputColumn { name: String::new(), ty: e.ty, origin: None }).collect();
        let relation =
            Relation { id: *rel, source: RelationSource::Table(Arc::clone(table)), types: Vec::new() };
        let select = Select {
            from: std::iter::once(From::Relation(relation)).chain(from.iter().cloned()).collect(),
            filter: filter.clone(),
            grouped: false,
            group_by: Vec::new(),
            having: None,
            projection,
            distinct: false,
            locks: vec![Lock { rel: *rel, mode: RowLock::Update, wait: LockWait::Wait }],
        };
        let query = Query {
            ctes: Vec::new(),
            body: Body::Select(Box::new(select)),
            order_by: Vec::new(),
            limit: None,
            offset: None,
            columns,
        };
        let read = self.query(&query)?;
        let types = key_types(table)?;
        let place = match &table.placement {
            Placement::Sharded { keyspace, key: _ } => {
                let places = (key.len()..before).zip(types);
                InsertTarget::Sharded { keyspace: *keyspace, key: places.collect() }
            }
            Placement::Single { .. } | Placement::Reference => {
                return Err(WireError::internal("a table without a shard key has one"));
            }
        };
        let equal = |(number, id): (usize, &ColumnId)| format!("{} = ?{}", column_name(*id), number + 1);
        let equal: Vec<_> = table.primary_key.iter().enumerate().map(equal).collect();
        let delete = format!("DELETE FROM {} WHERE {}", table_name(table.id), equal.join(" AND "));
        let insert = self.insert_rows(table, *rel, None, returning.as_ref())?;
        let [fragment] = read.fragments.as_slice() else {
            return Err(WireError::internal("a query that locks its rows has one fragment"));
        };
        let fragment = Fragment { columns: insert.returning.clone().unwrap_or_default(), ..fragment.clone() };
        let mut typed = Vec::with_capacity(key.len());
        for place in key {
            typed.push((crate::bind::from::column_type(table, &table.columns[place])?.ty, place));
        }
        let moves = Box::new(plan::Move { read, key: typed, place, delete: delete.into(), before, insert });
        let modify = plan::Modify {
            delete: false,
            table: table.id,
            fragment,
            locking_sql: "".into(),
            touch: key_width(table)?,
            moves: Some(moves),
        };
        Ok((Action::Modify(modify), returning.as_ref().map(|r| r.columns.clone())))
    }

    /// Where an UPDATE or DELETE runs, and whether it finds its rows by key; `None` if what it reads beside its table
    /// isn't there.
    fn modify_target(&mut self, modify: &Modify) -> Result<Option<(Target, bool)>, WireError> {
        let Modify { table, rel, from, ctes: _, sets: _, filter, returning: _ } = modify;
        let all = exprs_of(modify);
        let mut facts = Facts::default();
        if from.is_empty() && !all.iter().any(|e| e.has_query()) {
            if let Some(filter) = filter {
                facts.add(filter, true);
            }
            return self.by_facts(table, *rel, &facts).map(Some);
        }
        let relation =
            Relation { id: *rel, source: RelationSource::Table(Arc::clone(table)), types: Vec::new() };
        let select = Select {
            from: std::iter::once(From::Relation(relation)).chain(from.iter().cloned()).collect(),
            filter: filter.clone(),
            grouped: false,
            group_by: Vec::new(),
            having: None,
            projection: all.iter().map(|e| (*e).clone()).collect(),
            distinct: false,
            locks: Vec::new(),
        };
        let reference = matches!(table.placement, Placement::Reference);
        match self.spot_with(&select)? {
            Some((Target::Any, _)) if reference => return Ok(Some((Target::Any, false))),
            Some((target, lookup)) if !reference => return Ok(Some((target, lookup))),
            _ => {}
        }
        if reference || !subqueries_everywhere(&select) {
            return Ok(None);
        }
        let mut beside = Vec::new();
        from.iter().for_each(|from| from.each_relation(&mut |relation| beside.push(relation)));
        let facts = Facts::of(&select);
        if beside.iter().all(|relation| is_everywhere(&relation.source)) {
            return self.by_facts(table, *rel, &facts).map(Some);
        }
        self.together(&select, &facts)
    }

    fn by_facts(
        &mut self,
        table: &Table,
        rel: RelId,
        facts: &Facts<'_>,
    ) -> Result<(Target, bool), WireError> {
        let classes = facts.classes();
        let (filter, lookup) = if self.rules.has(Rule::RouteByKey) {
            self.key_filter(rel, table, facts, &classes)?
        } else {
            (KeyFilter::All, false)
        };
        Ok((self.target(table, filter)?, lookup))
    }

    /// A COPY's plan.
    pub(crate) fn copy(&mut self, copy: &BoundCopy) -> Result<Action, WireError> {
        Ok(match copy {
            BoundCopy::In { table, rel, columns, fillers, format } => {
                let insert = self.insert_rows(table, *rel, None, None)?;
                let row = self.fillers(fillers)?;
                Action::CopyIn(CopyIn { columns: columns.clone(), insert, row, format: format.clone() })
            }
            BoundCopy::Out { query, format } => {
                let columns = query.columns.clone();
                let mut query = query.clone();
                self.lift_query(&mut query)?;
                Action::CopyOut(CopyOut { query: self.query(&query)?, columns, format: format.clone() })
            }
        })
    }
}

/// What SQLite finds the unique index by: its columns, in key form. A primary key whose key forms are its own has two
/// indexes, and a row may meet either first.
fn conflict_targets(table: &Table, columns: &[ColumnId]) -> Result<Vec<String>, WireError> {
    if columns.is_empty() {
        return Ok(vec![String::new()]);
    }
    let keys = columns.iter().map(|id| key_column(table, *id)).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<_> = columns.iter().map(|id| column_name(*id)).collect();
    let mut targets = vec![format!(" ({})", keys.join(", "))];
    if keys != names && columns == table.primary_key {
        targets.push(format!(" ({})", names.join(", ")));
    }
    Ok(targets)
}

/// The expressions of an UPDATE or DELETE.
fn exprs_of(modify: &Modify) -> Vec<&Expr> {
    let Modify { table: _, rel: _, from, ctes: _, sets, filter, returning } = modify;
    let values = sets.iter().flatten().map(|(_, e)| e);
    let mut all: Vec<&Expr> = values.chain(filter).collect();
    from.iter().for_each(|from| super::conditions(from, &mut all));
    all.extend(returning.iter().flat_map(|r| &r.exprs));
    all
}

/// Whether a relation's rows are the same wherever it is read.
fn is_everywhere(source: &RelationSource) -> bool {
    match source {
        RelationSource::Rows(_) => true,
        RelationSource::Table(table) => matches!(table.placement, Placement::Reference),
        RelationSource::Query(_) | RelationSource::Cte(_) | RelationSource::System(_) => false,
    }
}

/// How many columns a table's key has.
pub(super) fn key_width(table: &Table) -> Result<u16, WireError> {
    u16::try_from(table.primary_key.len()).map_err(|_| WireError::internal("a key has too many columns"))
}

fn volatile_error(what: &str) -> WireError {
    WireError::unsupported(format!("a volatile function in {what}"))
        .with_hint("Evaluate it in a statement of its own and pass the value.")
}

fn refuse_key_change(table: &Table, place: usize, shard_key: &[usize]) -> Result<(), WireError> {
    if !shard_key.contains(&place) {
        return Ok(());
    }
    let column = &table.columns[place].name;
    Err(WireError::unsupported(format!("changing the shard key column \"{column}\""))
        .with_hint("DELETE the row and INSERT it anew."))
}

/// SQLite takes NULL for the key that is its row id as a wish for an id of its own.
fn not_null_key(table: &Table, place: usize, sql: String) -> String {
    let column = &table.columns[place];
    if rowid_column(table) != Some(column.id) {
        return sql;
    }
    let quote = |name: &str| name.replace('\'', "''");
    format!(
        "coalesce({sql}, pg_raise('23502', 'null value in column \"{}\" of relation \"{}\" violates not-null \
         constraint'))",
        quote(&column.name),
        quote(&table.name)
    )
}
