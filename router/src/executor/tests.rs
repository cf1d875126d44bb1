//! Plans made by hand, run over a cluster that fails on command.

use super::rows::RowStream;
use crate::cancel::Reason;
use crate::error::Report;
use crate::fake::{Bench, Fault, MAIN, REFERENCE, SEQUENCE, TABLE};
use dialect::Type;
use dialect::types::Typed;
use planner::plan::*;
use proto::services::{Access, CutAction, CutRequest, Unsettled, cut_lost};
use proto::{
    NodeId, Retry, RouterIncarnation, SchemaVersion, ShardId, TransactionId, Value, ValueRef, WireError,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn ints(values: &[i64]) -> Vec<Scalar> {
    values.iter().map(|v| Scalar::Constant(Value::Int(*v))).collect()
}

fn plan(scalars: Vec<Scalar>, action: Action) -> Arc<Plan> {
    Arc::new(Plan { parameters: vec![], columns: None, scalars, first: vec![], reads_copies: false, action })
}

fn fragment(filter: KeyFilter, sql: &str, params: &[u32]) -> Fragment {
    Fragment {
        target: Target::Keyspace { keyspace: MAIN, key: vec![Type::Int4], filter },
        sql: sql.into(),
        params: params.iter().map(|i| ScalarId(*i)).collect(),
        columns: vec![Type::Int4],
        lookup: false,
    }
}

fn stream(order: Vec<MergeKey>) -> Gather {
    Gather::Stream { order, offset: None, limit: None, visible: 1 }
}

fn insert(target: InsertTarget, table: proto::TableId, rows: Vec<Vec<u32>>) -> Insert {
    Insert {
        table,
        target,
        sql: format!("INSERT INTO t{table} VALUES (?1, ?2)").into(),
        width: 2,
        params: vec![],
        rows: InsertRows::Values(
            rows.into_iter().map(|row| row.into_iter().map(ScalarId).collect()).collect(),
        ),
        not_null: vec![],
        touch: 0,
        returning: None,
    }
}

fn sharded() -> InsertTarget {
    InsertTarget::Sharded { keyspace: MAIN, key: vec![(0, Type::Int4)] }
}

/// Rows 1 to `count`, all with NULL.
fn insert_rows(count: i64) -> (Vec<Scalar>, Insert) {
    let mut scalars = ints(&(1..=count).collect::<Vec<_>>());
    scalars.push(Scalar::Constant(Value::Null));
    let rows = (0..count as u32).map(|i| vec![i, count as u32]).collect();
    (scalars, insert(sharded(), TABLE, rows))
}

async fn run_insert(bench: &Bench, scalars: Vec<Scalar>, insert: Insert) -> Result<u64, WireError> {
    let plan = plan(scalars, Action::Insert(insert));
    let run = bench.statement(&plan);
    let values = bench.executor.scalars(&plan, &run).await?;
    let Action::Insert(insert) = &plan.action else { panic!() };
    bench.executor.insert(&run, insert, &values).await.map(|written| written.affected)
}

async fn run_query(bench: &Bench, scalars: Vec<Scalar>, query: Query) -> Result<Vec<i64>, WireError> {
    let plan = plan(scalars, Action::Query(query));
    let run = bench.statement(&plan);
    let values = bench.executor.scalars(&plan, &run).await?;
    let Action::Query(query) = &plan.action else { panic!() };
    first_column(bench.executor.query(&run, query, &values).await?).await
}

async fn first_column(mut rows: RowStream) -> Result<Vec<i64>, WireError> {
    let mut values = Vec::new();
    while let Some(chunk) = rows.next().await? {
        values.extend(chunk.rows().map(|mut row| match row.next() {
            Some(ValueRef::Int(v)) => v,
            other => panic!("{other:?}"),
        }));
    }
    Ok(values)
}

fn fault(retry: Retry) -> WireError {
    WireError::internal("fault").with_retry(retry)
}

#[tokio::test]
async fn rows_spread_and_come_back_in_order() {
    let bench = Bench::new(4).await;
    let (scalars, insert) = insert_rows(100);
    assert_eq!(run_insert(&bench, scalars, insert).await, Ok(100));
    bench.finish_all().await;
    let counts = bench.fake.on_each("SELECT count(*) FROM t16384");
    assert!(counts.iter().all(|n| *n > 10) && counts.iter().sum::<i64>() == 100, "{counts:?}");
    let ordered = fragment(KeyFilter::All, "SELECT c1 FROM t16384 ORDER BY c1 DESC", &[]);
    let key = MergeKey { column: 0, descending: true, nulls_first: true };
    let query = Query { fragments: vec![ordered], gather: stream(vec![key]), lock: None };
    assert_eq!(run_query(&bench, vec![], query).await.unwrap(), (1..=100).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_key_asks_one_shard() {
    let bench = Bench::new(4).await;
    let (scalars, insert) = insert_rows(20);
    run_insert(&bench, scalars, insert).await.unwrap();
    bench.fake.requests.lock().clear();
    let by_key =
        fragment(KeyFilter::In(vec![vec![ScalarId(0)]]), "SELECT c1 FROM t16384 WHERE c1 = ?1", &[0]);
    let query = Query { fragments: vec![by_key], gather: stream(vec![]), lock: None };
    assert_eq!(run_query(&bench, ints(&[7]), query).await.unwrap(), [7]);
    assert_eq!(bench.fake.requests.lock().len(), 1);
}

#[tokio::test]
async fn a_sqlite_gather_joins_what_shards_send() {
    let bench = Bench::new(2).await;
    let (scalars, insert) = insert_rows(10);
    run_insert(&bench, scalars, insert).await.unwrap();
    let all = || fragment(KeyFilter::All, "SELECT c1 FROM t16384", &[]);
    let source = |name: &str, place| Source {
        name: name.into(),
        columns: vec![Type::Int4],
        rows: SourceRows::Fragment(place),
    };
    let gather = Gather::Sqlite {
        sources: vec![source("x", 0), source("y", 1)],
        sql: "SELECT x.a0 + y.a0 FROM x JOIN y ON y.a0 = x.a0 + ?1 ORDER BY 1 LIMIT 3".into(),
        params: vec![ScalarId(0)],
    };
    let query = Query { fragments: vec![all(), all()], gather, lock: None };
    assert_eq!(run_query(&bench, ints(&[5]), query).await.unwrap(), [7, 9, 11]);
}

#[tokio::test]
async fn reads_follow_the_leader_and_wait_out_its_absence() {
    let bench = Bench::new(1).await;
    bench.fake.faults.lock().extend([
        Fault::Before(fault(Retry::NotLeader(Some(NodeId(2))))),
        Fault::Before(fault(Retry::Later)),
        Fault::Before(fault(Retry::NotLeader(None))),
    ]);
    let count = fragment(KeyFilter::All, "SELECT count(*) FROM t16384", &[]);
    let query = Query { fragments: vec![count], gather: stream(vec![]), lock: None };
    assert_eq!(run_query(&bench, vec![], query).await.unwrap(), [0]);
    assert_eq!(bench.fake.requests.lock().len(), 4);
}

#[tokio::test]
async fn a_write_of_unknown_outcome_is_repeated_under_its_own_name() {
    let bench = Bench::new(1).await;
    bench
        .fake
        .faults
        .lock()
        .extend([Fault::After(fault(Retry::Unknown)), Fault::Before(fault(Retry::Later))]);
    let (scalars, insert) = insert_rows(3);
    assert_eq!(run_insert(&bench, scalars, insert).await, Ok(3));
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16384"), [3]);
    let requests = bench.fake.requests.lock();
    let names: Vec<_> = requests
        .iter()
        .map(|r| match r.access {
            Access::Write { request, .. } => request,
            Access::Read { .. } | Access::Branch { .. } => panic!(),
        })
        .collect();
    assert!(names.len() == 3 && names.iter().all(|name| *name == names[0]));
}

#[tokio::test]
async fn a_node_that_hangs_is_left_for_the_one_that_leads_after_it() {
    let mut bench = Bench::new(1).await;
    bench.executor.config.retry_timeout = Duration::from_secs(10);
    bench.fake.faults.lock().push_back(Fault::Hang);
    let (scalars, insert) = insert_rows(1);
    let election = async {
        while bench.fake.requests.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        bench.fake.elect(2);
    };
    let (written, ()) = tokio::join!(run_insert(&bench, scalars, insert), election);
    assert_eq!(written, Ok(1));
    let requests = bench.fake.requests.lock();
    assert!(requests.len() == 2 && requests[0].access == requests[1].access, "not the same write again");
}

#[tokio::test]
async fn an_outcome_that_cannot_be_learned_is_08007() {
    let mut bench = Bench::new(1).await;
    bench.timeout = Duration::from_millis(30);
    bench.fake.faults.lock().extend(vec![Fault::After(fault(Retry::Unknown)); 50]);
    let (scalars, insert) = insert_rows(1);
    let error = run_insert(&bench, scalars, insert).await.unwrap_err();
    assert_eq!(error.sqlstate.as_str(), "08007");
}

#[tokio::test]
async fn a_shard_that_never_answers_is_not_waited_for_for_ever() {
    let bench = Bench::new(1).await;
    bench.fake.faults.lock().push_back(Fault::Hang);
    let (scalars, insert) = insert_rows(1);
    let write = run_insert(&bench, scalars, insert);
    let lose = async {
        tokio::task::yield_now().await;
        bench.interrupt.raise(Reason::Lost);
    };
    let (written, ()) = tokio::join!(write, lose);
    assert_eq!(written.unwrap_err().sqlstate.as_str(), "08007");
}

#[tokio::test]
async fn a_newer_catalog_is_taken_in_by_inserts_and_returned_by_reads() {
    let bench = Bench::new(2).await;
    let (scalars, insert) = insert_rows(10);
    let plan = plan(scalars, Action::Insert(insert));
    let run = bench.statement(&plan);
    let values = bench.executor.scalars(&plan, &run).await.unwrap();
    bench.fake.set_version(5);
    let Action::Insert(insert) = &plan.action else { panic!() };
    // The table is the same in version 5, so the rows go through.
    assert_eq!(bench.executor.insert(&run, insert, &values).await.unwrap().affected, 10);
    let all = fragment(KeyFilter::All, "SELECT c1 FROM t16384", &[]);
    let read = bench.executor.read(&run, ShardId(1), &all, &[], None).await;
    assert_eq!(read.err().unwrap().retry, Retry::StaleSchema(SchemaVersion(5)));
}

#[tokio::test]
async fn a_part_that_fails_undoes_the_others() {
    let bench = Bench::new(4).await;
    bench.fake.run_on_each(
        "CREATE TRIGGER x BEFORE INSERT ON t16384 WHEN new.c1 = 1 BEGIN SELECT raise(ABORT, 'no'); END",
    );
    let (scalars, insert) = insert_rows(20);
    let error = run_insert(&bench, scalars, insert).await.unwrap_err();
    assert_eq!((error.retry, error.detail), (Retry::Never, None));
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16384"), [0; 4]);
    assert_eq!((bench.fake.open_branches(), bench.fake.verdicts.lock().len()), (0, 0));
}

#[tokio::test]
async fn a_reference_write_fails_on_one_shard_before_it_reaches_the_others() {
    let bench = Bench::new(3).await;
    let row = || insert(InsertTarget::Everywhere, REFERENCE, vec![vec![0, 1]]);
    let values = |text_of: &str| ints(&[1]).into_iter().chain(text(text_of)).collect();
    assert_eq!(run_insert(&bench, values("x"), row()).await, Ok(1));
    bench.finish_all().await;
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16385"), [1, 1, 1]);
    assert_eq!(bench.fake.acted("prepare"), [1, 2, 3]);
    bench.fake.requests.lock().clear();
    assert!(run_insert(&bench, values("y"), row()).await.is_err());
    assert_eq!(bench.fake.requests.lock().len(), 1);
    // Where there is but one copy it's a write like any other.
    let bench = Bench::new(1).await;
    assert_eq!(run_insert(&bench, values("x"), row()).await, Ok(1));
    assert!(bench.fake.actions.lock().is_empty());
}

#[tokio::test]
async fn copies_that_differ_are_not_written() {
    let bench = Bench::new(2).await;
    bench.fake.run_on_each(
        "CREATE TRIGGER x BEFORE INSERT ON t16384 BEGIN INSERT INTO t16385 VALUES (1, 'x'); END",
    );
    let (scalars, one) = insert_rows(1);
    assert_eq!(run_insert(&bench, scalars, one).await, Ok(1));
    let update = Modify {
        delete: false,
        table: REFERENCE,
        fragment: Fragment { target: Target::Everywhere, ..fragment(KeyFilter::All, "", &[]) },
        locking_sql: "UPDATE t16385 SET c2 = 'y' RETURNING c1".into(),
        touch: 1,
        moves: None,
    };
    let plan = plan(vec![], Action::Session(SessionCommand::Empty));
    let error = bench.executor.modify(&bench.statement(&plan), &update, &[]).await.unwrap_err();
    assert_eq!(error.sqlstate.as_str(), "XX001");
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16385 WHERE c2 = 'y'"), [0, 0]);
}

#[tokio::test]
async fn a_reference_row_misses_no_shard_that_joins_while_it_waits() {
    let bench = Bench::new(2).await;
    let scalars = ints(&[1]).into_iter().chain(text("x")).collect();
    let plan = plan(scalars, Action::Insert(insert(InsertTarget::Everywhere, REFERENCE, vec![vec![0, 1]])));
    let run = bench.statement(&plan);
    let values = bench.executor.scalars(&plan, &run).await.unwrap();
    bench.fake.add_keyspace(5);
    let Action::Insert(insert) = &plan.action else { panic!() };
    // The new shard has a copy from before, so the row may not go to the others alone: it is planned again.
    let error = bench.executor.insert(&run, insert, &values).await.err().unwrap();
    assert_eq!(error.retry, Retry::StaleSchema(SchemaVersion(5)));
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16385"), [0, 0]);
}

fn text(value: &str) -> Vec<Scalar> {
    vec![Scalar::Constant(Value::Text(value.into()))]
}

#[tokio::test]
async fn an_update_takes_as_many_shards_as_its_rows() {
    let bench = Bench::new(2).await;
    let (scalars, rows) = insert_rows(10);
    run_insert(&bench, scalars, rows).await.unwrap();
    bench.finish_all().await;
    bench.fake.requests.lock().clear();
    bench.fake.actions.lock().clear();
    let update = |filter, sql| Modify {
        delete: false,
        table: TABLE,
        fragment: Fragment { columns: vec![], ..fragment(filter, sql, &[]) },
        locking_sql: "UPDATE t16384 SET c2 = 'y' RETURNING c1".into(),
        touch: 1,
        moves: None,
    };
    let (by_key, whole) = ("UPDATE t16384 SET c2 = 'x' WHERE c1 = 1", "UPDATE t16384 SET c2 = 'z'");
    let plan = plan(ints(&[1]), Action::Session(SessionCommand::Empty));
    let run = bench.statement(&plan);
    let one = update(KeyFilter::In(vec![vec![ScalarId(0)]]), by_key);
    assert_eq!(bench.executor.modify(&run, &one, &[Value::Int(1)]).await.unwrap().affected, 1);
    let none = bench.executor.modify(&run, &update(KeyFilter::Nothing, whole), &[]).await.unwrap();
    assert_eq!((none.affected, bench.fake.requests.lock().len()), (0, 1));
    assert!(bench.fake.actions.lock().is_empty(), "one shard's write is no transaction over shards");
    let all = bench.executor.modify(&run, &update(KeyFilter::All, whole), &[Value::Int(1)]).await.unwrap();
    assert_eq!(all.affected, 10);
    bench.finish_all().await;
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16384 WHERE c2 = 'z'").iter().sum::<i64>(), 10);
    assert_eq!((bench.fake.acted("prepare"), bench.fake.acted("finish")), (vec![1, 2], vec![1, 2]));
}

#[tokio::test]
async fn a_bound_on_waiting_travels_with_a_write() {
    let bench = Bench::new(2).await;
    let (scalars, one) = insert_rows(1);
    let plan = plan(scalars, Action::Insert(one));
    let mut run = bench.statement(&plan);
    run.lock_timeout = Some(Duration::from_secs(1));
    let values = bench.executor.scalars(&plan, &run).await.unwrap();
    let Action::Insert(insert) = &plan.action else { panic!() };
    assert_eq!(bench.executor.insert(&run, insert, &values).await.unwrap().affected, 1);
    assert_eq!(bench.fake.acted("commit").len(), 0, "it is no transaction because of that");
    let requests = bench.fake.requests.lock();
    let Access::Write { lock_timeout, .. } = &requests[0].access else { panic!() };
    assert_eq!(*lock_timeout, run.lock_timeout);
}

#[tokio::test]
async fn a_read_is_given_up_and_a_write_is_not() {
    let bench = Bench::new(1).await;
    bench.fake.faults.lock().push_back(Fault::Hang);
    let count = fragment(KeyFilter::All, "SELECT count(*) FROM t16384", &[]);
    let query = Query { fragments: vec![count], gather: stream(vec![]), lock: None };
    let read = run_query(&bench, vec![], query);
    let cancel = async {
        tokio::task::yield_now().await;
        bench.interrupt.raise(Reason::Requested);
    };
    let (read, ()) = tokio::join!(read, cancel);
    assert_eq!(read.unwrap_err().sqlstate.as_str(), "57014");
    // Before it is sent, a write can be given up as well.
    let (scalars, insert) = insert_rows(1);
    assert_eq!(run_insert(&bench, scalars, insert).await.unwrap_err().sqlstate.as_str(), "57014");
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16384"), [0]);
}

#[tokio::test]
async fn scalars_are_evaluated_in_order() {
    let mut bench = Bench::new(1).await;
    bench.parameters = vec![Value::Int(40)];
    let scalars = vec![
        Scalar::Parameter(0),
        Scalar::Constant(Value::Int(2)),
        Scalar::Expression { sql: "?1 + ?2".into(), params: vec![ScalarId(0), ScalarId(1)] },
        Scalar::NextValue(SEQUENCE),
        Scalar::NextValue(SEQUENCE),
        Scalar::Literal { slot: 0, ty: Typed::plain(Type::Int4) },
    ];
    let plan = plan(scalars, Action::Session(SessionCommand::Empty));
    let run = bench.statement(&plan);
    let values = bench.executor.scalars(&plan, &run).await.unwrap();
    assert_eq!(values, [40, 2, 42, 1, 2, 1].map(Value::Int));
}

#[tokio::test]
async fn a_statement_that_runs_long_still_gets_values_of_a_sequence() {
    let bench = Bench::new(1).await;
    let plan = plan(vec![], Action::Session(SessionCommand::Empty));
    let mut run = bench.statement(&plan);
    run.retry_for = Duration::from_millis(50);
    let begun = Instant::now();
    while begun.elapsed() <= run.retry_for {
        tokio::task::yield_now().await;
    }
    let row = bench.executor.make_row(&run, &[RowValue::NextValue(SEQUENCE)], &[], vec![]).await;
    assert_eq!(row.unwrap(), [Value::Int(1)]);
}

async fn copy(bench: &Bench, pieces: &[&[u8]]) -> Result<u64, Box<Report>> {
    let copy = CopyIn {
        columns: vec![("a".into(), Typed::plain(Type::Int4)), ("b".into(), Typed::plain(Type::Text))],
        insert: insert(sharded(), TABLE, vec![]),
        row: vec![RowValue::Input(0), RowValue::Input(1)],
        format: CopyFormat {
            csv: false,
            delimiter: b'\t',
            null: "\\N".into(),
            header: false,
            quote: b'"',
            escape: b'"',
            force_quote: vec![],
        },
    };
    let plan = plan(vec![], Action::CopyIn(copy));
    let run = bench.statement(&plan);
    let mut copying = bench.executor.copy_begin(&run).await?;
    for piece in pieces {
        bench.executor.copy_feed(&run, &mut copying, piece).await?;
    }
    bench.executor.copy_end(&run, &mut copying).await
}

#[tokio::test]
async fn copy_spreads_rows_in_pieces() {
    let bench = Bench::new(2).await;
    assert_eq!(copy(&bench, &[b"1\tx\n2", b"\ty\n3\t\\N\n", b"4\tlast"]).await.unwrap(), 4);
    bench.finish_all().await;
    let rows = bench.fake.on_each("SELECT count(*) FROM t16384");
    assert_eq!(rows.iter().sum::<i64>(), 4);
}

#[tokio::test]
async fn copy_tells_line_and_column_of_what_is_wrong() {
    let bench = Bench::new(2).await;
    let report = copy(&bench, &[b"1\tx\n2\ty\nthree\tz\n"]).await.unwrap_err();
    assert_eq!(report.error.sqlstate.as_str(), "22P02");
    assert_eq!(report.context.as_deref(), Some("COPY t, line 3, column a: \"three\""));
    let report = copy(&bench, &[b"1\tx\n2\n"]).await.unwrap_err();
    assert_eq!(report.error.sqlstate.as_str(), "22P04");
    assert_eq!(report.context.as_deref(), Some("COPY t, line 2: \"2\""));
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16384"), [0, 0]);
}

#[tokio::test]
async fn copy_is_all_or_nothing_however_many_batches_it_takes() {
    let mut bench = Bench::new(2).await;
    bench.executor.config.batch_bytes = 100;
    let rows: String = (1..=200).map(|n| format!("{n}\tsome text\n")).collect();
    let bad = format!("{rows}x\ty\n");
    assert_eq!(copy(&bench, &[bad.as_bytes()]).await.unwrap_err().error.sqlstate.as_str(), "22P02");
    // What was sent is let go in the background.
    while bench.fake.open_branches() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16384"), [0, 0]);
    assert!(bench.fake.requests.lock().len() > 4, "one batch proves nothing");
    assert_eq!(copy(&bench, &[rows.as_bytes()]).await.unwrap(), 200);
    bench.finish_all().await;
    assert_eq!(bench.fake.on_each("SELECT count(*) FROM t16384").iter().sum::<i64>(), 200);
    assert_eq!(bench.fake.acted("prepare"), [1, 2], "one transaction");
}

/// A query of all shards.
fn everything() -> Query {
    let all = fragment(KeyFilter::All, "SELECT c1 FROM t16384 ORDER BY c1", &[]);
    let key = MergeKey { column: 0, descending: false, nulls_first: false };
    Query { fragments: vec![all], gather: stream(vec![key]), lock: None }
}

/// What was asked of the shards for cuts: what, of which shard, and for which cut.
fn cut_actions(bench: &Bench) -> Vec<(&'static str, u64, u64)> {
    let cuts = bench.fake.cuts.lock();
    cuts.iter().map(|(kind, request)| (*kind, request.shard.0, request.cut.sequence)).collect()
}

#[tokio::test]
async fn what_is_on_several_shards_is_read_as_of_one_moment() {
    let bench = Bench::new(4).await;
    let (scalars, insert) = insert_rows(10);
    run_insert(&bench, scalars, insert).await.unwrap();
    bench.fake.requests.lock().clear();
    assert_eq!(run_query(&bench, vec![], everything()).await.unwrap(), (1..=10).collect::<Vec<_>>());
    assert_eq!(cut_actions(&bench), (1..=4).map(|shard| ("open", shard, 1)).collect::<Vec<_>>());
    let requests = std::mem::take(&mut *bench.fake.requests.lock());
    assert!(requests.len() == 4 && requests.iter().all(|r| r.cut.is_some_and(|cut| cut.sequence == 1)));
    let one = fragment(KeyFilter::In(vec![vec![ScalarId(0)]]), "SELECT c1 FROM t16384 WHERE c1 = ?1", &[0]);
    let query = Query { fragments: vec![one], gather: stream(vec![]), lock: None };
    assert_eq!(run_query(&bench, ints(&[3]), query).await.unwrap(), [3]);
    assert!(cut_actions(&bench).len() == 4 && bench.fake.requests.lock()[0].cut.is_none());
}

#[tokio::test]
async fn what_is_pending_is_settled_by_all_whom_it_concerns_before_anything_is_read() {
    let bench = Bench::new(4).await;
    let unsettled = |sequence, shards: &[u64]| Unsettled {
        transaction: TransactionId { router: RouterIncarnation(9), sequence },
        participants: shards.iter().map(|shard| ShardId(*shard)).collect(),
    };
    let two = |query: &mut Query| {
        query.fragments[0].target = Target::Keyspace {
            keyspace: MAIN,
            key: vec![Type::Int4],
            filter: KeyFilter::In(vec![(0..20).map(ScalarId).collect()]),
        }
    };
    let mut query = everything();
    two(&mut query);
    // The second shard has one pending; the first learns of another when it is to be closed.
    let none = || Ok(vec![]);
    let late = Ok(vec![unsettled(2, &[1, 2])]);
    let answers = [none(), Ok(vec![unsettled(1, &[2, 3])]), none(), none()];
    bench.fake.cut_answers.lock().extend(answers);
    bench.fake.cut_answers.lock().extend([none(), none(), none(), none(), late]);
    run_query(&bench, ints(&(0..20).collect::<Vec<_>>()), query).await.unwrap();
    let actions = cut_actions(&bench);
    let of = |kind| actions.iter().filter(|(done, ..)| *done == kind).count();
    assert_eq!((of("open"), of("settle"), of("close")), (4, 8, 8), "{actions:?}");
    let settled = |known: usize| {
        let cuts = bench.fake.cuts.lock();
        let knows =
            |request: &CutRequest| matches!(&request.action, CutAction::Settle(all) if all.len() == known);
        cuts.iter().filter(|(_, request)| knows(request)).count()
    };
    assert_eq!((settled(1), settled(2)), (4, 4));
}

#[tokio::test]
async fn a_read_begins_anew_when_a_shard_has_given_its_cut_up() {
    let bench = Bench::new(2).await;
    let (scalars, insert) = insert_rows(10);
    run_insert(&bench, scalars, insert).await.unwrap();
    bench.fake.faults.lock().push_back(Fault::Before(cut_lost()));
    assert_eq!(run_query(&bench, vec![], everything()).await.unwrap(), (1..=10).collect::<Vec<_>>());
    let opened: Vec<_> = cut_actions(&bench).into_iter().filter(|(kind, ..)| *kind == "open").collect();
    assert_eq!(opened, [("open", 1, 1), ("open", 2, 1), ("open", 1, 2), ("open", 2, 2)]);
    let lost = std::iter::repeat_with(|| Err(cut_lost())).take(10_000);
    bench.fake.cut_answers.lock().extend(lost);
    let mut impatient = bench;
    impatient.timeout = Duration::from_millis(20);
    let error = run_query(&impatient, vec![], everything()).await.unwrap_err();
    assert!(["40001", "57014"].contains(&error.sqlstate.as_str()), "{error}");
}

/// A query over the tables `s0` and `s1`, each of which has all rows.
fn of_two_fragments(sql: &str) -> Query {
    let all = || fragment(KeyFilter::All, "SELECT c1 FROM t16384", &[]);
    let source = |place: usize| Source {
        name: format!("s{place}"),
        columns: vec![Type::Int4],
        rows: SourceRows::Fragment(place),
    };
    let gather = Gather::Sqlite { sources: vec![source(0), source(1)], sql: sql.into(), params: vec![] };
    Query { fragments: vec![all(), all()], gather, lock: None }
}

#[tokio::test]
async fn fragments_of_one_statement_share_their_cut() {
    let bench = Bench::new(1).await;
    let query = of_two_fragments("SELECT count(*) FROM s0, s1");
    assert_eq!(run_query(&bench, vec![], query).await.unwrap(), [0]);
    let cuts = bench.fake.cuts.lock();
    let [(_, CutRequest { action: CutAction::Open { tables, scans, .. }, .. })] = &cuts[..] else { panic!() };
    assert_eq!((&tables[..], *scans), (&[TABLE][..], Some(2)));
}

/// The fragments of a transaction's statement on one shard are statements of its branch, which are numbered.
#[tokio::test]
async fn what_one_branch_reads_is_asked_for_one_after_the_other() {
    let bench = Bench::new(2).await;
    let query = of_two_fragments("SELECT (SELECT count(*) FROM s0) + (SELECT count(*) FROM s1)");
    let plan = plan(vec![], Action::Query(query.clone()));
    let (scalars, rows) = insert_rows(20);
    let rows = Arc::new(Plan { scalars, ..Plan::clone(&self::plan(vec![], Action::Insert(rows))) });
    let alone = bench.statement(&rows);
    let transaction = bench.executor.begin(&alone);
    let within = alone.within(Some(&transaction));
    let values = bench.executor.scalars(&rows, &within).await.unwrap();
    let Action::Insert(insert) = &rows.action else { panic!() };
    assert_eq!(bench.executor.insert(&within, insert, &values).await.unwrap().affected, 20);

    // Begun anew, the numbers go on where the shard has them.
    let run = bench.statement(&plan);
    let run = run.within(Some(&transaction));
    bench.fake.faults.lock().push_back(Fault::Before(cut_lost()));
    let rows = bench.executor.query(&run, &query, &[]).await.unwrap();
    assert_eq!(first_column(rows).await.unwrap(), [40]);

    // The first that is asked never answers: nothing else is asked of its branch.
    bench.fake.requests.lock().clear();
    bench.fake.faults.lock().push_back(Fault::Hang);
    let mut read = Box::pin(bench.executor.query(&run, &query, &[]));
    for _ in 0..100 {
        assert!(futures::poll!(&mut read).is_pending());
        tokio::task::yield_now().await;
    }
    let shards: Vec<_> = bench.fake.requests.lock().iter().map(|request| request.shard.0).collect();
    assert_eq!(shards.iter().filter(|shard| **shard == shards[0]).count(), 1, "{shards:?}");
}
