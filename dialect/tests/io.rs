//! Input and output against what PostgreSQL 15 answered: `data/io.txt`, recorded from it, a case a line.
//!
//! In a line stand a type's object id, its modifier, a text that a column of the type was given, and what the column
//! then showed: its text and its binary form in hex; or `E`, SQLSTATE and message. A tab stands between.

#![allow(clippy::unwrap_used)] // helpers of tests fail as tests do

use dialect::TimeZone;
use dialect::io::{OutputSettings, elements, input, input_binary, output_binary, output_text};
use dialect::types::{Element, Type, Typed};
use proto::{Value, ValueRef, WireError};

struct Case {
    ty: Typed,
    text: &'static str,
    expected: Vec<&'static str>,
}

fn cases() -> Vec<Case> {
    let read = |line: &'static str| {
        let mut parts = line.split('\t');
        let mut number = || parts.next().unwrap().parse::<i32>().unwrap();
        let ty = Typed { ty: Type::from_oid(number() as u32).unwrap(), modifier: number() };
        Case { ty, text: parts.next().unwrap(), expected: parts.collect() }
    };
    include_str!("data/io.txt").lines().map(read).collect()
}

fn text_of(ty: Typed, value: &Value) -> String {
    let mut out = Vec::new();
    output_text(ty, value.as_ref(), &OutputSettings::default(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn binary_of(ty: Typed, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    output_binary(ty, value.as_ref(), &mut out).unwrap();
    out
}

fn code(result: Result<Value, WireError>) -> String {
    result.unwrap_err().sqlstate.to_string()
}

#[test]
fn texts_are_read_and_shown_as_by_postgresql() {
    let mut wrong = Vec::new();
    for Case { ty, text, expected } in cases() {
        let actual = match input(ty, text, &TimeZone::utc()) {
            Ok(value) => format!("{}\t{}", text_of(ty, &value), hex::encode(binary_of(ty, &value))),
            Err(error) => format!("E{} {}", error.sqlstate, error.message),
        };
        if actual != expected.join("\t") {
            wrong.push(format!("{ty:?} {text:?}:\n  {actual}\n  {}", expected.join("\t")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn binary_forms_are_read_back() {
    let mut read = 0;
    for Case { ty, text, .. } in cases() {
        let Ok(value) = input(ty, text, &TimeZone::utc()) else { continue };
        assert_eq!(input_binary(ty, &binary_of(ty, &value)).unwrap(), value, "{ty:?} {text:?}");
        read += 1;
    }
    assert!(read > 100);
}

#[test]
fn binary_forms_of_another_length_are_refused() {
    let fixed = [Type::Bool, Type::Int2, Type::Int4, Type::Int8, Type::Float4, Type::Float8, Type::Oid];
    for ty in fixed.into_iter().chain([Type::Date, Type::Timestamp, Type::Timestamptz, Type::Uuid]) {
        assert_eq!(code(input_binary(Typed::plain(ty), &[])), "08P01", "{ty:?}");
        assert_eq!(code(input_binary(Typed::plain(ty), &[0; 17])), "22P03", "{ty:?}");
    }
    assert_eq!(code(input_binary(Typed::plain(Type::Numeric), &[0, 1, 0, 0, 0, 0, 0, 0])), "08P01");
    assert_eq!(code(input_binary(Typed::plain(Type::Numeric), &[0, 0, 0, 0, 0x12, 0, 0, 0])), "22P03");
    let array = Typed::plain(Type::Array(Element::Int4));
    assert_eq!(
        code(input_binary(array, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0x7f, 0, 0, 0, 0, 0, 0, 1])),
        "08P01"
    );
    assert_eq!(code(input_binary(array, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25])), "42804");
}

#[test]
fn what_sqlite_cannot_hold_is_refused() {
    let utc = TimeZone::utc();
    assert_eq!(code(input(Typed::plain(Type::Text), "a\0b", &utc)), "22021");
    assert_eq!(code(input_binary(Typed::plain(Type::Text), b"a\0b")), "22021");
    let error = input_binary(Typed::plain(Type::Varchar), b"a\xc3(").unwrap_err();
    assert_eq!(error.message, "invalid byte sequence for encoding \"UTF8\": 0xc3 0x28");
    for ty in [Type::Float4, Type::Float8] {
        assert_eq!(code(input(Typed::plain(ty), "NaN", &utc)), "0A000");
    }
    assert_eq!(code(input_binary(Typed::plain(Type::Float8), &f64::NAN.to_be_bytes())), "0A000");
    assert_eq!(code(input(Typed::plain(Type::Timestamp), "now", &utc)), "0A000");
    assert_eq!(code(input(Typed::plain(Type::Date), "today", &utc)), "0A000");
    assert_eq!(code(input(Typed::plain(Type::Array(Element::Int4)), "[2:3]={1,2}", &utc)), "0A000");
}

#[test]
fn a_value_of_another_storage_class_is_corruption() {
    for ty in Type::ALL {
        let wrong = match ty {
            Type::Numeric | Type::Bytea | Type::Uuid => ValueRef::Real(1.0),
            _ => ValueRef::Blob(b"x"),
        };
        let mut out = Vec::new();
        let text = output_text(Typed::plain(*ty), wrong, &OutputSettings::default(), &mut out);
        assert_eq!(text.unwrap_err().sqlstate.as_str(), "XX001", "{ty:?}");
        let binary = output_binary(Typed::plain(*ty), wrong, &mut out);
        assert_eq!(binary.unwrap_err().sqlstate.as_str(), "XX001", "{ty:?}");
        assert!(out.is_empty());
    }
}

#[test]
fn an_array_gives_its_elements() {
    let text = |text: &str| Value::Text(text.into());
    let found = elements(Element::Text, r#"{a,NULL,"NULL","b,c"}"#).unwrap();
    assert_eq!(found, [text("a"), Value::Null, text("NULL"), text("b,c")]);
    assert_eq!(elements(Element::Int8, "{{1,2},{3,4}}").unwrap(), [1, 2, 3, 4].map(Value::Int));
    assert_eq!(elements(Element::Int8, "{}").unwrap(), []);
    assert_eq!(elements(Element::Int8, "{x}").unwrap_err().sqlstate.as_str(), "22P02");
}

#[test]
fn a_timestamp_is_shown_in_the_zone_of_the_session() {
    let shown = |zone: &str, text: &str| {
        let zone = TimeZone::parse(zone).unwrap();
        let ty = Typed::plain(Type::Timestamptz);
        let value = input(ty, text, &zone).unwrap();
        let mut out = Vec::new();
        output_text(ty, value.as_ref(), &OutputSettings { zone }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(shown("Asia/Kolkata", "2024-01-02 03:04:05Z"), "2024-01-02 08:34:05+05:30");
    assert_eq!(shown("America/New_York", "2024-07-01 12:00"), "2024-07-01 12:00:00-04");
}
