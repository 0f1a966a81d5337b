//! The life of jobs: their events, in order, and what each state answers. Every
//! session is also run with `qemu-storage-daemon`.

use ringback_tests::process::wait_for;
use ringback_tests::qmp::Program;
use serde_json::{Value, json};

use crate::beside::{Talk, beside, beside_by_job, events, with};

const LEN: u64 = 1 << 20;
/// A backup at this speed, one cluster after the other, does not end by itself
/// in a test's time.
const SLOW: u64 = 4096;

const DISKS: &[&str] = &[
    "--blockdev",
    "file,node-name=src,filename=disk",
    "--blockdev",
    "file,node-name=dst,filename=blank",
    "--blockdev",
    "file,node-name=dst2,filename=blank2",
];

fn start(talk: &mut Talk, more: &Value) {
    let backup = json!({
        "job-id": "j", "device": "src", "target": "dst", "sync": "full",
        "x-perf": { "max-workers": 1, "max-chunk": 65536 },
    });
    talk.ask("blockdev-backup", &with(&backup, more));
}

fn id() -> Value {
    json!({ "id": "j" })
}

fn device() -> Value {
    json!({ "device": "j" })
}

fn completed() -> String {
    ended("BLOCK_JOB_COMPLETED", &LEN.into(), 0)
}

fn cancelled(speed: u64) -> String {
    ended("BLOCK_JOB_CANCELLED", &Value::Null, speed)
}

fn ended(name: &str, offset: &Value, speed: u64) -> String {
    let data = json!({
        // By name, as they are compared.
        "device": "j", "len": LEN, "offset": offset, "speed": speed, "type": "backup",
    });
    format!("{name} {data}")
}

#[track_caller]
fn check(session: impl Fn(&mut Talk), expected: &[&str]) {
    let lines = beside(DISKS, session);
    assert_eq!(events(&lines), expected);
}

/// The end of the lines as they came, answers where they came.
#[track_caller]
fn check_end(session: impl Fn(&mut Talk), expected: &[&str]) {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    session(&mut talk);
    let (lines, _scratch) = talk.finish_as_it_was();
    let end = lines.len().saturating_sub(expected.len());
    assert_eq!(lines[end..], *expected);
}

#[test]
fn all_defaults() {
    check(
        |talk| {
            start(talk, &json!({}));
            talk.until("j", "null");
            talk.ask("query-jobs", &json!({}));
        },
        &[
            "j:created",
            "j:running",
            "j:waiting",
            "j:pending",
            &completed(),
            "j:concluded",
            "j:null",
        ],
    );
}

#[test]
fn the_first_events_come_before_the_answer() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    start(&mut talk, &json!({ "speed": SLOW }));
    let (lines, _scratch) = talk.finish_as_it_was();
    let first = ["j:created", "j:running", "j:paused", "j:running", "< {}"];
    assert_eq!(lines[1..6], first);
}

#[test]
fn dismissed_by_command() {
    let session = |talk: &mut Talk| {
        start(talk, &json!({ "auto-dismiss": false }));
        talk.until("j", "concluded");
        talk.ask("query-jobs", &json!({}));
        talk.ask("query-block-jobs", &json!({}));
        for verb in ["cancel", "pause", "complete", "finalize", "resume"] {
            talk.refused(&format!("job-{verb}"), &id());
        }
        let speed = json!({ "device": "j", "speed": 1 });
        talk.refused("block-job-set-speed", &speed);
        let again = json!({ "job-id": "j", "device": "src", "target": "dst", "sync": "full" });
        let why = talk.refused("blockdev-backup", &again);
        assert_eq!(why, "Job ID 'j' already in use");
        talk.ask("job-dismiss", &id());
        talk.refused("job-dismiss", &id());
        talk.ask("query-jobs", &json!({}));
    };
    let lines = beside(DISKS, session);
    assert_eq!(
        events(&lines)[2..],
        [
            "j:waiting",
            "j:pending",
            &completed(),
            "j:concluded",
            "j:null"
        ]
    );
    let why = "< GenericError: Job 'j' in state 'concluded' cannot accept command verb 'cancel'";
    assert!(lines.iter().any(|line| line == why), "{lines:#?}");
}

