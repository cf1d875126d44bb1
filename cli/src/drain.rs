//! `shoal node drain|undrain|remove` and `shoal keyspace alter`: what many changes of replicas come to.
//!
//! In come the admin's wishes, out goes one request to the coordinator, under one name however often it is sent, and then how far
//! it is, until it is done. It goes on when the command ends.

use crate::admin;
use crate::arguments::{Admin, NodeAdmin};
use crate::failure::Failure;
use proto::services::{Course, CourseWish, JobStatus};
use proto::{NodeId, RequestId, RouterIncarnation};
use std::io::Write;
use std::time::Duration;

/// How often it's looked how far it is.
const LOOK: Duration = Duration::from_millis(500);

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
async fn follow(admin: &Admin, course: Course, done: &str) -> Result<(), Failure> {
    let request = RequestId { router: RouterIncarnation(rand::random()), sequence: 1 };
    let wish = CourseWish { request, course };
    let number = admin::ask_leader(admin, |coordinator| {
        let wish = wish.clone();
        Box::pin(async move { coordinator.course(wish).await })
    })
    .await?;
    let mut told = String::new();
    while let Some(job) = under_way(admin, number).await? {
        if job.progress != told {
            told = job.progress;
            print(&format!("{}: {told}", job.what))?;
        }
        tokio::time::sleep(LOOK).await;
    }
    print(done)
}

/// The course, if it is still under way. What is done at once has no number.
async fn under_way(admin: &Admin, number: u64) -> Result<Option<JobStatus>, Failure> {
    if number == 0 {
        return Ok(None);
    }
    Ok(admin::status(admin).await?.jobs.into_iter().find(|job| job.id == number))
}

fn print(line: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{line}").map_err(Failure::Print)
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
