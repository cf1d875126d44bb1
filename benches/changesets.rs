//! What a write pays beside SQLite itself: capturing its changes on the leader, applying them on a follower.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use replica::session::{self, Capturing};
use rusqlite::Connection;

const TABLE: &str = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 INTEGER, c3 TEXT) STRICT";

fn database(rows: u32) -> Connection {
    let connection = Connection::open_in_memory().expect("memory is there");
    connection.execute_batch(TABLE).expect("the statement is good");
    let mut insert =
        connection.prepare("INSERT INTO t1 VALUES (?1, 0, 'a filler of some length')").expect("it is good");
    for id in 0..rows {
        insert.execute([id]).expect("the key is new");
    }
    drop(insert);
    connection.execute_batch("BEGIN").expect("no transaction is open");
    connection
}

fn update(connection: &Connection, rows: u32) {
    let mut update =
        connection.prepare_cached("UPDATE t1 SET c2 = c2 + 1 WHERE c1 = ?1").expect("it is good");
    for id in 0..rows {
        update.execute([id]).expect("the row is there");
    }
}

fn captured(leader: &mut Capturing, rows: u32) -> Bytes {
    leader.begin_capture();
    update(leader, rows);
    let changeset = leader.capture().expect("it is under way").changeset().expect("it was captured");
    leader.end_capture();
    changeset
}

fn capture(c: &mut Criterion) {
    for rows in [1u32, 100] {
        let mut group = c.benchmark_group(format!("update of {rows} rows"));
        group.throughput(Throughput::Elements(rows.into()));
        let mut leader = Capturing::new(database(1000));
        group.bench_function("plain", |b| b.iter(|| update(&leader, rows)));
        group.bench_function("captured", |b| b.iter(|| captured(&mut leader, rows)));
        let changeset = captured(&mut Capturing::new(database(1000)), rows);
        let follower = database(1000);
        group.bench_function("apply", |b| {
            b.iter_batched(
                || follower.execute_batch("ROLLBACK; BEGIN").expect("a transaction is open"),
                |()| session::apply(&follower, &changeset).expect("the rows are as they were"),
                BatchSize::PerIteration,
            )
        });
        group.finish();
    }
}

criterion_group!(benches, capture);
criterion_main!(benches);
