//! What the sessions of a role begin with: ALTER ROLE .. SET.
//!
//! In come changes as they were planned; out go the same with the settings' names as they are declared, and with values that
//! SET would take: the catalog gets no others. And in comes the catalog when a session begins; out go its settings, before the
//! client has a say. Who the role is, and that others don't exist, the planner knows.

use super::command::IDEMPOTENCY_KEY;
use super::settings::Settings;
use crate::gtid::GTID;
use crate::protocol::backend::warning;
use planner::plan::{Notice, SchemaAction};
use proto::catalog::{Catalog, RoleChange, USER};
use proto::services::SchemaChange;
use proto::{SqlState, WireError};
use std::borrow::Cow;

/// How many bytes a role's value may have: every router and every coordinator holds it.
const LONGEST_VALUE: usize = 8192;

/// What a session with these settings is to ask the coordinator for. Nothing but ALTER ROLE is changed by this.
pub fn settle<'a>(action: &'a SchemaAction, settings: &Settings) -> Result<Cow<'a, SchemaAction>, WireError> {
    let [SchemaChange::AlterRole { role, change }] = action.changes.as_slice() else {
        return Ok(Cow::Borrowed(action));
    };
    let change = match change {
        RoleChange::Set { name, value } => {
            let name = declared(name)?;
            let value = if action.from_current { settings.show(name)?.1 } else { value.clone() };
            Settings::default().set(name, Some(&value))?;
            if value.len() > LONGEST_VALUE {
                let message = format!("the value of parameter \"{name}\" is too long");
                return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
                    .with_detail(format!("A role's has {LONGEST_VALUE} bytes at most.")));
            }
            RoleChange::Set { name: name.to_owned(), value }
        }
        RoleChange::Reset(name) => RoleChange::Reset(declared(name)?.to_owned()),
        RoleChange::ResetAll => RoleChange::ResetAll,
    };
    let changes = vec![SchemaChange::AlterRole { role: role.clone(), change }];
    Ok(Cow::Owned(SchemaAction { changes, ..action.clone() }))
}

/// A setting's name as it is declared, if a role can have it.
fn declared(name: &str) -> Result<&'static str, WireError> {
    let owner = match name {
        GTID => "session",
        IDEMPOTENCY_KEY => "transaction",
        _ => return Ok(Settings::default().show(name)?.0),
    };
    let message = format!("parameter \"{name}\" cannot be set for a role");
    Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
        .with_detail(format!("It belongs to a {owner}.")))
}

/// What a session begins with, and warnings of what was set once and can't be any more: nobody is kept out by that.
pub fn begin(catalog: &Catalog) -> (Settings, Vec<Notice>) {
    let mut settings = Settings::default();
    let mut warnings = Vec::new();
    for (name, value) in catalog.settings_of(USER) {
        if let Err(error) = settings.set(name, Some(value)) {
            warnings.push(warning(error.sqlstate, error.message));
        }
    }
    (settings, warnings)
}
