//! The bodies of the functions that templates call.
//!
//! In come SQLite values, out goes one, or an error with PostgreSQL's SQLSTATE and words. A body is a plain function
//! over Rust values; [`Body`] says which. Bodies never see NULL unless they ask for it: the others are strict.

mod alphabetic;
mod arrays;
mod binary;
mod casts;
mod catalog;
mod datetime;
mod floats;
mod integers;
mod letters;
mod numerics;
mod pattern;
mod raise;
mod regexp;
mod spare;
mod strings;
mod texts;

use super::error;
use super::value;
use crate::numeric::Numeric;
use proto::{SqlState, Value, ValueRef, WireError};
use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags};

type Answer<T> = Result<T, WireError>;

/// A function for SQLite.
struct Native {
    name: &'static str,
    body: Body,
}

/// A function's shape and its Rust.
#[derive(Clone, Copy)]
enum Body {
    Int1(fn(i64) -> Answer<i64>),
    Int2(fn(i64, i64) -> Answer<i64>),
    Real1(fn(f64) -> Answer<f64>),
    Real2(fn(f64, f64) -> Answer<f64>),
    Numeric1(fn(&Numeric) -> Answer<Numeric>),
    Numeric2(fn(&Numeric, &Numeric) -> Answer<Numeric>),
    Text1(fn(&str) -> Answer<String>),
    /// Any arguments, this many (-1: any number). NULL if one of them is NULL.
    Strict(i32, fn(&[ValueRef<'_>]) -> Answer<Value>),
    /// The same, but NULLs come in.
    Loose(i32, fn(&[ValueRef<'_>]) -> Answer<Value>),
}

pub(super) fn register(connection: &Connection) -> rusqlite::Result<()> {
    let flags =
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    let groups = [
        integers::FUNCTIONS,
        floats::FUNCTIONS,
        numerics::FUNCTIONS,
        casts::FUNCTIONS,
        texts::FUNCTIONS,
        strings::FUNCTIONS,
        binary::FUNCTIONS,
        datetime::FUNCTIONS,
        arrays::FUNCTIONS,
        catalog::FUNCTIONS,
        raise::FUNCTIONS,
    ];
    for native in groups.into_iter().flatten() {
        let body = native.body;
        connection.create_scalar_function(native.name, body.arity(), flags, move |context| {
            body.call(context).map_err(error::raise)
        })?;
    }
    spare::register(connection)?;
    pattern::register(connection, flags)?;
    regexp::register(connection, flags)
}

impl Body {
    fn arity(self) -> i32 {
        match self {
            Body::Int1(_) | Body::Real1(_) | Body::Numeric1(_) | Body::Text1(_) => 1,
            Body::Int2(_) | Body::Real2(_) | Body::Numeric2(_) => 2,
            Body::Strict(arity, _) | Body::Loose(arity, _) => arity,
        }
    }

    fn call(self, context: &Context<'_>) -> Answer<rusqlite::types::Value> {
        use rusqlite::types::Value as Out;
        let arg = |i: usize| value::value_ref(context.get_raw(i));
        if !matches!(self, Body::Loose(..))
            && (0..context.len()).any(|i| context.get_raw(i) == rusqlite::types::ValueRef::Null)
        {
            return Ok(Out::Null);
        }
        match self {
            Body::Int1(f) => f(int(arg(0)?)?).map(Out::Integer),
            Body::Int2(f) => f(int(arg(0)?)?, int(arg(1)?)?).map(Out::Integer),
            Body::Real1(f) => f(real(arg(0)?)?).and_then(|v| value::result(Value::Real(v))),
            Body::Real2(f) => f(real(arg(0)?)?, real(arg(1)?)?).and_then(|v| value::result(Value::Real(v))),
            Body::Numeric1(f) => f(&numeric(arg(0)?)?).map(|v| Out::Blob(v.encode())),
            Body::Numeric2(f) => f(&numeric(arg(0)?)?, &numeric(arg(1)?)?).map(|v| Out::Blob(v.encode())),
            Body::Text1(f) => f(text(arg(0)?)?).map(Out::Text),
            Body::Strict(_, f) | Body::Loose(_, f) => {
                let mut few = [ValueRef::Null; 6];
                if context.len() <= few.len() {
                    for (i, slot) in few.iter_mut().enumerate().take(context.len()) {
                        *slot = arg(i)?;
                    }
                    return f(&few[..context.len()]).and_then(value::result);
                }
                let many = (0..context.len()).map(arg).collect::<Answer<Vec<_>>>()?;
                f(&many).and_then(value::result)
            }
        }
    }
}

/// An argument that is an integer by its type.
fn int(value: ValueRef<'_>) -> Answer<i64> {
    match value {
        ValueRef::Int(v) => Ok(v),
        // What SQLite makes of an integer expression that leaves 64 bits.
        ValueRef::Real(_) => Err(out_of_range("bigint")),
        other => Err(mistyped("an integer", other)),
    }
}

/// An argument that fits 32 bits by its type.
fn int4(value: ValueRef<'_>) -> Answer<i32> {
    i32::try_from(int(value)?).map_err(|_| out_of_range("integer"))
}

fn real(value: ValueRef<'_>) -> Answer<f64> {
    match value {
        ValueRef::Real(v) => Ok(v),
        ValueRef::Int(v) => Ok(v as f64),
        other => Err(mistyped("a float", other)),
    }
}

fn text(value: ValueRef<'_>) -> Answer<&str> {
    match value {
        ValueRef::Text(v) => Ok(v),
        other => Err(mistyped("a text", other)),
    }
}

fn bytes(value: ValueRef<'_>) -> Answer<&[u8]> {
    match value {
        ValueRef::Blob(v) => Ok(v),
        other => Err(mistyped("bytes", other)),
    }
}

fn numeric(value: ValueRef<'_>) -> Answer<Numeric> {
    Numeric::decode(bytes(value)?)
}

fn bool(value: bool) -> Value {
    Value::Int(i64::from(value))
}

fn mistyped(wanted: &str, value: ValueRef<'_>) -> WireError {
    let class = match value {
        ValueRef::Null => "NULL",
        ValueRef::Int(_) => "an integer",
        ValueRef::Real(_) => "a float",
        ValueRef::Text(_) => "a text",
        ValueRef::Blob(_) => "bytes",
    };
    WireError::internal(format!("a function that takes {wanted} was given {class}"))
}

fn out_of_range(what: &str) -> WireError {
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{what} out of range"))
}

fn invalid(message: impl Into<String>) -> WireError {
    WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}
