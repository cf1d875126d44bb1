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
    // A date that no timestamp reaches compares all the same.
    &[
        Function::new("=", &[Is(Date), Is(Timestamp)], Bool, "(pg_date_moment({0}) = {1})"),
        Function::new("<>", &[Is(Date), Is(Timestamp)], Bool, "(pg_date_moment({0}) <> {1})"),
        Function::new("<", &[Is(Date), Is(Timestamp)], Bool, "(pg_date_moment({0}) < {1})"),
        Function::new("<=", &[Is(Date), Is(Timestamp)], Bool, "(pg_date_moment({0}) <= {1})"),
        Function::new(">", &[Is(Date), Is(Timestamp)], Bool, "(pg_date_moment({0}) > {1})"),
        Function::new(">=", &[Is(Date), Is(Timestamp)], Bool, "(pg_date_moment({0}) >= {1})"),
    ],
    &[
        Function::new("=", &[Is(Timestamp), Is(Date)], Bool, "({0} = pg_date_moment({1}))"),
        Function::new("<>", &[Is(Timestamp), Is(Date)], Bool, "({0} <> pg_date_moment({1}))"),
        Function::new("<", &[Is(Timestamp), Is(Date)], Bool, "({0} < pg_date_moment({1}))"),
        Function::new("<=", &[Is(Timestamp), Is(Date)], Bool, "({0} <= pg_date_moment({1}))"),
        Function::new(">", &[Is(Timestamp), Is(Date)], Bool, "({0} > pg_date_moment({1}))"),
        Function::new(">=", &[Is(Timestamp), Is(Date)], Bool, "({0} >= pg_date_moment({1}))"),
    ],
    &[
        Function::new("=", &[Is(Date), Is(Timestamptz)], Bool, "(pg_date_moment_zoned({0}, {zone}) = {1})"),
        Function::new("<>", &[Is(Date), Is(Timestamptz)], Bool, "(pg_date_moment_zoned({0}, {zone}) <> {1})"),
        Function::new("<", &[Is(Date), Is(Timestamptz)], Bool, "(pg_date_moment_zoned({0}, {zone}) < {1})"),
        Function::new("<=", &[Is(Date), Is(Timestamptz)], Bool, "(pg_date_moment_zoned({0}, {zone}) <= {1})"),
        Function::new(">", &[Is(Date), Is(Timestamptz)], Bool, "(pg_date_moment_zoned({0}, {zone}) > {1})"),
        Function::new(">=", &[Is(Date), Is(Timestamptz)], Bool, "(pg_date_moment_zoned({0}, {zone}) >= {1})"),
    ],
    &[
        Function::new("=", &[Is(Timestamptz), Is(Date)], Bool, "({0} = pg_date_moment_zoned({1}, {zone}))"),
        Function::new("<>", &[Is(Timestamptz), Is(Date)], Bool, "({0} <> pg_date_moment_zoned({1}, {zone}))"),
        Function::new("<", &[Is(Timestamptz), Is(Date)], Bool, "({0} < pg_date_moment_zoned({1}, {zone}))"),
        Function::new("<=", &[Is(Timestamptz), Is(Date)], Bool, "({0} <= pg_date_moment_zoned({1}, {zone}))"),
        Function::new(">", &[Is(Timestamptz), Is(Date)], Bool, "({0} > pg_date_moment_zoned({1}, {zone}))"),
        Function::new(">=", &[Is(Timestamptz), Is(Date)], Bool, "({0} >= pg_date_moment_zoned({1}, {zone}))"),
    ],
    &[
        Function::new(
            "=",
            &[Is(Timestamp), Is(Timestamptz)],
            Bool,
            "(pg_timestamp_timestamptz({0}, {zone}) = {1})",
        ),
        Function::new(
            "<>",
            &[Is(Timestamp), Is(Timestamptz)],
            Bool,
            "(pg_timestamp_timestamptz({0}, {zone}) <> {1})",
        ),
        Function::new(
            "<",
            &[Is(Timestamp), Is(Timestamptz)],
            Bool,
            "(pg_timestamp_timestamptz({0}, {zone}) < {1})",
        ),
        Function::new(
            "<=",
            &[Is(Timestamp), Is(Timestamptz)],
            Bool,
            "(pg_timestamp_timestamptz({0}, {zone}) <= {1})",
        ),
        Function::new(
            ">",
            &[Is(Timestamp), Is(Timestamptz)],
            Bool,
            "(pg_timestamp_timestamptz({0}, {zone}) > {1})",
        ),
        Function::new(
            ">=",
            &[Is(Timestamp), Is(Timestamptz)],
            Bool,
            "(pg_timestamp_timestamptz({0}, {zone}) >= {1})",
        ),
    ],
    &[
        Function::new(
            "=",
            &[Is(Timestamptz), Is(Timestamp)],
            Bool,
            "({0} = pg_timestamp_timestamptz({1}, {zone}))",
        ),
        Function::new(
            "<>",
            &[Is(Timestamptz), Is(Timestamp)],
            Bool,
            "({0} <> pg_timestamp_timestamptz({1}, {zone}))",
        ),
        Function::new(
            "<",
            &[Is(Timestamptz), Is(Timestamp)],
            Bool,
            "({0} < pg_timestamp_timestamptz({1}, {zone}))",
        ),
        Function::new(
            "<=",
            &[Is(Timestamptz), Is(Timestamp)],
            Bool,
            "({0} <= pg_timestamp_timestamptz({1}, {zone}))",
        ),
        Function::new(
            ">",
            &[Is(Timestamptz), Is(Timestamp)],
            Bool,
            "({0} > pg_timestamp_timestamptz({1}, {zone}))",
        ),
        Function::new(
            ">=",
            &[Is(Timestamptz), Is(Timestamp)],
            Bool,
            "({0} >= pg_timestamp_timestamptz({1}, {zone}))",
        ),
    ],
    &floats(&[Is(Float8), Is(Float8)], Float8),
    &floats(&[Is(Float4), Is(Float8)], Float8),
    &floats(&[Is(Float8), Is(Float4)], Float8),
    &floats(&[Is(Float4), Is(Float4)], Float4),
    NUMBERS,
    TEXTS,
    DATES,
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
        Int2 => ["pg_int2(- {0})", "pg_int2(abs({0}))", "pg_int2_shl({0}, {1})", "pg_int4_shr({0}, {1})"],
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

