//! What a shard's log says, as messages.

use super::generated as pb;
use super::shard::nanos;
use super::transaction::{shard_numbers, shards};
use super::{Convert, DecodeError, each, id, inner, maybe, messages, one, required};
use crate::ids::{Attempt, LogIndex, ReshardId, ShardId};
use crate::services::{
    Change, ChangeKind, Changes, ChangesRequest, Estate, Left, LeftPrepared, NamedAnswer, ReplayRun,
    SchemaRun, Serving,
};
use std::time::Duration;

impl Convert for ChangesRequest {
    type Message = pb::ChangesRequest;
    const NAME: &'static str = "changes_request";

    fn to_message(&self) -> pb::ChangesRequest {
        let ChangesRequest { shard, after, beat, layouts } = self;
        pb::ChangesRequest { shard: shard.0, after: after.0, beat: nanos(*beat), layouts: *layouts }
    }

    fn from_message(message: pb::ChangesRequest) -> Result<Self, DecodeError> {
        let pb::ChangesRequest { shard, after, beat, layouts } = message;
        let (shard, after) = (ShardId(id("shard", shard)?), LogIndex(after));
        Ok(ChangesRequest { shard, after, beat: Duration::from_nanos(beat), layouts })
    }
}

impl Convert for Changes {
    type Message = pb::Changes;
    const NAME: &'static str = "changes";

    fn to_message(&self) -> pb::Changes {
        let Changes { changes, position, committed } = self;
        pb::Changes { changes: messages(changes), position: position.0, committed: committed.0 }
    }

    fn from_message(message: pb::Changes) -> Result<Self, DecodeError> {
        let pb::Changes { changes, position, committed } = message;
        let (position, committed) = (LogIndex(position), LogIndex(committed));
        Ok(Changes { changes: each("changes", changes)?, position, committed })
    }
}

impl Convert for Change {
    type Message = pb::Change;
    const NAME: &'static str = "change";

    fn to_message(&self) -> pb::Change {
        use pb::change::Kind;
        let kind = match &self.kind {
            ChangeKind::Rows(changeset) => Kind::Rows(changeset.clone()),
            ChangeKind::Answer(answer) => Kind::Answer(answer.to_message()),
            ChangeKind::Schema(run) => Kind::Schema(run.to_message()),
            ChangeKind::Replay(run) => Kind::Replay(run.to_message()),
            ChangeKind::Piece(changeset) => Kind::Piece(changeset.clone()),
            ChangeKind::Serving(serving) => Kind::Serving(serving.to_message()),
            ChangeKind::Layouts(tables) => Kind::Layouts(pb::Layouts { tables: messages(tables) }),
            ChangeKind::Left(Left::Prepared(prepared)) => Kind::Prepared(prepared.to_message()),
            ChangeKind::Left(Left::Ended { transaction, participants }) => Kind::Ended(pb::LeftEnded {
                transaction: Some(transaction.to_message()),
                participants: shard_numbers(participants),
            }),
        };
        pb::Change { index: self.index.0, kind: Some(kind) }
    }

    fn from_message(message: pb::Change) -> Result<Self, DecodeError> {
        use pb::change::Kind;
        let kind = match required("kind", message.kind)? {
            Kind::Rows(changeset) => ChangeKind::Rows(changeset),
            Kind::Answer(answer) => ChangeKind::Answer(inner("answer", answer)?),
            Kind::Schema(run) => ChangeKind::Schema(inner("schema", run)?),
            Kind::Replay(run) => ChangeKind::Replay(inner("replay", run)?),
            Kind::Piece(changeset) => ChangeKind::Piece(changeset),
            Kind::Serving(serving) => ChangeKind::Serving(inner("serving", serving)?),
            Kind::Layouts(layouts) => ChangeKind::Layouts(each("layouts", layouts.tables)?),
            Kind::Prepared(prepared) => ChangeKind::Left(Left::Prepared(inner("prepared", prepared)?)),
            Kind::Ended(pb::LeftEnded { transaction, participants }) => ChangeKind::Left(Left::Ended {
                transaction: one("transaction", transaction)?,
                participants: shards("participants", participants)?,
            }),
        };
        Ok(Change { index: LogIndex(id("index", message.index)?), kind })
    }
}

