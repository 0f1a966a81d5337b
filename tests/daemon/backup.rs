//! Backups by command: every way to choose what is copied, what is refused, and
//! whether the copy is the disk of one moment.

use std::path::Path;
use std::process::Command;

use ringback_tests::image::content;
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{output_of, run};
use ringback_tests::qmp::Program;
use ringback_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::beside::{Talk, beside, events, with};

const DISKS: &[&str] = &[
    "--blockdev",
    "file,node-name=src,filename=disk",
    "--blockdev",
    "file,node-name=dst,filename=blank",
    "--blockdev",
    "file,node-name=dst2,filename=blank2",
];

fn backup(more: &Value) -> Value {
    let base = json!({
        "job-id": "j", "device": "src", "target": "dst", "sync": "full",
    });
    with(&base, more)
}

fn add_bitmap(talk: &mut Talk, name: &str) {
    talk.ask(
        "block-dirty-bitmap-add",
        &json!({ "node": "src", "name": name }),
    );
}

/// Does not end by itself in a test's time.
fn slow() -> Value {
    json!({ "speed": 1, "x-perf": { "max-workers": 1, "max-chunk": 65536 } })
}

#[test]
fn what_is_refused() {
    let lines = beside(DISKS, |talk| {
        add_bitmap(talk, "b");
        talk.ask(
            "blockdev-add",
            &json!({ "driver": "null-co", "node-name": "small", "size": 512 }),
        );
        talk.ask(
            "blockdev-add",
            &json!({
                "driver": "file", "node-name": "ro", "read-only": true, "filename": "spare",
            }),
        );
        for more in [
            json!({ "device": "zz" }),
            json!({ "target": "zz" }),
            json!({ "target": "src" }),
            json!({ "target": "small" }),
            json!({ "target": "ro" }),
            json!({ "job-id": "" }),
            json!({ "job-id": "1a" }),
            json!({ "job-id": "a b" }),
            json!({ "job-id": 1 }),
            json!({ "sync": "bogus" }),
            json!({ "sync": "FULL" }),
            json!({ "filter-node-name": "#x" }),
            json!({ "filter-node-name": "dst2" }),
            json!({ "speed": "fast" }),
            json!({ "compress": true }),
            json!({ "bogus": 1 }),
            json!({ "on-source-error": "bogus" }),
            json!({ "x-perf": { "max-workers": 0 } }),
            json!({ "x-perf": { "max-workers": 1u64 << 31 } }),
            json!({ "x-perf": { "max-chunk": -1 } }),
            json!({ "x-perf": { "max-chunk": 1 } }),
            json!({ "x-perf": { "bogus": 1 } }),
            json!({ "x-perf": { "min-cluster-size": 1000 } }),
        ] {
            talk.refused("blockdev-backup", &backup(&more));
        }
        for missing in ["device", "target", "sync", "job-id"] {
            let mut arguments = backup(&json!({}));
            arguments
                .as_object_mut()
                .expect("an object")
                .remove(missing);
            talk.refused("blockdev-backup", &arguments);
        }
        talk.ask("query-jobs", &json!({}));
    });
    for text in [
        "Cannot find device='zz' nor node-name='zz'",
        "Source and target cannot be the same",
        "Source and target image have different sizes",
        "Invalid job ID ''",
        "Compression is not supported for this drive ",
        "max-workers must be between 1 and 2147483647",
        "Required max-chunk (1) is less than backup cluster size (65536)",
        "Could not create node: Duplicate nodes with node-name='dst2'",
    ] {
        let line = format!("< GenericError: {text}");
        assert!(lines.contains(&line), "no '{line}' in {lines:#?}");
    }
}

/// Every way to choose, with and without a bitmap that is there.
#[test]
fn which_bitmaps_go_with_what() {
    beside(DISKS, |talk| {
        add_bitmap(talk, "b");
        for sync in ["full", "top", "none", "incremental", "bitmap"] {
            for bitmap in [None, Some("b"), Some("zz")] {
                for mode in [None, Some("on-success"), Some("never"), Some("always")] {
                    let mut arguments = backup(&with(&slow(), &json!({ "sync": sync })));
                    if let Some(bitmap) = bitmap {
                        arguments["bitmap"] = bitmap.into();
                    }
                    if let Some(mode) = mode {
                        arguments["bitmap-mode"] = mode.into();
                    }
                    let started = talk.say("blockdev-backup", &arguments).is_ok();
                    // One over an empty bitmap ends by itself.
                    let is_empty = matches!(sync, "incremental" | "bitmap");
                    if started {
                        if !is_empty {
                            talk.ask("job-cancel", &json!({ "id": "j" }));
                        }
                        talk.until("j", "null");
                        // How far it had come has changed it.
                        let name = json!({ "node": "src", "name": "b" });
                        talk.ask("block-dirty-bitmap-remove", &name);
                        add_bitmap(talk, "b");
                    }
                }
            }
        }
        talk.ask("query-named-block-nodes", &json!({ "flat": true }));
    });
}

