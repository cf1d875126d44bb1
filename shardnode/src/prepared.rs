//! Prepared transactions, as rows of the shard's own database.
//!
//! In comes a transaction with all that it has changed and locked; it lies in a table that is captured and replicated as
//! every other, until the transaction ends. So the votes of a shard survive its leader, a restart, and an image. Where
//! others take a shard's place, its rows go along to each of them ([`all`], [`adopt`]), and say whose votes they are: what
//! several shards have prepared of a transaction becomes one row. It must never know what the changes are, nor who decides.

use crate::locks::{Mode, Part, Resource};
use bytes::Bytes;
use dialect::sqlite::error;
use proto::services::{LeftPrepared, RowLock};
use proto::{
    LogIndex, RouterIncarnation, RowBatch, RowBatchBuilder, ShardId, SqlState, TableId, TransactionId,
    ValueRef, WireError,
};
use replica::Pieces;
use rusqlite::{Connection, OptionalExtension, Row};
use std::collections::{BTreeMap, HashSet};

/// The table.
pub(crate) const TABLE: &str = "shoal_prepared";

/// What every replica of a shard runs before its first log entry.
pub(crate) fn init() -> String {
    // What is looked at often comes before what may be long, which isn't read then.
    "CREATE TABLE shoal_prepared (router INTEGER NOT NULL, sequence INTEGER NOT NULL, begun INTEGER NOT NULL,
                                  since INTEGER NOT NULL, participants BLOB NOT NULL, votes BLOB NOT NULL,
                                  parallel INTEGER NOT NULL, locks BLOB NOT NULL, changes BLOB NOT NULL, staged BLOB,
                                  PRIMARY KEY (router, sequence)) STRICT, WITHOUT ROWID"
        .into()
}

/// The table of locks that are too many for a prepared transaction's row.
pub(crate) const LOCKS: &str = "shoal_locked";

/// What every replica of a shard runs before its first log entry, too.
pub(crate) fn init_locks() -> String {
    format!(
        "CREATE TABLE {LOCKS} (router INTEGER NOT NULL, sequence INTEGER NOT NULL, n INTEGER NOT NULL,
                               locked INTEGER NOT NULL, mode INTEGER NOT NULL, hashes BLOB NOT NULL,
                               PRIMARY KEY (router, sequence, n)) STRICT"
    )
}

/// Writes some of a transaction's locks down that are kept as hashes, before it is prepared. A second time changes nothing.
pub(crate) fn insert_locks(
    connection: &Connection,
    id: TransactionId,
    n: u64,
    (table, mode, hashes): (TableId, RowLock, &[u64]),
) -> Result<(), WireError> {
    let sql = format!("INSERT OR REPLACE INTO {LOCKS} VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
    let (router, sequence) = key(id);
    let mode = mode_number(Mode::Row(mode));
    let values = (router, sequence, n.cast_signed(), i64::from(table.0), mode, packed(hashes));
    connection.prepare_cached(&sql).map_err(error)?.execute(values).map_err(error)?;
    Ok(())
}

/// Those of a transaction.
fn locks(connection: &Connection, id: TransactionId) -> Result<Vec<(TableId, RowLock, Vec<u64>)>, WireError> {
    let sql =
        format!("SELECT locked, mode, hashes FROM {LOCKS} WHERE router = ?1 AND sequence = ?2 ORDER BY n");
    let mut statement = connection.prepare_cached(&sql).map_err(error)?;
    let mut rows = statement.query(key(id)).map_err(error)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(error)? {
        let (table, mode, hashes): (u32, i64, Vec<u8>) =
            (row.get(0).map_err(error)?, row.get(1).map_err(error)?, row.get(2).map_err(error)?);
        let mode = usize::try_from(mode).ok().and_then(|mode| MODES.get(mode));
        let Some(Mode::Row(mode)) = mode else { return Err(damaged()) };
        found.push((TableId(table), *mode, unpacked(&hashes)?));
    }
    Ok(found)
}

fn packed(hashes: &[u64]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect()
}

fn unpacked(bytes: &[u8]) -> Result<Vec<u64>, WireError> {
    let (all, []) = bytes.as_chunks() else { return Err(damaged()) };
    Ok(all.iter().map(|hash| u64::from_le_bytes(*hash)).collect())
}

/// A prepared transaction, but for what it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub id: TransactionId,
    pub begun: u64,
    /// What its leader had applied when it was prepared: the entry that prepares it is later than that.
    pub since: LogIndex,
    pub participants: Vec<ShardId>,
    /// The shards whose votes this is: of those that have gone on in this one, or this one itself.
    pub votes: Vec<ShardId>,
    /// Whether the votes commit it.
    pub parallel: bool,
    pub locks: Vec<(Resource, Mode)>,
    /// Those that are kept as hashes.
    pub hashes: Vec<(TableId, RowLock, Vec<u64>)>,
}

