//! The aggregates that SQLite lacks: exact sums and averages, extremes of numerics, `string_agg`.
//!
//! In come a group's values one by one (NULLs are skipped), out goes the result; NULL if there were none.

use super::error::raise;
use super::value;
use crate::numeric::Numeric;
use proto::{SqlState, Value, ValueRef, WireError};
use rusqlite::Connection;
use rusqlite::functions::{Aggregate, Context, FunctionFlags};
use std::collections::HashSet;

type Answer<T> = Result<T, WireError>;

/// What an aggregate remembers of the values so far.
trait State: Default + Send + std::panic::UnwindSafe + std::panic::RefUnwindSafe {
    /// Takes the arguments of one row; the first isn't NULL.
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()>;
    /// The result over all rows. Not called if there were none.
    fn finish(self) -> Answer<Value>;
}

struct Of<S>(std::marker::PhantomData<fn() -> S>);

impl<S: State> Aggregate<Option<S>, rusqlite::types::Value> for Of<S> {
    fn init(&self, _: &mut Context<'_>) -> rusqlite::Result<Option<S>> {
        Ok(None)
    }

    fn step(&self, context: &mut Context<'_>, state: &mut Option<S>) -> rusqlite::Result<()> {
        let mut args = [ValueRef::Null; 2];
        for (i, slot) in args.iter_mut().enumerate().take(context.len()) {
            *slot = value::value_ref(context.get_raw(i)).map_err(raise)?;
        }
        if args[0].is_null() {
            return Ok(());
        }
        state.get_or_insert_default().step(&args[..context.len()]).map_err(raise)
    }

    fn finalize(
        &self,
        _: &mut Context<'_>,
        state: Option<Option<S>>,
    ) -> rusqlite::Result<rusqlite::types::Value> {
        let result = state.flatten().map_or(Ok(Value::Null), S::finish);
        result.and_then(value::result).map_err(raise)
    }
}

pub(super) fn register(connection: &Connection) -> rusqlite::Result<()> {
    fn add<S: State + 'static>(connection: &Connection, name: &str, arity: i32) -> rusqlite::Result<()> {
        let flags = FunctionFlags::SQLITE_UTF8
            | FunctionFlags::SQLITE_DETERMINISTIC
            | FunctionFlags::SQLITE_INNOCUOUS;
        connection.create_aggregate_function(name, arity, flags, Of::<S>(std::marker::PhantomData))
    }
    add::<IntSum>(connection, "pg_int8_sum", 1)?;
    add::<IntAverage>(connection, "pg_int8_avg", 1)?;
    add::<NumericSum>(connection, "pg_numeric_sum", 1)?;
    add::<NumericAverage>(connection, "pg_numeric_avg", 1)?;
    add::<Distinct<NumericSum>>(connection, "pg_numeric_sum_distinct", 1)?;
    add::<Distinct<NumericAverage>>(connection, "pg_numeric_avg_distinct", 1)?;
    add::<Extreme<false>>(connection, "pg_numeric_min", 1)?;
    add::<Extreme<true>>(connection, "pg_numeric_max", 1)?;
    add::<Float8Sum>(connection, "pg_float8_sum", 1)?;
    add::<Float8Average>(connection, "pg_float8_avg", 1)?;
    add::<Float4Sum>(connection, "pg_float4_sum", 1)?;
    add::<TextJoin>(connection, "pg_string_agg", 2)?;
    add::<ByteJoin>(connection, "pg_bytes_agg", 2)
}

fn int(value: ValueRef<'_>) -> Answer<i64> {
    match value {
        ValueRef::Int(v) => Ok(v),
        _ => Err(WireError::internal("an aggregate of integers was given something else")),
    }
}

fn real(value: ValueRef<'_>) -> Answer<f64> {
    match value {
        ValueRef::Real(v) => Ok(v),
        ValueRef::Int(v) => Ok(v as f64),
        _ => Err(WireError::internal("an aggregate of floats was given something else")),
    }
}

fn bytes(value: ValueRef<'_>) -> Answer<&[u8]> {
    match value {
        ValueRef::Blob(v) => Ok(v),
        _ => Err(WireError::internal("an aggregate of bytes was given something else")),
    }
}

fn text(value: ValueRef<'_>) -> Answer<&str> {
    match value {
        ValueRef::Text(v) => Ok(v),
        _ => Err(WireError::internal("an aggregate of texts was given something else")),
    }
}

fn stored(value: Numeric) -> Answer<Value> {
    Ok(Value::Blob(value.encode()))
}

/// An integer of 128 bits as a numeric of scale 0.
fn wide(sum: i128) -> Answer<Numeric> {
    match i64::try_from(sum) {
        Ok(small) => Ok(Numeric::from_i64(small)),
        Err(_) => Numeric::parse(&sum.to_string()),
    }
}

/// 2^63 rows of the widest int8 fit into 128 bits.
#[derive(Default)]
struct IntSum(i128);

impl State for IntSum {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        self.0 += i128::from(int(args[0])?);
        Ok(())
    }

    fn finish(self) -> Answer<Value> {
        stored(wide(self.0)?)
    }
}