impl Convert for NamedAnswer {
    type Message = pb::NamedAnswer;
    const NAME: &'static str = "answer";

    fn to_message(&self) -> pb::NamedAnswer {
        let NamedAnswer { request, settled, output } = self;
        pb::NamedAnswer { request: Some(request.to_message()), settled: *settled, output: output.clone() }
    }

    fn from_message(message: pb::NamedAnswer) -> Result<Self, DecodeError> {
        let pb::NamedAnswer { request, settled, output } = message;
        Ok(NamedAnswer { request: one("request", request)?, settled, output })
    }
}

impl Convert for SchemaRun {
    type Message = pb::SchemaRun;
    const NAME: &'static str = "schema_run";

    fn to_message(&self) -> pb::SchemaRun {
        let SchemaRun { step, statements, require_empty, failure } = self;
        pb::SchemaRun {
            step: Some(step.to_message()),
            statements: statements.clone(),
            require_empty: require_empty.clone(),
            failure: failure.as_ref().map(Convert::to_message),
        }
    }

    fn from_message(message: pb::SchemaRun) -> Result<Self, DecodeError> {
        let pb::SchemaRun { step, statements, require_empty, failure } = message;
        let (step, failure) = (one("step", step)?, maybe("failure", failure)?);
        Ok(SchemaRun { step, statements, require_empty, failure })
    }
}

impl Convert for ReplayRun {
    type Message = pb::ReplayRun;
    const NAME: &'static str = "replay_run";

    fn to_message(&self) -> pb::ReplayRun {
        let ReplayRun { owner, pieces, answer } = self;
        let answer = answer.as_ref().map(Convert::to_message);
        pb::ReplayRun { owner: Some(owner.to_message()), pieces: *pieces, answer }
    }

    fn from_message(message: pb::ReplayRun) -> Result<Self, DecodeError> {
        let pb::ReplayRun { owner, pieces, answer } = message;
        Ok(ReplayRun { owner: one("owner", owner)?, pieces, answer: maybe("answer", answer)? })
    }
}

impl Convert for Serving {
    type Message = pb::Serving;
    const NAME: &'static str = "serving";

    fn to_message(&self) -> pb::Serving {
        use pb::serving::Kind;
        let kind = match self {
            Serving::Open => Kind::Open(pb::Nothing {}),
            Serving::Following => Kind::Following(pb::Nothing {}),
            Serving::Sealed(estate) => {
                Kind::Sealed(pb::Sealed { estate: estate.as_ref().map(Convert::to_message) })
            }
        };
        pb::Serving { kind: Some(kind) }
    }

    fn from_message(message: pb::Serving) -> Result<Self, DecodeError> {
        use pb::serving::Kind;
        Ok(match required("kind", message.kind)? {
            Kind::Open(pb::Nothing {}) => Serving::Open,
            Kind::Following(pb::Nothing {}) => Serving::Following,
            Kind::Sealed(pb::Sealed { estate }) => Serving::Sealed(maybe("estate", estate)?),
        })
    }
}

impl Convert for Estate {
    type Message = pb::Estate;
    const NAME: &'static str = "estate";

    fn to_message(&self) -> pb::Estate {
        pb::Estate { reshard: self.reshard.0, attempt: self.attempt.0 }
    }

    fn from_message(message: pb::Estate) -> Result<Self, DecodeError> {
        let (reshard, attempt) = (id("reshard", message.reshard)?, id("attempt", message.attempt)?);
        Ok(Estate { reshard: ReshardId(reshard), attempt: Attempt(attempt) })
    }
}

impl Convert for LeftPrepared {
    type Message = pb::LeftPrepared;
    const NAME: &'static str = "prepared";

