//! Who a node is, on disk: `node.json` in its data directory, and the `LOCK` beside it.
//!
//! The file is replaced as a whole and synced with its directory before anyone is told what it says: a node never
//! forgets the id under which it voted. A directory whose `node.json` is missing must be empty.

use crate::failure::Failure;
use fs4::fs_std::FileExt;
use proto::services::{Founding, Joined};
use proto::topology::{Node, Roles};
use proto::{ClusterId, NodeId, RouterIncarnation};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The version of everything below a node's directory.
const FORMAT: u32 = 1;
const NAME: &str = "node.json";
/// How many routers are remembered. What earlier ones had prepared has long been ended.
const ROUTERS: usize = 8;

/// A node's directory, which this process has. Dropping it lets go.
pub struct Directory {
    path: PathBuf,
    record: Record,
    _lock: File,
}

/// What `node.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// The name of its request to join a cluster, so that it gets one id however often it asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<u64>,
    /// The cluster that this node is founding, until all founders have taken part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The cluster that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Member>,
    /// The routers that ran here last, one for each process, this one's at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<RouterIncarnation>,
}

/// A node's place in a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The cluster.
    pub cluster: ClusterId,
    /// Which of its nodes this is.
    pub node: NodeId,
    /// The nodes that hold the coordinator's replicas, as last heard.
    pub coordinators: Vec<Address>,
    /// What the cluster was founded as, on a founder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founded: Option<Founded>,
}

/// What a founder knows of the founding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founded {
    /// The founders.
    pub voters: Vec<NodeId>,
    /// How many shardnodes the cluster waits for.
    pub nodes: u32,
    /// The shards that `main` begins with.
    pub shards: u32,
    /// The replicas of each.
    pub replicas: u32,
    /// The coordinator's replica was made here. It isn't made a second time: one that has lost its files has
    /// forgotten how it voted.
    pub made: bool,
}

/// A cluster to be founded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its id.
    pub cluster: ClusterId,
    /// The founders.
    pub coordinators: Vec<Address>,
    /// How many shardnodes it waits for.
    pub nodes: u32,
    /// The shards that `main` begins with.
    pub shards: u32,
    /// The replicas of each.
    pub replicas: u32,
}

/// A node and where it listens. Its zone it tells the coordinator itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The node.
    pub node: NodeId,
    /// `host:port`.
    pub address: String,
    roles: Vec<String>,
}

impl From<&Node> for Address {
    fn from(node: &Node) -> Self {
        let Roles { router, shardnode, coordinator } = node.roles;
        let roles = [(router, "router"), (shardnode, "shardnode"), (coordinator, "coordinator")];
        let roles = roles.into_iter().filter(|(has, _)| *has).map(|(_, name)| name.to_owned()).collect();
        Address { node: node.id, address: node.address.clone(), roles }
    }
}

impl From<&Address> for Node {
    fn from(address: &Address) -> Self {
        let has = |name: &str| address.roles.iter().any(|role| role == name);
        let roles =
            Roles { router: has("router"), shardnode: has("shardnode"), coordinator: has("coordinator") };
        Node {
            id: address.node,
            address: address.address.clone(),
            roles,
            zone: String::new(),
            draining: false,
        }
    }
}

/// Nodes from what a file says of them.
pub fn nodes(addresses: &[Address]) -> Vec<Node> {
    addresses.iter().map(Node::from).collect()
}

impl Plan {
    /// What one of the founders is told.
    pub fn founding(&self, node: NodeId) -> Founding {
        let Plan { cluster, coordinators, nodes: count, shards, replicas } = self;
        let coordinators = nodes(coordinators);
        Founding {
            cluster: *cluster,
            node,
            coordinators,
            nodes: *count,
            shards: *shards,
            replicas: *replicas,
        }
    }
}

impl From<&Founding> for Member {
    fn from(founding: &Founding) -> Self {
        let Founding { cluster, node, coordinators, nodes, shards, replicas } = founding;
        let voters = coordinators.iter().map(|node| node.id).collect();
        let founded = Founded { voters, nodes: *nodes, shards: *shards, replicas: *replicas, made: false };
        let coordinators = coordinators.iter().map(Address::from).collect();
        Member { cluster: *cluster, node: *node, coordinators, founded: Some(founded) }
    }
}

impl From<&Joined> for Member {
    fn from(joined: &Joined) -> Self {
        let Joined { cluster, node, coordinators } = joined;
        let coordinators = coordinators.iter().map(Address::from).collect();
        Member { cluster: *cluster, node: *node, coordinators, founded: None }
    }
}

