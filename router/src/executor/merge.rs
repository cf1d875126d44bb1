//! Sorted rows of several shards as one sorted run.
//!
//! Each source has its rows in the order of the keys; the merge keeps it by looking at one row of each. Keys are in
//! key form, so they compare as plain values. Rows that are equal come in the order of their shards.

use super::rows::next_of;
use planner::plan::MergeKey;
use proto::services::{RowSource, ServiceResult};
use proto::{RowBatch, RowBatchBuilder, Value, ValueRef};
use std::cmp::Ordering;
use std::collections::VecDeque;

/// A batch of merged rows ends at this many bytes.
const BATCH_BYTES: usize = 64 * 1024;

/// Merges sorted sources.
pub struct Merge {
    keys: Vec<MergeKey>,
    columns: u16,
    inputs: Vec<Input>,
    /// Inputs whose next row must be looked at before a row can be chosen.
    started: bool,
}

struct Input {
    source: RowSource,
    batches: VecDeque<Vec<Value>>,
    ended: bool,
}

impl Merge {
    /// A merge of these sources, whose rows have so many columns.
    pub fn new(sources: Vec<RowSource>, keys: Vec<MergeKey>, columns: u16) -> Self {
        let inputs = sources
            .into_iter()
            .map(|source| Input { source, batches: VecDeque::new(), ended: false })
            .collect();
        Self { keys, columns, inputs, started: false }
    }

    /// The next rows; `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> ServiceResult<Option<RowBatch>> {
        if !self.started {
            for input in &mut self.inputs {
                input.fill().await?;
            }
            self.started = true;
        }
        let mut merged = RowBatchBuilder::new(self.columns);
        while merged.byte_len() < BATCH_BYTES {
            // An input that ran dry in this batch is refilled by the next call's wait, unless nothing is merged yet.
            let dry = self.inputs.iter().position(|input| input.batches.is_empty() && !input.ended);
            if let Some(dry) = dry {
                if merged.rows() > 0 && matches!(self.inputs[dry].source, RowSource::Stream(_)) {
                    break;
                }
                self.inputs[dry].fill().await?;
                continue;
            }
            let Some(first) = self.first() else { break };
            let row = self.inputs[first].batches.pop_front().expect("the first has a row");
            merged.push_row(row.iter().map(Value::as_ref));
        }
        Ok((merged.rows() > 0).then(|| merged.finish()))
    }

    /// The input whose next row comes first.
    fn first(&self) -> Option<usize> {
        let mut first: Option<(usize, &Vec<Value>)> = None;
        for (i, input) in self.inputs.iter().enumerate() {
            let Some(row) = input.batches.front() else { continue };
            if first.is_none_or(|(_, least)| compare(&self.keys, row, least) == Ordering::Less) {
                first = Some((i, row));
            }
        }
        first.map(|(i, _)| i)
    }
}

impl Input {
    async fn fill(&mut self) -> ServiceResult<()> {
        while self.batches.is_empty() && !self.ended {
            let batch = match &mut self.source {
                RowSource::Whole(batch) => {
                    self.ended = true;
                    std::mem::take(batch)
                }
                RowSource::Stream(stream) => match next_of(stream).await? {
                    Some(batch) => batch,
                    None => {
                        self.ended = true;
                        return Ok(());
                    }
                },
            };
            self.batches.extend(batch.rows().map(|row| row.map(ValueRef::to_owned).collect::<Vec<_>>()));
        }
        Ok(())
    }
}

/// How many of the first so many rows of all are of each source, whose rows are sorted.
pub fn shares(sources: &[Vec<RowBatch>], keys: &[MergeKey], most: u64) -> Vec<u64> {
    let rows = |source: &Vec<RowBatch>| -> Vec<Vec<Value>> {
        source.iter().flat_map(RowBatch::rows).map(|row| row.map(ValueRef::to_owned).collect()).collect()
    };
    let rows: Vec<_> = sources.iter().map(rows).collect();
    let mut shares = vec![0; rows.len()];
    for _ in 0..most {
        let mut first: Option<(usize, &Vec<Value>)> = None;
        for (place, rows) in rows.iter().enumerate() {
            let Some(row) = rows.get(shares[place]) else { continue };
            if first.is_none_or(|(_, least)| compare(keys, row, least) == Ordering::Less) {
                first = Some((place, row));
            }
        }
        let Some((place, _)) = first else { break };
        shares[place] += 1;
    }
    shares.into_iter().map(|share| share as u64).collect()
}

/// Compares two rows by the keys.
fn compare(keys: &[MergeKey], left: &[Value], right: &[Value]) -> Ordering {
    for key in keys {
        let (Some(left), Some(right)) = (left.get(key.column), right.get(key.column)) else { continue };
        let ordering = match (left.is_null(), right.is_null()) {
            (true, true) => Ordering::Equal,
            (true, false) if key.nulls_first => Ordering::Less,
            (true, false) => Ordering::Greater,
            (false, true) if key.nulls_first => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) if key.descending => compare_values(right.as_ref(), left.as_ref()),
            (false, false) => compare_values(left.as_ref(), right.as_ref()),
        };
        if ordering != Ordering::Equal {
            return ordering;
        }
    }
    Ordering::Equal
}

