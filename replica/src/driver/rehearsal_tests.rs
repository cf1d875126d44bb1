//! Rehearsals among everything else that a leader's engine does, turn by turn.

use super::world::{ELECTION, GROUP, TICK, World, later};
use crate::overlay::{Overlay, Rehearsal, Rehearsed};
use crate::simulation::holds_lease;
use crate::{Pieces, Replay, Replica, SchemaEntry, Stage, Staging, Write};
use bytes::Bytes;
use futures::poll;
use parking_lot::Mutex;
use proto::services::Consistency::Strong;
use proto::{LogIndex, NodeId, Retry, RouterIncarnation, SqlState, Term, TransactionId, WireError};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const COUNT: &str = "SELECT count(*) FROM t1";

/// Inserts a row if there is one to insert, and tells how many there are.
fn step(overlay: &Overlay, row: Option<i64>) -> Rehearsal {
    let run = Box::new(move |stage: &Stage<'_>| {
        let count = || -> rusqlite::Result<i64> {
            if let Some(row) = row {
                stage.execute("INSERT INTO t1 VALUES (?1)", [row])?;
            }
            stage.query_row(COUNT, [], |row| row.get(0))
        };
        count().map(|count| count.to_string().into()).map_err(dialect::sqlite::error)
    });
    Rehearsal { overlay: overlay.clone(), bare: false, deadline: later(), run }
}

fn seen(rehearsed: &Rehearsed) -> &str {
    std::str::from_utf8(&rehearsed.output).unwrap()
}

impl World {
    /// Three nodes, one of which leads and holds a lease.
    async fn leased() -> (World, Replica) {
        let world = World::new(3);
        world.pass(ELECTION).await;
        let leader = world.leader();
        let reader = leader.clone();
        world.finish(async move { reader.snapshot(Strong, later()).await.map(drop) }).await.unwrap();
        assert!(holds_lease(&leader));
        (world, leader)
    }

    /// Lets everything happen until this has.
    async fn finish<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let task = tokio::spawn(future);
        while !task.is_finished() {
            self.settle().await;
        }
        task.await.unwrap()
    }

    async fn rehearse(&self, replica: &Replica, rehearsal: Rehearsal) -> Result<Rehearsed, WireError> {
        let replica = replica.clone();
        self.finish(async move { replica.rehearse(rehearsal).await }).await
    }

    /// Whether a replica's writer has a transaction open.
    fn is_open(&self, replica: &Replica) -> bool {
        let writer = rusqlite::Connection::open(replica.shared().readers.path()).unwrap();
        writer.busy_timeout(Duration::ZERO).unwrap();
        writer.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_err()
    }
}

fn overlays_applied(replica: &Replica) -> u64 {
    replica.shared().metrics.overlays_applied.get()
}

#[tokio::test]
async fn a_leader_rehearses_and_shows_it_to_nobody() {
    let (world, leader) = World::leased().await;
    let index = world.write(&leader, 1).await.unwrap();
    let overlay = Overlay::new();
    let rehearsed = world.rehearse(&leader, step(&overlay, Some(2))).await.unwrap();
    assert_eq!((seen(&rehearsed), rehearsed.index), ("2", LogIndex(index)));
    assert!(world.is_open(&leader));
    let reader = leader.clone();
    let committed = world.finish(async move {
        let snapshot = reader.snapshot(Strong, later()).await.unwrap();
        snapshot.connection().query_row(COUNT, [], |row| row.get::<_, i64>(0)).unwrap()
    });
    assert_eq!(committed.await, 1);
    for node in world.others(leader.status().node) {
        let error = world.rehearse(&world.replica(node), step(&overlay, Some(3))).await.unwrap_err();
        assert_eq!(error.retry, Retry::NotLeader(Some(leader.status().node)));
    }
    let error = world.rehearse(&leader, step(&overlay, Some(1))).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::UNIQUE_VIOLATION);
    let index = world.write(&leader, 9).await.unwrap();
    assert!(!world.is_open(&leader));
    let rehearsed = world.rehearse(&leader, step(&overlay, None)).await.unwrap();
    assert_eq!((seen(&rehearsed), rehearsed.index, overlay.len()), ("3", LogIndex(index), 1));
}

