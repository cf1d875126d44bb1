//! The expressions of DEFAULT and CHECK: bound once here to find what is wrong with them, kept in the catalog as
//! text, and bound again where they are needed.

use super::command::{ColumnConstraintKind, ColumnDefinition};
use super::names::at;
use crate::Context;
use crate::bind::Binder;
use crate::bind::scope::{Clause, Names, Scope};
use crate::bind::tree::{Expr as Bound, ExprKind};
use crate::emit::scalars::Scalars;
use crate::emit::{Naming, Relations, Writer};
use crate::plan::ScalarId;
use crate::planning::is_volatile;
use crate::text::{Text, rename_identifier};
use dialect::Type;
use dialect::datetime::TimeZone;
use dialect::types::Typed;
use proto::catalog::{ColumnDefault, Relation, Table};
use proto::{ColumnId, SequenceId, SqlState, WireError};
use sqlparser::ast::{
    self, CastKind, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectNamePart,
    UnaryOperator, Value, ValueWithSpan,
};
use std::sync::Arc;

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
            if !matches!(ty.ty, Type::Int2 | Type::Int4 | Type::Int8) {
                return Err(WireError::unsupported("a default of nextval() for a column of this type")
                    .with_hint("Declare the column bigint."));
            }
            return Ok(Some(ColumnDefault::Sequence { id: sequence, identity_always: None }));
        }
        if let Expr::Value(ValueWithSpan { value: Value::Null, span: _ }) = expr {
            return Ok(None);
        }
        // Once as it is written, for an error's position, and once as it is kept.
        let names = Names::default();
        let scope = Scope { names: &names, outer: None, ctes: None, clause: Clause::Default };
        let mut binder = Binder::new(self.text, &[], self.context);
        let bound = binder.expr(expr, &scope).and_then(|bound| binder.assign(bound, column, ty));
        bound.map_err(default_error)?;
        no_parameters(&binder)?;
        let stored = printed(expr, ty);
        let mut binder = Binder::new(self.text, &[], self.context);
        let bound = binder.bind_default(&stored, column, ty)?;
        check_zones(&bound, &binder)?;
        Scalars::default().of(&bound, &binder).map_err(|error| match expr {
            Expr::Value(ValueWithSpan { value: _, span }) => at(error, self.text.position(*span)),
            _ => error,
        })?;
        Ok(Some(ColumnDefault::Expression(stored)))
    }

    /// A CHECK's condition over a table's columns.
    pub fn check(&self, expr: &Expr, table: &Table) -> Result<Condition, WireError> {
        let mut binder = Binder::new(self.text, &[], self.context);
        bind_check(&mut binder, expr, table)?;
        no_parameters(&binder)?;
        let stored = expr.to_string();
        let mut binder = Binder::new(self.text, &[], self.context);
        let (bound, relation) =
            binder.with_stored(&stored, |binder, expr| bind_check(binder, expr, table))?;
        check_zones(&bound, &binder)?;
        if is_volatile(&bound) {
            return Err(WireError::unsupported("a volatile function in a CHECK constraint"));
        }
        let mut columns: Vec<String> = Vec::new();
        bound.each_deep(&mut |part| {
            if let ExprKind::Column(_, place) = part.kind {
                let name = &table.columns[place as usize].name;
                if !columns.contains(name) {
                    columns.push(name.clone());
                }
            }
        });
        let mut scalars = Scalars::default();
        let relations = Relations::from([(relation, Naming::Target(Arc::new(table.clone())))]);
        let mut writer = Writer::new(&binder, &mut scalars, &relations);
        writer.inline = true;
        let physical = writer.expr(&bound)?;
        Ok(Condition { expression: stored, physical, columns })
    }

    /// What existing rows get in a new column with a default.
    pub fn fill(
        &self,
        definition: &ColumnDefinition,
        ty: Typed,
        scalars: &mut Scalars,
    ) -> Result<Option<ScalarId>, WireError> {
        for constraint in &definition.constraints {
            let ColumnConstraintKind::Default(expr) = &constraint.kind else { continue };
            let mut binder = Binder::new(self.text, &[], self.context);
            let bound = binder.bind_default(&printed(expr, ty), &definition.name.value, ty)?;
            if is_volatile(&bound) {
                return Err(WireError::unsupported("ADD COLUMN with a volatile default")
                    .with_hint("ADD COLUMN without a default, UPDATE the rows, then SET DEFAULT."));
            }
            return scalars.of(&bound, &binder).map(Some);
        }
        Ok(None)
    }

    /// The arguments of EXECUTE, with their types: Unknown for a string or NULL that is still to be read.
    pub fn arguments<'e>(
        &self,
        arguments: impl Iterator<Item = &'e Expr>,
        scalars: &mut Scalars,
    ) -> Result<Vec<(ScalarId, Type)>, WireError> {
        let names = Names::default();
        let scope = Scope { names: &names, outer: None, ctes: None, clause: Clause::Values };
        let mut binder = Binder::new(self.text, &[], self.context);
        let mut bound = Vec::new();
        for argument in arguments {
            let argument = binder.expr(argument, &scope)?;
            if !argument.is_constant() {
                return Err(WireError::new(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "cannot use subquery in EXECUTE parameter",
                ));
            }
            bound.push(argument);
        }
        no_parameters(&binder)?;
        bound.iter().map(|argument| Ok((scalars.of(argument, &binder)?, argument.ty.ty))).collect()
    }

    /// `nextval('a sequence')` is the sequence itself: it counts under any name.
    fn next_value(&self, expr: &Expr) -> Option<SequenceId> {
        let Expr::Function(ast::Function {
            name,
            uses_odbc_syntax: false,
            parameters: FunctionArguments::None,
            args: FunctionArguments::List(list),
            filter: None,
            null_treatment: None,
            over: None,
            within_group,
        }) = expr
        else {
            return None;
        };
        let name = match name.0.as_slice() {
            [ObjectNamePart::Identifier(name)] => name,
            [ObjectNamePart::Identifier(schema), ObjectNamePart::Identifier(name)]
                if schema.value == "pg_catalog" =>
            {
                name
            }
            _ => return None,
        };
        let ast::FunctionArgumentList { duplicate_treatment: None, args, clauses } = list else {
            return None;
        };
        let [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] = args.as_slice() else { return None };
        if name.value != "nextval" || !within_group.is_empty() || !clauses.is_empty() {
            return None;
        }
        let argument = match argument {
            Expr::Cast {
                kind: CastKind::DoubleColon | CastKind::Cast,
                expr,
                data_type: DataType::Regclass,
                format: None,
            } => expr,
            other => other,
        };
        let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(sequence), span: _ }) = argument
        else {
            return None;
        };
        let name = sequence_name(sequence)?;
        match self.context.catalog.resolve(&name)? {
            Relation::Sequence(id) => Some(id),
            Relation::Table(_) | Relation::Index(..) => None,
        }
    }
}

