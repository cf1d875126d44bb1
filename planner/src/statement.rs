//! One statement, from its tree to its plan.

use crate::bind::Binder;
use crate::bind::copy::BoundCopy;
use crate::bind::tree::{Body, ExprKind, Query};
use crate::plan::{Action, Explain, OutputColumn, Plan};
use crate::planning::Planner;
use crate::text::{Parsed, Text, with_stack};
use crate::{Context, Planned, system, utility};
use dialect::Type;
use dialect::types::Typed;
use proto::WireError;
use sqlparser::ast;
use std::sync::Arc;

/// Plans one statement.
pub(crate) fn plan(
    text: &Text,
    declared: &[Option<Type>],
    context: &Context<'_>,
) -> Result<Planned, WireError> {
    if let Some(planned) = system::psql::plan(text, context)? {
        return Ok(planned);
    }
    match text.parse()? {
        Parsed::Statement(tree) => with_stack(tree.depth(), || statement(&tree, text, declared, context)),
        Parsed::Explain { analyze, statement: tree } => {
            let inner = with_stack(tree.depth(), || statement(&tree, text, declared, context))?;
            let column =
                OutputColumn { name: "QUERY PLAN".to_owned(), ty: Typed::plain(Type::Text), origin: None };
            let plan = Plan {
                parameters: inner.plan.parameters.clone(),
                columns: Some(vec![column]),
                scalars: Vec::new(),
                action: Action::Explain(Explain { analyze, plan: inner.plan }),
            };
            Ok(Planned { plan: Arc::new(plan), pinned: inner.pinned })
        }
        Parsed::Copy(copy) => {
            let mut binder = Binder::new(text, declared, context);
            let bound = binder.copy(&copy)?;
            if let BoundCopy::Out { query, format: _ } = &bound {
                padded(query)?;
            }
            let mut planner = Planner::new(&mut binder);
            let action = planner.copy(&bound)?;
            finish(planner, action, None)
        }
        Parsed::Utility(command) => utility::plan(&command, text, context),
    }
}

fn statement(
    tree: &ast::Statement,
    text: &Text,
    declared: &[Option<Type>],
    context: &Context<'_>,
) -> Result<Planned, WireError> {
    let mut binder = Binder::new(text, declared, context);
    match tree {
        ast::Statement::Query(query) => {
            let mut query: Query = binder.statement_query(query)?;
            binder.settle_query(&mut query)?;
            padded(&query)?;
            let columns = query.columns.clone();
            let mut planner = Planner::new(&mut binder);
            let action = Action::Query(planner.query(&query)?);
            finish(planner, action, Some(columns))
        }
        ast::Statement::Insert(insert) => {
            let insert = binder.insert(insert)?;
            let mut planner = Planner::new(&mut binder);
            let (action, columns) = planner.insert(&insert)?;
            returned(columns.as_deref())?;
            finish(planner, action, columns)
        }
        ast::Statement::Update(update) => {
            let update = binder.update(update)?;
            let mut planner = Planner::new(&mut binder);
            let (action, columns) = planner.modify(&update)?;
            returned(columns.as_deref())?;
            finish(planner, action, columns)
        }
        ast::Statement::Delete(delete) => {
            let delete = binder.delete(delete)?;
            let mut planner = Planner::new(&mut binder);
            let (action, columns) = planner.modify(&delete)?;
            returned(columns.as_deref())?;
            finish(planner, action, columns)
        }
        _ => Err(WireError::unsupported("this statement")),
    }
}

/// Refuses results whose blanks at the end are lost: char(n) is stored without them and gets them back by its n, which
/// CASE or UNION of a char(n) with something else doesn't have.
fn padded(query: &Query) -> Result<(), WireError> {
    for (i, column) in query.columns.iter().enumerate() {
        let known = match &query.body {
            Body::Select(select) => matches!(
                select.projection[i].kind,
                ExprKind::Literal(_) | ExprKind::Value(_) | ExprKind::Parameter(_) | ExprKind::Cast(..)
            ),
            Body::Values(_) => true,
            Body::SetOperation { .. } => false,
        };
        if column.ty == Typed::plain(Type::Bpchar) && column.origin.is_none() && !known {
            return Err(several_lengths());
        }
    }
    Ok(())
}

/// The same for RETURNING, where even a cast to bpchar isn't worth a look.
fn returned(columns: Option<&[OutputColumn]>) -> Result<(), WireError> {
    let lost = |column: &OutputColumn| column.ty == Typed::plain(Type::Bpchar) && column.origin.is_none();
    if columns.unwrap_or_default().iter().any(lost) { Err(several_lengths()) } else { Ok(()) }
}

fn several_lengths() -> WireError {
    WireError::unsupported("a result of character values of several lengths")
        .with_hint("Cast the char(n) to text.")
}

fn finish(
    planner: Planner<'_, '_>,
    action: Action,
    columns: Option<Vec<OutputColumn>>,
) -> Result<Planned, WireError> {
    let Planner { binder, scalars, rules: _ } = planner;
    let plan = Plan { parameters: binder.parameter_types()?, columns, scalars: scalars.list, action };
    Ok(Planned { plan: Arc::new(plan), pinned: binder.pinned() })
}
