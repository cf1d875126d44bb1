//! What `shoal node` is told: by its command line, and by a TOML file of the same options.
//!
//! The command line wins, option by option. A key that the file shouldn't have is an error that names both.

use crate::arguments::{NodeOptions, RoleArgument};
use crate::failure::Failure;
use crate::tuning::Tuned;
use proto::topology::Roles;
use std::path::{Path, PathBuf};

/// A node's options with nothing left open.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Where its files live.
    pub data_dir: PathBuf,
    /// Where other nodes and the admin reach it.
    pub listen: String,
    /// What others are told of that, if it's something else.
    pub advertise: Option<String>,
    /// Where Postgres clients connect.
    pub pg_listen: Option<String>,
    /// Where Prometheus fetches /metrics.
    pub metrics_listen: Option<String>,
    /// Other nodes.
    pub join: Vec<String>,
    /// What it is willing to do.
    pub roles: Roles,
    /// Its zone; empty for none.
    pub zone: String,
    /// Everyone who can reach it may.
    pub insecure: bool,
    /// Times and bounds.
    pub tuned: Tuned,
}

/// Reads the file, if there is one, and fills in what the command line left open.
pub fn resolve(given: NodeOptions) -> Result<Options, Failure> {
    let file = match &given.config {
        Some(path) => read(path)?,
        None => NodeOptions::default(),
    };
    let needed = |option: &str| {
        let place = given.config.as_ref().map_or(String::new(), |path| format!(" or in {}", path.display()));
        Failure::Arguments(format!("{option} is needed: give --{option} on the command line{place}"))
    };
    let data_dir = given.data_dir.or(file.data_dir).ok_or_else(|| needed("data-dir"))?;
    let listen = given.listen.or(file.listen).ok_or_else(|| needed("listen"))?;
    let roles = roles(given.roles.or(file.roles))?;
    let pg_listen = given.pg_listen.or(file.pg_listen);
    let pg_listen = match (roles.router, pg_listen) {
        (true, None) => return Err(needed("pg-listen")),
        (false, Some(_)) => {
            return Err(Failure::Arguments("pg-listen is for nodes with the role router".into()));
        }
        (_, pg_listen) => pg_listen,
    };
    Ok(Options {
        data_dir,
        listen,
        advertise: given.advertise.or(file.advertise),
        pg_listen,
        metrics_listen: given.metrics_listen.or(file.metrics_listen),
        join: given.join.or(file.join).unwrap_or_default(),
        roles,
        zone: given.zone.or(file.zone).unwrap_or_default(),
        insecure: given.insecure.or(file.insecure).unwrap_or(false),
        tuned: given.tuning.or(file.tuning).resolve()?,
    })
}

fn roles(given: Option<Vec<RoleArgument>>) -> Result<Roles, Failure> {
    let Some(given) = given else { return Ok(Roles::ALL) };
    if given.is_empty() {
        return Err(Failure::Arguments("roles has at least one of router, shardnode, coordinator".into()));
    }
    let has = |role| given.contains(&role);
    Ok(Roles {
        router: has(RoleArgument::Router),
        shardnode: has(RoleArgument::Shardnode),
        coordinator: has(RoleArgument::Coordinator),
    })
}

fn read(path: &Path) -> Result<NodeOptions, Failure> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Failure::File { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        let place = line.map_or(String::new(), |line| format!("line {line}: "));
        Failure::DataUnfit { path: path.to_owned(), message: format!("{place}{}", error.message()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::Parser;

    fn node(file: &str, arguments: &[&str]) -> Result<Options, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shoal.toml");
        std::fs::write(&path, file).unwrap();
        let mut line = vec!["shoal", "node", "--config", path.to_str().unwrap()];
        line.extend(arguments);
        match Arguments::try_parse_from(line).unwrap().command {
            Command::Node(node) => resolve(node.options),
            other => panic!("{other:?}"),
        }
    }

    const WHOLE: &str = r#"
        data-dir = "/data"
        listen = "10.0.0.1:7000"
        pg-listen = "10.0.0.1:5432"
        metrics-listen = "10.0.0.1:9090"
        join = ["10.0.0.2:7000", "10.0.0.3:7000"]
        roles = ["router", "coordinator"]
        zone = "east-1"
        insecure = true
        [tuning]
        tick = "50ms"
        apply-lag = "0ms..100ms"
        max-connections = 7
    "#;

    #[test]
    fn the_file_fills_in_what_the_command_line_leaves_open() {
        let options =
            node(WHOLE, &["--listen", "10.0.0.9:1", "--join", "a:1,b:2", "--tick", "20ms"]).unwrap();
        assert_eq!(
            (options.listen.as_str(), options.pg_listen.as_deref()),
            ("10.0.0.9:1", Some("10.0.0.1:5432"))
        );
        assert_eq!(options.metrics_listen.as_deref(), Some("10.0.0.1:9090"));
        assert_eq!(options.join, ["a:1", "b:2"]);
        assert_eq!(options.roles, Roles { router: true, shardnode: false, coordinator: true });
        assert_eq!(options.zone, "east-1");
        assert!(options.insecure);
        let tuned = options.tuned.replica(proto::NodeId(1), options.data_dir);
        assert_eq!((tuned.tick.as_millis(), tuned.election_ticks), (20, 10));
        let ms = std::time::Duration::from_millis;
        assert_eq!(tuned.apply_lag, Some((ms(0), ms(100))));
    }

    #[test]
    fn what_the_file_should_not_have_is_named_with_it() {
        for (file, word) in [
            ("data-dirr = \"/data\"", "data-dirr"),
            ("[tuning]\ntock = \"5ms\"", "tock"),
            ("[tuning]\ntick = \"5\"", "not like"),
            ("[tuning]\napply-lag = \"2s..1s\"", "the longer time"),
            ("roles = [\"king\"]", "king"),
            ("listen = 5", "line 1"),
        ] {
            let error = node(file, &[]).unwrap_err().to_string();
            assert!(error.contains("shoal.toml") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_needed_is_asked_for() {
        let error = node("", &["--data-dir", "d"]).unwrap_err().to_string();
        assert!(error.starts_with("listen is needed") && error.contains("shoal.toml"), "{error}");
        let error = node("", &["--data-dir", "d", "--listen", "l:1"]).unwrap_err().to_string();
        assert!(error.starts_with("pg-listen is needed"), "{error}");
        let shardnode = ["--data-dir", "d", "--listen", "l:1", "--roles", "shardnode"];
        assert_eq!(node("", &shardnode).unwrap().pg_listen, None);
    }
}
