//! Eight clients take jobs from a queue over four shards, add up counters, and move rows: each job is taken once, nothing is
//! counted twice or lost, and no row is in two places.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::future::Future;
use tests::cluster::Cluster;
use tokio_postgres::{Client, NoTls};

const CLIENTS: i32 = 8;
const JOBS: i32 = 120;

async fn connect(cluster: &Cluster) -> Client {
    let (client, connection) = cluster.config().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Has every client do something at once, and gives what each made of it.
fn together<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    setup: &str,
    work: impl Fn(i32, Client) -> F,
    check: impl AsyncFnOnce(Client, Vec<T>),
) {
    let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1", "--shards", "4"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let first = connect(&cluster).await;
        for statement in setup.split(';') {
            first.batch_execute(statement).await.unwrap();
        }
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            clients.push(tokio::spawn(work(number, connect(&cluster).await)));
        }
        let mut done = Vec::new();
        for client in clients {
            done.push(client.await.unwrap());
        }
        check(first, done).await;
    });
}

#[test]
fn each_job_is_taken_once() {
    let setup = format!(
        "CREATE TABLE job (id int PRIMARY KEY, state text NOT NULL, who int);
         INSERT INTO job SELECT {}",
        (1..=JOBS).map(|id| format!("{id}, 'new', NULL::int")).collect::<Vec<_>>().join(" UNION ALL SELECT ")
    );
    let take = |number: i32, client: Client| async move {
        let next = "SELECT id FROM job WHERE state = 'new' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED";
        let update = format!("UPDATE job SET state = 'done', who = $1 WHERE id = ({next}) RETURNING id");
        let with = format!(
            "WITH next AS ({next}) UPDATE job SET state = 'done', who = $1 FROM next WHERE job.id = next.id RETURNING job.id"
        );
        let mut taken = Vec::new();
        loop {
            let sql = if taken.len() % 2 == 0 { &update } else { &with };
            match client.query_opt(sql, &[&number]).await.unwrap() {
                Some(row) => taken.push(row.get::<_, i32>(0)),
                None => {
                    // Others may have the rest locked, and give them back.
                    let left = client.query_one("SELECT count(*) FROM job WHERE state = 'new'", &[]).await;
                    if left.unwrap().get::<_, i64>(0) == 0 {
                        return taken;
                    }
                }
            }
        }
    };
    together(&setup, take, async |client, taken| {
        let all: Vec<i32> = taken.iter().flatten().copied().collect();
        assert_eq!(all.len(), JOBS as usize, "{taken:?}");
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), (1..=JOBS).collect());
        for (number, taken) in taken.iter().enumerate() {
            let sql = "SELECT count(*) FROM job WHERE who = $1 AND state = 'done'";
            let row = client.query_one(sql, &[&(number as i32)]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), taken.len() as i64);
        }
    });
}

#[test]
fn counters_and_moves_lose_nothing() {
    let setup = "CREATE TABLE counter (id int PRIMARY KEY, n int NOT NULL);
                 CREATE TABLE ball (id int PRIMARY KEY, moves int NOT NULL);
                 INSERT INTO ball SELECT 0, 0";
    let work = |number: i32, client: Client| async move {
        let mut moves = 0;
        for round in 0..15 {
            let upsert = "INSERT INTO counter VALUES ($1, 1), (100, 1) \
                          ON CONFLICT (id) DO UPDATE SET n = counter.n + excluded.n";
            client.execute(upsert, &[&((number + round) % 4)]).await.unwrap();
            // The one ball there is gets another key, which may be anywhere.
            let moved = "UPDATE ball SET id = $1, moves = moves + 1 WHERE moves >= 0";
            // Who comes upon it while it is on its way may not see it yet.
            moves += client.execute(moved, &[&(number * 100 + round)]).await.unwrap() as i32;
        }
        moves
    };
    together(setup, work, async |client, moves| {
        let rows = client.query_one("SELECT sum(n) FROM counter WHERE id = 100", &[]).await.unwrap();
        assert_eq!(rows.get::<_, i64>(0), i64::from(CLIENTS * 15));
        let rows = client.query_one("SELECT sum(n) FROM counter WHERE id < 4", &[]).await.unwrap();
        assert_eq!(rows.get::<_, i64>(0), i64::from(CLIENTS * 15));
        let rows = client.query("SELECT moves FROM ball", &[]).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [moves.iter().sum::<i32>()]);
    });
}
