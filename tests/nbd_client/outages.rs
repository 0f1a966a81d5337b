//! Servers that are killed and come back.

use std::path::Path;

use ringback_tests::image::{assert_identical, blank, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::wait_for;
use ringback_tests::qmp::{Daemon, Program};
use serde_json::{Value, json};

use crate::{Server, scratch};

const SIZE: u64 = 32 << 20;
const NBDKIT: &[Need] = &[Need::Program("nbdkit")];

/// A server that writes to a file, not too fast.
fn slow(directory: &Path) -> Server {
    let words = ["--filter=delay", "file", "copy.raw", "delay-write=20ms"];
    Server::nbdkit(directory, &words)
}

/// A daemon with a disk and a node on [`slow`].
fn daemon(directory: &Path, server: &Server, delay: u32) -> Daemon {
    blank(&directory.join("disk.raw"), SIZE);
    write_at(&directory.join("disk.raw"), 0, &noise(7, SIZE));
    let nbd = format!(
        "nbd,node-name=target,reconnect-delay={delay},server.type=unix,server.path={}",
        server.socket.display()
    );
    let words = [
        "--shards",
        "2",
        "--blockdev",
        "file,node-name=source,filename=disk.raw",
        "--blockdev",
        &nbd,
    ];
    Daemon::start(Program::Ringback, directory, &words)
}

fn start(daemon: &mut Daemon) {
    daemon.qmp.run(
        "blockdev-backup",
        &json!({
            "job-id": "j", "device": "source", "target": "target", "sync": "full",
            "auto-dismiss": false,
            "x-perf": { "max-workers": 4, "max-chunk": 65536 },
        }),
    );
}

fn job(daemon: &mut Daemon) -> Value {
    let jobs = daemon.qmp.run("query-jobs", &json!({}));
    jobs[0].clone()
}

/// Waits until some of it has been copied.
fn wait_until_under_way(daemon: &mut Daemon) {
    wait_for("a backup that is under way", || {
        job(daemon)["current-progress"].as_u64() > Some(2 << 20)
    });
}

#[test]
fn a_backup_goes_on_when_its_server_is_back() {
    if !needs(NBDKIT) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    blank(&directory.join("copy.raw"), SIZE);
    let server = slow(directory);
    let mut daemon = daemon(directory, &server, 60);
    start(&mut daemon);
    wait_until_under_way(&mut daemon);
    server.kill();
    assert_eq!(job(&mut daemon)["status"], "running");
    let server = slow(directory);
    daemon.qmp.wait_job("j", "concluded");
    assert_eq!(job(&mut daemon).get("error"), None);
    daemon.quit();
    drop(server);
    assert_identical(&directory.join("disk.raw"), &directory.join("copy.raw"));
}

/// Requests that wait for the server do not hold up the end.
#[test]
fn a_backup_is_cancelled_while_its_server_is_gone() {
    if !needs(NBDKIT) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    blank(&directory.join("copy.raw"), SIZE);
    let server = slow(directory);
    // Longer than a test may last.
    let mut daemon = daemon(directory, &server, 3600);
    start(&mut daemon);
    wait_until_under_way(&mut daemon);
    server.kill();
    assert_eq!(job(&mut daemon)["status"], "running");
    daemon.qmp.run("job-cancel", &json!({ "id": "j" }));
    daemon.qmp.wait_job("j", "concluded");
    let events = daemon.qmp.take_events();
    let error = events.iter().find(|event| event.name == "BLOCK_JOB_ERROR");
    assert!(error.is_none(), "{error:?}");
    daemon.quit();
}

#[test]
fn without_a_delay_a_backup_fails_and_the_next_one_succeeds() {
    if !needs(NBDKIT) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    blank(&directory.join("copy.raw"), SIZE);
    let server = slow(directory);
    let mut daemon = daemon(directory, &server, 0);
    start(&mut daemon);
    wait_until_under_way(&mut daemon);
    server.kill();
    daemon.qmp.wait_job("j", "concluded");
    assert_eq!(job(&mut daemon)["error"], "Input/output error");
    let dismiss = json!({ "id": "j" });
    daemon.qmp.run("job-dismiss", &dismiss);
    let server = Server::nbdkit(directory, &["file", "copy.raw"]);
    // The node finds the server by itself, after a while.
    wait_for("a backup that succeeds", || {
        start(&mut daemon);
        daemon.qmp.wait_job("j", "concluded");
        let has_succeeded = job(&mut daemon).get("error").is_none();
        daemon.qmp.run("job-dismiss", &dismiss);
        has_succeeded
    });
    daemon.quit();
    drop(server);
    assert_identical(&directory.join("disk.raw"), &directory.join("copy.raw"));
}

/// An export that comes back smaller is not used, and harms nobody.
#[test]
fn a_smaller_export_is_not_taken() {
    if !needs(NBDKIT) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    blank(&directory.join("copy.raw"), SIZE);
    let server = slow(directory);
    // Long enough for the second attempt, which comes after a second.
    let mut daemon = daemon(directory, &server, 3);
    start(&mut daemon);
    wait_until_under_way(&mut daemon);
    server.kill();
    let server = Server::nbdkit(directory, &["memory", "1M"]);
    daemon.qmp.wait_job("j", "concluded");
    assert_eq!(job(&mut daemon)["error"], "Input/output error");
    let finished = daemon.quit();
    finished.saying("it is smaller");
    drop(server);
}
