//! What both protocols do with a statement: plan it, start it, tell what it did.

use super::block::{Effect, effect, reaches_shards, truncated};
use super::{Session, role};
use crate::error::Report;
use crate::executor::copy_in::Copying;
use crate::executor::rows::{Chunk, RowStream};
use crate::executor::statement::{Statement, attend, in_time};
use crate::executor::writes::{Written, is_unseen};
use crate::protocol::backend::format_of;
use crate::protocol::frontend::Format;
use crate::protocol::rows::{ColumnFormat, data_row};
use crate::retry::Backoff;
use dialect::Type;
use dialect::types::Typed;
use planner::Context;
use planner::plan::{Action, CopyOut, Gather, Insert, InsertRows, OutputColumn, Plan, Query, SourceRows};
use planner::system::{REPLICAS, RESHARDS, SHARDS, TRANSACTIONS};
use planner::text::Text;
use proto::machine;
use proto::services::ClusterState;
use proto::{Epoch, Retry, RowBatch, SqlState, Value, WireError};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::AsyncWrite;

/// What a result's columns are.
#[derive(Clone)]
pub enum Columns {
    /// Those of the plan.
    Plan(Arc<Plan>),
    /// Others.
    Own(Arc<[OutputColumn]>),
}

impl Columns {
    /// The columns.
    pub fn get(&self) -> &[OutputColumn] {
        match self {
            Columns::Plan(plan) => plan.columns.as_deref().unwrap_or_default(),
            Columns::Own(columns) => columns,
        }
    }

    /// How each is written.
    pub fn formats(&self, formats: &[Format]) -> Vec<ColumnFormat> {
        let format = |(i, column): (usize, &OutputColumn)| ColumnFormat {
            ty: column.ty,
            format: format_of(formats, i),
        };
        self.get().iter().enumerate().map(format).collect()
    }
}

/// A column of text that the session makes itself.
pub fn text_column(name: &str) -> OutputColumn {
    OutputColumn { name: name.to_owned(), ty: Typed::plain(Type::Text), origin: None }
}

