//! Floating-point arithmetic with PostgreSQL's errors (`float.c`): an overflow or underflow is an error, and so is
//! what has no result. NaN can't be stored, so no input is NaN.

use super::{Answer, Body::*, Native, integers::by_zero, out_of_range};
use proto::{SqlState, Value, WireError};

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_float8_add", body: Real2(|a, b| finite(a + b, a.is_infinite() || b.is_infinite())) },
    Native { name: "pg_float8_sub", body: Real2(|a, b| finite(a - b, a.is_infinite() || b.is_infinite())) },
    Native { name: "pg_float8_mul", body: Real2(mul) },
    Native { name: "pg_float8_div", body: Real2(div) },
    Native {
        name: "pg_float4_add",
        body: Real2(|a, b| finite((a as f32 + b as f32).into(), a.is_infinite() || b.is_infinite())),
    },
    Native {
        name: "pg_float4_sub",
        body: Real2(|a, b| finite((a as f32 - b as f32).into(), a.is_infinite() || b.is_infinite())),
    },
    Native { name: "pg_float4_mul", body: Real2(mul4) },
    Native { name: "pg_float4_div", body: Real2(div4) },
    Native { name: "pg_float_neg", body: Real1(|a| Ok(-a)) },
    Native { name: "pg_float4", body: Real1(to_float4) },
    Native { name: "pg_round", body: Real1(|a| Ok(a.round_ties_even())) },
    Native { name: "pg_trunc", body: Real1(|a| Ok(a.trunc())) },
    Native { name: "pg_ceil", body: Real1(|a| Ok(a.ceil())) },
    Native { name: "pg_floor", body: Real1(|a| Ok(a.floor())) },
    Native { name: "pg_sign", body: Real1(|a| Ok(if a == 0.0 { 0.0 } else { a.signum() })) },
    Native { name: "pg_sqrt", body: Real1(sqrt) },
    Native { name: "pg_cbrt", body: Real1(|a| checked(cbrt(a), a.is_infinite(), a == 0.0)) },
    Native { name: "pg_power", body: Real2(power) },
    Native { name: "pg_exp", body: Real1(exp) },
    Native { name: "pg_ln", body: Real1(|a| logarithm(a, f64::ln)) },
    Native { name: "pg_log10", body: Real1(|a| logarithm(a, f64::log10)) },
    Native { name: "pg_sin", body: Real1(|a| circular(a, f64::sin)) },
    Native { name: "pg_cos", body: Real1(|a| circular(a, f64::cos)) },
    Native { name: "pg_tan", body: Real1(|a| circular(a, f64::tan)) },
    Native { name: "pg_cot", body: Real1(|a| circular(a, |a| 1.0 / a.tan())) },
    Native { name: "pg_asin", body: Real1(|a| inverse(a, f64::asin)) },
    Native { name: "pg_acos", body: Real1(|a| inverse(a, f64::acos)) },
    Native { name: "pg_atan", body: Real1(|a| Ok(a.atan())) },
    Native { name: "pg_atan2", body: Real2(|a, b| Ok(a.atan2(b))) },
    Native { name: "pg_sinh", body: Real1(|a| finite(a.sinh(), true)) },
    Native { name: "pg_cosh", body: Real1(|a| finite(a.cosh(), true)) },
    Native { name: "pg_tanh", body: Real1(|a| Ok(a.tanh())) },
    Native {
        name: "pg_degrees",
        body: Real1(|a| finite(a / (std::f64::consts::PI / 180.0), a.is_infinite())),
    },
    Native {
        name: "pg_radians",
        body: Real1(|a| finite(a * (std::f64::consts::PI / 180.0), a.is_infinite())),
    },
    Native {
        name: "pg_float_int2",
        body: Strict(1, |a| to_int(super::real(a[0])?, -32768.0, 32768.0, "smallint")),
    },
    Native {
        name: "pg_float_int4",
        body: Strict(1, |a| to_int(super::real(a[0])?, -2147483648.0, 2147483648.0, "integer")),
    },
    Native {
        name: "pg_float_int8",
        body: Strict(1, |a| {
            to_int(super::real(a[0])?, -9223372036854775808.0, 9223372036854775808.0, "bigint")
        }),
    },
    Native {
        name: "pg_float8_avg_of",
        body: Strict(2, |a| Ok(Value::Real((super::real(a[0])? + 0.0) / super::real(a[1])?))),
    },
    Native { name: "pg_int_float4", body: Strict(1, |a| Ok(Value::Real((super::int(a[0])? as f32).into()))) },
];

pub(super) fn overflow() -> WireError {
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow")
}

fn underflow() -> WireError {
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: underflow")
}

/// The result, unless it is infinite for another reason than an infinite input.
fn finite(result: f64, infinite_input: bool) -> Answer<f64> {
    if result.is_infinite() && !infinite_input { Err(overflow()) } else { Ok(result) }
}

/// The result, unless it overflowed, or is zero where it mustn't be.
fn checked(result: f64, may_be_infinite: bool, may_be_zero: bool) -> Answer<f64> {
    if result == 0.0 && !may_be_zero {
        return Err(underflow());
    }
    finite(result, may_be_infinite)
}

