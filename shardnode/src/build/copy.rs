//! One pass over images' rows, into the files of new shards.
//!
//! Rows come in the order of their tables' primary keys, of several images as one, and each goes into the file of the shard
//! whose it is. Some MiB of them are a batch: one transaction of each file, in which the file notes how far it is. So whatever stops it,
//! it goes on from the last batch; a file that is a batch ahead of another one passes over what it has. It must never know who
//! waits for it, nor how long it may take.

use super::damaged;
use super::finish;
use super::plan::{Plan, Schema, Source, Target, file, open};
use crate::layout::Share;
use crate::touched::{encode, values};
use dialect::sqlite::error;
use proto::services::Progress;
use proto::{Value, ValueRef, WireError};
use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator as _;
use rusqlite::types::{ToSqlOutput, Type, ValueRef as Sqlite};
use rusqlite::{CachedStatement, Connection, OpenFlags, Row, Rows};
use std::cmp::Ordering;
use std::sync::Arc;

/// So many bytes of rows are a batch.
pub(super) const BATCH: u64 = 4 << 20;
/// So many are read and written in one go: that takes about a millisecond, for which others may have to wait where processors are few.
const SLICE: u64 = 64 << 10;

/// Between so many of SQLite's instructions, of some ten nanoseconds each, an index's making may pause.
const INSTRUCTIONS: i32 = 1000;

/// What an index costs for each row that it is made of, by the row's own costs.
const INDEX: f64 = 0.3;

/// Pauses if it is time to. Whether it is given up.
pub(super) type Pause = Arc<dyn Fn() -> bool + Send + Sync>;

/// The files of new shards, while they are made.
pub(crate) struct Copying {
    sources: Vec<Source>,
    schema: Schema,
    files: Vec<File>,
    batch: u64,
    /// How many bytes of the present batch have been read.
    taken: u64,
    /// How many rows the files are to have, in all. Counted before the first one is copied.
    rows_total: Option<u64>,
    bytes_total: u64,
    pause: Option<Pause>,
}

/// A new shard's file.
pub(super) struct File {
    target: Target,
    /// Until it is complete.
    connection: Option<Connection>,
    done: Done,
}

/// What a file has.
#[derive(Clone, Debug, Default, PartialEq)]
struct Done {
    /// All rows of the tables before this one.
    table: usize,
    /// And of this one those up to this key.
    key: Option<Vec<Value>>,
    indexes: usize,
    rows: u64,
    bytes: u64,
}

impl Copying {
    /// Begins, or goes on from what is there. The images are whole.
    pub fn open(plan: &Plan) -> Result<Self, WireError> {
        let sources = plan.sources.iter().map(|shard| Source::open(&plan.directory, *shard));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        let schema = Schema::of(&sources)?;
        let files = plan.targets.iter().map(|target| File::open(plan, target.clone(), &sources, &schema));
        let files = files.collect::<Result<_, _>>()?;
        let size = |source: &Source| -> rusqlite::Result<i64> {
            let sql = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
            source.connection.query_row(sql, [], |row| row.get(0))
        };
        let sizes = sources.iter().map(size).collect::<rusqlite::Result<Vec<_>>>().map_err(error)?;
        let bytes_total = sizes.iter().map(|bytes| bytes.cast_unsigned()).sum();
        Ok(Self {
            sources,
            schema,
            files,
            batch: BATCH,
            taken: 0,
            rows_total: None,
            bytes_total,
            pause: None,
        })
    }

    /// Has it pause while it makes an index, which takes long.
    pub fn pausing(self, pause: Pause) -> Self {
        Self { pause: Some(pause), ..self }
    }

