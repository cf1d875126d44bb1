//! Weak reads over a fake cluster whose replicas answer, lag, refuse or hang as they are told.

use super::*;
use crate::config::Config;
use crate::executor::statement::Reading;
use crate::fake::{Bench, Fault, MAIN, TABLE};
use crate::positions::Committed;
use dialect::Type;
use planner::plan::*;
use proto::machine::Machine;
use proto::{GroupId, LogIndex, NodeId, Retry, SchemaVersion, SqlState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const WAIT: Duration = Duration::from_millis(50);
const A: ShardId = ShardId(1);

fn weak(consistency: Consistency) -> Reading {
    Reading { consistency, wait: WAIT }
}

/// So many shards on nodes 1 to 3, of which 1 leads all and `here` is in the router's process.
async fn bench(shards: u64, here: u64) -> Bench {
    // Of three the lot never falls on the first: the leader isn't asked.
    let lot = AtomicU64::new(1);
    let machine = Machine::simulated(|| Duration::ZERO, move || lot.fetch_add(3, Ordering::Relaxed));
    let mut bench = Bench::with(Config { machine, ..Config::default() }, shards).await;
    bench.fake.place(&[1, 2, 3], 2);
    bench.fake.nodes.here.lock().insert(NodeId(here));
    bench.executor.cluster.install(bench.fake.state());
    bench.reading = weak(Consistency::Session);
    bench
}

fn fragment(sql: &str, lookup: bool) -> Fragment {
    Fragment {
        target: Target::Keyspace { keyspace: MAIN, key: vec![Type::Int4], filter: KeyFilter::All },
        sql: sql.into(),
        params: vec![],
        columns: vec![Type::Int4],
        lookup,
    }
}

fn count() -> Fragment {
    fragment("SELECT count(*) FROM t16384", true)
}

fn stream_of(fragment: Fragment) -> Query {
    let gather = Gather::Stream { order: vec![], offset: None, limit: None, visible: 1 };
    Query { fragments: vec![fragment], gather, lock: None }
}

fn plan_of(action: Action) -> Arc<Plan> {
    Arc::new(Plan {
        parameters: vec![],
        columns: None,
        scalars: vec![],
        first: vec![],
        reads_copies: false,
        action,
    })
}

/// Reads shard A by a query's fragment.
async fn read(bench: &Bench, fragment: &Fragment) -> Result<LogIndex, WireError> {
    let plan = plan_of(Action::Query(stream_of(fragment.clone())));
    let run = bench.statement(&plan);
    bench.executor.read(&run, A, fragment, &[], None).await.map(|answer| answer.position)
}

fn error(retry: Retry) -> WireError {
    WireError::new(SqlState::CANNOT_CONNECT_NOW, "no").with_retry(retry)
}

fn counted(bench: &Bench, by: By, why: Why) -> u64 {
    bench.executor.replicas.reads.counted(Consistency::Session, by, why)
}

#[tokio::test]
async fn a_follower_is_asked_for_what_the_session_has_seen_and_raises_it() {
    let bench = bench(1, 2).await;
    bench.positions.saw(A, LogIndex(7));
    bench.positions.committed(&Committed { prepared: vec![(A, LogIndex(9))], ..Committed::default() });
    bench.fake.nodes.positions.lock().insert(NodeId(2), (LogIndex(12), Duration::ZERO));
    assert_eq!(read(&bench, &count()).await, Ok(LogIndex(12)));
    let (node, request) = bench.fake.nodes.asked.lock().remove(0);
    assert_eq!(node, NodeId(2));
    let access = Access::Read { consistency: Consistency::Session, wait: WAIT, lookup: true };
    assert_eq!((request.access, request.cut), (access, None));
    assert_eq!(request.floor, Floor { applied: LogIndex(7), settled: LogIndex(9) });
    assert_eq!(bench.positions.floor(A), Floor { applied: LogIndex(12), settled: LogIndex(9) });
    assert_eq!(counted(&bench, By::Follower, Why::Asked), 1);
}

#[tokio::test]
async fn staleness_alone_asks_for_no_position_and_is_seen_all_the_same() {
    for level in [Consistency::Bounded(Duration::from_secs(5)), Consistency::Eventual] {
        let mut bench = bench(1, 2).await;
        bench.reading = weak(level);
        bench.positions.merge([(A, LogIndex(9).into())], false);
        bench.fake.nodes.positions.lock().insert(NodeId(2), (LogIndex(12), Duration::ZERO));
        read(&bench, &count()).await.unwrap();
        assert_eq!(bench.fake.nodes.asked.lock()[0].1.floor, Floor::default());
        assert_eq!(bench.positions.floor(A).applied, LogIndex(12));
        // What a statement's own subquery has seen it doesn't go back behind.
        let mut plan = Plan::clone(&plan_of(Action::Query(stream_of(count()))));
        plan.first.push(stream_of(count()));
        let plan = Arc::new(plan);
        bench.executor.read(&bench.statement(&plan), A, &count(), &[], None).await.unwrap();
        assert_eq!(bench.fake.nodes.asked.lock()[1].1.floor, Floor::applied(LogIndex(12)));
    }
}

#[tokio::test]
async fn one_that_is_behind_leaves_it_to_the_leader() {
    let bench = bench(1, 2).await;
    bench.positions.saw(A, LogIndex(7));
    bench.fake.nodes.positions.lock().insert(NodeId(1), (LogIndex(8), Duration::ZERO));
    bench.fake.befall(2, [Fault::Before(error(Retry::Behind(LogIndex(3))))]);
    assert_eq!(read(&bench, &count()).await, Ok(LogIndex(8)));
    let asked = bench.fake.nodes.asked.lock();
    assert_eq!(asked.iter().map(|(node, _)| node.0).collect::<Vec<_>>(), [2, 1]);
    let request = &asked[1].1;
    assert_eq!((&request.access, request.floor), (&Access::strong(true), Floor::applied(LogIndex(7))));
    let counts = (counted(&bench, By::Leader, Why::Behind), counted(&bench, By::Follower, Why::Asked));
    assert_eq!(counts, (1, 0));
    assert_eq!(bench.positions.floor(A).applied, LogIndex(8));
}

#[tokio::test]
async fn a_replica_that_can_not_leaves_it_to_the_others_and_they_to_the_leader() {
    let too_old = || WireError::new(SqlState::SNAPSHOT_TOO_OLD, "no");
    let lost = || WireError::new(SqlState::CONNECTION_FAILURE, "no").with_retry(Retry::Later);
    let faults = [
        error(Retry::NotLeader(Some(NodeId(1)))),
        error(Retry::NotLeader(None)),
        error(Retry::Later),
        error(Retry::Unknown),
        too_old(),
        lost(),
        WireError::new(SqlState::IO_ERROR, "no"),
    ];
    for fault in faults {
        let bench = bench(1, 2).await;
        bench.positions.saw(A, LogIndex(7));
        for (node, position) in [(1, 8), (3, 9)] {
            bench.fake.nodes.positions.lock().insert(NodeId(node), (LogIndex(position), Duration::ZERO));
        }
        bench.fake.befall(2, [Fault::Before(fault.clone())]);
        assert_eq!(read(&bench, &count()).await, Ok(LogIndex(9)), "{fault:?}");
        assert_eq!(bench.fake.asked(), [2, 3], "{fault:?}");
        assert_eq!(counted(&bench, By::Follower, Why::Asked), 1);
        // Each once; and the leader as one of them.
        let bench = self::bench(1, 2).await;
        bench.fake.befall(2, [Fault::Before(fault.clone())]);
        bench.fake.befall(3, [Fault::Before(lost())]);
        read(&bench, &count()).await.unwrap();
        let levels: Vec<_> =
            bench.fake.nodes.asked.lock().iter().map(|(_, request)| request.is_strong()).collect();
        assert_eq!((bench.fake.asked(), levels), (vec![2, 3, 1], vec![false; 3]), "{fault:?}");
        assert_eq!(counted(&bench, By::Leader, Why::Failed), 1);
        // It may be that it can't, either.
        let bench = self::bench(1, 2).await;
        for node in [1, 2, 3] {
            bench.fake.befall(node, [Fault::Before(fault.clone())]);
        }
        read(&bench, &count()).await.unwrap();
        assert_eq!(bench.fake.asked(), [2, 3, 1, 1], "{fault:?}");
    }
}

/// Cut off with a minority: whoever is known to lead doesn't answer, or can't.
#[tokio::test(start_paused = true)]
async fn where_no_leader_is_to_be_had_any_replica_answers() {
    let refuse = |bench: &Bench, node, retry: Retry| {
        bench.fake.befall(node, vec![Fault::Before(error(retry)); 1000]);
    };
    let start = machine::now();
    for level in [Consistency::Eventual, Consistency::Session, Consistency::Bounded(Duration::from_secs(5))] {
        // One is behind, and another isn't.
        let mut bench = bench(1, 2).await;
        bench.reading = weak(level);
        refuse(&bench, 1, Retry::NotLeader(None));
        refuse(&bench, 2, Retry::Behind(LogIndex(4)));
        bench.fake.nodes.positions.lock().insert(NodeId(3), (LogIndex(9), Duration::ZERO));
        assert_eq!(read(&bench, &count()).await, Ok(LogIndex(9)), "{level:?}");
        // Those that were lost before are there again.
        let mut bench = self::bench(1, 2).await;
        bench.reading = weak(level);
        refuse(&bench, 1, Retry::Later);
        for node in [2, 3] {
            bench.fake.befall(node, [Fault::Before(error(Retry::NotLeader(None)))]);
        }
        read(&bench, &count()).await.unwrap();
        let asked = bench.fake.asked();
        assert!(asked.starts_with(&[2, 3, 1, 1]) && matches!(asked.last(), Some(2 | 3)), "{asked:?}");
    }
    assert!(machine::now() - start < Duration::from_secs(3));
    // There's nobody at all.
    let mut bench = bench(1, 2).await;
    bench.timeout = Duration::from_secs(2);
    (1..=3).for_each(|node| refuse(&bench, node, Retry::Later));
    let start = machine::now();
    assert!(read(&bench, &count()).await.is_err());
    assert_eq!(machine::now() - start, bench.timeout);
}

#[tokio::test]
async fn where_nobody_is_known_to_lead_the_others_are_asked_first() {
    let bench = bench(1, 2).await;
    bench.fake.reshape(|topology| topology.shards.get_mut(&A).unwrap().group = GroupId(99));
    bench.executor.cluster.install(bench.fake.state());
    bench.fake.befall(2, [Fault::Before(error(Retry::Behind(LogIndex(4))))]);
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked().len(), 2);
    assert_eq!(counted(&bench, By::Follower, Why::Asked), 1);
    (1..=3).for_each(|node| bench.fake.befall(node, [Fault::Before(error(Retry::Behind(LogIndex(4))))]));
    read(&bench, &count()).await.unwrap();
    let levels: Vec<_> =
        bench.fake.nodes.asked.lock().iter().map(|(_, request)| request.is_strong()).collect();
    assert_eq!(levels, [false, false, false, true]);
}

