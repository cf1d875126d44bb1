//! Shoal's functions on a SQLite connection, and SQLite's errors and values as Shoal's.
//!
//! Every connection that runs planned SQL goes through [`register`] first: it gets the functions that the templates
//! of [`crate::functions`] call, under names that begin with `pg_`, and the limits. Errors that those functions
//! raise come back whole through [`error()`]. Nothing here knows what a statement means.

mod aggregate;
mod error;
mod scalar;
mod value;

pub use error::{error, error_on, names_nothing};
pub use value::{parameter, value_ref};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;

/// Registers every function that templates call, and sets the connection's limits: Shoal's own bounds are met first.
///
/// # Errors
/// SQLite's, when it has no memory.
pub fn register(connection: &Connection) -> rusqlite::Result<()> {
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 65_535),
        // SQLite recurses: between 3,000 and 4,000 levels overflow a thread's 2 MiB of stack, and end the process.
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 1_500),
        (Limit::SQLITE_LIMIT_COLUMN, 4_096),
        (Limit::SQLITE_LIMIT_LENGTH, 1_073_741_823), // PostgreSQL's 1 GB
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 1_073_741_824),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 1_000),
    ] {
        connection.set_limit(limit, value)?;
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    scalar::register(connection)?;
    aggregate::register(connection)
}
