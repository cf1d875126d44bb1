//! Commands as scripts: `> SQL` lines in, what they were bound to out. Schema changes take effect on a catalog that
//! lives through the script, as the coordinator would carry them out. `REWRITE=1` writes the answers anew.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dialect::types::Typed;
use planner::plan::{Action, SchemaAction};
use planner::text::{Parsed, split};
use planner::{Context, Settings, utility};
use proto::catalog::{Catalog, Column, ColumnDefault, Placement, Sequence, Table};
use proto::services::SchemaChange;
use proto::topology::{Keyspace, Sharding, Topology};
use proto::{ColumnId, IndexId, KeyspaceNumber, SchemaVersion, SequenceId, TableId, WireError};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// A catalog that takes changes.
struct Cluster {
    topology: Topology,
    tables: BTreeMap<TableId, Table>,
    sequences: BTreeMap<SequenceId, Sequence>,
    next: u32,
    version: u64,
}

impl Cluster {
    fn new() -> Self {
        let mut topology = Topology::default();
        let kinds = [
            ("main", Sharding::Hash),
            ("single", Sharding::Single),
            ("other", Sharding::Hash),
            ("r", Sharding::Range),
        ];
        for (i, (name, sharding)) in kinds.into_iter().enumerate() {
            let number = KeyspaceNumber(i as u32 + 1);
            let keyspace =
                Keyspace { number, name: name.into(), sharding, replicas: 1, shards: Vec::new(), auto: None };
            topology.keyspaces.insert(number, keyspace);
        }
        Cluster { topology, tables: BTreeMap::new(), sequences: BTreeMap::new(), next: 16384, version: 1 }
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(
            SchemaVersion(self.version),
            self.tables.values().cloned().map(Arc::new),
            self.sequences.values().cloned().map(Arc::new),
        )
    }

    /// Gives out ids, as the coordinator does.
    fn settle(&mut self, mut table: Table, sequences: Vec<Sequence>) {
        if table.id == TableId(0) {
            table.id = TableId(self.id());
        }
        let ids: Vec<_> = sequences
            .into_iter()
            .map(|mut sequence| {
                sequence.id = SequenceId(self.id());
                sequence.owner = sequence.owner.map(|(_, column)| (table.id, column));
                let id = sequence.id;
                self.sequences.insert(id, sequence);
                id
            })
            .collect();
        for column in &mut table.columns {
            if let Some(ColumnDefault::Sequence { id, .. }) = &mut column.default
                && id.0 < 16384
            {
                *id = ids[id.0 as usize - 1];
            }
        }
        for index in &mut table.indexes {
            if index.id == IndexId(0) {
                index.id = IndexId(self.id());
            }
        }
        self.sequences.retain(|_, s| s.owner.is_none_or(|(t, c)| t != table.id || table.column(c).is_some()));
        self.tables.insert(table.id, table);
    }

    fn apply(&mut self, change: SchemaChange) {
        self.version += 1;
        match change {
            SchemaChange::CreateTable { table, sequences } => self.settle(table, sequences),
            SchemaChange::ReplaceTable { table, sequences, .. } => self.settle(table, sequences),
            SchemaChange::DropTables(ids) => {
                self.tables.retain(|id, _| !ids.contains(id));
                self.sequences.retain(|_, s| s.owner.is_none_or(|(t, _)| !ids.contains(&t)));
            }
            SchemaChange::Truncate { .. } => {}
            SchemaChange::CreateSequence(mut sequence) => {
                sequence.id = SequenceId(self.id());
                self.sequences.insert(sequence.id, sequence);
            }
            SchemaChange::ReplaceSequence { sequence, .. } => {
                self.sequences.insert(sequence.id, sequence);
            }
            SchemaChange::DropSequences(ids) => self.sequences.retain(|id, _| !ids.contains(id)),
            SchemaChange::AlterRole { .. } => {}
        }
    }

