//! Sessions made up from a seed, the same with `ringback daemon` and with
//! `qemu-storage-daemon`: answers and events must be the same, see
//! [`crate::beside`] for what that means.
//!
//! `RINGBACK_DIFF_SEED=N` replays one seed; `RINGBACK_DIFF_COUNT=N` runs that
//! many.
//!
//! Never said, because QEMU's daemon dies of it: a merge of no bitmaps, a negative
//! size of a null disk, a transaction that enables or disables a bitmap that is not
//! there. Where it dies all the same, a session ends. Never said either, because
//! the sides differ and other tests look at it: a negative speed of a backup, a
//! `host_device` that is a file, a persistent bitmap of a raw disk whose name is
//! taken.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ringback_tests::needs::{Need, needs};
use ringback_tests::process::LIMIT;
use ringback_tests::qmp::{Program, Refusal};
use ringback_tests::random::Random;
use serde_json::{Value, json};

use crate::beside::{Talk, assert_same};

const COMMANDS: u64 = 60;
const DISKS: &[&str] = &[
    "--blockdev",
    "file,node-name=src,filename=disk",
    "--blockdev",
    "file,node-name=dst,filename=blank",
    "--blockdev",
    "file,node-name=dst2,filename=blank2",
];

type Reply = Result<Value, Refusal>;
type Said = (&'static str, Value);

/// Nodes whose bitmaps no job of unknown progress changes.
const MARKED: [&str; 5] = ["src", "src", "n", "r", "zz"];
const BITMAPS: [&str; 3] = ["a", "b", "c"];
const JOBS: [&str; 3] = ["j1", "j2", "zz"];

fn bitmap(random: &mut Random) -> Value {
    json!({ "node": random.of(&MARKED), "name": random.of(&BITMAPS) })
}

fn bitmap_change(random: &mut Random) -> Said {
    let mut arguments = bitmap(random);
    match random.below(8) {
        0..=2 => {
            if random.one_in(4) {
                arguments["disabled"] = true.into();
            }
            if random.one_in(4) {
                arguments["granularity"] = random.of(&[512, 65536, 1000, 1 << 20]).into();
            }
            ("block-dirty-bitmap-add", arguments)
        }
        3 => ("block-dirty-bitmap-remove", arguments),
        4 => ("block-dirty-bitmap-clear", arguments),
        5 => ("block-dirty-bitmap-enable", arguments),
        6 => ("block-dirty-bitmap-disable", arguments),
        _ => {
            let mut sources = vec![json!(random.of(&BITMAPS))];
            if random.one_in(2) {
                sources.push(bitmap(random));
            }
            let merge = json!({
                "node": arguments["node"], "target": arguments["name"], "bitmaps": sources,
            });
            ("block-dirty-bitmap-merge", merge)
        }
    }
}

fn new_node(random: &mut Random) -> Value {
    match random.below(7) {
        0 => json!({
            "driver": "null-co", "node-name": "n", "size": 1 << 20, "read-zeroes": true,
        }),
        1 => json!({ "driver": "file", "node-name": "f", "filename": "spare" }),
        2 => json!({ "driver": "raw", "node-name": "r", "file": random.of(&["f", "f", "n", "r"]) }),
        3 => json!({
            "driver": "copy-before-write", "node-name": "cbw",
            "file": random.of(&["src", "r", "zz"]), "target": random.of(&["dst", "dst2", "zz"]),
        }),
        4 => json!({ "driver": "snapshot-access", "node-name": "snap", "file": "cbw" }),
        5 => json!({ "driver": "file", "node-name": "x", "filename": random.of(&["nope", "."]) }),
        _ => json!({ "driver": "raw", "file": "f" }),
    }
}

fn backup(random: &mut Random) -> Value {
    let device = random.of(&["src", "src", "src", "n", "r", "zz"]);
    let target = random.of(&["dst", "dst2", "dst", "dst2", "zz", "src"]);
    let mut arguments = json!({
        "job-id": random.of(&["j1", "j2", "j1", "j2", "1a"]),
        "device": device,
        "target": if target == "src" { device } else { target },
        "sync": random.of(&["full", "full", "top", "none", "incremental", "bitmap"]),
        "x-perf": { "max-workers": 1, "max-chunk": 65536 },
    });
    if random.one_in(3) {
        arguments["auto-finalize"] = false.into();
    }
    if random.one_in(3) {
        arguments["auto-dismiss"] = false.into();
    }
    if random.one_in(4) {
        arguments["filter-node-name"] = random.of(&["flt", "flt2", "src", "#x"]).into();
    }
    let sync = arguments["sync"].clone();
    if sync == "full" && random.one_in(2) {
        arguments["speed"] = 1.into();
    } else if random.one_in(2) || sync == "bitmap" || sync == "incremental" {
        arguments["bitmap"] = random.of(&BITMAPS).into();
        if !random.one_in(3) {
            let mode = random.of(&["on-success", "never", "always"]);
            arguments["bitmap-mode"] = mode.into();
        }
    }
    arguments
}

fn transaction(random: &mut Random) -> Said {
    let mut actions = Vec::new();
    for _ in 0..=random.below(3) {
        let action = match random.below(10) {
            0 => json!({ "type": "abort", "data": {} }),
            1..=5 => {
                let (name, data) = bitmap_change(random);
                if name.ends_with("able") {
                    // Never one that may not be there.
                    actions.push(json!({ "type": "block-dirty-bitmap-add", "data": data }));
                }
                json!({ "type": name, "data": data })
            }
            _ => {
                let mut data = backup(random);
                // When such a backup is undone, QEMU leaves the whole disk marked;
                // ringback leaves the bitmap as it was.
                if data["bitmap-mode"] == "always" {
                    data["bitmap-mode"] = "on-success".into();
                }
                json!({ "type": "blockdev-backup", "data": data })
            }
        };
        actions.push(action);
    }
    let mut arguments = json!({ "actions": actions });
    if random.one_in(3) {
        let mode = random.of(&["individual", "grouped"]);
        arguments["properties"] = json!({ "completion-mode": mode });
    }
    ("transaction", arguments)
}

fn job_verb(random: &mut Random) -> Said {
    let job = random.of(&JOBS);
    let (id, device) = (json!({ "id": job }), json!({ "device": job }));
    match random.below(14) {
        0 => ("job-pause", id),
        1 => ("job-resume", id),
        2 | 3 => ("job-cancel", id),
        4 => ("job-finalize", id),
        5 => ("job-dismiss", id),
        6 => ("job-complete", id),
        7 => ("block-job-pause", device),
        8 => ("block-job-resume", device),
        9 => ("block-job-cancel", device),
        10 => ("block-job-finalize", id),
        11 => ("block-job-dismiss", id),
        12 => ("block-job-cancel", json!({ "device": job, "force": true })),
        _ => {
            let speed = random.of(&[0, 1, 1, -1]);
            (
                "block-job-set-speed",
                json!({ "device": job, "speed": speed }),
            )
        }
    }
}

fn command(random: &mut Random) -> Said {
    match random.below(20) {
        0..=4 => bitmap_change(random),
        5..=7 => ("blockdev-add", new_node(random)),
        8 => {
            let name = random.of(&["n", "f", "r", "cbw", "snap", "dst2", "flt", "zz"]);
            ("blockdev-del", json!({ "node-name": name }))
        }
        9..=11 => ("blockdev-backup", backup(random)),
        12..=15 => job_verb(random),
        16 | 17 => transaction(random),
        18 => ("x-debug-block-dirty-bitmap-sha256", bitmap(random)),
        _ => ("query-named-block-nodes", json!({ "flat": true })),
    }
}

/// Where one refuses what the other does, or says why in other words: the command,
/// the starts of both answers (none: it is done; `*`: any), and the reason. The rest of such a session is left
/// out: its nodes and jobs are no longer the same.
const KNOWN: &[(&str, &str, &str, &str)] = &[
    ("blockdev-add", "Permission conflict", "", CLAIM),
    (
        "blockdev-backup",
        "Could not create node: Permission conflict",
        "",
        CLAIM,
    ),
    (
        "blockdev-backup",
        "Could not create node: Permission conflict",
        "Invalid job ID",
        ORDER,
    ),
    (
        "blockdev-backup",
        "Could not create node: Permission conflict",
        "Job ID",
        ORDER,
    ),
    (
        "transaction",
        "Could not create node: Permission conflict",
        "*",
        CLAIM,
    ),
    (
        "block-dirty-bitmap-merge",
        "Bitmap '",
        "Dirty bitmap '",
        MERGE,
    ),
    ("transaction", "Bitmap '", "Dirty bitmap '", MERGE),
    (
        "blockdev-add",
        "Cannot find device=",
        "Duplicate nodes",
        TARGET,
    ),
];
const TARGET: &str = "a filter's target is looked for before its own name";
const CLAIM: &str = "a filter that nobody uses claims its disk and its target";
const MERGE: &str = "a busy target is found before a source that is not there";
const ORDER: &str = "the filter is made before the name is looked at";

fn known_difference(command: &str, ours: &Reply, theirs: &Reply) -> Option<&'static str> {
    let text = |reply: &Reply| match reply {
        Ok(_) => String::new(),
        Err(refusal) => refusal.desc.clone(),
    };
    let (ours, theirs) = (text(ours), text(theirs));
    let starts = |text: &str, start: &str| match start {
        "" => text.is_empty(),
        "*" => true,
        _ => text.starts_with(start),
    };
    let mut known = KNOWN.iter();
    let found = known.find(|(name, our_start, their_start, _)| {
        *name == command && starts(&ours, our_start) && starts(&theirs, their_start)
    });
    found.map(|(.., reason)| *reason)
}

