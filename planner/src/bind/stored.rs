//! Expressions that the catalog keeps: DEFAULT and CHECK.
//!
//! In comes an expression of a command, out goes what the command needs to know of it: that it's sound, what SQLite
//! runs, what value it has now. How it is kept as text is the command's business.

use super::scope::{Clause, Names, Scope};
use super::walk::grow;
use super::{Binder, RelId, tree::ExprKind};
use crate::Context;
use crate::emit::scalars::Scalars;
use crate::emit::{Naming, Relations, Writer};
use crate::plan::Scalar;
use crate::text::Text;
use dialect::functions::Volatility;
use dialect::types::Typed;
use proto::catalog::Table;
use proto::{SqlState, WireError};
use sqlparser::ast;
use std::borrow::Cow;
use std::sync::Arc;

/// Checks that an expression of a command can be a column's default.
pub(crate) fn check_default(
    expr: &ast::Expr,
    text: &Text,
    context: &Context<'_>,
    column: &str,
    ty: Typed,
) -> Result<(), WireError> {
    let mut binder = Binder::new(text, &[], context);
    let names = Names::default();
    let scope = Scope { names: &names, outer: None, ctes: None, clause: Clause::Default };
    let bound = binder.expr(expr, &scope).map_err(|error| match error.sqlstate {
        SqlState::UNDEFINED_COLUMN => {
            WireError::new(SqlState::FEATURE_NOT_SUPPORTED, "cannot use column reference in DEFAULT expression")
        }
        _ => error,
    })?;
    let from = bound.ty.ty;
    let assigned = binder.try_coerce(bound, ty, dialect::functions::CastContext::Assignment)?;
    assigned.map(drop).ok_or_else(|| {
        let (from, to) = (super::coerce::type_name(from), super::coerce::type_name(ty.ty));
        let message = format!("column \"{column}\" is of type {to} but default expression is of type {from}");
        WireError::new(SqlState::DATATYPE_MISMATCH, message)
            .with_hint("You will need to rewrite or cast the expression.")
    })
}

/// The scalars that give a kept default's value; the last one is the value.
pub(crate) fn default_scalars(
    stored: &str,
    text: &Text,
    context: &Context<'_>,
    column: &str,
    ty: Typed,
) -> Result<Vec<Scalar>, WireError> {
    let mut binder = Binder::new(text, &[], context);
    let bound = binder.bind_default(stored, column, ty)?;
    let mut scalars = Scalars::default();
    let id = scalars.of(&bound, &binder)?;
    let mut list = scalars.list;
    if id.0 as usize + 1 != list.len() {
        list.push(Scalar::Expression { sql: "?1".into(), params: vec![id] });
    }
    Ok(list)
}

/// A CHECK's condition over a table's columns: the SQL that SQLite runs, and the names of the columns in it.
pub(crate) fn check_condition(
    expr: &ast::Expr,
    text: &Text,
    context: &Context<'_>,
    table: &Table,
) -> Result<(String, Vec<String>), WireError> {
    // The binder's names borrow the table for as long as its context, so it gets one that lives here.
    let table = Arc::new(table.clone());
    let names = {
        let binder = Binder::new(text, &[], context);
        let (columns, _) = binder.table_columns(RelId(0), &table)?;
        let owned: Vec<_> = columns
            .into_iter()
            .map(|c| super::scope::NamedColumn { name: Cow::Owned(c.name.into_owned()), ..c })
            .collect();
        Names {
            tables: vec![(Cow::Owned(table.name.clone()), owned.clone())],
            columns: owned,
            hidden: Vec::new(),
        }
    };
    let mut binder = Binder::new(text, &[], context);
    let scope = Scope { names: &names, outer: None, ctes: None, clause: Clause::Check };
    let bound = binder.predicate(expr, "CHECK", &scope)?;
    let mut used = Vec::new();
    let mut mutable = false;
    grow(|| {
        bound.each_deep(&mut |e| match &e.kind {
            ExprKind::Column(_, column) => {
                let name = table.columns[*column as usize].name.clone();
                if !used.contains(&name) {
                    used.push(name);
                }
            }
            ExprKind::Call(operation, _) => mutable |= operation.0.volatility() != Volatility::Immutable,
            ExprKind::Cast(conversion, _) => mutable |= conversion.cast.needs_zone(),
            ExprKind::Environment(..) | ExprKind::NextValue(..) => mutable = true,
            _ => {}
        });
    });
    if mutable {
        return Err(WireError::unsupported("a CHECK that depends on the session or the moment")
            .with_hint("Check it where the row is written."));
    }
    let relations = Relations::from([(RelId(0), Naming::Target(Arc::clone(&table)))]);
    let mut scalars = Scalars::default();
    let mut writer = Writer::new(&binder, &mut scalars, &relations);
    writer.inline = true;
    Ok((writer.expr(&bound)?, used))
}