#[tokio::test]
async fn an_overlay_is_applied_once_for_steps_that_follow_each_other() {
    let (world, leader) = World::leased().await;
    let (one, other) = (Overlay::new(), Overlay::new());
    let before = overlays_applied(&leader);
    for row in 1..=5 {
        world.rehearse(&leader, step(&one, Some(row))).await.unwrap();
    }
    assert_eq!(overlays_applied(&leader) - before, 1);
    world.rehearse(&leader, step(&other, Some(11))).await.unwrap();
    assert_eq!(overlays_applied(&leader) - before, 2);
    // Those that wait together have one turn, and who needs nothing undone goes first.
    let (mut a, mut b) = (pin!(leader.rehearse(step(&one, None))), pin!(leader.rehearse(step(&other, None))));
    assert!(poll!(a.as_mut()).is_pending() && poll!(b.as_mut()).is_pending());
    world.settle().await;
    assert_eq!((seen(&a.await.unwrap()), seen(&b.await.unwrap())), ("5", "1"));
    assert_eq!(overlays_applied(&leader) - before, 3);
    one.truncate(2);
    assert_eq!(seen(&world.rehearse(&leader, step(&one, None)).await.unwrap()), "2");
    assert_eq!(overlays_applied(&leader) - before, 4);
}

/// Else each step of a big transaction would cost as much as all before it.
#[tokio::test]
async fn others_wait_while_steps_above_a_big_overlay_follow_each_other() {
    let (world, leader) = World::leased().await;
    let ms = Duration::from_millis;
    for (took, is_slice) in [(ms(1), false), (ms(10), true)] {
        let overlay = Overlay::new();
        let delay = world.delay();
        let run = Box::new(move |_: &Stage<'_>| {
            delay(took);
            Ok(Bytes::new())
        });
        let slow = Rehearsal { overlay: overlay.clone(), bare: false, deadline: later(), run };
        world.rehearse(&leader, slow).await.unwrap();
        let applied = overlays_applied(&leader);
        let writer = leader.clone();
        let run = Box::new(|_: &Stage<'_>| Ok(Bytes::new()));
        let write = Write { request: None, settled: 0, deadline: later(), run };
        let write = tokio::spawn(async move { writer.write(write).await });
        tokio::task::yield_now().await;
        world.settle().await;
        assert_eq!(!write.is_finished(), is_slice);
        if is_slice {
            for _ in 0..3 {
                world.delay()(ms(1));
                world.rehearse(&leader, step(&overlay, None)).await.unwrap();
            }
            assert!(overlays_applied(&leader) == applied && !write.is_finished());
            world.delay()(ms(3));
            world.settle().await;
        }
        write.await.unwrap().unwrap();
        world.rehearse(&leader, step(&overlay, None)).await.unwrap();
        assert_eq!(overlays_applied(&leader), applied + 1);
    }
}

/// What a transaction had locked is known in its own term alone.
#[tokio::test]
async fn staged_changes_are_made_in_the_term_that_was_meant_or_not_at_all() {
    let (world, leader) = World::leased().await;
    let owner = TransactionId { router: RouterIncarnation(1), sequence: 2 };
    let now = leader.status().term.0;
    let before = leader.status().applied.0;
    for (term, is_done) in [(now - 1, false), (now + 1, false), (now, true)] {
        let replay = Replay {
            request: None,
            settled: 0,
            output: Bytes::new(),
            staging: Staging { table: "staged", owner },
            pieces: Pieces::default(),
            strike: Vec::new(),
            term: Some(Term(term)),
            deadline: later(),
        };
        let replica = leader.clone();
        let replayed = world.finish(async move { replica.replay(replay).await }).await;
        match replayed {
            Ok(index) => assert!(is_done && index.0 == before + 1),
            Err(error) => assert!(!is_done && matches!(error.retry, Retry::NotLeader(_)), "{error}"),
        }
    }
}

