//! Where a shard is cut, as an admin says it.
//!
//! In come keys of the shard's tables, or keyspace ids in hex where rows lie by hash; out come keyspace ids. Pure: whether they
//! are within the shard is the coordinator's to say.

use dialect::datetime::TimeZone;
use dialect::io::row_literal;
use dialect::key::key_form;
use dialect::types::Typed;
use proto::catalog::{Placement, Table};
use proto::services::ClusterState;
use proto::topology::{Keyspace, Shard, Sharding};
use proto::{KeyspaceId, SqlState, Value, WireError};

/// The keyspace ids that are meant, each the first of a new shard.
pub fn bounds(state: &ClusterState, shard: &str, at: &[String]) -> Result<Vec<Vec<u8>>, WireError> {
    let (keyspace, _) = find(state, shard)?;
    if keyspace.sharding != Sharding::Range {
        return at.iter().map(|text| in_hex(text)).collect();
    }
    let mut keys: Vec<Vec<Typed>> = Vec::new();
    for key in state.catalog.tables().filter_map(|table| key_of(table, keyspace)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    if keys.is_empty() {
        let message = format!("keyspace {} has no table, so it has no keys", keyspace.name);
        return Err(WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message));
    }
    at.iter().map(|text| bound(keyspace, &keys, text)).collect()
}

/// A shard that serves, by its name.
pub fn find<'a>(state: &'a ClusterState, name: &str) -> Result<(&'a Keyspace, &'a Shard), WireError> {
    let topology = &state.topology;
    let serving = topology.keyspaces.values().flat_map(|keyspace| {
        let shards = keyspace.shards.iter().filter_map(|id| topology.shards.get(id));
        shards.map(move |shard| (keyspace, shard))
    });
    let mut named = serving.filter(|(_, shard)| topology.shard_name(shard.id) == name);
    named.next().ok_or_else(|| {
        WireError::new(SqlState::UNDEFINED_OBJECT, format!("shard \"{name}\" does not exist"))
            .with_hint("\"shoal shards\" lists them.")
    })
}

/// The types of a table's shard key, if its rows are in the keyspace.
fn key_of(table: &Table, keyspace: &Keyspace) -> Option<Vec<Typed>> {
    let Placement::Sharded { keyspace: number, key } = &table.placement else { return None };
    let types = key.iter().map(|id| Typed::from_ref(table.column(*id)?.ty));
    types.collect::<Option<_>>().filter(|_| *number == keyspace.number)
}

/// The keyspace id of a key; tables of one keyspace must agree about it.
fn bound(keyspace: &Keyspace, keys: &[Vec<Typed>], text: &str) -> Result<Vec<u8>, WireError> {
    let id = |types: &Vec<Typed>| {
        let values = row_literal(types, text, &TimeZone::utc())?;
        let forms = types.iter().zip(&values).map(|(ty, value)| key_form(ty.ty, value.as_ref()));
        let forms: Vec<Value> = forms.collect();
        Ok(KeyspaceId::range(forms.iter().map(Value::as_ref)).0)
    };
    let ids = keys.iter().map(id).collect::<Result<Vec<_>, WireError>>()?;
    if ids.iter().any(|id| *id != ids[0]) {
        let message = format!(
            "the tables of keyspace {} have keys of several types, and {text} is another place in each",
            keyspace.name
        );
        return Err(WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
            .with_hint("\"--median\" cuts by rows."));
    }
    Ok(ids.into_iter().next().expect("there is a table"))
}

