//! Nodes by command: how they come and go, what is refused and in which words,
//! how they look. The same with `qemu-storage-daemon`.

use ringback_tests::qmp::Program;
use serde_json::{Value, json};

use crate::beside::{Talk, beside, with};

fn add(talk: &mut Talk, options: &Value) {
    talk.ask("blockdev-add", options);
}

fn file(name: &str) -> Value {
    json!({ "driver": "file", "node-name": name, "filename": "disk" })
}

fn del(name: &str) -> Value {
    json!({ "node-name": name })
}

#[test]
fn as_queries_show_them() {
    beside(&[], |talk| {
        add(talk, &file("f"));
        add(
            talk,
            &json!({ "driver": "raw", "node-name": "r", "file": "f" }),
        );
        let blank = json!({ "driver": "file", "filename": "blank", "read-only": true });
        let nested = json!({
            "driver": "raw", "node-name": "nested", "read-only": true, "file": blank,
        });
        add(talk, &nested);
        add(
            talk,
            &json!({ "driver": "null-co", "node-name": "n", "size": 1000 }),
        );
        for flat in [false, true] {
            talk.ask("query-named-block-nodes", &json!({ "flat": flat }));
        }
        talk.ask("query-block", &json!({}));
    });
}

#[test]
fn what_is_not_added() {
    let null = json!({ "driver": "null-co", "size": 1 << 20 });
    let lines = beside(&[], |talk| {
        let mut refused = |options: &Value| {
            talk.refused("blockdev-add", options);
        };
        refused(&null);
        for name in ["", "1a", "a b", "#x", "a/b", "ä", &"x".repeat(32)] {
            refused(&with(&null, &json!({ "node-name": name })));
        }
        refused(&json!({ "node-name": "n" }));
        refused(&json!({ "driver": "bogus", "node-name": "n" }));
        refused(&json!({ "driver": 1, "node-name": "n" }));
        refused(&with(&null, &json!({ "node-name": "n", "bogus": 1 })));
        refused(&with(&null, &json!({ "node-name": "n", "size": "1M" })));
        refused(&with(&null, &json!({ "node-name": "n", "latency-ns": -1 })));
        refused(&json!({ "driver": "file", "node-name": "f" }));
        refused(&json!({ "driver": "file", "node-name": "f", "filename": "" }));
        refused(&json!({ "driver": "file", "node-name": "f", "filename": "nope" }));
        refused(&json!({ "driver": "file", "node-name": "f", "filename": "." }));
        refused(&json!({ "driver": "file", "node-name": "f", "filename": "file:disk" }));
        refused(&json!({ "driver": "raw", "node-name": "r" }));
        refused(&json!({ "driver": "raw", "node-name": "r", "file": "nope" }));
        refused(&json!({ "driver": "raw", "node-name": "r", "file": "r" }));
        refused(&json!({ "driver": "raw", "node-name": "r", "file": "" }));
        refused(&json!({ "driver": "raw", "node-name": "r", "file": 1 }));
        let nested = json!({ "driver": "file", "filename": "nope" });
        refused(&json!({ "driver": "raw", "node-name": "r", "file": nested }));
        let nested = json!({ "driver": "file", "filename": "disk", "bogus": 1 });
        refused(&json!({ "driver": "raw", "node-name": "r", "file": nested }));
        let nested = json!({ "driver": "file", "filename": "disk" });
        refused(&json!({ "driver": "qcow2", "node-name": "q", "file": nested }));
        for (offset, size) in [(0, 1000), (1 << 21, 512), (512, 1 << 20)] {
            let part = json!({
                "driver": "raw", "node-name": "r", "offset": offset, "size": size,
                "file": nested,
            });
            refused(&part);
        }
        refused(&json!({ "driver": "raw", "node-name": "r", "offset": -1, "file": nested }));
        let zeroes = json!({ "node-name": "n", "detect-zeroes": "unmap" });
        refused(&with(&null, &zeroes));
    });
    let text = "< GenericError: 'node-name' must be specified for the root node";
    assert_eq!(lines[1], text);
}

