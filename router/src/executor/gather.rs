//! What the router does with fragments' rows.
//!
//! A stream gather concatenates or merges what shards send, as the client takes it. A SQLite gather first fills the
//! tables of a private database, then runs the rest of the query there, on a thread of its own.

use super::Executor;
use super::cut::Scan;
use super::fragments::pick;
use super::merge::Merge;
use super::rows::{Feed, RowStream, next_of};
use super::scalars::DATABASE;
use super::sqlite::{self, Pooled};
use super::statement::Statement;
use crate::cancel::Interrupt;
use dialect::sqlite as functions;
use planner::plan::{Fragment, Gather, MergeKey, Query, Route, ScalarId, Source, SourceRows};
use planner::system::{self, SessionFacts};
use proto::catalog::USER;
use proto::services::{RowSource, ServiceResult};
use proto::{RowBatch, RowBatchBuilder, ShardId, SqlState, Value, WireError};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{self, error::TrySendError};

/// A batch of a gather's result ends at this many bytes.
const BATCH_BYTES: usize = 64 * 1024;

/// Batches that wait between a gather's thread and its session.
const BATCHES_AHEAD: usize = 16;

impl Executor {
    /// Opens a query: asks the shards, and gives its rows as they come.
    pub async fn query(
        &self,
        run: &Statement<'_>,
        query: &Query,
        scalars: &[Value],
    ) -> Result<RowStream, WireError> {
        if let Some(lock) = &query.lock {
            return self.query_locked(run, query, lock, scalars).await;
        }
        match &query.gather {
            Gather::Stream { order, offset, limit, visible: _ } => {
                let [fragment] = query.fragments.as_slice() else {
                    return Err(WireError::internal("a stream gather has one fragment"));
                };
                let skip = row_count(*offset, scalars, 0)?;
                let limit = row_count(*limit, scalars, u64::MAX)?;
                let route = planner::route(&fragment.target, scalars, &run.state.topology)?;
                let sources: Vec<_> = match route {
                    Route::None => Vec::new(),
                    Route::One(shard) => vec![self.read(run, shard, fragment, scalars, None).await?.rows],
                    Route::Some(shards) | Route::All(shards) => {
                        let answers =
                            Box::pin(self.read_scans(run, &[Scan { fragment, shards }], scalars)).await?;
                        answers.into_iter().flatten().map(|answer| answer.rows).collect()
                    }
                };
                let feed = feed(sources, order, fragment)?;
                Ok(RowStream::new(feed, skip, limit, run.interrupt.clone(), run.deadline))
            }
            Gather::Sqlite { sources, sql, params } => {
                let inputs = self.open_sources(run, query, sources, scalars).await?;
                self.gather(run, sources, inputs, sql.clone(), pick(params, scalars)?).await
            }
        }
    }

    /// The shards that each fragment of a query goes to.
    pub fn routes(
        &self,
        run: &Statement<'_>,
        query: &Query,
        scalars: &[Value],
    ) -> Result<Vec<Route>, WireError> {
        let route = |fragment: &Fragment| planner::route(&fragment.target, scalars, &run.state.topology);
        query.fragments.iter().map(route).collect()
    }

    /// Asks the shards for every source's rows, all of one state.
    async fn open_sources(
        &self,
        run: &Statement<'_>,
        query: &Query,
        sources: &[Source],
        scalars: &[Value],
    ) -> Result<Vec<Vec<RowSource>>, WireError> {
        let mut scans = Vec::with_capacity(sources.len());
        for source in sources {
            let SourceRows::Fragment(place) = source.rows else { continue };
            let fragment = query.fragments.get(place);
            let fragment =
                fragment.ok_or_else(|| WireError::internal("a plan names a fragment that it hasn't"))?;
            let shards = shards_of(planner::route(&fragment.target, scalars, &run.state.topology)?);
            scans.push(Scan { fragment, shards });
        }
        let mut answers = Box::pin(self.read_scans(run, &scans, scalars)).await?.into_iter();
        let mut inputs = Vec::with_capacity(sources.len());
        for source in sources {
            inputs.push(match source.rows {
                SourceRows::System(_) => vec![RowSource::Whole(self.system_rows(run, source)?)],
                SourceRows::Fragment(_) => {
                    answers.next().into_iter().flatten().map(|answer| answer.rows).collect()
                }
            });
        }
        Ok(inputs)
    }

