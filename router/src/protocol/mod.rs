//! The Postgres wire protocol, version 3: bytes to messages and messages to bytes.
//!
//! In come bytes of a client that nobody has reason to trust: sizes are bounded before anything is buffered, every
//! field is checked before it is read, text that isn't UTF-8 is refused and never mended. Out go bytes appended to one
//! buffer, which the session sends when the protocol says so. Nothing here knows a statement or a shard.
//!
//! The message layouts are those of PostgreSQL's manual, chapter "Frontend/Backend Protocol".

pub mod backend;
pub mod framing;
pub mod frontend;
pub mod rows;
pub mod startup;
