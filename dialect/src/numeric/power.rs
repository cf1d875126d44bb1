//! Roots, exponentials, logarithms and powers.
//!
//! PostgreSQL decides the display scale of each from an estimate of the result's size; the estimates here are its
//! own (numeric.c: `estimate_ln_dweight`, `log_var`, `power_var`). The digits come from series in fixed point with
//! guard digits to spare.

use super::arithmetic::{DIGITS_PER_WORD, MAX_DISPLAY_SCALE, MIN_SIGNIFICANT_DIGITS};
use super::{Decimal, Integer, Numeric, overflow};
use num_bigint::BigInt;
use num_traits::{One, Zero};
use proto::{SqlState, WireError};
use std::f64::consts::LOG10_E;

use Numeric::{Finite, Infinity, NaN, NegativeInfinity};

/// PostgreSQL's NUMERIC_MAX_RESULT_SCALE.
const MAX_RESULT_SCALE: f64 = 2000.0;
/// Digits computed beyond those asked for.
const GUARD: i32 = 20;

fn refuse_power(message: &str) -> WireError {
    WireError::new(SqlState::INVALID_ARGUMENT_FOR_POWER_FUNCTION, message)
}

fn refuse_logarithm(sign: i32) -> WireError {
    let of = if sign == 0 { "zero" } else { "a negative number" };
    WireError::new(SqlState::INVALID_ARGUMENT_FOR_LOGARITHM, format!("cannot take logarithm of {of}"))
}

fn complex() -> WireError {
    refuse_power("a negative number raised to a non-integer power yields a complex result")
}

fn display_scale(scale: i32, inputs: &[&Decimal]) -> i32 {
    let wanted = inputs.iter().fold(scale, |scale, input| scale.max(input.scale as i32));
    wanted.clamp(0, MAX_DISPLAY_SCALE)
}

fn one() -> Decimal {
    Decimal::new(1i64.into(), 0)
}

impl Decimal {
    /// The nearest double, infinite beyond its range.
    fn approximate(&self) -> f64 {
        let mut text = Vec::new();
        Finite(self.clone()).write_text(&mut text);
        std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::INFINITY)
    }

    fn is_integral(&self) -> bool {
        self.truncated(0).compare(self).is_eq()
    }

    /// Times 10^digits, cut to an integer.
    fn fixed(&self, digits: i32) -> BigInt {
        self.truncated(digits).unscaled.into_big()
    }

    /// PostgreSQL's guess at the decimal weight of the logarithm.
    fn logarithm_weight(&self) -> i32 {
        if self.unscaled.signum() <= 0 {
            return 0;
        }
        let tenths = |n: i64| Decimal::new(n.into(), 1);
        if self.compare(&tenths(9)).is_ge() && self.compare(&tenths(11)).is_le() {
            let scale = self.scale;
            let off = Decimal::new(self.unscaled.sub(&one().unscaled_at(scale)), scale);
            if off.is_zero() {
                return 0;
            }
            let (weight, word) = off.leading_word();
            return weight * DIGITS_PER_WORD + f64::from(word).log10() as i32;
        }
        let (weight, word) = self.leading_word();
        let digits = self.unscaled.digits();
        let lead = word.to_string().len();
        let second = |place: usize| digits.get(lead + place).map_or(0, |digit| i32::from(digit - b'0'));
        // PostgreSQL looks at a second word if there is one after trailing zeros went.
        let more = digits.iter().skip(lead).any(|&digit| digit != b'0');
        let (value, weight) = if more {
            let next = (0..DIGITS_PER_WORD as usize).fold(0, |value, place| value * 10 + second(place));
            (word * 10_000 + next, weight - 1)
        } else {
            (word, weight)
        };
        let logarithm = f64::from(value).ln() + f64::from(weight * DIGITS_PER_WORD) * std::f64::consts::LN_10;
        logarithm.abs().log10() as i32
    }
}

