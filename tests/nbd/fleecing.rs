//! A point in time, read from outside while guests write.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use ringback_block::protocol::nbd::wire::{Request, command};
use ringback_tests::image::noise;
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::wait_for;
use ringback_tests::qmp::{Daemon, Program};
use serde_json::{Value, json};

use crate::wire::{Answer, Client, Mode, request};
use crate::{MIB, SOCKET, program, scratch};

const NEEDED: &[Need] = &[
    Need::Program("qemu-img"),
    Need::Program("qemu-io"),
    Need::Program("nbdcopy"),
];
const DISK: u64 = 16 * MIB;
const BLOCK: u64 = 4096;
/// How far guests write.
const REWRITTEN: u64 = 10 * MIB;

/// A guest that writes random blocks, one after the other, until it is stopped.
struct Guest {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Guest {
    fn start(socket: PathBuf, export: &'static str, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = spawn(move || {
            let mut client = Client::go(&socket, Mode::Simple, export, &[]);
            let mut random = seed;
            while !stopped.load(Ordering::Relaxed) {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(seed | 1);
                let block = (random >> 33) % (REWRITTEN / BLOCK);
                let bytes = noise(random, BLOCK);
                let write = request(command::WRITE, block * BLOCK, BLOCK);
                assert_eq!(client.request(write, &bytes), Answer::Bytes(Vec::new()));
                count.fetch_add(1, Ordering::Relaxed);
                // A guest that leaves the machine something for the others.
                sleep(Duration::from_micros(500));
            }
        });
        Self {
            stop,
            written,
            thread,
        }
    }

    /// Waits until it has written so many blocks more.
    fn writes(&self, count: u64) {
        let goal = self.written.load(Ordering::Relaxed) + count;
        wait_for("a guest's writes", || {
            self.written.load(Ordering::Relaxed) >= goal
        });
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a guest without errors");
    }
}

fn make(directory: &Path, name: &str, seed: u64) {
    let raw = directory.join("seed.raw");
    std::fs::write(&raw, noise(seed, DISK)).expect("a file");
    let convert = [
        "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "seed.raw", name,
    ];
    program(directory, &convert);
}

fn nodes(names: &[&str]) -> Vec<String> {
    let mut words = vec![
        "--nbd-server".into(),
        format!("addr.type=unix,addr.path={SOCKET},max-connections=0"),
    ];
    for name in names {
        words.push("--blockdev".into());
        words.push(format!(
            "qcow2,node-name={name},file.driver=file,file.filename={name}.qcow2"
        ));
        words.push("--export".into());
        words.push(format!("nbd,id=guest-{name},node-name={name},writable=on"));
    }
    words
}

fn daemon(directory: &Path, names: &[&str]) -> Daemon {
    let words = nodes(names);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Daemon::start(Program::Ringback, directory, &words)
}

fn uri(directory: &Path, export: &str) -> String {
    format!(
        "nbd+unix:///{export}?socket={}",
        directory.join(SOCKET).display()
    )
}

fn copy(directory: &Path, export: &str, file: &str) {
    let from = uri(directory, export);
    program(
        directory,
        &["nbdcopy", "--connections=4", "--requests=16", &from, file],
    );
}

fn equal(directory: &Path, one: &str, other: &str) {
    program(directory, &["qemu-img", "compare", "-U", one, other]);
}

/// A new image above a disk, to which the old data of the disk goes.
fn add_overlay(daemon: &mut Daemon, directory: &Path, disk: &str) -> String {
    let name = format!("fleece-{disk}");
    let file = format!("{name}.qcow2");
    let backing = format!("{disk}.qcow2");
    let create = [
        "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", &backing, "-F", "qcow2",
    ];
    let size = DISK.to_string();
    program(directory, &[&create[..], &[&file, &size]].concat());
    let node = json!({
        "driver": "qcow2", "node-name": name, "backing": disk,
        "file": { "driver": "file", "filename": file },
    });
    daemon.qmp.run("blockdev-add", &node);
    name
}

fn export(daemon: &mut Daemon, node: &str, more: &Value) {
    let mut export = json!({ "type": "nbd", "id": node, "node-name": node });
    for (name, value) in more.as_object().expect("an object") {
        export[name] = value.clone();
    }
    daemon.qmp.run("block-export-add", &export);
}

