//! What a statement waits for before it looks: transactions that were prepared before it came.
//!
//! Whoever has seen one of them on another shard, where it has ended, must find it here, too. In come a statement and what
//! the shard's leader has in memory; out comes leave to look. It doesn't wait for a transaction that has locks in other
//! tables alone, nor, where it looks up rows by their primary key, for one that has none of those rows, nor where it will
//! wait for the row's lock in any case. It must never know how transactions end.

use crate::locks::Part;
use crate::transact::Desk;
use crate::{statement, stream, touched};
use dialect::physical::{table_name, tables_in};
use dialect::sqlite::parameter;
use proto::machine;
use proto::services::{Access, Consistency, FragmentRequest};
use proto::{TableId, Term, TransactionId, Value, WireError};
use replica::Snapshot;
use rusqlite::params_from_iter;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// The most locks of one transaction that are compared with the keys of a lookup.
const COMPARED: usize = 64;

/// So many statements are known at a time, each of so many bytes at most.
const STATEMENTS: usize = 1000;
const STATEMENT_BYTES: usize = 4096;

/// What a statement looks at.
#[derive(Debug)]
struct Look {
    /// The tables that it names.
    tables: Vec<TableId>,
    /// The row that it looks for, if it says so.
    row: Option<Sought>,
}

/// The row of a table that a statement looks for: it names a value for each of the primary key's columns.
#[derive(Debug)]
struct Sought {
    table: TableId,
    /// The key's columns, and their values.
    key: Vec<(String, Given)>,
    /// Whether the statement wants nothing else of it.
    is_all: bool,
}

/// A value in a statement.
#[derive(Clone, Debug, PartialEq)]
enum Given {
    Literal(i64),
    /// The parameter at this place, from 0.
    Parameter(usize),
}

/// What statements look at, by their SQL, as far as they were met. It holds until the schema changes.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    known: HashMap<Arc<str>, Arc<Look>>,
    /// Grows whenever all is forgotten: what was read before doesn't count.
    age: u64,
}

impl Looks {
    /// Forgets all, for the schema may have changed.
    pub fn forget(&mut self) {
        self.known.clear();
        self.age += 1;
    }

    fn learn(&mut self, sql: &Arc<str>, look: &Arc<Look>, age: u64) {
        if age != self.age || sql.len() > STATEMENT_BYTES {
            return;
        }
        if self.known.len() >= STATEMENTS {
            self.known.clear();
        }
        self.known.insert(Arc::clone(sql), Arc::clone(look));
    }
}

impl Desk {
    /// Whether the shard's transactions are known as of the present leader's term.
    pub fn is_known(&self) -> bool {
        self.transactions.are_of(self.replica.watch().borrow().term) && self.replica.is_leader()
    }

    /// Sees to it that they are.
    pub async fn know(&self, deadline: Instant) -> Result<(), WireError> {
        if self.is_known() { Ok(()) } else { self.take_up(deadline).await }
    }

    /// Waits until what was pending when the statement came, and may concern it, has ended. `locks`: the statement locks the
    /// rows that it finds, so this is a wait for a lock. Gives the term in which that was so: under a later leader others may
    /// have been.
    pub async fn catch_up(
        &self,
        request: &FragmentRequest,
        locks: bool,
        deadline: Instant,
    ) -> Result<Term, WireError> {
        self.know(deadline).await?;
        let term = self.transactions.term();
        if !self.transactions.have_pending() {
            return Ok(term);
        }
        let look = self.look_of(request, deadline).await?;
        let mut concerned = self.pending_in(&look.tables);
        if let Access::Branch { branch, .. } = request.access {
            concerned.retain(|id| *id != branch.transaction);
        }
        if concerned.is_empty() || self.spares(request, &look, &concerned, locks, deadline).await? {
            return Ok(term);
        }
        let lock_timeout = match &request.access {
            Access::Branch { branch, .. } => branch.lock_timeout,
            Access::Write { lock_timeout, .. } => *lock_timeout,
            Access::Read { .. } => None,
        };
        let lock_timeout = lock_timeout.filter(|_| locks);
        let lock_deadline =
            lock_timeout.map(|timeout| machine::now() + timeout).filter(|end| *end < deadline);
        match self.ended(&concerned, term, lock_deadline.unwrap_or(deadline)).await? {
            true => Ok(term),
            false if lock_deadline.is_some() => Err(statement::lock_timed_out()),
            false => Err(stream::timed_out()),
        }
    }

