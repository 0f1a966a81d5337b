//! What makes no sense, or would harm somebody, is refused, and nothing is
//! touched.

use std::process::Command;

use ringback_tests::image::{MIB, content};
use ringback_tests::process::{Running, wait_for};

use crate::harness::{Place, can_judge, exists};

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    let place = Place::new();
    place.raw("a.raw", MIB);
    for (words, text) in [
        ("a.raw", "<TARGET>"),
        ("a.raw b.raw --frobnicate", "--frobnicate"),
        ("a.raw b.raw --speed fast", "is not a size"),
        ("a.raw b.raw --workers 0", "--workers"),
        ("a.raw b.raw --max-chunk 4k", "at least 64k"),
        ("a.raw b.raw --compress", "--compress needs a qcow2 target"),
        ("a.raw b.raw --resume --overwrite", "cannot be used with"),
        ("a.raw b.raw --bitmap x", "needs a qcow2 target"),
        ("a.raw b.qcow2 --bitmap x", "--bitmap needs --backing"),
        ("a.raw b.qcow2 --backing c.qcow2", "--bitmap <NAME>"),
        ("a.raw b.qcow2 --or-full", "--bitmap <NAME>"),
        (
            "a.raw b.qcow2 --bitmap x --new-bitmap y",
            "cannot be used with",
        ),
        ("a.raw b.raw --new-bitmap x -U", "--force-share only reads"),
        ("nbd://h/x b.qcow2 --bitmap x", "--bitmap needs --backing"),
        ("a.raw b.raw --update", "--bitmap <NAME>"),
        (
            "a.raw b.qcow2 --bitmap x --update --backing c.qcow2",
            "cannot be used with",
        ),
        (
            "a.raw b.qcow2 --bitmap x --update --compress",
            "cannot be used with",
        ),
    ] {
        place.refused(2, words, text);
    }
    assert!(!exists(&place.path("b.raw")) && !exists(&place.path("b.qcow2")));
}

#[test]
fn what_cannot_be_is_said() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", MIB);
    place.qcow2("d.qcow2", MIB);
    let make = "create -q -f qcow2 -b d.qcow2 -F qcow2 over.qcow2";
    place
        .tool("qemu-img", make)
        .status()
        .expect("qemu-img runs");
    for (words, text) in [
        ("none.raw b.raw", "no such file"),
        ("a.raw none/b.raw", "none/b.raw"),
        ("a.raw /", "is a directory"),
        ("a.raw a.raw --overwrite", "is the source"),
        (
            "over.qcow2 d.qcow2 --overwrite",
            "is the source, or a part of it",
        ),
        ("a.raw b.raw --resume", "nothing to go on with"),
        (
            "a.raw b.raw --new-bitmap x",
            "neither a qcow2 image of version 3",
        ),
        ("a.raw b.raw -f qcow2", "not in qcow2 format"),
        ("a.raw nbd://localhost/x", "--overwrite allows that"),
        (
            "d.qcow2 b.qcow2 --bitmap x --backing none.qcow2",
            "no such file",
        ),
        ("d.qcow2 b.qcow2 --bitmap x --backing d.qcow2", "not found"),
    ] {
        place.refused(1, words, text);
    }
    assert!(!exists(&place.path("b.raw")) && !exists(&place.path("b.qcow2")));
}

#[test]
fn a_raw_disk_that_looks_like_an_image_is_not_taken_for_one() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.qcow2("d.qcow2", MIB);
    std::fs::rename(place.path("d.qcow2"), place.path("d.raw")).expect("a new name");
    place.refused(1, "d.raw b.raw", "say with -f raw or -f qcow2");
    place.backup("d.raw b.raw -f qcow2").succeeded();
    place.backup("d.raw c.raw -f raw").succeeded();
    let same = std::fs::read(place.path("c.raw")).expect("the copy");
    assert!(same.starts_with(b"QFI\xfb"));
}

/// A process that writes to an image until it is told to end.
fn writer(image: &std::path::Path) -> Running {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "raw"]).arg(image);
    qemu_io.args(["-c", "write -P 170 0 512", "-c", "sleep 600000"]);
    Running::start(&mut qemu_io)
}

/// Waits until it has the image open: nothing else there is even.
fn wait_for_writer(image: &std::path::Path) {
    wait_for("the other writer", || content(image)[0] == 170);
}

#[test]
fn a_source_that_somebody_writes_to_is_refused() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    let path = place.full_raw("a.raw", 2 * MIB);
    let writer = writer(&path);
    wait_for_writer(&path);
    place.refused(1, "a.raw b.raw", "Is another process using the image");
    assert!(!exists(&place.path("b.raw")));
    place
        .backup("a.raw b.raw --force-share --verify")
        .succeeded();
    drop(writer);
}

#[test]
fn a_target_that_somebody_uses_is_refused() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", 2 * MIB);
    let path = place.full_raw("b.raw", 2 * MIB);
    let before = std::fs::read(&path).expect("the target");
    let writer = writer(&path);
    wait_for_writer(&path);
    place.backup("a.raw b.raw --overwrite").failed_with(1);
    let after = std::fs::read(&path).expect("the target");
    assert!(before[512..] == after[512..], "it was overwritten");
    drop(writer);
}
