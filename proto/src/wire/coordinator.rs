//! The coordinator service's requests and responses as messages.

use super::catalog::setting;
use super::generated as pb;
use super::replica::{wide, wide_bytes};
use super::shard::{nanos, tables};
use super::topology::{node_numbers, nodes, sharding, sharding_number};
use super::values::{list, unlist};
use super::{Convert, DecodeError, each, id, maybe, messages, one, required};
use crate::catalog::RoleChange;
use crate::ids::{ClusterId, ColumnId, GroupId, NodeId, SchemaVersion, SequenceId, TableId};
use crate::services::{
    Alarm, AutoChange, AutoWish, ClusterState, ClusterStatus, Course, CoursePlan, CourseWish, CreateKeyspace,
    GroupLoad, JobStatus, Joined, NodeJoin, PlannedMove, ReplicaAction, ReplicaChange, ReplicaTarget,
    SchemaChange, SchemaChangeRequest, SequenceBlock,
};
use crate::topology::Roles;
use std::sync::Arc;
use std::time::Duration;

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
        let ClusterStatus { state, replicas, heard, jobs, alarms, loads } = self;
        let ago = |(node, ago): &(NodeId, Duration)| pb::Heard { node: node.0, ago: nanos(*ago) };
        pb::ClusterStatus {
            state: Some(state.to_message()),
            replicas: messages(replicas),
            heard: heard.iter().map(ago).collect(),
            jobs: messages(jobs),
            alarms: messages(alarms),
            loads: messages(loads),
        }
    }

    fn from_message(message: pb::ClusterStatus) -> Result<Self, DecodeError> {
        let pb::ClusterStatus { state, replicas, heard, jobs, alarms, loads } = message;
        let ago = |pb::Heard { node, ago }| Ok((NodeId(id("heard.node", node)?), Duration::from_nanos(ago)));
        Ok(ClusterStatus {
            state: one("state", state)?,
            replicas: each("replicas", replicas)?,
            heard: heard.into_iter().map(ago).collect::<Result<_, _>>()?,
            jobs: each("jobs", jobs)?,
            alarms: each("alarms", alarms)?,
            loads: each("loads", loads)?,
        })
    }
}

impl Convert for GroupLoad {
    type Message = pb::GroupLoad;
    const NAME: &'static str = "load";

    fn to_message(&self) -> pb::GroupLoad {
        let GroupLoad { group, writes_per_second, reads_per_second } = *self;
        pb::GroupLoad { group: group.0, writes_per_second, reads_per_second }
    }

    fn from_message(message: pb::GroupLoad) -> Result<Self, DecodeError> {
        let pb::GroupLoad { group, writes_per_second, reads_per_second } = message;
        Ok(GroupLoad { group: GroupId(id("group", group)?), writes_per_second, reads_per_second })
    }
}

impl Convert for JobStatus {
    type Message = pb::JobStatus;
    const NAME: &'static str = "job";

    fn to_message(&self) -> pb::JobStatus {
        let JobStatus { id, what, progress } = self;
        pb::JobStatus { id: *id, what: what.clone(), progress: progress.clone() }
    }

    fn from_message(message: pb::JobStatus) -> Result<Self, DecodeError> {
        let pb::JobStatus { id, what, progress } = message;
        Ok(JobStatus { id, what, progress })
    }
}

impl Convert for Alarm {
    type Message = pb::Alarm;
    const NAME: &'static str = "alarm";

    fn to_message(&self) -> pb::Alarm {
        let Alarm { group, node, message } = self;
        pb::Alarm { group: group.0, node: node.0, message: message.clone() }
    }

    fn from_message(message: pb::Alarm) -> Result<Self, DecodeError> {
        let pb::Alarm { group, node, message } = message;
        Ok(Alarm { group: GroupId(id("group", group)?), node: NodeId(id("node", node)?), message })
    }
}

impl Convert for NodeJoin {
    type Message = pb::NodeJoin;
    const NAME: &'static str = "join";

    fn to_message(&self) -> pb::NodeJoin {
        let NodeJoin { request, address, roles: Roles { router, shardnode, coordinator }, zone } = self;
        pb::NodeJoin {
            request: Some(request.to_message()),
            address: address.clone(),
            router: *router,
            shardnode: *shardnode,
            coordinator: *coordinator,
            zone: zone.clone(),
        }
    }

