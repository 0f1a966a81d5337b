//! A program that runs beside this one, what it costs, and its end.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::cleanup::Registered;

/// A program that is not ready by then has failed.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);

/// A program that was told to end, and is still there by then, hangs.
const END_LIMIT: Duration = Duration::from_secs(120);

/// Ended when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    registered: Option<Registered>,
    /// What it says on standard error.
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it says goes to a file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self, String> {
        let file = File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let registered = Some(Registered::process_group(child.id()));
        Ok(Self {
            child,
            registered,
            log: log.to_owned(),
        })
    }

    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Waits until it listens at a path.
    pub(crate) fn wait_socket(&mut self, socket: &Path) -> Result<(), String> {
        let end = Instant::now() + START_LIMIT;
        while !socket.exists() {
            if let Some(end) = self.ended() {
                return Err(end);
            }
            if Instant::now() > end {
                return Err("it does not listen".into());
            }
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits until it has said this on standard error.
    pub(crate) fn wait_said(&mut self, words: &str) -> Result<(), String> {
        let end = Instant::now() + START_LIMIT;
        while !self.said().contains(words) {
            if let Some(end) = self.ended() {
                return Err(end);
            }
            if Instant::now() > end {
                return Err(format!("it does not say '{words}'"));
            }
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        // Its number may be somebody else's from now on.
        self.registered = None;
        Some(format!("{status}; it said: {}", self.said()))
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It fails, or does not come to an end.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        let status = self.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{status}; it said: {}", self.said()))
        }
    }

    /// The same, however it ends.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus, String> {
        let end = Instant::now() + END_LIMIT;
        let status = loop {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) => break status,
                None if Instant::now() > end => return Err("it does not end".into()),
                None => sleep(Duration::from_millis(1)),
            }
        };
        self.registered = None;
        Ok(status)
    }

    /// Processor time of all its threads so far.
    pub(crate) fn cpu(&self) -> Result<Duration, String> {
        let clock =
            clock_getcpuclockid(self.id()).map_err(|errno| format!("its clock: {errno}"))?;
        let time = clock_gettime(clock).map_err(|errno| format!("its clock: {errno}"))?;
        Ok(time.into())
    }

    /// The most memory that it has had, in bytes.
    pub(crate) fn memory_peak(&self) -> Result<u64, String> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        peak(&text).ok_or_else(|| format!("{path}: no VmHWM"))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), String> {
        kill(self.id(), signal).map_err(|errno| format!("{signal}: {errno}"))
    }
}

fn peak(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.registered = None;
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_found() {
        let status = "Name:\tringback\nVmPeak:\t  9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t  1 kB\n";
        assert_eq!(peak(status), Some(2 << 20));
        assert_eq!(peak("Name:\tzombie\n"), None);
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo not today >&2; exit 3"]);
        let mut process = Process::start(&mut command, &log).unwrap();
        let error = process.finish().unwrap_err();
        assert!(error.contains("not today"), "{error}");
    }
}
