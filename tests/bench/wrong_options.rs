//! Options that make no sense are refused by name, before anything is written.

use ringback_tests::image::{MIB, blank, content};

use crate::harness::{Bench, scratch};

/// Refused with this text; a given blank disk stays blank, no target is made.
#[track_caller]
fn refused(options: &str, text: &str) {
    let scratch = scratch();
    let (disk, target) = (scratch.join("disk.raw"), scratch.join("target.raw"));
    blank(&disk, 16 * MIB);
    let bench = Bench::bare(&scratch).path("--source", &disk);
    bench.target(&target).with(options).refused(text);
    assert!(content(&disk).iter().all(|&byte| byte == 0), "written");
    assert!(!target.exists(), "made");
}

#[track_caller]
fn refused_size(size: &str, text: &str) {
    let scratch = scratch();
    Bench::bare(&scratch).path("--size", size).refused(text);
}

#[test]
fn sizes() {
    refused_size("1000", "--size 1000");
    refused_size("0", "--size 0");
    refused_size("8Q", "'8Q'");
    refused_size("-1", "-1");
    refused_size("", "--size");
    refused_size("99999999999999999999", "99999999999999999999");
}

/// A file as large as no file system allows.
#[test]
fn a_size_that_does_not_fit_anywhere() {
    refused_size("8191P", "source");
}

#[test]
fn workers() {
    refused("--workers 0", "--workers 0");
    refused("--workers 4294967295", "--workers");
    refused("--workers x", "--workers");
}

#[test]
fn shards() {
    refused("--shards 0", "--shards");
    refused("--shards 1000", "--shards");
}

#[test]
fn blocks() {
    refused("--block 1000", "--block 1000");
    refused("--block 0", "--block 0");
    refused("--block 8M", "--block 8388608");
    refused("--fleece-block 0", "--fleece-block 0");
    refused("--fleece-block 1000", "--fleece-block 1000");
}

#[test]
fn numbers_out_of_range() {
    refused("--depth 0", "--depth");
    refused("--queues 0", "--queues");
    refused("--fill 101", "--fill");
    refused("--read-share 101", "--read-share");
    refused("--ring-entries 0", "--ring-entries");
    refused("--fleece-depth 1025", "--fleece-depth");
    refused("--sync none --duration 0", "--duration");
    refused("--baseline 1000000", "--baseline");
}

#[test]
fn words_that_mean_nothing() {
    refused("--sync some", "--sync");
    refused("--cache maybe", "--cache");
    refused("--order backwards", "--order");
    refused("--on-cbw-error panic", "--on-cbw-error");
    refused("--mask time-travel", "time-travel");
    refused("--quux", "--quux");
    refused("word", "word");
}

#[test]
fn clusters() {
    refused("--min-cluster-size 3", "--min-cluster-size");
    refused("--min-cluster-size 96k", "--min-cluster-size");
}

#[test]
fn clusters_that_are_too_large() {
    refused(
        "--min-cluster-size 8G",
        "min-cluster-size too large: 8589934592 > 2147483648",
    );
}

#[test]
fn chunks_that_are_smaller_than_a_cluster() {
    refused(
        "--max-chunk 4k",
        "Required max-chunk (4096) is less than backup cluster size (65536)",
    );
}

#[test]
fn clusters_that_are_larger_than_the_default_chunk() {
    let scratch = scratch();
    let bench = Bench::bare(&scratch).with("--size 32M");
    bench.with("--min-cluster-size 2M").report();
}

#[test]
fn combinations() {
    refused("--no-guest --sync bitmap", "--no-guest");
    refused("--no-guest --sync none", "--no-guest");
    let scratch = scratch();
    Bench::quick(&scratch)
        .with("--image-opts")
        .refused("--image-opts");
}
