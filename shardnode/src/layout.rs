//! Which columns the rows of a shard's tables have at which position, and what places them: layouts, kept in the shard's
//! own database.
//!
//! Each schema step that makes, changes or drops a table adds a row, in the same entry. So for every index of the log the
//! database says how its rows lay: by the last row of a table whose step had run by then (`replica_schema` has where it
//! did). A table's steps come in the order of jobs and steps, on every shard, for a job has its tables to itself; what
//! undoes a step comes after it. A step that failed has no row.

use proto::layout::TableLayout;
use proto::services::SchemaStep;
use proto::wire::Wire;
use std::fmt::Write as _;

/// What every replica of a shard runs before its first log entry. A table that is gone has no layout.
pub(crate) fn init() -> String {
    "CREATE TABLE shoal_layout (table_id INTEGER NOT NULL, job INTEGER NOT NULL, step INTEGER NOT NULL, layout BLOB,
                                PRIMARY KEY (table_id, job, step)) STRICT, WITHOUT ROWID"
        .into()
}

/// The statement by which a step notes what it makes of a table.
pub(crate) fn note(step: SchemaStep, of: &TableLayout) -> String {
    let SchemaStep { job, step } = step;
    let job = job.cast_signed();
    let Some(layout) = &of.layout else {
        return format!("INSERT INTO shoal_layout VALUES ({}, {job}, {step}, NULL)", of.table);
    };
    let mut bytes = String::new();
    for byte in layout.encode() {
        write!(bytes, "{byte:02x}").expect("writing to a string can't fail");
    }
    format!("INSERT INTO shoal_layout VALUES ({}, {job}, {step}, x'{bytes}')", of.table)
}
