//! Sequences' values, a block at a time.
//!
//! The coordinator gives out blocks; every session of this router takes its values from them. A block that was used
//! up quickly is followed by a bigger one. Values of a block that is forgotten are lost, as PostgreSQL's cached ones
//! are: a sequence promises different numbers and not all of them.

use crate::cluster::Cluster;
use dashmap::DashMap;
use parking_lot::Mutex;
use proto::catalog::Sequence;
use proto::machine;
use proto::services::SequenceBlock;
use proto::{SequenceId, SqlState, WireError};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FIRST_BLOCK: u32 = 32;
const BIGGEST_BLOCK: u32 = 16_384;

/// A block that lasted shorter than this is followed by a bigger one.
const SHORT: Duration = Duration::from_secs(1);

/// The blocks that this router has.
#[derive(Default)]
pub struct Sequences {
    blocks: DashMap<SequenceId, Arc<Blocks>>,
}

#[derive(Default)]
struct Blocks {
    current: Mutex<Current>,
    /// One session fetches for all.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Current {
    /// What the sequence was when the block was taken; another one's values are of no use.
    sequence: Option<Arc<Sequence>>,
    next: i64,
    increment: i64,
    left: u32,
    size: u32,
    fetched: Option<Instant>,
}

impl Current {
    fn take(&mut self, sequence: &Arc<Sequence>) -> Option<i64> {
        let known = self.sequence.as_ref()?;
        if !Arc::ptr_eq(known, sequence) && known != sequence {
            self.left = 0;
        }
        self.left = self.left.checked_sub(1)?;
        let value = self.next;
        // Past the last value of the block this may wrap; it isn't given out then.
        self.next = self.next.wrapping_add(self.increment);
        Some(value)
    }

    fn next_size(&self, now: Instant) -> u32 {
        match self.fetched {
            None => FIRST_BLOCK,
            Some(fetched) if now.duration_since(fetched) < SHORT => {
                (self.size * 4).clamp(FIRST_BLOCK, BIGGEST_BLOCK)
            }
            Some(_) => (self.size / 2).max(FIRST_BLOCK),
        }
    }

    fn refill(&mut self, sequence: &Arc<Sequence>, block: SequenceBlock, size: u32, now: Instant) {
        self.sequence = Some(sequence.clone());
        self.next = block.first;
        self.increment = block.increment;
        self.left = block.count;
        self.size = size;
        self.fetched = Some(now);
    }
}

impl Sequences {
    /// The next value. Waits for the coordinator if the block is used up.
    pub async fn next(&self, id: SequenceId, cluster: &Cluster, deadline: Instant) -> Result<i64, WireError> {
        let sequence = cluster.load().catalog.sequence(id).cloned();
        let sequence = sequence.ok_or_else(|| {
            WireError::new(SqlState::UNDEFINED_TABLE, format!("sequence {id} does not exist"))
        })?;
        let blocks = self.blocks.entry(id).or_default().clone();
        loop {
            if let Some(value) = blocks.current.lock().take(&sequence) {
                return Ok(value);
            }
            let fetching = tokio::time::timeout_at(deadline.into(), blocks.fetching.lock()).await;
            let _fetching = fetching.map_err(|_| crate::cancel::Reason::Timeout.error())?;
            // Another session may have fetched meanwhile.
            if let Some(value) = blocks.current.lock().take(&sequence) {
                return Ok(value);
            }
            let size = blocks.current.lock().next_size(machine::now());
            let ask = |coordinator: Arc<dyn proto::services::CoordinatorService>| async move {
                coordinator.allocate(id, size).await
            };
            let block = cluster.ask_coordinator(deadline, deadline, ask).await?;
            if block.count == 0 {
                return Err(WireError::internal("the coordinator gave an empty block of a sequence"));
            }
            blocks.current.lock().refill(&sequence, block, size, machine::now());
        }
    }

    /// The sequence begins anew somewhere: what is left of its block isn't given out.
    pub fn forget(&self, id: SequenceId) {
        self.blocks.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::catalog::TypeRef;

    fn sequence(start: i64) -> Arc<Sequence> {
        Arc::new(Sequence {
            id: SequenceId(1),
            name: "s".into(),
            ty: TypeRef { oid: 20, modifier: -1 },
            start,
            increment: 2,
            min: 1,
            max: i64::MAX,
            cycle: false,
            cache: 1,
            owner: None,
            hidden: false,
        })
    }

    #[test]
    fn a_block_gives_each_value_once_and_to_its_own_sequence_alone() {
        let now = machine::now();
        let mut current = Current::default();
        assert_eq!(current.take(&sequence(1)), None);
        current.refill(&sequence(1), SequenceBlock { first: 5, increment: 2, count: 2 }, 32, now);
        assert_eq!(current.take(&sequence(1)), Some(5));
        assert_eq!(current.take(&sequence(1)), Some(7));
        assert_eq!(current.take(&sequence(1)), None);
        current.refill(&sequence(1), SequenceBlock { first: 9, increment: 2, count: 2 }, 32, now);
        assert_eq!(current.take(&sequence(100)), None, "the sequence was altered");
    }

    #[test]
    fn blocks_grow_while_they_are_used_quickly() {
        let now = machine::now();
        let mut current = Current::default();
        assert_eq!(current.next_size(now), FIRST_BLOCK);
        let block = SequenceBlock { first: i64::MAX, increment: 2, count: 1 };
        current.refill(&sequence(1), block, 8192, now);
        assert_eq!(current.take(&sequence(1)), Some(i64::MAX));
        assert_eq!(current.next_size(now), BIGGEST_BLOCK);
        assert_eq!(current.next_size(now + SHORT), 4096);
    }
}
