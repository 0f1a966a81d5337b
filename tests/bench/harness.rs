//! One run of `ringback bench`, small and quick unless it says otherwise.

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
            work,
            json,
        }
    }

    /// A disk of 32 MiB and a second of guest load.
    pub(crate) fn quick(scratch: &'a Scratch) -> Self {
        Self::bare(scratch).with("--size 32M --baseline 1")
    }

    /// A given disk and a second of guest load.
    pub(crate) fn on(scratch: &'a Scratch, source: &Path) -> Self {
        Self::bare(scratch)
            .with("--baseline 1")
            .path("--source", source)
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

    /// Starts it.
    pub(crate) fn start(mut self) -> Running {
        Running::start(&mut self.command)
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(mut self) -> Finished {
        run(&mut self.command)
    }

    /// Runs it; all must be well, and nothing left behind.
    #[track_caller]
    pub(crate) fn held(mut self) -> (Finished, Report) {
        let finished = run(&mut self.command).succeeded();
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
        let finished = run(&mut self.command);
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
