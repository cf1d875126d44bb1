//! Reshards driven by chance: what is asked for arrives once, twice, late or never, leaders change, and admins say anything
//! at any time. The invariants are asserted after each event; in the end, when all goes well again, it must come to its end.

use super::Runner;
use super::world::World;
use crate::reshard::machine::{Ask, Event};
use crate::reshard::step::Step;
use proto::services::{ReshardCommand, ReshardPhase};
use proto::{NodeId, ShardId};
use std::time::Duration;

const RESHARDS: u64 = 500;
const EVENTS: u32 = 300;

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[test]
fn whatever_happens_the_invariants_hold_and_there_is_an_end() {
    let (mut switches, mut cancelled, mut given_up) = (0, 0, 0);
    let one: Option<u64> = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = one.map_or(0..RESHARDS, |seed| seed..seed + 1);
    for seed in seeds {
        let runner = std::panic::catch_unwind(|| drive(seed, one.is_some()));
        let runner = runner.unwrap_or_else(|panic| {
            eprintln!("seed {seed}; SEED={seed} tells what happens");
            std::panic::resume_unwind(panic)
        });
        let record = &runner.world.record;
        switches += record.counts.switches;
        cancelled += u32::from(record.cancel);
        given_up += record.attempt.0 - record.counts.switches;
    }
    if one.is_some() {
        return;
    }
    // Chance has come to everything that matters.
    assert!(switches > 300 && cancelled > 30 && given_up > 100, "{switches} {cancelled} {given_up}");
}

fn drive(seed: u64, loud: bool) -> Runner {
    let mut chance = Chance(seed);
    let mut runner = Runner::new();
    let how = (chance.one_in(2), chance.one_in(2));
    let keep = [None, Some(30)][chance.below(2) as usize];
    runner.world = match chance.below(3) {
        0 => World::new(&["-40", "40-80"], &["-80"], how, keep),
        1 => World::new(&["-20", "20-80"], &["-40", "40-60", "60-80"], how, keep),
        _ => World::new(&["-80"], &["-40", "40-80"], how, keep),
    };
    runner.world.behind = chance.below(20);
    for _ in 0..EVENTS {
        act(&mut runner, &mut chance);
        runner.work();
        let told = std::mem::take(&mut runner.world.told);
        told.iter().filter(|_| loud).for_each(|line| eprintln!("{line}"));
    }
    heal(&mut runner, seed);
    runner
}