#[test]
fn finalized_by_command() {
    let session = |talk: &mut Talk| {
        start(talk, &json!({ "auto-finalize": false }));
        talk.until("j", "pending");
        talk.until_event("BLOCK_JOB_PENDING");
        talk.ask("query-jobs", &json!({}));
        talk.ask("query-block-jobs", &json!({}));
        for verb in ["pause", "complete", "dismiss"] {
            talk.refused(&format!("job-{verb}"), &id());
        }
        talk.ask("job-finalize", &id());
    };
    check(
        session,
        &[
            "j:created",
            "j:running",
            "j:waiting",
            "j:pending",
            r#"BLOCK_JOB_PENDING {"id":"j","type":"backup"}"#,
            &completed(),
            "j:concluded",
            "j:null",
        ],
    );
    check_end(
        session,
        &[
            r#"> job-finalize {"id":"j"}"#,
            &completed(),
            "j:concluded",
            "j:null",
            "< {}",
        ],
    );
}

#[test]
fn finalized_and_dismissed_by_command() {
    check(
        |talk| {
            start(
                talk,
                &json!({ "auto-finalize": false, "auto-dismiss": false }),
            );
            talk.until("j", "pending");
            talk.ask("block-job-finalize", &id());
            talk.until("j", "concluded");
            talk.ask("block-job-dismiss", &id());
        },
        &[
            "j:created",
            "j:running",
            "j:waiting",
            "j:pending",
            r#"BLOCK_JOB_PENDING {"id":"j","type":"backup"}"#,
            &completed(),
            "j:concluded",
            "j:null",
        ],
    );
}

const CANCELLED: [&str; 3] = ["j:created", "j:running", "j:aborting"];

#[test]
fn cancelled_while_running() {
    for (command, arguments) in [
        ("job-cancel", id()),
        ("block-job-cancel", device()),
        ("block-job-cancel", json!({ "device": "j", "force": true })),
    ] {
        for finalizes in [true, false] {
            check(
                |talk| {
                    start(talk, &json!({ "speed": SLOW, "auto-finalize": finalizes }));
                    talk.ask(command, &arguments);
                    talk.until("j", "null");
                },
                &[&CANCELLED[..], &[&cancelled(SLOW), "j:concluded", "j:null"]].concat(),
            );
        }
    }
}

#[test]
fn a_cancelled_job_tells_why_it_ended() {
    let lines = beside(DISKS, |talk| {
        start(talk, &json!({ "speed": SLOW, "auto-dismiss": false }));
        talk.ask("job-cancel", &id());
        talk.until("j", "concluded");
        let jobs = talk.look("query-jobs", &json!({}));
        assert_eq!(jobs[0]["error"], "Operation canceled", "{jobs}");
        let jobs = talk.look("query-block-jobs", &json!({}));
        assert_eq!(jobs[0]["error"], "Operation canceled", "{jobs}");
        talk.ask("job-dismiss", &id());
    });
    assert_eq!(events(&lines).last(), Some(&"j:null"));
}

#[test]
fn cancelled_while_paused() {
    for (command, arguments) in [
        ("job-cancel", id()),
        ("block-job-cancel", json!({ "device": "j", "force": true })),
    ] {
        check(
            |talk| {
                start(talk, &json!({ "speed": SLOW }));
                pause(talk);
                let why = talk.refused("block-job-cancel", &device());
                assert_eq!(why, "The block job for device 'j' is currently paused");
                talk.ask(command, &arguments);
                talk.until("j", "null");
            },
            &[
                "j:created",
                "j:running",
                "j:paused",
                "j:running",
                "j:aborting",
                &cancelled(SLOW),
                "j:concluded",
                "j:null",
            ],
        );
    }
}

