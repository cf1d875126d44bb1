//! Replicas over a fake cluster: what is remembered of them, and for how long.

use super::*;
use crate::fake::{Fake, FakePeers};
use proto::RowBatch;
use proto::services::RowSource;

const A: ShardId = ShardId(1);
const MS: Duration = Duration::from_millis(1);
const NONE: LogIndex = LogIndex(0);

struct Bench {
    fake: Arc<Fake>,
    cluster: Arc<Cluster>,
    replicas: Replicas,
}

/// A router in zone "z", and nodes 1 to 3, of which 1 leads. The lot never falls on it.
fn bench() -> Bench {
    let fake = Fake::new(1);
    let cluster = Arc::new(Cluster::new(Arc::new(FakePeers(fake.clone()))));
    fake.place(&[1, 2, 3], 2);
    cluster.install(fake.state());
    let machine = Machine::simulated(|| Duration::ZERO, || 1);
    let replicas = Replicas::new(cluster.clone(), machine, "z".to_owned());
    Bench { fake, cluster, replicas }
}

impl Bench {
    fn change(&self, change: impl FnOnce(&mut Topology)) {
        self.fake.reshape(change);
        self.cluster.install(self.fake.state());
    }

    fn choose(&self) -> (u64, Chosen) {
        let chosen = self.replicas.choose(A, NONE).unwrap();
        (chosen.record.node.id.0, chosen)
    }
}

fn answer(position: u64, waited: Duration) -> Result<FragmentResponse, WireError> {
    let rows = RowSource::Whole(RowBatch::default());
    Ok(FragmentResponse { rows, affected: 0, position: LogIndex(position), waited })
}

#[tokio::test(start_paused = true)]
async fn what_is_known_stays_as_long_as_the_node_is_the_same() {
    let bench = bench();
    let group = bench.cluster.load().topology.shards[&A].group;
    let (node, chosen) = bench.choose();
    chosen.answered(&Err(silent()), MS, true);
    assert!(bench.replicas.seen(group, NodeId(node)).unwrap().avoided);
    bench.change(|_| {});
    assert!(bench.replicas.seen(group, NodeId(node)).unwrap().avoided, "nothing is new but the epoch");
    bench.change(|topology| {
        topology.nodes.get_mut(&NodeId(node)).unwrap().address = "elsewhere:1".into();
    });
    assert!(!bench.replicas.seen(group, NodeId(node)).unwrap().avoided, "it was named anew");
}

#[tokio::test(start_paused = true)]
async fn a_node_of_the_zone_is_near_and_one_of_the_process_nearer() {
    let bench = bench();
    assert_eq!(bench.choose().0, 3, "by lot");
    bench.change(|topology| topology.nodes.get_mut(&NodeId(2)).unwrap().zone = "z".into());
    assert_eq!(bench.choose().0, 2);
    bench.fake.nodes.here.lock().insert(NodeId(3));
    // Who is here is known of each topology.
    bench.change(|topology| topology.nodes.get_mut(&NodeId(3)).unwrap().zone = "y".into());
    assert_eq!(bench.choose().0, 3);
}

#[tokio::test(start_paused = true)]
async fn how_long_answers_take_is_believed_at_once_and_forgotten_slowly() {
    let bench = bench();
    bench.fake.nodes.here.lock().insert(NodeId(2));
    bench.change(|_| {});
    let group = bench.cluster.load().topology.shards[&A].group;
    let latency = || bench.replicas.seen(group, NodeId(2)).unwrap().latency.unwrap();
    let (node, chosen) = bench.choose();
    assert_eq!((node, chosen.patience(50 * MS)), (2, 70 * MS));
    tokio::time::advance(30 * MS).await;
    // It was waiting for the better part.
    chosen.answered(&answer(5, 20 * MS), MS, true);
    assert_eq!(latency(), 10 * MS);
    // A scan takes as long as it does.
    let (node, chosen) = bench.choose();
    assert_eq!(node, 3, "an unknown one promises more");
    drop(chosen);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!((3 * MS..4 * MS).contains(&latency()), "{:?}", latency());
}

#[tokio::test(start_paused = true)]
async fn who_has_given_up_leaves_no_trace() {
    let bench = bench();
    bench.fake.nodes.here.lock().insert(NodeId(2));
    bench.change(|_| {});
    // Each has more to do than the one before, until the other one is better.
    let (first, one) = bench.choose();
    let (second, two) = bench.choose();
    assert_eq!((first, second), (2, 3));
    drop(one);
    assert_eq!(bench.choose().0, 2);
    drop(two);
    two_trials(&bench).await;
}

/// A trial that nobody waits for any more is followed by another.
async fn two_trials(bench: &Bench) {
    let (node, chosen) = bench.choose();
    assert_eq!(node, 2);
    chosen.answered(&Err(silent()), MS, true);
    assert_eq!(bench.choose().0, 3);
    tokio::time::advance(100 * MS).await;
    let (node, trial) = bench.choose();
    assert_eq!((node, bench.choose().0), (2, 3));
    drop(trial);
    let (node, trial) = bench.choose();
    assert_eq!(node, 2);
    trial.answered(&answer(1, Duration::ZERO), MS, false);
    assert_eq!(bench.choose().0, 2);
}

#[tokio::test(start_paused = true)]
async fn waits_are_averaged_over_time() {
    let (mut waited, mut now) = (Fading::default(), machine::now());
    let half_life = waited_half_life();
    let after =
        |waited: &Fading, ms: u32, now: Instant| waited.now(half_life, now + ms * MS).as_secs_f64() * 1e3;
    waited.take(40 * MS, half_life, now);
    assert_eq!(
        (after(&waited, 0, now), after(&waited, 250, now), after(&waited, 500, now)),
        (40.0, 20.0, 10.0)
    );
    now += 250 * MS;
    waited.take(Duration::ZERO, half_life, now);
    assert_eq!(after(&waited, 0, now), 20.0);
    waited.take_peak(30 * MS, half_life, now);
    assert_eq!(after(&waited, 0, now), 30.0);
    waited.take_peak(10 * MS, half_life, now + 250 * MS);
    assert_eq!(after(&waited, 250, now), 20.0);
}
