//! `ringback io` beside `qemu-io` on two copies of one random chain.
//!
//! | variable | what it does |
//! | --- | --- |
//! | `RINGBACK_DIFF_SEED` | the first seed; alone, the only one |
//! | `RINGBACK_DIFF_COUNT` | how many seeds |

pub(crate) mod chain;
mod commands;
mod errors;
mod known;
pub(crate) mod pair;
mod same;

use std::ops::Range;

use ringback_tests::needs::{Need, needs};

/// The seeds to run, or none where QEMU is missing.
fn seeds(few: u64) -> Range<u64> {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return 0..0;
    }
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let first = number("RINGBACK_DIFF_SEED");
    let alone = if first.is_some() { 1 } else { few };
    let first = first.unwrap_or(0);
    first..first + number("RINGBACK_DIFF_COUNT").unwrap_or(alone)
}

/// Runs all seeds and fails with what each failing one has to say.
fn each_seed(few: u64, run: impl Fn(u64) -> Result<(), String>) {
    let mut failures = Vec::new();
    for seed in seeds(few) {
        if let Err(error) = run(seed) {
            println!("RINGBACK_DIFF_SEED={seed}: {error}");
            failures.push(seed);
        }
    }
    assert!(failures.is_empty(), "seeds that fail: {failures:?}");
}
