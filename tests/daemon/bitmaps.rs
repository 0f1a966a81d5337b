//! Dirty bitmaps by command: what they answer, and what is kept of them. The
//! same with `qemu-storage-daemon`.

use std::process::Command;

use ringback_tests::needs::{Need, needs};
use ringback_tests::process::run;
use ringback_tests::qmp::Program;
use serde_json::{Value, json};

use crate::beside::{Talk, beside};

const RAW: &[&str] = &[
    "--blockdev",
    "file,node-name=f,filename=disk",
    "--blockdev",
    "raw,node-name=r,file=f",
    "--blockdev",
    "null-co,node-name=big,size=1073741824",
];

fn on(node: &str, name: &str) -> Value {
    json!({ "node": node, "name": name })
}

/// What every node shows of its bitmaps.
fn bitmaps(talk: &mut Talk) {
    talk.ask("query-named-block-nodes", &json!({ "flat": true }));
}

#[test]
fn added_changed_removed() {
    beside(RAW, |talk| {
        talk.ask("block-dirty-bitmap-add", &on("r", "b"));
        let disabled = json!({ "node": "r", "name": "off", "disabled": true, "granularity": 512 });
        talk.ask("block-dirty-bitmap-add", &disabled);
        bitmaps(talk);
        for verb in ["disable", "disable", "clear", "enable", "enable", "remove"] {
            talk.ask(&format!("block-dirty-bitmap-{verb}"), &on("r", "b"));
            bitmaps(talk);
        }
        talk.ask("x-debug-block-dirty-bitmap-sha256", &on("r", "off"));
        talk.ask("blockdev-del", &json!({ "node-name": "r" }));
    });
}

#[test]
fn what_is_refused() {
    let lines = beside(RAW, |talk| {
        talk.ask("block-dirty-bitmap-add", &on("r", "b"));
        talk.refused("block-dirty-bitmap-add", &on("r", "b"));
        talk.refused("block-dirty-bitmap-add", &on("r", ""));
        talk.refused("block-dirty-bitmap-add", &on("r", &"x".repeat(1024)));
        talk.ask("block-dirty-bitmap-add", &on("r", &"x".repeat(1023)));
        talk.refused("block-dirty-bitmap-add", &on("zz", "b"));
        for granularity in [
            json!(0),
            json!(256),
            json!(3000),
            json!(1u64 << 32),
            json!("1k"),
        ] {
            let mut arguments = on("r", "c");
            arguments["granularity"] = granularity;
            talk.refused("block-dirty-bitmap-add", &arguments);
        }
        let most = json!({ "node": "r", "name": "most", "granularity": 1u64 << 31 });
        talk.ask("block-dirty-bitmap-add", &most);
        let persistent = json!({ "node": "r", "name": "p", "persistent": true });
        talk.refused("block-dirty-bitmap-add", &persistent);
        for verb in ["remove", "clear", "enable", "disable"] {
            let command = format!("block-dirty-bitmap-{verb}");
            talk.refused(&command, &on("zz", "b"));
            talk.refused(&command, &on("r", "zz"));
            talk.refused(&command, &json!({ "node": "r" }));
        }
        talk.refused("x-debug-block-dirty-bitmap-sha256", &on("zz", "b"));
        talk.refused("x-debug-block-dirty-bitmap-sha256", &on("r", "zz"));
    });
    let texts = [
        "Bitmap already exists: b",
        "Bitmap name cannot be empty",
        "Cannot find device='zz' nor node-name='zz'",
        "Granularity must be power of 2 and at least 512",
        "Dirty bitmap 'zz' not found",
        "Node 'zz' not found",
    ];
    for text in texts {
        let line = format!("< GenericError: {text}");
        assert!(lines.contains(&line), "no '{line}'");
    }
}

