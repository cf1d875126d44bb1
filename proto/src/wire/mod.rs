//! The domain types as bytes, and back.
//!
//! In come the hand-written types of this crate; out go protobuf messages (`proto/*.proto`), on the wire and in the
//! coordinator's database. Encoding can't fail. Decoding trusts nothing: a missing id, an unknown enum value, a key
//! range out of order or a malformed row batch is a [`DecodeError`] that names the field, never a panic. The
//! generated messages stay in here: no other crate may see them.

mod advice;
#[cfg(feature = "transport")]
mod bootstrap;
mod catalog;
mod changes;
mod coordinator;
mod cut;
mod error;
mod layout;
#[cfg(feature = "transport")]
mod link;
mod replica;
mod reshard;
mod shard;
mod sums;
mod tally;
mod topology;
mod transaction;
mod values;

#[cfg(test)]
mod tests;

#[cfg(feature = "transport")]
pub(crate) use bootstrap::{cluster_bytes, cluster_from};
#[cfg(feature = "transport")]
pub(crate) use link::{
    AllAdvice, Allocate, AskOutcome, AutoSet, BranchStatuses, ChangeMembers, CheckTables, Claimed,
    CommandReshard, HoldLog, OneTransaction, Outcome, Report, ReshardStatuses, ResponseHead, SetSequence,
    ShardTallies, StateDecoder, StateEncoder, Statuses, TransactionStatuses, Transactions, TransferLeader,
    UnsettledTransactions,
};

/// What the build script generates.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub(crate) mod generated {
    include!(concat!(env!("OUT_DIR"), "/shoal.rs"));

    /// What only the transport sends.
    #[cfg(feature = "transport")]
    pub(crate) mod link {
        include!(concat!(env!("OUT_DIR"), "/shoal.link.rs"));
    }
}

use std::fmt::Display;

/// A type with a form in bytes, the same on the wire and on disk.
pub trait Wire: Sized {
    /// Its bytes.
    fn encode(&self) -> Vec<u8>;

    /// Reads what [`Wire::encode`] wrote, here or in another version of Shoal.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// Bytes that don't hold what they should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {path}: {problem}")]
pub struct DecodeError {
    path: String,
    problem: String,
}

impl DecodeError {
    pub(crate) fn new(field: &str, problem: impl Display) -> Self {
        Self { path: field.to_owned(), problem: problem.to_string() }
    }

    /// The same error, one level further out.
    fn inside(mut self, field: impl Display) -> Self {
        self.path = format!("{field}.{}", self.path);
        self
    }

    /// The field that is wrong, from the outermost message inward, for example `table.columns[2].type`.
    pub fn field(&self) -> &str {
        &self.path
    }
}

/// A domain type and its generated message.
pub(crate) trait Convert: Sized {
    /// The generated message.
    type Message: prost::Message + Default;

    /// What errors call it.
    const NAME: &'static str;

    fn to_message(&self) -> Self::Message;

    fn from_message(message: Self::Message) -> Result<Self, DecodeError>;
}

impl<T: Convert> Wire for T {
    fn encode(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(&self.to_message())
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_message(bytes)
    }
}

/// Decodes from anything that prost reads; from `Bytes`, byte fields share its memory.
pub(crate) fn decode_message<T: Convert>(bytes: impl bytes::Buf) -> Result<T, DecodeError> {
    let message = prost::Message::decode(bytes).map_err(|e| DecodeError::new(T::NAME, e))?;
    T::from_message(message).map_err(|e| e.inside(T::NAME))
}

/// A field that must be there.
fn required<T>(field: &str, value: Option<T>) -> Result<T, DecodeError> {
    value.ok_or_else(|| DecodeError::new(field, "it is missing"))
}

/// A message field that must be there.
fn one<T: Convert>(field: &str, message: Option<T::Message>) -> Result<T, DecodeError> {
    inner(field, required(field, message)?)
}

/// A message field that may be absent.
fn maybe<T: Convert>(field: &str, message: Option<T::Message>) -> Result<Option<T>, DecodeError> {
    message.map(|message| inner(field, message)).transpose()
}

/// A message that is there.
fn inner<T: Convert>(field: &str, message: T::Message) -> Result<T, DecodeError> {
    T::from_message(message).map_err(|e| e.inside(field))
}

/// A repeated message field.
fn each<T: Convert>(field: &str, messages: Vec<T::Message>) -> Result<Vec<T>, DecodeError> {
    let decode = |(i, message)| T::from_message(message).map_err(|e| e.inside(format_args!("{field}[{i}]")));
    messages.into_iter().enumerate().map(decode).collect()
}

/// The messages of many.
fn messages<'a, T: Convert + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<T::Message> {
    values.into_iter().map(T::to_message).collect()
}

/// An id that is never 0, which is also how protobuf says "missing".
fn id<T: Default + PartialEq>(field: &str, value: T) -> Result<T, DecodeError> {
    if value == T::default() { Err(DecodeError::new(field, "it is missing")) } else { Ok(value) }
}

/// An enum's number that the generated code knows.
fn known<T: TryFrom<i32>>(field: &str, number: i32) -> Result<T, DecodeError> {
    T::try_from(number).map_err(|_| DecodeError::new(field, format_args!("unknown value {number}")))
}
