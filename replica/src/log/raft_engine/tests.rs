//! The log of production on a disk that stops, fails, fills and spoils what it has.

use super::super::files::Condition;
use super::super::find;
use super::*;

fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    indexes.map(|index| Entry { index, term, data: vec![7; 100].into(), ..Entry::default() }).collect()
}

fn open(directory: &tempfile::TempDir) -> RaftEngineLog {
    RaftEngineLog::open(directory.path(), 1 << 20).unwrap()
}

fn write(log: &RaftEngineLog, changes: impl IntoIterator<Item = Change>, sync: bool) {
    let mut batch = Batch::default();
    changes.into_iter().for_each(|change| batch.put(3, change));
    log.write(batch, sync).unwrap();
}

fn append(log: &RaftEngineLog, entries: &[Entry], commit: u64) {
    let term = entries.last().unwrap().term;
    let state = HardState { term, vote: 2, commit, ..HardState::default() };
    write(log, [Change::Append(entries.to_vec()), Change::HardState(state)], true);
}

#[test]
fn what_was_written_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    assert_eq!(find(&log, 3, 0).unwrap().last, 0);
    append(&log, &entries(1..=10, 1), 5);
    // A new leader's entries replace the tail.
    append(&log, &entries(8..=9, 2), 6);
    drop(log);
    let log = open(&directory);
    let found = find(&log, 3, 7).unwrap();
    assert_eq!((found.last, found.hard_state.term, found.hard_state.vote), (9, 2, 2));
    assert_eq!(found.hard_state.commit, 7, "the database had more than was noted as committed");
    let read = log.entries(3, 7, 10, None).unwrap();
    assert_eq!(read.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>(), [(7, 1), (8, 2), (9, 2)]);
    assert_eq!(log.entries(3, 1, 10, Some(150)).unwrap().len(), 1);
    assert_eq!(find(&log, 4, 0).unwrap().last, 0, "groups don't mix");
}

#[test]
fn a_cut_forgets_and_keeps_the_term() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    append(&log, &entries(1..=10, 4), 10);
    write(&log, [Change::Cut(Cut { index: 6, term: 4 })], false);
    log.purge().unwrap();
    drop(log);
    let found = find(&open(&directory), 3, 8).unwrap();
    assert_eq!((found.cut, found.last), (Cut { index: 6, term: 4 }, 10));
}

#[test]
fn what_was_cut_takes_room_until_it_is_purged() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = || -> u64 {
        let files = fs::read_dir(directory.path()).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    let log = open(&directory);
    for index in 1..=1200 {
        // Random enough not to be compressed away.
        let data: Vec<u8> = (0..2500_u32)
            .flat_map(|i| crc32fast::hash(&(index as u32 * 2500 + i).to_le_bytes()).to_le_bytes())
            .collect();
        append(&log, &[Entry { index, term: 1, data: data.into(), ..Entry::default() }], index);
    }
    write(&log, [Change::Cut(Cut { index: 1190, term: 1 })], true);
    assert!(bytes() > 10 << 20, "{}", bytes());
    log.purge().unwrap();
    assert!(bytes() < 8 << 20, "{}", bytes());
    assert_eq!(find(&log, 3, 1200).unwrap().last, 1200);
}

#[test]
fn a_reset_forgets_entries_alone_and_goes_on_behind_the_cut() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    write(&log, [Change::Mark("peer", Some(Bytes::from_static(b"one")))], false);
    append(&log, &entries(1..=10, 4), 10);
    let cut = Cut { index: 20, term: 5 };
    write(&log, [Change::Reset(cut)], true);
    drop(log);
    let log = open(&directory);
    let kept = log.kept(3).unwrap();
    assert_eq!((kept.cut, kept.range, kept.hard_state.vote), (cut, None, 2));
    assert_eq!(log.mark(3, "peer").unwrap().unwrap(), "one");
    append(&log, &entries(21..=22, 5), 21);
    drop(log);
    assert_eq!(find(&open(&directory), 3, 20).unwrap().last, 22);
}

