//! `shoal node drain|undrain|remove` and `shoal keyspace alter`: what many changes of replicas come to.
//!
//! In come the admin's wishes, out goes one request to the coordinator, under one name however often it is sent, and then how far
//! it is, until it is done. It goes on when the command ends.

use crate::admin::{self, Way};
use crate::arguments::{Admin, NodeAdmin};
use crate::course;
use crate::failure::Failure;
use crate::progress::print;
use proto::NodeId;
use proto::services::{ClusterStatus, Course, JobStatus};

/// Runs `shoal node drain|undrain|remove`.
pub async fn run(command: NodeAdmin) -> Result<(), Failure> {
    match command {
        NodeAdmin::Drain { node, admin } => {
            follow(&admin, Course::Drain(NodeId(node)), &format!("node {node} holds nothing any more")).await
        }
        NodeAdmin::Undrain { node, admin } => {
            follow(&admin, Course::Undrain(NodeId(node)), &format!("node {node} may hold replicas again"))
                .await
        }
        NodeAdmin::Remove { node, admin } => {
            let done = format!("node {node} doesn't belong to the cluster any more");
            follow(&admin, Course::Remove(NodeId(node)), &done).await
        }
    }
}

/// Runs `shoal keyspace alter`.
pub async fn alter(keyspace: String, replicas: u32, admin: Admin) -> Result<(), Failure> {
    let done = format!("each shard of {keyspace} has {}", admin::count(replicas as usize, "replica"));
    follow(&admin, Course::Count { keyspace, replicas }, &done).await
}

/// Begins a course, and prints how far it is until it's done: a line whenever that has changed.
async fn follow(admin: &Admin, wish: Course, done: &str) -> Result<(), Failure> {
    let (way, _) = Way::find(admin).await?;
    // What is done at once has no number.
    if let Some(number) = course::begin(&way, wish, false).await?.course {
        let mut told = String::new();
        let tell = |_: &ClusterStatus, job: &JobStatus| {
            if job.progress == told {
                return Ok(());
            }
            told.clone_from(&job.progress);
            print(&format!("{}: {told}", job.what))
        };
        course::follow(number, &way, tell).await?;
    }
    print(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::Parser;

    fn node(line: &[&str]) -> Result<Option<NodeAdmin>, clap::Error> {
        let line = ["shoal", "node"].iter().chain(line);
        match Arguments::try_parse_from(line)?.command {
            Command::Node(node) => Ok(node.admin),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_runs_or_something_becomes_of_one() {
        let drained = node(&["drain", "3", "--host", "h:1"]).unwrap();
        assert!(matches!(drained, Some(NodeAdmin::Drain { node: 3, .. })));
        let removed = node(&["remove", "3", "--host", "h:1"]).unwrap();
        assert!(matches!(removed, Some(NodeAdmin::Remove { node: 3, .. })));
        assert!(node(&["--listen", "127.0.0.1:0"]).unwrap().is_none());
        assert!(node(&["--listen", "127.0.0.1:0", "drain", "3", "--host", "h:1"]).is_err());
        assert!(node(&["drain", "--host", "h:1"]).is_err(), "which?");
    }
}
