//! What a disk may be: devices with small and large sectors, file systems
//! without `O_DIRECT`, the page cache.

use std::path::Path;

use ringback_tests::device::{LoopDevice, Mount};
use ringback_tests::image::{KIB, MIB, allocated, blank};
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::{Scratch, names_in};

use crate::harness::{Bench, scratch};

fn device(scratch: &Scratch, name: &str, bytes: u64, sector: u32) -> LoopDevice {
    let file = scratch.join(name);
    blank(&file, bytes);
    LoopDevice::new(&file, sector)
}

fn from_device(sector: u32, more: &str) {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let disk = device(&scratch, "disk.raw", 32 * MIB, sector);
    let report = Bench::on(&scratch, disk.path()).with(more).report();
    assert_eq!(report.text("/disk/kind"), "block device");
    assert!(report.flag("/disk/direct"));
    let path = disk.path().to_str().expect("a plain path");
    assert_eq!(report.text("/disk/path"), path);
}

fn to_device(sector: u32) {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let disk = device(&scratch, "disk.raw", 16 * MIB, sector);
    let report = Bench::quick(&scratch).target(disk.path()).report();
    assert_eq!(report.text("/disk/kind"), "raw file");
    assert!(allocated(&scratch.join("disk.raw")) >= 15 * MIB);
}

#[test]
fn from_a_device_with_sectors_of_512_bytes() {
    from_device(512, "");
}

#[test]
fn from_a_device_with_sectors_of_4096_bytes() {
    from_device(4096, "");
}

#[test]
fn to_a_device_with_sectors_of_512_bytes() {
    to_device(512);
}

#[test]
fn to_a_device_with_sectors_of_4096_bytes() {
    to_device(4096);
}

/// Each guest write is a read, a change and a write of a sector.
#[test]
fn guest_requests_that_are_smaller_than_a_sector() {
    from_device(4096, "--block 512 --depth 8");
}

#[test]
fn fleecing_reads_that_are_smaller_than_a_sector() {
    from_device(4096, "--fleece-block 512 --fleece-depth 4");
}

#[test]
fn from_device_to_device() {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let source = device(&scratch, "a.raw", 32 * MIB, 512);
    let target = device(&scratch, "b.raw", 32 * MIB, 4096);
    Bench::on(&scratch, source.path())
        .target(target.path())
        .report();
}

#[test]
fn a_device_in_the_page_cache() {
    from_device_cached("buffered", false);
}

#[test]
fn a_device_past_the_page_cache() {
    from_device_cached("direct", true);
}

fn from_device_cached(cache: &str, direct: bool) {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let disk = device(&scratch, "disk.raw", 32 * MIB, 512);
    let bench = Bench::on(&scratch, disk.path()).path("--cache", cache);
    assert_eq!(bench.report().flag("/disk/direct"), direct);
}

#[test]
fn a_file_in_the_page_cache() {
    let (finished, report) = Bench::quick(&scratch()).with("--cache buffered").held();
    assert!(!report.flag("/disk/direct"));
    assert_eq!(finished.stderr, "", "who asks for it needs no warning");
    assert!(finished.stdout.contains("through the page cache"));
}

#[test]
fn a_file_past_the_page_cache() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch).with("--cache direct");
    assert!(bench.report().flag("/disk/direct"));
}

/// A bench in a directory of a file system without `O_DIRECT`.
fn in_memory<'a>(mount: &Mount<'_>, scratch: &'a Scratch) -> Bench<'a> {
    Bench::bare(scratch)
        .with("--size 16M")
        .path("--source", made(&mount.path().join("source.raw")))
        .target(&mount.path().join("target.raw"))
}

fn made(path: &Path) -> &Path {
    blank(path, 16 * MIB);
    path
}

#[test]
fn without_direct_io_there_is_one_warning() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let mount = Mount::ramfs(&scratch);
    let (finished, report) = in_memory(&mount, &scratch).held();
    assert!(!report.flag("/disk/direct"));
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("warning"), "{lines:?}");
    assert!(lines[0].contains("O_DIRECT"), "{lines:?}");
}

#[test]
fn direct_io_that_is_insisted_on_is_refused_where_there_is_none() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let mount = Mount::ramfs(&scratch);
    in_memory(&mount, &scratch)
        .with("--cache direct")
        .refused("does not support O_DIRECT");
}

/// QEMU's option in that message is not one of this command.
#[test]
fn the_way_out_of_direct_io_is_named() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let mount = Mount::ramfs(&scratch);
    in_memory(&mount, &scratch)
        .with("--cache direct")
        .refused("--cache");
}

#[test]
fn the_page_cache_where_there_is_nothing_else() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let mount = Mount::ramfs(&scratch);
    let (finished, report) = in_memory(&mount, &scratch).with("--cache buffered").held();
    assert!(!report.flag("/disk/direct"));
    assert_eq!(finished.stderr, "");
}

#[test]
fn a_scratch_directory_without_direct_io() {
    if !needs(&[Need::Root]) {
        return;
    }
    let scratch = scratch();
    let mount = Mount::ramfs(&scratch);
    let inner = Scratch::new(mount.path().to_str().expect("a plain path"));
    let bench = Bench::bare(&inner).with("--size 16M");
    let report = bench.report();
    assert!(!report.flag("/disk/direct"));
}

#[test]
fn a_given_source_and_a_made_target() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, 16 * MIB);
    Bench::on(&scratch, &disk).report();
    assert!(allocated(&disk) >= 15 * MIB, "the guest's disk is kept");
    assert_eq!(
        names_in(scratch.path()),
        ["disk.raw", "report.json", "work"]
    );
}

#[test]
fn a_target_that_does_not_exist_is_made_and_kept() {
    let scratch = scratch();
    let target = scratch.join("backup.raw");
    let bench = Bench::bare(&scratch).with("--size 16M");
    bench.target(&target).report();
    let size = std::fs::metadata(&target).expect("a backup").len();
    assert_eq!(size, 16 * MIB);
}

#[test]
fn a_source_through_a_symbolic_link() {
    let scratch = scratch();
    let (disk, link) = (scratch.join("disk.raw"), scratch.join("link.raw"));
    blank(&disk, 16 * MIB);
    std::os::unix::fs::symlink(&disk, &link).expect("a link");
    Bench::on(&scratch, &link).report();
}

#[test]
fn a_path_that_is_not_text() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = scratch();
    let directory = scratch.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    std::fs::create_dir(&directory).expect("a directory");
    let bench = Bench::bare(&scratch).with("--size 16M");
    bench.path("--hgrm", &directory).report();
    assert!(names_in(&directory).len() > 1);
}

#[test]
fn a_disk_that_is_much_smaller_than_a_cluster() {
    let scratch = scratch();
    let disk = scratch.join("disk.raw");
    blank(&disk, 5 * KIB);
    let report = Bench::on(&scratch, &disk).with("--rate 200").report();
    let checked = report.count("/verification/backup_bytes_checked");
    assert_eq!(checked, 5 * KIB);
}

#[test]
fn no_more_is_backed_up_than_there_is() {
    for bytes in [5 * KIB, MIB + 512] {
        let scratch = scratch();
        let disk = scratch.join("disk.raw");
        blank(&disk, bytes);
        let report = Bench::on(&scratch, &disk).with("--rate 200").report();
        assert_eq!(report.count("/backup/bytes_total"), bytes);
        let moved = report.count("/backup/bytes_copied")
            + report.count("/backup/bytes_zero")
            + report.count("/copy_before_write/saved_bytes");
        assert_eq!(moved, bytes);
    }
}
