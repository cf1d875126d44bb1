//! Running plans.
//!
//! The life of a plan here: its scalars are evaluated ([`scalars`]), its fragments are routed and sent to shards
//! ([`fragments`], [`near`]), those of several shards as of one moment ([`cut`]), and what comes back is gathered ([`gather`], [`merge`]) into rows that the session pulls
//! ([`rows`]). Writes go to the shards of their rows ([`insert`], [`writes`]), schema changes to the coordinator
//! ([`schema`]). Nothing here knows a client's protocol.

pub mod copy_in;
pub mod cut;
pub mod explain;
mod first;
pub mod fragments;
pub mod gather;
pub mod insert;
mod locks;
pub mod merge;
mod moves;
mod near;
mod positions;
pub mod replicas;
mod reshards;
pub mod rows;
pub mod scalars;
pub mod schema;
mod shards;
pub mod sqlite;
pub mod statement;
pub mod transactions;
mod violation;
pub mod writes;

#[cfg(test)]
mod tests;

use crate::cancel::Interrupt;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::replicas::Replicas;
use crate::requests::Requests;
use crate::sequences::Sequences;
use crate::transaction::Transactions;
use proto::{RouterIncarnation, WireError};
use statement::attend;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

/// What runs plans, shared by all sessions.
pub struct Executor {
    pub(crate) config: Config,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) replicas: Replicas,
    requests: Arc<Requests>,
    pub(crate) transactions: Arc<Transactions>,
    pub(crate) sequences: Sequences,
    expressions: sqlite::Pool,
    gathers: Arc<sqlite::Pool>,
    gather_slots: Arc<Semaphore>,
}

impl Executor {
    /// An executor over this cluster.
    pub fn new(config: Config, cluster: Arc<Cluster>) -> Self {
        let gather_slots = Arc::new(Semaphore::new(config.gathers_at_once));
        let requests = Requests::new(&config.machine);
        let transactions = Transactions::new(cluster.clone(), requests.clone(), &config);
        let replicas = Replicas::new(cluster.clone(), config.machine.clone(), config.zone.clone());
        Self {
            config,
            cluster,
            replicas,
            requests,
            transactions,
            sequences: Sequences::default(),
            expressions: sqlite::Pool::in_memory(),
            gathers: Arc::new(sqlite::Pool::spilling()),
            gather_slots,
        }
    }

    /// A block is about to change or lock something, and has done neither before: it waits while shards are being replaced.
    pub(crate) async fn pass_gate(&self, interrupt: &Interrupt, deadline: Instant) -> Result<(), WireError> {
        let pass = async {
            self.cluster.gate().pass(self.config.gate).await;
            Ok(())
        };
        attend(interrupt, deadline, pass).await
    }

    /// This start of the router.
    pub(crate) fn incarnation(&self) -> RouterIncarnation {
        self.requests.router()
    }
}
