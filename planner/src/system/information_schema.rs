//! The rows of `information_schema`.

use super::{Row, Sources, attnum, definitions, format_type, relation, tables, typed};
use dialect::Type;
use dialect::types::Typed;
use proto::catalog::{Column, ColumnDefault};
use proto::{ColumnId, Value};

/// The rows of a relation.
pub(super) fn rows(name: &str, sources: &Sources<'_>) -> Vec<Vec<Value>> {
    let rows = match name {
        "tables" => table_rows(sources),
        "columns" => column_rows(sources),
        "schemata" => schema_rows(sources),
        "table_constraints" => constraint_rows(sources),
        "key_column_usage" => key_rows(sources),
        "sequences" => sequence_rows(sources),
        _ => Vec::new(),
    };
    rows.into_iter().map(|row| row.values).collect()
}

fn row(name: &str) -> Row {
    Row::empty(relation(Some("information_schema"), name).expect("a relation of this module's table"))
}

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "YES" } else { "NO" }
}

fn table_rows(sources: &Sources<'_>) -> Vec<Row> {
    let database = &sources.facts.database;
    let mut rows: Vec<_> = tables(sources)
        .map(|(_, table)| {
            row("tables")
                .set("table_catalog", database)
                .set("table_schema", "public")
                .set("table_name", &table.name)
                .set("table_type", "BASE TABLE")
                .set("is_insertable_into", "YES")
                .set("is_typed", "NO")
        })
        .collect();
    for relation in super::relations() {
        rows.push(
            row("tables")
                .set("table_catalog", database)
                .set("table_schema", relation.schema)
                .set("table_name", relation.name)
                .set("table_type", if relation.view { "VIEW" } else { "BASE TABLE" })
                .set("is_insertable_into", "NO")
                .set("is_typed", "NO"),
        );
    }
    rows
}

/// What a type says of its values: characters, or digits in a base, or digits of a second.
fn measure(row: Row, ty: Typed) -> Row {
    let digits = |row: Row, precision: i64, radix: i64, scale: Option<i64>| {
        row.set("numeric_precision", precision)
            .set("numeric_precision_radix", radix)
            .set("numeric_scale", scale)
    };
    let modifier = i64::from(ty.modifier);
    match ty.ty {
        Type::Int2 => digits(row, 16, 2, Some(0)),
        Type::Int4 => digits(row, 32, 2, Some(0)),
        Type::Int8 => digits(row, 64, 2, Some(0)),
        Type::Float4 => digits(row, 24, 2, None),
        Type::Float8 => digits(row, 53, 2, None),
        Type::Numeric if modifier >= 4 => {
            let scale = ((modifier - 4) & 0x7ff ^ 1024) - 1024;
            digits(row, (modifier - 4) >> 16, 10, Some(scale))
        }
        Type::Numeric => row.set("numeric_precision_radix", 10i64),
        Type::Varchar | Type::Bpchar if modifier >= 4 => row
            .set("character_maximum_length", modifier - 4)
            .set("character_octet_length", (modifier - 4) * 4),
        Type::Text | Type::Varchar => row.set("character_octet_length", 1i64 << 30),
        Type::Date => row.set("datetime_precision", 0i64),
        Type::Timestamp | Type::Timestamptz => {
            row.set("datetime_precision", if modifier >= 0 { modifier } else { 6 })
        }
        _ => row,
    }
}

fn column_row(sources: &Sources<'_>, table: &str, column: &Column) -> Row {
    let ty = typed(column);
    let database = &sources.facts.database;
    let mut made = row("columns")
        .set("table_catalog", database)
        .set("table_schema", "public")
        .set("table_name", table)
        .set("column_name", &column.name)
        .set("ordinal_position", attnum(column.id))
        .set("column_default", definitions::default(sources.catalog, column))
        .set("is_nullable", yes_or_no(!column.not_null))
        .set(
            "data_type",
            if ty.ty == Type::Bpchar { "character".to_owned() } else { format_type(Typed::plain(ty.ty)) },
        )
        .set("udt_catalog", database)
        .set("udt_schema", "pg_catalog")
        .set("udt_name", internal_name(ty.ty))
        .set("dtd_identifier", attnum(column.id).to_string())
        .set("is_self_referencing", "NO")
        .set("is_identity", "NO")
        .set("identity_cycle", "NO")
        .set("is_generated", "NEVER")
        .set("is_updatable", "YES");
    made = measure(made, ty);
    if let Some(ColumnDefault::Sequence { id, identity_always: Some(always) }) = &column.default {
        made = made
            .set("is_identity", "YES")
            .set("identity_generation", if *always { "ALWAYS" } else { "BY DEFAULT" });
        if let Some(sequence) = sources.catalog.sequence(*id) {
            made = made
                .set("identity_start", sequence.start.to_string())
                .set("identity_increment", sequence.increment.to_string())
                .set("identity_maximum", sequence.max.to_string())
                .set("identity_minimum", sequence.min.to_string())
                .set("identity_cycle", yes_or_no(sequence.cycle));
        }
    }
    made
}

