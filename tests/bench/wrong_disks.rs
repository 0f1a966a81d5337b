//! Disks that cannot be used are refused by name, and stay as they are.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{self, Mode, SFlag};
use ringback_tests::device::{Immutable, LoopDevice, Mount};
use ringback_tests::image::{MIB, blank, content, noise, write_at};
use ringback_tests::needs::{Need, is_root, needs};
use ringback_tests::scratch::{Scratch, names_in};

use crate::harness::{Bench, scratch};

fn made(scratch: &Scratch, name: &str, bytes: u64) -> PathBuf {
    let path = scratch.join(name);
    blank(&path, bytes);
    path
}

fn as_target<'a>(scratch: &'a Scratch, target: &Path) -> Bench<'a> {
    Bench::bare(scratch).with("--size 16M").target(target)
}

#[test]
fn a_missing_file() {
    let scratch = scratch();
    let path = scratch.join("none.raw");
    Bench::on(&scratch, &path)
        .refused("none.raw")
        .saying("no such file or directory");
    assert!(!path.exists());
}

#[test]
fn a_missing_source_makes_no_target() {
    let scratch = scratch();
    let target = scratch.join("target.raw");
    Bench::on(&scratch, &scratch.join("none.raw"))
        .target(&target)
        .refused("none.raw");
    assert!(!target.exists());
}

#[test]
fn a_target_in_a_missing_directory() {
    let scratch = scratch();
    as_target(&scratch, &scratch.join("none/target.raw"))
        .refused("none/target.raw")
        .saying("no such file or directory");
}

#[test]
fn a_directory() {
    let scratch = scratch();
    let directory = scratch.directory("disk");
    Bench::on(&scratch, &directory).refused("is a directory");
    as_target(&scratch, &directory).refused("is a directory");
    assert_eq!(names_in(&directory), [""; 0]);
}

#[test]
fn a_fifo() {
    let scratch = scratch();
    let fifo = scratch.join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    Bench::on(&scratch, &fifo).refused("neither a file nor a block device");
    as_target(&scratch, &fifo).refused("neither a file nor a block device");
}

#[test]
fn a_character_device() {
    let scratch = scratch();
    for device in ["/dev/null", "/dev/zero", "/dev/full"] {
        Bench::on(&scratch, Path::new(device)).refused(device);
        as_target(&scratch, Path::new(device)).refused(device);
    }
}

#[test]
fn a_read_only_file() {
    let scratch = scratch();
    let disk = made(&scratch, "disk.raw", 16 * MIB);
    write_at(&disk, MIB, &noise(1, MIB));
    let mut permissions = fs::metadata(&disk).expect("a file").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&disk, permissions).expect("new rights");
    // Rights do not stop root.
    let is_root = is_root();
    let guard = if is_root { Immutable::new(&disk) } else { None };
    if is_root && guard.is_none() {
        println!("skipped: needs a file system with 'chattr +i'");
        return;
    }
    let before = content(&disk);
    Bench::on(&scratch, &disk)
        .with("--overwrite")
        .refused("disk.raw")
        .saying("cannot be written");
    as_target(&scratch, &disk)
        .with("--overwrite")
        .refused("cannot be written");
    Bench::on(&scratch, &disk).with("--no-guest").report();
    assert!(content(&disk) == before);
}

#[test]
fn a_read_only_device() {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let file = made(&scratch, "disk.raw", 16 * MIB);
    write_at(&file, MIB, &noise(2, MIB));
    let disk = LoopDevice::read_only(&file);
    let path = disk.path().to_str().expect("a plain path");
    Bench::on(&scratch, disk.path())
        .with("--overwrite")
        .refused(path);
    as_target(&scratch, disk.path())
        .with("--overwrite")
        .refused(path);
    Bench::on(&scratch, disk.path()).with("--no-guest").report();
}

#[test]
fn a_smaller_target() {
    let scratch = scratch();
    let source = made(&scratch, "source.raw", 16 * MIB);
    let target = made(&scratch, "target.raw", 16 * MIB - 512);
    Bench::on(&scratch, &source)
        .target(&target)
        .refused("smaller")
        .saying("16776704")
        .saying("16777216");
    assert!(content(&source).iter().all(|&byte| byte == 0));
}

#[test]
fn a_larger_target() {
    let scratch = scratch();
    let target = made(&scratch, "target.raw", 16 * MIB + 512);
    as_target(&scratch, &target).refused("larger");
}

#[test]
fn a_smaller_device_as_target() {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let disk = LoopDevice::new(&made(&scratch, "disk.raw", 8 * MIB), 512);
    as_target(&scratch, disk.path()).refused("smaller");
}

/// How else the source may be called.
fn by_symbolic_link(scratch: &Scratch, disk: &Path) -> PathBuf {
    let link = scratch.join("link.raw");
    std::os::unix::fs::symlink(disk, &link).expect("a link");
    link
}

