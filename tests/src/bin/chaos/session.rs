//! Writes over one router and reads over another, at the level `session` and with followers that lag: the token is carried
//! from the one to the other by the client.
//!
//! A read that lacks what its token stands for fails the trial, and so does a statement that takes longer than its deadline, and
//! an error that nothing explains. Where nobody dies there are none at all; where nodes do, most pairs must be answered. So that
//! this means something, some pairs are made without a token first, and must have stale reads; and of the reads with one a good
//! part must each have been served by a follower at once, by one that waited, and by the leader in place of one that couldn't.

use super::{Arguments, Failure, Stage, victims};
use clap::Args;
use std::time::{Duration, Instant};
use tests::figures::figure;
use tests::load::quantile;
use tests::nodes::groups;
use tests::pooler::Pooler;
use tests::sessions::{self, Pairs, Plan, Tally};
use tests::tools;

/// Each way must have served so many of the reads, in percent.
const LEAST_SHARE: f64 = 10.0;
/// So many of the pairs must be answered while nodes are killed, in percent.
const LEAST_ANSWERED: f64 = 90.0;
/// How many connections a pooler has to each router.
const POOLED: usize = 4;

#[derive(Debug, Args)]
pub struct Session {
    /// How many pairs of a write and a read are made with a token
    #[arg(long, default_value_t = 100_000)]
    pairs: i64,
    /// How many are made without one, before
    #[arg(long, default_value_t = 2000)]
    control: i64,
    /// How many clients make them: 32, or 8 through a pooler, where more queue for connections until followers have caught up
    #[arg(long)]
    clients: Option<usize>,
    /// How late followers apply what they are sent
    #[arg(long, default_value = "0ms..100ms")]
    lag: String,
    /// Goes through a PgBouncer with four connections to each router; the token travels in the transactions
    #[arg(long, conflicts_with = "kill_every")]
    pooler: bool,
    /// Kills a random node every so many seconds, and starts it again 3 s later. Clients go on over other routers; 0 for never
    #[arg(long, default_value_t = 0)]
    kill_every: u64,
    /// How long that goes on, in seconds, instead of a number of pairs
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// What pauses, rows and victims are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(arguments: &Arguments, trial: &Session) -> Result<(), Failure> {
    let pgbouncer = match trial.pooler.then(|| tools::find("pgbouncer")) {
        Some(None) => return Err("pgbouncer is not installed (Debian's package pgbouncer)".into()),
        Some(found) => found,
        None => None,
    };
    let listen = ["--metrics-listen", "127.0.0.1:0"];
    let mut stage = Stage::set(arguments, &[&["--apply-lag", &trial.lag][..], &listen].concat())?;
    let [writer, reader] = routers(&stage)?;
    let clients = trial.clients.unwrap_or(if trial.pooler { 8 } else { 32 });
    let spots = stage
        .runtime
        .block_on(async { sessions::prepare(&stage.nodes.connect(writer).await, clients).await })?;
    let pooler = match &pgbouncer {
        Some(program) => {
            let databases = [("write", stage.nodes.address(writer)), ("read", stage.nodes.address(reader))];
            Some(Pooler::start(program, &databases, POOLED)?)
        }
        None => None,
    };
    let over = |database, node| match &pooler {
        Some(pooler) => vec![pooler.config(database)],
        None => vec![stage.nodes.config(node)],
    };
    let mut plan = Plan {
        writers: over("write", writer),
        readers: over("read", reader),
        spots,
        pooled: trial.pooler,
        carried: false,
        pairs: trial.control,
        first: 0,
        seed: trial.seed,
        deaths: false,
    };
    println!("writes over node {writer}, reads over node {reader}, followers lag by {}", trial.lag);
    let control = pairs(&stage, &plan)?;
    println!("without a token {} of {} reads were stale", control.stale.0, control.pairs);
    if control.stale.0 == 0 {
        return Err("no read without a token was stale: nothing here lags".into());
    }

    (plan.carried, plan.pairs, plan.first) = (true, trial.pairs, trial.control);
    let tally = if trial.kill_every > 0 {
        under_kills(&mut stage, trial, plan)?
    } else {
        let before = Served::so_far(&stage);
        let tally = pairs(&stage, &plan)?;
        let served = Served::so_far(&stage).since(&before);
        served.tell();
        served.check()?;
        tally
    };
    if let Some(wrong) = tally.wrong.first() {
        return Err(format!("{} answers are wrong; the first: {wrong}", tally.wrong.len()).into());
    }
    if let (times, Some(first)) = &tally.stale {
        return Err(format!("{times} reads were stale; the first: {first}").into());
    }
    Ok(())
}

/// The routers that write and read: the reader's node leads no shard of `main`.
fn routers(stage: &Stage) -> Result<[usize; 2], Failure> {
    let status = stage.nodes.status(0).ok_or("no status")?;
    let names =
        groups(&status).filter_map(|group| group["shard"].as_str()).filter(|s| s.starts_with("main/"));
    for (number, shard) in names.enumerate() {
        let to = number % 2;
        let id = stage.nodes.id(to).ok_or("a node without an id")?.to_string();
        let moved = stage.nodes.shoal(0, &["replica", "transfer-leader", "--shard", shard, "--to", &id]);
        if !moved.status.success() && stage.nodes.leader(0, shard) != Some(to) {
            return Err(format!("{shard}: {}", String::from_utf8_lossy(&moved.stderr)).into());
        }
    }
    Ok([0, 2])
}

