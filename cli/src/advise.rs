//! `shoal advise`: what could be done.
//!
//! In comes what the coordinator advises, out go lines, each with the command that does it, as it can be typed. Nothing is done here.

use crate::admin;
use crate::arguments;
use crate::failure::Failure;
use crate::listings::print;
use proto::services::{Advice, Remedy};
use serde::Serialize;

#[derive(Serialize)]
struct AdviceLine {
    why: String,
    /// Null if no command does it.
    command: Option<String>,
}

/// Asks, and prints what is said.
pub async fn run(options: arguments::Status) -> Result<(), Failure> {
    let advice =
        admin::ask_leader(&options.admin, |coordinator| Box::pin(async move { coordinator.advise().await }))
            .await?;
    let known = std::env::var("SHOAL_HOST").ok();
    let host = Some(options.admin.host.as_str()).filter(|host| known.as_deref() != Some(host));
    print(&options, &lines(advice, host), text)
}

/// `host` is where commands go, if they don't know.
fn lines(advice: Vec<Advice>, host: Option<&str>) -> Vec<AdviceLine> {
    let line = |Advice { why, remedy }| {
        let command = remedy.map(|remedy| {
            let mut words = words(&remedy);
            words.extend(host.iter().flat_map(|host| ["--host".to_owned(), (*host).to_owned()]));
            words.join(" ")
        });
        AdviceLine { why, command }
    };
    advice.into_iter().map(line).collect()
}

/// A command, word by word. None has a blank or anything that a shell knows: names of shards have letters, digits, `_`, `/`
/// and `-` alone.
fn words(remedy: &Remedy) -> Vec<String> {
    let line = match remedy {
        Remedy::Split { shard, parts: Some(parts) } => format!("shoal reshard split {shard} --into {parts}"),
        Remedy::Split { shard, parts: None } => format!("shoal reshard split {shard} --median"),
        Remedy::Merge { shards } => format!("shoal reshard merge {}", shards.join(" ")),
        Remedy::Move { shard, from, to } => format!("shoal reshard move {shard} --from {from} --to {to}"),
        Remedy::Lead { shard, node } => format!("shoal replica transfer-leader --shard {shard} --to {node}"),
        Remedy::Drain(node) => format!("shoal node drain {node}"),
    };
    line.split(' ').map(str::to_owned).collect()
}

fn text(lines: &[AdviceLine]) -> String {
    if lines.is_empty() {
        return "there is nothing to be done".to_owned();
    }
    let line = |line: &AdviceLine| match &line.command {
        Some(command) => format!("{}\n    {command}", line.why),
        None => line.why.clone(),
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command, NodeAdmin, Replica, Reshard};
    use clap::Parser;
    use proto::NodeId;

    /// A remedy, as the command's own parser reads what is printed.
    fn read(line: &str) -> Remedy {
        let node = NodeId;
        match Arguments::try_parse_from(line.split(' ')).unwrap().command {
            Command::Reshard(Reshard::Split { shard, into, at, median, .. }) => {
                assert!(at.is_empty() && median == into.is_none(), "{line}");
                Remedy::Split { shard, parts: into }
            }
            Command::Reshard(Reshard::Merge { shards, .. }) => Remedy::Merge { shards },
            Command::Reshard(Reshard::Move(options)) => {
                let [to] = options.to[..] else { panic!("{line}") };
                Remedy::Move { shard: options.shard, from: node(options.from.unwrap()), to: node(to) }
            }
            Command::Replica(Replica::TransferLeader { target, to }) => {
                Remedy::Lead { shard: target.shard, node: node(to) }
            }
            Command::Node(of) => match of.admin {
                Some(NodeAdmin::Drain { node: id, .. }) => Remedy::Drain(node(id)),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_command_runs_as_it_is_printed() {
        let shard = || "main/-80".to_owned();
        let remedies = [
            Remedy::Split { shard: shard(), parts: Some(4) },
            Remedy::Split { shard: "event/-".into(), parts: None },
            Remedy::Merge { shards: vec![shard(), "main/80-c0".into()] },
            Remedy::Move { shard: shard(), from: NodeId(1), to: NodeId(4) },
            Remedy::Lead { shard: shard(), node: NodeId(3) },
            Remedy::Drain(NodeId(2)),
        ];
        for remedy in remedies {
            let advice = vec![Advice { why: String::new(), remedy: Some(remedy.clone()) }];
            let [line] = &lines(advice, Some("h:1"))[..] else { panic!("it is one") };
            let command = line.command.as_deref().unwrap();
            assert!(command.ends_with(" --host h:1"), "{command}");
            assert_eq!(read(command), remedy, "{command}");
        }
    }

    #[test]
    fn each_line_has_its_command() {
        assert_eq!(text(&[]), "there is nothing to be done");
        let line = |why: &str, remedy| Advice { why: why.into(), remedy };
        let advice = vec![line("node 3 is silent", Some(Remedy::Drain(NodeId(3)))), line("keys grow", None)];
        assert_eq!(text(&lines(advice, None)), "node 3 is silent\n    shoal node drain 3\nkeys grow");
    }
}
