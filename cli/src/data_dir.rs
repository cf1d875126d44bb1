//! The data directory of `shoal dev`: what shape of cluster it holds, and that only one process has it.
//!
//! Each node has its own directory in it ([`crate::identity`]). `LOCK` is locked by the process that has the directory. `cluster.json` says what was made there; it is written
//! before anything else and never changed, so a directory without it holds nothing of Shoal's.

use crate::failure::Failure;
use crate::identity;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The version of everything below a data directory.
const FORMAT: u32 = 2;
const NAME: &str = "cluster.json";

/// The shape that a development cluster was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// See [`FORMAT`].
    format: u32,
    /// Its nodes.
    pub nodes: u32,
    /// The shards that `main` began with.
    pub shards: u32,
    /// The replicas of each.
    pub replicas: u32,
}

impl Shape {
    /// A shape in the present format.
    pub fn new(nodes: u32, shards: u32, replicas: u32) -> Self {
        Self { format: FORMAT, nodes, shards, replicas }
    }
}

/// A data directory that this process has. Dropping it lets go.
pub struct DataDir {
    path: PathBuf,
    shape: Shape,
    _lock: File,
}

impl DataDir {
    /// Takes a directory, making it if need be. `wanted` are the values that the user gave; one that differs from
    /// what the directory was made with is an error, the others are filled in from it, or from `defaults`.
    pub fn open(path: &Path, wanted: WantedShape, defaults: Shape) -> Result<Self, Failure> {
        fs::create_dir_all(path).map_err(|source| Failure::File { path: path.to_owned(), source })?;
        let path =
            fs::canonicalize(path).map_err(|source| Failure::File { path: path.to_owned(), source })?;
        let lock = identity::lock(&path)?;
        let shape = match read_shape(&path)? {
            Some(found) => {
                wanted.check(&path, found)?;
                found
            }
            None => {
                let shape = wanted.fill(defaults);
                identity::write(&path, NAME, &shape)?;
                shape
            }
        };
        Ok(Self { path, shape, _lock: lock })
    }

    /// The shape of the cluster in it.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// A node's own directory.
    pub fn node(&self, number: u32) -> PathBuf {
        self.path.join(format!("node-{number}"))
    }
}

/// What the user said of the shape.
#[derive(Clone, Copy, Debug, Default)]
pub struct WantedShape {
    /// `--nodes`.
    pub nodes: Option<u32>,
    /// `--shards`.
    pub shards: Option<u32>,
    /// `--replicas`.
    pub replicas: Option<u32>,
}

impl WantedShape {
    fn fill(self, defaults: Shape) -> Shape {
        Shape::new(
            self.nodes.unwrap_or(defaults.nodes),
            self.shards.unwrap_or(defaults.shards),
            self.replicas.unwrap_or(defaults.replicas),
        )
    }

    fn check(self, path: &Path, found: Shape) -> Result<(), Failure> {
        let unfit = |message| Failure::DataUnfit { path: path.to_owned(), message };
        for (name, wanted, found) in [
            ("nodes", self.nodes, found.nodes),
            ("shards", self.shards, found.shards),
            ("replicas", self.replicas, found.replicas),
        ] {
            if wanted.is_some_and(|wanted| wanted != found) {
                return Err(unfit(format!("this cluster was made with --{name} {found}")));
            }
        }
        Ok(())
    }
}

fn read_shape(path: &Path) -> Result<Option<Shape>, Failure> {
    let name = path.join(NAME);
    let text = match fs::read_to_string(&name) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return identity::empty(path, NAME).map(|()| None);
        }
        Err(source) => return Err(Failure::File { path: name, source }),
    };
    let unfit = |message| Failure::DataUnfit { path: name.clone(), message };
    let shape: Shape = serde_json::from_str(&text).map_err(|error| unfit(format!("not Shoal's: {error}")))?;
    if shape.format != FORMAT {
        return Err(unfit(format!(
            "format {}, but this version of Shoal reads format {FORMAT}",
            shape.format
        )));
    }
    Ok(Some(shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: fn() -> Shape = || Shape::new(3, 2, 3);

    fn open(path: &Path, wanted: WantedShape) -> Result<DataDir, Failure> {
        DataDir::open(path, wanted, DEFAULTS())
    }

    #[test]
    fn the_shape_stays_what_it_was_made_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let four = WantedShape { shards: Some(4), ..WantedShape::default() };
        assert_eq!(open(&path, four).unwrap().shape(), Shape::new(3, 4, 3));
        assert_eq!(open(&path, WantedShape::default()).unwrap().shape(), Shape::new(3, 4, 3));
        let two = WantedShape { shards: Some(2), ..WantedShape::default() };
        assert!(open(&path, two).err().unwrap().to_string().contains("made with --shards 4"));
    }

    #[test]
    fn only_one_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), WantedShape::default()).unwrap();
        assert!(matches!(open(folder.path(), WantedShape::default()), Err(Failure::DataInUse(_))));
        drop(first);
        open(folder.path(), WantedShape::default()).unwrap();
    }

    #[test]
    fn other_peoples_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        assert!(
            open(folder.path(), WantedShape::default()).err().unwrap().to_string().contains("thesis.tex")
        );
        let half = tempfile::tempdir().unwrap();
        fs::write(half.path().join("cluster.json"), "{\"format\":2,\"nod").unwrap();
        assert!(matches!(open(half.path(), WantedShape::default()), Err(Failure::DataUnfit { .. })));
        fs::write(half.path().join("cluster.json"), r#"{"format":9,"nodes":1,"shards":1,"replicas":1}"#)
            .unwrap();
        assert!(open(half.path(), WantedShape::default()).err().unwrap().to_string().contains("format 9"));
    }
}