/// Where a prepared transaction's changes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Changes {
    /// In its row: one changeset.
    Whole(Bytes),
    /// Staged.
    Staged(Pieces),
}

/// Writes a transaction down with its changes.
pub(crate) fn insert(
    connection: &Connection,
    prepared: &Prepared,
    changes: &Changes,
) -> Result<(), WireError> {
    let (whole, staged) = match changes {
        Changes::Whole(changes) => (&changes[..], None),
        Changes::Staged(pieces) => (&[][..], Some(pieces.encode())),
    };
    let Prepared { id, begun, since, participants, votes, parallel, locks, hashes } = prepared;
    let locks = pack_locks(locks, hashes);
    let (router, sequence) = key(*id);
    let values = (
        router,
        sequence,
        begun.cast_signed(),
        since.0.cast_signed(),
        pack_shards(participants),
        pack_shards(votes),
        parallel,
        locks,
        whole,
        staged.as_deref(),
    );
    let sql = "INSERT INTO shoal_prepared VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    connection.prepare_cached(sql).map_err(error)?.execute(values).map_err(error)?;
    Ok(())
}

/// All that a sealed shard leaves prepared, in the order of the ids. Nothing of it is staged, else it weren't sealed.
pub(crate) fn all(connection: &Connection) -> Result<Vec<LeftPrepared>, WireError> {
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {TABLE} WHERE staged IS NOT NULL UNION ALL SELECT 1 FROM {LOCKS})"
    );
    if connection.query_row(&sql, [], |row| row.get(0)).map_err(error)? {
        return Err(WireError::internal("what is staged can't go along with a shard's other transactions"));
    }
    let sql = "SELECT router, sequence, begun, participants, votes, parallel, locks, changes
               FROM shoal_prepared ORDER BY router, sequence";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mut rows = statement.query([]).map_err(error)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(error)? {
        found.push(LeftPrepared {
            transaction: name(row)?,
            begun: number(row, 2)?,
            participants: shards(row, 3)?,
            votes: shards(row, 4)?,
            parallel: number(row, 5)? != 0,
            locks: row.get::<_, Vec<u8>>(6).map_err(error)?.into(),
            changes: row.get::<_, Vec<u8>>(7).map_err(error)?.into(),
        });
    }
    Ok(found)
}