fn by_hard_link(scratch: &Scratch, disk: &Path) -> PathBuf {
    let link = scratch.join("link.raw");
    fs::hard_link(disk, &link).expect("a link");
    link
}

fn by_device_file(scratch: &Scratch, disk: &Path) -> PathBuf {
    let file = scratch.join("device");
    let number = fs::metadata(disk).expect("a device").rdev();
    let rights = Mode::S_IRUSR | Mode::S_IWUSR;
    stat::mknod(&file, SFlag::S_IFBLK, rights, number).expect("a device file");
    file
}

/// Refused, whichever of the names comes first.
fn refused_as_both(scratch: &Scratch, disk: &Path, other: &Path, text: &str) {
    for (source, target) in [(disk, other), (other, disk)] {
        Bench::on(scratch, source)
            .with("--overwrite")
            .target(target)
            .refused(text);
    }
}

fn disk_with_data(scratch: &Scratch) -> PathBuf {
    let disk = made(scratch, "disk.raw", 16 * MIB);
    write_at(&disk, MIB, b"data");
    disk
}

fn unchanged(disk: &Path) -> bool {
    let mut expected = vec![0; 16 << 20];
    expected[1 << 20..][..4].copy_from_slice(b"data");
    content(disk) == expected
}

#[test]
fn the_source_as_target() {
    let scratch = scratch();
    let disk = disk_with_data(&scratch);
    refused_as_both(&scratch, &disk, &disk, "the same disk");
    assert!(unchanged(&disk));
}

#[test]
fn the_source_as_target_by_a_symbolic_link() {
    let scratch = scratch();
    let disk = disk_with_data(&scratch);
    let link = by_symbolic_link(&scratch, &disk);
    refused_as_both(&scratch, &disk, &link, "the same disk");
    assert!(unchanged(&disk));
}

#[test]
fn the_source_as_target_by_a_hard_link() {
    let scratch = scratch();
    let disk = disk_with_data(&scratch);
    let link = by_hard_link(&scratch, &disk);
    refused_as_both(&scratch, &disk, &link, "the same disk");
    assert!(unchanged(&disk));
}

#[test]
fn the_source_as_target_by_another_device_file() {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let file = disk_with_data(&scratch);
    let disk = LoopDevice::new(&file, 512);
    let other = by_device_file(&scratch, disk.path());
    refused_as_both(&scratch, disk.path(), &other, "the same disk");
    assert!(unchanged(disk.path()));
}

/// `mkfs` and others do not either, whatever they are told.
#[test]
fn a_mounted_device() {
    if !needs(&[Need::LoopDevices, Need::Program("mkfs.ext4")]) {
        return;
    }
    let scratch = scratch();
    let disk = LoopDevice::new(&made(&scratch, "disk.raw", 16 * MIB), 512);
    let _mount = Mount::ext4(&scratch, &disk);
    let before = content(disk.path());
    Bench::on(&scratch, disk.path())
        .with("--overwrite")
        .refused("mounted");
    as_target(&scratch, disk.path())
        .with("--overwrite")
        .refused("mounted");
    assert!(content(disk.path()) == before);
}

#[test]
fn a_loop_device_and_the_file_behind_it() {
    if !needs(&[Need::LoopDevices]) {
        return;
    }
    let scratch = scratch();
    let file = made(&scratch, "disk.raw", 16 * MIB);
    let disk = LoopDevice::new(&file, 512);
    for (source, target) in [(disk.path(), file.as_path()), (&file, disk.path())] {
        Bench::on(&scratch, source)
            .with("--overwrite")
            .target(target)
            .refused("the same disk");
    }
}

#[test]
fn a_file_that_is_no_multiple_of_a_sector() {
    let scratch = scratch();
    let disk = made(&scratch, "disk.raw", 1000);
    Bench::on(&scratch, &disk)
        .refused("disk.raw")
        .saying("1000 bytes");
    Bench::on(&scratch, &disk)
        .with("--no-guest")
        .refused("1000 bytes");
}

#[test]
fn an_empty_file() {
    let scratch = scratch();
    let disk = made(&scratch, "disk.raw", 0);
    Bench::on(&scratch, &disk).refused("0 bytes");
    as_target(&scratch, &disk).refused("0 bytes");
}

#[test]
fn a_missing_scratch_directory() {
    let scratch = scratch();
    let bench = Bench::quick(&scratch);
    fs::remove_dir(scratch.join("work")).expect("an empty directory");
    bench
        .run()
        .failed_with(1)
        .saying("cannot make a scratch directory");
}

#[test]
fn a_missing_scratch_directory_makes_no_target() {
    let scratch = scratch();
    let target = scratch.join("target.raw");
    let bench = as_target(&scratch, &target);
    fs::remove_dir(scratch.join("work")).expect("an empty directory");
    bench.run().failed_with(1);
    assert!(!target.exists());
}
