//! Values, row batches and request ids as messages.

use super::generated as pb;
use super::{Convert, DecodeError, id};
use crate::ids::{RequestId, RouterIncarnation};
use crate::rows::{RowBatch, RowBatchBuilder};
use crate::value::{Value, ValueRef};

impl Convert for RowBatch {
    type Message = pb::RowBatch;
    const NAME: &'static str = "rows";

    fn to_message(&self) -> pb::RowBatch {
        let rows = u32::try_from(self.len()).expect("a batch counts its rows in 32 bits");
        pb::RowBatch { columns: u32::from(self.columns()), rows, data: self.data().clone() }
    }

    fn from_message(message: pb::RowBatch) -> Result<Self, DecodeError> {
        let pb::RowBatch { columns, rows, data } = message;
        let columns = u16::try_from(columns).map_err(|e| DecodeError::new("columns", e))?;
        RowBatch::decode(columns, rows, data).map_err(|e| DecodeError::new("data", e.0))
    }
}

impl Convert for RequestId {
    type Message = pb::RequestId;
    const NAME: &'static str = "request";

    fn to_message(&self) -> pb::RequestId {
        pb::RequestId { router: self.router.0, sequence: self.sequence }
    }

    fn from_message(message: pb::RequestId) -> Result<Self, DecodeError> {
        Ok(RequestId {
            router: RouterIncarnation(message.router),
            sequence: id("sequence", message.sequence)?,
        })
    }
}

/// A list of values: a batch of one column, so that the list may be longer than a row may be wide.
pub(super) fn list<'a>(values: impl IntoIterator<Item = &'a Value>) -> pb::RowBatch {
    let mut builder = RowBatchBuilder::new(1);
    for value in values {
        builder.push(value.as_ref());
    }
    builder.finish().to_message()
}

/// The values of a list.
pub(super) fn unlist(field: &str, message: pb::RowBatch) -> Result<Vec<Value>, DecodeError> {
    if message.columns != 1 {
        return Err(DecodeError::new(field, format_args!("a list of {} columns", message.columns)));
    }
    let batch: RowBatch = super::inner(field, message)?;
    Ok(batch.rows().flatten().map(ValueRef::to_owned).collect())
}
