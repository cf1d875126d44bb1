//! Every type comes back as it went, and damaged bytes are errors.

#[cfg(feature = "transport")]
mod link;

use super::generated as pb;
use super::{Convert, DecodeError, Wire};
use crate::catalog::*;
use crate::layout::*;
use crate::services::*;
use crate::topology::*;
use crate::*;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// Encodes and decodes, then reads the bytes cut short at every place and with every byte changed.
fn check<T: Wire>(value: &T, same: impl Fn(&T, &T) -> bool) {
    let bytes = value.encode();
    let back = T::decode(&bytes).expect("its own bytes");
    assert!(same(value, &back));
    assert_eq!(back.encode(), bytes);
    for cut in 0..bytes.len() {
        let _ = T::decode(&bytes[..cut]);
    }
    let mut damaged = bytes.clone();
    for at in 0..bytes.len() {
        for mask in [0x01, 0x02, 0x08, 0x80, 0xff] {
            damaged[at] = bytes[at] ^ mask;
            // Damage that reads as another value must at least read as a sound one.
            if let Ok(other) = T::decode(&damaged) {
                other.encode();
            }
        }
        damaged[at] = bytes[at];
    }
}

fn check_equal<T: Wire + PartialEq + Debug>(value: T) {
    check(&value, |a, b| {
        assert_eq!(a, b);
        true
    });
}

fn error<T: Convert + Debug>(message: &T::Message) -> DecodeError {
    T::decode(&prost::Message::encode_to_vec(message)).unwrap_err()
}

fn sequence() -> Sequence {
    Sequence {
        id: SequenceId(16390),
        name: "t_id_seq".into(),
        ty: TypeRef { oid: 20, modifier: -1 },
        start: 5,
        increment: -3,
        min: i64::MIN,
        max: i64::MAX,
        cycle: true,
        cache: 7,
        owner: Some((TableId(16384), ColumnId(2))),
        hidden: true,
    }
}

fn table() -> Table {
    let default = ColumnDefault::Sequence { id: SequenceId(16390), identity_always: Some(false) };
    let serial = ColumnDefault::Sequence { id: SequenceId(1), identity_always: None };
    let expression = ColumnDefault::Expression("'é'::text".into());
    let column = |id, default: Option<ColumnDefault>| Column {
        id: ColumnId(id),
        name: format!("column {id}"),
        ty: TypeRef { oid: 1700, modifier: 655_366 },
        not_null: id == 1,
        default,
    };
    Table {
        id: TableId(16384),
        name: "t".into(),
        columns: vec![
            column(1, Some(default)),
            column(2, Some(expression)),
            column(3, None),
            column(0, Some(serial)),
        ],
        primary_key: vec![ColumnId(1), ColumnId(0)],
        primary_key_name: Some("t_pkey".into()),
        indexes: vec![Index {
            id: IndexId(16385),
            name: "t_i".into(),
            columns: vec![
                IndexColumn { column: ColumnId(2), descending: true, nulls_first: false },
                IndexColumn { column: ColumnId(1), descending: false, nulls_first: true },
            ],
            unique: true,
            constraint: true,
        }],
        checks: vec![Check { name: "c".into(), expression: "a > 0".into(), physical: "c1 > 0".into() }],
        placement: Placement::Sharded { keyspace: KeyspaceNumber(3), key: vec![ColumnId(1)] },
        next_column: ColumnId(4),
        modified: SchemaVersion(12),
    }
}

