//! `pg_get_indexdef` and `pg_get_constraintdef`: lookups in `pg_catalog.shoal_definition`.
//!
//! In comes such a call's arguments, out goes the scalar subquery that answers it, still as syntax. The relation's
//! columns have names of their own, so that a name in an argument can't mean one of them.

use crate::text::{Parsed, split};
use proto::WireError;
use sqlparser::ast::{self, BinaryOperator, Expr, Ident, Value, ValueWithSpan};

/// The subquery for a call; `None` if it isn't one of these functions with these arguments.
pub(super) fn lookup(name: &str, args: &[&Expr]) -> Result<Option<Expr>, WireError> {
    let (oid, number, pretty) = match (name, args) {
        ("pg_get_constraintdef" | "pg_get_indexdef", [oid]) => (oid, None, None),
        ("pg_get_constraintdef", [oid, pretty]) => (oid, None, Some(pretty)),
        ("pg_get_indexdef", [oid, number, pretty]) => (oid, Some(number), Some(pretty)),
        _ => return Ok(None),
    };
    let shown = match pretty {
        None => "shoal_definition",
        Some(Expr::Value(ValueWithSpan { value: Value::Boolean(false), span: _ })) => "shoal_definition",
        Some(Expr::Value(ValueWithSpan { value: Value::Boolean(true), span: _ })) => "shoal_pretty",
        Some(_) => return Err(WireError::unsupported(format!("{name} with a third way to print"))),
    };
    let column = |name: &str| Expr::CompoundIdentifier(vec![Ident::new("shoal_lookup"), Ident::new(name)]);
    let equal = |name: &str, value: &Expr| Expr::BinaryOp {
        left: Box::new(column(name)),
        op: BinaryOperator::Eq,
        right: Box::new(Expr::Nested(Box::new(value.clone()))),
    };
    let of = equal("shoal_oid", oid);
    let part = match number {
        Some(number) => equal("shoal_attnum", number),
        None => column("shoal_whole"),
    };
    let condition = Expr::BinaryOp { left: Box::new(of), op: BinaryOperator::And, right: Box::new(part) };
    let template = format!("SELECT shoal_lookup.{shown} FROM pg_catalog.shoal_definition AS shoal_lookup");
    let broken = || WireError::internal("the lookup of a definition isn't a SELECT");
    let [text] = split(&template)?.try_into().map_err(|_| broken())?;
    let Parsed::Statement(tree) = text.parse()? else { return Err(broken()) };
    let ast::Statement::Query(query) = &*tree else { return Err(broken()) };
    let mut query = query.clone();
    let ast::SetExpr::Select(select) = &mut *query.body else { return Err(broken()) };
    select.selection = Some(condition);
    Ok(Some(Expr::Subquery(query)))
}
