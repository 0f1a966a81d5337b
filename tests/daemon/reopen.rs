//! `blockdev-reopen`: beside the storage daemon of QEMU, and what it does to
//! files and their locks.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::qmp::{Daemon, Program};

const SCRIPT: &str = include_str!("reopen.txt");
const MIB: u64 = 1 << 20;

fn qemu_img(directory: &Path, words: &[&str]) -> String {
    let ran = Command::new("qemu-img")
        .current_dir(directory)
        .args(words)
        .output()
        .expect("qemu-img runs");
    assert!(ran.status.success(), "qemu-img {words:?}: {ran:?}");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

fn make_images(directory: &Path) {
    for name in ["a.raw", "g.raw"] {
        let file = File::create(directory.join(name)).expect("a file");
        file.set_len(16 * MIB).expect("a size");
    }
    std::os::unix::fs::symlink("a.raw", directory.join("a.lnk")).expect("a link");
    for name in ["q.qcow2", "b.qcow2", "o.qcow2"] {
        qemu_img(directory, &["create", "-f", "qcow2", name, "16M"]);
    }
}

/// What a daemon says to every line of the script.
fn play(program: Program) -> Vec<(String, Value)> {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    make_images(scratch.path());
    let groups = ["tg", "tg2"].map(|id| format!("throttle-group,id={id}"));
    let words = ["--object", &groups[0], "--object", &groups[1]];
    let mut daemon = Daemon::start(program, scratch.path(), &words);
    let lines = SCRIPT.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (verb, arguments) = line.split_once(' ').expect("a verb and its arguments");
            let arguments: Value = serde_json::from_str(arguments).expect("JSON");
            let answer = match verb {
                "+" => daemon.say("blockdev-add", &arguments),
                "=" => daemon.say("blockdev-reopen", &json!({ "options": arguments })),
                other => panic!("no verb: {other}"),
            };
            (line.to_owned(), answer)
        })
        .collect()
}

#[test]
fn every_answer_is_that_of_qemu() {
    let storage_daemon = Need::Program("qemu-storage-daemon");
    if !needs(&[storage_daemon, Need::Program("qemu-img")]) {
        return;
    }
    let (ours, theirs) = (play(Program::Ringback), play(Program::Qemu));
    let done = |answers: &[(String, Value)]| {
        let answers = answers.iter();
        answers.filter(|(_, answer)| *answer == json!({})).count()
    };
    assert!(done(&theirs) > 40, "most of it can be done");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn an_empty_list_is_refused() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &[]);
    let answer = daemon.say("blockdev-reopen", &json!({ "options": [] }));
    assert_eq!(
        answer["error"]["desc"],
        "Parameter 'options' must name at least one node"
    );
}

/// Access modes of a process's descriptors of a file.
fn modes(pid: u32, path: &Path) -> Vec<u32> {
    let wanted = std::fs::metadata(path).expect("the file");
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let mut modes = Vec::new();
    for descriptor in descriptors {
        let descriptor = descriptor.expect("an entry").path();
        let is_it = std::fs::metadata(&descriptor)
            .is_ok_and(|data| (data.dev(), data.ino()) == (wanted.dev(), wanted.ino()));
        if !is_it {
            continue;
        }
        let number = descriptor.file_name().expect("a number").to_string_lossy();
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        let info = info.expect("its state");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.expect("flags").trim(), 8).expect("octal");
        modes.push(flags & 3);
    }
    modes
}

/// What `qemu-io` says when it opens an image; empty if it can.
fn opening(directory: &Path, words: &[&str]) -> String {
    let ran = Command::new("qemu-io")
        .current_dir(directory)
        .args(words)
        .args(["-c", "length", "q.qcow2"])
        .output()
        .expect("qemu-io runs");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.success(), said.is_empty(), "{said}");
    said
}

/// The flags of the image's only bitmap, as they stand in the file.
fn bitmap_flags(directory: &Path) -> Value {
    let words = ["info", "-U", "--output=json", "q.qcow2"];
    let info: Value = serde_json::from_str(&qemu_img(directory, &words)).expect("JSON");
    info["format-specific"]["data"]["bitmaps"][0]["flags"].clone()
}

