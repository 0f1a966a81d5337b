//! A copy-before-write filter under a device, put in and taken out while the
//! device writes; the state of that moment is read beside it.

use ringback_tests::image::content;
use ringback_tests::qmp::Program;
use serde_json::{Value, json};

use crate::beside::{Talk, beside};

const DEVICE: &[&str] = &[
    "--blockdev",
    "file,node-name=disk,filename=disk",
    "--blockdev",
    "file,node-name=saved,filename=blank",
    "--device",
    "virtio-scsi,id=scsi0",
    "--device",
    "scsi-hd,id=hd0,drive=disk",
];

fn filter() -> Value {
    json!({
        "driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "saved",
    })
}

fn access() -> Value {
    json!({ "driver": "snapshot-access", "node-name": "snap", "file": "cbw" })
}

fn drive(talk: &mut Talk, node: &str) {
    let set = json!({ "path": "hd0", "property": "drive", "value": node });
    talk.ask("qom-set", &set);
}

fn del(talk: &mut Talk, node: &str) {
    talk.ask("blockdev-del", &json!({ "node-name": node }));
}

/// A line for the device's shell, without an error before it runs.
#[track_caller]
fn device(talk: &mut Talk, command: &str) {
    let said = talk.shell(&format!("qemu-io -d hd0 \"{command}\""));
    assert_eq!(said, "", "{command}");
}

#[track_caller]
fn snapshot(talk: &mut Talk, command: &str) {
    let said = talk.shell(&format!("qemu-io snap \"{command}\""));
    assert_eq!(said, "", "{command}");
}

#[test]
fn under_load() {
    let mut talk = Talk::start(Program::Ringback, DEVICE);
    let before = content(&talk.directory().join("disk"));
    // A part with a pattern, to be looked for in the snapshot.
    device(&mut talk, "write -P 0x11 0 256k");
    device(&mut talk, "aio_write -P 0x22 256k 256k");
    talk.ask("blockdev-add", &filter());
    drive(&mut talk, "cbw");
    talk.ask("blockdev-add", &access());
    device(&mut talk, "aio_write -P 0x33 0 256k");
    device(&mut talk, "aio_write -P 0x34 300k 100k");
    snapshot(&mut talk, "read -P 0x11 0 256k");
    snapshot(&mut talk, "read -P 0x22 256k 256k");
    device(&mut talk, "aio_flush");
    device(&mut talk, "read -P 0x33 0 256k");
    snapshot(&mut talk, "read -P 0x11 0 256k");
    // In flight when the filter goes.
    device(&mut talk, "aio_write -P 0x44 64k 512k");
    let still = json!({ "path": "hd0", "property": "drive", "value": "disk" });
    let why = talk.refused("qom-set", &still);
    let text = "Permission conflict on node 'disk'";
    assert!(why.starts_with(text), "{why}");
    del(&mut talk, "snap");
    drive(&mut talk, "disk");
    del(&mut talk, "cbw");
    del(&mut talk, "saved");
    device(&mut talk, "aio_flush");
    device(&mut talk, "read -P 0x44 64k 512k");
    let (_, stdout, scratch) = talk.finish_with_output();
    assert!(!stdout.contains("failed"), "{stdout}");
    assert!(!stdout.contains("Pattern verification"), "{stdout}");
    let after = content(&scratch.join("disk"));
    let full = |from: usize, to: usize, byte: u8| {
        after[from << 10..to << 10]
            .iter()
            .all(|&found| found == byte)
    };
    assert!(full(0, 64, 0x33), "written under the filter");
    assert!(full(64, 576, 0x44), "written while the filter went");
    assert!(after[576 << 10..] == before[576 << 10..], "not written");
}

#[test]
fn again_and_again_under_load() {
    let mut talk = Talk::start(Program::Ringback, DEVICE);
    for round in 1..=10u32 {
        let old = round;
        let new = 0x80 + round;
        device(&mut talk, &format!("write -P {old} 0 512k"));
        device(&mut talk, &format!("aio_write -P {old} 512k 512k"));
        talk.ask("blockdev-add", &filter());
        drive(&mut talk, "cbw");
        talk.ask("blockdev-add", &access());
        for part in 0..8 {
            device(
                &mut talk,
                &format!("aio_write -P {new} {}k 128k", part * 128),
            );
            snapshot(&mut talk, &format!("read -P {old} {}k 128k", part * 128));
        }
        snapshot(&mut talk, &format!("read -P {old} 0 1M"));
        del(&mut talk, "snap");
        drive(&mut talk, "disk");
        del(&mut talk, "cbw");
    }
    device(&mut talk, "aio_flush");
    let (_, stdout, scratch) = talk.finish_with_output();
    assert!(!stdout.contains("failed"), "{stdout}");
    assert!(!stdout.contains("Pattern verification"), "{stdout}");
    let after = content(&scratch.join("disk"));
    assert!(after.iter().all(|&byte| byte == 0x8a));
    // What the last filter has saved.
    let saved = content(&scratch.join("blank"));
    assert!(saved.iter().all(|&byte| byte == 10));
}