#[test]
fn cancelled_while_pending() {
    for (command, arguments) in [("job-cancel", id()), ("block-job-cancel", device())] {
        let session = |talk: &mut Talk| {
            start(
                talk,
                &json!({ "auto-finalize": false, "auto-dismiss": false }),
            );
            talk.until("j", "pending");
            talk.until_event("BLOCK_JOB_PENDING");
            talk.ask(command, &arguments);
            talk.ask("query-jobs", &json!({}));
            talk.ask("job-dismiss", &id());
        };
        check(
            session,
            &[
                "j:created",
                "j:running",
                "j:waiting",
                "j:pending",
                r#"BLOCK_JOB_PENDING {"id":"j","type":"backup"}"#,
                "j:aborting",
                &cancelled(0),
                "j:concluded",
                "j:null",
            ],
        );
    }
}

#[test]
fn paused_and_resumed() {
    check(
        |talk| {
            start(talk, &json!({ "speed": SLOW }));
            let why = talk.refused("job-resume", &id());
            assert_eq!(why, "Can't resume a job that was not paused");
            pause(talk);
            assert_eq!(talk.refused("job-pause", &id()), "Job is already paused");
            talk.refused("block-job-pause", &device());
            let jobs = talk.look("query-block-jobs", &json!({}));
            assert_eq!(jobs[0]["paused"], true, "{jobs}");
            assert_eq!(jobs[0]["status"], "paused", "{jobs}");
            talk.ask("block-job-resume", &device());
            talk.ask("block-job-pause", &device());
            wait_paused(talk);
            talk.ask("job-resume", &id());
            talk.refused("block-job-resume", &device());
            talk.ask("job-cancel", &id());
            talk.until("j", "null");
        },
        &[
            "j:created",
            "j:running",
            "j:paused",
            "j:running",
            "j:paused",
            "j:running",
            "j:aborting",
            &cancelled(SLOW),
            "j:concluded",
            "j:null",
        ],
    );
    check_end(
        |talk| {
            start(talk, &json!({ "speed": SLOW }));
            talk.ask("job-pause", &id());
            talk.ask("job-resume", &id());
            // The events of the end do not count here.
            talk.ask("query-kvm", &json!({}));
            talk.ask("job-pause", &id());
        },
        &[r#"> job-pause {"id":"j"}"#, "j:paused", "< {}"],
    );
}

#[test]
fn the_speed_is_set() {
    check(
        |talk| {
            start(talk, &json!({ "speed": SLOW }));
            let why = talk.refused(
                "block-job-set-speed",
                &json!({ "device": "j", "speed": -1 }),
            );
            assert_eq!(why, "Parameter 'speed' expects a non-negative value");
            pause(talk);
            talk.ask("block-job-set-speed", &json!({ "device": "j", "speed": 0 }));
            let jobs = talk.look("query-block-jobs", &json!({}));
            assert_eq!(jobs[0]["speed"], 0, "{jobs}");
            talk.ask("job-resume", &id());
            talk.until("j", "null");
        },
        &[
            "j:created",
            "j:running",
            "j:paused",
            "j:running",
            "j:waiting",
            "j:pending",
            &completed(),
            "j:concluded",
            "j:null",
        ],
    );
}

#[test]
fn a_limit_is_lifted_while_a_job_runs() {
    check(
        |talk| {
            start(talk, &json!({ "speed": 1 }));
            talk.ask("block-job-set-speed", &json!({ "device": "j", "speed": 0 }));
            talk.until("j", "null");
        },
        &[
            "j:created",
            "j:running",
            "j:waiting",
            "j:pending",
            &completed(),
            "j:concluded",
            "j:null",
        ],
    );
}

#[test]
fn unknown_jobs() {
    beside(DISKS, |talk| {
        for verb in [
            "cancel", "pause", "resume", "complete", "finalize", "dismiss",
        ] {
            talk.refused(&format!("job-{verb}"), &id());
        }
        for verb in ["cancel", "pause", "resume", "complete"] {
            talk.refused(&format!("block-job-{verb}"), &device());
        }
        for verb in ["finalize", "dismiss"] {
            talk.refused(&format!("block-job-{verb}"), &id());
        }
        talk.refused("block-job-set-speed", &json!({ "device": "j", "speed": 1 }));
    });
}

#[test]
fn verbs_of_a_running_job() {
    beside(DISKS, |talk| {
        start(talk, &json!({ "speed": SLOW }));
        for verb in ["complete", "finalize", "dismiss"] {
            talk.refused(&format!("job-{verb}"), &id());
        }
        talk.refused("block-job-complete", &device());
        talk.refused("block-job-finalize", &id());
        talk.refused("block-job-dismiss", &id());
        talk.ask("job-pause", &id());
        // It may take QEMU a moment.
        talk.until("j", "paused");
        for verb in ["complete", "finalize", "dismiss"] {
            talk.refused(&format!("job-{verb}"), &id());
        }
    });
}

#[test]
fn one_that_only_saves_what_is_overwritten() {
    check(
        |talk| {
            start(talk, &json!({ "sync": "none" }));
            talk.ask("query-block-jobs", &json!({}));
            pause(talk);
            talk.ask("job-resume", &id());
            talk.ask("block-job-cancel", &device());
            talk.until("j", "null");
        },
        &[
            "j:created",
            "j:running",
            "j:paused",
            "j:running",
            "j:aborting",
            &cancelled(0),
            "j:concluded",
            "j:null",
        ],
    );
}

/// A disk that fails once.
fn add_faulty(talk: &mut Talk, node: &str, file: &str, event: &str, errno: u32) {
    let image = json!({ "driver": "file", "filename": file });
    let fault = json!({ "event": event, "errno": errno, "once": true });
    let faulty = json!({ "driver": "blkdebug", "image": image, "inject-error": [fault] });
    let options = json!({ "driver": "raw", "node-name": node, "file": faulty });
    talk.ask("blockdev-add", &options);
}

struct Fault {
    side: &'static str,
    event: &'static str,
    errno: u32,
    operation: &'static str,
    text: &'static str,
    io_status: &'static str,
}

const FAULTS: [Fault; 3] = [
    Fault {
        side: "source",
        event: "read_aio",
        errno: 5,
        operation: "read",
        text: "Input/output error",
        io_status: "failed",
    },
    Fault {
        side: "target",
        event: "write_aio",
        errno: 28,
        operation: "write",
        text: "No space left on device",
        io_status: "nospace",
    },
    Fault {
        side: "target",
        event: "write_aio",
        errno: 5,
        operation: "write",
        text: "Input/output error",
        io_status: "failed",
    },
];

fn start_faulty(talk: &mut Talk, fault: &Fault, policy: &str) {
    if fault.side == "source" {
        add_faulty(talk, "from", "disk", fault.event, fault.errno);
        add_faulty(talk, "to", "blank", "cor_write", 5);
    } else {
        add_faulty(talk, "from", "disk", "cor_write", 5);
        add_faulty(talk, "to", "blank", fault.event, fault.errno);
    }
    let mut more = json!({
        "device": "from", "target": "to", "auto-dismiss": false,
    });
    more[format!("on-{}-error", fault.side)] = policy.into();
    start(talk, &more);
}

/// Until an error has stopped it. Its state may be that of the start's pause.
fn until_stopped(talk: &mut Talk) {
    talk.until_event("BLOCK_JOB_ERROR");
    wait_paused(talk);
}

fn pause(talk: &mut Talk) {
    talk.ask("job-pause", &id());
    wait_paused(talk);
}

/// QEMU's daemon may answer before the job has come to its next halt.
fn wait_paused(talk: &mut Talk) {
    wait_for("a job that stands still", || {
        let jobs = talk.look("query-block-jobs", &json!({}));
        jobs[0]["status"] == "paused"
    });
}

fn failure(fault: &Fault, action: &str) -> String {
    let data = json!({ "action": action, "device": "j", "operation": fault.operation });
    format!("BLOCK_JOB_ERROR {data}")
}

#[test]
fn errors_under_every_policy() {
    for fault in &FAULTS {
        for policy in ["report", "ignore", "stop", "enospc", "auto"] {
            let action = match policy {
                "enospc" | "auto" if fault.errno == 28 => "stop",
                "enospc" | "auto" => "report",
                other => other,
            };
            let lines = beside(&[], |talk| {
                start_faulty(talk, fault, policy);
                if action == "stop" {
                    until_stopped(talk);
                    let jobs = talk.look("query-block-jobs", &json!({}));
                    assert_eq!(jobs[0]["io-status"], fault.io_status, "{jobs}");
                    assert_eq!(jobs[0]["paused"], true, "{jobs}");
                    talk.ask("job-resume", &id());
                }
                talk.until("j", "concluded");
                talk.ask("query-jobs", &json!({}));
                talk.ask("query-block-jobs", &json!({}));
                talk.ask("job-dismiss", &id());
            });
            let error = failure(fault, action);
            let mut expected = vec!["j:created", "j:running", &error];
            let failed = json!({
                "device": "j", "error": fault.text, "len": LEN, "offset": 0, "speed": 0,
                "type": "backup",
            });
            let failed = format!("BLOCK_JOB_COMPLETED {failed}");
            let completed = completed();
            if action == "report" {
                expected.extend(["j:aborting", &failed]);
            } else {
                if action == "stop" {
                    expected.extend(["j:paused", "j:running"]);
                }
                expected.extend(["j:waiting", "j:pending", &completed]);
            }
            expected.extend(["j:concluded", "j:null"]);
            assert_eq!(events(&lines), expected, "{} {policy}", fault.side);
        }
    }
}

#[test]
fn cancelled_after_an_error_has_stopped_it() {
    let fault = &FAULTS[0];
    let lines = beside(&[], |talk| {
        start_faulty(talk, fault, "stop");
        until_stopped(talk);
        talk.refused("block-job-cancel", &device());
        talk.ask("job-cancel", &id());
        talk.until("j", "concluded");
        talk.ask("job-dismiss", &id());
    });
    assert_eq!(
        events(&lines),
        [
            "j:created",
            "j:running",
            &failure(fault, "stop"),
            "j:paused",
            "j:running",
            "j:aborting",
            &cancelled(0),
            "j:concluded",
            "j:null",
        ]
    );
}

#[test]
fn images_are_made_by_jobs() {
    beside(&[], |talk| {
        let make = |talk: &mut Talk, options: Value| {
            talk.ask(
                "blockdev-create",
                &json!({ "job-id": "c", "options": options }),
            );
            talk.until("c", "concluded");
            talk.ask("query-jobs", &json!({}));
            talk.ask("query-block-jobs", &json!({}));
            talk.refused("block-job-dismiss", &json!({ "id": "c" }));
            talk.ask("job-dismiss", &json!({ "id": "c" }));
        };
        make(
            talk,
            json!({ "driver": "file", "filename": "new", "size": 0 }),
        );
        talk.ask(
            "blockdev-add",
            &json!({ "driver": "file", "node-name": "f", "filename": "new" }),
        );
        make(talk, json!({ "driver": "qcow2", "file": "f", "size": LEN }));
        talk.ask(
            "blockdev-add",
            &json!({ "driver": "qcow2", "node-name": "q", "file": "f" }),
        );
        talk.ask("blockdev-del", &json!({ "node-name": "q" }));
        // What goes wrong inside is told by the job.
        make(
            talk,
            json!({ "driver": "file", "filename": "no/where", "size": 0 }),
        );
        make(
            talk,
            json!({ "driver": "qcow2", "file": "zz", "size": LEN }),
        );
        make(talk, json!({ "driver": "qcow2", "file": "f", "size": 513 }));
        make(
            talk,
            json!({ "driver": "qcow2", "file": "f", "size": LEN, "cluster-size": 1000 }),
        );
        let options = json!({ "driver": "file", "filename": "new", "size": 0 });
        talk.refused(
            "blockdev-create",
            &json!({ "job-id": "1a", "options": options }),
        );
    });
}

fn two(more: &Value, mode: &str) -> Value {
    let perf = json!({ "max-workers": 1, "max-chunk": 65536 });
    let first = json!({
        "job-id": "j1", "device": "src", "target": "dst", "sync": "full", "x-perf": perf,
    });
    let second = json!({
        "job-id": "j2", "device": "src2", "target": "dst2", "sync": "full", "x-perf": perf,
    });
    json!({
        "actions": [
            { "type": "blockdev-backup", "data": with(&first, more) },
            { "type": "blockdev-backup", "data": with(&second, more) },
        ],
        "properties": { "completion-mode": mode },
    })
}

/// Two pairs of disks.
fn pairs() -> Vec<&'static str> {
    let null = "null-co,node-name=src2,size=1048576,read-zeroes=on";
    [DISKS, &["--blockdev", null]].concat()
}

