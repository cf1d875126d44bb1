//! Dates and timestamps with PostgreSQL's rules.
//!
//! A date is days since 2000-01-01 (`i32`, its ends the infinities), a timestamp microseconds since 2000-01-01 00:00
//! (`i64`, its ends the infinities), a timestamptz the same in UTC. In come texts and such numbers, out come the
//! same. There is no clock here: `'now'` and its like are refused.

use crate::numeric::Numeric;
use proto::WireError;

mod zone;

pub use zone::TimeZone;

/// `infinity` of a date.
pub const DATE_INFINITY: i32 = i32::MAX;
/// `-infinity` of a date.
pub const DATE_NEGATIVE_INFINITY: i32 = i32::MIN;
/// `infinity` of a timestamp.
pub const TIMESTAMP_INFINITY: i64 = i64::MAX;
/// `-infinity` of a timestamp.
pub const TIMESTAMP_NEGATIVE_INFINITY: i64 = i64::MIN;

fn pending<T>() -> Result<T, WireError> {
    Err(WireError::unsupported("date and time"))
}

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

/// Reads a date.
pub fn parse_date(_text: &str) -> Result<i32, WireError> {
    pending()
}

/// Reads a timestamp; a zone in the text is ignored, as PostgreSQL does. `modifier` rounds to that many digits of a
/// second (-1: all six).
pub fn parse_timestamp(_text: &str, _modifier: i32) -> Result<i64, WireError> {
    pending()
}

/// Reads a timestamp with time zone; a text without one is in `zone`.
pub fn parse_timestamptz(_text: &str, _modifier: i32, _zone: &TimeZone) -> Result<i64, WireError> {
    pending()
}

/// Appends a date as ISO text.
pub fn format_date(_date: i32, _out: &mut Vec<u8>) {}

/// Appends a timestamp as ISO text.
pub fn format_timestamp(_timestamp: i64, _out: &mut Vec<u8>) {}

/// Appends a timestamp with time zone as ISO text, with its offset in `zone`.
pub fn format_timestamptz(_timestamp: i64, _zone: &TimeZone, _out: &mut Vec<u8>) {}

/// A timestamp rounded to `timestamp(p)`; -1 leaves it.
pub fn round_timestamp(timestamp: i64, _modifier: i32) -> i64 {
    timestamp
}

/// The parts of a finite timestamp.
pub fn to_civil(_timestamp: i64) -> Civil {
    Civil { year: 2000, month: 1, day: 1, time: 0 }
}

/// The timestamp of these parts. `None` if it is out of PostgreSQL's range.
pub fn from_civil(_civil: Civil) -> Option<i64> {
    None
}

/// `date::timestamp`.
pub fn date_to_timestamp(_date: i32) -> Result<i64, WireError> {
    pending()
}

/// `timestamp::date`.
pub fn timestamp_to_date(_timestamp: i64) -> Result<i32, WireError> {
    pending()
}

/// `date::timestamptz`: midnight in the zone.
pub fn date_to_timestamptz(_date: i32, _zone: &TimeZone) -> Result<i64, WireError> {
    pending()
}

/// `timestamptz::date`: the day it is in the zone.
pub fn timestamptz_to_date(_timestamp: i64, _zone: &TimeZone) -> Result<i32, WireError> {
    pending()
}

/// `timestamp::timestamptz`, `timestamp AT TIME ZONE zone`.
pub fn timestamp_to_timestamptz(_timestamp: i64, _zone: &TimeZone) -> Result<i64, WireError> {
    pending()
}

/// `timestamptz::timestamp`, `timestamptz AT TIME ZONE zone`.
pub fn timestamptz_to_timestamp(_timestamp: i64, _zone: &TimeZone) -> Result<i64, WireError> {
    pending()
}

/// `date + integer`.
pub fn date_add(_date: i32, _days: i32) -> Result<i32, WireError> {
    pending()
}

/// `date - date`, in days. Infinite dates are 22008.
pub fn date_diff(_left: i32, _right: i32) -> Result<i32, WireError> {
    pending()
}

/// `make_date(year, month, day)`; a negative year is BC.
pub fn make_date(_year: i32, _month: i32, _day: i32) -> Result<i32, WireError> {
    pending()
}

/// `date_trunc(field, timestamp)`.
pub fn trunc_timestamp(_field: &str, _timestamp: i64) -> Result<i64, WireError> {
    pending()
}

/// `date_trunc(field, timestamptz)` in a zone.
pub fn trunc_timestamptz(_field: &str, _timestamp: i64, _zone: &TimeZone) -> Result<i64, WireError> {
    pending()
}

/// `extract(field FROM date)`. `None` is SQL NULL (a field that an infinity hasn't).
pub fn extract_date(_field: &str, _date: i32) -> Result<Option<Numeric>, WireError> {
    pending()
}

/// `extract(field FROM timestamp)`.
pub fn extract_timestamp(_field: &str, _timestamp: i64) -> Result<Option<Numeric>, WireError> {
    pending()
}

/// `extract(field FROM timestamptz)` in a zone.
pub fn extract_timestamptz(
    _field: &str,
    _timestamp: i64,
    _zone: &TimeZone,
) -> Result<Option<Numeric>, WireError> {
    pending()
}

/// `to_timestamp(float8)`: seconds since 1970 to a timestamptz.
pub fn from_unix_seconds(_seconds: f64) -> Result<i64, WireError> {
    pending()
}