fn mul(a: f64, b: f64) -> Answer<f64> {
    checked(a * b, a.is_infinite() || b.is_infinite(), a == 0.0 || b == 0.0)
}

fn div(a: f64, b: f64) -> Answer<f64> {
    if b == 0.0 {
        return Err(by_zero());
    }
    checked(a / b, a.is_infinite(), a == 0.0 || b.is_infinite())
}

fn mul4(a: f64, b: f64) -> Answer<f64> {
    checked((a as f32 * b as f32).into(), a.is_infinite() || b.is_infinite(), a == 0.0 || b == 0.0)
}

fn div4(a: f64, b: f64) -> Answer<f64> {
    if b == 0.0 {
        return Err(by_zero());
    }
    checked((a as f32 / b as f32).into(), a.is_infinite(), a == 0.0 || b.is_infinite())
}

/// `float8::float4`.
pub(super) fn to_float4(a: f64) -> Answer<f64> {
    checked((a as f32).into(), a.is_infinite(), a == 0.0)
}

fn to_int(a: f64, low: f64, end: f64, kind: &str) -> Answer<Value> {
    let rounded = a.round_ties_even();
    if rounded >= low && rounded < end { Ok(Value::Int(rounded as i64)) } else { Err(out_of_range(kind)) }
}

fn sqrt(a: f64) -> Answer<f64> {
    if a < 0.0 {
        let message = "cannot take square root of a negative number";
        return Err(WireError::new(SqlState::INVALID_ARGUMENT_FOR_POWER_FUNCTION, message));
    }
    Ok(a.sqrt())
}

fn exp(a: f64) -> Answer<f64> {
    if a.is_infinite() {
        return Ok(if a > 0.0 { a } else { 0.0 });
    }
    checked(a.exp(), false, false)
}

fn power(a: f64, b: f64) -> Answer<f64> {
    let refused = |message| Err(WireError::new(SqlState::INVALID_ARGUMENT_FOR_POWER_FUNCTION, message));
    if a == 0.0 && b < 0.0 {
        return refused("zero raised to a negative power is undefined");
    }
    if a < 0.0 && b.is_finite() && b.floor() != b {
        return refused("a negative number raised to a non-integer power yields a complex result");
    }
    if a.is_infinite() || b.is_infinite() {
        return Ok(a.powf(b));
    }
    checked(a.powf(b), false, a == 0.0)
}

fn logarithm(a: f64, f: fn(f64) -> f64) -> Answer<f64> {
    let refused = |message| Err(WireError::new(SqlState::INVALID_ARGUMENT_FOR_LOGARITHM, message));
    if a == 0.0 {
        return refused("cannot take logarithm of zero");
    }
    if a < 0.0 {
        return refused("cannot take logarithm of a negative number");
    }
    checked(f(a), a.is_infinite(), a == 1.0)
}

fn circular(a: f64, f: fn(f64) -> f64) -> Answer<f64> {
    if a.is_infinite() {
        return Err(WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "input is out of range"));
    }
    Ok(f(a))
}

fn inverse(a: f64, f: fn(f64) -> f64) -> Answer<f64> {
    if !(-1.0..=1.0).contains(&a) {
        return Err(WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "input is out of range"));
    }
    Ok(f(a))
}

/// glibc's cube root, which PostgreSQL calls: not always the nearest double, so Rust's own won't do.
fn cbrt(x: f64) -> f64 {
    const CBRT2: f64 = 1.259_921_049_894_873_2;
    const SQR_CBRT2: f64 = 1.587_401_051_968_199_6;
    const FACTOR: [f64; 5] = [1.0 / SQR_CBRT2, 1.0 / CBRT2, 1.0, CBRT2, SQR_CBRT2];
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let (m, exponent) = split(x.abs());
    let u = 0.35489576504391984
        + (1.508191937815849
            - (2.114994941673713
                - (2.4469312256353444
                    - (1.8346927748361308 - (0.7849323449766392 - 0.14526389938548637 * m) * m) * m)
                    * m)
                * m)
            * m;
    let cube = u * u * u;
    let factor = FACTOR[usize::try_from(2 + exponent % 3).expect("a remainder of 3 is from -2 to 2")];
    let root = u * (cube + 2.0 * m) / (2.0 * cube + m) * factor * 2f64.powi(exponent / 3);
    if x > 0.0 { root } else { -root }
}

/// `frexp` of a positive number: a fraction in [0.5, 1) and the power of two that it is multiplied by.
fn split(x: f64) -> (f64, i32) {
    const FRACTION: u64 = (1 << 52) - 1;
    let normal = x >= f64::MIN_POSITIVE;
    let (scaled, shift) = if normal { (x, 0) } else { (x * 2f64.powi(54), 54) };
    let bits = scaled.to_bits();
    let exponent = (bits >> 52) as i32 - 1022 - shift;
    (f64::from_bits(bits & FRACTION | 1022 << 52), exponent)
}
