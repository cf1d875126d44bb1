//! Making an image: a copy of a replica's database as one read transaction sees it, in slices.
//!
//! A directory goes in, an [`Image`] comes out. What the image holds is told by the image itself: the applied index and
//! the ConfState are rows of it. No writer waits for it; it only keeps the WAL from being emptied while it lasts.

use super::backup::Backup;
use super::file::{self, Hashing};
use super::{Image, includes};
use crate::connection;
use crate::engine::Engine;
use crate::error::ReplicaError;
use protobuf::Message as _;
use raft::eraftpb::ConfState;
use std::fs;
use std::path::{Path, PathBuf};

/// How many pages one slice copies.
const SLICE_PAGES: u16 = 256;

/// An image that is being made.
pub(super) struct Making {
    directory: PathBuf,
    stage: Stage,
    index: u64,
    conf_state: ConfState,
}

enum Stage {
    Copying(Backup),
    Hashing(Hashing),
}

impl Making {
    /// Begins with what is committed in the database now; nothing if `member` isn't in the group there yet, so that the
    /// image would be of no use to it.
    pub fn begin(directory: &Path, member: u64) -> Result<Option<Self>, ReplicaError> {
        let database = Engine::database(directory);
        let target = file::making(directory);
        file::clean_making(directory)?;
        let damaged = |message| ReplicaError::Damaged { path: database.clone(), message };
        let read = || -> rusqlite::Result<_> {
            let connection = connection::copier(&database)?;
            connection.execute_batch("BEGIN")?;
            let (applied, conf_state) =
                connection.query_row("SELECT applied, conf_state FROM replica_state", [], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))
                })?;
            Ok((connection, applied.cast_unsigned(), conf_state))
        };
        let (source, index, conf_state) = read().map_err(ReplicaError::sqlite(&database))?;
        let conf_state =
            ConfState::parse_from_bytes(&conf_state).map_err(|e| damaged(format!("its ConfState: {e}")))?;
        if index == 0 || !includes(&conf_state, member) {
            return Ok(None);
        }
        let backup = Backup::begin(source, &target).map_err(ReplicaError::sqlite(&target))?;
        Ok(Some(Self { directory: directory.to_owned(), stage: Stage::Copying(backup), index, conf_state }))
    }

    /// The last entry whose effects the image will have.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Goes on for a moment. Gives the image once it is complete.
    pub fn step(&mut self) -> Result<Option<Image>, ReplicaError> {
        let target = file::making(&self.directory);
        match &mut self.stage {
            Stage::Copying(backup) => {
                if backup.step(SLICE_PAGES).map_err(ReplicaError::sqlite(&target))? {
                    // This ends the backup, and with it the read transaction.
                    self.stage = Stage::Hashing(Hashing::begin(&target)?);
                }
                Ok(None)
            }
            Stage::Hashing(hashing) => {
                let Some((id, length)) = hashing.step()? else { return Ok(None) };
                let path = file::made(&self.directory, id);
                fs::rename(&target, &path).map_err(ReplicaError::io(&path))?;
                let conf_state = std::mem::take(&mut self.conf_state);
                Ok(Some(Image { id, length, index: self.index, conf_state }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::database;
    use super::*;
    use rusqlite::Connection;

    fn make(directory: &Path) -> Image {
        let mut making = Making::begin(directory, 1).unwrap().unwrap();
        loop {
            if let Some(image) = making.step().unwrap() {
                return image;
            }
        }
    }

    fn sum(path: &Path) -> (i64, i64) {
        let connection = Connection::open(path).unwrap();
        connection
            .query_row("SELECT (SELECT applied FROM replica_state), (SELECT sum(c1) FROM t1)", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap()
    }

    #[test]
    fn an_image_is_one_state_while_the_writer_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut engine = database(directory.path(), 20_000);
        let before = sum(&Engine::database(directory.path()));
        let mut making = Making::begin(directory.path(), 1).unwrap().unwrap();
        let mut steps = 0;
        let image = loop {
            if let Some(image) = making.step().unwrap() {
                break image;
            }
            // Neither a commit nor a checkpoint waits for it, and neither makes it begin again.
            steps += 1;
            let index = engine.applied() + 1;
            engine.begin(1).unwrap();
            super::super::tests::insert(&mut engine, 100_000 + steps);
            engine.seal(0).unwrap();
            engine.commit(index).unwrap();
            engine.checkpoint().unwrap();
            assert!(steps < 100, "it must come to an end");
        };
        assert!(steps > 5, "it takes several slices: {steps}");
        let path = file::made(directory.path(), image.id);
        assert_eq!(sum(&path), before);
        assert_eq!((image.index.cast_signed(), image.length), (before.0, fs::metadata(&path).unwrap().len()));
        assert_eq!(image.conf_state.voters, [1]);
        assert!(!file::making(directory.path()).exists());
    }

    #[test]
    fn the_same_state_has_the_same_id() {
        let directory = tempfile::tempdir().unwrap();
        let mut engine = database(directory.path(), 10);
        let first = make(directory.path());
        assert_eq!(make(directory.path()).id, first.id);
        let index = engine.applied() + 1;
        engine.begin(1).unwrap();
        super::super::tests::insert(&mut engine, 11);
        engine.seal(0).unwrap();
        engine.commit(index).unwrap();
        assert_ne!(make(directory.path()).id, first.id);
    }

    #[test]
    fn none_is_made_for_who_is_no_member_there() {
        let directory = tempfile::tempdir().unwrap();
        let _engine = database(directory.path(), 10);
        assert!(Making::begin(directory.path(), 2).unwrap().is_none());
        assert!(!file::making(directory.path()).exists());
    }

    #[test]
    fn an_error_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let _engine = database(directory.path(), 10);
        // A directory in its place can't be removed as a file is.
        fs::create_dir(file::making(directory.path())).unwrap();
        let error = Making::begin(directory.path(), 1).err().unwrap();
        assert!(error.to_string().contains("making.part"), "{error}");
    }
}
