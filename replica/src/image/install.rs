//! Putting a received image in a database's place, so that a crash at any moment leaves the old state or the new one.
//!
//! 1. [`commit`] renames the image to a name that says "this is the database", with its index and term, and syncs the
//!    directory. This is the moment: what a crash leaves before it is the old state, after it the new one.
//! 2. The log forgets all its entries; the next comes after the image's index.
//! 3. [`swap`] removes the old database's WAL, and gives the image the database's name.
//!
//! [`finish`] does what is left of 2 and 3 when a group is opened. It must never know what an image holds.

use super::file;
use crate::engine::Engine;
use crate::error::ReplicaError;
use crate::log::{Batch, Change, Cut, LogStore};
use std::fs;
use std::path::{Path, PathBuf};

/// Makes a received image, which is synced, the group's state as of this index and term.
pub(crate) fn commit(directory: &Path, received: &Path, cut: Cut) -> Result<(), ReplicaError> {
    let next = file::next(directory, cut.index, cut.term);
    fs::rename(received, &next).map_err(ReplicaError::io(received))?;
    file::sync_directory(directory)
}

/// Gives the committed image the database's name. Nobody may have the database open, or open it meanwhile.
pub(crate) fn swap(directory: &Path) -> Result<(), ReplicaError> {
    STEPS.iter().try_for_each(|step| step(directory))
}

type Step = fn(&Path) -> Result<(), ReplicaError>;

/// One by one, for each could be the last before a crash. A database must never be seen with a WAL that isn't its own:
/// SQLite would copy the WAL into it. So the WAL goes first, durably; what remains of the database then isn't opened
/// any more, for the image is found before.
const STEPS: [Step; 6] = [
    // An older image that was never put in place must not be found after this one was.
    file::clean_next,
    |directory| file::remove(&beside(directory, "-wal")),
    |directory| file::remove(&beside(directory, "-shm")),
    file::sync_directory,
    |directory| match file::find_next(directory)? {
        Some((next, ..)) => fs::rename(&next, Engine::database(directory)).map_err(ReplicaError::io(&next)),
        None => Ok(()),
    },
    file::sync_directory,
];

fn beside(directory: &Path, suffix: &str) -> PathBuf {
    let mut path = Engine::database(directory).into_os_string();
    path.push(suffix);
    path.into()
}

