//! What is evaluated once per run, before any shard is asked.
//!
//! In come a plan's scalars with the text's literals, the client's parameters and the session's facts; out go values
//! in storage form, one per scalar.

use super::Executor;
use super::sqlite;
use super::statement::Statement;
use dialect::datetime::{TimeZone, timestamptz_to_timestamp};
use dialect::io;
use planner::plan::{Environment, Plan, Scalar};
use planner::system::{ReplicaFact, SettingFact, ShardFact, TransactionFact};
use proto::catalog::USER;
use proto::machine::Machine;
use proto::services::ReshardStatus;
use proto::{Value, ValueRef, WireError};
use rand::Rng;
use std::borrow::Cow;

/// Seconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const EPOCH_SECONDS: i64 = 946_684_800;

/// Facts of the session that scalars can ask for.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When the transaction began.
    pub transaction_time: i64,
    /// When the client's message came.
    pub statement_time: i64,
    /// The session's time zone.
    pub zone: TimeZone,
    /// The session's process id, so called.
    pub backend_pid: i32,
    /// Every setting; filled for queries of the system's relations.
    pub settings: Vec<SettingFact>,
    /// The transactions that are under way; filled for queries of `shoal_transactions`.
    pub transactions: Vec<TransactionFact>,
    /// The replicas; filled for queries of `shoal_replicas`.
    pub replicas: Vec<ReplicaFact>,
    /// The reshards; filled for queries of `shoal_reshards`.
    pub reshards: Vec<ReshardStatus>,
    /// The shards; filled for queries of `shoal_shards`.
    pub shards: Vec<ShardFact>,
}

impl Facts {
    /// When the transaction began, in microseconds since 1970.
    pub fn begun(&self) -> u64 {
        (self.transaction_time + EPOCH_SECONDS * 1_000_000).try_into().unwrap_or(0)
    }
}

/// The database.
pub const DATABASE: &str = "shoal";

/// The time, as a timestamptz.
pub fn clock_time(machine: &Machine) -> i64 {
    i64::try_from(machine.micros()).unwrap_or(i64::MAX) - EPOCH_SECONDS * 1_000_000
}

impl Executor {
    /// Evaluates a plan's scalars, in order.
    pub async fn scalars(&self, plan: &Plan, run: &Statement<'_>) -> Result<Vec<Value>, WireError> {
        let mut values = Vec::with_capacity(plan.scalars.len());
        for scalar in &plan.scalars {
            let value = match scalar {
                Scalar::Constant(value) => value.clone(),
                Scalar::Literal { slot, ty } => {
                    let literal = run.text.literal(*slot);
                    let literal =
                        literal.ok_or_else(|| WireError::internal("a plan names no literal of its text"))?;
                    io::input(*ty, &literal, &run.facts.zone)?
                }
                Scalar::Negative { slot, ty } => {
                    let literal = run.text.literal(*slot);
                    let literal =
                        literal.ok_or_else(|| WireError::internal("a plan names no literal of its text"))?;
                    io::input(*ty, &format!("-{literal}"), &run.facts.zone)?
                }
                Scalar::Parameter(n) => {
                    let value = run.parameters.get(*n as usize);
                    value.cloned().ok_or_else(|| no_parameter(*n))?
                }
                Scalar::NextValue(id) => {
                    Value::Int(self.sequences.next(*id, &self.cluster, run.retry_until()).await?)
                }
                Scalar::Query { place, columns, single } => {
                    let query = plan.first.get(*place);
                    let query =
                        query.ok_or_else(|| WireError::internal("a plan names a query that it hasn't"))?;
                    Box::pin(self.first(run, query, *columns, *single, &values)).await?
                }
                Scalar::Environment(fact) => environment(*fact, run.facts, &self.config.machine),
                Scalar::Local(moment) => local(values_at(&values, moment.0)?, &run.facts.zone)?,
                Scalar::Expression { sql, params } => {
                    let params: Vec<ValueRef<'_>> =
                        params.iter().map(|id| values_at(&values, id.0)).collect::<Result<_, _>>()?;
                    sqlite::evaluate(&self.expressions, sql, &params, run.interrupt, run.deadline)?
                }
            };
            values.push(value);
        }
        Ok(values)
    }
}

/// A timestamptz as a timestamp of this zone.
fn local(moment: ValueRef<'_>, zone: &TimeZone) -> Result<Value, WireError> {
    match moment {
        ValueRef::Null => Ok(Value::Null),
        ValueRef::Int(moment) => Ok(Value::Int(timestamptz_to_timestamp(moment, zone)?)),
        _ => Err(WireError::internal("a moment isn't in storage form")),
    }
}

fn values_at(values: &[Value], place: u32) -> Result<ValueRef<'_>, WireError> {
    let value = values.get(place as usize).map(Value::as_ref);
    value.ok_or_else(|| WireError::internal("a scalar refers to a later one"))
}

fn no_parameter(n: u32) -> WireError {
    let message = Cow::from(format!("there is no parameter ${}", u64::from(n) + 1));
    WireError::new(proto::SqlState::UNDEFINED_PARAMETER, message)
}

/// A fact's value, in storage form.
pub fn environment(fact: Environment, facts: &Facts, machine: &Machine) -> Value {
    match fact {
        Environment::TransactionTime => Value::Int(facts.transaction_time),
        Environment::StatementTime => Value::Int(facts.statement_time),
        Environment::ClockTime => Value::Int(clock_time(machine)),
        Environment::TimeZone => Value::Text(facts.zone.name().to_owned()),
        Environment::User => Value::Text(USER.to_owned()),
        Environment::Database => Value::Text(DATABASE.to_owned()),
        Environment::BackendPid => Value::Int(facts.backend_pid.into()),
        Environment::RandomUuid => Value::Blob(uuid::Uuid::new_v4().as_bytes().to_vec()),
        Environment::Random => Value::Real(rand::rng().random()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_as_the_zone_has_it() {
        let zone = TimeZone::parse("Asia/Kolkata").unwrap();
        let hours = |hours: i64| hours * 3_600_000_000;
        let told = |moment: Value| local(moment.as_ref(), &zone);
        assert_eq!(told(Value::Int(hours(2))).unwrap(), Value::Int(hours(15) / 2));
        assert_eq!(told(Value::Int(i64::MAX)).unwrap(), Value::Int(i64::MAX), "infinity");
        assert_eq!(told(Value::Null).unwrap(), Value::Null);
        assert!(told(Value::Text("now".into())).is_err());
    }

    #[test]
    fn environment_values_are_in_storage_form() {
        let facts = Facts {
            transaction_time: 1,
            statement_time: 2,
            zone: TimeZone::utc(),
            backend_pid: 7,
            settings: vec![],
            transactions: vec![],
            replicas: vec![],
            reshards: vec![],
            shards: vec![],
        };
        assert_eq!(environment(Environment::TransactionTime, &facts, &Machine::default()), Value::Int(1));
        assert_eq!(
            environment(Environment::TimeZone, &facts, &Machine::default()),
            Value::Text("UTC".into())
        );
        assert!(
            matches!(environment(Environment::RandomUuid, &facts, &Machine::default()), Value::Blob(b) if b.len() == 16)
        );
        let Value::Int(clock) = environment(Environment::ClockTime, &facts, &Machine::default()) else {
            panic!()
        };
        // Between 2020 and 2100.
        assert!((631_152_000_000_000..3_155_760_000_000_000).contains(&clock));
    }
}
