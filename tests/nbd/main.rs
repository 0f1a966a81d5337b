//! The NBD server, as clients see it: those that everybody uses, ones that send
//! whatever comes to their mind, and the same ones beside `qemu-storage-daemon`.

mod beside;
mod clients;
mod exports;
mod fleecing;
mod hostile;
mod libnbd;
mod listening;
mod tcp;
mod wire;

use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_tests::process::run;
use ringback_tests::qmp::{Daemon, Program};
use ringback_tests::scratch::Scratch;

/// Where the server listens, in the test's directory.
const SOCKET: &str = "nbd.sock";
const MIB: u64 = 1 << 20;

/// A directory for one test.
fn scratch() -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Runs a program that must succeed, in a directory.
#[track_caller]
fn program(directory: &Path, words: &[&str]) -> String {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(directory);
    run(&mut command).succeeded().stdout
}

/// A qcow2 image with data, zeroes, a backing file and a bitmap, and a raw one.
fn make_disks(directory: &Path) {
    let sh = |line: &str| drop(program(directory, &["sh", "-ec", line]));
    sh("qemu-img create -q -f raw base.raw 3M");
    sh("qemu-io -f raw -c 'write -P 9 0 512k' -c 'write -P 8 2M 1M' base.raw >/dev/null");
    sh("qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 8M");
    sh("qemu-img bitmap --add -g 4096 disk.qcow2 b0");
    sh("qemu-img bitmap --add -g 65536 disk.qcow2 b1");
    sh(
        "qemu-io -f qcow2 -c 'write -P 1 100k 300k' -c 'write -z 1M 256k' -c 'write -P 3 7M 4k' \
        disk.qcow2 >/dev/null",
    );
    sh("qemu-img bitmap --disable disk.qcow2 b1");
    sh("qemu-io -f qcow2 -c 'write -P 4 5M 64k' disk.qcow2 >/dev/null");
    sh("qemu-img create -q -f raw plain.raw 5000k");
    sh("qemu-io -f raw -c 'write -P 5 64k 1M' plain.raw >/dev/null");
}

/// What is exported of [`make_disks`]: `d` with everything, `r` read-only.
const EXPORTS: &[&str] = &[
    "--blockdev",
    "raw,node-name=base,file.driver=file,file.filename=base.raw,read-only=on",
    "--blockdev",
    "qcow2,node-name=d,file.driver=file,file.filename=disk.qcow2,backing=base",
    "--blockdev",
    "raw,node-name=r,file.driver=file,file.filename=plain.raw",
    "--nbd-server",
    "addr.type=unix,addr.path=nbd.sock,max-connections=0",
    "--export",
    "nbd,id=e0,node-name=d,name=d,writable=on,bitmaps.0=b0,bitmaps.1=b1,allocation-depth=on",
    "--export",
    "nbd,id=e1,node-name=r,name=r,description=only to look at",
];

/// A server with its own copy of the disks.
struct Served {
    daemon: Daemon,
    directory: PathBuf,
}

impl Served {
    fn start(program: Program, scratch: &Scratch) -> Self {
        let directory = scratch.directory(&format!("{program:?}"));
        make_disks(&directory);
        let daemon = Daemon::start(program, &directory, EXPORTS);
        Self { daemon, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }
}
