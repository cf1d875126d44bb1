//! What a stop leaves at the end of the log, judged before raft-engine sees it.
//!
//! A directory of log files goes in; afterwards each queue's last file ends with a whole record, and is synced. A record
//! that a crash tore was never acknowledged: it's cut off, and that is logged. Damage with a whole record behind it, or
//! a missing file, is no crash's work: opening fails with the file's name. raft-engine's own recovery would drop all
//! that follows the first damage without a word. It must never know what a record says.
//!
//! The format is raft-engine 0.4's, version 2: a header; then records of
//! `u64 (length << 8 | compression), u64 offset of the items, entries, u32 crc, items, u32 crc ^ file number`.

use super::files::Disk;
use crate::error::ReplicaError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const VERSION: u64 = 2;
const ALIGNMENT: u64 = 0;
const HEADER: usize = MAGIC.len() + 16;
const RECORD_HEADER: usize = 16;
const CHECKSUM: usize = 4;
const NUMBER_DIGITS: usize = 16;
const APPEND: &str = ".raftlog";
const REWRITE: &str = ".rewrite";
/// What a file is called while its copy is written.
const COPY: &str = "copy";

/// A log file and its number.
type Numbered = (u64, PathBuf);

/// Makes the ends of both queues fit to be appended to. After a failure in this process, `failed` tells how much was
/// synced of the files: the last ones are written anew first, for what the kernel shows of them need not be on the disk,
/// and it won't say so again; and what wasn't synced was never acknowledged, whatever of it is there.
pub(super) fn mend(directory: &Path, failed: Option<&Disk>) -> Result<(), ReplicaError> {
    if !directory.try_exists().map_err(ReplicaError::io(directory))? {
        return Ok(());
    }
    for suffix in [APPEND, REWRITE] {
        let files = numbered(directory, suffix)?;
        for pair in files.windows(2) {
            if pair[0].0 + 1 != pair[1].0 {
                let number = pair[0].0 + 1;
                let path = directory.join(format!("{number:0NUMBER_DIGITS$}{suffix}"));
                return Err(ReplicaError::Damaged { path, message: "this log file is missing".into() });
            }
        }
        if let Some((number, path)) = files.last() {
            if failed.is_some() {
                write_afresh(path).map_err(ReplicaError::io(path))?;
            }
            mend_last(*number, path, failed.and_then(|disk| disk.synced(path)))?;
        }
    }
    sync(directory).map_err(ReplicaError::io(directory))
}

/// The first damage in any file, for the message when raft-engine refuses to open the log.
pub(super) fn first_damage(directory: &Path) -> Result<(), ReplicaError> {
    for suffix in [APPEND, REWRITE] {
        for (number, path) in numbered(directory, suffix)? {
            let bytes = fs::read(&path).map_err(ReplicaError::io(&path))?;
            let whole = whole_records(&bytes, number);
            if whole < bytes.len() {
                return Err(damaged_at(&path, whole));
            }
        }
    }
    Ok(())
}

fn numbered(directory: &Path, suffix: &str) -> Result<Vec<Numbered>, ReplicaError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(ReplicaError::io(directory))? {
        let path = entry.map_err(ReplicaError::io(directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_suffix(suffix).filter(|number| number.len() == NUMBER_DIGITS);
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn mend_last(number: u64, path: &Path, synced: Option<u64>) -> Result<(), ReplicaError> {
    let failed = |source| ReplicaError::Io { path: path.to_owned(), source };
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    let whole = whole_records(&bytes, number);
    let unsynced = synced.is_some_and(|synced| whole as u64 >= synced);
    if whole < bytes.len() && !unsynced && record_after(&bytes, whole, number) {
        return Err(damaged_at(path, whole));
    }
    if whole == 0 {
        // Not even its header was written: the file before it is the last.
        return fs::remove_file(path).map_err(failed);
    }
    if whole < bytes.len() {
        if bytes[whole..].iter().any(|byte| *byte != 0) {
            let dropped = bytes.len() - whole;
            tracing::info!("{}: the end is no whole record: dropped {dropped} bytes", path.display());
        }
        file.set_len(whole as u64).map_err(failed)?;
    }
    // Also if nothing was cut off: what a killed process wrote is in the kernel's memory only, and Raft is about to
    // count it as durable.
    file.sync_all().map_err(failed)
}

fn damaged_at(path: &Path, offset: usize) -> ReplicaError {
    let message = format!("this log file is damaged at byte {offset}, and that isn't its end");
    ReplicaError::Damaged { path: path.to_owned(), message }
}

/// Up to where the file consists of whole records; 0 if its header isn't whole.
fn whole_records(bytes: &[u8], number: u64) -> usize {
    let Some(numbers) = bytes.strip_prefix(MAGIC) else { return 0 };
    if !numbers.starts_with(&VERSION.to_be_bytes()) || !numbers[8..].starts_with(&ALIGNMENT.to_be_bytes()) {
        return 0;
    }
    let mut at = HEADER;
    while let Some(length) = record(&bytes[at..], number) {
        at += length;
    }
    at
}

/// Whether a whole record of this file begins anywhere behind `from`. What a recycled file had before doesn't count: it
/// has another file's number in its checksums.
fn record_after(bytes: &[u8], from: usize, number: u64) -> bool {
    (from + 1..bytes.len()).any(|at| record(&bytes[at..], number).is_some())
}

/// The length of the record that the bytes begin with, if they do.
fn record(bytes: &[u8], number: u64) -> Option<usize> {
    let (first, rest) = bytes.split_first_chunk::<8>()?;
    let (second, _) = rest.split_first_chunk::<8>()?;
    let first = u64::from_be_bytes(*first);
    let length = usize::try_from(first >> 8).ok()?;
    let items = usize::try_from(u64::from_be_bytes(*second)).ok()?;
    let compression = first & 0xff;
    if compression > 1
        || length > bytes.len()
        || items < RECORD_HEADER
        || items > length.checked_sub(CHECKSUM)?
    {
        return None;
    }
    let signature = number as u32;
    let entries = &bytes[RECORD_HEADER..items];
    let whole = is_whole(&bytes[items..length], signature) && (entries.is_empty() || is_whole(entries, 0));
    whole.then_some(length)
}

fn is_whole(bytes: &[u8], signature: u32) -> bool {
    bytes.split_last_chunk::<CHECKSUM>().is_some_and(|(content, checksum)| {
        crc32fast::hash(content) ^ signature == u32::from_le_bytes(*checksum)
    })
}

/// Replaces a file by a synced copy of itself.
pub(crate) fn write_afresh(path: &Path) -> io::Result<()> {
    let copy = path.with_added_extension(COPY);
    fs::copy(path, &copy)?;
    File::open(&copy)?.sync_all()?;
    fs::rename(&copy, path)?;
    path.parent().map_or(Ok(()), sync)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_record_is_none() {
        for length in [0u64, 1, 16, 20, 40, u64::MAX >> 8] {
            for items in [0, 15, 16, 17, 36, 40, u64::MAX - 2, u64::MAX] {
                let mut bytes = (length << 8).to_be_bytes().to_vec();
                bytes.extend(items.to_be_bytes());
                bytes.extend([7; 24]);
                assert_eq!(record(&bytes, 1), None, "{length} {items}");
            }
        }
    }
}
