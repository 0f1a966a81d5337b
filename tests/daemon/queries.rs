//! What queries answer, field by field beside `qemu-storage-daemon`, and where
//! that has no devices, as `qemu-system-x86_64` 10.0 answers.

use std::path::Path;
use std::process::Command;

use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::qmp::{Daemon, Program};

const QEMU: [Need; 2] = [
    Need::Program("qemu-storage-daemon"),
    Need::Program("qemu-img"),
];

fn qemu_img(directory: &Path, words: &[&str]) {
    let status = Command::new("qemu-img")
        .current_dir(directory)
        .args(words)
        .status()
        .expect("qemu-img can be run");
    assert!(status.success(), "{words:?}");
}

fn raw(directory: &Path, name: &str, len: u64) {
    let file = std::fs::File::create(directory.join(name)).expect("a file");
    file.set_len(len).expect("its length");
}

fn file(name: &str) -> Value {
    json!({ "driver": "file", "filename": name })
}

/// Images for [`nodes`].
fn images(directory: &Path) {
    raw(directory, "a.raw", 4 << 20);
    raw(directory, "target.raw", 4 << 20);
    raw(directory, "odd.raw", 1000);
    std::fs::create_dir(directory.join("sub")).expect("a directory");
    for words in [
        &["create", "-q", "-f", "qcow2", "base.qcow2", "4M"][..],
        &["bitmap", "--add", "base.qcow2", "on"],
        &[
            "bitmap",
            "--add",
            "-g",
            "32768",
            "--disable",
            "base.qcow2",
            "off",
        ],
        &["snapshot", "-c", "kept", "base.qcow2"],
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "top.qcow2",
        ],
        &[
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            "../base.qcow2",
            "-F",
            "qcow2",
            "sub/deep.qcow2",
            "4M",
        ],
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "compat=0.10",
            "old.qcow2",
            "4M",
        ],
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "compression_type=zstd,lazy_refcounts=on,extended_l2=on",
            "new.qcow2",
            "4M",
        ],
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "data_file=data.raw,data_file_raw=on",
            "split.qcow2",
            "4M",
        ],
    ] {
        qemu_img(directory, words);
    }
}

/// A node of every driver.
fn nodes() -> Vec<Value> {
    let read_only = true;
    vec![
        json!({ "node-name": "a", "driver": "raw", "file": file("a.raw") }),
        json!({ "node-name": "window", "driver": "raw", "offset": 512, "size": 1024,
            "file": { "driver": "null-co", "node-name": "default" } }),
        json!({ "node-name": "top", "driver": "qcow2", "file": file("top.qcow2") }),
        json!({ "node-name": "null", "driver": "null-co", "size": 4 << 20, "read-zeroes": true,
            "latency-ns": 1000 }),
        json!({ "node-name": "slow", "driver": "throttle", "throttle-group": "tg", "file": "a" }),
        json!({ "node-name": "bad", "driver": "blkdebug", "image": "null" }),
        json!({ "node-name": "cor", "driver": "copy-on-read", "file": "top" }),
        json!({ "node-name": "target", "driver": "raw", "discard": "unmap",
            "detect-zeroes": "unmap", "file": { "driver": "file", "filename": "target.raw",
                "discard": "unmap" } }),
        json!({ "node-name": "disk", "driver": "null-co", "size": 4 << 20 }),
        json!({ "node-name": "cbw", "driver": "copy-before-write", "file": "disk",
            "target": "target" }),
        json!({ "node-name": "past", "driver": "snapshot-access", "file": "cbw" }),
        json!({ "node-name": "old", "driver": "qcow2", "read-only": read_only,
            "file": file("old.qcow2") }),
        json!({ "node-name": "odd", "driver": "raw", "read-only": read_only,
            "file": { "driver": "file", "filename": "odd.raw", "node-name": "odd-file" } }),
        json!({ "node-name": "inner", "driver": "blkdebug", "config": "/dev/null",
            "image": { "driver": "raw", "file": { "driver": "null-co" } } }),
        json!({ "node-name": "new", "driver": "qcow2", "file": file("new.qcow2") }),
        json!({ "node-name": "over", "driver": "raw", "file": "new" }),
        json!({ "node-name": "split", "driver": "qcow2", "file": file("split.qcow2") }),
        json!({ "node-name": "careless", "driver": "null-co", "read-only": read_only,
            "cache": { "no-flush": true }, "detect-zeroes": "on" }),
        json!({ "node-name": "deep", "driver": "qcow2", "read-only": read_only,
            "file": file("sub/deep.qcow2"), "backing": null }),
    ]
}

