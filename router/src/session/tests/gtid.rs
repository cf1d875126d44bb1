//! GTIDs, as sessions show, take and tell them.

use super::*;
use proto::services::Floor;
use proto::topology::{Keyspace, Retired, Shard, Sharding};
use proto::{GroupId, Incarnation, KeyRange, KeyspaceNumber, LogIndex, ShardId};

/// What four rows on both shards reach, the first that is written: the votes.
const FIRST: &str = "main/-80.1:101,main/80-.1:201";
const FOUR: &str = "INSERT INTO t VALUES (1), (2), (3), (4)";

pub(super) async fn gtid(client: &Client) -> String {
    shown(client, "shoal.gtid").await
}

async fn set(client: &Client, text: &str) -> Result<(), String> {
    rows(client, &format!("SET shoal.gtid = '{text}'")).await.map(drop)
}

/// The error's code, message and detail.
async fn refused(client: &Client, sql: &str) -> (String, String, String) {
    let error = client.batch_execute(sql).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    let detail = error.detail().unwrap_or_default().to_owned();
    (error.code().code().to_owned(), error.message().to_owned(), detail)
}

impl Server {
    /// The floors of the last requests.
    fn floors(&self, last: usize) -> Vec<Floor> {
        let requests = self.fake.requests.lock();
        let mut requests: Vec<_> = requests.iter().rev().take(last).map(|r| (r.shard, r.floor)).collect();
        requests.sort_by_key(|(shard, _)| *shard);
        requests.into_iter().map(|(_, floor)| floor).collect()
    }
}

#[tokio::test]
async fn what_is_written_and_read_is_in_the_set() {
    let server = Server::start(Config::default()).await;
    let (one, two, three) = (server.client().await, server.client().await, server.client().await);
    assert_eq!(gtid(&one).await, "");
    one.batch_execute(FOUR).await.unwrap();
    assert_eq!(gtid(&one).await, FIRST);
    // A read waits for what is committed, and shows where that was applied.
    rows(&two, "SELECT count(*) FROM t").await.unwrap();
    assert_eq!(gtid(&two).await, "main/-80.1:102,main/80-.1:202");
    assert_eq!(gtid(&two).await, server.fake.gtid());
    // One shard, by itself and as a block.
    set(&three, FIRST).await.unwrap();
    three.batch_execute("UPDATE t SET b = 'x' WHERE a = 1").await.unwrap();
    let (one_shard, at) = (gtid(&three).await, server.fake.gtid());
    assert!(one_shard != FIRST && one_shard.split(',').any(|part| at.split(',').any(|now| now == part)));
    three.batch_execute("BEGIN; DELETE FROM t WHERE a = 1; DELETE FROM t WHERE a = 2").await.unwrap();
    three.batch_execute("DELETE FROM t WHERE a = 3; DELETE FROM t WHERE a = 4; COMMIT").await.unwrap();
    let votes = gtid(&three).await;
    rows(&three, "SELECT count(*) FROM t").await.unwrap();
    assert!(votes != gtid(&three).await, "the votes aren't where it is applied");
    assert_eq!(gtid(&three).await, server.fake.gtid());
}

#[tokio::test]
async fn reads_say_what_they_must_show() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute(FOUR).await.unwrap();
    rows(&client, "SELECT count(*) FROM t").await.unwrap();
    let floor = |applied, settled| Floor { applied: LogIndex(applied), settled: LogIndex(settled) };
    assert_eq!(server.floors(2), [floor(100, 101), floor(200, 201)]);
    rows(&client, "SELECT count(*) FROM t").await.unwrap();
    assert_eq!(server.floors(2), [floor(102, 101), floor(202, 201)]);
    client.batch_execute("BEGIN; SET LOCAL shoal.gtid = 'main/-80.1:102'").await.unwrap();
    rows(&client, "SELECT count(*) FROM t").await.unwrap();
    assert_eq!(server.floors(2), [floor(102, 102), floor(202, 201)]);
    client.batch_execute("COMMIT").await.unwrap();
    rows(&client, "SELECT count(*) FROM t").await.unwrap();
    assert_eq!(server.floors(2), [floor(102, 101), floor(202, 201)]);
}