/// Compares values that aren't NULL as SQLite does: numbers, then text, then blobs, each by bytes.
fn compare_values(left: ValueRef<'_>, right: ValueRef<'_>) -> Ordering {
    use ValueRef::{Blob, Int, Null, Real, Text};
    let rank = |value: ValueRef<'_>| match value {
        Null => 0,
        Int(_) | Real(_) => 1,
        Text(_) => 2,
        Blob(_) => 3,
    };
    match (left, right) {
        (Int(l), Int(r)) => l.cmp(&r),
        (Real(l), Real(r)) => l.partial_cmp(&r).unwrap_or(Ordering::Equal),
        // A column has one storage class, so numbers of two kinds meet only where a plan is wrong already.
        (Int(l), Real(r)) => (l as f64).partial_cmp(&r).unwrap_or(Ordering::Equal),
        (Real(l), Int(r)) => l.partial_cmp(&(r as f64)).unwrap_or(Ordering::Equal),
        (Text(l), Text(r)) => l.as_bytes().cmp(r.as_bytes()),
        (Blob(l), Blob(r)) => l.cmp(r),
        (l, r) => rank(l).cmp(&rank(r)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(batches: Vec<Vec<Option<i64>>>, whole: bool) -> RowSource {
        let mut built: Vec<_> = batches
            .into_iter()
            .map(|values| {
                let mut builder = RowBatchBuilder::new(1);
                values.into_iter().for_each(|v| builder.push(v.map_or(ValueRef::Null, ValueRef::Int)));
                builder.finish()
            })
            .collect();
        match whole {
            true => RowSource::Whole(built.remove(0)),
            false => RowSource::Stream(Box::pin(futures::stream::iter(built.into_iter().map(Ok)))),
        }
    }

    async fn merged(sources: Vec<RowSource>, key: MergeKey) -> Vec<Option<i64>> {
        let mut merge = Merge::new(sources, vec![key], 1);
        let mut values = Vec::new();
        while let Some(batch) = merge.next().await.unwrap() {
            values.extend(batch.rows().map(|mut row| match row.next() {
                Some(ValueRef::Int(v)) => Some(v),
                _ => None,
            }));
        }
        values
    }

    #[tokio::test]
    async fn sorted_sources_stay_sorted() {
        let key = MergeKey { column: 0, descending: false, nulls_first: false };
        let sources = vec![
            source(vec![vec![Some(1), Some(4)], vec![], vec![Some(9), None]], false),
            source(vec![vec![Some(2), Some(3), Some(10), None]], true),
            source(vec![], false),
        ];
        let expected = [Some(1), Some(2), Some(3), Some(4), Some(9), Some(10), None, None];
        assert_eq!(merged(sources, key).await, expected);
    }

    #[tokio::test]
    async fn descending_with_nulls_first() {
        let key = MergeKey { column: 0, descending: true, nulls_first: true };
        let sources = vec![
            source(vec![vec![None, Some(4), Some(1)]], false),
            source(vec![vec![None, Some(5), Some(-3)]], true),
        ];
        assert_eq!(merged(sources, key).await, [None, None, Some(5), Some(4), Some(1), Some(-3)]);
    }

    #[test]
    fn the_first_rows_are_shared_out() {
        let batch = |values: &[i64]| {
            let mut builder = RowBatchBuilder::new(1);
            values.iter().for_each(|v| builder.push(ValueRef::Int(*v)));
            builder.finish()
        };
        let sources = [vec![batch(&[1, 4]), batch(&[5])], vec![batch(&[2, 3, 6])], vec![], vec![batch(&[9])]];
        let key = [MergeKey { column: 0, descending: false, nulls_first: false }];
        assert_eq!(shares(&sources, &key, 4), [2, 2, 0, 0]);
        assert_eq!(shares(&sources, &key, 100), [3, 3, 0, 1]);
        assert_eq!(shares(&sources, &key, 0), [0, 0, 0, 0]);
    }

    #[test]
    fn values_compare_as_bytes_and_numbers() {
        assert_eq!(compare_values(ValueRef::Text("B"), ValueRef::Text("a")), Ordering::Less);
        assert_eq!(compare_values(ValueRef::Text("é"), ValueRef::Text("z")), Ordering::Greater);
        assert_eq!(compare_values(ValueRef::Real(-0.5), ValueRef::Real(0.25)), Ordering::Less);
        assert_eq!(compare_values(ValueRef::Blob(&[2]), ValueRef::Blob(&[1, 9])), Ordering::Greater);
    }
}
