//! What the engine measures of itself, asked over QMP and shown by `ringback report`.
//! QEMU has nothing of it, so nothing here is compared.

use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::process::{Finished, Running, wait_for};
use ringback_tests::qmp::Program;
use serde_json::{Value, json};

use crate::beside::Talk;

/// A guest's disk under a filter whose snapshot can be read, above a node that can
/// hold requests.
pub(crate) const SNAPSHOT: &[&str] = &[
    "--blockdev",
    "file,node-name=file,filename=disk",
    "--blockdev",
    "blkdebug,node-name=dbg,image=file",
    "--blockdev",
    "raw,node-name=src,file=dbg",
    "--blockdev",
    "file,node-name=saved,filename=blank",
    "--blockdev",
    "copy-before-write,node-name=cbw,file=src,target=saved",
    "--blockdev",
    "snapshot-access,node-name=snap,file=cbw",
    "--device",
    "virtio-scsi,id=scsi0",
    "--device",
    "scsi-hd,id=hd0,drive=cbw",
];

const CLASSES: [&str; 9] = [
    "cbw-save",
    "cbw-save-wait",
    "cbw-room-wait",
    "cbw-drain",
    "cbw-reader-wait",
    "snapshot-read",
    "copy-read",
    "copy-write",
    "drain-pause",
];

/// A command of the guest's, without an error before it runs.
#[track_caller]
pub(crate) fn guest(talk: &mut Talk, command: &str) {
    assert_eq!(talk.shell(&format!("qemu-io -d hd0 \"{command}\"")), "");
}

/// The same at a node.
#[track_caller]
fn at(talk: &mut Talk, node: &str, command: &str) {
    assert_eq!(talk.shell(&format!("qemu-io {node} \"{command}\"")), "");
}

/// The first change in so many clusters, and one change more of the same place.
#[track_caller]
pub(crate) fn overwrite(talk: &mut Talk, clusters: std::ops::Range<u32>) {
    for cluster in clusters {
        guest(talk, &format!("write -P 7 {}k 4k", cluster * 64));
        guest(talk, &format!("write -P 8 {}k 4k", cluster * 64));
    }
}

fn histograms(talk: &mut Talk, arguments: &Value) -> Vec<Value> {
    let answer = talk.ask("x-query-latency-histograms", arguments);
    answer.as_array().expect("a list").clone()
}

fn class(entries: &[Value], name: &str) -> Value {
    let found = entries.iter().find(|entry| entry["class"] == name);
    found
        .unwrap_or_else(|| panic!("{name}: {entries:?}"))
        .clone()
}

#[track_caller]
fn count(talk: &mut Talk, name: &str) -> u64 {
    let entries = histograms(talk, &json!({}));
    class(&entries, name)["count"].as_u64().expect("a count")
}

#[test]
fn a_class_without_operations_has_only_a_count() {
    let mut talk = Talk::start(Program::Ringback, SNAPSHOT);
    let entries = histograms(&mut talk, &json!({}));
    let wanted = CLASSES.map(|name| json!({ "class": name, "count": 0 }));
    assert_eq!(entries, wanted);
    talk.finish_as_it_was();
}

#[test]
fn first_changes_are_counted_and_nobody_waits_who_does_not_overlap() {
    let mut talk = Talk::start(Program::Ringback, SNAPSHOT);
    overwrite(&mut talk, 0..5);
    for offset in ["0", "512k", "640k"] {
        at(&mut talk, "snap", &format!("read {offset} 64k"));
    }
    let entries = histograms(&mut talk, &json!({ "reset": false }));
    for (name, wanted) in [
        ("cbw-save", 5),
        ("cbw-save-wait", 5),
        ("cbw-reader-wait", 0),
        ("snapshot-read", 3),
        ("copy-read", 5),
    ] {
        assert_eq!(class(&entries, name)["count"], wanted, "{name}");
    }
    let save = class(&entries, "cbw-save");
    let number = |name: &str| save[name].as_u64().expect("a number");
    let rising = ["min-ns", "p50-ns", "p90-ns", "p99-ns", "p999-ns", "max-ns"].map(number);
    assert!(rising[0] > 0 && rising.is_sorted(), "{save}");
    let mean = number("mean-ns");
    // The least is told exactly, the mean by the middles of what is not told apart.
    let (least, most) = (number("min-ns"), number("max-ns"));
    assert!(mean >= least - least / 100 && mean <= most, "{save}");
    // What all deflated histograms of the second version begin with.
    let text = save["histogram"].as_str().expect("a text");
    assert!(text.starts_with("HISTFAAA"), "{text}");
    talk.finish_as_it_was();
}

