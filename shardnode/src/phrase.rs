//! What a statement's text says, read once.
//!
//! In comes the SQL that the planner emits for a shard; out comes what it names and what kind of statement it is, as far
//! as the words tell without the schema. The same texts come again and again, so what was read is kept. It must never
//! know what is in a table.

use dialect::physical::tables_in;
use foldhash::HashMap;
use parking_lot::RwLock;
use proto::TableId;
use std::sync::Arc;

/// So many texts are known at a time, each of so many bytes at most.
const TEXTS: usize = 1000;
const TEXT_BYTES: usize = 4096;

/// What a statement's text says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Phrase {
    /// The tables that it names, each once.
    pub tables: Box<[TableId]>,
    /// The table that it names, if that is the only one, and it names it only once.
    pub only: Option<TableId>,
    /// The table that it writes; nothing if it doesn't tell.
    pub written: Option<TableId>,
    /// Whether it is an `INSERT`, whatever it does where a key is there already.
    pub inserts: bool,
    /// Whether it only adds rows, and looks at none.
    pub adds: bool,
    /// Whether it only inserts the rows that it is given: what its own transaction has changed matters to it no more than
    /// what others have, for it reads none of it.
    pub inserts_plainly: bool,
    /// Whether it may leave rows as they are that are in its way, and lock them all the same.
    pub spares: bool,
    /// Whether it may leave out rows whose keys are there already.
    pub may_do_nothing: bool,
}

impl Phrase {
    /// Reads a text.
    pub fn read(sql: &str) -> Self {
        let named: Vec<TableId> = tables_in(sql).collect();
        let mut tables = named.clone();
        tables.sort_unstable();
        tables.dedup();
        let only = match named[..] {
            [table] => Some(table),
            _ => None,
        };
        let upper = sql.to_ascii_uppercase();
        let reads = |word: &str| upper.contains(word);
        Self {
            tables: tables.into(),
            only,
            written: written_table(sql),
            inserts: is_insert(&upper),
            adds: sql.contains("INSERT INTO ") && (!sql.contains("SELECT ") || named.len() == 1),
            inserts_plainly: upper.starts_with("INSERT INTO") && !reads("SELECT") && !reads("ON CONFLICT"),
            spares: sql.contains(" ELSE pg_spare("),
            may_do_nothing: sql.contains(" DO NOTHING"),
        }
    }
}

/// What was read of texts.
#[derive(Debug, Default)]
pub(crate) struct Phrases(RwLock<HashMap<Arc<str>, Arc<Phrase>>>);

impl Phrases {
    /// What a text says.
    pub fn of(&self, sql: &Arc<str>) -> Arc<Phrase> {
        if let Some(phrase) = self.0.read().get(sql) {
            return Arc::clone(phrase);
        }
        let phrase = Arc::new(Phrase::read(sql));
        if sql.len() <= TEXT_BYTES {
            let mut known = self.0.write();
            if known.len() >= TEXTS {
                known.clear();
            }
            known.insert(Arc::clone(sql), Arc::clone(&phrase));
        }
        phrase
    }
}

/// Whether the first verb of a statement that writes, in capitals, is this one. What it reads before is a query.
fn is_insert(upper: &str) -> bool {
    let mut words = upper.split(|c: char| c.is_whitespace() || c == '(');
    words.find(|word| matches!(*word, "INSERT" | "UPDATE" | "DELETE")) == Some("INSERT")
}

