//! COPY's formats, text and CSV, by PostgreSQL's rules.
//!
//! In come bytes as the client cuts them and rows as shards send them; out go records of fields, and lines. Nothing
//! here knows a type: a field is text or NULL. The rules are those of PostgreSQL 15's `copyfromparse.c` and
//! `copyto.c`; no CSV library has its difference between an empty field and a quoted empty one.

pub mod lines;
pub mod read;
pub mod write;

use proto::{SqlState, WireError};

/// `22P04` with this text.
fn bad_format(message: impl Into<String>) -> WireError {
    WireError::new(SqlState::BAD_COPY_FILE_FORMAT, message)
}
