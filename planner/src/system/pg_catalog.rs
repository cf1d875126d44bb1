//! The rows of `pg_catalog`.

use super::{REPLICAS, RESHARDS, ReplicaFact, SHARDS, SettingFact, ShardFact, TRANSACTIONS, TransactionFact};
use super::{
    Row, Sources, attnum, by_name, definitions, fixed, format_type, made, oid, relations, tables, typed,
};
use dialect::Type;
use dialect::datetime::TimeZone;
use dialect::types::{Element, Typed};
use proto::catalog::{ColumnDefault, IndexColumn, RoleSettings, Table};
use proto::services::ReshardStatus;
use proto::{ColumnId, Value};
use std::sync::Arc;
use std::time::Duration;

/// The type of what a role's sessions begin with.
const CONFIGURATION: Type = Type::Array(Element::Text);

/// The rows of a relation; none for those that Shoal has nothing for.
pub(super) fn rows(name: &str, sources: &Sources<'_>) -> Vec<Vec<Value>> {
    let rows: Vec<Row> = match name {
        "pg_type" => return fixed::rows(by_name(name), fixed::PG_TYPE),
        "pg_am" => return fixed::rows(by_name(name), fixed::PG_AM),
        "pg_collation" => return fixed::rows(by_name(name), fixed::PG_COLLATION),
        "pg_namespace" => namespaces(),
        "pg_class" => classes(sources),
        "pg_attribute" => attributes(sources),
        "pg_attrdef" => defaults(sources),
        "pg_index" => indexes(sources),
        "pg_constraint" => constraints(sources),
        "shoal_definition" => definition_rows(sources),
        "pg_roles" | "pg_authid" => roles(name, sources),
        "pg_user" => users(sources),
        "pg_database" => databases(sources),
        "pg_tablespace" => tablespaces(),
        "pg_settings" => settings(sources),
        "pg_db_role_setting" => role_setting_rows(sources),
        "pg_tables" => table_view(sources),
        "pg_indexes" => index_view(sources),
        "pg_sequence" => sequences(sources),
        "pg_sequences" => sequence_view(sources),
        "pg_depend" => dependencies(sources),
        "shoal_keyspace" => keyspaces(sources),
        "shoal_shard" => shards(sources),
        TRANSACTIONS => transactions(sources),
        RESHARDS => reshards(sources),
        SHARDS => serving(sources),
        REPLICAS => replicas(sources),
        _ => Vec::new(),
    };
    rows.into_iter().map(|row| row.values).collect()
}

/// An index as PostgreSQL sees it: the primary key's has one, too.
struct AnyIndex<'a> {
    oid: u32,
    name: &'a str,
    columns: Vec<IndexColumn>,
    unique: bool,
    primary: bool,
    constraint: Option<u32>,
}

fn indexes_of(table: &Table) -> impl Iterator<Item = AnyIndex<'_>> {
    let primary = table.primary_key_name.as_deref().map(|name| AnyIndex {
        oid: made::primary_key_index(table.id),
        name,
        columns: table
            .primary_key
            .iter()
            .map(|column| IndexColumn { column: *column, descending: false, nulls_first: false })
            .collect(),
        unique: true,
        primary: true,
        constraint: Some(made::primary_key(table.id)),
    });
    primary.into_iter().chain(table.indexes.iter().map(|index| AnyIndex {
        oid: index.id.0,
        name: &index.name,
        columns: index.columns.clone(),
        unique: index.unique,
        primary: false,
        constraint: index.constraint.then(|| made::constraint(index.id)),
    }))
}

fn namespaces() -> Vec<Row> {
    [
        (oid::PG_CATALOG, "pg_catalog"),
        (oid::PUBLIC, "public"),
        (oid::INFORMATION_SCHEMA, "information_schema"),
    ]
    .into_iter()
    .map(|(id, name)| {
        Row::zero(by_name("pg_namespace")).set("oid", id).set("nspname", name).set("nspowner", oid::USER)
    })
    .collect()
}

fn class(id: u32, name: &str, kind: &str) -> Row {
    Row::zero(by_name("pg_class"))
        .set("oid", id)
        .set("relname", name)
        .set("relnamespace", oid::PUBLIC)
        .set("relowner", oid::USER)
        .set("relkind", kind)
        .set("relpersistence", "p")
        .set("relreplident", "n")
        .set("relispopulated", true)
        .set("reltuples", Value::Real(-1.0))
}

