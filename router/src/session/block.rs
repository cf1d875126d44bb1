//! Transaction blocks, until there are transactions.
//!
//! A block, a string of several statements and a pipeline up to Sync each are one transaction to PostgreSQL. Shoal
//! runs each statement as its own for now, so it lets a block have one writing statement, or several of those kinds
//! that are best effort anyway (INSERT, COPY, TRUNCATE, DDL, reference tables), and refuses the others before they
//! run. What a failed block or a ROLLBACK can't undo, it warns of.

use crate::protocol::backend::{Status, warning};
use planner::plan::{Action, Isolation, Notice, Plan, Target};
use proto::{SqlState, WireError};

/// How a statement writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// As one transaction on one shard.
    Ordinary,
    /// Best effort: several of these may be in a block.
    BestEffort,
}

/// How a plan writes; `None` if it doesn't.
pub fn writes(plan: &Plan) -> Option<Writes> {
    match &plan.action {
        Action::Query(_) | Action::CopyOut(_) | Action::Session(_) | Action::Explain(_) => None,
        Action::Insert(_) | Action::CopyIn(_) | Action::Schema(_) => Some(Writes::BestEffort),
        Action::Modify(modify) if matches!(modify.fragment.target, Target::Everywhere) => {
            Some(Writes::BestEffort)
        }
        Action::Modify(_) => Some(Writes::Ordinary),
    }
}

/// The command tag of a plan that writes, for messages.
pub fn command(plan: &Plan) -> &'static str {
    match &plan.action {
        Action::Insert(_) => "INSERT",
        Action::Modify(modify) if modify.delete => "DELETE",
        Action::Modify(_) => "UPDATE",
        Action::CopyIn(_) => "COPY FROM",
        Action::Schema(schema) => schema.tag,
        Action::Query(_) | Action::CopyOut(_) | Action::Session(_) | Action::Explain(_) => "SELECT",
    }
}

/// A session's transaction block.
#[derive(Clone, Debug)]
pub struct Block {
    status: Status,
    read_only: bool,
    written: Option<Writes>,
}

impl Default for Block {
    fn default() -> Self {
        Self { status: Status::Idle, read_only: false, written: None }
    }
}

impl Block {
    /// What ReadyForQuery tells.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether BEGIN has opened it.
    pub fn is_open(&self) -> bool {
        self.status != Status::Idle
    }

    /// Whether it has failed and waits for its end.
    pub fn is_failed(&self) -> bool {
        self.status == Status::Failed
    }

    /// Whether it may only read.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// BEGIN. In a string or pipeline, what was written before it belongs to the block.
    pub fn begin(&mut self, read_only: bool) {
        self.status = Status::Block;
        self.read_only = read_only;
    }

    /// SET TRANSACTION READ ONLY or READ WRITE.
    pub fn set_read_only(&mut self, read_only: bool) {
        self.read_only = read_only;
    }

    /// Checks, before a statement runs, that it may write.
    pub fn check(&self, plan: &Plan, read_only: bool) -> Result<(), WireError> {
        let Some(writes) = writes(plan) else { return Ok(()) };
        if read_only || self.read_only {
            let message = format!("cannot execute {} in a read-only transaction", command(plan));
            return Err(WireError::new(SqlState::READ_ONLY_SQL_TRANSACTION, message));
        }
        match (self.written, writes) {
            (None, _) | (Some(Writes::BestEffort), Writes::BestEffort) => Ok(()),
            _ => Err(WireError::unsupported("a second writing statement in one transaction").with_hint(
                "Send each UPDATE and DELETE as a transaction of its own. Several INSERT, COPY, TRUNCATE and DDL \
                 statements may share one.",
            )),
        }
    }

    /// A statement that writes has run.
    pub fn wrote(&mut self, plan: &Plan) {
        if let Some(writes) = writes(plan) {
            self.written = Some(writes);
        }
    }

    /// A statement has failed: the warning of what stays, if something does.
    pub fn fail(&mut self) -> Option<Notice> {
        if self.status == Status::Block {
            self.status = Status::Failed;
            // Its end warns.
            return None;
        }
        if self.status == Status::Failed {
            return None;
        }
        self.written.take().map(|_| stays("the statements before the one that failed"))
    }

