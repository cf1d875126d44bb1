//! One statement, from its tree to its plan.

use crate::bind::Binder;
use crate::bind::copy::BoundCopy;
use crate::bind::insert::{Insert, Rows};
use crate::bind::modify::Modify;
use crate::bind::tree::{Body, ExprKind, Query};
use crate::plan::{Action, Explain, OutputColumn, Plan};
use crate::planning::Planner;
use crate::text::{Parsed, Text, with_stack};
use crate::{Context, Planned, system, utility};
use dialect::Type;
use dialect::physical::tables_in;
use dialect::types::Typed;
use proto::WireError;
use proto::catalog::Placement;
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
                first: Vec::new(),
                reads_copies: inner.plan.reads_copies,
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
            if let Some(written) = written(query)? {
                return write(written, query.with.as_ref(), binder);
            }
            let mut query: Query = binder.query(query, None, None)?;
            binder.settle_query(&mut query)?;
            padded(&query)?;
            let columns = query.columns.clone();
            let mut planner = Planner::new(&mut binder);
            planner.lift_query(&mut query)?;
            let action = Action::Query(planner.query(&query)?);
            finish(planner, action, Some(columns))
        }
        tree => write(tree, None, binder),
    }
}

/// An INSERT, UPDATE or DELETE, with the WITH that stands before it.
fn write(
    tree: &ast::Statement,
    with: Option<&ast::With>,
    mut binder: Binder<'_>,
) -> Result<Planned, WireError> {
    let (bound, ctes) = binder.with(with, None, None, &mut |binder, ctes| {
        Ok(match tree {
            ast::Statement::Insert(insert) => Written::Insert(Box::new(binder.insert(insert, ctes)?)),
            ast::Statement::Update(update) => Written::Modify(Box::new(binder.update(update, ctes)?)),
            ast::Statement::Delete(delete) => Written::Modify(Box::new(binder.delete(delete, ctes)?)),
            _ => return Err(WireError::unsupported("this statement")),
        })
    })?;
    let mut planner = Planner::new(&mut binder);
    let (action, columns) = match bound {
        Written::Insert(mut insert) => {
            if let Rows::Query(query, _) = &mut insert.rows {
                query.ctes.splice(0..0, ctes);
            }
            planner.lift_insert(&mut insert)?;
            planner.insert(&insert)?
        }
        Written::Modify(mut modify) => {
            modify.ctes = ctes;
            planner.lift_modify(&mut modify)?;
            planner.modify(&mut modify)?
        }
    };
    returned(columns.as_deref())?;
    finish(planner, action, columns)
}

/// A statement that writes, bound.
enum Written {
    Insert(Box<Insert>),
    Modify(Box<Modify>),
}

/// The writing statement that a query with WITH is.
fn written(query: &ast::Query) -> Result<Option<&ast::Statement>, WireError> {
    let (ast::SetExpr::Insert(statement) | ast::SetExpr::Update(statement) | ast::SetExpr::Delete(statement)) =
        &*query.body
    else {
        return Ok(None);
    };
    let ast::Query {
        with: _,
        body: _,
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks,
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators,
    } = query
    else {
        return Err(crate::bind::syntax("a clause of a query behind a writing statement"));
    };
    if !locks.is_empty() || !pipe_operators.is_empty() {
        return Err(crate::bind::syntax("a clause of a query behind a writing statement"));
    }
    Ok(Some(statement))
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
    let Planner { binder, scalars, rules: _, first, known: _ } = planner;
    let (parameters, scalars) = (binder.parameter_types()?, scalars.list);
    let mut plan = Plan { parameters, columns, scalars, first, reads_copies: false, action };
    let is_copied = |table| {
        binder.context.catalog.table(table).is_some_and(|table| table.placement == Placement::Reference)
    };
    let reads_copies = {
        let mut fragments = plan.queries().flat_map(|query| &query.fragments);
        fragments.any(|fragment| tables_in(&fragment.sql).any(is_copied))
    };
    plan.reads_copies = reads_copies;
    Ok(Planned { plan: Arc::new(plan), pinned: binder.pinned() })
}
