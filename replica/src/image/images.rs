//! All images of one node, made, offered and received, as one state machine.
//!
//! Wants, offers, packets and the time go in; [`Images::step`] does one slice of work; packets to send and [`Event`]s
//! for Raft come out. Nothing here waits, and an error of a file harms nothing but the one image: it is told in the log
//! with the file's name, and tried again after a while.

use super::fetch::{Outcome, Pace, Source};
use super::{Fetching, Image, ImageChunk, ImageId, ImageRequest, Making, Serving, file};
use crate::error::ReplicaError;
use crate::packet::Packet;
use proto::{GroupId, NodeId};
use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;

/// More images than this aren't received at once: each has its window in memory.
const MOST_FETCHES: usize = 4;
/// How many periods of patience a receiver or sender may be silent.
const STALL_FACTOR: u32 = 5;
/// How many periods of patience an image is kept that nobody asks for.
const KEEP_FACTOR: u32 = 60;

/// How images travel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The bytes of one chunk.
    pub chunk_bytes: u32,
    /// How many chunks may be on their way to a receiver.
    pub window: usize,
    /// How many bytes all receivers together are sent in a second.
    pub bytes_per_second: u64,
    /// After how long a request is sent again. Silences and retries are multiples of it.
    pub patience: Duration,
}

/// What Raft is to be told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// An image can be offered.
    Made(GroupId, Image),
    /// It can't any more.
    Gone(GroupId, ImageId),
    /// This node doesn't ask any more for what it was offered: it has it, or it must be offered something again.
    Silent(GroupId, NodeId),
    /// An image was received.
    Complete(GroupId, Received),
}

/// An image that was received.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Received {
    pub source: Source,
    /// Where it is, synced.
    pub path: PathBuf,
}

/// What [`Images::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A slice of work; there may be more.
    Worked,
    /// Nothing. There will be something then, or when something goes in.
    IdleUntil(Option<Duration>),
}

/// All images of one node.
pub(crate) struct Images {
    settings: Settings,
    groups: BTreeMap<GroupId, Group>,
    making: Option<(GroupId, Making)>,
    /// The group whose turn was last.
    turn: GroupId,
    /// How many bytes may be sent now, and when that was reckoned.
    credit: u64,
    reckoned: Duration,
    packets: Vec<(NodeId, Packet)>,
    events: Vec<Event>,
}

struct Group {
    serving: Serving,
    /// Which member needs an image, and how old it may be.
    wanted: Option<(u64, u64)>,
    /// Nothing is made before this time.
    made_after: Duration,
    fetch: Fetch,
    /// What was offered while something else was being received.
    other: Option<Source>,
    /// Nothing is received before this time.
    fetched_after: Duration,
    /// What an earlier process received is removed then, if nobody offers it again.
    left_until: Option<Duration>,
}

enum Fetch {
    Nothing,
    /// It waits for others to end, and says from time to time that it's still there.
    Queued(Box<Source>, Duration),
    Active(Box<Fetching>),
    /// It was handed over.
    Complete(Box<Received>),
}

impl Images {
    pub fn new(settings: Settings, now: Duration) -> Self {
        Self {
            settings,
            groups: BTreeMap::new(),
            making: None,
            turn: GroupId(0),
            credit: 0,
            reckoned: now,
            packets: Vec::new(),
            events: Vec::new(),
        }
    }