#[tokio::test]
async fn a_set_only_grows_and_a_reset_goes_back_to_what_startup_gave() {
    let server = Server::start(Config::default()).await;
    let begun = "main/-80.1:5";
    let client = server.client_with(&format!("-c shoal.gtid={begun}")).await;
    assert_eq!(gtid(&client).await, begun);
    set(&client, "main/-80.1:3, main/80-.1:7,").await.unwrap();
    let both = "main/-80.1:5,main/80-.1:7";
    assert_eq!(gtid(&client).await, both);
    client.batch_execute("SET SESSION shoal.gtid TO 'main/-80.1:6', 'main/80-.1:6'").await.unwrap();
    let more = "main/-80.1:6,main/80-.1:7";
    assert_eq!(gtid(&client).await, more);
    for reset in ["RESET shoal.gtid", "SET shoal.gtid TO DEFAULT", "RESET ALL", "DISCARD ALL"] {
        client.batch_execute(reset).await.unwrap();
        assert_eq!(gtid(&client).await, begun, "{reset}");
        set(&client, both).await.unwrap();
    }
    // Nothing undoes it.
    for end in ["BEGIN; {}; ROLLBACK", "BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; COMMIT", "{}; SELECT 1 / 0"] {
        client.batch_execute("RESET shoal.gtid").await.unwrap();
        let set = format!("SET shoal.gtid = '{more}'");
        drop(client.batch_execute(&end.replace("{}", &set)).await);
        assert_eq!(gtid(&client).await, more, "{end}");
    }
    // But a reset that comes to nothing.
    for end in ["BEGIN; {}; ROLLBACK", "BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; COMMIT", "{}; SELECT 1 / 0"] {
        let reset = "RESET shoal.gtid; SET shoal.gtid = 'main/80-.1:9'";
        drop(client.batch_execute(&end.replace("{}", reset)).await);
        assert_eq!(gtid(&client).await, "main/-80.1:6,main/80-.1:9", "{end}");
        drop(client.batch_execute(&end.replace("{}", "RESET ALL")).await);
        assert_eq!(gtid(&client).await, "main/-80.1:6,main/80-.1:9", "{end}");
    }
    client.batch_execute("BEGIN; RESET shoal.gtid; SAVEPOINT a; SET TimeZone = 'UTC'").await.unwrap();
    client.batch_execute("ROLLBACK TO a; COMMIT").await.unwrap();
    assert_eq!(gtid(&client).await, begun, "the savepoint was made after it");
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(rows(&client, "SELECT 1 / 0").await, Err("22012".into()));
    assert_eq!(set(&client, both).await, Err("25P02".into()));
    client.batch_execute("ROLLBACK").await.unwrap();
    let all = rows(&client, "SHOW ALL").await.unwrap();
    let value =
        |name: &str| all.iter().find(|row| row[0].as_deref() == Some(name)).unwrap()[1].clone().unwrap();
    let names = ["gtid", "max_staleness", "read_consistency", "read_wait", "report_gtid"];
    assert_eq!(names.map(|name| value(&format!("shoal.{name}"))), [begun, "5s", "strong", "50ms", "off"]);
    let selected = "SELECT setting FROM pg_settings WHERE name = 'shoal.gtid'";
    assert_eq!(rows(&client, selected).await, Ok(vec![vec![Some(begun.into())]]));
}

#[tokio::test]
async fn a_local_set_ends_with_its_block() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    set(&client, "main/-80.1:5").await.unwrap();
    for end in ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN; ROLLBACK"] {
        client.batch_execute("BEGIN; SAVEPOINT a").await.unwrap();
        client
            .batch_execute("SET LOCAL shoal.gtid = 'main/-80.1:9,main/80-.1:8'; ROLLBACK TO a")
            .await
            .unwrap();
        assert_eq!(gtid(&client).await, "main/-80.1:9,main/80-.1:8");
        client.batch_execute(end).await.unwrap();
        assert_eq!(gtid(&client).await, "main/-80.1:5", "{end}");
    }
    client.batch_execute("SET LOCAL shoal.gtid = 'main/-80.1:9'").await.unwrap();
    assert_eq!(gtid(&client).await, "main/-80.1:5");
    assert_eq!(rows(&client, "SET LOCAL shoal.gtid = 'x'").await, Err("22023".into()));
    // What the block itself reads and writes is the session's.
    client.batch_execute("BEGIN; SET LOCAL shoal.gtid = 'main/-80.1:6'").await.unwrap();
    client.batch_execute(FOUR).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(gtid(&client).await, FIRST);
}