/// Neither those who write nor those who rehearse keep the others from it.
#[tokio::test]
async fn rehearsals_and_batches_take_turns() {
    let (world, leader) = World::leased().await;
    let order = Arc::new(Mutex::new(String::new()));
    let note = |what: char| {
        let order = order.clone();
        Box::new(move |_: &Stage<'_>| {
            order.lock().push(what);
            Ok(Bytes::new())
        })
    };
    let mut tasks = Vec::new();
    for _ in 0..150 {
        let (replica, run) = (leader.clone(), note('r'));
        let rehearsal = Rehearsal { overlay: Overlay::new(), bare: false, deadline: later(), run };
        tasks.push(tokio::spawn(async move { replica.rehearse(rehearsal).await.map(drop) }));
    }
    for _ in 0..800 {
        let (replica, run) = (leader.clone(), note('w'));
        let write = Write { request: None, settled: 0, deadline: later(), run };
        tasks.push(tokio::spawn(async move { replica.write(write).await.map(drop) }));
    }
    let all_wait = || {
        let shared = leader.shared();
        let inbox = shared.inbox();
        (inbox.rehearsals.len(), inbox.writes.len()) == (150, 800)
    };
    while !all_wait() {
        tokio::task::yield_now().await;
    }
    world.settle().await;
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let order = std::mem::take(&mut *order.lock());
    let expected = "r".repeat(64) + &"w".repeat(800) + &"r".repeat(86);
    assert_eq!(order, expected);

    // A batch that is under way is waited for. Nobody has taken a step for so long that it waits for company.
    world.pass(TICK).await;
    world.stall(leader.status().node, true);
    let (one, two) = (Overlay::new(), Overlay::new());
    let write = leader.clone();
    let run = Box::new(|stage: &Stage<'_>| {
        stage.execute("INSERT INTO t1 VALUES (1)", []).map(|_| Bytes::new()).map_err(dialect::sqlite::error)
    });
    let write = async move { write.write(Write { request: None, settled: 0, deadline: later(), run }).await };
    let mut write = pin!(write);
    assert!(poll!(write.as_mut()).is_pending());
    let mut steps = (pin!(leader.rehearse(step(&one, None))), pin!(leader.rehearse(step(&two, None))));
    assert!(poll!(steps.0.as_mut()).is_pending());
    // Rehearsals had the last turn.
    let loops = &world.nodes[&leader.status().node].loops;
    assert!(loops.step_engine(GROUP));
    assert!(poll!(steps.1.as_mut()).is_pending());
    assert!(!loops.step_engine(GROUP), "the batch is open until it's known what becomes of it");
    world.stall(leader.status().node, false);
    world.settle().await;
    let index = write.await.unwrap().index;
    for answer in [steps.0.await.unwrap(), steps.1.await.unwrap()] {
        assert_eq!((seen(&answer), answer.index), ("1", index));
    }
}

#[tokio::test]
async fn a_batch_waits_a_moment_for_company() {
    let (world, leader) = World::leased().await;
    let overlays: Vec<Overlay> = (0..4).map(|_| Overlay::new()).collect();
    for (n, overlay) in overlays.iter().enumerate() {
        world.rehearse(&leader, step(overlay, Some(10 + n as i64))).await.unwrap();
    }
    let node = leader.status().node;
    world.stall(node, true);
    let run = Box::new(|stage: &Stage<'_>| {
        stage.execute("INSERT INTO t1 VALUES (1)", []).map(|_| Bytes::new()).map_err(dialect::sqlite::error)
    });
    let mut write = pin!(leader.write(Write { request: None, settled: 0, deadline: later(), run }));
    assert!(poll!(write.as_mut()).is_pending());
    let loops = &world.nodes[&node].loops;
    assert!(!loops.step_engine(GROUP), "others are about to end");
    let mut another = pin!(leader.rehearse(step(&overlays[0], None)));
    assert!(poll!(another.as_mut()).is_pending());
    assert!(loops.step_engine(GROUP), "their steps go on");
    assert!(!loops.step_engine(GROUP));
    assert_eq!(seen(&another.await.unwrap()), "1", "its own row is there, and the write hasn't run");
    world.nanos.fetch_add(2_000_000, Ordering::Relaxed);
    assert!(loops.step_engine(GROUP), "it waits no longer");
    world.stall(node, false);
    world.settle().await;
    write.await.unwrap();
}

#[tokio::test]
async fn a_deposed_leader_undoes_what_it_rehearsed_and_tells_nothing_of_it() {
    let (world, old) = World::leased().await;
    let node = old.status().node;
    let overlay = Overlay::new();
    world.rehearse(&old, step(&overlay, Some(1))).await.unwrap();
    world.pass(TICK * 20).await;
    assert!(!holds_lease(&old));
    world.isolate(node);
    let mut unproved = pin!(old.rehearse(step(&overlay, Some(2))));
    assert!(poll!(unproved.as_mut()).is_pending());
    world.settle().await;
    assert!(poll!(unproved.as_mut()).is_pending(), "another may lead, and have changed what it saw");
    assert!(old.is_leader() && world.is_open(&old));
    world.pass(ELECTION).await;
    assert!(!old.is_leader() && !world.is_open(&old), "it has nothing open for others to wait for");
    assert!(matches!(unproved.await.unwrap_err().retry, Retry::NotLeader(_)));
    assert_eq!(overlay.len(), 1, "nobody has heard of the second step");
    let led_by = |node: &NodeId| world.replica(*node).is_leader();
    let new = world.replica(world.others(node).into_iter().find(led_by).unwrap());
    world.write(&new, 1).await.unwrap();
    world.heal();
    world.pass(ELECTION).await;
    assert_eq!(old.status().applied, new.status().applied);
    let error = world.rehearse(&old, step(&overlay, None)).await.unwrap_err();
    assert_eq!(error.retry, Retry::NotLeader(Some(new.status().node)));
}

