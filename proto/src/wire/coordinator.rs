//! The coordinator service's requests and responses as messages.

use super::generated as pb;
use super::shard::tables;
use super::topology::{sharding, sharding_number};
use super::values::{list, unlist};
use super::{Convert, DecodeError, each, id, messages, one, required};
use crate::ids::{ColumnId, SchemaVersion, SequenceId, TableId};
use crate::services::{
    ClusterState, ClusterStatus, CreateKeyspace, SchemaChange, SchemaChangeRequest, SequenceBlock,
};
use std::sync::Arc;

impl Convert for ClusterState {
    type Message = pb::ClusterState;
    const NAME: &'static str = "state";

    fn to_message(&self) -> pb::ClusterState {
        let ClusterState { topology, leaders, catalog } = self;
        pb::ClusterState {
            topology: Some(topology.to_message()),
            leaders: Some(leaders.to_message()),
            catalog: Some(catalog.to_message()),
        }
    }

    fn from_message(message: pb::ClusterState) -> Result<Self, DecodeError> {
        let pb::ClusterState { topology, leaders, catalog } = message;
        Ok(ClusterState {
            topology: Arc::new(one("topology", topology)?),
            leaders: Arc::new(one("leaders", leaders)?),
            catalog: Arc::new(one("catalog", catalog)?),
        })
    }
}

impl Convert for ClusterStatus {
    type Message = pb::ClusterStatus;
    const NAME: &'static str = "status";

    fn to_message(&self) -> pb::ClusterStatus {
        pb::ClusterStatus { state: Some(self.state.to_message()), replicas: messages(&self.replicas) }
    }

    fn from_message(message: pb::ClusterStatus) -> Result<Self, DecodeError> {
        let pb::ClusterStatus { state, replicas } = message;
        Ok(ClusterStatus { state: one("state", state)?, replicas: each("replicas", replicas)? })
    }
}

impl Convert for SchemaChange {
    type Message = pb::SchemaChange;
    const NAME: &'static str = "change";

    fn to_message(&self) -> pb::SchemaChange {
        use pb::schema_change as change;
        use pb::schema_change::Kind;
        let kind = match self {
            SchemaChange::CreateTable { table, sequences } => Kind::CreateTable(change::CreateTable {
                table: Some(table.to_message()),
                sequences: messages(sequences),
            }),
            SchemaChange::ReplaceTable { table, sequences, fill } => {
                Kind::ReplaceTable(change::ReplaceTable {
                    table: Some(table.to_message()),
                    sequences: messages(sequences),
                    fill_columns: fill.iter().map(|(column, _)| column.0).collect(),
                    fill_values: Some(list(fill.iter().map(|(_, value)| value))),
                })
            }
            SchemaChange::DropTables(tables) => {
                Kind::DropTables(change::Tables { ids: table_numbers(tables) })
            }
            SchemaChange::Truncate { tables, restart_identity } => Kind::Truncate(change::Truncate {
                tables: table_numbers(tables),
                restart_identity: *restart_identity,
            }),
            SchemaChange::CreateSequence(sequence) => Kind::CreateSequence(sequence.to_message()),
            SchemaChange::ReplaceSequence { sequence, restart } => {
                Kind::ReplaceSequence(change::ReplaceSequence {
                    sequence: Some(sequence.to_message()),
                    restart: *restart,
                })
            }
            SchemaChange::DropSequences(sequences) => {
                Kind::DropSequences(change::Sequences { ids: sequences.iter().map(|s| s.0).collect() })
            }
        };
        pb::SchemaChange { kind: Some(kind) }
    }

    fn from_message(message: pb::SchemaChange) -> Result<Self, DecodeError> {
        use pb::schema_change as change;
        use pb::schema_change::Kind;
        Ok(match required("kind", message.kind)? {
            Kind::CreateTable(change::CreateTable { table, sequences }) => SchemaChange::CreateTable {
                table: one("create_table.table", table)?,
                sequences: each("create_table.sequences", sequences)?,
            },
            Kind::ReplaceTable(change::ReplaceTable { table, sequences, fill_columns, fill_values }) => {
                let values = required("replace_table.fill_values", fill_values)?;
                let values = unlist("replace_table.fill_values", values)?;
                if values.len() != fill_columns.len() {
                    return Err(DecodeError::new("replace_table.fill_values", "not one for each column"));
                }
                SchemaChange::ReplaceTable {
                    table: one("replace_table.table", table)?,
                    sequences: each("replace_table.sequences", sequences)?,
                    fill: fill_columns.into_iter().map(ColumnId).zip(values).collect(),
                }
            }
            Kind::DropTables(change::Tables { ids }) => {
                SchemaChange::DropTables(tables("drop_tables.ids", ids)?)
            }
            Kind::Truncate(change::Truncate { tables: ids, restart_identity }) => {
                SchemaChange::Truncate { tables: tables("truncate.tables", ids)?, restart_identity }
            }
            Kind::CreateSequence(sequence) => {
                SchemaChange::CreateSequence(super::inner("create_sequence", sequence)?)
            }
            Kind::ReplaceSequence(change::ReplaceSequence { sequence, restart }) => {
                SchemaChange::ReplaceSequence {
                    sequence: one("replace_sequence.sequence", sequence)?,
                    restart,
                }
            }
            Kind::DropSequences(change::Sequences { ids }) => SchemaChange::DropSequences(
                ids.into_iter()
                    .map(|sequence| Ok(SequenceId(id("drop_sequences.ids", sequence)?)))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }
}

fn table_numbers(tables: &[TableId]) -> Vec<u32> {
    tables.iter().map(|table| table.0).collect()
}

impl Convert for SchemaChangeRequest {
    type Message = pb::SchemaChangeRequest;
    const NAME: &'static str = "schema_change_request";

    fn to_message(&self) -> pb::SchemaChangeRequest {
        let SchemaChangeRequest { request, planned_by, change } = self;
        pb::SchemaChangeRequest {
            request: Some(request.to_message()),
            planned_by: planned_by.0,
            change: Some(change.to_message()),
        }
    }

    fn from_message(message: pb::SchemaChangeRequest) -> Result<Self, DecodeError> {
        let pb::SchemaChangeRequest { request, planned_by, change } = message;
        Ok(SchemaChangeRequest {
            request: one("request", request)?,
            planned_by: SchemaVersion(planned_by),
            change: one("change", change)?,
        })
    }
}

impl Convert for SequenceBlock {
    type Message = pb::SequenceBlock;
    const NAME: &'static str = "block";

    fn to_message(&self) -> pb::SequenceBlock {
        let SequenceBlock { first, increment, count } = *self;
        pb::SequenceBlock { first, increment, count }
    }

    fn from_message(message: pb::SequenceBlock) -> Result<Self, DecodeError> {
        let pb::SequenceBlock { first, increment, count } = message;
        Ok(SequenceBlock { first, increment: id("increment", increment)?, count })
    }
}

impl Convert for CreateKeyspace {
    type Message = pb::CreateKeyspace;
    const NAME: &'static str = "create_keyspace";

    fn to_message(&self) -> pb::CreateKeyspace {
        let CreateKeyspace { name, sharding, shards, replicas } = self;
        pb::CreateKeyspace {
            name: name.clone(),
            sharding: sharding_number(*sharding),
            shards: *shards,
            replicas: *replicas,
        }
    }

    fn from_message(message: pb::CreateKeyspace) -> Result<Self, DecodeError> {
        let pb::CreateKeyspace { name, sharding: how, shards, replicas } = message;
        Ok(CreateKeyspace { name, sharding: sharding(how)?, shards, replicas })
    }
}
