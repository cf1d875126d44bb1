//! A replica's tables, to be hashed at a check's index.
//!
//! In comes a snapshot of that index, out goes the hash, into the replica's status. It takes as long as it takes, and
//! may be broken off: by who runs it, or by the replica that needs its WAL emptied. Then nothing is told, for half a hash
//! says nothing. It must never know what the other replicas have.

use super::shared::Shared;
use crate::hash::sliced_hash;
use crate::readers::Reader;
use proto::services::TableHash;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Has a hash taken, in time and not at once: it may take long.
pub(crate) type TakeHash = Arc<dyn Fn(Hashing) + Send + Sync>;

/// What slows a hash down, and may break it off: it is told how many bytes were read since the last time, and can ask
/// whether the hash is still wanted.
pub(crate) type Pause<'p> = dyn FnMut(u64, &dyn Fn() -> bool) -> ControlFlow<()> + 'p;

/// A replica's tables, to be hashed.
pub(crate) struct Hashing {
    shared: Arc<Shared>,
    reader: Option<Reader>,
}

impl Hashing {
    /// Of the tables that this snapshot has.
    pub fn new(shared: Arc<Shared>, reader: Reader) -> Self {
        Self { shared, reader: Some(reader) }
    }

    /// Whether there is anyone who wants it, and nobody who wants its snapshot closed.
    pub fn is_wanted(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.reading.why().is_none())
            && !self.shared.readers.is_closed()
    }

    /// Takes the hash; `pause` is called every now and then.
    pub fn run(self, pause: &mut Pause<'_>) {
        let Some(reader) = &self.reader else { return };
        let (group, index) = (self.shared.group.0, reader.position);
        let wanted = || self.is_wanted();
        let mut pause = |bytes| match pause(bytes, &wanted) {
            ControlFlow::Continue(()) if wanted() => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        match sliced_hash(&reader.connection, &mut pause) {
            Ok(hash) => {
                tracing::debug!(group, index = index.0, "the tables' hash is {hash:032x}");
                self.shared.set_check(TableHash { index, hash });
            }
            Err(error) => {
                let error = reader.reading.why().unwrap_or_else(|| dialect::sqlite::error(error));
                tracing::warn!(group, index = index.0, %error, "the check of the tables was broken off");
            }
        }
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.shared.give_back(reader);
        }
    }
}
