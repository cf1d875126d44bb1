//! Values to and from the wire.
//!
//! In come texts and binary forms as PostgreSQL's input functions take them, out come storage forms, and back. A
//! type's modifier is applied on the way in, as when a value is stored in a column; explicit casts, which cut what is
//! too long, are another thing. Nothing here knows a column's name.

mod array;
mod binary;
mod literal;
mod text;

pub use array::elements;
pub use binary::{input_binary, output_binary};
pub use literal::row_literal;
pub(crate) use text::write_u64;
pub use text::{input, output_text, write_i64};

use crate::datetime::TimeZone;
use crate::types::{Element, Type};
use proto::{SqlState, ValueRef, WireError};

/// The session's settings that texts depend on.
#[derive(Clone, Debug, Default)]
pub struct OutputSettings {
    /// The time zone that timestamps with time zone are shown in.
    pub zone: TimeZone,
}

/// `XX001`: a value that its type's storage form can't be.
fn mismatch(ty: Type, value: ValueRef<'_>) -> WireError {
    let class = match value {
        ValueRef::Null => "NULL",
        ValueRef::Int(_) => "an integer",
        ValueRef::Real(_) => "a double",
        ValueRef::Text(_) => "text",
        ValueRef::Blob(_) => "a blob",
    };
    WireError::new(SqlState::DATA_CORRUPTED, format!("{class} is not a stored value of type {ty:?}"))
}

/// What a text longer than its type allows is, with the blanks beyond cut off if it is nothing but those.
///
/// `modifier` is the length plus four; without one everything fits.
fn fit<'a>(text: &'a str, modifier: i32, kind: &str) -> Result<&'a str, WireError> {
    if modifier < 4 {
        return Ok(text);
    }
    let length = (modifier - 4) as usize;
    // A text has at least as many bytes as characters.
    if text.len() <= length {
        return Ok(text);
    }
    let Some((end, _)) = text.char_indices().nth(length) else { return Ok(text) };
    let (kept, beyond) = text.split_at(end);
    if beyond.bytes().all(|byte| byte == b' ') {
        return Ok(kept);
    }
    let message = format!("value too long for type {kind}({length})");
    Err(WireError::new(SqlState::STRING_DATA_RIGHT_TRUNCATION, message))
}

/// The text if it can be stored: SQLite's end at a NUL for some of its functions, PostgreSQL refuses it.
fn without_nul(text: &str) -> Result<&str, WireError> {
    if text.as_bytes().contains(&0) { Err(invalid_utf8(&[0])) } else { Ok(text) }
}

fn invalid_utf8(bytes: &[u8]) -> WireError {
    let shown: Vec<_> = bytes.iter().map(|byte| format!("0x{byte:02x}")).collect();
    let message = format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" "));
    WireError::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, message)
}

/// PostgreSQL's `name`: at most 63 bytes, cut between characters.
fn cut_name(text: &str) -> &str {
    let mut end = text.len().min(63);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The type of an array's elements.
fn element_type(element: Element) -> Type {
    match element {
        Element::Bool => Type::Bool,
        Element::Int2 => Type::Int2,
        Element::Int4 => Type::Int4,
        Element::Int8 => Type::Int8,
        Element::Float8 => Type::Float8,
        Element::Numeric => Type::Numeric,
        Element::Text => Type::Text,
        Element::Varchar => Type::Varchar,
        Element::Name => Type::Name,
        Element::Char => Type::Char,
        Element::Oid => Type::Oid,
        Element::Uuid => Type::Uuid,
    }
}
