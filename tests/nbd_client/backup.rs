//! Backups to servers and from them.

use ringback_tests::image::{assert_identical, blank, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::qmp::{Daemon, Program};
use serde_json::json;

use crate::{QEMU, Server, scratch};

const SIZE: u64 = 48 << 20;

/// Copies `source` to `target` in a daemon with so many shards, whose nodes are
/// these.
fn back_up(directory: &std::path::Path, shards: &str, nodes: &[&str]) {
    let mut words = vec!["--shards", shards];
    for node in nodes {
        words.extend(["--blockdev", node]);
    }
    let mut daemon = Daemon::start(Program::Ringback, directory, &words);
    daemon.qmp.run(
        "blockdev-backup",
        &json!({
            "job-id": "j", "device": "source", "target": "target", "sync": "full",
            "x-perf": { "max-workers": 32 },
        }),
    );
    daemon.qmp.wait_job("j", "concluded");
    let jobs = daemon.qmp.take_events();
    let failed = jobs.iter().find(|event| event.data.get("error").is_some());
    assert!(failed.is_none(), "{failed:?}");
    daemon.quit();
}

#[test]
fn to_a_server_and_from_it() {
    if !needs(QEMU) {
        return;
    }
    for shards in ["1", "2"] {
        let scratch = scratch();
        let directory = scratch.path();
        let (disk, copy, back) = ("disk.raw", "copy.raw", "back.raw");
        for name in [disk, copy, back] {
            blank(&directory.join(name), SIZE);
        }
        write_at(&directory.join(disk), 1 << 20, &noise(1, 20 << 20));
        write_at(&directory.join(disk), 40 << 20, &noise(2, 1000));
        let server = Server::qemu_nbd(directory, &["-f", "raw", copy]);
        let nbd = |name: &str| {
            let socket = server.socket.display();
            format!("nbd,node-name={name},server.type=unix,server.path={socket}")
        };
        back_up(
            directory,
            shards,
            &["file,node-name=source,filename=disk.raw", &nbd("target")],
        );
        back_up(
            directory,
            shards,
            &[&nbd("source"), "file,node-name=target,filename=back.raw"],
        );
        drop(server);
        assert_identical(&directory.join(disk), &directory.join(copy));
        assert_identical(&directory.join(disk), &directory.join(back));
    }
}

/// Without several connections every shard's requests go over one.
#[test]
fn to_the_storage_daemon_over_one_connection() {
    if !needs(QEMU) || !needs(&[Need::Program("qemu-storage-daemon")]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let theirs = scratch.directory("theirs");
    blank(&directory.join("disk.raw"), SIZE);
    blank(&theirs.join("copy.raw"), SIZE);
    write_at(&directory.join("disk.raw"), 12345, &noise(3, 30 << 20));
    let words = [
        "--blockdev",
        "file,node-name=f,filename=copy.raw",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock,max-connections=1",
        "--export",
        "nbd,id=e,node-name=f,name=a b,writable=on",
    ];
    let server = Daemon::start(Program::Qemu, &theirs, &words);
    let nbd = format!(
        "nbd,node-name=target,export=a b,server.type=unix,server.path={}",
        theirs.join("nbd.sock").display()
    );
    back_up(
        directory,
        "2",
        &["file,node-name=source,filename=disk.raw", &nbd],
    );
    server.quit();
    assert_identical(&directory.join("disk.raw"), &theirs.join("copy.raw"));
}
