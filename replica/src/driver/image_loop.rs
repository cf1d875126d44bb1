//! The node's image loop: images of all groups' databases, made, sent and received.
//!
//! Each turn takes mail and the time, does a slice of work, sends packets and tells consensus of what has come to pass.
//! It copies and syncs big files, so it is a loop of its own: nothing waits for it but who is behind. It must never
//! know who calls it.

use super::mailbox::Mail;
use super::queue::{Item, Queue};
use super::shared::Shared;
use crate::consensus::Wanted;
use crate::image::{Event, ImageChunk, ImageId, ImageRequest, Images, Settings, Source, Turn};
use crate::metrics::Metrics;
use crate::packet::{IMAGES, Packet};
use proto::services::{RaftMessage, RaftTransport};
use proto::{GroupId, NodeId};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Without anything to do, the loop is turned so often.
const IDLE: Duration = Duration::from_secs(3600);

/// One thing for the image loop.
pub(crate) enum ImageMail {
    /// A group that is here from now on.
    Add { shared: Arc<Shared> },
    /// A group that isn't here any more.
    Remove { group: GroupId },
    /// Raft would send an image if there were one.
    Want { group: GroupId, wanted: Wanted },
    /// Raft sent a member the offer of an image.
    Offered { group: GroupId, to: NodeId, id: ImageId },
    /// This node's replica was offered an image that it needs.
    Fetch { group: GroupId, source: Box<Source> },
    /// Raft has taken up the received image, or doesn't need it.
    Settled { group: GroupId },
    /// Another node asks.
    Request { from: NodeId, request: ImageRequest },
    /// Another node answers.
    Chunk { from: NodeId, chunk: ImageChunk },
    /// The end.
    ShutDown,
}

impl Item for ImageMail {
    const MOST_BYTES: usize = 32 << 20;

    /// What is lost is asked for again.
    fn foreign_bytes(&self) -> Option<usize> {
        match self {
            ImageMail::Request { .. } => Some(0),
            ImageMail::Chunk { chunk, .. } => Some(chunk.data.len()),
            _ => None,
        }
    }

    fn refuse(self) {}
}

/// What waits for the image loop.
pub(crate) type ImageMailbox = Queue<ImageMail>;

/// The node's image loop.
pub(crate) struct ImageLoop {
    mailbox: Arc<ImageMailbox>,
    transport: Arc<dyn RaftTransport>,
    images: Images,
    metrics: Arc<Metrics>,
    groups: BTreeMap<GroupId, Arc<Shared>>,
    next: Turn,
}

impl ImageLoop {
    pub fn new(
        mailbox: Arc<ImageMailbox>,
        transport: Arc<dyn RaftTransport>,
        settings: Settings,
        metrics: Arc<Metrics>,
        now: Duration,
    ) -> Self {
        let images = Images::new(settings, now);
        Self { mailbox, transport, images, metrics, groups: BTreeMap::new(), next: Turn::IdleUntil(None) }
    }

    /// Where its mail comes from.
    pub fn mailbox(&self) -> &Arc<ImageMailbox> {
        &self.mailbox
    }

    /// When it wants a turn even if it has no mail.
    pub fn next_turn(&self, now: Duration) -> Duration {
        match self.next {
            Turn::Worked => now,
            Turn::IdleUntil(due) => due.unwrap_or(now + IDLE),
        }
    }

    /// Takes mail and does a slice of work, until it's told to end. A panic forgets all images and harms nothing else.
    pub fn turn(&mut self, mail: Vec<ImageMail>, now: Duration) -> ControlFlow<()> {
        if mail.iter().any(|mail| matches!(mail, ImageMail::ShutDown)) {
            self.mailbox.close();
            return ControlFlow::Break(());
        }
        if catch_unwind(AssertUnwindSafe(|| self.work(mail, now))).is_err() {
            tracing::error!("the image loop panicked: it begins anew");
            self.begin_anew(now);
        }
        ControlFlow::Continue(())
    }

    fn begin_anew(&mut self, now: Duration) {
        self.images = Images::new(self.images.settings(), now);
        for (group, shared) in &self.groups {
            self.images.add(*group, shared.directory.clone(), now);
        }
        self.publish();
        self.next = Turn::Worked;
    }

    fn work(&mut self, mail: Vec<ImageMail>, now: Duration) {
        for mail in mail {
            self.handle(mail, now);
        }
        if let Some(shared) = self.images.begins(now).and_then(|group| self.groups.get(&group)) {
            let applied = shared.applied();
            shared.set_image_hold(Some(shared.image_hold().map_or(applied, |held| held.min(applied))));
        }
        self.next = self.images.step(now);
        for event in self.images.take_events() {
            self.tell(event);
        }
        self.publish();
        self.send();
    }

    fn publish(&self) {
        for (group, shared) in &self.groups {
            shared.set_image_hold(self.images.hold(*group));
            shared.set_copied(self.images.makes() == Some(*group));
            shared.set_image_progress(self.images.progress(*group));
        }
    }

    fn handle(&mut self, mail: ImageMail, now: Duration) {
        match mail {
            ImageMail::Add { shared } => {
                self.images.add(shared.group, shared.directory.clone(), now);
                self.groups.insert(shared.group, shared);
            }
            ImageMail::Remove { group } => {
                self.images.remove(group);
                self.groups.remove(&group);
            }
            ImageMail::Want { group, wanted } => self.images.want(group, wanted.member, wanted.least),
            ImageMail::Offered { group, to, id } => {
                self.metrics.images_offered.inc();
                self.images.offered(group, to, id, now);
            }
            ImageMail::Fetch { group, source } => self.images.fetch(group, *source, now),
            ImageMail::Settled { group } => self.images.settled(group),
            ImageMail::Request { from, request } => self.images.request(from, request, now),
            ImageMail::Chunk { from, chunk } => {
                self.metrics.image_bytes_received.inc_by(chunk.data.len() as u64);
                self.images.chunk(from, chunk, now);
            }
            ImageMail::ShutDown => {}
        }
    }

    fn tell(&self, event: Event) {
        match &event {
            Event::Made(..) => self.metrics.images_made.inc(),
            Event::Complete(..) => self.metrics.images_received.inc(),
            Event::Gone(..) | Event::Silent(..) => {}
        }
        let (Event::Made(group, _)
        | Event::Gone(group, _)
        | Event::Silent(group, _)
        | Event::Complete(group, _)) = &event;
        if let Some(shared) = self.groups.get(group) {
            shared.mailbox.send(Mail::Image(event));
        }
    }

    fn send(&mut self) {
        let mut outgoing: BTreeMap<NodeId, Vec<RaftMessage>> = BTreeMap::new();
        for (to, packet) in self.images.take_packets() {
            if let Packet::ImageChunk(chunk) = &packet {
                self.metrics.image_bytes_sent.inc_by(chunk.data.len() as u64);
            }
            let body = Packet::encode(&packet);
            outgoing.entry(to).or_default().push(RaftMessage { group: IMAGES, body });
        }
        for (to, messages) in outgoing {
            self.transport.send(to, messages);
        }
    }
}
