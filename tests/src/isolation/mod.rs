//! Isolation scripts: statements of several sessions, one after another, and who waits for whom.
//!
//! `tests/isolation/NAME.txt` has cases, [`script`] tells how they are written. `NAME.expected` beside it tells what
//! PostgreSQL 15 did, statement by statement; `cargo run -p tests --bin record` writes it. [`run`] plays a case, either
//! to record it or to compare. Where Shoal does otherwise on purpose, `NAME.shoal` has the case as Shoal plays it, written
//! by hand, with the reason as a comment; docs/transactions.md tells users of it.

pub mod run;
pub mod script;

use std::path::Path;
use std::{fs, io};

/// A script, and what its cases should do.
pub struct Found {
    /// Its file's name without the extension.
    pub name: String,
    /// The script.
    pub script: script::Script,
    /// For each case, what PostgreSQL did.
    pub recorded: Vec<script::Recording>,
    /// For each case, what Shoal should do.
    pub expected: Vec<script::Recording>,
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
        let own = path.with_extension("shoal");
        let own = if own.exists() { fs::read_to_string(own)? } else { String::new() };
        let recorded = fs::read_to_string(path.with_extension("expected"))?;
        let expected = script::expectations(&script, &recorded, &own);
        let recorded = script::expectations(&script, &recorded, "");
        found.push(Found { name, script, recorded, expected });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
