//! Floats as text.
//!
//! In come texts as PostgreSQL's float input takes them and doubles; out come the same. Texts are the shortest that
//! read back as the same value, laid out as PostgreSQL 12 and later do. NaN is refused: SQLite would store NULL.

use num_bigint::BigInt;
use num_traits::FromPrimitive;
use proto::{SqlState, WireError};
use std::fmt::Write as _;

/// `0A000`: NaN has no storage form.
pub fn refuse_nan() -> WireError {
    WireError::unsupported("NaN in a floating-point value")
        .with_hint("Use NULL, or the type numeric, which can hold NaN.")
}

fn out_of_range(text: &str, kind: &str) -> WireError {
    let message = format!("\"{text}\" is out of range for type {kind}");
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message)
}

fn invalid(text: &str, kind: &str) -> WireError {
    let message = format!("invalid input syntax for type {kind}: \"{text}\"");
    WireError::new(SqlState::INVALID_TEXT_REPRESENTATION, message)
}

/// What C's `isspace` calls white space.
fn is_space(byte: char) -> bool {
    matches!(byte, ' ' | '\t'..='\r')
}

/// What a text says, before its range is looked at.
enum Read<T> {
    Value(T),
    NaN,
    Invalid,
}

fn read<T: std::str::FromStr>(text: &str, infinity: T, negative_infinity: T) -> Read<T> {
    let text = text.trim_matches(is_space);
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    // Rust reads these words too; only digits go its way.
    if unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return text.parse().map_or(Read::Invalid, Read::Value);
    }
    if unsigned.eq_ignore_ascii_case("nan") {
        return Read::NaN;
    }
    if unsigned.eq_ignore_ascii_case("infinity") || unsigned.eq_ignore_ascii_case("inf") {
        return Read::Value(if text.starts_with('-') { negative_infinity } else { infinity });
    }
    Read::Invalid
}

/// Whether the text writes a number that isn't zero: then a result of zero is an underflow.
fn has_nonzero_digit(text: &str) -> bool {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'))
}

fn has_digit(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
}

/// `float8`'s input: 22P02 for what isn't a number, 22003 for what is too big or too near zero, 0A000 for NaN.
pub fn parse_f64(text: &str) -> Result<f64, WireError> {
    const KIND: &str = "double precision";
    match read(text, f64::INFINITY, f64::NEG_INFINITY) {
        Read::NaN => Err(refuse_nan()),
        Read::Invalid => Err(invalid(text, KIND)),
        Read::Value(v) if (v.is_infinite() && has_digit(text)) || (v == 0.0 && has_nonzero_digit(text)) => {
            Err(out_of_range(text.trim_matches(is_space), KIND))
        }
        Read::Value(v) => Ok(v),
    }
}

/// `float4`'s input.
pub fn parse_f32(text: &str) -> Result<f32, WireError> {
    const KIND: &str = "real";
    match read(text, f32::INFINITY, f32::NEG_INFINITY) {
        Read::NaN => Err(refuse_nan()),
        Read::Invalid => Err(invalid(text, KIND)),
        Read::Value(v) if (v.is_infinite() && has_digit(text)) || (v == 0.0 && has_nonzero_digit(text)) => {
            Err(out_of_range(text.trim_matches(is_space), KIND))
        }
        Read::Value(v) => Ok(v),
    }
}

/// Appends `float8`'s text form.
pub fn write_f64(value: f64, out: &mut Vec<u8>) {
    let mut text = Buffer::of(value);
    let rounded = |digits: usize| Buffer::of(format_args!("{value:.digits$e}"));
    let reads_back = |text: &str| text.parse() == Ok(value);
    text = break_tie(text, 16, rounded, reads_back);
    // Below, no number halfway between two neighbours has as few digits as the shortest form.
    if value.abs() >= 9_007_199_254_740_992.0 && value.is_finite() && value.to_bits() & 1 == 0 {
        let magnitude = value.abs();
        let middles = Middles::new([magnitude.next_down(), magnitude, magnitude.next_up()]);
        text = middles.avoid(text, 17, rounded, reads_back);
    }
    lay_out(text.as_str(), 15, out);
}

/// Appends `float4`'s text form.
pub fn write_f32(value: f32, out: &mut Vec<u8>) {
    let mut text = Buffer::of(value);
    let rounded = |digits: usize| Buffer::of(format_args!("{value:.digits$e}"));
    let reads_back = |text: &str| text.parse() == Ok(value);
    text = break_tie(text, 7, rounded, reads_back);
    if value.abs() >= 16_777_216.0 && value.is_finite() && value.to_bits() & 1 == 0 {
        let magnitude = value.abs();
        let middles = Middles::new([magnitude.next_down(), magnitude, magnitude.next_up()].map(f64::from));
        text = middles.avoid(text, 9, rounded, reads_back);
    }
    lay_out(text.as_str(), 6, out);
}

/// Of two shortest forms that are equally near PostgreSQL takes the even one, Rust the greater. Forms of fewer than
/// `least` digits are nearer than that to their float.
fn break_tie(
    text: Buffer,
    least: usize,
    rounded: impl Fn(usize) -> Buffer,
    reads_back: impl Fn(&str) -> bool,
) -> Buffer {
    let digits = text.digits();
    if digits.len() < least || digits.last().is_none_or(|digit| digit % 2 == 0) {
        return text;
    }
    let even = rounded(digits.len() - 1);
    if reads_back(even.as_str()) { even } else { text }
}