#[test]
fn a_backup_of_the_snapshot() {
    let words = [
        DEVICE,
        &["--blockdev", "file,node-name=dst,filename=blank2"],
    ]
    .concat();
    let mut talk = Talk::start(Program::Ringback, &words);
    let before = content(&talk.directory().join("disk"));
    talk.ask("blockdev-add", &filter());
    drive(&mut talk, "cbw");
    talk.ask("blockdev-add", &access());
    device(&mut talk, "write -P 0x55 100k 300k");
    let backup = json!({ "job-id": "j", "device": "snap", "target": "dst", "sync": "full" });
    talk.ask("blockdev-backup", &backup);
    device(&mut talk, "aio_write -P 0x56 0 1M");
    talk.until("j", "null");
    let (lines, scratch) = talk.finish_as_it_was();
    assert!(
        !lines.iter().any(|line| line.contains("\"error\"")),
        "{lines:#?}"
    );
    assert!(content(&scratch.join("blank2")) == before);
}

#[test]
fn what_is_refused() {
    let words = [
        "--blockdev",
        "file,node-name=disk,filename=disk",
        "--blockdev",
        "file,node-name=saved,filename=blank",
        "--blockdev",
        "file,node-name=ro,filename=blank2,read-only=on",
    ];
    beside(&words, |talk| {
        for (member, value) in [
            ("file", json!("zz")),
            ("target", json!("zz")),
            ("target", json!("ro")),
            ("bitmap", json!({ "node": "disk", "name": "zz" })),
            ("bitmap", json!({ "node": "zz", "name": "zz" })),
            ("bitmap", json!("zz")),
            ("min-cluster-size", json!(1000)),
            ("min-cluster-size", json!("64k")),
            ("cbw-timeout", json!("soon")),
            ("on-cbw-error", json!("bogus")),
            ("bogus", json!(1)),
        ] {
            let mut options = filter();
            options[member] = value;
            talk.refused("blockdev-add", &options);
        }
        let mut options = filter();
        options.as_object_mut().expect("an object").remove("target");
        talk.refused("blockdev-add", &options);
        talk.ask("blockdev-add", &filter());
        talk.ask("blockdev-add", &access());
        let nodes = talk.look("query-named-block-nodes", &json!({ "flat": true }));
        let nodes = nodes.as_array().expect("a list").iter();
        let drivers: Vec<&Value> = nodes.map(|node| &node["drv"]).collect();
        let expected = [
            "snapshot-access",
            "copy-before-write",
            "file",
            "file",
            "file",
        ];
        assert_eq!(drivers, expected);
        for node in ["disk", "saved", "cbw"] {
            talk.refused("blockdev-del", &json!({ "node-name": node }));
        }
        for node in ["snap", "cbw", "saved", "disk"] {
            talk.ask("blockdev-del", &json!({ "node-name": node }));
        }
    });
}

/// A target that takes next to nothing: what guests overwrite is in memory.
#[test]
fn a_target_that_is_too_slow() {
    let mut talk = Talk::start(Program::Ringback, DEVICE);
    let limits = |bytes: u64| json!({ "bps-write": bytes });
    let group = json!({ "qom-type": "throttle-group", "id": "slow", "limits": limits(1) });
    talk.ask("object-add", &group);
    let throttle = json!({
        "driver": "throttle", "node-name": "slowed", "throttle-group": "slow", "file": "saved",
    });
    talk.ask("blockdev-add", &throttle);
    device(&mut talk, "write -P 0x11 0 1M");
    let mut options = filter();
    options["target"] = json!("slowed");
    options["on-cbw-error"] = json!("break-snapshot");
    talk.ask("blockdev-add", &options);
    drive(&mut talk, "cbw");
    talk.ask("blockdev-add", &access());
    for part in 0..8 {
        device(&mut talk, &format!("write -P 0x22 {}k 4k", part * 100));
    }
    device(&mut talk, "write -P 0x33 801k 3k");
    snapshot(&mut talk, "read -P 0x11 0 1M");
    device(&mut talk, "read -P 0x22 700k 4k");
    device(&mut talk, "read -P 0x33 801k 3k");
    let saved = content(&talk.directory().join("blank"));
    assert!(
        saved[700 << 10..704 << 10].iter().all(|&byte| byte != 0x11),
        "the target has not had the time for it"
    );
    let faster = json!({ "path": "slow", "property": "limits", "value": limits(0) });
    talk.ask("qom-set", &faster);
    del(&mut talk, "snap");
    drive(&mut talk, "disk");
    del(&mut talk, "cbw");
    let (_, stdout, scratch) = talk.finish_with_output();
    assert!(!stdout.contains("failed"), "{stdout}");
    assert!(!stdout.contains("Pattern verification"), "{stdout}");
    let saved = content(&scratch.join("blank"));
    for start in [0, 100, 200, 300, 400, 500, 600, 700, 800].map(|kib| kib << 10) {
        let block = &saved[start..start + (4 << 10)];
        assert!(block.iter().all(|&byte| byte == 0x11), "at {start}");
    }
}

#[test]
fn a_save_buffer_where_guests_must_hear_of_failed_saves() {
    let mut talk = Talk::start(Program::Ringback, DEVICE);
    let mut options = filter();
    options["save-buffer"] = json!(1 << 20);
    let backup = json!({
        "job-id": "j", "device": "disk", "target": "saved", "sync": "full", "save-buffer": 4096,
    });
    for why in [
        talk.refused("blockdev-add", &options),
        talk.refused("blockdev-backup", &backup),
    ] {
        let text = "save-buffer needs on-cbw-error=break-snapshot";
        assert!(why.starts_with(text), "{why}");
    }
    options["save-buffer"] = json!(-1);
    talk.refused("blockdev-add", &options);
    // None at all is what that is.
    options["save-buffer"] = json!(0);
    talk.ask("blockdev-add", &options);
    del(&mut talk, "cbw");
    let _ = talk.finish_as_it_was();
}
