//! What sessions begin with by their role.

use super::*;
use proto::catalog::RoleChange;

/// The error's code and message.
async fn refused(client: &Client, sql: &str) -> (String, String) {
    let error = client.batch_execute(sql).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    (error.code().code().to_owned(), error.message().to_owned())
}

async fn configured(client: &Client) -> Vec<Vec<Option<String>>> {
    rows(client, "SELECT setrole, setdatabase, setconfig FROM pg_db_role_setting ORDER BY 1").await.unwrap()
}

fn text(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

#[tokio::test]
async fn a_session_begins_with_what_its_role_has_and_startup_overrides_it() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    for sql in [
        "ALTER ROLE ALL SET shoal.read_consistency = 'eventual'",
        "ALTER ROLE ALL SET shoal.read_wait = '20ms'",
        "ALTER ROLE shoal SET shoal.read_consistency TO session",
        "ALTER USER CURRENT_USER SET timezone = 'Europe/Berlin'",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    assert_eq!(shown(&client, "shoal.read_consistency").await, "strong", "it has begun already");
    let later = server.client_with("-c timezone=UTC -c lock_timeout=1s").await;
    let names = ["shoal.read_consistency", "shoal.read_wait", "timezone", "lock_timeout"];
    let mut values = Vec::new();
    for name in names {
        values.push(shown(&later, name).await);
    }
    assert_eq!(values, ["session", "20ms", "UTC", "1s"]);
    // That is what RESET goes back to.
    let set = "SET shoal.read_consistency = 'bounded'; SET timezone = 'Asia/Tokyo'; SET lock_timeout = 5";
    for reset in [
        "RESET shoal.read_consistency; RESET timezone; SET lock_timeout TO DEFAULT",
        "RESET ALL",
        "DISCARD ALL",
    ] {
        later.batch_execute(set).await.unwrap();
        let facts = "SELECT setting, reset_val FROM pg_settings WHERE name IN ('shoal.read_consistency', 'lock_timeout') ORDER BY 1";
        assert_eq!(rows(&later, facts).await.unwrap(), [text(&["5ms", "1s"]), text(&["bounded", "session"])]);
        later.batch_execute(reset).await.unwrap();
        for (name, value) in names.iter().zip(&values) {
            assert_eq!(shown(&later, name).await, *value, "{reset}");
        }
    }
    client.batch_execute("ALTER ROLE shoal RESET ALL").await.unwrap();
    let last = server.client().await;
    assert_eq!(shown(&last, "shoal.read_consistency").await, "eventual", "there is still every role's");
    assert_eq!(shown(&last, "timezone").await, "UTC");
}

#[tokio::test]
async fn what_a_role_has_is_in_the_catalog() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("SET application_name = 'a \"b\", c'; SET lock_timeout = 1500").await.unwrap();
    for sql in [
        "ALTER ROLE shoal SET TIME ZONE UTC",
        "ALTER ROLE shoal SET application_name FROM CURRENT",
        "ALTER ROLE shoal SET lock_timeout FROM CURRENT",
        "ALTER ROLE shoal SET timezone = 'Asia/Tokyo'",
        "ALTER ROLE ALL SET statement_timeout = 5000",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    // By names as they are declared, with values as they were written.
    let own = r#"{TimeZone=Asia/Tokyo,"application_name=a \"b\", c",lock_timeout=1500ms}"#;
    let of_all = text(&["0", "0", "{statement_timeout=5000}"]);
    assert_eq!(configured(&client).await, [of_all.clone(), text(&["10", "0", own])]);
    let roles = "SELECT rolconfig, useconfig FROM pg_roles, pg_user";
    assert_eq!(rows(&client, roles).await.unwrap(), [text(&[own, own])]);
    client.batch_execute("ALTER ROLE shoal SET timezone TO DEFAULT").await.unwrap();
    client.batch_execute("ALTER ROLE shoal RESET application_name").await.unwrap();
    assert_eq!(configured(&client).await, [of_all, text(&["10", "0", "{lock_timeout=1500ms}"])]);
}

#[tokio::test]
async fn what_set_would_refuse_is_refused_before_anything_has_changed() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    let long = format!("ALTER ROLE ALL SET application_name = '{}'", "x".repeat(8193));
    for (sql, code) in [
        ("ALTER ROLE shoal SET shoal.read_consistency = 'linear'", "22023"),
        ("ALTER ROLE shoal SET client_encoding = 'LATIN1'", "22023"),
        ("ALTER ROLE shoal SET search_path = other", "0A000"),
        ("ALTER ROLE shoal SET server_version = '16'", "55P02"),
        ("ALTER ROLE shoal SET nonsense = 1", "42704"),
        ("ALTER ROLE shoal SET nonsense FROM CURRENT", "42704"),
        ("ALTER ROLE shoal RESET nonsense", "42704"),
        ("ALTER ROLE shoal SET shoal.gtid = 'main/-80.1:5'", "22023"),
        ("ALTER ROLE shoal SET shoal.gtid FROM CURRENT", "22023"),
        ("ALTER ROLE shoal RESET shoal.gtid", "22023"),
        ("ALTER ROLE shoal SET shoal.idempotency_key = 'k'", "22023"),
        ("ALTER ROLE other SET lock_timeout = 1", "42704"),
        ("ALTER ROLE shoal IN DATABASE shoal SET lock_timeout = 1", "0A000"),
        (long.as_str(), "22023"),
    ] {
        assert_eq!(rows(&client, sql).await, Err(code.to_owned()), "{sql}");
    }
    assert_eq!(configured(&client).await, [] as [Vec<_>; 0]);
    let (_, message) = refused(&client, "ALTER ROLE shoal SET shoal.gtid = ''").await;
    assert_eq!(message, "parameter \"shoal.gtid\" cannot be set for a role");
    let (_, message) = refused(&client, "ALTER ROLE other RESET ALL").await;
    assert_eq!(message, "role \"other\" does not exist");
}

