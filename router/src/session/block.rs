//! The state of a session's transaction block.
//!
//! In come what BEGIN, COMMIT, SAVEPOINT and failing statements do to it; out comes what may run in it and what
//! ReadyForQuery tells. What the statements did on the shards is [`crate::transaction`]'s to know. A string of several
//! statements and a pipeline up to Sync are transactions, too, but no blocks: to PostgreSQL they are idle.

use super::{Undo, settings::Settings};
use crate::protocol::backend::{Status, warning};
use crate::transaction::Mark;
use planner::plan::{Action, CopyOut, Isolation, Locking, Notice, Plan};
use proto::services::{RowLock, SchemaChange};
use proto::{SqlState, TableId, WireError};

/// What a statement does to its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// It locks rows.
    Locks,
    /// It writes rows.
    Writes,
    /// It empties tables: DDL by itself, and an ordinary write in a transaction.
    Truncates,
    /// DDL: it is done when it has run, whatever becomes of the transaction.
    Schema,
}

/// What a plan does.
pub fn effect(plan: &Plan) -> Effect {
    match &plan.action {
        Action::Query(_) | Action::CopyOut(_) if locks(plan).is_some() => Effect::Locks,
        Action::Query(_) | Action::CopyOut(_) | Action::Session(_) | Action::Explain(_) => Effect::None,
        Action::Insert(_) | Action::CopyIn(_) | Action::Modify(_) => Effect::Writes,
        Action::Schema(schema) if truncated(&schema.changes).is_some() => Effect::Truncates,
        Action::Schema(_) => Effect::Schema,
    }
}

/// Whether shards hear of a schema change.
pub fn reaches_shards(plan: &Plan) -> bool {
    let Action::Schema(schema) = &plan.action else { return false };
    schema.changes.iter().any(SchemaChange::reaches_shards)
}

/// The lock that a query's rows get, or those of a query within it.
fn locks(plan: &Plan) -> Option<&Locking> {
    let (Action::Query(query) | Action::CopyOut(CopyOut { query, .. })) = &plan.action else { return None };
    query.lock.as_ref().or(plan.locks_first())
}

/// The tables that are emptied, if nothing else is done.
pub fn truncated(changes: &[SchemaChange]) -> Option<Vec<TableId>> {
    let tables = changes.iter().map(|change| match change {
        SchemaChange::Truncate { tables, restart_identity: false } => Some(tables),
        _ => None,
    });
    let tables: Vec<_> = tables.collect::<Option<_>>()?;
    (!tables.is_empty()).then(|| tables.into_iter().flatten().copied().collect())
}

/// The command tag of a plan that writes, for messages.
pub fn command(plan: &Plan) -> &'static str {
    match &plan.action {
        Action::Insert(_) => "INSERT",
        Action::Modify(modify) if modify.delete => "DELETE",
        Action::Modify(_) => "UPDATE",
        Action::CopyIn(_) => "COPY FROM",
        Action::Schema(schema) => schema.tag,
        Action::Query(_) | Action::CopyOut(_) => {
            match locks(plan).and_then(|lock| lock.rows.first()).map(|rows| rows.mode) {
                Some(RowLock::KeyShare) => "SELECT FOR KEY SHARE",
                Some(RowLock::Share) => "SELECT FOR SHARE",
                Some(RowLock::NoKeyUpdate) => "SELECT FOR NO KEY UPDATE",
                Some(RowLock::Update) => "SELECT FOR UPDATE",
                None => "SELECT",
            }
        }
        Action::Session(_) | Action::Explain(_) => "SELECT",
    }
}

/// A session's transaction block.
#[derive(Debug)]
pub struct Block {
    status: Status,
    read_only: bool,
    /// All its statements see one state: REPEATABLE READ.
    repeatable: bool,
    /// DDL has run in this transaction.
    schema: bool,
    /// Something other than the session's own commands has run, or tried to.
    has_run: bool,
    /// Its rows are lost: no savepoint can be gone back to.
    doomed: bool,
    savepoints: Vec<Savepoint>,
}