fn classes(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (id, table) in tables(sources) {
        rows.push(
            class(id.0, &table.name, "r")
                .set("relam", oid::HEAP)
                .set("relfilenode", id.0)
                .set("relhasindex", indexes_of(table).next().is_some())
                .set("relnatts", table.next_column.0.saturating_sub(1))
                .set("relchecks", table.checks.len())
                .set("relreplident", "d"),
        );
        for index in indexes_of(table) {
            rows.push(
                class(index.oid, index.name, "i")
                    .set("relam", oid::BTREE)
                    .set("relfilenode", index.oid)
                    .set("relnatts", index.columns.len()),
            );
        }
    }
    for sequence in sources.catalog.sequences().filter(|sequence| !sequence.hidden) {
        rows.push(
            class(sequence.id.0, &sequence.name, "S").set("relfilenode", sequence.id.0).set("relnatts", 3i64),
        );
    }
    for relation in relations() {
        let namespace =
            if relation.schema == "pg_catalog" { oid::PG_CATALOG } else { oid::INFORMATION_SCHEMA };
        rows.push(
            class(relation.oid, relation.name, if relation.view { "v" } else { "r" })
                .set("relnamespace", namespace)
                .set("relam", if relation.view { 0 } else { oid::HEAP })
                .set("relnatts", relation.columns.len()),
        );
    }
    rows
}

/// What `pg_attribute` repeats of a type: length, by value, alignment, storage, collation.
struct Layout(Vec<Vec<Value>>);

impl Layout {
    fn new() -> Self {
        Layout(fixed::rows(by_name("pg_type"), fixed::PG_TYPE))
    }

    fn apply(&self, row: Row, ty: Type) -> Row {
        let columns = by_name("pg_type").columns;
        let Some(values) = self.0.iter().find(|row| row[0] == Value::Int(i64::from(ty.oid()))) else {
            return row;
        };
        let value = |name: &str| {
            let at = columns.iter().position(|(column, _)| *column == name).expect("a column of pg_type");
            values[at].clone()
        };
        row.set("attlen", value("typlen"))
            .set("attbyval", value("typbyval"))
            .set("attalign", value("typalign"))
            .set("attstorage", value("typstorage"))
            .set("attcollation", value("typcollation"))
    }
}

fn attribute(layout: &Layout, relation: u32, name: &str, number: i64, ty: Typed) -> Row {
    let row = Row::zero(by_name("pg_attribute"))
        .set("attrelid", relation)
        .set("attname", name)
        .set("atttypid", ty.ty.oid())
        .set("atttypmod", i64::from(ty.modifier))
        .set("attnum", number)
        .set("attstattarget", -1i64)
        .set("attcacheoff", -1i64)
        .set("attndims", i64::from(matches!(ty.ty, Type::Array(_))))
        .set("attislocal", true);
    layout.apply(row, ty.ty)
}

fn attributes(sources: &Sources<'_>) -> Vec<Row> {
    let layout = Layout::new();
    let mut rows = Vec::new();
    for (id, table) in tables(sources) {
        for column in table.visible_columns() {
            let identity = match &column.default {
                Some(ColumnDefault::Sequence { id: _, identity_always: Some(true) }) => "a",
                Some(ColumnDefault::Sequence { id: _, identity_always: Some(false) }) => "d",
                _ => "",
            };
            rows.push(
                attribute(&layout, id.0, &column.name, attnum(column.id), typed(column))
                    .set("attnotnull", column.not_null)
                    .set("atthasdef", definitions::default(sources.catalog, column).is_some())
                    .set("attidentity", identity),
            );
        }
        for index in indexes_of(table) {
            for (i, column) in index.columns.iter().enumerate() {
                if let Some(column) = table.column(column.column) {
                    rows.push(attribute(&layout, index.oid, &column.name, i as i64 + 1, typed(column)));
                }
            }
        }
    }
    for sequence in sources.catalog.sequences().filter(|sequence| !sequence.hidden) {
        for (i, (name, ty)) in
            [("last_value", Type::Int8), ("log_cnt", Type::Int8), ("is_called", Type::Bool)]
                .into_iter()
                .enumerate()
        {
            rows.push(
                attribute(&layout, sequence.id.0, name, i as i64 + 1, Typed::plain(ty))
                    .set("attnotnull", true),
            );
        }
    }
    for relation in relations() {
        for (i, (name, ty)) in relation.columns.iter().enumerate() {
            rows.push(attribute(&layout, relation.oid, name, i as i64 + 1, Typed::plain(*ty)));
        }
    }
    rows
}

