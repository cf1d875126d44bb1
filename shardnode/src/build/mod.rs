//! Databases of new shards, made of images of old ones.

mod copy;
mod finish;
mod plan;

use proto::{SqlState, WireError};

fn damaged(problem: &str) -> WireError {
    WireError::new(SqlState::DATA_CORRUPTED, format!("an image can't be built from: {problem}"))
}

#[cfg(test)]
mod tests;