    /// COMMIT or ROLLBACK: whether it committed, and the warning of what stays though it should not.
    pub fn end(&mut self, commit: bool) -> (bool, Option<Notice>) {
        let committed = commit && self.status != Status::Failed;
        let written = self.written.is_some();
        *self = Self::default();
        (committed, (!committed && written).then(|| stays("this transaction")))
    }

    /// The end of a string or pipeline: outside a block, what it wrote is done.
    pub fn end_implicit(&mut self) {
        if self.status == Status::Idle {
            *self = Self::default();
        }
    }
}

fn stays(what: &str) -> Notice {
    let mut notice = warning(SqlState::WARNING, format!("what {what} wrote is not undone"));
    notice.hint = Some("Shoal commits each statement as it runs until it has transactions.".to_owned());
    notice
}

/// Refuses isolation levels that can't be honoured.
pub fn check_isolation(isolation: Option<Isolation>) -> Result<(), WireError> {
    let name = match isolation {
        None | Some(Isolation::ReadUncommitted | Isolation::ReadCommitted) => return Ok(()),
        Some(Isolation::RepeatableRead) => "REPEATABLE READ",
        Some(Isolation::Serializable) => "SERIALIZABLE",
    };
    Err(WireError::unsupported(format!("isolation level {name}"))
        .with_hint("Use READ COMMITTED, the default."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use planner::plan::{Fragment, KeyFilter, Modify, SchemaAction};
    use proto::{KeyspaceNumber, TableId};

    fn plan(action: Action) -> Plan {
        Plan { parameters: vec![], columns: None, scalars: vec![], action }
    }

    fn update() -> Plan {
        let target = Target::Keyspace { keyspace: KeyspaceNumber(1), key: vec![], filter: KeyFilter::All };
        let fragment = Fragment { target, sql: "".into(), params: vec![], columns: vec![], lookup: false };
        let (locking_sql, touch) = ("".into(), 1);
        plan(Action::Modify(Modify { delete: false, table: TableId(1), fragment, locking_sql, touch }))
    }

    fn truncate() -> Plan {
        plan(Action::Schema(SchemaAction {
            tag: "TRUNCATE TABLE",
            changes: vec![],
            notices: vec![],
            fills: vec![],
        }))
    }

    fn run(block: &mut Block, plan: &Plan) -> Result<(), String> {
        block.check(plan, false).map_err(|e| e.sqlstate.to_string())?;
        block.wrote(plan);
        Ok(())
    }

    #[test]
    fn one_ordinary_write_or_several_best_effort_ones() {
        let refused = Err("0A000".to_owned());
        let mut block = Block::default();
        block.begin(false);
        assert_eq!(run(&mut block, &truncate()), Ok(()));
        assert_eq!(run(&mut block, &truncate()), Ok(()));
        assert_eq!(run(&mut block, &update()), refused);
        assert!(block.end(true).1.is_none());
        assert_eq!(run(&mut block, &update()), Ok(()));
        assert_eq!(run(&mut block, &update()), refused);
        assert_eq!(run(&mut block, &truncate()), refused);
        block.end_implicit();
        assert_eq!(run(&mut block, &update()), Ok(()));
    }

    #[test]
    fn what_a_rollback_cannot_undo_is_warned_of() {
        let mut block = Block::default();
        block.begin(false);
        assert_eq!(block.clone().end(false), (false, None));
        run(&mut block, &update()).unwrap();
        assert!(block.clone().end(false).1.is_some());
        assert_eq!(block.clone().end(true), (true, None));
        assert!(block.fail().is_none());
        assert_eq!(block.status(), Status::Failed);
        let (committed, notice) = block.end(true);
        assert!(!committed && notice.is_some());
    }

    #[test]
    fn read_only_blocks_refuse_writes() {
        let mut block = Block::default();
        block.begin(true);
        assert_eq!(run(&mut block, &truncate()), Err("25006".to_owned()));
        assert!(check_isolation(Some(Isolation::Serializable)).is_err());
    }
}
