//! Comparing old and new: one flow after the other, span by span.
//!
//! In comes how far it was, out comes how far it is after one more span, or what differs. A span that can't be compared is compared
//! again, in less time. How far it is only this leader knows: the next one begins anew.

use super::asking::Asker;
use super::machine::Event;
use super::record::Part;
use proto::services::{CompareRequest, Compared, ComparedNext, Difference, SumsPlace};
use proto::topology::Flow;
use proto::{Attempt, LogIndex, Retry, ShardId, SqlState, Value, WireError};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// How long snapshots of a span are open, about. A replica may end them after ten seconds.
const SPAN: Duration = Duration::from_secs(4);
const SHORTEST: Duration = Duration::from_millis(100);
/// How long opening them may take.
const OPENING: Duration = Duration::from_secs(5);
/// A key that is longer isn't shown whole.
const KEY_CHARS: usize = 60;

type Result<T> = std::result::Result<T, WireError>;

/// How long comparing one span may take.
pub(super) const LONGEST: Duration = Duration::from_secs(5 + 3 * 4 + 2);

/// How far comparing is.
#[derive(Clone, Debug)]
pub(crate) struct Comparing {
    /// Of which shards.
    of: (Attempt, u32),
    /// How many flows are done.
    done: usize,
    from: Option<SumsPlace>,
    time: Duration,
    /// How many rows were the same.
    pub(crate) rows: u64,
    /// At which position of each source they were so last.
    at: BTreeMap<ShardId, LogIndex>,
}

impl Comparing {
    fn new(of: (Attempt, u32)) -> Self {
        Comparing { of, done: 0, from: None, time: SPAN, rows: 0, at: BTreeMap::new() }
    }

    /// Where old and new were the same, for people.
    pub(crate) fn equal(&self, keyspace: &str, sources: &[Part]) -> Option<String> {
        let at = self.at.iter().filter_map(|(shard, index)| {
            let part = sources.iter().find(|part| part.shard == *shard)?;
            Some(format!("{keyspace}/{}.{}:{index}", part.range, part.incarnation))
        });
        let at: Vec<_> = at.collect();
        (!at.is_empty()).then(|| format!("equal at {}", at.join(",")))
    }
}

impl Asker {
    /// Compares one more span.
    pub(super) async fn compare(&self, attempt: Attempt, tries: u32) -> Result<Option<Event>> {
        let of = (attempt, tries);
        let flows = self.record.shown().map(|shown| shown.flows).unwrap_or_default();
        let known = self.core.reshards.lock().get(&self.record.id).and_then(|seen| seen.comparing.clone());
        let mut comparing = known.filter(|known| known.of == of).unwrap_or_else(|| Comparing::new(of));
        let mut differs = None;
        if let Some(flow) = flows.get(comparing.done) {
            let compared = self.compare_span(*flow, &comparing).await;
            match &compared {
                Ok(compared) => differs = self.note(flow, compared, &mut comparing),
                Err(_) => comparing.time = (comparing.time / 2).max(SHORTEST),
            }
            self.core.reshards.lock().entry(self.record.id).or_default().comparing = Some(comparing.clone());
            compared?;
        }
        let ended = differs.is_some() || comparing.done >= flows.len();
        Ok(ended.then_some(Event::Compared { attempt, tries, differs }))
    }

    /// Takes note of a span; says what differs.
    fn note(&self, flow: &Flow, compared: &Compared, comparing: &mut Comparing) -> Option<String> {
        comparing.rows += compared.rows;
        comparing.time = (comparing.time * 2).min(SPAN);
        match &compared.next {
            ComparedNext::From(place) => comparing.from = Some(place.clone()),
            ComparedNext::End => (comparing.done, comparing.from) = (comparing.done + 1, None),
            ComparedNext::Differs(difference) => return Some(self.tell(flow, compared.position, difference)),
        }
        comparing.at.insert(flow.source, compared.position);
        None
    }

    /// Asks the target's nodes, the likeliest leader first.
    async fn compare_span(&self, flow: Flow, comparing: &Comparing) -> Result<Compared> {
        let Flow { source, target, .. } = flow;
        let (from, time) = (comparing.from.clone(), comparing.time);
        let request = CompareRequest { target, source, from, time, timeout: OPENING };
        let message = format!("shard {target} has no leader");
        let mut last = WireError::new(SqlState::CANNOT_CONNECT_NOW, message).with_retry(Retry::Later);
        for node in self.core.reach().candidates(target, None) {
            let Some(service) = self.core.reach().peers.shard_service(node) else { continue };
            match service.compare(request.clone()).await {
                Err(error) if matches!(error.retry, Retry::NotLeader(_)) => {}
                Err(error) => last = error,
                answer => return answer,
            }
        }
        Err(last)
    }

    /// What differs, for people.
    fn tell(&self, flow: &Flow, position: LogIndex, difference: &Difference) -> String {
        let Difference { table, after, to, rows } = difference;
        let state = self.core.state.subscribe().borrow().clone();
        let named = state.catalog.table(*table).map(|table| table.name.clone());
        let keyspace = self.record.keyspace_name(&state.topology);
        let parts = self.record.old.parts.iter().chain(&self.record.new.parts);
        let parts: Vec<_> = parts.collect();
        let shard = |id: ShardId| {
            let part = parts.iter().find(|part| part.shard == id);
            part.map_or_else(|| format!("shard {id}"), |part| format!("{keyspace}/{}", part.range))
        };
        let (source, target) = (shard(flow.source), shard(flow.target));
        let mut told = named.map_or_else(|| format!("table {table}"), |name| format!("table {name}"));
        match rows {
            Some((theirs, ours)) => {
                if let Some(key) = after {
                    let _ = write!(told, " after {}", shown(key));
                }
                if let Some(key) = to {
                    let _ = write!(told, " up to {}", shown(key));
                }
                let _ = write!(told, ": {theirs} rows on {source} and {ours} on {target} aren't the same");
            }
            None => {
                let _ = write!(told, ": {source} and {target} don't have the same columns and indexes");
            }
        }
        let part = parts.iter().find(|part| part.shard == flow.source);
        let incarnation = part.map_or(0, |part| part.incarnation.0);
        let _ = write!(told, ", at {source}.{incarnation}:{position}");
        told
    }
}

/// A primary key as it is stored.
fn shown(key: &[Value]) -> String {
    let values = key.iter().map(|value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Int(int) => int.to_string(),
        Value::Real(real) => real.to_string(),
        Value::Text(text) => format!("'{text}'"),
        Value::Blob(blob) => blob.iter().map(|byte| format!("{byte:02x}")).collect(),
    });
    let whole = format!("({})", values.collect::<Vec<_>>().join(", "));
    match whole.char_indices().nth(KEY_CHARS) {
        Some((end, _)) => format!("{}..)", &whole[..end]),
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_as_they_are_stored_and_not_for_ever() {
        let key = [Value::Int(-7), Value::Text("a".into()), Value::Real(1.5), Value::Blob(vec![1, 255])];
        assert_eq!(shown(&key), "(-7, 'a', 1.5, 01ff)");
        let long = shown(&[Value::Text("\u{e4}".repeat(100))]);
        assert_eq!((long.chars().count(), long.ends_with("\u{e4}..)")), (KEY_CHARS + 3, true));
    }
}
