//! Numeric arithmetic: [`crate::numeric`] over stored bytes.

use super::{Answer, Body::*, Native, int, int4, invalid, numeric};
use crate::numeric::Numeric;
use proto::{Value, ValueRef, WireError};

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_numeric_add", body: Numeric2(|a, b| a.add(b)) },
    Native { name: "pg_numeric_sub", body: Numeric2(|a, b| a.sub(b)) },
    Native { name: "pg_numeric_mul", body: Numeric2(|a, b| a.mul(b)) },
    Native { name: "pg_numeric_div", body: Numeric2(|a, b| a.div(b)) },
    Native { name: "pg_numeric_rem", body: Numeric2(|a, b| a.rem(b)) },
    Native { name: "pg_numeric_quotient", body: Numeric2(|a, b| a.div_trunc(b)) },
    Native { name: "pg_numeric_power", body: Numeric2(|a, b| a.power(b)) },
    Native { name: "pg_numeric_log", body: Numeric2(|a, b| a.log(b)) },
    Native { name: "pg_numeric_neg", body: Numeric1(|a| Ok(a.neg())) },
    Native { name: "pg_numeric_abs", body: Numeric1(|a| Ok(a.abs())) },
    Native { name: "pg_numeric_sign", body: Numeric1(|a| Ok(a.sign())) },
    Native { name: "pg_numeric_sqrt", body: Numeric1(|a| a.sqrt()) },
    Native { name: "pg_numeric_exp", body: Numeric1(|a| a.exp()) },
    Native { name: "pg_numeric_ln", body: Numeric1(|a| a.ln()) },
    Native { name: "pg_numeric_log10", body: Numeric1(|a| Numeric::from_i64(10).log(a)) },
    Native { name: "pg_numeric_ceil", body: Numeric1(|a| a.ceil()) },
    Native { name: "pg_numeric_floor", body: Numeric1(|a| a.floor()) },
    Native { name: "pg_numeric_trim", body: Numeric1(|a| Ok(a.trim_scale())) },
    Native { name: "pg_numeric_gcd", body: Numeric2(|a, b| a.gcd(b)) },
    Native { name: "pg_numeric_lcm", body: Numeric2(lcm) },
    Native { name: "pg_numeric_round", body: Strict(2, |a| stored(numeric(a[0])?.round(int4(a[1])?))) },
    Native { name: "pg_numeric_trunc", body: Strict(2, |a| stored(numeric(a[0])?.trunc(int4(a[1])?))) },
    Native { name: "pg_numeric_scale", body: Strict(1, |a| scale(&numeric(a[0])?)) },
    Native {
        name: "pg_numeric_min_scale",
        body: Strict(1, |a| Ok(numeric(a[0])?.min_scale().map_or(Value::Null, |s| Value::Int(s.into())))),
    },
    Native {
        name: "pg_numeric_fit",
        body: Strict(2, |a| stored(numeric(a[0])?.apply_modifier(int4(a[1])?))),
    },
    Native { name: "pg_numeric_avg_of", body: Strict(2, average) },
    Native { name: "pg_int_numeric", body: Strict(1, |a| stored(Ok(Numeric::from_i64(int(a[0])?)))) },
    Native { name: "pg_factorial", body: Strict(1, factorial) },
];

pub(super) fn stored(value: Answer<Numeric>) -> Answer<Value> {
    Ok(Value::Blob(value?.encode()))
}

fn scale(value: &Numeric) -> Answer<Value> {
    Ok(value.scale().map_or(Value::Null, |scale| Value::Int(scale.into())))
}

/// A sum over a count: `avg` from its partial results. No rows, no average.
fn average(args: &[ValueRef<'_>]) -> Answer<Value> {
    match int(args[1])? {
        0 => Ok(Value::Null),
        count => stored(numeric(args[0])?.div(&Numeric::from_i64(count))),
    }
}

fn lcm(a: &Numeric, b: &Numeric) -> Answer<Numeric> {
    if !matches!((a, b), (Numeric::Finite(_), Numeric::Finite(_))) {
        return Ok(Numeric::NaN);
    }
    let scale = a.scale().max(b.scale()).unwrap_or(0);
    if a.is_zero() || b.is_zero() {
        return Numeric::from_i64(0).round(scale);
    }
    a.abs().div_trunc(&a.gcd(b)?)?.mul(&b.abs())?.round(scale)
}

fn factorial(args: &[ValueRef<'_>]) -> Answer<Value> {
    let n = int(args[0])?;
    if n < 0 {
        let message = "factorial of a negative number is undefined";
        return Err(WireError::new(proto::SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message));
    }
    if n > 32177 {
        let message = "value overflows numeric format";
        return Err(WireError::new(proto::SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message));
    }
    let product = (2..=n).fold(num_bigint::BigInt::from(1), |product, i| product * i);
    stored(Numeric::parse(&product.to_string()).map_err(|_| invalid("factorial out of range")))
}