/// Both daemons with the same nodes, each with images of its own.
fn both() -> [(Scratch, Daemon); 2] {
    [Program::Ringback, Program::Qemu].map(|program| {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
        images(scratch.path());
        let object = "throttle-group,id=tg,limits.bps-total=1000000";
        let mut daemon = Daemon::start(program, scratch.path(), &["--object", object]);
        for node in nodes() {
            daemon.ask("blockdev-add", &node);
        }
        (scratch, daemon)
    })
}

/// A file name; of one that is options the order of these does not count.
fn plain(name: &str) -> String {
    let Some(options) = name.strip_prefix("json:") else {
        return name.to_owned();
    };
    let options: Value = serde_json::from_str(options).expect("options");
    format!("json:{}", in_order(&options))
}

/// The same with sorted members.
fn in_order(value: &Value) -> Value {
    let Some(members) = value.as_object() else {
        return value.clone();
    };
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by_key(|(name, _)| *name);
    let sorted = members.into_iter();
    sorted
        .map(|(name, member)| (name.clone(), in_order(member)))
        .collect()
}

/// What nobody can count on is made equal: generated names, what a file system
/// takes for a file, when a snapshot was made.
fn settle(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (key, member) in members.iter_mut() {
                match key.as_str() {
                    "node-name" | "name"
                        if member
                            .as_str()
                            .is_some_and(|name| name.starts_with("#block")) =>
                    {
                        *member = "#".into();
                    }
                    "file" | "filename" if member.is_string() => {
                        *member = plain(member.as_str().unwrap_or_default()).into();
                    }
                    "actual-size" if member.as_u64() > Some(0) => *member = "some".into(),
                    "date-sec" | "date-nsec" => *member = 0.into(),
                    _ => settle(member),
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(settle),
        _ => {}
    }
}

fn settled(mut value: Value) -> Vec<Value> {
    settle(&mut value);
    value.as_array().expect("a list").clone()
}

#[track_caller]
fn assert_same(ours: &[Value], theirs: &[Value]) {
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs, "\n{ours:#}\n{theirs:#}");
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn nodes_of_every_driver_are_shown_as_by_qemu() {
    if !needs(&QEMU) {
        return;
    }
    let [(_ours, mut ours), (_theirs, mut theirs)] = both();
    for flat in [false, true] {
        let [ours, theirs] = [&mut ours, &mut theirs].map(|daemon| {
            let asked = json!({ "flat": flat });
            settled(daemon.ask("query-named-block-nodes", &asked))
        });
        assert_same(&ours, &theirs);
    }
    let [ours, theirs] = [&mut ours, &mut theirs].map(|daemon| {
        assert_eq!(daemon.ask("query-blockstats", &json!({})), json!([]));
        assert_eq!(daemon.ask("query-block", &json!({})), json!([]));
        settled(daemon.ask("query-blockstats", &json!({ "query-nodes": true })))
    });
    assert_same(&ours, &theirs);
}

/// What is taken of a target is passed on to the file below it.
fn is_target_file(nodes: &Value, edge: &Value) -> bool {
    let mut nodes = nodes.as_array().expect("a list").iter();
    nodes.any(|node| node["name"] == "target" && node["id"] == edge["parent"])
}

#[test]
fn the_graph_is_shown_as_by_qemu() {
    if !needs(&QEMU) {
        return;
    }
    let [(_ours, mut ours), (_theirs, mut theirs)] = both();
    let [ours, theirs] = [&mut ours, &mut theirs].map(|daemon| {
        let mut graph = daemon.ask("x-debug-query-block-graph", &json!({}));
        let names = graph["nodes"].clone();
        for edge in graph["edges"].as_array_mut().expect("a list") {
            // Nobody else may write to these here.
            let is_stricter = ["backing", "target", "data-file"].map(Value::from);
            if is_stricter.contains(&edge["name"]) || is_target_file(&names, edge) {
                edge["perm"] = Value::Null;
                edge["shared-perm"] = Value::Null;
            }
        }
        graph
    });
    for list in ["nodes", "edges"] {
        assert_same(&settled(ours[list].clone()), &settled(theirs[list].clone()));
    }
}

/// Commands about objects; of a list of properties the order does not count.
fn about_objects() -> Vec<(&'static str, Value)> {
    let add = |value: Value| ("object-add", value);
    let get =
        |path: &str, property: &str| ("qom-get", json!({ "path": path, "property": property }));
    let set = |path: &str, property: &str, value: Value| {
        (
            "qom-set",
            json!({ "path": path, "property": property, "value": value }),
        )
    };
    let list = |path: &str| ("qom-list", json!({ "path": path }));
    let place = |node: &str, thread: Value| {
        (
            "x-blockdev-set-iothread",
            json!({ "node-name": node, "iothread": thread }),
        )
    };
    vec![
        (
            "blockdev-add",
            json!({ "node-name": "n", "driver": "null-co" }),
        ),
        add(json!({ "qom-type": "throttle-group", "id": "tg", "limits": { "bps-total": 5 } })),
        add(json!({ "qom-type": "iothread", "id": "io" })),
        add(json!({ "qom-type": "iothread", "id": "bad", "poll-max-ns": -1 })),
        add(json!({ "qom-type": "secret", "id": "s", "data": "hello" })),
        add(json!({ "qom-type": "secret", "id": "s64", "data": "aGVsbG8=", "format": "base64" })),
        add(json!({ "qom-type": "secret", "id": "sf", "file": "secret" })),
        add(json!({ "qom-type": "secret", "id": "s", "file": "nope" })),
        add(json!({ "qom-type": "secret", "id": "bad", "file": "nope" })),
        add(json!({ "qom-type": "secret", "id": "bad", "file": "nope", "data": "x" })),
        add(json!({ "qom-type": "secret", "id": "bad" })),
        add(json!({ "qom-type": "bogus", "id": "bad" })),
        add(json!({ "qom-type": "iothread", "id": "1" })),
        list("/objects"),
        list("objects"),
        list("tg"),
        list("/objects/io"),
        list("s"),
        list("zz"),
        list(""),
        ("qom-list-types", json!({ "implements": "iothread" })),
        ("qom-list-types", json!({ "implements": "zz" })),
        get("tg", "limits"),
        get("tg", "x-bps-total"),
        get("tg", "type"),
        get("tg", "zz"),
        get("io", "poll-max-ns"),
        get("io", "thread-pool-max"),
        get("s", "data"),
        get("s", "file"),
        get("s64", "data"),
        get("s64", "format"),
        get("sf", "data"),
        get("sf", "file"),
        get("zz", "data"),
        get("/objects", "tg"),
        get("/", "type"),
        get("/objects", "zz"),
        set("tg", "limits", json!({ "iops-total": 7 })),
        set("tg", "limits", json!({ "iops-read": 1 })),
        set("tg", "limits", json!({ "zz": 1 })),
        set("tg", "limits", json!(5)),
        set("tg", "limits", json!({ "iops-total": "x" })),
        set("tg", "limits", json!({ "bps-total": -1 })),
        set("tg", "x-iops-total", json!(4)),
        set("tg", "zz", json!(4)),
        set("tg", "type", json!("x")),
        get("tg", "limits"),
        set("io", "poll-max-ns", json!(4)),
        set("io", "poll-max-ns", json!(-4)),
        set("io", "poll-max-ns", json!("x")),
        set("io", "thread-pool-max", json!(0)),
        get("io", "poll-max-ns"),
        set("s", "format", json!("zz")),
        set("s", "data", json!("other")),
        get("s", "data"),
        set("/objects", "tg", json!(1)),
        set("zz", "data", json!(1)),
        place("n", json!("io")),
        place("n", json!("zz")),
        place("zz", json!("io")),
        place("n", Value::Null),
        place("n", json!(5)),
        ("object-del", json!({ "id": "zz" })),
        ("object-del", json!({ "id": "io" })),
        ("object-del", json!({ "id": "s" })),
        ("object-del", json!({ "id": "tg" })),
        list("/objects"),
        (
            "block-set-write-threshold",
            json!({ "node-name": "zz", "write-threshold": 1 }),
        ),
        (
            "block-set-write-threshold",
            json!({ "node-name": "n", "write-threshold": 1 }),
        ),
    ]
}

#[test]
fn objects_answer_as_those_of_qemu() {
    if !needs(&QEMU) {
        return;
    }
    let [ours, theirs] = [Program::Ringback, Program::Qemu].map(|program| {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
        std::fs::write(scratch.join("secret"), "word").expect("a file");
        let mut daemon = Daemon::start(program, scratch.path(), &[]);
        let said = about_objects().into_iter().map(|(command, arguments)| {
            let mut answer = daemon.say(command, &arguments);
            if let Some(list) = answer.as_array_mut() {
                list.sort_by_key(|entry| entry["name"].to_string());
            }
            json!({ "command": command, "arguments": arguments, "answer": answer })
        });
        said.collect::<Vec<_>>()
    });
    assert_same(&ours, &theirs);
}

/// A daemon with a disk in a virtio device, one in a SCSI device, a drive
/// without a device and an empty one.
fn with_devices() -> (Scratch, Daemon) {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    raw(scratch.path(), "a.raw", 4 << 20);
    raw(scratch.path(), "b.raw", 4 << 20);
    let words = [
        "--drive",
        "if=none,id=d0,format=raw,file=a.raw,node-name=top",
        "--device",
        "virtio-blk-pci,drive=d0,id=vd0",
        "--drive",
        "if=none,id=d1,format=raw,file=b.raw,node-name=loose",
        "--drive",
        "if=none,id=empty",
        "--device",
        "scsi-cd,drive=empty,id=cd0",
        "--blockdev",
        "null-co,node-name=null,size=4194304",
        "--device",
        "scsi-hd,drive=null,id=hd0",
        "--object",
        "iothread,id=io0",
        "--object",
        "iothread,id=io1,poll-max-ns=7",
    ];
    let daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    (scratch, daemon)
}

/// The figures of a disk that are not 0.
fn figures(stats: &Value, device: usize) -> Value {
    let mut stats = stats[device]["stats"].clone();
    let members = stats.as_object_mut().expect("an object");
    members.retain(|key, value| {
        *value != json!(0) && !key.ends_with("total_time_ns") && !key.starts_with("account")
    });
    members.remove("timed_stats");
    stats
}

#[test]
fn requests_of_a_guest_count_and_others_do_not() {
    let (_scratch, mut daemon) = with_devices();
    let idle = daemon.ask("query-blockstats", &json!({}));
    let names: Vec<_> = idle
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| (entry["device"].clone(), entry["qdev"].clone()))
        .collect();
    let wanted = [
        (json!("d0"), json!("/machine/peripheral/vd0/virtio-backend")),
        (json!("d1"), Value::Null),
        (json!("empty"), json!("cd0")),
        (json!(""), json!("hd0")),
    ];
    assert_eq!(names, wanted);
    assert_eq!(figures(&idle, 0), json!({}));
    assert_eq!(idle[0]["parent"]["driver-specific"]["driver"], "file");
    assert_eq!(idle[0]["stats"]["account_failed"], true);

    daemon.human("qemu-io d0 \"write 8192 4096\"");
    daemon.human("qemu-io d0 \"read 0 4096\"");
    let stats = daemon.ask("query-blockstats", &json!({}));
    assert_eq!(figures(&stats, 0), json!({ "wr_highest_offset": 12288 }));
    assert_eq!(stats[0]["parent"]["stats"]["wr_highest_offset"], 12288);

    for command in [
        "aio_write 0 512",
        "aio_write 4M 512",
        "aio_read 0 1024",
        "aio_read -i 0 512",
        "aio_write -i 0 512",
        "aio_flush",
        "aio_write -z 0 4096",
    ] {
        daemon.human(&format!("qemu-io d0 \"{command}\""));
    }
    let stats = daemon.ask_until("query-blockstats", |stats| {
        let stats = &stats[0]["stats"];
        stats["wr_operations"] == 1
            && stats["rd_operations"] == 1
            && stats["failed_wr_operations"] == 1
            && stats["flush_operations"] == 1
    });
    let mut counted = figures(&stats, 0);
    assert!(counted["idle_time_ns"].is_u64(), "{counted}");
    counted["idle_time_ns"] = 0.into();
    let wanted = json!({
        "wr_highest_offset": 12288, "idle_time_ns": 0,
        "rd_operations": 1, "rd_bytes": 1024, "invalid_rd_operations": 1,
        "wr_operations": 1, "wr_bytes": 512, "failed_wr_operations": 1,
        "invalid_wr_operations": 1, "flush_operations": 1,
    });
    assert_eq!(counted, wanted);
    assert!(stats[0]["stats"]["wr_total_time_ns"].as_u64() > Some(0));
    assert_eq!(figures(&stats, 3), json!({}));

    // What was counted stays with the device that gets another node.
    let node = json!({ "node-name": "other", "driver": "null-co", "size": 4 << 20 });
    daemon.ask("blockdev-add", &node);
    let moved = json!({ "path": "hd0", "property": "drive", "value": "other" });
    daemon.human("qemu-io -d hd0 \"aio_read 0 512\"");
    daemon.ask_until("query-blockstats", |stats| {
        stats[3]["stats"]["rd_operations"] == 1
    });
    daemon.ask("qom-set", &moved);
    let stats = daemon.ask("query-blockstats", &json!({}));
    assert_eq!(stats[3]["node-name"], "other");
    assert_eq!(stats[3]["stats"]["rd_bytes"], 512);
}

