//! Idempotency keys, as sessions take and use them up.

use super::*;

const KEY: &str = "SET shoal.idempotency_key = 'k'";

async fn key(client: &Client) -> String {
    shown(client, "shoal.idempotency_key").await
}

#[tokio::test]
async fn a_key_is_used_up_by_one_commit() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    // On one shard or several, in a block, a string, a pipeline or by itself: the second time it's refused.
    let ways: [(&[&str], &str); 6] = [
        (&["BEGIN; INSERT INTO t VALUES (1)", "COMMIT"], "BEGIN; SELECT 1"),
        (&["BEGIN; INSERT INTO t VALUES (1), (2), (3), (4)", "COMMIT"], "BEGIN; INSERT INTO t VALUES (9)"),
        (&["INSERT INTO t VALUES (1)"], "INSERT INTO t VALUES (9)"),
        (&["INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)"], "DELETE FROM t"),
        (&["BEGIN; SELECT 1", "COMMIT"], "SELECT a FROM t FOR UPDATE"),
        (&["TRUNCATE t"], "BEGIN; SELECT count(*) FROM t"),
    ];
    for (number, (first, again)) in ways.into_iter().enumerate() {
        client.batch_execute("DELETE FROM t").await.unwrap();
        let set = format!("SET shoal.idempotency_key = 'k{number}'");
        client.batch_execute(&set).await.unwrap();
        assert_eq!(key(&client).await, format!("k{number}"));
        for sql in first {
            client.batch_execute(sql).await.unwrap();
        }
        assert_eq!(key(&client).await, "");
        let done = count(&client).await;
        client.batch_execute(&set).await.unwrap();
        assert_eq!(rows(&client, again).await, Err("SH001".into()), "{again}");
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(count(&client).await, done);
        // Nothing is left of it in the session.
        client.batch_execute("INSERT INTO t VALUES (7)").await.unwrap();
    }
    assert!(server.fake.acted("commit").is_empty());
    client.batch_execute("SET shoal.idempotency_key = 'p'").await.unwrap();
    client.execute("INSERT INTO t VALUES (8)", &[]).await.unwrap();
    client.batch_execute("SET shoal.idempotency_key = 'p'").await.unwrap();
    let error = client.execute("INSERT INTO t VALUES (10)", &[]).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "SH001");
    let by = server.fake.keys.lock()["p"].0;
    let voted = server.fake.positions.lock()[&by].iter().copied().collect();
    let gtid = server.fake.topology().gtid(&voted).to_string();
    assert_eq!(error.detail(), Some(format!("Its id is {by}, its GTID {gtid}.").as_str()));
}

#[tokio::test]
async fn a_key_goes_with_its_transaction() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    // A read by itself leaves it alone. Errors, the end of a block and resets give it up.
    client.batch_execute(KEY).await.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(key(&client).await, "k");
    for end in ["SELECT 1 / 0", "BEGIN; ROLLBACK", "BEGIN; COMMIT", "RESET ALL", "DISCARD ALL"] {
        client.batch_execute(KEY).await.unwrap();
        drop(client.batch_execute(end).await);
        assert_eq!(key(&client).await, "", "{end}");
    }
    client.batch_execute(KEY).await.unwrap();
    client.batch_execute("RESET shoal.idempotency_key").await.unwrap();
    assert_eq!(key(&client).await, "");
    // In a block it may be set until something has run.
    client.batch_execute("BEGIN; SET LOCAL shoal.idempotency_key = 'l'; SHOW TimeZone").await.unwrap();
    client.batch_execute("SET shoal.idempotency_key = 'm'").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(key(&client).await, "m");
    assert_eq!(rows(&client, KEY).await, Err("25001".into()));
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(rows(&client, "BEGIN; SELECT 1; SET shoal.idempotency_key = 'k'").await, Err("25001".into()));
    client.batch_execute("ROLLBACK").await.unwrap();
    assert!(server.fake.keys.lock().values().all(|(_, spent)| !spent));
    assert_eq!(key(&client).await, "");
    // What isn't part of a transaction has no key.
    client.batch_execute(KEY).await.unwrap();
    assert_eq!(rows(&client, "DROP TABLE r").await, Err("0A000".into()));
    client.batch_execute("BEGIN; SET shoal.idempotency_key = 'k'").await.unwrap();
    assert_eq!(rows(&client, "DROP TABLE r").await, Err("0A000".into()));
    client.batch_execute("ROLLBACK").await.unwrap();
    let long = format!("SET shoal.idempotency_key = '{}'", "x".repeat(201));
    assert_eq!(rows(&client, &long).await, Err("22023".into()));
}

#[tokio::test]
async fn who_begins_with_a_key_again_ends_who_had_it() {
    let server = Server::start(Config::default()).await;
    let (one, two) = (server.client().await, server.client().await);
    let begin = "BEGIN; SET shoal.idempotency_key = 'k'; INSERT INTO t VALUES";
    one.batch_execute(&format!("{begin} (1)")).await.unwrap();
    two.batch_execute(&format!("{begin} (2)")).await.unwrap();
    assert_eq!(rows(&one, "COMMIT").await, Err("40001".into()));
    two.batch_execute("COMMIT").await.unwrap();
    assert_eq!(rows(&one, &format!("{begin} (1)")).await, Err("SH001".into()));
    one.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(count(&one).await, "1");
    // One that begun before the other's commit was decided, and comes to its own after it.
    let begin = begin.replace("'k'", "'l'");
    one.batch_execute(&format!("{begin} (4)")).await.unwrap();
    let by = server.fake.keys.lock()["k"].0;
    server.fake.keys.lock().insert("l".into(), (by, true));
    assert_eq!(rows(&one, "COMMIT").await, Err("SH001".into()));
    assert_eq!((count(&one).await.as_str(), server.fake.open_branches()), ("1", 0));
}

#[tokio::test]
async fn a_claim_is_asked_for_again() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let lost = WireError::internal("x").with_retry(proto::Retry::Later);
    for fault in [Fault::Before(lost.clone()), Fault::After(lost)] {
        server.fake.action_faults.lock().push(("claim", fault));
    }
    client.batch_execute("BEGIN; SET shoal.idempotency_key = 'k'; INSERT INTO t VALUES (1)").await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(server.fake.acted("claim").len(), 3);
    // What can't be had is no reason to go on without.
    let full = WireError::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "full");
    server.fake.action_faults.lock().push(("claim", Fault::Before(full)));
    client.batch_execute("SET shoal.idempotency_key = 'l'").await.unwrap();
    assert_eq!(rows(&client, "INSERT INTO t VALUES (2)").await, Err("53400".into()));
    assert_eq!(count(&client).await, "1");
}
