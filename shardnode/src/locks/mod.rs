//! The lock table of one shard.
//!
//! In come transactions that want locks, wait for them, and end; out goes who has them, who waits for whom, and who
//! must give up because several wait for each other in a circle. A lock is on a row, on a value of a unique key, or on a
//! table; a transaction never waits for itself, and takes a stronger lock on what it has already without letting go.
//!
//! Who finds no conflicting holder has a row's lock at once, also while others queue for a stronger one, as in PostgreSQL;
//! those who queue are served in their order. So who waits for a row waits for its holders alone, and nobody is in a
//! circle who has nothing that another wants. For a table everyone queues.
//!
//! A transaction that has many locks has its further ones of rows and unique keys as hashes ([`bulk`]), as long as nobody
//! else has or wants the same. Who comes upon one makes it a lock like any other, and waits for that.
//!
//! It must never know a connection, a thread, a clock, or what the keys mean.

mod bulk;
#[cfg(test)]
mod tests;

use bulk::Bulk;
use foldhash::HashMap;
use proto::services::RowLock;
use proto::{TableId, TransactionId};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// So many locks of a transaction are kept as they are, before further ones become hashes.
const PLAIN_LOCKS: usize = 10_000;

/// What is locked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Resource {
    /// In which table.
    pub table: TableId,
    /// What of it.
    pub part: Part,
}

/// A part of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// All of it.
    Table,
    /// The row with this primary key.
    Row(Box<[u8]>),
    /// A value of this unique key, whether or not a row has it.
    Unique(u32, Box<[u8]>),
    /// The keys of the row with this primary key: its transaction deletes it, or gives it others. It has the row locked,
    /// so nobody ever waits for this.
    Keys(Box<[u8]>),
    /// The row with this primary key: its transaction deletes it here and adds it on another shard. Nobody ever waits for
    /// this, either.
    Moved(Box<[u8]>),
}

/// A row that a transaction waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AwaitedRow {
    pub table: TableId,
    pub key: Box<[u8]>,
    /// Whether it keeps its key, whatever becomes of those who have it.
    pub stays: bool,
    /// Whether it may go to another shard.
    pub moves: bool,
}

/// How strong a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Mode {
    /// On a row or a unique key.
    Row(RowLock),
    /// On a table: rows in it are locked.
    Shared,
    /// On a table: nobody else has a lock in it.
    Exclusive,
}

impl Mode {
    fn conflicts(self, other: Mode) -> bool {
        match (self, other) {
            (Mode::Row(one), Mode::Row(other)) => one.conflicts(other),
            (Mode::Shared, Mode::Shared) => false,
            _ => true,
        }
    }
}

impl fmt::Display for Mode {
    /// PostgreSQL's clauses, where it has one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Row(RowLock::KeyShare) => "KEY SHARE",
            Mode::Row(RowLock::Share) => "SHARE",
            Mode::Row(RowLock::NoKeyUpdate) => "NO KEY UPDATE",
            Mode::Row(RowLock::Update) => "UPDATE",
            Mode::Shared => "SHARE",
            Mode::Exclusive => "EXCLUSIVE",
        })
    }
}

/// All locks of a shard.
#[derive(Debug)]
pub(crate) struct Locks {
    keys: HashMap<Arc<Resource>, Key>,
    owners: BTreeMap<TransactionId, Owner>,
    /// Those that are kept as hashes.
    many: BTreeMap<TableId, Vec<Many>>,
    /// After how many locks a transaction's further ones are.
    plain: usize,
    waiting: usize,
}

/// What a transaction has locked in one mode in one table, beside what it has as it is.
#[derive(Debug)]
struct Many {
    owner: TransactionId,
    mode: RowLock,
    bulk: Bulk,
}

impl Default for Locks {
    fn default() -> Self {
        let (keys, owners, many) = Default::default();
        Self { keys, owners, many, plain: PLAIN_LOCKS, waiting: 0 }
    }
}

/// Who has one thing locked, and who would like to.
#[derive(Debug, Default)]
struct Key {
    holders: Vec<(TransactionId, Mode)>,
    queue: VecDeque<(TransactionId, Mode)>,
}