#[test]
fn an_overlay_shows_the_point_in_time_under_a_guests_writes() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    make(directory, "a.qcow2", 1);
    program(directory, &["cp", "seed.raw", "expected.raw"]);
    let mut daemon = daemon(directory, &["a"]);
    let overlay = add_overlay(&mut daemon, directory, "a");
    // A client that was there before.
    export(&mut daemon, &overlay, &json!({}));
    let mut early = Client::go(&directory.join(SOCKET), Mode::Structured, &overlay, &[]);
    let backup = json!({ "job-id": "j", "device": "a", "target": overlay, "sync": "none" });
    daemon.qmp.run("blockdev-backup", &backup);
    let guest = Guest::start(directory.join(SOCKET), "a", 3);
    guest.writes(50);
    for round in 0..4 {
        let name = format!("copy-{round}.raw");
        copy(directory, &overlay, &name);
        equal(directory, &name, "expected.raw");
        guest.writes(100);
    }
    let expected = noise(1, DISK);
    for at in (0..DISK).step_by(1 << 20) {
        let answer = early.request(request(command::READ, at, BLOCK), &[]);
        let from = usize::try_from(at).expect("small");
        assert!(
            answer == Answer::Bytes(expected[from..from + 4096].to_vec()),
            "{at}"
        );
    }
    drop(early);
    guest.stop();
    let del = json!({ "id": overlay, "mode": "hard" });
    daemon.qmp.run("block-export-del", &del);
    daemon
        .qmp
        .run("block-job-cancel", &json!({ "device": "j" }));
    daemon
        .qmp
        .wait_event("BLOCK_JOB_CANCELLED", |_| true, deadline());
    let _ = daemon.quit();
    program(directory, &["qemu-img", "check", "-q", "a.qcow2"]);
}

/// A device that lets nobody else write does not forbid the overlay below which it
/// writes itself: what it overwrites is saved first.
#[test]
fn an_overlay_of_the_disk_of_a_device() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    make(directory, "a.qcow2", 1);
    let words = [
        "--nbd-server",
        &format!("addr.type=unix,addr.path={SOCKET}"),
        "--blockdev",
        "qcow2,node-name=a,file.driver=file,file.filename=a.qcow2",
        "--device",
        "virtio-scsi,id=scsi0",
        "--device",
        "scsi-hd,id=hd0,drive=a",
    ];
    let filter = json!({
        "driver": "copy-before-write", "node-name": "cbw", "file": "a", "target": "fleece-a",
    });
    let backup = json!({ "job-id": "j", "device": "a", "target": "fleece-a", "sync": "none" });
    for by_job in [true, false] {
        program(directory, &["cp", "a.qcow2", "before.qcow2"]);
        let mut daemon = Daemon::start(Program::Ringback, directory, &words);
        let overlay = add_overlay(&mut daemon, directory, "a");
        if by_job {
            daemon.qmp.run("blockdev-backup", &backup);
        } else {
            daemon.qmp.run("blockdev-add", &filter);
            let set = json!({ "path": "hd0", "property": "drive", "value": "cbw" });
            daemon.qmp.run("qom-set", &set);
        }
        export(&mut daemon, &overlay, &json!({}));
        let pattern = if by_job { 7 } else { 8 };
        let line = format!("qemu-io -d hd0 \"write -P {pattern} 1000k 3M\"");
        let line = json!({ "command-line": line });
        assert_eq!(daemon.qmp.run("human-monitor-command", &line), "");
        copy(directory, &overlay, "copy.raw");
        equal(directory, "copy.raw", "before.qcow2");
        let _ = daemon.quit();
        let read = format!("read -P {pattern} 1000k 3M");
        let said = program(directory, &["qemu-io", "-r", "-c", &read, "a.qcow2"]);
        assert!(!said.contains("failed"), "{said}");
    }
}

fn deadline() -> std::time::Instant {
    std::time::Instant::now() + ringback_tests::process::LIMIT
}

/// The dirty extents of an export's bitmap.
fn dirty(socket: &Path, export: &str, bitmap: &str) -> Vec<(u64, u64)> {
    let context = format!("qemu:dirty-bitmap:{bitmap}");
    let mut client = Client::go(socket, Mode::Structured, export, &[&context]);
    let question = request(command::BLOCK_STATUS, 0, DISK);
    let Answer::Status(contexts) = client.request(question, &[]) else {
        panic!("no extents");
    };
    let mut offset = 0;
    let mut found = Vec::new();
    for &(len, flags) in &contexts[0].1 {
        if flags & 1 != 0 {
            found.push((offset, len));
        }
        offset += len;
    }
    assert_eq!(offset, DISK, "the whole disk in one answer");
    found
}

