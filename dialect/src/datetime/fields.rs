//! Parts of dates and timestamps: `date_trunc` and `extract`.

use super::calendar::{self, DAY_MICROSECONDS, days_from_date};
use super::{Civil, TimeZone, from_civil, timestamp_out_of_range, to_civil};
use super::{DATE_INFINITY, DATE_NEGATIVE_INFINITY, TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY};
use crate::numeric::Numeric;
use proto::{SqlState, WireError};

/// A unit of time, by PostgreSQL's name of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Microseconds,
    Milliseconds,
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
    Decade,
    Century,
    Millennium,
    Timezone,
    TimezoneHour,
    TimezoneMinute,
    DayOfWeek,
    IsoDayOfWeek,
    DayOfYear,
    IsoYear,
    Julian,
    Epoch,
}

use Field::*;

const DATE: &str = "date";
const TIMESTAMP: &str = "timestamp without time zone";
const TIMESTAMPTZ: &str = "timestamp with time zone";

impl Field {
    /// The words that PostgreSQL's tables of units have, which look at ten characters.
    fn parse(word: &str) -> Option<Self> {
        let lower = word.to_ascii_lowercase();
        let mut end = lower.len().min(10);
        while !lower.is_char_boundary(end) {
            end -= 1;
        }
        Some(match &lower[..end] {
            "microsecon" | "us" | "usec" | "usecond" | "useconds" | "usecs" => Microseconds,
            "millisecon" | "ms" | "msec" | "msecond" | "mseconds" | "msecs" => Milliseconds,
            "s" | "sec" | "second" | "seconds" | "secs" => Second,
            "m" | "min" | "mins" | "minute" | "minutes" => Minute,
            "h" | "hour" | "hours" | "hr" | "hrs" => Hour,
            "d" | "day" | "days" => Day,
            "w" | "week" | "weeks" => Week,
            "mon" | "mons" | "month" | "months" => Month,
            "qtr" | "quarter" => Quarter,
            "y" | "year" | "years" | "yr" | "yrs" => Year,
            "dec" | "decade" | "decades" | "decs" => Decade,
            "c" | "cent" | "centuries" | "century" => Century,
            "mil" | "millennia" | "millennium" | "mils" => Millennium,
            "timezone" => Timezone,
            "timezone_h" => TimezoneHour,
            "timezone_m" => TimezoneMinute,
            "dow" => DayOfWeek,
            "isodow" => IsoDayOfWeek,
            "doy" => DayOfYear,
            "isoyear" => IsoYear,
            "j" | "jd" | "julian" => Julian,
            "epoch" => Epoch,
            _ => return None,
        })
    }

    /// Whether an infinite date or timestamp has an infinite one of these; NULL else.
    fn grows_without_end(self) -> bool {
        matches!(self, Year | Decade | Century | Millennium | Julian | IsoYear | Epoch)
    }
}

fn unit(word: &str, verdict: &str, kind: &str) -> WireError {
    let state = if verdict == "supported" {
        SqlState::FEATURE_NOT_SUPPORTED
    } else {
        SqlState::INVALID_PARAMETER_VALUE
    };
    WireError::new(state, format!("unit \"{}\" not {verdict} for type {kind}", word.to_ascii_lowercase()))
}

fn parse(word: &str, kind: &str) -> Result<Field, WireError> {
    Field::parse(word).ok_or_else(|| unit(word, "recognized", kind))
}

/// `date_trunc(field, timestamp)`.
pub fn trunc_timestamp(field: &str, timestamp: i64) -> Result<i64, WireError> {
    if is_infinite(timestamp) {
        return Ok(timestamp);
    }
    truncate(field, parse_truncation(field, TIMESTAMP)?, timestamp, TIMESTAMP)
}