    fn run(&mut self, sql: &str, out: &mut String) {
        let texts = match split(sql) {
            Ok(texts) => texts,
            Err(error) => return print_error(&error, out),
        };
        for text in texts {
            let catalog = self.catalog();
            let settings = Settings::default();
            let context = Context { catalog: &catalog, topology: &self.topology, settings: &settings };
            let planned = match text.parse() {
                Ok(Parsed::Utility(command)) => utility::plan(&command, &text, &context),
                Ok(Parsed::Copy(copy)) => {
                    writeln!(out, "{copy:?}").unwrap();
                    continue;
                }
                Ok(Parsed::Statement(tree)) => {
                    writeln!(out, "statement: {}", *tree).unwrap();
                    continue;
                }
                Ok(Parsed::Explain { analyze, statement }) => {
                    writeln!(out, "explain (analyze {analyze}): {}", *statement).unwrap();
                    continue;
                }
                Err(error) => Err(error),
            };
            match planned {
                Err(error) => print_error(&error, out),
                Ok(planned) => match &planned.plan.action {
                    Action::Session(command) => {
                        writeln!(out, "{command:?}").unwrap();
                        for column in planned.plan.columns.iter().flatten() {
                            writeln!(out, "  column {}", column.name).unwrap();
                        }
                        for scalar in &planned.plan.scalars {
                            writeln!(out, "  scalar {scalar:?}").unwrap();
                        }
                    }
                    Action::Schema(action) => {
                        print_action(action, out);
                        for change in action.changes.clone() {
                            self.apply(change);
                        }
                    }
                    other => panic!("not a command: {other:?}"),
                },
            }
        }
    }
}

fn print_error(error: &WireError, out: &mut String) {
    let position = error.position.map_or(String::new(), |position| format!(" (at {position})"));
    writeln!(out, "ERROR {}: {}{position}", error.sqlstate, error.message).unwrap();
    for (label, line) in [("detail", &error.detail), ("hint", &error.hint)] {
        if let Some(line) = line {
            writeln!(out, "  {label}: {line}").unwrap();
        }
    }
}

fn print_action(action: &SchemaAction, out: &mut String) {
    writeln!(out, "{}", action.tag).unwrap();
    for notice in &action.notices {
        writeln!(out, "  {} {}: {}", notice.severity, notice.sqlstate, notice.message).unwrap();
        if let Some(hint) = &notice.hint {
            writeln!(out, "    hint: {hint}").unwrap();
        }
    }
    for change in &action.changes {
        match change {
            SchemaChange::CreateTable { table, sequences } => {
                print_table("create", table, out);
                sequences.iter().for_each(|sequence| print_sequence("with", sequence, out));
            }
            SchemaChange::ReplaceTable { table, sequences, fill } => {
                print_table("replace", table, out);
                sequences.iter().for_each(|sequence| print_sequence("with", sequence, out));
                assert!(fill.is_empty());
            }
            SchemaChange::CreateSequence(sequence) => print_sequence("create", sequence, out),
            SchemaChange::ReplaceSequence { sequence, restart } => {
                print_sequence("replace", sequence, out);
                if let Some(restart) = restart {
                    writeln!(out, "    restart {restart}").unwrap();
                }
            }
            SchemaChange::DropTables(_) | SchemaChange::DropSequences(_) | SchemaChange::Truncate { .. } => {
                writeln!(out, "  {change:?}").unwrap();
            }
            SchemaChange::AlterRole { role, change } => {
                let role = role.as_deref().unwrap_or("every role");
                let current = if action.from_current { " from current" } else { "" };
                writeln!(out, "  {role}: {change:?}{current}").unwrap();
            }
        }
    }
    for (change, column, scalar) in &action.fills {
        writeln!(out, "  fill change {change} column {column} from scalar {}", scalar.0).unwrap();
    }
}

fn print_column(column: &Column) -> String {
    let ty = Typed::from_ref(column.ty).unwrap();
    let mut line = format!("c{} {} {:?}", column.id, column.name, ty.ty);
    if ty.modifier != -1 {
        write!(line, "[{}]", ty.modifier).unwrap();
    }
    if column.not_null {
        line.push_str(" not null");
    }
    match &column.default {
        None => {}
        Some(ColumnDefault::Expression(text)) => write!(line, " default {text}").unwrap(),
        Some(ColumnDefault::Sequence { id, identity_always }) => {
            let kind = match identity_always {
                None => "next of",
                Some(true) => "always identity of",
                Some(false) => "identity of",
            };
            write!(line, " {kind} {id}").unwrap();
        }
    }
    line
}

