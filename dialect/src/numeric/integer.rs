//! Integers of any length, quick while they are small.
//!
//! In come and out go integers: `i128` while one fits, a [`BigInt`] beyond. Nothing here knows a scale.

use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive};
use std::cmp::Ordering;
use std::fmt::Write as _;

/// An integer. `Big` never holds what `Small` can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Integer {
    Small(i128),
    Big(BigInt),
}

use Integer::{Big, Small};

/// 10^38 is the greatest power of ten that an `i128` holds.
const SMALL_POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut i = 1;
    while i < 39 {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

/// 10^n.
pub(super) fn power_of_ten(n: u32) -> Integer {
    match SMALL_POWERS.get(n as usize) {
        Some(&power) => Small(power),
        None => Big(BigInt::from(10).pow(n)),
    }
}

impl From<BigInt> for Integer {
    fn from(value: BigInt) -> Self {
        match value.to_i128() {
            Some(small) => Small(small),
            None => Big(value),
        }
    }
}

impl From<i64> for Integer {
    fn from(value: i64) -> Self {
        Small(value.into())
    }
}

impl From<i128> for Integer {
    fn from(value: i128) -> Self {
        Small(value)
    }
}

impl Integer {
    pub(super) const ZERO: Integer = Small(0);

    pub(super) fn into_big(self) -> BigInt {
        match self {
            Small(v) => v.into(),
            Big(v) => v,
        }
    }

    fn big(&self) -> BigInt {
        self.clone().into_big()
    }

    pub(super) fn is_zero(&self) -> bool {
        matches!(self, Small(0))
    }

    /// -1, 0 or 1.
    pub(super) fn signum(&self) -> i32 {
        match self {
            Small(v) => v.signum() as i32,
            Big(v) if v.is_negative() => -1,
            Big(_) => 1,
        }
    }

    pub(super) fn neg(&self) -> Integer {
        match self {
            Small(v) => v.checked_neg().map_or_else(|| Big(-BigInt::from(*v)), Small),
            Big(v) => (-v).into(),
        }
    }

    pub(super) fn abs(&self) -> Integer {
        if self.signum() < 0 { self.neg() } else { self.clone() }
    }

    pub(super) fn add(&self, other: &Integer) -> Integer {
        if let (Small(a), Small(b)) = (self, other)
            && let Some(sum) = a.checked_add(*b)
        {
            return Small(sum);
        }
        (self.big() + other.big()).into()
    }

    pub(super) fn sub(&self, other: &Integer) -> Integer {
        if let (Small(a), Small(b)) = (self, other)
            && let Some(difference) = a.checked_sub(*b)
        {
            return Small(difference);
        }
        (self.big() - other.big()).into()
    }

    pub(super) fn mul(&self, other: &Integer) -> Integer {
        if let (Small(a), Small(b)) = (self, other)
            && let Some(product) = a.checked_mul(*b)
        {
            return Small(product);
        }
        (self.big() * other.big()).into()
    }

    /// Times 10^n.
    pub(super) fn shift_up(&self, n: u32) -> Integer {
        if n == 0 || self.is_zero() { self.clone() } else { self.mul(&power_of_ten(n)) }
    }

    /// The quotient, cut towards zero, and the remainder with the dividend's sign. The divisor must not be zero.
    pub(super) fn div_rem(&self, divisor: &Integer) -> (Integer, Integer) {
        if let (Small(a), Small(b)) = (self, divisor)
            && let (Some(quotient), Some(remainder)) = (a.checked_div(*b), a.checked_rem(*b))
        {
            return (Small(quotient), Small(remainder));
        }
        let (a, b) = (self.big(), divisor.big());
        let quotient = &a / &b;
        let remainder = a - &quotient * b;
        (quotient.into(), remainder.into())
    }

    /// The quotient, rounded half away from zero. The divisor must not be zero.
    pub(super) fn div_round(&self, divisor: &Integer) -> Integer {
        let (quotient, remainder) = self.div_rem(divisor);
        if remainder.is_zero() {
            return quotient;
        }
        let twice = remainder.abs().add(&remainder.abs());
        if twice.compare(&divisor.abs()) == Ordering::Less {
            quotient
        } else {
            quotient.add(&Small(i128::from(self.signum() * divisor.signum())))
        }
    }

    pub(super) fn compare(&self, other: &Integer) -> Ordering {
        match (self, other) {
            (Small(a), Small(b)) => a.cmp(b),
            (Big(a), Big(b)) => a.cmp(b),
            // What doesn't fit lies outside of everything that does.
            (Small(_), Big(b)) => {
                if b.is_negative() {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
            (Big(a), Small(_)) => {
                if a.is_negative() {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
        }
    }

    /// Decimal digits of the absolute value, none for zero, ASCII.
    pub(super) fn digits(&self) -> Digits {
        let mut digits = Digits { bytes: [0; 39], start: 39, long: None };
        match self {
            Small(v) => {
                let mut rest = v.unsigned_abs();
                while rest > u128::from(u64::MAX) {
                    digits.push_front((rest % 10) as u8);
                    rest /= 10;
                }
                let mut rest = rest as u64;
                while rest != 0 {
                    digits.push_front((rest % 10) as u8);
                    rest /= 10;
                }
            }
            Big(v) => {
                let mut long = String::new();
                write!(long, "{}", v.magnitude()).expect("writing to a string can't fail");
                digits.long = Some(long);
            }
        }
        digits
    }

    /// How many decimal digits the absolute value has; 0 for zero.
    pub(super) fn digit_count(&self) -> u32 {
        match self {
            Small(0) => 0,
            Small(v) => v.unsigned_abs().ilog10() + 1,
            Big(v) => {
                // A lower bound of the count from the bits, then at most two steps up.
                let magnitude = BigInt::from(v.magnitude().clone());
                let mut count = ((v.bits() - 1) as f64 * std::f64::consts::LOG10_2) as u32;
                let mut power = BigInt::from(10).pow(count);
                while power <= magnitude {
                    power *= 10;
                    count += 1;
                }
                count
            }
        }
    }

    /// Whether the count of decimal digits can exceed `limit`. Cheap, and never wrongly false.
    pub(super) fn may_exceed_digits(&self, limit: u32) -> bool {
        match self {
            Small(_) => limit < 39,
            Big(v) => v.bits() as f64 * std::f64::consts::LOG10_2 + 1.0 > f64::from(limit),
        }
    }

    /// The integer of ASCII digits.
    pub(super) fn from_digits(digits: &[u8]) -> Integer {
        if digits.len() <= 38 {
            let fold = |value: i128, &digit: &u8| value * 10 + i128::from(digit - b'0');
            return Small(digits.iter().fold(0, fold));
        }
        BigInt::parse_bytes(digits, 10).map_or(Integer::ZERO, Integer::from)
    }

    pub(super) fn to_i64(&self) -> Option<i64> {
        match self {
            Small(v) => i64::try_from(*v).ok(),
            Big(_) => None,
        }
    }
}

/// Decimal digits in ASCII, on the stack while they are few.
pub(super) struct Digits {
    bytes: [u8; 39],
    start: usize,
    long: Option<String>,
}

impl Digits {
    fn push_front(&mut self, digit: u8) {
        self.start -= 1;
        self.bytes[self.start] = b'0' + digit;
    }
}

impl std::ops::Deref for Digits {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.long {
            Some(long) => long.as_bytes(),
            None => &self.bytes[self.start..],
        }
    }
}
