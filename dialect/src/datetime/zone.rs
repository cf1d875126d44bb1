//! Time zones: PostgreSQL's names and offset syntax over the tz database.
//!
//! In comes what SET TimeZone, AT TIME ZONE or a literal may say; out comes the offset at a moment. The database is
//! compiled in, so that every node answers the same whatever its machine has installed.

use super::calendar::{self, DAY_MICROSECONDS};
use super::{TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY, abbreviation, timestamp_out_of_range};
use jiff::tz::{AmbiguousOffset, TimeZoneDatabase};
use proto::{SqlState, WireError};
use std::sync::Arc;

/// A time zone. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TimeZone {
    rules: Rules,
    name: Arc<str>,
}

#[derive(Clone, Debug)]
enum Rules {
    /// Seconds east of UTC.
    Fixed(i32),
    Zone(jiff::tz::TimeZone),
}

/// The Gregorian calendar, weekdays included, repeats after 400 years.
const CYCLE_DAYS: i64 = 146_097;
/// Days from 2000-01-01 within which jiff computes: years -9999 to 9999, with room for an offset.
const FIRST_DAY: i64 = -4_371_000;
const LAST_DAY: i64 = 2_921_000;
/// 1970-01-01 to 2000-01-01.
const UNIX_SECONDS: i64 = 946_684_800;
/// What PostgreSQL allows an offset to be, in seconds.
const MAX_OFFSET: i32 = 168 * 3600;

impl Default for TimeZone {
    fn default() -> Self {
        Self::utc()
    }
}

impl PartialEq for TimeZone {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for TimeZone {}

impl TimeZone {
    /// UTC.
    pub fn utc() -> Self {
        Self { rules: Rules::Fixed(0), name: "UTC".into() }
    }

    /// The zone that SET TimeZone means, and the one that a session's zone goes by afterwards: a name (`Europe/Berlin`), hours east of UTC (`2`, `-3.5`), or a POSIX
    /// string, whose hours count west (`UTC+3`, `<+05>-05`), case aside. 22023 for any other.
    pub fn parse(value: &str) -> Result<Self, WireError> {
        let refuse = || {
            let message = format!("invalid value for parameter \"TimeZone\": \"{value}\"");
            WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
        };
        if let Ok(hours) = value.trim_start().parse::<f64>()
            && value.ends_with(|last: char| last.is_ascii_digit() || last == '.')
        {
            let seconds = hours * 3600.0;
            if seconds.abs() >= f64::from(MAX_OFFSET) {
                return Err(refuse().with_detail("UTC timezone offset is out of range."));
            }
            return Ok(Self::fixed(seconds as i32));
        }
        Self::named(value).ok_or_else(refuse)
    }

    /// The zone that AT TIME ZONE means: an abbreviation (`EST`), a name, or a POSIX string. 22023 for any other.
    pub fn operand(name: &str) -> Result<Self, WireError> {
        if let Some(offset) = abbreviation::offset(&name.to_ascii_lowercase()) {
            return Ok(Self { rules: Rules::Fixed(offset), name: name.to_ascii_uppercase().into() });
        }
        Self::named(name).ok_or_else(|| unrecognized(name))
    }

    /// Seconds east of UTC, named as PostgreSQL names it.
    fn fixed(seconds: i32) -> Self {
        let digits = |sign: char| {
            let (hours, minutes, rest) = (seconds.abs() / 3600, seconds.abs() / 60 % 60, seconds.abs() % 60);
            match (minutes, rest) {
                (0, 0) => format!("{sign}{hours:02}"),
                (_, 0) => format!("{sign}{hours:02}:{minutes:02}"),
                _ => format!("{sign}{hours:02}:{minutes:02}:{rest:02}"),
            }
        };
        let (east, west) = if seconds < 0 { ('-', '+') } else { ('+', '-') };
        Self { rules: Rules::Fixed(seconds), name: format!("<{}>{}", digits(east), digits(west)).into() }
    }

    /// A name of the database, or a POSIX string.
    pub(super) fn named(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("utc") {
            return Some(Self::utc());
        }
        if let Ok(zone) = TimeZoneDatabase::bundled().get(name) {
            let name = zone.iana_name().unwrap_or(name).into();
            return Some(Self { rules: Rules::Zone(zone), name });
        }
        let name = name.to_ascii_uppercase();
        if let Some(west) = posix_offset(&name) {
            return Some(Self { rules: Rules::Fixed(-west), name: name.into() });
        }
        // A POSIX string with rules for summer time.
        let zone = name.contains(',').then(|| jiff::tz::TimeZone::posix(&name).ok()).flatten()?;
        Some(Self { rules: Rules::Zone(zone), name: name.into() })
    }

