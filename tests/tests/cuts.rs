//! Reads over several shards see one state of them all, while transactions over several shards are committed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;
use tests::cluster::Cluster;
use tests::transfers::{self, Transfers};
use tests::wait;

const ACCOUNTS: i64 = 40;

#[test]
fn no_sum_shows_half_of_a_transfer() {
    let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1", "--shards", "4"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { transfers::prepare(&cluster.connect().await, ACCOUNTS).await }).unwrap();
    let load = Transfers::start(runtime.handle(), &[cluster.config()], (4, 4), ACCOUNTS, 1);
    wait::pause(Duration::from_secs(3));
    let (moved, seen) = runtime.block_on(load.stop());
    let wrong: Vec<_> = seen.iter().flat_map(|seen| &seen.wrong).collect();
    assert!(wrong.is_empty(), "{} sums are wrong, the first: {}", wrong.len(), wrong[0]);
    let errors: Vec<_> = seen.iter().flat_map(|seen| &seen.errors).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let (sums, moves): (usize, usize) = (
        seen.iter().map(|seen| seen.latencies.len()).sum(),
        moved.iter().map(|moved| moved.latencies.len()).sum(),
    );
    assert!(sums > 20 && moves > 20, "{sums} sums were read, {moves} transfers made");
    runtime.block_on(async { transfers::check(&cluster.connect().await, &moved, ACCOUNTS).await }).unwrap();
}

#[test]
fn a_repeatable_read_sees_one_state_to_its_end() {
    let cluster = Cluster::start(&["--nodes", "1", "--replicas", "1", "--shards", "4"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (reader, writer) = (cluster.connect().await, cluster.connect().await);
        transfers::prepare(&writer, ACCOUNTS).await.unwrap();
        let sum = async |client: &tokio_postgres::Client| {
            let row = client.query_one("SELECT sum(balance)::bigint FROM account", &[]).await.unwrap();
            row.get::<_, i64>(0)
        };
        let code = |error: tokio_postgres::Error| error.code().map(|code| code.code().to_owned()).unwrap();
        let before = sum(&reader).await;
        for begin in [
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "BEGIN; SET TRANSACTION READ ONLY, ISOLATION LEVEL REPEATABLE READ",
            "SET default_transaction_read_only = on; START TRANSACTION; SET transaction_isolation = 'repeatable read'",
        ] {
            let before = sum(&writer).await;
            reader.batch_execute(begin).await.unwrap();
            for _ in 0..3 {
                assert_eq!(sum(&reader).await, before);
                let one = reader.query_one("SELECT balance FROM account WHERE id = 1", &[]).await.unwrap();
                writer.batch_execute("UPDATE account SET balance = balance + 1").await.unwrap();
                let again = reader.query_one("SELECT balance FROM account WHERE id = 1", &[]).await.unwrap();
                assert_eq!(one.get::<_, i64>(0), again.get::<_, i64>(0));
            }
            let shown = reader.query_one("SHOW transaction_isolation", &[]).await.unwrap();
            assert_eq!(shown.get::<_, &str>(0), "repeatable read");
            reader.batch_execute("COMMIT").await.unwrap();
            assert_eq!(sum(&reader).await, before + 3 * ACCOUNTS);
        }
        assert_eq!(sum(&reader).await, before + 9 * ACCOUNTS);
        reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1").await.unwrap();
        let written = reader.batch_execute("UPDATE account SET balance = 0").await.unwrap_err();
        assert_eq!(code(written), "25006");
        reader.batch_execute("ROLLBACK; RESET default_transaction_read_only").await.unwrap();
        let refused = reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap_err();
        assert_eq!(code(refused), "0A000");
        reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
        sum(&reader).await;
        writer.batch_execute("CREATE TABLE later (id int PRIMARY KEY)").await.unwrap();
        let gone = reader.query_one("SELECT sum(balance)::bigint FROM account", &[]).await.unwrap_err();
        assert_eq!(code(gone), "40001");
        reader.batch_execute("ROLLBACK").await.unwrap();
    });
}
