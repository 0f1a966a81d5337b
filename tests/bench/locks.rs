//! ringback and QEMU respect each other's locks.

use std::path::Path;
use std::process::Command;

use ringback_tests::image::{MIB, allocated, blank, content};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{Running, run, wait_for};
use ringback_tests::scratch::Scratch;

use crate::harness::{Bench, scratch};

const SIZE: u64 = 16 * MIB;

/// QEMU offers an image for writing.
fn exported(scratch: &Scratch, image: &Path) -> Running {
    let pid = scratch.join("qsd.pid");
    let mut daemon = Command::new("qemu-storage-daemon");
    let socket = scratch.join("nbd.sock");
    daemon
        .arg("--blockdev")
        .arg(format!(
            "driver=file,node-name=disk,filename={}",
            image.display()
        ))
        .arg("--nbd-server")
        .arg(format!("addr.type=unix,addr.path={}", socket.display()))
        .args(["--export", "type=nbd,id=disk,node-name=disk,writable=on"])
        .arg("--pidfile")
        .arg(&pid);
    let mut running = Running::start(&mut daemon);
    // Written when all else is done.
    wait_for("the storage daemon", || {
        pid.exists() || !running.is_running()
    });
    assert!(running.is_running(), "{:#?}", running.finish());
    running
}

#[test]
fn a_source_that_qemu_writes_is_refused() {
    if !needs(&[Need::Program("qemu-storage-daemon")]) {
        return;
    }
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    let daemon = exported(&scratch, &disk);
    Bench::on(&scratch, &disk)
        .refused("Failed to get")
        .saying("disk.raw");
    Bench::on(&scratch, &disk)
        .with("--no-guest")
        .refused("Failed to get");
    assert!(content(&disk).iter().all(|&byte| byte == 0), "written");
    drop(daemon);
    Bench::on(&scratch, &disk).report();
}

#[test]
fn a_target_that_qemu_writes_is_refused() {
    if !needs(&[Need::Program("qemu-storage-daemon")]) {
        return;
    }
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    let _daemon = exported(&scratch, &disk);
    let bench = Bench::bare(&scratch).with("--size 16M");
    bench
        .target(&disk)
        .refused("Failed to get")
        .saying("disk.raw");
    assert!(content(&disk).iter().all(|&byte| byte == 0), "written");
}

#[test]
fn a_locked_source_makes_no_target() {
    if !needs(&[Need::Program("qemu-storage-daemon")]) {
        return;
    }
    let scratch = scratch();
    let (disk, target) = (scratch.join("disk.raw"), scratch.join("target.raw"));
    blank(&disk, SIZE);
    let _daemon = exported(&scratch, &disk);
    Bench::on(&scratch, &disk)
        .target(&target)
        .refused("Failed to get");
    assert!(!target.exists());
}

/// Nothing is known to be wrong with the source: it must not be filled first.
#[test]
fn a_locked_target_leaves_the_source_as_it_is() {
    if !needs(&[Need::Program("qemu-storage-daemon")]) {
        return;
    }
    let scratch = scratch();
    let (source, target) = (scratch.join("source.raw"), scratch.join("target.raw"));
    blank(&source, SIZE);
    blank(&target, SIZE);
    let _daemon = exported(&scratch, &target);
    Bench::on(&scratch, &source)
        .target(&target)
        .refused("Failed to get");
    assert_eq!(allocated(&source), 0, "written");
}

#[test]
fn the_target_is_locked_from_the_beginning() {
    if !needs(&[Need::Program("qemu-io")]) {
        return;
    }
    let scratch = scratch();
    let (source, target) = (scratch.join("source.raw"), scratch.join("target.raw"));
    blank(&source, SIZE);
    blank(&target, SIZE);
    let bench = Bench::on(&scratch, &source).target(&target).baseline(2);
    let running = bench.start();
    wait_for("the first write", || allocated(&source) > 0);
    let mut write = Command::new("qemu-io");
    write.args(["-f", "raw", "-c", "write -P 85 0 64k"]);
    run(write.arg(&target))
        .failed_with(1)
        .saying("Failed to get");
    running.finish().succeeded();
}

/// A bench that has locked its disks and works on them for a while.
fn working(scratch: &Scratch, source: &Path, target: &Path) -> Running {
    blank(source, SIZE);
    blank(target, SIZE);
    let bench = Bench::on(scratch, source).target(target);
    let running = bench.with("--sync none --duration 5").start();
    wait_for("the first save", || allocated(target) > 0);
    running
}

#[test]
fn qemu_does_not_write_what_a_bench_uses() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = scratch();
    let (source, target) = (scratch.join("source.raw"), scratch.join("target.raw"));
    let mut bench = working(&scratch, &source, &target);
    let other = scratch.join("other.raw");
    blank(&other, SIZE);
    for disk in [&source, &target] {
        let mut write = Command::new("qemu-io");
        write.args(["-f", "raw", "-c", "write -P 85 0 64k"]);
        run(write.arg(disk)).failed_with(1).saying("Failed to get");
        for keep in [true, false] {
            let mut convert = Command::new("qemu-img");
            convert.args(["convert", "-f", "raw", "-O", "raw"]);
            convert.args(keep.then_some("-n"));
            run(convert.arg(&other).arg(disk))
                .failed_with(1)
                .saying("Failed to get");
        }
        let mut resize = Command::new("qemu-img");
        resize.args(["resize", "-f", "raw"]);
        run(resize.arg(disk).arg("32M"))
            .failed_with(1)
            .saying("Failed to get");
    }
    assert!(bench.is_running(), "it was not asked in time");
    bench.finish().succeeded();
}

#[test]
fn two_benches_do_not_share_a_disk() {
    let scratch = scratch();
    let (source, target) = (scratch.join("source.raw"), scratch.join("target.raw"));
    let mut first = working(&scratch, &source, &target);
    let other = Scratch::new(scratch.path().to_str().expect("a plain path"));
    Bench::on(&other, &source)
        .with("--overwrite")
        .refused("Failed to get")
        .saying("source.raw");
    Bench::bare(&other)
        .with("--size 16M --overwrite")
        .target(&target)
        .refused("Failed to get")
        .saying("target.raw");
    assert!(first.is_running(), "it was not asked in time");
    first.finish().succeeded();
}

#[test]
fn two_benches_may_read_one_disk() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    let second = Scratch::new(scratch.path().to_str().expect("a plain path"));
    let bench = |scratch: &Scratch| {
        Bench::on(scratch, &disk)
            .with("--no-guest --speed 16M")
            .start()
    };
    let (one, two) = (bench(&scratch), bench(&second));
    one.finish().succeeded();
    two.finish().succeeded();
}
