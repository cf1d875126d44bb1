//! Exact decimal numbers with PostgreSQL's rules.
//!
//! In come texts, integers, floats and stored bytes; out come the same, and the results of arithmetic with the
//! display scale that PostgreSQL 15 gives them. Nothing here knows a column.
//!
//! A value lives as an integer and a display scale ([`Decimal`]); PostgreSQL keeps no digit beyond the display scale
//! either, so the two say the same. Bounds are PostgreSQL's: 131072 digits before the point, 16383 after it.

mod arithmetic;
mod float;
mod integer;
mod power;
mod storage;
mod text;
mod wire;

use integer::Integer;
use proto::{SqlState, WireError};
use std::cmp::Ordering;

pub use storage::SCALE_BYTES;

/// A numeric: a decimal of any length with its display scale, or one of the three special values.
#[derive(Clone, Debug)]
pub enum Numeric {
    /// `-Infinity`, below everything else.
    NegativeInfinity,
    /// A number.
    Finite(Decimal),
    /// `Infinity`, above every number.
    Infinity,
    /// `NaN`: equal to itself and above everything else.
    NaN,
}

/// A finite numeric: an integer divided by ten to the power of the display scale.
#[derive(Clone, Debug)]
pub struct Decimal {
    unscaled: Integer,
    scale: u32,
}

/// Digits that may stand before the point.
const MAX_DIGITS_BEFORE: u32 = 131_072;
/// The greatest display scale.
const MAX_SCALE: u32 = 16_383;

fn overflow() -> WireError {
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format")
}

impl Decimal {
    fn new(unscaled: Integer, scale: u32) -> Self {
        Self { unscaled, scale }
    }

    /// The value if it is within PostgreSQL's bounds, else 22003.
    fn checked(self) -> Result<Numeric, WireError> {
        let digits = MAX_DIGITS_BEFORE + self.scale;
        let too_long = self.unscaled.may_exceed_digits(digits) && self.unscaled.digit_count() > digits;
        if too_long || self.scale > MAX_SCALE { Err(overflow()) } else { Ok(Numeric::Finite(self)) }
    }

    /// The integer that the value would have at another, not smaller, scale.
    fn unscaled_at(&self, scale: u32) -> Integer {
        self.unscaled.shift_up(scale - self.scale)
    }

    /// Rounded to a scale (half away from zero), or filled up with zeros to it. A negative scale rounds before the
    /// point and leaves a display scale of 0.
    fn rounded(&self, scale: i32) -> Decimal {
        self.rescaled(scale, Integer::div_round)
    }

    /// Cut to a scale, or filled up with zeros to it.
    fn truncated(&self, scale: i32) -> Decimal {
        self.rescaled(scale, |a, b| a.div_rem(b).0)
    }

    fn rescaled(&self, scale: i32, divide: impl Fn(&Integer, &Integer) -> Integer) -> Decimal {
        let drop = i64::from(self.scale) - i64::from(scale);
        if drop <= 0 {
            let scale = scale as u32;
            return Decimal::new(self.unscaled_at(scale), scale);
        }
        // One digit more than there are leaves nothing but a zero, and spares a huge power.
        let unscaled = if drop > i64::from(self.unscaled.digit_count()) {
            Integer::ZERO
        } else {
            divide(&self.unscaled, &integer::power_of_ten(drop as u32))
        };
        Decimal::new(unscaled.shift_up(scale.min(0).unsigned_abs()), scale.max(0) as u32)
    }

    /// How many digits stand before the point; 0 or less if the first significant one stands after it.
    fn digits_before(&self) -> i32 {
        self.unscaled.digit_count() as i32 - self.scale as i32
    }

    fn is_zero(&self) -> bool {
        self.unscaled.is_zero()
    }

    fn compare(&self, other: &Decimal) -> Ordering {
        if self.scale == other.scale {
            return self.unscaled.compare(&other.unscaled);
        }
        let signs = self.unscaled.signum().cmp(&other.unscaled.signum());
        if signs != Ordering::Equal {
            return signs;
        }
        let scale = self.scale.max(other.scale);
        self.unscaled_at(scale).compare(&other.unscaled_at(scale))
    }
}

impl From<i64> for Numeric {
    fn from(value: i64) -> Self {
        Self::from_i64(value)
    }
}

impl Numeric {
    /// An integer, of scale 0.
    pub fn from_i64(value: i64) -> Self {
        Self::from_unscaled(value, 0)
    }

    /// `unscaled` divided by ten to the power of `scale`, shown with that scale (at most 16383).
    pub fn from_unscaled(unscaled: i64, scale: u16) -> Self {
        Numeric::Finite(Decimal::new(unscaled.into(), u32::from(scale).min(MAX_SCALE)))
    }

