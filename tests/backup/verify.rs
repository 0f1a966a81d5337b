//! `--verify` finds what is wrong.

use ringback_tests::image::{MIB, write_at};

use crate::harness::{Place, can_judge, parse};

const SIZE: u64 = 12 * MIB;

#[test]
fn a_byte_that_changed_is_found_and_can_be_mended() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    let slowly = "--speed 4M --max-chunk 64k --checkpoint 1";
    let running = place.start(&format!("a.raw b.raw --verify --json {slowly}"));
    place.wait_for_note("b.raw");
    // Copied by now, and zero nowhere in the source.
    write_at(&place.path("b.raw"), 70_000, &[0]);
    let finished = running.finish().failed_with(3).saying("differ");
    let report = parse(&finished.stdout);
    assert_eq!(report["verified"], false);
    assert_eq!(report["differing_bytes"], 65536);
    assert_eq!(report["status"], "differs");
    let report = place.report("a.raw b.raw --resume --verify");
    assert_eq!(report["bytes"], 65536);
    assert_eq!(report["verified"], true);
    place.assert_same("a.raw", "b.raw");
}

#[test]
fn a_wrong_backing_file_is_found_by_looking_at_everything() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.qcow2("disk.qcow2", SIZE);
    place
        .backup("disk.qcow2 1.qcow2 --new-bitmap b")
        .succeeded();
    place.write("disk.qcow2", 1, "1M", "64k");
    place.write("1.qcow2", 9, "3M", "64k");
    let words = "disk.qcow2 2.qcow2 --bitmap b --backing 1.qcow2";
    let before = place.bitmaps("disk.qcow2");
    place
        .backup(&format!("{words} --verify=all"))
        .failed_with(3)
        .saying("differ, first in the 65536 bytes at 3145728");
    assert_eq!(place.bitmaps("disk.qcow2"), before);
    let words = words.replace(" 2.qcow2", " 3.qcow2");
    assert_eq!(place.report(&format!("{words} --verify"))["bytes"], 65536);
}
