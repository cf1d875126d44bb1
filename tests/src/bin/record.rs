//! Records what PostgreSQL 15 does.
//!
//! `cargo run -p tests --bin record [NAME..]` starts a PostgreSQL of its own (collation C.UTF-8, time zone UTC), runs
//! each script of `tests/sql` and of `tests/isolation` in a database of its own, and writes the `.expected` file
//! beside it. Names choose scripts.

use std::path::{Path, PathBuf};
use std::{env, fs};
use tests::isolation::run::{Guide, Kind, Target, play};
use tests::isolation::script as isolation;
use tests::postgres::{Failure, Server};
use tests::script;

fn main() -> Result<(), Failure> {
    let names: Vec<String> = env::args().skip(1).collect();
    let server = Server::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (path, name) in scripts("sql", "sql", &names)? {
        let recorded = runtime.block_on(record(&server, &name, &fs::read_to_string(&path)?))?;
        fs::write(path.with_extension("expected"), recorded)?;
        println!("{name}");
    }
    for (path, name) in scripts("isolation", "txt", &names)? {
        let recorded = runtime.block_on(record_isolation(&server, &name, &fs::read_to_string(&path)?))?;
        fs::write(path.with_extension("expected"), recorded)?;
        println!("{name}");
    }
    Ok(())
}

/// The scripts of a folder, with their names.
fn scripts(folder: &str, extension: &str, names: &[String]) -> Result<Vec<(PathBuf, String)>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))? {
        let path = entry?.path();
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let wanted = names.is_empty() || names.contains(&name);
        if wanted && path.extension().is_some_and(|e| e == extension) {
            found.push((path, name));
        }
    }
    found.sort();
    Ok(found)
}

async fn record(server: &Server, name: &str, text: &str) -> Result<String, Failure> {
    server.create(name).await?;
    let client = server.connect(name).await?;
    let mut recorded = String::new();
    for statement in script::parse(text) {
        let answer = script::answer(&client, &script::for_postgres(&statement)).await;
        recorded.push_str(&script::render(&statement.sql, &answer));
    }
    Ok(recorded)
}

async fn record_isolation(server: &Server, name: &str, text: &str) -> Result<String, Failure> {
    let database = format!("isolation {name}");
    server.create(&database).await?;
    let target = Target { config: server.config(&database), kind: Kind::PostgreSql };
    let script = isolation::parse(text);
    let mut recorded = Vec::new();
    for case in &script.cases {
        let recording = play(&target, &script, case, Guide::Ask).await;
        recorded.push(isolation::render(&case.name, &recording));
    }
    Ok(recorded.join("\n"))
}
