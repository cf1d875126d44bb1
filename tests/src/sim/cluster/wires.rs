//! The streams between nodes: what TCP does, with a network that may be cut.
//!
//! What a node sends goes into its [`Port`]; the world takes it from there, asks the network how long it takes, and hands
//! it to the other end ([`Wires`]). A stream keeps its order and loses nothing: over a cut it waits, until the cut is
//! mended or a keepalive has found it. It must never look into a frame.

use super::super::random::Random;
use super::super::trace::Time;
use bytes::Bytes;
use futures::StreamExt;
use proto::NodeId;
use proto::services::BoxStream;
use proto::transport::Offer;
use proto::transport::simulation::{Dial, accept};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A stream's number.
pub type WireId = u64;

/// What goes through a stream.
#[derive(Clone, Debug)]
pub enum Item {
    /// The stream itself, to be accepted.
    Open,
    /// A frame.
    Frame(Bytes),
    /// Its end.
    End,
}

/// What a node has sent, and the world hasn't taken yet.
pub enum Sent {
    /// It opens a stream to a node; what comes back goes in there.
    Dial(WireId, u64, UnboundedSender<Bytes>),
    /// Something for the other end; `up` if this one has opened the stream.
    Item { wire: WireId, up: bool, item: Item },
}

/// A node's end of all streams.
#[derive(Clone)]
pub struct Port(Arc<Mutex<Open>>);

struct Open {
    sent: Vec<Sent>,
    next: WireId,
    random: Random,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Port")
    }
}

impl Port {
    /// A process' port. `first` and the numbers after it are no other's.
    pub fn new(first: WireId, random: Random) -> Self {
        Self(Arc::new(Mutex::new(Open { sent: Vec::new(), next: first, random })))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, wire: WireId, up: bool, item: Item) {
        self.open().sent.push(Sent::Item { wire, up, item });
    }

    /// Takes what was sent.
    pub fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut self.open().sent)
    }

    /// Sends all that comes, and the end. Must be called within the node's runtime.
    fn pump(&self, wire: WireId, up: bool, mut items: BoxStream<Bytes>) {
        let port = self.clone();
        tokio::spawn(async move {
            while let Some(frame) = items.next().await {
                port.send(wire, up, Item::Frame(frame));
            }
            port.send(wire, up, Item::End);
        });
    }

    /// Accepts a stream. Must be called within the node's runtime. Gives where to put what comes.
    pub fn accept(&self, wire: WireId, offer: Offer) -> UnboundedSender<Bytes> {
        let (sender, received) = unbounded_channel();
        self.pump(wire, false, accept(offer, stream(received)));
        sender
    }
}

fn stream(receiver: UnboundedReceiver<Bytes>) -> BoxStream<Bytes> {
    Box::pin(futures::stream::unfold(receiver, async |mut receiver: UnboundedReceiver<Bytes>| {
        receiver.recv().await.map(|frame| (frame, receiver))
    }))
}

impl Dial for Port {
    fn dial(&self, node: NodeId, sent: BoxStream<Bytes>) -> BoxStream<Bytes> {
        let (sender, received) = unbounded_channel();
        let mut open = self.open();
        let wire = open.next;
        open.next += 1;
        open.sent.push(Sent::Dial(wire, node.0, sender));
        open.sent.push(Sent::Item { wire, up: true, item: Item::Open });
        drop(open);
        self.pump(wire, true, sent);
        stream(received)
    }

    fn random(&self) -> u64 {
        self.open().random.draw()
    }
}

/// One way of a stream.
#[derive(Default)]
struct Way {
    /// Where what arrives goes; nothing before it's accepted, and after its end.
    receiver: Option<UnboundedSender<Bytes>>,
    /// What waits for the network.
    held: VecDeque<Item>,
    /// When the last that was sent arrives.
    last: Time,
}

