//! The benchmark suites that people have, unmodified: pgbench with its three scripts, and sysbench.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};
use tests::cluster::Cluster;
use tests::tools::find_or_skip;

const SHARDS: [&str; 2] = ["--shards", "4"];

fn host_and_port(cluster: &Cluster) -> (&str, &str) {
    cluster.address.rsplit_once(':').unwrap()
}

fn pgbench(program: &Path, cluster: &Cluster, arguments: &[&str]) -> Output {
    let (host, port) = host_and_port(cluster);
    let mut command = Command::new(program);
    command.args(["-h", host, "-p", port, "-U", "shoal"]).env("PGCONNECT_TIMEOUT", "20");
    command.args(arguments).arg("shoal").output().unwrap()
}

#[test]
fn pgbench_runs_and_its_sums_agree() {
    let Some(program) = find_or_skip("pgbench", "pgbench_runs_and_its_sums_agree") else { return };
    let cluster = Cluster::start(&SHARDS);
    let load = pgbench(&program, &cluster, &["-i", "-I", "dtpgv", "-s", "1", "-q"]);
    assert!(load.status.success(), "{load:?}");
    for script in ["select-only", "tpcb-like", "simple-update"] {
        for mode in ["simple", "extended", "prepared"] {
            for clients in ["1", "8"] {
                let run =
                    pgbench(&program, &cluster, &["-n", "-b", script, "-M", mode, "-c", clients, "-t", "25"]);
                let report = String::from_utf8_lossy(&run.stdout);
                let errors = String::from_utf8_lossy(&run.stderr).contains("error");
                assert!(run.status.success() && !errors, "{run:?}");
                assert!(report.contains("number of failed transactions: 0 (0.000%)"), "{run:?}");
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = cluster.connect().await;
        let sum = async |sql: &str| client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
        // simple-update leaves tellers and branches alone.
        let accounts = sum("SELECT sum(abalance)::bigint FROM pgbench_accounts").await;
        assert_eq!(accounts, sum("SELECT sum(delta)::bigint FROM pgbench_history").await);
        let tellers = sum("SELECT sum(tbalance)::bigint FROM pgbench_tellers").await;
        assert_eq!(tellers, sum("SELECT sum(bbalance)::bigint FROM pgbench_branches").await);
        assert_eq!(sum("SELECT count(*) FROM pgbench_history").await, 2 * 3 * (25 + 8 * 25));
    });
}

#[test]
fn sysbench_runs() {
    let Some(program) = find_or_skip("sysbench", "sysbench_runs") else { return };
    let cluster = Cluster::start(&SHARDS);
    let (host, port) = host_and_port(&cluster);
    let sysbench = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--db-driver=pgsql", "--pgsql-user=shoal", "--pgsql-db=shoal"]);
        command.args([format!("--pgsql-host={host}"), format!("--pgsql-port={port}")]);
        command.args(["--tables=2", "--table-size=1000", "--threads=4"]).args(arguments);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    sysbench(&["oltp_read_write", "prepare"]);
    for script in ["oltp_point_select", "oltp_read_write", "oltp_write_only"] {
        let report = sysbench(&[script, "--events=200", "--time=0", "run"]);
        // What sysbench ignores by itself are deadlocks, which its scripts bring about on any server; whatever else fails
        // ends it. A reconnect would hide a connection that broke.
        let line = report.lines().find(|line| line.contains("reconnects:")).unwrap_or_default();
        assert_eq!(line.split_whitespace().nth(1), Some("0"), "{script}: {report}");
    }
    sysbench(&["oltp_read_write", "cleanup"]);
}
