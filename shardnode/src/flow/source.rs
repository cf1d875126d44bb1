//! Listening to a source: what its log says, from whichever replica tells it.
//!
//! In come a source and a position, out come parts of its log in order, for as long as somebody listens. The replica on
//! this node is asked first. Where one fails, the next is asked for what comes after the last whole entry; what was begun
//! of an entry is told anew. It must never know what is made of it.

use crate::node::ShardNode;
use futures::StreamExt;
use futures::stream::unfold;
use proto::machine;
use proto::services::{BoxStream, Changes, ChangesRequest, Peers, ServiceResult};
use proto::{LogIndex, NodeId, Retry, ShardId, SqlState, WireError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often a source says how far it is, though nothing happens.
pub(super) const BEAT: Duration = Duration::from_millis(500);

/// How long a node may take to begin.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause after every replica was asked in vain; it doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a listener hears.
#[derive(Debug)]
pub(super) enum Heard {
    /// The log goes on.
    Part(Changes),
    /// What was begun of an entry is told anew.
    Again,
    /// No replica has what comes next.
    Forgotten,
}

/// The log of a source after a position, as long as anybody listens.
pub(super) fn listen(
    node: Arc<ShardNode>,
    peers: Arc<dyn Peers>,
    source: ShardId,
    after: LogIndex,
) -> BoxStream<Heard> {
    let (turn, forgotten_by, log, pause) = (0, BTreeSet::new(), None, FIRST_PAUSE);
    let listener = Listener { node, peers, source, after, turn, forgotten_by, log, pause };
    Box::pin(unfold(listener, |mut listener| async move { Some((listener.next().await, listener)) }))
}

struct Listener {
    node: Arc<ShardNode>,
    peers: Arc<dyn Peers>,
    source: ShardId,
    /// All up to here was told.
    after: LogIndex,
    /// Which replica is asked.
    turn: usize,
    /// The nodes that have forgotten what comes next.
    forgotten_by: BTreeSet<NodeId>,
    log: Option<(NodeId, BoxStream<ServiceResult<Changes>>)>,
    pause: Duration,
}

impl Listener {
    async fn next(&mut self) -> Heard {
        loop {
            let Some((node, log)) = &mut self.log else {
                if let Some(heard) = self.connect().await {
                    return heard;
                }
                continue;
            };
            let node = *node;
            match log.next().await {
                Some(Ok(part)) => {
                    self.after = part.position;
                    self.pause = FIRST_PAUSE;
                    self.forgotten_by.clear();
                    return Heard::Part(part);
                }
                ended => {
                    self.log = None;
                    self.turn += 1;
                    if let Some(Err(error)) = ended {
                        self.failed(node, &error);
                    }
                    return Heard::Again;
                }
            }
        }
    }

    fn failed(&mut self, node: NodeId, error: &WireError) {
        tracing::debug!(source = %self.source, %node, %error, "a source's log can't be read there");
        if error.sqlstate == SqlState::POSITION_FORGOTTEN {
            self.forgotten_by.insert(node);
        }
    }

    /// Asks the next replica.
    async fn connect(&mut self) -> Option<Heard> {
        let mut nodes = self.node.holders(self.source);
        let here = self.node.id();
        nodes.sort_by_key(|node| (*node != here, *node));
        if self.turn >= nodes.len() {
            self.turn = 0;
            let pause = self.pause;
            self.pause = (pause * 2).min(LONGEST_PAUSE);
            tokio::time::sleep(pause).await;
            let all = !nodes.is_empty() && nodes.iter().all(|node| self.forgotten_by.contains(node));
            return all.then_some(Heard::Forgotten);
        }
        let node = nodes[self.turn];
        let service = self.peers.shard_service(node);
        let request = ChangesRequest { shard: self.source, after: self.after, beat: BEAT, layouts: false };
        let unknown =
            || WireError::new(SqlState::CANNOT_CONNECT_NOW, "it is unknown").with_retry(Retry::Later);
        let begun = match service {
            None => Err(unknown()),
            Some(service) => {
                let until = machine::now() + PATIENCE;
                let begun = tokio::time::timeout_at(until.into(), service.changes(request)).await;
                begun.unwrap_or_else(|_| Err(unknown()))
            }
        };
        match begun {
            Ok(log) => self.log = Some((node, log)),
            Err(error) => {
                self.failed(node, &error);
                self.turn += 1;
            }
        }
        None
    }
}
