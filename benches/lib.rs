//! Micro-benchmarks: `cargo bench -p ringback-benches`.