    /// How images travel.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    fn stall(&self) -> Duration {
        self.settings.patience * STALL_FACTOR
    }

    fn keep(&self) -> Duration {
        self.settings.patience * KEEP_FACTOR
    }

    fn pace(&self) -> Pace {
        let Settings { chunk_bytes, window, patience, .. } = self.settings;
        Pace { chunk_bytes, window, patience }
    }

    /// Takes up a group, whose files are in this directory.
    pub fn add(&mut self, group: GroupId, directory: PathBuf, now: Duration) {
        if let Err(error) = file::clean_made(&directory) {
            tracing::warn!(group = group.0, "an old image was not removed: {error}");
        }
        let left_until = Some(now + self.keep());
        self.groups.insert(
            group,
            Group {
                serving: Serving::new(directory),
                wanted: None,
                made_after: Duration::ZERO,
                fetch: Fetch::Nothing,
                other: None,
                fetched_after: Duration::ZERO,
                left_until,
            },
        );
    }

    /// Lets go of a group. Its files are another's to remove.
    pub fn remove(&mut self, group: GroupId) {
        self.groups.remove(&group);
        if self.making.as_ref().is_some_and(|(making, _)| *making == group) {
            self.making = None;
        }
    }

    /// A member of the group needs an image that has all up to `least`.
    pub fn want(&mut self, group: GroupId, member: u64, least: u64) {
        if let Some(group) = self.groups.get_mut(&group)
            && !group.serving.has(member, least)
        {
            group.wanted = Some((member, least));
        }
    }

    /// An image was offered to a node.
    pub fn offered(&mut self, group: GroupId, to: NodeId, id: ImageId, now: Duration) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.serving.offered(to, id, now);
        }
    }

    /// The lowest index of the group's images here, those included that are being made: the log is needed after it.
    pub fn hold(&self, group: GroupId) -> Option<u64> {
        let served = self.groups.get(&group).and_then(|group| group.serving.hold());
        let made =
            self.making.as_ref().filter(|(making, _)| *making == group).map(|(_, making)| making.index());
        served.into_iter().chain(made).min()
    }

    /// The group of which an image is being made.
    pub fn makes(&self) -> Option<GroupId> {
        self.making.as_ref().map(|(group, _)| *group)
    }

    /// The group of which the next step begins to make an image. Its log must be held from before that on, where the
    /// database is: entries after the image are of no use if one of them is missing.
    pub fn begins(&self, now: Duration) -> Option<GroupId> {
        if self.making.is_some() {
            return None;
        }
        let due = |group: &Group| group.wanted.is_some() && now >= group.made_after;
        self.groups.iter().find(|(_, group)| due(group)).map(|(id, _)| *id)
    }

    /// How much of an image has arrived, and of how much.
    pub fn progress(&self, group: GroupId) -> Option<(u64, u64)> {
        match &self.groups.get(&group)?.fetch {
            Fetch::Nothing => None,
            Fetch::Queued(source, _) => Some((0, source.image.length)),
            Fetch::Active(fetching) => Some(fetching.progress()),
            Fetch::Complete(received) => {
                let length = received.source.image.length;
                Some((length, length))
            }
        }
    }

    /// An image was offered to this node's replica, which needs it.
    pub fn fetch(&mut self, group: GroupId, source: Source, now: Duration) {
        let Some(found) = self.groups.get_mut(&group) else { return };
        found.left_until = None;
        let same = |held: &Source| held.image.id == source.image.id;
        match &mut found.fetch {
            Fetch::Nothing => {
                if now >= found.fetched_after {
                    found.fetch = Fetch::Queued(Box::new(source), now);
                }
            }
            Fetch::Queued(held, _) => **held = source,
            Fetch::Active(fetching) if same(fetching.source()) => fetching.offered_again(source),
            Fetch::Complete(received) if same(&received.source) => {
                received.source = source;
                self.events.push(Event::Complete(group, (**received).clone()));
            }
            // What is arriving is as good: every image is of committed entries. Beginning anew with each new leader
            // would never come to an end where leaders change often.
            Fetch::Active(_) => found.other = Some(source),
            // Raft has this one's message, or waits for a leader to be known.
            Fetch::Complete(_) => {}
        }
    }

    /// Raft took the received image, or has no need of it. The file, if it is still there, is removed.
    pub fn settled(&mut self, group: GroupId) {
        let Some(found) = self.groups.get_mut(&group) else { return };
        if let Fetch::Complete(received) = &found.fetch {
            if let Err(error) = file::remove(&received.path) {
                tracing::warn!(group = group.0, "an image was not removed: {error}");
            }
            found.fetch = Fetch::Nothing;
            found.other = None;
        }
    }

    /// Another node asks for bytes of an image.
    pub fn request(&mut self, from: NodeId, request: ImageRequest, now: Duration) {
        let group = GroupId(request.group);
        let Some(found) = self.groups.get_mut(&group) else { return };
        if let Some(chunk) = found.serving.request(from, request, now) {
            self.packets.push((from, Packet::ImageChunk(chunk)));
            // It can't go on: it must be offered another.
            self.events.push(Event::Silent(group, from));
        }
    }

    /// Bytes of an image arrive.
    pub fn chunk(&mut self, from: NodeId, chunk: ImageChunk, now: Duration) {
        let group = GroupId(chunk.group);
        let pace = self.pace();
        let Some(found) = self.groups.get_mut(&group) else { return };
        let Fetch::Active(fetching) = &mut found.fetch else { return };
        if chunk.gone {
            let source = fetching.source();
            if chunk.is_sound() && from == source.node && chunk.id() == source.image.id {
                tracing::info!(
                    group = group.0,
                    "node {from} doesn't have the image any more that it offered"
                );
                self.turn_to_other(group, now);
            }
            return;
        }
        if let Err(error) = fetching.chunk(from, chunk, pace, now) {
            self.fetch_failed(group, &error, now);
        }
    }

    fn fetch_failed(&mut self, group: GroupId, error: &ReplicaError, now: Duration) {
        tracing::warn!(group = group.0, "an image can't be received: {error}");
        let (stall, keep) = (self.stall(), self.keep());
        if let Some(found) = self.groups.get_mut(&group) {
            found.fetch = Fetch::Nothing;
            found.other = None;
            found.fetched_after = now + stall;
            found.left_until = Some(now + stall + keep);
        }
    }

    /// What was being received won't come: the last offer of another image is taken up, if there was one.
    fn turn_to_other(&mut self, group: GroupId, now: Duration) {
        let keep = self.keep();
        if let Some(found) = self.groups.get_mut(&group) {
            found.left_until = Some(now + keep);
            found.fetch = match found.other.take() {
                Some(source) => Fetch::Queued(Box::new(source), now),
                None => Fetch::Nothing,
            };
        }
    }

    /// Does one slice of work, if there is some to do.
    pub fn step(&mut self, now: Duration) -> Turn {
        self.reckon(now);
        self.expire(now);
        let worked = [self.make(now), self.receive(now), self.serve()];
        if worked.contains(&true) { Turn::Worked } else { Turn::IdleUntil(self.due(now)) }
    }

    /// The packets to send.
    pub fn take_packets(&mut self) -> Vec<(NodeId, Packet)> {
        mem::take(&mut self.packets)
    }

    /// What Raft is to be told.
    pub fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }

    /// Credit grows with time, up to what a tenth of a second gives: no burst is longer.
    fn reckon(&mut self, now: Duration) {
        let rate = self.settings.bytes_per_second;
        let most = (rate / 10).max(2 * u64::from(self.settings.chunk_bytes));
        let nanos = now.saturating_sub(self.reckoned).as_nanos();
        let grown = u64::try_from(u128::from(rate) * nanos / 1_000_000_000).unwrap_or(u64::MAX);
        // Less than a byte isn't lost, but reckoned the next time.
        if grown > 0 {
            self.credit = self.credit.saturating_add(grown).min(most);
            self.reckoned = now;
        }
    }

    fn expire(&mut self, now: Duration) {
        let (stall, keep) = (self.stall(), self.keep());
        for (group, found) in &mut self.groups {
            let expired = found.serving.expire(now.saturating_sub(stall), now.saturating_sub(keep));
            self.events.extend(expired.receivers.into_iter().map(|node| Event::Silent(*group, node)));
            for id in expired.images {
                if let Err(error) = found.serving.forget(id) {
                    tracing::warn!(group = group.0, "an old image was not removed: {error}");
                }
                self.events.push(Event::Gone(*group, id));
            }
            if found.left_until.is_some_and(|until| now >= until) {
                found.left_until = None;
                if let Err(error) = file::clean_incoming(found.serving.directory(), None) {
                    tracing::warn!(group = group.0, "what is left of an image was not removed: {error}");
                }
            }
        }
    }

    fn make(&mut self, now: Duration) -> bool {
        if let Some((group, making)) = &mut self.making {
            let group = *group;
            match making.step() {
                Ok(None) => {}
                Ok(Some(image)) => {
                    self.making = None;
                    self.made(group, image, now);
                }
                Err(error) => self.make_failed(group, &error, now),
            }
            return true;
        }
        let Some(group) = self.begins(now) else { return false };
        let Some(found) = self.groups.get_mut(&group) else { return false };
        let Some((member, _)) = found.wanted.take() else { return false };
        match Making::begin(found.serving.directory(), member) {
            Ok(Some(making)) => self.making = Some((group, making)),
            // The member will be there when its conf change has been applied; Raft wants an image again.
            Ok(None) => found.made_after = now + self.settings.patience / 4,
            Err(error) => self.make_failed(group, &error, now),
        }
        true
    }

    fn made(&mut self, group: GroupId, image: Image, now: Duration) {
        let Some(found) = self.groups.get_mut(&group) else { return };
        match found.serving.add(image.clone(), now) {
            Ok(()) => {
                tracing::info!(
                    group = group.0,
                    index = image.index,
                    bytes = image.length,
                    "made image {}",
                    image.id
                );
                self.events.push(Event::Made(group, image));
            }
            Err(error) => self.make_failed(group, &error, now),
        }
    }

    fn make_failed(&mut self, group: GroupId, error: &ReplicaError, now: Duration) {
        tracing::warn!(group = group.0, "an image can't be made: {error}");
        self.making = None;
        let stall = self.stall();
        if let Some(found) = self.groups.get_mut(&group) {
            found.made_after = now + stall;
            // Half an image on a full disk would take the room that others need.
            if let Err(error) = file::clean_making(found.serving.directory()) {
                tracing::warn!(group = group.0, "half an image was not removed: {error}");
            }
        }
    }

    fn receive(&mut self, now: Duration) -> bool {
        let (pace, stall) = (self.pace(), self.stall());
        let mut active = self.groups.values().filter(|group| matches!(group.fetch, Fetch::Active(_))).count();
        let mut worked = false;
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        let mut requests = Vec::new();
        for group in groups {
            let Some(found) = self.groups.get_mut(&group) else { continue };
            match &mut found.fetch {
                Fetch::Nothing | Fetch::Complete(_) => {}
                Fetch::Queued(source, spoke) if active >= MOST_FETCHES => {
                    if now >= *spoke + pace.patience {
                        *spoke = now;
                        let (high, low) = source.image.id.halves();
                        let request = ImageRequest { group: group.0, high, low, offset: 0, length: 0 };
                        self.packets.push((source.node, Packet::ImageRequest(request)));
                    }
                }
                Fetch::Queued(source, _) => {
                    worked = true;
                    match Fetching::begin(group, found.serving.directory(), (**source).clone(), now) {
                        Ok(fetching) => {
                            active += 1;
                            found.fetch = Fetch::Active(Box::new(fetching));
                        }
                        Err(error) => self.fetch_failed(group, &error, now),
                    }
                }
                Fetch::Active(fetching) => {
                    let outcome = fetching.step(pace, now, &mut requests);
                    let node = fetching.source().node;
                    let sent = requests.drain(..).map(|request| (node, Packet::ImageRequest(request)));
                    self.packets.extend(sent);
                    worked |= self.fetched(group, outcome, now, stall);
                }
            }
        }
        worked
    }

    fn fetched(
        &mut self,
        group: GroupId,
        outcome: Result<Outcome, ReplicaError>,
        now: Duration,
        stall: Duration,
    ) -> bool {
        let Some(found) = self.groups.get_mut(&group) else { return false };
        let Fetch::Active(fetching) = &found.fetch else { return false };
        match outcome {
            Ok(Outcome::Working) => true,
            Ok(Outcome::Waiting) => {
                if now >= fetching.progressed() + stall {
                    tracing::info!(
                        group = group.0,
                        "node {} sends no image any more",
                        fetching.source().node
                    );
                    self.turn_to_other(group, now);
                }
                false
            }
            Ok(Outcome::Complete) => {
                let received =
                    Received { source: fetching.source().clone(), path: fetching.path().to_owned() };
                found.fetch = Fetch::Complete(Box::new(received.clone()));
                self.events.push(Event::Complete(group, received));
                true
            }
            Ok(Outcome::Wrong) => {
                tracing::warn!(
                    group = group.0,
                    "an image arrived that isn't what was offered: fetching it again"
                );
                let source = found.other.take().unwrap_or_else(|| fetching.source().clone());
                found.fetch = Fetch::Queued(Box::new(source), now);
                true
            }
            Err(error) => {
                self.fetch_failed(group, &error, now);
                true
            }
        }
    }

    /// Answers one request, of the group whose turn it is.
    fn serve(&mut self) -> bool {
        if self.credit < u64::from(self.settings.chunk_bytes) {
            return false;
        }
        let waiting = self.groups.iter().filter(|(_, group)| group.serving.has_waiting());
        let waiting: Vec<GroupId> = waiting.map(|(group, _)| *group).collect();
        let next = waiting.iter().find(|group| **group > self.turn).or(waiting.first());
        let Some(group) = next.copied() else { return false };
        self.turn = group;
        let Some(found) = self.groups.get_mut(&group) else { return false };
        match found.serving.answer() {
            Ok(None) => {}
            Ok(Some((to, chunk))) => {
                self.credit = self.credit.saturating_sub(chunk.data.len() as u64);
                self.packets.push((to, Packet::ImageChunk(chunk)));
            }
            Err(error) => tracing::warn!(group = group.0, "an image can't be read: {error}"),
        }
        true
    }

    /// When there will be something to do if nothing goes in.
    fn due(&self, now: Duration) -> Option<Duration> {
        let (pace, stall, keep) = (self.pace(), self.stall(), self.keep());
        let mut due: Option<Duration> = None;
        let mut at = |time: Duration| due = Some(due.map_or(time, |due| due.min(time)));
        for group in self.groups.values() {
            if group.wanted.is_some() && self.making.is_none() {
                at(group.made_after);
            }
            if let Some(time) = group.serving.expires(stall, keep) {
                // What is due now has been done; what was last used just then is due a moment later.
                at(time + Duration::from_nanos(1));
            }
            if let Some(time) = group.left_until {
                at(time);
            }
            match &group.fetch {
                Fetch::Nothing | Fetch::Complete(_) => {}
                Fetch::Queued(_, spoke) => at(*spoke + pace.patience),
                Fetch::Active(fetching) => at(fetching.due(pace).min(fetching.progressed() + stall)),
            }
            if group.serving.has_waiting() {
                let missing = u64::from(self.settings.chunk_bytes).saturating_sub(self.credit);
                let nanos =
                    u128::from(missing) * 1_000_000_000 / u128::from(self.settings.bytes_per_second.max(1));
                at(self.reckoned
                    + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).saturating_add(1)));
            }
        }
        due.map(|due| due.max(now))
    }
}
