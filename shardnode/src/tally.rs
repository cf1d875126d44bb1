//! How many rows a shard's tables have, how many bytes these are, and which row is in the middle.
//!
//! In comes a question, out comes what was counted last; what is older than the question wants is counted anew, in the
//! background. A pass reads each table once, in the order of its primary key, a slice at a time, each slice in a
//! snapshot of its own: so it holds nobody up, and rows that change meanwhile may be counted or not. Of tables by range a pass
//! tells, too, how many rows are past the greatest key that there was some minutes before. It must never know who asks.

use crate::build::{Table, borrowed, bytes_of, stored};
use crate::layout::Layouts;
use dialect::physical::table_name;
use dialect::sqlite::error;
use parking_lot::Mutex;
use proto::machine::{self, Machine};
use proto::services::{Consistency, Counted, Growth, ServiceResult, TableTally, Tally};
use proto::{GroupId, TableId, Value, WireError};
use replica::Replica;
use rusqlite::Connection;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// So many bytes of rows are a slice.
const SLICE: u64 = 256 << 10;
/// The middle is looked for among so many rows of a table at most, which lie evenly in it; half of them at least, if it has so many.
const SAMPLE: usize = 1024;
/// Growth is told over so long at least, once a table is known for that, and over twice as long at most if it's counted often.
const MARKED: Duration = Duration::from_secs(300);
/// Of a table with fewer rows nobody can say where others would come.
const FEW: u64 = 100;
/// How long a slice may wait until a snapshot is open.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was counted on a node, and is being counted.
#[derive(Default)]
pub(crate) struct Tallies {
    known: Mutex<BTreeMap<GroupId, Arc<Known>>>,
    /// Passes take turns, so that what they read in a second is no more for there being many.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known(Mutex<State>);

/// What a pass has found of tables by range.
struct Marks {
    at: Instant,
    tables: BTreeMap<TableId, Mark>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    rows: u64,
    greatest: Vec<u8>,
}

#[derive(Default)]
struct State {
    last: Option<(Instant, Duration, Vec<TableTally>)>,
    /// What earlier passes have found, two of them at most. The first is what growth is told over.
    marks: VecDeque<Arc<Marks>>,
    /// The pass that is under way: since when, rows so far, and bytes that it may read in a second.
    since: Option<Instant>,
    rows: u64,
    rate: u64,
    task: Option<AbortHandle>,
}

impl Tallies {
    /// What a replica's tables had, `within` so long ago; or it is being counted.
    pub fn ask(&self, replica: &Replica, within: Duration, rate: u64, machine: &Machine) -> Tally {
        let known = Arc::clone(self.known.lock().entry(replica.group()).or_default());
        let mut state = known.0.lock();
        let now = machine::now();
        let age = state.last.as_ref().map(|(at, ..)| now.saturating_duration_since(*at));
        let is_due = age.is_none_or(|age| age > within);
        let is_running = state.task.as_ref().is_some_and(|task| !task.is_finished());
        if is_due && is_running {
            state.rate = state.rate.max(rate);
        } else if is_due {
            (state.since, state.rows, state.rate) = (Some(now), 0, rate);
            let (turn, machine) = (Arc::clone(&self.turn), machine.clone());
            let pass = Arc::clone(&known).count(replica.clone(), turn, machine);
            state.task = Some(tokio::spawn(pass).abort_handle());
        }
        let counted = state.last.as_ref().zip(age);
        let counted =
            counted.map(|((_, took, tables), age)| Counted { age, took: *took, tables: tables.clone() });
        Tally { counted, counting: is_due.then_some(state.rows) }
    }

    /// Forgets what is of no replica that is here.
    pub fn keep(&self, is_here: impl Fn(GroupId) -> bool) {
        let mut known = self.known.lock();
        known.retain(|group, known| is_here(*group) || known.stop());
    }
}

impl Drop for Tallies {
    fn drop(&mut self) {
        for known in self.known.get_mut().values() {
            known.stop();
        }
    }
}

impl Known {
    /// Ends what is under way. Answers that it isn't kept.
    fn stop(&self) -> bool {
        if let Some(task) = self.0.lock().task.take() {
            task.abort();
        }
        false
    }

    /// Counts once, and notes what it has found.
    async fn count(self: Arc<Self>, replica: Replica, turn: Arc<tokio::sync::Mutex<()>>, machine: Machine) {
        let mut pass = Pass { marks: self.0.lock().marked(machine::now()), ..Pass::default() };
        loop {
            let _turn = turn.lock().await;
            let begun = machine::now();
            let slice = slice(&replica, pass, &machine).await;
            let (after, bytes) = match slice {
                Ok(slice) => slice,
                Err(error) => {
                    tracing::debug!(group = %replica.group(), %error, "rows can't be counted");
                    return;
                }
            };
            let Some(rest) = self.note(&after, bytes) else { return };
            pass = after;
            tokio::time::sleep_until((begun + rest).into()).await;
        }
    }

