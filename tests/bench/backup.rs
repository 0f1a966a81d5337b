//! The options of the backup and of the fleecing readers.

use ringback_tests::image::{blank, noise, write_at};
use ringback_tests::report::Report;

use crate::harness::{Bench, scratch};

const SIZE: u64 = 16 << 20;

/// Every byte of the disk was either copied, found to be zero, or saved before
/// a guest write.
#[track_caller]
fn assert_full(report: &Report) {
    assert_eq!(report.text("/backup/result"), "completed");
    assert_eq!(report.count("/backup/bytes_total"), SIZE);
    let moved = report.count("/backup/bytes_copied")
        + report.count("/backup/bytes_zero")
        + report.count("/copy_before_write/saved_bytes");
    assert_eq!(moved, SIZE);
    assert_eq!(
        report.count("/verification/backup_bytes_checked"),
        SIZE,
        "all of it is compared"
    );
}

#[test]
fn one_worker() {
    assert_full(&Bench::quick(&scratch()).with("--workers 1").report());
}

#[test]
fn many_workers() {
    let report = Bench::quick(&scratch()).with("--workers 64").report();
    assert_eq!(report.count("/backup/workers"), 64);
    assert_full(&report);
}

#[test]
fn more_workers_than_there_is_to_copy() {
    assert_full(&Bench::quick(&scratch()).with("--workers 100000").report());
}

#[test]
fn the_whole_disk() {
    assert_full(&Bench::quick(&scratch()).with("--sync full").report());
}

#[test]
fn what_the_guest_wrote() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch)
        .with("--sync bitmap --rate 100")
        .baseline(1);
    let report = bench.report();
    let total = report.count("/backup/bytes_total");
    assert!((1..SIZE).contains(&total), "{total}");
    assert_eq!(report.text("/backup/result"), "completed");
    let checked = report.count("/verification/backup_bytes_checked");
    assert_eq!(checked, total);
}

#[test]
fn nothing_written_nothing_backed_up() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch)
        .with("--sync bitmap --read-share 100")
        .baseline(1);
    let report = bench.report();
    assert_eq!(report.count("/backup/bytes_total"), 0);
    assert_eq!(report.count("/verification/backup_bytes_checked"), 0);
}

#[test]
fn copy_before_write_alone() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--sync none --duration 1");
    let report = bench.report();
    assert_eq!(report.text("/backup/result"), "ended after its time");
    assert!(report.number("/backup/seconds") >= 1.0);
    assert_eq!(report.count("/backup/bytes_copied"), 0);
    assert!(report.count("/copy_before_write/saves") > 0);
    assert_eq!(report.count("/verification/backup_bytes_checked"), 0);
}

#[test]
fn chunks_of_one_cluster() {
    assert_full(&Bench::quick(&scratch()).with("--max-chunk 64k").report());
}

#[test]
fn chunks_without_a_limit() {
    assert_full(&Bench::quick(&scratch()).with("--max-chunk 0").report());
}

#[test]
fn clusters_of_a_mebibyte() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--min-cluster-size 1M");
    assert_full(&bench.report());
}

#[test]
fn a_speed_limit_is_kept() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    write_at(&disk, 0, &noise(1, SIZE));
    let bench = Bench::on(&scratch, &disk).with("--no-guest --speed 8M");
    let report = bench.report();
    assert_eq!(report.count("/backup/bytes_copied"), SIZE);
    // 2 seconds; idle time is worth 0.1, and the last chunk of each worker is
    // admitted whole.
    let seconds = report.number("/backup/seconds");
    assert!(seconds >= 1.7, "{seconds}");
}

#[test]
fn a_speed_limit_is_reached() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, 4 << 20);
    write_at(&disk, 0, &noise(1, 4 << 20));
    let bench = Bench::on(&scratch, &disk).with("--no-guest --speed 2M --workers 16");
    let seconds = bench.report().number("/backup/seconds");
    // What it must be: 2, less the last chunk of each worker.
    assert!(seconds < 3.0, "{seconds}");
}

#[test]
fn the_snapshot_gives_way() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--on-cbw-error break-snapshot --cbw-timeout 0");
    let report = bench.report();
    assert!(!report.flag("/copy_before_write/broken"));
}

#[test]
fn the_guest_gives_way() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--on-cbw-error break-guest-write");
    let report = bench.report();
    assert!(!report.flag("/copy_before_write/broken"));
}

#[test]
fn zeroes_are_not_copied() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--fill 0 --read-share 100");
    let report = bench.report();
    assert_full(&report);
    assert_eq!(report.count("/backup/bytes_copied"), 0);
}

#[test]
fn no_fleecing() {
    let (finished, report) = Bench::quick(&scratch()).with("--fleece-depth 0").held();
    assert!(report.is_null("/fleecing"));
    assert_eq!(report.count("/verification/fleece_bytes_checked"), 0);
    assert!(!finished.stdout.contains("\n fleecing"));
}

#[test]
fn many_fleecing_readers() {
    let report = Bench::quick(&scratch()).with("--fleece-depth 8").report();
    let read = report.count("/fleecing/bytes");
    assert!(read > 0);
    assert_eq!(report.count("/verification/fleece_bytes_checked"), read);
    assert_eq!(report.count("/fleecing/refused"), 0);
}

#[test]
fn small_fleecing_reads() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--fleece-block 4k --fleece-depth 4");
    let report = bench.report();
    let (reads, bytes) = (
        report.count("/fleecing/reads"),
        report.count("/fleecing/bytes"),
    );
    assert!(reads > 0);
    assert_eq!(bytes, reads * 4096);
}

#[test]
fn fleecing_reads_of_one_sector() {
    Bench::quick(&scratch()).with("--fleece-block 512").report();
}

#[test]
fn everything_small_at_once() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch)
        .with("--block 512 --fleece-block 512 --fleece-depth 4")
        .with("--workers 4 --max-chunk 64k --rate 0 --depth 8");
    assert_full(&bench.report());
}
