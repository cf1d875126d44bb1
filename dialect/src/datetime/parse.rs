//! Dates and timestamps from text.
//!
//! In comes what PostgreSQL's input functions take with DateStyle `ISO, MDY`; out come the numbers. The plain ISO
//! form is read at once; everything else goes through [`super::decode`], a reading field by field.

use super::calendar::{self, DAY_MICROSECONDS};
use super::decode::{self, Decoded, Fault, Moment, Zone};
use super::{
    Civil, DATE_INFINITY, DATE_NEGATIVE_INFINITY, TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY, TimeZone,
    UNIX_EPOCH, from_civil, overflow, round_timestamp, timestamp_out_of_range,
};
use proto::{SqlState, WireError};

/// Reads a date.
pub fn parse_date(text: &str) -> Result<i32, WireError> {
    const KIND: &str = "date";
    if let Some((year, month, day)) = iso_date(text.as_bytes()) {
        return Ok(calendar::days_from_date(year, month, day.into()) as i32);
    }
    match decode::decode(text).map_err(|fault| refuse(fault, text, KIND))? {
        Decoded::Infinity => Ok(DATE_INFINITY),
        Decoded::NegativeInfinity => Ok(DATE_NEGATIVE_INFINITY),
        Decoded::Epoch => Ok((UNIX_EPOCH / DAY_MICROSECONDS) as i32),
        Decoded::Clock(word) => Err(needs_clock(&word)),
        Decoded::Moment(moment) => {
            let days = calendar::days_from_date(moment.year, moment.month, moment.day.into());
            if calendar::is_date(days) {
                Ok(days as i32)
            } else {
                Err(overflow(format!("date out of range: \"{text}\"")))
            }
        }
    }
}

/// Reads a timestamp; a zone in the text is ignored, as PostgreSQL does. `modifier` rounds to that many digits of a
/// second (-1: all six).
pub fn parse_timestamp(text: &str, modifier: i32) -> Result<i64, WireError> {
    if let Some((timestamp, None)) = iso_timestamp(text.as_bytes()) {
        return finish(timestamp, modifier);
    }
    read(text, modifier, "timestamp", local)
}

/// Reads a timestamp with time zone; a text without one is in `zone`.
pub fn parse_timestamptz(text: &str, modifier: i32, zone: &TimeZone) -> Result<i64, WireError> {
    match iso_timestamp(text.as_bytes()) {
        Some((timestamp, Some(seconds))) => return finish(timestamp - seconds * 1_000_000, modifier),
        Some((timestamp, None)) => return finish(zone.to_utc(timestamp)?, modifier),
        None => {}
    }
    read(text, modifier, "timestamp with time zone", |moment| {
        let timestamp = local(moment)?;
        let offset = match &moment.zone {
            Some(Zone::Offset(seconds)) => *seconds,
            Some(Zone::Named(zone)) => zone.offset_at_local(timestamp),
            None => zone.offset_at_local(timestamp),
        };
        timestamp.checked_sub(i64::from(offset) * 1_000_000).filter(|moment| calendar::is_timestamp(*moment))
    })
}

fn read(
    text: &str,
    modifier: i32,
    kind: &str,
    place: impl Fn(&Moment) -> Option<i64>,
) -> Result<i64, WireError> {
    match decode::decode(text).map_err(|fault| refuse(fault, text, kind))? {
        Decoded::Infinity => Ok(TIMESTAMP_INFINITY),
        Decoded::NegativeInfinity => Ok(TIMESTAMP_NEGATIVE_INFINITY),
        Decoded::Epoch => Ok(UNIX_EPOCH),
        Decoded::Clock(word) => Err(needs_clock(&word)),
        Decoded::Moment(moment) => {
            let timestamp =
                place(&moment).ok_or_else(|| overflow(format!("timestamp out of range: \"{text}\"")))?;
            finish(timestamp, modifier)
        }
    }
}

fn finish(timestamp: i64, modifier: i32) -> Result<i64, WireError> {
    let rounded = round_timestamp(timestamp, modifier);
    if calendar::is_timestamp(rounded) { Ok(rounded) } else { Err(timestamp_out_of_range()) }
}

fn local(moment: &Moment) -> Option<i64> {
    let Moment { year, month, day, time, .. } = *moment;
    from_civil(Civil { year, month, day, time })
}

fn refuse(fault: Fault, text: &str, kind: &str) -> WireError {
    match fault {
        Fault::Format => {
            let message = format!("invalid input syntax for type {kind}: \"{text}\"");
            WireError::new(SqlState::INVALID_DATETIME_FORMAT, message)
        }
        Fault::Field => overflow(format!("date/time field value out of range: \"{text}\"")),
        Fault::MonthOrDay => overflow(format!("date/time field value out of range: \"{text}\""))
            .with_hint("Perhaps you need a different \"datestyle\" setting."),
        Fault::Displacement => {
            let message = format!("time zone displacement out of range: \"{text}\"");
            WireError::new(SqlState::INVALID_TIME_ZONE_DISPLACEMENT_VALUE, message)
        }
        Fault::UnknownZone(name) => super::zone::unrecognized(&name),
    }
}

fn needs_clock(word: &str) -> WireError {
    WireError::unsupported(format!("the date/time input \"{word}\""))
        .with_hint("Use now(), CURRENT_DATE or CURRENT_TIMESTAMP.")
}

fn digits(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u32::from(byte - b'0')))
}

/// `YYYY-MM-DD`, nothing else, and a day that exists.
fn iso_date(text: &[u8]) -> Option<(i32, u8, u8)> {
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let year = digits(&text[..4])? as i32;
    let month = digits(&text[5..7])? as u8;
    let day = digits(&text[8..])? as u8;
    let exists =
        year > 0 && (1..=12).contains(&month) && (1..=calendar::days_in_month(year, month)).contains(&day);
    exists.then_some((year, month, day))
}

/// `YYYY-MM-DD[ T]HH:MM:SS[.ffffff]`, maybe with `Z`, `+HH` or `+HH:MM`: the local time, and seconds east of UTC.
fn iso_timestamp(text: &[u8]) -> Option<(i64, Option<i64>)> {
    let (date, rest) = text.split_at_checked(10)?;
    let (year, month, day) = iso_date(date)?;
    let (clock, rest) = rest.split_at_checked(9)?;
    if !matches!(clock[0], b' ' | b'T') || clock[3] != b':' || clock[6] != b':' {
        return None;
    }
    let (hour, minute, second) = (digits(&clock[1..3])?, digits(&clock[4..6])?, digits(&clock[7..])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (fraction, rest) = match rest.strip_prefix(b".") {
        Some(rest) => {
            let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
            if !(1..=6).contains(&end) {
                return None;
            }
            (digits(&rest[..end])? * 10u32.pow(6 - end as u32), &rest[end..])
        }
        None => (0, rest),
    };
    let offset = match rest {
        [] => None,
        b"Z" => Some(0),
        [sign @ (b'+' | b'-'), rest @ ..] => {
            let (hours, minutes) = match rest.len() {
                2 => (digits(rest)?, 0),
                5 if rest[2] == b':' => (digits(&rest[..2])?, digits(&rest[3..])?),
                _ => return None,
            };
            if hours > 15 || minutes > 59 {
                return None;
            }
            let seconds = i64::from(hours * 3600 + minutes * 60);
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => return None,
    };
    let seconds = i64::from(hour * 3600 + minute * 60 + second);
    let days = calendar::days_from_date(year, month, day.into());
    Some((days * DAY_MICROSECONDS + seconds * 1_000_000 + i64::from(fraction), offset))
}