#[test]
fn latencies_go_into_the_bins_that_were_asked_for() {
    let (_scratch, mut daemon) = with_devices();
    let command = "block-latency-histogram-set";
    let inner = "/machine/peripheral/vd0/virtio-backend";
    daemon.ask(
        command,
        &json!({ "id": inner, "boundaries": [10, 1_000_000_000_000_u64] }),
    );
    daemon.ask(
        command,
        &json!({ "id": "hd0", "boundaries": [], "boundaries-write": [5] }),
    );
    daemon.ask(command, &json!({ "id": "cd0", "boundaries-flush": [1] }));
    for (asked, class, text) in [
        (
            json!({ "id": "hd0", "boundaries-read": [5, 4] }),
            "GenericError",
            "Device 'hd0' set read boundaries fail",
        ),
        (
            json!({ "id": "hd0", "boundaries": [0] }),
            "GenericError",
            "Device 'hd0' set read boundaries fail",
        ),
        (
            json!({ "id": "hd0", "boundaries-write": [4, 4] }),
            "GenericError",
            "Device 'hd0' set write boundaries fail",
        ),
        (
            json!({ "id": "hd0", "boundaries-flush": [4, 4] }),
            "GenericError",
            "Device 'hd0' set flush boundaries fail",
        ),
        (
            json!({ "id": "hd0", "boundaries-zap": [4, 4] }),
            "GenericError",
            "Device 'hd0' set append write boundaries fail",
        ),
        (
            json!({ "id": "vd0", "boundaries": [4] }),
            "GenericError",
            "Device does not have a block device backend",
        ),
        (
            json!({ "id": "d0", "boundaries": [4] }),
            "DeviceNotFound",
            "Device 'd0' not found",
        ),
    ] {
        let answer = daemon.say(command, &asked);
        assert_eq!(answer["error"], json!({ "class": class, "desc": text }));
    }
    daemon.human("qemu-io d0 \"aio_read 0 512\"");
    daemon.human("qemu-io -d hd0 \"aio_read 0 512\"");
    let stats = daemon.ask_until("query-blockstats", |stats| {
        stats[0]["stats"]["rd_operations"] == 1 && stats[3]["stats"]["rd_operations"] == 1
    });
    let shown =
        |device: usize, kind: &str| &stats[device]["stats"][format!("{kind}_latency_histogram")];
    let boundaries = json!([10, 1_000_000_000_000_u64]);
    for (kind, bins) in [
        ("rd", [0, 1, 0]),
        ("wr", [0; 3]),
        ("flush", [0; 3]),
        ("zone_append", [0; 3]),
    ] {
        assert_eq!(
            *shown(0, kind),
            json!({ "boundaries": boundaries, "bins": bins }),
            "{kind}"
        );
    }
    assert_eq!(*shown(3, "rd"), json!({ "boundaries": [], "bins": [1] }));
    assert_eq!(
        *shown(3, "wr"),
        json!({ "boundaries": [5], "bins": [0, 0] })
    );
    assert_eq!(
        *shown(2, "flush"),
        json!({ "boundaries": [1], "bins": [0, 0] })
    );
    assert_eq!(*shown(2, "rd"), Value::Null);
    daemon.ask(command, &json!({ "id": "hd0" }));
    let stats = daemon.ask("query-blockstats", &json!({}));
    assert_eq!(stats[3]["stats"]["rd_latency_histogram"], Value::Null);
}