fn topology() -> Topology {
    let mut topology = Topology { epoch: Epoch(8), ..Topology::default() };
    for (id, roles) in [
        (1, Roles::ALL),
        (2, Roles { router: true, shardnode: false, coordinator: false }),
        (3, Roles { router: false, shardnode: true, coordinator: false }),
    ] {
        let id = NodeId(id);
        let (address, zone) = (format!("10.0.0.{id}:5434"), format!("zone {id}"));
        topology.nodes.insert(id, Node { id, address, roles, zone, draining: id.0 == 2 });
    }
    let mut shards = Vec::new();
    for (i, range) in KeyRange::split_evenly(3).into_iter().enumerate() {
        let id = ShardId(i as u64 + 1);
        let replicas = vec![NodeId(1), NodeId(3)];
        shards.push(id);
        topology.shards.insert(
            id,
            Shard {
                id,
                keyspace: KeyspaceNumber(1),
                range,
                incarnation: Incarnation(2),
                group: GroupId(id.0 + 1),
                replicas,
                formed: i == 1,
                first: LogIndex(9 * i as u64),
            },
        );
    }
    for (number, sharding) in [(1, Sharding::Hash), (2, Sharding::Range), (3, Sharding::Single)] {
        let number = KeyspaceNumber(number);
        let (name, shards) = (format!("k{number}"), shards.clone());
        let auto = (sharding == Sharding::Hash).then_some(AutoSplit { size: 10 << 30, shards: 64 });
        topology.keyspaces.insert(number, Keyspace { number, name, sharding, replicas: 3, shards, auto });
    }
    let source = |range, incarnation| gtid::GtidSource {
        keyspace: "main".into(),
        shard: KeyRange::parse(range).unwrap(),
        incarnation: Incarnation(incarnation),
    };
    topology.joining = vec![(GroupId(2), NodeId(2)), (GroupId(1), NodeId(2))];
    topology.coordinators = vec![NodeId(1), NodeId(3)];
    let successors = vec![(ShardId(2), LogIndex(5)), (ShardId(3), LogIndex(u64::MAX))];
    let retired = Retired { shard: ShardId(1), last: LogIndex(77), successors };
    topology.lineage.insert(source("-80", 1), retired);
    let flow =
        |source, target| Flow { source: ShardId(source), target: ShardId(target), references: source == 1 };
    let build = Build { node: NodeId(3), tries: 2, groups: vec![GroupId(8), GroupId(9)] };
    let reshard = |id, build, flows, gate| Reshard { id: ReshardId(id), build, flows, gate };
    topology.reshards = vec![
        reshard(7, Some(build), Vec::new(), None),
        reshard(8, None, vec![flow(1, 3), flow(2, 3)], Some(Attempt(4))),
    ];
    topology
}

fn state() -> ClusterState {
    let mut leaders = Leaders::default();
    leaders.learn(GroupId(1), Term(4), NodeId(3));
    leaders.learn(GroupId(2), Term(1), NodeId(1));
    let catalog = Catalog::new(SchemaVersion(12), [Arc::new(table())], [Arc::new(sequence())]);
    let catalog = catalog.with_roles([None, Some("shoal".into())].map(|role| Arc::new(role_settings(role))));
    ClusterState { topology: Arc::new(topology()), leaders: Arc::new(leaders), catalog: Arc::new(catalog) }
}

fn role_settings(role: Option<String>) -> RoleSettings {
    RoleSettings { role, settings: vec![("b".into(), "1".into()), ("a".into(), String::new())] }
}

fn statuses() -> Vec<ReplicaStatus> {
    let hold = |i| LogHold { name: format!("stream {i}"), from: LogIndex(i), bytes: i << 40 };
    let roles = [ReplicaRole::Leader, ReplicaRole::Follower, ReplicaRole::Candidate, ReplicaRole::Learner];
    let status = |(i, role): (u64, _)| ReplicaStatus {
        node: NodeId(i + 1),
        group: GroupId(4),
        role,
        term: Term(9),
        leader: (i % 2 == 0).then_some(NodeId(2)),
        applied: LogIndex(77),
        committed: LogIndex(78 + i),
        behind: Duration::from_micros(1500 * i),
        stopped: (i == 1).then(|| "disk full".to_owned()),
        members: members(),
        last: LogIndex(80 + i),
        lag: (0..i).map(|other| (NodeId(other + 5), LogIndex(other))).collect(),
        holds: (0..i).map(hold).collect(),
        wal_bytes: i << 20,
        check: (i == 2).then_some(TableHash { index: LogIndex(70), hash: u128::MAX - 5 }),
        image: (i == 3).then_some(Progress { done: 5, total: 9 }),
        bytes: i << 30,
        writes: i * 1_000,
        reads: i + 3,
    };
    (0u64..).zip(roles).map(status).collect()
}

fn members() -> Members {
    Members { voters: vec![NodeId(1), NodeId(2)], learners: vec![NodeId(7)], joint: true }
}

fn values() -> Vec<Value> {
    vec![
        Value::Null,
        Value::Int(-70_000),
        Value::Real(1.5),
        Value::Text("é".into()),
        Value::Blob(vec![0, 255]),
    ]
}