#[test]
fn a_disk_in_use_by_another_backup() {
    beside(DISKS, |talk| {
        talk.ask("blockdev-backup", &backup(&slow()));
        for more in [
            json!({ "job-id": "j" }),
            json!({ "job-id": "k" }),
            json!({ "job-id": "k", "device": "dst", "target": "dst2" }),
            json!({ "job-id": "j", "target": "dst2" }),
        ] {
            talk.refused("blockdev-backup", &backup(&more));
        }
        talk.ask("job-cancel", &json!({ "id": "j" }));
        talk.until("j", "null");
    });
}

/// A copy while the disk changes is the disk as it was at the start.
#[test]
fn of_one_moment() {
    for more in [
        json!({}),
        json!({ "x-perf": { "max-workers": 1 } }),
        json!({ "x-perf": { "max-workers": 3, "max-chunk": 65536 } }),
        json!({ "x-perf": { "use-copy-range": true } }),
        json!({ "x-perf": { "min-cluster-size": 131_072 } }),
        json!({ "speed": 4 << 20 }),
        json!({ "sync": "top", "filter-node-name": "flt" }),
    ] {
        let words = [DISKS, &["--device", "virtio-blk-pci,id=vd,drive=src"]].concat();
        let mut talk = Talk::start(Program::Ringback, &words);
        let before = content(&talk.directory().join("disk"));
        let held = with(&backup(&more), &json!({ "speed": 1 }));
        talk.ask("blockdev-backup", &held);
        let write = |talk: &mut Talk, command: &str| {
            let line = format!("qemu-io -d /machine/peripheral/vd/virtio-backend \"{command}\"");
            assert_eq!(talk.shell(&line), "", "{command}");
        };
        write(&mut talk, "write -P 0x11 900k 100k");
        write(&mut talk, "write -z 100k 70k");
        write(&mut talk, "discard 512k 64k");
        for part in 0..8 {
            write(
                &mut talk,
                &format!("aio_write -P {} {}k 60k", part + 1, part * 128),
            );
        }
        let speed = more.get("speed").cloned().unwrap_or_else(|| json!(0));
        // Where the disk is one chunk, it may have ended.
        let _ = talk.say(
            "block-job-set-speed",
            &json!({ "device": "j", "speed": speed }),
        );
        write(&mut talk, "aio_write -P 0x99 0 1M");
        talk.until("j", "null");
        write(&mut talk, "aio_flush");
        let (lines, stdout, scratch) = talk.finish_with_output();
        let completed = events(&lines)
            .into_iter()
            .find(|line| line.starts_with("BLOCK_JOB_COMPLETED"))
            .unwrap_or_else(|| panic!("{more}: {lines:#?}"));
        assert!(!completed.contains("error"), "{more}: {completed}");
        assert!(!stdout.contains("failed"), "{more}: {stdout}");
        assert!(content(&scratch.join("blank")) == before, "{more}");
        let after = content(&scratch.join("disk"));
        assert!(after.iter().all(|&byte| byte == 0x99), "{more}");
    }
}

