//! One run of `ringback bench`, small and quick unless it says
//! otherwise: the guest works only while the backup runs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::process::{Finished, Running, run};
use ringback_tests::report::Report;
use ringback_tests::scratch::{Scratch, names_in};

/// A directory of this test, on a disk.
pub(crate) fn scratch() -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A command line that grows.
pub(crate) struct Bench<'a> {
    /// Must outlive the run.
    _scratch: &'a Scratch,
    command: Command,
    /// Seconds of guest load before the backup.
    baseline: u64,
    /// Where the program makes its scratch directory.
    work: PathBuf,
    json: PathBuf,
}

impl<'a> Bench<'a> {
    /// Nothing but where to put things.
    pub(crate) fn bare(scratch: &'a Scratch) -> Self {
        let work = scratch.directory("work");
        let json = scratch.join("report.json");
        let mut command = Command::new(ringback());
        command.args(["bench", "--no-progress", "--directory"]);
        command.arg(&work).arg("--json").arg(&json);
        Self {
            _scratch: scratch,
            command,
            baseline: 0,
            work,
            json,
        }
    }

    /// A disk of 16 MiB.
    pub(crate) fn quick(scratch: &'a Scratch) -> Self {
        Self::bare(scratch).with("--size 16M")
    }

    /// A given disk.
    pub(crate) fn on(scratch: &'a Scratch, source: &Path) -> Self {
        Self::bare(scratch).path("--source", source)
    }

    /// So many seconds of guest load before the backup; else none.
    pub(crate) fn baseline(mut self, seconds: u64) -> Self {
        self.baseline = seconds;
        self
    }

    /// More words, separated by spaces.
    pub(crate) fn with(mut self, words: &str) -> Self {
        self.command.args(words.split_whitespace());
        self
    }

    /// An option with a path or another word of any kind.
    pub(crate) fn path(mut self, option: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.arg(option).arg(value);
        self
    }

    pub(crate) fn target(self, target: &Path) -> Self {
        self.path("--target", target)
    }

    fn complete(&mut self) -> &mut Command {
        let seconds = self.baseline.to_string();
        if self.command.get_args().any(|word| word == "--baseline") {
            return &mut self.command;
        }
        self.command.arg("--baseline").arg(seconds)
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Running {
        Running::start(self.complete())
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(mut self) -> Finished {
        run(self.complete())
    }

    /// Runs it; all must be well, and nothing left behind.
    #[track_caller]
    pub(crate) fn held(mut self) -> (Finished, Report) {
        let finished = run(self.complete()).succeeded();
        assert_eq!(names_in(&self.work), [""; 0], "left behind");
        let report = Report::read(&self.json);
        assert!(report.flag("/verification/held"));
        assert!(report.is_null("/verification/first_mismatch"));
        (finished, report)
    }

    /// Runs it; the report alone.
    #[track_caller]
    pub(crate) fn report(self) -> Report {
        self.held().1
    }

    /// Runs it; it must be refused with this text, and leave nothing behind.
    #[track_caller]
    pub(crate) fn refused(mut self, text: &str) -> Finished {
        let finished = run(self.complete());
        assert!(
            matches!(finished.status.code(), Some(1 | 2)),
            "{finished:#?}"
        );
        assert!(!finished.stderr.contains("panicked"), "{finished:#?}");
        assert_eq!(names_in(&self.work), [""; 0], "left behind");
        assert!(!self.json.exists(), "a report of a run that was refused");
        finished.saying(text)
    }
}
