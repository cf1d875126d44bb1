//! A numeric's binary form on the wire.
//!
//! PostgreSQL's `numeric_send`: the count of base-10000 digits, the weight of the first, the sign, the display
//! scale, two bytes each, and the digits.

use super::{Decimal, Integer, MAX_SCALE, Numeric};
use proto::{SqlState, WireError};

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const INFINITY: u16 = 0xd000;
const NEGATIVE_INFINITY: u16 = 0xf000;
/// PostgreSQL's header bits of an infinity show through here.
const SPECIAL_SCALE: u16 = 0x20;

fn malformed(what: &str) -> WireError {
    WireError::new(
        SqlState::INVALID_BINARY_REPRESENTATION,
        format!("invalid {what} in external \"numeric\" value"),
    )
}

impl Numeric {
    /// Appends the binary form.
    pub fn write_binary(&self, out: &mut Vec<u8>) {
        let special = |sign: u16, scale: u16, out: &mut Vec<u8>| {
            out.extend([0, 0, sign, scale].into_iter().flat_map(u16::to_be_bytes));
        };
        match self {
            Numeric::NaN => special(NAN, 0, out),
            Numeric::Infinity => special(INFINITY, SPECIAL_SCALE, out),
            Numeric::NegativeInfinity => special(NEGATIVE_INFINITY, SPECIAL_SCALE, out),
            Numeric::Finite(decimal) => write_decimal(decimal, out),
        }
    }

    /// Reads the binary form.
    pub fn read_binary(bytes: &[u8]) -> Result<Self, WireError> {
        let short = || WireError::new(SqlState::PROTOCOL_VIOLATION, "insufficient data left in message");
        let (header, digits) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let word = |place: usize| u16::from_be_bytes([header[2 * place], header[2 * place + 1]]);
        let (count, weight, sign, scale) = (word(0), word(1) as i16, word(2), u32::from(word(3)));
        if digits.len() != 2 * usize::from(count) {
            return Err(if digits.len() < 2 * usize::from(count) {
                short()
            } else {
                let message = "incorrect binary data format";
                WireError::new(SqlState::INVALID_BINARY_REPRESENTATION, message)
            });
        }
        match sign {
            POSITIVE | NEGATIVE => {}
            NAN => return Ok(Numeric::NaN),
            INFINITY => return Ok(Numeric::Infinity),
            NEGATIVE_INFINITY => return Ok(Numeric::NegativeInfinity),
            _ => return Err(malformed("sign")),
        }
        if scale > MAX_SCALE {
            return Err(malformed("scale"));
        }
        let mut ascii = Vec::with_capacity(4 * usize::from(count));
        for word in digits.chunks_exact(2) {
            let word = u16::from_be_bytes([word[0], word[1]]);
            if word > 9999 {
                return Err(malformed("digit"));
            }
            ascii.extend(
                [word / 1000, word / 100 % 10, word / 10 % 10, word % 10].map(|digit| b'0' + digit as u8),
            );
        }
        let unscaled = Integer::from_digits(&ascii);
        if unscaled.is_zero() {
            return Ok(Numeric::Finite(Decimal::new(unscaled, scale)));
        }
        // Decimal digits after the point that the words reach to. PostgreSQL cuts what lies beyond the scale.
        let reach = 4 * (i32::from(count) - 1 - i32::from(weight));
        let unscaled = unscaled.shift_up((-reach).max(0) as u32);
        let value = Decimal::new(unscaled, reach.max(0) as u32).truncated(scale as i32);
        Decimal::new(if sign == NEGATIVE { value.unscaled.neg() } else { value.unscaled }, scale).checked()
    }
}

fn write_decimal(decimal: &Decimal, out: &mut Vec<u8>) {
    let digits = decimal.unscaled.digits();
    let end = digits.iter().rposition(|&digit| digit != b'0').map_or(0, |last| last + 1);
    let before = digits.len() as i32 - decimal.scale as i32;
    let weight = if end == 0 { 0 } else { (before - 1).div_euclid(4) };
    // How many of the first word's four places the first digits fill.
    let lead = if end == 0 { 0 } else { (before - weight * 4) as usize };
    let count = if end == 0 { 0 } else { 1 + end.saturating_sub(lead).div_ceil(4) };
    let sign = if decimal.unscaled.signum() < 0 { NEGATIVE } else { POSITIVE };
    let header = [count as u16, weight as i16 as u16, sign, decimal.scale as u16];
    out.extend(header.into_iter().flat_map(u16::to_be_bytes));
    let digit = |place: usize| {
        if place < end { u16::from(digits[place] - b'0') } else { 0 }
    };
    for word in 0..count {
        let (from, to) = if word == 0 { (0, lead) } else { (lead + 4 * (word - 1), lead + 4 * word) };
        out.extend_from_slice(&(from..to).fold(0, |value, place| value * 10 + digit(place)).to_be_bytes());
    }
}
