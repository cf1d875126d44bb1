//! What the client is told of a row that breaks a constraint, beside which constraint that is: DETAIL, in PostgreSQL's words.
//!
//! In comes an error that names a constraint by its ids, and the row that was to be added; out goes the error with that row's
//! values in it (`BuildIndexValueDescription` and `ExecBuildSlotValueDescription` of PostgreSQL). A shard doesn't say which
//! of several rows it was, so only who knows asks here. Nothing here knows where the row was sent.

use super::statement::Statement;
use dialect::io::{self, OutputSettings};
use dialect::types::Typed;
use planner::text::quoted;
use proto::catalog::{Catalog, Table};
use proto::error::Violation;
use proto::{ColumnId, ValueRef, WireError};

/// A value that is longer is cut off in the description of a whole row.
const LONGEST_VALUE: usize = 64;

/// The error of adding this row, which has a value for each of the table's columns.
pub(super) fn described<'r>(
    error: WireError,
    run: &Statement<'_>,
    row: impl Iterator<Item = ValueRef<'r>>,
) -> WireError {
    let Some(violation) = &error.violation else { return error };
    let settings = OutputSettings { zone: run.facts.zone.clone() };
    match detail(violation, &run.state.catalog, &settings, &row.collect::<Vec<_>>()) {
        Some(detail) if error.detail.is_none() => error.with_detail(detail),
        _ => error,
    }
}

