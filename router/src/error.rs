//! Errors as clients see them: ids become names, and the place in COPY's input is told.
//!
//! In comes a [`WireError`] that a shard, the planner or the router itself made; out goes a [`Report`] with what
//! ErrorResponse has fields for. Nothing here decides whether to ask again.

use proto::catalog::Catalog;
use proto::error::Violation;
use proto::{SqlState, WireError};

/// An error with everything that the client is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The error.
    pub error: WireError,
    /// What was being done.
    pub context: Option<String>,
    /// The table that the error is about.
    pub table: Option<String>,
    /// The column.
    pub column: Option<String>,
    /// The constraint.
    pub constraint: Option<String>,
}

impl From<WireError> for Box<Report> {
    fn from(error: WireError) -> Self {
        Box::new(error.into())
    }
}

impl From<WireError> for Report {
    fn from(error: WireError) -> Self {
        Self { error, context: None, table: None, column: None, constraint: None }
    }
}

impl Report {
    /// The same error with the names that its ids have, in PostgreSQL's wording.
    pub fn named(error: WireError, catalog: &Catalog) -> Box<Self> {
        let Some(violation) = error.violation.clone() else { return error.into() };
        let mut report: Box<Report> = error.into();
        let (Violation::NotNull(table, _) | Violation::Unique(table, _) | Violation::Check(table, _)) =
            violation;
        let Some(table) = catalog.table(table) else { return report };
        let (sqlstate, message) = match violation {
            Violation::NotNull(_, column) => {
                let Some(column) = table.column(column) else { return report };
                report.column = Some(column.name.clone());
                let message = format!(
                    "null value in column \"{}\" of relation \"{}\" violates not-null constraint",
                    column.name, table.name
                );
                (SqlState::NOT_NULL_VIOLATION, message)
            }
            Violation::Unique(_, index) => {
                let name = match index {
                    None => table.primary_key_name.clone(),
                    Some(index) => table.indexes.iter().find(|i| i.id == index).map(|i| i.name.clone()),
                };
                let Some(name) = name else { return report };
                let message = format!("duplicate key value violates unique constraint \"{name}\"");
                report.constraint = Some(name);
                (SqlState::UNIQUE_VIOLATION, message)
            }
            Violation::Check(_, place) => {
                let Some(check) = table.checks.get(place as usize) else { return report };
                let message = format!(
                    "new row for relation \"{}\" violates check constraint \"{}\"",
                    table.name, check.name
                );
                report.constraint = Some(check.name.clone());
                (SqlState::CHECK_VIOLATION, message)
            }
        };
        report.table = Some(table.name.clone());
        report.error.sqlstate = sqlstate;
        report.error.message = message;
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::catalog::{Check, Column, Placement, Table, TypeRef};
    use proto::{ColumnId, IndexId, KeyspaceNumber, SchemaVersion, TableId};
    use std::sync::Arc;

    fn catalog() -> Catalog {
        let column = Column {
            id: ColumnId(1),
            name: "a".into(),
            ty: TypeRef { oid: 23, modifier: -1 },
            not_null: true,
            default: None,
        };
        let check = Check { name: "t_a_check".into(), expression: String::new(), physical: String::new() };
        let table = Table {
            id: TableId(5),
            name: "t".into(),
            columns: vec![column],
            primary_key: vec![ColumnId(1)],
            primary_key_name: Some("t_pkey".into()),
            indexes: vec![],
            checks: vec![check],
            placement: Placement::Single { keyspace: KeyspaceNumber(1) },
            next_column: ColumnId(2),
            modified: SchemaVersion(1),
        };
        Catalog::new(SchemaVersion(1), [Arc::new(table)], [])
    }

    fn named(violation: Violation) -> Box<Report> {
        Report::named(WireError::internal("raw").with_violation(violation), &catalog())
    }

    #[test]
    fn violations_get_postgresqls_words() {
        let report = named(Violation::Unique(TableId(5), None));
        assert_eq!(report.error.message, "duplicate key value violates unique constraint \"t_pkey\"");
        assert_eq!(report.error.sqlstate.as_str(), "23505");
        assert_eq!(report.constraint.as_deref(), Some("t_pkey"));
        let report = named(Violation::NotNull(TableId(5), ColumnId(1)));
        let expected = "null value in column \"a\" of relation \"t\" violates not-null constraint";
        assert_eq!((report.error.message.as_str(), report.column.as_deref()), (expected, Some("a")));
        let report = named(Violation::Check(TableId(5), 0));
        assert_eq!(
            report.error.message,
            "new row for relation \"t\" violates check constraint \"t_a_check\""
        );
    }

    #[test]
    fn an_id_without_a_name_keeps_its_message() {
        assert_eq!(named(Violation::Unique(TableId(5), Some(IndexId(9)))).error.message, "raw");
        assert_eq!(named(Violation::Check(TableId(6), 0)).error.message, "raw");
    }
}
