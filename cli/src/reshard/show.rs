//! What is printed of a reshard: a line for people, an object for programs, a table of all.

use super::meter::Speed;
use comfy_table::{Table, presets};
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use proto::NodeId;
use proto::services::{ReshardPhase, ReshardPlan, ReshardStatus};
use serde::Serialize;
use std::time::Duration;

/// What `--json` prints of a reshard.
#[derive(Serialize)]
pub struct Line<'a> {
    reshard: u64,
    what: &'a str,
    keyspace: &'a str,
    old: &'a [String],
    new: &'a [String],
    phase: &'static str,
    attempt: u32,
    bytes_done: Option<u64>,
    bytes_total: Option<u64>,
    rows_done: Option<u64>,
    /// Bytes a second.
    rate: Option<u64>,
    lag_ms: Option<u64>,
    remaining_seconds: Option<u64>,
    since_ms: u64,
    paused: Option<&'a str>,
    failed: Option<&'a str>,
    message: &'a str,
    switches: u32,
    /// Transactions that heard 40001 for its switches.
    ended_transactions: u32,
    /// From the last seal to the decision, of the last switch.
    pause_ms: Option<u64>,
}

/// What `--json` prints of a plan.
#[derive(Serialize)]
pub struct PlanLine<'a> {
    reshard: Option<u64>,
    what: &'a str,
    builder: u64,
    shards: Vec<PlannedShard<'a>>,
}

#[derive(Serialize)]
struct PlannedShard<'a> {
    shard: &'a str,
    nodes: Vec<u64>,
}

impl<'a> Line<'a> {
    /// What is known of a reshard.
    pub fn new(status: &'a ReshardStatus, speed: &Speed) -> Self {
        Line {
            reshard: status.id.0,
            what: &status.what,
            keyspace: &status.keyspace,
            old: &status.old,
            new: &status.new,
            phase: status.phase.name(),
            attempt: status.attempt.0,
            bytes_done: status.bytes.map(|bytes| bytes.done),
            bytes_total: status.bytes.map(|bytes| bytes.total),
            rows_done: status.rows,
            rate: speed.rate,
            lag_ms: status.lag.map(millis),
            remaining_seconds: speed.remaining.map(|time| time.as_secs_f64().ceil() as u64),
            since_ms: millis(status.since),
            paused: status.paused.as_deref(),
            failed: status.failed.as_deref(),
            message: &status.message,
            switches: status.switches,
            ended_transactions: status.ended,
            pause_ms: status.pause.map(millis),
        }
    }
}

impl<'a> PlanLine<'a> {
    /// A plan.
    pub fn new(plan: &'a ReshardPlan) -> Self {
        let shard = |(shard, nodes): &'a (String, Vec<_>)| PlannedShard { shard, nodes: numbers(nodes) };
        PlanLine {
            reshard: plan.reshard.map(|id| id.0),
            what: &plan.what,
            builder: plan.builder.0,
            shards: plan.shards.iter().map(shard).collect(),
        }
    }
}

fn numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

/// JSON, in one line.
pub fn json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("names and numbers can be written as JSON")
}

/// A plan, for people.
pub fn plan(plan: &ReshardPlan) -> String {
    let mut text = match plan.reshard {
        Some(id) => format!("reshard {id}: {}", plan.what),
        None => format!("it would {}", plan.what),
    };
    text += &format!("\n  built on node {}", plan.builder);
    for (shard, nodes) in &plan.shards {
        text += &format!("\n  {shard} on {}", self::nodes(nodes));
    }
    text
}

/// Nodes, for people.
pub fn nodes(nodes: &[NodeId]) -> String {
    let numbers: Vec<_> = nodes.iter().map(ToString::to_string).collect();
    format!("node{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

/// How far a reshard is in its phase, for people.
pub fn line(status: &ReshardStatus, speed: &Speed) -> String {
    format!("{:<12} {}", status.phase.name(), progress(status, speed)).trim_end().to_owned()
}

fn progress(status: &ReshardStatus, speed: &Speed) -> String {
    let mut parts = Vec::new();
    if let Some(why) = &status.paused {
        parts.push(format!("rests: {why}"));
    }
    if status.phase == ReshardPhase::Switching || status.phase == ReshardPhase::Undoing {
        parts.push(format!("attempt {}", status.attempt));
    }
    if let Some(bytes) = status.bytes {
        let share = (bytes.done * 100).checked_div(bytes.total).unwrap_or(100).min(100);
        parts.push(format!("{share:>3} %"));
        parts.extend(status.rows.map(|rows| format!("{} rows", HumanCount(rows))));
        parts.push(HumanBytes(bytes.done).to_string());
    } else if status.phase == ReshardPhase::Verifying {
        parts.extend(status.rows.map(|rows| format!("{} rows", HumanCount(rows))));
    }
    parts.extend(speed.rate.map(|rate| format!("{}/s", HumanBytes(rate))));
    parts.extend(status.lag.map(|lag| format!("lag {}", time(lag))));
    match speed.gains {
        Some(false) => parts.push("not faster than the writers".to_owned()),
        _ => parts.extend(speed.remaining.map(|left| format!("about {} left", rounded(left)))),
    }
    if status.phase == ReshardPhase::Switched {
        parts.extend(status.completes_in.map(|left| format!("completed in {}", rounded(left))));
    }
    match (&status.failed, status.phase) {
        (Some(why), _) => parts.push(why.clone()),
        (None, ReshardPhase::Ended) => parts.push("completed".to_owned()),
        (None, _) if !status.message.is_empty() => parts.push(status.message.clone()),
        _ => {}
    }
    parts.join("  ")
}

/// Reshards as a table, for people.
pub fn table(all: &[ReshardStatus]) -> String {
    if all.is_empty() {
        return "no reshards".to_owned();
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(["reshard", "what", "phase", "progress", "for"]);
    for status in all {
        let (id, what, phase) = (status.id.to_string(), status.what.clone(), status.phase.name().to_owned());
        let is_over = status.phase == ReshardPhase::Ended;
        let since = if is_over { String::new() } else { rounded(status.since) };
        table.add_row([id, what, phase, progress(status, &Speed::default()), since]);
    }
    table.to_string()
}

/// How the last switch went.
pub fn switch(status: &ReshardStatus) -> String {
    let pause = status
        .pause
        .map_or_else(String::new, |pause| format!(": {} from the last seal to the decision", time(pause)));
    let ended = match status.ended {
        0 => "no transaction ended".to_owned(),
        1 => "1 transaction ended".to_owned(),
        many => format!("{many} transactions ended"),
    };
    format!("switched in attempt {}{pause}, {ended}", status.attempt)
}

/// A time that matters to the millisecond.
fn time(time: Duration) -> String {
    match time.as_millis() {
        ms @ ..1_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// A time that doesn't.
pub fn rounded(time: Duration) -> String {
    HumanDuration(Duration::from_secs(time.as_secs_f64().ceil() as u64)).to_string()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