#[tokio::test]
async fn a_leader_of_a_later_term_applies_the_overlay_anew() {
    let (world, leader) = World::leased().await;
    let node = leader.status().node;
    let overlay = Overlay::new();
    let term = |replica: Replica| {
        let run = Box::new(|stage: &Stage<'_>| Ok(stage.term().0.to_string().into()));
        let rehearsal = Rehearsal { overlay: overlay.clone(), bare: false, deadline: later(), run };
        let world = &world;
        async move { seen(&world.rehearse(&replica, rehearsal).await.unwrap()).to_owned() }
    };
    world.rehearse(&leader, step(&overlay, Some(1))).await.unwrap();
    assert_eq!(term(leader.clone()).await, leader.status().term.0.to_string());
    let before = leader.status().term;
    let mut now = leader.clone();
    while now.status().node != node || now.status().term == before {
        let to = if now.status().node == node { world.others(node)[0] } else { node };
        let (from, to) = (now, world.replica(to));
        let target = to.status().node;
        let transfer = tokio::spawn(async move { from.transfer_leader(target, later()).await });
        while !transfer.is_finished() {
            world.pass(TICK).await;
        }
        transfer.await.unwrap().unwrap();
        world.pass(TICK * 5).await;
        now = to;
    }
    assert_eq!(term(now.clone()).await, now.status().term.0.to_string());
    assert_eq!(seen(&world.rehearse(&now, step(&overlay, None)).await.unwrap()), "1");
}

#[tokio::test]
async fn a_step_that_is_given_up_leaves_nothing() {
    let (world, leader) = World::leased().await;
    let overlay = Overlay::new();
    world.rehearse(&leader, step(&overlay, Some(1))).await.unwrap();
    {
        let mut waiting = pin!(leader.rehearse(step(&overlay, Some(2))));
        assert!(poll!(waiting.as_mut()).is_pending());
    }
    world.settle().await;
    assert_eq!(overlay.len(), 1, "it was given up before its turn");
    world.pass(TICK * 20).await;
    world.isolate(leader.status().node);
    {
        let mut unproved = pin!(leader.rehearse(step(&overlay, Some(2))));
        assert!(poll!(unproved.as_mut()).is_pending());
        world.settle().await;
        assert_eq!(overlay.len(), 2, "it ran");
        assert!(poll!(unproved.as_mut()).is_pending());
    }
    assert_eq!(overlay.len(), 1);
    world.heal();
    world.pass(TICK * 5).await;
    world.stall(leader.status().node, true);
    let late = Rehearsal { deadline: Instant::now(), ..step(&overlay, Some(2)) };
    assert_eq!(world.rehearse(&leader, late).await.unwrap_err().retry, Retry::Later);
    world.stall(leader.status().node, false);
    assert_eq!(seen(&world.rehearse(&leader, step(&overlay, None)).await.unwrap()), "1");
}

#[tokio::test]
async fn what_alters_a_table_ends_those_who_have_changed_it() {
    let (world, leader) = World::leased().await;
    let overlay = Overlay::new();
    world.rehearse(&leader, step(&overlay, Some(1))).await.unwrap();
    let alter = SchemaEntry {
        id: (1, 1),
        statements: vec!["ALTER TABLE t1 ADD COLUMN c2 INTEGER".to_owned()],
        require_empty: vec!["t1".to_owned()],
        notes: Vec::new(),
        deadline: later(),
    };
    let replica = leader.clone();
    world.finish(async move { replica.schema(alter).await }).await.unwrap();
    let error = world.rehearse(&leader, step(&overlay, None)).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::SERIALIZATION_FAILURE);
    assert_eq!(overlay.len(), 1);
}

#[tokio::test]
async fn a_resident_overlay_keeps_nobody_from_emptying_the_wal_or_closing() {
    let mut world = World::with(1, |config| {
        config.checkpoint_bytes = 64 << 10;
        config.hold_bytes = 128 << 10;
    });
    world.pass(ELECTION).await;
    let leader = world.leader();
    let overlay = Overlay::new();
    for number in 0..100 {
        world.write_bytes(&leader, number, 10_000).await.unwrap();
        let row = i64::try_from(number).unwrap();
        world.rehearse(&leader, step(&overlay, Some(row))).await.unwrap();
        assert!(leader.status().wal_bytes < 256 << 10, "{:?}", leader.status());
    }
    assert_eq!(overlay.len(), 100);
    assert!(world.is_open(&leader));
    let node = leader.status().node;
    world.nodes[&node].host.shutdown();
    assert!(!world.is_open(&leader));
    let stopped = world.rehearse(&leader, step(&overlay, None)).await.unwrap_err();
    assert!(matches!(stopped.retry, Retry::NotLeader(_)), "{stopped:?}");
    world.restart(node);
    world.pass(ELECTION).await;
    assert_eq!(world.rows(node).0, 100);
}
