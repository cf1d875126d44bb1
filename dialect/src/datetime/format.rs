//! Dates and timestamps as ISO text.
//!
//! In come the numbers, out goes text, written into the caller's buffer digit by digit.

use super::calendar::{DAY_MICROSECONDS, date_from_days};
use super::{
    DATE_INFINITY, DATE_NEGATIVE_INFINITY, TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY, TimeZone,
};

fn two(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'0' + (value / 10) as u8, b'0' + (value % 10) as u8]);
}

/// Writes the date and says whether it is before Christ.
fn date(days: i32, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = date_from_days(days);
    let shown = if year > 0 { year as u32 } else { (1 - year) as u32 };
    if shown > 9999 {
        crate::io::write_u64(shown.into(), out);
    } else {
        two(shown / 100, out);
        two(shown % 100, out);
    }
    out.push(b'-');
    two(month.into(), out);
    out.push(b'-');
    two(day.into(), out);
    year <= 0
}

fn time(microseconds: i64, out: &mut Vec<u8>) {
    let seconds = (microseconds / 1_000_000) as u32;
    two(seconds / 3600, out);
    out.push(b':');
    two(seconds / 60 % 60, out);
    out.push(b':');
    two(seconds % 60, out);
    let mut fraction = (microseconds % 1_000_000) as u32;
    if fraction != 0 {
        out.push(b'.');
        let mut place = 100_000;
        while fraction != 0 {
            out.push(b'0' + (fraction / place) as u8);
            fraction %= place;
            place /= 10;
        }
    }
}

/// Appends a date as ISO text.
pub fn format_date(value: i32, out: &mut Vec<u8>) {
    match value {
        DATE_INFINITY => out.extend_from_slice(b"infinity"),
        DATE_NEGATIVE_INFINITY => out.extend_from_slice(b"-infinity"),
        _ => {
            if date(value, out) {
                out.extend_from_slice(b" BC");
            }
        }
    }
}

/// Appends a timestamp as ISO text.
pub fn format_timestamp(timestamp: i64, out: &mut Vec<u8>) {
    write(timestamp, None, out);
}

/// Appends a timestamp with time zone as ISO text, with its offset in `zone`.
pub fn format_timestamptz(timestamp: i64, zone: &TimeZone, out: &mut Vec<u8>) {
    write(timestamp, Some(zone), out);
}

fn write(timestamp: i64, zone: Option<&TimeZone>, out: &mut Vec<u8>) {
    match timestamp {
        TIMESTAMP_INFINITY => return out.extend_from_slice(b"infinity"),
        TIMESTAMP_NEGATIVE_INFINITY => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    let offset = zone.map(|zone| zone.offset_at(timestamp));
    let local = timestamp.saturating_add(i64::from(offset.unwrap_or(0)) * 1_000_000);
    let before_christ = date(local.div_euclid(DAY_MICROSECONDS) as i32, out);
    out.push(b' ');
    time(local.rem_euclid(DAY_MICROSECONDS), out);
    if let Some(offset) = offset {
        out.push(if offset < 0 { b'-' } else { b'+' });
        let seconds = offset.unsigned_abs();
        two(seconds / 3600, out);
        if seconds % 3600 != 0 {
            out.push(b':');
            two(seconds / 60 % 60, out);
        }
        if seconds % 60 != 0 {
            out.push(b':');
            two(seconds % 60, out);
        }
    }
    if before_christ {
        out.extend_from_slice(b" BC");
    }
}