#[test]
fn names_and_locks_that_are_taken() {
    beside(&[], |talk| {
        add(talk, &file("f"));
        talk.refused("blockdev-add", &file("f"));
        talk.refused(
            "blockdev-add",
            &json!({ "driver": "raw", "node-name": "f", "file": "f" }),
        );
        talk.refused(
            "blockdev-add",
            &json!({ "driver": "raw", "node-name": "f", "file": "nope" }),
        );
        add(
            talk,
            &json!({ "driver": "raw", "node-name": "r1", "file": "f" }),
        );
        add(
            talk,
            &json!({ "driver": "raw", "node-name": "r2", "file": "f" }),
        );
        talk.ask("blockdev-del", &del("r1"));
        talk.ask("blockdev-del", &del("r2"));
        talk.ask("blockdev-del", &del("f"));
        add(talk, &file("f"));
    });
}

#[test]
fn deleted() {
    beside(&[], |talk| {
        talk.refused("blockdev-del", &del("nope"));
        talk.refused("blockdev-del", &json!({}));
        add(talk, &file("f"));
        add(
            talk,
            &json!({ "driver": "raw", "node-name": "r", "file": "f" }),
        );
        talk.refused("blockdev-del", &del("f"));
        let nested = json!({ "driver": "file", "node-name": "in", "filename": "blank" });
        add(
            talk,
            &json!({ "driver": "raw", "node-name": "out", "file": nested }),
        );
        talk.refused("blockdev-del", &del("in"));
        talk.ask("blockdev-del", &del("out"));
        talk.refused("blockdev-del", &del("in"));
        add(
            talk,
            &json!({ "driver": "file", "node-name": "dst", "filename": "blank" }),
        );
        let backup = json!({
            "job-id": "j", "device": "r", "target": "dst", "sync": "none",
            "filter-node-name": "flt",
        });
        talk.ask("blockdev-backup", &backup);
        for name in ["r", "dst", "flt", "f"] {
            talk.refused("blockdev-del", &del(name));
        }
        talk.ask("job-cancel", &json!({ "id": "j" }));
        talk.until("j", "null");
        for name in ["dst", "r", "f"] {
            talk.ask("blockdev-del", &del(name));
        }
        talk.ask("query-named-block-nodes", &json!({}));
    });
}

/// Images over others, made by jobs.
fn chain(talk: &mut Talk) {
    for name in ["base", "top"] {
        let image = json!({ "driver": "file", "filename": name, "size": 0 });
        talk.ask(
            "blockdev-create",
            &json!({ "job-id": "c", "options": image }),
        );
        talk.until("c", "concluded");
        talk.ask("job-dismiss", &json!({ "id": "c" }));
        let node = format!("{name}f");
        add(
            talk,
            &json!({ "driver": "file", "node-name": node, "filename": name }),
        );
        let format = json!({ "driver": "qcow2", "file": node, "size": 1 << 20 });
        talk.ask(
            "blockdev-create",
            &json!({ "job-id": "c", "options": format }),
        );
        talk.until("c", "concluded");
        talk.ask("job-dismiss", &json!({ "id": "c" }));
    }
    add(
        talk,
        &json!({ "driver": "qcow2", "node-name": "base", "file": "basef" }),
    );
}

#[test]
fn over_others() {
    beside(&[], |talk| {
        chain(talk);
        let top = json!({ "driver": "qcow2", "node-name": "top", "file": "topf" });
        add(talk, &with(&top, &json!({ "backing": null })));
        talk.refused(
            "blockdev-snapshot",
            &json!({ "node": "zz", "overlay": "top" }),
        );
        talk.refused(
            "blockdev-snapshot",
            &json!({ "node": "base", "overlay": "zz" }),
        );
        talk.ask(
            "blockdev-snapshot",
            &json!({ "node": "base", "overlay": "top" }),
        );
        talk.refused("blockdev-del", &del("base"));
        let nodes = talk.look("query-named-block-nodes", &json!({ "flat": true }));
        assert_eq!(nodes[0]["node-name"], "top", "{nodes}");
        assert_eq!(nodes[0]["backing_file"], "base", "{nodes}");
        talk.ask("blockdev-del", &del("top"));
        talk.ask("blockdev-del", &del("base"));
    });
}

