//! What the server sends, encoded.
//!
//! Each function appends one message to a buffer. Rows have a file of their own ([`super::rows`]).

use super::frontend::Format;
use crate::error::Report;
use planner::plan::{Notice, OutputColumn};
use proto::{SqlState, WireError};

/// The transaction status in ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not in a transaction block.
    Idle = b'I' as isize,
    /// In one.
    Block = b'T' as isize,
    /// In one that has failed.
    Failed = b'E' as isize,
}

/// How bad an error is for its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement has failed.
    Error,
    /// The session has.
    Fatal,
}

/// Appends a message: the type byte, the length, and what `body` appends.
pub fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    // A NUL would end the field early and turn the rest of the message into fields of its own.
    out.extend(text.bytes().filter(|b| *b != 0));
    out.push(0);
}

/// AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    message(out, b'R', |out| out.extend_from_slice(&[0; 4]));
}

/// NegotiateProtocolVersion: the newest minor version, and the protocol options that aren't known.
pub fn negotiate_version(out: &mut Vec<u8>, options: &[String]) {
    message(out, b'v', |out| {
        out.extend_from_slice(&0x0003_0000u32.to_be_bytes());
        out.extend_from_slice(&(options.len() as u32).to_be_bytes());
        for option in options {
            text(out, option);
        }
    });
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

/// BackendKeyData.
pub fn backend_key(out: &mut Vec<u8>, pid: i32, secret: i32) {
    message(out, b'K', |out| {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(&secret.to_be_bytes());
    });
}

/// ReadyForQuery.
pub fn ready(out: &mut Vec<u8>, status: Status) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status as u8]);
}

/// EmptyQueryResponse.
pub fn empty_query(out: &mut Vec<u8>) {
    out.extend_from_slice(b"I\0\0\0\x04");
}

/// ParseComplete.
pub fn parse_complete(out: &mut Vec<u8>) {
    out.extend_from_slice(b"1\0\0\0\x04");
}

/// BindComplete.
pub fn bind_complete(out: &mut Vec<u8>) {
    out.extend_from_slice(b"2\0\0\0\x04");
}

/// CloseComplete.
pub fn close_complete(out: &mut Vec<u8>) {
    out.extend_from_slice(b"3\0\0\0\x04");
}

/// NoData.
pub fn no_data(out: &mut Vec<u8>) {
    out.extend_from_slice(b"n\0\0\0\x04");
}

/// PortalSuspended.
pub fn portal_suspended(out: &mut Vec<u8>) {
    out.extend_from_slice(b"s\0\0\0\x04");
}

/// ParameterDescription.
pub fn parameter_description(out: &mut Vec<u8>, types: impl ExactSizeIterator<Item = u32>) {
    message(out, b't', |out| {
        out.extend_from_slice(&(types.len() as u16).to_be_bytes());
        for oid in types {
            out.extend_from_slice(&oid.to_be_bytes());
        }
    });
}

/// RowDescription.
pub fn row_description(out: &mut Vec<u8>, columns: &[OutputColumn], formats: &[Format]) {
    message(out, b'T', |out| {
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for (i, column) in columns.iter().enumerate() {
            text(out, &column.name);
            let (table, attribute) = column.origin.map_or((0, 0), |(table, attribute)| (table.0, attribute));
            out.extend_from_slice(&table.to_be_bytes());
            out.extend_from_slice(&attribute.to_be_bytes());
            out.extend_from_slice(&column.ty.ty.oid().to_be_bytes());
            out.extend_from_slice(&super::rows::type_len(column.ty.ty).to_be_bytes());
            out.extend_from_slice(&column.ty.modifier.to_be_bytes());
            out.extend_from_slice(&(format_of(formats, i) as u16).to_be_bytes());
        }
    });
}

/// The format of a column: `formats` has none (all text), one for all, or one for each.
pub fn format_of(formats: &[Format], column: usize) -> Format {
    match formats {
        [] => Format::Text,
        [one] => *one,
        each => each.get(column).copied().unwrap_or_default(),
    }
}

/// CopyInResponse, text.
pub fn copy_in(out: &mut Vec<u8>, columns: usize) {
    copy_response(out, b'G', columns);
}

/// CopyOutResponse, text.
pub fn copy_out(out: &mut Vec<u8>, columns: usize) {
    copy_response(out, b'H', columns);
}

fn copy_response(out: &mut Vec<u8>, tag: u8, columns: usize) {
    message(out, tag, |out| {
        out.push(0);
        out.extend_from_slice(&(columns as u16).to_be_bytes());
        out.extend(std::iter::repeat_n(0, columns * 2));
    });
}

/// CopyDone.
pub fn copy_done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"c\0\0\0\x04");
}

/// ErrorResponse.
pub fn error(out: &mut Vec<u8>, severity: Severity, report: &Report) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    let WireError { sqlstate, message: primary, detail, hint, position, retry: _, violation: _, state: _ } =
        &report.error;
    message(out, b'E', |out| {
        field(out, b'S', severity);
        field(out, b'V', severity);
        field(out, b'C', sqlstate.as_str());
        field(out, b'M', primary);
        optional(out, b'D', detail);
        optional(out, b'H', hint);
        if let Some(position) = position {
            field(out, b'P', &position.to_string());
        }
        optional(out, b'W', &report.context);
        if report.table.is_some() {
            field(out, b's', "public");
        }
        optional(out, b't', &report.table);
        optional(out, b'c', &report.column);
        optional(out, b'n', &report.constraint);
        out.push(0);
    });
}

/// NoticeResponse.
pub fn notice(out: &mut Vec<u8>, notice: &Notice) {
    message(out, b'N', |out| {
        field(out, b'S', notice.severity);
        field(out, b'V', notice.severity);
        field(out, b'C', notice.sqlstate.as_str());
        field(out, b'M', &notice.message);
        optional(out, b'H', &notice.hint);
        out.push(0);
    });
}

/// A WARNING of this text.
pub fn warning(sqlstate: SqlState, message: impl Into<String>) -> Notice {
    Notice { severity: "WARNING", sqlstate, message: message.into(), hint: None }
}

fn field(out: &mut Vec<u8>, code: u8, value: &str) {
    out.push(code);
    text(out, value);
}

fn optional(out: &mut Vec<u8>, code: u8, value: &Option<String>) {
    if let Some(value) = value {
        field(out, code, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_themselves_and_the_body() {
        let mut out = Vec::new();
        message(&mut out, b'C', |out| text(out, "SELECT 1"));
        assert_eq!(out, b"C\0\0\0\x0dSELECT 1\0");
        out.clear();
        ready(&mut out, Status::Failed);
        assert_eq!(out, b"Z\0\0\0\x05E");
    }

    #[test]
    fn a_nul_in_a_message_cannot_forge_a_field() {
        let mut out = Vec::new();
        let report = Report::from(WireError::new(SqlState::SYNTAX_ERROR, "a\0Hforged"));
        error(&mut out, Severity::Error, &report);
        assert!(out.windows(9).any(|w| w == b"MaHforged"));
    }
}