#[tokio::test]
async fn what_the_statement_comes_to_is_the_answer() {
    for fault in [
        WireError::new(SqlState::DIVISION_BY_ZERO, "no"),
        error(Retry::StaleSchema(SchemaVersion(5))),
        WireError::new(SqlState::QUERY_CANCELED, "too late"),
    ] {
        let bench = bench(1, 2).await;
        bench.fake.befall(2, [Fault::Before(fault.clone())]);
        assert_eq!(read(&bench, &count()).await, Err(fault));
        assert_eq!(bench.fake.asked(), [2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lookup_is_given_up_in_time_and_its_replica_left_alone_for_a_while() {
    let bench = bench(1, 2).await;
    bench.fake.befall(2, [Fault::Hang, Fault::Hang]);
    let start = machine::now();
    read(&bench, &count()).await.unwrap();
    let took = machine::now() - start;
    assert!((Duration::from_millis(70)..Duration::from_millis(75)).contains(&took), "{took:?}");
    assert_eq!(bench.fake.asked(), [2, 3]);
    // Of the others one is as good as the leader, and the leader has but its share.
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked(), [3]);
    tokio::time::advance(Duration::from_millis(100)).await;
    // One tries it, and the others don't wait for that.
    let fragment = count();
    let (tried, ()) = tokio::join!(read(&bench, &fragment), async {
        assert_eq!(bench.fake.asked(), [2]);
        read(&bench, &fragment).await.unwrap();
        assert_eq!(bench.fake.asked(), [3]);
    });
    tried.unwrap();
    assert_eq!(bench.fake.asked(), [3]);
    // It has failed again, so it has twice the time.
    tokio::time::advance(Duration::from_millis(120)).await;
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked(), [3]);
    tokio::time::advance(Duration::from_millis(80)).await;
    read(&bench, &count()).await.unwrap();
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked(), [2, 2]);
}

#[tokio::test]
async fn with_nobody_left_but_the_leader_it_is_asked() {
    let bench = bench(1, 2).await;
    let lost = || Fault::Before(error(Retry::NotLeader(None)));
    bench.fake.befall(2, [lost()]);
    bench.fake.befall(3, [lost()]);
    for asked in [vec![2, 3, 1], vec![1]] {
        read(&bench, &count()).await.unwrap();
        assert_eq!(bench.fake.asked(), asked);
    }
    assert_eq!(counted(&bench, By::Leader, Why::Failed), 1);
    assert_eq!(counted(&bench, By::Leader, Why::Avoided), 1);
}

#[tokio::test]
async fn one_that_is_behind_is_not_left_alone_but_costs_its_wait() {
    let bench = bench(1, 2).await;
    bench.positions.saw(A, LogIndex(5));
    bench.fake.befall(2, [Fault::Before(error(Retry::Behind(LogIndex(4))))]);
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked(), [2, 1]);
    // The other one isn't known to be behind.
    bench.fake.nodes.positions.lock().insert(NodeId(3), (LogIndex(6), Duration::ZERO));
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked(), [3]);
    // Who has seen nothing doesn't mind.
    bench.positions.reset([]);
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked(), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_scan_may_take_as_long_as_its_statement() {
    let bench = bench(1, 2).await;
    bench.fake.befall(2, [Fault::Hang]);
    let scan = fragment("SELECT c1 FROM t16384", false);
    let start = machine::now();
    assert_eq!(read(&bench, &scan).await.unwrap_err().sqlstate, SqlState::QUERY_CANCELED);
    assert!(machine::now() - start >= Duration::from_secs(29));
    assert_eq!(bench.fake.asked(), [2]);
}