#[test]
fn who_overlaps_a_reader_waits_and_nobody_else() {
    let mut talk = Talk::start(Program::Ringback, SNAPSHOT);
    at(&mut talk, "src", "break read_aio A");
    at(&mut talk, "snap", "aio_read 0 64k");
    at(&mut talk, "src", "wait_break A");
    guest(&mut talk, "aio_write -P 1 0 4k");
    // Its old data is saved: now only the reader is in its way.
    wait_for("a save", || count(&mut talk, "cbw-save") == 1);
    guest(&mut talk, "write -P 2 512k 4k");
    assert_eq!(count(&mut talk, "cbw-save"), 2);
    assert_eq!(count(&mut talk, "cbw-reader-wait"), 0);
    assert_eq!(count(&mut talk, "snapshot-read"), 0);
    at(&mut talk, "src", "resume A");
    guest(&mut talk, "aio_flush");
    assert_eq!(count(&mut talk, "cbw-reader-wait"), 1);
    assert_eq!(count(&mut talk, "snapshot-read"), 1);
    talk.finish_as_it_was();
}

#[test]
fn a_reset_shows_what_was_and_counts_from_there() {
    let mut talk = Talk::start(Program::Ringback, SNAPSHOT);
    overwrite(&mut talk, 0..3);
    for _ in 0..2 {
        assert_eq!(count(&mut talk, "cbw-save"), 3, "a look changes nothing");
    }
    let entries = histograms(&mut talk, &json!({ "reset": true }));
    assert_eq!(class(&entries, "cbw-save")["count"], 3);
    let entries = histograms(&mut talk, &json!({}));
    let nothing = json!({ "class": "cbw-save", "count": 0 });
    assert_eq!(class(&entries, "cbw-save"), nothing);
    overwrite(&mut talk, 3..5);
    let entries = histograms(&mut talk, &json!({ "reset": true }));
    assert_eq!(class(&entries, "cbw-save")["count"], 2);
    assert_eq!(count(&mut talk, "cbw-save"), 0);
    talk.finish_as_it_was();
}

/// An NBD export `live` of the guest's disk, under an id of its own.
pub(crate) const EXPORTED: &[&str] = &[
    "--blockdev",
    "file,node-name=file,filename=disk",
    "--blockdev",
    "raw,node-name=src,file=file",
    "--nbd-server",
    "addr.type=unix,addr.path=nbd.sock",
    "--export",
    "nbd,id=vm,node-name=src,name=live,writable=on",
];

/// Commands of a client of that export.
#[track_caller]
pub(crate) fn client(talk: &Talk, options: &[&str], commands: &[&str]) {
    let mut io = Command::new(ringback());
    io.current_dir(talk.directory())
        .args(["io", "-f", "raw"])
        .args(options);
    for command in commands {
        io.args(["-c", command]);
    }
    io.arg("nbd+unix:///live?socket=nbd.sock");
    Running::start(&mut io).finish().succeeded();
}

fn of_export(entries: &[Value], name: &str) -> Vec<u64> {
    let entries = entries.iter().filter(|entry| entry["export"] == "vm");
    let entries = entries.filter(|entry| entry["class"] == name);
    let counts = entries.map(|entry| entry["count"].as_u64().expect("a count"));
    counts.collect()
}