    /// Waits until these have ended, or until then.
    async fn ended(&self, these: &[TransactionId], term: Term, end: Instant) -> Result<bool, WireError> {
        loop {
            let look = machine::now() + statement::LOOK_EVERY;
            if self.transactions.ended(these, look.min(end)).await {
                return Ok(true);
            }
            if machine::now() >= end {
                return Ok(false);
            }
            statement::check_leads(&self.replica, term)?;
        }
    }

    /// What a statement looks at, as its SQL says.
    async fn look_of(&self, request: &FragmentRequest, deadline: Instant) -> Result<Arc<Look>, WireError> {
        let age = {
            let looks = &self.transactions.look().looks;
            if let Some(look) = looks.known.get(&request.sql) {
                return Ok(Arc::clone(look));
            }
            looks.age
        };
        let named: Vec<TableId> = tables_in(&request.sql).collect();
        let row = match named[..] {
            [table] if condition(&request.sql).is_some() => {
                let snapshot = self.replica.snapshot(Consistency::Eventual, deadline).await?;
                Sought::read(&snapshot, table, &request.sql)
            }
            _ => None,
        };
        let mut tables = named;
        tables.sort_unstable();
        tables.dedup();
        let look = Arc::new(Look { tables, row });
        self.transactions.look().looks.learn(&request.sql, &look, age);
        Ok(look)
    }

    fn pending_in(&self, tables: &[TableId]) -> Vec<TransactionId> {
        let state = self.transactions.look();
        let concerns = |of: &[TableId]| of.is_empty() || of.iter().any(|table| tables.contains(table));
        state.pending().filter(|(_, of)| concerns(of)).map(|(id, _)| id).collect()
    }

    /// Whether the statement looks for a row that none of these transactions has a lock on, or that it will lock itself.
    async fn spares(
        &self,
        request: &FragmentRequest,
        look: &Look,
        these: &[TransactionId],
        locks: bool,
        deadline: Instant,
    ) -> Result<bool, WireError> {
        let Some(row) = look.row.as_ref().filter(|_| request.rows.is_none()) else { return Ok(false) };
        let Some(key) = row.values(&request.params) else { return Ok(false) };
        if !self.may_concern(these, row.table, &key) {
            return Ok(true);
        }
        if !(locks && row.is_all) {
            return Ok(false);
        }
        // One that isn't there may be about to be, and one that must also fulfil other conditions may be about to.
        let snapshot = self.replica.snapshot(Consistency::Eventual, deadline).await?;
        Ok(row.is_there(&snapshot, &key))
    }

    /// Whether one of these transactions may have a lock on a row.
    fn may_concern(&self, these: &[TransactionId], table: TableId, key: &[Value]) -> bool {
        let state = self.transactions.look();
        these.iter().any(|id| {
            let mut locks = state.locks.held(*id).filter(|(resource, _)| resource.table == table).enumerate();
            state.locks.hashes(*id).any(|(of, ..)| of == table)
                || locks.any(|(count, (resource, _))| {
                    let may_concern = match &resource.part {
                        Part::Table | Part::Unique(..) => false,
                        Part::Row(row) => touched::values(row) == key,
                        Part::Keys(_) | Part::Moved(_) => true,
                    };
                    may_concern || count > COMPARED
                })
        })
    }
}

impl Sought {
    /// By the form of the SQL that the planner emits; whatever has another form is taken to look at the whole table.
    fn read(snapshot: &Snapshot, table: TableId, sql: &str) -> Option<Self> {
        let condition = condition(sql)?;
        let query = "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk";
        let mut statement = snapshot.connection().prepare_cached(query).ok()?;
        let columns = statement.query_map([table_name(table)], |row| row.get::<_, String>(0)).ok()?;
        let columns: Vec<String> = columns.collect::<Result<_, _>>().ok()?;
        let is_all = condition.matches(" AND ").count() + 1 == columns.len();
        let given = |column: String| equal_to(condition, &column).map(|value| (column, value));
        let key: Option<Vec<_>> = columns.into_iter().map(given).collect();
        Some(Self { table, key: key.filter(|key| !key.is_empty())?, is_all })
    }

    /// The key's values; nothing if one may be written in more than one way.
    fn values(&self, params: &[Value]) -> Option<Vec<Value>> {
        self.key.iter().map(|(_, given)| given.value(params)).collect()
    }

    /// Whether the row is there.
    fn is_there(&self, snapshot: &Snapshot, key: &[Value]) -> bool {
        let equal = |(number, (column, _)): (usize, &(String, _))| format!("{column} = ?{}", number + 1);
        let equal: Vec<_> = self.key.iter().enumerate().map(equal).collect();
        let sql = format!("SELECT 1 FROM {} WHERE {}", table_name(self.table), equal.join(" AND "));
        let found = snapshot
            .connection()
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.exists(params_from_iter(key.iter().map(parameter))));
        // Who can't tell waits.
        found.unwrap_or(false)
    }
}