#[derive(Debug, Default)]
struct Owner {
    begun: u64,
    /// In their order they are let go, and the simulator repeats the order of std's maps alone.
    held: std::collections::HashMap<Arc<Resource>, Mode>,
    /// How the locks came together, so that they can be taken back.
    log: Vec<Taken>,
    wait: Option<Wait>,
}

#[derive(Debug)]
struct Taken {
    statement: u32,
    resource: Arc<Resource>,
    /// What the transaction had of it before.
    before: Option<Mode>,
}

#[derive(Debug)]
struct Wait {
    statement: u32,
    resource: Arc<Resource>,
    mode: Mode,
}

/// What became of others when someone began to wait, or ceased to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// They have what they waited for.
    pub granted: Vec<TransactionId>,
    /// They wait no more, and don't have it.
    pub victims: Vec<Deadlock>,
}

/// A transaction that had to give up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Deadlock {
    /// It was the youngest of those who waited for each other.
    pub victim: TransactionId,
    /// Who waited for whom, a line for each.
    pub detail: String,
}

/// Who wants a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Party {
    /// The transaction.
    pub id: TransactionId,
    /// When it began.
    pub begun: u64,
    /// Its statement.
    pub statement: u32,
}

impl Key {
    /// Those for whom who stands at this place of the queue must wait, too.
    fn before(&self, resource: &Resource, place: usize) -> impl Iterator<Item = &(TransactionId, Mode)> {
        self.queue.iter().take(if resource.part == Part::Table { place } else { 0 })
    }
}

impl Locks {
    /// How many locks there are, without those that are hashes.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many there are that are hashes.
    pub fn hashed(&self) -> usize {
        self.many.values().flatten().map(|many| many.bulk.len()).sum()
    }