#[test]
fn the_catalog_comes_back() {
    check_equal(table());
    check_equal(Table { placement: Placement::Reference, primary_key_name: None, ..table() });
    check_equal(Table { placement: Placement::Single { keyspace: KeyspaceNumber(0) }, ..table() });
    check_equal(sequence());
    check_equal(Sequence { owner: None, hidden: false, cycle: false, ..sequence() });
    check_equal(role_settings(None));
    check_equal(role_settings(Some("shoal".into())));
}

#[test]
fn the_topology_comes_back() {
    check_equal(topology());
    for shard in topology().shards.into_values() {
        check_equal(shard);
    }
    for keyspace in topology().keyspaces.into_values() {
        check_equal(keyspace);
    }
    for node in topology().nodes.into_values() {
        check_equal(node);
    }
    check_equal(state().leaders.as_ref().clone());
    check_equal(KeyRange::parse("80-c0").unwrap());
}

/// As an older version wrote it, word for word.
#[test]
fn what_an_older_version_has_written_is_read() {
    let shard = [
        8, 1, 16, 1, 26, 3, 18, 1, 128, 32, 2, 40, 2, 50, 2, 1, 3, 56,
        1, // -80 in incarnation 2, on nodes 1 and 3
    ];
    let shard = Shard::decode(&shard).unwrap();
    assert_eq!((shard.group, shard.replicas.len(), shard.formed), (GroupId(2), 2, true));
    assert_eq!(shard.first, LogIndex(0));
    let node = Node::decode(&[8, 3, 18, 3, b'h', b':', b'1', 32, 1]).unwrap();
    assert_eq!((node.address.as_str(), node.roles.shardnode, node.draining), ("h:1", true, false));
    let topology = Topology::decode(&[8, 9]).unwrap();
    assert_eq!(topology, Topology { epoch: Epoch(9), ..Topology::default() });
}