#[tokio::test]
async fn it_is_a_schema_change_that_no_shard_hears_of() {
    let server = Server::start(Config::default()).await;
    let client = server.client().await;
    client.batch_execute("INSERT INTO t VALUES (1), (2)").await.unwrap();
    let asked = server.fake.requests.lock().len();
    client.batch_execute("ALTER ROLE shoal SET lock_timeout = 1").await.unwrap();
    assert_eq!(server.fake.requests.lock().len(), asked);
    for (sql, code) in [
        ("BEGIN; INSERT INTO t VALUES (4); ALTER ROLE shoal RESET ALL", "0A000"),
        ("BEGIN READ ONLY; ALTER ROLE shoal RESET ALL", "25006"),
    ] {
        assert_eq!(rows(&client, sql).await, Err(code.into()), "{sql}");
        client.batch_execute("ROLLBACK").await.unwrap();
    }
    assert_eq!(configured(&client).await, [text(&["10", "0", "{lock_timeout=1}"])]);
}

#[tokio::test]
async fn a_value_that_is_none_any_more_is_warned_of_and_keeps_nobody_out() {
    let server = Server::start(Config::default()).await;
    for (name, value) in [("DateStyle", "German"), ("lock_timeout", "7"), ("gone", "1")] {
        let (name, value) = (name.into(), value.into());
        server.fake.alter_role(None, RoleChange::Set { name, value });
    }
    server.fake.set_version(7);
    // The router has heard of it when it has asked.
    let client = server.client().await;
    assert_eq!(rows(&client, "SET shoal.gtid = 'none/-.1:1'").await, Err("22023".into()));
    let mut socket = server.socket().await;
    socket.write_all(&startup(&["user", "shoal"])).await.unwrap();
    let told = until_ready(&mut socket).await;
    let warnings = told.iter().filter(|(tag, _)| *tag == b'N');
    let warnings: Vec<_> = warnings.map(|(_, body)| (field(body, b'S'), field(body, b'C'))).collect();
    assert_eq!(warnings, [("WARNING", "22023"), ("WARNING", "42704")].map(|(s, c)| (s.into(), c.into())));
    socket.write_all(&message(b'Q', b"SHOW lock_timeout\0")).await.unwrap();
    assert!(until_ready(&mut socket).await[1].1.ends_with(b"7ms"));
}