impl Numeric {
    /// `sqrt(a)`.
    pub fn sqrt(&self) -> Result<Self, WireError> {
        if self.signum() < 0 {
            return Err(refuse_power("cannot take square root of a negative number"));
        }
        let Finite(decimal) = self else {
            return Ok(self.clone());
        };
        let before = decimal.leading_word().0 * DIGITS_PER_WORD / 2 + 1;
        let scale = display_scale(MIN_SIGNIFICANT_DIGITS - before, &[decimal]);
        let square = decimal.fixed(2 * scale + 2);
        // One digit more than wanted, cut, and rounded then: a root is never exactly half way unless it is exact.
        let root = Decimal::new(square.sqrt().into(), scale as u32 + 1);
        root.rounded(scale).checked()
    }

    /// `exp(a)`.
    pub fn exp(&self) -> Result<Self, WireError> {
        match self {
            NegativeInfinity => Ok(Self::from_i64(0)),
            Infinity | NaN => Ok(self.clone()),
            Finite(decimal) => {
                let weight = (decimal.approximate() * LOG10_E).clamp(-MAX_RESULT_SCALE, MAX_RESULT_SCALE);
                exponential(decimal, display_scale(MIN_SIGNIFICANT_DIGITS - weight as i32, &[decimal]))
            }
        }
    }

    /// `ln(a)`.
    pub fn ln(&self) -> Result<Self, WireError> {
        if !self.is_nan() && self.signum() <= 0 {
            return Err(refuse_logarithm(self.signum()));
        }
        let Finite(decimal) = self else {
            return Ok(self.clone());
        };
        let scale = display_scale(MIN_SIGNIFICANT_DIGITS - decimal.logarithm_weight(), &[decimal]);
        let digits = scale + GUARD;
        Decimal::new(logarithm(decimal, digits).into(), digits as u32).rounded(scale).checked()
    }

    /// `log(base, a)` with `self` as base.
    pub fn log(&self, other: &Self) -> Result<Self, WireError> {
        if self.is_nan() || other.is_nan() {
            return Ok(NaN);
        }
        if let Some(sign) = [self.signum(), other.signum()].into_iter().filter(|&sign| sign <= 0).min() {
            return Err(refuse_logarithm(sign));
        }
        let (base, number) = match (self, other) {
            (Finite(base), Finite(number)) => (base, number),
            (Infinity, Infinity) => return Ok(NaN),
            (Infinity, _) => return Ok(Self::from_i64(0)),
            _ => return Ok(Infinity),
        };
        let (base_weight, number_weight) = (base.logarithm_weight(), number.logarithm_weight());
        let weight = number_weight - base_weight;
        let scale = display_scale(MIN_SIGNIFICANT_DIGITS - weight, &[base, number]);
        let digits = scale + weight.max(0) + base_weight.abs() + number_weight.abs() + GUARD;
        let part = |of: &Decimal| Decimal::new(logarithm(of, digits).into(), digits as u32);
        let divisor = part(base);
        if divisor.is_zero() {
            return Err(super::arithmetic::division_by_zero());
        }
        part(number).divided(&divisor, scale as u32, true).checked()
    }

    /// `power(a, b)`, `a ^ b`.
    pub fn power(&self, other: &Self) -> Result<Self, WireError> {
        let is = |value: &Self, number: i64| *value == Self::from_i64(number);
        match (self, other) {
            (NaN, _) if is(other, 0) => return Ok(Self::from_i64(1)),
            (_, NaN) if is(self, 1) => return Ok(Self::from_i64(1)),
            (NaN, _) | (_, NaN) => return Ok(NaN),
            _ => {}
        }
        if self.is_zero() && other.signum() < 0 {
            return Err(refuse_power("zero raised to a negative power is undefined"));
        }
        let (Finite(base), Finite(exponent)) = (self, other) else {
            return self.infinite_power(other);
        };
        if exponent.is_integral()
            && let Some(whole) = exponent.truncated(0).unscaled.to_i64().and_then(|v| i32::try_from(v).ok())
        {
            return integer_power(base, whole, display_scale(MIN_SIGNIFICANT_DIGITS, &[base]));
        }
        real_power(base, exponent)
    }

