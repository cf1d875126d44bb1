//! What dead routers had prepared, and how long it stays.
//!
//! In come the ends of nodes, where nothing else goes wrong; out goes whether the rows that their routers had prepared were
//! free in time. It looks at the shards' databases, not at what anybody says of them.

use super::super::super::trace::{MILLISECOND, SECOND, Time};
use super::super::LEFT;
use super::{Event, Outcome, World};
use proto::services::Consistency;
use proto::{GroupId, RouterIncarnation, machine};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often it is looked.
const EVERY: Time = 100 * MILLISECOND;
/// How long what a router had prepared may stay after its end.
const SILENT: Time = 8 * SECOND;
/// How long after its node's return, if there are leaders by then.
const BACK: Time = 3 * SECOND;
/// How long elections may take.
const ELECTIONS: Time = 3 * SECOND;
/// How long nothing may come back of what was free in time.
const AFTER: Time = SECOND;

/// A router that is dead.
pub(super) struct Dead {
    router: RouterIncarnation,
    died: Time,
    /// By when all that it had prepared must be free.
    until: Time,
    /// Whether it had anything prepared when it was looked last, and whether it ever had.
    holds: bool,
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
        self.dead.push(Dead { router, died, until, holds: false, left: false });
    }

    /// Looks whether what they had prepared is free.
    pub(super) fn look_for_the_dead(&mut self) -> Outcome {
        let now = self.now();
        for mut dead in std::mem::take(&mut self.dead) {
            let (router, millis) = (dead.router, (now - dead.died) / MILLISECOND);
            match self.prepared_by(router)? {
                // Whoever leads next will say.
                None if now < dead.until + ELECTIONS => {}
                None => {
                    let what = "and nobody can say what it has prepared";
                    return Err(format!("router {router} has been dead for {millis} ms, {what}"));
                }
                Some(count) if count > 0 && now >= dead.until => {
                    return Err(format!(
                        "router {router} has been dead for {millis} ms, and {count} of its branches are prepared"
                    ));
                }
                Some(count) => {
                    if count > 0 && !dead.left {
                        self.count(LEFT);
                    }
                    if count == 0 && dead.holds {
                        self.note(format_args!(
                            "what router {router} had prepared is free after {millis} ms"
                        ));
                    }
                    dead.holds = count > 0;
                    dead.left |= dead.holds;
                    if now >= dead.until + AFTER {
                        continue;
                    }
                }
            }
            self.dead.push(dead);
        }
        if !self.dead.is_empty() {
            self.at(now + EVERY, Event::Look);
        }
        Ok(())
    }

    /// Goes on until it's known of all of them.
    pub(super) fn bury(&mut self) -> Outcome {
        let longest = SILENT + ELECTIONS + AFTER + 2 * EVERY;
        self.run_until(self.now() + longest, |world| world.dead.is_empty())?;
        if self.dead.is_empty() { Ok(()) } else { Err("it isn't known what the dead have left".to_owned()) }
    }

    /// How many branches of a router's transactions the shards' leaders have prepared; nothing if a shard has none that can
    /// be read.
    fn prepared_by(&self, router: RouterIncarnation) -> Result<Option<u64>, String> {
        let mut counts: BTreeMap<GroupId, Option<u64>> = BTreeMap::new();
        for process in self.nodes.values().filter_map(|node| node.process.as_ref()) {
            let replicas = process.host.replicas().into_iter();
            for replica in replicas.filter(|replica| replica.group() != GroupId::COORDINATOR) {
                let count = counts.entry(replica.group()).or_default();
                if !replica.is_leader() {
                    continue;
                }
                let _entered = process.tasks.enter();
                let deadline = machine::now() + Duration::from_secs(1);
                let snapshot = super::ending::now_or_never(replica.snapshot(Consistency::Eventual, deadline));
                let Some(Ok(snapshot)) = snapshot else { continue };
                let sql = "SELECT count(*) FROM shoal_prepared WHERE router = ?1";
                let found = snapshot
                    .connection()
                    .query_row(sql, [router.0.cast_signed()], |row| row.get::<_, i64>(0));
                // Of two who take themselves for leaders, none must have it.
                *count = (*count).max(Some(found.map_err(|error| error.to_string())?.cast_unsigned()));
            }
        }
        Ok(if counts.is_empty() { None } else { counts.into_values().sum() })
    }
}
