//! Errors that planned SQL raises by itself: a subquery with two rows, a negative LIMIT.

use super::{Answer, Body::*, Native, text};
use proto::{SqlState, Value, ValueRef, WireError};

pub(super) static FUNCTIONS: &[Native] = &[Native { name: "pg_raise", body: Strict(2, raise) }];

/// `pg_raise(sqlstate, message)`.
fn raise(args: &[ValueRef<'_>]) -> Answer<Value> {
    let sqlstate = SqlState::parse(text(args[0])?).unwrap_or(SqlState::INTERNAL_ERROR);
    Err(WireError::new(sqlstate, text(args[1])?))
}