#[test]
fn what_is_cleared_leaves_its_marks() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    append(&log, &entries(1..=10, 4), 10);
    let marks = [
        Change::Mark("peer", Some(Bytes::from_static(b"one"))),
        Change::Mark("tombstone", Some(Bytes::from_static(b"two"))),
    ];
    write(&log, marks, true);
    write(&log, [Change::Clear, Change::Mark("peer", None)], true);
    drop(log);
    let log = open(&directory);
    assert_eq!(log.kept(3).unwrap(), Kept::default());
    assert_eq!(log.mark(3, "peer").unwrap(), None);
    assert_eq!(log.mark(3, "tombstone").unwrap().unwrap(), "two");
    append(&log, &entries(1..=2, 1), 1);
    assert_eq!(find(&log, 3, 0).unwrap().last, 2);
}

fn file(directory: &tempfile::TempDir, number: u64) -> PathBuf {
    directory.path().join(format!("{number:016}.raftlog"))
}

/// A log of ten batches of one entry each, and where the file ends.
fn ten(directory: &tempfile::TempDir) -> usize {
    let log = open(directory);
    (1..=10).for_each(|index| append(&log, &entries(index..=index, 1), index - 1));
    drop(log);
    usize::try_from(fs::metadata(file(directory, 1)).unwrap().len()).unwrap()
}

fn spoil(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_torn_end_is_dropped_and_what_is_before_it_stays() {
    let directory = tempfile::tempdir().unwrap();
    let length = ten(&directory);
    // Cut at any byte of the last records, the end is torn; what was allocated in advance is zero.
    for (cut, more, with) in [(1, 0, 0), (3, 4096, 0), (40, 0, 0), (300, 100_000, 0), (9, 4096, 0xff)] {
        ten(&directory);
        spoil(&file(&directory, 1), |bytes| {
            bytes.truncate(length - cut);
            bytes.resize(length - cut + more, with);
        });
        let log = open(&directory);
        let found = find(&log, 3, 0).unwrap();
        assert!((7..10).contains(&found.last), "cut {cut}: {}", found.last);
        assert_eq!(log.entries(3, 1, found.last + 1, None).unwrap().len() as u64, found.last);
        append(&log, &entries(found.last + 1..=20, 2), found.last);
        drop(log);
        assert_eq!(find(&open(&directory), 3, 0).unwrap().last, 20);
        fs::remove_file(file(&directory, 1)).unwrap();
    }
}

#[test]
fn a_log_file_that_was_begun_and_has_no_header_is_no_file_yet() {
    let directory = tempfile::tempdir().unwrap();
    ten(&directory);
    for header in [&b""[..], b"RAFT-LOG", &[0; 4096]] {
        fs::write(file(&directory, 2), header).unwrap();
        let log = open(&directory);
        assert_eq!(find(&log, 3, 10).unwrap().last, 10);
        drop(log);
    }
}

#[test]
fn damage_before_the_last_record_is_told_with_the_file_and_nothing_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let length = ten(&directory);
    // The header, the first record, one in the middle, and entries alone, which raft-engine doesn't look at.
    for at in [5, 90, length / 2, length / 2 + 50, length - 400] {
        spoil(&file(&directory, 1), |bytes| bytes[at] ^= 0x10);
        let log = open(&directory);
        let why = log.failure().unwrap();
        assert!(!why.can_pass());
        let said = find(&log, 3, 0).unwrap_err().to_string();
        assert!(said.contains("0000000000000001.raftlog: ") && said.contains("damaged"), "byte {at}: {said}");
        assert!(log.reopen().is_err());
        drop(log);
        spoil(&file(&directory, 1), |bytes| bytes[at] ^= 0x10);
        assert_eq!(find(&open(&directory), 3, 10).unwrap().last, 10);
    }
}

/// Whatever bit flips: either it's told, or nothing but the last record is missing, as after a crash.
#[test]
fn no_flipped_bit_loses_more_than_the_last_record_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let length = ten(&directory);
    let path = file(&directory, 1);
    let whole = fs::read(&path).unwrap();
    let mut told = 0;
    for at in (0..length).step_by(31) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, bytes).unwrap();
        let log = open(&directory);
        match log.failure() {
            Some(why) => {
                assert!(why.to_string().contains("0000000000000001.raftlog: "), "{why}");
                told += 1;
            }
            None => {
                let last = log.kept(3).unwrap().range.unwrap().1;
                assert!(last >= 9, "byte {at}: only {last} entries are left");
                assert_eq!(log.entries(3, 1, last + 1, None).unwrap().len() as u64, last);
            }
        }
    }
    assert!(told > length / 31 * 4 / 5, "{told} of {}", length / 31);
}

