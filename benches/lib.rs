//! Criterion benchmarks, one file a theme, and `pgbench.py`, which measures a whole cluster beside PostgreSQL.
//!
//! `wal.rs` is no criterion benchmark but an example: `cargo run --release -p benches --example wal` keeps a replica busy
//! with overlapping reads and writes, and tells how long its WAL grew and how long writers paused. `rebuild.rs` is one,
//! too: it tells how long a replica takes to come back by an image, and how writers fare meanwhile.
//!
//! Figures mean something only beside others of the same run on the same machine: compare with
//! `cargo bench -p benches -- --save-baseline before`, then `--baseline before`.
