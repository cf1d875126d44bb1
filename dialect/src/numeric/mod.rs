//! Exact decimal numbers with PostgreSQL's rules.
//!
//! In come texts, integers, floats and stored bytes; out come the same, and the results of arithmetic with the
//! display scale that PostgreSQL 15 gives them. Nothing here knows a column or its modifier's place in the catalog.

use proto::WireError;
use std::cmp::Ordering;

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
    unscaled: num_bigint::BigInt,
    scale: u16,
}

fn pending<T>() -> Result<T, WireError> {
    Err(WireError::unsupported("numeric"))
}

impl Numeric {
    /// Reads PostgreSQL's text form, white space around it allowed.
    pub fn parse(_text: &str) -> Result<Self, WireError> {
        pending()
    }

    /// Appends the text form.
    pub fn write_text(&self, _out: &mut Vec<u8>) {}

    /// Reads the storage form. Fails (XX001) on bytes that no numeric has.
    pub fn decode(_bytes: &[u8]) -> Result<Self, WireError> {
        pending()
    }

    /// The storage form.
    pub fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    /// An integer, of scale 0.
    pub fn from_i64(value: i64) -> Self {
        Numeric::Finite(Decimal { unscaled: value.into(), scale: 0 })
    }

    /// `float8::numeric`: 15 significant digits, as PostgreSQL does it.
    pub fn from_f64(_value: f64) -> Result<Self, WireError> {
        pending()
    }

    /// `float4::numeric`: 6 significant digits.
    pub fn from_f32(_value: f32) -> Result<Self, WireError> {
        pending()
    }

    /// Rounded (half away from zero) to an integer; `kind` is what 22003 calls the target, for example `bigint`.
    pub fn to_i64(&self, _kind: &str) -> Result<i64, WireError> {
        pending()
    }

    /// The nearest double. Out of range is 22003.
    pub fn to_f64(&self) -> Result<f64, WireError> {
        pending()
    }

    /// The nearest 32-bit float. Out of range is 22003.
    pub fn to_f32(&self) -> Result<f32, WireError> {
        pending()
    }

    /// `+`.
    pub fn add(&self, _other: &Self) -> Result<Self, WireError> {
        pending()
    }

    /// `-`.
    pub fn sub(&self, _other: &Self) -> Result<Self, WireError> {
        pending()
    }

    /// `*`.
    pub fn mul(&self, _other: &Self) -> Result<Self, WireError> {
        pending()
    }

    /// `/`. Zero divides nothing: 22012.
    pub fn div(&self, _other: &Self) -> Result<Self, WireError> {
        pending()
    }

    /// `%`: has the sign of `self`.
    pub fn rem(&self, _other: &Self) -> Result<Self, WireError> {
        pending()
    }

    /// `div(a, b)`: the quotient cut to an integer.
    pub fn div_trunc(&self, _other: &Self) -> Result<Self, WireError> {
        pending()
    }

    /// `power(a, b)`, `a ^ b`.
    pub fn power(&self, _other: &Self) -> Result<Self, WireError> {
        pending()
    }

    /// `sqrt(a)`.
    pub fn sqrt(&self) -> Result<Self, WireError> {
        pending()
    }

    /// `exp(a)`.
    pub fn exp(&self) -> Result<Self, WireError> {
        pending()
    }

    /// `ln(a)`.
    pub fn ln(&self) -> Result<Self, WireError> {
        pending()
    }

    /// `log(base, a)` with `self` as base.
    pub fn log(&self, _other: &Self) -> Result<Self, WireError> {
        pending()
    }

    /// `-a`.
    pub fn neg(&self) -> Self {
        self.clone()
    }

    /// `abs(a)`.
    pub fn abs(&self) -> Self {
        self.clone()
    }

    /// `sign(a)`: -1, 0, 1 or NaN.
    pub fn sign(&self) -> Self {
        self.clone()
    }

    /// `round(a, scale)`: half away from zero; a negative scale rounds before the point.
    pub fn round(&self, _scale: i32) -> Result<Self, WireError> {
        pending()
    }

    /// `trunc(a, scale)`: towards zero.
    pub fn trunc(&self, _scale: i32) -> Result<Self, WireError> {
        pending()
    }

    /// `ceil(a)`.
    pub fn ceil(&self) -> Result<Self, WireError> {
        pending()
    }

    /// `floor(a)`.
    pub fn floor(&self) -> Result<Self, WireError> {
        pending()
    }

    /// `scale(a)`: digits after the point as shown. `None` for the special values.
    pub fn scale(&self) -> Option<i32> {
        None
    }

    /// `trim_scale(a)`.
    pub fn trim_scale(&self) -> Self {
        self.clone()
    }

    /// What a column of type `numeric(p, s)` makes of the value; -1 for no modifier.
    pub fn apply_modifier(&self, _modifier: i32) -> Result<Self, WireError> {
        pending()
    }

    /// PostgreSQL's total order: -Infinity, numbers, Infinity, NaN. 1.0 and 1.00 are equal.
    pub fn compare(&self, _other: &Self) -> Ordering {
        Ordering::Equal
    }
}
