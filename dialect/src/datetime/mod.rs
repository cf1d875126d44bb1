//! Dates and timestamps with PostgreSQL's rules.
//!
//! A date is days since 2000-01-01 (`i32`, its ends the infinities), a timestamp microseconds since 2000-01-01 00:00
//! (`i64`, its ends the infinities), a timestamptz the same in UTC. In come texts and such numbers, out come the
//! same. There is no clock here: `'now'` and its like are refused.

use calendar::DAY_MICROSECONDS;
use proto::{SqlState, WireError};

mod abbreviation;
mod calendar;
mod decode;
mod fields;
mod format;
mod parse;
mod zone;

pub use fields::{extract_date, extract_timestamp, extract_timestamptz, trunc_timestamp, trunc_timestamptz};
pub use format::{format_date, format_timestamp, format_timestamptz};
pub use parse::{parse_date, parse_timestamp, parse_timestamptz};
pub use zone::TimeZone;

/// `infinity` of a date.
pub const DATE_INFINITY: i32 = i32::MAX;
/// `-infinity` of a date.
pub const DATE_NEGATIVE_INFINITY: i32 = i32::MIN;
/// `infinity` of a timestamp.
pub const TIMESTAMP_INFINITY: i64 = i64::MAX;
/// `-infinity` of a timestamp.
pub const TIMESTAMP_NEGATIVE_INFINITY: i64 = i64::MIN;
/// 1970-01-01 as a timestamp.
const UNIX_EPOCH: i64 = -946_684_800_000_000;

/// A moment's parts in the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// Astronomical: 0 is 1 BC, -1 is 2 BC.
    pub year: i32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// Microseconds since midnight.
    pub time: i64,
}

fn overflow(message: impl Into<String>) -> WireError {
    WireError::new(SqlState::DATETIME_FIELD_OVERFLOW, message)
}

fn timestamp_out_of_range() -> WireError {
    overflow("timestamp out of range")
}

fn date_out_of_range() -> WireError {
    overflow("date out of range")
}

fn is_infinite_date(date: i32) -> bool {
    date == DATE_INFINITY || date == DATE_NEGATIVE_INFINITY
}

/// Whether PostgreSQL has this date: finite within its bounds, or infinite.
pub fn is_valid_date(date: i32) -> bool {
    is_infinite_date(date) || calendar::is_date(date.into())
}

/// Whether PostgreSQL has this timestamp: finite within its bounds, or infinite.
pub fn is_valid_timestamp(timestamp: i64) -> bool {
    matches!(timestamp, TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY) || calendar::is_timestamp(timestamp)
}

/// A timestamp rounded to `timestamp(p)`; -1 leaves it.
pub fn round_timestamp(timestamp: i64, modifier: i32) -> i64 {
    let unit = match modifier {
        0..=5 => 10i64.pow(6 - modifier as u32),
        _ => return timestamp,
    };
    if matches!(timestamp, TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY) {
        return timestamp;
    }
    // Half away from 2000-01-01, as PostgreSQL computes it.
    let half = unit / 2;
    if timestamp >= 0 { (timestamp + half) / unit * unit } else { -((-timestamp + half) / unit * unit) }
}

/// The parts of a finite timestamp.
pub fn to_civil(timestamp: i64) -> Civil {
    let (year, month, day) = calendar::date_from_days(timestamp.div_euclid(DAY_MICROSECONDS) as i32);
    Civil { year, month, day, time: timestamp.rem_euclid(DAY_MICROSECONDS) }
}

/// The timestamp of these parts. `None` if it is out of PostgreSQL's range.
pub fn from_civil(civil: Civil) -> Option<i64> {
    let days = calendar::days_from_date(civil.year, civil.month, civil.day.into());
    let timestamp = days.checked_mul(DAY_MICROSECONDS)?.checked_add(civil.time)?;
    calendar::is_timestamp(timestamp).then_some(timestamp)
}

/// `date::timestamp`.
pub fn date_to_timestamp(date: i32) -> Result<i64, WireError> {
    match date {
        DATE_INFINITY => Ok(TIMESTAMP_INFINITY),
        DATE_NEGATIVE_INFINITY => Ok(TIMESTAMP_NEGATIVE_INFINITY),
        _ => {
            let timestamp = i64::from(date).checked_mul(DAY_MICROSECONDS);
            let within = timestamp.filter(|timestamp| calendar::is_timestamp(*timestamp));
            within.ok_or_else(|| overflow("date out of range for timestamp"))
        }
    }
}