#[test]
fn a_write_behind_the_threshold_is_told_of_once() {
    let (_scratch, mut daemon) = with_devices();
    let asked = json!({ "node-name": "top", "write-threshold": 4096 });
    daemon.ask("block-set-write-threshold", &asked);
    let threshold = |daemon: &mut Daemon| {
        let nodes = daemon.ask("query-named-block-nodes", &json!({}));
        let mut nodes = nodes.as_array().expect("a list").iter();
        let top = nodes
            .find(|node| node["node-name"] == "top")
            .expect("it is there");
        top["write_threshold"].clone()
    };
    daemon.human("qemu-io d0 \"write 0 4096\"");
    assert_eq!(threshold(&mut daemon), 4096);
    daemon.human("qemu-io d0 \"write 4096 4096\"");
    daemon.human("qemu-io d0 \"write 8192 4096\"");
    assert_eq!(threshold(&mut daemon), 0);
    daemon.ask("query-version", &json!({}));
    let told: Vec<_> = daemon
        .events
        .iter()
        .filter(|event| event["event"] == "BLOCK_WRITE_THRESHOLD")
        .map(|event| event["data"].clone())
        .collect();
    let wanted = json!({ "node-name": "top", "write-threshold": 4096, "amount-exceeded": 4096 });
    assert_eq!(told, [wanted]);
}

