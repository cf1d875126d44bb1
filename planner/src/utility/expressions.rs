//! The expressions of DEFAULT and CHECK: checked once here, kept in the catalog as text.

use super::command::ColumnDefinition;
use crate::Context;
use crate::plan::Scalar;
use crate::text::{Text, rename_identifier};
use dialect::types::Typed;
use proto::catalog::{ColumnDefault, Relation, Table};
use proto::{ColumnId, WireError};
use sqlparser::ast::{
    CastKind, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectNamePart, Value,
};

/// What a command's expressions are bound with.
#[derive(Clone, Copy)]
pub(super) struct Expressions<'a> {
    pub text: &'a Text,
    pub context: &'a Context<'a>,
}

/// A CHECK's condition.
pub(super) struct Condition {
    /// As PostgreSQL would print it.
    pub expression: String,
    /// As SQLite runs it.
    pub physical: String,
    /// The columns that it names, each once.
    pub columns: Vec<String>,
}

impl Expressions<'_> {
    /// A column's default. `None` for NULL, which is what a column without one gets.
    pub fn default(&self, expr: &Expr, column: &str, ty: Typed) -> Result<Option<ColumnDefault>, WireError> {
        if let Some(sequence) = self.next_value(expr) {
            return Ok(Some(ColumnDefault::Sequence { id: sequence, identity_always: None }));
        }
        let _ = (self.text, column, ty);
        match expr {
            Expr::Value(value) => match &value.value {
                Value::Null => Ok(None),
                _ => Ok(Some(ColumnDefault::Expression(expr.to_string()))),
            },
            _ => Err(WireError::unsupported("this DEFAULT")),
        }
    }

    /// A CHECK's condition over a table's columns.
    pub fn check(&self, expr: &Expr, table: &Table) -> Result<Condition, WireError> {
        let _ = (expr, table);
        Err(WireError::unsupported("CHECK"))
    }

    /// What existing rows get in a new column with a default.
    pub fn fill(&self, definition: &ColumnDefinition, ty: Typed) -> Result<Scalar, WireError> {
        let _ = (definition, ty);
        Err(WireError::unsupported("ADD COLUMN with a default"))
    }

    /// `nextval('a sequence')` is the sequence itself: it counts under any name.
    fn next_value(&self, expr: &Expr) -> Option<proto::SequenceId> {
        let Expr::Function(function) = expr else { return None };
        let [ObjectNamePart::Identifier(name)] = function.name.0.as_slice() else { return None };
        let FunctionArguments::List(list) = &function.args else { return None };
        let [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] = list.args.as_slice() else {
            return None;
        };
        let argument = match argument {
            Expr::Cast {
                kind: CastKind::DoubleColon,
                expr,
                data_type: DataType::Regclass,
                format: None,
                ..
            } => expr,
            other => other,
        };
        let Expr::Value(value) = argument else { return None };
        let Value::SingleQuotedString(sequence) = &value.value else { return None };
        if name.value != "nextval" {
            return None;
        }
        let sequence = sequence.strip_prefix("public.").unwrap_or(sequence).trim_matches('"');
        match self.context.catalog.resolve(sequence)? {
            Relation::Sequence(id) => Some(id),
            Relation::Table(_) | Relation::Index(..) => None,
        }
    }
}

/// Whether a CHECK as SQLite runs it names a column.
pub(crate) fn names_column(physical: &str, column: ColumnId) -> bool {
    let name = format!("c{column}");
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    physical
        .match_indices(&name)
        .any(|(at, _)| !physical[..at].ends_with(part) && !physical[at + name.len()..].starts_with(part))
}

/// A CHECK's text with a column under its new name.
pub(super) fn rename(expression: &str, from: &str, to: &str) -> Result<String, WireError> {
    rename_identifier(expression, from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_columns_name_is_found_whole() {
        assert!(names_column("(c1 > 0)", ColumnId(1)));
        assert!(!names_column("(c12 > 0) AND xc1 = 5", ColumnId(1)));
        assert!(names_column("abs(c12) > c1", ColumnId(1)));
    }

    #[test]
    fn renaming_leaves_functions_and_strings() {
        let renamed = rename("((a > 0) AND (lower('a') = a(b)) AND (\"a\" < 5))", "a", "New").unwrap();
        assert_eq!(renamed, "((\"New\" > 0) AND (lower('a') = a(b)) AND (\"New\" < 5))");
        assert_eq!(rename("a > 0", "a", "b").unwrap(), "b > 0");
    }
}