#[test]
fn reshards_come_back() {
    let (request, timeout) =
        (RequestId { router: RouterIncarnation(7), sequence: 1 }, Duration::from_millis(3));
    let hand_over = |attempt, action| HandOver {
        shard: ShardId(3),
        reshard: ReshardId(7),
        attempt: Attempt(attempt),
        action,
        timeout,
    };
    let drain = Duration::from_secs(2);
    check_equal(hand_over(2, HandOverAction::Clear { drain }));
    check_equal(hand_over(2, HandOverAction::Seal { drain, cleared: false }));
    check_equal(hand_over(2, HandOverAction::Seal { drain, cleared: true }));
    check_equal(hand_over(2, HandOverAction::Unseal));
    check_equal(hand_over(2, HandOverAction::Reached));
    check_equal(hand_over(0, HandOverAction::Flows));
    let wrong = error::<HandOver>(&hand_over(0, HandOverAction::Unseal).to_message());
    assert_eq!(wrong.to_string(), "malformed hand_over.attempt: it is missing");

    let build = |action| BuildRequest { reshard: ReshardId(7), tries: 2, action, timeout };
    let (shard, group) = (ShardId(3), GroupId(4));
    let copy = |sources| {
        let targets = vec![BuildTarget { shard, group, range: KeyRange { start: vec![1], end: None } }];
        build(BuildAction::Copy { sources, targets, rests: true, rate: 9 })
    };
    check_equal(build(BuildAction::Image { shard, group, after: LogIndex(5) }));
    check_equal(copy(vec![ShardId(1), ShardId(2)]));
    check_equal(build(BuildAction::Found { shard, group }));
    check_equal(build(BuildAction::Discard));
    let wrong = error::<BuildRequest>(&copy(vec![]).to_message());
    assert_eq!(wrong.to_string(), "malformed build.copy: it has no shards");
    let progress = |done| Progress { done, total: 2 * done };
    let copying = BuildProgress { images: progress(1), rows: 3, bytes: progress(5) };
    for built in [
        Built::Begun(LogIndex(9)),
        Built::Copying(copying),
        Built::Copied,
        Built::DiskFull("/data/builds/7-1".into()),
        Built::Lost("an image".into()),
        Built::Founded,
        Built::Discarded,
    ] {
        check_equal(built);
    }

    let hindrance =
        |cause| Hindrance { transaction: transaction(), cause, since: Duration::from_millis(180_001) };
    let flow = |obstacle| FlowStatus {
        source: ShardId(1),
        position: LogIndex(70),
        committed: LogIndex(80),
        lag: Duration::from_millis(90),
        lag_bytes: 4096,
        obstacle,
    };
    let sources = vec![(ShardId(1), LogIndex(81)), (ShardId(2), LogIndex(91))];
    for outcome in [
        HandedOver::Clear,
        HandedOver::Sealed { ended: 2 },
        HandedOver::InTheWay(vec![hindrance(HindranceCause::Busy), hindrance(HindranceCause::Staged)]),
        HandedOver::Unsealed,
        HandedOver::Reached(Reached { first: LogIndex(5), sources }),
        HandedOver::Flows(vec![
            flow(None),
            flow(Some(FlowObstacle::Forgotten)),
            flow(Some(FlowObstacle::Differs("t5".into()))),
        ]),
    ] {
        check_equal(outcome);
    }

    let options = ReshardOptions {
        auto: true,
        verify: false,
        rate: 1 << 26,
        drain: Duration::from_secs(1),
        keep: None,
        builder: Some(NodeId(2)),
        nodes: vec![NodeId(2), NodeId(3)],
    };
    for (course, options) in [
        (ReshardCourse::Split { shard: "main/-80".into(), at: SplitAt::Evenly(2) }, options),
        (
            ReshardCourse::Split {
                shard: "t/-".into(),
                at: SplitAt::Bounds(vec![vec![0x10, 5], vec![0x20]]),
            },
            ReshardOptions::default(),
        ),
        (
            ReshardCourse::Merge { shards: vec!["main/-80".into(), "main/80-".into()] },
            ReshardOptions::default(),
        ),
    ] {
        check_equal(ReshardWish { request, course, options, dry_run: true });
    }
    for middle in [None, Some(vec![0x40])] {
        let over = Duration::from_secs(300);
        let growth = middle.as_ref().map(|_| Growth { over, added: 5, past: 4 });
        let tables = vec![TableTally { table: TableId(16384), rows: 7, bytes: 70, middle, growth }];
        let counted = Counted { age: Duration::from_secs(9), took: Duration::from_secs(2), tables };
        check_equal(ShardTally { shard: ShardId(3), counted: counted.clone() });
        check_equal(Tally { counted: Some(counted), counting: None });
        check_equal(Tally { counted: None, counting: Some(8) });
    }
    check_equal(TallyRequest { shard: ShardId(3), within: Duration::from_secs(1), rate: 1 << 24 });
    for (size, shards) in [(None, Some(3)), (Some(0), None)] {
        let (keyspace, auto) = ("main".to_owned(), Some(AutoChange { size, shards }));
        check_equal(AutoWish { request, keyspace: keyspace.clone(), auto });
        check_equal(AutoWish { request, keyspace, auto: None });
    }
    let shard = || "main/-80".to_owned();
    for remedy in [
        None,
        Some(Remedy::Split { shard: shard(), parts: None }),
        Some(Remedy::Split { shard: shard(), parts: Some(3) }),
        Some(Remedy::Merge { shards: vec![shard(), "main/80-".into()] }),
        Some(Remedy::Move { shard: shard(), from: NodeId(1), to: NodeId(2) }),
        Some(Remedy::Lead { shard: shard(), node: NodeId(3) }),
        Some(Remedy::Drain(NodeId(4))),
    ] {
        check_equal(Advice { why: "so".into(), remedy });
    }
    for course in [None, Some(7)] {
        let (from, to) = (vec![NodeId(1), NodeId(2)], vec![NodeId(1), NodeId(3)]);
        let moves = course.map(|_| PlannedMove { group: GroupId(4), from, to });
        check_equal(CoursePlan { course, what: "move".into(), moves });
    }
    for reshard in [None, Some(ReshardId(7))] {
        let shards = vec![("main/-40".into(), vec![NodeId(1), NodeId(2)]), ("main/40-80".into(), vec![])];
        check_equal(ReshardPlan { reshard, what: "split".into(), builder: NodeId(2), shards });
    }
    for command in [
        ReshardCommand::Switch,
        ReshardCommand::Reverse,
        ReshardCommand::Complete,
        ReshardCommand::Cancel,
        ReshardCommand::Pause,
        ReshardCommand::Resume,
        ReshardCommand::Verify,
    ] {
        check_equal(command);
    }
    for phase in ReshardPhase::ALL {
        let status = ReshardStatus {
            id: ReshardId(7),
            what: "split".into(),
            keyspace: "main".into(),
            phase,
            attempt: Attempt(0),
            old: vec!["main/-80".into()],
            new: vec!["main/-40".into(), "main/40-80".into()],
            wanted: true,
            bytes: Some(Progress { done: 5, total: 9 }),
            rows: Some(3),
            lag: Some(Duration::from_millis(12)),
            paused: Some("by an admin".into()),
            failed: Some("it was cancelled".into()),
            message: "attempt 1 was given up".into(),
            switches: 2,
            ended: 1,
            pause: Some(Duration::from_millis(38)),
            completes_in: Some(Duration::from_secs(3600)),
            since: Duration::from_secs(240),
        };
        check_equal(ReshardStatus { bytes: None, lag: None, paused: None, ..status.clone() });
        check_equal(ReshardStatus { rows: None, failed: None, pause: None, ..status.clone() });
        check_equal(ReshardStatus { wanted: false, completes_in: None, ..status.clone() });
        check_equal(status);
    }
    assert_eq!(ReshardPhase::numbered(0), None);
}

