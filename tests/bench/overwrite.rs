//! A given disk is written only if it is blank or somebody says that it may be.

use std::path::Path;

use ringback_tests::device::LoopDevice;
use ringback_tests::image::{MIB, allocated, blank, content, noise, write_at};
use ringback_tests::needs::{Need, needs};

use crate::harness::{Bench, scratch};

const SIZE: u64 = 16 * MIB;

/// A source that holds data at one place: kept without `--overwrite`, used with it.
fn source_with(offset: u64, data: &[u8]) {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    write_at(&disk, offset, data);
    let before = content(&disk);
    Bench::on(&scratch, &disk).refused("--overwrite");
    assert!(content(&disk) == before, "changed");
    Bench::on(&scratch, &disk).with("--overwrite").report();
    assert!(content(&disk) != before, "not used");
}

#[test]
fn data_at_the_beginning() {
    source_with(0, b"x");
}

#[test]
fn data_at_the_very_end() {
    source_with(SIZE - 1, b"x");
}

#[test]
fn data_everywhere() {
    source_with(0, &noise(3, SIZE));
}

#[test]
fn where_the_data_is_is_told() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    write_at(&disk, 5 * MIB + 77, b"x");
    Bench::on(&scratch, &disk).refused("(at byte 5242957)");
}

#[test]
fn written_zeroes_are_no_data() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    write_at(&disk, MIB, &[0; 1 << 20]);
    assert!(allocated(&disk) >= MIB);
    Bench::on(&scratch, &disk).report();
}

#[test]
fn a_device_with_data_at_the_very_end() {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let file = scratch.join("disk.raw");
    blank(&file, SIZE);
    let disk = LoopDevice::new(&file, 512);
    write_at(disk.path(), SIZE - 1, b"x");
    let before = content(disk.path());
    Bench::on(&scratch, disk.path()).refused("--overwrite");
    assert!(content(disk.path()) == before, "changed");
    let bench = Bench::on(&scratch, disk.path()).with("--overwrite");
    bench.report();
}

fn target_with_data(target: &Path, scratch: &ringback_tests::scratch::Scratch) {
    blank(target, SIZE);
    write_at(target, SIZE - 1, b"x");
    let before = content(target);
    let bench = || Bench::bare(scratch).with("--size 16M").target(target);
    bench().refused("--overwrite");
    assert!(content(target) == before, "changed");
    bench().with("--overwrite").report();
}

#[test]
fn a_target_with_data() {
    let scratch = scratch();
    target_with_data(&scratch.join("target.raw"), &scratch);
}

/// Old data must not shine through where the source holds zeroes.
#[test]
fn a_target_full_of_old_data() {
    let scratch = scratch();
    let target = scratch.join("target.raw");
    blank(&target, SIZE);
    write_at(&target, 0, &noise(5, SIZE));
    let bench = Bench::bare(&scratch).with("--size 16M --fill 30");
    bench.with("--overwrite").target(&target).report();
}

/// The guest's disk is to hold zeroes where it is not filled.
#[test]
fn a_source_full_of_old_data_that_is_filled_in_part() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    write_at(&disk, 0, &noise(6, SIZE));
    let bench = Bench::on(&scratch, &disk).with("--overwrite --fill 30");
    bench.report();
}

#[test]
fn a_disk_that_is_only_read_may_hold_data() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, SIZE);
    write_at(&disk, 0, &noise(4, SIZE));
    let before = content(&disk);
    Bench::on(&scratch, &disk).with("--no-guest").report();
    assert!(content(&disk) == before, "changed");
}