    /// Rounded (half away from zero) to an integer; `kind` is what errors call the target, for example `bigint`.
    fn to_integer(&self, kind: &str) -> Result<Option<i64>, WireError> {
        let refuse = |what: &str| {
            Err(WireError::new(SqlState::FEATURE_NOT_SUPPORTED, format!("cannot convert {what} to {kind}")))
        };
        match self {
            Numeric::NaN => refuse("NaN"),
            Numeric::Infinity | Numeric::NegativeInfinity => refuse("infinity"),
            Numeric::Finite(decimal) if decimal.scale == 0 => Ok(decimal.unscaled.to_i64()),
            Numeric::Finite(decimal) => Ok(decimal.rounded(0).unscaled.to_i64()),
        }
    }

    /// Rounded (half away from zero) to an integer; `kind` is what errors call the target, for example `bigint`.
    pub fn to_i64(&self, kind: &str) -> Result<i64, WireError> {
        self.to_integer(kind)?.ok_or_else(|| out_of_range(kind))
    }

    /// Rounded to an `integer`.
    pub fn to_i32(&self) -> Result<i32, WireError> {
        let value = self.to_integer("integer")?;
        value.and_then(|v| v.try_into().ok()).ok_or_else(|| out_of_range("integer"))
    }

    /// Rounded to a `smallint`.
    pub fn to_i16(&self) -> Result<i16, WireError> {
        let value = self.to_integer("smallint")?;
        value.and_then(|v| v.try_into().ok()).ok_or_else(|| out_of_range("smallint"))
    }

    /// `scale(a)`: digits after the point as shown. `None` for the special values.
    pub fn scale(&self) -> Option<i32> {
        match self {
            Numeric::Finite(decimal) => Some(decimal.scale as i32),
            _ => None,
        }
    }

    /// Whether it is `NaN`.
    pub fn is_nan(&self) -> bool {
        matches!(self, Numeric::NaN)
    }

    /// Whether it is a number that is zero.
    pub fn is_zero(&self) -> bool {
        matches!(self, Numeric::Finite(decimal) if decimal.is_zero())
    }

    /// PostgreSQL's total order: -Infinity, numbers, Infinity, NaN. 1.0 and 1.00 are equal.
    pub fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Numeric::Finite(a), Numeric::Finite(b)) => a.compare(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Numeric::NegativeInfinity => 0,
            Numeric::Finite(_) => 1,
            Numeric::Infinity => 2,
            Numeric::NaN => 3,
        }
    }

    /// -1, 0 or 1 by the sign; 0 for NaN.
    fn signum(&self) -> i32 {
        match self {
            Numeric::NegativeInfinity => -1,
            Numeric::Finite(decimal) => decimal.unscaled.signum(),
            Numeric::Infinity => 1,
            Numeric::NaN => 0,
        }
    }

    /// What a column of type `numeric(p, s)` makes of the value; -1 for no modifier.
    pub fn apply_modifier(self, modifier: i32) -> Result<Self, WireError> {
        if modifier < 4 {
            return Ok(self);
        }
        let (precision, scale) = precision_and_scale(modifier);
        let refuse = |detail: String| {
            Err(WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow")
                .with_detail(format!("A field with precision {precision}, scale {scale} {detail}.")))
        };
        let decimal = match self {
            Numeric::NaN => return Ok(self),
            Numeric::Infinity | Numeric::NegativeInfinity => {
                return refuse("cannot hold an infinite value".into());
            }
            Numeric::Finite(decimal) if i64::from(decimal.scale) == i64::from(scale) => decimal,
            Numeric::Finite(decimal) => decimal.rounded(scale),
        };
        let most = precision - scale;
        if !decimal.is_zero() && decimal.digits_before() > most {
            let limit = if most == 0 { "1".into() } else { format!("10^{most}") };
            return refuse(format!("must round to an absolute value less than {limit}"));
        }
        Ok(Numeric::Finite(decimal))
    }
}

/// Precision and scale of a `numeric(p, s)` modifier.
pub fn precision_and_scale(modifier: i32) -> (i32, i32) {
    let packed = modifier - 4;
    ((packed >> 16) & 0xffff, ((packed & 0x7ff) ^ 1024) - 1024)
}

fn out_of_range(kind: &str) -> WireError {
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{kind} out of range"))
}

impl PartialEq for Numeric {
    fn eq(&self, other: &Self) -> bool {
        self.compare(other) == Ordering::Equal
    }
}

impl Eq for Numeric {}

impl PartialOrd for Numeric {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Numeric {
    fn cmp(&self, other: &Self) -> Ordering {
        self.compare(other)
    }
}

impl std::fmt::Display for Numeric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = Vec::new();
        self.write_text(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}
