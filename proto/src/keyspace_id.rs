//! Where a row lives: the two functions from a shard key to a keyspace id.
//!
//! In come the shard key's values in *key form* (dialect: equal exactly where Postgres's `=` holds). Out come bytes:
//! 8 of them by hash, or an encoding that sorts as the key does, by range. Rows that were placed by an older version
//! of these functions would be lost to the newer one, so neither may ever change: the golden vectors hold them still.
//!
//! One encoding serves both. Each value is a tag byte, then:
//! NULL (0xff, so that it sorts last, as in Postgres) nothing; integers (0x10) 8 bytes big-endian with the sign bit
//! flipped; doubles (0x18) 8 bytes big-endian, all bits flipped if negative, else the sign bit; text (0x20) and
//! blobs (0x28) their bytes with 00 written as 00 ff, ended by 00 01.

use crate::topology::Sharding;
use crate::value::ValueRef;

/// The bytes that place a row. Compared as bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyspaceId(pub Vec<u8>);

impl KeyspaceId {
    /// Where a row of a keyspace belongs, by its shard key in key form. All rows belong together in one of a single shard.
    pub fn of<'a>(sharding: Sharding, key: impl IntoIterator<Item = ValueRef<'a>>) -> Self {
        match sharding {
            Sharding::Hash => Self::hash(key),
            Sharding::Range => Self::range(key),
            Sharding::Single => Self(Vec::new()),
        }
    }

    /// hash: xxh3-64 (seed 0) of the encoded shard key, big-endian.
    pub fn hash<'a>(key: impl IntoIterator<Item = ValueRef<'a>>) -> Self {
        let mut encoded = Vec::with_capacity(32);
        for value in key {
            encode(value, &mut encoded);
        }
        Self(xxhash_rust::xxh3::xxh3_64(&encoded).to_be_bytes().to_vec())
    }

    /// range: the order-preserving encoding of the shard key.
    pub fn range<'a>(key: impl IntoIterator<Item = ValueRef<'a>>) -> Self {
        let mut encoded = Vec::with_capacity(32);
        for value in key {
            encode(value, &mut encoded);
        }
        Self(encoded)
    }
}

fn encode(value: ValueRef<'_>, out: &mut Vec<u8>) {
    match value {
        ValueRef::Null => out.push(0xff),
        ValueRef::Int(v) => {
            out.push(0x10);
            out.extend_from_slice(&((v as u64) ^ (1 << 63)).to_be_bytes());
        }
        ValueRef::Real(v) => {
            out.push(0x18);
            // The two zeros are equal, so they are one key.
            let bits = if v == 0.0 { 0 } else { v.to_bits() };
            let ordered = if bits >> 63 == 1 { !bits } else { bits ^ (1 << 63) };
            out.extend_from_slice(&ordered.to_be_bytes());
        }
        ValueRef::Text(v) => encode_bytes(0x20, v.as_bytes(), out),
        ValueRef::Blob(v) => encode_bytes(0x28, v, out),
    }
}

fn encode_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    fn hex(id: &KeyspaceId) -> String {
        id.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn range_ids_sort_as_their_values() {
        let sorted = [
            Value::Int(i64::MIN),
            Value::Int(-1),
            Value::Int(0),
            Value::Int(7),
            Value::Int(i64::MAX),
            Value::Real(f64::NEG_INFINITY),
            Value::Real(-1.5),
            Value::Real(0.0),
            Value::Real(1e-300),
            Value::Real(f64::INFINITY),
            Value::Text("".into()),
            Value::Text("a".into()),
            Value::Text("a\u{1}".into()),
            Value::Text("ab".into()),
            Value::Blob(vec![]),
            Value::Blob(vec![0]),
            Value::Blob(vec![0, 0]),
            Value::Blob(vec![0, 1]),
            Value::Blob(vec![1]),
            Value::Null,
        ];
        let ids: Vec<_> = sorted.iter().map(|v| KeyspaceId::range([v.as_ref()])).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_longer_key_sorts_inside_its_prefix() {
        let id = |a: &str, b: i64| KeyspaceId::range([ValueRef::Text(a), ValueRef::Int(b)]);
        assert!(id("a", 9) < id("ab", 1));
        assert!(id("a", 1) < id("a", 2));
    }

    #[test]
    fn zeros_are_one_key() {
        assert_eq!(KeyspaceId::hash([ValueRef::Real(0.0)]), KeyspaceId::hash([ValueRef::Real(-0.0)]));
    }

    /// Recorded once. A change here means that stored rows can no longer be found.
    #[test]
    fn golden_vectors() {
        let int = |v| hex(&KeyspaceId::hash([ValueRef::Int(v)]));
        let actual = [
            int(0),
            int(1),
            int(-1),
            int(i64::MAX),
            hex(&KeyspaceId::hash([ValueRef::Text("shoal")])),
            hex(&KeyspaceId::hash([ValueRef::Blob(&[0, 1, 255])])),
            hex(&KeyspaceId::hash([ValueRef::Real(1.5)])),
            hex(&KeyspaceId::hash([ValueRef::Int(1), ValueRef::Text("a")])),
            hex(&KeyspaceId::hash([ValueRef::Null])),
            hex(&KeyspaceId::range([ValueRef::Int(-1), ValueRef::Text("a\0b")])),
            hex(&KeyspaceId::range([ValueRef::Real(-1.5), ValueRef::Blob(&[0])])),
        ];
        assert_eq!(actual, GOLDEN);
    }

    const GOLDEN: [&str; 11] = [
        "a6d7ab3d252f63c0",
        "ed55c5c989641e4f",
        "d91f3db122e83260",
        "e8ee635d8f30ff7d",
        "59ac771e32de505e",
        "19368803f6eee6e0",
        "70f36b537b8b664a",
        "0dcc9a7fe692279b",
        "d6bcec3c6b29d72e",
        "107fffffffffffffff206100ff620001",
        "184007ffffffffffff2800ff0001",
    ];
}