    fn to_message(&self) -> pb::LeftPrepared {
        let LeftPrepared { transaction, begun, participants, votes, parallel, locks, changes } = self;
        pb::LeftPrepared {
            transaction: Some(transaction.to_message()),
            begun: *begun,
            participants: shard_numbers(participants),
            votes: shard_numbers(votes),
            parallel: *parallel,
            locks: locks.clone(),
            changes: changes.clone(),
        }
    }

    fn from_message(message: pb::LeftPrepared) -> Result<Self, DecodeError> {
        let pb::LeftPrepared { transaction, begun, participants, votes, parallel, locks, changes } = message;
        let transaction = one("transaction", transaction)?;
        let (participants, votes) = (shards("participants", participants)?, shards("votes", votes)?);
        Ok(LeftPrepared { transaction, begun, participants, votes, parallel, locks, changes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Retry, SqlState, WireError};
    use crate::ids::{RequestId, RouterIncarnation, TableId, TransactionId};
    use crate::layout::TableLayout;
    use crate::services::SchemaStep;
    use crate::wire::Wire;
    use bytes::Bytes;

    #[test]
    fn what_a_log_says_comes_back() {
        let request = ChangesRequest {
            shard: ShardId(3),
            after: LogIndex(0),
            beat: Duration::from_millis(250),
            layouts: true,
        };
        assert_eq!(ChangesRequest::decode(&request.encode()), Ok(request));
        let none = ChangesRequest { shard: ShardId(0), ..request };
        assert_eq!(ChangesRequest::decode(&none.encode()).unwrap_err().field(), "changes_request.shard");

        let name = RequestId { router: RouterIncarnation(u64::MAX), sequence: 4 };
        let answer = NamedAnswer { request: name, settled: 2, output: Bytes::from_static(b"told") };
        let failure = WireError::new(SqlState::UNIQUE_VIOLATION, "twice").with_retry(Retry::Never);
        let (statements, require_empty) = (vec!["DROP TABLE t1".to_owned()], vec!["t1".to_owned()]);
        let step = SchemaStep { job: 8, step: 2 };
        let run = SchemaRun { step, statements, require_empty, failure: None };
        let owner = TransactionId { router: RouterIncarnation(1), sequence: 9 };
        let estate = Estate { reshard: ReshardId(7), attempt: Attempt(2) };
        let prepared = LeftPrepared {
            transaction: owner,
            begun: u64::MAX,
            participants: vec![ShardId(1), ShardId(2)],
            votes: vec![ShardId(2)],
            parallel: true,
            locks: Bytes::from_static(b"locks"),
            changes: Bytes::from_static(b"changes"),
        };
        let kinds = [
            ChangeKind::Rows(Bytes::from_static(b"rows")),
            ChangeKind::Layouts(vec![TableLayout { table: TableId(16384), layout: None }]),
            ChangeKind::Answer(answer.clone()),
            ChangeKind::Schema(run.clone()),
            ChangeKind::Schema(SchemaRun { failure: Some(failure), ..run }),
            ChangeKind::Replay(ReplayRun { owner, pieces: 3, answer: Some(answer) }),
            ChangeKind::Replay(ReplayRun { owner, pieces: 0, answer: None }),
            ChangeKind::Piece(Bytes::new()),
            ChangeKind::Serving(Serving::Open),
            ChangeKind::Serving(Serving::Following),
            ChangeKind::Serving(Serving::Sealed(None)),
            ChangeKind::Serving(Serving::Sealed(Some(estate))),
            ChangeKind::Left(Left::Prepared(prepared)),
            ChangeKind::Left(Left::Ended { transaction: owner, participants: vec![ShardId(u64::MAX)] }),
        ];
        let changes = (1..).map(LogIndex).zip(kinds).map(|(index, kind)| Change { index, kind }).collect();
        let part = Changes { changes, position: LogIndex(10), committed: LogIndex(12) };
        assert_eq!(Changes::decode(&part.encode()), Ok(part));

        let nothing =
            pb::Changes { changes: vec![pb::Change { index: 4, kind: None }], ..pb::Changes::default() };
        assert_eq!(Changes::from_message(nothing).unwrap_err().field(), "changes[0].kind");
    }
}
