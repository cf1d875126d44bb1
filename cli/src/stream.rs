//! `shoal stream`: what is committed to a table, as lines of JSON, for as long as somebody listens.
//!
//! In come a table and, perhaps, a token; out go lines (`lines`), those of each shard in the order of its log. Each shard's log is
//! read from any of its replicas that has it, and goes on at another when that ends. Where a shard is replaced by others, theirs
//! follow once it has said its last word. Who stops goes on with the positions of the last complete entries: nothing is left
//! out then, and some of it comes twice.

mod lines;

use crate::admin::Way;
use crate::arguments::Stream;
use crate::failure::Failure;
use futures::StreamExt;
use lines::Lines;
use proto::catalog::{Catalog, Placement, Table};
use proto::gtid::{GtidSet, GtidSource};
use proto::services::{
    ChangeKind, Changes, ChangesRequest, ClusterStatus, ReplicaService, Serving, ShardService,
};
use proto::topology::{Retired, Topology};
use proto::transport::NodeClient;
use proto::{LogIndex, ShardId, SqlState, WireError};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

/// How often a log says something, though nothing happens.
const BEAT: Duration = Duration::from_secs(2);
/// A log that says nothing for so long is read elsewhere.
const SILENCE: Duration = Duration::from_secs(10);
/// How long it waits until it looks again.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a column's name may take to be known after the column is there.
const NAMING: Duration = Duration::from_secs(10);
/// How many parts of a log wait to be printed.
const AHEAD: usize = 4;
/// What helps who comes too late.
const COPY_ANEW: &str =
    "copy the table in a REPEATABLE READ READ ONLY block, and go on from that block's shoal.gtid";

/// Where somebody reads: of each shard what comes after.
type Places = BTreeMap<ShardId, LogIndex>;

/// Runs the command.
pub async fn run(options: Stream) -> Result<(), Failure> {
    let Stream { table, from, admin } = options;
    let (way, status) = Way::find(&admin).await?;
    let table = find(&status.state.catalog, &table)?;
    let topology = &status.state.topology;
    let serving = shards(topology, &table);
    let places = match &from {
        Some(token) => from_token(topology, token, &serving)?,
        None => now(&status, &serving).await?,
    };
    let mut reading =
        Reading { way: Arc::new(way), status, table, open: BTreeMap::new(), tasks: JoinSet::new() };
    let (sender, receiver) = channel(AHEAD);
    for (shard, after) in places {
        reading.begin(shard, after, &sender)?;
    }
    reading.tell_places()?;
    reading.run(&sender, receiver).await
}

/// What a shard's reader says.
struct Said {
    shard: ShardId,
    what: What,
}

enum What {
    Part(Changes),
    /// The next part begins after the last entry that was given whole.
    Again,
    /// The shard isn't there any more, as this says, and its log was read so far.
    Gone(LogIndex, Box<ClusterStatus>),
    Failed(Failure),
}

/// The logs that are read.
struct Reading {
    way: Arc<Way>,
    status: ClusterStatus,
    table: Arc<Table>,
    open: BTreeMap<ShardId, Open>,
    tasks: JoinSet<()>,
}

struct Open {
    lines: Lines,
    /// What comes after its seal, as long as it isn't known whether that is still the shard's.
    after: AfterSeal,
    position: LogIndex,
    /// The position that the last line of the shards has said.
    told: LogIndex,
    reader: tokio::task::AbortHandle,
}

impl Reading {
    /// Reads a shard's log.
    fn begin(&mut self, shard: ShardId, after: LogIndex, sender: &Sender<Said>) -> Result<(), Failure> {
        let topology = &self.status.state.topology;
        let source = topology.gtid_source(shard).ok_or_else(|| gone(topology, shard, after))?;
        let (way, sender) = (Arc::clone(&self.way), sender.clone());
        let reader = self.tasks.spawn(async move {
            let mut place = after;
            if let Err(failure) = read(&way, shard, &mut place, &sender).await {
                drop(sender.send(Said { shard, what: What::Failed(failure) }).await);
            }
        });
        let lines = Lines::new(source, Arc::clone(&self.table));
        let (seal, position, told) = (AfterSeal::default(), after, LogIndex(0));
        self.open.insert(shard, Open { lines, after: seal, position, told, reader });
        Ok(())
    }