#[test]
fn an_export_counts_what_its_clients_wait_for() {
    let mut talk = Talk::start(Program::Ringback, EXPORTED);
    let reset = json!({ "reset": true });
    client(
        &talk,
        &[],
        &["write 0 64k", "write -z 64k 64k", "discard 0 4k", "flush"],
    );
    let entries = histograms(&mut talk, &reset);
    assert_eq!(of_export(&entries, "export-write"), [2]);
    assert_eq!(of_export(&entries, "export-discard"), [1]);
    assert!(of_export(&entries, "export-flush")[0] >= 1);
    let written = entries
        .iter()
        .find(|entry| entry["class"] == "export-write");
    let longest = written.expect("it is there")["max-ns"].as_u64();
    assert!(longest.is_some_and(|longest| longest > 0));
    client(&talk, &[], &["read 0 4k"]);
    let entries = histograms(&mut talk, &json!({}));
    assert_eq!(of_export(&entries, "export-write"), [0]);
    let reads = of_export(&entries, "export-read")[0];
    assert!(reads >= 1);
    talk.ask("block-export-del", &json!({ "id": "vm" }));
    let entries = histograms(&mut talk, &reset);
    assert!(of_export(&entries, "export-read").is_empty());
    // Another one of the same id begins anew, also for who has asked before.
    let again = json!({
        "type": "nbd", "id": "vm", "node-name": "src", "name": "live", "writable": true,
    });
    talk.ask("block-export-add", &again);
    client(&talk, &[], &["write 0 4k"]);
    let entries = histograms(&mut talk, &json!({}));
    assert_eq!(of_export(&entries, "export-write"), [1]);
    talk.finish_as_it_was();
}

fn report(talk: &Talk, more: &[&str]) -> Finished {
    let mut command = Command::new(ringback());
    command
        .current_dir(talk.directory())
        .args(["report", "--qmp", "report.sock"])
        .args(more);
    Running::start(&mut command).finish()
}

#[test]
fn a_report_is_made_of_a_running_daemon() {
    let monitor = [
        "--chardev",
        "socket,id=r,path=report.sock,server=on,wait=off",
        "--monitor",
        "chardev=r",
    ];
    let export = [
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        "nbd,id=vm,node-name=snap,name=live",
    ];
    let words = [SNAPSHOT, &monitor[..], &export[..]].concat();
    let mut talk = Talk::start(Program::Ringback, &words);
    overwrite(&mut talk, 0..4);
    client(&talk, &["-r"], &["read 0 4k"]);
    let table = report(&talk, &["--reset", "--hgrm", "files"])
        .succeeded()
        .stdout;
    let row = |table: &str, name: &str| -> Vec<String> {
        let mut rows = table
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect());
        let found = rows.find(|row: &Vec<String>| row.first().is_some_and(|first| first == name));
        found.unwrap_or_else(|| panic!("{table}"))
    };
    for name in CLASSES {
        row(&table, name);
    }
    assert_eq!(row(&table, "cbw-save").last().unwrap(), "4", "{table}");
    let file = talk.directory().join("files/cbw-save.hgrm");
    let text = std::fs::read_to_string(file).expect("percentiles");
    assert!(text.contains("Total count    =            4]"), "{text}");
    let file = talk.directory().join("files/export-read-vm.hgrm");
    assert!(file.exists());
    assert_ne!(row(&table, "export-read-vm").last().unwrap(), "0");
    let table = report(&talk, &[]).succeeded().stdout;
    assert_eq!(row(&table, "cbw-save").last().unwrap(), "0", "{table}");
    talk.finish_as_it_was();
}

#[test]
fn a_report_of_nobody_fails() {
    let talk = Talk::start(Program::Ringback, &[]);
    report(&talk, &[]).failed_with(1).saying("report.sock");
    talk.finish_as_it_was();
}