impl Directory {
    /// Takes a node's directory, making it if need be.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |source| Failure::File { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let path = fs::canonicalize(path).map_err(failed)?;
        let lock = lock(&path)?;
        let record = match read(&path)? {
            Some(record) => record,
            None => {
                let record =
                    Record { format: FORMAT, join: None, plan: None, member: None, routers: Vec::new() };
                write(&path, NAME, &record)?;
                record
            }
        };
        Ok(Self { path, record, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known of the node.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Notes the router that this process has.
    pub fn note_router(&mut self, router: RouterIncarnation) -> Result<(), Failure> {
        self.change(|record| {
            record.routers.push(router);
            let surplus = record.routers.len().saturating_sub(ROUTERS);
            record.routers.drain(..surplus);
        })
    }

    /// Changes what is known of the node, on disk first.
    pub fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Failure> {
        let mut record = self.record.clone();
        change(&mut record);
        if record != self.record {
            write(&self.path, NAME, &record)?;
            self.record = record;
        }
        Ok(())
    }
}

/// Locks a directory for this process alone.
pub fn lock(path: &Path) -> Result<File, Failure> {
    let name = path.join("LOCK");
    let failed = |source| Failure::File { path: name.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    match FileExt::try_lock_exclusive(&file) {
        Ok(true) => Ok(file),
        Ok(false) => Err(Failure::DataInUse(path.to_owned())),
        Err(source) => Err(failed(source)),
    }
}

/// Replaces a JSON file as a whole: what is read after a crash is the old one or the new one.
pub fn write(folder: &Path, name: &str, value: &impl Serialize) -> Result<(), Failure> {
    let (new, name) = (folder.join(format!("{name}.new")), folder.join(name));
    let failed = |source| Failure::File { path: name.clone(), source };
    let mut file = File::create(&new).map_err(failed)?;
    let text = serde_json::to_vec_pretty(value).expect("names and numbers can be written as JSON");
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, &name).map_err(failed)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// A directory without Shoal's file must hold nothing else, lest a typing error mix Shoal's files with others.
pub fn empty(path: &Path, missing: &str) -> Result<(), Failure> {
    let failed = |source| Failure::File { path: path.to_owned(), source };
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name != "LOCK" && name != format!("{missing}.new").as_str() {
            let message =
                format!("it has {} but no {missing}, so it isn't empty and isn't Shoal's", name.display());
            return Err(Failure::DataUnfit { path: path.to_owned(), message });
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<Record>, Failure> {
    let name = path.join(NAME);
    let text = match fs::read_to_string(&name) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return empty(path, NAME).map(|()| None),
        Err(source) => return Err(Failure::File { path: name, source }),
    };
    let unfit = |message| Failure::DataUnfit { path: name.clone(), message };
    let format = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|v| v["format"].as_u64());
    if let Some(format) = format.filter(|format| *format != u64::from(FORMAT)) {
        return Err(unfit(format!("format {format}, but this version of Shoal reads format {FORMAT}")));
    }
    serde_json::from_str(&text).map(Some).map_err(|error| unfit(format!("not Shoal's: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        let roles = Roles { router: false, shardnode: true, coordinator: true };
        let node = Node { id: NodeId(2), address: "h:1".into(), roles, zone: String::new(), draining: false };
        assert_eq!(Node::from(&Address::from(&node)), node);
        let founding = Founding {
            cluster: ClusterId(u128::MAX - 1),
            node: NodeId(2),
            coordinators: vec![node],
            nodes: 3,
            shards: 4,
            replicas: 3,
        };
        Member::from(&founding)
    }

    #[test]
    fn a_node_stays_who_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node");
        let mut directory = Directory::open(&path).unwrap();
        assert_eq!(directory.record().member, None);
        directory.change(|record| record.member = Some(member())).unwrap();
        assert!(matches!(Directory::open(&path), Err(Failure::DataInUse(_))));
        drop(directory);
        assert_eq!(Directory::open(&path).unwrap().record().member, Some(member()));
    }

    #[test]
    fn the_next_process_knows_which_routers_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        for router in 0..ROUTERS as u64 + 2 {
            let mut directory = Directory::open(folder.path()).unwrap();
            let former: Vec<_> = (router.saturating_sub(ROUTERS as u64)..router).collect();
            assert_eq!(
                directory.record().routers,
                former.into_iter().map(RouterIncarnation).collect::<Vec<_>>()
            );
            directory.note_router(RouterIncarnation(router)).unwrap();
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        let refused = |file: &str, text: &str| {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(file), text).unwrap();
            Directory::open(folder.path()).err().unwrap().to_string()
        };
        assert!(refused("thesis.tex", "").contains("thesis.tex"));
        assert!(refused("log", "").contains("no node.json"));
        assert!(refused("cluster.json", "{}").contains("cluster.json"));
        assert!(refused(NAME, "{\"format\":1,\"no").contains("not Shoal's"));
        assert!(refused(NAME, "{\"format\":9,\"new\":1}").contains("format 9"));
        assert!(refused(NAME, "{\"format\":1,\"new\":1}").contains("unknown field"));
    }
}
