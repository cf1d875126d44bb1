//! What the coordinator does on top of a replica: the cluster's shape, its catalog, the changes of both, and the verdicts
//! over transactions.
//!
//! The life of a schema change:
//!
//! 1. [`Coordinator`] takes the request and has it admitted in one write to the coordinator's log (`service`).
//! 2. Admission checks it against the catalog of that moment, gives out ids, holds what it touches, and records a job
//!    with all its stages (`admit`, `alter`, `job`). Changes that no shard hears of are done right there.
//! 3. On the leader a worker works off the stages: entries on shards, copying, publication (`worker`, `reach`).
//!    After a change of leaders another goes on from the record.
//! 4. Publication changes catalog and topology in one write (`publish`); every node tells what its replica has
//!    applied of them (`state`).
//! 5. The job's end frees what it held and leaves the answer, so that a repeated request is answered the same.
//!
//! The life of a change of a group's replicas:
//!
//! 1. Somebody asks for it (`replicas`), or the leader sees that it's needed: a node is silent, a replica is lost or
//!    differs from the others (`vitals`, `divergence`, `repair`).
//! 2. It is checked and recorded with all its steps (`replicas`, `replica_job`). From then on the topology tells that
//!    a node is getting a replica.
//! 3. A worker asks the group's leader for each set of voters until the group has it (`replica_work`, `reach`).
//! 4. The topology names the new replicas, and the nodes that lost theirs remove them.
//!
//! Many changes of replicas that come to one thing, a node that is drained for example, are a course: which of them are left
//! follows from the topology (`course`). A shard that is split or merged is a reshard (`reshard`). How many rows shards have
//! followers count now and then (`tallies`). What an admin could do follows from what is known of all this (`advise`);
//! where an admin wants it, what is too big is split without being asked for (`auto`).
//!
//! The life of a distributed transaction, as far as it is told here:
//!
//! 1. All its participants have voted; its router asks for the verdict. The first one is recorded, and stands
//!    (`decisions`). If it has an idempotency key, nobody else was committed with that, or began with it since (`claims`).
//! 2. Its router tells the participants. Whom it hasn't told soon, the leader tells (`finishing`).
//! 3. If nobody decides, or its router is gone, the leader finds the branches that are prepared, and ends them (`inquiry`). It ends deadlocks over
//!    several shards, too (`deadlock`).
//! 4. The record stays for a while for those who ask, and is forgotten.
//!
//! It must never know SQL beyond the statements of [`dialect::physical`], nor a row of a user's but to copy it.

mod admit;
mod advise;
mod alter;
mod auto;
mod care;
mod claims;
mod config;
mod course;
mod deadlock;
mod decisions;
mod divergence;
mod explain;
mod finishing;
mod inquiry;
mod job;
mod keyspace;
mod lingering;
mod loads;
mod metrics;
mod nodes;
mod publish;
mod reach;
mod repair;
mod replica_job;
mod replica_work;
mod replicas;
mod reshard;
mod sequence;
mod service;
mod state;
mod store;
mod tallies;
mod vitals;
mod votes;
mod watching;
mod worker;

pub use config::Config;
pub use service::Coordinator;
