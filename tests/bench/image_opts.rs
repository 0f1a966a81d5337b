//! Disks given in QEMU's option syntax.

use std::path::Path;

use ringback_tests::image::{MIB, blank, content, noise, write_at};
use ringback_tests::scratch::Scratch;

use crate::harness::{Bench, scratch};

const DISK: u64 = 8 * MIB;

/// A window of a file, and what lies around it.
fn window(file: &Path, offset: u64) -> String {
    format!(
        "driver=raw,node-name=window,offset={offset},size={DISK},file.driver=file,file.filename={}",
        file.display()
    )
}

fn whole(file: &Path) -> String {
    format!("driver=file,node-name=whole,filename={}", file.display())
}

fn bench(scratch: &Scratch) -> Bench<'_> {
    Bench::bare(scratch).with("--image-opts")
}

/// The guest works in a window; the file around it must stay as it is.
fn in_a_window(offset: u64) {
    let scratch = scratch();
    let (file, target) = (scratch.join("file.raw"), scratch.join("target.raw"));
    let around = noise(7, 512);
    let end = offset + DISK;
    blank(&file, end.next_multiple_of(4096) + 4096);
    write_at(&file, offset - 512, &around);
    write_at(&file, end, &around);
    blank(&target, DISK);
    let report = bench(&scratch)
        .with("--overwrite")
        .path("--source", window(&file, offset))
        .path("--target", whole(&target))
        .report();
    assert_eq!(report.count("/disk/size_bytes"), DISK);
    assert_eq!(report.count("/verification/backup_bytes_checked"), DISK);
    let content = content(&file);
    let at = |offset: u64| usize::try_from(offset).expect("an index");
    assert!(
        content[at(offset - 512)..at(offset)] == around[..],
        "before"
    );
    assert!(content[at(end)..at(end + 512)] == around[..], "behind");
}

#[test]
fn a_window_of_a_file() {
    in_a_window(MIB);
}

#[test]
fn a_window_that_begins_within_a_page() {
    in_a_window(MIB + 512);
}

#[test]
fn a_window_that_begins_within_a_sector() {
    in_a_window(MIB + 1000);
}

#[test]
fn a_window_as_target() {
    let scratch = scratch();
    let (file, source) = (scratch.join("file.raw"), scratch.join("source.raw"));
    blank(&file, DISK + 2 * MIB);
    blank(&source, DISK);
    bench(&scratch)
        .path("--source", whole(&source))
        .path("--target", window(&file, MIB + 512))
        .report();
}

#[test]
fn a_window_and_a_made_target() {
    let scratch = scratch();
    let file = scratch.join("file.raw");
    blank(&file, DISK + 2 * MIB);
    bench(&scratch)
        .path("--source", window(&file, MIB))
        .report();
}

#[test]
fn data_outside_of_a_window_is_not_in_the_way() {
    let scratch = scratch();
    let (file, target) = (scratch.join("file.raw"), scratch.join("target.raw"));
    blank(&file, DISK + 2 * MIB);
    write_at(&file, 0, b"not in the window");
    blank(&target, DISK);
    bench(&scratch)
        .path("--source", window(&file, MIB))
        .path("--target", whole(&target))
        .report();
}

/// Past the page cache its last bytes cannot be reached; through it they can.
#[test]
fn a_file_that_ends_within_a_sector_behind_a_window() {
    let scratch = scratch();
    let (file, target) = (scratch.join("file.raw"), scratch.join("target.raw"));
    blank(&file, DISK + 2 * MIB + 1000);
    blank(&target, DISK);
    let disks = || {
        bench(&scratch)
            .path("--source", window(&file, MIB))
            .path("--target", whole(&target))
    };
    disks().refused("cache.direct=off");
    disks().with("--cache buffered").report();
}

#[test]
fn data_in_a_window_is_in_the_way() {
    let scratch = scratch();
    let (file, target) = (scratch.join("file.raw"), scratch.join("target.raw"));
    blank(&file, DISK + 2 * MIB);
    write_at(&file, MIB + DISK - 1, b"x");
    blank(&target, DISK);
    let before = content(&file);
    bench(&scratch)
        .path("--source", window(&file, MIB))
        .path("--target", whole(&target))
        .refused("--overwrite");
    assert!(content(&file) == before);
}

#[test]
fn a_window_behind_the_end() {
    let scratch = scratch();
    let (file, target) = (scratch.join("file.raw"), scratch.join("target.raw"));
    blank(&file, MIB);
    blank(&target, DISK);
    bench(&scratch)
        .path("--source", window(&file, 2 * MIB))
        .path("--target", whole(&target))
        .refused("Offset (2097152) cannot be greater than size of the containing file (1048576)");
}

/// QEMU's `--image-opts` has no node name, and neither has our own help.
#[test]
fn no_node_name_is_needed() {
    let scratch = scratch();
    let file = scratch.join("file.raw");
    blank(&file, DISK);
    bench(&scratch)
        .path(
            "--source",
            format!(
                "driver=raw,file.driver=file,file.filename={}",
                file.display()
            ),
        )
        .report();
}

#[test]
fn unknown_drivers_are_refused_by_name() {
    bench(&scratch())
        .path("--source", "driver=quux,node-name=x")
        .refused("'quux'");
}

#[test]
fn qcow2_is_refused_by_name() {
    let scratch = scratch();
    let file = scratch.join("file.raw");
    blank(&file, DISK);
    let text = "driver=qcow2,node-name=x,file.driver=file,file.filename=";
    bench(&scratch)
        .path("--source", format!("{text}{}", file.display()))
        .refused("'qcow2'");
}

#[test]
fn filters_are_refused_by_name() {
    let text = "driver=copy-before-write,node-name=x,file.driver=null-co,target.driver=null-co";
    bench(&scratch())
        .path("--source", text)
        .refused("copy-before-write");
}

#[test]
fn unknown_options_are_refused_by_name() {
    bench(&scratch())
        .path("--source", "driver=file,node-name=x,filename=a,quux=1")
        .refused("quux");
}

#[test]
fn a_plain_path_is_no_option() {
    let scratch = scratch();
    let file = scratch.join("file.raw");
    blank(&file, DISK);
    bench(&scratch).path("--source", &file).refused("file.raw");
}

#[test]
fn a_target_that_does_not_exist_is_not_made() {
    let scratch = scratch();
    let target = scratch.join("target.raw");
    bench(&scratch)
        .path("--target", whole(&target))
        .refused("no such file");
    assert!(!target.exists());
}

/// A disk that forgets everything cannot be verified.
#[test]
fn null_co_is_refused_for_the_guest() {
    bench(&scratch())
        .path("--source", "driver=null-co,node-name=x,size=33554432")
        .refused("null-co");
}

#[test]
fn null_co_is_refused_for_the_backup() {
    bench(&scratch())
        .with("--size 32M")
        .path("--target", "driver=null-co,node-name=x,size=33554432")
        .refused("null-co");
}