/// Takes over what another shard has left. What an adoption before this one has taken over is to be gone ([`clear`]). If another source
/// has left its part of the same transaction, both become one: its changes, its locks and its votes are those of both.
/// `since`: what this replica has applied. For closures on the writer.
pub(crate) fn adopt(connection: &Connection, since: LogIndex, left: &LeftPrepared) -> Result<(), WireError> {
    let (router, sequence) = key(left.transaction);
    let sql = "SELECT votes, locks, changes FROM shoal_prepared WHERE router = ?1 AND sequence = ?2";
    let (mut votes, mut changes) = (Vec::new(), Vec::new());
    let (mut known, mut plain, mut hashed) = (HashSet::new(), Vec::new(), Vec::new());
    let mut unite = |packed: &[u8]| {
        for values in unpack(packed, LOCK_COLUMNS)?.rows() {
            match lock(values)? {
                Lock::Plain(resource, mode) if known.insert((resource.clone(), mode)) => {
                    plain.push((resource, mode));
                }
                Lock::Plain(..) => {}
                Lock::Hashes(table, mode, hashes) => {
                    let hashes = (table, mode, hashes);
                    if !hashed.contains(&hashes) {
                        hashed.push(hashes);
                    }
                }
            }
        }
        Ok::<_, WireError>(())
    };
    {
        let mut statement = connection.prepare_cached(sql).map_err(error)?;
        let mut rows = statement.query((router, sequence)).map_err(error)?;
        if let Some(row) = rows.next().map_err(error)? {
            votes = shards(row, 0)?;
            unite(&row.get::<_, Vec<u8>>(1).map_err(error)?)?;
            changes = row.get(2).map_err(error)?;
        }
    }
    unite(&left.locks)?;
    votes.extend(&left.votes);
    votes.sort_unstable();
    votes.dedup();
    // They are of different rows, so their order is no matter.
    changes.extend_from_slice(&left.changes);
    delete(connection, left.transaction)?;
    let LeftPrepared { transaction: id, begun, parallel, .. } = *left;
    let participants = left.participants.clone();
    let prepared = Prepared { id, begun, since, participants, votes, parallel, locks: plain, hashes: hashed };
    insert(connection, &prepared, &Changes::Whole(changes.into()))
}

/// Strikes all of them out: what was taken over before is taken over anew, and what the group had prepared under another name
/// has ended elsewhere, or comes back.
pub(crate) fn clear(connection: &Connection) -> Result<(), WireError> {
    // Each row by itself, so that it is captured.
    connection
        .prepare_cached("DELETE FROM shoal_prepared WHERE true")
        .map_err(error)?
        .execute([])
        .map_err(error)?;
    Ok(())
}

/// Whose votes a transaction's row is; nothing if it isn't prepared.
pub(crate) fn votes(connection: &Connection, id: TransactionId) -> Result<Option<Vec<ShardId>>, WireError> {
    let sql = "SELECT votes FROM shoal_prepared WHERE router = ?1 AND sequence = ?2";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mut rows = statement.query(key(id)).map_err(error)?;
    rows.next().map_err(error)?.map(|row| shards(row, 0)).transpose()
}

/// Whether a transaction is prepared.
pub(crate) fn is_there(connection: &Connection, id: TransactionId) -> Result<bool, WireError> {
    let sql = "SELECT 1 FROM shoal_prepared WHERE router = ?1 AND sequence = ?2";
    connection.prepare_cached(sql).and_then(|mut statement| statement.exists(key(id))).map_err(error)
}

/// What a prepared transaction changes; nothing if it isn't prepared.
pub(crate) fn changes(connection: &Connection, id: TransactionId) -> Result<Option<Changes>, WireError> {
    let sql = "SELECT changes, staged FROM shoal_prepared WHERE router = ?1 AND sequence = ?2";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let found = statement.query_row(key(id), |row| Ok((row.get(0)?, row.get(1)?))).optional();
    let found: Option<(Vec<u8>, Option<Vec<u8>>)> = found.map_err(error)?;
    Ok(match found {
        Some((_, Some(staged))) => Some(Changes::Staged(Pieces::decode(&staged)?)),
        Some((whole, None)) => Some(Changes::Whole(whole.into())),
        None => None,
    })
}

/// Strikes a transaction out.
pub(crate) fn delete(connection: &Connection, id: TransactionId) -> Result<(), WireError> {
    let sql = "DELETE FROM shoal_prepared WHERE router = ?1 AND sequence = ?2";
    connection.prepare_cached(sql).map_err(error)?.execute(key(id)).map_err(error)?;
    Ok(())
}

/// All of them, and the participants of each.
pub(crate) fn participants(
    connection: &Connection,
) -> Result<BTreeMap<TransactionId, Vec<ShardId>>, WireError> {
    let sql = "SELECT router, sequence, participants FROM shoal_prepared";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mut rows = statement.query([]).map_err(error)?;
    let mut found = BTreeMap::new();
    while let Some(row) = rows.next().map_err(error)? {
        found.insert(name(row)?, shards(row, 2)?);
    }
    Ok(found)
}