    /// How many rows the files have or are getting, and how much of the work is done: of the images' bytes, as if rows and indexes were
    /// made of them evenly.
    pub fn progress(&self) -> (u64, Progress) {
        let rows = self.files.iter().map(|file| file.done.rows).sum::<u64>();
        let share = |done: f64, of: f64| if of > 0.0 { done / of } else { 1.0 };
        let copied = match self.rows_total {
            Some(total) => share(rows as f64, total as f64),
            None if self.has_rows_left() => 0.0,
            None => 1.0,
        };
        let indexes = self.schema.indexes.len() as f64;
        let made = self.files.iter().map(|file| file.done.indexes).sum::<usize>() as f64;
        let made = INDEX * indexes * share(made, indexes * self.files.len() as f64);
        let done = (copied + made) / (1.0 + INDEX * indexes);
        let total = self.bytes_total;
        (rows, Progress { done: ((total as f64 * done) as u64).min(total), total })
    }

    /// How many bytes of rows the files have or are getting.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.done.bytes).sum()
    }

    /// Goes on for a moment: a part of a batch, an index, or the files' end. Whether all files are complete and on the disk. After
    /// an error it is opened anew.
    pub fn step(&mut self) -> Result<bool, WireError> {
        if self.rows_total.is_none() && self.has_rows_left() {
            self.rows_total = Some(self.count()?);
            return Ok(false);
        }
        if self.has_rows_left() {
            self.rows()?;
            if self.taken >= self.batch || !self.has_rows_left() {
                self.files.iter().try_for_each(File::commit)?;
                self.taken = 0;
            }
            return Ok(false);
        }
        let indexes = &self.schema.indexes;
        if let Some(file) = self.files.iter_mut().find(|file| file.done.indexes < indexes.len()) {
            file.make(&indexes[file.done.indexes], self.pause.clone())?;
            file.done.indexes += 1;
            file.note()?;
            file.commit()?;
            return Ok(false);
        }
        for file in &mut self.files {
            if let Some(connection) = file.connection.take() {
                finish::complete(&connection)?;
            }
        }
        Ok(true)
    }

    /// With other batches.
    #[cfg(test)]
    pub fn in_batches_of(self, batch: u64) -> Self {
        Self { batch, ..self }
    }

    /// Goes on for a moment, but of a batch only so many files have it; then it is stopped.
    #[cfg(test)]
    pub fn step_in_part(mut self, files: usize) -> Result<bool, WireError> {
        if self.has_rows_left() {
            self.rows()?;
            return self.files.iter().take(files).try_for_each(File::commit).map(|()| false);
        }
        self.step()
    }

    /// Has files grow by so many pages in all, each; says by how many.
    #[cfg(test)]
    pub fn limit(&self, pages: u32) -> u32 {
        for connection in self.files.iter().filter_map(|file| file.connection.as_ref()) {
            connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
        }
        pages
    }

    /// Has the next step panic that comes to a reference table.
    #[cfg(test)]
    pub fn lose_sources(&mut self) {
        self.sources.clear();
    }

    /// The statements that read rows.
    #[cfg(test)]
    pub fn scans(&self) -> Vec<String> {
        self.schema.tables.iter().flat_map(|table| [table.all.clone(), table.after.clone()]).collect()
    }

    /// Counts the rows that are to be copied. It takes a small part of what copying them does.
    fn count(&mut self) -> Result<u64, WireError> {
        let Self { sources, schema, files, pause, .. } = self;
        let mut total = 0;
        for (number, source) in sources.iter_mut().enumerate() {
            let count = |connection: &Connection| -> rusqlite::Result<u64> {
                let mut total = 0;
                for table in &schema.tables {
                    let times = match table.is_reference() {
                        true if number > 0 => continue,
                        true => files.len() as u64,
                        false => 1,
                    };
                    let rows: i64 = connection.query_row(&table.count, [], |row| row.get(0))?;
                    total += rows.cast_unsigned() * times;
                }
                Ok(total)
            };
            total += pausing(&mut source.connection, pause.clone(), count)?;
        }
        Ok(total)
    }

    fn has_rows_left(&self) -> bool {
        self.files.iter().any(|file| file.done.table < self.schema.tables.len())
    }

    /// Copies the next rows of one table, and leaves the transactions open.
    fn rows(&mut self) -> Result<(), WireError> {
        let Self { sources, schema, files, batch, .. } = self;
        let most = SLICE.min(*batch);
        let from = files.iter().map(|file| &file.done).min_by(|a, b| a.place(b)).cloned();
        let from = from.ok_or_else(|| WireError::internal("nothing to build"))?;
        let table = &schema.tables[from.table];
        // Reference tables are the same everywhere.
        let sources = if table.is_reference() { &sources[..1] } else { &sources[..] };
        let mut scans = Vec::with_capacity(sources.len());
        for source in sources {
            let sql = if from.key.is_some() { &table.after } else { &table.all };
            scans.push(source.connection.prepare_cached(sql).map_err(error)?);
        }
        let mut merge = Merge::begin(&mut scans, &table.key, from.key.as_deref())?;
        let mut inserts = Vec::with_capacity(files.len());
        for file in files.iter() {
            let connection = file.connection.as_ref();
            if let Some(connection) = connection.filter(|connection| connection.is_autocommit()) {
                begin(connection)?;
            }
            let insert = connection.map(|connection| connection.prepare_cached(&table.insert));
            inserts.push(insert.transpose().map_err(error)?);
        }
        let shares: Vec<_> =
            files.iter().map(|file| Share { range: file.target.range.clone(), references: true }).collect();
        let mut counts = vec![(0, 0); files.len()];
        let mut until = from.clone();
        let (mut taken, width) = (0, table.laid.layout.columns.len());
        while taken < most {
            let Some(row) = merge.current() else {
                (until.table, until.key) = (from.table + 1, None);
                break;
            };
            let row = (0..width).map(|place| borrowed(row, place)).collect::<Result<Vec<_>, _>>()?;
            let bytes = row.iter().map(bytes_of).sum::<u64>();
            taken += bytes;
            let mut is_placed = false;
            for (number, file) in files.iter().enumerate() {
                if !table.laid.is_in(&shares[number], |place| row[place]) {
                    continue;
                }
                is_placed = true;
                if file.done.has(from.table, &table.key, &row) {
                    continue;
                }
                let insert =
                    inserts[number].as_mut().ok_or_else(|| damaged("a complete file lacks a row"))?;
                for (place, value) in row.iter().enumerate() {
                    insert.raw_bind_parameter(place + 1, stored(*value)).map_err(error)?;
                }
                insert.raw_execute().map_err(error)?;
                counts[number].0 += 1;
                counts[number].1 += bytes;
            }
            if !is_placed {
                return Err(damaged("a row belongs to no new shard"));
            }
            if taken >= most {
                until.key = Some(table.key.iter().map(|place| row[*place].to_owned()).collect());
            }
            merge.advance()?;
        }
        drop((merge, inserts));
        self.taken += taken;
        for (file, (rows, bytes)) in self.files.iter_mut().zip(counts) {
            if file.connection.is_some() && file.done.place(&until) == Ordering::Less {
                (file.done.table, file.done.key) = (until.table, until.key.clone());
                file.done.rows += rows;
                file.done.bytes += bytes;
                file.note()?;
            }
        }
        Ok(())
    }
}

