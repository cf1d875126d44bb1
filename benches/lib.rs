//! Criterion benchmarks, one file a theme, and `pgbench.py`, which measures a whole cluster beside PostgreSQL.
//!
//! Figures mean something only beside others of the same run on the same machine: compare with
//! `cargo bench -p benches -- --save-baseline before`, then `--baseline before`.
