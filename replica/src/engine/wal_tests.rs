//! The WAL: what a checkpoint makes durable, who keeps it from being emptied, and how it gets short again.

use super::*;
use crate::clock::Clock;
use crate::readers::Readers;
use std::time::Duration;
use tempfile::TempDir;

const ROW: &str = "INSERT OR REPLACE INTO t1 VALUES (1, randomblob(5000))";

/// One engine, written to directly: what counts here is the WAL.
struct Store {
    engine: Engine,
    _directory: TempDir,
}

impl Store {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            transaction_bytes: 1 << 20,
            staged_bytes: 4 << 20,
            batch_bytes: 1 << 16,
            checkpoint_bytes: 1 << 16,
            hold_bytes: 2 << 16,
            end_bytes: 4 << 16,
            remember_for: Duration::from_secs(3600),
            remember_rows: 1 << 14,
            remember_bytes: 64 << 20,
        };
        let init = ["CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2)".to_owned()];
        let engine = Engine::create(directory.path(), &[1], &init, limits).unwrap();
        Self { engine, _directory: directory }
    }

    fn write(&mut self, sql: &str) {
        self.engine.begin(1).unwrap();
        self.engine.connection.execute(sql, []).unwrap();
        self.engine.commit(self.engine.applied() + 1).unwrap();
    }

    fn write_until(&mut self, pressure: Pressure) {
        while self.engine.pressure() < pressure {
            self.write(ROW);
        }
    }

    fn readers(&self) -> Readers {
        Readers::new(self.engine.path().to_owned(), 8, Clock::machine())
    }

    fn wal_file(&self) -> u64 {
        std::fs::metadata(self.engine.path().with_extension("sqlite-wal")).unwrap().len()
    }
}

#[test]
fn a_checkpoint_makes_what_is_applied_durable() {
    let mut store = Store::new();
    assert_eq!(store.engine.durable(), 0);
    store.write_until(Pressure::Copy);
    let readers = store.readers();
    let reader = readers.open(None).unwrap();
    store.write(ROW);
    assert!(!store.engine.empty_wal(Duration::ZERO).unwrap());
    assert_eq!(store.engine.durable(), store.engine.applied(), "a partial checkpoint syncs the WAL");
    assert_eq!(store.engine.pressure(), Pressure::None);
    readers.give_back(reader);
    store.write("DELETE FROM t1");
    assert!(store.engine.empty_wal(Duration::ZERO).unwrap());
    assert_eq!((store.engine.durable(), store.engine.wal_bytes()), (store.engine.applied(), 0));
    assert_eq!(store.wal_file(), 0);
}

#[test]
fn a_checkpoint_that_copied_nothing_makes_nothing_durable() {
    let mut store = Store::new();
    store.write_until(Pressure::Copy);
    store.engine.checkpoint().unwrap();
    let durable = store.engine.durable();
    assert_eq!(durable, store.engine.applied());
    // The WAL is copied, so this one reads the database file itself: nothing may be copied into it meanwhile.
    let readers = store.readers();
    let reader = readers.open(None).unwrap();
    store.write(ROW);
    assert!(store.engine.wal_bytes() < 1 << 16, "the WAL began anew");
    store.engine.checkpoint().unwrap();
    assert_eq!(store.engine.durable(), durable, "the WAL wasn't synced");
    readers.give_back(reader);
    store.engine.checkpoint().unwrap();
    assert_eq!(store.engine.durable(), store.engine.applied());
}

#[test]
fn the_wal_stays_short() {
    let mut store = Store::new();
    let mut checkpoints = 0;
    for _ in 0..300 {
        store.write(ROW);
        if store.engine.pressure() > Pressure::None {
            store.engine.checkpoint().unwrap();
            checkpoints += 1;
        }
        assert!(store.engine.wal_bytes() <= 3 << 16, "{}", store.engine.wal_bytes());
    }
    assert!((10..100).contains(&checkpoints), "{checkpoints}");
}

#[test]
fn the_wal_asks_again_only_after_it_has_grown() {
    let mut store = Store::new();
    let readers = store.readers();
    let reader = readers.open(None).unwrap();
    let mut urgencies = Vec::new();
    for pressure in [Pressure::Copy, Pressure::Empty, Pressure::Empty, Pressure::End, Pressure::End] {
        assert_eq!(store.engine.pressure(), Pressure::None);
        store.write_until(Pressure::Copy);
        assert_eq!(store.engine.pressure(), pressure);
        urgencies.push(store.engine.urgency());
        store.engine.checkpoint().unwrap();
        if pressure > Pressure::Copy {
            assert!(!store.engine.empty_wal(Duration::ZERO).unwrap());
        }
    }
    readers.give_back(reader);
    assert_eq!(urgencies[..3], [1, 1, 1]);
    assert!(urgencies[3..].iter().all(|urgency| *urgency > 1) && urgencies.is_sorted(), "{urgencies:?}");
}

#[test]
fn a_long_read_is_ended_and_the_wal_is_emptied() {
    let mut store = Store::new();
    store.write(ROW);
    let readers = store.readers();
    let reader = readers.open(None).unwrap();
    let (reading, position) = (reader.reading.clone(), reader.position);
    store.write_until(Pressure::End);
    assert!(!store.engine.empty_wal(Duration::ZERO).unwrap(), "the reader has it");
    assert!(store.wal_file() >= 4 << 16);
    assert_eq!(readers.end_older(Duration::from_secs(3600)), 0, "it isn't old enough");
    assert!(reading.why().is_none());

    assert_eq!(readers.end_older(Duration::ZERO), 1);
    // What it reads is still its own state; a statement that runs for long hears of its end.
    assert_eq!(reader.position, position);
    let count = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let error = reader.connection.query_row(count, [], |_| Ok(())).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::OperationInterrupted));
    assert_eq!(reading.why().unwrap().sqlstate, proto::SqlState::SNAPSHOT_TOO_OLD);
    assert_eq!(readers.end_older(Duration::ZERO), 0, "it is ended once");
    readers.give_back(reader);

    assert!(store.engine.empty_wal(Duration::ZERO).unwrap());
    assert_eq!((store.engine.wal_bytes(), store.wal_file()), (0, 0));
    // The connection is as good as new.
    let reader = readers.open(None).unwrap();
    assert_eq!(reader.position.0, store.engine.applied());
    assert!(reader.reading.why().is_none());
}

#[test]
fn new_readers_wait_while_the_wal_is_emptied() {
    let store = Store::new();
    let readers = store.readers();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let far = std::time::Instant::now() + Duration::from_secs(3600);
        let held = readers.hold();
        let mut waiting = std::pin::pin!(readers.permit(far));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let late = readers.permit(std::time::Instant::now()).await.unwrap_err();
        assert_eq!(late.retry, proto::Retry::Later);
        drop(held);
        drop(waiting.await.unwrap());
    });
}
