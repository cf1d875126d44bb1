//! The session's GTID set: `shoal.gtid`, and what is told of it after commits.
//!
//! In come tokens that the client sets, out goes the text of what the session has seen and done ([`Positions`]). A set only
//! grows: nothing undoes a SET but RESET. Which reads wait for it is [`crate::executor`]'s to say.
//!
//! A token that is told must be one that every client can take: PgBouncer 1.18 never gets over a ParameterStatus that doesn't
//! fit its buffer of 4096 bytes.
//!
//! [`Positions`]: crate::positions::Positions

use super::{Session, Undo};
use crate::executor::statement::attend;
use crate::gtid::{GTID, read};
use crate::positions::Positions;
use crate::protocol::backend::{parameter_status, warning};
use crate::transaction::{Refused, Transaction};
use planner::system::SettingFact;
use proto::gtid::Position;
use proto::{SqlState, WireError, machine};
use std::collections::BTreeMap;
use std::time::Instant;
use tokio::io::AsyncWrite;

/// The longest text that is told unasked.
const MOST_TOLD_BYTES: usize = 3500;

/// What it is, for SHOW ALL.
pub(super) const ABOUT: &str = "What reads must show: the positions that the session has seen, or was given.";

impl<W: AsyncWrite + Unpin> Session<W> {
    /// SET shoal.gtid: what it says is added.
    pub(super) async fn set_gtid(
        &mut self,
        value: Option<&str>,
        local: bool,
        deadline: Instant,
    ) -> Result<(), WireError> {
        let Some(text) = value else {
            if local {
                self.positions.end_local();
            } else {
                self.reset_gtid();
            }
            return Ok(());
        };
        let executor = &self.shared.executor;
        let until = deadline.min(machine::now() + executor.config.retry_timeout);
        let token = read(&executor.cluster, text, until);
        let token = attend(&self.interrupt, deadline, Box::pin(token)).await?;
        if local && !self.block.is_open() {
            let code = SqlState::NO_ACTIVE_SQL_TRANSACTION;
            self.notice(&warning(code, "SET LOCAL can only be used in transaction blocks"));
            return Ok(());
        }
        self.positions.merge(token, local);
        Ok(())
    }

    /// RESET: it is what startup gave. If the block, string or pipeline comes to nothing, what it was is added again.
    pub(super) fn reset_gtid(&mut self) {
        let forgotten = self.positions.reset(self.token.iter().copied());
        let settings = &self.settings;
        let undo = self.undo.get_or_insert_with(|| Box::new(Undo::before(settings)));
        undo.forgotten.push(forgotten);
    }

    /// The set as a text.
    pub(super) fn gtid(&self) -> String {
        self.shared.executor.cluster.load().topology.gtid(&self.positions.show()).to_string()
    }

    /// Every setting.
    pub(super) fn all_settings(&self) -> Vec<SettingFact> {
        let begun = Positions::default();
        begun.merge(self.token.iter().copied(), false);
        let gtid = SettingFact {
            name: GTID.to_owned(),
            value: self.gtid(),
            reset: self.shared.executor.cluster.load().topology.gtid(&begun.show()).to_string(),
            about: ABOUT.to_owned(),
        };
        let mut all: Vec<_> = self.settings.all().chain([gtid]).collect();
        all.sort_by_key(|setting| setting.name.to_ascii_lowercase());
        all
    }

    /// Commits a transaction of the session's.
    pub(super) async fn commit(&mut self, transaction: Box<Transaction>) -> Result<(), WireError> {
        let deadline = self.deadline();
        match Box::pin(transaction.commit(deadline)).await {
            Ok(committed) => {
                self.positions.committed(&committed);
                Ok(())
            }
            Err(refused) => Err(self.refused(refused, deadline).await),
        }
    }

    /// A transaction isn't committed, or can't begin. If that is because another has used up its key, who is told so sees what that
    /// one did from now on.
    pub(super) async fn refused(&mut self, refused: Box<Refused>, deadline: Instant) -> WireError {
        let Refused { error, reached } = *refused;
        match reached {
            Some(reached) if reached.is_empty() => self.ask_positions(deadline).await,
            Some(reached) => self.positions.learned(&reached),
            None => {}
        }
        error
    }

    /// Something is committed, and nobody has told where.
    pub(super) async fn ask_positions(&self, deadline: Instant) {
        let executor = &self.shared.executor;
        let until = deadline.min(machine::now() + executor.config.retry_timeout);
        let asked = executor.positions_now(&self.positions, until);
        // Who can't wait reads from leaders until they have told.
        let _ = attend(&self.interrupt, deadline, async {
            Box::pin(asked).await;
            Ok(())
        })
        .await;
    }

    /// Something is committed: what is reached is told before ReadyForQuery, if the client wants it.
    pub(super) fn note_commit(&mut self) {
        if self.settings.report_gtid {
            let told = self.to_tell.get_or_insert_default();
            for (shard, position) in self.positions.show() {
                told.entry(shard).or_default().raise(position);
            }
        }
    }

    /// Tells what has been reached.
    pub(super) fn tell_gtid(&mut self) {
        for shard in self.positions.take_unheard() {
            let topology = self.shared.executor.cluster.load().topology.clone();
            let name = topology.shard_name(shard);
            let token = topology.gtid(&BTreeMap::from([(shard, Position::UNHEARD)]));
            let mut notice = warning(SqlState::WARNING, format!("the position on {name} is not known yet"));
            notice.hint =
                Some(format!("{GTID} has \"{token}\" instead: that shard is read from its leader."));
            self.notice(&notice);
        }
        let Some(positions) = self.to_tell.take() else { return };
        let text = self.shared.executor.cluster.load().topology.gtid(&positions).to_string();
        if text.len() > MOST_TOLD_BYTES {
            if !std::mem::replace(&mut self.is_too_long, true) {
                let mut notice = warning(SqlState::WARNING, format!("{GTID} is too long to be reported"));
                notice.hint = Some(format!("Use SHOW {GTID}."));
                self.notice(&notice);
            }
        } else {
            // Also if it was told before: behind a pooler, that was another client.
            parameter_status(&mut self.output.buffer, GTID, &text);
        }
    }
}