#[test]
fn a_group_ends_together() {
    let lines = beside(&pairs(), |talk| {
        talk.ask("transaction", &two(&json!({ "speed": SLOW }), "grouped"));
        let free = |id: &str| json!({ "device": id, "speed": 0 });
        talk.ask("block-job-set-speed", &free("j1"));
        talk.until("j1", "waiting");
        let why = talk.refused("job-finalize", &json!({ "id": "j1" }));
        assert!(why.contains("in state 'waiting'"), "{why}");
        talk.ask("block-job-set-speed", &free("j2"));
        talk.until("j1", "null");
    });
    let states: Vec<&str> = events(&lines)
        .into_iter()
        .filter(|line| line.starts_with('j'))
        .collect();
    assert_eq!(
        states,
        [
            "j1:created",
            "j2:created",
            "j2:running",
            "j1:running",
            "j1:waiting",
            "j2:waiting",
            "j2:pending",
            "j1:pending",
            "j2:concluded",
            "j2:null",
            "j1:concluded",
            "j1:null",
        ]
    );
}

#[test]
fn a_group_is_finalized_together() {
    for finalized in ["j1", "j2"] {
        beside(&pairs(), |talk| {
            let more = json!({ "auto-finalize": false, "speed": SLOW });
            talk.ask("transaction", &two(&more, "grouped"));
            for job in ["j1", "j2"] {
                talk.ask("block-job-set-speed", &json!({ "device": job, "speed": 0 }));
                talk.until(job, "waiting");
            }
            talk.until("j1", "pending");
            talk.until_event("BLOCK_JOB_PENDING");
            talk.until_event("BLOCK_JOB_PENDING");
            talk.ask("job-finalize", &json!({ "id": finalized }));
            talk.refused("job-finalize", &json!({ "id": "j1" }));
        });
    }
}

