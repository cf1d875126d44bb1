//! How fresh a follower is: the question that it asks its leader, and what it may conclude from the answer.
//!
//! A follower notes the time, asks, and the leader confirms its leadership and answers with its commit index. Once the
//! follower has applied that, it has everything that was acknowledged before it asked, whatever the time is at the
//! leader: so no two clocks are ever compared. An answer may come late or twice and stays true; only one to another
//! question must not be taken for it. It must never know how fresh anyone needs it to be.
//!
//! raft-rs has a question of its own (a forwarded MsgReadIndex), which isn't used: its name would be the asker's to make
//! unique over restarts all the same, and a leader that was deposed meanwhile leaves it unanswered.

use super::mailbox::FreshWaiter;
use crate::error::ReplicaError;
use crate::log::{self, LogStore};
use crate::packet::{Answer, Ask};
use proto::NodeId;
use std::time::Duration;

/// One follower's questions.
#[derive(Default)]
pub(super) struct Freshness(Option<Asking>);

/// Names a node's questions.
#[derive(Default)]
pub(super) struct Names {
    /// How often the node had been started with questions to ask; 0 while it hasn't any.
    start: u64,
    sequence: u64,
}

struct Asking {
    ask: Ask,
    /// When it was first sent. Sending it again doesn't make it newer.
    sent: Duration,
    waiters: Vec<FreshWaiter>,
}

impl Names {
    /// To be called before a name is given: the first time, the start is counted in the log, durably.
    pub fn begin(&mut self, log: &dyn LogStore) -> Result<(), ReplicaError> {
        if self.start == 0 {
            self.start = log::count_start(log)?;
        }
        Ok(())
    }

    /// A name for a question of this member. No other question ever gets it, of whatever group or life of a replica.
    pub fn next(&mut self, peer: u64) -> Ask {
        self.sequence += 1;
        Ask { peer, start: self.start, sequence: self.sequence }
    }
}

impl Freshness {
    /// Takes someone who waits. Gives the question to send, if none is under way.
    pub fn wait(&mut self, waiter: FreshWaiter, name: impl FnOnce() -> Ask, now: Duration) -> Option<Ask> {
        if let Some(asking) = &mut self.0 {
            asking.waiters.push(waiter);
            return None;
        }
        let ask = name();
        self.0 = Some(Asking { ask, sent: now, waiters: vec![waiter] });
        Some(ask)
    }

    /// The question that is under way: it may have been lost.
    pub fn unanswered(&self) -> Option<Ask> {
        self.0.as_ref().map(|asking| asking.ask)
    }

    /// Takes an answer. Gives since when the follower is fresh once it has applied the index, and who waited for that.
    pub fn answered(&mut self, answer: Answer) -> Option<(Duration, Option<u64>, Vec<FreshWaiter>)> {
        let asking = self.0.take_if(|asking| asking.ask == answer.ask)?;
        Some((asking.sent, answer.index, asking.waiters))
    }

    /// Nobody answers: who waits hears who leads.
    pub fn fail(&mut self, leader: Option<NodeId>) {
        if let Some(asking) = self.0.take() {
            asking.waiters.into_iter().for_each(|waiter| waiter(Err(leader)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter() -> FreshWaiter {
        Box::new(|_| {})
    }

    #[test]
    fn an_answer_to_another_question_is_not_taken() {
        let mut names = Names { start: 5, sequence: 0 };
        let mut freshness = Freshness::default();
        let first = freshness.wait(waiter(), || names.next(2), Duration::from_secs(1)).unwrap();
        let second = freshness.wait(waiter(), || names.next(2), Duration::from_secs(9));
        assert!(second.is_none(), "one at a time");
        let other = Ask { start: 4, ..first };
        assert!(freshness.answered(Answer { ask: other, index: Some(7) }).is_none(), "of before a restart");
        let (since, index, waiters) = freshness.answered(Answer { ask: first, index: Some(7) }).unwrap();
        // The second waiter may need more; it looks at the time.
        assert_eq!((since, index, waiters.len()), (Duration::from_secs(1), Some(7), 2));
        let second = freshness.wait(waiter(), || names.next(2), Duration::from_secs(9)).unwrap();
        assert!(freshness.answered(Answer { ask: first, index: Some(7) }).is_none(), "it came twice");
        assert_eq!(freshness.unanswered(), Some(second));
    }
}