#[tokio::test]
async fn shards_are_read_apart_and_without_a_cut() {
    let bench = bench(4, 2).await;
    bench.fake.run_on_each("INSERT INTO t16384 VALUES (1, NULL)");
    bench.fake.befall(2, [Fault::Before(error(Retry::Behind(LogIndex(0))))]);
    let plan = plan_of(Action::Query(stream_of(fragment("SELECT c1 FROM t16384", false))));
    let Action::Query(query) = &plan.action else { panic!() };
    let mut rows = bench.executor.query(&bench.statement(&plan), query, &[]).await.unwrap();
    let mut found = 0;
    while let Some(chunk) = rows.next().await.unwrap() {
        found += chunk.len();
    }
    assert_eq!((found, bench.fake.cuts.lock().len()), (4, 0));
    let mut asked = bench.fake.asked();
    asked.sort_unstable();
    assert_eq!(asked, [1, 2, 2, 2, 2]);
}

#[tokio::test]
async fn a_shard_that_is_read_twice_is_read_by_its_leader() {
    let bench = bench(2, 2).await;
    let all = || fragment("SELECT c1 FROM t16384", false);
    let source = |name: &str, place| Source {
        name: name.into(),
        columns: vec![Type::Int4],
        rows: SourceRows::Fragment(place),
    };
    let sources = vec![source("x", 0), source("y", 1)];
    let sql = "SELECT x.a0 FROM x JOIN y ON y.a0 = x.a0".into();
    let gather = Gather::Sqlite { sources, sql, params: vec![] };
    let plan = plan_of(Action::Query(Query { fragments: vec![all(), all()], gather, lock: None }));
    let Action::Query(query) = &plan.action else { panic!() };
    bench.executor.query(&bench.statement(&plan), query, &[]).await.unwrap();
    assert!(!bench.fake.cuts.lock().is_empty());
    assert_eq!(bench.fake.asked(), [1, 1, 1, 1]);
}