/// A savepoint: what there was when it was made.
#[derive(Debug)]
pub struct Savepoint {
    name: String,
    read_only: bool,
    schema: bool,
    /// What the transaction had done.
    pub mark: Mark,
    /// The settings.
    pub settings: Settings,
    /// What the block's end would have done to them.
    pub undo: Option<Box<Undo>>,
    /// How many portals the session had made.
    pub portals: u64,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            status: Status::Idle,
            read_only: false,
            schema: false,
            repeatable: false,
            has_run: false,
            doomed: false,
            savepoints: Vec::new(),
        }
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

    /// Whether all its statements see one state.
    pub fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// A statement is about to run.
    pub fn run(&mut self) {
        self.has_run = true;
    }

    /// Whether statements have run in it, the session's own commands aside.
    pub fn has_run(&self) -> bool {
        self.has_run && self.is_open()
    }

    /// BEGIN. In a string or pipeline, what was written before it belongs to the block.
    pub fn begin(&mut self, read_only: bool, isolation: Option<Isolation>) -> Result<(), WireError> {
        self.repeatable = is_repeatable(isolation, read_only)?;
        self.status = Status::Block;
        self.read_only = read_only;
        Ok(())
    }

    /// SET TRANSACTION.
    pub fn set(&mut self, read_only: Option<bool>, isolation: Option<Isolation>) -> Result<(), WireError> {
        if read_only == Some(false) && self.read_only {
            let message = "cannot set transaction read-write mode inside a read-only transaction";
            return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message));
        }
        let read_only = read_only.unwrap_or(self.read_only);
        if isolation.is_some() {
            let repeatable = is_repeatable(isolation, read_only)?;
            if repeatable != self.repeatable && self.has_run {
                let message = "SET TRANSACTION ISOLATION LEVEL must be called before any query";
                return Err(WireError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
            }
            self.repeatable = repeatable;
        }
        self.read_only = read_only;
        Ok(())
    }

    /// Checks, before a statement runs, that it may. `alone`: nothing else is in its transaction. `written`: something
    /// before it in its transaction has written.
    pub fn check(&self, plan: &Plan, read_only: bool, alone: bool, written: bool) -> Result<(), WireError> {
        let effect = effect(plan);
        if effect == Effect::None {
            return Ok(());
        }
        if read_only || self.read_only {
            let message = format!("cannot execute {} in a read-only transaction", command(plan));
            return Err(WireError::new(SqlState::READ_ONLY_SQL_TRANSACTION, message));
        }
        let hint = "Schema changes are not part of transactions: send each by itself.";
        if self.schema {
            let what = format!("{} after a schema change in the same transaction", command(plan));
            return Err(WireError::unsupported(what).with_hint(hint));
        }
        if effect == Effect::Schema && written && !alone {
            let what = format!("{} after a write in the same transaction", command(plan));
            return Err(WireError::unsupported(what).with_hint(hint));
        }
        Ok(())
    }

    /// A statement has run that was not alone in its transaction.
    pub fn ran(&mut self, plan: &Plan) {
        self.schema |= effect(plan) == Effect::Schema;
    }

    /// A statement has failed, and with it the block, if there is one. Says whether the transaction is over: nothing of
    /// it can be saved. With the warning of what stays though it should not.
    pub fn fail(&mut self, error: &WireError) -> (bool, Option<Notice>) {
        match self.status {
            Status::Idle => (true, std::mem::take(&mut self.schema).then(stays)),
            Status::Block | Status::Failed => {
                self.status = Status::Failed;
                self.doomed |= error.sqlstate == SqlState::SERIALIZATION_FAILURE;
                (self.doomed || self.savepoints.is_empty(), None)
            }
        }
    }

    /// COMMIT or ROLLBACK: whether it is to commit, and the warning of what stays though it should not.
    pub fn end(&mut self, commit: bool) -> (bool, Option<Notice>) {
        let ended = std::mem::take(self);
        let commit = commit && ended.status != Status::Failed;
        (commit, (!commit && ended.schema).then(stays))
    }

    /// The end of a string or pipeline: outside a block the next statement begins anew.
    pub fn end_implicit(&mut self) {
        if self.status == Status::Idle {
            *self = Self::default();
        }
    }

    /// SAVEPOINT.
    pub fn save(
        &mut self,
        name: &str,
        mark: Mark,
        settings: Settings,
        undo: Option<Box<Undo>>,
        portals: u64,
    ) -> Result<(), WireError> {
        self.check_open("SAVEPOINT")?;
        let (read_only, schema) = (self.read_only, self.schema);
        let name = name.to_owned();
        self.savepoints.push(Savepoint { name, read_only, schema, mark, settings, undo, portals });
        Ok(())
    }

    /// RELEASE: the savepoint is forgotten, and those made after it.
    pub fn release(&mut self, name: &str) -> Result<(), WireError> {
        self.check_open("RELEASE SAVEPOINT")?;
        let place = self.find(name)?;
        self.savepoints.truncate(place);
        Ok(())
    }

    /// ROLLBACK TO: those made after it are forgotten, and it is the state to go back to. The block stays failed until
    /// [`Block::resume`].
    pub fn rewind(&mut self, name: &str) -> Result<&Savepoint, WireError> {
        self.check_open("ROLLBACK TO SAVEPOINT")?;
        let place = self.find(name)?;
        if self.doomed {
            let message =
                "the transaction has lost what it did on a shard, and cannot go back to a savepoint";
            return Err(WireError::new(SqlState::SERIALIZATION_FAILURE, message)
                .with_hint("Send ROLLBACK, and run the transaction again."));
        }
        self.savepoints.truncate(place + 1);
        Ok(&self.savepoints[place])
    }

    /// What the transaction had done at the last savepoint, if the block has failed since: what came after is lost.
    pub fn stands(&self) -> Option<&Mark> {
        self.savepoints.last().filter(|_| self.is_failed()).map(|savepoint| &savepoint.mark)
    }

    /// The transaction is as it was at the last savepoint. The warning of what stays though it should not.
    pub fn resume(&mut self) -> Option<Notice> {
        self.status = Status::Block;
        let last = self.savepoints.last()?;
        self.read_only = last.read_only;
        (self.schema && !last.schema).then(stays)
    }

    fn check_open(&self, command: &str) -> Result<(), WireError> {
        if self.is_open() {
            return Ok(());
        }
        let message = format!("{command} can only be used in transaction blocks");
        Err(WireError::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, message))
    }

    fn find(&self, name: &str) -> Result<usize, WireError> {
        self.savepoints.iter().rposition(|savepoint| savepoint.name == name).ok_or_else(|| {
            let message = format!("savepoint \"{name}\" does not exist");
            WireError::new(SqlState::INVALID_SAVEPOINT_SPECIFICATION, message)
        })
    }
}