/// `date_trunc(field, timestamptz)` in a zone.
pub fn trunc_timestamptz(field: &str, timestamp: i64, zone: &TimeZone) -> Result<i64, WireError> {
    if is_infinite(timestamp) {
        return Ok(timestamp);
    }
    let unit = parse_truncation(field, TIMESTAMPTZ)?;
    let local = truncate(field, unit, zone.to_local(timestamp)?, TIMESTAMPTZ)?;
    if matches!(unit, Microseconds | Milliseconds | Second | Minute | Hour) {
        // These keep the offset: an hour that comes twice stays the one it is.
        let cut = zone.to_local(timestamp)?.wrapping_sub(local);
        return Ok(timestamp - cut);
    }
    zone.to_utc(local)
}

/// PostgreSQL answers an infinity before it looks at the field.
fn is_infinite(timestamp: i64) -> bool {
    matches!(timestamp, TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY)
}

/// The units that only `extract` knows are none here.
fn parse_truncation(word: &str, kind: &str) -> Result<Field, WireError> {
    match parse(word, kind)? {
        DayOfWeek | IsoDayOfWeek | DayOfYear | IsoYear | Julian | Epoch => {
            Err(unit(word, "recognized", kind))
        }
        field => Ok(field),
    }
}

fn truncate(word: &str, field: Field, timestamp: i64, kind: &str) -> Result<i64, WireError> {
    if matches!(field, Timezone | TimezoneHour | TimezoneMinute) {
        return Err(unit(word, "supported", kind));
    }
    let multiple = |of: i64| Ok(timestamp - timestamp.rem_euclid(of));
    let Civil { year, month, .. } = to_civil(timestamp);
    let first_of = |year: i32, month: u8| {
        from_civil(Civil { year, month, day: 1, time: 0 }).ok_or_else(timestamp_out_of_range)
    };
    // The first year of a century or millennium is the one after the round number, and there is no year 0.
    let span = |years: i32| (year - 1).div_euclid(years) * years + 1;
    match field {
        Microseconds => Ok(timestamp),
        Milliseconds => multiple(1_000),
        Second => multiple(1_000_000),
        Minute => multiple(60_000_000),
        Hour => multiple(3_600_000_000),
        Day => multiple(DAY_MICROSECONDS),
        Week => {
            let monday = calendar::week_start(timestamp.div_euclid(DAY_MICROSECONDS) as i32);
            let start = i64::from(monday) * DAY_MICROSECONDS;
            if calendar::is_timestamp(start) { Ok(start) } else { Err(timestamp_out_of_range()) }
        }
        Month => first_of(year, month),
        Quarter => first_of(year, (month - 1) / 3 * 3 + 1),
        Year => first_of(year, 1),
        Decade => first_of(year.div_euclid(10) * 10, 1),
        Century => first_of(span(100), 1),
        Millennium => first_of(span(1000), 1),
        _ => Err(unit(word, "recognized", kind)),
    }
}

/// `extract(field FROM date)`. `None` is SQL NULL (a field that an infinity hasn't).
pub fn extract_date(field: &str, date: i32) -> Result<Option<Numeric>, WireError> {
    let unit_of = parse(field, DATE)?;
    let timed = matches!(unit_of, Microseconds | Milliseconds | Second | Minute | Hour);
    if timed || matches!(unit_of, Timezone | TimezoneHour | TimezoneMinute) {
        return Err(unit(field, "supported", DATE));
    }
    match date {
        DATE_INFINITY => return Ok(infinite(unit_of, Numeric::Infinity)),
        DATE_NEGATIVE_INFINITY => return Ok(infinite(unit_of, Numeric::NegativeInfinity)),
        _ => {}
    }
    Ok(Some(match unit_of {
        Epoch => Numeric::from_i64((i64::from(date) + UNIX_DAYS) * 86_400),
        Julian => Numeric::from_i64(i64::from(date) + JULIAN_DAYS),
        _ => of_day(unit_of, date).ok_or_else(|| unit(field, "recognized", DATE))?,
    }))
}

/// `extract(field FROM timestamp)`.
pub fn extract_timestamp(field: &str, timestamp: i64) -> Result<Option<Numeric>, WireError> {
    let unit_of = parse(field, TIMESTAMP)?;
    if matches!(unit_of, Timezone | TimezoneHour | TimezoneMinute) {
        return if is_infinite(timestamp) { Ok(None) } else { Err(unit(field, "supported", TIMESTAMP)) };
    }
    extract(unit_of, timestamp, timestamp)
}