#[tokio::test]
async fn what_is_no_position_is_refused() {
    let config = Config { retry_timeout: Duration::from_millis(100), ..Config::default() };
    let server = Server::start(config).await;
    let client = server.client().await;
    let form = |part: &str| format!("invalid GTID \"{part}\": expected keyspace/shard.incarnation:index.");
    for (text, part) in [
        ("x", "x"),
        ("main/-80.1:5,main/80-", "main/80-"),
        ("main/-80.1:0", "main/-80.1:0"),
        ("main/-80.1:9223372036854775808", "main/-80.1:9223372036854775808"),
    ] {
        let sql = format!("SET shoal.gtid = '{text}'");
        let message = format!("invalid value for parameter \"shoal.gtid\": \"{text}\"");
        assert_eq!(refused(&client, &sql).await, ("22023".into(), message, form(part)));
    }
    for text in ["x".repeat(60_000), format!("{}/-.1:5", "k".repeat(60_000))] {
        let (code, message, detail) = refused(&client, &format!("SET shoal.gtid = '{text}'")).await;
        assert_eq!(code, "22023");
        assert!(message.len() < 300 && detail.len() < 300, "{message} {detail}");
    }
    server.fake.actions.lock().clear();
    let long = format!("SET shoal.gtid = '{}'", "main/-80.1:5,".repeat(6000));
    let (code, message, detail) = refused(&client, &long).await;
    assert_eq!((code.as_str(), detail.as_str()), ("22023", "a GTID set has 65536 bytes at most."));
    assert!(message.len() < 300, "{message}");
    // What can't be known without the coordinator is asked of it.
    assert!(server.fake.acted("status").is_empty());
    let message = "invalid value for parameter \"shoal.gtid\": \"more/-.1:5\"";
    let unknown = refused(&client, "SET shoal.gtid = 'more/-.1:5'").await;
    let detail = "keyspace \"more\" does not exist.";
    assert_eq!(unknown, ("22023".into(), message.into(), detail.into()));
    let message = "position main/-80.7:12 is of a history that this cluster doesn't have";
    let lost = refused(&client, "SET shoal.gtid = 'main/80-.1:1,main/-80.7:12'").await;
    assert_eq!(lost, ("SH002".into(), message.into(), String::new()));
    assert_eq!((server.fake.acted("status").len(), gtid(&client).await), (2, String::new()));
    let silent = WireError::new(SqlState::CANNOT_CONNECT_NOW, "x").with_retry(proto::Retry::Later);
    for _ in 0..100 {
        server.fake.action_faults.lock().push(("status", Fault::Before(silent.clone())));
    }
    assert_eq!(set(&client, "more/-.1:5").await, Err("57P03".into()));
    server.fake.action_faults.lock().clear();
    // Who asks hears of a keyspace that the router hasn't heard of.
    let mut topology = proto::topology::Topology::clone(&server.fake.topology());
    let number = KeyspaceNumber(2);
    let id = ShardId(3);
    let shard =
        Shard { id, keyspace: number, range: KeyRange::full(), ..topology.shards[&ShardId(1)].clone() };
    topology.shards.insert(id, shard);
    let (name, sharding, shards) = ("more".into(), Sharding::Single, vec![id]);
    topology.keyspaces.insert(number, Keyspace { number, name, sharding, replicas: 1, shards, auto: None });
    topology.epoch.0 += 1;
    *server.fake.untold_topology.lock() = Some(Arc::new(topology));
    set(&client, "more/-.1:5").await.unwrap();
    assert_eq!(gtid(&client).await, "more/-.1:5");
}

