//! Dates and times: [`crate::datetime`] over stored integers.

use super::casts::zone;
use super::{Answer, Body::*, Native, int, int4, numerics::stored, out_of_range, real, text};
use crate::datetime::{
    self, DATE_INFINITY, DATE_NEGATIVE_INFINITY, TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY, TimeZone,
};
use crate::numeric::Numeric;
use proto::{SqlState, Value, ValueRef, WireError};

pub(super) static FUNCTIONS: &[Native] = &[
    Native { name: "pg_date_add", body: Strict(2, |a| day(datetime::date_add(int4(a[0])?, int4(a[1])?)?)) },
    Native { name: "pg_date_sub_days", body: Strict(2, sub_days) },
    Native { name: "pg_date_diff", body: Strict(2, |a| day(datetime::date_diff(int4(a[0])?, int4(a[1])?)?)) },
    Native {
        name: "pg_date_timestamp",
        body: Strict(1, |a| moment(datetime::date_to_timestamp(int4(a[0])?)?)),
    },
    Native {
        name: "pg_date_timestamptz",
        body: Strict(2, |a| moment(datetime::date_to_timestamptz(int4(a[0])?, &zone(a[1])?)?)),
    },
    Native { name: "pg_date_moment", body: Strict(1, |a| beyond(datetime::date_to_timestamp(int4(a[0])?))) },
    Native {
        name: "pg_date_moment_zoned",
        body: Strict(2, |a| beyond(datetime::date_to_timestamptz(int4(a[0])?, &zone(a[1])?))),
    },
    Native { name: "pg_timestamp_date", body: Strict(1, |a| day(datetime::timestamp_to_date(int(a[0])?)?)) },
    Native {
        name: "pg_timestamptz_date",
        body: Strict(2, |a| day(datetime::timestamptz_to_date(int(a[0])?, &zone(a[1])?)?)),
    },
    Native {
        name: "pg_timestamp_timestamptz",
        body: Strict(2, |a| moment(datetime::timestamp_to_timestamptz(int(a[0])?, &zone(a[1])?)?)),
    },
    Native {
        name: "pg_timestamptz_timestamp",
        body: Strict(2, |a| moment(datetime::timestamptz_to_timestamp(int(a[0])?, &zone(a[1])?)?)),
    },
    // AT TIME ZONE reads its operand in another way than SET TimeZone does.
    Native {
        name: "pg_timestamp_at_zone",
        body: Strict(2, |a| {
            moment(datetime::timestamp_to_timestamptz(int(a[0])?, &TimeZone::operand(text(a[1])?)?)?)
        }),
    },
    Native {
        name: "pg_timestamptz_at_zone",
        body: Strict(2, |a| {
            moment(datetime::timestamptz_to_timestamp(int(a[0])?, &TimeZone::operand(text(a[1])?)?)?)
        }),
    },
    Native {
        name: "pg_timestamp_round",
        body: Strict(2, |a| moment(datetime::round_timestamp(int(a[0])?, int4(a[1])?))),
    },
    Native {
        name: "pg_trunc_timestamp",
        body: Strict(2, |a| moment(datetime::trunc_timestamp(text(a[0])?, int(a[1])?)?)),
    },
    Native {
        name: "pg_trunc_timestamptz",
        body: Strict(3, |a| moment(datetime::trunc_timestamptz(text(a[0])?, int(a[1])?, &zone(a[2])?)?)),
    },
    Native {
        name: "pg_extract_date",
        body: Strict(2, |a| part(datetime::extract_date(text(a[0])?, int4(a[1])?)?)),
    },
    Native {
        name: "pg_extract_timestamp",
        body: Strict(2, |a| part(datetime::extract_timestamp(text(a[0])?, int(a[1])?)?)),
    },
    Native {
        name: "pg_extract_timestamptz",
        body: Strict(3, |a| part(datetime::extract_timestamptz(text(a[0])?, int(a[1])?, &zone(a[2])?)?)),
    },
    Native {
        name: "pg_part_timestamp",
        body: Strict(2, |a| float_part(datetime::extract_timestamp(text(a[0])?, int(a[1])?)?)),
    },
    Native {
        name: "pg_part_timestamptz",
        body: Strict(3, |a| {
            float_part(datetime::extract_timestamptz(text(a[0])?, int(a[1])?, &zone(a[2])?)?)
        }),
    },
    Native {
        name: "pg_make_date",
        body: Strict(3, |a| day(datetime::make_date(int4(a[0])?, int4(a[1])?, int4(a[2])?)?)),
    },
    Native { name: "pg_make_timestamp", body: Strict(6, make_timestamp) },
    Native { name: "pg_date_isfinite", body: Strict(1, |a| Ok(super::bool(is_finite_date(int4(a[0])?)))) },
    Native { name: "pg_timestamp_isfinite", body: Strict(1, |a| Ok(super::bool(is_finite(int(a[0])?)))) },
    Native {
        name: "pg_to_timestamp",
        body: Strict(1, |a| moment(datetime::from_unix_seconds(real(a[0])?)?)),
    },
];

fn day(days: i32) -> Answer<Value> {
    Ok(Value::Int(days.into()))
}

fn moment(microseconds: i64) -> Answer<Value> {
    Ok(Value::Int(microseconds))
}

/// For comparisons: a date beyond the last timestamp is later than any, but before infinity.
fn beyond(converted: Answer<i64>) -> Answer<Value> {
    moment(match converted {
        Err(error) if error.sqlstate == SqlState::DATETIME_FIELD_OVERFLOW => TIMESTAMP_INFINITY - 1,
        other => other?,
    })
}

fn is_finite_date(date: i32) -> bool {
    date != DATE_INFINITY && date != DATE_NEGATIVE_INFINITY
}

fn is_finite(timestamp: i64) -> bool {
    timestamp != TIMESTAMP_INFINITY && timestamp != TIMESTAMP_NEGATIVE_INFINITY
}

fn sub_days(args: &[ValueRef<'_>]) -> Answer<Value> {
    let (date, days) = (int4(args[0])?, int4(args[1])?);
    match days.checked_neg() {
        Some(days) => day(datetime::date_add(date, days)?),
        None if !is_finite_date(date) => day(date),
        None => Err(WireError::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range")),
    }
}

fn part(part: Option<Numeric>) -> Answer<Value> {
    part.map_or(Ok(Value::Null), |part| stored(Ok(part)))
}

fn float_part(part: Option<Numeric>) -> Answer<Value> {
    part.map_or(Ok(Value::Null), |part| Ok(Value::Real(part.to_f64()?)))
}

fn make_timestamp(args: &[ValueRef<'_>]) -> Answer<Value> {
    let date = datetime::make_date(int4(args[0])?, int4(args[1])?, int4(args[2])?)?;
    let (hour, minute, second) = (int(args[3])?, int(args[4])?, real(args[5])?);
    let fields_fit = (0..=24).contains(&hour) && (0..60).contains(&minute) && (0.0..=60.0).contains(&second);
    let time = (hour * 60 + minute) * 60_000_000 + (second * 1e6).round_ties_even() as i64;
    if !fields_fit || time > 86_400_000_000 {
        let message = format!("time field value out of range: {hour}:{minute:02}:{second:02}");
        return Err(WireError::new(SqlState::DATETIME_FIELD_OVERFLOW, message));
    }
    let midnight = datetime::date_to_timestamp(date)?;
    moment(midnight.checked_add(time).ok_or_else(|| out_of_range("timestamp"))?)
}
