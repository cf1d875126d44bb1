//! The operators.
//!
//! A template uses each argument once: an expression written twice would be evaluated twice, and nesting would double
//! its text at each level. Integers are SQLite's own where it agrees with PostgreSQL; one checked function call where
//! it doesn't (overflow, division by zero).

use super::{Arg, Function};
use crate::types::Type::{self, *};
use Arg::Is;

/// All operators, in groups.
pub(super) static TABLE: &[&[Function]] = &[
    &compare(&[Is(Bool), Is(Bool)]),
    &compare(&[Is(Int2), Is(Int2)]),
    &compare(&[Is(Int2), Is(Int4)]),
    &compare(&[Is(Int2), Is(Int8)]),
    &compare(&[Is(Int4), Is(Int2)]),
    &compare(&[Is(Int4), Is(Int4)]),
    &compare(&[Is(Int4), Is(Int8)]),
    &compare(&[Is(Int8), Is(Int2)]),
    &compare(&[Is(Int8), Is(Int4)]),
    &compare(&[Is(Int8), Is(Int8)]),
    &compare(&[Is(Oid), Is(Oid)]),
    &compare(&[Is(Float4), Is(Float4)]),
    &compare(&[Is(Float4), Is(Float8)]),
    &compare(&[Is(Float8), Is(Float4)]),
    &compare(&[Is(Float8), Is(Float8)]),
    &compare(&[Is(Numeric), Is(Numeric)]),
    &compare(&[Is(Text), Is(Text)]),
    &compare(&[Is(Name), Is(Name)]),
    &compare(&[Is(Name), Is(Text)]),
    &compare(&[Is(Text), Is(Name)]),
    &compare(&[Is(Bpchar), Is(Bpchar)]),
    &compare(&[Is(Char), Is(Char)]),
    &compare(&[Is(Bytea), Is(Bytea)]),
    &compare(&[Is(Uuid), Is(Uuid)]),
    &compare(&[Is(Date), Is(Date)]),
    &compare(&[Is(Timestamp), Is(Timestamp)]),
    &compare(&[Is(Timestamptz), Is(Timestamptz)]),
    &arithmetic(&[Is(Int2), Is(Int2)], Int2),
    &arithmetic(&[Is(Int2), Is(Int4)], Int4),
    &arithmetic(&[Is(Int4), Is(Int2)], Int4),
    &arithmetic(&[Is(Int4), Is(Int4)], Int4),
    &arithmetic(&[Is(Int2), Is(Int8)], Int8),
    &arithmetic(&[Is(Int8), Is(Int2)], Int8),
    &arithmetic(&[Is(Int4), Is(Int8)], Int8),
    &arithmetic(&[Is(Int8), Is(Int4)], Int8),
    &arithmetic(&[Is(Int8), Is(Int8)], Int8),
    &integer(&[Is(Int2), Is(Int2)], &[Is(Int2)], &[Is(Int2), Is(Int4)]),
    &integer(&[Is(Int4), Is(Int4)], &[Is(Int4)], &[Is(Int4), Is(Int4)]),
    &integer(&[Is(Int8), Is(Int8)], &[Is(Int8)], &[Is(Int8), Is(Int4)]),
    &[Function::new("||", &[Is(Text), Is(Text)], Text, "({0} || {1})")],
];

const fn compare(args: &'static [Arg]) -> [Function; 6] {
    [
        Function::new("=", args, Bool, "({k0} = {k1})"),
        Function::new("<>", args, Bool, "({k0} <> {k1})"),
        Function::new("<", args, Bool, "({k0} < {k1})"),
        Function::new("<=", args, Bool, "({k0} <= {k1})"),
        Function::new(">", args, Bool, "({k0} > {k1})"),
        Function::new(">=", args, Bool, "({k0} >= {k1})"),
    ]
}

const fn arithmetic(args: &'static [Arg], result: Type) -> [Function; 4] {
    let [add, sub, mul, div] = match result {
        Int2 => ["pg_int2({0} + {1})", "pg_int2({0} - {1})", "pg_int2({0} * {1})", "pg_int2_div({0}, {1})"],
        Int4 => ["pg_int4({0} + {1})", "pg_int4({0} - {1})", "pg_int4({0} * {1})", "pg_int4_div({0}, {1})"],
        Int8 => [
            "pg_int8_add({0}, {1})",
            "pg_int8_sub({0}, {1})",
            "pg_int8_mul({0}, {1})",
            "pg_int8_div({0}, {1})",
        ],
        _ => panic!("arithmetic on integers"),
    };
    [
        Function::new("+", args, result, add),
        Function::new("-", args, result, sub),
        Function::new("*", args, result, mul),
        Function::new("/", args, result, div),
    ]
}

const fn integer(pair: &'static [Arg], one: &'static [Arg], shift: &'static [Arg]) -> [Function; 10] {
    let Is(ty) = one[0] else { panic!("an integer") };
    let [neg, abs, left, right] = match ty {
        Int2 => ["pg_int2(- {0})", "pg_int2(abs({0}))", "pg_int2_shl({0}, {1})", "pg_int2_shr({0}, {1})"],
        Int4 => ["pg_int4(- {0})", "pg_int4(abs({0}))", "pg_int4_shl({0}, {1})", "pg_int4_shr({0}, {1})"],
        Int8 => ["pg_int8_neg({0})", "pg_int8_abs({0})", "pg_int8_shl({0}, {1})", "pg_int8_shr({0}, {1})"],
        _ => panic!("an integer"),
    };
    [
        Function::new("%", pair, ty, "pg_mod({0}, {1})"),
        Function::new("&", pair, ty, "({0} & {1})"),
        Function::new("|", pair, ty, "({0} | {1})"),
        Function::new("#", pair, ty, "pg_xor({0}, {1})"),
        Function::new("~", one, ty, "(~ {0})"),
        Function::new("+", one, ty, "{0}"),
        Function::new("-", one, ty, neg),
        Function::new("@", one, ty, abs),
        Function::new("<<", shift, ty, left),
        Function::new(">>", shift, ty, right),
    ]
}
