//! Integer arithmetic with PostgreSQL's ranges (`int.c`, `int8.c`).

use super::{Answer, Body::*, Native, out_of_range};
use proto::{SqlState, WireError};

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_int2", body: Int1(int2) },
    Native { name: "pg_int4", body: Int1(int4) },
    Native { name: "pg_int2_div", body: Int2(|a, b| int2(div(a, b)?)) },
    Native { name: "pg_int4_div", body: Int2(|a, b| int4(div(a, b)?)) },
    Native { name: "pg_int8_div", body: Int2(div) },
    Native { name: "pg_int8_add", body: Int2(|a, b| a.checked_add(b).ok_or_else(|| out_of_range("bigint"))) },
    Native { name: "pg_int8_sub", body: Int2(|a, b| a.checked_sub(b).ok_or_else(|| out_of_range("bigint"))) },
    Native { name: "pg_int8_mul", body: Int2(|a, b| a.checked_mul(b).ok_or_else(|| out_of_range("bigint"))) },
    Native { name: "pg_int8_neg", body: Int1(|a| a.checked_neg().ok_or_else(|| out_of_range("bigint"))) },
    Native { name: "pg_int8_abs", body: Int1(|a| a.checked_abs().ok_or_else(|| out_of_range("bigint"))) },
    Native { name: "pg_mod", body: Int2(|a, b| if b == 0 { Err(by_zero()) } else { Ok(a.wrapping_rem(b)) }) },
    Native { name: "pg_xor", body: Int2(|a, b| Ok(a ^ b)) },
    // The machine's shifts, as in C on the usual machines: the count wraps.
    Native {
        name: "pg_int2_shl",
        body: Int2(|a, b| Ok(i64::from((a as i32).wrapping_shl(b as u32) as i16))),
    },
    Native { name: "pg_int4_shl", body: Int2(|a, b| Ok(i64::from((a as i32).wrapping_shl(b as u32)))) },
    Native { name: "pg_int8_shl", body: Int2(|a, b| Ok(a.wrapping_shl(b as u32))) },
    Native { name: "pg_int4_shr", body: Int2(|a, b| Ok(i64::from((a as i32).wrapping_shr(b as u32)))) },
    Native { name: "pg_int8_shr", body: Int2(|a, b| Ok(a.wrapping_shr(b as u32))) },
    Native { name: "pg_int4_gcd", body: Int2(|a, b| i32_of(gcd(a, b))) },
    Native { name: "pg_int8_gcd", body: Int2(|a, b| i64_of(gcd(a, b))) },
    Native { name: "pg_int4_lcm", body: Int2(|a, b| i32_of(lcm(a, b))) },
    Native { name: "pg_int8_lcm", body: Int2(|a, b| i64_of(lcm(a, b))) },
];

fn int2(v: i64) -> Answer<i64> {
    i16::try_from(v).map(i64::from).map_err(|_| out_of_range("smallint"))
}

fn int4(v: i64) -> Answer<i64> {
    i32::try_from(v).map(i64::from).map_err(|_| out_of_range("integer"))
}

fn div(a: i64, b: i64) -> Answer<i64> {
    if b == 0 {
        return Err(by_zero());
    }
    a.checked_div(b).ok_or_else(|| out_of_range("bigint"))
}

pub(super) fn by_zero() -> WireError {
    WireError::new(SqlState::DIVISION_BY_ZERO, "division by zero")
}

fn gcd(a: i64, b: i64) -> i128 {
    num_integer::gcd(i128::from(a), i128::from(b))
}

fn lcm(a: i64, b: i64) -> i128 {
    num_integer::lcm(i128::from(a), i128::from(b))
}

fn i32_of(v: i128) -> Answer<i64> {
    i32::try_from(v).map(i64::from).map_err(|_| out_of_range("integer"))
}

fn i64_of(v: i128) -> Answer<i64> {
    i64::try_from(v).map_err(|_| out_of_range("bigint"))
}
