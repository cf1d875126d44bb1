//! Numerics against what PostgreSQL 15 answered: `data/numeric.txt`, recorded from it, a case a line.
//!
//! In a line stand the operation, its arguments and PostgreSQL's answer (an error as `E` and its SQLSTATE), with `|`
//! between.

#![allow(clippy::unwrap_used)] // helpers of tests fail as tests do

use dialect::float;
use dialect::numeric::{Numeric, SCALE_BYTES};
use proto::WireError;

fn show<T: ToString>(result: Result<T, WireError>) -> String {
    result.map_or_else(|error| format!("E{}", error.sqlstate), |value| value.to_string())
}

fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).unwrap()
}

fn answer(operation: &str, arguments: &[&str]) -> String {
    let number = |place: usize| Numeric::parse(arguments[place]).unwrap();
    let digits = |place: usize| arguments[place].parse().unwrap();
    let bits = |place: usize| arguments[place].parse::<i64>().unwrap();
    match operation {
        "in" => show(Numeric::parse(arguments[0])),
        "+" => show(number(0).add(&number(1))),
        "-" => show(number(0).sub(&number(1))),
        "*" => show(number(0).mul(&number(1))),
        "/" => show(number(0).div(&number(1))),
        "%" => show(number(0).rem(&number(1))),
        "div" => show(number(0).div_trunc(&number(1))),
        "gcd" => show(number(0).gcd(&number(1))),
        "cmp" => (number(0).cmp(&number(1)) as i32).to_string(),
        "power" => show(number(0).power(&number(1))),
        "log" => show(number(0).log(&number(1))),
        "sqrt" => show(number(0).sqrt()),
        "exp" => show(number(0).exp()),
        "ln" => show(number(0).ln()),
        "round" => show(number(0).round(digits(1))),
        "trunc" => show(number(0).trunc(digits(1))),
        "ceil" => show(number(0).ceil()),
        "floor" => show(number(0).floor()),
        "trim_scale" => number(0).trim_scale().to_string(),
        "abs" => number(0).abs().to_string(),
        "sign" => number(0).sign().to_string(),
        "typmod" => show(number(0).apply_modifier(digits(1))),
        "int2" => show(number(0).to_i16()),
        "int4" => show(number(0).to_i32()),
        "int8" => show(number(0).to_i64("bigint")),
        "float8" => show(number(0).to_f64().map(|value| text(|out| float::write_f64(value, out)))),
        "float4" => show(number(0).to_f32().map(|value| text(|out| float::write_f32(value, out)))),
        "send" => format!(r"\x{}", hex::encode(binary(&number(0)))),
        // From here on arguments are a float's bits as an integer.
        "float8bits" => text(|out| float::write_f64(f64::from_bits(bits(0) as u64), out)),
        "float4bits" => text(|out| float::write_f32(f32::from_bits(bits(0) as u32), out)),
        "float8bits_numeric" => show(Numeric::from_f64(f64::from_bits(bits(0) as u64))),
        "float4bits_numeric" => show(Numeric::from_f32(f32::from_bits(bits(0) as u32))),
        other => panic!("no operation {other}"),
    }
}

fn binary(value: &Numeric) -> Vec<u8> {
    let mut out = Vec::new();
    value.write_binary(&mut out);
    out
}

fn cases() -> impl Iterator<Item = Vec<&'static str>> {
    include_str!("data/numeric.txt").lines().map(|line| line.split('|').collect())
}

#[test]
fn answers_are_those_of_postgresql() {
    let mut wrong = Vec::new();
    for case in cases() {
        let (expected, arguments) = case[1..].split_last().unwrap();
        let actual = answer(case[0], arguments);
        if actual != *expected {
            wrong.push(format!("{} {arguments:?}: {actual}, not {expected}", case[0]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every number that the recorded cases show.
fn numbers() -> Vec<Numeric> {
    cases().flatten().filter_map(|word| Numeric::parse(word).ok()).collect()
}

#[test]
fn storage_and_binary_forms_give_the_number_back() {
    for number in numbers() {
        let stored = number.encode();
        let back = Numeric::decode(&stored).unwrap();
        assert_eq!(back.to_string(), number.to_string());
        assert_eq!(Numeric::read_binary(&binary(&number)).unwrap().to_string(), number.to_string());
    }
}

#[test]
fn storage_forms_sort_as_numbers_and_key_parts_are_equal_where_numbers_are() {
    let mut numbers = numbers();
    numbers.sort();
    for pair in numbers.windows(2) {
        let [left, right] = [pair[0].encode(), pair[1].encode()];
        let key = |stored: &[u8]| stored[..stored.len() - SCALE_BYTES].to_vec();
        assert_eq!(key(&left).cmp(&key(&right)), pair[0].cmp(&pair[1]), "{} {}", pair[0], pair[1]);
        if pair[0] != pair[1] {
            assert!(left < right, "{} {}", pair[0], pair[1]);
        }
        assert!(left == right || !key(&right).starts_with(&key(&left)) || pair[0] == pair[1]);
    }
}

/// Recorded once. A change here means that stored rows can no longer be read.
#[test]
fn golden_vectors() {
    let golden = [
        ("0", "800000"),
        ("0.00", "800002"),
        ("1", "93020000"),
        ("-1", "6cfd0000"),
        ("1.00", "93020002"),
        ("10", "93140000"),
        ("99", "93c60000"),
        ("100", "94020000"),
        ("0.1", "92140001"),
        ("0.01", "92020002"),
        ("-0.001", "6eeb0003"),
        ("12345.67", "95032f5b860002"),
        ("-12345.67", "6afcd0a4790002"),
        ("9223372036854775807", "9c 13 2d 43 91 07 89 6d 9b 75 0e 0000"),
        ("1e-40", "81 7fed 02 0028"),
        ("-1e-40", "7e 8012 fd 0028"),
        ("1e100", "c2 0003 02 0000"),
        ("Infinity", "c30000"),
        ("-Infinity", "3c0000"),
        ("NaN", "c40000"),
    ];
    for (text, expected) in golden {
        let stored = Numeric::parse(text).unwrap().encode();
        assert_eq!(hex::encode(stored), expected.replace(' ', ""), "{text}");
    }
}

#[test]
fn damaged_storage_is_refused() {
    let damaged: [&[u8]; 11] = [
        b"",
        b"\x80",
        b"\x93\x00\x00",
        b"\x93\x03\x00\x00",
        b"\x93\x02\x02\x00\x00",
        b"\x92\x02\x00\x00",
        b"\x93\xc9\x02\x00\x00",
        b"\x80\x40\x00",
        b"\xc3\x00\x01",
        b"\x81\x80\x01\x02\x00\x00",
        b"\xc2\xff\xff\x02\x00\x00",
    ];
    for bytes in damaged {
        assert_eq!(Numeric::decode(bytes).unwrap_err().sqlstate.as_str(), "XX001", "{bytes:x?}");
    }
}
