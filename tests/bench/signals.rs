//! A run that is interrupted or killed.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringback_tests::image::{MIB, allocated, blank};
use ringback_tests::process::{Finished, Running, wait_for};
use ringback_tests::scratch::{Scratch, names_in};

use crate::harness::{Bench, scratch};

/// A run that would last for ten minutes.
fn long(scratch: &Scratch) -> Bench<'_> {
    Bench::bare(scratch).with("--size 32M").baseline(600)
}

fn interrupted(running: Running, signal: Signal) -> Finished {
    running.signal(signal);
    running.finish_within(Duration::from_secs(10))
}

/// Waits until the disk is being filled.
fn wait_for_writes(disk: impl Fn() -> Option<u64>) {
    wait_for("the first write", || disk().is_some_and(|bytes| bytes > 0));
}

fn ends(signal: Signal) {
    let scratch = scratch();
    let running = long(&scratch).start();
    wait_for_writes(|| running.allocated("source.raw"));
    let finished = interrupted(running, signal);
    assert!(!finished.status.success(), "{finished:#?}");
    assert!(!finished.stderr.contains("panicked"), "{finished:#?}");
    let by_signal = finished.status.signal() == Some(signal as i32);
    assert!(
        by_signal || finished.status.code() == Some(128 + signal as i32),
        "{finished:#?}"
    );
}

#[test]
fn ctrl_c_ends_it() {
    ends(Signal::SIGINT);
}

#[test]
fn sigterm_ends_it() {
    ends(Signal::SIGTERM);
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let scratch = scratch();
    let running = long(&scratch).start();
    wait_for_writes(|| running.allocated("source.raw"));
    interrupted(running, Signal::SIGINT);
    assert_eq!(names_in(&scratch.join("work")), [""; 0]);
}

#[test]
fn sigterm_leaves_nothing_behind() {
    let scratch = scratch();
    let running = long(&scratch).start();
    wait_for_writes(|| running.allocated("source.raw"));
    interrupted(running, Signal::SIGTERM);
    assert_eq!(names_in(&scratch.join("work")), [""; 0]);
}

#[test]
fn after_a_kill_the_disks_are_free() {
    let scratch = scratch();
    let (source, target) = (scratch.join("source.raw"), scratch.join("target.raw"));
    blank(&source, 16 * MIB);
    blank(&target, 16 * MIB);
    let bench = Bench::on(&scratch, &source).baseline(600);
    let running = bench.target(&target).start();
    wait_for_writes(|| Some(allocated(&source)));
    let finished = interrupted(running, Signal::SIGKILL);
    assert_eq!(finished.status.signal(), Some(9), "{finished:#?}");
    // The kernel closes what a ring used some time after its process is gone.
    wait_for("the locks", || {
        let bench = Bench::on(&scratch, &source).with("--overwrite");
        bench.target(&target).run().status.success()
    });
}