#[test]
fn merged() {
    beside(RAW, |talk| {
        for name in ["a", "b", "c"] {
            talk.ask("block-dirty-bitmap-add", &on("r", name));
        }
        talk.ask("block-dirty-bitmap-add", &on("f", "other"));
        talk.ask("block-dirty-bitmap-add", &on("big", "big"));
        let merge = |target: &str, sources: Value| json!({ "node": "r", "target": target, "bitmaps": sources });
        talk.ask(
            "block-dirty-bitmap-merge",
            &merge("a", json!(["b", "b", "c"])),
        );
        let other = on("f", "other");
        talk.ask("block-dirty-bitmap-merge", &merge("a", json!(["b", other])));
        for sources in [
            json!(["zz"]),
            json!(["a", "zz"]),
            json!([on("zz", "b")]),
            json!([on("f", "zz")]),
            json!([on("big", "big")]),
            json!([1]),
            json!("b"),
        ] {
            talk.refused("block-dirty-bitmap-merge", &merge("a", sources));
        }
        talk.refused("block-dirty-bitmap-merge", &merge("zz", json!(["b"])));
        bitmaps(talk);
    });
}

#[test]
fn busy_with_a_job() {
    let words = [RAW, &["--blockdev", "file,node-name=dst,filename=blank"]].concat();
    beside(&words, |talk| {
        talk.ask("block-dirty-bitmap-add", &on("r", "b"));
        talk.ask("block-dirty-bitmap-add", &on("r", "free"));
        let backup = json!({
            "job-id": "j", "device": "r", "target": "dst", "sync": "full", "bitmap": "b",
            "bitmap-mode": "always", "speed": 1, "filter-node-name": "flt",
            "x-perf": { "max-workers": 1, "max-chunk": 65536 },
        });
        talk.ask("blockdev-backup", &backup);
        for verb in ["remove", "clear", "enable", "disable"] {
            talk.refused(&format!("block-dirty-bitmap-{verb}"), &on("r", "b"));
        }
        for (target, source) in [("b", "free"), ("free", "b")] {
            let merge = json!({ "node": "r", "target": target, "bitmaps": [source] });
            talk.refused("block-dirty-bitmap-merge", &merge);
        }
        talk.ask("x-debug-block-dirty-bitmap-sha256", &on("r", "b"));
        talk.ask("job-cancel", &json!({ "id": "j" }));
        talk.until("j", "null");
        talk.ask("block-dirty-bitmap-remove", &on("r", "b"));
    });
}

#[test]
fn in_transactions() {
    beside(RAW, |talk| {
        let action = |verb: &str, name: &str| json!({ "type": format!("block-dirty-bitmap-{verb}"), "data": on("r", name) });
        let all = |actions: Value| json!({ "actions": actions });
        talk.ask("block-dirty-bitmap-add", &on("r", "m"));
        let fresh = json!([
            action("add", "n"),
            action("disable", "n"),
            action("enable", "n"),
            action("clear", "n"),
        ]);
        talk.ask("transaction", &all(fresh));
        bitmaps(talk);
        for actions in [
            json!([action("remove", "m"), action("add", "m")]),
            json!([action("remove", "m"), action("clear", "m")]),
            json!([action("add", "o"), action("add", "o")]),
            json!([action("disable", "m"), action("clear", "zz")]),
            json!([action("add", "o"), { "type": "abort", "data": {} }]),
            json!([{ "type": "bogus", "data": {} }]),
        ] {
            talk.refused("transaction", &all(actions));
            bitmaps(talk);
        }
        let merge = json!({ "node": "r", "target": "o", "bitmaps": ["m", "n"] });
        let merged = json!([
            action("add", "o"),
            { "type": "block-dirty-bitmap-merge", "data": merge },
            action("remove", "n"),
        ]);
        talk.ask("transaction", &all(merged));
        bitmaps(talk);
    });
}

