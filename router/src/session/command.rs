//! What the session does by itself: blocks, settings, prepared statements by SQL.

use super::block::is_repeatable;
use super::run::{Columns, Started, Tag, text_column};
use super::{Session, Undo};
use crate::executor::fragments::pick;
use crate::gtid::GTID;
use crate::protocol::backend::{parameter_status, warning};
use dialect::Type;
use planner::plan::{Action, Isolation, Plan, SessionCommand};
use planner::system::SettingFact;
use planner::text::{ReadHint, Text};
use proto::services::ClusterState;
use proto::{RowBatchBuilder, SqlState, Value, ValueRef, WireError};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::AsyncWrite;

/// The setting that isn't one: it belongs to a transaction.
pub(super) const IDEMPOTENCY_KEY: &str = "shoal.idempotency_key";
/// How many bytes a key may have.
const LONGEST_KEY: usize = 200;

impl<W: AsyncWrite + Unpin> Session<W> {
    pub(super) async fn command(
        &mut self,
        command: &SessionCommand,
        text: &Text,
        parameters: &[Value],
        plan: &Arc<Plan>,
        state: Arc<ClusterState>,
        deadline: Instant,
    ) -> Result<Started, WireError> {
        let done = |tag| Ok(Started::Done(Tag::Plain(tag)));
        match command {
            SessionCommand::Empty => Ok(Started::Empty),
            SessionCommand::Begin { start, read_only, isolation } => {
                if self.block.is_open() {
                    let code = SqlState::ACTIVE_SQL_TRANSACTION;
                    self.notice(&warning(code, "there is already a transaction in progress"));
                } else {
                    self.block.begin(read_only.unwrap_or(self.settings.read_only), *isolation)?;
                }
                done(if *start { "START TRANSACTION" } else { "BEGIN" })
            }
            SessionCommand::Commit { chain } => self.end_block(true, *chain).await,
            SessionCommand::Rollback { chain } => self.end_block(false, *chain).await,
            SessionCommand::Savepoint(name) => {
                let mark = self.transaction.as_ref().map(|transaction| transaction.mark());
                let (mark, settings) = (mark.unwrap_or_default(), self.settings.clone());
                self.block.save(name, mark, settings, self.undo.clone(), self.portals_made)?;
                done("SAVEPOINT")
            }
            SessionCommand::Release(name) => {
                self.block.release(name)?;
                done("RELEASE")
            }
            SessionCommand::RollbackTo(name) => {
                self.roll_back_to(name, deadline).await?;
                done("ROLLBACK")
            }
            SessionCommand::SetTransaction { read_only, isolation, session: true } => {
                if is_repeatable(*isolation, true)? {
                    let what = "REPEATABLE READ as the default of a session";
                    return Err(WireError::unsupported(what)
                        .with_hint("Send BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY."));
                }
                if let Some(read_only) = read_only {
                    let value = if *read_only { "on" } else { "off" };
                    self.set("default_transaction_read_only", Some(value), false)?;
                }
                done("SET")
            }
            SessionCommand::SetTransaction { read_only, isolation, session: false } => {
                self.set_transaction(*isolation, *read_only)?;
                done("SET")
            }
            SessionCommand::Set { name, value, local } if name == GTID => {
                self.set_gtid(value.as_deref(), *local, deadline).await?;
                done("SET")
            }
            SessionCommand::Set { name, value, local } => {
                self.set(name, value.as_deref(), *local)?;
                done("SET")
            }
            SessionCommand::Reset(name) => {
                self.reset(name.as_deref())?;
                done("RESET")
            }
            SessionCommand::Show(Some(name)) => {
                let (name, value) = self.shown(name)?;
                let mut rows = RowBatchBuilder::new(1);
                rows.push(ValueRef::Text(&value));
                Ok(self.own_rows(vec![text_column(&name)], rows.finish(), Tag::Plain("SHOW"), deadline))
            }
            SessionCommand::Show(None) => {
                let mut rows = RowBatchBuilder::new(3);
                for SettingFact { name, value, about, .. } in self.all_settings() {
                    rows.push_row([&name, &value, &about].map(|text| ValueRef::Text(text)));
                }
                let columns = ["name", "setting", "description"].map(text_column).to_vec();
                Ok(self.own_rows(columns, rows.finish(), Tag::Plain("SHOW"), deadline))
            }
            SessionCommand::Prepare { name, types, offset } => {
                let sql = text.source.get(*offset..).unwrap_or_default();
                let declared = types.iter().map(|ty| Some(*ty).filter(|ty| *ty != Type::Unknown)).collect();
                if name.is_empty() {
                    return Err(WireError::new(SqlState::SYNTAX_ERROR, "zero-length delimited identifier"));
                }
                self.prepare(name.clone(), sql, declared, false).await?;
                done("PREPARE")
            }
            SessionCommand::Execute { name, arguments, types } => {
                let run = self.statement(plan, text, parameters, state, deadline);
                let scalars = self.shared.clone().executor.scalars(plan, &run).await?;
                drop(run);
                self.execute_prepared(name, pick(arguments, &scalars)?, types, text.read_hint()?).await
            }
            SessionCommand::Deallocate(Some(name)) => {
                if self.prepared.remove(name).is_none() {
                    let message = format!("prepared statement \"{name}\" does not exist");
                    return Err(WireError::new(SqlState::INVALID_SQL_STATEMENT_NAME, message));
                }
                done("DEALLOCATE")
            }
            SessionCommand::Deallocate(None) => {
                self.prepared.clear();
                done("DEALLOCATE ALL")
            }
            SessionCommand::Discard("ALL") => {
                if self.block.is_open() {
                    let message = "DISCARD ALL cannot run inside a transaction block";
                    return Err(WireError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
                }
                self.prepared.clear();
                self.portals.clear();
                self.reset(None)?;
                done("DISCARD ALL")
            }
            SessionCommand::Discard(what) => done(match *what {
                "PLANS" => "DISCARD PLANS",
                "SEQUENCES" => "DISCARD SEQUENCES",
                _ => "DISCARD TEMP",
            }),
            SessionCommand::Maintenance(tag) => {
                if *tag == "VACUUM" && self.block.is_open() {
                    let message = "VACUUM cannot run inside a transaction block";
                    return Err(WireError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
                }
                done(tag)
            }
        }
    }

    /// COMMIT or ROLLBACK. `chain`: the next block begins at once.
    async fn end_block(&mut self, commit: bool, chain: bool) -> Result<Started, WireError> {
        let read_only = self.block.is_read_only();
        let isolation = Some(Isolation::RepeatableRead).filter(|_| self.block.is_repeatable());
        if !self.block.is_open() {
            if chain {
                let command = if commit { "COMMIT" } else { "ROLLBACK" };
                let message = format!("{command} AND CHAIN can only be used in transaction blocks");
                return Err(WireError::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, message));
            }
            let code = SqlState::NO_ACTIVE_SQL_TRANSACTION;
            self.notice(&warning(code, "there is no transaction in progress"));
        }
        let (commit, notice) = self.block.end(commit);
        if let Some(notice) = notice {
            self.notice(&notice);
        }
        self.portals.clear();
        self.key = None;
        self.kept = None;
        let ended = match self.transaction.take() {
            Some(transaction) if commit => self.commit(transaction).await,
            Some(transaction) => {
                transaction.rollback().settle().await;
                Ok(())
            }
            None => Ok(()),
        };
        let committed = commit && ended.is_ok();
        if committed {
            self.note_commit();
        }
        self.positions.end_local();
        if let Some(undo) = self.undo.take() {
            let before = self.settings.clone();
            if committed {
                for (name, value) in undo.local.iter().rev() {
                    self.settings.set(name, Some(value))?;
                }
            } else {
                self.settings = undo.before;
                undo.forgotten.iter().for_each(|forgotten| self.positions.restore(forgotten));
            }
            self.report_changes(&before);
        }
        ended?;
        if chain {
            self.facts.transaction_time = self.facts.statement_time;
            self.block.begin(read_only, isolation)?;
        }
        Ok(Started::Done(Tag::Plain(if committed { "COMMIT" } else { "ROLLBACK" })))
    }

    /// ROLLBACK TO SAVEPOINT: rows, settings and portals are what they were.
    async fn roll_back_to(&mut self, name: &str, deadline: Instant) -> Result<(), WireError> {
        let savepoint = self.block.rewind(name)?;
        if let Some(transaction) = &self.transaction {
            transaction.undo(&savepoint.mark, deadline).await?;
        }
        let portals = savepoint.portals;
        let resets = savepoint.undo.as_ref().map_or(0, |undo| undo.forgotten.len());
        let undone = std::mem::replace(&mut self.undo, savepoint.undo.clone());
        for forgotten in undone.iter().flat_map(|undo| undo.forgotten.iter().skip(resets)) {
            self.positions.restore(forgotten);
        }
        let before = std::mem::replace(&mut self.settings, savepoint.settings.clone());
        self.portals.retain(|_, portal| portal.made <= portals);
        if let Some(notice) = self.block.resume() {
            self.notice(&notice);
        }
        self.report_changes(&before);
        Ok(())
    }

    /// SET. In a block it's undone by ROLLBACK, and SET LOCAL by the block's end.
    fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<(), WireError> {
        if name == IDEMPOTENCY_KEY {
            return self.set_key(value, local);
        }
        if name == "transaction_read_only" {
            return self
                .set_transaction(None, value.map(|value| matches!(value, "on" | "true" | "1" | "yes")));
        }
        if name == "transaction_isolation" && self.block.is_open() {
            let level = value.unwrap_or("read committed").split_whitespace().collect::<Vec<_>>().join(" ");
            let isolation = match level.to_lowercase().as_str() {
                "repeatable read" => Some(Isolation::RepeatableRead),
                "serializable" => Some(Isolation::Serializable),
                _ => {
                    Some(Isolation::ReadCommitted).filter(|_| self.settings.clone().set(name, value).is_ok())
                }
            };
            if isolation.is_some() {
                return self.set_transaction(isolation, None);
            }
        }
        if local && !self.block.is_open() {
            let code = SqlState::NO_ACTIVE_SQL_TRANSACTION;
            self.notice(&warning(code, "SET LOCAL can only be used in transaction blocks"));
            // The value is checked all the same.
            return self.settings.clone().set(name, value).map(drop);
        }
        let before = self.settings.clone();
        let (_, old) = self.settings.show(name)?;
        self.settings.set(name, value)?;
        let undo = self.undo.get_or_insert_with(|| Box::new(Undo::before(&before)));
        if local {
            undo.local.push((name.to_owned(), old));
        } else {
            undo.local.retain(|(local, _)| local != name);
        }
        self.report_changes(&before);
        Ok(())
    }

    /// A string or pipeline has failed outside a block: what it has set is as it was.
    pub(super) fn undo_settings(&mut self) {
        if let Some(undo) = self.undo.take() {
            undo.forgotten.iter().for_each(|forgotten| self.positions.restore(forgotten));
            let before = std::mem::replace(&mut self.settings, undo.before);
            self.report_changes(&before);
        }
    }

    /// SET shoal.idempotency_key: of the next transaction; in a block, of the block itself. It's the same with and without
    /// LOCAL, for it ends with its transaction.
    fn set_key(&mut self, value: Option<&str>, local: bool) -> Result<(), WireError> {
        let key = value.filter(|key| !key.is_empty());
        if key.is_some_and(|key| key.len() > LONGEST_KEY) {
            let message = format!("invalid value for parameter \"{IDEMPOTENCY_KEY}\"");
            return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
                .with_detail(format!("A key has {LONGEST_KEY} bytes at most.")));
        }
        if local && !self.block.is_open() {
            let code = SqlState::NO_ACTIVE_SQL_TRANSACTION;
            self.notice(&warning(code, "SET LOCAL can only be used in transaction blocks"));
            return Ok(());
        }
        if self.transaction.is_some() || self.block.has_run() {
            let message = format!("{IDEMPOTENCY_KEY} must be set before any query of its transaction");
            return Err(WireError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
        }
        self.key = key.map(String::from);
        Ok(())
    }

    /// RESET of one setting, or of all and the positions, too.
    fn reset(&mut self, name: Option<&str>) -> Result<(), WireError> {
        match name {
            Some(GTID) => {}
            Some(name) => return self.set(name, None, false),
            None => {
                if self.transaction.is_none() {
                    self.key = None;
                }
                let before = self.settings.clone();
                self.settings.reset_all()?;
                self.undo.get_or_insert_with(|| Box::new(Undo::before(&before)));
                self.report_changes(&before);
            }
        }
        self.reset_gtid();
        Ok(())
    }

    fn set_transaction(
        &mut self,
        isolation: Option<Isolation>,
        read_only: Option<bool>,
    ) -> Result<(), WireError> {
        if !self.block.is_open() {
            let code = SqlState::NO_ACTIVE_SQL_TRANSACTION;
            self.notice(&warning(code, "SET TRANSACTION can only be used in transaction blocks"));
            return Ok(());
        }
        self.block.set(read_only, isolation)
    }

    /// Tells the client of reported settings that differ, and the facts of what depends on them.
    fn report_changes(&mut self, before: &super::settings::Settings) {
        for (name, value) in self.settings.reported_changes(before) {
            parameter_status(&mut self.output.buffer, name, value);
        }
        self.facts.zone = self.settings.output.zone.clone();
    }

    fn shown(&self, name: &str) -> Result<(String, String), WireError> {
        if name == "transaction_read_only" {
            let read_only = self.block.is_read_only() || (!self.block.is_open() && self.settings.read_only);
            return Ok((name.to_owned(), if read_only { "on" } else { "off" }.to_owned()));
        }
        if name.eq_ignore_ascii_case(IDEMPOTENCY_KEY) {
            let of_transaction = || self.transaction.as_ref().and_then(|transaction| transaction.key());
            let key = self.key.as_deref().or_else(of_transaction).unwrap_or_default();
            return Ok((name.to_owned(), key.to_owned()));
        }
        if name.eq_ignore_ascii_case(GTID) {
            return Ok((GTID.to_owned(), self.gtid()));
        }
        if name == "transaction_isolation" && self.block.is_repeatable() {
            return Ok((name.to_owned(), "repeatable read".to_owned()));
        }
        let (name, value) = self.settings.show(name)?;
        Ok((name.to_owned(), value))
    }

    /// EXECUTE: its arguments, cast to the parameters' types, and then the statement. A hint before it counts, and not that of
    /// the statement's own text.
    async fn execute_prepared(
        &mut self,
        name: &str,
        arguments: Vec<Value>,
        types: &[Type],
        hint: Option<ReadHint>,
    ) -> Result<Started, WireError> {
        let mut prepared = self.find_prepared(name)?;
        if prepared.declared.len() != arguments.len() {
            let message = format!("wrong number of parameters for prepared statement \"{name}\"");
            let detail =
                format!("Expected {} parameters but got {}.", prepared.declared.len(), arguments.len());
            return Err(WireError::new(SqlState::SYNTAX_ERROR, message).with_detail(detail));
        }
        let mut values = Vec::with_capacity(arguments.len());
        for ((value, from), to) in arguments.into_iter().zip(types).zip(&prepared.declared) {
            values.push(self.argument(value, *from, to.unwrap_or(Type::Text))?);
        }
        let fresh = self.fresh(name, &mut prepared).await?;
        let (Some(mut text), Some((plan, state))) = (prepared.text.clone(), fresh) else {
            return Ok(Started::Empty);
        };
        text.read_hint()?;
        if let Some(hint) = hint {
            text = text.with_read_hint(hint);
        }
        if matches!(plan.action, Action::Session(_) | Action::CopyIn(_)) {
            return Err(WireError::unsupported("EXECUTE of a command or a COPY"));
        }
        let started = self.start(&text, &values, plan, state, &prepared.declared.clone(), true).await;
        started.map_err(|report| report.error)
    }

    /// An argument as the parameter's type, by way of its text where the types differ.
    fn argument(&self, value: Value, from: Type, to: Type) -> Result<Value, WireError> {
        use dialect::io;
        use dialect::types::Typed;
        if from == to || value.is_null() {
            return Ok(value);
        }
        if from == Type::Unknown
            && let Value::Text(text) = &value
        {
            return io::input(Typed::plain(to), text, &self.settings.output.zone);
        }
        let implicit = matches!(
            (from, to),
            (Type::Int2, Type::Int4 | Type::Int8)
                | (Type::Int4, Type::Int2 | Type::Int8)
                | (Type::Int8, Type::Int2 | Type::Int4)
                | (Type::Int2 | Type::Int4 | Type::Int8, Type::Numeric | Type::Float4 | Type::Float8)
                | (Type::Numeric, Type::Float4 | Type::Float8)
                | (Type::Text | Type::Varchar | Type::Bpchar, Type::Text | Type::Varchar)
        );
        if !implicit {
            let message = format!("EXECUTE with an argument of type {from:?} for a parameter of type {to:?}");
            return Err(WireError::unsupported(message.to_lowercase())
                .with_hint("Cast the argument to the parameter's type."));
        }
        let mut text = Vec::new();
        io::output_text(Typed::plain(from), value.as_ref(), &self.settings.output, &mut text)?;
        let text = String::from_utf8(text).map_err(|_| WireError::internal("a text that isn't UTF-8"))?;
        io::input(Typed::plain(to), &text, &self.settings.output.zone)
    }

    /// The columns of a plan's result, as Describe tells them. `None`: it returns no rows.
    pub(super) fn columns_of(&self, plan: &Arc<Plan>) -> Option<Columns> {
        match &plan.action {
            Action::Session(SessionCommand::Show(Some(name))) => {
                let name = self.shown(name).map_or_else(|_| name.clone(), |(name, _)| name);
                Some(Columns::Own([text_column(&name)].into()))
            }
            Action::Session(SessionCommand::Show(None)) => {
                Some(Columns::Own(["name", "setting", "description"].map(text_column).into()))
            }
            Action::Session(SessionCommand::Execute { name, .. }) => {
                let prepared = self.prepared.get(name)?;
                let planned = prepared.planned.as_ref()?;
                self.columns_of(&planned.plan)
            }
            Action::Explain(_) => Some(Columns::Own([text_column("QUERY PLAN")].into())),
            _ => plan.columns.as_ref().map(|_| Columns::Plan(plan.clone())),
        }
    }
}