    /// A power with an infinity in it, by POSIX's rules for `pow`.
    fn infinite_power(&self, other: &Self) -> Result<Self, WireError> {
        let constant = |value: i64| Ok(Self::from_i64(value));
        if self.signum() < 0 && matches!(other, Finite(exponent) if !exponent.is_integral()) {
            return Err(complex());
        }
        if *self == Self::from_i64(1) || other.is_zero() {
            return constant(1);
        }
        if self.is_zero() {
            return constant(0);
        }
        let Finite(exponent) = other else {
            if *self == Self::from_i64(-1) {
                return constant(1);
            }
            let grows = (self.abs() > Self::from_i64(1)) == (other.signum() > 0);
            return if grows { Ok(Infinity) } else { constant(0) };
        };
        if exponent.unscaled.signum() < 0 {
            return constant(0);
        }
        let odd = !exponent.truncated(0).unscaled.div_rem(&2i128.into()).1.is_zero();
        Ok(if matches!(self, NegativeInfinity) && odd { NegativeInfinity } else { Infinity })
    }
}

/// `power_var_int`: by repeated squaring.
fn integer_power(base: &Decimal, exponent: i32, scale: i32) -> Result<Numeric, WireError> {
    let at_scale = |value: Integer| Decimal::new(value, 0).rounded(scale).checked();
    match exponent {
        0 => return at_scale(1i64.into()),
        1 => return base.rounded(scale).checked(),
        -1 => return one().divided(base, scale as u32, true).checked(),
        _ if base.is_zero() => return at_scale(Integer::ZERO),
        _ => {}
    }
    let weight = f64::from(exponent) * decimal_logarithm(base);
    if weight > 3.0 * 32_767.0 * f64::from(DIGITS_PER_WORD) {
        return Err(overflow());
    }
    if weight + 1.0 < f64::from(-scale) || weight + 1.0 < f64::from(-MAX_DISPLAY_SCALE) {
        return at_scale(Integer::ZERO);
    }
    let significant = 1 + scale + weight as i32 + f64::from(exponent).abs().ln() as i32 + 8 + GUARD;
    // A reciprocal's digits are as many as those of what it is the reciprocal of.
    let significant = if exponent < 0 { significant.max(scale) + GUARD } else { significant };
    let mut square = base.clone();
    let mut bits = exponent.unsigned_abs();
    let mut product = if bits & 1 == 1 { base.clone() } else { one() };
    while bits > 1 {
        bits >>= 1;
        square = product_to(&square, &square, significant);
        if bits & 1 == 1 {
            product = product_to(&square, &product, significant);
        }
        if square.digits_before().max(product.digits_before()) > 2 * super::MAX_DIGITS_BEFORE as i32 {
            return if exponent < 0 { at_scale(Integer::ZERO) } else { Err(overflow()) };
        }
    }
    if exponent < 0 {
        one().divided(&product, scale as u32, true).checked()
    } else {
        product.rounded(scale).checked()
    }
}

/// The product, with this many significant digits at least, or all it has.
fn product_to(a: &Decimal, b: &Decimal, significant: i32) -> Decimal {
    let product = Decimal::new(a.unscaled.mul(&b.unscaled), a.scale + b.scale);
    let scale = (significant - product.digits_before() + 1).max(0);
    if scale < product.scale as i32 { product.rounded(scale) } else { product }
}

/// Roughly log10 of the absolute value.
fn decimal_logarithm(value: &Decimal) -> f64 {
    let digits = value.unscaled.digits();
    let lead = digits.iter().take(17).fold(0.0, |lead, digit| lead * 10.0 + f64::from(digit - b'0'));
    lead.log10() + (digits.len() - digits.len().min(17)) as f64 - f64::from(value.scale)
}

