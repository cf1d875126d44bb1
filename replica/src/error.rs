//! What can go wrong with a replica itself, as against with a request.

use crate::fault;
use proto::{GroupId, Retry, SqlState, WireError};
use rusqlite::ErrorCode;
use std::any::Any;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A replica or a node's log that can't be opened or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("{}: {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
    /// The Raft log refused.
    #[error("Raft log {}: {source}", path.display())]
    Log {
        /// The log's directory.
        path: PathBuf,
        /// What it said.
        source: raft_engine::Error,
    },
    /// Raft refused.
    #[error("Raft: {0}")]
    Raft(#[from] raft::Error),
    /// What was read can't be what was written.
    #[error("{}: {message}", path.display())]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A loop panicked: an invariant doesn't hold.
    #[error("{what} panicked: {message}")]
    Panicked {
        /// Whose loop.
        what: &'static str,
        /// What the panic said.
        message: String,
    },
    /// An argument makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The replica was there before, and isn't any more.
    #[error("{}", proto::services::ReplicaStatus::FILES_GONE)]
    FilesGone,
    /// The group isn't on this node.
    #[error("group {0} has no replica on this node")]
    UnknownGroup(GroupId),
    /// The replica can't be asked now. Nothing was done.
    #[error("{0}")]
    Refused(WireError),
    /// The host was shut down.
    #[error("the node is shutting down")]
    ShutDown,
}

impl ReplicaError {
    /// Whether the cause can pass, so that it's worth opening the replica again: space returns, a disk comes back.
    /// Damage stays until the replica is rebuilt.
    pub fn can_pass(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::Sqlite { source, .. } => fault::can_pass(source),
            Self::Log { source, .. } => {
                matches!(source, raft_engine::Error::Io(_) | raft_engine::Error::TryAgain(_))
            }
            // Raft's errors are its log's, wrapped.
            Self::Raft(raft::Error::Store(raft::StorageError::Other(source))) => {
                source.downcast_ref::<ReplicaError>().is_some_and(Self::can_pass)
            }
            _ => false,
        }
    }

    /// What kind of thing it is, in one of few words, for those who count.
    pub(crate) fn cause(&self) -> &'static str {
        let io = |source: &std::io::Error| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "disk_full",
            _ => "io",
        };
        match self {
            Self::Io { source, .. } => io(source),
            Self::Log { source: raft_engine::Error::Io(source), .. } => io(source),
            Self::Log { .. } | Self::Damaged { .. } => "damaged",
            Self::Sqlite { source, .. } => match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => "disk_full",
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => "damaged",
                _ if fault::is_local(source) => "io",
                _ => "other",
            },
            Self::Raft(raft::Error::Store(raft::StorageError::Other(source))) => {
                source.downcast_ref::<ReplicaError>().map_or("other", Self::cause)
            }
            Self::Panicked { .. } => "panic",
            Self::FilesGone => "files_gone",
            Self::Raft(_) | Self::Invalid(_) | Self::UnknownGroup(_) | Self::Refused(_) | Self::ShutDown => {
                "other"
            }
        }
    }

    /// Whether there is no room for what was to be written.
    fn is_disk_full(&self) -> bool {
        self.cause() == "disk_full"
    }

    /// Whether SQLite couldn't sync a file. The kernel says so once: asked again, it claims that all is well.
    pub(crate) fn is_failed_sync(&self) -> bool {
        matches!(self, Self::Sqlite { source, .. } if fault::is_failed_sync(source))
    }

    /// A panic that was caught.
    pub(crate) fn panicked(what: &'static str, panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        // One line: it goes into the status.
        let message = text.unwrap_or("no message").lines().collect::<Vec<_>>().join(" ");
        Self::Panicked { what, message }
    }

    /// Names the database that refused.
    pub(crate) fn sqlite(path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Sqlite { path, source }
    }

    /// Names the file that refused.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

impl From<ReplicaError> for WireError {
    fn from(error: ReplicaError) -> Self {
        let (sqlstate, retry) = match &error {
            ReplicaError::Refused(error) => return error.clone(),
            _ if error.is_disk_full() => (SqlState::DISK_FULL, Retry::Never),
            ReplicaError::Io { .. } | ReplicaError::Sqlite { .. } | ReplicaError::Log { .. } => {
                (SqlState::IO_ERROR, Retry::Never)
            }
            ReplicaError::Damaged { .. } => (SqlState::DATA_CORRUPTED, Retry::Never),
            ReplicaError::Raft(_) | ReplicaError::Panicked { .. } | ReplicaError::Invalid(_) => {
                (SqlState::INTERNAL_ERROR, Retry::Never)
            }
            ReplicaError::UnknownGroup(_) | ReplicaError::FilesGone => {
                (SqlState::CANNOT_CONNECT_NOW, Retry::NotLeader(None))
            }
            ReplicaError::ShutDown => (SqlState::ADMIN_SHUTDOWN, Retry::NotLeader(None)),
        };
        WireError::new(sqlstate, error.to_string()).with_retry(retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    #[test]
    fn who_asks_hears_that_a_disk_is_full_whoever_found_it() {
        let path = Path::new("/data/builds/7-1/image-2.sqlite.part");
        let io = |kind: ErrorKind| ReplicaError::io(path)(kind.into());
        let sqlite =
            |code| ReplicaError::sqlite(path)(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        let log = |kind: ErrorKind| ReplicaError::Log {
            path: path.into(),
            source: raft_engine::Error::Io(kind.into()),
        };
        let told = |error: ReplicaError| {
            let error = WireError::from(error);
            assert!(error.message.contains("image-2.sqlite.part: "), "{error}");
            error.sqlstate
        };
        for full in [io(ErrorKind::StorageFull), sqlite(ffi::SQLITE_FULL), log(ErrorKind::QuotaExceeded)] {
            assert_eq!(told(full), SqlState::DISK_FULL);
        }
        for other in [io(ErrorKind::NotFound), sqlite(ffi::SQLITE_IOERR), log(ErrorKind::NotFound)] {
            assert_eq!(told(other), SqlState::IO_ERROR);
        }
    }
}
