//! Ranges of keyspace ids, and their names as Vitess writes them: `-80`, `80-c0`, `c0-`, `-`.

use std::fmt;

/// All keyspace ids from `start` (inclusive) to `end` (exclusive), compared as bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyRange {
    /// The first keyspace id; empty for "from the beginning".
    pub start: Vec<u8>,
    /// The first one past the range; `None` for "to the end".
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// Every keyspace id.
    pub fn full() -> Self {
        Self::default()
    }

    /// Whether the range has this keyspace id.
    pub fn contains(&self, keyspace_id: &[u8]) -> bool {
        keyspace_id >= self.start.as_slice() && self.end.as_deref().is_none_or(|end| keyspace_id < end)
    }

    /// Whether some keyspace id is in both.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        other.end.as_deref().is_none_or(|end| self.start.as_slice() < end)
            && self.end.as_deref().is_none_or(|end| other.start.as_slice() < end)
    }

    /// Cuts the space of 8-byte hash keyspace ids into `shards` ranges of equal size, in order.
    ///
    /// Bounds are written with as few bytes as they need: two shards are `-80` and `80-`.
    pub fn split_evenly(shards: u32) -> Vec<KeyRange> {
        let bound = |i: u32| shortest(((u128::from(i) << 64) / u128::from(shards)) as u64);
        (0..shards)
            .map(|i| KeyRange { start: bound(i), end: (i + 1 < shards).then(|| bound(i + 1)) })
            .collect()
    }

    /// Where a range of 8-byte hash keyspace ids is cut into so many of about the same size: all bounds but its own. `None` if
    /// it hasn't got so many ids.
    pub fn even_bounds(&self, parts: u32) -> Option<Vec<Vec<u8>>> {
        let point = |bound: &[u8]| {
            let mut bytes = [0; 8];
            let length = bound.len().min(8);
            bytes[..length].copy_from_slice(&bound[..length]);
            u128::from(u64::from_be_bytes(bytes))
        };
        let (start, end) = (point(&self.start), self.end.as_deref().map_or(1 << 64, point));
        let bound = |i| start + (end - start) * u128::from(i) / u128::from(parts);
        let distinct = (1..=parts).all(|i| bound(i - 1) < bound(i));
        distinct.then(|| (1..parts).map(|i| shortest(bound(i) as u64)).collect())
    }

    /// Reads the name form: two hexadecimal bounds with a dash between, either one empty.
    pub fn parse(name: &str) -> Option<Self> {
        let (start, end) = name.split_once('-')?;
        let start = unhex(start)?;
        let end = if end.is_empty() { None } else { Some(unhex(end)?) };
        if end.as_ref().is_some_and(|end| *end <= start) {
            return None;
        }
        Some(Self { start, end })
    }
}

/// A point of the space of 8-byte ids, with as few bytes as it needs.
fn shortest(point: u64) -> Vec<u8> {
    let mut bytes = point.to_be_bytes().to_vec();
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.start {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("-")?;
        for byte in self.end.iter().flatten() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_splits_have_short_names_and_cover_everything() {
        let names = |n| KeyRange::split_evenly(n).iter().map(|r| r.to_string()).collect::<Vec<_>>();
        assert_eq!(names(1), ["-"]);
        assert_eq!(names(2), ["-80", "80-"]);
        assert_eq!(names(4), ["-40", "40-80", "80-c0", "c0-"]);
        for n in [1, 3, 7, 64] {
            let ranges = KeyRange::split_evenly(n);
            for id in [0u64, 1, u64::MAX / 2, u64::MAX] {
                assert_eq!(ranges.iter().filter(|r| r.contains(&id.to_be_bytes())).count(), 1);
            }
        }
    }

    #[test]
    fn a_range_is_cut_evenly_if_it_has_enough_ids() {
        let bounds = |name: &str, parts| {
            let bounds = KeyRange::parse(name).unwrap().even_bounds(parts)?;
            Some(
                bounds
                    .iter()
                    .map(|b| b.iter().map(|b| format!("{b:02x}")).collect())
                    .collect::<Vec<String>>(),
            )
        };
        let some = |bounds: &[&str]| Some(bounds.iter().map(|b| b.to_string()).collect::<Vec<_>>());
        assert_eq!(bounds("-80", 2), some(&["40"]));
        assert_eq!(bounds("-", 4), some(&["40", "80", "c0"]));
        assert_eq!(bounds("c0-", 2), some(&["e0"]));
        assert_eq!(bounds("-80", 3), some(&["2aaaaaaaaaaaaaaa", "5555555555555555"]));
        assert_eq!(bounds("5555555555555554-5555555555555556", 2), some(&["5555555555555555"]));
        assert_eq!(bounds("5555555555555554-5555555555555556", 3), None);
    }

    #[test]
    fn names_parse_back() {
        for name in ["-", "-80", "80-", "40-80", "5555555555555555-"] {
            assert_eq!(KeyRange::parse(name).unwrap().to_string(), name);
        }
        for bad in ["", "8-", "80-40", "80-80", "xy-", "80"] {
            assert_eq!(KeyRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_overlap_when_they_share_an_id() {
        let range = |name| KeyRange::parse(name).unwrap();
        assert!(range("-80").overlaps(&range("40-")));
        assert!(!range("-80").overlaps(&range("80-")));
        assert!(range("-").overlaps(&range("40-80")));
    }
}
