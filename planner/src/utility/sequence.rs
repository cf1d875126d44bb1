//! Sequences: what their options come to, and the commands about them.

use super::command::SequenceOption;
use crate::bind::types::type_of;
use dialect::Type;
use dialect::types::Typed;
use proto::catalog::Sequence;
use proto::{SequenceId, SqlState, WireError};

fn invalid(message: impl Into<String>) -> WireError {
    WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn range(ty: Type) -> (i64, i64) {
    match ty {
        Type::Int2 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        Type::Int4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    }
}

fn sql_name(ty: Type) -> &'static str {
    match ty {
        Type::Int2 => "smallint",
        Type::Int4 => "integer",
        _ => "bigint",
    }
}

/// A new sequence of this name. `ty` is the column's for SERIAL and IDENTITY.
pub(super) fn create(
    name: String,
    ty: Option<Type>,
    options: &[SequenceOption],
) -> Result<Sequence, WireError> {
    let identity = ty.is_some();
    let mut sequence = Sequence {
        id: SequenceId(0),
        name,
        ty: Typed::plain(ty.unwrap_or(Type::Int8)).to_ref(),
        start: 0,
        increment: 1,
        min: 0,
        max: 0,
        cycle: false,
        cache: 1,
        owner: None,
        hidden: false,
    };
    apply(&mut sequence, options, true, identity)?;
    Ok(sequence)
}

/// Applies options, as `init_params` of PostgreSQL. Answers with RESTART's value.
pub(super) fn apply(
    sequence: &mut Sequence,
    options: &[SequenceOption],
    new: bool,
    identity: bool,
) -> Result<Option<i64>, WireError> {
    let mut ty = Type::from_oid(sequence.ty.oid).unwrap_or(Type::Int8);
    let old_range = range(ty);
    let (mut reset_min, mut reset_max) = (new, new);
    for option in options {
        if let SequenceOption::As(data_type) = option {
            let chosen = type_of(data_type)?.ty;
            if !matches!(chosen, Type::Int2 | Type::Int4 | Type::Int8) {
                return Err(invalid(if identity {
                    "identity column type must be smallint, integer, or bigint"
                } else {
                    "sequence type must be smallint, integer, or bigint"
                }));
            }
            // Bounds that were the old type's become the new one's.
            reset_max |= sequence.max == old_range.1;
            reset_min |= sequence.min == old_range.0;
            ty = chosen;
            sequence.ty = Typed::plain(ty).to_ref();
        }
    }
    let (least, greatest) = range(ty);
    let (mut min, mut max, mut start, mut restart) = (None, None, None, None);
    for option in options {
        match option {
            SequenceOption::As(_) | SequenceOption::OwnedBy(_) => {}
            SequenceOption::Start(value) => start = Some(*value),
            SequenceOption::Restart(value) => restart = Some(*value),
            SequenceOption::Increment(0) => return Err(invalid("INCREMENT must not be zero")),
            SequenceOption::Increment(value) => sequence.increment = *value,
            SequenceOption::Min(value) => {
                min = *value;
                reset_min |= value.is_none();
            }
            SequenceOption::Max(value) => {
                max = *value;
                reset_max |= value.is_none();
            }
            SequenceOption::Cycle(cycle) => sequence.cycle = *cycle,
            SequenceOption::Cache(cache) if *cache <= 0 => {
                return Err(invalid(format!("CACHE ({cache}) must be greater than zero")));
            }
            SequenceOption::Cache(cache) => sequence.cache = *cache,
        }
    }
    let ascending = sequence.increment > 0;
    match max {
        Some(max) => sequence.max = max,
        None if reset_max => sequence.max = if ascending { greatest } else { -1 },
        None => {}
    }
    if sequence.max < least || sequence.max > greatest {
        let message =
            format!("MAXVALUE ({}) is out of range for sequence data type {}", sequence.max, sql_name(ty));
        return Err(invalid(message));
    }
    match min {
        Some(min) => sequence.min = min,
        None if reset_min => sequence.min = if ascending { 1 } else { least },
        None => {}
    }
    if sequence.min < least || sequence.min > greatest {
        let message =
            format!("MINVALUE ({}) is out of range for sequence data type {}", sequence.min, sql_name(ty));
        return Err(invalid(message));
    }
    let (min, max) = (sequence.min, sequence.max);
    if min >= max {
        return Err(invalid(format!("MINVALUE ({min}) must be less than MAXVALUE ({max})")));
    }
    match start {
        Some(start) => sequence.start = start,
        None if new => sequence.start = if ascending { min } else { max },
        None => {}
    }
    between("START", sequence.start, min, max)?;
    let restart = restart.map(|value| value.unwrap_or(sequence.start));
    if let Some(value) = restart {
        between("RESTART", value, min, max)?;
    }
    Ok(restart)
}

fn between(what: &str, value: i64, min: i64, max: i64) -> Result<(), WireError> {
    if value < min {
        return Err(invalid(format!("{what} value ({value}) cannot be less than MINVALUE ({min})")));
    }
    if value > max {
        return Err(invalid(format!("{what} value ({value}) cannot be greater than MAXVALUE ({max})")));
    }
    Ok(())
}
