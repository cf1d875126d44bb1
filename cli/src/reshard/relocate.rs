//! `shoal reshard move`: a shard's replicas go to other nodes.
//!
//! In come the shard and the nodes, out go one course and how far it is. It needs no new shards, so it isn't among the reshards.

use super::show::{json, nodes};
use crate::admin::Way;
use crate::arguments::{Move, Wait};
use crate::course;
use crate::failure::Failure;
use crate::progress::{Display, print};
use indicatif::HumanBytes;
use proto::services::{ClusterStatus, Course, CoursePlan, PlannedMove, Progress};
use proto::{NodeId, SqlState, WireError};
use serde::Serialize;
use std::time::Instant;

/// What `--json` prints of a plan.
#[derive(Serialize)]
struct PlanLine<'a> {
    /// Its number among the jobs; null for a dry run.
    course: Option<u64>,
    what: &'a str,
    from: Vec<u64>,
    to: Vec<u64>,
    /// What each new replica takes; null if nobody has told yet how big the shard is.
    bytes: Option<u64>,
}

/// What `--json` prints of a course that is under way, or done.
#[derive(Serialize)]
struct Line<'a> {
    course: u64,
    done: bool,
    /// The nodes that hold the shard now.
    nodes: Vec<u64>,
    /// Of the replica that is being made.
    bytes_done: Option<u64>,
    bytes_total: Option<u64>,
    message: &'a str,
}

/// Runs the command.
pub async fn run(options: Move) -> Result<(), Failure> {
    let Move { shard, to, from, dry_run, wait, show } = options;
    let (way, status) = Way::find(&show.admin).await?;
    let to = to.into_iter().map(NodeId).collect();
    let wish = Course::Move { shard: shard.clone(), from: from.map(NodeId), to };
    let plan = course::begin(&way, wish, dry_run).await?;
    // None if the answer came so late that it was asked for again after the end.
    let Some(moves) = &plan.moves else { return Ok(()) };
    let bytes = size(&status, moves);
    print(&if show.json { json(&plan_line(&plan, moves, bytes)) } else { told(&plan, moves, bytes) })?;
    let Some(course) = plan.course.filter(|_| wait == Wait::Yes) else { return Ok(()) };
    let (begun, mut display) = (Instant::now(), Display::new(show.json));
    let end = course::follow(course, &way, |status, job| {
        let (holders, copied) = (holders(status, moves), copied(status, moves));
        let text = if show.json {
            json(&line(course, false, &holders, copied, &job.progress))
        } else {
            progress(&holders, copied, &job.progress)
        };
        display.show(&nodes(&holders), text, begun.elapsed(), false)
    })
    .await;
    display.clear();
    let holders = holders(&end?, moves);
    ended(course, &shard, moves, &holders)?;
    print(&if show.json {
        json(&line(course, true, &holders, None, ""))
    } else {
        format!("{shard} is on {}", nodes(&holders))
    })
}

fn plan_line<'a>(plan: &'a CoursePlan, moves: &PlannedMove, bytes: Option<u64>) -> PlanLine<'a> {
    let (from, to) = (numbers(&sorted(&moves.from)), numbers(&sorted(&moves.to)));
    PlanLine { course: plan.course, what: &plan.what, from, to, bytes }
}

fn line<'a>(
    course: u64,
    done: bool,
    holders: &[NodeId],
    copied: Option<Progress>,
    message: &'a str,
) -> Line<'a> {
    Line {
        course,
        done,
        nodes: numbers(holders),
        bytes_done: copied.map(|copied| copied.done),
        bytes_total: copied.map(|copied| copied.total),
        message,
    }
}

/// A plan, for people.
fn told(plan: &CoursePlan, moves: &PlannedMove, bytes: Option<u64>) -> String {
    let mut text = match plan.course {
        Some(course) => format!("job {course}: {}", plan.what),
        None => format!("it would {}", plan.what),
    };
    text += &format!("\n  it is on {}", nodes(&sorted(&moves.from)));
    let new: Vec<_> = moves.to.iter().copied().filter(|node| !moves.from.contains(node)).collect();
    match (new.is_empty(), bytes) {
        (true, _) => text += "\n  no replica needs to be made",
        (false, None) => text += &format!("\n  new replicas on {}", nodes(&sorted(&new))),
        (false, Some(bytes)) => {
            text += &format!("\n  new replicas on {}, each of {}", nodes(&sorted(&new)), HumanBytes(bytes));
        }
    }
    text
}