/// The name in `nextval('..')`: folded unless quoted, in `public` if it says where.
fn sequence_name(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("public.").unwrap_or(text);
    match text.strip_prefix('"') {
        Some(rest) => Some(rest.strip_suffix('"')?.replace("\"\"", "\"")),
        None => Some(text.to_ascii_lowercase()),
    }
}

fn default_error(error: WireError) -> WireError {
    if error.sqlstate == SqlState::DATATYPE_MISMATCH {
        let message = error.message.replace("but expression is", "but default expression is");
        return WireError { message, ..error };
    }
    if error.sqlstate != SqlState::UNDEFINED_COLUMN {
        return error;
    }
    let message = "cannot use column reference in DEFAULT expression";
    WireError { position: error.position, ..WireError::new(SqlState::FEATURE_NOT_SUPPORTED, message) }
}

fn no_parameters(binder: &Binder<'_>) -> Result<(), WireError> {
    if binder.parameters.is_empty() {
        return Ok(());
    }
    Err(WireError::new(SqlState::UNDEFINED_PARAMETER, "there is no parameter $1"))
}

fn bind_check<'a>(
    binder: &mut Binder<'a>,
    expr: &Expr,
    table: &'a Table,
) -> Result<(Bound, crate::bind::tree::RelId), WireError> {
    let relation = binder.new_relation();
    let (columns, _) = binder.table_columns(relation, table)?;
    let names =
        Names { tables: vec![(table.name.as_str().into(), columns.clone())], columns, hidden: Vec::new() };
    let scope = Scope { names: &names, outer: None, ctes: None, clause: Clause::Check };
    let bound = binder.predicate(expr, "CHECK", &scope)?;
    Ok((bound, relation))
}

/// A stored literal must mean the same in every session, so a point in time needs its zone.
fn check_zones(bound: &Bound, binder: &Binder<'_>) -> Result<(), WireError> {
    let Ok(other) = TimeZone::parse("Asia/Tokyo") else { return Ok(()) };
    let mut depends = false;
    bound.each_deep(&mut |part| {
        if let (ExprKind::Literal(literal), Type::Timestamptz) = (&part.kind, part.ty.ty) {
            let text = binder.literal_text(literal.slot);
            let read = |zone: &TimeZone| dialect::io::input(part.ty, &text, zone).ok();
            depends |= read(&TimeZone::utc()) != read(&other);
        }
    });
    if depends {
        return Err(WireError::unsupported("a time without its zone in a stored expression")
            .with_hint("Write the zone, for example '2020-01-01 00:00:00+00'."));
    }
    Ok(())
}

/// A default's text, as PostgreSQL would print it where that differs from what was written: constants carry the
/// type that the column gave them.
fn printed(expr: &Expr, ty: Typed) -> String {
    let plain = expr.to_string();
    match expr {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(_), span: _ }) => match ty.ty {
            Type::Text => format!("{plain}::text"),
            Type::Varchar => format!("{plain}::character varying"),
            Type::Bpchar => format!("{plain}::bpchar"),
            _ => plain,
        },
        // CURRENT_DATE and its kin are words of the grammar.
        Expr::Function(function) if function.args == FunctionArguments::None => plain.to_uppercase(),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match &**expr {
            Expr::Value(ValueWithSpan { value: Value::Number(digits, _), span: _ }) => {
                let ty = match digits.parse::<i64>() {
                    Ok(value) if i32::try_from(value).is_ok() => "integer",
                    Ok(_) => "bigint",
                    Err(_) => "numeric",
                };
                format!("'-{digits}'::{ty}")
            }
            _ => plain,
        },
        _ => plain,
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
