//! That a flow stops where it is, and then goes on to one position and no further.
//!
//! In come orders of whoever compares rows, one at a time and of one source; out comes where the flow stands that has
//! heard them. An order ends with its [`Held`], whatever becomes of who gave it: nobody can leave a flow held. It must never know what
//! the position is for.

use proto::{LogIndex, ShardId};
use std::sync::Arc;
use tokio::sync::watch;

/// The brake of a target's flows.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    order: watch::Sender<Order>,
    stood: watch::Sender<Stood>,
}

/// Up to where flows go.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Order {
    number: u64,
    held: Option<(ShardId, LogIndex)>,
}

/// Where a flow came to nothing more to do, or had nothing more that it may do.
#[derive(Clone, Copy, Debug, Default)]
struct Stood {
    number: u64,
    position: LogIndex,
}

impl Order {
    /// The last position that a flow of this source may come to.
    pub fn bound(&self, source: ShardId) -> LogIndex {
        match self.held {
            Some((held, bound)) if held == source => bound,
            _ => LogIndex(u64::MAX),
        }
    }
}

impl Brake {
    /// Has the flow of a source stop where it is. Who has held one before holds it no more.
    pub fn hold(self: &Arc<Self>, source: ShardId) -> Held {
        let mut held = Held { brake: Arc::clone(self), source, number: 0 };
        held.order(LogIndex(0));
        held
    }

    pub(super) fn orders(&self) -> watch::Receiver<Order> {
        self.order.subscribe()
    }

    /// A turn of all flows has passed under this order, in which `position` tells where they are.
    pub(super) fn stand(&self, order: Order, position: impl Fn(ShardId) -> Option<LogIndex>) {
        if let Some(position) = order.held.and_then(|(source, _)| position(source)) {
            self.stood.send_replace(Stood { number: order.number, position });
        }
    }
}

/// A flow that is held, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    brake: Arc<Brake>,
    source: ShardId,
    number: u64,
}

impl Held {
    fn order(&mut self, bound: LogIndex) {
        self.brake.order.send_modify(|order| {
            order.number += 1;
            order.held = Some((self.source, bound));
            self.number = order.number;
        });
    }

    /// Where it stands. It doesn't come if the flow has ended, or somebody else holds it.
    pub async fn stands(&self) -> Option<LogIndex> {
        self.stands_at(LogIndex(0)).await
    }

    /// Has it go on to there and no further, and waits until it stands there.
    pub async fn go_on_to(&mut self, bound: LogIndex) -> Option<LogIndex> {
        self.order(bound);
        self.stands_at(bound).await
    }

    async fn stands_at(&self, least: LogIndex) -> Option<LogIndex> {
        let mut stood = self.brake.stood.subscribe();
        let there = stood.wait_for(|stood| stood.number == self.number && stood.position >= least);
        there.await.ok().map(|stood| stood.position)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.brake.order.send_if_modified(|order| {
            let is_mine = order.number == self.number;
            if is_mine {
                *order = Order { number: order.number + 1, held: None };
            }
            is_mine
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn a_flow_is_held_by_the_last_who_wanted_it_and_by_nobody_once_that_one_is_gone() {
        let brake = Arc::new(Brake::default());
        let (source, other) = (ShardId(1), ShardId(2));
        let orders = brake.orders();
        let bound = |of| orders.borrow().bound(of).0;
        let stand =
            |position| brake.stand(*orders.borrow(), |of| (of == source).then_some(LogIndex(position)));
        assert_eq!((bound(source), bound(other)), (u64::MAX, u64::MAX));
        let mut first = brake.hold(source);
        assert_eq!((bound(source), bound(other)), (0, u64::MAX));
        assert!(first.stands().now_or_never().is_none(), "nobody has heard of it");
        stand(7);
        assert_eq!(first.stands().await, Some(LogIndex(7)));
        assert!(first.go_on_to(LogIndex(9)).now_or_never().is_none());
        assert_eq!(bound(source), 9);
        stand(8);
        let arrives = first.stands_at(LogIndex(9));
        assert!(arrives.now_or_never().is_none(), "it isn't there yet");
        stand(9);
        assert_eq!(first.stands_at(LogIndex(9)).await, Some(LogIndex(9)));
        let second = brake.hold(source);
        drop(first);
        assert_eq!(bound(source), 0);
        drop(second);
        assert_eq!(bound(source), u64::MAX);
    }
}
