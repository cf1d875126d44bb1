//! Isolation scripts: statements of several sessions, one after another, and who waits for whom.
//!
//! `tests/isolation/NAME.txt` has cases, [`script`] tells how they are written. `NAME.expected` beside it tells what
//! PostgreSQL 15 did, statement by statement; `cargo run -p tests --bin record` writes it. [`run`] plays a case, either
//! to record it or to compare. Where Shoal does otherwise, `NAME.shoal` has the case as Shoal plays it, written by hand,
//! with the reason as a comment; ` (one shard)` or ` (several shards)` behind its name says where.

pub mod run;
pub mod script;

use std::path::Path;
use std::{fs, io};

/// A script, and what its cases do.
pub struct Found {
    /// Its file's name without the extension.
    pub name: String,
    /// The script.
    pub script: script::Script,
    /// For each case, what PostgreSQL did.
    pub recorded: Vec<script::Recording>,
    /// The cases that Shoal plays in its own way.
    own: Vec<(String, script::Recording)>,
}

impl Found {
    /// What Shoal should do in each case, with so many shards.
    pub fn expected(&self, shards: u32) -> Vec<&script::Recording> {
        let suffix = if shards == 1 { script::ONE_SHARD } else { script::SEVERAL_SHARDS };
        let each = self.script.cases.iter().zip(&self.recorded);
        each.map(|(case, recorded)| {
            let is_it = |name: &str| name.strip_suffix(suffix).unwrap_or(name) == case.name;
            self.own.iter().find(|(name, _)| is_it(name)).map_or(recorded, |(_, own)| own)
        })
        .collect()
    }
}

/// The scripts of a folder, by name.
pub fn scripts(folder: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let script = script::parse(&fs::read_to_string(&path)?);
        let recorded = script::recordings(&script, &fs::read_to_string(path.with_extension("expected"))?);
        let own = path.with_extension("shoal");
        let own = if own.exists() { fs::read_to_string(own)? } else { String::new() };
        let own = script::own_recordings(&script, &own);
        found.push(Found { name, script, recorded, own });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Plays the scripts on a cluster with so many shards, those of these names if there are any. Says how many cases it
/// played, and which were otherwise than expected: the script, the case's name, what was expected, and what happened.
pub async fn play_on_shoal(
    config: &tokio_postgres::Config,
    shards: u32,
    scripts: &[Found],
    names: &[String],
) -> (usize, Vec<(String, String, script::Recording, script::Recording)>) {
    let target = run::Target { config: config.clone(), kind: run::Kind::Shoal(shards) };
    let (mut played, mut otherwise) = (0, Vec::new());
    for found in scripts.iter().filter(|found| names.is_empty() || names.contains(&found.name)) {
        for (case, expected) in found.script.cases.iter().zip(found.expected(shards)) {
            let actual = run::play(&target, &found.script, case, run::Guide::Follow(expected)).await;
            played += 1;
            if actual != *expected {
                otherwise.push((found.name.clone(), case.name.clone(), expected.clone(), actual));
            }
        }
    }
    (played, otherwise)
}