/// The table that a statement writes, by its physical name. SQLite's messages don't always say.
fn written_table(sql: &str) -> Option<TableId> {
    let mut words = sql.split(|c: char| c.is_whitespace() || c == '(').filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let name = match word.to_ascii_uppercase().as_str() {
            "INTO" | "UPDATE" => words.next(),
            "DELETE" => words.nth(1),
            _ => None,
        };
        let id =
            name.and_then(|name| name.trim_matches('"').strip_prefix('t')).and_then(|id| id.parse().ok());
        if id.is_some() {
            return id.map(TableId);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_inserts_is_known() {
        assert!(Phrase::read("INSERT INTO t5 (c1) VALUES (?1) RETURNING c1").inserts_plainly);
        for sql in [
            "INSERT INTO t5 (c1) VALUES (?1) ON CONFLICT DO NOTHING",
            "INSERT INTO t5 (c1) SELECT ?1",
            "INSERT INTO t5 (c1) VALUES (?1) RETURNING (select max(c1) FROM t5)",
            "INSERT OR REPLACE INTO t5 (c1) VALUES (?1)",
            "UPDATE t5 SET c1 = ?1",
        ] {
            assert!(!Phrase::read(sql).inserts_plainly, "{sql}");
        }
        for sql in [
            "INSERT INTO t5 (c1) VALUES (?1) ON CONFLICT DO UPDATE SET c1 = ?1",
            "WITH x AS (SELECT c1 FROM t6) insert INTO t5 (c1) SELECT c1 FROM x",
        ] {
            assert!(Phrase::read(sql).inserts, "{sql}");
        }
        for sql in ["UPDATE t5 SET c1 = 'INSERT INTO '", "WITH x AS (SELECT 1) DELETE FROM t5", "SELECT 1"] {
            assert!(!Phrase::read(sql).inserts, "{sql}");
        }
        let adds = |sql| Phrase::read(sql).adds;
        assert!(adds("INSERT INTO t5 (c1) VALUES (?1)") && adds("INSERT INTO t5 (c1) SELECT ?1"));
        assert!(!adds("INSERT INTO t5 (c1) SELECT c1 FROM t5") && !adds("UPDATE t5 SET c1 = ?1"));
    }

    #[test]
    fn a_written_table_is_found() {
        for sql in [
            "INSERT INTO t16384(c1) VALUES (?1)",
            "INSERT INTO \"t16384\" (c1) SELECT c1 FROM t5",
            "update t16384 SET c1 = (SELECT 1 FROM t6)",
            "DELETE FROM t16384 WHERE c1 = ?1",
            "WITH x AS (SELECT c1 FROM t7) DELETE FROM t16384 WHERE c1 IN (SELECT c1 FROM x)",
        ] {
            assert_eq!(Phrase::read(sql).written, Some(TableId(16384)), "{sql}");
        }
        assert_eq!(Phrase::read("SELECT c1 FROM t5").written, None);
    }

    #[test]
    fn every_named_table_is_found_once() {
        let tables = |sql| Phrase::read(sql).tables.iter().map(|table| table.0).collect::<Vec<_>>();
        assert_eq!(
            tables("WITH x AS (SELECT t7.c1 FROM t7) DELETE FROM\t\"t16384\" WHERE c1 IN x"),
            [7, 16384]
        );
        assert_eq!(tables("UPDATE t1 SET c2=(SELECT max(c1)FROM t2,main.t3)"), [1, 2, 3]);
        let only = |sql| Phrase::read(sql).only;
        assert_eq!(only("SELECT c1 FROM t5 AS r0 WHERE (r0.c1 = ?1)"), Some(TableId(5)));
        assert_eq!(only("SELECT r0.c1 FROM t5 AS r0, t5 AS r1 WHERE (r0.c1 = ?1)"), None);
        assert_eq!(only("SELECT 1"), None);
        assert_eq!(tables("SELECT at1, t1a, t_1, _t1, total FROM r0"), []);
    }

    #[test]
    fn what_was_read_is_kept_within_bounds() {
        let phrases = Phrases::default();
        let sql: Arc<str> = "DELETE FROM t5".into();
        assert!(Arc::ptr_eq(&phrases.of(&sql), &phrases.of(&"DELETE FROM t5".into())));
        let long: Arc<str> = format!("DELETE FROM t5 -- {}", "x".repeat(TEXT_BYTES)).into();
        assert_eq!(phrases.of(&long), phrases.of(&sql));
        for n in 0..2 * TEXTS {
            phrases.of(&format!("DELETE FROM t{n}").into());
        }
        assert!(phrases.0.read().len() <= TEXTS);
    }
}