#[tokio::test]
async fn what_is_refused_later_is_refused_at_connect() {
    let server = Server::start(Config::default()).await;
    for (parameters, code) in [
        (["options", "-c shoal.gtid=x"], "22023"),
        (["shoal.gtid", "none/-.1:3"], "22023"),
        (["shoal.gtid", "main/-.1:3"], "SH002"),
        (["shoal.read_consistency", "weak"], "22023"),
    ] {
        let mut socket = server.socket().await;
        let user = ["user", "shoal"];
        socket.write_all(&startup(&[user, parameters].concat())).await.unwrap();
        assert_eq!(last_words(&mut socket).await, code, "{parameters:?}");
    }
    let mut socket = server.socket().await;
    let parameters = ["user", "shoal", "shoal.gtid", "main/-80.1:3", "shoal.read_consistency", "session"];
    socket.write_all(&startup(&parameters)).await.unwrap();
    let told = until_ready(&mut socket).await;
    assert!(
        told.iter().all(|(_, body)| !body.starts_with(b"shoal.")),
        "poolers show it to all their clients"
    );
    socket.write_all(&message(b'Q', b"SHOW shoal.gtid\0")).await.unwrap();
    let answers = until_ready(&mut socket).await;
    assert!(answers[1].1.ends_with(b"main/-80.1:3"));
}

#[tokio::test]
async fn a_position_that_was_never_reached_is_named_after_a_while() {
    const BRIEF: Duration = Duration::from_millis(300);
    let server = Server::start(Config { retry_timeout: BRIEF, ..Config::default() }).await;
    let client = server.client().await;
    set(&client, "main/-80.1:9999").await.unwrap();
    let row = (0..).map(|a| format!("SELECT b FROM t WHERE a = {a}"));
    let mut on_first = None;
    for sql in row.take(9) {
        if client.batch_execute(&sql).await.is_err() {
            on_first = Some(sql);
            break;
        }
    }
    let on_first = on_first.expect("one row of nine is there");
    // A cut, a read, one that locks, and one that is weak.
    let (locks, weak) = (format!("{on_first} FOR UPDATE"), format!("/*+ read(session) */ {on_first}"));
    for sql in ["SELECT count(*) FROM t", &on_first, &locks, &weak] {
        let begun = proto::machine::now();
        let (code, message, detail) = refused(&client, sql).await;
        // What locks adds to the log, if only that it's over.
        let words = "position main/-80.1:9999 has not been reached: the log is at 10";
        assert!(message.starts_with(words), "{sql}: {message}");
        assert_eq!((code.as_str(), detail.as_str()), ("SH003", ""), "{sql}");
        assert!(proto::machine::now() - begun >= BRIEF, "{sql}");
        let error = client.batch_execute(sql).await.unwrap_err();
        let hint = error.as_db_error().unwrap().hint().unwrap().to_owned();
        assert!(hint.starts_with("No commit of this cluster has come so far"), "{hint}");
        // The statement's own end is told as such.
        client.batch_execute("SET statement_timeout = 50").await.unwrap();
        assert_eq!(rows(&client, sql).await, Err("57014".into()), "{sql}");
        client.batch_execute("RESET statement_timeout").await.unwrap();
    }
    client.batch_execute("RESET shoal.gtid").await.unwrap();
    rows(&client, "SELECT count(*) FROM t").await.unwrap();
    client.batch_execute("BEGIN; SET LOCAL shoal.gtid = 'main/-80.1:9999'").await.unwrap();
    assert_eq!(rows(&client, "SELECT count(*) FROM t").await, Err("SH003".into()));
    assert_eq!(rows(&client, "SELECT 1").await, Err("25P02".into()));
}

/// The shards that have come so far hold nothing up for the one that hasn't.
#[tokio::test]
async fn a_cut_is_begun_anew_until_a_shard_has_come_so_far() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    set(&client, "main/-80.1:105").await.unwrap();
    let came = async {
        let times = |kind: &str| server.fake.cuts.lock().iter().filter(|(of, _)| *of == kind).count();
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        // Each attempt is over on both shards.
        while times("drop") < 6 {
            pause.tick().await;
        }
        assert!(times("settle") + times("close") + times("release") == 0);
        server.fake.log(ShardId(1), 5);
    };
    let read = async { tokio::join!(rows(&client, "SELECT count(*) FROM t"), came).0 };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("it ends").unwrap();
    let of = |kind: &str| -> Vec<_> {
        let cuts = server.fake.cuts.lock();
        cuts.iter().filter(|(of, _)| *of == kind).map(|(_, request)| request.cut).collect()
    };
    let (opened, dropped) = (of("open"), of("drop"));
    let last = opened.last().unwrap();
    let is_over = |cut| dropped.iter().filter(|other| *other == cut).count() == 2;
    assert!(opened.iter().all(|cut| cut == last || is_over(cut)));
}