    /// The rows of a system relation: what the catalog is when they are asked for.
    fn system_rows(&self, run: &Statement<'_>, source: &Source) -> Result<RowBatch, WireError> {
        let SourceRows::System(key) = source.rows else {
            return Err(WireError::internal("not a system relation"));
        };
        let facts = SessionFacts {
            user: USER.to_owned(),
            database: DATABASE.to_owned(),
            settings: run.facts.settings.clone(),
            transactions: run.facts.transactions.clone(),
            replicas: run.facts.replicas.clone(),
            reshards: run.facts.reshards.clone(),
            shards: run.facts.shards.clone(),
        };
        let width = u16::try_from(source.columns.len());
        let width = width.map_err(|_| WireError::internal("a relation has too many columns"))?;
        let mut batch = RowBatchBuilder::new(width);
        for row in system::rows(key, &run.state.catalog, &run.state.topology, &facts) {
            if row.len() != source.columns.len() {
                return Err(WireError::internal(format!(
                    "a row of {key} has another width than the relation"
                )));
            }
            batch.push_row(row.iter().map(Value::as_ref));
        }
        Ok(batch.finish())
    }

    async fn gather(
        &self,
        run: &Statement<'_>,
        sources: &[Source],
        inputs: Vec<Vec<RowSource>>,
        sql: Arc<str>,
        params: Vec<Value>,
    ) -> Result<RowStream, WireError> {
        let slot = async { Ok(self.gather_slots.clone().acquire_owned().await) };
        let slot = run.attend(slot).await?.map_err(|_| WireError::internal("gathers have ended"))?;
        let (rows_in, received) = mpsc::channel(BATCHES_AHEAD);
        let (sender, rows_out) = mpsc::channel(BATCHES_AHEAD);
        let tables: Vec<_> = sources.iter().map(|s| (s.name.clone(), s.columns.len())).collect();
        let (pool, interrupt, deadline) = (self.gathers.clone(), run.interrupt.clone(), run.deadline);
        self.config.machine.blocking(move || {
            let _slot = slot;
            let job = Job { tables, sql, params, interrupt, deadline };
            if let Err(error) = job.run(&pool, received, &sender) {
                // A session that has gone wants no error either.
                let _ = send(&sender, Err(error));
            }
        });
        for (place, sources) in inputs.into_iter().enumerate() {
            for source in sources {
                self.feed(run, place, source, &rows_in).await?;
            }
        }
        // A thread that has failed already says so in the result.
        let _ = run.attend(async { Ok(rows_in.send(Input::End).await) }).await?;
        Ok(RowStream::new(Feed::Gather(rows_out), 0, u64::MAX, run.interrupt.clone(), run.deadline))
    }