#[test]
fn a_second_writer_of_an_image() {
    beside(&[], |talk| {
        chain(talk);
        talk.refused(
            "blockdev-add",
            &json!({ "driver": "qcow2", "node-name": "second", "file": "basef" }),
        );
        add(
            talk,
            &json!({ "driver": "raw", "node-name": "raw", "file": "basef" }),
        );
    });
}

#[test]
fn their_size() {
    beside(&[], |talk| {
        chain(talk);
        let resize = |name: &str, size: i64| json!({ "node-name": name, "size": size });
        talk.refused("block_resize", &json!({ "size": 5 }));
        talk.refused("block_resize", &json!({ "device": "base", "size": 5 }));
        talk.refused("block_resize", &resize("zz", 512));
        talk.refused("block_resize", &resize("base", -1));
        talk.ask("block_resize", &resize("base", 1 << 21));
        add(talk, &file("f"));
        add(
            talk,
            &json!({ "driver": "raw", "node-name": "r", "file": "f" }),
        );
        talk.ask("block_resize", &resize("r", 1 << 21));
        talk.ask("block_resize", &resize("f", 1 << 19));
        add(
            talk,
            &json!({ "driver": "null-co", "node-name": "n", "size": 512 }),
        );
        talk.refused("block_resize", &resize("n", 1024));
        talk.ask("query-named-block-nodes", &json!({ "flat": true }));
    });
}

#[test]
fn their_devices() {
    let mut talk = Talk::start(
        Program::Ringback,
        &[
            "--drive",
            "if=none,id=d0,file=disk,format=raw,node-name=n0",
            "--device",
            "virtio-scsi,id=scsi0",
            "--device",
            "scsi-hd,id=hd0,drive=d0",
            "--device",
            "scsi-cd,id=cd0",
        ],
    );
    let block = talk.ask("query-block", &json!({}));
    assert_eq!(block[0]["device"], "d0", "{block}");
    assert_eq!(block[0]["qdev"], "hd0", "{block}");
    assert_eq!(block[0]["inserted"]["node-name"], "n0", "{block}");
    assert_eq!(block[1]["qdev"], "cd0", "{block}");
    assert_eq!(block[1].get("inserted"), None, "{block}");
    add(
        &mut talk,
        &json!({ "driver": "file", "node-name": "b", "filename": "blank" }),
    );
    let device = json!({ "driver": "virtio-blk-pci", "id": "vd0", "drive": "b" });
    talk.ask("device_add", &device);
    let why = talk.refused("device_add", &device);
    assert_eq!(why, "Duplicate device ID 'vd0'");
    let why = talk.refused("blockdev-del", &del("b"));
    assert_eq!(why, "Node b is in use");
    let get = json!({ "path": "vd0", "property": "drive" });
    assert_eq!(talk.ask("qom-get", &get), "b");
    let set = |node: &str| json!({ "path": "vd0", "property": "drive", "value": node });
    let why = talk.refused("qom-set", &set("zz"));
    assert_eq!(why, "Cannot find device='' nor node-name='zz'");
    add(
        &mut talk,
        &json!({ "driver": "null-co", "node-name": "null", "size": 1 << 20 }),
    );
    talk.ask("qom-set", &set("null"));
    assert_eq!(talk.ask("qom-get", &get), "null");
    talk.ask("blockdev-del", &del("b"));
    talk.ask("device_del", &json!({ "id": "vd0" }));
    talk.until_event("DEVICE_DELETED");
    talk.ask("blockdev-del", &del("null"));
    let why = talk.say("device_del", &json!({ "id": "vd0" }));
    let why = why.expect_err("a device that is gone");
    assert_eq!(why.class, "DeviceNotFound");
    talk.finish();
}