    /// The name as SHOW TimeZone tells it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Seconds east of UTC at this moment (microseconds since 2000-01-01 00:00 UTC).
    pub fn offset_at(&self, timestamptz: i64) -> i32 {
        let zone = match &self.rules {
            Rules::Fixed(offset) => return *offset,
            Rules::Zone(zone) => zone,
        };
        let seconds = within_range(timestamptz).div_euclid(1_000_000) + UNIX_SECONDS;
        jiff::Timestamp::from_second(seconds).map_or(0, |moment| zone.to_offset(moment).seconds())
    }

    /// Seconds east of UTC at this local time. One that a transition skips counts by the offset before it, one that
    /// occurs twice is the second.
    pub(super) fn offset_at_local(&self, timestamp: i64) -> i32 {
        let zone = match &self.rules {
            Rules::Fixed(offset) => return *offset,
            Rules::Zone(zone) => zone,
        };
        let timestamp = within_range(timestamp);
        let (year, month, day) = calendar::date_from_days(timestamp.div_euclid(DAY_MICROSECONDS) as i32);
        let second = timestamp.rem_euclid(DAY_MICROSECONDS) / 1_000_000;
        let (hour, minute, second) = ((second / 3600) as i8, (second / 60 % 60) as i8, (second % 60) as i8);
        let local = jiff::civil::DateTime::new(year as i16, month as i8, day as i8, hour, minute, second, 0);
        match local.map(|local| zone.to_ambiguous_timestamp(local).offset()) {
            Ok(AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Gap { before: offset, .. }) => {
                offset.seconds()
            }
            Ok(AmbiguousOffset::Fold { after, .. }) => after.seconds(),
            Err(_) => 0,
        }
    }

    /// A local time as a moment. Infinities stay.
    pub(super) fn to_utc(&self, timestamp: i64) -> Result<i64, WireError> {
        shifted(
            timestamp,
            -i64::from(if is_infinite(timestamp) { 0 } else { self.offset_at_local(timestamp) }),
        )
    }

    /// A moment as local time. Infinities stay.
    pub(super) fn to_local(&self, timestamptz: i64) -> Result<i64, WireError> {
        shifted(
            timestamptz,
            i64::from(if is_infinite(timestamptz) { 0 } else { self.offset_at(timestamptz) }),
        )
    }
}

fn is_infinite(timestamp: i64) -> bool {
    timestamp == TIMESTAMP_INFINITY || timestamp == TIMESTAMP_NEGATIVE_INFINITY
}

fn shifted(timestamp: i64, seconds: i64) -> Result<i64, WireError> {
    if is_infinite(timestamp) {
        return Ok(timestamp);
    }
    let moved = timestamp.checked_add(seconds * 1_000_000);
    moved.filter(|moved| calendar::is_timestamp(*moved)).ok_or_else(timestamp_out_of_range)
}

pub(super) fn unrecognized(name: &str) -> WireError {
    WireError::new(SqlState::INVALID_PARAMETER_VALUE, format!("time zone \"{name}\" not recognized"))
}

/// The same moment of the calendar's cycle within the years that jiff knows.
fn within_range(timestamp: i64) -> i64 {
    let day = timestamp.div_euclid(DAY_MICROSECONDS);
    let cycles = if day > LAST_DAY {
        (day - LAST_DAY + CYCLE_DAYS - 1) / CYCLE_DAYS
    } else if day < FIRST_DAY {
        -((FIRST_DAY - day + CYCLE_DAYS - 1) / CYCLE_DAYS)
    } else {
        0
    };
    timestamp - cycles * CYCLE_DAYS * DAY_MICROSECONDS
}

/// Seconds west of UTC of a POSIX string without summer time: an abbreviation, maybe in angle brackets, maybe
/// empty, and hours with minutes and seconds.
fn posix_offset(text: &str) -> Option<i32> {
    let offset = if let Some(rest) = text.strip_prefix('<') {
        rest.split_once('>')?.1
    } else {
        text.trim_start_matches(|c: char| c.is_ascii_alphabetic())
    };
    let (negative, digits) = match offset.as_bytes().first()? {
        b'-' => (true, &offset[1..]),
        b'+' => (false, &offset[1..]),
        _ => (false, offset),
    };
    let mut seconds = 0;
    let mut parts = digits.split(':');
    for (unit, most) in [(3600, 167), (60, 59), (1, 59)] {
        let Some(part) = parts.next() else { break };
        if part.is_empty() || part.len() > 3 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        seconds += unit * part.parse::<i32>().ok().filter(|value| *value <= most)?;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(if negative { -seconds } else { seconds })
}