#[test]
fn files_locks_and_bitmaps_follow_read_only() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    qemu_img(directory, &["create", "-f", "qcow2", "q.qcow2", "16M"]);
    let mut daemon = Daemon::start(Program::Ringback, directory, &[]);
    let file = |read_only: bool| {
        json!({ "driver": "file", "node-name": "f", "filename": "q.qcow2",
                "read-only": read_only })
    };
    let image = |read_only: bool| json!({ "driver": "qcow2", "node-name": "q", "file": "f", "read-only": read_only });
    daemon.ask("blockdev-add", &file(false));
    daemon.ask("blockdev-add", &image(false));
    let bitmap = json!({ "node": "q", "name": "dirty", "persistent": true });
    daemon.ask("block-dirty-bitmap-add", &bitmap);
    daemon.human("qemu-io q \"write -P 7 1M 64k\"");
    let path = directory.join("q.qcow2");
    for list in [
        [image(true), file(true)],
        [file(false), image(false)],
        [file(true), image(true)],
        [image(false), file(false)],
    ] {
        daemon.ask("blockdev-reopen", &json!({ "options": list }));
        let nodes = daemon.ask("query-named-block-nodes", &json!({ "flat": true }));
        let is_read_only = nodes[0]["ro"] == true;
        assert_eq!(nodes[1]["ro"], nodes[0]["ro"]);
        assert_eq!(nodes[0]["dirty-bitmaps"][0]["count"], 65536);
        if is_read_only {
            assert_eq!(modes(daemon.pid(), &path), [0]);
            assert_eq!(bitmap_flags(directory), json!(["auto"]));
            assert_eq!(opening(directory, &["-r"]), "");
            let refused = opening(directory, &[]);
            assert!(
                refused.contains("Failed to get \"write\" lock"),
                "{refused}"
            );
        } else {
            assert_eq!(modes(daemon.pid(), &path), [2]);
            assert_eq!(bitmap_flags(directory), json!(["in-use", "auto"]));
            let refused = opening(directory, &["-r"]);
            let text = "Failed to get shared \"write\" lock";
            assert!(refused.contains(text), "{refused}");
        }
    }
    daemon.ask("blockdev-del", &json!({ "node-name": "q" }));
    daemon.ask("blockdev-del", &json!({ "node-name": "f" }));
    assert_eq!(modes(daemon.pid(), &path), [0; 0]);
    assert_eq!(bitmap_flags(directory), json!(["auto"]));
    qemu_img(directory, &["check", "q.qcow2"]);
}

#[test]
fn what_libvirt_opens_is_opened() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    qemu_img(scratch.path(), &["create", "-f", "qcow2", "q.qcow2", "4M"]);
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &[]);
    let cache = json!({ "direct": true, "no-flush": false });
    let storage = json!({ "driver": "file", "filename": "q.qcow2",
        "node-name": "libvirt-1-storage", "auto-read-only": true, "discard": "unmap",
        "cache": cache });
    let format = json!({ "node-name": "libvirt-1-format", "read-only": false,
        "discard": "unmap", "cache": cache, "driver": "qcow2", "file": "libvirt-1-storage" });
    daemon.ask("blockdev-add", &storage);
    daemon.ask("blockdev-add", &format);
    let nodes = daemon.ask("query-named-block-nodes", &json!({}));
    assert_eq!(nodes[1]["ro"], false);
    assert_eq!(nodes[1]["cache"]["direct"], true);
}

#[test]
fn a_file_that_may_not_be_written_is_opened_read_only() {
    // Not even root may write it.
    let name = "/sys/kernel/uevent_seqnum";
    let may_write = File::options().write(true).open(name).is_ok();
    if may_write || !Path::new(name).exists() {
        println!("skipped: needs a file that nobody may write ({name})");
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &[]);
    let mut file = json!({ "driver": "file", "node-name": "f", "filename": name,
                           "auto-read-only": true });
    daemon.ask("blockdev-add", &file);
    let nodes = daemon.ask("query-named-block-nodes", &json!({}));
    assert_eq!(nodes[0]["ro"], true);
    daemon.ask("blockdev-reopen", &json!({ "options": [file] }));
    file["auto-read-only"] = false.into();
    let refused = daemon.say("blockdev-reopen", &json!({ "options": [file] }));
    assert_eq!(
        refused["error"]["desc"],
        format!("Could not open '{name}': Permission denied")
    );
}

