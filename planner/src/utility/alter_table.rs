//! ALTER TABLE: from its actions to the table's next descriptor.

use super::command::AlterTable;
use super::expressions::Expressions;
use crate::plan::SchemaAction;
use proto::WireError;

/// Binds ALTER TABLE.
pub(super) fn plan(alter: &AlterTable, expressions: Expressions<'_>) -> Result<SchemaAction, WireError> {
    let _ = (alter, expressions);
    Err(WireError::unsupported("ALTER TABLE"))
}