#[test]
fn disks_are_shown_to_people() {
    let (_scratch, mut daemon) = with_devices();
    let wanted = "d0 (top): a.raw (raw)\r\n    \
                  Attached to:      /machine/peripheral/vd0/virtio-backend\r\n    \
                  Cache mode:       writeback\r\n\
                  \r\n\
                  d1 (loose): b.raw (raw)\r\n    \
                  Removable device: not locked, tray closed\r\n    \
                  Cache mode:       writeback\r\n\
                  \r\n\
                  empty: [not inserted]\r\n    \
                  Attached to:      cd0\r\n    \
                  Removable device: not locked, tray closed\r\n\
                  \r\n\
                  null: json:{\"driver\": \"null-co\", \"size\": 4194304} (null-co)\r\n    \
                  Attached to:      hd0\r\n    \
                  Cache mode:       writeback\r\n";
    assert_eq!(daemon.human("info block"), wanted);
    let wanted = "\r\nd1 (loose): b.raw (raw)\r\n    \
                  Removable device: not locked, tray closed\r\n    \
                  Cache mode:       writeback\r\n\
                  \r\n\
                  Images:\r\n\
                  image: b.raw\r\n\
                  file format: raw\r\n\
                  virtual size: 4 MiB (4194304 bytes)\r\n\
                  disk size: 0 B\r\n";
    assert_eq!(daemon.human("info block -v d1"), wanted);
    let node = daemon.human("info block -n null");
    assert!(node.starts_with("null: json:"), "{node}");
    assert!(!node.contains("Attached"), "{node}");
    assert_eq!(daemon.human("info block zz"), "");
    assert_eq!(daemon.human("info block hd0"), "");
    assert_eq!(daemon.human("info block -n d0"), "");
    let loose = daemon.human("info block loose");
    assert!(
        loose.ends_with("    Cache mode:       writeback\r\n"),
        "{loose}"
    );
    assert_eq!(daemon.human("info block-jobs"), "No active jobs\r\n");
}

