//! Everything that isn't a query or a change of rows: DDL, TRUNCATE, sequences, and what stays within the session.
//!
//! In comes a [`Command`], parsed here by PostgreSQL's grammar; out goes [`crate::plan::Action::Schema`] or
//! [`crate::plan::Action::Session`]. It must never know how a schema change is carried out.

use crate::plan::CopyFormat;
use crate::text::{Text, Tree};
use crate::{Context, Planned};
use proto::WireError;
use sqlparser::ast;

/// A command, parsed and not yet bound.
#[derive(Debug)]
pub struct Command {}

/// COPY, parsed.
#[derive(Debug)]
pub struct Copy {
    /// What is copied.
    pub what: Copied,
    /// FROM STDIN, not TO STDOUT.
    pub from: bool,
    /// The format. `force_quote` is empty here: see the field of that name beside it.
    pub format: CopyFormat,
    /// FORCE_QUOTE's columns; `None` for `*`.
    pub force_quote: Option<Vec<ast::Ident>>,
    /// FORCE_NOT_NULL's columns.
    pub force_not_null: Vec<ast::Ident>,
    /// FORCE_NULL's columns.
    pub force_null: Vec<ast::Ident>,
    /// Which rows are taken, FROM alone.
    pub condition: Option<Tree<ast::Expr>>,
}

/// What COPY copies.
#[derive(Debug)]
pub enum Copied {
    /// A table's columns; none for all.
    Table(ast::ObjectName, Vec<ast::Ident>),
    /// What a SELECT, VALUES or a statement with RETURNING gives. TO alone.
    Query(Tree<ast::Statement>),
}

/// Binds a command. `text` is what it was parsed from.
pub fn plan(command: &Command, text: &Text, context: &Context<'_>) -> Result<Planned, WireError> {
    let _ = (command, text, context);
    Err(WireError::unsupported("this command"))
}
