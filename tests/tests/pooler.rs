//! Tokens through Debian's PgBouncer in transaction mode, where each transaction of a client may have another connection: told
//! by ParameterStatus, handed on by SET LOCAL.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use tests::cluster::Cluster;
use tests::nodes::Nodes;
use tests::pooler::{PORT, Pooler};
use tests::tools::{find_or_skip, find_psycopg2_or_skip};

fn tools(test: &str) -> Option<(PathBuf, PathBuf)> {
    Some((find_or_skip("pgbouncer", test)?, find_psycopg2_or_skip(test)?))
}

/// Runs a client of the pooler's, and answers with the number that it prints.
fn run(python: &Path, script: &str, pooler: &Pooler, arguments: &[&str]) -> usize {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers").join(script);
    let mut command = Command::new(python);
    command.arg(script).arg(pooler.folder()).arg(PORT.to_string()).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn tokens_pass_through_a_pooler() {
    let Some((pgbouncer, python)) = tools("tokens_pass_through_a_pooler") else { return };
    let nodes = Nodes::start_with(3, &["--apply-lag", "0ms..100ms"], &["--shards", "2", "--replicas", "3"]);
    let databases = [("write", nodes.address(0)), ("read", nodes.address(1))];
    let pooler = Pooler::start(&pgbouncer, &databases, 4).unwrap();
    let stale = run(&python, "pooled_tokens.py", &pooler, &[]);
    assert!(stale > 0, "no read without a token was stale: nothing here lags");
}

#[test]
fn the_token_of_many_shards_passes_too() {
    let Some((pgbouncer, python)) = tools("the_token_of_many_shards_passes_too") else { return };
    // As many as make a token that is nearly as long as is told.
    let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1", "--shards", "80"]);
    let pooler = Pooler::start(&pgbouncer, &[("write", &cluster.address)], 1).unwrap();
    let length = run(&python, "long_token.py", &pooler, &["80"]);
    assert!((2900..=3500).contains(&length), "{length} bytes");
}
