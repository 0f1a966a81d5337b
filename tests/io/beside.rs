//! Both programs side by side.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::image::{KIB, MIB, blank, content, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{Finished, Running};
use ringback_tests::scratch::Scratch;

/// The files that both find in their directories, under these names.
const IMAGE: &str = "a.img";
const PATTERN: &str = "pattern";
const HEADER: &str = "header";
const EMPTY: &str = "empty";

/// Bytes of the image.
pub(crate) const IMAGE_BYTES: u64 = MIB;

/// Two directories with the same files.
pub(crate) struct Beside {
    scratch: Scratch,
}

/// What somebody sees of a run.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    stdout: String,
    stderr: String,
    status: Option<i32>,
}

impl Beside {
    /// None: there is no qemu-io here.
    pub(crate) fn new() -> Option<Self> {
        if !needs(&[Need::Program("qemu-io")]) {
            return None;
        }
        let this = Self {
            scratch: Scratch::new(env!("CARGO_TARGET_TMPDIR")),
        };
        this.make_files();
        Some(this)
    }

    fn directories(&self) -> [PathBuf; 2] {
        ["qemu", "ringback"].map(|name| self.scratch.directory(name))
    }

    /// The files as they were at first.
    pub(crate) fn make_files(&self) {
        for directory in self.directories() {
            let image = directory.join(IMAGE);
            blank(&image, IMAGE_BYTES);
            write_at(&image, 64 * KIB, &noise(1, 64 * KIB));
            write_at(&image, 256 * KIB, &[7; 4096]);
            let files: [(&str, &[u8]); 3] = [
                (PATTERN, b"0123456789abc"),
                (HEADER, b"QFI\xfb\0\0\0\x03"),
                (EMPTY, b""),
            ];
            for (name, bytes) in files {
                std::fs::write(directory.join(name), bytes).expect("a file");
            }
        }
    }

    fn run(&self, words: &[&str], input: &str) -> [Finished; 2] {
        let [qemu, own] = self.directories();
        let mut theirs = Command::new("qemu-io");
        let mut ours = Command::new(ringback());
        ours.arg("io");
        [(&mut theirs, qemu), (&mut ours, own)].map(|(command, directory)| {
            command.args(words).current_dir(directory);
            Running::start_asking(command, input).finish()
        })
    }

    /// The same words and input must be seen to do the same. The usage text of
    /// the program is its own: its first line counts.
    #[track_caller]
    pub(crate) fn agree_on(&self, words: &[&str], input: &str) {
        let [theirs, ours] = self.run(words, input).map(|finished| Seen {
            stdout: filter(&finished.stdout),
            stderr: finished.stderr,
            status: finished.status.code(),
        });
        assert!(
            theirs == ours,
            "{words:?}\nqemu-io: {theirs:#?}\nringback: {ours:#?}\nstdin: {input}"
        );
    }

    /// Both images must hold the same.
    #[track_caller]
    pub(crate) fn same_images(&self) {
        self.same_images_after(&[]);
    }

    /// The same after these words, which are told if not.
    #[track_caller]
    pub(crate) fn same_images_after(&self, words: &[&str]) {
        let [theirs, ours] = self.directories().map(|path| content(&path.join(IMAGE)));
        let differs = theirs.iter().zip(&ours).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the first byte that differs; {words:?}");
        assert_eq!(theirs.len(), ours.len());
    }

    /// Each line alone, as `-c` on the raw image, with nothing flushed.
    #[track_caller]
    pub(crate) fn agree_on_each(&self, lines: &str) {
        for line in lines.lines().map(str::trim_start) {
            self.agree_on(&["-f", "raw", "-t", "unsafe", IMAGE, "-c", line], "");
        }
        self.same_images();
    }

    /// All lines in one session, read from a pipe.
    #[track_caller]
    pub(crate) fn agree_on_session(&self, words: &[&str], lines: &str) {
        let lines: Vec<_> = lines.lines().map(str::trim_start).collect();
        self.agree_on(words, &(lines.join("\n") + "\n"));
        self.same_images();
    }

    /// Where `ringback` works.
    pub(crate) fn own_directory(&self) -> PathBuf {
        let [_, own] = self.directories();
        own
    }

    /// A path outside of both.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }
}

/// A directory with nothing but what a test of `ringback` alone needs.
pub(crate) fn alone(directory: &Path, words: &[&str], input: &str) -> Finished {
    let mut command = Command::new(ringback());
    command.arg("io").args(words).current_dir(directory);
    Running::start_asking(&mut command, input).finish()
}

/// Without what depends on the time, and without the text about the program's
/// options.
pub(crate) fn filter(stdout: &str) -> String {
    let mut lines = Vec::new();
    for line in stdout.lines() {
        if lines.is_empty() && line.starts_with("Usage: ") {
            return line.into();
        }
        lines.push(without_time(line));
    }
    lines.join("\n")
}

fn without_time(line: &str) -> String {
    if let Some((amount, _)) = line.split_once(" ops; ")
        && line.ends_with(" ops/sec)")
    {
        return format!("{amount} ops; TIME");
    }
    let fields: Vec<_> = line.split(',').collect();
    if let [bytes, "1", time, _, _] = fields[..]
        && time.split(':').count() == 3
    {
        return format!("{bytes},1,TIME");
    }
    line.into()
}

#[test]
fn the_filter_leaves_all_but_times() {
    assert_eq!(
        without_time("512 bytes, 1 ops; 00.00 sec (8.220 MiB/sec and 16834.7334 ops/sec)"),
        "512 bytes, 1 ops; TIME"
    );
    assert_eq!(
        without_time("512,1,0:00:00.00,316714.875,618.584"),
        "512,1,TIME"
    );
    assert_eq!(without_time("read failed: x"), "read failed: x");
    assert_eq!(filter("Usage: x\nmore"), "Usage: x");
}