#[derive(Default)]
struct IntAverage {
    sum: i128,
    count: i64,
}

impl State for IntAverage {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        self.sum += i128::from(int(args[0])?);
        self.count += 1;
        Ok(())
    }

    fn finish(self) -> Answer<Value> {
        stored(wide(self.sum)?.div(&Numeric::from_i64(self.count))?)
    }
}

struct NumericSum(Numeric);

impl Default for NumericSum {
    fn default() -> Self {
        NumericSum(Numeric::from_i64(0))
    }
}

impl State for NumericSum {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        self.0 = self.0.add(&Numeric::decode(bytes(args[0])?)?)?;
        Ok(())
    }

    fn finish(self) -> Answer<Value> {
        stored(self.0)
    }
}

#[derive(Default)]
struct NumericAverage {
    sum: NumericSum,
    count: i64,
}

impl State for NumericAverage {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        self.count += 1;
        self.sum.step(args)
    }

    fn finish(self) -> Answer<Value> {
        stored(self.sum.0.div(&Numeric::from_i64(self.count))?)
    }
}

/// An aggregate over numerics of which each value counts once, whatever its scale.
#[derive(Default)]
struct Distinct<S> {
    seen: HashSet<Vec<u8>>,
    inner: S,
}

impl<S: State> State for Distinct<S> {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        if self.seen.insert(numeric_key(bytes(args[0])?).to_vec()) { self.inner.step(args) } else { Ok(()) }
    }

    fn finish(self) -> Answer<Value> {
        self.inner.finish()
    }
}

/// A stored numeric's key form: all but the two bytes of its scale.
fn numeric_key(stored: &[u8]) -> &[u8] {
    &stored[..stored.len().saturating_sub(2)]
}

/// The least or greatest numeric, compared by key form, kept with its scale.
#[derive(Default)]
struct Extreme<const MAX: bool>(Option<Vec<u8>>);

impl<const MAX: bool> State for Extreme<MAX> {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        let value = bytes(args[0])?;
        let better = match &self.0 {
            None => true,
            Some(best) if MAX => numeric_key(value) > numeric_key(best),
            Some(best) => numeric_key(value) < numeric_key(best),
        };
        if better {
            self.0 = Some(value.to_vec());
        }
        Ok(())
    }

    fn finish(self) -> Answer<Value> {
        Ok(self.0.map_or(Value::Null, Value::Blob))
    }
}

fn overflow() -> WireError {
    WireError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow")
}

struct Float8Sum(f64);

impl Default for Float8Sum {
    /// What added to anything leaves it, negative zero included.
    fn default() -> Self {
        Float8Sum(-0.0)
    }
}

impl State for Float8Sum {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        let value = real(args[0])?;
        let sum = self.0 + value;
        if sum.is_infinite() && self.0.is_finite() && value.is_finite() {
            return Err(overflow());
        }
        self.0 = sum;
        Ok(())
    }

    fn finish(self) -> Answer<Value> {
        Ok(Value::Real(self.0))
    }
}

#[derive(Default)]
struct Float8Average {
    sum: Float8Sum,
    count: f64,
}

impl State for Float8Average {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        self.count += 1.0;
        self.sum.step(args)
    }

    fn finish(self) -> Answer<Value> {
        // PostgreSQL's average begins with positive zero.
        Ok(Value::Real((self.sum.0 + 0.0) / self.count))
    }
}

/// PostgreSQL sums float4 as float4.
struct Float4Sum(f32);

impl Default for Float4Sum {
    fn default() -> Self {
        Float4Sum(-0.0)
    }
}

impl State for Float4Sum {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        let value = real(args[0])? as f32;
        let sum = self.0 + value;
        if sum.is_infinite() && self.0.is_finite() && value.is_finite() {
            return Err(overflow());
        }
        self.0 = sum;
        Ok(())
    }

    fn finish(self) -> Answer<Value> {
        Ok(Value::Real(self.0.into()))
    }
}

/// `string_agg`: each value but the first after its own row's delimiter.
#[derive(Default)]
struct TextJoin(Option<String>);

impl State for TextJoin {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        let value = text(args[0])?;
        match &mut self.0 {
            None => self.0 = Some(value.to_owned()),
            Some(joined) => {
                if !args[1].is_null() {
                    joined.push_str(text(args[1])?);
                }
                joined.push_str(value);
            }
        }
        Ok(())
    }

    fn finish(self) -> Answer<Value> {
        Ok(self.0.map_or(Value::Null, Value::Text))
    }
}

#[derive(Default)]
struct ByteJoin(Option<Vec<u8>>);

impl State for ByteJoin {
    fn step(&mut self, args: &[ValueRef<'_>]) -> Answer<()> {
        let value = bytes(args[0])?;
        match &mut self.0 {
            None => self.0 = Some(value.to_owned()),
            Some(joined) => {
                if !args[1].is_null() {
                    joined.extend_from_slice(bytes(args[1])?);
                }
                joined.extend_from_slice(value);
            }
        }
        Ok(())
    }

    fn finish(self) -> Answer<Value> {
        Ok(self.0.map_or(Value::Null, Value::Blob))
    }
}
