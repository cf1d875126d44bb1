//! The shard service's requests and responses as messages.

use super::generated as pb;
use super::transaction::{from_in_branch, in_branch};
use super::values::{list, unlist};
use super::{Convert, DecodeError, each, id, maybe, messages, one, required};
use crate::ids::{CutId, Epoch, LogIndex, SchemaVersion, ShardId, TableId};
use crate::rows::RowBatch;
use crate::services::{Access, Consistency, Floor, FragmentRequest, SchemaRequest, SchemaStep};
use std::time::Duration;

/// A duration in nanoseconds. 584 years are for ever.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Convert for Consistency {
    type Message = pb::Consistency;
    const NAME: &'static str = "consistency";

    fn to_message(&self) -> pb::Consistency {
        use pb::consistency::Kind;
        let kind = match self {
            Consistency::Strong => Kind::Strong(pb::Nothing {}),
            Consistency::Session => Kind::Session(pb::Nothing {}),
            Consistency::Bounded(staleness) => Kind::Bounded(nanos(*staleness)),
            Consistency::Eventual => Kind::Eventual(pb::Nothing {}),
        };
        pb::Consistency { kind: Some(kind) }
    }

    fn from_message(message: pb::Consistency) -> Result<Self, DecodeError> {
        use pb::consistency::Kind;
        Ok(match required("kind", message.kind)? {
            Kind::Strong(pb::Nothing {}) => Consistency::Strong,
            Kind::Session(pb::Nothing {}) => Consistency::Session,
            Kind::Bounded(staleness) => Consistency::Bounded(Duration::from_nanos(staleness)),
            Kind::Eventual(pb::Nothing {}) => Consistency::Eventual,
        })
    }
}

impl Convert for Access {
    type Message = pb::Access;
    const NAME: &'static str = "access";

    fn to_message(&self) -> pb::Access {
        use pb::access::{Kind, Read, Write};
        let kind = match self {
            Access::Read { consistency, wait, lookup } => Kind::Read(Read {
                consistency: Some(consistency.to_message()),
                wait: nanos(*wait),
                lookup: *lookup,
            }),
            Access::Write { request, settled, touch, lock_timeout } => Kind::Write(Write {
                request: Some(request.to_message()),
                settled: *settled,
                touch: u32::from(*touch),
                lock_timeout: lock_timeout.map(nanos),
            }),
            Access::Branch { branch, access } => Kind::Branch(in_branch(branch, access)),
        };
        pb::Access { kind: Some(kind) }
    }

    fn from_message(message: pb::Access) -> Result<Self, DecodeError> {
        use pb::access::{Kind, Read, Write};
        Ok(match required("kind", message.kind)? {
            Kind::Read(Read { consistency, wait, lookup }) => Access::Read {
                consistency: one("read.consistency", consistency)?,
                wait: Duration::from_nanos(wait),
                lookup,
            },
            Kind::Write(Write { request, settled, touch, lock_timeout }) => Access::Write {
                request: one("write.request", request)?,
                settled,
                touch: u16::try_from(touch).map_err(|e| DecodeError::new("write.touch", e))?,
                lock_timeout: lock_timeout.map(Duration::from_nanos),
            },
            Kind::Branch(message) => {
                let (branch, access) = from_in_branch(message)?;
                Access::Branch { branch, access }
            }
        })
    }
}

impl Convert for Floor {
    type Message = pb::Floor;
    const NAME: &'static str = "floor";

    fn to_message(&self) -> pb::Floor {
        pb::Floor { applied: self.applied.0, settled: self.settled.0 }
    }

    fn from_message(message: pb::Floor) -> Result<Self, DecodeError> {
        Ok(Floor { applied: LogIndex(message.applied), settled: LogIndex(message.settled) })
    }
}

impl Convert for FragmentRequest {
    type Message = pb::FragmentRequest;
    const NAME: &'static str = "fragment";

    fn to_message(&self) -> pb::FragmentRequest {
        let FragmentRequest { shard, epoch, schema_version, sql, params, rows, access, cut, floor, timeout } =
            self;
        pb::FragmentRequest {
            shard: shard.0,
            epoch: epoch.0,
            schema_version: schema_version.0,
            sql: sql.as_ref().to_owned(),
            params: Some(list(params)),
            rows: rows.as_ref().map(RowBatch::to_message),
            access: Some(access.to_message()),
            timeout: nanos(*timeout),
            cut: cut.as_ref().map(CutId::to_message),
            floor: Some(floor.to_message()),
        }
    }

    fn from_message(message: pb::FragmentRequest) -> Result<Self, DecodeError> {
        let pb::FragmentRequest {
            shard,
            epoch,
            schema_version,
            sql,
            params,
            rows,
            access,
            timeout,
            cut,
            floor,
        } = message;
        Ok(FragmentRequest {
            shard: ShardId(id("shard", shard)?),
            epoch: Epoch(epoch),
            schema_version: SchemaVersion(schema_version),
            sql: sql.into(),
            params: unlist("params", required("params", params)?)?,
            rows: maybe("rows", rows)?,
            access: one("access", access)?,
            cut: maybe("cut", cut)?,
            floor: one("floor", floor)?,
            timeout: Duration::from_nanos(timeout),
        })
    }
}

impl Convert for SchemaStep {
    type Message = pb::SchemaStep;
    const NAME: &'static str = "step";

    fn to_message(&self) -> pb::SchemaStep {
        pb::SchemaStep { job: self.job, step: self.step }
    }

    fn from_message(message: pb::SchemaStep) -> Result<Self, DecodeError> {
        Ok(SchemaStep { job: message.job, step: id("step", message.step)? })
    }
}

impl Convert for SchemaRequest {
    type Message = pb::SchemaRequest;
    const NAME: &'static str = "schema_request";

    fn to_message(&self) -> pb::SchemaRequest {
        let SchemaRequest { shard, step, statements, layouts, least_version, require_empty } = self;
        pb::SchemaRequest {
            shard: shard.0,
            step: Some(step.to_message()),
            statements: statements.clone(),
            layouts: messages(layouts),
            least_version: least_version.map(|version| version.0),
            require_empty: require_empty.iter().map(|table| table.0).collect(),
        }
    }

    fn from_message(message: pb::SchemaRequest) -> Result<Self, DecodeError> {
        let pb::SchemaRequest { shard, step, statements, layouts, least_version, require_empty } = message;
        Ok(SchemaRequest {
            shard: ShardId(id("shard", shard)?),
            step: one("step", step)?,
            statements,
            layouts: each("layouts", layouts)?,
            least_version: least_version.map(SchemaVersion),
            require_empty: tables("require_empty", require_empty)?,
        })
    }
}

/// Table ids, none of them 0.
pub(super) fn tables(field: &str, ids: Vec<u32>) -> Result<Vec<TableId>, DecodeError> {
    ids.into_iter().map(|table| Ok(TableId(id(field, table)?))).collect()
}
