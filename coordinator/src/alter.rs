//! From a table as it is and as it is to be, to the stages of the job that changes it.
//!
//! Pure: two descriptors and the shards go in, stages come out. What a shard can lose only once everyone plans
//! without it (columns, plain indexes) is kept by a table in the middle: the first entries turn the old table into
//! that one and can be undone without loss, the last ones turn it into the new.

use crate::job::{Entry, Failure, Stage};
use dialect::types::{Type, Typed};
use proto::catalog::{Check, Column, Index, Table, TypeRef};
use proto::topology::Sharding;
use proto::{ColumnId, ShardId, Value, WireError};
use std::collections::BTreeMap;

/// What happens to a table.
pub(crate) struct Alteration {
    pub(crate) stages: Vec<Stage>,
    /// Whether older plans must be kept off the shards from the first entry on.
    pub(crate) alone: bool,
}

/// A table that stays on its shards.
pub(crate) fn in_place(
    old: &Table,
    new: &Table,
    fill: &[(ColumnId, Value)],
    shards: &[ShardId],
    sharding: Sharding,
) -> Result<Alteration, WireError> {
    for column in &new.columns {
        if old.column(column.id).is_some_and(|before| !holds_all(before.ty, column.ty)) {
            return Err(WireError::unsupported(format!(
                "changing the type of column \"{}\" to one that may not hold its values",
                column.name
            ))
            .with_hint("Add a column of the new type, fill it, and drop the old one."));
        }
    }
    let middle = middle(old, new);
    let (mut first, mut last) = (Entry::default(), Entry::default());
    first.doing.change(old, &middle, fill, sharding)?;
    last.doing.change(&middle, new, &[], sharding)?;
    let alone = !first.doing.is_nothing() && !is_harmless(old, &middle, fill);
    let mut stages = Vec::new();
    if !first.doing.is_nothing() {
        first.undo.change(&middle, old, &[], sharding)?;
        stages.push(Stage::entries(everywhere(shards, &first), alone, Failure::Undo));
    }
    stages.push(Stage::publish());
    if !last.doing.is_nothing() {
        stages.push(Stage::entries(everywhere(shards, &last), true, Failure::Ignore));
    }
    Ok(Alteration { stages, alone })
}

/// A table, the shards that have it, and how its keyspace places rows.
pub(crate) struct Placed<'a> {
    pub(crate) table: &'a Table,
    pub(crate) shards: &'a [ShardId],
    pub(crate) sharding: Sharding,
}

/// An empty table that moves to other shards, or that rows find another way to.
pub(crate) fn re_place(old: &Placed<'_>, new: &Placed<'_>) -> Result<Alteration, WireError> {
    let mut entries: BTreeMap<ShardId, Entry> = BTreeMap::new();
    for shard in old.shards {
        let entry = entries.entry(*shard).or_default();
        entry.doing.drop(old.table.id);
        entry.require_empty.push(old.table.id.0);
    }
    for shard in new.shards {
        let entry = entries.entry(*shard).or_default();
        entry.doing.create(new.table, new.sharding)?;
        entry.undo.drop(new.table.id);
    }
    for shard in old.shards {
        entries.entry(*shard).or_default().undo.create(old.table, old.sharding)?;
    }
    let stages = vec![Stage::entries(entries, true, Failure::Undo), Stage::publish()];
    Ok(Alteration { stages, alone: true })
}

fn everywhere(shards: &[ShardId], entry: &Entry) -> BTreeMap<ShardId, Entry> {
    shards.iter().map(|shard| (*shard, entry.clone())).collect()
}

/// The new table with what it is to lose last.
fn middle(old: &Table, new: &Table) -> Table {
    let mut middle = new.clone();
    let kept = |id: ColumnId| new.column(id).is_some();
    for column in old.columns.iter().filter(|column| !kept(column.id)) {
        middle.columns.push(Column { not_null: false, default: None, ..column.clone() });
    }
    for index in old.indexes.iter().filter(|index| !index.unique) {
        if !new.indexes.iter().any(|other| other.id == index.id) {
            middle.indexes.push(index.clone());
        }
    }
    middle
}

/// Whether every value of the old type is one of the new, stored as it is.
fn holds_all(old: TypeRef, new: TypeRef) -> bool {
    let Some((old, new)) = Typed::from_ref(old).zip(Typed::from_ref(new)) else { return false };
    let integer = |ty| [Type::Int2, Type::Int4, Type::Int8].iter().position(|other| *other == ty);
    match (old.ty, new.ty) {
        _ if old == new => true,
        (Type::Text | Type::Varchar, Type::Text | Type::Varchar) => {
            new.modifier < 0 || (0..=new.modifier).contains(&old.modifier)
        }
        (old, new) if integer(old).is_some() && integer(new).is_some() => integer(old) <= integer(new),
        (Type::Timestamp | Type::Timestamptz, ty) if ty == old.ty => {
            new.modifier < 0 || (0..=new.modifier).contains(&old.modifier)
        }
        // A scale that isn't fixed keeps the one that each value has.
        (Type::Numeric, Type::Numeric) => new.modifier < 0,
        _ => false,
    }
}

/// Whether plans made for `old` do right on `new` as well.
fn is_harmless(old: &Table, new: &Table, fill: &[(ColumnId, Value)]) -> bool {
    let columns = new.columns.iter().all(|column| match old.column(column.id) {
        Some(before) => before.ty == column.ty && before.not_null == column.not_null,
        None => {
            let filled = fill.iter().any(|(id, value)| *id == column.id && !value.is_null());
            !column.not_null && column.default.is_none() && !filled
        }
    });
    let indexes = old.indexes.iter().all(|index| new.indexes.iter().any(|other| is_same(index, other)));
    columns
        && indexes
        && old.primary_key == new.primary_key
        && conditions(&old.checks) == conditions(&new.checks)
}

fn is_same(a: &Index, b: &Index) -> bool {
    a.id == b.id && a.columns == b.columns && a.unique == b.unique
}

fn conditions(checks: &[Check]) -> Vec<&str> {
    checks.iter().map(|check| check.physical.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_widens_and_never_narrows() {
        let typed = |ty, modifier| Typed { ty, modifier }.to_ref();
        let plain = |ty| typed(ty, -1);
        let wider = [
            (plain(Type::Int2), plain(Type::Int8)),
            (typed(Type::Varchar, 14), typed(Type::Varchar, 24)),
            (typed(Type::Varchar, 14), plain(Type::Text)),
            (plain(Type::Text), plain(Type::Varchar)),
            (typed(Type::Numeric, 655366), plain(Type::Numeric)),
            (typed(Type::Timestamp, 0), typed(Type::Timestamp, 3)),
        ];
        for (narrow, wide) in wider {
            assert!(holds_all(narrow, wide) && holds_all(narrow, narrow), "{narrow:?} {wide:?}");
        }
        assert!(!holds_all(plain(Type::Int8), plain(Type::Int4)));
        assert!(!holds_all(plain(Type::Int8), plain(Type::Text)));
        assert!(!holds_all(plain(Type::Timestamp), plain(Type::Timestamptz)));
        assert!(!holds_all(typed(Type::Numeric, 655366), typed(Type::Numeric, 655368)));
    }
}
