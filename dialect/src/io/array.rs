//! Arrays.
//!
//! In come PostgreSQL's array literals and binary arrays, out come literals as PostgreSQL would print them, which is
//! an array's storage form, and back. Arrays whose subscripts don't begin at 1 are refused.

use super::{OutputSettings, element_type, input, input_binary, output_binary, output_text};
use crate::datetime::TimeZone;
use crate::types::{Element, Typed};
use proto::{SqlState, Value, WireError};

/// PostgreSQL's bound on dimensions.
const MAX_DIMENSIONS: usize = 6;

/// An array taken apart: its dimensions (none if it is empty) and its elements, the last subscript running fastest.
struct Parts<T> {
    dimensions: Vec<usize>,
    elements: Vec<Option<T>>,
}

fn malformed(text: &str, detail: impl Into<String>) -> WireError {
    let message = format!("malformed array literal: \"{text}\"");
    WireError::new(SqlState::INVALID_TEXT_REPRESENTATION, message).with_detail(detail)
}

/// The elements of an array in storage form, in storage form of their type; dimensions are left out.
pub fn elements(element: Element, text: &str) -> Result<Vec<Value>, WireError> {
    let ty = Typed::plain(element_type(element));
    let zone = TimeZone::utc();
    let parts = take_apart(text)?;
    let read = |element: Option<String>| element.map_or(Ok(Value::Null), |text| input(ty, &text, &zone));
    parts.elements.into_iter().map(read).collect()
}

/// Reads an array literal and prints it again.
pub(super) fn normalize(
    element: Element,
    modifier: i32,
    text: &str,
    zone: &TimeZone,
) -> Result<String, WireError> {
    let ty = Typed { ty: element_type(element), modifier };
    let parts = take_apart(text)?;
    let values = parts.elements.into_iter().map(|element| match element {
        None => Ok(Value::Null),
        Some(text) => input(ty, &text, zone),
    });
    print(ty, &parts.dimensions, &values.collect::<Result<Vec<_>, _>>()?)
}

fn print(ty: Typed, dimensions: &[usize], values: &[Value]) -> Result<String, WireError> {
    let mut out = Vec::new();
    if values.is_empty() {
        out.extend_from_slice(b"{}");
    } else {
        print_level(ty, dimensions, values, &mut out)?;
    }
    String::from_utf8(out).map_err(|_| WireError::internal("an element whose text form isn't UTF-8"))
}

fn print_level(
    ty: Typed,
    dimensions: &[usize],
    values: &[Value],
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    out.push(b'{');
    let count = dimensions.first().copied().unwrap_or(values.len()).max(1);
    for (place, part) in values.chunks(values.len().div_ceil(count)).enumerate() {
        if place > 0 {
            out.push(b',');
        }
        match part {
            [value] if dimensions.len() <= 1 => print_element(ty, value, out)?,
            _ => print_level(ty, &dimensions[1..], part, out)?,
        }
    }
    out.push(b'}');
    Ok(())
}

fn print_element(ty: Typed, value: &Value, out: &mut Vec<u8>) -> Result<(), WireError> {
    if value.is_null() {
        out.extend_from_slice(b"NULL");
        return Ok(());
    }
    let mut text = Vec::new();
    output_text(ty, value.as_ref(), &OutputSettings::default(), &mut text)?;
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',' | b' ' | b'\t'..=b'\r');
    if !text.is_empty() && !text.eq_ignore_ascii_case(b"null") && !text.iter().any(special) {
        out.extend_from_slice(&text);
        return Ok(());
    }
    out.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
    Ok(())
}

/// What may come next in a literal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// An element or a sub-array, or the end if there is nothing yet.
    First,
    /// An element or a sub-array.
    Item,
    /// A comma or the end.
    Delimiter,
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

