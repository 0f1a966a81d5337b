//! What a backup's guest may feel: given with the job, changed while it runs,
//! asked for. QEMU has nothing of it, so nothing here is compared.

use ringback_tests::process;
use ringback_tests::qmp::Program;
use serde_json::{Value, json};

use crate::beside::{Talk, with};

const DISKS: &[&str] = &[
    "--blockdev",
    "file,node-name=src,filename=disk",
    "--blockdev",
    "file,node-name=dst,filename=blank",
    "--device",
    "virtio-blk-pci,id=vd,drive=src",
];

fn backup(perf: &Value) -> Value {
    let perf = with(&json!({ "max-workers": 4, "max-chunk": 65536 }), perf);
    json!({
        "job-id": "j", "device": "src", "target": "dst", "sync": "full",
        // It does not end by itself in a test's time.
        "speed": 1, "x-perf": perf,
    })
}

fn latency(talk: &mut Talk) -> Value {
    talk.ask("x-query-block-job-latency", &json!({ "device": "j" }))
}

/// Asks until the answer is as wanted: the job takes a change at its next tick.
fn wait_for(talk: &mut Talk, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let mut answer = Value::Null;
    process::wait_for(what, || {
        answer = latency(talk);
        is_wanted(&answer)
    });
    answer
}

fn set(talk: &mut Talk, more: &Value) {
    let arguments = with(&json!({ "device": "j" }), more);
    talk.ask("x-block-job-set-latency-target", &arguments);
}

fn end(mut talk: Talk) {
    talk.ask("job-cancel", &json!({ "id": "j" }));
    talk.until("j", "null");
    talk.finish_as_it_was();
}

#[test]
fn the_job_finds_it_by_itself() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    talk.ask("blockdev-backup", &backup(&json!({})));
    let answer = wait_for(&mut talk, "a depth", |answer| answer["depth"] != 0);
    assert_eq!(answer["automatic"], true, "{answer}");
    assert!(answer["latency-target"].as_u64() > Some(0), "{answer}");
    assert_eq!(answer["chunk"], 65536, "{answer}");
    assert_eq!(answer.get("guest-p99"), None, "{answer}");
    end(talk);
}

#[test]
fn a_guest_is_noticed() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    talk.ask(
        "blockdev-backup",
        &backup(&json!({ "latency-target": 3_000_000 })),
    );
    let write = r#"qemu-io -d /machine/peripheral/vd/virtio-backend "write -P 7 512k 4k""#;
    assert_eq!(talk.shell(write), "");
    let answer = wait_for(&mut talk, "a latency", |answer| {
        answer.get("guest-p99").is_some()
    });
    assert_eq!(answer["latency-target"], 3_000_000, "{answer}");
    assert_eq!(answer["automatic"], false, "{answer}");
    end(talk);
}

#[test]
fn zero_is_no_bound() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    talk.ask("blockdev-backup", &backup(&json!({ "latency-target": 0 })));
    let answer = wait_for(&mut talk, "the depth", |answer| answer["depth"] == 4);
    assert_eq!(answer["latency-target"], 0, "{answer}");
    assert_eq!(answer["automatic"], false, "{answer}");
    end(talk);
}

#[test]
fn it_can_be_changed_while_the_job_runs() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    talk.ask("blockdev-backup", &backup(&json!({ "latency-target": 0 })));
    for target_ns in [5_000_000, 0, 700_000] {
        set(&mut talk, &json!({ "latency-target": target_ns }));
        let answer = wait_for(&mut talk, "the target", |answer| {
            answer["latency-target"] == target_ns
        });
        assert_eq!(answer["automatic"], false, "{answer}");
    }
    set(&mut talk, &json!({}));
    assert_eq!(latency(&mut talk)["automatic"], true);
    end(talk);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    let negative = "latency-target must be zero (which means any latency) or positive";
    let why = talk.refused("blockdev-backup", &backup(&json!({ "latency-target": -1 })));
    assert_eq!(why, negative);
    let unknown = json!({ "device": "j", "latency-target": 1 });
    for command in [
        "x-block-job-set-latency-target",
        "x-query-block-job-latency",
    ] {
        let arguments = if command.starts_with("x-query") {
            json!({ "device": "j" })
        } else {
            unknown.clone()
        };
        let why = talk.refused(command, &arguments);
        assert_eq!(why, "Block job 'j' not found");
    }
    talk.ask("blockdev-backup", &backup(&json!({})));
    let why = talk.refused(
        "x-block-job-set-latency-target",
        &json!({ "device": "j", "latency-target": -5 }),
    );
    assert_eq!(why, negative);
    end(talk);
}
