//! Programs under a time limit, and waiting for events.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No test waits longer for anything.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Ended with status 0; itself for more questions.
    ///
    /// # Panics
    ///
    /// It did not.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.status.success(), "{self:#?}");
        self
    }

    /// Ended with this status and without a panic; itself for more questions.
    ///
    /// # Panics
    ///
    /// It did not.
    #[track_caller]
    pub fn failed_with(self, status: i32) -> Self {
        assert_eq!(self.status.code(), Some(status), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }

    /// Said this on standard error; itself for more questions.
    ///
    /// # Panics
    ///
    /// It did not.
    #[track_caller]
    pub fn saying(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no '{text}' in {self:#?}");
        self
    }
}

/// A program that runs, ended when dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: Option<thread::JoinHandle<String>>,
    stderr: Option<thread::JoinHandle<String>>,
}

impl Running {
    /// Starts a program.
    ///
    /// # Panics
    ///
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    /// Starts a program that reads this text from a pipe.
    ///
    /// # Panics
    ///
    /// It cannot be started.
    pub fn start_asking(command: &mut Command, text: &str) -> Self {
        let mut running = Self::start_with(command, Stdio::piped());
        let input = running.child.stdin.take();
        let text = text.to_owned();
        // It may end before it has read all.
        thread::spawn(move || input.map(|mut input| input.write_all(text.as_bytes())));
        running
    }

    fn start_with(command: &mut Command, input: Stdio) -> Self {
        let text = format!("{command:?}");
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Self {
            command: text,
            child,
            stdout,
            stderr,
        }
    }

    /// Bytes on the disk of a file of this name that the program holds open, also
    /// when it has no name any more. None: it holds no such file.
    pub fn allocated(&self, name: &str) -> Option<u64> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).ok()?;
        let mut open = files.flatten().map(|entry| entry.path());
        let file = open.find(|file| {
            let path = std::fs::read_link(file).unwrap_or_default();
            path.to_string_lossy().contains(name)
        })?;
        Some(std::fs::metadata(file).ok()?.blocks() * 512)
    }

    /// Most bytes of memory that the program has held at once so far.
    ///
    /// # Panics
    ///
    /// The kernel does not tell.
    pub fn memory_max(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.expect("a number of KiB") << 10
    }

    /// Sends a signal. Only to a program that was not waited for.
    ///
    /// # Panics
    ///
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("process numbers are small");
        kill(Pid::from_raw(id), signal).expect("a signal to a child");
    }

    /// Whether it has not ended.
    ///
    /// # Panics
    ///
    /// The kernel does not tell.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits for the end.
    ///
    /// # Panics
    ///
    /// It does not come in time; the program is killed then.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Finished {
        let in_time = wait_within(limit, || !self.is_running());
        if !in_time {
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("a child");
        let finished = Finished {
            command: self.command.clone(),
            status,
            stdout: joined(self.stdout.take()),
            stderr: joined(self.stderr.take()),
        };
        assert!(in_time, "still running after {limit:?}: {finished:#?}");
        finished
    }

    /// Waits for the end, as long as anything may take.
    ///
    /// # Panics
    ///
    /// See [`Running::finish_within`].
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.finish_within(LIMIT)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn joined(reader: Option<thread::JoinHandle<String>>) -> String {
    reader.map_or_else(String::new, |reader| reader.join().expect("a reader"))
}

/// Runs a program to its end.
///
/// # Panics
///
/// It cannot be started, or does not end in time.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    Running::start(command).finish()
}

/// Runs a program that must succeed, and answers what it wrote.
///
/// # Panics
///
/// It does not.
#[track_caller]
pub fn output_of(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments))
        .succeeded()
        .stdout
}

/// Asks again and again until the event is there.
///
/// # Panics
///
/// It does not come.
#[track_caller]
pub fn wait_for(what: &str, event: impl FnMut() -> bool) {
    assert!(wait_within(LIMIT, event), "waited in vain for {what}");
}

/// Whether the event came in time.
fn wait_within(limit: Duration, mut event: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if event() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
