//! Numerics from and to floats.

use super::{Decimal, Integer, Numeric};
use crate::float;
use proto::WireError;

impl Numeric {
    /// `float8::numeric`: 15 significant digits, as PostgreSQL does it.
    pub fn from_f64(value: f64) -> Result<Self, WireError> {
        from_digits(value, 15)
    }

    /// `float4::numeric`: 6 significant digits.
    pub fn from_f32(value: f32) -> Result<Self, WireError> {
        from_digits(f64::from(value), 6)
    }

    /// The nearest double. Out of range is 22003; NaN is refused.
    pub fn to_f64(&self) -> Result<f64, WireError> {
        match self {
            Numeric::NegativeInfinity => Ok(f64::NEG_INFINITY),
            Numeric::Infinity => Ok(f64::INFINITY),
            Numeric::NaN => Err(float::refuse_nan()),
            Numeric::Finite(_) => float::parse_f64(&self.to_string()),
        }
    }

    /// The nearest 32-bit float. Out of range is 22003; NaN is refused.
    pub fn to_f32(&self) -> Result<f32, WireError> {
        match self {
            Numeric::NegativeInfinity => Ok(f32::NEG_INFINITY),
            Numeric::Infinity => Ok(f32::INFINITY),
            Numeric::NaN => Err(float::refuse_nan()),
            Numeric::Finite(_) => float::parse_f32(&self.to_string()),
        }
    }
}

fn from_digits(value: f64, significant: usize) -> Result<Numeric, WireError> {
    if value.is_nan() {
        return Ok(Numeric::NaN);
    }
    if value.is_infinite() {
        return Ok(if value > 0.0 { Numeric::Infinity } else { Numeric::NegativeInfinity });
    }
    let text = format!("{value:.*e}", significant - 1);
    let (mantissa, exponent) = text.split_once('e').expect("Rust's exponent form has an e");
    let exponent: i32 = exponent.parse().expect("Rust's exponent is an integer");
    let digits: Vec<u8> = mantissa.bytes().filter(u8::is_ascii_digit).collect();
    let end = digits.iter().rposition(|&digit| digit != b'0').map_or(0, |last| last + 1);
    let unscaled = Integer::from_digits(&digits[..end]);
    let scale = end as i32 - 1 - exponent;
    let unscaled = if value < 0.0 { unscaled.neg() } else { unscaled };
    let zeros = if end == 0 { 0 } else { (-scale).max(0) as u32 };
    Decimal::new(unscaled.shift_up(zeros), if end == 0 { 0 } else { scale.max(0) as u32 }).checked()
}
