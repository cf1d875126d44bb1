//! SQL text to plan: parse, bind, plan, emit.
//!
//! Pure: no IO, no async, no SQLite, no clock. A plan is a function of the text, the catalog, the topology and the
//! settings that change meaning, so it can be cached and tested as text.
//!
//! The life of a statement:
//! 1. [`text`] cuts the client's string into statements, lifts their literals and parses them.
//! 2. `bind` turns the syntax tree into Shoal's own typed one; what it doesn't know, it refuses.
//! 3. `planning` decides what shards run and what the router does with their rows.
//! 4. `emit` writes both as SQL for SQLite.
//! 5. The router evaluates the plan's scalars, and [`route()`] says which shards each fragment goes to.

mod bind;
mod emit;
mod explain;
pub mod plan;
mod planning;
mod route;
mod settings;
mod statement;
pub mod system;
pub mod text;
pub mod utility;

pub use explain::explain;
pub use plan::Plan;
pub use route::{route, route_row};
pub use settings::{Rule, Rules, Settings, parse_millis};

use dialect::Type;
use proto::WireError;
use proto::catalog::Catalog;
use proto::topology::Topology;
use std::sync::Arc;

/// What a plan depends on, beside the text and the declared types of its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What names stand for.
    pub catalog: &'a Catalog,
    /// Where things are. Plans depend on keyspaces and how they place rows, not on how many shards there are.
    pub topology: &'a Topology,
    /// What the session has set.
    pub settings: &'a Settings,
}

/// A plan, and what it is good for.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The literals that the plan depends on: their places, and their values as [`text::Text`] has them. The plan
    /// serves another text of the same key only if these are equal.
    pub pinned: Vec<(u32, String)>,
}

/// Plans one statement. `declared` are the types that the client gave its parameters; what it left open is inferred.
pub fn plan(
    text: &text::Text,
    declared: &[Option<Type>],
    context: &Context<'_>,
) -> Result<Planned, WireError> {
    statement::plan(text, declared, context)
}