fn print_table(verb: &str, table: &Table, out: &mut String) {
    let ids = |ids: &[ColumnId]| ids.iter().map(|id| format!("c{id}")).collect::<Vec<_>>().join(", ");
    writeln!(out, "  {verb} table {} {} next c{}", table.id, table.name, table.next_column).unwrap();
    for column in &table.columns {
        writeln!(out, "    {}", print_column(column)).unwrap();
    }
    match &table.primary_key_name {
        Some(name) => writeln!(out, "    primary key {name} ({})", ids(&table.primary_key)).unwrap(),
        None => writeln!(out, "    key ({})", ids(&table.primary_key)).unwrap(),
    }
    for index in &table.indexes {
        let columns: Vec<_> = index
            .columns
            .iter()
            .map(|c| {
                let order = if c.descending { " desc" } else { "" };
                format!("c{}{order}{}", c.column, if c.nulls_first { " nulls first" } else { "" })
            })
            .collect();
        let kind = match (index.unique, index.constraint) {
            (true, true) => "unique constraint",
            (true, false) => "unique index",
            (false, _) => "index",
        };
        writeln!(out, "    {kind} {} {} ({})", index.id, index.name, columns.join(", ")).unwrap();
    }
    for check in &table.checks {
        writeln!(out, "    check {} {} | {}", check.name, check.expression, check.physical).unwrap();
    }
    match &table.placement {
        Placement::Sharded { keyspace, key } => {
            writeln!(out, "    in keyspace {keyspace} by ({})", ids(key)).unwrap()
        }
        Placement::Single { keyspace } => writeln!(out, "    whole in keyspace {keyspace}").unwrap(),
        Placement::Reference => writeln!(out, "    reference").unwrap(),
    }
}

fn print_sequence(verb: &str, s: &Sequence, out: &mut String) {
    let ty = Typed::from_ref(s.ty).unwrap().ty;
    let owner = s.owner.map_or(String::new(), |(table, column)| format!(" owner {table}.c{column}"));
    let hidden = if s.hidden { " hidden" } else { "" };
    let cycle = if s.cycle { " cycle" } else { "" };
    writeln!(
        out,
        "  {verb} sequence {} {} {ty:?} start {} by {} in {}..{} cache {}{cycle}{owner}{hidden}",
        s.id, s.name, s.start, s.increment, s.min, s.max, s.cache
    )
    .unwrap();
}

/// Runs a script and answers with what it prints.
fn play(script: &str) -> String {
    let mut cluster = Cluster::new();
    let mut out = String::new();
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(first) = line.strip_prefix("> ") {
            let mut sql = first.to_owned();
            writeln!(out, "{line}").unwrap();
            while let Some(more) = lines.next_if(|line| line.starts_with("> ")) {
                writeln!(out, "{more}").unwrap();
                sql.push('\n');
                sql.push_str(&more[2..]);
            }
            cluster.run(&sql, &mut out);
            out.push('\n');
        } else if line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/utility");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let expected = std::fs::read_to_string(&path).unwrap();
        let found = play(&expected);
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, found).unwrap();
        } else {
            assert_eq!(found, expected, "{}; REWRITE=1 writes it anew", path.display());
        }
    }
}

/// psql's query for a table's indexes, as far as Shoal has it.
#[test]
fn definitions_are_lookups() {
    let mut cluster = Cluster::new();
    cluster.run("CREATE TABLE t (id int PRIMARY KEY)", &mut String::new());
    let catalog = cluster.catalog();
    let settings = Settings::default();
    let context = Context { catalog: &catalog, topology: &cluster.topology, settings: &settings };
    for sql in [
        "SELECT pg_catalog.pg_get_indexdef(i.indexrelid, 0, true) FROM pg_catalog.pg_index i",
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index",
        "SELECT pg_catalog.pg_get_constraintdef(r.oid, true) FROM pg_catalog.pg_constraint r WHERE r.contype = 'c'",
    ] {
        let text = &split(sql).unwrap()[0];
        let planned = planner::plan(text, &[], &context).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let Action::Query(query) = &planned.plan.action else { panic!("{sql}") };
        assert!(format!("{query:?}").contains("shoal_definition"), "{sql}: {query:?}");
    }
}
