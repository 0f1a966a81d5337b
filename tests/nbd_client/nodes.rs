//! NBD nodes of the daemon: how they look, and what cannot be changed.

use ringback_tests::image::blank;
use ringback_tests::needs::needs;
use ringback_tests::qmp::{Daemon, Program};
use serde_json::{Value, json};

use crate::{QEMU, Server, scratch};

/// The options of an export as a node.
fn export(server: &Server, name: &str, more: &Value) -> Value {
    let mut options = json!({
        "driver": "nbd",
        "node-name": name,
        "server": { "type": "unix", "path": server.socket },
    });
    let members = options.as_object_mut().expect("an object");
    members.extend(more.as_object().expect("an object").clone());
    options
}

/// The same commands to both daemons bring the same answers.
fn beside(words: &[&str], act: impl Fn(&mut Daemon, &Server) -> Vec<Value>) {
    let mut told = Vec::new();
    for program in [Program::Ringback, Program::Qemu] {
        let scratch = scratch();
        let directory = scratch.path();
        blank(&directory.join("disk.raw"), 1 << 20);
        let server = Server::qemu_nbd(directory, &[words, &["-f", "raw", "disk.raw"]].concat());
        let mut daemon = Daemon::start(program, directory, &[]);
        let answers = Value::from(act(&mut daemon, &server)).to_string();
        told.push(answers.replace(&directory.display().to_string(), "DIR"));
        daemon.quit();
    }
    assert_eq!(told[0], told[1]);
}

fn answer(daemon: &mut Daemon, command: &str, arguments: &Value) -> Value {
    match daemon.qmp.execute(command, arguments) {
        Ok(value) => value,
        Err(refusal) => json!([refusal.class, refusal.desc]),
    }
}

#[test]
fn as_queries_show_them() {
    if !needs(QEMU) {
        return;
    }
    beside(&["-x", "ex"], |daemon, server| {
        for (name, more) in [
            ("plain", json!({ "export": "ex" })),
            (
                "delayed",
                json!({ "export": "ex", "reconnect-delay": 10, "read-only": true }),
            ),
        ] {
            daemon.qmp.run("blockdev-add", &export(server, name, &more));
        }
        let above = json!({
            "driver": "raw", "node-name": "above", "file": "plain", "offset": 512,
        });
        daemon.qmp.run("blockdev-add", &above);
        let nodes = answer(daemon, "query-named-block-nodes", &json!({ "flat": true }));
        let nodes = nodes.as_array().expect("a list");
        let shown = nodes.iter().map(|node| {
            let file = node["file"].as_str().expect("a name");
            // The order of members differs.
            let mut file = match file.strip_prefix("json:") {
                Some(tree) => serde_json::from_str(tree).expect("JSON"),
                None => Value::from(file),
            };
            file.sort_all_objects();
            json!([
                node["node-name"],
                node["drv"],
                node["ro"],
                node["image"]["virtual-size"],
                node["image"]["format"],
                node["image"]["actual-size"],
                file,
            ])
        });
        shown.collect()
    });
}

#[test]
fn what_is_refused() {
    if !needs(QEMU) {
        return;
    }
    beside(&["-r"], |daemon, server| {
        let mut answers = Vec::new();
        let mut ask = |command: &str, arguments: &Value| {
            answers.push(answer(daemon, command, arguments));
        };
        let node = |more: &Value| export(server, "n", more);
        ask(
            "blockdev-add",
            &json!({ "driver": "nbd", "node-name": "n" }),
        );
        ask("blockdev-add", &node(&json!({ "bogus": 1 })));
        ask("blockdev-add", &node(&json!({ "reconnect-delay": -1 })));
        ask("blockdev-add", &node(&json!({ "open-timeout": "x" })));
        ask("blockdev-add", &node(&json!({ "export": "other" })));
        ask(
            "blockdev-add",
            &node(&json!({ "export": "x".repeat(4097) })),
        );
        let long = json!({ "x-dirty-bitmap": "x".repeat(4097) });
        ask("blockdev-add", &node(&long));
        ask(
            "blockdev-add",
            &node(&json!({ "server": { "type": "unix" } })),
        );
        ask(
            "blockdev-add",
            &node(&json!({ "server": { "type": "unix", "path": "/nowhere" } })),
        );
        ask("blockdev-add", &node(&json!({})));
        ask("blockdev-add", &node(&json!({ "auto-read-only": true })));
        ask(
            "blockdev-reopen",
            &json!({ "options": [node(&json!({ "read-only": false }))] }),
        );
        ask("blockdev-del", &json!({ "node-name": "n" }));
        answers
    });
}

#[test]
fn a_size_is_the_servers() {
    if !needs(QEMU) {
        return;
    }
    beside(&[], |daemon, server| {
        let mut answers = Vec::new();
        daemon
            .qmp
            .run("blockdev-add", &export(server, "n", &json!({})));
        for size in [2 << 20, 1 << 20, 512] {
            let arguments = json!({ "node-name": "n", "size": size });
            answers.push(answer(daemon, "block_resize", &arguments));
        }
        let nodes = answer(daemon, "query-named-block-nodes", &json!({}));
        answers.push(nodes[0]["image"]["virtual-size"].clone());
        answers
    });
}

/// What every node can change, a node of a server can; its own options it cannot.
#[test]
fn reopening() {
    if !needs(QEMU) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    blank(&directory.join("disk.raw"), 1 << 20);
    let server = Server::qemu_nbd(directory, &["-f", "raw", "disk.raw"]);
    let mut daemon = Daemon::start(Program::Ringback, directory, &[]);
    let qmp = &mut daemon.qmp;
    qmp.run("blockdev-add", &export(&server, "n", &json!({})));
    let mut reopen = |more: &Value| {
        qmp.execute(
            "blockdev-reopen",
            &json!({ "options": [export(&server, "n", more)] }),
        )
    };
    for more in [
        json!({ "read-only": true }),
        json!({ "discard": "unmap", "cache": { "no-flush": true } }),
        json!({}),
    ] {
        assert_eq!(reopen(&more), Ok(json!({})), "{more}");
    }
    for (option, value) in [("reconnect-delay", json!(5)), ("export", json!("e"))] {
        let refused = reopen(&json!({ option: value })).expect_err("a refusal");
        assert_eq!(refused.desc, format!("Cannot change the option '{option}'"));
    }
    daemon.quit();
}