fn stays() -> Notice {
    let mut notice = warning(SqlState::WARNING, "the transaction's schema change is not undone");
    notice.hint =
        Some("Schema changes are not part of transactions: they are done when they have run.".to_owned());
    notice
}

/// Whether all statements of a transaction see one state. Refuses isolation levels that can't be honoured.
pub fn is_repeatable(isolation: Option<Isolation>, read_only: bool) -> Result<bool, WireError> {
    let name = match isolation {
        None | Some(Isolation::ReadUncommitted | Isolation::ReadCommitted) => return Ok(false),
        Some(Isolation::RepeatableRead) if read_only => return Ok(true),
        Some(Isolation::RepeatableRead) => "REPEATABLE READ of transactions that may write",
        Some(Isolation::Serializable) => "SERIALIZABLE",
    };
    Err(WireError::unsupported(format!("isolation level {name}"))
        .with_hint("Use READ COMMITTED, the default, or REPEATABLE READ READ ONLY."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use planner::plan::SchemaAction;
    use proto::SequenceId;
    use proto::catalog::RoleChange;

    fn schema(changes: Vec<SchemaChange>) -> Plan {
        let action =
            SchemaAction { tag: "DDL", changes, notices: vec![], fills: vec![], from_current: false };
        Plan {
            parameters: vec![],
            columns: None,
            scalars: vec![],
            first: vec![],
            reads_copies: false,
            action: Action::Schema(action),
        }
    }

    fn drop_table() -> Plan {
        schema(vec![SchemaChange::DropTables(vec![TableId(1)])])
    }

    fn truncate(restart_identity: bool) -> Plan {
        schema(vec![SchemaChange::Truncate { tables: vec![TableId(1)], restart_identity }])
    }

    fn check(block: &Block, plan: &Plan, written: bool) -> String {
        block.check(plan, false, false, written).err().map_or_else(String::new, |e| e.sqlstate.to_string())
    }

    fn save(block: &mut Block, name: &str) {
        block.save(name, Mark::default(), Settings::default(), None, 0).unwrap();
    }

    fn error(code: SqlState) -> WireError {
        WireError::new(code, "x")
    }

    #[test]
    fn a_schema_change_shares_its_transaction_with_no_write() {
        let mut block = Block::default();
        block.begin(false, None).unwrap();
        assert_eq!(check(&block, &drop_table(), true), "0A000");
        assert_eq!(check(&block, &truncate(true), true), "0A000");
        assert_eq!(check(&block, &truncate(false), true), "");
        assert_eq!(check(&block, &drop_table(), false), "");
        block.ran(&drop_table());
        assert_eq!(check(&block, &truncate(false), false), "0A000");
        assert_eq!(check(&block, &drop_table(), false), "0A000");
        assert!(block.end(false).1.is_some(), "what stays is warned of");
        assert!(block.end(false).1.is_none());
        block.ran(&drop_table());
        block.end_implicit();
        assert_eq!(check(&block, &drop_table(), false), "");
    }

    #[test]
    fn no_shard_hears_of_sequences_roles_and_what_is_so_already() {
        let role = SchemaChange::AlterRole { role: None, change: RoleChange::ResetAll };
        let dropped = || SchemaChange::DropSequences(vec![SequenceId(1)]);
        for changes in [vec![], vec![dropped()], vec![role]] {
            assert!(!reaches_shards(&schema(changes.clone())), "{changes:?}");
        }
        let tables = SchemaChange::DropTables(vec![TableId(1)]);
        for changes in [drop_table(), truncate(true), schema(vec![dropped(), tables])] {
            assert!(reaches_shards(&changes), "{changes:?}");
        }
    }

    #[test]
    fn a_failed_block_goes_on_only_from_a_savepoint() {
        let mut block = Block::default();
        let unique = error(SqlState::UNIQUE_VIOLATION);
        assert!(block.fail(&unique).0 && !block.is_open(), "outside a block everything is over");
        block.begin(false, None).unwrap();
        assert_eq!(block.fail(&unique), (true, None));
        assert_eq!((block.status(), block.end(true).0), (Status::Failed, false));
        block.begin(false, None).unwrap();
        save(&mut block, "a");
        save(&mut block, "b");
        assert_eq!(block.fail(&unique), (false, None));
        assert_eq!(block.rewind("c").err().unwrap().sqlstate.as_str(), "3B001");
        assert!(block.rewind("a").is_ok() && block.is_failed());
        block.resume();
        assert_eq!(block.status(), Status::Block);
        assert!(block.rewind("b").is_err(), "it was made after the one that was gone back to");
        assert_eq!(block.fail(&error(SqlState::SERIALIZATION_FAILURE)), (true, None));
        assert_eq!(block.rewind("a").err().unwrap().sqlstate.as_str(), "40001");
        assert!(!block.end(true).0);
        assert_eq!(block.release("a").err().unwrap().sqlstate.as_str(), "25P01");
    }

    #[test]
    fn the_last_savepoint_of_a_name_counts() {
        let mut block = Block::default();
        block.begin(false, None).unwrap();
        for name in ["a", "b", "a"] {
            save(&mut block, name);
        }
        block.set(Some(true), None).unwrap();
        block.rewind("a").unwrap();
        block.resume();
        assert!(!block.is_read_only());
        block.release("a").unwrap();
        block.rewind("a").unwrap();
        assert!(block.release("b").is_err());
    }

    #[test]
    fn read_only_blocks_refuse_writes() {
        let mut block = Block::default();
        block.begin(true, None).unwrap();
        assert_eq!(check(&block, &truncate(false), false), "25006");
        assert!(is_repeatable(Some(Isolation::Serializable), true).is_err());
    }

    #[test]
    fn only_readers_get_one_state_for_all_their_statements_and_say_so_first() {
        let code =
            |result: Result<(), WireError>| result.err().map_or_else(String::new, |e| e.sqlstate.to_string());
        let repeatable = Some(Isolation::RepeatableRead);
        let mut block = Block::default();
        assert_eq!(code(block.begin(false, repeatable)), "0A000");
        assert!(!block.is_open());
        block.begin(false, None).unwrap();
        assert_eq!(code(block.set(None, repeatable)), "0A000");
        block.set(Some(true), repeatable).unwrap();
        assert!(block.is_repeatable() && block.is_read_only());
        assert_eq!(code(block.set(Some(false), None)), "22023");
        block.run();
        block.set(None, repeatable).unwrap();
        assert_eq!(code(block.set(None, Some(Isolation::ReadCommitted))), "25001");
        block.end(true);
        block.begin(true, repeatable).unwrap();
        assert!(block.is_repeatable());
    }
}