fn defaults(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (id, table) in tables(sources) {
        for column in table.visible_columns() {
            if let Some(text) = definitions::default(sources.catalog, column) {
                rows.push(
                    Row::zero(by_name("pg_attrdef"))
                        .set("oid", made::default(id, column.id))
                        .set("adrelid", id.0)
                        .set("adnum", attnum(column.id))
                        .set("adbin", text),
                );
            }
        }
    }
    rows
}

/// The operator class that btree has for a type by default.
fn operator_class(ty: Type) -> u32 {
    match ty {
        Type::Bool => 10003,
        Type::Bpchar => 10004,
        Type::Bytea => 10006,
        Type::Char => 10007,
        Type::Date => 3122,
        Type::Float4 => 10012,
        Type::Float8 => 3123,
        Type::Int2 => 1979,
        Type::Int4 => 1978,
        Type::Int8 => 3124,
        Type::Name => 10028,
        Type::Numeric => 3125,
        Type::Oid | Type::Regclass => 1981,
        Type::Text | Type::Varchar => 3126,
        Type::Timestamptz => 3127,
        Type::Timestamp => 3128,
        Type::Uuid => 10065,
        Type::Array(_) | Type::Unknown => 0,
    }
}

fn is_text(ty: Type) -> bool {
    matches!(ty, Type::Text | Type::Varchar | Type::Bpchar)
}

