//! The four operations, rounding and signs.
//!
//! Display scales are PostgreSQL's: the greater one for `+` and `-`, the sum for `*`, and for `/` enough for sixteen
//! significant digits (`select_div_scale` in its numeric.c).

use super::{Decimal, MAX_SCALE, Numeric};
use crate::numeric::integer::Integer;
use num_integer::Integer as _;
use proto::{SqlState, WireError};

use Numeric::{Finite, Infinity, NaN, NegativeInfinity};

/// Significant digits that a quotient has at least.
pub(super) const MIN_SIGNIFICANT_DIGITS: i32 = 16;
/// Beyond this scale PostgreSQL doesn't go on its own.
pub(super) const MAX_DISPLAY_SCALE: i32 = 1000;
/// `round` and `trunc` go no further to either side.
const MAX_ROUND_SCALE: i32 = 2000;
/// PostgreSQL's numerics are made of digits of this many decimal ones; its scale rules show it.
pub(super) const DIGITS_PER_WORD: i32 = 4;

pub(super) fn division_by_zero() -> WireError {
    WireError::new(SqlState::DIVISION_BY_ZERO, "division by zero")
}

impl Decimal {
    /// The place of the first base-10000 digit (0: the one before the point) and the digit, as PostgreSQL's numeric
    /// has them. Both 0 for zero.
    pub(super) fn leading_word(&self) -> (i32, i32) {
        let digits = self.unscaled.digits();
        if digits.is_empty() {
            return (0, 0);
        }
        let before = digits.len() as i32 - self.scale as i32;
        let weight = (before - 1).div_euclid(DIGITS_PER_WORD);
        let taken = before - weight * DIGITS_PER_WORD;
        let digit = |place: i32| digits.get(place as usize).map_or(0, |digit| i32::from(digit - b'0'));
        (weight, (0..taken).fold(0, |word, place| word * 10 + digit(place)))
    }

    /// The quotient at a scale, rounded half away from zero or cut. The divisor must not be zero.
    pub(super) fn divided(&self, divisor: &Decimal, scale: u32, round: bool) -> Decimal {
        let mut dividend = self.unscaled.clone();
        let mut by = divisor.unscaled.clone();
        let shift = i64::from(scale) + i64::from(divisor.scale) - i64::from(self.scale);
        match u32::try_from(shift) {
            Ok(up) => dividend = dividend.shift_up(up),
            Err(_) => by = by.shift_up(shift.unsigned_abs() as u32),
        }
        Decimal::new(if round { dividend.div_round(&by) } else { dividend.div_rem(&by).0 }, scale)
    }

    fn remainder(&self, divisor: &Decimal) -> Decimal {
        let scale = self.scale.max(divisor.scale);
        Decimal::new(self.unscaled_at(scale).div_rem(&divisor.unscaled_at(scale)).1, scale)
    }
}

/// `select_div_scale`.
pub(super) fn division_scale(left: &Decimal, right: &Decimal) -> u32 {
    let ((left_weight, left_digit), (right_weight, right_digit)) =
        (left.leading_word(), right.leading_word());
    let mut quotient_weight = left_weight - right_weight;
    if left_digit <= right_digit {
        quotient_weight -= 1;
    }
    let scale = MIN_SIGNIFICANT_DIGITS - quotient_weight * DIGITS_PER_WORD;
    scale.max(left.scale as i32).max(right.scale as i32).clamp(0, MAX_DISPLAY_SCALE) as u32
}

impl Numeric {
    /// `+`.
    pub fn add(&self, other: &Self) -> Result<Self, WireError> {
        match (self, other) {
            (Finite(a), Finite(b)) => {
                let scale = a.scale.max(b.scale);
                Decimal::new(a.unscaled_at(scale).add(&b.unscaled_at(scale)), scale).checked()
            }
            (NaN, _) | (_, NaN) | (Infinity, NegativeInfinity) | (NegativeInfinity, Infinity) => Ok(NaN),
            (Infinity, _) | (_, Infinity) => Ok(Infinity),
            (NegativeInfinity, _) | (_, NegativeInfinity) => Ok(NegativeInfinity),
        }
    }

    /// `-`.
    pub fn sub(&self, other: &Self) -> Result<Self, WireError> {
        self.add(&other.neg())
    }

    /// `*`.
    pub fn mul(&self, other: &Self) -> Result<Self, WireError> {
        match (self, other) {
            (Finite(a), Finite(b)) => {
                let product = Decimal::new(a.unscaled.mul(&b.unscaled), a.scale + b.scale);
                if product.scale > MAX_SCALE { product.rounded(MAX_SCALE as i32) } else { product }.checked()
            }
            (NaN, _) | (_, NaN) => Ok(NaN),
            _ => Ok(Self::infinity(self.signum() * other.signum())),
        }
    }

    /// `/`. Zero divides nothing: 22012.
    pub fn div(&self, other: &Self) -> Result<Self, WireError> {
        self.quotient(other, division_scale, true)
    }

