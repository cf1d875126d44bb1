//! Sums of a shard's rows: what a replica has, part by part, in the order of tables and their primary keys.
//!
//! In comes a request, out come its parts, all of them of one snapshot ([`read`]). Who compares reads its own rows by the same
//! scans ([`Tables`]). A row's hash is as `replica` has it, and hashes are added up: so it is no matter in which order equal rows lie. It
//! must never know what the sums are compared with.

use crate::build::{Table, borrowed, bytes_of, compare_all, stored};
use crate::layout::Layouts;
use dialect::physical::table_name;
use dialect::sqlite::error;
use futures::stream::try_unfold;
use proto::layout::Place;
use proto::machine;
use proto::services::{BoxStream, Consistency, ServiceResult, Sums, SumsPart, SumsPlace, SumsRequest};
use proto::{KeyspaceId, TableId, Value, WireError};
use replica::{Replica, RowSum, Snapshot, text_hash};
use rusqlite::Connection;
use std::cmp::Ordering;
use std::time::{Duration, Instant};

/// A part that has read so many bytes of rows reads no further.
const PART_BYTES: u64 = 256 << 10;

/// No snapshot is kept longer.
const LONGEST: Duration = Duration::from_secs(60);

/// The sums of a shard's rows as this replica has them. It ends with its first error.
pub(crate) fn read(replica: Replica, request: SumsRequest) -> BoxStream<ServiceResult<Sums>> {
    let begin = Reading::Unopened(replica, request);
    Box::pin(try_unfold(
        begin,
        |mut reading| async move { Ok(reading.next().await?.map(|sums| (sums, reading))) },
    ))
}

/// Tables whose rows are added up, by id.
pub(crate) struct Tables(Vec<Summed>);

/// A table, and what it was made by.
pub(crate) struct Summed {
    pub id: TableId,
    pub schema: u128,
    table: Table,
}

/// Where a part ends.
#[derive(Clone, Copy)]
pub(crate) enum Until<'k> {
    /// After so many bytes, or with the last row.
    Bytes(u64),
    /// With this primary key, or the last row.
    Key(Option<&'k [Value]>),
}

/// Some rows of a table.
pub(crate) struct Added {
    /// The last one's primary key, if there may be more.
    pub to: Option<Vec<Value>>,
    pub rows: u64,
    pub sum: u128,
}

impl Tables {
    /// As of the state that the connection has open: those that are spread over shards, and if asked for those that every shard
    /// has.
    pub fn read(connection: &Connection, references: bool) -> Result<Self, WireError> {
        let mut tables = Vec::new();
        for (id, laid) in Layouts::read(connection)?.into_tables() {
            if laid.layout.place == Place::Reference && !references {
                continue;
            }
            let name = table_name(id);
            let sql =
                "SELECT sql FROM sqlite_schema WHERE tbl_name = ?1 AND sql IS NOT NULL ORDER BY type, name";
            let mut statement = connection.prepare_cached(sql).map_err(error)?;
            let made = statement.query_map([&name], |row| row.get(0)).map_err(error)?;
            let made = made.collect::<rusqlite::Result<Vec<String>>>().map_err(error)?;
            let schema = text_hash(made.iter().map(String::as_str));
            let table = Table::read(connection, &name, laid, String::new())?;
            tables.push(Summed { id, schema, table });
        }
        Ok(Self(tables))
    }

    /// Those from this id on.
    pub fn from(&self, id: TableId) -> impl Iterator<Item = &Summed> {
        self.0.iter().filter(move |table| table.id >= id)
    }

    /// One of them.
    pub fn get(&self, id: TableId) -> Option<&Summed> {
        self.0.iter().find(|table| table.id == id)
    }
}