const fn floats(args: &'static [Arg], result: Type) -> [Function; 4] {
    let [add, sub, mul, div] = match result {
        Float4 => [
            "pg_float4_add({0}, {1})",
            "pg_float4_sub({0}, {1})",
            "pg_float4_mul({0}, {1})",
            "pg_float4_div({0}, {1})",
        ],
        _ => [
            "pg_float8_add({0}, {1})",
            "pg_float8_sub({0}, {1})",
            "pg_float8_mul({0}, {1})",
            "pg_float8_div({0}, {1})",
        ],
    };
    [
        Function::new("+", args, result, add),
        Function::new("-", args, result, sub),
        Function::new("*", args, result, mul),
        Function::new("/", args, result, div),
    ]
}

static NUMBERS: &[Function] = &[
    Function::new("+", &[Is(Float4)], Float4, "{0}"),
    Function::new("+", &[Is(Float8)], Float8, "{0}"),
    Function::new("+", &[Is(Numeric)], Numeric, "{0}"),
    Function::new("-", &[Is(Float4)], Float4, "pg_float_neg({0})"),
    Function::new("-", &[Is(Float8)], Float8, "pg_float_neg({0})"),
    Function::new("-", &[Is(Numeric)], Numeric, "pg_numeric_neg({0})"),
    Function::new("@", &[Is(Float4)], Float4, "abs({0})"),
    Function::new("@", &[Is(Float8)], Float8, "abs({0})"),
    Function::new("@", &[Is(Numeric)], Numeric, "pg_numeric_abs({0})"),
    Function::new("|/", &[Is(Float8)], Float8, "pg_sqrt({0})"),
    Function::new("||/", &[Is(Float8)], Float8, "pg_cbrt({0})"),
    Function::new("^", &[Is(Float8), Is(Float8)], Float8, "pg_power({0}, {1})"),
    Function::new("^", &[Is(Numeric), Is(Numeric)], Numeric, "pg_numeric_power({0}, {1})"),
    Function::new("+", &[Is(Numeric), Is(Numeric)], Numeric, "pg_numeric_add({0}, {1})"),
    Function::new("-", &[Is(Numeric), Is(Numeric)], Numeric, "pg_numeric_sub({0}, {1})"),
    Function::new("*", &[Is(Numeric), Is(Numeric)], Numeric, "pg_numeric_mul({0}, {1})"),
    Function::new("/", &[Is(Numeric), Is(Numeric)], Numeric, "pg_numeric_div({0}, {1})"),
    Function::new("%", &[Is(Numeric), Is(Numeric)], Numeric, "pg_numeric_rem({0}, {1})"),
];