    /// `div(a, b)`: the quotient cut to an integer.
    pub fn div_trunc(&self, other: &Self) -> Result<Self, WireError> {
        self.quotient(other, |_, _| 0, false)
    }

    fn quotient(
        &self,
        other: &Self,
        scale: impl Fn(&Decimal, &Decimal) -> u32,
        round: bool,
    ) -> Result<Self, WireError> {
        match (self, other) {
            (NaN, _) | (_, NaN) => Ok(NaN),
            (_, Finite(b)) if b.is_zero() => Err(division_by_zero()),
            (Finite(a), Finite(b)) => a.divided(b, scale(a, b), round).checked(),
            (Finite(_), _) => Ok(Self::from_i64(0)),
            (_, Finite(b)) => Ok(Self::infinity(self.signum() * b.unscaled.signum())),
            _ => Ok(NaN),
        }
    }

    /// `%`: has the sign of `self`.
    pub fn rem(&self, other: &Self) -> Result<Self, WireError> {
        match (self, other) {
            (NaN, _) | (_, NaN) => Ok(NaN),
            (_, Finite(b)) if b.is_zero() => Err(division_by_zero()),
            (Finite(a), Finite(b)) => a.remainder(b).checked(),
            (Finite(_), _) => Ok(self.clone()),
            _ => Ok(NaN),
        }
    }

    /// `gcd(a, b)`.
    pub fn gcd(&self, other: &Self) -> Result<Self, WireError> {
        match (self, other) {
            (Finite(a), Finite(b)) => {
                let scale = a.scale.max(b.scale);
                let (a, b) = (a.unscaled_at(scale).into_big(), b.unscaled_at(scale).into_big());
                Decimal::new(Integer::from(a.gcd(&b)), scale).checked()
            }
            _ => Ok(NaN),
        }
    }

    /// The infinity of a sign; NaN for none.
    fn infinity(sign: i32) -> Self {
        match sign {
            1.. => Infinity,
            0 => NaN,
            _ => NegativeInfinity,
        }
    }

    /// `-a`.
    pub fn neg(&self) -> Self {
        match self {
            NegativeInfinity => Infinity,
            Finite(decimal) => Finite(Decimal::new(decimal.unscaled.neg(), decimal.scale)),
            Infinity => NegativeInfinity,
            NaN => NaN,
        }
    }

    /// `abs(a)`.
    pub fn abs(&self) -> Self {
        if self.signum() < 0 { self.neg() } else { self.clone() }
    }

    /// `sign(a)`: -1, 0, 1 or NaN.
    pub fn sign(&self) -> Self {
        if self.is_nan() { NaN } else { Self::from_i64(self.signum().into()) }
    }

    /// `round(a, scale)`: half away from zero; a negative scale rounds before the point.
    pub fn round(&self, scale: i32) -> Result<Self, WireError> {
        match self {
            Finite(decimal) => decimal.rounded(scale.clamp(-MAX_ROUND_SCALE, MAX_ROUND_SCALE)).checked(),
            _ => Ok(self.clone()),
        }
    }

    /// `trunc(a, scale)`: towards zero.
    pub fn trunc(&self, scale: i32) -> Result<Self, WireError> {
        match self {
            Finite(decimal) => decimal.truncated(scale.clamp(-MAX_ROUND_SCALE, MAX_ROUND_SCALE)).checked(),
            _ => Ok(self.clone()),
        }
    }

    /// `ceil(a)`.
    pub fn ceil(&self) -> Result<Self, WireError> {
        self.to_whole(1)
    }

    /// `floor(a)`.
    pub fn floor(&self) -> Result<Self, WireError> {
        self.to_whole(-1)
    }

    /// Without its fraction, which counts as a whole one in the direction.
    fn to_whole(&self, direction: i32) -> Result<Self, WireError> {
        let Finite(decimal) = self else {
            return Ok(self.clone());
        };
        let whole = decimal.truncated(0);
        if decimal.unscaled.signum() != direction || whole.compare(decimal).is_eq() {
            return Ok(Finite(whole));
        }
        Decimal::new(whole.unscaled.add(&i128::from(direction).into()), 0).checked()
    }

    /// `trim_scale(a)`: without trailing zeros after the point.
    pub fn trim_scale(&self) -> Self {
        let Finite(decimal) = self else {
            return self.clone();
        };
        let digits = decimal.unscaled.digits();
        let zeros = match digits.iter().rposition(|&digit| digit != b'0') {
            Some(last) => (digits.len() - 1 - last) as u32,
            None => decimal.scale,
        };
        Finite(decimal.truncated((decimal.scale - zeros.min(decimal.scale)) as i32))
    }

    /// `min_scale(a)`: the digits after the point that are needed.
    pub fn min_scale(&self) -> Option<i32> {
        self.trim_scale().scale()
    }
}