#[test]
fn states_come_back() {
    check(&state(), |a, b| {
        assert_eq!(a.topology, b.topology);
        assert_eq!(a.leaders, b.leaders);
        assert_eq!(a.catalog.version(), b.catalog.version());
        assert_eq!(b.catalog.table_named("t"), Some(&Arc::new(table())));
        assert!(a.catalog.roles().count() == 2 && a.catalog.roles().eq(b.catalog.roles()));
        b.catalog.sequence(SequenceId(16390)) == Some(&Arc::new(sequence()))
    });
    let status = ClusterStatus {
        state: state(),
        replicas: statuses(),
        heard: vec![(NodeId(3), Duration::from_millis(1500))],
        jobs: vec![JobStatus { id: 4, what: "move".into(), progress: "half".into() }],
        alarms: vec![Alarm { group: GroupId(2), node: NodeId(3), message: "diverged".into() }],
        loads: vec![GroupLoad { group: GroupId(2), writes_per_second: 0.5, reads_per_second: 7.0 }],
    };
    check(&status, |a, b| {
        assert_eq!((&a.heard, &a.jobs, &a.alarms), (&b.heard, &b.jobs, &b.alarms));
        assert_eq!(a.loads, b.loads);
        a.replicas == b.replicas
    });
    statuses().into_iter().for_each(check_equal);
    check_equal(ReplicaStatus::new(NodeId(1), GroupId(2)));
    check_equal(members());
}

#[test]
fn changes_of_replicas_and_nodes_come_back() {
    let request = RequestId { router: RouterIncarnation(7), sequence: 1 };
    let (from, to) = (NodeId(1), NodeId(2));
    for (target, action) in [
        (ReplicaTarget::Shard("main/-80".into()), ReplicaAction::Add(to)),
        (ReplicaTarget::Group(GroupId::COORDINATOR), ReplicaAction::Remove(from)),
        (ReplicaTarget::Group(GroupId(2)), ReplicaAction::Move { from, to }),
        (ReplicaTarget::Group(GroupId(2)), ReplicaAction::Rebuild(to)),
        (ReplicaTarget::Group(GroupId(2)), ReplicaAction::TransferLeader(to)),
    ] {
        check_equal(ReplicaChange { request, target, action });
    }
    let roles = Roles { router: true, shardnode: false, coordinator: true };
    check_equal(NodeJoin { request, address: "10.0.0.1:5434".into(), roles, zone: "east".into() });
    let coordinators = topology().nodes.into_values().collect();
    check_equal(Joined { cluster: ClusterId(u128::MAX - 1), node: NodeId(9), coordinators });
}

#[test]
fn errors_come_back() {
    let retries = [
        Retry::Never,
        Retry::NotLeader(None),
        Retry::NotLeader(Some(NodeId(3))),
        Retry::StaleEpoch(Epoch(4)),
        Retry::StaleSchema(SchemaVersion(5)),
        Retry::Later,
        Retry::Behind(LogIndex(7)),
        Retry::Unknown,
    ];
    for retry in retries {
        let error = WireError::new(SqlState::UNIQUE_VIOLATION, "duplicate key").with_retry(retry);
        check_equal(error.clone());
        let error = error.with_hint("hint").with_detail("detail").at(7);
        check_equal(WireError { state: Some(Box::new((ShardId(8), LogIndex(9)))), ..error });
    }
    let (table, column) = (TableId(5), ColumnId(0));
    for violation in [
        Violation::NotNull(table, column),
        Violation::Unique(table, None),
        Violation::Unique(table, Some(IndexId(6))),
        Violation::Check(table, 3),
    ] {
        check_equal(WireError::internal("x").with_violation(violation));
    }
}