impl Summed {
    /// Adds up the rows after a primary key that are meant, by their keyspace ids.
    pub fn add(
        &self,
        connection: &Connection,
        after: Option<&[Value]>,
        until: Until<'_>,
        is_meant: impl Fn(Option<KeyspaceId>) -> bool,
    ) -> Result<Added, WireError> {
        let Table { laid, key, all, after: rest, .. } = &self.table;
        let width = laid.layout.columns.len();
        let mut scan = connection.prepare_cached(if after.is_some() { rest } else { all }).map_err(error)?;
        for (place, value) in after.unwrap_or_default().iter().enumerate() {
            scan.raw_bind_parameter(place + 1, stored(value.as_ref())).map_err(error)?;
        }
        let mut rows = scan.raw_query();
        let (mut sum, mut bytes, mut to) = (RowSum::default(), 0, None);
        while let Some(row) = rows.next().map_err(error)? {
            let values = (0..width).map(|place| borrowed(row, place)).collect::<Result<Vec<_>, _>>()?;
            if let Until::Key(Some(last)) = until {
                let order =
                    compare_all(key.iter().map(|place| values[*place]), last.iter().map(Value::as_ref));
                if order == Ordering::Greater {
                    break;
                }
            }
            if is_meant(laid.keyspace_id(|place| values[place])) {
                sum.add(row, width).map_err(error)?;
            }
            bytes += values.iter().map(bytes_of).sum::<u64>();
            if matches!(until, Until::Bytes(most) if bytes >= most) {
                to = Some(key.iter().map(|place| values[*place].to_owned()).collect());
                break;
            }
        }
        Ok(Added { to, rows: sum.rows, sum: sum.sum })
    }
}

/// Reads something of a snapshot.
pub(crate) fn look<T>(
    snapshot: &Snapshot,
    read: impl FnOnce(&Connection) -> ServiceResult<T>,
) -> ServiceResult<T> {
    snapshot.check()?;
    machine::in_place(|| read(snapshot.connection())).map_err(|error| snapshot.explain(error))
}

/// Who works on rows for nobody who waits rests for as long as it has worked.
pub(crate) async fn rest(since: Instant) {
    tokio::time::sleep(machine::now().saturating_duration_since(since)).await;
    tokio::task::yield_now().await;
}

enum Reading {
    Unopened(Replica, SumsRequest),
    Open(Box<Open>),
    Ended,
}

/// A snapshot, and how far it was read.
struct Open {
    snapshot: Snapshot,
    tables: Tables,
    request: SumsRequest,
    /// Where it goes on: in this table, after this key.
    next: TableId,
    after: Option<Vec<Value>>,
    until: Instant,
    has_begun: bool,
}

impl Reading {
    async fn next(&mut self) -> ServiceResult<Option<Sums>> {
        match std::mem::replace(self, Reading::Ended) {
            Reading::Unopened(replica, request) => {
                let open = Open::begin(&replica, request).await?;
                let position = open.snapshot.position();
                *self = Reading::Open(Box::new(open));
                Ok(Some(Sums::Open(position)))
            }
            Reading::Open(mut open) => {
                let sums = open.next().await?;
                if matches!(sums, Some(Sums::Part(_))) {
                    *self = Reading::Open(open);
                }
                Ok(sums)
            }
            Reading::Ended => Ok(None),
        }
    }
}

impl Open {
    async fn begin(replica: &Replica, request: SumsRequest) -> ServiceResult<Self> {
        let until = machine::now() + request.timeout.min(LONGEST);
        let snapshot = replica.snapshot_after(Consistency::Eventual, request.after, until).await?;
        let tables = look(&snapshot, |connection| Tables::read(connection, request.references))?;
        let until = machine::now() + request.time.min(LONGEST);
        let (next, after) = match &request.from {
            None => (TableId(0), None),
            Some(SumsPlace { table, key: None, .. }) => (TableId(table.0 + 1), None),
            Some(SumsPlace { table, key: Some(key), schema }) => {
                // Of a table that is made otherwise by now, a key says nothing.
                let is_same = tables.get(*table).is_some_and(|found| found.schema == *schema);
                (*table, is_same.then(|| key.clone()))
            }
        };
        Ok(Self { snapshot, tables, request, next, after, until, has_begun: false })
    }

    async fn next(&mut self) -> ServiceResult<Option<Sums>> {
        let since = machine::now();
        if since >= self.until && std::mem::replace(&mut self.has_begun, true) {
            return Ok(None);
        }
        self.has_begun = true;
        let Self { snapshot, tables, request, next, after, .. } = self;
        let Some(table) = tables.from(*next).next() else { return Ok(Some(Sums::End)) };
        let is_meant = |id: Option<KeyspaceId>| id.is_none_or(|id| request.range.contains(&id.0));
        let until = Until::Bytes(PART_BYTES);
        let added = look(snapshot, |connection| table.add(connection, after.as_deref(), until, is_meant))?;
        let Added { to: key, rows, sum } = added;
        *next = if key.is_some() { table.id } else { TableId(table.id.0 + 1) };
        let to = SumsPlace { table: table.id, key: key.clone(), schema: table.schema };
        let part = SumsPart { after: std::mem::replace(after, key), to, rows, sum };
        rest(since).await;
        Ok(Some(Sums::Part(part)))
    }
}
