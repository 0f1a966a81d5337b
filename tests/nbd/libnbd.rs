//! libnbd, by its binding for Python: many requests in flight on several
//! connections, every flag, and clients that leave in the middle.

use std::process::Command;

use ringback_tests::needs::{Need, needs, python_with};
use ringback_tests::process::run;
use ringback_tests::qmp::Program;

use crate::{Served, program, scratch};

const SCRIPT: &str = include_str!("libnbd.py");
const NEEDED: &[Need] = &[
    Need::Program("qemu-img"),
    Need::Program("qemu-io"),
    Need::PythonModule("nbd"),
];

fn session(server: Program) {
    let scratch = scratch();
    let served = Served::start(server, &scratch);
    let python = python_with("nbd").expect("looked for before");
    let mut client = Command::new(python);
    client.args(["-c", SCRIPT]).arg(served.socket());
    client.current_dir(&served.directory);
    let client = run(&mut client).succeeded();
    assert_eq!(client.stdout, "done\n", "{client:#?}");
    let directory = served.directory.clone();
    let _ = served.daemon.quit();
    program(&directory, &["qemu-img", "check", "-q", "disk.qcow2"]);
}

#[test]
fn everything_that_libnbd_can_do() {
    if needs(NEEDED) {
        session(Program::Ringback);
    }
}

/// What the test demands is what QEMU does, too.
#[test]
fn everything_that_libnbd_can_do_with_qemu() {
    if needs(NEEDED) && needs(&[Need::Program("qemu-storage-daemon")]) {
        session(Program::Qemu);
    }
}