#[test]
fn children_inside_follow_their_parent_and_go_when_they_are_replaced() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    make_raw(scratch.path());
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &[]);
    let inside = json!({ "driver": "file", "filename": "a.raw", "node-name": "inner" });
    let mut raw = json!({ "driver": "raw", "node-name": "r", "file": inside });
    daemon.ask("blockdev-add", &raw);
    let other = json!({ "driver": "file", "filename": "g.raw", "node-name": "g" });
    daemon.ask("blockdev-add", &other);
    raw["file"] = json!("inner");
    raw["read-only"] = true.into();
    daemon.ask("blockdev-reopen", &json!({ "options": [raw] }));
    let state = |daemon: &mut Daemon| -> Vec<(String, bool, String)> {
        let nodes = daemon.ask("query-named-block-nodes", &json!({}));
        let nodes = nodes.as_array().expect("a list").iter();
        nodes
            .map(|node| {
                let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
                (text("node-name"), node["ro"] == true, text("file"))
            })
            .collect()
    };
    let found = state(&mut daemon);
    assert!(
        found.contains(&("inner".into(), true, "a.raw".into())),
        "{found:?}"
    );
    raw["file"] = json!("g");
    raw["read-only"] = false.into();
    daemon.ask("blockdev-reopen", &json!({ "options": [raw] }));
    let mut found = state(&mut daemon);
    found.sort();
    assert_eq!(
        found,
        [
            ("g".into(), false, "g.raw".into()),
            ("r".into(), false, "g.raw".into())
        ]
    );
}

fn make_raw(directory: &Path) {
    for name in ["a.raw", "g.raw"] {
        let file = File::create(directory.join(name)).expect("a file");
        file.set_len(MIB).expect("a size");
    }
}

#[test]
fn nodes_change_under_a_running_job() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    make_raw(scratch.path());
    let words = ["--object", "throttle-group,id=tg"];
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    let add = |daemon: &mut Daemon, node: Value| daemon.ask("blockdev-add", &node);
    let file =
        |name: &str, path: &str| json!({ "driver": "file", "node-name": name, "filename": path });
    add(&mut daemon, file("f", "a.raw"));
    add(&mut daemon, file("t", "g.raw"));
    let raw = |below: &str| json!({ "driver": "raw", "node-name": "r", "file": below });
    add(&mut daemon, raw("f"));
    add(
        &mut daemon,
        json!({ "driver": "throttle", "node-name": "slow", "throttle-group": "tg", "file": "f" }),
    );
    daemon.human("qemu-io r \"write -P 5 0 1M\"");
    let backup = json!({ "job-id": "j", "device": "r", "target": "t", "sync": "full",
                         "filter-node-name": "filter", "speed": 65536 });
    daemon.ask("blockdev-backup", &backup);
    for below in ["slow", "f", "slow"] {
        daemon.ask("blockdev-reopen", &json!({ "options": [raw(below)] }));
        // Whoever writes must come through the job's filter.
        let said = daemon.human("qemu-io filter \"write -P 6 512k 4k\"");
        assert_eq!(said, "");
    }
    let fast = json!({ "device": "j", "speed": 0 });
    daemon.ask("block-job-set-speed", &fast);
    daemon.ask_until("query-jobs", |jobs| *jobs == json!([]));
    let copied = std::fs::read(scratch.path().join("g.raw")).expect("the target");
    assert!(copied.iter().all(|&byte| byte == 5), "the disk as it was");
    let source = std::fs::read(scratch.path().join("a.raw")).expect("the source");
    assert_eq!(source[512 * 1024], 6);
}