/// All of them, and what was applied when each was prepared. In the order of their ids.
pub(crate) fn since(connection: &Connection) -> Result<Vec<(TransactionId, LogIndex)>, WireError> {
    // To look one up by its key would be to read all of those that are in the way.
    let sql = "SELECT router, sequence, since FROM shoal_prepared ORDER BY router, sequence";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mut rows = statement.query([]).map_err(error)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(error)? {
        found.push((name(row)?, LogIndex(number(row, 2)?)));
    }
    Ok(found)
}

/// What a transaction has locked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Locked {
    /// What it has locks on.
    pub locks: Vec<Resource>,
    /// Tables in which it has more, which are kept as hashes.
    pub hashed: Vec<TableId>,
}

/// What a transaction has locked; nothing if it isn't prepared.
pub(crate) fn locked(connection: &Connection, id: TransactionId) -> Result<Option<Locked>, WireError> {
    let sql = "SELECT locks FROM shoal_prepared WHERE router = ?1 AND sequence = ?2";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mut rows = statement.query(key(id)).map_err(error)?;
    let Some(row) = rows.next().map_err(error)? else { return Ok(None) };
    let Locked { mut locks, mut hashed } = Locked::default();
    for values in batch(row, 0, LOCK_COLUMNS)?.rows() {
        match lock(values)? {
            Lock::Plain(resource, _) => locks.push(resource),
            Lock::Hashes(table, ..) => hashed.push(table),
        }
    }
    let sql = format!("SELECT DISTINCT locked FROM {LOCKS} WHERE router = ?1 AND sequence = ?2");
    let mut statement = connection.prepare_cached(&sql).map_err(error)?;
    let aside = statement.query_map(key(id), |row| row.get(0).map(TableId)).map_err(error)?;
    for table in aside {
        hashed.push(table.map_err(error)?);
    }
    Ok(Some(Locked { locks, hashed }))
}

/// All of them.
pub(crate) fn load(connection: &Connection) -> Result<Vec<Prepared>, WireError> {
    let sql = "SELECT router, sequence, begun, since, participants, votes, parallel, locks
               FROM shoal_prepared ORDER BY router, sequence";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mut rows = statement.query([]).map_err(error)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(error)? {
        found.push(read(row)?);
    }
    for prepared in &mut found {
        prepared.hashes.extend(locks(connection, prepared.id)?);
    }
    Ok(found)
}

const LOCK_COLUMNS: u16 = 5;
const WHOLE: i64 = 0;
const ROW: i64 = 1;
const UNIQUE: i64 = 2;
const KEYS: i64 = 3;
const HASHES: i64 = 4;
const MOVED: i64 = 5;
const MODES: [Mode; 6] = [
    Mode::Row(RowLock::KeyShare),
    Mode::Row(RowLock::Share),
    Mode::Row(RowLock::NoKeyUpdate),
    Mode::Row(RowLock::Update),
    Mode::Shared,
    Mode::Exclusive,
];

fn mode_number(mode: Mode) -> i64 {
    MODES.iter().position(|known| *known == mode).expect("they are all there") as i64
}

fn key(id: TransactionId) -> (i64, i64) {
    (id.router.0.cast_signed(), id.sequence.cast_signed())
}

fn damaged() -> WireError {
    WireError::new(SqlState::DATA_CORRUPTED, "what is written of a prepared transaction is damaged")
}

fn number(row: &Row<'_>, column: usize) -> Result<u64, WireError> {
    row.get::<_, i64>(column).map(i64::cast_unsigned).map_err(error)
}

fn batch(row: &Row<'_>, column: usize, width: u16) -> Result<RowBatch, WireError> {
    unpack(&row.get::<_, Vec<u8>>(column).map_err(error)?, width)
}

fn unpack(bytes: &[u8], width: u16) -> Result<RowBatch, WireError> {
    let (count, data) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    let data = Bytes::copy_from_slice(data);
    RowBatch::decode(width, u32::from_le_bytes(*count), data).map_err(|_| damaged())
}