#[tokio::test]
async fn what_is_not_known_of_a_commit_its_leader_shows() {
    let bench = bench(1, 2).await;
    bench.positions.committed(&Committed { unheard: vec![A], ..Committed::default() });
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked(), [1]);
    assert_eq!(bench.executor.replicas.reads.counted(Consistency::Strong, By::Leader, Why::Asked), 1);
    // Now it is known.
    let floor = bench.positions.floor(A);
    assert_eq!((bench.positions.is_unheard(A), floor.settled), (false, floor.applied));
    read(&bench, &count()).await.unwrap();
    assert_eq!(bench.fake.asked(), [2]);
}

/// Whatever a leader answers that has its newest state.
#[tokio::test]
async fn every_answer_of_a_leader_tells_what_was_not_heard() {
    let mut bench = bench(2, 2).await;
    let unheard = || Committed { unheard: vec![A, ShardId(2)], ..Committed::default() };
    let left = |bench: &Bench| {
        let left = [1, 2].map(ShardId).into_iter().filter(|shard| bench.positions.is_unheard(*shard));
        left.count()
    };
    // A cut, at the level of the session too.
    let all = plan_of(Action::Query(stream_of(fragment("SELECT c1 FROM t16384", false))));
    let Action::Query(query) = &all.action else { panic!() };
    for reading in [Reading::STRONG, weak(Consistency::Session)] {
        bench.reading = reading;
        bench.positions.committed(&unheard());
        bench.executor.query(&bench.statement(&all), query, &[]).await.unwrap();
        assert_eq!(left(&bench), 0, "{reading:?}");
    }
    // One shard alone leaves the other as it was, which is no reason to read the first from its leader.
    bench.positions.committed(&unheard());
    bench.fake.asked();
    for (node, unheard) in [(1, 1), (2, 1)] {
        read(&bench, &count()).await.unwrap();
        assert_eq!((bench.fake.asked(), left(&bench)), (vec![node], unheard));
    }
    // A state that was kept is older than what is asked for.
    bench.positions.asked(ShardId(2), LogIndex(1));
    let kept = bench.executor.keep(&bench.statement(&all)).await.unwrap();
    let run = || Statement { kept: Some(&kept), ..bench.statement(&all) };
    bench.positions.committed(&unheard());
    bench.executor.query(&run(), query, &[]).await.unwrap();
    assert_eq!(left(&bench), 2);
    let kept = bench.executor.keep(&bench.statement(&all)).await.unwrap();
    let run = Statement { kept: Some(&kept), ..bench.statement(&all) };
    bench.executor.query(&run, query, &[]).await.unwrap();
    assert_eq!(left(&bench), 0);
}