impl Done {
    /// Which of the two is further with its rows.
    fn place(&self, other: &Done) -> Ordering {
        let key = || match (&self.key, &other.key) {
            (Some(key), Some(other)) => {
                compare_all(key.iter().map(Value::as_ref), other.iter().map(Value::as_ref))
            }
            (key, other) => key.is_some().cmp(&other.is_some()),
        };
        self.table.cmp(&other.table).then_with(key)
    }

    /// Whether a row is among them.
    fn has(&self, table: usize, key: &[usize], row: &[ValueRef<'_>]) -> bool {
        let up_to = || {
            let last = self.key.as_ref()?;
            Some(
                compare_all(key.iter().map(|place| row[*place]), last.iter().map(Value::as_ref))
                    != Ordering::Greater,
            )
        };
        table < self.table || table == self.table && up_to().unwrap_or(false)
    }
}

impl File {
    fn open(plan: &Plan, target: Target, sources: &[Source], schema: &Schema) -> Result<Self, WireError> {
        let path = file(&plan.directory, target.shard);
        let connection = open(&path, OpenFlags::SQLITE_OPEN_CREATE)?;
        connection.execute_batch("PRAGMA synchronous = NORMAL").map_err(error)?;
        let done = match finish::state(&connection)? {
            finish::State::Empty => {
                begin(&connection)?;
                finish::begin(&connection, target.shard, sources)?;
                for table in &schema.tables {
                    connection.execute_batch(&table.create).map_err(error)?;
                }
                connection.execute_batch("COMMIT").map_err(error)?;
                Some(Done::default())
            }
            finish::State::Begun => Some(Done::read(&connection)?),
            finish::State::Complete => None,
        };
        let all = || Done { table: schema.tables.len(), indexes: schema.indexes.len(), ..Done::default() };
        let connection = done.is_some().then_some(connection);
        Ok(Self { target, connection, done: done.unwrap_or_else(all) })
    }

