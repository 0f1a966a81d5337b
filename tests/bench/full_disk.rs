//! A target or a scratch directory that runs full.

use ringback_tests::device::Mount;
use ringback_tests::image::{MIB, blank};
use ringback_tests::needs::{Need, needs};
use ringback_tests::report::Report;
use ringback_tests::scratch::{Scratch, names_in};

use crate::harness::{Bench, scratch};

const DISK: u64 = 64 * MIB;
const SPACE: u64 = 48 * MIB;
const FULL: &str = "No space left on device";

/// The backup of a disk of 64 MiB to a file system of 48.
fn to_a_small_file_system(scratch: &Scratch, options: &str) -> Report {
    let mount = Mount::tmpfs(scratch, SPACE);
    let target = mount.path().join("target.raw");
    blank(&target, DISK);
    let bench = Bench::bare(scratch).with("--size 64M");
    let finished = bench.target(&target).with(options).run();
    finished.failed_with(1).saying(FULL);
    assert_eq!(names_in(&scratch.join("work")), [""; 0], "left behind");
    Report::read(&scratch.join("report.json"))
}

#[test]
fn the_guest_goes_on_when_the_target_is_full() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let report = to_a_small_file_system(&scratch, "");
    let result = report.text("/backup/result");
    assert!(result.contains(FULL), "{result}");
    assert!(report.count("/backup/bytes_copied") <= SPACE);
    // No backup was there to compare, but the guest's disk was.
    assert_eq!(report.count("/verification/backup_bytes_checked"), 0);
    assert_eq!(report.count("/verification/source_bytes_checked"), DISK);
    assert!(report.flag("/verification/held"));
}

#[test]
fn what_was_saved_before_is_right_when_the_guest_must_give_way() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let report = to_a_small_file_system(&scratch, "--on-cbw-error break-guest-write");
    assert!(report.text("/backup/result") != "completed");
    assert!(!report.flag("/copy_before_write/broken"));
    assert!(report.flag("/verification/held"));
}

#[test]
fn copy_before_write_alone_breaks_the_snapshot_on_a_full_target() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let mount = Mount::tmpfs(&scratch, MIB);
    let target = mount.path().join("target.raw");
    blank(&target, DISK);
    let bench = Bench::bare(&scratch).with("--size 64M --sync none --duration 1");
    let finished = bench.target(&target).run();
    finished.failed_with(1);
    let report = Report::read(&scratch.join("report.json"));
    assert!(report.flag("/copy_before_write/broken"));
    assert!(report.flag("/verification/held"));
    assert_eq!(report.count("/verification/source_bytes_checked"), DISK);
}

#[test]
fn a_full_scratch_directory() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let mount = Mount::tmpfs(&scratch, SPACE);
    let inner = Scratch::new(mount.path().to_str().expect("a plain path"));
    let bench = Bench::bare(&inner).with("--size 64M");
    bench.refused(FULL);
}
