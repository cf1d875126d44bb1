//! Errors as messages.

use super::generated as pb;
use super::{Convert, DecodeError, id, maybe, one, required};
use crate::error::{Retry, SqlState, Violation, WireError};
use crate::ids::{ColumnId, Epoch, IndexId, LogIndex, NodeId, SchemaVersion, ShardId, TableId};
use std::num::NonZeroU32;

impl Convert for Retry {
    type Message = pb::Retry;
    const NAME: &'static str = "retry";

    fn to_message(&self) -> pb::Retry {
        use pb::retry::Kind;
        let kind = match self {
            Retry::Never => Kind::Never(pb::Nothing {}),
            Retry::NotLeader(leader) => Kind::NotLeader(pb::retry::NotLeader { leader: leader.map(|n| n.0) }),
            Retry::StaleEpoch(epoch) => Kind::StaleEpoch(epoch.0),
            Retry::StaleSchema(version) => Kind::StaleSchema(version.0),
            Retry::Later => Kind::Later(pb::Nothing {}),
            Retry::Unknown => Kind::Unknown(pb::Nothing {}),
            Retry::Moved => Kind::Moved(pb::Nothing {}),
            Retry::Behind(index) => Kind::Behind(index.0),
        };
        pb::Retry { kind: Some(kind) }
    }

    fn from_message(message: pb::Retry) -> Result<Self, DecodeError> {
        use pb::retry::Kind;
        Ok(match required("kind", message.kind)? {
            Kind::Never(pb::Nothing {}) => Retry::Never,
            Kind::NotLeader(pb::retry::NotLeader { leader: None }) => Retry::NotLeader(None),
            Kind::NotLeader(pb::retry::NotLeader { leader: Some(leader) }) => {
                Retry::NotLeader(Some(NodeId(id("not_leader.leader", leader)?)))
            }
            Kind::StaleEpoch(epoch) => Retry::StaleEpoch(Epoch(epoch)),
            Kind::StaleSchema(version) => Retry::StaleSchema(SchemaVersion(version)),
            Kind::Later(pb::Nothing {}) => Retry::Later,
            Kind::Unknown(pb::Nothing {}) => Retry::Unknown,
            Kind::Moved(pb::Nothing {}) => Retry::Moved,
            Kind::Behind(index) => Retry::Behind(LogIndex(index)),
        })
    }
}

impl Convert for Violation {
    type Message = pb::Violation;
    const NAME: &'static str = "violation";

    fn to_message(&self) -> pb::Violation {
        use pb::violation::{Check, Kind, NotNull, Unique};
        let kind = match self {
            Violation::NotNull(table, column) => Kind::NotNull(NotNull { table: table.0, column: column.0 }),
            Violation::Unique(table, index) => {
                Kind::Unique(Unique { table: table.0, index: index.map(|i| i.0) })
            }
            Violation::Check(table, position) => Kind::Check(Check { table: table.0, position: *position }),
        };
        pb::Violation { kind: Some(kind) }
    }

    fn from_message(message: pb::Violation) -> Result<Self, DecodeError> {
        use pb::violation::{Check, Kind, NotNull, Unique};
        Ok(match required("kind", message.kind)? {
            Kind::NotNull(NotNull { table, column }) => {
                Violation::NotNull(TableId(id("not_null.table", table)?), ColumnId(column))
            }
            Kind::Unique(Unique { table, index }) => {
                Violation::Unique(TableId(id("unique.table", table)?), index.map(IndexId))
            }
            Kind::Check(Check { table, position }) => {
                Violation::Check(TableId(id("check.table", table)?), position)
            }
        })
    }
}

impl Convert for WireError {
    type Message = pb::WireError;
    const NAME: &'static str = "error";

    fn to_message(&self) -> pb::WireError {
        let WireError { sqlstate, message, detail, hint, position, retry, violation, state } = self;
        pb::WireError {
            sqlstate: sqlstate.to_string(),
            message: message.clone(),
            detail: detail.clone(),
            hint: hint.clone(),
            position: position.map(NonZeroU32::get),
            retry: Some(retry.to_message()),
            violation: violation.as_ref().map(Violation::to_message),
            state: state.as_deref().map(|(shard, index)| pb::ShardState { shard: shard.0, index: index.0 }),
        }
    }

    fn from_message(message: pb::WireError) -> Result<Self, DecodeError> {
        let pb::WireError { sqlstate, message, detail, hint, position, retry, violation, state } = message;
        let sqlstate = SqlState::parse(&sqlstate)
            .ok_or_else(|| DecodeError::new("sqlstate", format_args!("{sqlstate:?} is not an SQLSTATE")))?;
        let retry = one("retry", retry)?;
        let violation = maybe("violation", violation)?;
        let position = position.and_then(NonZeroU32::new);
        let state = state.map(|pb::ShardState { shard, index }| {
            Ok::<_, DecodeError>(Box::new((ShardId(id("state.shard", shard)?), LogIndex(index))))
        });
        Ok(WireError {
            sqlstate,
            message,
            detail,
            hint,
            position,
            retry,
            violation,
            state: state.transpose()?,
        })
    }
}
