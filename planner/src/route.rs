//! From what a plan knows of the shard key, and the values of a run, to the shards.
//!
//! In come a target, the scalars' values in storage form, and the topology. Out comes a [`Route`]. Nothing here knows
//! what a statement does with the rows it finds.

use crate::plan::{InsertTarget, KeyFilter, KeyPart, Route, ScalarId, Target};
use dialect::Type;
use dialect::key::key_form;
use dialect::rowset;
use proto::topology::{Keyspace, Sharding, Topology};
use proto::{KeyspaceId, KeyspaceNumber, ShardId, Value, ValueRef, WireError};
use std::collections::BTreeSet;

/// More combinations of key values than this aren't worth looking up one by one: the fragment goes everywhere.
const MOST_KEYS: usize = 65_536;

/// Which shards a fragment goes to, now that the scalars have values.
pub fn route(target: &Target, scalars: &[Value], topology: &Topology) -> Result<Route, WireError> {
    match target {
        Target::Keyspace { keyspace, key, filter } => {
            let keyspace = find_keyspace(*keyspace, topology)?;
            match filter {
                KeyFilter::Nothing => Ok(Route::None),
                KeyFilter::All => Ok(all(keyspace)),
                KeyFilter::In(columns) => by_values(keyspace, key, columns, scalars, topology),
                KeyFilter::Rows { rows, key: parts } => {
                    by_rows(keyspace, key, scalars[rows.0 as usize].as_ref(), parts, scalars, topology)
                }
                KeyFilter::Between(low, high) => by_range(keyspace, key, *low, *high, scalars, topology),
            }
        }
        Target::Any => {
            let first = topology.keyspaces.values().find_map(|k| k.shards.first());
            first
                .map(|shard| Route::One(*shard))
                .ok_or_else(|| WireError::internal("the cluster has no shard"))
        }
        Target::Everywhere => Ok(everywhere(topology)),
    }
}

/// Which shards a row goes to. `row` is in storage form.
pub fn route_row(target: &InsertTarget, row: &[Value], topology: &Topology) -> Result<Route, WireError> {
    match target {
        InsertTarget::Sharded { keyspace, key } => {
            let found = find_keyspace(*keyspace, topology)?;
            let forms: Vec<_> = key.iter().map(|(place, ty)| key_form(*ty, row[*place].as_ref())).collect();
            let id = KeyspaceId::of(found.sharding, forms.iter().map(Value::as_ref));
            one(found, &id, topology).map(Route::One)
        }
        InsertTarget::Single(keyspace) => Ok(all(find_keyspace(*keyspace, topology)?)),
        InsertTarget::Everywhere => Ok(everywhere(topology)),
    }
}

fn find_keyspace(number: KeyspaceNumber, topology: &Topology) -> Result<&Keyspace, WireError> {
    topology
        .keyspaces
        .get(&number)
        .ok_or_else(|| WireError::internal(format!("there is no keyspace {number}")))
}

fn all(keyspace: &Keyspace) -> Route {
    match keyspace.shards.as_slice() {
        [] => Route::None,
        [shard] => Route::One(*shard),
        shards => Route::All(shards.to_vec()),
    }
}

fn everywhere(topology: &Topology) -> Route {
    Route::All(topology.keyspaces.values().flat_map(|k| k.shards.iter().copied()).collect())
}

fn some(keyspace: &Keyspace, shards: BTreeSet<ShardId>) -> Route {
    // In the keyspace's own order, so that rows of a range keyspace come as its ranges do.
    let mut found: Vec<_> = keyspace.shards.iter().copied().filter(|shard| shards.contains(shard)).collect();
    match found.len() {
        0 => Route::None,
        1 => Route::One(found.remove(0)),
        n if n == keyspace.shards.len() => Route::All(found),
        _ => Route::Some(found),
    }
}

fn one(keyspace: &Keyspace, id: &KeyspaceId, topology: &Topology) -> Result<ShardId, WireError> {
    topology
        .shard_for(keyspace.number, &id.0)
        .ok_or_else(|| WireError::internal(format!("keyspace \"{}\" has a gap", keyspace.name)))
}