    /// Takes in how far a pass is. How long it may take for what it has just read; `None` at its end.
    fn note(&self, pass: &Pass, bytes: u64) -> Option<Duration> {
        let mut state = self.0.lock();
        if pass.is_done {
            let now = machine::now();
            let took = state.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            state.last = Some((now, took, pass.told(now)));
            state.mark(Marks { at: now, tables: pass.found.clone() });
            return None;
        }
        state.rows = pass.tables.iter().map(|table| table.rows).sum::<u64>() + pass.current.rows;
        Some(Duration::from_secs_f64(bytes as f64 / state.rate.max(1) as f64))
    }
}

impl State {
    /// What growth is told over: what a pass has found not too lately, or the first that has found anything.
    fn marked(&mut self, now: Instant) -> Option<Arc<Marks>> {
        if let [_, later] = self.marks.make_contiguous()
            && now.saturating_duration_since(later.at) >= MARKED
        {
            self.marks.pop_front();
        }
        self.marks.front().cloned()
    }

    /// Remembers what a pass has found, if it will be told over.
    fn mark(&mut self, found: Marks) {
        if self.marks.len() < 2 {
            self.marks.push_back(Arc::new(found));
        }
    }
}

async fn slice(replica: &Replica, mut pass: Pass, machine: &Machine) -> ServiceResult<(Pass, u64)> {
    let snapshot = replica.snapshot(Consistency::Eventual, machine::now() + PATIENCE).await?;
    let read = move || {
        let bytes = pass.slice(snapshot.connection()).map_err(|error| snapshot.explain(error))?;
        Ok((pass, bytes))
    };
    let read = machine.blocking(read).await;
    read.unwrap_or_else(|_| Err(WireError::internal("counting rows has failed")))
}

/// How far a pass is.
#[derive(Default)]
struct Pass {
    /// What an earlier one has found.
    marks: Option<Arc<Marks>>,
    /// What this one has, of tables by range.
    found: BTreeMap<TableId, Mark>,
    /// Those that are done.
    tables: Vec<TableTally>,
    current: Current,
    is_done: bool,
}

/// The table that is being counted.
#[derive(Default)]
struct Current {
    table: TableId,
    /// The primary key of the last row that was counted.
    after: Option<Vec<Value>>,
    rows: u64,
    bytes: u64,
    sample: Sample,
    /// Of a table by range.
    greatest: Vec<u8>,
    /// How many rows are past what was the greatest.
    past: u64,
}

impl Pass {
    /// What has been counted, as of now.
    fn told(&self, now: Instant) -> Vec<TableTally> {
        let Some(marks) = &self.marks else { return self.tables.clone() };
        let over = now.saturating_duration_since(marks.at);
        let told = self.tables.iter().cloned();
        told.map(|tally| TableTally { growth: tally.growth.map(|growth| Growth { over, ..growth }), ..tally })
            .collect()
    }