/// Jobs that go on until they are told otherwise.
#[derive(Default)]
struct Endless(BTreeSet<String>);

impl Endless {
    fn note_backup(&mut self, arguments: &Value) {
        let id = arguments["job-id"].as_str().expect("a name").to_owned();
        if arguments.get("speed").is_some() || arguments["sync"] == "none" {
            self.0.insert(id);
        } else {
            self.0.remove(&id);
        }
    }

    /// What a command that was followed does to them.
    fn note(&mut self, command: &str, arguments: &Value) {
        match command {
            "blockdev-backup" => self.note_backup(arguments),
            "transaction" => {
                for action in arguments["actions"].as_array().expect("a list") {
                    if action["type"] == "blockdev-backup" {
                        self.note_backup(&action["data"]);
                    }
                }
            }
            "job-cancel" | "block-job-cancel" => self.forget(arguments),
            _ => {}
        }
    }

    fn forget(&mut self, arguments: &Value) {
        let id = arguments["id"].as_str().or(arguments["device"].as_str());
        self.0.remove(id.unwrap_or_default());
    }
}

/// What can be seen of the jobs once nothing more happens by itself.
fn states(talk: &mut Talk, endless: &Endless) -> Option<Vec<String>> {
    let jobs = talk.look("query-block-jobs", &json!({}));
    let jobs = jobs.as_array().expect("a list");
    let is_settled = |job: &Value| {
        let id = job["device"].as_str().expect("a name");
        job["status"] != "running" || (job["paused"] == false && endless.0.contains(id))
    };
    jobs.iter().all(is_settled).then(|| {
        let state = |job: &Value| format!("{} {}", job["device"], job["status"]);
        jobs.iter().map(state).collect()
    })
}