/// A command tag.
#[derive(Clone, Debug, PartialEq)]
pub enum Tag {
    /// A word and the number of rows that were sent.
    Rows(&'static str),
    /// INSERT's.
    Insert(u64),
    /// A word and a number of rows.
    Count(&'static str, u64),
    /// A word.
    Plain(&'static str),
}

impl Tag {
    /// Appends CommandComplete.
    pub fn write(&self, out: &mut Vec<u8>, sent: u64) {
        use std::io::Write;
        crate::protocol::backend::message(out, b'C', |out| {
            // Writing to a vector can't fail.
            let _ = match self {
                Tag::Rows(word) => write!(out, "{word} {sent}\0"),
                Tag::Insert(rows) => write!(out, "INSERT 0 {rows}\0"),
                Tag::Count(word, rows) => write!(out, "{word} {rows}\0"),
                Tag::Plain(word) => write!(out, "{word}\0"),
            };
        });
    }
}

/// A result that is on its way to the client.
pub struct Result {
    /// Its columns.
    pub columns: Columns,
    /// Its rows.
    pub rows: RowStream,
    /// What CommandComplete will say.
    pub tag: Tag,
    /// Rows that were fetched and not sent yet.
    pub rest: Chunk,
    /// When it must have been sent.
    pub deadline: Instant,
}

/// A statement that has begun.
pub enum Started {
    /// It returns rows.
    Rows(Box<Result>),
    /// It is done.
    Done(Tag),
    /// It was empty.
    Empty,
    /// It wants COPY's input.
    CopyIn(Box<Copying>),
    /// It sends COPY's output.
    CopyOut(Box<RowStream>, Arc<Plan>, Instant),
}

/// A text of more bytes keeps a thread busy for so long that others notice.
const LONG_TEXT: usize = 256 << 10;

/// Does something with a text of so many bytes.
pub(super) fn at_length<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes < LONG_TEXT { work() } else { machine::in_place(work) }
}

impl<W: AsyncWrite + Unpin> Session<W> {
    /// The plan of a text.
    pub(super) async fn plan(
        &self,
        text: &Text,
        declared: &[Option<Type>],
    ) -> std::result::Result<(Arc<Plan>, Arc<ClusterState>), WireError> {
        let cluster = &self.shared.executor.cluster;
        let state = cluster.snapshot();
        if let Some(plan) =
            self.shared.plans.get(text, declared, &self.settings.planner, state.catalog.version())
        {
            return Ok((plan, state));
        }
        let planned = self.plan_at(text, declared, &state);
        // A failed block looks at nothing but the syntax.
        if self.block.is_failed() || !may_be_news(&planned) {
            return planned.map(|plan| (plan, state));
        }
        let deadline = self.deadline();
        let until = deadline.min(machine::now() + self.shared.executor.config.retry_timeout);
        match attend(&self.interrupt, deadline, Box::pin(cluster.confirm(until))).await {
            Ok(newest) if newest.catalog.version() == state.catalog.version() => {
                planned.map(|plan| (plan, state))
            }
            Ok(newest) => Ok((self.plan_at(text, declared, &newest)?, newest)),
            Err(error) => Err(match planned {
                Err(news) => error.with_detail(format!("By the one that it has, {}.", news.message)),
                Ok(_) => error,
            }),
        }
    }

    fn plan_at(
        &self,
        text: &Text,
        declared: &[Option<Type>],
        state: &ClusterState,
    ) -> std::result::Result<Arc<Plan>, WireError> {
        let settings = &self.settings.planner;
        let context = Context { catalog: &state.catalog, topology: &state.topology, settings };
        let planned = at_length(text.key.len(), || planner::plan(text, declared, &context))?;
        self.shared.plans.insert(text, declared, settings, state.catalog.version(), &planned);
        Ok(planned.plan)
    }

    /// When a statement that begins now must have ended.
    pub(super) fn deadline(&self) -> Instant {
        let timeout =
            self.settings.statement_timeout.unwrap_or(self.shared.executor.config.statement_timeout);
        machine::now() + timeout
    }

    pub(super) fn statement<'a>(
        &'a self,
        plan: &'a Arc<Plan>,
        text: &'a Text,
        parameters: &'a [Value],
        state: Arc<ClusterState>,
        deadline: Instant,
    ) -> Statement<'a> {
        self.positions.rebase(&state.topology);
        let state = match &self.kept {
            Some(kept) => kept.pin(state),
            None => state,
        };
        // A hint that says nothing was refused before.
        let reading = self.settings.reading(text.read_hint().unwrap_or_default());
        Statement {
            plan,
            text,
            parameters,
            state,
            facts: &self.facts,
            interrupt: &self.interrupt,
            deadline,
            retry_for: self.shared.executor.config.retry_timeout,
            transaction: self.transaction.as_deref(),
            kept: self.kept.as_deref(),
            lock_timeout: self.settings.lock_timeout,
            reading,
            positions: &self.positions,
        }
    }

    /// A statement is about to run: what writes or locks, and isn't alone in its transaction, needs one. So does the first
    /// statement of a block with an idempotency key, whatever it does: it is told what has become of the key.
    async fn join_transaction(
        &mut self,
        plan: &Plan,
        deadline: Instant,
    ) -> std::result::Result<(), WireError> {
        if matches!(plan.action, Action::Session(_)) {
            return Ok(());
        }
        self.block.run();
        let effect = effect(plan);
        let is_keyed = self.key.is_some() || self.transaction.as_ref().is_some_and(|t| t.key().is_some());
        if is_keyed && effect == Effect::Schema {
            return Err(WireError::unsupported("a schema change with an idempotency key")
                .with_hint("Schema changes are not part of transactions."));
        }
        let takes_part = matches!(effect, Effect::Locks | Effect::Writes | Effect::Truncates);
        if takes_part && !self.alone && self.transaction.as_ref().is_none_or(|before| !before.is_bound()) {
            Box::pin(self.shared.executor.pass_gate(&self.interrupt, deadline)).await?;
        }
        let begins = (takes_part && !self.alone) || (self.key.is_some() && self.block.is_open());
        if self.transaction.is_some() || !begins {
            return Ok(());
        }
        let (transactions, begun) = (self.shared.executor.transactions.clone(), self.facts.begun());
        let transaction = match self.key.take() {
            Some(key) => {
                let claimed = async { Ok(transactions.begin_with_key(begun, key, deadline).await) };
                match attend(&self.interrupt, deadline, Box::pin(claimed)).await? {
                    Ok(transaction) => transaction,
                    Err(refused) => return Err(self.refused(refused, deadline).await),
                }
            }
            None => transactions.begin(begun),
        };
        self.transaction = Some(Box::new(transaction));
        Ok(())
    }

