//! QEMU as the judge: it must find a backup equal to its source.

use std::path::PathBuf;

use ringback_tests::device::LoopDevice;
use ringback_tests::image::{
    KIB, MIB, allocated, assert_identical, blank, content, noise, write_at,
};
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

use crate::harness::{Bench, scratch};

const JUDGE: Need = Need::Program("qemu-img");

fn disks(scratch: &Scratch, bytes: u64) -> (PathBuf, PathBuf) {
    let (a, b) = (scratch.join("a.raw"), scratch.join("b.raw"));
    blank(&a, bytes);
    (a, b)
}

fn back_up(scratch: &Scratch, a: &std::path::Path, b: &std::path::Path, options: &str) {
    let bench = Bench::on(scratch, a).with("--no-guest").with(options);
    bench.target(b).report();
}

#[test]
fn a_full_disk() {
    if !needs(&[JUDGE]) {
        return;
    }
    let scratch = scratch();
    let (a, b) = disks(&scratch, 32 * MIB);
    write_at(&a, 0, &noise(1, 32 * MIB));
    let before = content(&a);
    back_up(&scratch, &a, &b, "");
    assert_identical(&a, &b);
    assert!(content(&a) == before, "the source changed");
}

/// Islands of data at awkward places in a disk of holes.
fn islands(a: &std::path::Path, bytes: u64) {
    let places = [
        (0, 1),
        (64 * KIB - 1, 2),
        (3 * MIB, 4 * KIB),
        (5 * MIB + 512, 512),
        (7 * MIB - 4 * KIB, 8 * KIB),
        (9 * MIB, 200 * KIB),
        (bytes - 1, 1),
    ];
    for (offset, len) in places {
        write_at(a, offset, &noise(offset, len));
    }
}

#[test]
fn a_sparse_disk_stays_sparse() {
    if !needs(&[JUDGE]) {
        return;
    }
    let scratch = scratch();
    let (a, b) = disks(&scratch, 64 * MIB);
    islands(&a, 64 * MIB);
    back_up(&scratch, &a, &b, "");
    assert_identical(&a, &b);
    let (source, target) = (allocated(&a), allocated(&b));
    // A cluster for each island and for each end of one that crosses clusters.
    assert!(target <= source + 12 * 64 * KIB, "{target}, {source}");
}

#[test]
fn a_disk_of_one_hole() {
    if !needs(&[JUDGE]) {
        return;
    }
    let scratch = scratch();
    let (a, b) = disks(&scratch, 256 * MIB);
    back_up(&scratch, &a, &b, "");
    assert_identical(&a, &b);
    assert_eq!(allocated(&b), 0);
}

#[test]
fn written_zeroes() {
    if !needs(&[JUDGE]) {
        return;
    }
    let scratch = scratch();
    let (a, b) = disks(&scratch, 32 * MIB);
    write_at(&a, 0, &[0; 16 << 20]);
    write_at(&a, 8 * MIB, &noise(2, MIB));
    back_up(&scratch, &a, &b, "");
    assert_identical(&a, &b);
}

#[test]
fn holes_over_old_data() {
    if !needs(&[JUDGE]) {
        return;
    }
    let scratch = scratch();
    let (a, b) = disks(&scratch, 32 * MIB);
    islands(&a, 32 * MIB);
    blank(&b, 32 * MIB);
    write_at(&b, 0, &noise(3, 32 * MIB));
    back_up(&scratch, &a, &b, "--overwrite");
    assert_identical(&a, &b);
}

#[test]
fn a_disk_that_ends_within_a_page() {
    if !needs(&[JUDGE]) {
        return;
    }
    let scratch = scratch();
    let bytes = 16 * MIB + 512;
    let (a, b) = disks(&scratch, bytes);
    islands(&a, bytes);
    write_at(&a, 16 * MIB - MIB, &noise(4, MIB + 512));
    back_up(&scratch, &a, &b, "");
    assert_identical(&a, &b);
}

#[test]
fn every_size_of_chunk_and_cluster() {
    if !needs(&[JUDGE]) {
        return;
    }
    for options in [
        "--workers 1 --max-chunk 64k",
        "--workers 64 --max-chunk 0",
        "--min-cluster-size 1M",
        "--cache buffered",
        "--shards 1",
    ] {
        let scratch = scratch();
        let (a, b) = disks(&scratch, 16 * MIB + 3 * 512);
        islands(&a, 16 * MIB + 3 * 512);
        write_at(&a, 10 * MIB, &noise(5, 3 * MIB));
        back_up(&scratch, &a, &b, options);
        assert_identical(&a, &b);
    }
}

#[test]
fn to_a_device_with_large_sectors() {
    if !needs(&[JUDGE, Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let (a, b) = disks(&scratch, 32 * MIB);
    islands(&a, 32 * MIB);
    blank(&b, 32 * MIB);
    write_at(&b, 0, &noise(8, 32 * MIB));
    let device = LoopDevice::new(&b, 4096);
    back_up(&scratch, &a, device.path(), "--overwrite");
    assert_identical(&a, device.path());
}

#[test]
fn from_a_device_with_large_sectors() {
    if !needs(&[JUDGE, Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let (a, b) = disks(&scratch, 32 * MIB);
    islands(&a, 32 * MIB);
    let device = LoopDevice::new(&a, 4096);
    back_up(&scratch, device.path(), &b, "");
    assert_identical(device.path(), &b);
}

/// A guest that only reads leaves its disk as the point in time.
#[test]
fn beside_a_guest_that_reads() {
    if !needs(&[JUDGE]) {
        return;
    }
    let scratch = scratch();
    let (a, b) = disks(&scratch, 32 * MIB);
    let bench = Bench::on(&scratch, &a).with("--read-share 100 --fill 70");
    bench.target(&b).report();
    assert_identical(&a, &b);
}