/// The kinds of a query's answers, and what was told of the GTID.
pub(super) async fn told(socket: &mut TcpStream, sql: &str) -> (String, Option<String>) {
    socket.write_all(&message(b'Q', format!("{sql}\0").as_bytes())).await.unwrap();
    told_by(until_ready(socket).await)
}

fn told_by(answers: Vec<(u8, Vec<u8>)>) -> (String, Option<String>) {
    let kinds = answers.iter().map(|(tag, _)| char::from(*tag)).collect();
    let status = answers.iter().find(|(tag, body)| *tag == b'S' && body.starts_with(b"shoal.gtid\0"));
    (kinds, status.map(|(_, body)| String::from_utf8(body[11..body.len() - 1].to_vec()).unwrap()))
}

#[tokio::test]
async fn commits_are_told_where_clients_want_it() {
    let server = Server::start(Config::default()).await;
    let mut socket = server.session().await;
    assert_eq!(told(&mut socket, FOUR).await, ("CZ".into(), None));
    assert_eq!(told(&mut socket, "SET shoal.report_gtid = on").await, ("CZ".into(), None));
    let count = "SELECT count(*) FROM t";
    assert_eq!(told(&mut socket, count).await, ("TDCZ".into(), None), "reads aren't told");
    let (kinds, one) = told(&mut socket, "INSERT INTO t VALUES (5)").await;
    assert_eq!((kinds.as_str(), one.as_deref()), ("CSZ", Some(server.fake.gtid().as_str())));
    // It is told again: behind a pooler another client may have heard it.
    assert_eq!(told(&mut socket, "BEGIN").await, ("CZ".into(), None));
    assert_eq!(told(&mut socket, "COMMIT").await, ("CSZ".into(), one));
    let (kinds, block) = told(&mut socket, "BEGIN; INSERT INTO t VALUES (6); COMMIT").await;
    assert_eq!((kinds.as_str(), block.as_deref()), ("CCCSZ", Some(server.fake.gtid().as_str())));
    let (kinds, string) = told(&mut socket, "INSERT INTO t VALUES (7); INSERT INTO t VALUES (8)").await;
    assert_eq!((kinds.as_str(), string.is_some()), ("CCSZ", true));
    assert_eq!(told(&mut socket, "BEGIN; INSERT INTO t VALUES (9); ROLLBACK").await.1, None);
    assert_eq!(told(&mut socket, "INSERT INTO t VALUES (9); SELECT 1 / 0").await.1, None);
    // A pipeline, whose end is a commit.
    let mut pipeline = Vec::new();
    for sql in ["INSERT INTO t VALUES (10)", "INSERT INTO t VALUES (11)"] {
        pipeline.extend(message(b'P', format!("\0{sql}\0\0\0").as_bytes()));
        pipeline.extend(message(b'B', b"\0\0\0\0\0\0\0\0"));
        pipeline.extend(message(b'E', b"\0\0\0\0\0"));
    }
    pipeline.extend(message(b'S', b""));
    socket.write_all(&pipeline).await.unwrap();
    let (kinds, pipeline) = told_by(until_ready(&mut socket).await);
    assert_eq!((kinds.as_str(), pipeline.is_some()), ("12C12CSZ", true));
    // COPY, and schema changes.
    socket.write_all(&message(b'Q', b"COPY t FROM STDIN\0")).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap().0, b'G');
    socket.write_all(&message(b'd', b"20\tx\n")).await.unwrap();
    socket.write_all(&message(b'c', b"")).await.unwrap();
    let (kinds, copy) = told_by(until_ready(&mut socket).await);
    assert_eq!((kinds.as_str(), copy.is_some()), ("CSZ", true));
    let (kinds, dropped) = told(&mut socket, "TRUNCATE t").await;
    assert_eq!((kinds.as_str(), dropped), ("CSZ", Some(server.fake.gtid())));
    let (kinds, created) = told(&mut socket, "CREATE TABLE u (a int PRIMARY KEY)").await;
    assert_eq!((kinds.as_str(), created), ("CSZ", Some(server.fake.gtid())));
    // For a block alone, as it is when the block ends, with what was set for it.
    assert_eq!(told(&mut socket, "SET shoal.report_gtid = off").await.1, None);
    assert_eq!(told(&mut socket, "INSERT INTO t VALUES (30)").await.1, None);
    let local =
        "BEGIN; SET LOCAL shoal.report_gtid = on; SET LOCAL shoal.gtid = 'main/-80.1:7000,main/80-.1:7000'";
    assert_eq!(told(&mut socket, local).await.1, None);
    let of_block = told(&mut socket, "COMMIT").await.1;
    assert_eq!(of_block.as_deref(), Some("main/-80.1:7000,main/80-.1:7000"));
    assert_eq!(told(&mut socket, "INSERT INTO t VALUES (31)").await.1, None);
}

