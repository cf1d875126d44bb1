//! The moments at which a job changes what everyone sees: its publication, and its end.
//!
//! In come a job and the coordinator's tables inside a write. All of it is one transaction of the coordinator's log,
//! and doing it again finds it done.

use crate::explain::explain;
use crate::job::{Job, Kind};
use crate::keyspace;
use crate::store::{Answer, Store};
use proto::catalog::Table;
use proto::services::SchemaChange;
use proto::{KeyspaceNumber, SchemaVersion, ShardId, TableId, WireError};

type Result<T> = std::result::Result<T, WireError>;

/// Moves a job past the stage that it stands at, if it still does. Past the last one it ends.
pub(crate) fn advance(store: Store<'_>, id: u64, stage: u32) -> Result<()> {
    let Some(mut job) = store.job(id)?.filter(|job| job.stage == stage && !job.has_failed()) else {
        return Ok(());
    };
    if job.current().is_some_and(|stage| stage.kind() == Kind::Publish) {
        publish(store, &mut job)?;
    }
    job.stage += 1;
    if job.current().is_some() {
        return store.put_job(&job);
    }
    let value = match (job.change()?, job.keyspace(), job.version()) {
        (None, Some(keyspace), _) => u64::from(keyspace.0),
        (_, _, Some(version)) => version.0,
        (_, _, None) => store.version()?.0,
    };
    store.end_job(&job, &Ok(value))
}

/// Notes that the stage at which a job stands has failed, and on which shards it did not.
pub(crate) fn fail(store: Store<'_>, id: u64, stage: u32, error: WireError, done: &[ShardId]) -> Result<()> {
    let Some(mut job) = store.job(id)?.filter(|job| job.stage == stage && !job.has_failed()) else {
        return Ok(());
    };
    let change = job.change()?;
    let old = match &change {
        Some(SchemaChange::ReplaceTable { table, .. }) => store.table(table.id)?,
        _ => None,
    };
    job.fail(&explain(error, change.as_ref(), old.as_ref()), done.iter().copied());
    store.put_job(&job)
}

/// Ends a job that failed, once what it did is undone.
pub(crate) fn abort(store: Store<'_>, id: u64) -> Result<()> {
    let Some(job) = store.job(id)? else { return Ok(()) };
    let Some(error) = job.error()? else { return Ok(()) };
    if let Some(keyspace) = job.keyspace() {
        store.drop_keyspace(keyspace)?;
        store.next_epoch()?;
    }
    if job.exclusive {
        // The shards refuse plans older than the version that was to be: it comes, and shows what was before.
        store.next_version()?;
    }
    let answer: Answer = Err(error);
    store.end_job(&job, &answer)
}

fn publish(store: Store<'_>, job: &mut Job) -> Result<()> {
    if let Some(number) = job.keyspace()
        && let Some(mut row) = store.keyspaces()?.into_iter().find(|row| row.keyspace.number == number)
    {
        row.ready = true;
        store.put_keyspace(&row)?;
        store.next_epoch()?;
    }
    let change = job.change()?;
    if let Some(SchemaChange::Truncate { tables, restart_identity }) = &change {
        if *restart_identity {
            restart(store, tables)?;
        }
        return Ok(());
    }
    if change.is_none() && !job.exclusive {
        return Ok(());
    }
    let version = store.next_version()?;
    if job.exclusive && job.version() != Some(version) {
        return Err(WireError::internal("a job that runs alone was overtaken by another version"));
    }
    job.publish_as(version);
    match change {
        Some(SchemaChange::CreateTable { table, sequences }) => {
            put(store, table, version)?;
            for sequence in &sequences {
                store.put_sequence(sequence, Some(sequence.start))?;
            }
        }
        Some(SchemaChange::ReplaceTable { table, sequences, .. }) => {
            for owned in store.sequences()? {
                let gone = |(owner, column)| owner == table.id && table.column(column).is_none();
                if owned.owner.is_some_and(gone) {
                    store.drop_sequence(owned.id)?;
                }
            }
            for sequence in &sequences {
                store.put_sequence(sequence, Some(sequence.start))?;
            }
            let kept = keyspace::of(&table.placement);
            drop_keyspaces(store, |owner, keyspace| owner == table.id && Some(keyspace) != kept)?;
            put(store, table, version)?;
        }
        Some(SchemaChange::DropTables(tables)) => {
            for id in &tables {
                store.drop_table(*id)?;
            }
            for sequence in store.sequences()? {
                if sequence.owner.is_some_and(|(owner, _)| tables.contains(&owner)) {
                    store.drop_sequence(sequence.id)?;
                }
            }
            drop_keyspaces(store, |owner, _| tables.contains(&owner))?;
        }
        Some(
            SchemaChange::Truncate { .. }
            | SchemaChange::CreateSequence(_)
            | SchemaChange::ReplaceSequence { .. }
            | SchemaChange::DropSequences(_)
            | SchemaChange::AlterRole { .. },
        )
        | None => {}
    }
    Ok(())
}

fn put(store: Store<'_>, mut table: Table, version: SchemaVersion) -> Result<()> {
    table.modified = version;
    store.put_table(&table)
}

/// Drops keyspaces that were made for a table, where this says so.
fn drop_keyspaces(store: Store<'_>, gone: impl Fn(TableId, KeyspaceNumber) -> bool) -> Result<()> {
    for row in store.keyspaces()? {
        if row.owner.is_some_and(|owner| gone(owner, row.keyspace.number)) {
            store.drop_keyspace(row.keyspace.number)?;
            store.next_epoch()?;
        }
    }
    Ok(())
}

/// Has the sequences that these tables own begin again. Not those of hidden keys: nobody sees their values, and a row
/// that another session inserts meanwhile with a later value would be in the way of one that comes to it again.
fn restart(store: Store<'_>, tables: &[TableId]) -> Result<()> {
    for sequence in store.sequences()? {
        if !sequence.hidden && sequence.owner.is_some_and(|(owner, _)| tables.contains(&owner)) {
            store.put_sequence(&sequence, Some(sequence.start))?;
        }
    }
    Ok(())
}