#[test]
fn a_missing_or_damaged_older_file_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let log = RaftEngineLog::open(directory.path(), 4096).unwrap();
    (1..=100).for_each(|index| append(&log, &entries(index..=index, 1), index - 1));
    drop(log);
    let path = file(&directory, 2);
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let why = open(&directory).failure().unwrap().to_string();
    assert!(why.contains("0000000000000002.raftlog: this log file is missing"), "{why}");
    fs::write(&path, &whole).unwrap();
    spoil(&path, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let why = open(&directory).failure().unwrap().to_string();
    assert!(why.contains("0000000000000002.raftlog: ") && why.contains("damaged at byte"), "{why}");
    fs::write(&path, &whole).unwrap();
    assert_eq!(find(&open(&directory), 3, 100).unwrap().last, 100);
}

#[test]
fn an_entry_that_cannot_be_read_is_damage_of_its_group_alone() {
    let directory = tempfile::tempdir().unwrap();
    let log = RaftEngineLog::open(directory.path(), 4096).unwrap();
    (1..=100).for_each(|index| append(&log, &entries(index..=index, 1), index - 1));
    // Read as the log does after a long time: from disk.
    spoil(&file(&directory, 1), |bytes| bytes[MIDDLE] ^= 1);
    let error = (1..30).find_map(|index| log.entries(3, index, index + 1, None).err()).unwrap();
    assert!(error.to_string().contains("group 3, entry") && !error.can_pass(), "{error}");
    assert!(log.failure().is_none());
}

const MIDDLE: usize = 1000;

#[test]
fn after_a_failed_write_nothing_is_written_until_the_log_is_opened_again() {
    for condition in [Condition::Full, Condition::Unsyncable] {
        let directory = tempfile::tempdir().unwrap();
        let disk = TestDisk::default();
        let log = RaftEngineLog::open_on(directory.path(), 1 << 20, disk.clone()).unwrap();
        append(&log, &entries(1..=10, 1), 10);
        disk.set(condition);
        let mut batch = Batch::default();
        batch.put(3, Change::Append(entries(11..=12, 1)));
        let error = log.write(batch.clone(), true).unwrap_err();
        assert!(error.can_pass());
        assert!(error.to_string().contains("0000000000000001.raftlog: it could not be "), "{error}");
        disk.set(Condition::Sound);
        // The kernel would say now that all is well.
        assert_eq!(log.write(batch.clone(), true).unwrap_err().to_string(), error.to_string());
        assert_eq!(log.purge().unwrap_err().to_string(), error.to_string());
        assert_eq!(log.failure().unwrap().to_string(), error.to_string());
        assert!(log.check_room().is_ok());
        log.reopen().unwrap();
        assert!(log.failure().is_none());
        // A write that failed may be there whole: nobody was told that it is.
        assert!([10, 12].contains(&find(&log, 3, 10).unwrap().last));
        log.write(batch, true).unwrap();
        drop(log);
        assert_eq!(find(&open(&directory), 3, 12).unwrap().last, 12);
    }
}

/// Entries of this node's making.
fn made_by(node: u8) -> Vec<Entry> {
    let mut entries = entries(1..=10, u64::from(node));
    entries.iter_mut().for_each(|entry| entry.data = vec![node; 100].into());
    entries
}

#[test]
fn a_thread_that_reads_two_logs_is_given_the_entries_of_each() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let logs = [open(&first), open(&second)];
    append(&logs[0], &made_by(1), 10);
    append(&logs[1], &made_by(2), 10);
    for _ in 0..2 {
        assert_eq!(logs[0].entries(3, 10, 11, None).unwrap(), made_by(1)[9..]);
        assert_eq!(logs[1].entries(3, 10, 11, None).unwrap(), made_by(2)[9..]);
    }
    let [log, _] = logs;
    drop(log);
    // And of one that is another in the same place.
    fs::remove_dir_all(first.path()).unwrap();
    let log = open(&first);
    append(&log, &made_by(3), 10);
    assert_eq!(log.entries(3, 10, 11, None).unwrap(), made_by(3)[9..]);
}

