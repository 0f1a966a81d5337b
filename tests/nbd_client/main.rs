//! NBD nodes on the servers that everybody uses: `qemu-nbd`, `nbdkit` and
//! `qemu-storage-daemon`.

mod backup;
mod nodes;
mod outages;
mod shell;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::needs::Need;
use ringback_tests::process::{Finished, Running, run, wait_for};
use ringback_tests::scratch::Scratch;

const QEMU: &[Need] = &[
    Need::Program("qemu-nbd"),
    Need::Program("qemu-io"),
    Need::Program("qemu-img"),
];
const NBDKIT: &[Need] = &[
    Need::Program("nbdkit"),
    Need::Program("qemu-io"),
    Need::Program("qemu-img"),
];

/// A directory for one test.
fn scratch() -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A server that listens at a socket of its own, killed when dropped.
struct Server {
    socket: PathBuf,
    process: Running,
}

impl Server {
    /// Starts a program in a directory and waits until it listens at this socket.
    fn start(directory: &Path, socket: &str, words: &[&str]) -> Self {
        let socket = directory.join(socket);
        // Of a server that was killed.
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(directory);
        let mut process = Running::start(&mut command);
        wait_for("a server that listens", || {
            assert!(process.is_running(), "{words:?} ends: {process:?}");
            UnixStream::connect(&socket).is_ok()
        });
        Self { socket, process }
    }

    /// `nbdkit` with these words, which name plugin, filters and parameters.
    fn nbdkit(directory: &Path, words: &[&str]) -> Self {
        let all = [
            &["nbdkit", "--exit-with-parent", "-f", "-U", "nbdkit.sock"],
            words,
        ]
        .concat();
        Self::start(directory, "nbdkit.sock", &all)
    }

    /// `qemu-nbd` with an image, for any number of clients.
    fn qemu_nbd(directory: &Path, words: &[&str]) -> Self {
        let socket = directory.join("qemu-nbd.sock");
        let socket = socket.to_str().expect("a plain path");
        let all = [&["qemu-nbd", "-t", "-e", "0", "-k", socket], words].concat();
        Self::start(directory, "qemu-nbd.sock", &all)
    }

    /// The export's file name.
    fn url(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Kills it, and waits until it is gone.
    fn kill(self) {
        drop(self.process);
    }
}

/// `ringback io` with a file name and commands.
fn io(url: &str, words: &[&str], commands: &[&str]) -> Finished {
    shell(Command::new(ringback()).arg("io"), url, words, commands)
}

/// `qemu-io` with the same.
fn qemu_io(url: &str, words: &[&str], commands: &[&str]) -> Finished {
    shell(&mut Command::new("qemu-io"), url, words, commands)
}

fn shell(program: &mut Command, url: &str, words: &[&str], commands: &[&str]) -> Finished {
    program.args(words);
    for command in commands {
        program.args(["-c", command]);
    }
    run(program.arg(url))
}

/// Runs a program that must succeed, in a directory.
#[track_caller]
fn program(directory: &Path, words: &[&str]) -> String {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(directory);
    run(&mut command).succeeded().stdout
}

/// The two hold the same bytes, as QEMU sees them.
#[track_caller]
fn assert_same(one: &str, other: &str) {
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-f", "raw", "-F", "raw", one, other]);
    run(&mut command).succeeded();
}