#[tokio::test]
async fn a_transaction_with_a_part_anywhere_reads_what_leaders_have() {
    let bench = bench(2, 2).await;
    let plan = plan_of(Action::Query(stream_of(count())));
    let transaction = bench.executor.transactions.begin(0);
    let run = bench.statement(&plan);
    let within = run.within(Some(&transaction));
    bench.executor.read(&within, A, &count(), &[], None).await.unwrap();
    transaction.statement(ShardId(2), true, None);
    bench.executor.read(&within, A, &count(), &[], None).await.unwrap();
    assert_eq!(bench.fake.asked(), [2, 1]);
    transaction.take_back(ShardId(2));
    transaction.rollback().settle().await;
}

/// Whatever level the session hands over, a statement that writes or locks reads from leaders, its subqueries too.
#[tokio::test]
async fn nothing_that_writes_or_locks_reads_from_a_follower() {
    let bench = bench(1, 2).await;
    let lock = Locking { rows: [].into(), limit: None };
    let locking = Query { lock: Some(lock), ..stream_of(count()) };
    let copied = Insert {
        table: TABLE,
        target: InsertTarget::Sharded { keyspace: MAIN, key: vec![(0, Type::Int4)] },
        sql: "INSERT INTO t16384 VALUES (?1, ?2)".into(),
        width: 2,
        params: vec![],
        rows: InsertRows::Query { query: stream_of(count()), row: vec![] },
        not_null: vec![],
        touch: 0,
        returning: None,
    };
    let deletes = Modify {
        delete: true,
        table: TABLE,
        fragment: count(),
        locking_sql: "".into(),
        touch: 0,
        moves: None,
    };
    for action in [Action::Query(locking.clone()), Action::Insert(copied), Action::Modify(deletes)] {
        let plan = plan_of(action);
        assert!(!bench.statement(&plan).is_weak(), "{plan:?}");
    }
    let mut plan = Plan::clone(&plan_of(Action::Query(stream_of(count()))));
    assert!(bench.statement(&Arc::new(plan.clone())).is_weak());
    plan.first.push(locking);
    assert!(!bench.statement(&Arc::new(plan)).is_weak());
}

