//! A numeric's text form.

use super::integer::Integer;
use super::{Decimal, MAX_DIGITS_BEFORE, MAX_SCALE, Numeric, overflow};
use proto::{SqlState, WireError};

/// As PostgreSQL bounds an exponent before it adds it up.
const MAX_EXPONENT: i64 = i32::MAX as i64 / 2;

impl Numeric {
    /// Reads PostgreSQL's text form, white space around it allowed.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        read(trim(text.as_bytes())).unwrap_or_else(|| {
            Err(WireError::new(
                SqlState::INVALID_TEXT_REPRESENTATION,
                format!("invalid input syntax for type numeric: \"{text}\""),
            ))
        })
    }

    /// Appends the text form.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        match self {
            Numeric::NegativeInfinity => out.extend_from_slice(b"-Infinity"),
            Numeric::Infinity => out.extend_from_slice(b"Infinity"),
            Numeric::NaN => out.extend_from_slice(b"NaN"),
            Numeric::Finite(decimal) => write_decimal(decimal, out),
        }
    }
}

fn write_decimal(decimal: &Decimal, out: &mut Vec<u8>) {
    if decimal.unscaled.signum() < 0 {
        out.push(b'-');
    }
    let digits = decimal.unscaled.digits();
    let scale = decimal.scale as usize;
    if digits.len() > scale {
        out.extend_from_slice(&digits[..digits.len() - scale]);
    } else {
        out.push(b'0');
    }
    if scale > 0 {
        out.push(b'.');
        let zeros = scale.saturating_sub(digits.len());
        out.resize(out.len() + zeros, b'0');
        out.extend_from_slice(&digits[digits.len() - (scale - zeros)..]);
    }
}

/// What C's `isspace` calls white space.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let Some((first, rest)) = text.split_first().filter(|(byte, _)| is_space(**byte)) {
        let _ = first;
        text = rest;
    }
    while let Some((last, rest)) = text.split_last().filter(|(byte, _)| is_space(**byte)) {
        let _ = last;
        text = rest;
    }
    text
}

/// `None` for what isn't a number.
fn read(text: &[u8]) -> Option<Result<Numeric, WireError>> {
    let (negative, rest) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    if !rest.first()?.is_ascii_digit() && rest[0] != b'.' {
        if text.eq_ignore_ascii_case(b"nan") {
            return Some(Ok(Numeric::NaN));
        }
        let infinite = rest.eq_ignore_ascii_case(b"infinity") || rest.eq_ignore_ascii_case(b"inf");
        let value = if negative { Numeric::NegativeInfinity } else { Numeric::Infinity };
        return infinite.then_some(Ok(value));
    }
    let (whole, rest) = split_digits(rest);
    let (fraction, rest) = match rest.split_first() {
        Some((b'.', rest)) => split_digits(rest),
        _ => (&rest[..0], rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let exponent = match rest.split_first() {
        None => 0,
        Some((b'e' | b'E', rest)) => read_exponent(rest)?,
        Some(_) => return None,
    };
    if exponent.abs() >= MAX_EXPONENT {
        return Some(Err(overflow()));
    }
    Some(build(negative, whole, fraction, exponent))
}

fn build(negative: bool, whole: &[u8], fraction: &[u8], exponent: i64) -> Result<Numeric, WireError> {
    let significant = |digits: &[u8]| digits.iter().position(|&digit| digit != b'0');
    let whole = &whole[significant(whole).unwrap_or(whole.len())..];
    // How many digits stand before the point; `None` for zero.
    let before = match (whole, significant(fraction)) {
        ([], None) => None,
        ([], Some(zeros)) => Some(exponent - zeros as i64),
        _ => Some(exponent + whole.len() as i64),
    };
    let scale = (fraction.len() as i64 - exponent).max(0);
    // Decided before any digit is read: reading very many takes long.
    if scale > i64::from(MAX_SCALE) || before.is_some_and(|before| before > i64::from(MAX_DIGITS_BEFORE)) {
        return Err(overflow());
    }
    if before.is_none() {
        return Ok(Numeric::Finite(Decimal::new(Integer::ZERO, scale as u32)));
    }
    let unscaled = if fraction.is_empty() {
        Integer::from_digits(whole)
    } else if whole.len() + fraction.len() <= 38 {
        let mut digits = [0u8; 38];
        digits[..whole.len()].copy_from_slice(whole);
        digits[whole.len()..whole.len() + fraction.len()].copy_from_slice(fraction);
        Integer::from_digits(&digits[..whole.len() + fraction.len()])
    } else {
        Integer::from_digits(&[whole, fraction].concat())
    };
    let unscaled = unscaled.shift_up((exponent - fraction.len() as i64).max(0) as u32);
    Decimal::new(if negative { unscaled.neg() } else { unscaled }, scale as u32).checked()
}

/// As C's `strtol`, which PostgreSQL reads it with: white space and a sign may come first.
fn read_exponent(text: &[u8]) -> Option<i64> {
    let text = trim(text);
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let fold = |value: i64, digit: &u8| value.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
    let value = digits.iter().fold(0, fold);
    Some(if negative { -value } else { value })
}

fn split_digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len()))
}
