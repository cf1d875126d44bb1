//! A log entry as it is written: a batch of transactions, a schema entry, or a hold on the log.
//!
//! Bytes in, bytes out. Unknown fields are skipped, so fields can be added; what an older node could not apply
//! correctly raises [`VERSION`], and a node stops at an entry of a version that it doesn't know. It must never know
//! how an entry is executed.

use bytes::Bytes;
use prost::Message;
use proto::{RequestId, RouterIncarnation, SqlState, WireError};

/// The version that this code writes, and the newest that it reads.
pub(crate) const VERSION: u32 = 1;

/// One log entry.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    /// Readers that know only lower versions must stop.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// No member may still fetch what lies up to here: all have it, or it was too long ago and they get an image.
    #[prost(uint64, tag = "2")]
    pub floor: u64,
    /// What it does.
    #[prost(oneof = "Body", tags = "3, 4, 5, 6, 7")]
    pub body: Option<Body>,
}

/// What an entry does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Body {
    /// Applies changesets.
    #[prost(message, tag = "3")]
    Batch(Batch),
    /// Runs statements.
    #[prost(message, tag = "4")]
    Schema(Schema),
    /// Has every replica hash its tables as of this index.
    #[prost(message, tag = "6")]
    Check(Check),
    /// Has the log kept for someone, or kept no more.
    #[prost(message, tag = "5")]
    Hold(Hold),
    /// Makes changes that were staged in a table.
    #[prost(message, tag = "7")]
    Replay(Replay),
}

/// The changes of a transaction, which every replica has in a table of its database.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Replay {
    /// Its name, if it has one.
    #[prost(message, optional, tag = "1")]
    pub request: Option<Request>,
    /// What is remembered under its name.
    #[prost(bytes = "bytes", tag = "2")]
    pub output: Bytes,
    /// The table.
    #[prost(string, tag = "3")]
    pub table: String,
    /// Whose rows in it.
    #[prost(fixed64, tag = "4")]
    pub router: u64,
    #[prost(uint64, tag = "5")]
    pub sequence: u64,
    /// Which of them, in their order.
    #[prost(message, repeated, tag = "6")]
    pub pieces: Vec<Pieces>,
    /// The tables whose rows of the same owner are struck out afterwards.
    #[prost(string, repeated, tag = "7")]
    pub strike: Vec<String>,
}

/// Rows that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Pieces {
    #[prost(uint64, tag = "1")]
    pub first: u64,
    #[prost(uint64, tag = "2")]
    pub last: u64,
    /// How many of the last one's chunks count; 0 for all.
    #[prost(uint32, tag = "3")]
    pub chunks: u32,
}

/// A check's only content is its index.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Check {}

/// Transactions in the order in which they ran.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Batch {
    #[prost(message, repeated, tag = "1")]
    pub transactions: Vec<Transaction>,
    /// What is forgotten after them.
    #[prost(message, repeated, tag = "2")]
    pub forgets: Vec<Forget>,
}

/// What a router was told below a sequence is forgotten; its requests below it are refused from then on.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Forget {
    #[prost(fixed64, tag = "1")]
    pub router: u64,
    #[prost(uint64, tag = "2")]
    pub below: u64,
}

/// One transaction.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Transaction {
    /// Rows that were changed, as the session extension writes them. Those that run in one batch are captured together,
    /// so this may have what others of the entry changed, too, or be empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub changeset: Bytes,
    /// Its name, if it has one.
    #[prost(message, optional, tag = "2")]
    pub request: Option<Request>,
    /// What its caller was told; remembered under its name.
    #[prost(bytes = "bytes", tag = "3")]
    pub output: Bytes,
}

/// The name of a transaction.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(fixed64, tag = "1")]
    pub router: u64,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// Requests of this router below this sequence can be forgotten.
    #[prost(uint64, tag = "3")]
    pub settled: u64,
}

/// Statements that every replica runs.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Schema {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    #[prost(uint32, tag = "2")]
    pub step: u32,
    #[prost(string, repeated, tag = "3")]
    pub statements: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub require_empty: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    pub notes: Vec<Note>,
}

/// A fact for the layer above.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Note {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// For whom the log is kept.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hold {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The first index that is kept; nothing if none is any more.
    #[prost(uint64, optional, tag = "2")]
    pub from: Option<u64>,
}

/// Why a schema entry failed, on every replica alike.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Failure {
    #[prost(string, tag = "1")]
    pub sqlstate: String,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(string, optional, tag = "3")]
    pub detail: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub hint: Option<String>,
}

impl Entry {
    /// An entry of this code's version.
    pub fn new(floor: u64, body: Body) -> Self {
        Self { version: VERSION, floor, body: Some(body) }
    }

    /// Reads an entry's bytes. The message says what this node can't read.
    pub fn read(data: Bytes) -> Result<Self, String> {
        let entry = Entry::decode(data).map_err(|e| format!("an entry that can't be decoded: {e}"))?;
        if entry.version == 0 || entry.version > VERSION {
            return Err(format!(
                "an entry of version {}; this node knows versions up to {VERSION}",
                entry.version
            ));
        }
        if entry.body.is_none() {
            return Err("an entry of a kind that this node doesn't know".into());
        }
        Ok(entry)
    }
}

impl Request {
    /// The name of a write.
    pub fn new(id: RequestId, settled: u64) -> Self {
        Self { router: id.router.0, sequence: id.sequence, settled }
    }

    /// The name alone.
    pub fn id(&self) -> RequestId {
        RequestId { router: RouterIncarnation(self.router), sequence: self.sequence }
    }
}

impl From<&WireError> for Failure {
    fn from(error: &WireError) -> Self {
        Self {
            sqlstate: error.sqlstate.as_str().into(),
            message: error.message.clone(),
            detail: error.detail.clone(),
            hint: error.hint.clone(),
        }
    }
}

impl From<Failure> for WireError {
    fn from(failure: Failure) -> Self {
        let sqlstate = SqlState::parse(&failure.sqlstate).unwrap_or(SqlState::INTERNAL_ERROR);
        let mut error = WireError::new(sqlstate, failure.message);
        error.detail = failure.detail;
        error.hint = failure.hint;
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(version: u32) -> Entry {
        Entry { version, floor: 7, body: Some(Body::Schema(Schema { job: 1, step: 2, ..Schema::default() })) }
    }

    #[test]
    fn an_entry_comes_back() {
        let entry = schema(VERSION);
        assert_eq!(Entry::read(entry.encode_to_vec().into()).unwrap(), entry);
    }

    #[test]
    fn a_newer_version_and_an_unknown_kind_are_refused() {
        assert!(Entry::read(schema(VERSION + 1).encode_to_vec().into()).unwrap_err().contains("version 2"));
        let unknown = Entry { version: VERSION, floor: 0, body: None };
        assert!(Entry::read(unknown.encode_to_vec().into()).unwrap_err().contains("kind"));
        assert!(Entry::read(Bytes::new()).is_err());
    }

    #[test]
    fn an_added_field_is_skipped() {
        let mut bytes = schema(VERSION).encode_to_vec();
        bytes.extend([0xf8, 0x01, 0x05]); // field 31, varint 5
        assert_eq!(Entry::read(bytes.into()).unwrap(), schema(VERSION));
    }
}