#[test]
fn a_damaged_log_is_put_aside_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    for round in 1..=2 {
        let log = RaftEngineLog::open(&path, 1 << 20).unwrap();
        (1..=10).for_each(|index| append(&log, &entries(index..=index, 1), index));
        log.renew().unwrap();
        assert_eq!(find(&log, 3, 10).unwrap().last, 10, "a sound log is left alone");
        drop(log);
        let file = path.join("0000000000000001.raftlog");
        spoil(&file, |bytes| bytes[500] ^= 1);
        let spoiled = fs::read(&file).unwrap();
        let log = RaftEngineLog::open(&path, 1 << 20).unwrap();
        assert!(log.failure().is_some());
        log.renew().unwrap();
        assert!(log.failure().is_none());
        assert_eq!(log.kept(3).unwrap(), Kept::default());
        let aside = directory.path().join(format!("log.damaged-{round}/0000000000000001.raftlog"));
        assert_eq!(fs::read(aside).unwrap(), spoiled);
    }
}

#[test]
fn what_was_not_synced_before_a_failure_may_be_lost_in_any_order() {
    let directory = tempfile::tempdir().unwrap();
    let disk = TestDisk::default();
    let log = RaftEngineLog::open_on(directory.path(), 1 << 20, disk.clone()).unwrap();
    append(&log, &entries(1..=10, 1), 10);
    let synced = log.opened().unwrap().disk.synced(&file(&directory, 1)).unwrap();
    for index in 11..=14 {
        write(&log, [Change::Append(entries(index..=index, 1))], false);
    }
    disk.set(Condition::Unsyncable);
    let mut batch = Batch::default();
    batch.put(3, Change::Append(entries(15..=15, 1)));
    log.write(batch, true).unwrap_err();
    disk.set(Condition::Sound);
    // The first block behind what was synced never reached the disk, those after it did.
    let at = usize::try_from(synced).unwrap() + 20;
    spoil(&file(&directory, 1), |bytes| bytes[at] ^= 1);
    assert!(open_copy(&directory).failure().is_some(), "nobody else can know that");
    log.reopen().unwrap();
    assert_eq!(find(&log, 3, 10).unwrap().last, 10);
    append(&log, &entries(11..=12, 2), 11);
    drop(log);
    assert_eq!(find(&open(&directory), 3, 12).unwrap().last, 12);
}

/// The log as another process would find it.
fn open_copy(directory: &tempfile::TempDir) -> RaftEngineLog {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(file(directory, 1), file(&copy, 1)).unwrap();
    open(&copy)
}

#[test]
fn a_log_whose_disk_is_away_is_not_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (path, aside) = (directory.path().join("log"), directory.path().join("aside"));
    let disk = TestDisk::default();
    let log = RaftEngineLog::open_on(&path, 1 << 20, disk.clone()).unwrap();
    append(&log, &entries(1..=10, 1), 10);
    disk.set(Condition::Unsyncable);
    let mut batch = Batch::default();
    batch.put(3, Change::Append(entries(11..=12, 1)));
    log.write(batch, true).unwrap_err();
    disk.set(Condition::Sound);
    fs::rename(&path, &aside).unwrap();
    assert!(log.check_room().unwrap_err().can_pass() && log.reopen().unwrap_err().can_pass());
    assert!(!path.exists());
    fs::rename(&aside, &path).unwrap();
    log.reopen().unwrap();
    assert!(find(&log, 3, 10).unwrap().last >= 10);
}

#[test]
fn a_log_on_a_full_disk_is_opened_later() {
    let directory = tempfile::tempdir().unwrap();
    let disk = TestDisk::default();
    disk.set(Condition::Full);
    let log = RaftEngineLog::open_on(directory.path(), 1 << 20, disk.clone()).unwrap();
    assert!(log.failure().unwrap().can_pass() && log.kept(3).is_err() && log.check_room().is_err());
    assert!(log.reopen().unwrap_err().can_pass());
    disk.set(Condition::Sound);
    log.reopen().unwrap();
    append(&log, &entries(1..=10, 1), 10);
}

#[test]
fn a_log_that_does_not_reach_the_database_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory);
    append(&log, &entries(1..=10, 1), 10);
    assert!(find(&log, 3, 11).unwrap_err().to_string().contains("ends at 10, but 11"));
    write(&log, [Change::Cut(Cut { index: 6, term: 1 })], true);
    assert!(find(&log, 3, 5).unwrap_err().to_string().contains("begins at 7"));
    find(&log, 3, 6).unwrap();
}
