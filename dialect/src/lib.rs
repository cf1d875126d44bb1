//! The SQL that both ends share.
//!
//! What a Postgres type is, how its values are stored and compared on SQLite (storage form and key form), how they
//! look on the wire, which operators, functions and casts exist, and what SQL each of them becomes on a SQLite
//! connection. Planner and replica stand on the same table, so what the one emits the other has registered.
//!
//! Without the `sqlite` feature nothing here touches SQLite. Nothing here ever knows a table's name, a shard, or a
//! session: settings that change meaning (the time zone) are arguments of the functions that need them.

pub mod datetime;
pub mod float;
pub mod functions;
pub mod io;
pub mod key;
pub mod numeric;
pub mod physical;
pub mod rowset;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod types;

pub use datetime::TimeZone;
pub use numeric::Numeric;
pub use types::Type;