fn take_apart(text: &str) -> Result<Parts<String>, WireError> {
    let body = text.trim_start_matches(is_space);
    if body.starts_with('[') {
        return Err(WireError::unsupported("an array with explicit subscripts"));
    }
    if !body.starts_with('{') {
        return Err(malformed(text, "Array value must start with \"{\" or dimension information."));
    }
    let unmatched =
        || malformed(text, "Multidimensional arrays must have sub-arrays with matching dimensions.");
    let mut parts = Parts { dimensions: Vec::new(), elements: Vec::new() };
    // How many items each open brace has so far.
    let mut open: Vec<usize> = Vec::new();
    // The depth at which elements stand, once the first one was seen.
    let mut depth = None;
    let mut expected = Expected::First;
    let mut rest = body.chars();
    loop {
        rest = rest.as_str().trim_start_matches(is_space).chars();
        let before = rest.clone();
        let Some(next) = rest.next() else { return Err(malformed(text, "Unexpected end of input.")) };
        match next {
            '{' => {
                if !open.is_empty() && expected == Expected::Delimiter {
                    return Err(malformed(text, "Unexpected \"{\" character."));
                }
                if depth.is_some_and(|depth| open.len() >= depth) {
                    return Err(malformed(text, "Unexpected \"{\" character."));
                }
                if open.len() == MAX_DIMENSIONS {
                    let message = "number of array dimensions exceeds the maximum allowed (6)";
                    return Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message));
                }
                if let Some(count) = open.last_mut() {
                    *count += 1;
                }
                open.push(0);
                expected = Expected::First;
            }
            '}' => {
                if expected == Expected::Item {
                    return Err(malformed(text, "Unexpected \"}\" character."));
                }
                let count = open.pop().ok_or_else(|| malformed(text, "Unexpected \"}\" character."))?;
                if count == 0 && !open.is_empty() {
                    return Err(malformed(text, "Unexpected \"}\" character."));
                }
                let level = open.len();
                if count > 0 {
                    if parts.dimensions.len() <= level {
                        parts.dimensions.resize(level + 1, 0);
                    }
                    match &mut parts.dimensions[level] {
                        known if *known == 0 => *known = count,
                        known if *known != count => return Err(unmatched()),
                        _ => {}
                    }
                }
                expected = Expected::Delimiter;
                if open.is_empty() {
                    break;
                }
            }
            ',' => {
                if expected != Expected::Delimiter {
                    return Err(malformed(text, "Unexpected \",\" character."));
                }
                expected = Expected::Item;
            }
            _ => {
                if expected == Expected::Delimiter {
                    return Err(malformed(text, "Unexpected array element."));
                }
                let (element, after) = read_element(before.as_str(), text)?;
                if *depth.get_or_insert(open.len()) != open.len() {
                    return Err(malformed(text, "Unexpected array element."));
                }
                if let Some(count) = open.last_mut() {
                    *count += 1;
                }
                parts.elements.push(element);
                rest = after.chars();
                expected = Expected::Delimiter;
            }
        }
    }
    if !rest.as_str().trim_start_matches(is_space).is_empty() {
        return Err(malformed(text, "Junk after closing right brace."));
    }
    Ok(parts)
}

/// The element that a text begins with (`None` for NULL), and what follows it.
fn read_element<'a>(from: &'a str, whole: &str) -> Result<(Option<String>, &'a str), WireError> {
    let unended = || malformed(whole, "Unexpected end of input.");
    let mut element = String::new();
    let mut chars = from.chars();
    if from.starts_with('"') {
        chars.next();
        loop {
            match chars.next().ok_or_else(unended)? {
                '"' => return Ok((Some(element), chars.as_str())),
                '\\' => element.push(chars.next().ok_or_else(unended)?),
                plain => element.push(plain),
            }
        }
    }
    // Unescaped white space at the end isn't part of it.
    let mut end = 0;
    let mut escaped = false;
    loop {
        let rest = chars.as_str();
        match chars.next().ok_or_else(unended)? {
            ',' | '}' => {
                element.truncate(end);
                let null = !escaped && element.eq_ignore_ascii_case("null");
                return Ok((if null { None } else { Some(element) }, rest));
            }
            '{' => return Err(malformed(whole, "Unexpected \"{\" character.")),
            '"' => return Err(malformed(whole, "Unexpected array element.")),
            '\\' => {
                element.push(chars.next().ok_or_else(unended)?);
                escaped = true;
                end = element.len();
            }
            plain => {
                element.push(plain);
                if !is_space(plain) {
                    end = element.len();
                }
            }
        }
    }
}