    async fn run(mut self, sender: &Sender<Said>, mut receiver: Receiver<Said>) -> Result<(), Failure> {
        let mut looked = Instant::now();
        while !self.open.is_empty() {
            let said = tokio::time::timeout(BEAT, receiver.recv()).await;
            if let Ok(Some(Said { shard, what })) = said {
                match what {
                    What::Part(part) => self.take(shard, part).await?,
                    What::Again => {
                        self.open.entry(shard).and_modify(|open| {
                            open.lines.again();
                            open.after.again();
                        });
                    }
                    What::Gone(place, status) => {
                        if status.state.topology.epoch >= self.status.state.topology.epoch {
                            self.status = *status;
                        }
                        self.end(shard, place).await?;
                        self.follow_heirs(sender)?;
                    }
                    What::Failed(failure) => return Err(failure),
                }
            }
            if looked.elapsed() >= BEAT {
                looked = Instant::now();
                self.status = self.way.status().await?;
                self.follow_heirs(sender)?;
                // No more has to be heard again than what came since.
                if self.open.values().any(Open::is_further) && !self.open.values().any(Open::is_within) {
                    self.tell_places()?;
                }
            }
            self.open.retain(|_, open| {
                let goes_on = !open.lines.is_dropped();
                if !goes_on {
                    open.reader.abort();
                }
                goes_on
            });
        }
        Ok(())
    }

    async fn take(&mut self, shard: ShardId, part: Changes) -> Result<(), Failure> {
        // It has been replaced, and all that it had to say is said.
        let Some(open) = self.open.get_mut(&shard) else { return Ok(()) };
        let until = Instant::now() + NAMING;
        while open.lines.is_ahead(&part) && Instant::now() < until {
            self.status = self.way.status().await?;
            match self.status.state.catalog.table(self.table.id) {
                Some(table) => self.table = Arc::clone(table),
                None => break,
            }
            open.lines.describe(Arc::clone(&self.table));
            tokio::time::sleep(PAUSE).await;
        }
        if open.after.opens(&part) {
            // By now it's known whether the group serves as this shard again, or as another one.
            self.status = self.way.status().await?;
        }
        let retired = ended(&self.status.state.topology, shard).map(|(_, retired)| retired);
        let mut text = String::new();
        for part in open.after.take(part, retired) {
            for line in open.lines.take(&part)? {
                text += &line;
                text.push('\n');
            }
            open.position = part.position.max(open.position);
        }
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Print)
    }

    /// A shard is gone, and its log was read so far: nothing is missed if that was its end.
    async fn end(&mut self, shard: ShardId, place: LogIndex) -> Result<(), Failure> {
        // What was held back may be told now that it is known whose it is.
        self.take(shard, Changes { changes: Vec::new(), position: place, committed: place }).await?;
        let topology = &self.status.state.topology;
        let (open, ended) = (self.open.get(&shard), ended(topology, shard));
        match (open, ended) {
            (Some(open), Some((_, retired))) if open.position >= retired.last => Ok(()),
            (Some(open), _) => Err(gone(topology, shard, open.position)),
            (None, _) => Ok(()),
        }
    }

    /// Goes on with the heirs of shards that have said all.
    fn follow_heirs(&mut self, sender: &Sender<Said>) -> Result<(), Failure> {
        let topology = Arc::clone(&self.status.state.topology);
        let ended = |shard: &ShardId| ended(&topology, *shard).map(|(_, retired)| retired);
        // Who takes over from several begins when all of them have said their last word.
        let done: Vec<_> = self
            .open
            .iter()
            .filter(|(shard, open)| ended(shard).is_some_and(|retired| open.position >= retired.last))
            .map(|(shard, _)| *shard)
            .collect();
        let heirs: BTreeMap<ShardId, LogIndex> =
            done.iter().filter_map(ended).flat_map(|retired| retired.successors.iter().copied()).collect();
        let waits = |heir: &ShardId| {
            let others = self.open.keys().filter(|shard| !done.contains(shard)).filter_map(ended);
            others.flat_map(|retired| &retired.successors).any(|(successor, _)| successor == heir)
        };
        if done.is_empty() || heirs.keys().any(waits) {
            return Ok(());
        }
        for shard in done {
            if let Some(open) = self.open.remove(&shard) {
                open.reader.abort();
            }
        }
        // They may be replaced by now, too.
        for (heir, first) in heirs {
            for (shard, after) in place_of(&topology, heir, first)? {
                self.begin(shard, after, sender)?;
            }
        }
        self.tell_places()
    }

    /// Prints the line that tells where each shard is.
    fn tell_places(&mut self) -> Result<(), Failure> {
        let places = self.open.iter().map(|(shard, open)| (*shard, open.position)).collect();
        print(&shards_line(&self.status.state.topology, &places))?;
        self.open.values_mut().for_each(|open| open.told = open.position);
        Ok(())
    }
}

