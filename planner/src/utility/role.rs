//! ALTER ROLE .. SET and RESET: what a role's sessions begin with.
//!
//! In come the words after ALTER ROLE and ALTER USER, which are one command; out goes a change of the catalog. Whether there is
//! such a setting, what values it takes, and what it is now (FROM CURRENT) is the session's to know.

use super::command::{Kind, RoleName};
use super::cursor::Cursor;
use super::parse::{Assigned, assignment, refused, setting_to_reset};
use super::schema;
use crate::plan::SchemaAction;
use proto::catalog::{RoleChange, USER};
use proto::services::SchemaChange;
use proto::{SqlState, WireError};

/// How the forms and options begin that Shoal hasn't got.
const OTHERS: &[&str] = &[
    "with",
    "rename",
    "superuser",
    "nosuperuser",
    "createdb",
    "nocreatedb",
    "createrole",
    "nocreaterole",
    "inherit",
    "noinherit",
    "login",
    "nologin",
    "replication",
    "noreplication",
    "bypassrls",
    "nobypassrls",
    "connection",
    "encrypted",
    "password",
    "valid",
    "user",
];

/// After ALTER ROLE or ALTER USER.
pub(super) fn alter(cursor: &mut Cursor<'_>) -> Result<Kind, WireError> {
    let role = if cursor.accept("all") {
        RoleName::All
    } else if cursor.accept_one(&["current_user", "current_role", "session_user"]).is_some() {
        RoleName::CurrentUser
    } else {
        RoleName::Named(cursor.name()?.value)
    };
    if cursor.is("in") {
        return Err(refused("ALTER ROLE .. IN DATABASE", Some("Leave it out: there is one database.")));
    }
    let (change, from_current) = if cursor.accept("set") {
        match assignment(cursor)? {
            (name, Assigned::Value(value)) => (RoleChange::Set { name, value }, false),
            (name, Assigned::Default) => (RoleChange::Reset(name), false),
            (name, Assigned::Current) => (RoleChange::Set { name, value: String::new() }, true),
        }
    } else if cursor.accept("reset") {
        (setting_to_reset(cursor)?.map_or(RoleChange::ResetAll, RoleChange::Reset), false)
    } else if matches!(role, RoleName::All) || !(cursor.at_end() || OTHERS.iter().any(|word| cursor.is(word)))
    {
        return Err(cursor.error());
    } else {
        let hint = "There is one user, who may do everything.";
        return Err(refused("ALTER ROLE without SET or RESET", Some(hint)));
    };
    Ok(Kind::AlterRole { role, change, from_current })
}

/// Binds it.
pub(super) fn plan(
    role: &RoleName,
    change: &RoleChange,
    from_current: bool,
) -> Result<SchemaAction, WireError> {
    let role = match role {
        RoleName::All => None,
        RoleName::CurrentUser => Some(USER.to_owned()),
        RoleName::Named(name) if name == USER => Some(USER.to_owned()),
        RoleName::Named(name) => {
            let message = format!("role \"{name}\" does not exist");
            return Err(WireError::new(SqlState::UNDEFINED_OBJECT, message));
        }
    };
    let change = SchemaChange::AlterRole { role, change: change.clone() };
    Ok(SchemaAction { from_current, ..schema("ALTER ROLE", vec![change], Vec::new()) })
}