/// How far it is, for people.
fn progress(holders: &[NodeId], copied: Option<Progress>, message: &str) -> String {
    let mut text = format!("on {}", nodes(holders));
    if let Some(Progress { done, total }) = copied {
        let share = (done * 100).checked_div(total).unwrap_or(100).min(100);
        text += &format!("  copying {share:>3} %  {}", HumanBytes(done));
    }
    format!("{text}  {message}")
}

/// Whether it is where it was to be.
fn ended(course: u64, shard: &str, moves: &PlannedMove, holders: &[NodeId]) -> Result<(), Failure> {
    if holders == sorted(&moves.to) {
        return Ok(());
    }
    let message = format!("job {course} was ended before all was moved: {shard} is on {}", nodes(holders));
    let error = WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
    Err(Failure::Cluster(error.with_hint("The same command has it go on.")))
}

/// The nodes that hold the shard now.
fn holders(status: &ClusterStatus, moves: &PlannedMove) -> Vec<NodeId> {
    let shard = status.state.topology.shards.values().find(|shard| shard.group == moves.group);
    shard.map_or_else(Vec::new, |shard| sorted(&shard.replicas))
}

fn size(status: &ClusterStatus, moves: &PlannedMove) -> Option<u64> {
    let of_shard = status.replicas.iter().filter(|replica| replica.group == moves.group);
    let bytes =
        of_shard.filter(|replica| moves.from.contains(&replica.node)).map(|replica| replica.bytes).max();
    // None is that small: nobody has looked yet.
    bytes.filter(|bytes| *bytes > 0)
}

/// How much of an image has come to a node that is to hold the shard.
fn copied(status: &ClusterStatus, moves: &PlannedMove) -> Option<Progress> {
    let of_shard = status.replicas.iter().filter(|replica| replica.group == moves.group);
    of_shard.filter(|replica| moves.to.contains(&replica.node)).find_map(|replica| replica.image)
}

fn sorted(nodes: &[NodeId]) -> Vec<NodeId> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    nodes
}

fn numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::GroupId;

    fn ids(nodes: &[u64]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn moves(from: &[u64], to: &[u64]) -> PlannedMove {
        PlannedMove { group: GroupId(4), from: ids(from), to: ids(to) }
    }

    #[test]
    fn a_plan_says_which_replicas_are_made() {
        let what = || "move main/-80 to nodes 4, 3, 1".to_owned();
        let plan = CoursePlan { course: Some(12), what: what(), moves: None };
        let expected = "job 12: move main/-80 to nodes 4, 3, 1\n  it is on nodes 1, 2, 3\n  \
            new replicas on node 4, each of 53.00 MiB";
        assert_eq!(told(&plan, &moves(&[3, 2, 1], &[4, 3, 1]), Some(53 << 20)), expected);
        let dry = CoursePlan { course: None, ..plan.clone() };
        let expected =
            "it would move main/-80 to nodes 4, 3, 1\n  it is on node 9\n  new replicas on nodes 1, 3, 4";
        assert_eq!(told(&dry, &moves(&[9], &[4, 3, 1]), None), expected);
        assert!(told(&plan, &moves(&[1, 2], &[2, 1]), Some(1)).ends_with("no replica needs to be made"));
        let line = json(&plan_line(&dry, &moves(&[3, 2, 1], &[4, 3, 1]), Some(7)));
        let expected = r#"{"course":null,"what":"move main/-80 to nodes 4, 3, 1","from":[1,2,3],"to":[1,3,4],"bytes":7}"#;
        assert_eq!(line, expected);
    }

    #[test]
    fn it_says_how_far_it_is() {
        let half = Some(Progress { done: 1 << 20, total: 2 << 20 });
        assert_eq!(
            progress(&ids(&[1, 2]), half, "1 group left"),
            "on nodes 1, 2  copying  50 %  1.00 MiB  1 group left"
        );
        assert_eq!(progress(&ids(&[1]), None, "nearly done"), "on node 1  nearly done");
        let expected = r#"{"course":7,"done":false,"nodes":[1],"bytes_done":1048576,"bytes_total":2097152,"message":"so"}"#;
        assert_eq!(json(&line(7, false, &ids(&[1]), half, "so")), expected);
    }

    #[test]
    fn whoever_was_stopped_is_not_done() {
        assert!(ended(7, "main/-80", &moves(&[1, 2], &[3, 1]), &ids(&[1, 3])).is_ok());
        let failure = ended(7, "main/-80", &moves(&[1, 2], &[3, 1]), &ids(&[1, 2])).unwrap_err();
        assert!(
            failure
                .to_string()
                .starts_with("job 7 was ended before all was moved: main/-80 is on nodes 1, 2 ")
        );
        assert_eq!(failure.exit_code(), 1);
    }
}