impl Open {
    /// Whether it is further than lines have said.
    fn is_further(&self) -> bool {
        self.position > self.told.max(self.lines.told())
    }

    /// Whether the lines of an entry aren't all there yet.
    fn is_within(&self) -> bool {
        self.lines.is_within()
    }
}

/// Holds back what a log says after its seal: it is another shard's, unless the seal is undone. Others tell of it then.
#[derive(Default)]
struct AfterSeal {
    seal: Option<LogIndex>,
    held: Vec<Changes>,
}

impl AfterSeal {
    /// Whether a part says that the group serves again.
    fn opens(&self, part: &Changes) -> bool {
        let says = |sealed| part.changes.iter().any(|change| is_sealed(&change.kind) == Some(sealed));
        says(false) && (self.seal.is_some() || says(true))
    }

    /// What may be told now of all that was said so far. `retired`: where the shard has ended.
    fn take(&mut self, mut part: Changes, retired: Option<&Retired>) -> Vec<Changes> {
        if let Some(retired) = retired {
            let all = std::mem::take(&mut self.held).into_iter().chain([part]);
            return all.map(|part| until_the_end(part, retired)).collect();
        }
        let changes = part.changes.iter().rev();
        let last = changes.filter_map(|change| Some((change.index, is_sealed(&change.kind)?))).next();
        let mut told = Vec::new();
        if let Some((index, is_sealed)) = last {
            self.seal = is_sealed.then_some(index);
            told = std::mem::take(&mut self.held);
        }
        let Some(seal) = self.seal else {
            told.push(part);
            return told;
        };
        let rest = part.changes.extract_if(.., |change| change.index > seal).collect();
        self.held.push(Changes { changes: rest, ..part });
        told.push(Changes { position: part.position.min(seal), ..part });
        told
    }

    /// An entry that wasn't given whole comes once more.
    fn again(&mut self) {
        let whole = self.held.iter().map(|part| part.position).max();
        for part in &mut self.held {
            part.changes.retain(|change| Some(change.index) <= whole);
        }
    }
}

/// Whether a change says that nobody is served any more, or that somebody is.
fn is_sealed(kind: &ChangeKind) -> Option<bool> {
    match kind {
        ChangeKind::Serving(Serving::Sealed(_) | Serving::Following) => Some(true),
        ChangeKind::Serving(Serving::Open) => Some(false),
        _ => None,
    }
}

/// What a part says of a shard's own life: what comes after its last entry is others'.
fn until_the_end(mut part: Changes, retired: &Retired) -> Changes {
    part.changes.retain(|change| change.index <= retired.last);
    part.position = part.position.min(retired.last);
    part
}