    /// Counts the next rows of one table. Says how many bytes it has read.
    fn slice(&mut self, connection: &Connection) -> Result<u64, WireError> {
        let layouts = Layouts::read(connection)?;
        let next = layouts.into_tables().find(|(id, _)| *id >= self.current.table);
        let Some((id, laid)) = next else {
            self.is_done = true;
            return Ok(0);
        };
        if id != self.current.table {
            self.current = Current { table: id, ..Current::default() };
        }
        let table = Table::read(connection, &table_name(id), laid, String::new())?;
        let before = self.current.bytes;
        let mark = self.marks.as_ref().and_then(|marks| marks.tables.get(&id));
        if self.current.slice(connection, &table, mark)? {
            let Current { rows, bytes, sample, greatest, past, .. } = std::mem::take(&mut self.current);
            let is_known = |mark: &&Mark| mark.rows >= FEW && table.laid.is_by_range();
            let growth = mark.filter(is_known).map(|mark| Growth {
                over: Duration::ZERO,
                added: rows.saturating_sub(mark.rows),
                past,
            });
            if table.laid.is_by_range() {
                self.found.insert(id, Mark { rows, greatest });
            }
            self.tables.push(TableTally { table: id, rows, bytes, middle: sample.middle(), growth });
            self.current.table = TableId(id.0 + 1);
            return Ok(bytes - before);
        }
        Ok(self.current.bytes - before)
    }
}

impl Current {
    /// Counts some rows. Whether these were the last.
    fn slice(
        &mut self,
        connection: &Connection,
        table: &Table,
        mark: Option<&Mark>,
    ) -> Result<bool, WireError> {
        // Of a table whose key is another by now, what was counted says nothing.
        if self.after.as_ref().is_some_and(|after| after.len() != table.key.len()) {
            *self = Current { table: self.table, ..Current::default() };
        }
        let sql = if self.after.is_some() { &table.after } else { &table.all };
        let mut scan = connection.prepare_cached(sql).map_err(error)?;
        for (place, value) in self.after.iter().flatten().enumerate() {
            scan.raw_bind_parameter(place + 1, stored(value.as_ref())).map_err(error)?;
        }
        let (mut rows, until) = (scan.raw_query(), self.bytes + SLICE);
        let (width, is_by_range) = (table.laid.layout.columns.len(), table.laid.is_by_range());
        while let Some(row) = rows.next().map_err(error)? {
            let values = (0..width).map(|place| borrowed(row, place)).collect::<Result<Vec<_>, _>>()?;
            self.rows += 1;
            self.bytes += values.iter().map(bytes_of).sum::<u64>();
            let id = || table.laid.keyspace_id(|place| values[place]).map(|id| id.0);
            if let Some(id) = is_by_range.then(id).flatten() {
                self.past += u64::from(mark.is_some_and(|mark| id > mark.greatest));
                self.sample.take(|| Some(id.clone()));
                if id > self.greatest {
                    self.greatest = id;
                }
            } else {
                self.sample.take(id);
            }
            if self.bytes >= until {
                self.after = Some(table.key.iter().map(|place| values[*place].to_owned()).collect());
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The keyspace ids of some rows, which lie evenly among all that came.
#[derive(Default)]
struct Sample {
    /// One of two to the power of this.
    shift: u32,
    seen: u64,
    ids: Vec<Vec<u8>>,
}

impl Sample {
    fn take(&mut self, id: impl FnOnce() -> Option<Vec<u8>>) {
        if self.seen & ((1 << self.shift) - 1) == 0 {
            self.ids.extend(id());
            if self.ids.len() > SAMPLE {
                self.shift += 1;
                let mut place = 0;
                self.ids.retain(|_| {
                    place += 1;
                    place % 2 == 1
                });
            }
        }
        self.seen += 1;
    }

    /// Where as many rows are before as after, about. Some are before it: none, if all are in one place.
    fn middle(mut self) -> Option<Vec<u8>> {
        self.ids.sort_unstable();
        let (least, middle) = (self.ids.first()?.clone(), self.ids.len() / 2);
        self.ids.drain(..).skip(middle).find(|id| *id > least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::{make, table};
    use dialect::Type;
    use proto::catalog::Placement;
    use proto::topology::Sharding;
    use proto::{ColumnId, KeyspaceNumber, ValueRef};

    /// A database with a table by range of an integer and a text, an empty one, and a reference table.
    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        dialect::sqlite::register(&connection).unwrap();
        let by = |key: &[u32]| Placement::Sharded {
            keyspace: KeyspaceNumber(1),
            key: key.iter().copied().map(ColumnId).collect(),
        };
        let tables = [
            table(3, &[Type::Int4, Type::Text], by(&[1])),
            table(5, &[Type::Text], by(&[1])),
            table(8, &[Type::Text], Placement::Reference),
        ];
        make(&connection, &tables, Sharding::Range);
        connection
    }

    fn fill(connection: &Connection, sql: &str, rows: std::ops::Range<i64>) {
        for row in rows {
            connection.execute(sql, [row]).unwrap();
        }
    }

    /// Counts all; `between` is done after each slice.
    fn counted(connection: &Connection, between: impl Fn(&Pass)) -> (Vec<TableTally>, u32) {
        let (mut pass, mut slices) = (Pass::default(), 0);
        while !pass.is_done {
            pass.slice(connection).unwrap();
            slices += 1;
            between(&pass);
        }
        (pass.tables, slices)
    }

    #[test]
    fn tables_are_counted_slice_by_slice() {
        let connection = database();
        // A kilobyte each, so it takes several.
        fill(&connection, "INSERT INTO t3 VALUES (?1 / 3, 'k' || ?1, hex(zeroblob(512)))", 0..900);
        fill(&connection, "INSERT INTO t8 VALUES ('k' || ?1, 'so')", 0..7);
        let (tables, slices) = counted(&connection, |_| {});
        assert!((6..20).contains(&slices), "{slices}");
        assert_eq!(tables.iter().map(|table| table.table.0).collect::<Vec<_>>(), [3, 5, 8]);
        assert_eq!(tables.iter().map(|table| table.rows).collect::<Vec<_>>(), [900, 0, 7]);
        assert!((900 << 10..1000 << 10).contains(&tables[0].bytes), "{}", tables[0].bytes);
        let middle = proto::KeyspaceId::range([ValueRef::Int(150)]).0;
        assert_eq!(tables[0].middle, Some(middle));
        assert_eq!((&tables[1].middle, &tables[2].middle), (&None, &None), "nobody is cut there");
    }

    #[test]
    fn tables_may_come_and_go_meanwhile() {
        let connection = database();
        fill(&connection, "INSERT INTO t3 VALUES (?1, 'k', hex(zeroblob(512)))", 0..900);
        let (tables, _) = counted(&connection, |pass| {
            if pass.current.table == TableId(3) && pass.current.rows > 0 {
                connection.execute_batch("DELETE FROM shoal_layout WHERE table_id = 3").unwrap();
                fill(&connection, "INSERT OR IGNORE INTO t5 VALUES ('k' || ?1, 'so')", 0..5);
            }
        });
        let rows: Vec<_> = tables.iter().map(|table| (table.table.0, table.rows)).collect();
        assert_eq!(rows, [(5, 5), (8, 0)], "what is gone isn't told of");
    }

    /// Counts as the node does, so many seconds after a moment.
    fn pass(connection: &Connection, state: &mut State, zero: Instant, second: u64) -> Vec<TableTally> {
        let at = zero + Duration::from_secs(second);
        let mut pass = Pass { marks: state.marked(at), ..Pass::default() };
        while !pass.is_done {
            pass.slice(connection).unwrap();
        }
        state.mark(Marks { at, tables: pass.found.clone() });
        pass.told(at)
    }

    #[test]
    fn growth_tells_rows_past_the_greatest_key_that_there_was() {
        let (connection, mut state, zero) = (database(), State::default(), Instant::now());
        let grown = |tables: &[TableTally]| {
            let growth = tables.iter().find(|table| table.table == TableId(3)).unwrap().growth;
            growth.map(|growth| (growth.over.as_secs(), growth.added, growth.past))
        };
        let sql = "INSERT INTO t3 VALUES (?1, 'k', 'so')";
        fill(&connection, sql, 1_000..1_050);
        assert_eq!(grown(&pass(&connection, &mut state, zero, 0)), None, "nothing is known of before");
        fill(&connection, sql, 1_050..1_200);
        assert_eq!(grown(&pass(&connection, &mut state, zero, 20)), None, "there were too few rows");
        // From here on it is told over the second pass, which was five minutes ago.
        assert_eq!(grown(&pass(&connection, &mut state, zero, 320)), Some((300, 0, 0)));
        fill(&connection, sql, 1_200..1_300);
        fill(&connection, sql, 0..30);
        assert_eq!(grown(&pass(&connection, &mut state, zero, 340)), Some((320, 130, 100)));
        connection.execute("DELETE FROM t3 WHERE c1 < 1190", []).unwrap();
        assert_eq!(grown(&pass(&connection, &mut state, zero, 360)), Some((340, 0, 100)), "fewer are none");
        fill(&connection, sql, 1_300..1_400);
        let tables = pass(&connection, &mut state, zero, 620);
        assert_eq!(grown(&tables), Some((300, 10, 200)), "over what there was at 320");
        assert!(tables.iter().all(|table| table.table == TableId(3) || table.growth.is_none()));
        // What is counted seldom is told over what was counted last.
        assert_eq!(grown(&pass(&connection, &mut state, zero, 4_000)), Some((3_380, 0, 0)));
    }

    fn middle(ids: impl IntoIterator<Item = u32>) -> Option<u32> {
        let mut sample = Sample::default();
        for id in ids {
            sample.take(|| Some(id.to_be_bytes().to_vec()));
        }
        assert!(sample.ids.len() <= SAMPLE, "{}", sample.ids.len());
        sample.middle().map(|id| u32::from_be_bytes(id.try_into().unwrap()))
    }

    #[test]
    fn as_many_rows_are_before_the_middle_as_after_it() {
        assert_eq!(middle([]), None);
        assert_eq!(middle([7]), None, "nothing would be before it");
        assert_eq!(middle([7, 9]), Some(9));
        assert_eq!(middle([7, 9, 11]), Some(9));
        assert_eq!(middle(0..1_000), Some(500));
        assert_eq!(middle([3, 1, 2, 5, 4]), Some(3), "in whichever order they come");
        let found = middle(0..1_000_000).unwrap();
        assert!((499_000..501_000).contains(&found), "{found}");
        // What lies in one place isn't parted.
        assert_eq!(middle([7; 100]), None);
        assert_eq!(middle([7, 7, 7, 7, 9]), Some(9));
        assert_eq!(middle([7, 9, 9, 9, 9]), Some(9));
    }
}