    fn connection(&self) -> Result<&Connection, WireError> {
        self.connection.as_ref().ok_or_else(|| WireError::internal("a file is complete already"))
    }

    /// Makes an index, and leaves the transaction open.
    fn make(&mut self, index: &str, pause: Option<Pause>) -> Result<(), WireError> {
        begin(self.connection()?)?;
        if let Some(connection) = &mut self.connection {
            pausing(connection, pause, |connection| connection.execute_batch(index))?;
        }
        Ok(())
    }

    /// Notes how far it is, with what its open transaction does.
    fn note(&self) -> Result<(), WireError> {
        let Done { table, key, indexes, rows, bytes } = &self.done;
        let key = key.as_ref().map(|key| encode(key.iter().map(Value::as_ref)));
        let sql = "UPDATE shoal_building SET tables = ?1, key = ?2, indexes = ?3, rows = ?4, bytes = ?5";
        let mut statement = self.connection()?.prepare_cached(sql).map_err(error)?;
        let numbers = (*table as i64, key, *indexes as i64, rows.cast_signed(), bytes.cast_signed());
        statement.execute(numbers).map_err(error)?;
        Ok(())
    }

    fn commit(&self) -> Result<(), WireError> {
        let Some(connection) = self.connection.as_ref().filter(|connection| !connection.is_autocommit())
        else {
            return Ok(());
        };
        connection.execute_batch("COMMIT").map_err(error)
    }
}

impl Done {
    fn read(connection: &Connection) -> Result<Self, WireError> {
        let sql = "SELECT tables, key, indexes, rows, bytes FROM shoal_building";
        let read = connection.query_row(sql, [], |row| {
            let number = |place| row.get::<_, i64>(place).map(i64::cast_unsigned);
            let key: Option<Vec<u8>> = row.get(1)?;
            let (table, indexes) = (number(0)? as usize, number(2)? as usize);
            Ok(Done { table, key: key.map(|key| values(&key)), indexes, rows: number(3)?, bytes: number(4)? })
        });
        read.map_err(error)
    }
}

/// Runs something that takes long, and pauses within it.
fn pausing<T>(
    connection: &mut Connection,
    pause: Option<Pause>,
    run: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, WireError> {
    let handler = pause.map(|pause| move || pause());
    connection.progress_handler(INSTRUCTIONS, handler).map_err(error)?;
    let ran = run(connection);
    connection.progress_handler(0, None::<fn() -> bool>).map_err(error)?;
    ran.map_err(error)
}

fn begin(connection: &Connection) -> Result<(), WireError> {
    connection.execute_batch("BEGIN IMMEDIATE").map_err(error)
}

/// The rows of several scans, which are in the order of their keys, in that order.
struct Merge<'s> {
    scans: Vec<Rows<'s>>,
    key: &'s [usize],
    least: Option<usize>,
}

impl<'s> Merge<'s> {
    fn begin(
        scans: &'s mut [CachedStatement<'_>],
        key: &'s [usize],
        after: Option<&[Value]>,
    ) -> Result<Self, WireError> {
        let mut begun = Vec::with_capacity(scans.len());
        for scan in scans {
            for (place, value) in after.unwrap_or_default().iter().enumerate() {
                scan.raw_bind_parameter(place + 1, stored(value.as_ref())).map_err(error)?;
            }
            let mut rows = scan.raw_query();
            rows.advance().map_err(error)?;
            begun.push(rows);
        }
        let mut merge = Self { scans: begun, key, least: None };
        merge.find()?;
        Ok(merge)
    }

