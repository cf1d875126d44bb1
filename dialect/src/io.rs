//! Values to and from the wire.
//!
//! In come texts and binary forms as PostgreSQL's input functions take them, out come storage forms, and back. A
//! type's modifier is applied on the way in. Nothing here knows a column's name.

use crate::datetime::TimeZone;
use crate::types::Typed;
use proto::{Value, ValueRef, WireError};

/// The session's settings that texts depend on.
#[derive(Clone, Debug)]
pub struct OutputSettings {
    /// The time zone that timestamps with time zone are shown in.
    pub zone: TimeZone,
}

impl Default for OutputSettings {
    fn default() -> Self {
        Self { zone: TimeZone::utc() }
    }
}

/// Reads a text as PostgreSQL's input function of the type does, modifier included (22P02, 22001, 22003, ..).
pub fn input(_ty: Typed, _text: &str, _zone: &TimeZone) -> Result<Value, WireError> {
    Err(WireError::unsupported("input"))
}

/// Reads the binary form, modifier included.
pub fn input_binary(_ty: Typed, _bytes: &[u8]) -> Result<Value, WireError> {
    Err(WireError::unsupported("input"))
}

/// Appends the text form of a value in storage form, which must not be NULL. A value of another storage class than
/// the type's is XX001.
pub fn output_text(
    _ty: Typed,
    _value: ValueRef<'_>,
    _settings: &OutputSettings,
    _out: &mut Vec<u8>,
) -> Result<(), WireError> {
    Err(WireError::unsupported("output"))
}

/// Appends the binary form of a value in storage form, which must not be NULL.
pub fn output_binary(_ty: Typed, _value: ValueRef<'_>, _out: &mut Vec<u8>) -> Result<(), WireError> {
    Err(WireError::unsupported("output"))
}

/// Appends an unsigned integer in decimal.
pub(crate) fn write_u64(value: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    let mut rest = value;
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}