/// The rule by what clients send.
#[tokio::test]
async fn queries_alone_may_see_what_is_not_the_newest() {
    let mut bench = bench(2, 2).await;
    let state = bench.executor.cluster.snapshot();
    let settings = planner::Settings::default();
    let context =
        planner::Context { catalog: &state.catalog, topology: &state.topology, settings: &settings };
    let copies = [
        ("SELECT a FROM r", false),
        ("SELECT t.a FROM t JOIN r ON r.a = t.a WHERE t.a = 1", false),
        ("SELECT a FROM t WHERE a = (SELECT max(a) FROM r)", false),
        ("SELECT count(*) FROM t, r", false),
        ("COPY r TO STDOUT", false),
    ];
    let mut eventual = weak(Consistency::Eventual);
    for (sql, weak) in [
        ("SELECT a FROM t WHERE a = 1", true),
        ("SELECT count(*) FROM t", true),
        ("SELECT 1", true),
        ("VALUES (1)", true),
        ("WITH x AS (SELECT a FROM t) SELECT * FROM x", true),
        ("COPY t TO STDOUT", true),
        ("COPY (SELECT a FROM t) TO STDOUT", true),
        ("SELECT a FROM t WHERE a = 1 FOR UPDATE", false),
        ("SELECT a FROM t WHERE a = 1 FOR KEY SHARE", false),
        ("SELECT * FROM (SELECT a FROM t FOR UPDATE) x", false),
        ("INSERT INTO t VALUES (1)", false),
        ("INSERT INTO t SELECT a + 1, b FROM t", false),
        ("UPDATE t SET b = (SELECT max(b) FROM r) WHERE a = 1", false),
        ("DELETE FROM t WHERE a IN (SELECT a FROM r)", false),
        ("COPY t FROM STDIN", false),
        ("TRUNCATE t", false),
        ("EXPLAIN ANALYZE SELECT a FROM t", false),
    ]
    .into_iter()
    .chain(copies)
    {
        let text = planner::text::split(sql).unwrap().remove(0);
        let plan = planner::plan(&text, &[], &context).unwrap().plan;
        assert_eq!(bench.statement(&plan).is_weak(), weak, "{sql}");
        // Time may go back there anyway.
        std::mem::swap(&mut bench.reading, &mut eventual);
        let is_copied = copies.iter().any(|(copied, _)| *copied == sql);
        assert_eq!(bench.statement(&plan).is_weak(), weak || is_copied, "{sql}");
        std::mem::swap(&mut bench.reading, &mut eventual);
    }
}
