//! Why a command ended without doing what it was asked.

use proto::WireError;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Printed as one line; each names the thing that was wrong.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The async runtime didn't start.
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    /// A file or directory refused.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has the data directory.
    #[error("{}: another shoal process is using this data directory", .0.display())]
    DataInUse(PathBuf),
    /// The directory holds something else, or a cluster of another shape.
    #[error("{}: {message}", path.display())]
    DataUnfit {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The address can't be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Anyone who reaches the address would be in.
    #[error(
        "{0} is not a loopback address, and Shoal has no authentication yet: everyone who can reach it could read and \
         change everything; pass --insecure to do it all the same"
    )]
    Insecure(SocketAddr),
    /// Arguments that contradict each other.
    #[error("{0}")]
    Arguments(String),
    /// A replica refused to open.
    #[error(transparent)]
    Replica(#[from] replica::ReplicaError),
    /// The cluster answered with an error.
    #[error("{}{}", .0.message, .0.hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default())]
    Cluster(#[from] WireError),
    /// The node found that it can't go on.
    #[error(transparent)]
    Node(std::sync::Arc<Failure>),
    /// The cluster didn't get ready.
    #[error("the cluster was not ready after {0} seconds: {1}")]
    NotReady(u64, String),
    /// Somebody must decide: what, and how.
    #[error("{0} (hint: {1})")]
    Undecided(String, String),
    /// What was begun goes on without the command: what does, and what shows it.
    #[error("{0} (hint: {1})")]
    GoesOn(String, String),
    /// The answer couldn't be printed.
    #[error("cannot print: {0}")]
    Print(std::io::Error),
}

impl Failure {
    /// What the process ends with. Wrong arguments end it with 2.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Undecided(..) => 3,
            Failure::GoesOn(..) => 4,
            _ => 1,
        }
    }
}