fn transaction() -> TransactionId {
    TransactionId { router: RouterIncarnation(u64::MAX), sequence: 4 }
}

#[test]
fn cuts_come_back() {
    let cut = CutId { router: RouterIncarnation(u64::MAX), sequence: 4 };
    for action in [
        CutAction::Open {
            schema_version: SchemaVersion(3),
            tables: vec![TableId(5)],
            scans: Some(2),
            after: LogIndex(8),
        },
        CutAction::Open { schema_version: SchemaVersion(0), tables: vec![], scans: None, after: LogIndex(0) },
        CutAction::Settle(vec![transaction(), transaction()]),
        CutAction::Close,
        CutAction::Release,
        CutAction::Drop,
    ] {
        let timeout = Duration::from_millis(3);
        check_equal(CutRequest { shard: ShardId(3), epoch: Epoch(4), cut, action, timeout });
    }
    check_equal(Unsettled { transaction: transaction(), participants: vec![ShardId(3), ShardId(4)] });
}

fn in_branch(access: BranchAccess) -> Access {
    let lock_timeout = Some(Duration::from_secs(3));
    Access::Branch {
        branch: Branch { transaction: transaction(), begun: 5, statement: 2, lock_timeout, alone: true },
        access,
    }
}

#[test]
fn transactions_come_back() {
    let request = RequestId { router: RouterIncarnation(1), sequence: 4 };
    for action in [
        BranchAction::RollbackTo(0),
        BranchAction::Commit { request, settled: 2 },
        BranchAction::Prepare { participants: vec![ShardId(3), ShardId(4)], parallel: false },
        BranchAction::Prepare { participants: vec![ShardId(3), ShardId(4)], parallel: true },
        BranchAction::Finish { commit: true, keep: true },
        BranchAction::Finish { commit: false, keep: false },
        BranchAction::Renounce,
        BranchAction::Forget(vec![transaction()]),
        BranchAction::Fail(WireError::internal("x")),
    ] {
        check_equal(BranchRequest {
            shard: ShardId(3),
            epoch: Epoch(4),
            on_behalf: matches!(action, BranchAction::Prepare { .. }).then_some(ShardId(2)),
            transaction: transaction(),
            action,
            timeout: Duration::from_millis(3),
        });
    }
    let status = BranchStatus {
        shard: ShardId(3),
        transaction: transaction(),
        begun: 9,
        prepared: None,
        votes: Vec::new(),
        parallel: false,
        committed: false,
        forsaken: false,
        idle: Duration::from_secs(2),
        waits_for: vec![transaction()],
    };
    check_equal(BranchStatus { prepared: Some(vec![ShardId(3)]), parallel: true, ..status.clone() });
    check_equal(BranchStatus { votes: vec![ShardId(4), ShardId(u64::MAX)], ..status.clone() });
    check_equal(BranchStatus { committed: true, ..status.clone() });
    check_equal(BranchStatus { forsaken: true, ..status.clone() });
    check_equal(status);
    let participants = vec![ShardId(3), ShardId(4)];
    for key in [None, Some("k".to_owned())] {
        let participants = participants.clone();
        let positions = vec![(ShardId(3), LogIndex(u64::MAX)), (ShardId(4), LogIndex(5))];
        check_equal(Decision { transaction: transaction(), participants, commit: true, key, positions });
    }
    for duplicate_of in [None, Some(transaction())] {
        check_equal(Verdict { committed: true, position: LogIndex(3), duplicate_of });
    }
    check_equal(Claim { transaction: transaction(), key: "k".into() });
    let positions = vec![(ShardId(3), LogIndex(5))];
    check_equal(Spent { transaction: transaction(), finished: true, positions: positions.clone() });
    check_equal(TransactionStatus {
        transaction: transaction(),
        participants,
        committed: false,
        finished: true,
        positions,
    });
    assert_eq!(transaction().to_string(), "ffffffffffffffff-4");
    assert_eq!("ffffffffffffffff-4".parse(), Ok(transaction()));
    for wrong in ["", "-", "1", "1-0", "1-+1", "1-2-3", "g-1", "10000000000000000-1"] {
        assert!(wrong.parse::<TransactionId>().is_err(), "{wrong}");
    }
}

