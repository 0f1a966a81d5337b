//! The two copies, and both programs on them.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_ring::sim::Random;
use ringback_tests::binary::ringback;
use ringback_tests::process::{Finished, run};
use ringback_tests::scratch::Scratch;

use super::chain::{Chain, TOP, qemu};

/// Who works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Qemu,
    Ringback,
}

/// Two directories with the same chain.
pub(crate) struct Pair {
    scratch: Scratch,
}

impl Pair {
    pub(crate) fn new(chain: &Chain, random: &mut Random) -> Self {
        let this = Self {
            scratch: Scratch::new(env!("CARGO_TARGET_TMPDIR")),
        };
        // Both are copies: holes of raw files may get lost on the way.
        let origin = this.scratch.directory("origin");
        chain.make(&origin, random);
        for directory in this.directories() {
            for name in chain.files() {
                fs::copy(origin.join(name), directory.join(name)).expect("a copy");
            }
        }
        this
    }

    /// First QEMU's, then that of ringback.
    pub(crate) fn directories(&self) -> [PathBuf; 2] {
        ["qemu", "ringback"].map(|name| self.scratch.directory(name))
    }

    /// Whether qemu-img reads the same from both.
    pub(crate) fn compare(&self) -> Result<(), String> {
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "--image-opts"]);
        compare.args(self.directories().map(|path| {
            let place = path.display();
            let mut options = format!("driver=qcow2,file.filename={place}/{TOP}");
            if path.join("data").exists() {
                // The name in the image counts from where a program works.
                let _ = write!(
                    options,
                    ",data-file.driver=file,data-file.filename={place}/data"
                );
            }
            options
        }));
        let finished = run(&mut compare);
        if finished.status.success() {
            Ok(())
        } else {
            Err(format!("{finished:#?}"))
        }
    }
}

/// Runs qemu-img check.
pub(crate) fn check(directory: &Path) -> Finished {
    run(qemu(directory, "qemu-img").args(["check", "-f", "qcow2", TOP]))
}

/// Whether qemu-img finds nothing wrong with the image in a directory.
pub(crate) fn is_sound(directory: &Path) -> Result<(), String> {
    let finished = check(directory);
    if finished.status.success() {
        Ok(())
    } else {
        Err(format!("{finished:#?}"))
    }
}

/// Runs one of the shells.
pub(crate) fn shell(program: Program, directory: &Path, words: &[String]) -> Finished {
    let mut command = match program {
        Program::Qemu => qemu(directory, "qemu-io"),
        Program::Ringback => {
            let mut command = Command::new(ringback());
            command.arg("io").current_dir(directory);
            command
        }
    };
    run(command.args(words))
}

/// What was said, without what depends on the time.
pub(crate) fn said(finished: &Finished) -> Vec<String> {
    let streams = [&finished.stdout, &finished.stderr];
    let lines = streams.into_iter().flat_map(|stream| stream.lines());
    lines.map(without_time).collect()
}

fn without_time(line: &str) -> String {
    match line.split_once(" ops; ") {
        Some((amount, _)) => format!("{amount} ops; TIME"),
        None => line.into(),
    }
}