/// The two points, times two, where a float's neighbours begin. A number exactly there reads as the float if its
/// last bit is 0, and Rust's shortest form makes use of that; PostgreSQL's doesn't: it shows 1e23 as
/// 9.999999999999999e+22.
struct Middles([BigInt; 2]);

impl Middles {
    /// From a float between its neighbours, all whole numbers but for an infinite upper one.
    fn new([below, value, above]: [f64; 3]) -> Self {
        let whole = |float: f64| BigInt::from_f64(float);
        let value = whole(value).unwrap_or_default();
        let below = whole(below).unwrap_or_default();
        let above = whole(above).unwrap_or_else(|| &value * 2 - &below);
        Self([below + &value, value + above])
    }

    fn contains(&self, text: &str) -> bool {
        let (mantissa, exponent) = text.trim_start_matches('-').split_once('e').unwrap_or((text, "0"));
        let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
        let exponent = exponent.parse::<i64>().unwrap_or(0) - (digits.len() as i64 - 1);
        // Anything with a fraction isn't twice a whole number divided by two, for floats this big.
        let (Ok(exponent), Ok(number)) = (u32::try_from(exponent), digits.parse::<BigInt>()) else {
            return false;
        };
        let doubled = number * BigInt::from(10).pow(exponent) * 2;
        self.0.contains(&doubled)
    }

    /// The text itself, or the shortest one after it that isn't on the edge.
    fn avoid(
        &self,
        text: Buffer,
        most: usize,
        rounded: impl Fn(usize) -> Buffer,
        reads_back: impl Fn(&str) -> bool,
    ) -> Buffer {
        if !self.contains(text.as_str()) {
            return text;
        }
        let digits =
            text.as_str().bytes().take_while(|&byte| byte != b'e').filter(u8::is_ascii_digit).count();
        for digits in digits..=most {
            let nearest = rounded(digits - 1);
            for candidate in
                [Some(nearest), nearest.neighbour(1), nearest.neighbour(-1)].into_iter().flatten()
            {
                if reads_back(candidate.as_str()) && !self.contains(candidate.as_str()) {
                    return candidate;
                }
            }
        }
        text
    }
}

/// A float's text on the stack.
#[derive(Clone, Copy)]
struct Buffer {
    bytes: [u8; 32],
    len: usize,
}

impl Buffer {
    /// The shortest exponent form of a float, or what was formatted already.
    fn of(value: impl Shown) -> Self {
        let mut buffer = Self { bytes: [0; 32], len: 0 };
        value.show(&mut buffer).expect("a float of at most 17 digits fits 32 bytes");
        buffer
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("only strings were written")
    }

    /// The mantissa's digits.
    fn digits(&self) -> Vec<u8> {
        let mantissa = self.as_str().bytes().take_while(|&byte| byte != b'e');
        mantissa.filter(u8::is_ascii_digit).collect()
    }

    /// The same with its last digit one up or down; `None` if that would carry.
    fn neighbour(mut self, step: i8) -> Option<Self> {
        let last = self.bytes[..self.len].iter().position(|&byte| byte == b'e')? - 1;
        let digit = self.bytes[last].checked_add_signed(step).filter(u8::is_ascii_digit)?;
        self.bytes[last] = digit;
        Some(self)
    }
}

impl std::fmt::Write for Buffer {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = self.bytes[self.len..].get_mut(..text.len()).ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

trait Shown {
    fn show(&self, out: &mut Buffer) -> std::fmt::Result;
}

impl Shown for f64 {
    fn show(&self, out: &mut Buffer) -> std::fmt::Result {
        write!(out, "{self:e}")
    }
}

impl Shown for f32 {
    fn show(&self, out: &mut Buffer) -> std::fmt::Result {
        write!(out, "{self:e}")
    }
}

impl Shown for std::fmt::Arguments<'_> {
    fn show(&self, out: &mut Buffer) -> std::fmt::Result {
        out.write_fmt(*self)
    }
}

/// Appends Rust's exponent form as C's `%g` would show it, with exponents from -4 up to `exponents` written out.
fn lay_out(text: &str, exponents: i32, out: &mut Vec<u8>) {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    if unsigned.len() < text.len() {
        out.push(b'-');
    }
    let Some((mantissa, exponent)) = unsigned.split_once('e') else {
        let word = if unsigned == "inf" { "Infinity" } else { unsigned };
        return out.extend_from_slice(word.as_bytes());
    };
    let exponent: i32 = exponent.parse().expect("Rust's exponent is an integer");
    if !(-4..exponents).contains(&exponent) {
        out.extend_from_slice(mantissa.as_bytes());
        out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
        let exponent = exponent.unsigned_abs();
        if exponent >= 100 {
            out.push(b'0' + (exponent / 100) as u8);
        }
        out.extend_from_slice(&[b'0' + (exponent / 10 % 10) as u8, b'0' + (exponent % 10) as u8]);
        return;
    }
    let (first, rest) = mantissa.split_at(1);
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + exponent.unsigned_abs() as usize - 1, b'0');
        out.extend_from_slice(first.as_bytes());
        return out.extend_from_slice(rest.as_bytes());
    }
    let (whole, fraction) = rest.split_at(rest.len().min(exponent as usize));
    out.extend_from_slice(first.as_bytes());
    out.extend_from_slice(whole.as_bytes());
    out.resize(out.len() + exponent as usize - whole.len(), b'0');
    if !fraction.is_empty() {
        out.push(b'.');
        out.extend_from_slice(fraction.as_bytes());
    }
}
