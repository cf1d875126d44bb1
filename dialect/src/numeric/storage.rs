//! A numeric's storage form: bytes that compare as values.
//!
//! The form is the *key part*, then the *display scale* as [`SCALE_BYTES`] bytes, big-endian (0 for the special
//! values). The key part is the key form: equal exactly where PostgreSQL's `=` holds, and `memcmp` orders it as
//! PostgreSQL orders numerics. No key part is a prefix of another, so whole storage forms sort by value too, and
//! those of one value by display scale: `min` and `max` may run on either.
//!
//! The value is written as 0.d1 d2 d3 .. times 100^e with digits of base 100, d1 not 0, the last one not 0.
//!
//! | first byte | meaning | then |
//! |---|---|---|
//! | 80 | zero | |
//! | 81 | positive, e < -16 | e + 32768 as two bytes, digits |
//! | 82 ..= c1 | positive, e = first byte - 82 - 16 | digits |
//! | c2 | positive, e > 47 | e - 48 as two bytes, digits |
//! | c3 | Infinity | |
//! | c4 | NaN | |
//!
//! A digit is written as 2d + 1, the last one as 2d. A negative value is its absolute value's key part with every
//! bit flipped (3d to 7e), -Infinity is 3c. Rows of a cluster hold these bytes, so they may never change: the golden
//! vectors hold them still.

use super::integer::Integer;
use super::{Decimal, MAX_DIGITS_BEFORE, MAX_SCALE, Numeric};
use proto::{SqlState, WireError};

/// How many bytes at the end of the storage form are the display scale.
pub const SCALE_BYTES: usize = 2;

const NEGATIVE_INFINITY: u8 = 0x3c;
const ZERO: u8 = 0x80;
const TINY: u8 = 0x81;
const SMALL_FIRST: u8 = 0x82;
const SMALL_LAST: u8 = 0xc1;
const HUGE: u8 = 0xc2;
const INFINITY: u8 = 0xc3;
const NAN: u8 = 0xc4;

const SMALL_LEAST: i32 = -16;
const SMALL_MOST: i32 = 47;
const TINY_BIAS: i32 = 32_768;

impl Numeric {
    /// The storage form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        self.encode_into(&mut out);
        out
    }

    /// Appends the storage form.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Numeric::NegativeInfinity => out.push(NEGATIVE_INFINITY),
            Numeric::Infinity => out.push(INFINITY),
            Numeric::NaN => out.push(NAN),
            Numeric::Finite(decimal) => encode_key(decimal, out),
        }
        let scale = self.scale().unwrap_or(0) as u16;
        out.extend_from_slice(&scale.to_be_bytes());
    }

    /// Reads the storage form. Fails (XX001) on bytes that no numeric has.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let corrupt = || WireError::new(SqlState::DATA_CORRUPTED, "malformed numeric in storage");
        let (key, scale) = bytes.split_last_chunk::<SCALE_BYTES>().ok_or_else(corrupt)?;
        decode_key(key, u16::from_be_bytes(*scale).into()).ok_or_else(corrupt)
    }
}