/// Reads only what is dirty, over several connections, into a file.
fn copy_dirty(socket: &Path, export: &str, bitmap: &str, file: &Path) -> u64 {
    use std::os::unix::fs::FileExt;
    let extents = dirty(socket, export, bitmap);
    let file = std::fs::OpenOptions::new().write(true).open(file);
    let file = Arc::new(file.expect("a file"));
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    for (offset, len) in extents {
        let pieces_of = (offset..offset + len).step_by(256 << 10);
        pieces.extend(pieces_of.map(|at| (at, (offset + len - at).min(256 << 10))));
    }
    let total = pieces.iter().map(|(_, len)| len).sum();
    std::thread::scope(|scope| {
        for part in pieces.chunks(pieces.len().div_ceil(3).max(1)) {
            let file = Arc::clone(&file);
            scope.spawn(move || {
                let mut client = Client::go(socket, Mode::Structured, export, &[]);
                for &(offset, len) in part {
                    let read = request(command::READ, offset, len);
                    let Answer::Bytes(bytes) = client.request(read, &[]) else {
                        panic!("{offset} {len} cannot be read");
                    };
                    file.write_all_at(&bytes, offset).expect("written");
                }
            });
        }
    });
    total
}

/// The names of a round: the bitmap that records from its start on.
fn bitmap_of(round: usize) -> String {
    format!("round{round}")
}

/// From one instant on: fleecing of both disks begins, their bitmaps stop to
/// record and new ones begin.
fn begin_round(daemon: &mut Daemon, overlays: &[String; 2], round: usize) {
    let mut actions = Vec::new();
    for (disk, overlay) in ["a", "b"].iter().zip(overlays) {
        let new = json!({ "node": disk, "name": bitmap_of(round) });
        actions.push(json!({ "type": "block-dirty-bitmap-add", "data": new }));
        if round > 0 {
            let old = json!({ "node": disk, "name": bitmap_of(round - 1) });
            actions.push(json!({ "type": "block-dirty-bitmap-disable", "data": old }));
        }
        let backup = json!({
            "job-id": format!("job-{disk}"), "device": disk, "target": overlay, "sync": "none",
        });
        actions.push(json!({ "type": "blockdev-backup", "data": backup }));
    }
    daemon
        .qmp
        .run("transaction", &json!({ "actions": actions }));
}

fn end_round(daemon: &mut Daemon, overlays: &[String; 2], round: usize) {
    for (disk, overlay) in ["a", "b"].iter().zip(overlays) {
        let deletion = json!({ "id": overlay, "mode": "hard" });
        daemon.qmp.run("block-export-del", &deletion);
        let is_it = |data: &Value| data["id"] == overlay.as_str();
        daemon
            .qmp
            .wait_event("BLOCK_EXPORT_DELETED", is_it, deadline());
        let job = format!("job-{disk}");
        daemon
            .qmp
            .run("block-job-cancel", &json!({ "device": job }));
        let is_it = |data: &Value| data["device"] == job.as_str();
        daemon
            .qmp
            .wait_event("BLOCK_JOB_CANCELLED", is_it, deadline());
        daemon
            .qmp
            .run("blockdev-del", &json!({ "node-name": overlay }));
        if round > 0 {
            let old = json!({ "node": disk, "name": bitmap_of(round - 1) });
            daemon.qmp.run("block-dirty-bitmap-remove", &old);
        }
    }
}

#[test]
fn a_chain_of_three_backups_of_two_disks_at_one_instant() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    for (name, seed) in [("a.qcow2", 1), ("b.qcow2", 2)] {
        make(directory, name, seed);
    }
    let mut daemon = daemon(directory, &["a", "b"]);
    let socket = directory.join(SOCKET);
    let guests = [
        Guest::start(socket.clone(), "a", 5),
        Guest::start(socket.clone(), "b", 7),
    ];
    for round in 0..3 {
        guests.iter().for_each(|guest| guest.writes(30));
        let overlays = ["a", "b"].map(|disk| add_overlay(&mut daemon, directory, disk));
        begin_round(&mut daemon, &overlays, round);
        for (disk, overlay) in ["a", "b"].iter().zip(&overlays) {
            let bitmaps = match round {
                0 => json!([]),
                _ => json!([{ "node": disk, "name": bitmap_of(round - 1) }]),
            };
            export(&mut daemon, overlay, &json!({ "bitmaps": bitmaps }));
        }
        guests.iter().for_each(|guest| guest.writes(30));
        for (disk, overlay) in ["a", "b"].iter().zip(&overlays) {
            let backup = format!("{disk}-backup.raw");
            if round == 0 {
                copy(directory, overlay, &backup);
            } else {
                let bitmap = bitmap_of(round - 1);
                let bytes = copy_dirty(&socket, overlay, &bitmap, &directory.join(&backup));
                assert!((BLOCK..=REWRITTEN).contains(&bytes), "{bytes} are dirty");
            }
            // The point in time as a whole, read by somebody else.
            copy(directory, overlay, "whole.raw");
            equal(directory, &backup, "whole.raw");
        }
        end_round(&mut daemon, &overlays, round);
    }
    guests.into_iter().for_each(Guest::stop);
    let _ = daemon.quit();
    for disk in ["a.qcow2", "b.qcow2"] {
        program(directory, &["qemu-img", "check", "-q", disk]);
    }
}

