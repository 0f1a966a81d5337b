//! The commands of the server and of exports, beside `qemu-storage-daemon`.

use std::time::Instant;

use ringback_block::protocol::nbd::wire::command;
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::LIMIT;
use ringback_tests::qmp::{Daemon, Program};
use serde_json::{Value, json};

use crate::wire::{Answer, Client, Mode, request};
use crate::{SOCKET, Served, make_disks, scratch};

const NEEDED: &[Need] = &[
    Need::Program("qemu-storage-daemon"),
    Need::Program("qemu-img"),
    Need::Program("qemu-io"),
];

const NODES: &[&str] = &[
    "--blockdev",
    "raw,node-name=base,file.driver=file,file.filename=base.raw,read-only=on",
    "--blockdev",
    "qcow2,node-name=d,file.driver=file,file.filename=disk.qcow2,backing=base",
    "--blockdev",
    "null-co,node-name=n,size=1048576",
];

fn export(id: &str, node: &str, more: &Value) -> Value {
    let mut export = json!({ "type": "nbd", "id": id, "node-name": node });
    for (name, value) in more.as_object().expect("an object") {
        export[name] = value.clone();
    }
    export
}

/// Commands, one after the other, right ones and wrong ones.
fn dialogue() -> Vec<(&'static str, Value)> {
    let path = |path: &str| json!({ "addr": { "type": "unix", "data": { "path": path } } });
    let long = "x".repeat(4097);
    vec![
        ("block-export-add", export("a", "d", &json!({}))),
        ("nbd-server-stop", json!({})),
        ("nbd-server-add", json!({ "device": "d" })),
        ("nbd-server-start", json!({})),
        (
            "nbd-server-start",
            json!({ "addr": { "type": "unix", "path": "x" } }),
        ),
        ("nbd-server-start", path("none/x")),
        ("nbd-server-start", path(&"x".repeat(120))),
        (
            "nbd-server-start",
            json!({ "addr": { "type": "unix", "data": { "path": SOCKET } }, "tls-creds": "zz" }),
        ),
        (
            "nbd-server-start",
            json!({ "addr": { "type": "inet", "data": { "host": "no.such.host.invalid", "port": "1" } } }),
        ),
        ("nbd-server-start", path(SOCKET)),
        ("nbd-server-start", path(SOCKET)),
        ("query-block-exports", json!({})),
        ("block-export-add", export("1", "d", &json!({}))),
        ("block-export-add", export("", "d", &json!({}))),
        ("block-export-add", export("a", "zz", &json!({}))),
        (
            "block-export-add",
            export("a", "base", &json!({ "writable": true })),
        ),
        (
            "block-export-add",
            export("a", "d", &json!({ "iothread": "zz" })),
        ),
        (
            "block-export-add",
            export("a", "d", &json!({ "name": long })),
        ),
        (
            "block-export-add",
            export("a", "d", &json!({ "description": long })),
        ),
        (
            "block-export-add",
            export("a", "d", &json!({ "bitmaps": ["zz"] })),
        ),
        (
            "block-export-add",
            export("a", "d", &json!({ "bitmaps": ["b0"] })),
        ),
        (
            "block-export-add",
            export(
                "a",
                "d",
                &json!({ "bitmaps": [{ "node": "zz", "name": "b0" }] }),
            ),
        ),
        (
            "block-export-add",
            export(
                "a",
                "d",
                &json!({ "bitmaps": [{ "node": "base", "name": "b0" }] }),
            ),
        ),
        ("block-export-add", export("a", "d", &json!({ "zz": 1 }))),
        (
            "block-export-add",
            export("a", "d", &json!({ "writable": "yes" })),
        ),
        (
            "block-export-add",
            export(
                "a",
                "d",
                &json!({ "writable": true, "bitmaps": ["b0", "b1"] }),
            ),
        ),
        ("block-export-add", export("a", "base", &json!({}))),
        (
            "block-export-add",
            export("b", "base", &json!({ "name": "d" })),
        ),
        (
            "block-export-add",
            export("b", "d", &json!({ "name": "x", "bitmaps": ["b1"] })),
        ),
        (
            "block-export-add",
            export("b", "base", &json!({ "description": "a line" })),
        ),
        ("query-block-exports", json!({})),
        (
            "block-dirty-bitmap-remove",
            json!({ "node": "d", "name": "b0" }),
        ),
        (
            "block-dirty-bitmap-clear",
            json!({ "node": "d", "name": "b1" }),
        ),
        ("blockdev-del", json!({ "node-name": "d" })),
        ("blockdev-del", json!({ "node-name": "base" })),
        ("nbd-server-add", json!({ "device": "n", "writable": true })),
        ("nbd-server-add", json!({ "device": "n" })),
        (
            "nbd-server-add",
            json!({ "device": "base", "name": "ro", "writable": true }),
        ),
        (
            "nbd-server-add",
            json!({ "device": "base", "name": "bad name" }),
        ),
        ("nbd-server-remove", json!({ "name": "zz" })),
        ("nbd-server-remove", json!({ "name": "n" })),
        ("block-export-del", json!({ "id": "zz" })),
        ("block-export-del", json!({ "id": "b", "mode": "bad" })),
        ("block-export-del", json!({ "id": "b" })),
        ("query-block-exports", json!({})),
        ("block-export-del", json!({ "id": "a", "mode": "hard" })),
        (
            "block-dirty-bitmap-clear",
            json!({ "node": "d", "name": "b0" }),
        ),
        ("nbd-server-stop", json!({})),
        ("query-block-exports", json!({})),
        ("nbd-server-start", path("other.sock")),
        (
            "block-export-add",
            export("c", "n", &json!({ "writable": true })),
        ),
    ]
}

