//! What dead routers had prepared, and how long it stays.
//!
//! In come the ends of nodes, where nothing else goes wrong; out goes whether the rows that their routers had prepared were
//! free in time. It looks at the shards' databases, not at what anybody says of them.

use super::super::super::trace::{MILLISECOND, SECOND, Time};
use super::{Event, Outcome, World};
use proto::services::Consistency;
use proto::{GroupId, RouterIncarnation, machine};
use std::time::Duration;

/// How often it is looked.
const EVERY: Time = 100 * MILLISECOND;
/// How long what a router had prepared may stay after its end.
const SILENT: Time = 8 * SECOND;
/// How long after its node's return, if there are leaders by then.
const BACK: Time = 3 * SECOND;
/// How long elections may take.
const ELECTIONS: Time = 3 * SECOND;

/// A router that is dead.
pub(super) struct Dead {
    router: RouterIncarnation,
    died: Time,
    /// By when all that it had prepared must be free.
    until: Time,
    /// Whether it had anything prepared.
    left: bool,
}

impl World {
    /// A node has died, and is back after this time.
    pub(super) fn mourn(&mut self, id: u64, down: Time) {
        let died = self.now();
        let Some(router) = self.nodes[&id].routers.last().copied() else { return };
        let until = died + SILENT.min(down.max(ELECTIONS) + BACK);
        if self.dead.is_empty() {
            self.at(died + EVERY, Event::Look);
        }
        self.dead.push(Dead { router, died, until, left: false });
    }

    /// Looks whether what they had prepared is free.
    pub(super) fn look_for_the_dead(&mut self) -> Outcome {
        let now = self.now();
        for mut dead in std::mem::take(&mut self.dead) {
            let count = self.prepared_by(dead.router)?;
            let (router, millis) = (dead.router, (now - dead.died) / MILLISECOND);
            if count > 0 && !dead.left {
                self.count("routers that left something prepared");
            }
            dead.left |= count > 0;
            if count > 0 && now >= dead.until {
                return Err(format!(
                    "router {router} has been dead for {millis} ms, and {count} of its branches are prepared"
                ));
            }
            if count == 0 && dead.left {
                self.note(format_args!("what router {router} had prepared is free after {millis} ms"));
                dead.left = false;
            }
            // What was on its way may still come.
            if now < dead.until {
                self.dead.push(dead);
            }
        }
        if !self.dead.is_empty() {
            self.at(now + EVERY, Event::Look);
        }
        Ok(())
    }

    /// How many branches of a router's transactions the shards' leaders have prepared.
    fn prepared_by(&self, router: RouterIncarnation) -> Result<u64, String> {
        let mut count = 0;
        for process in self.nodes.values().filter_map(|node| node.process.as_ref()) {
            let leading = process.host.replicas().into_iter();
            for replica in leading.filter(|it| it.is_leader() && it.group() != GroupId::COORDINATOR) {
                let _entered = process.tasks.enter();
                let deadline = machine::now() + Duration::from_secs(1);
                let snapshot = super::ending::now_or_never(replica.snapshot(Consistency::Eventual, deadline));
                let Some(Ok(snapshot)) = snapshot else { continue };
                let sql = "SELECT count(*) FROM shoal_prepared WHERE router = ?1";
                let found = snapshot
                    .connection()
                    .query_row(sql, [router.0.cast_signed()], |row| row.get::<_, i64>(0));
                count += found.map_err(|error| error.to_string())?.cast_unsigned();
            }
        }
        Ok(count)
    }
}