/// Finishes what a crash interrupted after an image was committed.
pub(crate) fn finish(directory: &Path, group: u64, log: &dyn LogStore) -> Result<(), ReplicaError> {
    let Some((_, index, term)) = file::find_next(directory)? else { return Ok(()) };
    tracing::info!(group, index, "puts the image in place that was received before the last stop");
    if log.kept(group)?.cut.index < index {
        let mut batch = Batch::default();
        batch.put(group, Change::Reset(Cut { index, term }));
        log.write(batch, true)?;
    }
    swap(directory)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMITS, database, insert};
    use super::*;
    use crate::log::{RaftEngineLog, find};
    use raft::eraftpb::{Entry, HardState};

    const GROUP: u64 = 7;
    const CUT: Cut = Cut { index: 50, term: 4 };

    /// A node's directory: `log` and `group`. The database has 10 rows at index 2, some of it in the WAL alone.
    fn node() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let log = RaftEngineLog::open(&directory.path().join("log"), 1 << 20).unwrap();
        let mut batch = Batch::default();
        let entries = (1..=5).map(|index| Entry { index, term: 1, ..Entry::default() });
        batch.put(GROUP, Change::Append(entries.collect()));
        batch
            .put(GROUP, Change::HardState(HardState { term: 3, vote: 2, commit: 2, ..HardState::default() }));
        log.write(batch, true).unwrap();
        let group = directory.path().join("group");
        let mut engine = database(&group, 9);
        engine.begin(1).unwrap();
        insert(&mut engine, 9);
        engine.seal(0).unwrap();
        engine.commit(2).unwrap();
        drop(engine);
        assert!(fs::metadata(beside(&group, "-wal")).unwrap().len() > 0);
        // What an image of another replica's database would be: 500 rows at index 50.
        let other = directory.path().join("other");
        let mut engine = database(&other, 499);
        engine.begin(1).unwrap();
        insert(&mut engine, 499);
        engine.seal(0).unwrap();
        engine.commit(CUT.index).unwrap();
        engine.empty_wal(std::time::Duration::ZERO).unwrap();
        drop(engine);
        fs::rename(Engine::database(&other), received(directory.path())).unwrap();
        fs::remove_dir_all(&other).unwrap();
        directory
    }

    fn received(node: &Path) -> PathBuf {
        node.join("group").join("incoming-1.part")
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &target)
            } else {
                fs::copy(entry.path(), target).map(drop).unwrap()
            }
        }
    }

    /// Opens what a crash left, as a host does. Gives applied index, rows, and the log's cut and end.
    fn reopen(node: &Path) -> (u64, i64, Cut, u64) {
        let log = RaftEngineLog::open(&node.join("log"), 1 << 20).unwrap();
        let group = node.join("group");
        finish(&group, GROUP, &log).unwrap();
        let engine = Engine::open(&group, LIMITS).unwrap().unwrap();
        let found = find(&log, GROUP, engine.applied()).unwrap();
        assert_eq!((found.hard_state.term, found.hard_state.vote), (3, 2), "a vote is never forgotten");
        let reader = crate::connection::copier(&Engine::database(&group)).unwrap();
        let (rows, whole): (i64, String) = reader
            .query_row(
                "SELECT count(*), (SELECT integrity_check FROM pragma_integrity_check) FROM t1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!(whole, "ok");
        (engine.applied(), rows, found.cut, found.last)
    }

    const OLD: (u64, i64, Cut, u64) = (2, 10, Cut { index: 0, term: 0 }, 5);
    const NEW: (u64, i64, Cut, u64) = (50, 500, CUT, 50);

    type Doing = Box<dyn Fn(&Path)>;

    /// Everything that is done to a node's files to install an image, one by one.
    fn steps() -> Vec<(&'static str, Doing)> {
        let mut steps: Vec<(&'static str, Doing)> = vec![
            ("commit", Box::new(|node| commit(&node.join("group"), &received(node), CUT).unwrap())),
            (
                "reset",
                Box::new(|node| {
                    let log = RaftEngineLog::open(&node.join("log"), 1 << 20).unwrap();
                    let mut batch = Batch::default();
                    batch.put(GROUP, Change::Reset(CUT));
                    log.write(batch, true).unwrap();
                }),
            ),
        ];
        for step in STEPS {
            steps.push(("swap", Box::new(move |node| step(&node.join("group")).unwrap())));
        }
        steps
    }

    #[test]
    fn a_crash_after_any_step_leaves_the_old_state_or_the_new() {
        let node = node();
        let crashed = tempfile::tempdir().unwrap();
        for (done, (name, step)) in steps().into_iter().enumerate() {
            let left = crashed.path().join(done.to_string());
            copy(node.path(), &left);
            let state = reopen(&left);
            assert_eq!(state, if done == 0 { OLD } else { NEW }, "before step {done}, {name}");
            assert_eq!(reopen(&left), state, "it stays so");
            step(node.path());
        }
        assert_eq!(reopen(node.path()), NEW);
        assert!(file::find_next(&node.path().join("group")).unwrap().is_none());
    }

    #[test]
    fn a_crash_while_the_rest_is_done_is_made_good_too() {
        let node = node();
        commit(&node.path().join("group"), &received(node.path()), CUT).unwrap();
        let crashed = tempfile::tempdir().unwrap();
        // What `finish` does is the same steps again, from wherever the crash before left them.
        for first in 2..steps().len() {
            for second in 0..STEPS.len() {
                let left = crashed.path().join(format!("{first}-{second}"));
                copy(node.path(), &left);
                steps().iter().take(first).skip(1).for_each(|(_, step)| step(&left));
                STEPS.iter().take(second).for_each(|step| step(&left.join("group")).unwrap());
                assert_eq!(reopen(&left), NEW, "{first}, then {second}");
            }
        }
    }

    #[test]
    fn of_two_images_the_newer_one_stays() {
        let node = node();
        let group = node.path().join("group");
        fs::copy(received(node.path()), group.join("older")).unwrap();
        commit(&group, &group.join("older"), Cut { index: 40, term: 4 }).unwrap();
        commit(&group, &received(node.path()), CUT).unwrap();
        assert_eq!(reopen(node.path()), NEW);
        assert!(file::find_next(&group).unwrap().is_none());
    }
}