#[test]
fn row_locks_conflict_as_in_postgresql() {
    use RowLock::*;
    let conflicts = [
        (KeyShare, [false, false, false, true]),
        (Share, [false, false, true, true]),
        (NoKeyUpdate, [false, true, true, true]),
        (Update, [true, true, true, true]),
    ];
    for (held, expected) in conflicts {
        assert_eq!([KeyShare, Share, NoKeyUpdate, Update].map(|asked| held.conflicts(asked)), expected);
    }
}

#[test]
fn fragments_come_back() {
    let mut rows = RowBatchBuilder::new(2);
    rows.push_row([ValueRef::Int(1), ValueRef::Text("a")]);
    rows.push_row([ValueRef::Null, ValueRef::Text("b")]);
    let rows = rows.finish();
    let request = RequestId { router: RouterIncarnation(u64::MAX), sequence: 4 };
    let read = |consistency| Access::Read { consistency, wait: Duration::from_millis(2), lookup: true };
    for access in [
        read(Consistency::Strong),
        read(Consistency::Session),
        read(Consistency::Bounded(Duration::from_millis(1500))),
        read(Consistency::Eventual),
        Access::Write { request, settled: 3, touch: u16::MAX, lock_timeout: Some(Duration::from_nanos(5)) },
        in_branch(BranchAccess::Read),
        in_branch(BranchAccess::Write { touch: 2 }),
        in_branch(BranchAccess::Move),
        in_branch(BranchAccess::Lock {
            rows: [
                LockedRows {
                    table: TableId(7),
                    key: 1,
                    mode: RowLock::NoKeyUpdate,
                    wait: LockWait::SkipLocked,
                },
                LockedRows { table: TableId(8), key: 0, mode: RowLock::KeyShare, wait: LockWait::Wait },
            ]
            .into(),
            limit: Some(u64::MAX),
            anew: true,
        }),
    ] {
        let fragment = FragmentRequest {
            shard: ShardId(4),
            epoch: Epoch(8),
            schema_version: SchemaVersion(12),
            sql: "SELECT ?1".into(),
            params: values(),
            rows: Some(rows.clone()),
            access,
            cut: None,
            floor: Floor { applied: LogIndex(6), settled: LogIndex(5) },
            timeout: Duration::from_micros(2_500_001),
        };
        check(&fragment, |a, b| {
            assert_eq!((a.shard, a.epoch, a.schema_version), (b.shard, b.epoch, b.schema_version));
            assert_eq!((&a.sql, &a.params, &a.rows), (&b.sql, &b.params, &b.rows));
            (&a.access, a.floor, a.timeout) == (&b.access, b.floor, b.timeout)
        });
    }
}

fn layout(place: Place) -> Layout {
    let columns = vec![LayoutColumn { id: ColumnId(0), ty: 20 }, LayoutColumn { id: ColumnId(3), ty: 1700 }];
    Layout { columns, primary_key: vec![1, 0], place }
}

#[test]
fn layouts_come_back_and_name_columns_that_are_there() {
    let sharded = |key| Place::Sharded(Sharding::Range, key);
    for place in [sharded(vec![1]), sharded(vec![0, 1]), Place::Single, Place::Reference] {
        check_equal(layout(place));
    }
    let problem = |layout: Layout| Layout::decode(&layout.encode()).unwrap_err().to_string();
    assert!(problem(layout(sharded(vec![2]))).contains("sharded.key: there is no column at 2"));
    assert!(problem(layout(sharded(vec![]))).contains("sharded.key: it is missing"));
    let keyed = |primary_key| Layout { primary_key, ..layout(sharded(vec![1])) };
    assert!(problem(keyed(vec![0])).contains("isn't one of the primary key"));
    assert!(problem(keyed(vec![1, 2])).contains("primary_key: there is no column at 2"));
}