fn real_power(base: &Decimal, exponent: &Decimal) -> Result<Numeric, WireError> {
    if base.is_zero() {
        return Ok(Finite(Decimal::new(Integer::ZERO, MIN_SIGNIFICANT_DIGITS as u32)));
    }
    let integral = exponent.is_integral();
    if base.unscaled.signum() < 0 && !integral {
        return Err(complex());
    }
    let magnitude = Decimal::new(base.unscaled.abs(), base.scale);
    let base_weight = magnitude.logarithm_weight();
    let rough = 8 - base_weight.min(0) + GUARD;
    let logarithm_of = |digits: i32| Decimal::new(logarithm(&magnitude, digits).into(), digits as u32);
    let times = |a: &Decimal| Decimal::new(a.unscaled.mul(&exponent.unscaled), a.scale + exponent.scale);
    let estimate = times(&logarithm_of(rough)).approximate();
    if estimate.abs() > MAX_RESULT_SCALE * 3.01 {
        return if estimate > 0.0 {
            Err(overflow())
        } else {
            Ok(Finite(Decimal::new(Integer::ZERO, MAX_DISPLAY_SCALE as u32)))
        };
    }
    let weight = estimate * LOG10_E;
    let scale = display_scale(MIN_SIGNIFICANT_DIGITS - weight as i32, &[base, exponent]);
    let digits = scale + (weight as i32).max(0) + exponent.digits_before().max(0) + GUARD;
    let result = exponential(&times(&logarithm_of(digits)), scale)?;
    let odd = integral && !exponent.truncated(0).unscaled.div_rem(&2i128.into()).1.is_zero();
    Ok(if base.unscaled.signum() < 0 && odd { result.neg() } else { result })
}

/// e to the power of a number, at a scale.
fn exponential(power: &Decimal, scale: i32) -> Result<Numeric, WireError> {
    let rough = power.approximate();
    if rough.abs() >= MAX_RESULT_SCALE * 3.0 {
        return if rough > 0.0 {
            Err(overflow())
        } else {
            Ok(Finite(Decimal::new(Integer::ZERO, scale as u32)))
        };
    }
    // Halve the argument until the series is short, and square the sum as often. Each squaring may double the error.
    let halvings = (rough.abs().log2().max(0.0) as u32) + 8;
    let digits = scale + (rough * LOG10_E).max(0.0) as i32 + halvings as i32 + GUARD;
    let unit = BigInt::from(10).pow(digits as u32);
    let argument = power.fixed(digits) / (BigInt::one() << halvings);
    let mut sum = unit.clone();
    let mut term = unit.clone();
    for n in 1u32.. {
        term = &term * &argument / &unit / n;
        if term.is_zero() {
            break;
        }
        sum += &term;
    }
    for _ in 0..halvings {
        sum = &sum * &sum / &unit;
    }
    Decimal::new(sum.into(), digits as u32).rounded(scale).checked()
}

/// The natural logarithm of a positive number, times 10^digits.
fn logarithm(value: &Decimal, digits: i32) -> BigInt {
    let guarded = digits + 10;
    let unit = BigInt::from(10).pow(guarded as u32);
    // value = mantissa * 2^twos, mantissa within a factor of two of 1.
    let denominator = BigInt::from(10).pow(value.scale);
    let numerator = value.unscaled.clone().into_big();
    let twos = numerator.bits() as i64 - denominator.bits() as i64;
    let mantissa = if twos >= 0 {
        &numerator * &unit / (denominator << twos)
    } else {
        ((&numerator * &unit) << -twos) / denominator
    };
    let ratio = (&mantissa - &unit) * &unit / (&mantissa + &unit);
    let two = inverse_hyperbolic_tangent(&(&unit / 3), &unit) * 2;
    let sum = inverse_hyperbolic_tangent(&ratio, &unit) * 2 + two * twos;
    let cut = BigInt::from(10).pow((guarded - digits) as u32);
    sum / cut
}

/// atanh(x / unit) * unit.
fn inverse_hyperbolic_tangent(x: &BigInt, unit: &BigInt) -> BigInt {
    let square = x * x / unit;
    let mut power = x.clone();
    let mut sum = x.clone();
    for n in (3u32..).step_by(2) {
        power = &power * &square / unit;
        let term = &power / n;
        if term.is_zero() {
            break;
        }
        sum += term;
    }
    sum
}