#[test]
fn what_may_not_be_read_and_what_is_dropped() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    make(directory, "a.qcow2", 1);
    program(
        directory,
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "target.qcow2",
            "16M",
        ],
    );
    let mut daemon = daemon(directory, &[]);
    let mut run = |command: &str, arguments: Value| daemon.qmp.run(command, &arguments);
    let qcow2 = |name: &str| {
        json!({
            "driver": "qcow2", "node-name": name,
            "file": { "driver": "file", "filename": format!("{name}.qcow2") },
        })
    };
    run("blockdev-add", qcow2("a"));
    run("blockdev-add", qcow2("target"));
    run(
        "block-dirty-bitmap-add",
        json!({ "node": "a", "name": "b" }),
    );
    // Only the second megabyte is marked.
    run(
        "block-export-add",
        json!({ "type": "nbd", "id": "mark", "node-name": "a", "writable": true }),
    );
    let socket = directory.join(SOCKET);
    let mut marker = Client::go(&socket, Mode::Simple, "a", &[]);
    let bytes = noise(9, MIB);
    let mark = request(command::WRITE, MIB, MIB);
    assert_eq!(marker.request(mark, &bytes), Answer::Bytes(Vec::new()));
    drop(marker);
    wait_for("an export without clients", || {
        daemon
            .qmp
            .execute("block-export-del", &json!({ "id": "mark" }))
            .is_ok()
    });
    let mut run = |command: &str, arguments: Value| daemon.qmp.run(command, &arguments);
    let filter = json!({
        "driver": "copy-before-write", "node-name": "cbw", "file": "a", "target": "target",
        "bitmap": { "node": "a", "name": "b" },
    });
    run("blockdev-add", filter);
    run(
        "blockdev-add",
        json!({
            "driver": "snapshot-access", "node-name": "snap", "file": "cbw", "discard": "unmap",
        }),
    );
    run(
        "block-export-add",
        json!({ "type": "nbd", "id": "guest", "node-name": "cbw", "writable": true }),
    );
    run(
        "block-export-add",
        json!({ "type": "nbd", "id": "snap", "node-name": "snap", "writable": true }),
    );
    let mut guest = Client::go(&socket, Mode::Simple, "cbw", &[]);
    let mut reader = Client::go(&socket, Mode::Structured, "snap", &["base:allocation"]);
    let read = |offset| request(command::READ, offset, 65536);
    // EACCES has no number in NBD.
    let refused = reader.request(read(0), &[]);
    assert!(matches!(refused, Answer::Error(22, _)), "{refused:?}");
    let status = request(command::BLOCK_STATUS, 0, MIB);
    let refused = reader.request(status, &[]);
    assert_eq!(refused, Answer::Error(22, "can't get block status".into()));
    let refused = reader.request(request(command::WRITE, MIB, 512), &[0; 512]);
    assert!(matches!(refused, Answer::Error(95, _)), "{refused:?}");
    // What is marked, before and after the guest overwrites it.
    let whole = |at: u64| {
        let from = usize::try_from(at - MIB).expect("small");
        Answer::Bytes(bytes[from..from + 65536].to_vec())
    };
    assert!(reader.request(read(MIB), &[]) == whole(MIB));
    let overwrite = |offset| request(command::WRITE, offset, 65536);
    for offset in [MIB, MIB + 65536] {
        let done = guest.request(overwrite(offset), &[3; 65536]);
        assert_eq!(done, Answer::Bytes(Vec::new()));
    }
    assert!(reader.request(read(MIB), &[]) == whole(MIB));
    // What the client gives up cannot be read again, and is saved no more.
    let before = allocated(directory);
    let drop_rest = Request {
        len: MIB - 131_072,
        ..request(command::TRIM, MIB + 131_072, 0)
    };
    assert_eq!(reader.request(drop_rest, &[]), Answer::Bytes(Vec::new()));
    for offset in (MIB + 131_072..2 * MIB).step_by(65536) {
        let refused = reader.request(read(offset), &[]);
        assert!(matches!(refused, Answer::Error(22, _)), "{offset}");
        let done = guest.request(overwrite(offset), &[4; 65536]);
        assert_eq!(done, Answer::Bytes(Vec::new()));
    }
    assert!(reader.request(read(MIB + 65536), &[]) == whole(MIB + 65536));
    assert_eq!(allocated(directory), before, "nothing more is saved");
    drop((guest, reader));
    let _ = daemon.quit();
}

/// Bytes that the target holds.
fn allocated(directory: &Path) -> u64 {
    ringback_tests::image::allocated(&directory.join("target.qcow2"))
}