#[test]
fn schema_changes_come_back() {
    check_equal(SchemaRequest {
        shard: ShardId(4),
        step: SchemaStep { job: 9, step: 2 },
        statements: vec!["CREATE TABLE t5 (c1)".into(), "DROP TABLE t4".into()],
        layouts: vec![
            TableLayout { table: TableId(4), layout: None },
            TableLayout { table: TableId(5), layout: Some(layout(Place::Single)) },
        ],
        least_version: Some(SchemaVersion(0)),
        require_empty: vec![TableId(4), TableId(5)],
    });
    let fill = (1..).map(ColumnId).zip(values()).collect();
    let tables = vec![TableId(16384), TableId(16385)];
    for change in [
        SchemaChange::CreateTable { table: table(), sequences: vec![sequence()] },
        SchemaChange::ReplaceTable { table: table(), sequences: vec![sequence(), sequence()], fill },
        SchemaChange::DropTables(tables.clone()),
        SchemaChange::Truncate { tables, restart_identity: true },
        SchemaChange::CreateSequence(sequence()),
        SchemaChange::ReplaceSequence { sequence: sequence(), restart: Some(-1) },
        SchemaChange::ReplaceSequence { sequence: sequence(), restart: None },
        SchemaChange::DropSequences(vec![SequenceId(16390)]),
        SchemaChange::AlterRole {
            role: None,
            change: RoleChange::Set { name: "a".into(), value: String::new() },
        },
        SchemaChange::AlterRole { role: Some("shoal".into()), change: RoleChange::Reset("a".into()) },
        SchemaChange::AlterRole { role: Some("shoal".into()), change: RoleChange::ResetAll },
    ] {
        let request = RequestId { router: RouterIncarnation(7), sequence: 1 };
        check_equal(SchemaChangeRequest { request, planned_by: SchemaVersion(3), change });
    }
    check_equal(SequenceBlock { first: -4, increment: -1, count: 32 });
    let request = RequestId { router: RouterIncarnation(7), sequence: 2 };
    let keyspace =
        CreateKeyspace { request, name: "k".into(), sharding: Sharding::Range, shards: 4, replicas: Some(0) };
    check_equal(CreateKeyspace { replicas: None, ..keyspace.clone() });
    check_equal(keyspace);
}

#[test]
fn what_is_wrong_is_named() {
    let mut message = topology().to_message();
    message.shards[1].range = Some(pb::KeyRange { start: vec![0x80].into(), end: Some(vec![0x40].into()) });
    let wrong = error::<Topology>(&message);
    assert_eq!(wrong.to_string(), "malformed topology.shards[1].range.end: it is not after the start");

    let mut message = topology().to_message();
    message.keyspaces[0].sharding = 9;
    assert_eq!(
        error::<Topology>(&message).to_string(),
        "malformed topology.keyspaces[0].sharding: unknown value 9"
    );

    let mut message = topology().to_message();
    message.nodes[2].id = 1;
    assert_eq!(error::<Topology>(&message).field(), "topology.nodes");

    let mut message = table().to_message();
    message.columns[2].r#type = None;
    assert_eq!(error::<Table>(&message).to_string(), "malformed table.columns[2].type: it is missing");
    message = table().to_message();
    message.placement = Some(pb::Placement { kind: None });
    assert_eq!(error::<Table>(&message).field(), "table.placement.kind");

    let mut message = state().catalog.to_message();
    message.roles[1].role = None;
    assert_eq!(error::<Catalog>(&message).field(), "catalog.roles");
    let mut message = role_settings(None).to_message();
    message.settings[1].name = "b".into();
    assert_eq!(
        error::<RoleSettings>(&message).to_string(),
        "malformed role_settings.settings: b comes up twice"
    );

    let mut message = WireError::internal("x").to_message();
    message.sqlstate = "xx0".into();
    assert_eq!(error::<WireError>(&message).field(), "error.sqlstate");

    let bad = pb::RowBatch { columns: 70_000, rows: 1, data: Default::default() };
    assert_eq!(error::<RowBatch>(&bad).field(), "rows.columns");
    let bad = pb::RowBatch { columns: 1, rows: 1, data: vec![0x10, 1, 0xff].into() };
    assert_eq!(error::<RowBatch>(&bad).field(), "rows.data");

    assert_eq!(error::<Shard>(&pb::Shard { id: 0, ..Default::default() }).field(), "shard.id");
    assert!(Table::decode(&[0xff; 20]).unwrap_err().to_string().starts_with("malformed table: "));
}
