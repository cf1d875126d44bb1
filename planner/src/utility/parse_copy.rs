//! The grammar of COPY and the rules of its options (PostgreSQL's `ProcessCopyOptions`).

use super::command::{Columns, Copied, Copy};
use super::cursor::{Cursor, Name};
use super::parse::refused;
use crate::plan::CopyFormat;
use proto::{SqlState, WireError};
use sqlparser::tokenizer::Token;

/// The options as they were given.
#[derive(Default)]
struct Options {
    csv: Option<bool>,
    freeze: Option<bool>,
    delimiter: Option<String>,
    null: Option<String>,
    header: Option<bool>,
    quote: Option<String>,
    escape: Option<String>,
    force_quote: Option<Columns>,
    force_not_null: Option<Vec<Name>>,
    force_null: Option<Vec<Name>>,
    encoding: Option<String>,
}

fn once<T>(slot: &mut Option<T>, value: T, position: Option<u32>) -> Result<(), WireError> {
    if slot.is_some() {
        return Err(at(WireError::new(SqlState::SYNTAX_ERROR, "conflicting or redundant options"), position));
    }
    *slot = Some(value);
    Ok(())
}

fn at(error: WireError, position: Option<u32>) -> WireError {
    match position {
        Some(position) => error.at(position),
        None => error,
    }
}

fn binary() -> WireError {
    refused("COPY in binary format", Some("Use the text or csv format."))
}

/// After COPY.
pub(super) fn copy(cursor: &mut Cursor<'_>) -> Result<Copy, WireError> {
    if cursor.is("binary") {
        return Err(binary());
    }
    let what = if cursor.accept_symbol(&Token::LParen) {
        let statement = cursor.statement()?;
        cursor.expect_symbol(&Token::RParen)?;
        Copied::Query(statement)
    } else {
        let table = cursor.qualified()?;
        let columns = if cursor.is_symbol(&Token::LParen) { cursor.list(Cursor::name)? } else { Vec::new() };
        Copied::Table(table, columns)
    };
    let from = match cursor.accept_one(&["from", "to"]) {
        Some("from") if matches!(what, Copied::Table(..)) => true,
        Some("to") => false,
        _ => return Err(cursor.error()),
    };
    if cursor.is("program") {
        return Err(refused("COPY with PROGRAM", Some("Use psql's \\copy, or STDIN and STDOUT.")));
    }
    if !cursor.accept("stdin") && !cursor.accept("stdout") {
        cursor.string()?;
        return Err(refused("COPY with a file", Some("Use psql's \\copy, or STDIN and STDOUT.")));
    }
    let mut options = Options::default();
    cursor.accept("with");
    if cursor.is_symbol(&Token::LParen) {
        cursor.list(|cursor| option(cursor, &mut options))?;
    } else {
        while old_option(cursor, &mut options)? {}
    }
    let condition = if from && cursor.accept("where") { Some(cursor.expression()?) } else { None };
    let format = check(&options, from)?;
    Ok(Copy {
        what,
        from,
        format,
        force_quote: options.force_quote.unwrap_or(Columns::Some(Vec::new())),
        force_not_null: options.force_not_null.unwrap_or_default(),
        force_null: options.force_null.unwrap_or_default(),
        condition,
    })
}

fn boolean(cursor: &mut Cursor<'_>, option: &str) -> Result<bool, WireError> {
    if cursor.is_symbol(&Token::Comma) || cursor.is_symbol(&Token::RParen) {
        return Ok(true);
    }
    match cursor.value()?.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        "match" if option == "header" => {
            Err(refused("HEADER MATCH", Some("Use HEADER, and name the columns in COPY.")))
        }
        _ if option == "header" => {
            Err(WireError::new(SqlState::SYNTAX_ERROR, "header requires a Boolean value or \"match\""))
        }
        _ => Err(WireError::new(SqlState::SYNTAX_ERROR, format!("{option} requires a Boolean value"))),
    }
}

fn format(name: &str, position: Option<u32>) -> Result<bool, WireError> {
    match name {
        "text" => Ok(false),
        "csv" => Ok(true),
        "binary" => Err(binary()),
        _ => {
            let message = format!("COPY format \"{name}\" not recognized");
            Err(at(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message), position))
        }
    }
}

/// One of `(name value, ..)`.
fn option(cursor: &mut Cursor<'_>, options: &mut Options) -> Result<(), WireError> {
    let position = cursor.position();
    let name = cursor.label()?.value;
    match name.as_str() {
        "format" => once(&mut options.csv, format(&cursor.value()?, position)?, position),
        "freeze" => once(&mut options.freeze, boolean(cursor, "freeze")?, position),
        "delimiter" => once(&mut options.delimiter, cursor.value()?, position),
        "null" => once(&mut options.null, cursor.value()?, position),
        "header" => once(&mut options.header, boolean(cursor, "header")?, position),
        "quote" => once(&mut options.quote, cursor.value()?, position),
        "escape" => once(&mut options.escape, cursor.value()?, position),
        "encoding" => once(&mut options.encoding, cursor.value()?, position),
        "force_quote" => {
            let columns = if cursor.accept_symbol(&Token::Mul) {
                Columns::All
            } else {
                Columns::Some(cursor.list(Cursor::label)?)
            };
            once(&mut options.force_quote, columns, position)
        }
        "force_not_null" => once(&mut options.force_not_null, cursor.list(Cursor::label)?, position),
        "force_null" => once(&mut options.force_null, cursor.list(Cursor::label)?, position),
        _ => {
            let message = format!("option \"{name}\" not recognized");
            Err(at(WireError::new(SqlState::SYNTAX_ERROR, message), position))
        }
    }
}