fn by_values(
    keyspace: &Keyspace,
    key: &[Type],
    columns: &[Vec<ScalarId>],
    scalars: &[Value],
    topology: &Topology,
) -> Result<Route, WireError> {
    let mut forms: Vec<Vec<Value>> = Vec::with_capacity(columns.len());
    for (ty, values) in key.iter().zip(columns) {
        let known = values.iter().map(|id| scalars[id.0 as usize].as_ref()).filter(|v| !v.is_null());
        let column: Vec<_> = known.map(|v| key_form(*ty, v)).collect();
        if column.is_empty() {
            return Ok(Route::None);
        }
        forms.push(column);
    }
    if forms.iter().all(|column| column.len() == 1) {
        let id = KeyspaceId::of(keyspace.sharding, forms.iter().map(|column| column[0].as_ref()));
        return one(keyspace, &id, topology).map(Route::One);
    }
    let combinations = forms.iter().try_fold(1usize, |n, column| n.checked_mul(column.len()));
    if combinations.is_none_or(|n| n > MOST_KEYS) || keyspace.shards.len() == 1 {
        return Ok(all(keyspace));
    }
    let mut shards = BTreeSet::new();
    let mut at = vec![0; forms.len()];
    loop {
        let values = forms.iter().zip(&at).map(|(column, i)| column[*i].as_ref());
        shards.insert(one(keyspace, &KeyspaceId::of(keyspace.sharding, values), topology)?);
        // Counts through every combination, the last column fastest.
        let Some(column) = (0..forms.len()).rev().find(|c| at[*c] + 1 < forms[*c].len()) else {
            break;
        };
        at[column] += 1;
        at[column + 1..].fill(0);
    }
    Ok(some(keyspace, shards))
}

/// The shards of the keys in packed rows.
fn by_rows(
    keyspace: &Keyspace,
    key: &[Type],
    rows: ValueRef<'_>,
    parts: &[KeyPart],
    scalars: &[Value],
    topology: &Topology,
) -> Result<Route, WireError> {
    let ValueRef::Blob(packed) = rows else {
        return Err(WireError::internal("rows that aren't packed"));
    };
    let mut shards = BTreeSet::new();
    for row in rowset::unpack(packed)?.rows() {
        let row: Vec<ValueRef<'_>> = row.collect();
        let mut forms = Vec::with_capacity(key.len());
        for (ty, part) in key.iter().zip(parts) {
            let value = match part {
                KeyPart::Scalar(id) => scalars[id.0 as usize].as_ref(),
                KeyPart::Column(place) => row.get(*place).copied().unwrap_or(ValueRef::Null),
            };
            if !value.is_null() {
                forms.push(key_form(*ty, value));
            }
        }
        // NULL equals no key.
        if forms.len() == key.len() {
            shards.insert(one(
                keyspace,
                &KeyspaceId::of(keyspace.sharding, forms.iter().map(Value::as_ref)),
                topology,
            )?);
        }
    }
    Ok(some(keyspace, shards))
}