    fn from_message(message: pb::NodeJoin) -> Result<Self, DecodeError> {
        let pb::NodeJoin { request, address, router, shardnode, coordinator, zone } = message;
        let roles = Roles { router, shardnode, coordinator };
        Ok(NodeJoin { request: one("request", request)?, address, roles, zone })
    }
}

impl Convert for Joined {
    type Message = pb::Joined;
    const NAME: &'static str = "joined";

    fn to_message(&self) -> pb::Joined {
        let Joined { cluster, node, coordinators } = self;
        pb::Joined { cluster: wide_bytes(cluster.0), node: node.0, coordinators: messages(coordinators) }
    }

    fn from_message(message: pb::Joined) -> Result<Self, DecodeError> {
        let pb::Joined { cluster, node, coordinators } = message;
        Ok(Joined {
            cluster: ClusterId(wide("cluster", &cluster)?),
            node: NodeId(id("node", node)?),
            coordinators: each("coordinators", coordinators)?,
        })
    }
}

impl Convert for CourseWish {
    type Message = pb::CourseWish;
    const NAME: &'static str = "course_wish";

    fn to_message(&self) -> pb::CourseWish {
        use pb::course_wish as wish;
        let course = match &self.course {
            Course::Move { shard, from, to } => wish::Course::Move(wish::Move {
                shard: shard.clone(),
                to: node_numbers(to),
                from: from.map(|node| node.0),
            }),
            Course::Count { keyspace, replicas } => {
                wish::Course::Count(wish::Count { keyspace: keyspace.clone(), replicas: *replicas })
            }
            Course::Drain(node) => wish::Course::Drain(node.0),
            Course::Undrain(node) => wish::Course::Undrain(node.0),
            Course::Remove(node) => wish::Course::Remove(node.0),
            Course::Stop(course) => wish::Course::Stop(*course),
        };
        let request = Some(self.request.to_message());
        pb::CourseWish { request, course: Some(course), dry_run: self.dry_run }
    }

    fn from_message(message: pb::CourseWish) -> Result<Self, DecodeError> {
        use pb::course_wish as wish;
        let pb::CourseWish { request, course, dry_run } = message;
        let node = |field, node| Ok(NodeId(id(field, node)?));
        Ok(CourseWish {
            request: one("request", request)?,
            course: match required("course", course)? {
                wish::Course::Move(wish::Move { shard, to, from }) => {
                    let from = from.map(|from| node("move.from", from)).transpose()?;
                    Course::Move { shard, from, to: nodes("move.to", to)? }
                }
                wish::Course::Count(wish::Count { keyspace, replicas }) => {
                    Course::Count { keyspace, replicas }
                }
                wish::Course::Drain(on) => Course::Drain(node("drain", on)?),
                wish::Course::Undrain(on) => Course::Undrain(node("undrain", on)?),
                wish::Course::Remove(gone) => Course::Remove(node("remove", gone)?),
                wish::Course::Stop(course) => Course::Stop(course),
            },
            dry_run,
        })
    }
}

impl Convert for AutoWish {
    type Message = pb::AutoWish;
    const NAME: &'static str = "auto_wish";

    fn to_message(&self) -> pb::AutoWish {
        let AutoWish { request, keyspace, auto } = self;
        let auto = auto.map(|AutoChange { size, shards }| pb::auto_wish::Change { size, shards });
        pb::AutoWish { request: Some(request.to_message()), keyspace: keyspace.clone(), auto }
    }

    fn from_message(message: pb::AutoWish) -> Result<Self, DecodeError> {
        let pb::AutoWish { request, keyspace, auto } = message;
        let auto = auto.map(|pb::auto_wish::Change { size, shards }| AutoChange { size, shards });
        Ok(AutoWish { request: one("request", request)?, keyspace, auto })
    }
}

impl Convert for CoursePlan {
    type Message = pb::CoursePlan;
    const NAME: &'static str = "course_plan";

    fn to_message(&self) -> pb::CoursePlan {
        let CoursePlan { course, what, moves } = self;
        let moves = moves.as_ref().map(Convert::to_message);
        pb::CoursePlan { course: *course, what: what.clone(), moves }
    }

    fn from_message(message: pb::CoursePlan) -> Result<Self, DecodeError> {
        let pb::CoursePlan { course, what, moves } = message;
        Ok(CoursePlan { course, what, moves: maybe("moves", moves)? })
    }
}