/// A stream.
pub struct Wire {
    /// Who has opened it, and in which life.
    pub from: (u64, u64),
    /// Who has accepted it, or is to.
    pub to: (u64, u64),
    up: Way,
    down: Way,
}

/// All streams.
#[derive(Default)]
pub struct Wires(BTreeMap<WireId, Wire>);

impl Wires {
    /// A node opens one.
    pub fn dial(&mut self, wire: WireId, from: (u64, u64), to: u64, back: UnboundedSender<Bytes>) {
        let down = Way { receiver: Some(back), ..Way::default() };
        self.0.insert(wire, Wire { from, to: (to, 0), up: Way::default(), down });
    }

    /// The link that a way of a stream takes; nothing if the stream is gone.
    pub fn link(&self, wire: WireId, up: bool) -> Option<(u64, u64)> {
        let Wire { from, to, .. } = self.0.get(&wire)?;
        Some(if up { (from.0, to.0) } else { (to.0, from.0) })
    }

    /// Something is sent, and the network has it wait.
    pub fn hold(&mut self, wire: WireId, up: bool, item: Item) {
        if let Some(way) = self.way(wire, up) {
            way.held.push_back(item);
        }
    }

    /// Whether something waits already, so that what is sent now waits behind it.
    pub fn holds(&self, wire: WireId, up: bool) -> bool {
        self.0.get(&wire).is_some_and(|wire| !(if up { &wire.up } else { &wire.down }).held.is_empty())
    }

    /// Takes what waits in a way of a stream.
    pub fn release(&mut self, wire: WireId, up: bool) -> VecDeque<Item> {
        self.way(wire, up).map(|way| std::mem::take(&mut way.held)).unwrap_or_default()
    }

    /// When something arrives that could by then: not before what was sent before it.
    pub fn arrival(&mut self, wire: WireId, up: bool, time: Time) -> Time {
        self.way(wire, up).map_or(time, |way| {
            way.last = time.max(way.last + 1);
            way.last
        })
    }

    /// Somebody accepts it.
    pub fn accepted(&mut self, wire: WireId, to: (u64, u64), receiver: UnboundedSender<Bytes>) {
        if let Some(wire) = self.0.get_mut(&wire) {
            wire.to = to;
            wire.up.receiver = Some(receiver);
        }
    }

    /// A frame arrives. Gives whose it is.
    pub fn arrive(&mut self, wire: WireId, up: bool, frame: Bytes) -> Option<u64> {
        let way = self.way(wire, up)?;
        // Who doesn't listen any more will say so.
        let _ = way.receiver.as_ref()?.send(frame);
        self.link(wire, up).map(|(_, to)| to)
    }

    /// The end of a way arrives.
    pub fn end(&mut self, wire: WireId, up: bool) {
        if let Some(way) = self.way(wire, up) {
            way.receiver = None;
        }
        if self.0.get(&wire).is_some_and(|wire| wire.up.receiver.is_none() && wire.down.receiver.is_none()) {
            self.0.remove(&wire);
        }
    }

    /// It breaks, for both who hold an end of it.
    pub fn cut(&mut self, wire: WireId) {
        self.0.remove(&wire);
    }

    /// Those between two nodes; with one, all of its.
    pub fn between(&self, one: u64, other: Option<u64>) -> Vec<WireId> {
        let is = |wire: &Wire| {
            let (from, to) = (wire.from.0, wire.to.0);
            let far = if from == one { Some(to) } else { (to == one).then_some(from) };
            far.is_some_and(|far| other.is_none_or(|other| other == far))
        };
        self.0.iter().filter(|(_, wire)| is(wire)).map(|(id, _)| *id).collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<WireId> {
        self.0.keys().copied().collect()
    }

    fn way(&mut self, wire: WireId, up: bool) -> Option<&mut Way> {
        let wire = self.0.get_mut(&wire)?;
        Some(if up { &mut wire.up } else { &mut wire.down })
    }
}