/// What a guest overwrites, and nothing else.
#[test]
fn only_what_is_overwritten() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    let before = content(&talk.directory().join("disk"));
    let none = json!({ "sync": "none", "filter-node-name": "flt" });
    talk.ask("blockdev-backup", &backup(&none));
    assert_eq!(talk.shell(r#"qemu-io flt "write -P 1 70k 1k""#), "");
    talk.ask("block-job-cancel", &json!({ "device": "j" }));
    talk.until("j", "null");
    let (_, scratch) = talk.finish_as_it_was();
    let saved = content(&scratch.join("blank"));
    // QEMU saves the cluster around it, from 64 KiB to 128 KiB.
    let (from, to) = (68 << 10, 72 << 10);
    assert!(saved[from..to] == before[from..to], "what was overwritten");
    assert!(saved[..from].iter().all(|&byte| byte == 0));
    assert!(saved[to..].iter().all(|&byte| byte == 0));
}

/// Copies by bitmaps, one after the other; the bitmap after each of them.
#[test]
fn by_bitmaps() {
    const GRANULE: u64 = 64 << 10;
    for (sync, mode, kept_after_success, kept_after_cancel) in [
        ("incremental", "on-success", 0, 2),
        ("bitmap", "on-success", 0, 2),
        ("bitmap", "never", 2, 2),
        ("bitmap", "always", 0, 1),
    ] {
        let mut talk = Talk::start(Program::Ringback, DISKS);
        add_bitmap(&mut talk, "b");
        let count = |talk: &mut Talk| {
            let nodes = talk.look("query-named-block-nodes", &json!({ "flat": true }));
            let nodes = nodes.as_array().expect("a list").iter();
            let mut bitmaps = nodes.filter_map(|node| node["dirty-bitmaps"].as_array());
            let bitmap = bitmaps
                .next()
                .and_then(|all| all.iter().find(|bitmap| bitmap["name"] == "b"));
            bitmap.expect("the bitmap")["count"]
                .as_u64()
                .expect("bytes")
                / GRANULE
        };
        let write = |talk: &mut Talk, granule: u64, byte: u8| {
            let line = format!("qemu-io src \"write -P {byte} {}k 1k\"", granule * 64);
            assert_eq!(talk.shell(&line), "");
        };
        write(&mut talk, 2, 0xaa);
        write(&mut talk, 5, 0xbb);
        assert_eq!(count(&mut talk), 2);
        let arguments = json!({
            "sync": sync, "bitmap": "b", "bitmap-mode": mode, "speed": 1,
            "x-perf": { "max-workers": 1, "max-chunk": GRANULE },
        });
        // The first granule is copied, for the second it waits.
        talk.ask("blockdev-backup", &backup(&arguments));
        let first = |talk: &mut Talk| {
            let jobs = talk.look("query-jobs", &json!({}));
            jobs[0]["current-progress"] == GRANULE
        };
        ringback_tests::process::wait_for("the first granule", || first(&mut talk));
        talk.ask("job-cancel", &json!({ "id": "j" }));
        talk.until("j", "null");
        assert_eq!(count(&mut talk), kept_after_cancel, "{sync} {mode}");
        let arguments = with(&arguments, &json!({ "speed": 0 }));
        talk.ask("blockdev-backup", &backup(&arguments));
        talk.until("j", "null");
        assert_eq!(count(&mut talk), kept_after_success, "{sync} {mode}");
        let (_, scratch) = talk.finish_as_it_was();
        let (disk, copy) = (
            content(&scratch.join("disk")),
            content(&scratch.join("blank")),
        );
        for (granule, chunk) in disk.chunks(65536).enumerate() {
            let copied = &copy[granule * 65536..][..chunk.len()];
            if matches!(granule, 2 | 5) {
                assert!(copied == chunk, "{sync} {mode}: granule {granule}");
            } else {
                assert!(
                    copied.iter().all(|&byte| byte == 0),
                    "{sync} {mode}: {granule}"
                );
            }
        }
    }
}

/// A backup into an image that packs what it gets; `guest` is what a shell does
/// meanwhile.
fn pack(more: &Value, guest: &str, then: impl FnOnce(&mut Talk)) -> Option<Scratch> {
    if !needs(&[Need::Program("qemu-img")]) {
        return None;
    }
    let mut talk = Talk::start(Program::Ringback, DISKS);
    let directory = talk.directory().to_owned();
    qemu_img(&directory, &["create", "-q", "-f", "qcow2", "packed", "1M"]);
    assert_eq!(talk.shell(r#"qemu-io src "write -P 7 0 1M""#), "");
    let file = json!({ "driver": "file", "filename": "packed" });
    let packed = json!({ "driver": "qcow2", "node-name": "packed", "file": file });
    talk.ask("blockdev-add", &packed);
    let compress = json!({ "target": "packed", "compress": true, "filter-node-name": "flt" });
    talk.ask("blockdev-backup", &backup(&with(&compress, more)));
    if !guest.is_empty() {
        assert_eq!(talk.shell(&format!("qemu-io flt \"{guest}\"")), "");
    }
    then(&mut talk);
    talk.until("j", "null");
    let (_, scratch) = talk.finish_as_it_was();
    qemu_img(&directory, &["check", "-q", "packed"]);
    let packed = std::fs::metadata(scratch.join("packed")).expect("an image");
    assert!(packed.len() < 512 << 10, "{} bytes", packed.len());
    Some(scratch)
}

fn qemu_img(directory: &Path, arguments: &[&str]) {
    let mut command = Command::new("qemu-img");
    run(command.current_dir(directory).args(arguments)).succeeded();
}

#[test]
fn compressed() {
    if let Some(scratch) = pack(&json!({}), "", |_| ()) {
        let same = ["compare", "-f", "raw", "-F", "qcow2", "disk", "packed"];
        qemu_img(scratch.path(), &same);
    }
}

/// What goes to the target by way of memory.
#[test]
fn what_a_guest_overwrites_compressed() {
    let none = json!({ "sync": "none", "on-cbw-error": "break-snapshot" });
    let packed = pack(&none, "write -P 8 0 1M", |talk| {
        talk.ask("block-job-cancel", &json!({ "device": "j" }));
    });
    if let Some(scratch) = packed {
        let path = scratch.join("packed");
        let path = path.to_str().expect("a path in UTF-8");
        let read = ["-f", "qcow2", "-r", "-c", "read -P 7 0 1M", path];
        let said = output_of("qemu-io", &read);
        assert!(!said.contains("Pattern verification"), "{said}");
    }
}