#[test]
fn commands_are_answered_as_qemu_answers() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let mut both = [Program::Ringback, Program::Qemu].map(|program| {
        let directory = scratch.directory(&format!("{program:?}"));
        make_disks(&directory);
        Daemon::start(program, &directory, NODES)
    });
    for (command, arguments) in dialogue() {
        let [ours, theirs] = both.each_mut().map(|daemon| {
            let answer = daemon.qmp.execute(command, &arguments);
            (answer, daemon.qmp.take_events())
        });
        assert_eq!(ours, theirs, "{command} {arguments}");
    }
    both.into_iter().for_each(|daemon| drop(daemon.quit()));
    // QEMU leaves its own behind.
    let socket = scratch.directory("Ringback").join("other.sock");
    assert!(!socket.exists());
}

fn deleted(daemon: &mut Daemon, id: &str) {
    let is_it = |data: &Value| data["id"] == id;
    let deadline = Instant::now() + LIMIT;
    daemon
        .qmp
        .wait_event("BLOCK_EXPORT_DELETED", is_it, deadline);
}

#[test]
fn an_export_with_clients_goes_only_by_force() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    for program in [Program::Ringback, Program::Qemu] {
        let mut served = Served::start(program, &scratch);
        let path = served.socket();
        let mut visitor = Client::go(&path, Mode::Simple, "d", &[]);
        let mut other = Client::go(&path, Mode::Simple, "r", &[]);
        let mut undecided = Client::connect(&path, 3);
        let qmp = &mut served.daemon.qmp;
        let refusal = qmp.refused("block-export-del", &json!({ "id": "e0" }));
        assert_eq!(refusal.desc, "export 'e0' still in use");
        let by_force = json!({ "id": "e0", "mode": "hard" });
        qmp.run("block-export-del", &by_force);
        assert!(visitor.is_hung_up());
        deleted(&mut served.daemon, "e0");
        let answer = other.request(request(command::READ, 0, 512), &[]);
        assert!(matches!(answer, Answer::Bytes(_)), "{answer:?}");
        let gone = undecided.option(7, &crate::wire::info_payload("d", &[]));
        let gone = gone.expect("an answer");
        let text = String::from_utf8_lossy(&gone[0].1).into_owned();
        assert_eq!(text, "export 'd' not present");
        served.daemon.qmp.run("nbd-server-stop", &json!({}));
        assert!(other.is_hung_up());
        assert!(undecided.is_hung_up());
        let _ = served.daemon.quit();
    }
}

