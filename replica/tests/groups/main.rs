//! Whole groups in one process: hosts with their threads and files, over a network that can lose messages.

// A test fails by panicking, its helpers too.
#![allow(clippy::unwrap_used)]

mod check;
mod cluster;
mod copies;
mod crash;
mod faults;
mod images;
mod members;
mod one;
mod requests;
mod stale;
mod tail;
mod three;
