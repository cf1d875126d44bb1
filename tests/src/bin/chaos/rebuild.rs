//! Takes a replica away for a while, or its files, and measures how long it takes to be level again, and at what cost.

use super::{Arguments, Failure, PATIENCE, Stage};
use std::time::{Duration, Instant};
use tests::load::{Log, quantile};
use tests::nodes::{self, Nodes, groups};

pub fn run(arguments: &Arguments, rows: u64) -> Result<(), Failure> {
    let mut stage = Stage::set(arguments, &["--replace-after", "10s"])?;
    // The first as it came, the second as one that was away, the third without the files of its replicas, the last
    // without any: it comes back as another node.
    let trials: [(&str, Spoil); 3] = [
        ("stopped meanwhile", |_, _| {}),
        ("its replicas' files deleted", |nodes, node| {
            // A failure shows in what follows.
            drop(std::fs::remove_dir_all(nodes.directory(node).join("groups")));
        }),
        ("its directory deleted", |nodes, node| nodes.wipe(node)),
    ];
    for (what, spoil) in trials {
        let victim = 2;
        let before = stage.load(&[0, 1]);
        if !before.wait_for_each(500, PATIENCE) {
            return Err("the load stands still".into());
        }
        let logs = stage.end(before);
        let usual = median(&logs);
        stage.check(0, &logs)?;

        stage.nodes.kill(victim);
        spoil(&mut stage.nodes, victim);
        let load = stage.load(&[0, 1]);
        let wanted = load.acknowledged() + rows;
        let begun = Instant::now();
        while load.acknowledged() < wanted {
            if !load.wait_for_each(1, PATIENCE) {
                return Err("the load stands still with a node away".into());
            }
        }
        println!("node {victim} {what}: {rows} rows written in {:.1?} without it", begun.elapsed());
        stage.nodes.restart(victim);
        let back = Instant::now();
        stage.nodes.wait_for(0, "every replica is level with its leader", level);
        let level = Instant::now();
        let logs = stage.end(load);
        stage.wait_until_level(0);
        let meanwhile = quantile(logs.iter().flat_map(|log| log.latencies(back, level)), 0.5);
        let ratio = meanwhile.as_secs_f64() / usual.as_secs_f64();
        println!(
            "  level after {:.1?}; a write took {meanwhile:.2?} meanwhile, {usual:.2?} before: {ratio:.2} times",
            level - back
        );
        let errors: Vec<&String> = logs.iter().flat_map(|log| &log.errors).collect();
        println!("  {} errors seen by clients {:?}", errors.len(), errors.first());
        stage.check(0, &logs)?;
    }
    Ok(())
}

/// What is done to a node that has ended.
type Spoil = fn(&mut Nodes, usize);

/// Whether every group has three replicas whose logs lack no more than what is on its way.
fn level(status: &serde_json::Value) -> bool {
    groups(status).all(|group| {
        let replicas = nodes::replicas(group);
        let level = |r: &serde_json::Value| {
            matches!(r["role"].as_str(), Some("leader" | "follower"))
                && r["log_lag"].as_u64().is_some_and(|lag| lag < 100)
        };
        replicas.len() == 3 && replicas.iter().all(level)
    })
}

fn median(logs: &[Log]) -> Duration {
    quantile(logs.iter().flat_map(|log| log.written.iter().map(|w| w.done - w.sent)), 0.5)
}
