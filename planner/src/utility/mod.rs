//! Everything that isn't a query or a change of rows: DDL, TRUNCATE, sequences, and what stays within the session.
//!
//! In comes a statement's text, read by PostgreSQL's grammar (its cursor); out goes a [`Command`], and from that
//! [`Action::Schema`] or [`Action::Session`]. A schema change is the whole of what is to be: a table's new
//! descriptor, not the steps to it. It must never know how a schema change is carried out, or what a session has set.

mod alter_table;
mod command;
mod create_table;
mod cursor;
mod expressions;
mod index;
mod names;
mod parse;
mod parse_copy;
mod parse_schema;
mod placement;
mod relations;
mod role;
mod sequence;
mod types;

pub use command::{Columns, Command, Copied, Copy};
pub(crate) use cursor::Cursor;
pub use cursor::{Name, Qualified};
pub(crate) use expressions::names_column;
pub(crate) use parse::parse;

use crate::bind::types::type_of;
use crate::emit::scalars::Scalars;
use crate::plan::{Action, Notice, OutputColumn, Plan, SchemaAction, SessionCommand};
use crate::text::Text;
use crate::{Context, Planned};
use command::Kind;
use dialect::Type;
use dialect::types::Typed;
use expressions::Expressions;
use proto::catalog::Relation;
use proto::{SqlState, WireError};
use std::sync::Arc;

/// Binds a command. `text` is what it was parsed from.
pub fn plan(command: &Command, text: &Text, context: &Context<'_>) -> Result<Planned, WireError> {
    let expressions = Expressions { text, context };
    let mut scalars = Vec::new();
    let mut columns = None;
    let action = match &command.0 {
        Kind::Session(session) => {
            if let SessionCommand::Show(name) = session {
                columns = Some(show_columns(name.as_deref()));
            }
            Action::Session(session.clone())
        }
        Kind::Prepare { name, types, offset } => {
            let types = types.iter().map(|ty| {
                let bound = type_of(&ty.data_type).map_err(|error| names::at(error, ty.position))?;
                Ok(bound.ty)
            });
            Action::Session(SessionCommand::Prepare {
                name: name.clone(),
                types: types.collect::<Result<_, WireError>>()?,
                offset: *offset,
            })
        }
        Kind::Execute { name, arguments } => {
            let mut made = Scalars::default();
            let bound = expressions.arguments(arguments.iter().map(|argument| &**argument), &mut made)?;
            scalars = made.list;
            let (ids, types) = bound.into_iter().unzip();
            Action::Session(SessionCommand::Execute { name: name.clone(), arguments: ids, types })
        }
        Kind::Maintenance { tag, tables } => {
            for (name, columns) in tables {
                let table = names::table(context, name)?;
                for column in columns {
                    create_table::column_id(table, &column.value)?;
                }
            }
            Action::Session(SessionCommand::Maintenance(tag))
        }
        Kind::CreateTable(create) => Action::Schema(create_table::plan(create, expressions)?),
        Kind::AlterTable(alter) => {
            let (action, fills) = alter_table::plan(alter, expressions)?;
            scalars = fills;
            Action::Schema(action)
        }
        Kind::Drop(drop) => Action::Schema(relations::drop(drop, context)?),
        Kind::CreateIndex(create) => Action::Schema(index::create(create, context)?),
        Kind::Rename { what, if_exists, from, to } => {
            Action::Schema(relations::rename(*what, *if_exists, from, to, context)?)
        }
        Kind::Truncate { tables, restart_identity } => {
            Action::Schema(relations::truncate(tables, *restart_identity, context)?)
        }
        Kind::CreateSequence { if_not_exists, name, options } => {
            Action::Schema(relations::create_sequence(*if_not_exists, name, options, context)?)
        }
        Kind::AlterSequence { if_exists, name, options } => {
            Action::Schema(relations::alter_sequence(*if_exists, name, options, context)?)
        }
        Kind::AlterRole { role, change, from_current } => {
            Action::Schema(role::plan(role, change, *from_current)?)
        }
    };
    // Nothing of a command is run twice with other values.
    let pinned = (0..text.literals.len() as u32)
        .filter_map(|slot| Some((slot, text.literal(slot)?.into_owned())))
        .collect();
    let (parameters, first) = (Vec::new(), Vec::new());
    let plan = Plan { parameters, columns, scalars, first, reads_copies: false, action };
    Ok(Planned { plan: Arc::new(plan), pinned })
}

/// A NOTICE.
fn notice(sqlstate: SqlState, message: String) -> Notice {
    Notice { severity: "NOTICE", sqlstate, message, hint: None }
}

/// A schema action without fills.
fn schema(
    tag: &'static str,
    changes: Vec<proto::services::SchemaChange>,
    notices: Vec<Notice>,
) -> SchemaAction {
    SchemaAction { tag, changes, notices, fills: Vec::new(), from_current: false }
}

fn show_columns(name: Option<&str>) -> Vec<OutputColumn> {
    let text =
        |name: &str| OutputColumn { name: name.to_owned(), ty: Typed::plain(Type::Text), origin: None };
    match name {
        None => vec![text("name"), text("setting"), text("description")],
        // PostgreSQL shows a setting's name as it is declared.
        Some("timezone") => vec![text("TimeZone")],
        Some("datestyle") => vec![text("DateStyle")],
        Some("intervalstyle") => vec![text("IntervalStyle")],
        Some(name) => vec![text(name)],
    }
}

/// What a relation is, in messages.
fn kind_of(relation: Relation) -> &'static str {
    match relation {
        Relation::Table(_) => "table",
        Relation::Index(..) => "index",
        Relation::Sequence(_) => "sequence",
    }
}