fn detail(
    violation: &Violation,
    catalog: &Catalog,
    settings: &OutputSettings,
    row: &[ValueRef<'_>],
) -> Option<String> {
    let (Violation::NotNull(id, _) | Violation::Unique(id, _) | Violation::Check(id, _)) = violation;
    let table = catalog.table(*id).filter(|table| table.columns.len() == row.len())?;
    let Violation::Unique(_, index) = violation else {
        let shown = (0..row.len()).filter(|place| table.columns[*place].id != ColumnId::HIDDEN_KEY);
        let values = shown.map(|place| shown_value(table, settings, row, place).map(cut));
        return Some(format!("Failing row contains ({}).", values.collect::<Option<Vec<_>>>()?.join(", ")));
    };
    let key: Vec<ColumnId> = match index {
        None => table.primary_key.clone(),
        Some(index) => {
            let index = table.indexes.iter().find(|known| known.id == *index)?;
            index.columns.iter().map(|column| column.column).collect()
        }
    };
    let (mut names, mut values) = (Vec::with_capacity(key.len()), Vec::with_capacity(key.len()));
    for id in key {
        let place = table.columns.iter().position(|column| column.id == id)?;
        names.push(quoted(&table.columns[place].name));
        values.push(shown_value(table, settings, row, place)?);
    }
    Some(format!("Key ({})=({}) already exists.", names.join(", "), values.join(", ")))
}

fn shown_value(
    table: &Table,
    settings: &OutputSettings,
    row: &[ValueRef<'_>],
    place: usize,
) -> Option<String> {
    let value = row[place];
    if value.is_null() {
        return Some("null".to_owned());
    }
    let mut text = Vec::new();
    io::output_text(Typed::from_ref(table.columns[place].ty)?, value, settings, &mut text).ok()?;
    String::from_utf8(text).ok()
}

fn cut(mut value: String) -> String {
    if value.len() > LONGEST_VALUE {
        value.truncate(value.floor_char_boundary(LONGEST_VALUE));
        value.push_str("...");
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use dialect::Type;
    use dialect::datetime::TimeZone;
    use proto::catalog::{Column, Index, IndexColumn, Placement, TypeRef};
    use proto::{IndexId, KeyspaceNumber, SchemaVersion, TableId, Value};
    use std::sync::Arc;

    /// PostgreSQL 15's words for the same rows.
    #[test]
    fn a_row_is_described_as_by_postgresql() {
        let types = [Type::Int4, Type::Varchar, Type::Timestamptz, Type::Bool, Type::Bytea, Type::Int8];
        let names = ["a", "v", "ts", "C d", "order", "hidden"];
        let column = |place: usize| Column {
            id: if place == 5 { ColumnId::HIDDEN_KEY } else { ColumnId(place as u32 + 1) },
            name: names[place].into(),
            ty: TypeRef { oid: types[place].oid(), modifier: -1 },
            not_null: place == 0,
            default: None,
        };
        let index = |id: u32, columns: &[u32]| Index {
            id: IndexId(id),
            name: format!("i{id}"),
            columns: columns
                .iter()
                .map(|id| IndexColumn { column: ColumnId(*id), descending: false, nulls_first: false })
                .collect(),
            unique: true,
            constraint: true,
        };
        let id = TableId(5);
        let table = Table {
            id,
            name: "u".into(),
            columns: (0..6).map(column).collect(),
            primary_key: vec![ColumnId(1)],
            primary_key_name: Some("u_pkey".into()),
            indexes: vec![index(7, &[2]), index(8, &[5, 4]), index(9, &[3])],
            checks: vec![],
            placement: Placement::Single { keyspace: KeyspaceNumber(1) },
            next_column: ColumnId(6),
            modified: SchemaVersion(1),
        };
        let catalog = Catalog::new(SchemaVersion(1), [Arc::new(table)], []);
        let settings = OutputSettings { zone: TimeZone::utc() };
        let told = |violation: Violation, row: [Option<&str>; 5]| {
            let value = |(ty, text): (&Type, Option<&str>)| match text {
                Some(text) => io::input(Typed::plain(*ty), text, &settings.zone).unwrap(),
                None => Value::Null,
            };
            let mut row: Vec<Value> = types.iter().zip(row).map(value).collect();
            row.push(Value::Int(1 << 40));
            let row: Vec<ValueRef<'_>> = row.iter().map(Value::as_ref).collect();
            detail(&violation, &catalog, &settings, &row)
        };
        let (long, longer, umlauts) = ("z".repeat(64), "z".repeat(65), "ä".repeat(60));
        let time = Some("2020-01-02 03:04:05+02");
        for (violation, row, expected) in [
            (
                Violation::NotNull(id, ColumnId(1)),
                [None, Some(umlauts.as_str()), time, Some("true"), Some("\\x00ff")],
                format!(
                    "Failing row contains (null, {}..., 2020-01-02 01:04:05+00, t, \\x00ff).",
                    "ä".repeat(32)
                ),
            ),
            (
                Violation::Unique(id, Some(IndexId(7))),
                [Some("1"), Some(longer.as_str()), None, None, None],
                format!("Key (v)=({longer}) already exists."),
            ),
            (
                Violation::Unique(id, Some(IndexId(8))),
                [Some("1"), Some("q"), None, Some("true"), Some("\\x00ff")],
                "Key (\"order\", \"C d\")=(\\x00ff, t) already exists.".to_owned(),
            ),
            (
                Violation::Unique(id, Some(IndexId(9))),
                [Some("1"), Some("q"), time, None, Some("\\x00ff")],
                "Key (ts)=(2020-01-02 01:04:05+00) already exists.".to_owned(),
            ),
            (
                Violation::Unique(id, None),
                [Some("1"), None, None, None, None],
                "Key (a)=(1) already exists.".to_owned(),
            ),
            (
                Violation::Check(id, 0),
                [Some("0"), Some(long.as_str()), None, Some("f"), None],
                format!("Failing row contains (0, {long}, null, f, null)."),
            ),
            (
                Violation::NotNull(id, ColumnId(1)),
                [None, Some(""), None, Some("false"), None],
                "Failing row contains (null, , null, f, null).".to_owned(),
            ),
        ] {
            assert_eq!(told(violation, row).as_deref(), Some(expected.as_str()));
        }
        let unknown = Violation::Unique(id, Some(IndexId(1)));
        assert_eq!(told(unknown, [None; 5]), None);
        assert_eq!(told(Violation::Check(TableId(6), 0), [None; 5]), None);
    }
}
