//! Functions over dates and timestamps, and those that tell the moment.

use super::{Arg::Is, Emit, Function, Volatility};
use crate::types::Type::{self, *};

/// All of them.
pub(super) static TABLE: &[Function] = &[
    // The date overload casts to timestamptz by PostgreSQL's rules; there is no entry for it.
    Function::new("date_trunc", &[Is(Text), Is(Timestamp)], Timestamp, "pg_trunc_timestamp({0}, {1})"),
    Function::new(
        "date_trunc",
        &[Is(Text), Is(Timestamptz)],
        Timestamptz,
        "pg_trunc_timestamptz({0}, {1}, {zone})",
    ),
    Function::new(
        "date_trunc",
        &[Is(Text), Is(Timestamptz), Is(Text)],
        Timestamptz,
        "pg_trunc_timestamptz({0}, {1}, {2})",
    ),
    Function::new("extract", &[Is(Text), Is(Date)], Numeric, "pg_extract_date({0}, {1})"),
    Function::new("extract", &[Is(Text), Is(Timestamp)], Numeric, "pg_extract_timestamp({0}, {1})"),
    Function::new(
        "extract",
        &[Is(Text), Is(Timestamptz)],
        Numeric,
        "pg_extract_timestamptz({0}, {1}, {zone})",
    ),
    // date_part of a date is that of its timestamp.
    Function::new(
        "date_part",
        &[Is(Text), Is(Date)],
        Float8,
        "pg_part_timestamp({0}, pg_date_timestamp({1}))",
    ),
    Function::new("date_part", &[Is(Text), Is(Timestamp)], Float8, "pg_part_timestamp({0}, {1})"),
    Function::new("date_part", &[Is(Text), Is(Timestamptz)], Float8, "pg_part_timestamptz({0}, {1}, {zone})"),
    Function::new("make_date", &[Is(Int4), Is(Int4), Is(Int4)], Date, "pg_make_date({0}, {1}, {2})"),
    Function::new(
        "make_timestamp",
        &[Is(Int4), Is(Int4), Is(Int4), Is(Int4), Is(Int4), Is(Float8)],
        Timestamp,
        "pg_make_timestamp({0}, {1}, {2}, {3}, {4}, {5})",
    ),
    Function::new("isfinite", &[Is(Date)], Bool, "pg_date_isfinite({0})"),
    Function::new("isfinite", &[Is(Timestamp)], Bool, "pg_timestamp_isfinite({0})"),
    Function::new("isfinite", &[Is(Timestamptz)], Bool, "pg_timestamp_isfinite({0})"),
    Function::new("to_timestamp", &[Is(Float8)], Timestamptz, "pg_to_timestamp({0})"),
    // x AT TIME ZONE z is timezone(z, x).
    Function::new("timezone", &[Is(Text), Is(Timestamp)], Timestamptz, "pg_timestamp_at_zone({1}, {0})"),
    Function::new("timezone", &[Is(Text), Is(Timestamptz)], Timestamp, "pg_timestamptz_at_zone({1}, {0})"),
    router("now", Timestamptz, "now", Volatility::Stable),
    router("transaction_timestamp", Timestamptz, "now", Volatility::Stable),
    router("statement_timestamp", Timestamptz, "statement_timestamp", Volatility::Stable),
    router("clock_timestamp", Timestamptz, "clock_timestamp", Volatility::Volatile),
];

const fn router(name: &'static str, result: Type, emit: &'static str, volatility: Volatility) -> Function {
    Function { volatility, emit: Emit::Router(emit), ..Function::new(name, &[], result, "") }
}