#[tokio::test]
async fn what_is_too_long_is_not_told() {
    let server = Server::start(Config::default()).await;
    let mut socket = server.session().await;
    let number = KeyspaceNumber(2);
    let ranges = KeyRange::split_evenly(256);
    server.fake.reshape(|topology| {
        let shards: Vec<_> = (100..356).map(ShardId).collect();
        for (id, range) in shards.iter().copied().zip(ranges.clone()) {
            let (group, incarnation, replicas) = (GroupId(id.0), Incarnation(1), vec![]);
            let shard = Shard {
                id,
                keyspace: number,
                range,
                incarnation,
                group,
                replicas,
                formed: true,
                first: LogIndex(0),
            };
            topology.shards.insert(id, shard);
        }
        let (name, sharding) = ("many".into(), Sharding::Hash);
        topology
            .keyspaces
            .insert(number, Keyspace { number, name, sharding, replicas: 1, shards, auto: None });
    });
    let token: Vec<_> = ranges.iter().map(|range| format!("many/{range}.1:1")).collect();
    let set = format!("SET shoal.gtid = '{}'; SET shoal.report_gtid = on", token.join(","));
    assert_eq!(told(&mut socket, &set).await.0, "CCZ");
    assert_eq!(told(&mut socket, "INSERT INTO t VALUES (1)").await, ("CNZ".into(), None));
    assert_eq!(told(&mut socket, "INSERT INTO t VALUES (2)").await, ("CZ".into(), None), "it's said once");
    let (kinds, short) = told(&mut socket, "RESET shoal.gtid; INSERT INTO t VALUES (3)").await;
    assert_eq!((kinds.as_str(), short.is_some()), ("CCSZ", true));
}

#[tokio::test]
async fn schema_changes_are_in_the_set() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    for sql in ["CREATE TABLE u (a int PRIMARY KEY)", "TRUNCATE t", "BEGIN; DROP TABLE r; ROLLBACK"] {
        client.batch_execute(sql).await.unwrap();
        assert_eq!(gtid(&client).await, server.fake.gtid(), "{sql}");
    }
}

#[tokio::test]
async fn who_does_not_know_where_it_committed_is_told_so_and_asks() {
    let config = Config { retry_timeout: Duration::from_millis(100), ..Config::default() };
    let server = Server::start(config).await;
    let mut socket = server.session().await;
    server.fake.faults.lock().push_back(Fault::Hang);
    socket.write_all(&message(b'Q', b"CREATE TABLE u (a int PRIMARY KEY)\0")).await.unwrap();
    let answers = until_ready(&mut socket).await;
    assert_eq!(told_by(answers.clone()).0, "CNZ");
    assert_eq!(field(&answers[1].1, b'C'), "01000");
    let said = field(&answers[1].1, b'M');
    let silent = if said.contains("main/-80") { "main/-80" } else { "main/80-" };
    assert_eq!(said, format!("the position on {silent} is not known yet"));
    let unheard = format!("{silent}.1:?");
    let hint = field(&answers[1].1, b'H');
    assert_eq!(hint, format!("shoal.gtid has \"{unheard}\" instead: that shard is read from its leader."));
    socket.write_all(&message(b'Q', b"SHOW shoal.gtid\0")).await.unwrap();
    let shown = until_ready(&mut socket).await.remove(1).1;
    assert!(String::from_utf8_lossy(&shown).contains(&unheard));
    // A read of it tells.
    for a in 0..9 {
        told(&mut socket, &format!("SELECT b FROM t WHERE a = {a}")).await;
    }
    socket.write_all(&message(b'Q', b"SHOW shoal.gtid\0")).await.unwrap();
    let shown = until_ready(&mut socket).await.remove(1).1;
    assert!(String::from_utf8_lossy(&shown).ends_with(&server.fake.gtid()));
}

