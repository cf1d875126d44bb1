//! Queries that lock their rows.
//!
//! Rows are locked where they are, so the whole SELECT but its limit runs on shards: on the one that has all it reads,
//! or on each over its own rows. Pushdown rules have no say here, as there is no other way to fall back on. What can't
//! run so is refused.

use super::gather::{contains, is_certain};
use super::keys::Facts;
use super::scatter::{HALF, subqueries_everywhere};
use super::write::key_width;
use super::{Planner, relations_of};
use crate::bind::lock::lock_name;
use crate::bind::tree::{Body, Lock, Query, RelationSource, Select};
use crate::plan::{self, Locking, Scalar, ScalarId, Target};
use dialect::physical::column_name;
use proto::catalog::{Placement, Table};
use proto::services::LockedRows;
use proto::{SqlState, WireError};

/// The keys that a fragment returns, and the locks they're for.
pub(super) struct RowKeys {
    rows: Vec<LockedRows>,
    /// The keys' columns as SQL.
    pub columns: Vec<String>,
}

/// The lock of a query's rows.
pub(super) fn of(query: &Query) -> Option<(&Select, Lock)> {
    match &query.body {
        Body::Select(select) => select.locks.first().map(|lock| (&**select, *lock)),
        Body::Values(_) | Body::SetOperation { .. } => None,
    }
}

impl Planner<'_, '_> {
    /// The plan of a query that locks rows.
    pub(super) fn locked(
        &mut self,
        query: &Query,
        select: &Select,
        lock: Lock,
    ) -> Result<plan::Query, WireError> {
        let name = lock_name(lock.mode);
        if !query.ctes.is_empty() {
            return Err(WireError::unsupported(format!("{name} in a query with WITH"))
                .with_hint("Write its queries as subqueries."));
        }
        let mut keys = RowKeys { rows: Vec::new(), columns: Vec::new() };
        let mut everywhere = false;
        for lock in &select.locks {
            let relation = relations_of(select).into_iter().find(|relation| relation.id == lock.rel);
            let Some(RelationSource::Table(table)) = relation.map(|relation| &relation.source) else {
                return Err(WireError::internal("a lock on rows of no table"));
            };
            if !select.from.iter().all(|from| !contains(from, lock.rel) || is_certain(from, lock.rel)) {
                let name = lock_name(lock.mode);
                let message = format!("{name} cannot be applied to the nullable side of an outer join");
                return Err(WireError::new(SqlState::FEATURE_NOT_SUPPORTED, message));
            }
            everywhere |= matches!(table.placement, Placement::Reference);
            keys.add(table, *lock)?;
        }
        let place = match self.spot_with(select)? {
            Some(place) => Some(place),
            None if subqueries_everywhere(select) => self.together(select, &Facts::of(select))?,
            None => None,
        };
        let Some((target, lookup)) = place else {
            return Err(WireError::unsupported(format!("{name} in a query over several shards' rows"))
                .with_hint("Lock the rows of one table by a query of its own."));
        };
        // Who writes a reference table locks its rows on the first shard first: that is where they are locked, and read
        // when nothing but reference tables is.
        if everywhere && !matches!(target, Target::Any) {
            return Err(WireError::unsupported(format!("{name} of a reference table beside other tables"))
                .with_hint("Name the other tables with OF, or lock its rows by a query of its own."));
        }
        self.merged(query, select, target, lookup, Some(&keys))
    }

    /// What the executor has to know of a lock.
    pub(super) fn locking(
        &mut self,
        keys: &RowKeys,
        limit: Option<ScalarId>,
        offset: Option<ScalarId>,
    ) -> Locking {
        let limit = match (limit, offset) {
            (Some(limit), Some(offset)) => {
                let sql = format!("min(?1, {HALF}) + min(coalesce(?2, 0), {HALF})");
                Some(self.scalars.push(Scalar::Expression { sql: sql.into(), params: vec![limit, offset] }))
            }
            (limit, _) => limit,
        };
        Locking { rows: keys.rows.clone().into(), limit }
    }
}

impl RowKeys {
    fn add(&mut self, table: &Table, lock: Lock) -> Result<(), WireError> {
        let Lock { rel, mode, wait } = lock;
        self.columns.extend(table.primary_key.iter().map(|id| format!("r{}.{}", rel.0, column_name(*id))));
        self.rows.push(LockedRows { table: table.id, key: key_width(table)?, mode, wait });
        Ok(())
    }
}