/// `extract(field FROM timestamptz)` in a zone.
pub fn extract_timestamptz(
    field: &str,
    timestamp: i64,
    zone: &TimeZone,
) -> Result<Option<Numeric>, WireError> {
    let unit = parse(field, TIMESTAMPTZ)?;
    let seconds = i64::from(zone.offset_at(timestamp));
    match unit {
        Timezone | TimezoneHour | TimezoneMinute if is_infinite(timestamp) => Ok(None),
        Timezone => Ok(Some(Numeric::from_i64(seconds))),
        TimezoneHour => Ok(Some(Numeric::from_i64(seconds / 3600))),
        TimezoneMinute => Ok(Some(Numeric::from_i64(seconds / 60 % 60))),
        _ => extract(unit, zone.to_local(timestamp)?, timestamp),
    }
}

/// 1970-01-01 to 2000-01-01.
const UNIX_DAYS: i64 = 10_957;
const JULIAN_DAYS: i64 = 2_451_545;

fn infinite(field: Field, value: Numeric) -> Option<Numeric> {
    field.grows_without_end().then_some(value)
}

/// A field of a local time; `moment` is the same in UTC.
fn extract(field: Field, local: i64, moment: i64) -> Result<Option<Numeric>, WireError> {
    match local {
        TIMESTAMP_INFINITY => return Ok(infinite(field, Numeric::Infinity)),
        TIMESTAMP_NEGATIVE_INFINITY => return Ok(infinite(field, Numeric::NegativeInfinity)),
        _ => {}
    }
    let date = local.div_euclid(DAY_MICROSECONDS) as i32;
    let time = local.rem_euclid(DAY_MICROSECONDS);
    Ok(Some(match field {
        Microseconds => Numeric::from_i64(time % 60_000_000),
        Milliseconds => Numeric::from_unscaled(time % 60_000_000, 3),
        Second => Numeric::from_unscaled(time % 60_000_000, 6),
        Minute => Numeric::from_i64(time / 60_000_000 % 60),
        Hour => Numeric::from_i64(time / 3_600_000_000),
        Epoch => {
            let epoch = UNIX_DAYS * DAY_MICROSECONDS;
            match moment.checked_add(epoch) {
                Some(since) => Numeric::from_unscaled(since, 6),
                // PostgreSQL divides here, and its division keeps fewer digits.
                None => {
                    let since = Numeric::from_i64(moment).add(&Numeric::from_i64(epoch))?;
                    since.div(&Numeric::from_i64(1_000_000))?.round(6)?
                }
            }
        }
        Julian => {
            let whole = Numeric::from_i64(i64::from(date) + JULIAN_DAYS);
            whole.add(&Numeric::from_i64(time).div(&Numeric::from_i64(DAY_MICROSECONDS))?)?
        }
        _ => match of_day(field, date) {
            Some(value) => value,
            None => return Err(WireError::internal("a field of a timestamp that no day has")),
        },
    }))
}

/// A field that a whole day has.
fn of_day(field: Field, date: i32) -> Option<Numeric> {
    let (year, month, day) = calendar::date_from_days(date);
    // What is counted from 1 has no 0: 1 BC is year -1.
    let named = |year: i32| if year > 0 { year } else { year - 1 };
    let span = |years: i32| if year > 0 { (year + years - 1) / years } else { -((years - year) / years) };
    let value = match field {
        Day => day.into(),
        Month => month.into(),
        Quarter => (i32::from(month) - 1) / 3 + 1,
        Week => calendar::iso_week(date).1,
        Year => named(year),
        IsoYear => named(calendar::iso_week(date).0),
        Decade => year.div_euclid(10),
        Century => span(100),
        Millennium => span(1000),
        DayOfWeek => calendar::weekday(date),
        IsoDayOfWeek => (calendar::weekday(date) + 6) % 7 + 1,
        DayOfYear => date - days_from_date(year, 1, 1) as i32 + 1,
        _ => return None,
    };
    Some(Numeric::from_i64(value.into()))
}