/// Whether QEMU's daemon has lived to its end.
fn session(seed: u64) -> bool {
    let mut random = Random::new(seed);
    let mut ours = Talk::start(Program::Ringback, DISKS);
    let mut theirs = Talk::start(Program::Qemu, DISKS);
    let mut endless = Endless::default();
    for _ in 0..COMMANDS {
        let (name, arguments) = command(&mut random);
        let Some(their_reply) = theirs.say_if_alive(name, &arguments) else {
            println!("qemu-storage-daemon died of {name} {arguments}");
            ours.finish();
            return false;
        };
        let our_reply = ours.say(name, &arguments);
        println!("{name} {arguments}: {our_reply:?}");
        if let Some(reason) = known_difference(name, &our_reply, &their_reply) {
            println!("ends at a known difference: {reason}");
            break;
        }
        if our_reply.is_ok() {
            endless.note(name, &arguments);
        }
        assert_eq!(
            our_reply.is_ok(),
            their_reply.is_ok(),
            "{name} {arguments}: {our_reply:?} and {their_reply:?}"
        );
        // When one of a group ends, the others do.
        let mut last;
        let end = Instant::now() + LIMIT / 4;
        loop {
            last = (states(&mut ours, &endless), states(&mut theirs, &endless));
            if last.0.is_some() && last.0 == last.1 {
                break;
            }
            let jobs = (
                ours.look("query-block-jobs", &json!({})),
                theirs.look("query-block-jobs", &json!({})),
            );
            assert!(
                Instant::now() < end,
                "{name} {arguments} leaves {} and {}",
                jobs.0,
                jobs.1
            );
            sleep(Duration::from_millis(2));
        }
        if last.0.is_some_and(|jobs| jobs.is_empty()) {
            endless.0.clear();
        }
        assert_same(&ours.lines_by_job(), &theirs.lines_by_job());
    }
    ours.finish();
    theirs.finish();
    true
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

#[test]
fn made_up_sessions() {
    if !needs(&[Need::Program("qemu-storage-daemon")]) {
        return;
    }
    let first = number("RINGBACK_DIFF_SEED");
    let alone = if first.is_some() { 1 } else { 25 };
    let first = first.unwrap_or(0);
    let count = number("RINGBACK_DIFF_COUNT").unwrap_or(alone);
    let mut died = 0;
    for seed in first..first + count {
        println!("RINGBACK_DIFF_SEED={seed}");
        died += u64::from(!session(seed));
    }
    // Otherwise little was compared.
    assert!(died * 2 < count.max(3), "{died} of {count} died");
}