/// QEMU's daemon dies of it.
#[test]
fn merged_from_nothing() {
    let mut talk = Talk::start(Program::Ringback, RAW);
    talk.ask("block-dirty-bitmap-add", &on("r", "b"));
    let before = talk.ask("x-debug-block-dirty-bitmap-sha256", &on("r", "b"));
    let merge = json!({ "node": "r", "target": "b", "bitmaps": [] });
    // Whether that is refused or changes nothing: the daemon lives.
    let _ = talk.say("block-dirty-bitmap-merge", &merge);
    let after = talk.ask("x-debug-block-dirty-bitmap-sha256", &on("r", "b"));
    assert_eq!(before, after);
    talk.finish();
}

/// What was written is noted, and the digest is that of the bits in memory.
#[test]
fn the_digest_of_what_was_written() {
    let mut talk = Talk::start(Program::Ringback, RAW);
    talk.ask(
        "block-dirty-bitmap-add",
        &json!({ "node": "r", "name": "b", "granularity": 65536 }),
    );
    assert_eq!(talk.shell(r#"qemu-io r "write 0 512""#), "");
    assert_eq!(talk.shell(r#"qemu-io r "write 196608 65536""#), "");
    let digest = talk.ask("x-debug-block-dirty-bitmap-sha256", &on("r", "b"));
    let nodes = talk.look("query-named-block-nodes", &json!({}));
    let nodes = nodes.as_array().expect("a list").iter();
    let counts: Vec<&Value> = nodes
        .filter_map(|node| node.get("dirty-bitmaps"))
        .map(|bitmaps| &bitmaps[0]["count"])
        .collect();
    assert_eq!(counts, [131_072]);
    // Of the eight bytes 9, 0, 0, ...: granules 0 and 3.
    assert_eq!(
        digest["sha256"],
        "cbbd5f990c53684d7ae650b40fcb5656e02261b53da5f6a7d8c819c92f2828f8"
    );
    talk.finish();
}

/// Stored at the end of one, found by the other.
#[test]
fn persistent_from_one_to_the_other() {
    if !needs(&[
        Need::Program("qemu-img"),
        Need::Program("qemu-storage-daemon"),
    ]) {
        return;
    }
    let image = [
        "--blockdev",
        "file,node-name=f,filename=image",
        "--blockdev",
        "qcow2,node-name=q,file=f",
    ];
    for (first, second) in [
        (Program::Ringback, Program::Qemu),
        (Program::Qemu, Program::Ringback),
    ] {
        let mut talk = Talk::start(first, &[]);
        let mut create = Command::new("qemu-img");
        create.current_dir(talk.directory());
        run(create.args(["create", "-q", "-f", "qcow2", "image", "1M"])).succeeded();
        for options in [
            json!({ "driver": "file", "node-name": "f", "filename": "image" }),
            json!({ "driver": "qcow2", "node-name": "q", "file": "f" }),
        ] {
            talk.ask("blockdev-add", &options);
        }
        for (name, disabled, persistent) in [
            ("on", false, true),
            ("off", true, true),
            ("lost", false, false),
        ] {
            let add = json!({
                "node": "q", "name": name, "disabled": disabled, "persistent": persistent,
            });
            talk.ask("block-dirty-bitmap-add", &add);
        }
        let (_, scratch) = talk.finish_as_it_was();
        let mut check = Command::new("qemu-img");
        check.current_dir(scratch.path());
        run(check.args(["check", "-q", "image"])).succeeded();
        let mut daemon = ringback_tests::qmp::Daemon::start(second, scratch.path(), &image);
        let nodes = daemon
            .qmp
            .run("query-named-block-nodes", &json!({ "flat": true }));
        let mut found: Vec<(String, bool, bool)> = nodes
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|node| node["dirty-bitmaps"].as_array())
            .flatten()
            .map(|bitmap| {
                (
                    bitmap["name"].as_str().expect("a name").to_owned(),
                    bitmap["recording"] == true,
                    bitmap["persistent"] == true,
                )
            })
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                ("off".to_owned(), false, true),
                ("on".to_owned(), true, true)
            ],
            "{first:?} to {second:?}"
        );
        daemon.quit();
    }
}
