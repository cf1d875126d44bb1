//! Kills a random node of three, again and again, and measures how long its clients' neighbours go without service.

use super::{Arguments, Failure, PATIENCE, Stage, summary};
use std::time::Instant;

pub fn run(arguments: &Arguments, rounds: u32, seed: u64) -> Result<(), Failure> {
    let mut stage = Stage::set(arguments, &[])?;
    let mut random = seed;
    let (mut of_leaders, mut of_others, mut errors, mut rows) = (Vec::new(), Vec::new(), 0, 0);
    for round in 1..=rounds {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let victim = (random >> 33) as usize % stage.nodes.count();
        let asked = (victim + 1) % stage.nodes.count();
        let id = stage.nodes.id(victim).ok_or("a node without an id")?;
        let led = stage.led(victim, asked).ok_or("no status")?;
        let led_rows = led.iter().any(|shard| shard.starts_with("main/"));

        // Clients of the victim lose their connections; what the others measure is the cluster's own time.
        let others: Vec<usize> = (0..stage.nodes.count()).filter(|node| *node != victim).collect();
        let load = stage.load(&others);
        let stranded = stage.load(&[victim, asked]);
        if !load.wait_for_each(20, PATIENCE) || !stranded.wait_for_each(5, PATIENCE) {
            return Err(format!("round {round}: nothing is acknowledged before the kill").into());
        }
        let killed = Instant::now();
        stage.nodes.kill(victim);
        if !load.wait_for_each(20, PATIENCE) || !stranded.wait_for_each(5, PATIENCE) {
            return Err(format!("round {round}: no service {PATIENCE:?} after the death of a node").into());
        }
        let served = Instant::now();
        let logs = stage.end(load);
        let stranded = stage.end(stranded);
        stage.check(asked, &logs)?;
        stage.check(asked, &stranded)?;
        let gap = logs.iter().map(|log| log.longest_gap(killed, served)).max().unwrap_or_default();
        errors += logs.iter().chain(&stranded).map(|log| log.errors.len()).sum::<usize>();
        for error in logs.iter().chain(&stranded).flat_map(|log| &log.errors) {
            println!("  a client saw: {error}");
        }
        rows += logs.iter().chain(&stranded).map(|log| log.written.len()).sum::<usize>();
        println!("round {round}: node {id} (led {led:?}) killed; longest time without service {gap:.2?}");
        if led_rows {
            of_leaders.push(gap)
        } else {
            of_others.push(gap)
        }
        stage.nodes.restart(victim);
        stage.wait_until_level(asked);
    }
    println!("{rows} rows acknowledged, none lost, none twice; {errors} errors on connections that lived");
    summary("without service, a shard's leader killed", &of_leaders);
    summary("without service, another node killed", &of_others);
    Ok(())
}
