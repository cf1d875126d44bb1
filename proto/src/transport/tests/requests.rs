//! Requests that go well, and what becomes of those that don't.

use super::*;
use crate::services::SchemaChange;

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_a_stream() {
    let node = Node::start().await;
    let client = node.client();
    let mut asking = Vec::new();
    for i in 0..3000i64 {
        let client = client.clone();
        asking.push(tokio::spawn(async move {
            // Some of them longer than a piece.
            let text = "é".repeat(if i % 100 == 0 { 100_000 } else { 1 });
            let params = vec![Value::Int(i), Value::Text(text)];
            let response = ask(&client, read("echo", params.clone())).await.unwrap();
            assert_eq!((response.affected, response.position), (3, LogIndex(9)));
            assert_eq!(rows(response).await.unwrap(), [params]);
        }));
    }
    for asked in asking {
        asked.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_result_that_nobody_reads_holds_up_nobody() {
    let mut node = Node::start().await;
    let client = node.client();
    let bytes = 50_000;
    let stream = ask(&client, read("stream", vec![Value::Int(400), Value::Int(bytes)])).await.unwrap();
    for i in 0..200 {
        rows(ask(&client, read("echo", vec![Value::Int(i)])).await.unwrap()).await.unwrap();
    }
    // What the client granted, and the one batch that waits for credit.
    let made = node.made.load(Ordering::SeqCst);
    assert!(made <= WINDOW / bytes as usize + 1, "{made} batches made");
    let numbers: Vec<_> = rows(stream).await.unwrap().into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(numbers, (0..400).map(Value::Int).collect::<Vec<_>>());
    assert_eq!(node.event().await, "dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn big_messages_travel_in_pieces() {
    let node = Node::start().await;
    let client = node.client();
    let blob = Value::Blob(vec![5; 10 << 20]);
    let response = ask(&client, read("echo", vec![blob.clone()])).await.unwrap();
    assert!(matches!(response.rows, RowSource::Whole(_)));
    assert_eq!(rows(response).await.unwrap(), [[blob]]);

    let error = fails(&client, write("echo", vec![Value::Blob(vec![5; MAX_MESSAGE])])).await;
    assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::PROGRAM_LIMIT_EXCEEDED, Retry::Never));

    // A result that is too big for one message, but not its rows.
    let response = ask(&client, read("many big", vec![Value::Int(7), Value::Int(10 << 20)])).await.unwrap();
    assert_eq!(rows(response).await.unwrap().len(), 7);
    let huge =
        ask(&client, read("many big", vec![Value::Int(2), Value::Int(MAX_MESSAGE as i64)])).await.unwrap();
    assert_eq!(rows(huge).await.unwrap_err().sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_arrive_as_they_were() {
    let node = Node::start().await;
    let client = node.client();
    let error = fails(&client, write("nonsense", vec![])).await;
    assert_eq!(error.retry, Retry::StaleEpoch(Epoch(7)));
    assert_eq!(error.violation, Some(Violation::Unique(TableId(4), None)));
    assert_eq!((error.hint.as_deref(), error.detail.as_deref()), (Some("hint"), Some("detail")));
    assert!(error.message.len() < 20_000, "texts are bounded");

    assert_eq!(fails(&client, write("panic", vec![])).await.retry, Retry::Unknown);
    assert_eq!(fails(&client, read("panic", vec![])).await.retry, Retry::Never);
    let broken = ask(&client, read("break", vec![])).await.unwrap();
    assert_eq!(rows(broken).await.unwrap_err().sqlstate, SqlState::DIVISION_BY_ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_future_or_a_stream_drops_what_runs_for_it() {
    let mut node = Node::start().await;
    let client = node.client();
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.execute(read("hang", vec![])).await.is_ok() }
    });
    assert_eq!(node.event().await, "hanging");
    asking.abort();
    assert_eq!(node.event().await, "dropped");

    let stream = ask(&client, read("stream", vec![Value::Int(i64::MAX), Value::Int(1000)])).await.unwrap();
    drop(stream);
    assert_eq!(node.event().await, "dropped");

    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.execute(read("hang", vec![])).await.is_ok() }
    });
    assert_eq!(node.event().await, "hanging");
    drop(client);
    asking.abort();
    assert_eq!(node.event().await, "dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_deadline_a_request_is_given_up() {
    let mut node = Node::start().await;
    let client = node.client();
    let timeout = Duration::from_millis(30);
    let requests = [
        (read("hang", vec![]), Retry::Never),
        (within("hang"), Retry::Never),
        (write("hang", vec![]), Retry::Unknown),
    ];
    for (request, retry) in requests {
        let error = fails(&client, FragmentRequest { timeout, ..request }).await;
        assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::QUERY_CANCELED, retry));
        assert_eq!(node.event().await, "hanging");
        assert_eq!(node.event().await, "dropped");
    }

    // A listener that never answers: the request is never sent.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = super::client(silent.local_addr().unwrap());
    let error = fails(&client, FragmentRequest { timeout, ..write("hang", vec![]) }).await;
    assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::CONNECTION_FAILURE, Retry::Later));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_ends_its_requests_and_the_next_one_connects_again() {
    let mut node = Node::start().await;
    let (client, address) = (node.client(), node.address);
    let ask_for = |request| {
        let client = client.clone();
        tokio::spawn(async move { fails(&client, request).await })
    };
    let (reading, writing) = (ask_for(read("hang", vec![])), ask_for(write("hang", vec![])));
    let in_branch = ask_for(within("hang"));
    for _ in 0..3 {
        assert_eq!(node.event().await, "hanging");
    }
    let stream = ask(&client, read("stream", vec![Value::Int(i64::MAX), Value::Int(1000)])).await.unwrap();
    let watched = soon(client.watch()).await.unwrap();
    node.stop().await;

    // What a branch's statement did stays there: it isn't as if it had never been sent.
    for (asked, retry) in [(reading, Retry::Later), (writing, Retry::Unknown), (in_branch, Retry::Unknown)] {
        let error = asked.await.unwrap();
        assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::CONNECTION_FAILURE, retry));
        assert!(error.message.contains("the node is shutting down"), "{error}");
    }
    assert_eq!(rows(stream).await.unwrap_err().retry, Retry::Later);
    assert!(soon(watched.collect::<Vec<_>>()).await.len() <= 1);
    let error = fails(&client, write("echo", vec![])).await;
    assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::CONNECTION_FAILURE, Retry::Later));

    let _node = Node::start_at(address).await;
    until_up(&client).await;
}