/// Makes pairs on a cluster that is well, where nobody should see an error.
fn pairs(stage: &Stage, plan: &Plan) -> Result<Tally, Failure> {
    let begun = Instant::now();
    let tally = stage.runtime.block_on(Pairs::start(stage.runtime.handle(), plan).end());
    tell(&tally, begun.elapsed());
    well(&tally)?;
    if tally.failed > 0 || tally.unknown > 0 {
        return Err("not all pairs were answered, and nobody died".into());
    }
    Ok(tally)
}

/// Makes pairs over all routers while nodes are killed.
fn under_kills(stage: &mut Stage, trial: &Session, mut plan: Plan) -> Result<Tally, Failure> {
    let routers: Vec<_> = (0..stage.nodes.count()).map(|node| stage.nodes.config(node)).collect();
    (plan.writers, plan.readers, plan.pairs, plan.deaths) = (routers.clone(), routers, i64::MAX, true);
    let begun = Instant::now();
    let pairs = Pairs::start(stage.runtime.handle(), &plan);
    let (every, end) = (Duration::from_secs(trial.kill_every), begun + Duration::from_secs(trial.seconds));
    let kills = victims::kill(stage, every, end, trial.seed, || pairs.done())?;
    let tally = stage.runtime.block_on(pairs.stop());
    println!("{kills} nodes killed");
    tell(&tally, begun.elapsed());
    well(&tally)?;
    if tally.share() < LEAST_ANSWERED {
        return Err(format!("only {:.1} % of the pairs were answered", tally.share()).into());
    }
    Ok(tally)
}

/// Nothing was told that shouldn't be, and all of it in time.
fn well(tally: &Tally) -> Result<(), Failure> {
    if let Some(wild) = tally.wild.first() {
        return Err(format!("{} errors that no client may see; the first: {wild}", tally.wild.len()).into());
    }
    if tally.is_late() {
        let (write, read) = tally.longest;
        return Err(format!("a write's statement took up to {write:.1?}, a read's {read:.1?}").into());
    }
    Ok(())
}

fn tell(tally: &Tally, took: Duration) {
    let at = |share| quantile(tally.latencies.iter().copied(), share);
    println!(
        "{} pairs in {took:.0?} ({:.0}/s), reads took {:.2?} (median), {:.2?} (p99), {:.2?} (worst); {} stale",
        tally.pairs,
        tally.pairs as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
        tally.stale.0
    );
    println!(
        "{:.2} % of the pairs were answered, {} failed; the longest statement of a write took {:.2?}, of a read {:.2?}",
        tally.share(),
        tally.failed,
        tally.longest.0,
        tally.longest.1
    );
    if tally.unknown > 0 {
        println!("{} writes were told that their position isn't known", tally.unknown);
    }
    if !tally.errors.is_empty() {
        println!("errors: {:?}", tally.errors);
    }
}

/// How reads of shards at the level `session` were served.
struct Served {
    at_once: f64,
    waited: f64,
    /// Asked of the leader, since a replica couldn't reach the token in time.
    fell_back: f64,
    /// All that the leader was asked, for whatever reason.
    by_leader: f64,
}

impl Served {
    fn so_far(stage: &Stage) -> Served {
        let texts: Vec<String> = (0..stage.nodes.count()).map(|node| stage.nodes.metrics(node)).collect();
        let sum = |name, labels: &[&str]| texts.iter().filter_map(|text| figure(text, name, labels)).sum();
        let session = "level=\"session\"";
        Served {
            at_once: sum("shoal_replica_reads_total", &["outcome=\"at_once\""]),
            waited: sum("shoal_replica_reads_total", &["outcome=\"waited\""]),
            fell_back: sum("shoal_reads_total", &[session, "by=\"leader\"", "why=\"behind\""]),
            by_leader: sum("shoal_reads_total", &[session, "by=\"leader\""]),
        }
    }

    fn since(&self, before: &Served) -> Served {
        Served {
            at_once: self.at_once - before.at_once,
            waited: self.waited - before.waited,
            fell_back: self.fell_back - before.fell_back,
            by_leader: self.by_leader - before.by_leader,
        }
    }

    /// The share of each way, in percent.
    fn shares(&self) -> [(&'static str, f64); 3] {
        let all = (self.at_once + self.waited + self.fell_back).max(1.0);
        [("at once", self.at_once), ("after a wait", self.waited), ("by the leader instead", self.fell_back)]
            .map(|(how, count)| (how, 100.0 * count / all))
    }

    fn tell(&self) {
        let shares = self.shares().map(|(how, share)| format!("{how} {share:.1} %")).join(", ");
        println!("reads of shards were served {shares}; the leaders answered {:.0} in all", self.by_leader);
    }

    fn check(&self) -> Result<(), Failure> {
        match self.shares().iter().find(|(_, share)| *share < LEAST_SHARE) {
            Some((how, share)) => Err(format!("only {share:.1} % were served {how}").into()),
            None => Ok(()),
        }
    }
}