    /// Whether nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.many.is_empty()
    }

    /// How many transactions wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether someone has a lock in the table.
    pub fn is_in_use(&self, table: TableId) -> bool {
        self.keys.get(&whole(table)).is_some_and(|key| !key.holders.is_empty())
    }

    /// The other transactions that have a lock in the table.
    pub fn others_in(&self, table: TableId, than: TransactionId) -> Vec<TransactionId> {
        let holders = self.keys.get(&whole(table)).map(|key| key.holders.as_slice()).unwrap_or_default();
        holders.iter().map(|(holder, _)| *holder).filter(|holder| *holder != than).collect()
    }

    /// Rows of a table that others are about to delete, or to give another key.
    pub fn freed_by_others(&self, table: TableId, than: TransactionId) -> Vec<Box<[u8]>> {
        let mut rows = Vec::new();
        for other in self.others_in(table, than) {
            for (resource, _) in self.held(other).filter(|(resource, _)| resource.table == table) {
                if let Part::Keys(key) = &resource.part {
                    rows.push(key.clone());
                }
            }
        }
        rows
    }

    /// The locks of a transaction that are hashes, in an order that doesn't change while it takes none.
    pub fn hashes(&self, id: TransactionId) -> impl Iterator<Item = (TableId, RowLock, &[u64])> {
        let all = self.many.iter().flat_map(|(table, many)| many.iter().map(|many| (*table, many)));
        let own = all.filter(move |(_, many)| many.owner == id);
        own.map(|(table, many)| (table, many.mode, many.bulk.hashes()))
    }

    /// Takes up locks that were hashes elsewhere.
    pub fn restore(&mut self, party: Party, table: TableId, mode: RowLock, hashes: &[u64]) {
        let bulk = self.many_of(party.id, table, mode);
        hashes.iter().for_each(|hash| bulk.add(party.statement, *hash));
    }

    /// Whether a transaction has a lock, in whatever mode.
    pub fn has(&self, id: TransactionId, resource: &Resource) -> bool {
        self.owners.get(&id).is_some_and(|owner| owner.held.contains_key(resource))
            || self.hashed_for(resource).any(|(owner, ..)| owner == id)
    }

    /// What a transaction has locked, as far as it isn't hashes.
    pub fn held(&self, id: TransactionId) -> impl Iterator<Item = (&Resource, Mode)> {
        let held = self.owners.get(&id).into_iter().flat_map(|owner| &owner.held);
        held.map(|(resource, mode)| (&**resource, *mode))
    }

    /// Takes a lock, unless another transaction has one that conflicts. Says whether it was taken.
    pub fn take(&mut self, party: Party, resource: &Resource, mode: Mode) -> bool {
        if let Some(held) = self.owners.get(&party.id).and_then(|owner| owner.held.get(resource))
            && *held >= mode
        {
            return true;
        }
        let has =
            |(owner, held, _): (TransactionId, RowLock, u32)| owner == party.id && Mode::Row(held) >= mode;
        if self.hashed_for(resource).any(has) {
            return true;
        }
        if self.is_blocked(party.id, resource, mode) || self.is_awaited(party.id, resource, mode) {
            return false;
        }
        if let Some(mode) = self.is_one_of_many(party.id, resource, mode) {
            let hash = bulk::hash(resource);
            self.many_of(party.id, resource.table, mode).add(party.statement, hash);
            return true;
        }
        let resource = self.shared(resource);
        self.hold(party, resource, mode);
        true
    }

    fn shared(&self, resource: &Resource) -> Arc<Resource> {
        match self.keys.get_key_value(resource) {
            Some((resource, _)) => Arc::clone(resource),
            None => Arc::new(resource.clone()),
        }
    }

    /// Whether another transaction has a lock that conflicts.
    pub fn is_blocked(&self, id: TransactionId, resource: &Resource, mode: Mode) -> bool {
        let holders = self.keys.get(resource).map(|key| key.holders.as_slice()).unwrap_or_default();
        holders.iter().any(|(holder, held)| *holder != id && mode.conflicts(*held))
            || self
                .hashed_for(resource)
                .any(|(owner, held, _)| owner != id && mode.conflicts(Mode::Row(held)))
    }

    /// Who has it, or something with the same hash, in what mode and by which statement.
    fn hashed_for<'a>(
        &'a self,
        resource: &Resource,
    ) -> impl Iterator<Item = (TransactionId, RowLock, u32)> + use<'a> {
        let many = if self.many.is_empty() { None } else { self.many.get(&resource.table) };
        let hash = many.map_or(0, |_| bulk::hash(resource));
        let found = move |many: &Many| many.bulk.statement(hash).map(|by| (many.owner, many.mode, by));
        many.into_iter().flatten().filter_map(found)
    }

    fn many_of(&mut self, id: TransactionId, table: TableId, mode: RowLock) -> &mut Bulk {
        let all = self.many.entry(table).or_default();
        let at = all.iter().position(|many| many.owner == id && many.mode == mode).unwrap_or(all.len());
        if at == all.len() {
            all.push(Many { owner: id, mode, bulk: Bulk::default() });
        }
        &mut all[at].bulk
    }

    /// Makes what transactions have of this as hashes locks like any other.
    fn unfold(&mut self, resource: &Arc<Resource>, of: impl Fn(TransactionId) -> bool) {
        let mut found: Vec<_> = self.hashed_for(resource).filter(|(owner, ..)| of(*owner)).collect();
        found.retain(|(id, ..)| !self.owners.get(id).is_some_and(|owner| owner.held.contains_key(resource)));
        found.sort_by_key(|(_, mode, statement)| (*statement, *mode));
        for (id, mode, statement) in found {
            let begun = self.owners.get(&id).map_or(0, |owner| owner.begun);
            self.hold_plainly(Party { id, begun, statement }, Arc::clone(resource), Mode::Row(mode));
        }
    }

    /// Whether a lock is to be one of many.
    fn is_one_of_many(&self, id: TransactionId, resource: &Resource, mode: Mode) -> Option<RowLock> {
        let Mode::Row(mode @ (RowLock::NoKeyUpdate | RowLock::Update)) = mode else { return None };
        let is_one = matches!(resource.part, Part::Row(_) | Part::Unique(..))
            && self.owners.get(&id).map_or(0, |owner| owner.held.len()) >= self.plain
            && !self.keys.contains_key(resource);
        is_one.then_some(mode)
    }

    /// Whether someone waits for the whole table in a mode that conflicts. Else who comes for its rows, one after the
    /// other, could keep him waiting for ever.
    fn is_awaited(&self, id: TransactionId, resource: &Resource, mode: Mode) -> bool {
        let queue = self.keys.get(resource).map(|key| &key.queue).filter(|_| resource.part == Part::Table);
        queue.into_iter().flatten().any(|(waiter, wanted)| *waiter != id && mode.conflicts(*wanted))
    }

    fn hold(&mut self, party: Party, resource: Arc<Resource>, mode: Mode) {
        self.unfold(&resource, |owner| owner == party.id);
        self.hold_plainly(party, resource, mode);
    }

    fn hold_plainly(&mut self, party: Party, resource: Arc<Resource>, mode: Mode) {
        let key = self.keys.entry(Arc::clone(&resource)).or_default();
        match key.holders.iter_mut().find(|(holder, _)| *holder == party.id) {
            Some((_, held)) => *held = (*held).max(mode),
            None => key.holders.push((party.id, mode)),
        }
        let owner = self.owners.entry(party.id).or_default();
        owner.begun = party.begun;
        let before = owner.held.get(&resource).copied();
        owner.held.insert(Arc::clone(&resource), before.map_or(mode, |before| before.max(mode)));
        // What was a hash comes among those of its time.
        let at =
            owner.log.iter().rposition(|taken| taken.statement <= party.statement).map_or(0, |at| at + 1);
        owner.log.insert(at, Taken { statement: party.statement, resource, before });
    }

    /// Queues a transaction for a lock that it couldn't take. If that closes a circle of transactions that wait for each
    /// other, the youngest of them gives up; it may be this one.
    pub fn wait(&mut self, party: Party, resource: &Resource, mode: Mode) -> Settled {
        let resource = self.shared(resource);
        self.unfold(&resource, |_| true);
        let key = self.keys.get_mut(&resource).expect("who couldn't take a lock met its holder");
        key.queue.push_back((party.id, mode));
        let owner = self.owners.entry(party.id).or_default();
        owner.begun = party.begun;
        debug_assert!(owner.wait.is_none(), "a transaction waits for one thing at a time");
        owner.wait = Some(Wait { statement: party.statement, resource, mode });
        self.waiting += 1;
        let mut settled = Settled::default();
        // What waits in a circle now, waits for this one: there was no circle before.
        while let Some(circle) = self.circle(party.id) {
            let victim =
                *circle.iter().max_by_key(|id| (self.owners[id].begun, **id)).expect("a circle has members");
            settled.victims.push(Deadlock { victim, detail: self.describe(&circle) });
            settled.granted.extend(self.cancel(victim));
        }
        settled
    }

    /// Whether the transaction waits.
    pub fn is_waiting(&self, id: TransactionId) -> bool {
        self.owners.get(&id).is_some_and(|owner| owner.wait.is_some())
    }

    /// The row that a transaction waits for, if it is one.
    pub fn awaited_row(&self, id: TransactionId) -> Option<AwaitedRow> {
        let resource = &self.owners.get(&id)?.wait.as_ref()?.resource;
        let Part::Row(key) = &resource.part else { return None };
        let have = |part: Part| {
            let key = self.keys.get(&Resource { table: resource.table, part });
            key.is_some_and(|key| key.holders.iter().any(|(holder, _)| *holder != id))
        };
        let (stays, moves) = (!have(Part::Keys(key.clone())), have(Part::Moved(key.clone())));
        Some(AwaitedRow { table: resource.table, key: key.clone(), stays, moves })
    }

    /// The transactions for which this one waits.
    pub fn waits_for(&self, id: TransactionId) -> Vec<TransactionId> {
        let Some(wait) = self.owners.get(&id).and_then(|owner| owner.wait.as_ref()) else {
            return Vec::new();
        };
        let key = &self.keys[&wait.resource];
        let place = key.queue.iter().position(|(other, _)| *other == id).unwrap_or(0);
        let mut found: Vec<TransactionId> = Vec::new();
        for (other, mode) in key.holders.iter().chain(key.before(&wait.resource, place)) {
            if *other != id && wait.mode.conflicts(*mode) && !found.contains(other) {
                found.push(*other);
            }
        }
        found
    }

    /// A circle of waiting transactions with this one in it, in the order in which each waits for the next.
    fn circle(&self, start: TransactionId) -> Option<Vec<TransactionId>> {
        let mut path = vec![start];
        let mut open = vec![self.waits_for(start)];
        let mut seen = HashSet::from([start]);
        while let Some(next) = open.last_mut() {
            match next.pop() {
                Some(id) if id == start => return Some(path),
                Some(id) if seen.insert(id) => {
                    path.push(id);
                    open.push(self.waits_for(id));
                }
                Some(_) => {}
                None => {
                    open.pop();
                    path.pop();
                }
            }
        }
        None
    }

    fn describe(&self, circle: &[TransactionId]) -> String {
        let mut lines = String::new();
        for (place, id) in circle.iter().enumerate() {
            let Some(wait) = &self.owners[id].wait else { continue };
            let of = match &wait.resource.part {
                Part::Table => "a table",
                Part::Row(_) | Part::Keys(_) | Part::Moved(_) => "a row",
                Part::Unique(..) => "a unique key",
            };
            let by = circle[(place + 1) % circle.len()];
            let separator = if lines.is_empty() { "" } else { "\n" };
            write!(
                lines,
                "{separator}Transaction {id} waits for {} lock on {of}; blocked by transaction {by}.",
                wait.mode
            )
            .expect("writing to a string can't fail");
        }
        lines
    }

    /// The transaction waits no more. Gives those who have got a lock because of that.
    pub fn cancel(&mut self, id: TransactionId) -> Vec<TransactionId> {
        let Some(wait) = self.owners.get_mut(&id).and_then(|owner| owner.wait.take()) else {
            return Vec::new();
        };
        self.waiting -= 1;
        if let Some(key) = self.keys.get_mut(&wait.resource) {
            key.queue.retain(|(waiter, _)| *waiter != id);
        }
        let mut granted = Vec::new();
        self.serve(&wait.resource, &mut granted);
        self.forget(id);
        granted
    }

    /// Takes back what the transaction has locked by statements after this one, its wait included. Gives those who have
    /// got a lock because of that.
    pub fn release_after(&mut self, id: TransactionId, statement: u32) -> Vec<TransactionId> {
        let waits = |owner: &Owner| owner.wait.as_ref().is_some_and(|wait| wait.statement > statement);
        let mut granted = if self.owners.get(&id).is_some_and(waits) { self.cancel(id) } else { Vec::new() };
        self.prune(|many| {
            if many.owner == id {
                many.bulk.release_after(statement);
            }
            many.bulk.len() > 0
        });
        let mut freed = Vec::new();
        let Some(owner) = self.owners.get_mut(&id) else { return granted };
        while owner.log.last().is_some_and(|taken| taken.statement > statement) {
            let Taken { resource, before, .. } = owner.log.pop().expect("it was just seen");
            let key = self.keys.get_mut(&resource).expect("what is held is there");
            match before {
                Some(before) => {
                    owner.held.insert(Arc::clone(&resource), before);
                    key.holders
                        .iter_mut()
                        .filter(|(holder, _)| *holder == id)
                        .for_each(|(_, held)| *held = before);
                }
                None => {
                    owner.held.remove(&resource);
                    key.holders.retain(|(holder, _)| *holder != id);
                }
            }
            freed.push(resource);
        }
        for resource in freed {
            self.serve(&resource, &mut granted);
        }
        self.forget(id);
        granted
    }

    /// The statement, which is run again, needs of the rows and keys that it has locked these alone, in this mode, whatever
    /// it was about to do to the others. What it has as hashes stays. Gives those who have got a lock because of that, and
    /// those who are to look again: they wait for a key that turned out to be that of a row which stays.
    pub fn confine(&mut self, party: Party, needs: impl Fn(&Resource) -> Option<Mode>) -> Vec<TransactionId> {
        let (id, statement) = (party.id, party.statement);
        let Some(owner) = self.owners.get_mut(&id) else { return Vec::new() };
        let from = owner.log.partition_point(|taken| taken.statement < statement);
        let (mut seen, mut lowered) = (HashSet::new(), Vec::new());
        for taken in owner.log.split_off(from) {
            let resource = &taken.resource;
            if resource.part == Part::Table || seen.contains(resource) {
                // If it's lowered, it has what it needs already.
                if !lowered.contains(resource) {
                    owner.log.push(taken);
                }
                continue;
            }
            seen.insert(Arc::clone(resource));
            let mode = taken.before.max(needs(resource));
            if mode >= owner.held.get(resource).copied() {
                owner.log.push(taken);
                continue;
            }
            let resource = Arc::clone(resource);
            let key = self.keys.get_mut(&resource).expect("what is held is there");
            match mode {
                Some(mode) => {
                    owner.held.insert(Arc::clone(&resource), mode);
                    key.holders
                        .iter_mut()
                        .filter(|(holder, _)| *holder == id)
                        .for_each(|(_, held)| *held = mode);
                }
                None => {
                    owner.held.remove(&resource);
                    key.holders.retain(|(holder, _)| *holder != id);
                }
            }
            if mode > taken.before {
                owner.log.push(taken);
            }
            lowered.push(resource);
        }
        let mut granted = Vec::new();
        for resource in lowered {
            self.serve(&resource, &mut granted);
            let queue = self.keys.get(&resource).map(|key| key.queue.clone()).unwrap_or_default();
            for (waiter, _) in queue.into_iter().filter(|(_, mode)| *mode == Mode::Row(RowLock::Update)) {
                granted.extend(self.cancel(waiter));
                granted.push(waiter);
            }
        }
        self.forget(id);
        granted
    }

    /// Ends the transaction. Gives those who have got a lock because of that.
    pub fn release(&mut self, id: TransactionId) -> Vec<TransactionId> {
        let mut granted = self.cancel(id);
        self.prune(|many| many.owner != id);
        let Some(owner) = self.owners.remove(&id) else { return granted };
        for resource in owner.held.keys() {
            let key = self.keys.get_mut(resource).expect("what is held is there");
            key.holders.retain(|(holder, _)| *holder != id);
            self.serve(resource, &mut granted);
        }
        granted
    }

    fn prune(&mut self, mut stays: impl FnMut(&mut Many) -> bool) {
        self.many.retain(|_, all| {
            all.retain_mut(&mut stays);
            !all.is_empty()
        });
    }

    /// Gives the lock to those whose turn it is, and forgets what nobody wants.
    fn serve(&mut self, resource: &Arc<Resource>, granted: &mut Vec<TransactionId>) {
        let Some(key) = self.keys.get(resource) else { return };
        if key.queue.is_empty() {
            if key.holders.is_empty() {
                self.keys.remove(resource);
            }
            return;
        }
        let mut place = 0;
        while let Some(key) = self.keys.get_mut(resource)
            && let Some((id, mode)) = key.queue.get(place).copied()
        {
            let conflicts = |(other, held): &(TransactionId, Mode)| *other != id && mode.conflicts(*held);
            if key.holders.iter().chain(key.before(resource, place)).any(conflicts) {
                place += 1;
                continue;
            }
            key.queue.remove(place);
            let owner = self.owners.get_mut(&id).expect("who waits is known");
            let wait = owner.wait.take().expect("who queues waits");
            self.waiting -= 1;
            let party = Party { id, begun: owner.begun, statement: wait.statement };
            self.hold(party, Arc::clone(resource), mode);
            granted.push(id);
        }
    }

    fn forget(&mut self, id: TransactionId) {
        if self.owners.get(&id).is_some_and(|owner| owner.held.is_empty() && owner.wait.is_none()) {
            self.owners.remove(&id);
        }
    }
}

fn whole(table: TableId) -> Resource {
    Resource { table, part: Part::Table }
}

impl Resource {
    /// The table as a whole.
    pub fn table(table: TableId) -> Self {
        whole(table)
    }
}
