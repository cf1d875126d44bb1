//! Consistent cuts as messages.

use super::generated as pb;
use super::shard::{nanos, tables};
use super::transaction::{shard_numbers, shards};
use super::{Convert, DecodeError, each, id, messages, one, required};
use crate::ids::{CutId, Epoch, LogIndex, RouterIncarnation, SchemaVersion, ShardId};
use crate::services::{CutAction, CutRequest, Unsettled};
use std::time::Duration;

impl Convert for CutId {
    type Message = pb::CutId;
    const NAME: &'static str = "cut";

    fn to_message(&self) -> pb::CutId {
        pb::CutId { router: self.router.0, sequence: self.sequence }
    }

    fn from_message(message: pb::CutId) -> Result<Self, DecodeError> {
        let sequence = id("sequence", message.sequence)?;
        Ok(CutId { router: RouterIncarnation(message.router), sequence })
    }
}

impl Convert for CutRequest {
    type Message = pb::CutRequest;
    const NAME: &'static str = "cut_request";

    fn to_message(&self) -> pb::CutRequest {
        use pb::cut_request::{Action, Open, Settle};
        let CutRequest { shard, epoch, cut, action, timeout } = self;
        let action = match action {
            CutAction::Open { schema_version, tables, scans, after } => Action::Open(Open {
                schema_version: schema_version.0,
                tables: tables.iter().map(|table| table.0).collect(),
                scans: *scans,
                after: after.0,
            }),
            CutAction::Settle(transactions) => {
                Action::Settle(Settle { transactions: messages(transactions) })
            }
            CutAction::Close => Action::Close(pb::Nothing {}),
            CutAction::Release => Action::Release(pb::Nothing {}),
            CutAction::Drop => Action::Drop(pb::Nothing {}),
        };
        pb::CutRequest {
            shard: shard.0,
            epoch: epoch.0,
            cut: Some(cut.to_message()),
            action: Some(action),
            timeout: nanos(*timeout),
        }
    }

    fn from_message(message: pb::CutRequest) -> Result<Self, DecodeError> {
        use pb::cut_request::{Action, Open, Settle};
        let pb::CutRequest { shard, epoch, cut, action, timeout } = message;
        Ok(CutRequest {
            shard: ShardId(id("shard", shard)?),
            epoch: Epoch(epoch),
            cut: one("cut", cut)?,
            action: match required("action", action)? {
                Action::Open(Open { schema_version, tables: ids, scans, after }) => CutAction::Open {
                    schema_version: SchemaVersion(schema_version),
                    tables: tables("open.tables", ids)?,
                    scans,
                    after: LogIndex(after),
                },
                Action::Settle(Settle { transactions }) => {
                    CutAction::Settle(each("settle.transactions", transactions)?)
                }
                Action::Close(pb::Nothing {}) => CutAction::Close,
                Action::Release(pb::Nothing {}) => CutAction::Release,
                Action::Drop(pb::Nothing {}) => CutAction::Drop,
            },
            timeout: Duration::from_nanos(timeout),
        })
    }
}

impl Convert for Unsettled {
    type Message = pb::Unsettled;
    const NAME: &'static str = "unsettled";

    fn to_message(&self) -> pb::Unsettled {
        let Unsettled { transaction, participants } = self;
        pb::Unsettled {
            transaction: Some(transaction.to_message()),
            participants: shard_numbers(participants),
        }
    }

    fn from_message(message: pb::Unsettled) -> Result<Self, DecodeError> {
        let pb::Unsettled { transaction, participants } = message;
        let participants = shards("participants", participants)?;
        Ok(Unsettled { transaction: one("transaction", transaction)?, participants })
    }
}
