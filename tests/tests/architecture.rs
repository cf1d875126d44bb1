//! The house's rules, as tests: which crate may know which, and what the pure rooms must not touch.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate with the crates of ours that it may use. docs/architecture.md draws the same.
const EDGES: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("dialect", &["proto"]),
    ("planner", &["proto", "dialect"]),
    ("replica", &["proto", "dialect"]),
    ("shardnode", &["proto", "dialect", "replica"]),
    ("coordinator", &["proto", "dialect", "replica"]),
    ("router", &["proto", "dialect", "planner"]),
    ("cli", &["proto", "dialect", "planner", "replica", "shardnode", "coordinator", "router"]),
    ("tests", &["proto", "dialect", "planner", "replica", "shardnode", "coordinator", "router"]),
    ("benches", &["proto", "dialect", "planner", "replica", "shardnode", "coordinator", "router"]),
];

/// What the crates that must stay pure may never depend on, features being what they are in their own manifests.
const IMPURE_CRATES: &[&str] = &["tokio", "tonic", "rusqlite", "rand", "raft", "raft-engine", "pgwire"];

/// Folders and files whose code may have no socket, thread, clock or random source.
const PURE: &[&str] =
    &["proto/src", "dialect/src", "planner/src", "replica/src/consensus", "replica/src/engine"];

/// Parts of them that are impure on purpose, behind a feature.
const PURE_EXCEPT: &[&str] = &["proto/src/transport", "proto/src/machine.rs"];

/// What would give them one.
const IMPURE_WORDS: &[&str] = &[
    "std::net",
    "std::thread",
    "thread::spawn",
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "tokio::",
    "rand::",
    "thread_rng",
    "new_v4",
    "getrandom",
];

/// What a node's code takes time, chance and threads from is `proto::machine` alone, so that a simulation can give it others.
const SIMULATED: &[&str] = &["shardnode/src", "coordinator/src", "router/src"];

/// What would go past it.
const UNSIMULATED_WORDS: &[&str] =
    &["Instant::now", ".elapsed()", "SystemTime", "spawn_blocking", "std::thread", "thread::spawn"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

#[test]
fn crates_know_only_whom_they_may() {
    let metadata = MetadataCommand::new().no_deps().manifest_path(root().join("Cargo.toml")).exec().unwrap();
    let ours: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(found, ours, "a crate without a line in EDGES, or the reverse");
    for package in &metadata.packages {
        let (_, allowed) = EDGES.iter().find(|(name, _)| *name == package.name.as_str()).unwrap();
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            if ours.contains(dependency.name.as_str()) {
                assert!(
                    allowed.contains(&dependency.name.as_str()),
                    "{} must not know {}",
                    package.name,
                    dependency.name
                );
            }
        }
    }
}

#[test]
fn pure_crates_depend_on_nothing_impure() {
    let metadata = MetadataCommand::new().no_deps().manifest_path(root().join("Cargo.toml")).exec().unwrap();
    for name in ["proto", "dialect", "planner"] {
        let package = metadata.packages.iter().find(|p| p.name.as_str() == name).unwrap();
        let plain = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal && !d.optional);
        for dependency in plain {
            assert!(
                !IMPURE_CRATES.contains(&dependency.name.as_str()),
                "{name} depends on {}",
                dependency.name
            );
            let features: Vec<_> = dependency.features.iter().map(String::as_str).collect();
            assert!(
                !features.contains(&"transport") && !features.contains(&"sqlite"),
                "{name} turns on {features:?} of {}",
                dependency.name
            );
        }
    }
}

#[test]
fn pure_rooms_have_no_socket_thread_clock_or_chance() {
    let mut sources = Vec::new();
    for place in PURE {
        collect(&root().join(place), &mut sources);
    }
    assert!(sources.len() > 20, "the pure rooms have moved");
    for path in sources {
        let place = path.strip_prefix(root()).unwrap().to_owned();
        // A test may use what it likes; its module is a file or a folder whose name says so.
        let is_test = place.components().any(|part| {
            let name = part.as_os_str().to_string_lossy();
            name == "tests" || name == "tests.rs" || name.ends_with("_tests.rs")
        });
        if is_test || PURE_EXCEPT.iter().any(|except| place.starts_with(except)) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap();
            for word in IMPURE_WORDS {
                assert!(!line.contains(word), "{}:{}: {word}", place.display(), number + 1);
            }
        }
    }
}

#[test]
fn what_is_simulated_takes_nothing_past_the_machine() {
    let mut sources = Vec::new();
    for place in SIMULATED {
        collect(&root().join(place), &mut sources);
    }
    for path in sources {
        let place = path.strip_prefix(root()).unwrap().display().to_string();
        if place.ends_with("tests.rs") || place.ends_with("router/src/fake.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap().replace("tokio::time::Instant::now", "");
            for word in UNSIMULATED_WORDS.iter().filter(|word| line.contains(**word)) {
                // A bound's default, and a lost thread's cleanup.
                let harmless = ["available_parallelism", "thread::panicking"];
                assert!(harmless.iter().any(|known| line.contains(known)), "{place}:{}: {word}", number + 1);
            }
        }
        // By lot, a simulation would choose another branch each time.
        for select in code.split("select! {").skip(1) {
            let first =
                select.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("//"));
            assert_eq!(first, Some("biased;"), "{place}: a select! by lot");
        }
    }
}

fn collect(place: &Path, sources: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(place).unwrap_or_else(|e| panic!("{}: {e}", place.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|e| e == "rs") {
            sources.push(path);
        }
    }
}