#[test]
fn devices_stand_above_their_nodes_in_the_graph() {
    let (_scratch, mut daemon) = with_devices();
    let graph = daemon.ask("x-debug-query-block-graph", &json!({}));
    let nodes = graph["nodes"].as_array().expect("a list").iter().rev();
    let backends: Vec<_> = nodes
        .filter(|node| node["type"] == "block-backend")
        .map(|node| {
            (
                node["id"].as_u64(),
                node["name"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    let wanted = [
        (Some(1), "d0"),
        (Some(3), "d1"),
        (Some(5), "empty"),
        (Some(6), "hd0"),
    ];
    assert_eq!(backends, wanted);
    let edges = graph["edges"].as_array().expect("a list").iter();
    let roots: Vec<_> = edges
        .filter(|edge| edge["name"] == "root")
        .map(|edge| {
            (
                edge["parent"].as_u64(),
                edge["child"].as_u64(),
                &edge["perm"],
            )
        })
        .collect();
    let writes = json!(["write", "consistent-read"]);
    // Nobody writes through a drive without a device.
    let reads = json!(["consistent-read"]);
    let wanted = [
        (Some(6), Some(7), &writes),
        (Some(3), Some(4), &reads),
        (Some(1), Some(2), &writes),
    ];
    assert_eq!(roots, wanted);
}

#[test]
fn threads_are_listed_with_the_shards_that_they_name() {
    let (_scratch, mut daemon) = with_devices();
    let mut threads = daemon.ask("query-iothreads", &json!({}));
    for thread in threads.as_array_mut().expect("a list") {
        assert!(thread["thread-id"].as_u64() > Some(0), "{thread}");
        thread["thread-id"] = 1.into();
    }
    let entry = |id: &str, poll_max_ns: u64| {
        json!({
            "id": id, "thread-id": 1, "poll-max-ns": poll_max_ns, "poll-grow": 0,
            "poll-shrink": 0, "aio-max-batch": 0,
        })
    };
    assert_eq!(threads, json!([entry("io1", 7), entry("io0", 32768)]));
}