#[test]
fn a_group_is_cancelled_together() {
    // Which member of the group is told to end first is not the same.
    for cancelled in ["j1", "j2"] {
        beside_by_job(&pairs(), |talk| {
            talk.ask("transaction", &two(&json!({ "speed": SLOW }), "grouped"));
            talk.ask(
                "block-job-set-speed",
                &json!({ "device": "j1", "speed": 0 }),
            );
            talk.until("j1", "waiting");
            talk.ask("job-cancel", &json!({ "id": cancelled }));
            talk.until("j1", "null");
            talk.ask("query-jobs", &json!({}));
        });
    }
}

#[test]
fn one_of_a_group_fails() {
    let lines = beside(&pairs(), |talk| {
        add_faulty(talk, "faulty", "spare", "read_aio", 5);
        let mut group = two(&json!({ "speed": SLOW }), "grouped");
        group["actions"][1]["data"]["device"] = "src".into();
        group["actions"][1]["data"]["target"] = "dst".into();
        group["actions"][0]["data"]["device"] = "faulty".into();
        group["actions"][0]["data"]["target"] = "src2".into();
        talk.ask("transaction", &group);
        talk.until("j1", "null");
    });
    let last = &events(&lines)[4..];
    assert!(last[0].starts_with("BLOCK_JOB_ERROR"), "{last:#?}");
    assert_eq!(last[1..3], ["j1:aborting", "j2:aborting"]);
    assert!(last[3].starts_with("BLOCK_JOB_CANCELLED"), "{last:#?}");
    assert_eq!(last[4..6], ["j2:concluded", "j2:null"]);
    assert!(last[6].starts_with("BLOCK_JOB_COMPLETED"), "{last:#?}");
    assert_eq!(last[7..], ["j1:concluded", "j1:null"]);
}