#[tokio::test]
async fn what_a_key_stands_for_is_in_the_set_of_who_is_told_so() {
    let server = Server::start(Config::default()).await;
    let (one, two, three) = (server.client().await, server.client().await, server.client().await);
    let key = "SET shoal.idempotency_key = 'k'";
    one.batch_execute(&format!("BEGIN; {key}; {FOUR}; COMMIT")).await.unwrap();
    // Its branches were prepared there, and their ends are there, too.
    let reached = gtid(&one).await;
    let (code, _, detail) = refused(&two, &format!("BEGIN; {key}; SELECT 1")).await;
    assert_eq!(code, "SH001");
    two.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!((gtid(&two).await.as_str(), reached.as_str()), (FIRST, "main/-80.1:102,main/80-.1:202"));
    assert!(detail.ends_with(&format!("its GTID {FIRST}.")), "{detail}");
    // One that learns it by its commit.
    three.batch_execute("BEGIN; SET shoal.idempotency_key = 'l'; INSERT INTO t VALUES (9)").await.unwrap();
    let by = server.fake.keys.lock()["k"].0;
    server.fake.keys.lock().insert("l".into(), (by, true));
    let (code, _, detail) = refused(&three, "COMMIT").await;
    assert_eq!((code.as_str(), detail.contains(FIRST)), ("SH001", true), "{detail}");
    assert!(gtid(&three).await.contains("main/-80.1:10") && gtid(&three).await.contains("main/80-.1:20"));
}

#[tokio::test]
async fn positions_go_on_where_their_logs_do() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    set(&client, "main/-80.1:7,main/80-.1:9").await.unwrap();
    server.fake.reshape(|topology| {
        let mut shard = topology.shards.remove(&ShardId(1)).unwrap();
        let source = proto::gtid::GtidSource {
            keyspace: "main".into(),
            shard: shard.range.clone(),
            incarnation: shard.incarnation,
        };
        let successors = vec![(ShardId(3), LogIndex(2))];
        topology.lineage.insert(source, Retired { shard: ShardId(1), last: LogIndex(7), successors });
        (shard.id, shard.incarnation) = (ShardId(3), Incarnation(2));
        topology.shards.insert(ShardId(3), shard);
        let main = topology.keyspaces.values_mut().next().unwrap();
        main.shards = vec![ShardId(3), ShardId(2)];
    });
    // Whoever asks the coordinator has heard of it.
    assert_eq!(set(&client, "main/-80.1:8").await, Err("SH002".into()));
    assert_eq!(gtid(&client).await, "main/-80.2:2,main/80-.1:9");
    set(&client, "main/-80.1:6").await.unwrap();
    assert_eq!(gtid(&client).await, "main/-80.2:2,main/80-.1:9");
}

#[tokio::test]
async fn a_hint_that_says_nothing_is_refused_wherever_it_is() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let hint = |hint: &str| format!("/*+ read({hint}) */ SELECT 1");
    let levels = ["strong", "session", "bounded", "bounded, 500ms", "eventual", "EVENTUAL "];
    for level in levels {
        rows(&client, &hint(level)).await.unwrap();
        client.query(&hint(level), &[]).await.unwrap();
    }
    rows(&client, "/*+ IndexScan(t) */ SELECT 1; SELECT 1 /*+ read(x) */").await.unwrap();
    assert_eq!(rows(&client, &hint("x")).await, Err("22023".into()));
    assert_eq!(rows(&client, &format!("SELECT 1; {}", hint("x"))).await, Err("22023".into()));
    let error = client.query(&hint("session, 1s"), &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22023");
    // A prepared statement has the hint of its own text.
    client.batch_execute(&format!("/*+ read(x) */ PREPARE p AS {}", hint("session"))).await.unwrap_err();
    client.batch_execute(&format!("PREPARE p AS {}", hint("session"))).await.unwrap();
    rows(&client, "EXECUTE p").await.unwrap();
    client.batch_execute(&format!("PREPARE q AS {}", hint("x"))).await.unwrap();
    assert_eq!(rows(&client, "EXECUTE q").await, Err("22023".into()));
}
