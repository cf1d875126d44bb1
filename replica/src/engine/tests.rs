//! Golden paths of the engine alone.
