//! The files of images in a group's directory, and what their names say.
//!
//! | name | what it is | at a start |
//! |---|---|---|
//! | `making.part` | an image that is being made | removed |
//! | `image-<hash>.sqlite` | one that is offered to others | removed: nobody knows any more to whom |
//! | `incoming-<hash>.part` | one that is being received; all of it up to its length | kept for a while: the rest can be asked for |
//! | `next-<index>-<term>.sqlite` | one that is complete, and replaces the database | put in place |
//!
//! It must never know what is in them.

use super::ImageId;
use crate::error::ReplicaError;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// How many bytes one slice of work reads.
const SLICE_BYTES: usize = 1 << 20;

/// Where an image is made.
pub(super) fn making(directory: &Path) -> PathBuf {
    directory.join("making.part")
}

/// Where a finished image lies.
pub(super) fn made(directory: &Path, id: ImageId) -> PathBuf {
    directory.join(format!("image-{id}.sqlite"))
}

/// Where an image arrives.
pub(super) fn incoming(directory: &Path, id: ImageId) -> PathBuf {
    directory.join(incoming_name(id))
}

fn incoming_name(id: ImageId) -> String {
    format!("incoming-{id}.part")
}

/// Where an image waits to replace the database. The term is nowhere else until the log has it.
pub(super) fn next(directory: &Path, index: u64, term: u64) -> PathBuf {
    directory.join(format!("next-{index}-{term}.sqlite"))
}

/// The image that waits to replace the database, with its index and term; the newest, if several do.
pub(super) fn find_next(directory: &Path) -> Result<Option<(PathBuf, u64, u64)>, ReplicaError> {
    let parse = |name: &str| {
        let (index, term) = name.strip_prefix("next-")?.strip_suffix(".sqlite")?.split_once('-')?;
        Some((index.parse::<u64>().ok()?, term.parse::<u64>().ok()?))
    };
    let found = list(directory)?.into_iter().filter_map(|(name, path)| {
        let (index, term) = parse(&name)?;
        Some((path, index, term))
    });
    Ok(found.max_by_key(|(_, index, _)| *index))
}

/// Removes what a process that is gone had made for others.
pub(super) fn clean_made(directory: &Path) -> Result<(), ReplicaError> {
    clean(directory, |name| name.starts_with("making.part") || name.starts_with("image-"))
}

/// Removes an image that was begun, with what SQLite put beside it.
pub(super) fn clean_making(directory: &Path) -> Result<(), ReplicaError> {
    clean(directory, |name| name.starts_with("making.part"))
}

/// Removes what has arrived of images, but for one.
pub(super) fn clean_incoming(directory: &Path, but: Option<ImageId>) -> Result<(), ReplicaError> {
    let kept = but.map(incoming_name);
    clean(directory, |name| name.starts_with("incoming-") && kept.as_deref() != Some(name))
}

/// Removes the images that wait to replace the database, but for the newest.
pub(super) fn clean_next(directory: &Path) -> Result<(), ReplicaError> {
    let kept = find_next(directory)?.map(|(path, ..)| path);
    clean(directory, |name| name.starts_with("next-") && kept != Some(directory.join(name)))
}

fn clean(directory: &Path, unwanted: impl Fn(&str) -> bool) -> Result<(), ReplicaError> {
    for (_, path) in list(directory)?.into_iter().filter(|(name, _)| unwanted(name)) {
        remove(&path)?;
    }
    Ok(())
}

/// Removes a file, if it's there.
pub(crate) fn remove(path: &Path) -> Result<(), ReplicaError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(ReplicaError::io(path)(error)),
        _ => Ok(()),
    }
}

/// Makes a directory's entries durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), ReplicaError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(ReplicaError::io(directory))
}

fn list(directory: &Path) -> Result<Vec<(String, PathBuf)>, ReplicaError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(ReplicaError::io(directory))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ReplicaError::io(directory))?;
        if let Some(name) = entry.file_name().to_str() {
            found.push((name.to_owned(), entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Hashes a file, a slice at a time.
pub(super) struct Hashing {
    path: PathBuf,
    file: File,
    hash: Box<Xxh3>,
    buffer: Vec<u8>,
    length: u64,
}

impl Hashing {
    /// Begins at the file's begin.
    pub fn begin(path: &Path) -> Result<Self, ReplicaError> {
        let file = File::open(path).map_err(ReplicaError::io(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            hash: Box::default(),
            buffer: vec![0; SLICE_BYTES],
            length: 0,
        })
    }

    /// Reads a slice. At the file's end, gives its id and length.
    pub fn step(&mut self) -> Result<Option<(ImageId, u64)>, ReplicaError> {
        let read = match self.file.read(&mut self.buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(None),
            read => read.map_err(ReplicaError::io(&self.path))?,
        };
        if read == 0 {
            return Ok(Some((ImageId(self.hash.digest128()), self.length)));
        }
        self.hash.update(&self.buffer[..read]);
        self.length += read as u64;
        Ok(None)
    }
}
