//! Files of new shards, compared with what SQL says of the old ones'.

use super::copy::Copying;
use super::plan::{Plan, Target, file, image};
use super::{Build, Next, Work};
use crate::fence::{self, Standing, State};
use crate::layout::tests::{Chance, fill, make, tables};
use crate::layout::{Layouts, Share};
use proto::catalog::{Index, IndexColumn, Table};
use proto::machine::Machine;
use proto::services::{Built, Progress};
use proto::topology::Sharding;
use proto::{ColumnId, IndexId, KeyRange, SchemaVersion, ShardId, SqlState, Value};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const ROWS: u64 = 300;
/// So that there are many.
const BATCH: u64 = 3000;

/// The tables, some of them with indexes.
fn all() -> Vec<Table> {
    let mut tables = tables();
    for table in tables.iter_mut().step_by(3) {
        let column = |column| IndexColumn { column, descending: false, nulls_first: false };
        let columns = [table.columns[0].id, ColumnId(9)].map(column).to_vec();
        let id = IndexId(100 + table.id.0);
        table.indexes.push(Index { id, name: "i".into(), columns, unique: true, constraint: false });
    }
    tables
}

/// Images of these shards of a range keyspace, which have about as many rows each.
fn images(directory: &Path, sharding: Sharding, shards: &[(u64, KeyRange)]) {
    let whole = Connection::open_in_memory().unwrap();
    let tables = all();
    make(&whole, &tables, sharding);
    tables.iter().for_each(|table| fill(&whole, table, ROWS, &mut Chance(u64::from(table.id.0))));
    let layouts = Layouts::read(&whole).unwrap();
    for (number, (shard, range)) in shards.iter().enumerate() {
        let path = image(directory, ShardId(*shard));
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; BEGIN").unwrap();
        replica::lay_out(&connection).unwrap();
        let least = SchemaVersion(10 + number as u64);
        for statement in fence::init(ShardId(*shard), State::Open, least) {
            connection.execute_batch(&statement).unwrap();
        }
        connection.execute_batch("DROP TABLE shoal_layout").unwrap();
        make(&connection, &tables, sharding);
        let n = *shard;
        connection
            .execute_batch(&format!(
                "INSERT INTO replica_state VALUES (1, {0}, 1, x'');
                 INSERT INTO replica_marks VALUES (7, {n}), ({n}, 3);
                 INSERT INTO replica_requests VALUES (7, 1, x'01'), (7, 100, x'{n:02x}'), ({n}, 5, x'05');
                 INSERT INTO replica_schema VALUES (1, 1, {0}, NULL), (2, {n}, 9, x'ff');
                 INSERT INTO replica_holds VALUES ('reshard/1', 4);
                 INSERT INTO replica_notes VALUES ('a', x'{n:02x}');
                 INSERT INTO shoal_ended VALUES (1, 2, x'')",
                1000 + n
            ))
            .unwrap();
        let share = Share { range: range.clone(), references: true };
        for (id, laid) in layouts.tables() {
            for row in rows(&whole, &format!("SELECT * FROM t{id}")) {
                if laid.is_in(&share, |place| row[place].as_ref()) {
                    let values: Vec<_> = row.iter().map(literal).collect();
                    let sql = format!("INSERT INTO t{id} VALUES ({})", values.join(", "));
                    connection.execute_batch(&sql).unwrap();
                }
            }
        }
        connection.execute_batch("COMMIT").unwrap();
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Int(int) => int.to_string(),
        Value::Real(real) => format!("{real:e}"),
        Value::Text(text) => format!("'{text}'"),
        Value::Blob(blob) => {
            format!("x'{}'", blob.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    }
}

fn rows(connection: &Connection, sql: &str) -> Vec<Vec<Value>> {
    use rusqlite::types::Value as Stored;
    let mut statement = connection.prepare(sql).unwrap();
    let width = statement.column_count();
    let rows = statement.query_map([], |row| {
        let value = |place| {
            Ok(match row.get(place)? {
                Stored::Null => Value::Null,
                Stored::Integer(int) => Value::Int(int),
                Stored::Real(real) => Value::Real(real),
                Stored::Text(text) => Value::Text(text),
                Stored::Blob(blob) => Value::Blob(blob),
            })
        };
        (0..width).map(value).collect()
    });
    rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

fn range(start: &[u8], end: Option<&[u8]>) -> KeyRange {
    KeyRange { start: start.to_vec(), end: end.map(<[u8]>::to_vec) }
}

/// Cuts at every bound, from the first id on.
fn cut(bounds: &[&[u8]]) -> Vec<KeyRange> {
    let starts = [&[][..]].into_iter().chain(bounds.iter().copied());
    let ends = bounds.iter().map(|bound| Some(*bound)).chain([None]);
    starts.zip(ends).map(|(start, end)| range(start, end)).collect()
}

fn plan(directory: &Path, sources: &[u64], targets: &[KeyRange]) -> Plan {
    let targets = (101..).zip(targets).map(|(id, range)| Target { shard: ShardId(id), range: range.clone() });
    Plan {
        directory: directory.to_owned(),
        sources: sources.iter().copied().map(ShardId).collect(),
        targets: targets.collect(),
    }
}

/// Compares the new files with the images, and with each other.
fn check(plan: &Plan) {
    let sources: Vec<_> =
        plan.sources.iter().map(|shard| Connection::open(image(&plan.directory, *shard)).unwrap()).collect();
    let schema =
        "SELECT type, name, sql FROM sqlite_schema WHERE tbl_name GLOB 't[0-9]*' ORDER BY type, name";
    for target in &plan.targets {
        let new = Connection::open(file(&plan.directory, target.shard)).unwrap();
        assert_eq!(rows(&new, "PRAGMA integrity_check"), [[Value::Text("ok".into())]]);
        assert_eq!(rows(&new, schema), rows(&sources[0], schema));
        let share = Share { range: target.range.clone(), references: true };
        let mut count = 0;
        for (id, laid) in Layouts::read(&sources[0]).unwrap().tables() {
            let from =
                if laid.layout.place == proto::layout::Place::Reference { &sources[..1] } else { &sources };
            let columns = &laid.layout.columns;
            let key: Vec<_> = laid
                .layout
                .primary_key
                .iter()
                .map(|place| format!("c{}", columns[*place as usize].id))
                .collect();
            let key = key.join(", ");
            let mut expected: Vec<_> =
                from.iter().flat_map(|source| rows(source, &format!("SELECT * FROM t{id}"))).collect();
            expected.retain(|row| laid.is_in(&share, |place| row[place].as_ref()));
            // They lie in the file in the order of their keys.
            let there = rows(&new, &format!("SELECT * FROM t{id} NOT INDEXED ORDER BY rowid"));
            assert_eq!(there, rows(&new, &format!("SELECT * FROM t{id} ORDER BY {key}")));
            let sorted = |rows: Vec<Vec<Value>>| {
                let mut rows: Vec<_> = rows.iter().map(|row| format!("{row:?}")).collect();
                rows.sort();
                rows
            };
            assert_eq!(sorted(there), sorted(expected.clone()), "table {id} of {}", target.shard);
            count += expected.len();
        }
        assert!(count > 500, "{count}");
        let standing = Standing::read(&new).unwrap();
        let least = SchemaVersion(10 + plan.sources.len() as u64 - 1);
        assert_eq!((standing.shard, standing.state, standing.least), (target.shard, State::Following, least));
        let layouts = "SELECT * FROM shoal_layout";
        assert_eq!(rows(&new, layouts), rows(&sources[0], layouts));
        for table in ["replica_holds", "replica_state", "shoal_ended", "shoal_prepared"] {
            assert_eq!(rows(&new, &format!("SELECT * FROM {table}")).len(), 0, "{table}");
        }
        assert!(!new.table_exists(None, "shoal_building").unwrap());
        let last = plan.sources.iter().map(|shard| shard.0).max().unwrap().cast_signed();
        let first = plan.sources[0].0.cast_signed();
        assert_eq!(rows(&new, "SELECT settled FROM replica_marks WHERE router = 7"), [[Value::Int(last)]]);
        let answers = rows(&new, "SELECT sequence, output FROM replica_requests WHERE router = 7");
        // The first answer to a request stays, and settled ones are forgotten.
        assert_eq!(answers, [[Value::Int(100), Value::Blob(vec![first as u8])]]);
        for source in &plan.sources {
            let n = source.0.cast_signed();
            let found = rows(&new, &format!("SELECT sequence FROM replica_requests WHERE router = {n}"));
            assert_eq!(found, [[Value::Int(5)]]);
            let step = rows(
                &new,
                &format!("SELECT position, failure FROM replica_schema WHERE step = {n} AND job = 2"),
            );
            assert_eq!(step, [[Value::Int(1), Value::Blob(vec![255])]]);
            let position =
                rows(&new, &format!("SELECT position, attempt FROM shoal_source WHERE shard = {n}"));
            assert_eq!(position, [[Value::Int(1000 + n), Value::Int(0)]]);
        }
        assert_eq!(rows(&new, "SELECT value FROM replica_notes"), [[Value::Blob(vec![first as u8])]]);
    }
}

fn open(plan: &Plan) -> Copying {
    Copying::open(plan).unwrap().in_batches_of(BATCH)
}

fn build(plan: &Plan) -> u32 {
    let mut copying = open(plan);
    let mut steps = 0;
    while !copying.step().unwrap() {
        steps += 1;
    }
    steps
}

fn ids(sharding: Sharding) -> [&'static [u8]; 3] {
    match sharding {
        Sharding::Hash => [&[0x40], &[0x80], &[0xc0]],
        // Range ids begin with the kind of the first value.
        _ => [&[0x10, 0x80, 0, 0, 0, 0, 0, 0, 5], &[0x20, b'a'], &[0x28, 0x80]],
    }
}

#[test]
fn files_of_one_image_have_its_rows() {
    for sharding in [Sharding::Hash, Sharding::Range] {
        let directory = tempfile::tempdir().unwrap();
        images(directory.path(), sharding, &[(2, KeyRange::full())]);
        let plan = plan(
            directory.path(),
            &[2],
            &cut(&ids(sharding)[..if sharding == Sharding::Hash { 3 } else { 1 }]),
        );
        assert!(build(&plan) > 30);
        check(&plan);
        // It is as it is, however often it is asked for.
        assert_eq!(build(&plan), 0);
        check(&plan);
    }
}

#[test]
fn several_images_become_one_file_or_several() {
    for sharding in [Sharding::Hash, Sharding::Range] {
        let ids = ids(sharding);
        for bounds in [&[][..], &ids[1..2]] {
            let directory = tempfile::tempdir().unwrap();
            let shards: Vec<_> = (2..).zip(cut(&ids)).collect();
            images(directory.path(), sharding, &shards);
            let plan = plan(directory.path(), &[2, 3, 4, 5], &cut(bounds));
            build(&plan);
            check(&plan);
        }
    }
}

#[test]
fn whatever_stops_it_it_goes_on_from_the_last_batch() {
    let prepared = tempfile::tempdir().unwrap();
    images(prepared.path(), Sharding::Hash, &(2..).zip(cut(&[&[0x60]])).collect::<Vec<_>>());
    let targets = cut(&[&[0x30], &[0xa0]]);
    let copied = |to: &Path| {
        for entry in std::fs::read_dir(prepared.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    // Each step is the last one of a run; of a batch, some of the files have it.
    let directory = tempfile::tempdir().unwrap();
    copied(directory.path());
    let plan = plan(directory.path(), &[2, 3], &targets);
    let (mut runs, mut most) = (0_u64, 0);
    loop {
        let copying = open(&plan);
        let rows = copying.progress().0;
        assert!(rows >= most, "it has forgotten some");
        most = rows;
        runs += 1;
        if copying.step_in_part(runs as usize % 4).unwrap() {
            break;
        }
    }
    assert!(runs > 100, "{runs}");
    check(&plan);
    // So it is if it stops before it has done anything, and at the end.
    assert_eq!(build(&plan), 0);
}

#[test]
fn progress_grows_from_nothing_to_all() {
    let directory = tempfile::tempdir().unwrap();
    images(directory.path(), Sharding::Hash, &(2..).zip(cut(&[&[0x60]])).collect::<Vec<_>>());
    let plan = plan(directory.path(), &[2, 3], &cut(&[&[0x30], &[0xa0]]));
    let (mut copying, mut seen) = (open(&plan), Vec::new());
    loop {
        let (rows, bytes) = copying.progress();
        seen.push((rows, bytes.done));
        if copying.step().unwrap() {
            break;
        }
    }
    let (all, total) = (seen.last().unwrap().0, copying.progress().1.total);
    assert_eq!((seen[0], seen.last().unwrap().1), ((0, 0), total));
    assert!(seen.is_sorted() && seen.len() > 20, "{seen:?}");
    // What the indexes take is a part of it.
    let (_, copied) = seen.iter().find(|(rows, _)| *rows == all).unwrap();
    assert!((total / 4..total * 9 / 10).contains(copied), "{copied} of {total}");
    // Opened anew it says so, too.
    assert_eq!(open(&plan).progress().1, Progress { done: total, total });
}

#[test]
fn a_full_disk_is_told_and_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    images(directory.path(), Sharding::Hash, &[(2, KeyRange::full())]);
    let plan = plan(directory.path(), &[2], &cut(&[&[0x50]]));
    drop(open(&plan));
    let (mut full, mut pages) = (0, 0);
    loop {
        // It gets room for some more each time.
        let mut copying = open(&plan);
        pages = copying.limit(pages + 7);
        let error = loop {
            match copying.step() {
                Ok(true) => break None,
                Ok(false) => {}
                Err(error) => break Some(error),
            }
        };
        let Some(error) = error else { break };
        assert_eq!(error.sqlstate, SqlState::DISK_FULL, "{error}");
        full += 1;
    }
    assert!(full > 5, "{full}");
    check(&plan);
}

#[test]
fn images_of_other_tables_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    images(directory.path(), Sharding::Hash, &(2..).zip(cut(&[&[0x60]])).collect::<Vec<_>>());
    let plan = plan(directory.path(), &[2, 3], &[KeyRange::full()]);
    let other = Connection::open(image(directory.path(), ShardId(3))).unwrap();
    other.execute_batch("CREATE INDEX i99 ON t1 (c9)").unwrap();
    let error = Copying::open(&plan).err().unwrap();
    assert!(error.to_string().contains("shards 2 and 3 have other tables"), "{error}");
    other.execute_batch("DROP INDEX i99; DELETE FROM shoal_layout WHERE table_id = 4").unwrap();
    let error = Copying::open(&plan).err().unwrap();
    assert!(error.to_string().contains("shards 2 and 3 have other tables"), "{error}");
}

#[test]
fn rows_are_read_in_the_order_of_an_index() {
    let directory = tempfile::tempdir().unwrap();
    images(directory.path(), Sharding::Hash, &[(2, KeyRange::full())]);
    let connection = Connection::open(image(directory.path(), ShardId(2))).unwrap();
    let copying = open(&plan(directory.path(), &[2], &[KeyRange::full()]));
    for sql in copying.scans() {
        let steps = rows(&connection, &format!("EXPLAIN QUERY PLAN {}", sql.replace('?', "'x' || ")));
        assert_eq!(steps.len(), 1, "nothing is sorted: {steps:?}");
        let Value::Text(step) = &steps[0][3] else { panic!("a text") };
        let searches = step.starts_with("SEARCH");
        assert!(searches == sql.contains("WHERE") && (searches || step.starts_with("SCAN")), "{sql}: {step}");
    }
    assert_eq!(copying.scans().len(), 2 * all().len());
}

#[test]
fn who_asks_hears_of_a_full_disk_and_by_asking_has_it_go_on() {
    let directory = tempfile::tempdir().unwrap();
    images(directory.path(), Sharding::Hash, &[(2, KeyRange::full())]);
    let plan = plan(directory.path(), &[2], &cut(&[&[0x50]]));
    let build = Arc::new(Build::new(directory.path().to_owned()));
    let ask = || build.copy(&mut build.work.lock(), plan.clone());
    let rest = |rests| build.work.lock().rests = rests;
    // The slices until there is nothing more to do.
    let go_on = |limit: Option<u32>| {
        while let Next::Slice { .. } = build.slice() {
            if let (Some(copying), Some(pages)) = (&*build.copying.lock(), limit) {
                copying.limit(pages);
            }
        }
    };
    assert!(matches!(ask().unwrap(), Built::Copying(_)));
    go_on(Some(60));
    // One that is to rest isn't gone on with, and nothing is told that nobody can do anything about.
    rest(true);
    assert!(matches!(ask().unwrap(), Built::Copying(_)));
    rest(false);
    assert_eq!(ask().unwrap_err().sqlstate, SqlState::DISK_FULL);
    assert!(matches!(ask().unwrap(), Built::Copying(_)));
    rest(true);
    assert!(matches!(build.slice(), Next::Nothing));
    rest(false);
    go_on(None);
    assert_eq!(ask().unwrap(), Built::Copied);
    check(&plan);
    let other = Plan { targets: Vec::new(), ..plan.clone() };
    let (mut fresh, known) = (Work::default(), build.copy(&mut Work::default(), other.clone()));
    assert!(known.is_ok() && build.copy(&mut fresh, plan.clone()).is_ok());
    assert!(build.copy(&mut fresh, other).unwrap_err().to_string().contains("another plan"));
}

/// A full disk under an image, too: it is gone then, and whoever hears only that begins it again on the same disk.
#[test]
fn a_full_disk_is_told_before_what_is_gone_because_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let plan = plan(directory.path(), &[2], &cut(&[&[0x50]]));
    let build = Build::new(directory.path().to_owned());
    let ask = || build.copy(&mut build.work.lock(), plan.clone());
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    build.fail(super::io(&image(directory.path(), ShardId(2)), full));
    // Who has it rest until there is room isn't told that there is something to begin anew.
    build.work.lock().rests = true;
    assert!(matches!(ask().unwrap(), Built::Copying(_)));
    build.work.lock().rests = false;
    assert_eq!(ask().unwrap_err().sqlstate, SqlState::DISK_FULL);
    build.work.lock().rests = true;
    assert!(matches!(ask().unwrap(), Built::Copying(_)));
    build.work.lock().rests = false;
    assert_eq!(ask().unwrap(), Built::Lost("the image of shard 2".into()));
}

#[tokio::test]
async fn who_asks_hears_of_a_panic_and_by_asking_has_it_go_on() {
    let directory = tempfile::tempdir().unwrap();
    images(directory.path(), Sharding::Hash, &[(2, KeyRange::full())]);
    let plan = plan(directory.path(), &[2], &cut(&[&[0x50]]));
    let build = Arc::new(Build::new(directory.path().to_owned()));
    let mut broken = open(&plan);
    broken.lose_sources();
    *build.copying.lock() = Some(broken);
    let at_work = tokio::spawn(Arc::clone(&build).go_on(Machine::default()));
    let told = async || loop {
        let told = build.copy(&mut build.work.lock(), plan.clone());
        build.news.notify_one();
        match told {
            Ok(Built::Copying(_)) => tokio::task::yield_now().await,
            told => return told,
        }
    };
    let error = told().await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::INTERNAL_ERROR);
    assert!(error.message.contains("panicked with message"), "{error}");
    assert_eq!(told().await.unwrap(), Built::Copied);
    check(&plan);
    at_work.abort();
}

/// An index is made in one go, which pauses, and can be given up. It is made anew then.
#[test]
fn what_makes_an_index_pauses() {
    let directory = tempfile::tempdir().unwrap();
    images(directory.path(), Sharding::Hash, &[(2, KeyRange::full())]);
    let plan = plan(directory.path(), &[2], &cut(&[&[0x50]]));
    let (pauses, is_given_up) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(true)));
    let open = || {
        let (pauses, is_given_up) = (Arc::clone(&pauses), Arc::clone(&is_given_up));
        let pause = Arc::new(move || {
            pauses.fetch_add(1, Ordering::Relaxed);
            is_given_up.load(Ordering::Relaxed)
        });
        Copying::open(&plan).unwrap().pausing(pause)
    };
    let mut copying = open();
    let given_up = loop {
        match copying.step() {
            Ok(is_done) => assert!(!is_done),
            Err(error) => break error,
        }
    };
    assert_eq!((given_up.sqlstate, pauses.load(Ordering::Relaxed)), (SqlState::QUERY_CANCELED, 1));
    drop(copying);
    is_given_up.store(false, Ordering::Relaxed);
    let mut copying = open();
    while !copying.step().unwrap() {}
    assert!(pauses.load(Ordering::Relaxed) > 2, "{pauses:?}");
    check(&plan);
}