impl Convert for PlannedMove {
    type Message = pb::course_plan::Move;
    const NAME: &'static str = "planned_move";

    fn to_message(&self) -> pb::course_plan::Move {
        let PlannedMove { group, from, to } = self;
        pb::course_plan::Move { group: group.0, from: node_numbers(from), to: node_numbers(to) }
    }

    fn from_message(message: pb::course_plan::Move) -> Result<Self, DecodeError> {
        let pb::course_plan::Move { group, from, to } = message;
        let group = GroupId(id("group", group)?);
        Ok(PlannedMove { group, from: nodes("from", from)?, to: nodes("to", to)? })
    }
}

impl Convert for ReplicaChange {
    type Message = pb::ReplicaChange;
    const NAME: &'static str = "replica_change";

    fn to_message(&self) -> pb::ReplicaChange {
        use pb::replica_change::{Action, Move, Target};
        let ReplicaChange { request, target, action } = self;
        let target = match target {
            ReplicaTarget::Shard(name) => Target::Shard(name.clone()),
            ReplicaTarget::Group(group) => Target::Group(group.0),
        };
        let action = match *action {
            ReplicaAction::Add(node) => Action::Add(node.0),
            ReplicaAction::Remove(node) => Action::Remove(node.0),
            ReplicaAction::Move { from, to } => Action::Move(Move { from: from.0, to: to.0 }),
            ReplicaAction::Rebuild(node) => Action::Rebuild(node.0),
            ReplicaAction::TransferLeader(node) => Action::TransferLeader(node.0),
        };
        pb::ReplicaChange { request: Some(request.to_message()), target: Some(target), action: Some(action) }
    }

    fn from_message(message: pb::ReplicaChange) -> Result<Self, DecodeError> {
        use pb::replica_change::{Action, Move, Target};
        let pb::ReplicaChange { request, target, action } = message;
        let node = |field, node| Ok(NodeId(id(field, node)?));
        Ok(ReplicaChange {
            request: one("request", request)?,
            target: match required("target", target)? {
                Target::Shard(name) => ReplicaTarget::Shard(name),
                Target::Group(group) => ReplicaTarget::Group(GroupId(id("group", group)?)),
            },
            action: match required("action", action)? {
                Action::Add(to) => ReplicaAction::Add(node("add", to)?),
                Action::Remove(from) => ReplicaAction::Remove(node("remove", from)?),
                Action::Move(Move { from, to }) => {
                    ReplicaAction::Move { from: node("move.from", from)?, to: node("move.to", to)? }
                }
                Action::Rebuild(on) => ReplicaAction::Rebuild(node("rebuild", on)?),
                Action::TransferLeader(to) => ReplicaAction::TransferLeader(node("transfer_leader", to)?),
            },
        })
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
            SchemaChange::AlterRole { role, change: what } => Kind::AlterRole(change::AlterRole {
                role: role.clone(),
                change: Some(match what {
                    RoleChange::Set { name, value } => change::alter_role::Change::Set(setting(name, value)),
                    RoleChange::Reset(name) => change::alter_role::Change::Reset(name.clone()),
                    RoleChange::ResetAll => change::alter_role::Change::ResetAll(true),
                }),
            }),
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
            Kind::AlterRole(change::AlterRole { role, change: what }) => SchemaChange::AlterRole {
                role: role.map(|role| id("alter_role.role", role)).transpose()?,
                change: match required("alter_role.change", what)? {
                    change::alter_role::Change::Set(pb::Setting { name, value }) => {
                        RoleChange::Set { name: id("alter_role.set.name", name)?, value }
                    }
                    change::alter_role::Change::Reset(name) => {
                        RoleChange::Reset(id("alter_role.reset", name)?)
                    }
                    change::alter_role::Change::ResetAll(_) => RoleChange::ResetAll,
                },
            },
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
        let CreateKeyspace { request, name, sharding, shards, replicas } = self;
        pb::CreateKeyspace {
            request: Some(request.to_message()),
            name: name.clone(),
            sharding: sharding_number(*sharding),
            shards: *shards,
            replicas: *replicas,
        }
    }

    fn from_message(message: pb::CreateKeyspace) -> Result<Self, DecodeError> {
        let pb::CreateKeyspace { request, name, sharding: how, shards, replicas } = message;
        Ok(CreateKeyspace {
            request: one("request", request)?,
            name,
            sharding: sharding(how)?,
            shards,
            replicas,
        })
    }
}