fn by_range(
    keyspace: &Keyspace,
    key: &[Type],
    low: Option<(ScalarId, bool)>,
    high: Option<(ScalarId, bool)>,
    scalars: &[Value],
    topology: &Topology,
) -> Result<Route, WireError> {
    if keyspace.sharding != Sharding::Range {
        return Ok(all(keyspace));
    }
    let Some(ty) = key.first() else {
        return Ok(all(keyspace));
    };
    let bound = |side: Option<(ScalarId, bool)>| -> Option<Option<KeyspaceId>> {
        let Some((id, _)) = side else { return Some(None) };
        let value = scalars[id.0 as usize].as_ref();
        (!value.is_null()).then(|| Some(KeyspaceId::range([key_form(*ty, value).as_ref()])))
    };
    let includes_high = high.is_some_and(|(_, inclusive)| inclusive);
    let (Some(low), Some(high)) = (bound(low), bound(high)) else {
        return Ok(Route::None);
    };
    // Keys of several columns that begin with the bound have its encoding as a prefix, so the bound's shard and, for
    // the upper one if it's included, every shard that begins with it, can hold such keys.
    let mut shards = BTreeSet::new();
    for id in &keyspace.shards {
        let Some(shard) = topology.shards.get(id) else {
            continue;
        };
        let ends_before =
            low.as_ref().is_some_and(|low| shard.range.end.as_ref().is_some_and(|end| *end <= low.0));
        let begins_after = high.as_ref().is_some_and(|high| {
            let start = &shard.range.start;
            if includes_high { *start > high.0 && !start.starts_with(&high.0) } else { *start >= high.0 }
        });
        if !ends_before && !begins_after {
            shards.insert(*id);
        }
    }
    Ok(some(keyspace, shards))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::topology::Shard;
    use proto::{GroupId, Incarnation, KeyRange, LogIndex, NodeId};

    fn topology(sharding: Sharding, ranges: Vec<KeyRange>) -> Topology {
        let number = KeyspaceNumber(1);
        let mut topology = Topology::default();
        let mut shards = Vec::new();
        for (i, range) in ranges.into_iter().enumerate() {
            let id = ShardId(i as u64 + 1);
            shards.push(id);
            let (group, incarnation, replicas) = (GroupId(id.0 + 1), Incarnation(1), vec![NodeId(1)]);
            topology.shards.insert(
                id,
                Shard {
                    id,
                    keyspace: number,
                    range,
                    incarnation,
                    group,
                    replicas,
                    formed: true,
                    first: LogIndex(0),
                },
            );
        }
        let keyspace = Keyspace { number, name: "k".into(), sharding, replicas: 1, shards, auto: None };
        topology.keyspaces.insert(number, keyspace);
        topology
    }

    fn target(key: Vec<Type>, filter: KeyFilter) -> Target {
        Target::Keyspace { keyspace: KeyspaceNumber(1), key, filter }
    }

    fn ids(list: &[u32]) -> Vec<ScalarId> {
        list.iter().copied().map(ScalarId).collect()
    }

    #[test]
    fn keys_find_the_shards_that_rows_were_put_on() {
        let topology = topology(Sharding::Hash, KeyRange::split_evenly(4));
        let insert = InsertTarget::Sharded { keyspace: KeyspaceNumber(1), key: vec![(1, Type::Int4)] };
        for n in 0..50 {
            let Route::One(home) = route_row(&insert, &[Value::Null, Value::Int(n)], &topology).unwrap()
            else {
                panic!("a row has one shard");
            };
            let one = target(vec![Type::Int8], KeyFilter::In(vec![ids(&[0])]));
            assert_eq!(route(&one, &[Value::Int(n)], &topology).unwrap(), Route::One(home));
        }
        let all = target(vec![Type::Int4], KeyFilter::All);
        assert!(matches!(route(&all, &[], &topology).unwrap(), Route::All(shards) if shards.len() == 4));
        let null = target(vec![Type::Int4], KeyFilter::In(vec![ids(&[0])]));
        assert_eq!(route(&null, &[Value::Null], &topology).unwrap(), Route::None);
        assert_eq!(route(&target(vec![], KeyFilter::Nothing), &[], &topology).unwrap(), Route::None);
    }

    #[test]
    fn lists_of_two_columns_are_combined() {
        let topology = topology(Sharding::Hash, KeyRange::split_evenly(8));
        let values = [Value::Int(1), Value::Int(2), Value::Text("a".into()), Value::Text("b".into())];
        let key = vec![Type::Int4, Type::Text];
        let both = target(key.clone(), KeyFilter::In(vec![ids(&[0, 1]), ids(&[2, 3])]));
        let mut expected = BTreeSet::new();
        for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
            let one = target(key.clone(), KeyFilter::In(vec![ids(&[a]), ids(&[b])]));
            let Route::One(shard) = route(&one, &values, &topology).unwrap() else {
                panic!("one key, one shard")
            };
            expected.insert(shard);
        }
        let found = match route(&both, &values, &topology).unwrap() {
            Route::One(shard) => BTreeSet::from([shard]),
            Route::Some(shards) | Route::All(shards) => shards.into_iter().collect(),
            Route::None => BTreeSet::new(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn ranges_find_the_shards_that_overlap_them() {
        let id = |n: i64| KeyspaceId::range([ValueRef::Int(n)]).0;
        let ranges = vec![
            KeyRange { start: vec![], end: Some(id(10)) },
            KeyRange { start: id(10), end: Some(id(20)) },
            KeyRange { start: id(20), end: None },
        ];
        let topology = topology(Sharding::Range, ranges);
        let between = |low: Option<u32>, high: Option<u32>| {
            let side = |bound: Option<u32>| bound.map(|n| (ScalarId(n), true));
            target(vec![Type::Int4], KeyFilter::Between(side(low), side(high)))
        };
        let values = [Value::Int(5), Value::Int(10), Value::Int(25), Value::Null];
        let find = |target: Target| route(&target, &values, &topology).unwrap();
        assert_eq!(find(between(None, Some(0))), Route::One(ShardId(1)));
        assert_eq!(find(between(Some(0), Some(1))), Route::Some(vec![ShardId(1), ShardId(2)]));
        assert_eq!(find(between(Some(2), None)), Route::One(ShardId(3)));
        assert_eq!(find(between(Some(3), None)), Route::None);
        assert!(matches!(find(between(None, None)), Route::All(_)));
        // What is below 10 and isn't 10 lies before the shard that begins there.
        let below = |high: u32| {
            target(vec![Type::Int4, Type::Text], KeyFilter::Between(None, Some((ScalarId(high), false))))
        };
        assert_eq!(find(below(1)), Route::One(ShardId(1)));
        assert_eq!(find(below(2)), Route::All(vec![ShardId(1), ShardId(2), ShardId(3)]));
    }
}
