//! Images that were damaged on purpose, and what must not become of them.

use std::path::Path;

use ringback_tests::image::{content, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::Finished;
use ringback_tests::scratch::Scratch;

use super::beside::chain::TOP;
use super::beside::pair::{Program, shell};
use super::qemu;

/// Where things lie in a fresh image with one cluster of data.
const REFCOUNT_TABLE: u64 = 0x10000;
const REFCOUNT_BLOCK: usize = 0x20000;
const L2_TABLE: u64 = 0x40000;
const CLUSTER: usize = 0x10000;

fn image() -> Option<Scratch> {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return None;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    qemu::run(
        directory,
        &["qemu-img", "create", "-q", "-f", "qcow2", TOP, "64M"],
    );
    qemu::run(directory, &["qemu-io", "-c", "write -P 7 0 64k", TOP]);
    Some(scratch)
}

fn ringback(directory: &Path, command: &str) -> Finished {
    shell(
        Program::Ringback,
        directory,
        &["-c".into(), command.into(), TOP.into()],
    )
}

#[test]
fn zeroes_around_a_write_hit_no_metadata() {
    let Some(scratch) = image() else { return };
    let path = scratch.join(TOP);
    // The cluster reads as zeroes, and keeps its place: that of the refcounts.
    write_at(&path, L2_TABLE, &0x8000_0000_0002_0001_u64.to_be_bytes());
    let block = |bytes: &[u8]| bytes[REFCOUNT_BLOCK..][..CLUSTER].to_vec();
    let before = block(&content(&path));
    ringback(scratch.path(), "write -P 1 0 512")
        .failed_with(1)
        .saying("overlaps with refcount block");
    assert_eq!(block(&content(&path)), before);
}

#[test]
fn a_refcount_block_behind_every_end_is_an_error() {
    let Some(scratch) = image() else { return };
    write_at(
        &scratch.join(TOP),
        REFCOUNT_TABLE,
        &0xffff_ffff_ffff_0000_u64.to_be_bytes(),
    );
    let finished = ringback(scratch.path(), "write -P 1 1M 64k");
    finished.failed_with(1);
}

#[test]
fn bitmaps_of_an_image_that_is_repaired_stay_good() {
    let Some(scratch) = image() else { return };
    let directory = scratch.path();
    qemu::run(directory, &["qemu-img", "bitmap", "--add", TOP, "b0"]);
    write_at(&scratch.join(TOP), 79, &[1]);
    ringback(directory, "read 0 64k").succeeded();
    let flags: Vec<_> = qemu::bitmaps(directory, TOP)
        .into_iter()
        .flat_map(|(_, _, flags)| flags)
        .collect();
    assert_eq!(flags, ["auto"]);
}