    async fn feed(
        &self,
        run: &Statement<'_>,
        place: usize,
        source: RowSource,
        rows_in: &mpsc::Sender<Input>,
    ) -> Result<(), WireError> {
        // When the gather's thread has failed nobody takes the rows, and the result tells why.
        match source {
            RowSource::Whole(batch) => {
                let _ = run.attend(async { Ok(rows_in.send(Input::Rows(place, batch)).await) }).await?;
            }
            RowSource::Stream(mut stream) => {
                while let Some(batch) = run.attend(next_of(&mut stream)).await? {
                    if run.attend(async { Ok(rows_in.send(Input::Rows(place, batch)).await) }).await?.is_err()
                    {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What several shards send, as it is or merged in order.
pub(super) fn feed(
    sources: Vec<RowSource>,
    order: &[MergeKey],
    fragment: &Fragment,
) -> Result<Feed, WireError> {
    if order.is_empty() || sources.len() < 2 {
        return Ok(Feed::Sources(sources.into()));
    }
    let columns = u16::try_from(fragment.columns.len());
    let columns = columns.map_err(|_| WireError::internal("a fragment has too many columns"))?;
    Ok(Feed::Merge(Box::new(Merge::new(sources, order.to_vec(), columns))))
}

/// The shards of a route.
pub fn shards_of(route: Route) -> Vec<ShardId> {
    match route {
        Route::One(shard) => vec![shard],
        Route::Some(shards) | Route::All(shards) => shards,
        Route::None => Vec::new(),
    }
}

/// A LIMIT's or OFFSET's value.
pub(super) fn row_count(scalar: Option<ScalarId>, scalars: &[Value], none: u64) -> Result<u64, WireError> {
    let Some(id) = scalar else { return Ok(none) };
    match scalars.get(id.0 as usize) {
        Some(Value::Null) => Ok(none),
        Some(Value::Int(count)) if *count >= 0 => Ok(*count as u64),
        Some(Value::Int(_)) if none == 0 => Err(WireError::new(
            SqlState::INVALID_ROW_COUNT_IN_RESULT_OFFSET_CLAUSE,
            "OFFSET must not be negative",
        )),
        Some(Value::Int(_)) => {
            Err(WireError::new(SqlState::INVALID_ROW_COUNT_IN_LIMIT_CLAUSE, "LIMIT must not be negative"))
        }
        _ => Err(WireError::internal("a row count that isn't a number")),
    }
}

/// What a gather's thread is sent.
enum Input {
    /// Rows of the source at this place.
    Rows(usize, RowBatch),
    /// Every source is complete.
    End,
}

/// A gather's work on its own thread.
struct Job {
    /// Each source's name and how many columns it has.
    tables: Vec<(String, usize)>,
    sql: Arc<str>,
    params: Vec<Value>,
    interrupt: Arc<Interrupt>,
    deadline: Instant,
}

impl Job {
    fn run(
        &self,
        pool: &sqlite::Pool,
        rows: mpsc::Receiver<Input>,
        out: &mpsc::Sender<ServiceResult<RowBatch>>,
    ) -> Result<(), WireError> {
        let mut pooled = pool.take()?;
        let result = out.clone();
        pooled.guard(self.interrupt.clone(), self.deadline, move || result.is_closed())?;
        let done = self.fill(&mut pooled, rows).and_then(|()| self.select(&mut pooled, out));
        // What went wrong may have left tables behind.
        match done.and_then(|()| self.clear(&mut pooled)) {
            Ok(()) => Ok(()),
            Err(error) => {
                pooled.discard();
                Err(error)
            }
        }
    }

    fn error(&self, error: rusqlite::Error) -> WireError {
        sqlite::error(error, &self.interrupt, self.deadline)
    }

    fn fill(&self, pooled: &mut Pooled<'_>, mut rows: mpsc::Receiver<Input>) -> Result<(), WireError> {
        let connection = pooled.connection();
        connection.execute_batch("BEGIN").map_err(|e| self.error(e))?;
        for (name, columns) in &self.tables {
            // A table must have a column, and a row of no columns is still a row.
            let columns: Vec<_> = (0..(*columns).max(1)).map(|i| format!("a{i}")).collect();
            let create = format!("CREATE TABLE \"{name}\" ({})", columns.join(", "));
            connection.execute_batch(&create).map_err(|e| self.error(e))?;
        }
        let mut inserts = Vec::with_capacity(self.tables.len());
        for (name, columns) in &self.tables {
            let mut insert = format!("INSERT INTO \"{name}\" VALUES (?1");
            for i in 2..=*columns {
                let _ = write!(insert, ", ?{i}");
            }
            insert.push(')');
            inserts.push(connection.prepare(&insert).map_err(|e| self.error(e))?);
        }
        loop {
            let (place, batch) = match receive(&mut rows) {
                Some(Input::Rows(place, batch)) => (place, batch),
                Some(Input::End) => return self.interrupt.check(),
                None => return Err(WireError::internal("the session gave its gather up")),
            };
            self.interrupt.check()?;
            let insert = inserts.get_mut(place).ok_or_else(|| WireError::internal("rows of no source"))?;
            for row in batch.rows() {
                sqlite::bind(insert, row).and_then(|()| insert.raw_execute()).map_err(|e| self.error(e))?;
            }
        }
    }

    fn select(
        &self,
        pooled: &mut Pooled<'_>,
        out: &mpsc::Sender<ServiceResult<RowBatch>>,
    ) -> Result<(), WireError> {
        let mut statement = pooled.connection().prepare(&self.sql).map_err(|e| self.error(e))?;
        sqlite::bind(&mut statement, self.params.iter().map(Value::as_ref)).map_err(|e| self.error(e))?;
        let columns = statement.column_count();
        let width =
            u16::try_from(columns).map_err(|_| WireError::internal("a gather has too many columns"))?;
        let mut rows = statement.raw_query();
        let mut batch = RowBatchBuilder::new(width);
        while let Some(row) = rows.next().map_err(|e| self.error(e))? {
            for column in 0..columns {
                batch.push(functions::value_ref(row.get_ref(column).map_err(|e| self.error(e))?)?);
            }
            if batch.byte_len() >= BATCH_BYTES {
                let full = std::mem::replace(&mut batch, RowBatchBuilder::new(width));
                if send(out, Ok(full.finish())).is_err() {
                    return Ok(());
                }
            }
        }
        if batch.rows() > 0 {
            // A session that has gone wants no rows.
            let _ = send(out, Ok(batch.finish()));
        }
        Ok(())
    }

    fn clear(&self, pooled: &mut Pooled<'_>) -> Result<(), WireError> {
        pooled.unguard()?;
        pooled.connection().execute_batch("ROLLBACK").map_err(functions::error)
    }
}

/// Takes what comes next. What is there already isn't waited for.
fn receive(rows: &mut mpsc::Receiver<Input>) -> Option<Input> {
    rows.try_recv().or_else(|_| rows.blocking_recv().ok_or(())).ok()
}

/// Sends rows, or why there are none. Where there is room it doesn't wait.
fn send(
    out: &mpsc::Sender<ServiceResult<RowBatch>>,
    rows: ServiceResult<RowBatch>,
) -> Result<(), mpsc::error::SendError<ServiceResult<RowBatch>>> {
    match out.try_send(rows) {
        Ok(()) => Ok(()),
        Err(TrySendError::Full(rows)) => out.blocking_send(rows),
        Err(TrySendError::Closed(rows)) => Err(mpsc::error::SendError(rows)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ValueRef;
    use std::time::Duration;

    fn batch(rows: &[(i64, &str)]) -> RowBatch {
        let mut builder = RowBatchBuilder::new(2);
        for (number, text) in rows {
            builder.push_row([ValueRef::Int(*number), ValueRef::Text(text)]);
        }
        builder.finish()
    }

    async fn run(
        sql: &str,
        inputs: Vec<(usize, RowBatch)>,
        pool: Arc<sqlite::Pool>,
    ) -> ServiceResult<Vec<Vec<Value>>> {
        let (rows_in, received) = mpsc::channel(100);
        let (sender, mut rows_out) = mpsc::channel(100);
        for (place, batch) in inputs {
            rows_in.send(Input::Rows(place, batch)).await.unwrap();
        }
        rows_in.send(Input::End).await.unwrap();
        let job = Job {
            tables: vec![("s0".into(), 2), ("s1".into(), 2)],
            sql: sql.into(),
            params: vec![Value::Int(10)],
            interrupt: Arc::default(),
            deadline: Instant::now() + Duration::from_secs(60),
        };
        tokio::task::spawn_blocking(move || job.run(&pool, received, &sender)).await.unwrap()?;
        let mut rows = Vec::new();
        while let Some(batch) = rows_out.recv().await {
            rows.extend(batch?.rows().map(|row| row.map(ValueRef::to_owned).collect::<Vec<_>>()));
        }
        Ok(rows)
    }

    #[tokio::test]
    async fn rows_go_into_tables_and_the_query_runs_over_them() {
        let pool = Arc::new(sqlite::Pool::spilling());
        let sql = "SELECT s0.a0 + ?1, s1.a1 FROM s0 JOIN s1 ON s0.a0 = s1.a0 ORDER BY 1 DESC";
        let inputs = vec![
            (0, batch(&[(1, "a"), (2, "b")])),
            (1, batch(&[(2, "x")])),
            (1, batch(&[(1, "y"), (3, "z")])),
        ];
        for _ in 0..2 {
            let rows = run(sql, inputs.clone(), pool.clone()).await.unwrap();
            let expected =
                [[Value::Int(12), Value::Text("x".into())], [Value::Int(11), Value::Text("y".into())]];
            assert_eq!(rows, expected, "the second run must not see the first one's tables");
        }
    }

    #[tokio::test]
    async fn a_failed_gather_leaves_the_pool_clean() {
        let pool = Arc::new(sqlite::Pool::spilling());
        assert!(run("SELECT nonsense", vec![], pool.clone()).await.is_err());
        assert_eq!(
            run("SELECT count(*) FROM s0 WHERE a0 < ?1", vec![], pool).await.unwrap(),
            [[Value::Int(0)]]
        );
    }

    #[test]
    fn row_counts() {
        let scalars = [Value::Null, Value::Int(3), Value::Int(-1)];
        assert_eq!(row_count(None, &scalars, 7), Ok(7));
        assert_eq!(row_count(Some(ScalarId(0)), &scalars, 7), Ok(7));
        assert_eq!(row_count(Some(ScalarId(1)), &scalars, 7), Ok(3));
        assert_eq!(row_count(Some(ScalarId(2)), &scalars, 7).unwrap_err().sqlstate.as_str(), "2201W");
        assert_eq!(row_count(Some(ScalarId(2)), &scalars, 0).unwrap_err().sqlstate.as_str(), "2201X");
    }
}
