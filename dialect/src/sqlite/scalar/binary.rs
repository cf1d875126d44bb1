//! Functions over bytes: parts, digests, and their forms as text (`varlena.c`, `encode.c`).

use super::texts::{extent, negative_length};
use super::{Answer, Body::*, Native, bytes, int, int4, invalid, text};
use md5::Digest;
use proto::{SqlState, Value, ValueRef, WireError};

pub(super) static FUNCTIONS: &[Native] = &[
    Native {
        name: "pg_bytes_concat",
        body: Strict(2, |a| Ok(Value::Blob([bytes(a[0])?, bytes(a[1])?].concat()))),
    },
    Native { name: "pg_bytes_substr", body: Strict(-1, substr) },
    Native { name: "pg_bytes_overlay", body: Strict(-1, overlay) },
    Native { name: "pg_bytes_position", body: Strict(2, position) },
    Native { name: "pg_bytes_btrim", body: Strict(2, |a| trim(a, true, true)) },
    Native { name: "pg_bytes_ltrim", body: Strict(2, |a| trim(a, true, false)) },
    Native { name: "pg_bytes_rtrim", body: Strict(2, |a| trim(a, false, true)) },
    Native { name: "pg_get_byte", body: Strict(2, |a| Ok(Value::Int(bytes(a[0])?[index(a)?].into()))) },
    Native { name: "pg_set_byte", body: Strict(3, set_byte) },
    Native {
        name: "pg_bit_count",
        body: Strict(1, |a| Ok(Value::Int(bytes(a[0])?.iter().map(|b| i64::from(b.count_ones())).sum()))),
    },
    Native {
        name: "pg_md5",
        body: Strict(1, |a| Ok(Value::Text(hex::encode(md5::Md5::digest(content(a[0])?))))),
    },
    Native { name: "pg_sha224", body: Strict(1, |a| digest::<sha2::Sha224>(a[0])) },
    Native { name: "pg_sha256", body: Strict(1, |a| digest::<sha2::Sha256>(a[0])) },
    Native { name: "pg_sha384", body: Strict(1, |a| digest::<sha2::Sha384>(a[0])) },
    Native { name: "pg_sha512", body: Strict(1, |a| digest::<sha2::Sha512>(a[0])) },
    Native { name: "pg_encode", body: Strict(2, encode) },
    Native { name: "pg_decode", body: Strict(2, decode) },
    Native { name: "pg_convert_from", body: Strict(2, convert_from) },
    Native { name: "pg_convert_to", body: Strict(2, convert_to) },
];

/// The bytes of a bytea or of a text.
fn content(value: ValueRef<'_>) -> Answer<&[u8]> {
    match value {
        ValueRef::Text(text) => Ok(text.as_bytes()),
        other => bytes(other),
    }
}

fn digest<D: Digest>(value: ValueRef<'_>) -> Answer<Value> {
    Ok(Value::Blob(D::digest(bytes(value)?).to_vec()))
}

fn part(bytes: &[u8], start: usize, count: Option<usize>) -> &[u8] {
    let rest = bytes.get(start..).unwrap_or_default();
    &rest[..count.unwrap_or(rest.len()).min(rest.len())]
}

