//! A result as it comes: batches of rows, pulled by the session.
//!
//! Nothing is fetched that nobody asked for, so a client that reads slowly slows the shards down and fills no
//! memory. Dropping the stream stops whatever feeds it.

use super::merge::Merge;
use super::statement::attend;
use crate::cancel::Interrupt;
use futures::StreamExt;
use proto::rows::Row;
use proto::services::{BoxStream, RowSource, ServiceResult};
use proto::{RowBatch, WireError};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// Some rows of a batch.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    batch: RowBatch,
    range: Range<usize>,
}

impl Chunk {
    /// Its rows.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.batch.rows().skip(self.range.start).take(self.range.len())
    }

    /// How many rows it has.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Takes off the first rows, as many as there are up to `count`.
    pub fn split_to(&mut self, count: usize) -> Chunk {
        let at = self.range.start + count.min(self.range.len());
        let first = Chunk { batch: self.batch.clone(), range: self.range.start..at };
        self.range.start = at;
        first
    }
}

/// Where rows come from.
pub enum Feed {
    /// One source after another.
    Sources(VecDeque<RowSource>),
    /// Several, merged in order.
    Merge(Box<Merge>),
    /// A gather that runs on another thread; the guard stops it.
    Gather(mpsc::Receiver<ServiceResult<RowBatch>>),
}

/// A result as it comes.
pub struct RowStream {
    feed: Feed,
    skip: u64,
    left: u64,
    interrupt: Arc<Interrupt>,
    deadline: Instant,
}

impl RowStream {
    /// Rows of this feed, without the first `skip`, `limit` at most.
    pub fn new(feed: Feed, skip: u64, limit: u64, interrupt: Arc<Interrupt>, deadline: Instant) -> Self {
        Self { feed, skip, left: limit, interrupt, deadline }
    }

    /// Rows that are all there.
    pub fn ready(batches: Vec<RowBatch>, interrupt: Arc<Interrupt>, deadline: Instant) -> Self {
        let sources = batches.into_iter().map(RowSource::Whole).collect();
        Self::new(Feed::Sources(sources), 0, u64::MAX, interrupt, deadline)
    }

    /// The next rows; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Chunk>, WireError> {
        loop {
            if self.left == 0 {
                self.feed = Feed::Sources(VecDeque::new());
                return Ok(None);
            }
            let batch = match &mut self.feed {
                Feed::Sources(sources) => match sources.front_mut() {
                    None => return Ok(None),
                    Some(RowSource::Whole(batch)) => {
                        let batch = std::mem::take(batch);
                        sources.pop_front();
                        batch
                    }
                    Some(RowSource::Stream(stream)) => {
                        match attend(&self.interrupt, self.deadline, next_of(stream)).await? {
                            Some(batch) => batch,
                            None => {
                                sources.pop_front();
                                continue;
                            }
                        }
                    }
                },
                Feed::Merge(merge) => match attend(&self.interrupt, self.deadline, merge.next()).await? {
                    Some(batch) => batch,
                    None => return Ok(None),
                },
                Feed::Gather(rows) => {
                    let next = async { rows.recv().await.transpose() };
                    match attend(&self.interrupt, self.deadline, next).await? {
                        Some(batch) => batch,
                        None => return Ok(None),
                    }
                }
            };
            if let Some(chunk) = self.cut(batch) {
                return Ok(Some(chunk));
            }
        }
    }

    fn cut(&mut self, batch: RowBatch) -> Option<Chunk> {
        let rows = batch.len() as u64;
        let skipped = self.skip.min(rows);
        self.skip -= skipped;
        let taken = (rows - skipped).min(self.left);
        self.left -= taken;
        let range = skipped as usize..(skipped + taken) as usize;
        (taken > 0).then_some(Chunk { batch, range })
    }
}

/// The next batch of a shard's stream.
pub async fn next_of(stream: &mut BoxStream<ServiceResult<RowBatch>>) -> ServiceResult<Option<RowBatch>> {
    stream.next().await.transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{RowBatchBuilder, ValueRef};
    use std::time::Duration;

    fn batch(values: Range<i64>) -> RowBatch {
        let mut builder = RowBatchBuilder::new(1);
        values.for_each(|v| builder.push(ValueRef::Int(v)));
        builder.finish()
    }

    async fn read(sources: VecDeque<RowSource>, skip: u64, limit: u64) -> Vec<i64> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut stream = RowStream::new(Feed::Sources(sources), skip, limit, Arc::default(), deadline);
        let mut values = Vec::new();
        while let Some(chunk) = stream.next().await.unwrap() {
            assert!(!chunk.is_empty());
            values.extend(chunk.rows().map(|mut row| match row.next() {
                Some(ValueRef::Int(v)) => v,
                other => panic!("{other:?}"),
            }));
        }
        values
    }

    fn sources() -> VecDeque<RowSource> {
        let stream = futures::stream::iter([Ok(batch(3..5)), Ok(batch(5..9))]);
        [RowSource::Whole(batch(0..3)), RowSource::Stream(Box::pin(stream))].into()
    }

    #[tokio::test]
    async fn offset_and_limit_cut_through_batches() {
        assert_eq!(read(sources(), 0, u64::MAX).await, (0..9).collect::<Vec<_>>());
        assert_eq!(read(sources(), 2, 4).await, [2, 3, 4, 5]);
        assert_eq!(read(sources(), 4, 0).await, [] as [i64; 0]);
        assert_eq!(read(sources(), 100, 5).await, [] as [i64; 0]);
    }

    #[test]
    fn a_chunk_splits_where_a_row_limit_falls() {
        let mut chunk = Chunk { batch: batch(0..5), range: 0..5 };
        let first = chunk.split_to(2);
        assert_eq!((first.len(), chunk.len()), (2, 3));
        assert_eq!(chunk.rows().map(|mut r| r.next()).collect::<Vec<_>>()[0], Some(ValueRef::Int(2)));
        assert_eq!((chunk.split_to(9).len(), chunk.is_empty()), (3, true));
    }
}