#[test]
fn a_killed_server_ends_the_requests() {
    let there = tokio::runtime::Runtime::new().unwrap();
    let here = tokio::runtime::Runtime::new().unwrap();
    let mut node = there.block_on(Node::start());
    let asked = here.spawn({
        let client = { here.block_on(async { node.client() }) };
        async move { fails(&client, write("hang", vec![])).await }
    });
    assert_eq!(here.block_on(node.event()), "hanging");
    there.shutdown_background();
    let error = here.block_on(asked).unwrap();
    assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::CONNECTION_FAILURE, Retry::Unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_request_crosses() {
    let node = Node::start().await;
    let client = node.client();
    let step = SchemaStep { job: 41, step: 1 };
    let (least_version, require_empty) = (None, vec![]);
    let request = SchemaRequest {
        shard: ShardId(1),
        step,
        statements: vec![],
        layouts: vec![],
        least_version,
        require_empty,
    };
    assert_eq!(soon(client.apply_schema(request)).await, Ok(LogIndex(41)));
    assert_eq!(soon(client.replicas()).await, Ok(vec![status()]));
    let finish = BranchRequest {
        shard: ShardId(1),
        epoch: Epoch(1),
        on_behalf: None,
        transaction: transaction(),
        action: BranchAction::Finish { commit: true, keep: false },
        timeout: HANG,
    };
    assert_eq!(soon(client.transact(finish)).await, Ok(LogIndex(7)));
    assert_eq!(soon(client.branches(ShardId(4))).await, Ok(vec![branch(ShardId(4))]));
    let drain = Duration::from_secs(2);
    for (action, outcome) in [
        (HandOverAction::Clear { drain }, HandedOver::Clear),
        (HandOverAction::Seal { drain, cleared: false }, HandedOver::Sealed { ended: 2 }),
        (HandOverAction::Unseal, HandedOver::Unsealed),
    ] {
        let (shard, reshard, attempt) = (ShardId(4), ReshardId(7), Attempt(1));
        let request = HandOver { shard, reshard, attempt, action, timeout: HANG };
        assert_eq!(soon(client.hand_over(request)).await, Ok(outcome));
    }
    let request = |sequence| RequestId { router: RouterIncarnation(1), sequence };
    let (reshard, action) = (ReshardId(7), BuildAction::Discard);
    let build = BuildRequest { reshard, tries: 2, action, timeout: Duration::from_secs(9) };
    assert_eq!(soon(client.build(build)).await.unwrap(), Built::Lost("Discard".into()));
    let (target, source, time) = (ShardId(4), ShardId(5), Duration::from_secs(1));
    let place = SumsPlace { table: TableId(3), key: Some(vec![Value::Int(7)]), schema: 1 };
    let (range, from) = (KeyRange::full(), Some(place.clone()));
    let (references, after) = (true, LogIndex(8));
    let sums = SumsRequest { shard: source, after, range, references, from, time, timeout: HANG };
    let sums: Vec<_> = soon(client.sums(sums)).await.unwrap().collect().await;
    let part = SumsPart { after: None, to: place.clone(), rows: 1, sum: 1 << 100 };
    assert_eq!(sums, [Ok(Sums::Open(after)), Ok(Sums::Part(part)), Ok(Sums::End)]);
    let compare = |from| CompareRequest { target, source, from, time, timeout: HANG };
    for (from, next) in [(None, ComparedNext::End), (Some(place.clone()), ComparedNext::From(place))] {
        let compared = Compared { position: LogIndex(5), rows: 7, next };
        assert_eq!(soon(client.compare(compare(from))).await, Ok(compared));
    }
    assert_eq!(soon(client.load()).await, Ok(Times::of([0, 3, 1])));
    let told = soon(client.outcome(ShardId(4), request(6))).await.unwrap().unwrap();
    assert_eq!((told.affected, told.position), (6, LogIndex(4)));
    assert!(matches!(told.rows, RowSource::Whole(rows) if rows == batch(6, 2)));
    assert!(soon(client.outcome(ShardId(4), request(1))).await.unwrap().is_none());
    let participants = vec![ShardId(3), ShardId(4)];
    let key = Some("k".to_owned());
    let positions = vec![];
    let decision = Decision { transaction: transaction(), participants, commit: true, key, positions };
    let verdict = Verdict { committed: true, position: LogIndex(3), duplicate_of: Some(transaction()) };
    assert_eq!(soon(client.decide(decision)).await, Ok(verdict));
    let claim = |key: &str| Claim { transaction: transaction(), key: key.into() };
    assert_eq!(soon(client.claim(claim("free"))).await, Ok(None));
    let spent = Spent { transaction: transaction(), finished: true, positions: vec![] };
    assert_eq!(soon(client.claim(claim("spent"))).await, Ok(Some(spent)));
    assert_eq!(soon(client.keep_alive(RouterIncarnation(8))).await, Ok(()));
    assert_eq!(soon(client.finished(vec![transaction()])).await, Ok(()));
    let known = soon(client.transactions(Some(transaction()))).await.unwrap();
    assert_eq!(known.iter().map(|known| known.transaction).collect::<Vec<_>>(), [transaction()]);
    assert_eq!(soon(client.transactions(None)).await, Ok(vec![]));
    let (id, address, zone) = (NodeId(9), "there:1".to_owned(), String::new());
    let registered =
        soon(client.register(topology::Node { id, address, roles: Roles::ALL, zone, draining: false })).await;
    assert_eq!(registered.unwrap_err().message, "9 there:1");
    assert_eq!(soon(client.report(NodeId(2), vec![status()], vec![RouterIncarnation(3)])).await, Ok(()));
    let request = SchemaChangeRequest {
        request: RequestId { router: RouterIncarnation(1), sequence: 1 },
        planned_by: SchemaVersion(6),
        change: SchemaChange::DropTables(vec![TableId(5)]),
    };
    assert_eq!(soon(client.change_schema(request)).await, Ok(SchemaVersion(7)));
    let block = SequenceBlock { first: 5, increment: 1, count: 32 };
    assert_eq!(soon(client.allocate(SequenceId(5), 32)).await, Ok(block));
    assert_eq!(soon(client.set_sequence(SequenceId(5), -8)).await, Ok(()));
    let (name, sharding, shards, replicas) = ("k".into(), topology::Sharding::Hash, 4, None);
    let id = RequestId { router: RouterIncarnation(1), sequence: 12 };
    let request = CreateKeyspace { request: id, name, sharding, shards, replicas };
    assert_eq!(soon(client.create_keyspace(request)).await, Ok(KeyspaceNumber(4)));
    let roles = Roles::ALL;
    let join = NodeJoin { request: id, address: "there:1".into(), roles, zone: "east".into() };
    let joined = soon(client.join(join)).await.unwrap();
    let there = topology::Node {
        id: NodeId(12),
        address: "there:1".into(),
        roles,
        zone: "east".into(),
        draining: false,
    };
    let coordinators = vec![there];
    assert_eq!(joined, Joined { cluster: ClusterId(1 << 100), node: NodeId(12), coordinators });
    let target = ReplicaTarget::Shard("main/-80".into());
    let change = ReplicaChange { request: id, target, action: ReplicaAction::Add(NodeId(4)) };
    let told = soon(client.change_replicas(change.clone())).await.unwrap_err().message;
    assert_eq!(told, format!("{change:?}"));
    let course = ReshardCourse::Split { shard: "main/-80".into(), at: SplitAt::Bounds(vec![vec![0x40]]) };
    let wish = ReshardWish { request: id, course, options: ReshardOptions::default(), dry_run: true };
    let told = soon(client.reshard(wish.clone())).await.unwrap_err().message;
    assert_eq!(told, format!("{wish:?}"));
    for course in [
        Course::Move { shard: "main/-80".into(), from: None, to: vec![NodeId(3), NodeId(1)] },
        Course::Move { shard: "main/-80".into(), from: Some(NodeId(3)), to: vec![NodeId(1)] },
        Course::Count { keyspace: "main".into(), replicas: 5 },
        Course::Drain(NodeId(1)),
        Course::Undrain(NodeId(2)),
        Course::Remove(NodeId(3)),
        Course::Stop(9),
    ] {
        let wish = CourseWish { request: id, course, dry_run: true };
        let told = soon(client.course(wish.clone())).await.unwrap_err().message;
        assert_eq!(told, format!("{wish:?}"));
    }
    let told = soon(client.command(id, ReshardId(7), ReshardCommand::Verify)).await.unwrap_err().message;
    assert_eq!(told, format!("{id} 7 Verify"));
    assert_eq!(soon(client.reshards()).await, Ok(vec![reshard_status()]));
    let counted = Counted { age: HANG, took: Duration::ZERO, tables: vec![] };
    assert_eq!(soon(client.tallies()).await, Ok(vec![ShardTally { shard: ShardId(4), counted }]));
    let advice = Advice { why: "so".into(), remedy: Some(Remedy::Drain(NodeId(3))) };
    let wish = |size| AutoWish {
        request: RequestId { router: RouterIncarnation(1), sequence: 2 },
        keyspace: "main".into(),
        auto: Some(AutoChange { size, shards: None }),
    };
    let set = topology::AutoSplit { size: 9, shards: 3 };
    assert_eq!(soon(client.set_auto(wish(Some(9)))).await, Ok(Some(set)));
    assert_eq!(soon(client.set_auto(AutoWish { auto: None, ..wish(None) })).await, Ok(None));
    assert_eq!(soon(client.advise()).await, Ok(vec![advice]));
    let asked = TallyRequest { shard: ShardId(3), within: HANG, rate: 9 };
    let tables =
        vec![TableTally { table: TableId(7), rows: 9, bytes: 5, middle: Some(vec![0x80]), growth: None }];
    let tally =
        Tally { counted: Some(Counted { age: HANG, took: Duration::ZERO, tables }), counting: Some(3) };
    assert_eq!(soon(client.tally(asked)).await, Ok(tally));
    let held = client.hold_log(GroupId(4), "reshard/7/1".into(), Some(LogIndex(3)), HANG);
    assert_eq!(soon(held).await.unwrap_err().message, format!("4 reshard/7/1 Some(LogIndex(3)) {HANG:?}"));
    let voters = vec![NodeId(1), NodeId(2)];
    let asked = client.change_members(GroupId(4), voters.clone(), Some(NodeId(2)), HANG);
    let members = Members { voters, learners: vec![NodeId(2)], joint: true };
    assert_eq!(soon(asked).await, Ok(members));
    let asked = client.transfer_leader(GroupId(4), NodeId(3), HANG);
    assert_eq!(soon(asked).await.unwrap_err().message, format!("4 3 {HANG:?}"));
    assert_eq!(soon(client.check(GroupId(4), HANG)).await, Ok(LogIndex(4 + HANG.as_secs())));
    let answer = soon(CoordinatorService::status(&client)).await.unwrap();
    assert_eq!((answer.state.topology, answer.replicas), (state(1).topology, vec![status()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_gives_the_newest_state_and_keeps_what_did_not_change() {
    let node = Node::start().await;
    let mut states = soon(node.client().watch()).await.unwrap();
    let first = soon(states.next()).await.unwrap();
    assert_eq!(first.topology.epoch, Epoch(1));
    let next = ClusterState { topology: state(2).topology, ..node.states.borrow().clone() };
    node.states.send_replace(next);
    let second = soon(states.next()).await.unwrap();
    assert_eq!(second.topology.epoch, Epoch(2));
    assert!(Arc::ptr_eq(&first.catalog, &second.catalog) && Arc::ptr_eq(&first.leaders, &second.leaders));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_service_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let services = Services { node: Some(NodeId(3)), ..Services::default() };
    tokio::spawn(serve(listener, services, std::future::pending()));
    let client = client(address);
    assert_eq!(fails(&client, read("echo", vec![])).await.retry, Retry::NotLeader(None));
    assert_eq!(soon(client.watch()).await.err().unwrap().retry, Retry::NotLeader(None));

    let other = NodeClient::connect_node(NodeId(4), address.to_string());
    let error = fails(&other, read("echo", vec![])).await;
    assert!(error.message.contains("this is node 3, not node 4"), "{error}");
    assert_eq!(error.retry, Retry::Later);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_cluster_says_so_until_it_has_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let offer = Offer::default();
    tokio::spawn(serve(listener, offer.clone(), std::future::pending()));
    let client = client(address);
    let error = fails(&client, read("echo", vec![])).await;
    assert_eq!((error.sqlstate, error.retry.clone()), (SqlState::CANNOT_CONNECT_NOW, Retry::Later));
    assert!(error.message.contains("shoal init"), "{error}");

    // The stream that is open already sees what is offered from now on.
    let (events, _events) = mpsc::unbounded_channel();
    let cluster = ClusterId(7);
    offer.change(|services| {
        services.cluster = Some(cluster);
        services.node = Some(NodeId(3));
        services.shard = Some(Arc::new(Shard { events, made: Arc::default() }));
    });
    rows(ask(&client, read("echo", vec![])).await.unwrap()).await.unwrap();

    let of = |cluster| {
        let config = ClientConfig { cluster: Some(cluster), ..ClientConfig::default() };
        NodeClient::with_config(address.to_string(), Some(NodeId(3)), config)
    };
    rows(ask(&of(cluster), read("echo", vec![])).await.unwrap()).await.unwrap();
    let error = fails(&of(ClusterId(8)), read("echo", vec![])).await;
    assert!(error.message.contains("not cluster 00000000000000000000000000000008"), "{error}");
}

/// A node that is asked who it is, and to found and to make clusters, and says what it heard.
struct Newcomer(Mutex<Vec<String>>);

impl Newcomer {
    fn hear(&self, what: impl std::fmt::Debug) {
        lock(&self.0).push(format!("{what:?}"));
    }
}

fn founding() -> Founding {
    let node = |id| topology::Node {
        id: NodeId(id),
        address: format!("10.0.0.{id}:7000"),
        roles: Roles::ALL,
        zone: String::new(),
        draining: false,
    };
    Founding {
        cluster: ClusterId(u128::MAX),
        node: NodeId(2),
        coordinators: vec![node(1), node(2), node(3)],
        nodes: 4,
        shards: 8,
        replicas: 3,
    }
}

fn identity(member: Option<(ClusterId, NodeId)>) -> Identity {
    let roles = Roles { router: true, shardnode: false, coordinator: true };
    Identity { member, address: "localhost:7001".into(), roles }
}

fn introduction() -> Introduction {
    Introduction {
        node: identity(Some((ClusterId(1 << 100), NodeId(4)))),
        known: vec![identity(None), identity(Some((ClusterId(1), NodeId(1))))],
        unmet: vec!["localhost:9".into()],
        coordinators: founding().coordinators,
    }
}

impl BootstrapService for Newcomer {
    fn identity(&self, caller: Option<Identity>) -> BoxFuture<'_, ServiceResult<Introduction>> {
        self.hear(caller);
        Box::pin(async { Ok(introduction()) })
    }

    fn found(&self, founding: Founding) -> BoxFuture<'_, ServiceResult<()>> {
        self.hear(founding);
        Box::pin(async { Ok(()) })
    }

    fn init(&self, request: InitRequest) -> BoxFuture<'_, ServiceResult<Founding>> {
        self.hear(request);
        Box::pin(async { Ok(founding()) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_crosses_the_wire() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let newcomer = Arc::new(Newcomer(Default::default()));
    let services = Services { bootstrap: Some(newcomer.clone()), ..Services::default() };
    tokio::spawn(serve(listener, services, std::future::pending()));
    let client = client(address);
    let caller = Some(identity(Some((ClusterId(3), NodeId(9)))));
    assert_eq!(soon(client.identity(caller.clone())).await.unwrap(), introduction());
    assert_eq!(soon(client.identity(None)).await.unwrap(), introduction());
    soon(client.found(founding())).await.unwrap();
    let request = InitRequest { shards: Some(8), replicas: None, coordinators: Some(3) };
    assert_eq!(soon(client.init(request)).await.unwrap(), founding());
    let heard = lock(&newcomer.0).clone();
    let none: Option<Identity> = None;
    let said =
        [format!("{caller:?}"), format!("{none:?}"), format!("{:?}", founding()), format!("{request:?}")];
    assert_eq!(heard, said);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_log_says_comes_as_it_is_taken() {
    let mut node = Node::start().await;
    let client = node.client();
    let beat = Duration::from_secs(60);
    let request = ChangesRequest { shard: ShardId(1), after: LogIndex(4), beat, layouts: false };
    let mut parts = client.changes(request).await.unwrap();
    for index in 5..405 {
        assert_eq!(parts.next().await.unwrap(), Ok(changes(LogIndex(index))));
    }
    // Who takes nothing has what was granted made, and one part that waits for credit. An echo shows that others go on.
    let most = WINDOW / 50_000 + 2;
    for i in 0..100 {
        rows(ask(&client, read("echo", vec![Value::Int(i)])).await.unwrap()).await.unwrap();
    }
    let made = node.made.load(Ordering::SeqCst);
    assert!(made <= 400 + most, "{made} parts made");
    drop(parts);
    assert_eq!(node.event().await, "dropped");
    assert!(node.made.load(Ordering::SeqCst) <= 400 + most);

    let mut parts = client.changes(ChangesRequest { shard: ShardId(3), ..request }).await.unwrap();
    assert_eq!(parts.next().await.unwrap(), Ok(changes(LogIndex(5))));
    let error = parts.next().await.unwrap().unwrap_err();
    assert_eq!(error.sqlstate, SqlState::POSITION_FORGOTTEN);
    assert_eq!(error.state, Some(Box::new((ShardId(3), LogIndex(77)))));
    assert!(parts.next().await.is_none());
    assert_eq!(node.event().await, "dropped");

    let refused = client.changes(ChangesRequest { shard: ShardId(9), ..request }).await;
    assert_eq!(refused.err().unwrap().sqlstate, SqlState::CANNOT_CONNECT_NOW);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_falls_silent_is_given_up() {
    let mut node = Node::start().await;
    let client = node.client();
    let request = ChangesRequest {
        shard: ShardId(2),
        after: LogIndex(0),
        beat: Duration::from_millis(1),
        layouts: false,
    };
    let mut parts = client.changes(request).await.unwrap();
    assert_eq!(parts.next().await.unwrap(), Ok(changes(LogIndex(1))));
    let error = parts.next().await.unwrap().unwrap_err();
    assert_eq!((error.sqlstate, error.retry), (SqlState::CONNECTION_FAILURE, Retry::Later));
    assert_eq!(node.event().await, "dropped", "the server hears that nobody waits");
    assert!(parts.next().await.is_none());
}