/// Reads a log for ever, from one replica after the other. Ends with what no other replica can mend.
async fn read(way: &Way, shard: ShardId, place: &mut LogIndex, sender: &Sender<Said>) -> Result<(), Failure> {
    loop {
        let status = way.status().await?;
        let topology = &status.state.topology;
        let Some(known) = topology.shards.get(&shard) else {
            // Nobody listens any more if that can't be sent.
            drop(sender.send(Said { shard, what: What::Gone(*place, Box::new(status)) }).await);
            return Ok(());
        };
        // Who follows has less to do.
        let mut nodes = known.replicas.clone();
        nodes.sort_by_key(|node| status.state.leaders.get(known.group) == Some(*node));
        let mut oldest: Option<WireError> = None;
        let mut others = false;
        for node in nodes.iter().filter_map(|node| topology.nodes.get(node)) {
            let client = NodeClient::connect_node(node.id, node.address.clone());
            match read_at(&client, shard, place, sender).await {
                Some(error) if error.sqlstate == SqlState::POSITION_FORGOTTEN => oldest = Some(error),
                Some(_) => others = true,
                None => return Ok(()),
            }
        }
        if let (Some(error), false) = (oldest, others) {
            return Err(Failure::Undecided(error.message, COPY_ANEW.to_owned()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads a log from one replica. Ends with its error, or with nothing if nobody listens any more.
async fn read_at(
    client: &NodeClient,
    shard: ShardId,
    place: &mut LogIndex,
    sender: &Sender<Said>,
) -> Option<WireError> {
    let silent = || WireError::new(SqlState::CONNECTION_FAILURE, "a replica says nothing");
    let request = ChangesRequest { shard, after: *place, beat: BEAT, layouts: true };
    let mut parts = match tokio::time::timeout(SILENCE, client.changes(request)).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error)) => return Some(error),
        Err(_) => return Some(silent()),
    };
    if sender.send(Said { shard, what: What::Again }).await.is_err() {
        return None;
    }
    loop {
        match tokio::time::timeout(SILENCE, parts.next()).await {
            Ok(Some(Ok(part))) => {
                let position = part.position;
                if sender.send(Said { shard, what: What::Part(part) }).await.is_err() {
                    return None;
                }
                *place = position.max(*place);
            }
            Ok(Some(Err(error))) => return Some(error),
            Ok(None) | Err(_) => return Some(silent()),
        }
    }
}

fn find(catalog: &Catalog, name: &str) -> Result<Arc<Table>, Failure> {
    let unknown = || {
        let message = format!("table \"{name}\" does not exist");
        Failure::Cluster(WireError::new(SqlState::UNDEFINED_TABLE, message))
    };
    catalog.table_named(name).cloned().ok_or_else(unknown)
}

/// The shards whose logs have a table's changes, each once.
fn shards(topology: &Topology, table: &Table) -> BTreeSet<ShardId> {
    let of = |number| topology.keyspaces.get(number).map_or(&[][..], |keyspace| &keyspace.shards);
    match &table.placement {
        Placement::Sharded { keyspace, .. } | Placement::Single { keyspace } => {
            of(keyspace).iter().copied().collect()
        }
        // All have the same.
        Placement::Reference => topology.keyspaces.keys().flat_map(of).copied().take(1).collect(),
    }
}

/// Where the shards are now.
async fn now(status: &ClusterStatus, shards: &BTreeSet<ShardId>) -> Result<Places, Failure> {
    let topology = &status.state.topology;
    let mut places = Places::new();
    for shard in shards.iter().filter_map(|shard| topology.shards.get(shard)) {
        let name = topology.shard_name(shard.id);
        let leader = status.state.leaders.get(shard.group).and_then(|node| topology.nodes.get(&node));
        let leader = leader.ok_or_else(|| refused(format!("{name} has no leader"), "try again"))?;
        let replicas = NodeClient::connect_node(leader.id, leader.address.clone()).replicas().await?;
        let of_shard = replicas.iter().find(|replica| replica.group == shard.group);
        let replica = of_shard.ok_or_else(|| refused(format!("{name} is moving"), "try again"))?;
        places.insert(shard.id, replica.committed);
    }
    Ok(places)
}

/// Where a token says that somebody was, shard by shard.
fn from_token(topology: &Topology, token: &GtidSet, serving: &BTreeSet<ShardId>) -> Result<Places, Failure> {
    let mut places = Places::new();
    for (source, position) in token.iter() {
        if position.is_unheard {
            return Err(refused(format!("nobody knows what {source}:? stands for"), "name a position"));
        }
        for (shard, after) in place(topology, source, position.index)? {
            if covers(topology, shard, serving) {
                let known = places.entry(shard).or_insert(after);
                *known = after.min(*known);
            }
        }
    }
    // A shard that serves follows from one that is named, if it isn't named itself.
    let heirs: BTreeSet<_> = places.keys().flat_map(|shard| topology.heirs(*shard)).collect();
    if let Some(missing) = serving.iter().find(|shard| !heirs.contains(shard)) {
        let name = topology.shard_name(*missing);
        return Err(refused(
            format!("--from says nothing of {name}"),
            "a token has a position for each of the table's shards: join those of the last lines by commas",
        ));
    }
    Ok(places)
}

fn covers(topology: &Topology, shard: ShardId, serving: &BTreeSet<ShardId>) -> bool {
    topology.heirs(shard).iter().any(|heir| serving.contains(heir))
}

/// What comes after a position of a log: in that log, if there is more of it, else in those that it went on in.
fn place(topology: &Topology, source: &GtidSource, index: LogIndex) -> Result<Places, Failure> {
    let retired = topology.lineage.get(source);
    if let Some(retired) = retired.filter(|retired| index >= retired.last) {
        let mut places = Places::new();
        for (successor, first) in &retired.successors {
            places.extend(place_of(topology, *successor, *first)?);
        }
        return Ok(places);
    }
    let there = topology.shards.keys().find(|shard| topology.gtid_source(**shard).as_ref() == Some(source));
    match there.or(retired.map(|retired| &retired.shard)) {
        Some(shard) => Ok([(*shard, index)].into()),
        None => Err(refused(format!("there is no log {source}"), COPY_ANEW)),
    }
}

/// The same for a position of a shard, which may be gone.
fn place_of(topology: &Topology, shard: ShardId, index: LogIndex) -> Result<Places, Failure> {
    // Of what was dropped nothing comes.
    source(topology, shard).map_or_else(|| Ok(Places::new()), |source| place(topology, &source, index))
}

/// The log of a shard, which may be gone.
fn source(topology: &Topology, shard: ShardId) -> Option<GtidSource> {
    let gone = || ended(topology, shard).map(|(source, _)| source.clone());
    topology.gtid_source(shard).or_else(gone)
}

/// How a shard's log ended, if it has, and its name.
fn ended(topology: &Topology, shard: ShardId) -> Option<(&GtidSource, &Retired)> {
    topology.lineage.iter().find(|(_, retired)| retired.shard == shard)
}

/// Nobody has a log any more, and something may have been missed.
fn gone(topology: &Topology, shard: ShardId, after: LogIndex) -> Failure {
    let name = source(topology, shard).map(|source| format!("{}/{}", source.keyspace, source.shard));
    let name = name.unwrap_or_else(|| topology.shard_name(shard));
    let message = format!("what comes after {after} of {name} is gone with the shard");
    Failure::Undecided(message, COPY_ANEW.to_owned())
}

/// The line that tells where each shard is.
fn shards_line(topology: &Topology, places: &Places) -> String {
    #[derive(Serialize)]
    struct Line {
        gtid: String,
        op: &'static str,
        last: bool,
    }
    let mut set = GtidSet::default();
    for (shard, position) in places {
        if let Some(source) = source(topology, *shard) {
            set.raise(source, *position);
        }
    }
    let line = Line { gtid: set.to_string(), op: "shards", last: true };
    serde_json::to_string(&line).expect("names can be written as JSON")
}

fn refused(message: String, hint: &str) -> Failure {
    let error = WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
    Failure::Cluster(error.with_hint(hint))
}

fn print(line: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{line}").map_err(Failure::Print)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::services::Change;

    fn part(changes: Vec<(u64, Option<Serving>)>, position: u64) -> Changes {
        let kind =
            |serving: Option<Serving>| serving.map_or(ChangeKind::Layouts(vec![]), ChangeKind::Serving);
        let change = |(index, serving)| Change { index: LogIndex(index), kind: kind(serving) };
        let changes = changes.into_iter().map(change).collect();
        Changes { changes, position: LogIndex(position), committed: LogIndex(99) }
    }

    fn rows(indexes: &[u64], position: u64) -> Changes {
        part(indexes.iter().map(|index| (*index, None)).collect(), position)
    }

    /// The entries that are told, and how far that is.
    fn told(parts: &[Changes]) -> (Vec<u64>, u64) {
        let indexes = parts.iter().flat_map(|part| &part.changes).map(|change| change.index.0).collect();
        (indexes, parts.iter().map(|part| part.position.0).max().unwrap_or(0))
    }

    #[test]
    fn what_comes_after_a_seal_waits_until_it_is_known_whose_it_is() {
        let sealed = || Some(Serving::Sealed(None));
        let mut after = AfterSeal::default();
        assert_eq!(told(&after.take(rows(&[4, 5], 5), None)), (vec![4, 5], 5));
        assert_eq!(
            told(&after.take(part(vec![(6, None), (6, sealed()), (8, None)], 9), None)),
            (vec![6, 6], 6)
        );
        assert_eq!(told(&after.take(rows(&[10, 11], 10), None)), (vec![], 6));
        // What wasn't whole comes again.
        after.again();
        assert_eq!(told(&after.take(rows(&[11], 11), None)), (vec![], 6));
        let open = part(vec![(12, Some(Serving::Open)), (13, None)], 13);
        assert!(after.opens(&open));
        assert_eq!(told(&after.take(open, None)), (vec![8, 10, 11, 12, 13], 13));
        assert!(!after.opens(&part(vec![(14, Some(Serving::Open))], 14)), "it was open");
        // What is sealed is replaced: nothing after that is its own.
        after.take(part(vec![(15, sealed())], 15), None);
        after.take(rows(&[16], 17), None);
        let retired = Retired { shard: ShardId(1), last: LogIndex(15), successors: vec![] };
        let last = part(vec![(18, Some(Serving::Open)), (19, None)], 19);
        assert_eq!(told(&after.take(last, Some(&retired))), (vec![], 15));
    }
}
