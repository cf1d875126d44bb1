//! Texts that are code: quoting of SQL, `format`, numbers in base 16.

use super::{Answer, Body::*, Native, int, invalid, text};
use proto::{SqlState, Value, ValueRef, WireError};
use std::borrow::Cow;

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_quote_ident", body: Text1(|a| Ok(quote_ident(a).into_owned())) },
    Native { name: "pg_quote_literal", body: Text1(|a| Ok(quote_literal(a))) },
    Native { name: "pg_quote_nullable", body: Loose(1, quote_nullable) },
    Native { name: "pg_format", body: Loose(-1, format) },
    Native { name: "pg_int4_hex", body: Strict(1, |a| Ok(Value::Text(format!("{:x}", int(a[0])? as u32)))) },
    Native { name: "pg_int8_hex", body: Strict(1, |a| Ok(Value::Text(format!("{:x}", int(a[0])?)))) },
];

/// Keywords that can't be a bare column name: `pg_get_keywords()` without the unreserved.
#[rustfmt::skip]
const KEYWORDS: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization",
    "between", "bigint", "binary", "bit", "boolean", "both", "case", "cast", "char", "character",
    "check", "coalesce", "collate", "collation", "column", "concurrently", "constraint", "create",
    "cross", "current_catalog", "current_date", "current_role", "current_schema", "current_time",
    "current_timestamp", "current_user", "dec", "decimal", "default", "deferrable", "desc", "distinct",
    "do", "else", "end", "except", "exists", "extract", "false", "fetch", "float", "for", "foreign",
    "freeze", "from", "full", "grant", "greatest", "group", "grouping", "having", "ilike", "in",
    "initially", "inner", "inout", "int", "integer", "intersect", "interval", "into", "is", "isnull",
    "join", "lateral", "leading", "least", "left", "like", "limit", "localtime", "localtimestamp",
    "national", "natural", "nchar", "none", "normalize", "not", "notnull", "null", "nullif", "numeric",
    "offset", "on", "only", "or", "order", "out", "outer", "overlaps", "overlay", "placing", "position",
    "precision", "primary", "real", "references", "returning", "right", "row", "select", "session_user",
    "setof", "similar", "smallint", "some", "substring", "symmetric", "table", "tablesample", "then",
    "time", "timestamp", "to", "trailing", "treat", "trim", "true", "union", "unique", "user", "using",
    "values", "varchar", "variadic", "verbose", "when", "where", "window", "with", "xmlattributes",
    "xmlconcat", "xmlelement", "xmlexists", "xmlforest", "xmlnamespaces", "xmlparse", "xmlpi",
    "xmlroot", "xmlserialize", "xmltable",
];

/// A name as SQL must write it.
pub(super) fn quote_ident(name: &str) -> Cow<'_, str> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
        && KEYWORDS.binary_search(&name).is_err();
    if plain { name.into() } else { format!("\"{}\"", name.replace('"', "\"\"")).into() }
}

fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

fn quote_nullable(args: &[ValueRef<'_>]) -> Answer<Value> {
    Ok(Value::Text(if args[0].is_null() { "NULL".into() } else { quote_literal(text(args[0])?) }))
}

fn unterminated() -> WireError {
    invalid("unterminated format() type specifier").with_hint("For a single \"%\" use \"%%\".")
}

/// `%[position$][flags][width]type` (`text_format`).
fn format(args: &[ValueRef<'_>]) -> Answer<Value> {
    if args[0].is_null() {
        return Ok(Value::Null);
    }
    let mut rest = text(args[0])?.chars().peekable();
    let mut out = String::new();
    let mut next = 1usize;
    let argument =
        |place: usize| args.get(place).copied().ok_or_else(|| invalid("too few arguments for format()"));
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if rest.peek() == Some(&'%') {
            rest.next();
            out.push('%');
            continue;
        }
        let mut width = None;
        let mut place = None;
        let mut left = false;
        let number = number(&mut rest)?;
        if number.is_some() && rest.peek() == Some(&'$') {
            rest.next();
            place = number;
            if place == Some(0) {
                return Err(invalid("format specifies argument 0, but arguments are numbered from 1"));
            }
        } else {
            width = number;
        }
        if width.is_none() {
            while rest.peek() == Some(&'-') {
                rest.next();
                left = true;
            }
            if rest.peek() == Some(&'*') {
                return Err(WireError::unsupported("format() with a width taken from an argument"));
            }
            width = self::number(&mut rest)?;
        }
        let kind = rest.next().ok_or_else(unterminated)?;
        if !matches!(kind, 's' | 'I' | 'L') {
            return Err(invalid(format!("unrecognized format() type specifier \"{kind}\""))
                .with_hint("For a single \"%\" use \"%%\"."));
        }
        let place = place.unwrap_or(next);
        let value = argument(place)?;
        next = place + 1;
        let shown: Cow<'_, str> = match (kind, value.is_null()) {
            ('s', true) => "".into(),
            ('I', true) => {
                let message = "null values cannot be formatted as an SQL identifier";
                return Err(WireError::new(SqlState::NULL_VALUE_NOT_ALLOWED, message));
            }
            (_, true) => "NULL".into(),
            ('s', false) => text(value)?.into(),
            ('I', false) => quote_ident(text(value)?),
            (_, false) => quote_literal(text(value)?).into(),
        };
        let missing = width.unwrap_or(0).saturating_sub(shown.chars().count());
        let blanks = " ".repeat(missing);
        if left {
            out.extend([shown.as_ref(), blanks.as_str()]);
        } else {
            out.extend([blanks.as_str(), shown.as_ref()]);
        }
    }
    Ok(Value::Text(out))
}

fn number(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Answer<Option<usize>> {
    let mut number = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        rest.next();
        let longer = number.unwrap_or(0usize) * 10 + digit as usize;
        if longer > 0x3fff_ffff {
            return Err(WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "number is out of range"));
        }
        number = Some(longer);
    }
    if rest.peek().is_none() && number.is_some() { Err(unterminated()) } else { Ok(number) }
}
