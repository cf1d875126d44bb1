//! Advice as messages.

use super::generated as pb;
use super::{Convert, DecodeError, id, maybe, required};
use crate::ids::NodeId;
use crate::services::{Advice, Remedy};

impl Convert for Advice {
    type Message = pb::Advice;
    const NAME: &'static str = "advice";

    fn to_message(&self) -> pb::Advice {
        let Advice { why, remedy } = self;
        pb::Advice { why: why.clone(), remedy: remedy.as_ref().map(Convert::to_message) }
    }

    fn from_message(message: pb::Advice) -> Result<Self, DecodeError> {
        let pb::Advice { why, remedy } = message;
        Ok(Advice { why, remedy: maybe("remedy", remedy)? })
    }
}

impl Convert for Remedy {
    type Message = pb::Remedy;
    const NAME: &'static str = "remedy";

    fn to_message(&self) -> pb::Remedy {
        use pb::remedy;
        let kind = match self.clone() {
            Remedy::Split { shard, parts } => remedy::Kind::Split(remedy::Split { shard, parts }),
            Remedy::Merge { shards } => remedy::Kind::Merge(remedy::Merge { shards }),
            Remedy::Move { shard, from, to } => {
                remedy::Kind::Move(remedy::Move { shard, from: from.0, to: to.0 })
            }
            Remedy::Lead { shard, node } => remedy::Kind::Lead(remedy::Lead { shard, node: node.0 }),
            Remedy::Drain(node) => remedy::Kind::Drain(node.0),
        };
        pb::Remedy { kind: Some(kind) }
    }

    fn from_message(message: pb::Remedy) -> Result<Self, DecodeError> {
        use pb::remedy;
        let node = |field, node| Ok(NodeId(id(field, node)?));
        Ok(match required("kind", message.kind)? {
            remedy::Kind::Split(remedy::Split { shard, parts }) => Remedy::Split { shard, parts },
            remedy::Kind::Merge(remedy::Merge { shards }) => Remedy::Merge { shards },
            remedy::Kind::Move(remedy::Move { shard, from, to }) => {
                Remedy::Move { shard, from: node("move.from", from)?, to: node("move.to", to)? }
            }
            remedy::Kind::Lead(remedy::Lead { shard, node: leader }) => {
                Remedy::Lead { shard, node: node("lead.node", leader)? }
            }
            remedy::Kind::Drain(drained) => Remedy::Drain(node("drain", drained)?),
        })
    }
}
