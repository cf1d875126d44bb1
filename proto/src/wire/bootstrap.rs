//! The bootstrap service's requests and answers as messages.

use super::generated::link as pb;
use super::{Convert, DecodeError, each, id, messages, one, required};
use crate::ids::{ClusterId, NodeId};
use crate::services::{Founding, Identity, InitRequest, Introduction};
use crate::topology::Roles;
use bytes::Bytes;

/// A cluster's id as bytes; empty for none.
pub(crate) fn cluster_bytes(cluster: Option<ClusterId>) -> Bytes {
    cluster.map_or_else(Bytes::new, |cluster| Bytes::copy_from_slice(&cluster.0.to_be_bytes()))
}

/// A cluster's id from bytes, `None` for none.
pub(crate) fn cluster_from(bytes: &[u8]) -> Result<Option<ClusterId>, DecodeError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes = bytes.try_into().map_err(|_| DecodeError::new("cluster", "it has 16 bytes"))?;
    Ok(Some(ClusterId(id("cluster", u128::from_be_bytes(bytes))?)))
}

impl Convert for Identity {
    type Message = pb::Identity;
    const NAME: &'static str = "identity";

    fn to_message(&self) -> pb::Identity {
        let Identity { member, address, roles: Roles { router, shardnode, coordinator } } = self;
        pb::Identity {
            cluster: cluster_bytes(member.map(|(cluster, _)| cluster)),
            node: member.map_or(0, |(_, node)| node.0),
            address: address.clone(),
            router: *router,
            shardnode: *shardnode,
            coordinator: *coordinator,
        }
    }

    fn from_message(message: pb::Identity) -> Result<Self, DecodeError> {
        let pb::Identity { cluster, node, address, router, shardnode, coordinator } = message;
        let member = match cluster_from(&cluster)? {
            Some(cluster) => Some((cluster, NodeId(id("node", node)?))),
            None => None,
        };
        Ok(Identity { member, address, roles: Roles { router, shardnode, coordinator } })
    }
}

impl Convert for Introduction {
    type Message = pb::Introduction;
    const NAME: &'static str = "introduction";

    fn to_message(&self) -> pb::Introduction {
        let Introduction { node, known, unmet, coordinators } = self;
        pb::Introduction {
            node: Some(node.to_message()),
            known: messages(known),
            unmet: unmet.clone(),
            coordinators: messages(coordinators),
        }
    }

    fn from_message(message: pb::Introduction) -> Result<Self, DecodeError> {
        let pb::Introduction { node, known, unmet, coordinators } = message;
        Ok(Introduction {
            node: one("node", node)?,
            known: each("known", known)?,
            unmet,
            coordinators: each("coordinators", coordinators)?,
        })
    }
}

impl Convert for Founding {
    type Message = pb::Founding;
    const NAME: &'static str = "founding";

    fn to_message(&self) -> pb::Founding {
        let Founding { cluster, node, coordinators, nodes, shards, replicas } = self;
        pb::Founding {
            cluster: cluster_bytes(Some(*cluster)),
            node: node.0,
            coordinators: messages(coordinators),
            nodes: *nodes,
            shards: *shards,
            replicas: *replicas,
        }
    }

    fn from_message(message: pb::Founding) -> Result<Self, DecodeError> {
        let pb::Founding { cluster, node, coordinators, nodes, shards, replicas } = message;
        Ok(Founding {
            cluster: required("cluster", cluster_from(&cluster)?)?,
            node: NodeId(id("node", node)?),
            coordinators: each("coordinators", coordinators)?,
            nodes: id("nodes", nodes)?,
            shards: id("shards", shards)?,
            replicas: id("replicas", replicas)?,
        })
    }
}

impl Convert for InitRequest {
    type Message = pb::InitRequest;
    const NAME: &'static str = "init";

    fn to_message(&self) -> pb::InitRequest {
        let InitRequest { shards, replicas, coordinators } = *self;
        pb::InitRequest { shards, replicas, coordinators }
    }

    fn from_message(message: pb::InitRequest) -> Result<Self, DecodeError> {
        let pb::InitRequest { shards, replicas, coordinators } = message;
        Ok(InitRequest { shards, replicas, coordinators })
    }
}