fn act(runner: &mut Runner, chance: &mut Chance) {
    let asks = runner.world.machine.asks();
    match chance.below(100) {
        // One is answered, or arrives and its answer doesn't, or is on its way for long.
        0..60 if !asks.is_empty() => {
            let ask = &asks[chance.below(asks.len() as u64) as usize];
            let sent = runner.world.send(ask);
            match chance.below(10) {
                0 => runner.delayed.push(sent),
                1 => runner.lost.extend(runner.world.arrive(&sent)),
                n => {
                    runner.world.told.push(format!("{sent:?}"));
                    if let Some(event) = runner.world.arrive(&sent) {
                        if n == 2 {
                            runner.lost.push(event.clone());
                        }
                        runner.hear(event);
                    }
                }
            }
        }
        // What was on its way arrives, perhaps not for the last time.
        60..66 if !runner.delayed.is_empty() => {
            let n = chance.below(runner.delayed.len() as u64) as usize;
            let sent = runner.delayed[n].clone();
            if chance.one_in(2) {
                runner.delayed.swap_remove(n);
            }
            runner.world.told.push(format!("late {sent:?}"));
            if may_arrive(&runner.world, &sent.ask)
                && let Some(event) = runner.world.arrive(&sent)
            {
                runner.lost.push(event);
            }
        }
        66..72 if !runner.lost.is_empty() => {
            let n = chance.below(runner.lost.len() as u64) as usize;
            let event = runner.lost[n].clone();
            if chance.one_in(2) {
                runner.lost.swap_remove(n);
            }
            runner.world.told.push(format!("late {event:?}"));
            runner.hear(event);
        }
        72..82 => runner.pass([250, 1500, 6000][chance.below(3) as usize]),
        82..84 => runner.world.another_leader(),
        84..88 => {
            runner.world.rows(chance.below(4));
            runner.world.trim();
        }
        88..90 => runner.world.flow(),
        90 => runner.world.stuck = chance.one_in(3),
        91 => runner.world.ledger.quiet = !chance.one_in(3),
        92 => runner.world.whole = !chance.one_in(3),
        93 => {
            let busy = u32::from(chance.one_in(3));
            runner.world.groups.values_mut().for_each(|group| group.busy = busy);
        }
        94 => {
            let event = rare(runner, chance);
            runner.world.told.push(format!("{event:?}"));
            runner.hear(event);
        }
        95 | 96 => {
            let commands = [
                (ReshardCommand::Switch, 1),
                (ReshardCommand::Reverse, 1),
                (ReshardCommand::Complete, 3),
                (ReshardCommand::Cancel, 8),
                (ReshardCommand::Pause, 3),
                (ReshardCommand::Resume, 1),
                (ReshardCommand::Verify, 1),
            ];
            let (command, rarity) = commands[chance.below(7) as usize];
            let said = chance.one_in(rarity) && runner.world.write(&Step::Command(command), None).is_ok();
            // Its worker hears of it at once, or when it writes next.
            if said && chance.one_in(2) {
                runner.world.machine.written(runner.world.record.clone());
            }
        }
        97..100 if runner.world.record.phase == ReshardPhase::Ready => {
            let _ = runner.world.write(&Step::Command(ReshardCommand::Switch), None);
            runner.world.machine.written(runner.world.record.clone());
        }
        _ => {}
    }
}

/// What is on its way to nobody doesn't arrive.
fn may_arrive(world: &World, ask: &Ask) -> bool {
    match ask {
        Ask::Hold { group, .. } => world.groups.contains_key(group),
        _ => true,
    }
}

fn rare(runner: &Runner, chance: &mut Chance) -> Event {
    let record = &runner.world.record;
    match chance.below(6) {
        0 => Event::DiskFull { tries: record.tries, directory: "/data/builds".to_owned() },
        1 => Event::BuilderLost { node: record.builder, another: Some(NodeId(record.builder.0 + 1)) },
        2 => Event::GroupLost { group: record.targets()[0].group },
        3 => Event::Overrun { group: record.sources()[0].group },
        4 => Event::Lost { tries: record.tries, what: "by chance".to_owned() },
        _ => Event::Refused {
            shard: ShardId(record.sources()[0].shard.0),
            attempt: record.attempt,
            why: "by chance".to_owned(),
        },
    }
}

/// All goes well from now on.
fn heal(runner: &mut Runner, seed: u64) {
    let world = &mut runner.world;
    (world.stuck, world.whole, world.ledger.quiet, world.behind) = (false, true, true, 0);
    world.groups.values_mut().for_each(|group| group.busy = 0);
    for round in 0..400 {
        runner.world.machine.written(runner.world.record.clone());
        if runner.world.record.phase == ReshardPhase::Ended {
            runner.world.check_end();
            return;
        }
        let command = match runner.world.record.phase {
            _ if runner.world.record.paused.is_some() => Some(ReshardCommand::Resume),
            ReshardPhase::Ready => Some(ReshardCommand::Switch),
            ReshardPhase::Switched if round > 40 => Some(ReshardCommand::Complete),
            _ => None,
        };
        if let Some(command) = command {
            runner.world.write(&Step::Command(command), None).unwrap();
            runner.world.machine.written(runner.world.record.clone());
            runner.work();
        }
        for ask in runner.world.machine.asks() {
            let sent = runner.world.send(&ask);
            if let Some(event) = runner.world.arrive(&sent) {
                runner.hear(event);
            }
        }
        runner.pass(1000);
        runner.hear(Event::Passed(Duration::from_millis(1)));
        runner.world.told.clear();
    }
    panic!("seed {seed} comes to no end: {:?}", runner.world.record);
}