/// `timestamp::date`.
pub fn timestamp_to_date(timestamp: i64) -> Result<i32, WireError> {
    Ok(match timestamp {
        TIMESTAMP_INFINITY => DATE_INFINITY,
        TIMESTAMP_NEGATIVE_INFINITY => DATE_NEGATIVE_INFINITY,
        _ => timestamp.div_euclid(DAY_MICROSECONDS) as i32,
    })
}

/// `date::timestamptz`: midnight in the zone.
pub fn date_to_timestamptz(date: i32, zone: &TimeZone) -> Result<i64, WireError> {
    zone.to_utc(date_to_timestamp(date)?).map_err(|_| overflow("date out of range for timestamp"))
}

/// `timestamptz::date`: the day it is in the zone.
pub fn timestamptz_to_date(timestamp: i64, zone: &TimeZone) -> Result<i32, WireError> {
    if matches!(timestamp, TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY) {
        return timestamp_to_date(timestamp);
    }
    // The local time may be beyond the last timestamp; there are dates there.
    timestamp_to_date(timestamp.saturating_add(i64::from(zone.offset_at(timestamp)) * 1_000_000))
}

/// `timestamp::timestamptz`, `timestamp AT TIME ZONE zone`.
pub fn timestamp_to_timestamptz(timestamp: i64, zone: &TimeZone) -> Result<i64, WireError> {
    zone.to_utc(timestamp)
}

/// `timestamptz::timestamp`, `timestamptz AT TIME ZONE zone`.
pub fn timestamptz_to_timestamp(timestamp: i64, zone: &TimeZone) -> Result<i64, WireError> {
    zone.to_local(timestamp)
}

/// `date + integer`.
pub fn date_add(date: i32, days: i32) -> Result<i32, WireError> {
    if is_infinite_date(date) {
        return Ok(date);
    }
    let moved = date.checked_add(days).filter(|moved| calendar::is_date((*moved).into()));
    moved.ok_or_else(date_out_of_range)
}

/// `date - integer`.
pub fn date_sub(date: i32, days: i32) -> Result<i32, WireError> {
    if is_infinite_date(date) {
        return Ok(date);
    }
    let moved = date.checked_sub(days).filter(|moved| calendar::is_date((*moved).into()));
    moved.ok_or_else(date_out_of_range)
}

/// `date - date`, in days. Infinite dates are 22008.
pub fn date_diff(left: i32, right: i32) -> Result<i32, WireError> {
    if is_infinite_date(left) || is_infinite_date(right) {
        return Err(overflow("cannot subtract infinite dates"));
    }
    Ok(left.wrapping_sub(right))
}

/// `make_date(year, month, day)`; a negative year is BC.
pub fn make_date(year: i32, month: i32, day: i32) -> Result<i32, WireError> {
    let refuse = || overflow(format!("date field value out of range: {year}-{month:02}-{day:02}"));
    let astronomical = match year {
        0 => return Err(refuse()),
        1.. => year,
        _ => year.checked_add(1).ok_or_else(refuse)?,
    };
    let month_in_year =
        u8::try_from(month).ok().filter(|month| (1..=12).contains(month)).ok_or_else(refuse)?;
    if !(1..=i32::from(calendar::days_in_month(astronomical, month_in_year))).contains(&day) {
        return Err(refuse());
    }
    let days = calendar::days_from_date(astronomical, month_in_year, day);
    if !calendar::is_date(days) {
        return Err(overflow(format!("date out of range: {year}-{month:02}-{day:02}")));
    }
    Ok(days as i32)
}

/// `to_timestamp(float8)`: seconds since 1970 to a timestamptz.
pub fn from_unix_seconds(seconds: f64) -> Result<i64, WireError> {
    if seconds.is_nan() {
        return Err(overflow("timestamp cannot be NaN"));
    }
    if seconds.is_infinite() {
        return Ok(if seconds > 0.0 { TIMESTAMP_INFINITY } else { TIMESTAMP_NEGATIVE_INFINITY });
    }
    let refuse = || {
        let mut text = b"timestamp out of range: \"".to_vec();
        crate::float::write_f64(seconds, &mut text);
        text.push(b'"');
        overflow(String::from_utf8_lossy(&text).into_owned())
    };
    // PostgreSQL subtracts before it scales, to lose no bits of a moment near 2000.
    let microseconds = ((seconds + (UNIX_EPOCH / 1_000_000) as f64) * 1e6).round_ties_even();
    if !(-9.3e18..9.3e18).contains(&microseconds) || !calendar::is_timestamp(microseconds as i64) {
        return Err(refuse());
    }
    Ok(microseconds as i64)
}