/// One of the options as they were written before PostgreSQL 9.0. Whether there was one.
fn old_option(cursor: &mut Cursor<'_>, options: &mut Options) -> Result<bool, WireError> {
    let position = cursor.position();
    let text = |cursor: &mut Cursor<'_>| {
        cursor.accept("as");
        cursor.string()
    };
    if cursor.is("binary") {
        return Err(binary());
    } else if cursor.accept("freeze") {
        once(&mut options.freeze, true, position)?;
    } else if cursor.accept("delimiter") {
        once(&mut options.delimiter, text(cursor)?, position)?;
    } else if cursor.accept("null") {
        once(&mut options.null, text(cursor)?, position)?;
    } else if cursor.accept("csv") {
        once(&mut options.csv, true, position)?;
    } else if cursor.accept("header") {
        once(&mut options.header, true, position)?;
    } else if cursor.accept("quote") {
        once(&mut options.quote, text(cursor)?, position)?;
    } else if cursor.accept("escape") {
        once(&mut options.escape, text(cursor)?, position)?;
    } else if cursor.accept_all(&["force", "quote"]) {
        let columns = if cursor.accept_symbol(&Token::Mul) {
            Columns::All
        } else {
            Columns::Some(cursor.commas(Cursor::name)?)
        };
        once(&mut options.force_quote, columns, position)?;
    } else if cursor.accept_all(&["force", "not", "null"]) {
        once(&mut options.force_not_null, cursor.commas(Cursor::name)?, position)?;
    } else if cursor.accept_all(&["force", "null"]) {
        once(&mut options.force_null, cursor.commas(Cursor::name)?, position)?;
    } else if cursor.accept("encoding") {
        once(&mut options.encoding, cursor.string()?, position)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn check(options: &Options, from: bool) -> Result<CopyFormat, WireError> {
    let unsupported = |message: &str| Err(WireError::new(SqlState::FEATURE_NOT_SUPPORTED, message));
    let invalid = |message: String| Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
    let csv = options.csv == Some(true);
    let delimiter = options.delimiter.as_deref().unwrap_or(if csv { "," } else { "\t" });
    let null = options.null.as_deref().unwrap_or(if csv { "" } else { "\\N" });
    let &[delimiter_byte] = delimiter.as_bytes() else {
        return unsupported("COPY delimiter must be a single one-byte character");
    };
    if matches!(delimiter_byte, b'\r' | b'\n') {
        return invalid("COPY delimiter cannot be newline or carriage return".to_owned());
    }
    if null.contains(['\r', '\n']) {
        return invalid("COPY null representation cannot use newline or carriage return".to_owned());
    }
    // PostgreSQL keeps those for escapes.
    if !csv
        && (matches!(delimiter_byte, b'\\' | b'.')
            || delimiter_byte.is_ascii_lowercase()
            || delimiter_byte.is_ascii_digit())
    {
        return invalid(format!("COPY delimiter cannot be \"{delimiter}\""));
    }
    if !csv && options.quote.is_some() {
        return unsupported("COPY quote available only in CSV mode");
    }
    let &[quote] = options.quote.as_deref().unwrap_or("\"").as_bytes() else {
        return unsupported("COPY quote must be a single one-byte character");
    };
    if csv && delimiter_byte == quote {
        return invalid("COPY delimiter and quote must be different".to_owned());
    }
    if !csv && options.escape.is_some() {
        return unsupported("COPY escape available only in CSV mode");
    }
    let escape = match options.escape.as_deref().map(str::as_bytes) {
        None => quote,
        Some(&[escape]) => escape,
        Some(_) => return unsupported("COPY escape must be a single one-byte character"),
    };
    if options.force_quote.is_some() {
        if !csv {
            return unsupported("COPY force quote available only in CSV mode");
        }
        if from {
            return unsupported("COPY force quote only available using COPY TO");
        }
    }
    if options.force_not_null.is_some() {
        if !csv {
            return unsupported("COPY force not null available only in CSV mode");
        }
        if !from {
            return unsupported("COPY force not null only available using COPY FROM");
        }
    }
    if options.force_null.is_some() {
        if !csv {
            return unsupported("COPY force null available only in CSV mode");
        }
        if !from {
            return unsupported("COPY force null only available using COPY FROM");
        }
    }
    if null.as_bytes().contains(&delimiter_byte) {
        return unsupported("COPY delimiter must not appear in the NULL specification");
    }
    if csv && null.as_bytes().contains(&quote) {
        return unsupported("CSV quote character must not appear in the NULL specification");
    }
    if let Some(encoding) = &options.encoding {
        let plain: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
        if !matches!(plain.to_ascii_lowercase().as_str(), "utf8" | "unicode") {
            return Err(refused(&format!("COPY in the encoding \"{encoding}\""), Some("Use UTF8.")));
        }
    }
    Ok(CopyFormat {
        csv,
        delimiter: delimiter_byte,
        null: null.to_owned(),
        header: options.header == Some(true),
        quote,
        escape,
        force_quote: Vec::new(),
    })
}
