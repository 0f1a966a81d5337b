//! Clients that everybody uses.

use ringback_tests::image::{assert_identical, content};
use ringback_tests::needs::{Need, needs};
use ringback_tests::qmp::{Daemon, Program};

use crate::{Served, program, scratch};

const NEEDED: &[Need] = &[
    Need::Program("qemu-img"),
    Need::Program("qemu-io"),
    Need::Program("nbdinfo"),
    Need::Program("nbdcopy"),
];

fn uri(served: &Served, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", served.socket().display())
}

#[test]
fn nbdinfo_shows_what_the_exports_can() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let served = Served::start(Program::Ringback, &scratch);
    let (disk, plain) = (uri(&served, "d"), uri(&served, "r"));
    let ask = |words: &[&str]| program(&served.directory, words);
    assert_eq!(ask(&["nbdinfo", "--size", &disk]), "8388608\n");
    assert_eq!(ask(&["nbdinfo", "--size", &plain]), "5120000\n");
    for able in [
        "df",
        "cache",
        "fua",
        "multi-conn",
        "trim",
        "zero",
        "fast-zero",
    ] {
        ask(&["nbdinfo", "--can", able, &disk]);
    }
    ask(&["nbdinfo", "--is", "read-only", &plain]);
    let list = format!("nbd+unix://?socket={}", served.socket().display());
    let list = ask(&["nbdinfo", "--list", "--json", &list]);
    for expected in [
        "only to look at",
        "qemu:dirty-bitmap:b1",
        "qemu:allocation-depth",
    ] {
        assert!(list.contains(expected), "{list}");
    }
    let dirty = ask(&["nbdinfo", "--map=qemu:dirty-bitmap:b1", "--totals", &disk]);
    let words: Vec<_> = dirty.split_whitespace().collect();
    // 64 KiB granules of 100 KiB to 400 KiB, 1 MiB to 1.25 MiB, and of 7 MiB.
    assert!(
        words.windows(2).any(|it| it == ["720896", "8.6%"]),
        "{dirty}"
    );
    let _ = served.daemon.quit();
}

#[test]
fn copies_are_what_was_exported() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let served = Served::start(Program::Ringback, &scratch);
    let (disk, plain) = (uri(&served, "d"), uri(&served, "r"));
    let here = |words: &[&str]| program(&served.directory, words);
    let copy = ["nbdcopy", "--connections=4", "--requests=32"];
    here(&[&copy[..], &[&disk, "copied.raw"]].concat());
    here(&[
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "raw",
        "-W",
        "-m",
        "8",
        &disk,
        "converted.raw",
    ]);
    here(&[
        "qemu-img",
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        "converted.raw",
        "copied.raw",
    ]);
    here(&[
        "qemu-img",
        "compare",
        "-U",
        "-f",
        "raw",
        "-F",
        "qcow2",
        "copied.raw",
        "disk.qcow2",
    ]);
    here(&["nbdcopy", &plain, "plain.copy"]);
    assert_identical(
        &served.directory.join("plain.copy"),
        &served.directory.join("plain.raw"),
    );
    // And the other way: what is written over the wire is on the disk.
    here(&["qemu-img", "create", "-q", "-f", "raw", "new.raw", "8M"]);
    here(&["qemu-io", "-f", "raw", "-c", "write -P 77 1M 5M", "new.raw"]);
    here(&[&copy[..], &["new.raw", &disk]].concat());
    let directory = served.directory.clone();
    let _ = served.daemon.quit();
    program(
        &directory,
        &[
            "qemu-img",
            "compare",
            "-f",
            "raw",
            "-F",
            "qcow2",
            "new.raw",
            "disk.qcow2",
        ],
    );
    program(&directory, &["qemu-img", "check", "-q", "disk.qcow2"]);
}

#[test]
fn a_disk_survives_random_writes_of_fio() {
    if !needs(&[Need::Program("fio"), Need::Program("qemu-img")]) {
        return;
    }
    let scratch = scratch();
    program(
        scratch.path(),
        &["qemu-img", "create", "-q", "-f", "qcow2", "d.qcow2", "64M"],
    );
    let words = [
        "--blockdev",
        "qcow2,node-name=d,file.driver=file,file.filename=d.qcow2",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        "nbd,id=e,node-name=d,writable=on",
    ];
    let daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    let socket = scratch.join("nbd.sock");
    let uri = format!("--uri=nbd+unix:///d?socket={}", socket.display());
    let job = [
        "fio",
        "--name=g",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bs=512-64k",
        "--blockalign=512",
        // What two writes at once leave of one place nobody knows.
        "--serialize_overlap=1",
        "--iodepth=16",
        "--size=64M",
        "--io_size=32M",
        "--verify=crc32c",
        "--do_verify=1",
        "--fsync=32",
    ];
    program(scratch.path(), &job);
    let _ = daemon.quit();
    program(scratch.path(), &["qemu-img", "check", "-q", "d.qcow2"]);
    assert!(!content(&scratch.join("d.qcow2")).is_empty());
}