    /// Starts a statement by a plan that fits the newest catalog; where it no longer does, `replan` makes another.
    pub(super) async fn start(
        &mut self,
        text: &Text,
        parameters: &[Value],
        mut plan: Arc<Plan>,
        mut state: Arc<ClusterState>,
        declared: &[Option<Type>],
        same_columns: bool,
    ) -> std::result::Result<Started, Box<Report>> {
        self.shared.metrics.begun(&plan);
        text.read_hint()?;
        let deadline = self.deadline();
        let patience = self.shared.executor.config.retry_timeout;
        let mut backoff = None;
        loop {
            let read_only = self.settings.read_only && !self.block.is_open();
            self.block.check(&plan, read_only, self.alone, self.transaction.is_some())?;
            self.join_transaction(&plan, deadline).await?;
            let backoff =
                backoff.get_or_insert_with(|| Backoff::until(deadline.min(machine::now() + patience)));
            if let Some(transaction) = &self.transaction
                && !matches!(plan.action, Action::Session(_))
            {
                transaction.follow(&state.topology)?;
            }
            let mark = self.transaction.as_ref().map(|transaction| transaction.mark());
            let error = match self.start_once(text, parameters, &plan, state.clone(), deadline).await {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            let (version, epoch) = match error.retry {
                Retry::StaleSchema(version) => (version, Epoch(0)),
                Retry::StaleEpoch(epoch) => (state.catalog.version(), epoch),
                // Its own transaction met another one, and nothing of it is left.
                Retry::Later if is_unseen(&error) => {
                    self.interrupt.check()?;
                    if self.transaction.is_none() && backoff.pause().await {
                        continue;
                    }
                    return Err(error.into());
                }
                // A row that it waited for is on another shard now, where it may have to find it.
                Retry::Moved => {
                    self.interrupt.check()?;
                    if let (Some(transaction), Some(mark)) = (&self.transaction, &mark) {
                        transaction.undo(mark, deadline).await?;
                    }
                    if backoff.pause().await {
                        continue;
                    }
                    return Err(error.into());
                }
                _ => return Err(Report::named(error, &state.catalog)),
            };
            self.interrupt.check()?;
            // Some shards may have run it.
            if let (Some(transaction), Some(mark)) = (&self.transaction, &mark) {
                transaction.undo(mark, deadline).await?;
            }
            let newer = self.shared.executor.cluster.wait_for(version, epoch, backoff.deadline());
            let newer = attend(&self.interrupt, deadline, Box::pin(newer)).await;
            let newer = newer.map_err(|late| match late.sqlstate {
                SqlState::CANNOT_CONNECT_NOW => in_time(deadline, late.with_detail(error.to_string())),
                _ => late,
            })?;
            let same = newer.catalog.version() == state.catalog.version()
                && newer.topology.epoch == state.topology.epoch;
            if same && !backoff.pause().await {
                return Err(error.into());
            }
            let columns = plan.columns.clone();
            (plan, state) = self.plan(text, declared).await?;
            if same_columns && !same_types(columns.as_deref(), plan.columns.as_deref()) {
                return Err(WireError::new(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "cached plan must not change result type",
                )
                .into());
            }
        }
    }

    async fn start_once(
        &mut self,
        text: &Text,
        parameters: &[Value],
        plan: &Arc<Plan>,
        state: Arc<ClusterState>,
        deadline: Instant,
    ) -> std::result::Result<Started, WireError> {
        self.interrupt.check()?;
        if let Action::Session(command) = &plan.action {
            return Box::pin(self.command(command, text, parameters, plan, state, deadline)).await;
        }
        if self.block.is_repeatable() && self.kept.is_none() {
            let shared = self.shared.clone();
            let run = self.statement(plan, text, parameters, state.clone(), deadline);
            let kept = Box::pin(shared.executor.keep(&run)).await?;
            drop(run);
            self.kept = Some(Box::new(kept));
        }
        if reads(plan, &|key| key == TRANSACTIONS) {
            let shared = self.shared.clone();
            let asked = shared.executor.transactions_now(&state, deadline);
            self.facts.transactions = attend(&self.interrupt, deadline, Box::pin(asked)).await?;
        }
        if reads(plan, &|key| key == REPLICAS) {
            let shared = self.shared.clone();
            let asked = async { Ok(shared.executor.replicas_now(&state).await) };
            self.facts.replicas = attend(&self.interrupt, deadline, Box::pin(asked)).await?;
        }
        if reads(plan, &|key| key == RESHARDS) {
            let shared = self.shared.clone();
            let asked = shared.executor.reshards_now(deadline);
            self.facts.reshards = attend(&self.interrupt, deadline, Box::pin(asked)).await?;
        }
        if reads(plan, &|key| key == SHARDS) {
            let shared = self.shared.clone();
            let asked = shared.executor.shards_now(deadline);
            self.facts.shards = attend(&self.interrupt, deadline, Box::pin(asked)).await?;
        }
        if reads(plan, &|_| true) {
            self.facts.settings = self.all_settings();
        }
        let shared = self.shared.clone();
        let executor = &shared.executor;
        let run = self.statement(plan, text, parameters, state, deadline);
        let started = match &plan.action {
            Action::Query(query) => {
                let rows = executor.query_plan(&run, plan, query).await?;
                return Ok(self.rows(Columns::Plan(plan.clone()), rows, Tag::Rows("SELECT"), deadline));
            }
            Action::CopyOut(CopyOut { query, .. }) => {
                let rows = executor.query_plan(&run, plan, query).await?;
                return Ok(Started::CopyOut(Box::new(rows), plan.clone(), deadline));
            }
            // It hasn't written yet: what its end has to say of that, `end_copy` says.
            Action::CopyIn(_) => return Ok(Started::CopyIn(Box::new(executor.copy_begin(&run).await?))),
            Action::Insert(insert) => {
                let written = Box::pin(executor.write_plan(&run, plan)).await?;
                self.written(
                    plan,
                    insert.returning.is_some(),
                    Tag::Insert(written.affected),
                    written,
                    deadline,
                )
            }
            Action::Modify(modify) => {
                let written = Box::pin(executor.write_plan(&run, plan)).await?;
                let word = if modify.delete { "DELETE" } else { "UPDATE" };
                let tag = Tag::Count(word, written.affected);
                self.written(plan, !modify.fragment.columns.is_empty(), tag, written, deadline)
            }
            Action::Schema(action) => {
                match truncated(&action.changes).filter(|_| !self.alone) {
                    Some(tables) => Box::pin(executor.truncate(&run, &tables)).await?,
                    None => {
                        let action = role::settle(action, &self.settings)?;
                        let scalars = executor.scalars(plan, &run).await?;
                        Box::pin(executor.change_schema(&run, &action, &scalars)).await?;
                    }
                }
                drop(run);
                for notice in &action.notices {
                    self.notice(notice);
                }
                Started::Done(Tag::Plain(action.tag))
            }
            Action::Explain(explain) => {
                let rows = Box::pin(executor.explain(&run, explain.analyze, &explain.plan)).await?;
                return Ok(self.own_rows(
                    vec![text_column("QUERY PLAN")],
                    rows,
                    Tag::Plain("EXPLAIN"),
                    deadline,
                ));
            }
            Action::Session(_) => return Err(WireError::internal("the session runs its own commands")),
        };
        let effect = effect(plan);
        let is_schema = effect == Effect::Schema && reaches_shards(plan);
        if is_schema || (effect == Effect::Truncates && self.alone) {
            self.ask_positions(deadline).await;
        }
        let is_copy = matches!(plan.action, Action::CopyIn(_));
        let is_done = match effect {
            Effect::Writes | Effect::Truncates => self.alone && !is_copy,
            Effect::Schema => !self.block.is_open(),
            Effect::None | Effect::Locks => false,
        };
        if is_done {
            self.note_commit();
        }
        if !self.alone {
            self.block.ran(plan);
        }
        Ok(started)
    }

    fn written(
        &self,
        plan: &Arc<Plan>,
        returning: bool,
        tag: Tag,
        written: Written,
        deadline: Instant,
    ) -> Started {
        if !returning && plan.columns.is_none() {
            return Started::Done(tag);
        }
        let rows = RowStream::ready(written.rows, self.interrupt.clone(), deadline);
        self.rows(Columns::Plan(plan.clone()), rows, tag, deadline)
    }

    pub(super) fn rows(&self, columns: Columns, rows: RowStream, tag: Tag, deadline: Instant) -> Started {
        Started::Rows(Box::new(Result { columns, rows, tag, rest: Chunk::default(), deadline }))
    }

    pub(super) fn own_rows(
        &self,
        columns: Vec<OutputColumn>,
        rows: RowBatch,
        tag: Tag,
        deadline: Instant,
    ) -> Started {
        let rows = RowStream::ready(vec![rows], self.interrupt.clone(), deadline);
        self.rows(Columns::Own(columns.into()), rows, tag, deadline)
    }

    /// Sends rows of a result, `limit` at most. Says how many, and whether the limit ended it.
    pub(super) async fn send_rows(
        &mut self,
        result: &mut Result,
        formats: &[ColumnFormat],
        limit: u64,
    ) -> std::result::Result<(u64, bool), WireError> {
        let mut sent = 0;
        loop {
            if result.rest.is_empty() {
                match result.rows.next().await? {
                    Some(chunk) => result.rest = chunk,
                    None => return Ok((sent, false)),
                }
            }
            let most = usize::try_from(limit - sent).unwrap_or(usize::MAX);
            let chunk = result.rest.split_to(most);
            for row in chunk.rows() {
                data_row(&mut self.output.buffer, row, formats, &self.settings.output)?;
                // A row can be as big as the biggest value: many of them must not gather.
                if self.output.buffer.len() > 256 * 1024 {
                    self.output.relieve(&self.interrupt, result.deadline).await?;
                }
            }
            sent += chunk.len() as u64;
            if sent >= limit {
                return Ok((sent, true));
            }
            self.output.relieve(&self.interrupt, result.deadline).await?;
        }
    }

    /// Refuses what a failed block can't run.
    pub(super) fn check_failed(&self, plan: &Plan) -> std::result::Result<(), WireError> {
        use planner::plan::SessionCommand::{Commit, Rollback, RollbackTo};
        if self.block.is_failed()
            && !matches!(&plan.action, Action::Session(Commit { .. } | Rollback { .. } | RollbackTo(_)))
        {
            return Err(failed_block());
        }
        Ok(())
    }
}

/// Whether a plan reads such relations of the system's.
fn reads(plan: &Plan, which: &dyn Fn(&str) -> bool) -> bool {
    if plan.first.iter().any(|query| gathers(query, which)) {
        return true;
    }
    let query = match &plan.action {
        Action::Query(query) | Action::CopyOut(CopyOut { query, .. }) => query,
        Action::Insert(Insert { rows: InsertRows::Query { query, .. }, .. }) => query,
        Action::Explain(explain) => return reads(&explain.plan, which),
        _ => return false,
    };
    gathers(query, which)
}

fn gathers(query: &Query, which: &dyn Fn(&str) -> bool) -> bool {
    match &query.gather {
        Gather::Sqlite { sources, .. } => {
            sources.iter().any(|source| matches!(&source.rows, SourceRows::System(key) if which(key)))
        }
        Gather::Stream { .. } => false,
    }
}

/// `25P02`.
pub fn failed_block() -> WireError {
    WireError::new(
        SqlState::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// Whether a newer catalog might have it otherwise: what isn't there, or is there already, or is of another kind, may be
/// another router's doing.
fn may_be_news(planned: &std::result::Result<Arc<Plan>, WireError>) -> bool {
    match planned {
        Ok(plan) => matches!(&plan.action, Action::Schema(action) if !action.notices.is_empty()),
        Err(error) => [
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::UNDEFINED_OBJECT,
            SqlState::UNDEFINED_FUNCTION,
            SqlState::DUPLICATE_TABLE,
            SqlState::DUPLICATE_COLUMN,
            SqlState::DUPLICATE_OBJECT,
            SqlState::AMBIGUOUS_COLUMN,
            SqlState::WRONG_OBJECT_TYPE,
            SqlState::DATATYPE_MISMATCH,
            SqlState::INVALID_COLUMN_REFERENCE,
        ]
        .contains(&error.sqlstate),
    }
}

fn same_types(left: Option<&[OutputColumn]>, right: Option<&[OutputColumn]>) -> bool {
    let types = |columns: &[OutputColumn]| columns.iter().map(|c| c.ty).collect::<Vec<_>>();
    left.map(types) == right.map(types)
}