    fn current(&self) -> Option<&Row<'s>> {
        self.scans[self.least?].get()
    }

    fn advance(&mut self) -> Result<(), WireError> {
        if let Some(least) = self.least {
            self.scans[least].advance().map_err(error)?;
        }
        self.find()
    }

    /// Finds the scan whose row comes first.
    fn find(&mut self) -> Result<(), WireError> {
        self.least = None;
        if let [only] = self.scans.as_slice() {
            self.least = only.get().map(|_| 0);
            return Ok(());
        }
        let mut best: Option<Vec<ValueRef<'_>>> = None;
        for (number, scan) in self.scans.iter().enumerate() {
            let Some(row) = scan.get() else { continue };
            let key: Vec<_> =
                self.key.iter().map(|place| borrowed(row, *place)).collect::<Result<_, WireError>>()?;
            let is_less = best
                .as_ref()
                .is_none_or(|best| compare_all(key.iter().copied(), best.iter().copied()) == Ordering::Less);
            if is_less {
                (self.least, best) = (Some(number), Some(key));
            }
        }
        Ok(())
    }
}

/// As SQLite orders primary keys of one table.
pub(crate) fn compare_all<'a, 'b>(
    a: impl Iterator<Item = ValueRef<'a>>,
    b: impl Iterator<Item = ValueRef<'b>>,
) -> Ordering {
    a.zip(b).map(|(a, b)| compare(a, b)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// As SQLite orders values of a key, which are of one kind in each column.
fn compare(a: ValueRef<'_>, b: ValueRef<'_>) -> Ordering {
    match (a, b) {
        (ValueRef::Int(a), ValueRef::Int(b)) => a.cmp(&b),
        (ValueRef::Real(a), ValueRef::Real(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
        (ValueRef::Text(a), ValueRef::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (ValueRef::Blob(a), ValueRef::Blob(b)) => a.cmp(b),
        _ => Ordering::Equal,
    }
}

/// About how many bytes a value has.
pub(crate) fn bytes_of(value: &ValueRef<'_>) -> u64 {
    match value {
        ValueRef::Null => 1,
        ValueRef::Int(_) | ValueRef::Real(_) => 8,
        ValueRef::Text(text) => text.len() as u64 + 1,
        ValueRef::Blob(blob) => blob.len() as u64 + 1,
    }
}

/// A row's value.
pub(crate) fn borrowed<'r>(row: &'r Row<'_>, place: usize) -> Result<ValueRef<'r>, WireError> {
    Ok(match row.get_ref(place).map_err(error)? {
        Sqlite::Null => ValueRef::Null,
        Sqlite::Integer(int) => ValueRef::Int(int),
        Sqlite::Real(real) => ValueRef::Real(real),
        Sqlite::Text(text) => ValueRef::Text(std::str::from_utf8(text).map_err(|problem| {
            error(rusqlite::Error::FromSqlConversionFailure(place, Type::Text, Box::new(problem)))
        })?),
        Sqlite::Blob(blob) => ValueRef::Blob(blob),
    })
}

/// A value to be bound.
pub(crate) fn stored(value: ValueRef<'_>) -> ToSqlOutput<'_> {
    ToSqlOutput::Borrowed(match value {
        ValueRef::Null => Sqlite::Null,
        ValueRef::Int(int) => Sqlite::Integer(int),
        ValueRef::Real(real) => Sqlite::Real(real),
        ValueRef::Text(text) => Sqlite::Text(text.as_bytes()),
        ValueRef::Blob(blob) => Sqlite::Blob(blob),
    })
}