#[test]
fn one_of_two_by_themselves_fails() {
    beside(&pairs(), |talk| {
        add_faulty(talk, "faulty", "spare", "read_aio", 5);
        let mut both = two(&json!({ "speed": SLOW }), "individual");
        both["actions"][1]["data"]["device"] = "src".into();
        both["actions"][1]["data"]["target"] = "dst".into();
        both["actions"][0]["data"]["device"] = "faulty".into();
        both["actions"][0]["data"]["target"] = "src2".into();
        talk.ask("transaction", &both);
        talk.until("j1", "null");
        talk.ask("job-cancel", &json!({ "id": "j2" }));
        talk.until("j2", "null");
    });
}

#[test]
fn transactions_that_come_to_nothing() {
    beside(&pairs(), |talk| {
        let group = two(&json!({ "auto-dismiss": false }), "individual");
        let mut aborted = group.clone();
        aborted["actions"][1] = json!({ "type": "abort", "data": {} });
        let why = talk.refused("transaction", &aborted);
        assert_eq!(why, "Transaction aborted using Abort action");
        aborted["properties"]["completion-mode"] = "grouped".into();
        talk.refused("transaction", &aborted);
        let mut twice = group.clone();
        twice["actions"][1]["data"]["job-id"] = "j1".into();
        talk.refused("transaction", &twice);
        let mut unknown = group;
        unknown["actions"][1]["data"]["target"] = "zz".into();
        talk.refused("transaction", &unknown);
        talk.ask("transaction", &json!({ "actions": [] }));
        talk.ask("query-jobs", &json!({}));
    });
}

