//! The router's own SQLite: pooled private databases for expressions and for gathers.
//!
//! Each connection has the dialect's functions and sees nothing but what a statement puts into it. What runs on one
//! stops when the statement's interrupt is raised or its deadline has passed.

use crate::cancel::{Interrupt, Reason};
use dialect::sqlite as functions;
use parking_lot::Mutex;
use proto::machine;
use proto::{Value, ValueRef, WireError};
use rusqlite::Connection;
use std::sync::Arc;
use std::time::Instant;

/// Virtual machine steps between two looks at the interrupt: some tens of microseconds.
const STEPS_BETWEEN_LOOKS: i32 = 4000;

/// Connections that are kept for the next statement.
const MOST_IDLE: usize = 64;

/// Private databases of one kind.
pub struct Pool {
    idle: Mutex<Vec<Connection>>,
    spill: bool,
}

/// A connection that goes back when dropped.
pub struct Pooled<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl Pool {
    /// Databases in memory, for expressions.
    pub fn in_memory() -> Self {
        Self { idle: Mutex::default(), spill: false }
    }

    /// Databases that begin in memory and spill to a temporary file of their own, for gathers.
    pub fn spilling() -> Self {
        Self { idle: Mutex::default(), spill: true }
    }

    /// A connection, clean.
    pub fn take(&self) -> Result<Pooled<'_>, WireError> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open().map_err(functions::error)?,
        };
        Ok(Pooled { pool: self, connection: Some(connection) })
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        // The empty name is a private database on disk, which SQLite keeps in its cache until that is full.
        let connection = Connection::open(if self.spill { "" } else { ":memory:" })?;
        connection.execute_batch(
            "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE; \
             PRAGMA cache_size = -16384; PRAGMA trusted_schema = ON;",
        )?;
        connection.set_prepared_statement_cache_capacity(if self.spill { 0 } else { 64 });
        functions::register(&connection)?;
        Ok(connection)
    }
}

impl Pooled<'_> {
    /// The connection.
    pub fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("taken by drop alone")
    }

    /// Lets what runs be stopped, by this or by the statement's interrupt and deadline. Until [`Pooled::unguard`].
    pub fn guard(
        &mut self,
        interrupt: Arc<Interrupt>,
        deadline: Instant,
        unwanted: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), WireError> {
        let stop = move || interrupt.reason().is_some() || unwanted() || machine::now() >= deadline;
        self.connection().progress_handler(STEPS_BETWEEN_LOOKS, Some(stop)).map_err(functions::error)
    }

    /// Nothing stops what runs.
    pub fn unguard(&mut self) -> Result<(), WireError> {
        self.connection().progress_handler(0, None::<fn() -> bool>).map_err(functions::error)
    }

    /// Doesn't keep the connection: it may be in the middle of something.
    pub fn discard(mut self) {
        self.connection = None;
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if std::thread::panicking() {
            return;
        }
        let mut idle = self.pool.idle.lock();
        if idle.len() < MOST_IDLE {
            idle.push(connection);
        }
    }
}

/// The error of a statement of the router's SQLite: where it was stopped, why it was.
pub fn error(error: rusqlite::Error, interrupt: &Interrupt, deadline: Instant) -> WireError {
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
        if let Some(reason) = interrupt.reason() {
            return reason.error();
        }
        if machine::now() >= deadline {
            return Reason::Timeout.error();
        }
    }
    functions::error(error)
}

/// Binds values to `?1..`. The last ones may be there in vain: for arguments of a function that doesn't look at them.
pub fn bind<'a>(
    statement: &mut rusqlite::Statement<'_>,
    values: impl IntoIterator<Item = ValueRef<'a>>,
) -> rusqlite::Result<()> {
    let wanted = statement.parameter_count();
    for (i, value) in values.into_iter().take(wanted).enumerate() {
        statement.raw_bind_parameter(i + 1, sql_value(value))?;
    }
    Ok(())
}

fn sql_value(value: ValueRef<'_>) -> rusqlite::types::ToSqlOutput<'_> {
    use rusqlite::types::ValueRef as Sql;
    rusqlite::types::ToSqlOutput::Borrowed(match value {
        ValueRef::Null => Sql::Null,
        ValueRef::Int(v) => Sql::Integer(v),
        ValueRef::Real(v) => Sql::Real(v),
        ValueRef::Text(v) => Sql::Text(v.as_bytes()),
        ValueRef::Blob(v) => Sql::Blob(v),
    })
}

/// Evaluates one expression over these values.
pub fn evaluate(
    pool: &Pool,
    sql: &str,
    params: &[ValueRef<'_>],
    interrupt: &Arc<Interrupt>,
    deadline: Instant,
) -> Result<Value, WireError> {
    let mut pooled = pool.take()?;
    pooled.guard(interrupt.clone(), deadline, || false)?;
    let result = (|| {
        let mut statement = pooled.connection().prepare_cached(&format!("SELECT {sql}"))?;
        bind(&mut statement, params.iter().copied())?;
        let mut rows = statement.raw_query();
        let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        Ok(functions::value_ref(row.get_ref(0)?).map(ValueRef::to_owned))
    })();
    pooled.unguard()?;
    result.map_err(|e| error(e, interrupt, deadline))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        machine::now() + Duration::from_secs(60)
    }

    #[test]
    fn expressions_take_parameters() {
        let pool = Pool::in_memory();
        let interrupt = Arc::new(Interrupt::default());
        let params = [ValueRef::Int(40), ValueRef::Text("é")];
        let value = evaluate(&pool, "?1 + length(?2) + 1", &params, &interrupt, soon()).unwrap();
        assert_eq!(value, Value::Int(42));
        assert_eq!(pool.idle.lock().len(), 1);
        let value = evaluate(&pool, "?1", &[ValueRef::Null], &interrupt, soon()).unwrap();
        assert_eq!(value, Value::Null);
    }

    #[test]
    fn an_expression_that_runs_long_is_stopped() {
        let pool = Pool::in_memory();
        let endless =
            "(WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r)";
        let interrupt = Arc::new(Interrupt::default());
        let soon = machine::now() + Duration::from_millis(20);
        let error = evaluate(&pool, endless, &[], &interrupt, soon).unwrap_err();
        assert_eq!((error.sqlstate.as_str(), error.message.contains("timeout")), ("57014", true));
        interrupt.raise(Reason::Requested);
        let error = evaluate(&pool, endless, &[], &interrupt, self::soon()).unwrap_err();
        assert_eq!((error.sqlstate.as_str(), error.message.contains("user request")), ("57014", true));
    }
}