fn vector(numbers: impl IntoIterator<Item = i64>) -> String {
    numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

fn indexes(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (id, table) in tables(sources) {
        for index in indexes_of(table) {
            let ty =
                |column: &IndexColumn| table.column(column.column).map_or(Type::Unknown, |c| typed(c).ty);
            let collation = |column: &IndexColumn| {
                if is_text(ty(column)) { i64::from(oid::DEFAULT_COLLATION) } else { 0 }
            };
            let option =
                |column: &IndexColumn| i64::from(column.descending) | i64::from(column.nulls_first) << 1;
            rows.push(
                Row::zero(by_name("pg_index"))
                    .set("indexrelid", index.oid)
                    .set("indrelid", id.0)
                    .set("indnatts", index.columns.len())
                    .set("indnkeyatts", index.columns.len())
                    .set("indisunique", index.unique)
                    .set("indisprimary", index.primary)
                    .set("indimmediate", true)
                    .set("indisvalid", true)
                    .set("indisready", true)
                    .set("indislive", true)
                    .set("indkey", vector(index.columns.iter().map(|c| attnum(c.column))))
                    .set("indcollation", vector(index.columns.iter().map(collation)))
                    .set("indclass", vector(index.columns.iter().map(|c| i64::from(operator_class(ty(c))))))
                    .set("indoption", vector(index.columns.iter().map(option))),
            );
        }
    }
    rows
}

fn array(columns: impl IntoIterator<Item = ColumnId>) -> String {
    let numbers: Vec<_> = columns.into_iter().map(|column| attnum(column).to_string()).collect();
    format!("{{{}}}", numbers.join(","))
}

fn constraint(id: u32, name: &str, kind: &str, table: &Table) -> Row {
    Row::zero(by_name("pg_constraint"))
        .set("oid", id)
        .set("conname", name)
        .set("connamespace", oid::PUBLIC)
        .set("contype", kind)
        .set("convalidated", true)
        .set("conrelid", table.id.0)
        .set("confupdtype", " ")
        .set("confdeltype", " ")
        .set("confmatchtype", " ")
        .set("conislocal", true)
}

fn constraints(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (id, table) in tables(sources) {
        for index in indexes_of(table) {
            if let Some(made) = index.constraint {
                rows.push(
                    constraint(made, index.name, if index.primary { "p" } else { "u" }, table)
                        .set("conindid", index.oid)
                        .set("connoinherit", true)
                        .set("conkey", array(index.columns.iter().map(|column| column.column))),
                );
            }
        }
        for (i, check) in table.checks.iter().enumerate() {
            let named = table.columns.iter().filter(|c| crate::utility::names_column(&check.physical, c.id));
            rows.push(
                constraint(made::check(id, i), &check.name, "c", table)
                    .set("conkey", array(named.map(|column| column.id)))
                    .set("conbin", &check.expression),
            );
        }
    }
    rows
}

fn definition_rows(sources: &Sources<'_>) -> Vec<Row> {
    let row = |id: u32, number: i64, definition: String, pretty: String| {
        Row::zero(by_name("shoal_definition"))
            .set("shoal_oid", id)
            .set("shoal_attnum", number)
            .set("shoal_whole", number == 0)
            .set("shoal_definition", definition)
            .set("shoal_pretty", pretty)
    };
    let mut rows = Vec::new();
    for (id, table) in tables(sources) {
        for index in indexes_of(table) {
            let (definition, pretty) = definitions::index(table, index.name, index.unique, &index.columns);
            rows.push(row(index.oid, 0, definition, pretty));
            for (i, column) in index.columns.iter().enumerate() {
                let name = table.column(column.column).map_or("", |column| &column.name);
                let name = crate::text::quoted(name).into_owned();
                rows.push(row(index.oid, i as i64 + 1, name.clone(), name));
            }
            if let Some(made) = index.constraint {
                let columns = index.columns.iter().map(|column| column.column);
                let definition = definitions::key(table, index.primary, columns);
                rows.push(row(made, 0, definition.clone(), definition));
            }
        }
        for (i, check) in table.checks.iter().enumerate() {
            let (definition, pretty) = definitions::check(&check.expression);
            rows.push(row(made::check(id, i), 0, definition, pretty));
        }
    }
    rows
}

/// What a role's sessions begin with, as an array of `name=value`.
fn configuration(settings: &RoleSettings) -> String {
    let escaped = |(name, value): &(String, String)| {
        let item = format!("{name}={value}").replace('\\', "\\\\").replace('"', "\\\"");
        format!("\"{item}\"")
    };
    let items: Vec<_> = settings.settings.iter().map(escaped).collect();
    let text = format!("{{{}}}", items.join(","));
    // Quoted where it must be, as arrays are everywhere.
    let array = dialect::io::input(Typed::plain(CONFIGURATION), &text, &TimeZone::utc());
    match array {
        Ok(Value::Text(array)) => array,
        _ => text,
    }
}

/// The settings of a role, or of every role.
fn role_settings(role: Option<&str>, sources: &Sources<'_>) -> Option<String> {
    let found = sources.catalog.roles().find(|settings| settings.role.as_deref() == role);
    found.map(|settings| configuration(settings))
}

fn role_setting_rows(sources: &Sources<'_>) -> Vec<Row> {
    let row = |settings: &Arc<RoleSettings>| {
        let role = if settings.role.is_some() { oid::USER } else { 0 };
        Row::zero(by_name("pg_db_role_setting"))
            .set("setrole", role)
            .set("setconfig", configuration(settings))
    };
    sources.catalog.roles().map(row).collect()
}

fn roles(name: &str, sources: &Sources<'_>) -> Vec<Row> {
    let row = Row::zero(by_name(name))
        .set("oid", oid::USER)
        .set("rolname", &sources.facts.user)
        .set("rolsuper", true)
        .set("rolinherit", true)
        .set("rolcreaterole", true)
        .set("rolcreatedb", true)
        .set("rolcanlogin", true)
        .set("rolreplication", true)
        .set("rolbypassrls", true)
        .set("rolconnlimit", -1i64);
    vec![if name == "pg_roles" {
        let settings = role_settings(Some(&sources.facts.user), sources);
        row.set("rolpassword", "********").set("rolconfig", settings)
    } else {
        row
    }]
}

fn users(sources: &Sources<'_>) -> Vec<Row> {
    vec![
        Row::zero(by_name("pg_user"))
            .set("usename", &sources.facts.user)
            .set("usesysid", oid::USER)
            .set("usecreatedb", true)
            .set("usesuper", true)
            .set("userepl", true)
            .set("usebypassrls", true)
            .set("passwd", "********")
            .set("useconfig", role_settings(Some(&sources.facts.user), sources)),
    ]
}

fn databases(sources: &Sources<'_>) -> Vec<Row> {
    vec![
        Row::zero(by_name("pg_database"))
            .set("oid", oid::DATABASE)
            .set("datname", &sources.facts.database)
            .set("datdba", oid::USER)
            .set("encoding", 6i64)
            .set("datlocprovider", "c")
            .set("datallowconn", true)
            .set("datconnlimit", -1i64)
            .set("dattablespace", 1663i64)
            .set("datcollate", "C.UTF-8")
            .set("datctype", "C.UTF-8"),
    ]
}

fn tablespaces() -> Vec<Row> {
    let row = |id: u32, name: &str| {
        Row::zero(by_name("pg_tablespace")).set("oid", id).set("spcname", name).set("spcowner", oid::USER)
    };
    vec![row(1663, "pg_default"), row(1664, "pg_global")]
}

fn settings(sources: &Sources<'_>) -> Vec<Row> {
    let row = |setting: &SettingFact| {
        Row::empty(by_name("pg_settings"))
            .set("name", &setting.name)
            .set("setting", &setting.value)
            .set("reset_val", &setting.reset)
            .set("short_desc", &setting.about)
            .set("category", "Shoal")
            .set("context", "user")
            .set("vartype", "string")
            .set("source", "session")
            .set("pending_restart", false)
    };
    sources.facts.settings.iter().map(row).collect()
}

fn table_view(sources: &Sources<'_>) -> Vec<Row> {
    tables(sources)
        .map(|(_, table)| {
            Row::zero(by_name("pg_tables"))
                .set("schemaname", "public")
                .set("tablename", &table.name)
                .set("tableowner", &sources.facts.user)
                .set("tablespace", Value::Null)
                .set("hasindexes", indexes_of(table).next().is_some())
        })
        .collect()
}

fn index_view(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (_, table) in tables(sources) {
        for index in indexes_of(table) {
            let (definition, _) = definitions::index(table, index.name, index.unique, &index.columns);
            rows.push(
                Row::empty(by_name("pg_indexes"))
                    .set("schemaname", "public")
                    .set("tablename", &table.name)
                    .set("indexname", index.name)
                    .set("indexdef", definition),
            );
        }
    }
    rows
}

fn sequences(sources: &Sources<'_>) -> Vec<Row> {
    let visible = sources.catalog.sequences().filter(|sequence| !sequence.hidden);
    visible
        .map(|sequence| {
            Row::zero(by_name("pg_sequence"))
                .set("seqrelid", sequence.id.0)
                .set("seqtypid", sequence.ty.oid)
                .set("seqstart", sequence.start)
                .set("seqincrement", sequence.increment)
                .set("seqmax", sequence.max)
                .set("seqmin", sequence.min)
                .set("seqcache", sequence.cache)
                .set("seqcycle", sequence.cycle)
        })
        .collect()
}

/// `pg_sequences` but for the last value, which only the coordinator knows: no row says it wrongly, as NULL is what
/// PostgreSQL shows for a sequence that this session may not read.
fn sequence_view(sources: &Sources<'_>) -> Vec<Row> {
    let visible = sources.catalog.sequences().filter(|sequence| !sequence.hidden);
    visible
        .map(|sequence| {
            let ty = Typed::from_ref(sequence.ty).unwrap_or(Typed::plain(Type::Int8));
            Row::empty(by_name("pg_sequences"))
                .set("schemaname", "public")
                .set("sequencename", &sequence.name)
                .set("sequenceowner", &sources.facts.user)
                .set("data_type", format_type(ty))
                .set("start_value", sequence.start)
                .set("min_value", sequence.min)
                .set("max_value", sequence.max)
                .set("increment_by", sequence.increment)
                .set("cycle", sequence.cycle)
                .set("cache_size", sequence.cache)
        })
        .collect()
}

/// Sequences and the columns that own them: what psql and drivers read of it.
fn dependencies(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    let row = |object: u32, class: u32, referenced: u32, column: i64, kind: &str| {
        Row::zero(by_name("pg_depend"))
            .set("classid", oid::PG_CLASS)
            .set("objid", object)
            .set("refclassid", class)
            .set("refobjid", referenced)
            .set("refobjsubid", column)
            .set("deptype", kind)
    };
    for (id, _) in tables(sources) {
        rows.push(row(id.0, oid::PG_NAMESPACE, oid::PUBLIC, 0, "n"));
    }
    for sequence in sources.catalog.sequences().filter(|sequence| !sequence.hidden) {
        rows.push(row(sequence.id.0, oid::PG_NAMESPACE, oid::PUBLIC, 0, "n"));
        let Some((table, column)) = sequence.owner else { continue };
        let default =
            sources.catalog.table(table).and_then(|t| t.column(column)).and_then(|c| c.default.as_ref());
        let identity = matches!(
            default,
            Some(ColumnDefault::Sequence { id, identity_always: Some(_) }) if *id == sequence.id
        );
        rows.push(row(
            sequence.id.0,
            oid::PG_CLASS,
            table.0,
            attnum(column),
            if identity { "i" } else { "a" },
        ));
    }
    rows
}

fn keyspaces(sources: &Sources<'_>) -> Vec<Row> {
    let keyspaces = sources.topology.keyspaces.values();
    keyspaces
        .map(|keyspace| {
            Row::zero(by_name("shoal_keyspace"))
                .set("name", &keyspace.name)
                .set("sharding", keyspace.sharding.to_string())
                .set("shards", keyspace.shards.len())
                .set("replicas", keyspace.replicas)
        })
        .collect()
}

fn shards(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for keyspace in sources.topology.keyspaces.values() {
        for shard in &keyspace.shards {
            rows.push(
                Row::zero(by_name("shoal_shard"))
                    .set("name", sources.topology.shard_name(*shard))
                    .set("keyspace", &keyspace.name)
                    .set("shard", shard.0 as i64),
            );
        }
    }
    rows
}

fn transactions(sources: &Sources<'_>) -> Vec<Row> {
    let row = |fact: &TransactionFact| {
        let waits: Vec<_> = fact.waits_for.iter().map(|id| id.to_string()).collect();
        let row = Row::empty(by_name(TRANSACTIONS))
            .set("transaction", fact.transaction.to_string())
            .set("shard", sources.topology.shard_name(fact.shard))
            .set("state", fact.state);
        let row = match fact.idle_ms {
            Some(idle) => row.set("idle_ms", idle),
            None => row,
        };
        if waits.is_empty() { row } else { row.set("waits_for", waits.join(", ")) }
    };
    sources.facts.transactions.iter().map(row).collect()
}

fn replicas(sources: &Sources<'_>) -> Vec<Row> {
    let topology = sources.topology;
    let row = |fact: &ReplicaFact| {
        let zone = topology.nodes.get(&fact.node).map(|node| &node.zone).filter(|zone| !zone.is_empty());
        let shard = fact.shard.map_or_else(|| "coordinator".to_owned(), |shard| topology.shard_name(shard));
        // The coordinator's log has no name, for no session reads it.
        let position = fact.applied.map(|index| match fact.shard.and_then(|id| topology.gtid_source(id)) {
            Some(source) => format!("{source}:{index}"),
            None => index.to_string(),
        });
        Row::empty(by_name(REPLICAS))
            .set("shard", shard)
            .set("node", fact.node.0)
            .set("zone", zone)
            .set("role", fact.role)
            .set("term", fact.term)
            .set("position", position)
            .set("lag_entries", fact.lag_entries)
            .set("lag_ms", fact.lag_ms)
            .set("stopped", fact.stopped.as_ref())
            .set("reads", fact.reads)
            .set("latency_us", fact.latency_us)
            .set("avoided", fact.avoided)
    };
    sources.facts.replicas.iter().map(row).collect()
}

fn serving(sources: &Sources<'_>) -> Vec<Row> {
    let row = |fact: &ShardFact| {
        let shard = sources.topology.shards.get(&fact.shard)?;
        let keyspace = sources.topology.keyspaces.get(&shard.keyspace)?;
        let row = Row::empty(by_name(SHARDS))
            .set("shard", sources.topology.shard_name(shard.id))
            .set("incarnation", u64::from(shard.incarnation.0))
            .set("keyspace", &keyspace.name)
            .set("leader", fact.leader.map(|node| node.0))
            .set("bytes", fact.bytes)
            .set("rows", fact.rows)
            .set("rows_age_ms", fact.rows_age_ms)
            .set("writes_per_second", fact.writes_per_second)
            .set("reads_per_second", fact.reads_per_second);
        Some(row)
    };
    sources.facts.shards.iter().filter_map(row).collect()
}

fn reshards(sources: &Sources<'_>) -> Vec<Row> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let row = |reshard: &ReshardStatus| {
        let message = Some(&reshard.message).filter(|message| !message.is_empty());
        Row::empty(by_name(RESHARDS))
            .set("id", reshard.id.0)
            .set("what", &reshard.what)
            .set("keyspace", &reshard.keyspace)
            .set("phase", reshard.phase.name())
            .set("attempt", reshard.attempt.0)
            .set("old", reshard.old.join(", "))
            .set("new", reshard.new.join(", "))
            .set("bytes_done", reshard.bytes.map(|bytes| bytes.done))
            .set("bytes_total", reshard.bytes.map(|bytes| bytes.total))
            .set("lag_ms", reshard.lag.map(millis))
            .set("paused", reshard.paused.as_ref())
            .set("since_ms", millis(reshard.since))
            .set("message", message)
    };
    sources.facts.reshards.iter().map(row).collect()
}
