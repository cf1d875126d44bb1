//! Tokens that clients bring: the text of a GTID set to positions of shards.
//!
//! A router's topology may be old, so what it doesn't know is refused only after the coordinator was asked. What a position
//! means is [`proto::lineage`]'s to know, what becomes of it the session's.

use crate::cluster::Cluster;
use proto::gtid::{GtidSet, Position, shortened};
use proto::lineage::GtidError;
use proto::{ShardId, SqlState, WireError};
use std::collections::BTreeMap;
use std::time::Instant;

/// The setting by which tokens come and go.
pub const GTID: &str = "shoal.gtid";

/// The positions that cover a token.
pub async fn read(
    cluster: &Cluster,
    text: &str,
    until: Instant,
) -> Result<BTreeMap<ShardId, Position>, WireError> {
    let set: GtidSet = text.parse().map_err(|error| invalid(text).with_detail(format!("{error}.")))?;
    if let Ok(positions) = cluster.load().topology.resolve(&set) {
        return Ok(positions);
    }
    let newest = cluster.confirm(until).await?;
    newest.topology.resolve(&set).map_err(|error| match &error {
        GtidError::UnknownKeyspace(_) => invalid(text).with_detail(format!("{error}.")),
        GtidError::Lost(..) => WireError::new(SqlState::POSITION_LOST, error.to_string()).with_hint(
            "It may be from before the cluster was restored from a backup, or of another cluster.",
        ),
    })
}

fn invalid(text: &str) -> WireError {
    let message = format!("invalid value for parameter \"{GTID}\": \"{}\"", shortened(text));
    WireError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

/// A shard's leader says that its log ends before a position that is asked for: the error names the position as clients
/// know it.
pub fn not_reached(error: WireError, log: &str) -> WireError {
    let Some(rest) = error.message.strip_prefix("index ") else { return error };
    WireError { message: format!("position {log}:{rest}"), ..error }
        .with_hint("No commit of this cluster has come so far: the position may be of another cluster, or of data that was put back.")
}