impl Given {
    fn value(&self, params: &[Value]) -> Option<Value> {
        match self {
            Given::Literal(value) => Some(Value::Int(*value)),
            Given::Parameter(place) => {
                params.get(*place).filter(|value| matches!(value, Value::Int(_) | Value::Text(_))).cloned()
            }
        }
    }
}

/// The condition of a statement that names one table once, if it is nothing but comparisons that all must hold.
fn condition(sql: &str) -> Option<&str> {
    let (head, condition) = sql.split_once(" WHERE ")?;
    let is_whole = |word: &str| !head.contains(word) && !condition.contains(word);
    let more = ["(SELECT ", " UNION ", " EXCEPT ", " INTERSECT ", " JOIN "];
    let other = [" OR ", "NOT ", "CASE ", " IS ", "'"];
    if !more.into_iter().all(is_whole) || other.iter().any(|word| condition.contains(word)) {
        return None;
    }
    let opens = |before: &str| before.is_empty() || before.ends_with('(') || before.ends_with(" AND");
    let closes = |after: &str| {
        let goes_on = [")", "AND ", "ORDER ", "LIMIT ", "RETURNING "];
        after.is_empty() || goes_on.iter().any(|word| after.starts_with(word))
    };
    let is_conjunction = condition.char_indices().all(|(at, c)| match c {
        '(' => opens(condition[..at].trim_end()),
        ')' => closes(condition[at + 1..].trim_start()),
        _ => true,
    });
    is_conjunction.then_some(condition)
}

/// The value that a column must have for such a condition to hold.
fn equal_to(condition: &str, column: &str) -> Option<Given> {
    let comparison = format!("{column} = ");
    condition.match_indices(&comparison).find_map(|(at, _)| {
        let is_column = condition[..at].ends_with(['.', '(', ' ']) || at == 0;
        let rest = condition[at + comparison.len()..].split([')', ' ']).next()?;
        match rest.strip_prefix('?') {
            _ if !is_column => None,
            Some(number) => number.parse::<usize>().ok()?.checked_sub(1).map(Given::Parameter),
            None => rest.parse().ok().map(Given::Literal),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_conditions_name_a_row() {
        let params = [Value::Int(7), Value::Text("x".into()), Value::Blob(vec![1])];
        let found =
            |sql: &str| condition(sql).and_then(|condition| equal_to(condition, "c1"))?.value(&params);
        for (sql, expected) in [
            ("SELECT r0.c2 AS a0 FROM t5 AS r0 WHERE (r0.c1 = ?1)", Some(Value::Int(7))),
            (
                "SELECT c2 FROM t5 WHERE ((r0.c3 > 4) AND (r0.c1 = ?2)) ORDER BY c2",
                Some(Value::Text("x".into())),
            ),
            ("UPDATE t5 SET c2 = coalesce(?1, c1) WHERE c1 = 3 RETURNING c1", Some(Value::Int(3))),
            ("DELETE FROM t5 WHERE (c1 = ?3)", None),
            ("SELECT c2 FROM t5", None),
            ("SELECT c2 FROM t5 AS r0 WHERE (r0.c11 = ?1)", None),
            ("SELECT c2 FROM t5 AS r0 WHERE (r0.cc1 = ?1)", None),
            ("SELECT c2 FROM t5 AS r0 WHERE ((r0.c1 = ?1) OR (r0.c2 = ?1))", None),
            ("SELECT c2 FROM t5 AS r0 WHERE ((r0.c1 = ?1) = ?2)", None),
            ("SELECT c2 FROM t5 AS r0 WHERE (?2 = (r0.c1 = ?1))", None),
            (
                "SELECT c2 FROM t5 AS r0 WHERE coalesce((r0.c2 > 1) AND (r0.c1 = ?1) AND (r0.c3 > 1), ?2)",
                None,
            ),
            ("SELECT c2 FROM t5 AS r0 WHERE (NOT (r0.c1 = ?1))", None),
            ("SELECT (SELECT max(c2) FROM t5) FROM t5 AS r0 WHERE (r0.c1 = ?1)", None),
            ("SELECT c2 FROM t5 AS r0 JOIN t5 AS r1 ON 1 WHERE (r0.c1 = ?1)", None),
        ] {
            assert_eq!(found(sql), expected, "{sql}");
        }
    }
}