fn name(row: &Row<'_>) -> Result<TransactionId, WireError> {
    Ok(TransactionId { router: RouterIncarnation(number(row, 0)?), sequence: number(row, 1)? })
}

fn shards(row: &Row<'_>, column: usize) -> Result<Vec<ShardId>, WireError> {
    let shard = |value| match value {
        ValueRef::Int(shard) => Ok(ShardId(shard.cast_unsigned())),
        _ => Err(damaged()),
    };
    batch(row, column, 1)?.rows().flatten().map(shard).collect()
}

/// One of the locks in a transaction's row.
enum Lock {
    Plain(Resource, Mode),
    Hashes(TableId, RowLock, Vec<u64>),
}

fn lock<'a>(values: impl Iterator<Item = ValueRef<'a>>) -> Result<Lock, WireError> {
    let values: Vec<ValueRef<'_>> = values.collect();
    let [ValueRef::Int(table), ValueRef::Int(kind), ValueRef::Int(index), key, ValueRef::Int(mode)] =
        values[..]
    else {
        return Err(damaged());
    };
    let short = |number: i64| u32::try_from(number).map_err(|_| damaged());
    let table = TableId(short(table)?);
    let mode = *usize::try_from(mode).ok().and_then(|mode| MODES.get(mode)).ok_or_else(damaged)?;
    if let (HASHES, ValueRef::Blob(bytes), Mode::Row(mode)) = (kind, key, mode) {
        return Ok(Lock::Hashes(table, mode, unpacked(bytes)?));
    }
    let part = match (kind, key) {
        (WHOLE, ValueRef::Null) => Part::Table,
        (ROW, ValueRef::Blob(key)) => Part::Row(key.into()),
        (KEYS, ValueRef::Blob(key)) => Part::Keys(key.into()),
        (MOVED, ValueRef::Blob(key)) => Part::Moved(key.into()),
        (UNIQUE, ValueRef::Blob(key)) => Part::Unique(short(index)?, key.into()),
        _ => return Err(damaged()),
    };
    Ok(Lock::Plain(Resource { table, part }, mode))
}

fn read(row: &Row<'_>) -> Result<Prepared, WireError> {
    let (mut locks, mut hashes) = (Vec::new(), Vec::new());
    for values in batch(row, 7, LOCK_COLUMNS)?.rows() {
        match lock(values)? {
            Lock::Plain(resource, mode) => locks.push((resource, mode)),
            Lock::Hashes(table, mode, of) => hashes.push((table, mode, of)),
        }
    }
    Ok(Prepared {
        id: name(row)?,
        begun: number(row, 2)?,
        since: LogIndex(number(row, 3)?),
        parallel: number(row, 6)? != 0,
        participants: shards(row, 4)?,
        votes: shards(row, 5)?,
        locks,
        hashes,
    })
}

fn pack_shards(shards: &[ShardId]) -> Vec<u8> {
    let mut rows = RowBatchBuilder::new(1);
    shards.iter().for_each(|shard| rows.push(ValueRef::Int(shard.0.cast_signed())));
    pack(&rows.finish())
}

fn pack_locks(plain: &[(Resource, Mode)], hashed: &[(TableId, RowLock, Vec<u64>)]) -> Vec<u8> {
    let mut rows = RowBatchBuilder::new(LOCK_COLUMNS);
    let int = |number| ValueRef::Int(number);
    for (resource, mode) in plain {
        let (kind, number, key) = match &resource.part {
            Part::Table => (WHOLE, 0, ValueRef::Null),
            Part::Row(key) => (ROW, 0, ValueRef::Blob(key)),
            Part::Unique(number, key) => (UNIQUE, i64::from(*number), ValueRef::Blob(key)),
            Part::Keys(key) => (KEYS, 0, ValueRef::Blob(key)),
            Part::Moved(key) => (MOVED, 0, ValueRef::Blob(key)),
        };
        rows.push_row([int(resource.table.0.into()), int(kind), int(number), key, int(mode_number(*mode))]);
    }
    for (table, mode, hashes) in hashed {
        let bytes = packed(hashes);
        let mode = mode_number(Mode::Row(*mode));
        rows.push_row([int(table.0.into()), int(HASHES), int(0), ValueRef::Blob(&bytes), int(mode)]);
    }
    pack(&rows.finish())
}

