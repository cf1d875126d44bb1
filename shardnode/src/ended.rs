//! What a shard remembers of transactions that it hasn't prepared any more, or never will.
//!
//! In come transactions whose votes alone commit them; they lie in a table that is captured and replicated as every other.
//! One that **has committed** here is remembered with its participants until everyone has, or until it's written down
//! elsewhere that it is committed: else it would look, to who asks for its votes, as if it had never given one. One that
//! is **renounced** will never be voted for, though its prepare come yet. It must never know who asks.

use bytes::Bytes;
use dialect::sqlite::error;
use proto::{RouterIncarnation, ShardId, SqlState, TransactionId, WireError};
use rusqlite::{Connection, Row};

/// How many transactions that are renounced are remembered. A prepare can't be so late that it isn't among them.
const RENOUNCED: i64 = 10_000;

/// What every replica of a shard runs before its first log entry.
pub(crate) fn init() -> String {
    "CREATE TABLE shoal_ended (router INTEGER NOT NULL, sequence INTEGER NOT NULL, participants BLOB NOT NULL,
                               PRIMARY KEY (router, sequence)) STRICT, WITHOUT ROWID"
        .into()
}

/// What every replica of a shard runs before its first log entry, too. Its rows' numbers are the order in which they came.
pub(crate) fn init_renounced() -> String {
    "CREATE TABLE shoal_renounced (router INTEGER NOT NULL, sequence INTEGER NOT NULL,
                                   PRIMARY KEY (router, sequence)) STRICT"
        .into()
}

/// Whether it has committed here, and is remembered.
pub(crate) fn has_committed(connection: &Connection, id: TransactionId) -> Result<bool, WireError> {
    is_in(connection, "SELECT 1 FROM shoal_ended WHERE router = ?1 AND sequence = ?2", id)
}

/// Whether it will never be voted for.
pub(crate) fn is_renounced(connection: &Connection, id: TransactionId) -> Result<bool, WireError> {
    is_in(connection, "SELECT 1 FROM shoal_renounced WHERE router = ?1 AND sequence = ?2", id)
}

fn is_in(connection: &Connection, sql: &str, id: TransactionId) -> Result<bool, WireError> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.exists(key(id))).map_err(error)
}

/// It has committed here.
pub(crate) fn commit(
    connection: &Connection,
    id: TransactionId,
    participants: &[ShardId],
) -> Result<(), WireError> {
    let participants: Vec<u8> = participants.iter().flat_map(|shard| shard.0.to_be_bytes()).collect();
    let sql = "INSERT INTO shoal_ended VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    let (router, sequence) = key(id);
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    statement.execute((router, sequence, participants)).map_err(error)?;
    Ok(())
}

/// It will never be voted for.
pub(crate) fn renounce(connection: &Connection, id: TransactionId) -> Result<(), WireError> {
    let sql = "INSERT INTO shoal_renounced VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    connection.prepare_cached(sql).map_err(error)?.execute(key(id)).map_err(error)?;
    let sql = "DELETE FROM shoal_renounced WHERE rowid <= (SELECT max(rowid) FROM shoal_renounced) - ?1";
    connection.prepare_cached(sql).map_err(error)?.execute([RENOUNCED]).map_err(error)?;
    Ok(())
}

/// That these have committed needn't be remembered any more.
pub(crate) fn forget(connection: &Connection, ids: &[TransactionId]) -> Result<(), WireError> {
    let sql = "DELETE FROM shoal_ended WHERE router = ?1 AND sequence = ?2";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    for id in ids {
        statement.execute(key(*id)).map_err(error)?;
    }
    Ok(())
}

/// Strikes all out that have committed here: others are to be taken over ([`load`] where they were, [`commit`] here, each as
/// often as it comes).
pub(crate) fn clear(connection: &Connection) -> Result<(), WireError> {
    // Each row by itself, so that it is captured.
    connection
        .prepare_cached("DELETE FROM shoal_ended WHERE true")
        .map_err(error)?
        .execute([])
        .map_err(error)?;
    Ok(())
}

/// Those that have committed here, with their participants. This, too, goes along to those that take the shard's place.
pub(crate) fn load(connection: &Connection) -> Result<Vec<(TransactionId, Vec<ShardId>)>, WireError> {
    let sql = "SELECT router, sequence, participants FROM shoal_ended";
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mut rows = statement.query([]).map_err(error)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(error)? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn read(row: &Row<'_>) -> Result<(TransactionId, Vec<ShardId>), WireError> {
    let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned).map_err(error);
    let id = TransactionId { router: RouterIncarnation(number(0)?), sequence: number(1)? };
    let bytes = Bytes::from(row.get::<_, Vec<u8>>(2).map_err(error)?);
    let (participants, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        let message = "what is written of a transaction that has committed is damaged";
        return Err(WireError::new(SqlState::DATA_CORRUPTED, message));
    }
    Ok((id, participants.iter().map(|shard| ShardId(u64::from_be_bytes(*shard))).collect()))
}

fn key(id: TransactionId) -> (i64, i64) {
    (id.router.0.cast_signed(), id.sequence.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_committed_is_remembered_until_it_is_forgotten() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&init()).unwrap();
        connection.execute_batch(&init_renounced()).unwrap();
        let id = |sequence| TransactionId { router: RouterIncarnation(u64::MAX), sequence };
        commit(&connection, id(1), &[ShardId(1), ShardId(u64::MAX)]).unwrap();
        commit(&connection, id(1), &[]).unwrap();
        renounce(&connection, id(2)).unwrap();
        let committed = |n| has_committed(&connection, id(n)).unwrap();
        let renounced = |n| is_renounced(&connection, id(n)).unwrap();
        assert_eq!([1, 2, 3].map(committed), [true, false, false]);
        assert_eq!([1, 2, 3].map(renounced), [false, true, false]);
        assert_eq!(load(&connection).unwrap(), [(id(1), vec![ShardId(1), ShardId(u64::MAX)])]);
        forget(&connection, &[id(1), id(2), id(3)]).unwrap();
        assert_eq!(([1, 2].map(committed), [1, 2].map(renounced)), ([false; 2], [false, true]));
        for n in 3..=RENOUNCED as u64 + 2 {
            renounce(&connection, id(n)).unwrap();
        }
        assert_eq!([2, 3].map(renounced), [false, true]);
        commit(&connection, id(5), &[]).unwrap();
        clear(&connection).unwrap();
        assert_eq!((load(&connection).unwrap(), renounced(3)), (Vec::new(), true));
    }
}