/// `pg_type.typname`.
fn internal_name(ty: Type) -> &'static str {
    match ty {
        Type::Bool => "bool",
        Type::Int2 => "int2",
        Type::Int4 => "int4",
        Type::Int8 => "int8",
        Type::Float4 => "float4",
        Type::Float8 => "float8",
        Type::Numeric => "numeric",
        Type::Varchar => "varchar",
        Type::Bpchar => "bpchar",
        Type::Char => "char",
        Type::Name => "name",
        Type::Bytea => "bytea",
        Type::Date => "date",
        Type::Timestamp => "timestamp",
        Type::Timestamptz => "timestamptz",
        Type::Uuid => "uuid",
        Type::Oid => "oid",
        Type::Regclass => "regclass",
        Type::Text | Type::Array(_) | Type::Unknown => "text",
    }
}

fn column_rows(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (_, table) in tables(sources) {
        rows.extend(table.visible_columns().map(|column| column_row(sources, &table.name, column)));
    }
    rows
}

fn schema_rows(sources: &Sources<'_>) -> Vec<Row> {
    ["pg_catalog", "public", "information_schema"]
        .into_iter()
        .map(|schema| {
            row("schemata")
                .set("catalog_name", &sources.facts.database)
                .set("schema_name", schema)
                .set("schema_owner", &sources.facts.user)
        })
        .collect()
}

fn constraint_rows(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (id, table) in tables(sources) {
        let constraint = |name: &str, kind: &str| {
            row("table_constraints")
                .set("constraint_catalog", &sources.facts.database)
                .set("constraint_schema", "public")
                .set("constraint_name", name)
                .set("table_catalog", &sources.facts.database)
                .set("table_schema", "public")
                .set("table_name", &table.name)
                .set("constraint_type", kind)
                .set("is_deferrable", "NO")
                .set("initially_deferred", "NO")
                .set("enforced", "YES")
                .set("nulls_distinct", (kind == "UNIQUE").then_some("YES"))
        };
        rows.extend(table.primary_key_name.iter().map(|name| constraint(name, "PRIMARY KEY")));
        let unique = table.indexes.iter().filter(|index| index.constraint);
        rows.extend(unique.map(|index| constraint(&index.name, "UNIQUE")));
        rows.extend(table.checks.iter().map(|check| constraint(&check.name, "CHECK")));
        for column in table.visible_columns().filter(|column| column.not_null) {
            let name = format!("{}_{id}_{}_not_null", super::oid::PUBLIC, attnum(column.id));
            rows.push(constraint(&name, "CHECK"));
        }
    }
    rows
}

fn key_rows(sources: &Sources<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (_, table) in tables(sources) {
        let mut add = |name: &str, columns: &mut dyn Iterator<Item = ColumnId>| {
            for (i, column) in columns.enumerate() {
                let column = table.column(column).map_or("", |column| &column.name);
                rows.push(
                    row("key_column_usage")
                        .set("constraint_catalog", &sources.facts.database)
                        .set("constraint_schema", "public")
                        .set("constraint_name", name)
                        .set("table_catalog", &sources.facts.database)
                        .set("table_schema", "public")
                        .set("table_name", &table.name)
                        .set("column_name", column)
                        .set("ordinal_position", i + 1),
                );
            }
        };
        if let Some(name) = &table.primary_key_name {
            add(name, &mut table.primary_key.iter().copied());
        }
        for index in table.indexes.iter().filter(|index| index.constraint) {
            add(&index.name, &mut index.columns.iter().map(|column| column.column));
        }
    }
    rows
}

fn sequence_rows(sources: &Sources<'_>) -> Vec<Row> {
    // Those of identity columns are part of the column.
    let identity = |id| {
        sources.catalog.tables().flat_map(|table| &table.columns).any(|column| {
            matches!(
                &column.default,
                Some(ColumnDefault::Sequence { id: used, identity_always: Some(_) }) if *used == id
            )
        })
    };
    let shown = sources.catalog.sequences().filter(|sequence| !sequence.hidden && !identity(sequence.id));
    shown
        .map(|sequence| {
            let ty = Typed::from_ref(sequence.ty).unwrap_or(Typed::plain(Type::Int8));
            let bits = match ty.ty {
                Type::Int2 => 16i64,
                Type::Int4 => 32,
                _ => 64,
            };
            row("sequences")
                .set("sequence_catalog", &sources.facts.database)
                .set("sequence_schema", "public")
                .set("sequence_name", &sequence.name)
                .set("data_type", format_type(ty))
                .set("numeric_precision", bits)
                .set("numeric_precision_radix", 2i64)
                .set("numeric_scale", 0i64)
                .set("start_value", sequence.start.to_string())
                .set("minimum_value", sequence.min.to_string())
                .set("maximum_value", sequence.max.to_string())
                .set("increment", sequence.increment.to_string())
                .set("cycle_option", yes_or_no(sequence.cycle))
        })
        .collect()
}
