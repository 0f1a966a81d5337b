//! The options of the engine.

use crate::harness::{Bench, scratch};

const FEATURES: [&str; 5] = [
    "single-issuer",
    "defer-taskrun",
    "fixed-files",
    "fixed-buffers",
    "message-ring",
];

#[test]
fn one_shard() {
    Bench::quick(&scratch()).with("--shards 1").report();
}

#[test]
fn two_shards() {
    Bench::quick(&scratch()).with("--shards 2").report();
}

#[test]
fn more_shards_than_cores() {
    Bench::quick(&scratch()).with("--shards 16").report();
}

#[test]
fn shards_that_are_not_pinned() {
    Bench::quick(&scratch())
        .with("--no-pin --shards 2")
        .report();
}

#[test]
fn a_ring_that_is_shorter_than_what_is_in_flight() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--ring-entries 1 --shards 2");
    bench.with("--workers 16 --depth 32").report();
}

#[test]
fn each_feature_can_be_missing() {
    for feature in FEATURES {
        let scratch = scratch();
        let bench = Bench::bare(&scratch).with("--size 16M --shards 2");
        let report = bench.path("--mask", feature).report();
        assert_eq!(report.text("/settings/mask/0"), feature);
    }
}

#[test]
fn all_features_can_be_missing() {
    let scratch = scratch();
    let mut bench = Bench::quick(&scratch).with("--shards 2");
    for feature in FEATURES {
        bench = bench.path("--mask", feature);
    }
    bench.report();
}

#[test]
fn shards_that_poll() {
    Bench::quick(&scratch()).with("--poll 50").report();
}