/// `array_recv`: the count of dimensions, a flag for NULLs, the elements' type, each dimension's length and lower
/// bound, and the elements, each with its length (-1 for NULL).
pub(super) fn read_binary(element: Element, modifier: i32, bytes: &[u8]) -> Result<String, WireError> {
    let short = || WireError::new(SqlState::PROTOCOL_VIOLATION, "insufficient data left in message");
    let invalid = |message: String| WireError::new(SqlState::INVALID_BINARY_REPRESENTATION, message);
    let mut rest = bytes;
    let next = |rest: &mut &[u8]| {
        let (word, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        *rest = after;
        Ok::<i32, WireError>(i32::from_be_bytes(*word))
    };
    let ty = Typed { ty: element_type(element), modifier };
    let (count, flags, oid) = (next(&mut rest)?, next(&mut rest)?, next(&mut rest)? as u32);
    let count =
        usize::try_from(count).map_err(|_| invalid(format!("invalid number of dimensions: {count}")))?;
    if count > MAX_DIMENSIONS {
        let message = format!("number of array dimensions ({count}) exceeds the maximum allowed (6)");
        return Err(WireError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message));
    }
    if !matches!(flags, 0 | 1) {
        return Err(invalid("invalid array flags".into()));
    }
    if oid != ty.ty.oid() {
        let message = format!("binary data has array element type {oid} instead of expected {}", ty.ty.oid());
        return Err(WireError::new(SqlState::DATATYPE_MISMATCH, message));
    }
    let mut dimensions = Vec::with_capacity(count);
    let mut total = 1usize;
    for _ in 0..count {
        let (length, lower) = (next(&mut rest)?, next(&mut rest)?);
        let length = usize::try_from(length).map_err(|_| invalid("invalid array length".into()))?;
        if lower != 1 && length > 0 {
            return Err(WireError::unsupported("an array with explicit subscripts"));
        }
        total = total.saturating_mul(length);
        dimensions.push(length);
    }
    if count == 0 || total == 0 {
        return Ok("{}".into());
    }
    // Each element has a length word, so no more can be announced than there are bytes.
    if total > rest.len() / 4 {
        return Err(short());
    }
    let mut values = Vec::with_capacity(total);
    for _ in 0..total {
        let length = next(&mut rest)?;
        if length == -1 {
            values.push(Value::Null);
            continue;
        }
        let length = usize::try_from(length).map_err(|_| short())?;
        let (element, after) = rest.split_at_checked(length).ok_or_else(short)?;
        values.push(input_binary(ty, element)?);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(invalid("incorrect binary data format".into()));
    }
    print(ty, &dimensions, &values)
}

/// `array_send`.
pub(super) fn write_binary(element: Element, text: &str, out: &mut Vec<u8>) -> Result<(), WireError> {
    let ty = Typed::plain(element_type(element));
    let zone = TimeZone::utc();
    let parts = take_apart(text)?;
    let word = |value: usize| (value as i32).to_be_bytes();
    out.extend_from_slice(&word(parts.dimensions.len()));
    out.extend_from_slice(&word(parts.elements.iter().any(Option::is_none).into()));
    out.extend_from_slice(&ty.ty.oid().to_be_bytes());
    for length in &parts.dimensions {
        out.extend_from_slice(&word(*length));
        out.extend_from_slice(&word(1));
    }
    for element in parts.elements {
        let Some(text) = element else {
            out.extend_from_slice(&(-1i32).to_be_bytes());
            continue;
        };
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        output_binary(ty, input(ty, &text, &zone)?.as_ref(), out)?;
        let length = out.len() - start - 4;
        out[start..start + 4].copy_from_slice(&word(length));
    }
    Ok(())
}