fn substr(args: &[ValueRef<'_>]) -> Answer<Value> {
    let length = args.get(2).map(|v| int4(*v)).transpose()?;
    let (start, count) = extent(int4(args[1])?, length)?;
    Ok(Value::Blob(part(bytes(args[0])?, start, count).into()))
}

fn overlay(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (string, new, start) = (bytes(args[0])?, bytes(args[1])?, int4(args[2])?);
    let length = match args.get(3) {
        Some(length) => i64::from(int4(*length)?),
        None => new.len() as i64,
    };
    if start <= 0 {
        return Err(negative_length());
    }
    let start = i64::from(start);
    let after = i32::try_from(start + length).map_err(|_| super::out_of_range("integer"))?;
    let (after, _) = extent(after, None)?;
    let before = part(string, 0, usize::try_from(start - 1).ok());
    Ok(Value::Blob([before, new, part(string, after, None)].concat()))
}

fn position(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (string, wanted) = (bytes(args[0])?, bytes(args[1])?);
    let place = match wanted.len() {
        0 => 1,
        n => string.windows(n).position(|w| w == wanted).map_or(0, |at| at + 1),
    };
    Ok(Value::Int(place as i64))
}

fn trim(args: &[ValueRef<'_>], start: bool, end: bool) -> Answer<Value> {
    let (mut rest, set) = (bytes(args[0])?, bytes(args[1])?);
    while let [first, inner @ ..] = rest
        && start
        && set.contains(first)
    {
        rest = inner;
    }
    while let [inner @ .., last] = rest
        && end
        && set.contains(last)
    {
        rest = inner;
    }
    Ok(Value::Blob(rest.into()))
}

/// The second argument as a place in the first.
fn index(args: &[ValueRef<'_>]) -> Answer<usize> {
    let (len, index) = (bytes(args[0])?.len(), int(args[1])?);
    usize::try_from(index).ok().filter(|i| *i < len).ok_or_else(|| {
        let last = len as i64 - 1;
        let message = format!("index {index} out of valid range, 0..{last}");
        WireError::new(SqlState::ARRAY_SUBSCRIPT_ERROR, message)
    })
}

fn set_byte(args: &[ValueRef<'_>]) -> Answer<Value> {
    let mut changed = bytes(args[0])?.to_vec();
    changed[index(args)?] = int(args[2])? as u8;
    Ok(Value::Blob(changed))
}

fn encode(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (data, format) = (bytes(args[0])?, text(args[1])?);
    Ok(Value::Text(match format.to_ascii_lowercase().as_str() {
        "hex" => hex::encode(data),
        "base64" => encode_base64(data),
        "escape" => encode_escape(data),
        _ => return Err(invalid(format!("unrecognized encoding: \"{format}\""))),
    }))
}

fn decode(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (data, format) = (text(args[0])?, text(args[1])?);
    Ok(Value::Blob(match format.to_ascii_lowercase().as_str() {
        "hex" => decode_hex(data)?,
        "base64" => decode_base64(data)?,
        "escape" => decode_escape(data.as_bytes())?,
        _ => return Err(invalid(format!("unrecognized encoding: \"{format}\""))),
    }))
}

fn decode_hex(data: &str) -> Answer<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len() / 2);
    let digit =
        |c: char| c.to_digit(16).ok_or_else(|| invalid(format!("invalid hexadecimal digit: \"{c}\"")));
    let mut chars = data.chars().filter(|c| !matches!(c, ' ' | '\n' | '\t' | '\r'));
    while let Some(high) = chars.next() {
        let high = digit(high)?;
        let low = chars.next().ok_or_else(|| invalid("invalid hexadecimal data: odd number of digits"))?;
        out.push((high << 4 | digit(low)?) as u8);
    }
    Ok(out)
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Lines of 76, as MIME has them and PostgreSQL does.
fn encode_base64(data: &[u8]) -> String {
    let mut out = String::with_capacity(data.len() * 4 / 3 + data.len() / 57 + 4);
    for (line, chunk) in data.chunks(57).enumerate() {
        if line > 0 {
            out.push('\n');
        }
        for group in chunk.chunks(3) {
            let bits =
                group.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - group.len()));
            for i in 0..4 {
                let sextet = (bits >> (18 - 6 * i) & 63) as usize;
                out.push(if i <= group.len() { char::from(BASE64[sextet]) } else { '=' });
            }
        }
    }
    out
}

fn decode_base64(data: &str) -> Answer<Vec<u8>> {
    let unexpected =
        |c: char| invalid(format!("invalid symbol \"{c}\" found while decoding base64 sequence"));
    let incomplete = || {
        invalid("invalid base64 end sequence")
            .with_hint("Input data is missing padding, is truncated, or is otherwise corrupted.")
    };
    let mut out = Vec::with_capacity(data.len() / 4 * 3);
    let (mut bits, mut count, mut padding) = (0u32, 0, 0);
    for c in data.chars().filter(|c| !matches!(c, ' ' | '\n' | '\t' | '\r')) {
        let sextet = if c == '=' {
            if padding == 0 {
                if count < 2 {
                    return Err(invalid("unexpected \"=\" while decoding base64 sequence"));
                }
                padding = if count == 2 { 2 } else { 1 };
            }
            0
        } else if padding > 0 {
            return Err(unexpected(c));
        } else {
            let place = BASE64.iter().position(|b| char::from(*b) == c);
            place.ok_or_else(|| unexpected(c))? as u32
        };
        bits = bits << 6 | sextet;
        count += 1;
        if count == 4 {
            out.extend_from_slice(&[(bits >> 16) as u8, (bits >> 8) as u8, bits as u8][..3 - padding]);
            (bits, count) = (0, 0);
        }
    }
    if count == 0 { Ok(out) } else { Err(incomplete()) }
}

fn encode_escape(data: &[u8]) -> String {
    let mut out = String::with_capacity(data.len());
    for &byte in data {
        match byte {
            0 | 0x80.. => out.push_str(&format!("\\{byte:03o}")),
            b'\\' => out.push_str("\\\\"),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

fn decode_escape(mut data: &[u8]) -> Answer<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len());
    loop {
        match data {
            [] => return Ok(out),
            [b'\\', b'\\', rest @ ..] => {
                out.push(b'\\');
                data = rest;
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                data = rest;
            }
            [b'\\', ..] => {
                let message = "invalid input syntax for type bytea";
                return Err(WireError::new(SqlState::INVALID_TEXT_REPRESENTATION, message));
            }
            [byte, rest @ ..] => {
                out.push(*byte);
                data = rest;
            }
        }
    }
}

/// Whether an encoding's name means UTF-8, the only one that Shoal has.
fn utf8(name: &str) -> Answer<()> {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    match plain.to_ascii_lowercase().as_str() {
        "utf8" | "unicode" => Ok(()),
        _ => Err(WireError::unsupported(format!("encoding \"{name}\""))),
    }
}

fn convert_from(args: &[ValueRef<'_>]) -> Answer<Value> {
    utf8(text(args[1])?)?;
    let data = bytes(args[0])?;
    let error = |at: usize| {
        let shown: Vec<String> = data[at..].iter().take(1).map(|b| format!("0x{b:02x}")).collect();
        let message = format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" "));
        WireError::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, message)
    };
    let text = std::str::from_utf8(data).map_err(|e| error(e.valid_up_to()))?;
    match text.find('\0') {
        Some(at) => Err(error(at)),
        None => Ok(Value::Text(text.into())),
    }
}

fn convert_to(args: &[ValueRef<'_>]) -> Answer<Value> {
    utf8(text(args[1])?)?;
    Ok(Value::Blob(text(args[0])?.as_bytes().into()))
}