fn encode_key(decimal: &Decimal, out: &mut Vec<u8>) {
    if decimal.is_zero() {
        out.push(ZERO);
        return;
    }
    let start = out.len();
    let digits = decimal.unscaled.digits();
    // Decimal digits before the point; e counts in pairs, rounded up, and an odd count leaves the first digit alone.
    let before = digits.len() as i32 - decimal.scale as i32;
    let e = before.div_euclid(2) + before.rem_euclid(2);
    match e {
        ..SMALL_LEAST => {
            out.push(TINY);
            out.extend_from_slice(&((e + TINY_BIAS) as u16).to_be_bytes());
        }
        SMALL_LEAST..=SMALL_MOST => out.push(SMALL_FIRST + (e - SMALL_LEAST) as u8),
        _ => {
            out.push(HUGE);
            out.extend_from_slice(&((e - SMALL_MOST - 1) as u16).to_be_bytes());
        }
    }
    let end = digits.iter().rposition(|&digit| digit != b'0').map_or(0, |last| last + 1);
    let (alone, pairs) = digits[..end].split_at(before.rem_euclid(2) as usize);
    out.extend(alone.iter().map(|digit| 2 * (digit - b'0') + 1));
    for pair in pairs.chunks(2) {
        let units = pair.get(1).map_or(0, |digit| digit - b'0');
        out.push(2 * (10 * (pair[0] - b'0') + units) + 1);
    }
    if let Some(last) = out.last_mut() {
        *last -= 1;
    }
    if decimal.unscaled.signum() < 0 {
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
}

fn decode_key(key: &[u8], scale: u32) -> Option<Numeric> {
    let (&first, rest) = key.split_first()?;
    let special = match first {
        NEGATIVE_INFINITY => Some(Numeric::NegativeInfinity),
        INFINITY => Some(Numeric::Infinity),
        NAN => Some(Numeric::NaN),
        _ => None,
    };
    if special.is_some() {
        return special.filter(|_| rest.is_empty() && scale == 0);
    }
    if scale > MAX_SCALE {
        return None;
    }
    if first == ZERO {
        return rest.is_empty().then_some(Numeric::Finite(Decimal::new(Integer::ZERO, scale)));
    }
    let flip = if first < ZERO { 0xff } else { 0 };
    let (e, digits) = match first ^ flip {
        tag @ SMALL_FIRST..=SMALL_LAST => (i32::from(tag - SMALL_FIRST) + SMALL_LEAST, rest),
        tag @ (TINY | HUGE) => {
            let (bytes, digits) = rest.split_first_chunk::<2>()?;
            let stored = i32::from(u16::from_be_bytes(bytes.map(|byte| byte ^ flip)));
            let e = if tag == TINY { stored - TINY_BIAS } else { stored + SMALL_MOST + 1 };
            // One number has one form.
            if (tag == TINY && e >= SMALL_LEAST) || e > MAX_DIGITS_BEFORE as i32 / 2 {
                return None;
            }
            (e, digits)
        }
        _ => return None,
    };
    let unscaled = decode_digits(digits, flip, e, scale)?;
    Some(Numeric::Finite(Decimal::new(if flip == 0 { unscaled } else { unscaled.neg() }, scale)))
}

/// The integer that digits of base 100 and their exponent make at a display scale.
fn decode_digits(digits: &[u8], flip: u8, e: i32, scale: u32) -> Option<Integer> {
    let (&last, leading) = digits.split_last()?;
    let is_last = |byte: u8| (byte ^ flip) & 1 == 0;
    if !is_last(last) || last ^ flip == 0 || leading.iter().any(|&byte| is_last(byte)) {
        return None;
    }
    if digits.iter().any(|&byte| (byte ^ flip) / 2 > 99) || (digits[0] ^ flip) / 2 == 0 {
        return None;
    }
    // The integer's decimal digits stop `shift` places right of the last pair's end; a last pair may end in a zero
    // that the display scale doesn't reach.
    let shift = scale as i32 + 2 * (e - digits.len() as i32);
    if digits.len() <= 18 {
        let fold = |value: i128, &byte: &u8| value * 100 + i128::from((byte ^ flip) / 2);
        return at_scale(Integer::from(digits.iter().fold(0i128, fold)), shift);
    }
    let mut ascii = Vec::with_capacity(2 * digits.len());
    for &byte in digits {
        let pair = (byte ^ flip) / 2;
        ascii.extend_from_slice(&[b'0' + pair / 10, b'0' + pair % 10]);
    }
    at_scale(Integer::from_digits(&ascii), shift)
}

fn at_scale(pairs: Integer, shift: i32) -> Option<Integer> {
    match shift {
        0.. => Some(pairs.shift_up(shift as u32)),
        -1 => {
            let (unscaled, cut) = pairs.div_rem(&Integer::from(10i128));
            cut.is_zero().then_some(unscaled)
        }
        _ => None,
    }
}
