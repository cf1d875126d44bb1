//! SQL text to plan: parse, bind, plan, emit.
//!
//! Pure: no IO, no async, no SQLite, no clock. A plan is a function of the text, the catalog, the topology and the
//! settings that change meaning, so it can be cached and tested as text.

pub mod plan;
