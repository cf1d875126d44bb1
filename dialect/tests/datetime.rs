//! Dates and timestamps against what PostgreSQL 15 answered: `data/datetime.txt`, recorded from it, a case a line.
//!
//! In a line stand the operation, its arguments and PostgreSQL's answer (an error as `E` and its SQLSTATE), with `|`
//! between.

#![allow(clippy::unwrap_used)] // helpers of tests fail as tests do

use dialect::datetime::*;
use proto::WireError;

fn answer(operation: &str, arguments: &[&str]) -> Result<String, WireError> {
    let utc = TimeZone::utc();
    let zone = |place: usize| TimeZone::parse(arguments[place]);
    let timestamp = |place: usize| parse_timestamp(arguments[place], -1);
    let number = |place: usize| arguments[place].parse().unwrap();
    let mut out = Vec::new();
    match operation {
        "date" => format_date(parse_date(arguments[0])?, &mut out),
        "timestamp" => format_timestamp(parse_timestamp(arguments[0], number(1))?, &mut out),
        "timestamptz" => {
            let value = parse_timestamptz(arguments[1], -1, &zone(0)?)?;
            format_timestamptz(value, &zone(0)?, &mut out);
        }
        "at_zone" => {
            let value = parse_timestamptz(arguments[1], -1, &utc)?;
            format_timestamp(timestamptz_to_timestamp(value, &TimeZone::operand(arguments[0])?)?, &mut out);
        }
        "from_zone" => {
            let value = timestamp_to_timestamptz(timestamp(1)?, &TimeZone::operand(arguments[0])?)?;
            format_timestamptz(value, &utc, &mut out);
        }
        "trunc" => format_timestamp(trunc_timestamp(arguments[0], timestamp(1)?)?, &mut out),
        "trunctz" => {
            let value = parse_timestamptz(arguments[2], -1, &zone(1)?)?;
            format_timestamptz(trunc_timestamptz(arguments[0], value, &zone(1)?)?, &zone(1)?, &mut out);
        }
        "extract" | "extractd" | "extracttz" => {
            let found = match operation {
                "extract" => extract_timestamp(arguments[0], timestamp(1)?)?,
                "extractd" => extract_date(arguments[0], parse_date(arguments[1])?)?,
                _ => {
                    let value = parse_timestamptz(arguments[2], -1, &zone(1)?)?;
                    extract_timestamptz(arguments[0], value, &zone(1)?)?
                }
            };
            return Ok(found.map_or("NULL".into(), |number| number.to_string()));
        }
        "unix" => format_timestamptz(from_unix_seconds(arguments[0].parse().unwrap())?, &utc, &mut out),
        "make" => format_date(make_date(number(0), number(1), number(2))?, &mut out),
        "date+" => format_date(date_add(parse_date(arguments[0])?, number(1))?, &mut out),
        "date-" => format_date(date_sub(parse_date(arguments[0])?, number(1))?, &mut out),
        "days" => return Ok(date_diff(parse_date(arguments[0])?, parse_date(arguments[1])?)?.to_string()),
        "date>timestamp" => format_timestamp(date_to_timestamp(parse_date(arguments[0])?)?, &mut out),
        "timestamp>date" => format_date(timestamp_to_date(timestamp(0)?)?, &mut out),
        "date>timestamptz" => {
            let value = date_to_timestamptz(parse_date(arguments[1])?, &zone(0)?)?;
            format_timestamptz(value, &zone(0)?, &mut out);
        }
        "timestamptz>date" => {
            let value = parse_timestamptz(arguments[1], -1, &utc)?;
            format_date(timestamptz_to_date(value, &zone(0)?)?, &mut out);
        }
        "zone" => return Ok(zone(0)?.name().to_owned()),
        other => panic!("no operation {other}"),
    }
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn answers_are_those_of_postgresql() {
    let mut wrong = Vec::new();
    for line in include_str!("data/datetime.txt").lines() {
        let case: Vec<_> = line.split('|').collect();
        let (expected, arguments) = case[1..].split_last().unwrap();
        let actual = answer(case[0], arguments).unwrap_or_else(|error| format!("E{}", error.sqlstate));
        if actual != *expected {
            wrong.push(format!("{} {arguments:?}: {actual}, not {expected}", case[0]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn civil_parts_make_the_timestamp_again() {
    for timestamp in [0, -1, 1, -211_813_488_000_000_000, 9_223_371_331_199_999_999, 86_400_000_000 * 59] {
        assert_eq!(from_civil(to_civil(timestamp)), Some(timestamp));
    }
    assert_eq!(from_civil(Civil { year: 294_277, month: 1, day: 1, time: 0 }), None);
    let civil = to_civil(-1);
    assert_eq!((civil.year, civil.month, civil.day, civil.time), (1999, 12, 31, 86_399_999_999));
}