fn in_hex(text: &str) -> Result<Vec<u8>, WireError> {
    let wrong = |message: String| {
        WireError::new(SqlState::INVALID_PARAMETER_VALUE, message).with_hint(
            "A keyspace that places rows by hash is cut at a keyspace id in hex, as shards' names have it.",
        )
    };
    let bytes = hex::decode(text)
        .map_err(|_| wrong(format!("{text:?} isn't pairs of hex digits, like 40 or 8a40")))?;
    if bytes.is_empty() { Err(wrong("it is before all rows".to_owned())) } else { Ok(bytes) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use dialect::types::Type;
    use proto::catalog::{Catalog, Column};
    use proto::topology::{Leaders, Topology};
    use proto::{
        ColumnId, GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, SchemaVersion, ShardId, TableId,
    };
    use std::sync::Arc;

    /// A table whose shard key has columns of these types.
    pub fn table(id: u32, keyspace: u32, types: &[Type]) -> Table {
        let ids: Vec<_> = (1..=types.len() as u32).map(ColumnId).collect();
        let column = |(id, ty): (&ColumnId, &Type)| Column {
            id: *id,
            name: format!("c{id}"),
            ty: Typed::plain(*ty).to_ref(),
            not_null: true,
            default: None,
        };
        Table {
            id: TableId(id),
            name: format!("t{id}"),
            columns: ids.iter().zip(types).map(column).collect(),
            primary_key: ids.clone(),
            primary_key_name: None,
            indexes: Vec::new(),
            checks: Vec::new(),
            placement: Placement::Sharded { keyspace: KeyspaceNumber(keyspace), key: ids },
            next_column: ColumnId(9),
            modified: SchemaVersion(1),
        }
    }

    /// `main` by hash; `log` and `rest` by range, the second of which has a bound.
    pub fn state(tables: Vec<Table>) -> ClusterState {
        let mut topology = Topology::default();
        for (number, name, sharding, range) in [
            (1, "main", Sharding::Hash, "-80"),
            (2, "log", Sharding::Range, "-"),
            (3, "rest", Sharding::Range, "40-"),
        ] {
            let (id, keyspace) = (ShardId(u64::from(number)), KeyspaceNumber(number));
            let range = KeyRange::parse(range).unwrap();
            let shard = Shard {
                id,
                keyspace,
                range,
                incarnation: Incarnation(1),
                group: GroupId(id.0 + 1),
                replicas: Vec::new(),
                formed: true,
                first: LogIndex(0),
            };
            topology.shards.insert(id, shard);
            let name = name.to_owned();
            let shards = vec![id];
            topology.keyspaces.insert(
                keyspace,
                Keyspace { number: keyspace, name, sharding, replicas: 1, shards, auto: None },
            );
        }
        let tables = tables.into_iter().map(Arc::new);
        let catalog = Catalog::new(SchemaVersion(1), tables, []);
        ClusterState {
            topology: Arc::new(topology),
            leaders: Arc::new(Leaders::default()),
            catalog: Arc::new(catalog),
        }
    }

    fn cut(tables: Vec<Table>, shard: &str, at: &[&str]) -> Result<Vec<String>, String> {
        let at: Vec<_> = at.iter().map(|text| (*text).to_owned()).collect();
        let bounds = bounds(&state(tables), shard, &at).map_err(|error| error.message)?;
        Ok(bounds.iter().map(hex::encode).collect())
    }

    #[test]
    fn keys_are_where_routers_look_for_them() {
        let some = |bounds: &[&str]| Ok(bounds.iter().map(|bound| (*bound).to_owned()).collect::<Vec<_>>());
        assert_eq!(cut(vec![], "main/-80", &["40", "8a40"]), some(&["40", "8a40"]));
        let log = || vec![table(1, 2, &[Type::Int8])];
        assert_eq!(cut(log(), "log/-", &["-1", "1000"]), some(&["107fffffffffffffff", "1080000000000003e8"]));
        let rows = || vec![table(1, 2, &[Type::Int4, Type::Text])];
        assert_eq!(cut(rows(), "log/-", &["(7, 'm')"]), some(&["108000000000000007206d0001"]));
        assert_eq!(cut(rows(), "log/-", &["7"]), some(&["108000000000000007"]), "before all rows with 7");
        // Of a numeric it's the key form that places a row.
        let numeric = || vec![table(1, 2, &[Type::Numeric])];
        assert_eq!(cut(numeric(), "log/-", &["1.5"]), cut(numeric(), "log/-", &["1.50"]));
        // What tables have in common is one place.
        let both = vec![
            table(1, 2, &[Type::Int4]),
            table(2, 2, &[Type::Int8, Type::Text]),
            table(3, 3, &[Type::Text]),
        ];
        assert_eq!(cut(both, "log/-", &["5"]), some(&["108000000000000005"]));
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let refused = |tables, shard: &str, at: &str| cut(tables, shard, &[at]).unwrap_err();
        assert_eq!(refused(vec![], "main/80-", "90"), "shard \"main/80-\" does not exist");
        assert_eq!(refused(vec![], "main/-80", "4"), "\"4\" isn't pairs of hex digits, like 40 or 8a40");
        assert_eq!(refused(vec![], "main/-80", ""), "it is before all rows");
        let log = || vec![table(1, 2, &[Type::Int8])];
        assert_eq!(refused(log(), "rest/40-", "5"), "keyspace rest has no table, so it has no keys");
        assert_eq!(refused(log(), "log/-", "'x'"), "invalid input syntax for type bigint: \"x\"");
        let both = vec![table(1, 2, &[Type::Int4]), table(2, 2, &[Type::Float8])];
        assert!(
            refused(both, "log/-", "5").starts_with("the tables of keyspace log have keys of several types")
        );
    }
}
