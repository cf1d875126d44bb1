//! Consensus by hand.
