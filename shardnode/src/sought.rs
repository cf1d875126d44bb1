//! Which row a statement looks for, if it looks up one by its primary key.
//!
//! In comes the SQL that the planner emits, and the schema that it is for; out comes the row's table and key, by which those
//! are told who change other rows. Whatever has another form is taken to look at whole tables. It must never know who asks.

use crate::locks::Part;
use dialect::physical::table_name;
use dialect::sqlite::parameter;
use foldhash::HashMap;
use proto::{TableId, Value};
use rusqlite::{Connection, params_from_iter};
use std::sync::Arc;

/// The most locks of one transaction that are compared with the key of a row.
pub(crate) const COMPARED: usize = 64;

/// So many statements are known at a time, each of so many bytes at most.
const STATEMENTS: usize = 1000;
const STATEMENT_BYTES: usize = 4096;

/// The row of a table that a statement looks for: it names a value for each of the primary key's columns.
#[derive(Debug)]
pub(crate) struct Sought {
    pub table: TableId,
    /// The key's columns, and their values.
    key: Vec<(String, Given)>,
    /// Whether the statement wants nothing else of it.
    pub is_all: bool,
}

/// A value in a statement.
#[derive(Clone, Debug, PartialEq)]
enum Given {
    Literal(i64),
    /// The parameter at this place, from 0.
    Parameter(usize),
}

/// The rows that statements look for, by their SQL, as far as they were met. It holds until the schema changes.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    known: HashMap<Arc<str>, Option<Arc<Sought>>>,
    /// Grows whenever all is forgotten: what was read before doesn't count.
    age: u64,
}

impl Looks {
    /// What a statement looks for, if it was met; or else the age of what is read now.
    pub fn get(&self, sql: &Arc<str>) -> Result<Option<Arc<Sought>>, u64> {
        self.known.get(sql).cloned().ok_or(self.age)
    }

    /// Forgets all, for the schema may have changed.
    pub fn forget(&mut self) {
        self.known.clear();
        self.age += 1;
    }

    /// A statement looks for this row, or for none, as it was read at this age.
    pub fn learn(&mut self, sql: &Arc<str>, sought: Option<Arc<Sought>>, age: u64) {
        if age != self.age || sql.len() > STATEMENT_BYTES {
            return;
        }
        if self.known.len() >= STATEMENTS {
            self.known.clear();
        }
        self.known.insert(Arc::clone(sql), sought);
    }
}

/// Whether a lock on a part of a table may be about the row there that has this key, written as locks name it.
pub(crate) fn may_be_about(part: &Part, key: &[u8]) -> bool {
    match part {
        Part::Table | Part::Unique(..) => false,
        Part::Row(row) => **row == *key,
        Part::Keys(_) | Part::Moved(_) => true,
    }
}

impl Sought {
    /// By the form of the SQL that the planner emits; whatever has another form is taken to look at the whole table.
    pub fn read(connection: &Connection, table: TableId, sql: &str) -> Option<Self> {
        let condition = condition(sql)?;
        let query = "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk";
        let mut statement = connection.prepare_cached(query).ok()?;
        let columns = statement.query_map([table_name(table)], |row| row.get::<_, String>(0)).ok()?;
        let columns: Vec<String> = columns.collect::<Result<_, _>>().ok()?;
        let is_all = condition.matches(" AND ").count() + 1 == columns.len();
        let given = |column: String| equal_to(condition, &column).map(|value| (column, value));
        let key: Option<Vec<_>> = columns.into_iter().map(given).collect();
        Some(Self { table, key: key.filter(|key| !key.is_empty())?, is_all })
    }

    /// The key's values; nothing if one may be written in more than one way.
    pub fn values(&self, params: &[Value]) -> Option<Vec<Value>> {
        self.key.iter().map(|(_, given)| given.value(params)).collect()
    }

    /// Whether the row is there.
    pub fn is_there(&self, connection: &Connection, key: &[Value]) -> bool {
        let equal = |(number, (column, _)): (usize, &(String, _))| format!("{column} = ?{}", number + 1);
        let equal: Vec<_> = self.key.iter().enumerate().map(equal).collect();
        let sql = format!("SELECT 1 FROM {} WHERE {}", table_name(self.table), equal.join(" AND "));
        let found = connection
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
pub(crate) fn condition(sql: &str) -> Option<&str> {
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