static TEXTS: &[Function] = &[
    Function::new("||", &[Is(Text), Is(Text)], Text, "({0} || {1})"),
    Function::new("||", &[Is(Text), Arg::AnyNonArray], Text, "({0} || {1})").stable(),
    Function::new("||", &[Arg::AnyNonArray, Is(Text)], Text, "({0} || {1})").stable(),
    Function::new("||", &[Is(Bytea), Is(Bytea)], Bytea, "pg_bytes_concat({0}, {1})"),
    Function::new("^@", &[Is(Text), Is(Text)], Bool, "pg_starts_with({0}, {1})"),
    Function::new("~<~", &[Is(Text), Is(Text)], Bool, "({0} < {1})"),
    Function::new("~<=~", &[Is(Text), Is(Text)], Bool, "({0} <= {1})"),
    Function::new("~>=~", &[Is(Text), Is(Text)], Bool, "({0} >= {1})"),
    Function::new("~>~", &[Is(Text), Is(Text)], Bool, "({0} > {1})"),
    Function::new("~~", &[Is(Text), Is(Text)], Bool, "pg_like({0}, {1})"),
    Function::new("!~~", &[Is(Text), Is(Text)], Bool, "(NOT pg_like({0}, {1}))"),
    Function::new("~~*", &[Is(Text), Is(Text)], Bool, "pg_ilike({0}, {1})"),
    Function::new("!~~*", &[Is(Text), Is(Text)], Bool, "(NOT pg_ilike({0}, {1}))"),
    Function::new("~", &[Is(Text), Is(Text)], Bool, "pg_regex({0}, {1})"),
    Function::new("!~", &[Is(Text), Is(Text)], Bool, "(NOT pg_regex({0}, {1}))"),
    Function::new("~*", &[Is(Text), Is(Text)], Bool, "pg_iregex({0}, {1})"),
    Function::new("!~*", &[Is(Text), Is(Text)], Bool, "(NOT pg_iregex({0}, {1}))"),
    Function::new("~~", &[Is(Name), Is(Text)], Bool, "pg_like({0}, {1})"),
    Function::new("!~~", &[Is(Name), Is(Text)], Bool, "(NOT pg_like({0}, {1}))"),
    Function::new("~~*", &[Is(Name), Is(Text)], Bool, "pg_ilike({0}, {1})"),
    Function::new("!~~*", &[Is(Name), Is(Text)], Bool, "(NOT pg_ilike({0}, {1}))"),
    Function::new("~", &[Is(Name), Is(Text)], Bool, "pg_regex({0}, {1})"),
    Function::new("!~", &[Is(Name), Is(Text)], Bool, "(NOT pg_regex({0}, {1}))"),
    Function::new("~*", &[Is(Name), Is(Text)], Bool, "pg_iregex({0}, {1})"),
    Function::new("!~*", &[Is(Name), Is(Text)], Bool, "(NOT pg_iregex({0}, {1}))"),
    Function::new("~~", &[Is(Bytea), Is(Bytea)], Bool, "pg_bytes_like({0}, {1})"),
    Function::new("!~~", &[Is(Bytea), Is(Bytea)], Bool, "(NOT pg_bytes_like({0}, {1}))"),
    // They match the padding, which isn't stored.
    Function::refused("~~", &[Is(Bpchar), Is(Text)]),
    Function::refused("!~~", &[Is(Bpchar), Is(Text)]),
    Function::refused("~~*", &[Is(Bpchar), Is(Text)]),
    Function::refused("!~~*", &[Is(Bpchar), Is(Text)]),
    Function::refused("~", &[Is(Bpchar), Is(Text)]),
    Function::refused("!~", &[Is(Bpchar), Is(Text)]),
    Function::refused("~*", &[Is(Bpchar), Is(Text)]),
    Function::refused("!~*", &[Is(Bpchar), Is(Text)]),
];

static DATES: &[Function] = &[
    Function::new("+", &[Is(Date), Is(Int4)], Date, "pg_date_add({0}, {1})"),
    Function::new("+", &[Is(Int4), Is(Date)], Date, "pg_date_add({1}, {0})"),
    Function::new("-", &[Is(Date), Is(Int4)], Date, "pg_date_sub_days({0}, {1})"),
    Function::new("-", &[Is(Date), Is(Date)], Int4, "pg_date_diff({0}, {1})"),
];
