//! Chains of increments, and what becomes of their bitmaps.

use ringback_tests::image::MIB;

use crate::harness::{Place, can_judge, exists};

const FIRST: &str = "disk.qcow2 1.qcow2 --new-bitmap daily";

/// A disk with a first, full backup.
fn begun() -> Place {
    let place = Place::new();
    place.qcow2("disk.qcow2", 16 * MIB);
    let report = place.report(FIRST);
    assert_eq!(report["incremental"], false);
    place
}

#[test]
fn a_chain_of_three_restores_each_of_its_instants() {
    if !can_judge() {
        return;
    }
    let place = begun();
    assert_eq!(place.bitmaps("disk.qcow2"), r#""daily" ["auto"];"#);
    std::fs::copy(place.path("disk.qcow2"), place.path("then1.qcow2")).expect("a copy");
    place.write("disk.qcow2", 1, "1M", "1M");
    place.write("disk.qcow2", 0, "4M", "128k");
    std::fs::copy(place.path("disk.qcow2"), place.path("then2.qcow2")).expect("a copy");
    let words = "disk.qcow2 2.qcow2 --bitmap daily --backing 1.qcow2 --verify=all";
    let report = place.report(words);
    assert_eq!(report["incremental"], true);
    assert_eq!(report["bytes"], MIB + 128 * 1024);
    place.write("disk.qcow2", 2, "1536k", "1M");
    let words = "disk.qcow2 3.qcow2 --bitmap daily --backing 2.qcow2 --verify";
    assert_eq!(place.report(words)["bytes"], MIB);
    assert_eq!(place.info("3.qcow2")["backing-filename"], "2.qcow2");
    assert_eq!(place.info("3.qcow2")["backing-filename-format"], "qcow2");
    for image in ["1.qcow2", "2.qcow2", "3.qcow2", "disk.qcow2"] {
        place.assert_sound(image);
    }
    place.assert_same("then1.qcow2", "1.qcow2");
    place.assert_same("then2.qcow2", "2.qcow2");
    place.assert_same("disk.qcow2", "3.qcow2");
    let restore = "convert -O raw 3.qcow2 restored.raw";
    place
        .tool("qemu-img", restore)
        .status()
        .expect("qemu-img runs");
    place.assert_same("disk.qcow2", "restored.raw");
}

#[test]
fn nothing_was_written_nothing_is_copied() {
    if !can_judge() {
        return;
    }
    let place = begun();
    let words = "disk.qcow2 2.qcow2 --bitmap daily --backing 1.qcow2 --verify=all";
    assert_eq!(place.report(words)["bytes"], 0);
    place.assert_same("disk.qcow2", "2.qcow2");
}

#[test]
fn never_leaves_the_bitmap_and_the_source_alone() {
    if !can_judge() {
        return;
    }
    let place = begun();
    place.write("disk.qcow2", 1, "1M", "64k");
    let before = std::fs::read(place.path("disk.qcow2")).expect("the source");
    for target in ["2.qcow2", "3.qcow2"] {
        let options = "--bitmap daily --bitmap-mode never --backing 1.qcow2";
        let report = place.report(&format!("disk.qcow2 {target} {options}"));
        assert_eq!(report["bytes"], 64 * 1024);
    }
    let after = std::fs::read(place.path("disk.qcow2")).expect("the source");
    assert!(before == after, "the source was written to");
}

#[test]
fn a_raw_first_backup_serves_as_well() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.qcow2("disk.qcow2", 4 * MIB);
    place.backup("disk.qcow2 1.raw --new-bitmap b").succeeded();
    place.write("disk.qcow2", 3, "1M", "64k");
    std::fs::create_dir(place.path("later")).expect("a directory");
    place
        .backup("disk.qcow2 later/2.qcow2 --bitmap b --backing 1.raw")
        .succeeded();
    let info = place.info("later/2.qcow2");
    assert_eq!(info["backing-filename-format"], "raw");
    let name = info["backing-filename"].as_str().expect("a name");
    assert!(name.starts_with('/') && name.ends_with("/1.raw"), "{name}");
    place.assert_same("disk.qcow2", "later/2.qcow2");
}

#[test]
fn a_failed_increment_leaves_the_bitmap() {
    if !can_judge() {
        return;
    }
    let place = begun();
    place.write("disk.qcow2", 1, "1M", "64k");
    let before = std::fs::read(place.path("disk.qcow2")).expect("the source");
    let words = "disk.qcow2 none/2.qcow2 --bitmap daily --backing 1.qcow2";
    place.backup(words).failed_with(1);
    let after = std::fs::read(place.path("disk.qcow2")).expect("the source");
    assert!(before == after, "the source was written to");
}

#[test]
fn without_a_usable_bitmap_a_full_backup_is_made_if_that_is_said() {
    if !can_judge() {
        return;
    }
    let place = begun();
    let words = "disk.qcow2 2.qcow2 --bitmap weekly --backing 1.qcow2";
    place.refused(1, words, "Dirty bitmap 'weekly' not found");
    assert!(!exists(&place.path("2.qcow2")));
    place
        .backup(&format!("{words} --or-full"))
        .failed_with(4)
        .saying("a full backup was made");
    assert!(place.info("2.qcow2")["backing-filename"].is_null());
    place.assert_same("disk.qcow2", "2.qcow2");
    assert!(place.bitmaps("disk.qcow2").contains(r#""weekly" ["auto"]"#));
    place.write("disk.qcow2", 5, "2M", "64k");
    let words = "disk.qcow2 3.qcow2 --bitmap weekly --backing 2.qcow2 --verify=all";
    assert_eq!(place.report(words)["bytes"], 64 * 1024);
}

#[test]
fn a_bitmap_of_a_killed_writer_makes_room_for_a_new_one() {
    if !can_judge() {
        return;
    }
    let place = begun();
    // Who is killed leaves the bitmap in use.
    let mut writer = place.tool("qemu-io", "-f qcow2 disk.qcow2 -c");
    writer.args(["write -P 1 0 64k", "-c", "abort"]);
    let aborted = writer.output().expect("qemu-io runs");
    assert!(!aborted.status.success());
    assert!(place.bitmaps("disk.qcow2").contains("in-use"));
    let words = "disk.qcow2 2.qcow2 --bitmap daily --backing 1.qcow2";
    place.refused(1, words, "inconsistent");
    place.backup(&format!("{words} --or-full")).failed_with(4);
    place.assert_same("disk.qcow2", "2.qcow2");
    assert_eq!(place.bitmaps("disk.qcow2"), r#""daily" ["auto"];"#);
}
