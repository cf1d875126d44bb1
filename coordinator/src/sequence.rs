//! Sequences: blocks of values, as PostgreSQL's `nextval` would give them one by one.
//!
//! In come a sequence and its next value, out come a block and the next value after it. A sequence that has given
//! its last value has no next one.

use crate::store::Store;
use proto::catalog::Sequence;
use proto::services::SequenceBlock;
use proto::{SequenceId, SqlState, WireError};

/// The next `count` values, or fewer at the sequence's end, and what comes after them.
fn next_block(
    sequence: &Sequence,
    next: Option<i64>,
    count: u32,
) -> Result<(SequenceBlock, Option<i64>), WireError> {
    let up = sequence.increment > 0;
    let first = match next {
        Some(next) => next,
        None if sequence.cycle && up => sequence.min,
        None if sequence.cycle => sequence.max,
        None => {
            let (end, bound) = if up { ("maximum", sequence.max) } else { ("minimum", sequence.min) };
            return Err(WireError::new(
                SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED,
                format!("nextval: reached {end} value of sequence \"{}\" ({bound})", sequence.name),
            ));
        }
    };
    // Bounds and steps are any 64-bit integers; their differences aren't.
    let (first_wide, increment) = (i128::from(first), i128::from(sequence.increment));
    let bound = i128::from(if up { sequence.max } else { sequence.min });
    let room = (bound - first_wide) / increment + 1;
    let count = i128::from(count.max(1)).min(room.max(1));
    let after = clip(sequence, first_wide + increment * count);
    let block = SequenceBlock { first, increment: sequence.increment, count: count as u32 };
    Ok((block, after))
}

/// A next value; `None` past the sequence's end.
fn clip(sequence: &Sequence, next: i128) -> Option<i64> {
    let within = i128::from(sequence.min)..=i128::from(sequence.max);
    within.contains(&next).then_some(next as i64)
}

fn unknown(id: SequenceId) -> WireError {
    WireError::new(SqlState::UNDEFINED_TABLE, format!("sequence with OID {id} does not exist"))
}

/// Takes the next values of a sequence.
pub(crate) fn allocate(store: Store<'_>, id: SequenceId, count: u32) -> Result<SequenceBlock, WireError> {
    let (sequence, next) = store.sequence(id)?.ok_or_else(|| unknown(id))?;
    let (block, next) = next_block(&sequence, next, count)?;
    store.put_sequence(&sequence, next)?;
    Ok(block)
}

/// Has the next block begin at `next`: one step past the last value at most (22003).
pub(crate) fn set(store: Store<'_>, id: SequenceId, next: i64) -> Result<(), WireError> {
    let (sequence, _) = store.sequence(id)?.ok_or_else(|| unknown(id))?;
    let wide = i128::from(next);
    let last = wide - i128::from(sequence.increment);
    if clip(&sequence, wide).is_none() && clip(&sequence, last).is_none() {
        return Err(WireError::new(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            format!(
                "setval: value {next} is out of bounds for sequence \"{}\" ({}..{})",
                sequence.name, sequence.min, sequence.max
            ),
        ));
    }
    store.put_sequence(&sequence, clip(&sequence, wide))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::catalog::TypeRef;

    fn sequence(increment: i64, min: i64, max: i64, cycle: bool) -> Sequence {
        Sequence {
            id: SequenceId(1),
            name: "s".into(),
            ty: TypeRef { oid: 20, modifier: -1 },
            start: min,
            increment,
            min,
            max,
            cycle,
            cache: 1,
            owner: None,
            hidden: false,
        }
    }

    /// Every value that blocks of `count` give, until the end or `most` of them.
    fn values(sequence: &Sequence, start: i64, count: u32, most: usize) -> Vec<i64> {
        let mut next = Some(start);
        let mut given = Vec::new();
        while given.len() < most {
            let Ok((block, after)) = next_block(sequence, next, count) else { break };
            let nth = |i: i64| block.first.wrapping_add(i.wrapping_mul(block.increment));
            given.extend((0..i64::from(block.count)).map(nth));
            next = after;
        }
        given
    }

    #[test]
    fn blocks_end_where_the_sequence_does() {
        for count in 1..7 {
            assert_eq!(values(&sequence(3, 1, 11, false), 1, count, 99), [1, 4, 7, 10], "{count}");
            assert_eq!(values(&sequence(-2, -5, 1, false), 1, count, 99), [1, -1, -3, -5], "{count}");
        }
        let error = next_block(&sequence(1, 1, 3, false), None, 1).unwrap_err();
        assert_eq!(error.to_string(), "2200H: nextval: reached maximum value of sequence \"s\" (3)");
    }

    #[test]
    fn a_cycle_begins_again_at_its_bound() {
        assert_eq!(values(&sequence(2, 1, 5, true), 3, 1, 5), [3, 5, 1, 3, 5]);
        assert_eq!(values(&sequence(-2, 1, 5, true), 2, 1, 4), [2, 5, 3, 1]);
    }

    #[test]
    fn the_ends_of_the_integers_are_reached_and_not_passed() {
        let up = sequence(i64::MAX, i64::MIN, i64::MAX, false);
        assert_eq!(values(&up, i64::MIN, 10, 99), [i64::MIN, -1, i64::MAX - 1]);
        assert_eq!(values(&sequence(1, 1, i64::MAX, false), i64::MAX - 1, 10, 99), [i64::MAX - 1, i64::MAX]);
    }
}
