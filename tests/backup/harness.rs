//! A directory with disks, and backups of them.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::image::{blank, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{Finished, Running, run, wait_for};
use ringback_tests::scratch::Scratch;
use serde_json::Value;

/// Whether QEMU can judge.
#[must_use]
pub(crate) fn can_judge() -> bool {
    needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")])
}

/// The directory of one test.
pub(crate) struct Place {
    scratch: Scratch,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            scratch: Scratch::new(env!("CARGO_TARGET_TMPDIR")),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A raw disk with data here and there.
    pub(crate) fn raw(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        blank(&path, bytes);
        for part in 0..4 {
            let data = noise(part + 1, bytes / 16);
            write_at(&path, bytes / 4 * part, &data);
        }
        path
    }

    /// A raw disk without a zero.
    pub(crate) fn full_raw(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        blank(&path, bytes);
        write_at(&path, 0, &noise(bytes, bytes));
        path
    }

    /// The same as a qcow2 image.
    pub(crate) fn qcow2(&self, name: &str, bytes: u64) -> PathBuf {
        let raw = self.raw("made.raw", bytes);
        let path = self.path(name);
        self.tool("qemu-img", "convert -f raw -O qcow2 made.raw")
            .arg(&path)
            .status()
            .expect("qemu-img runs");
        std::fs::remove_file(raw).expect("it was made");
        path
    }

    /// A program in this directory; words are separated by spaces.
    pub(crate) fn tool(&self, program: &str, words: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.scratch.path())
            .args(words.split_whitespace());
        command
    }

    /// `ringback backup` in this directory.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = self.tool(ringback().to_str().expect("a plain path"), "backup");
        command.args(words.split_whitespace());
        command
    }

    /// The same, started by another program.
    pub(crate) fn under(&self, program: &str, words: &str) -> Command {
        let mut command = self.tool(program, "");
        command.arg(ringback()).arg("backup");
        command.args(words.split_whitespace());
        command
    }

    #[track_caller]
    pub(crate) fn backup(&self, words: &str) -> Finished {
        run(&mut self.command(words))
    }

    /// A backup that works, and what it says of itself.
    #[track_caller]
    pub(crate) fn report(&self, words: &str) -> Value {
        let finished = self.backup(&format!("{words} --json")).succeeded();
        parse(&finished.stdout)
    }

    /// A backup that is refused, in these words.
    #[track_caller]
    pub(crate) fn refused(&self, status: i32, words: &str, text: &str) {
        self.backup(words).failed_with(status).saying(text);
    }

    pub(crate) fn start(&self, words: &str) -> Running {
        Running::start(&mut self.command(words))
    }

    /// Writes to an image as a guest would.
    #[track_caller]
    pub(crate) fn write(&self, image: &str, pattern: u8, offset: &str, len: &str) {
        let format = if image.ends_with(".qcow2") {
            "qcow2"
        } else {
            "raw"
        };
        let mut qemu_io = self.tool("qemu-io", &format!("-f {format} {image} -c"));
        qemu_io.arg(format!("write -P {pattern} {offset} {len}"));
        run(&mut qemu_io).succeeded();
    }

    /// QEMU finds the same disk in both.
    #[track_caller]
    pub(crate) fn assert_same(&self, a: &str, b: &str) {
        run(&mut self.tool("qemu-img", &format!("compare {a} {b}"))).succeeded();
    }

    /// QEMU finds nothing wrong with a qcow2 image.
    #[track_caller]
    pub(crate) fn assert_sound(&self, image: &str) {
        run(&mut self.tool("qemu-img", &format!("check -f qcow2 {image}"))).succeeded();
    }

    /// QEMU finds nothing worse than clusters that nobody uses: a process that is
    /// killed may leave some.
    #[track_caller]
    pub(crate) fn assert_not_corrupt(&self, image: &str) {
        let checked = run(&mut self.tool("qemu-img", &format!("check -f qcow2 {image}")));
        assert!(matches!(checked.status.code(), Some(0 | 3)), "{checked:#?}");
    }

    /// What QEMU says of an image.
    #[track_caller]
    pub(crate) fn info(&self, image: &str) -> Value {
        let mut info = self.tool("qemu-img", &format!("info -U --output=json {image}"));
        parse(&run(&mut info).succeeded().stdout)
    }

    /// The bitmaps of an image, as name and flags.
    #[track_caller]
    pub(crate) fn bitmaps(&self, image: &str) -> String {
        let info = self.info(image);
        let bitmaps = &info["format-specific"]["data"]["bitmaps"];
        let mut text = String::new();
        for bitmap in bitmaps.as_array().into_iter().flatten() {
            let _ = write!(text, "{} {};", bitmap["name"], bitmap["flags"]);
        }
        text
    }

    /// What a run has noted, as far as it has.
    pub(crate) fn state(&self, target: &str) -> Option<Value> {
        let text = std::fs::read_to_string(self.path(&state_of(target))).ok()?;
        Some(parse(&text))
    }

    /// Bytes that are noted as done.
    pub(crate) fn noted(&self, target: &str) -> u64 {
        let state = self.state(target);
        let done = state.as_ref().and_then(|state| state["done"].as_array());
        done.into_iter()
            .flatten()
            .filter_map(|run| run[1].as_u64())
            .sum()
    }

    /// Waits until a backup has noted something.
    #[track_caller]
    pub(crate) fn wait_for_note(&self, target: &str) {
        wait_for("a note of what is done", || self.noted(target) > 0);
    }
}

/// The name of the state beside a target.
pub(crate) fn state_of(target: &str) -> String {
    format!("{target}.ringback-state")
}

pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[track_caller]
pub(crate) fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