fn pack(rows: &RowBatch) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + rows.data().len());
    bytes.extend_from_slice(&(rows.len() as u32).to_le_bytes());
    bytes.extend_from_slice(rows.data());
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_back() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&init()).unwrap();
        connection.execute_batch(&init_locks()).unwrap();
        let id = |sequence| TransactionId { router: RouterIncarnation(u64::MAX - 1), sequence };
        let resource = |part| Resource { table: TableId(16384), part };
        let locks = MODES.iter().enumerate().map(|(place, mode)| {
            let key: Box<[u8]> = vec![place as u8; place].into();
            let part = match place % 5 {
                0 => Part::Table,
                1 => Part::Row(key),
                2 => Part::Keys(key),
                3 => Part::Moved(key),
                _ => Part::Unique(u32::MAX - place as u32, key),
            };
            (resource(part), *mode)
        });
        let one = Prepared {
            id: id(1),
            begun: u64::MAX,
            since: LogIndex(7),
            participants: vec![ShardId(3), ShardId(u64::MAX)],
            votes: vec![ShardId(u64::MAX)],
            parallel: true,
            locks: locks.collect(),
            hashes: vec![
                (TableId(7), RowLock::Update, vec![1, u64::MAX]),
                (TableId(8), RowLock::Share, vec![]),
            ],
        };
        let other = Prepared {
            id: id(2),
            begun: 0,
            since: LogIndex(0),
            participants: Vec::new(),
            votes: Vec::new(),
            parallel: false,
            locks: Vec::new(),
            hashes: Vec::new(),
        };
        let whole = |changes: &'static [u8]| Changes::Whole(Bytes::from_static(changes));
        insert(&connection, &one, &whole(b"changes")).unwrap();
        insert(&connection, &other, &Changes::Staged(Pieces::default())).unwrap();
        assert!(insert(&connection, &one, &whole(b"again")).is_err());
        assert_eq!(load(&connection).unwrap(), [one.clone(), other.clone()]);
        let more = (TableId(9), RowLock::NoKeyUpdate, vec![2, 3]);
        for hashes in [&[2][..], &[2, 3]] {
            insert_locks(&connection, id(1), 0, (more.0, more.1, hashes)).unwrap();
        }
        assert_eq!(votes(&connection, id(1)).unwrap(), Some(vec![ShardId(u64::MAX)]));
        assert_eq!(votes(&connection, id(3)).unwrap(), None);
        assert_eq!(since(&connection).unwrap(), [(id(1), LogIndex(7)), (id(2), LogIndex(0))]);
        let locks = one.locks.iter().map(|(resource, _)| resource.clone()).collect();
        let hashed = vec![TableId(7), TableId(8), TableId(9)];
        assert_eq!(locked(&connection, id(1)).unwrap(), Some(Locked { locks, hashed }));
        assert_eq!(locked(&connection, id(3)).unwrap(), None);
        let mut with_more = one;
        with_more.hashes.push(more);
        assert_eq!(load(&connection).unwrap(), [with_more, other.clone()]);
        assert_eq!(changes(&connection, id(1)).unwrap(), Some(whole(b"changes")));
        assert_eq!(changes(&connection, id(2)).unwrap(), Some(Changes::Staged(Pieces::default())));
        delete(&connection, id(1)).unwrap();
        delete(&connection, id(1)).unwrap();
        assert_eq!(changes(&connection, id(1)).unwrap(), None);
        assert_eq!(load(&connection).unwrap(), [other]);
        connection.execute("UPDATE shoal_prepared SET locks = x'01000000'", []).unwrap();
        assert_eq!(load(&connection).unwrap_err().sqlstate, SqlState::DATA_CORRUPTED);
    }

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&init()).unwrap();
        connection.execute_batch(&init_locks()).unwrap();
        connection
    }

    /// A transaction as a shard has prepared it, with a table and one row of it locked.
    fn of(shard: u64, sequence: u64) -> Prepared {
        let resource = |part| Resource { table: TableId(16384), part };
        let row = resource(Part::Row(vec![shard as u8, sequence as u8].into()));
        Prepared {
            id: TransactionId { router: RouterIncarnation(9), sequence },
            begun: 5,
            since: LogIndex(100 * shard),
            participants: vec![ShardId(1), ShardId(2)],
            votes: vec![ShardId(shard)],
            parallel: true,
            locks: vec![(resource(Part::Table), Mode::Shared), (row, Mode::Row(RowLock::Update))],
            hashes: vec![(TableId(7), RowLock::Share, vec![shard])],
        }
    }

    /// What this shard leaves that has prepared these, whose changes are the shard's number.
    pub fn left(shard: u64, sequences: &[u64]) -> Vec<LeftPrepared> {
        let source = database();
        for sequence in sequences {
            let changes = Changes::Whole(Bytes::from(shard.to_string()));
            insert(&source, &of(shard, *sequence), &changes).unwrap();
        }
        all(&source).unwrap()
    }

    #[test]
    fn what_one_shard_leaves_is_taken_over_as_it_is() {
        let heir = database();
        for left in left(1, &[1, 2]) {
            adopt(&heir, LogIndex(7), &left).unwrap();
        }
        let taken = |sequence| Prepared { since: LogIndex(7), ..of(1, sequence) };
        assert_eq!(load(&heir).unwrap(), [taken(1), taken(2)]);
        let changes = changes(&heir, taken(1).id).unwrap();
        assert_eq!(changes, Some(Changes::Whole(Bytes::from_static(b"1"))));
        // And so it is left once more.
        assert_eq!(all(&heir).unwrap(), left(1, &[1, 2]));
        clear(&heir).unwrap();
        assert_eq!(all(&heir).unwrap(), []);
    }

    #[test]
    fn two_halves_of_a_transaction_become_one() {
        let heir = database();
        for left in left(1, &[1, 2]).iter().chain(&left(2, &[2, 3])) {
            adopt(&heir, LogIndex(7), left).unwrap();
        }
        let (one, other) = (of(1, 2), of(2, 2));
        let both = Prepared {
            since: LogIndex(7),
            votes: vec![ShardId(1), ShardId(2)],
            // Both have the table locked.
            locks: one.locks.iter().chain(&other.locks[1..]).cloned().collect(),
            hashes: one.hashes.iter().chain(&other.hashes).cloned().collect(),
            ..of(1, 2)
        };
        let alone = |shard, sequence| Prepared { since: LogIndex(7), ..of(shard, sequence) };
        assert_eq!(load(&heir).unwrap(), [alone(1, 1), both.clone(), alone(2, 3)]);
        let all_of = |prepared: &Prepared| changes(&heir, prepared.id).unwrap().unwrap();
        assert_eq!(all_of(&both), Changes::Whole(Bytes::from_static(b"12")));
        assert_eq!(votes(&heir, alone(2, 3).id).unwrap(), Some(vec![ShardId(2)]));
        // What is split after a merge comes together again, with all that it was.
        let (half, again) = (all(&heir).unwrap(), database());
        for left in half.iter().chain(&half) {
            adopt(&again, LogIndex(9), left).unwrap();
        }
        let of_again = Prepared { since: LogIndex(9), ..both };
        assert_eq!(load(&again).unwrap()[1], of_again);
    }

    #[test]
    fn what_is_staged_does_not_go_along() {
        let source = database();
        insert(&source, &of(1, 1), &Changes::Staged(Pieces::default())).unwrap();
        assert_eq!(all(&source).unwrap_err().sqlstate, SqlState::INTERNAL_ERROR);
        clear(&source).unwrap();
        assert_eq!(all(&source).unwrap(), []);
        insert_locks(&source, of(1, 1).id, 0, (TableId(7), RowLock::Update, &[1])).unwrap();
        assert_eq!(all(&source).unwrap_err().sqlstate, SqlState::INTERNAL_ERROR);
    }
}