/// What was exported of a drive is what lies in it.
#[test]
fn an_export_of_a_drive_goes_with_the_medium() {
    let scratch = scratch();
    let words = [
        "--drive",
        "if=none,media=cdrom,id=drv,file.driver=null-co,file.size=1M,node-name=n",
        "--nbd-server",
        &format!("addr.type=unix,addr.path={SOCKET}"),
    ];
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    let add = json!({ "device": "drv", "name": "of-drive" });
    daemon.qmp.run("nbd-server-add", &add);
    let add = json!({ "device": "drv", "name": "idle" });
    daemon.qmp.run("nbd-server-add", &add);
    let mut client = Client::go(&scratch.join(SOCKET), Mode::Simple, "of-drive", &[]);
    daemon.qmp.run("eject", &json!({ "device": "drv" }));
    assert!(client.is_hung_up());
    deleted(&mut daemon, "idle");
    deleted(&mut daemon, "of-drive");
    let exports = daemon.qmp.run("query-block-exports", &json!({}));
    assert_eq!(exports, json!([]));
    let _ = daemon.quit();
}

#[test]
fn a_server_takes_the_place_of_the_one_before() {
    let scratch = scratch();
    let node = ["--blockdev", "null-co,node-name=n,size=1048576"];
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &node);
    let path = json!({ "addr": { "type": "unix", "data": { "path": SOCKET } } });
    for _ in 0..20 {
        daemon.qmp.run("nbd-server-start", &path);
        daemon
            .qmp
            .run("block-export-add", &export("e", "n", &json!({})));
        let mut client = Client::go(&scratch.join(SOCKET), Mode::Simple, "n", &[]);
        daemon.qmp.run("nbd-server-stop", &json!({}));
        assert!(!scratch.join(SOCKET).exists());
        assert!(client.is_hung_up());
    }
    let _ = daemon.quit();
}

#[test]
fn no_more_clients_come_in_than_may() {
    if !needs(&NEEDED[1..]) {
        return;
    }
    let scratch = scratch();
    let words = [
        "--blockdev",
        "null-co,node-name=n,size=1048576",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock,max-connections=2",
        "--export",
        "nbd,id=e,node-name=n",
    ];
    let daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    let path = scratch.join(SOCKET);
    let first = Client::go(&path, Mode::Simple, "n", &[]);
    let second = Client::connect(&path, 3);
    // The third is greeted when there is room.
    let third = std::thread::spawn(move || Client::go(&path, Mode::Simple, "n", &[]));
    let (tell, told) = std::sync::mpsc::channel();
    let waits = std::thread::spawn(move || {
        let mut third = third.join().expect("it comes in");
        let answer = third.request(request(command::READ, 0, 512), &[]);
        tell.send(answer).expect("heard");
    });
    assert!(
        told.recv_timeout(std::time::Duration::from_millis(200))
            .is_err(),
        "there is no room"
    );
    drop(second);
    let answer = told.recv_timeout(LIMIT).expect("it comes in");
    assert!(matches!(answer, Answer::Bytes(_)), "{answer:?}");
    waits.join().expect("it ends");
    drop(first);
    let _ = daemon.quit();
}

#[test]
fn who_does_not_choose_is_hung_up_on() {
    if !needs(&NEEDED[1..]) {
        return;
    }
    let scratch = scratch();
    let words = [
        "--blockdev",
        "null-co,node-name=n,size=1048576",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock,handshake-max-seconds=1",
        "--export",
        "nbd,id=e,node-name=n",
    ];
    let daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    let path = scratch.join(SOCKET);
    let mut silent = Client::connect_silent(&path);
    let mut slow = Client::connect(&path, 3);
    slow.agree(3, &[]);
    let mut chosen = Client::go(&path, Mode::Simple, "n", &[]);
    assert!(silent.is_hung_up());
    assert!(slow.is_hung_up());
    let answer = chosen.request(request(command::READ, 0, 512), &[]);
    assert!(matches!(answer, Answer::Bytes(_)), "{answer:?}");
    let _ = daemon.quit();
}