/// QEMU's daemon shows `created` and `null` of it; ringback makes no job.
#[test]
fn a_backup_with_a_bad_speed() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    let backup = json!({
        "job-id": "j", "device": "src", "target": "dst", "sync": "full", "speed": -1,
    });
    let why = talk.refused("blockdev-backup", &backup);
    assert_eq!(why, "Parameter 'speed' expects a non-negative value");
    assert_eq!(talk.ask("query-jobs", &json!({})), json!([]));
    assert_eq!(events(&talk.finish()), [""; 0]);
}

#[test]
fn the_end_with_a_running_job() {
    let mut talk = Talk::start(Program::Ringback, DISKS);
    start(&mut talk, &json!({ "speed": SLOW }));
    // Its answer comes last.
    talk.ask("quit", &json!({}));
    let (lines, _scratch) = talk.ended();
    let end = lines.len() - 5;
    assert_eq!(
        lines[end..],
        [
            "j:aborting",
            &cancelled(SLOW),
            "j:concluded",
            "j:null",
            "< {}"
        ]
    );
}

/// Of a group none concludes before the last has ended.
#[test]
fn quit_while_a_group_works() {
    let mut talk = Talk::start(Program::Ringback, &pairs());
    talk.ask("transaction", &two(&json!({ "speed": SLOW }), "grouped"));
    talk.ask("quit", &json!({}));
    let (lines, _scratch) = talk.ended();
    let cancelled = lines
        .iter()
        .filter(|line| line.contains("BLOCK_JOB_CANCELLED"));
    assert_eq!(cancelled.count(), 2, "{lines:#?}");
}
