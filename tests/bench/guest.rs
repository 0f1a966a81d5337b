//! The options of the guest load.

use std::time::Duration;

use crate::harness::{Bench, scratch};

#[test]
fn blocks_of_one_sector() {
    let report = Bench::quick(&scratch()).with("--block 512").report();
    assert!(report.count("/verification/guest_reads_checked") > 0);
}

#[test]
fn blocks_as_large_as_a_cluster() {
    Bench::quick(&scratch()).with("--block 64k").report();
}

#[test]
fn blocks_that_are_no_power_of_two_and_do_not_divide_the_disk() {
    Bench::quick(&scratch()).with("--block 10752").report();
}

#[test]
fn only_writes() {
    let report = Bench::quick(&scratch())
        .with("--read-share 0")
        .baseline(1)
        .report();
    assert_eq!(report.count("/baseline/reads"), 0);
    assert!(report.is_null("/baseline/read_latency"));
    assert!(report.count("/baseline/writes") > 0);
}

#[test]
fn only_reads() {
    let report = Bench::quick(&scratch())
        .with("--read-share 100")
        .baseline(1)
        .report();
    assert_eq!(report.count("/baseline/writes"), 0);
    assert!(report.count("/baseline/reads") > 0);
    assert_eq!(report.count("/copy_before_write/saves"), 0);
}

#[test]
fn one_request_in_flight() {
    Bench::quick(&scratch())
        .with("--depth 1 --queues 1")
        .report();
}

#[test]
fn many_requests_in_flight() {
    Bench::quick(&scratch()).with("--depth 32").report();
}

#[test]
fn more_requests_in_flight_than_blocks() {
    let scratch = scratch();
    let bench = Bench::bare(&scratch).with("--size 64k");
    bench.with("--depth 64 --queues 3").report();
}

#[test]
fn as_fast_as_the_disk_answers() {
    let report = Bench::quick(&scratch()).with("--rate 0").report();
    assert_eq!(report.text("/latency_from"), "submission");
}

#[test]
fn a_rate_is_kept_by_a_guest_alone() {
    let report = Bench::quick(&scratch())
        .with("--rate 200")
        .baseline(1)
        .report();
    assert_eq!(report.text("/latency_from"), "intended-start");
    let requests = report.count("/baseline/reads") + report.count("/baseline/writes");
    // A loaded machine may be late, but never early.
    let due = 200.0 * report.number("/baseline/seconds");
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let requests = requests as f64;
    assert!(requests <= due + 10.0, "{requests} in place of {due}");
    assert!(requests >= due / 2.0, "{requests} in place of {due}");
}

/// Requests that are due long after the backup has ended are of no interest.
#[test]
fn a_slow_guest_does_not_hold_up_the_end() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--rate 1 --queues 1 --depth 16");
    let finished = bench.start().finish_within(Duration::from_secs(8));
    finished.succeeded();
}

#[test]
fn more_queues_than_shards() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--shards 1 --queues 8");
    assert_eq!(bench.report().count("/settings/queues"), 8);
}

#[test]
fn one_block_after_the_other() {
    Bench::quick(&scratch()).with("--order sequential").report();
}

#[test]
fn half_of_the_disk_is_zero() {
    let report = Bench::quick(&scratch()).with("--fill 50").report();
    let filled = report.count("/fill/bytes");
    assert!((1 << 20..16 << 20).contains(&filled), "{filled}");
}

#[test]
fn all_of_the_disk_is_zero() {
    let report = Bench::quick(&scratch()).with("--fill 0").report();
    assert_eq!(report.count("/fill/bytes"), 0);
}

#[test]
fn a_disk_of_one_sector() {
    let scratch = scratch();
    let bench = Bench::bare(&scratch).with("--size 512 --rate 200");
    let report = bench.report();
    assert_eq!(report.count("/verification/backup_bytes_checked"), 512);
}

#[test]
fn a_disk_that_ends_within_a_cluster() {
    let scratch = scratch();
    let bench = Bench::bare(&scratch).with("--size 33554944");
    let report = bench.report();
    let checked = report.count("/verification/backup_bytes_checked");
    assert_eq!(checked, 33_554_944);
}
