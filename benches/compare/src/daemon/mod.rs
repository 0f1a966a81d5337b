//! The two daemons, driven by the same words: `ringback daemon` and
//! `qemu-storage-daemon`.

pub(crate) mod process;
pub(crate) mod qmp;

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::process::{Process, START_LIMIT};
use crate::daemon::qmp::Qmp;
use crate::place::Image;

/// The name of every backup job.
pub(crate) const JOB: &str = "backup";

/// Who does the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// This program of ringback's.
    Ringback(PathBuf),
    /// `qemu-storage-daemon`, with this `aio`.
    Qemu(&'static str),
}

/// QEMU's daemon, as the program is called.
pub(crate) const QSD: &str = "qemu-storage-daemon";

impl System {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ringback(_) => "ringback",
            Self::Qemu(_) => "qsd",
        }
    }

    fn command(&self) -> Command {
        match self {
            Self::Ringback(program) => {
                let mut command = Command::new(program);
                command.arg("daemon");
                command
            }
            Self::Qemu(_) => Command::new(QSD),
        }
    }
}

/// A daemon that runs, with a monitor and an NBD server. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    system: System,
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    nbd: PathBuf,
}

impl Daemon {
    /// Starts one; its sockets are made in the directory.
    pub(crate) fn start(system: &System, directory: &Path) -> Result<Self, String> {
        let (monitor, nbd) = (directory.join("monitor.sock"), directory.join("nbd.sock"));
        for socket in [&monitor, &nbd] {
            // Of the one before.
            let _ = std::fs::remove_file(socket);
        }
        let listener = UnixListener::bind(&monitor)
            .map_err(|error| format!("{}: {error}", monitor.display()))?;
        let mut command = system.command();
        // The daemon comes to us: nobody has to guess when it listens.
        let chardev = format!("socket,id=monitor,path={},server=off", monitor.display());
        command.args(["--chardev", &chardev, "--monitor", "chardev=monitor"]);
        let server = format!(
            "addr.type=unix,addr.path={},max-connections=0",
            nbd.display()
        );
        command.args(["--nbd-server", &server]);
        let log = directory.join(format!("{}.log", system.name()));
        let mut process = Process::start(&mut command, &log)?;
        let stream = accept(&listener, &mut process)
            .map_err(|error| format!("{} does not start: {error}", system.name()))?;
        let qmp = Qmp::new(stream)?;
        Ok(Self {
            system: system.clone(),
            process,
            qmp,
            nbd,
        })
    }

    /// Where its NBD server listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.nbd
    }

    /// Runs a command that must succeed.
    pub(crate) fn run(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let reply = self.qmp.run(command, arguments);
        reply.map_err(|error| format!("{}: {error}", self.system.name()))
    }

    /// Opens an image as `node`, above a protocol node `node-file`.
    pub(crate) fn add_image(
        &mut self,
        node: &str,
        image: &Image,
        read_only: bool,
    ) -> Result<(), String> {
        let file = format!("{node}-file");
        let mut protocol = json!({
            "driver": if image.is_device { "host_device" } else { "file" },
            "node-name": file,
            "filename": image.path,
            "read-only": read_only,
            "cache": { "direct": image.direct },
        });
        if let System::Qemu(aio) = self.system {
            protocol["aio"] = aio.into();
        }
        self.run("blockdev-add", &protocol)?;
        let format = json!({
            "driver": image.format.name(), "node-name": node, "file": file, "read-only": read_only,
        });
        self.run("blockdev-add", &format).map(drop)
    }

    /// Closes what [`Self::add_image`] has opened, with all that is to be written.
    pub(crate) fn del_image(&mut self, node: &str) -> Result<(), String> {
        self.del_node(node)?;
        self.del_node(&format!("{node}-file"))
    }

    pub(crate) fn del_node(&mut self, node: &str) -> Result<(), String> {
        self.run("blockdev-del", &json!({ "node-name": node }))
            .map(drop)
    }

    /// Offers a node over NBD under its own name.
    pub(crate) fn export(&mut self, node: &str, writable: bool) -> Result<(), String> {
        let export = json!({
            "type": "nbd", "id": node, "node-name": node, "name": node, "writable": writable,
        });
        self.run("block-export-add", &export).map(drop)
    }

    /// Ends an export and hangs up on its clients.
    pub(crate) fn unexport(&mut self, node: &str) -> Result<(), String> {
        let del = json!({ "id": node, "mode": "hard" });
        self.run("block-export-del", &del)?;
        self.qmp
            .wait_event("BLOCK_EXPORT_DELETED", |data| data["id"] == node)
            .map(drop)
    }

    /// Starts a backup of `disk` to `target`, with these arguments in addition.
    pub(crate) fn start_backup(&mut self, more: &Value) -> Result<(), String> {
        let mut arguments = json!({ "job-id": JOB, "device": "disk", "target": "target" });
        for (name, value) in more.as_object().into_iter().flatten() {
            arguments[name] = value.clone();
        }
        self.run("blockdev-backup", &arguments).map(drop)
    }

    /// Waits until a backup has ended well.
    pub(crate) fn wait_backup(&mut self) -> Result<(), String> {
        let end = self.qmp.wait_completed(JOB);
        end.map_err(|error| format!("{}: {error}", self.system.name()))
    }

    /// How often writes have waited for readers of a snapshot, and how long, since
    /// this was asked last. Not known where the daemon does not count it.
    pub(crate) fn reader_wait(&mut self) -> Result<ReaderWait, String> {
        if self.system.name() != "ringback" {
            return Ok(ReaderWait::UNKNOWN);
        }
        let reset = json!({ "reset": true });
        let answer = self
            .qmp
            .run_if_known("x-query-latency-histograms", &reset)?;
        Ok(ReaderWait::of(&answer.unwrap_or_default()))
    }

    /// Processor time in seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, String> {
        Ok(self.process.cpu()?.as_secs_f64())
    }

    /// Ends it by command.
    pub(crate) fn quit(mut self) -> Result<(), String> {
        self.run("quit", &json!({}))?;
        let end = self.process.finish();
        end.map_err(|error| format!("{} at its end: {error}", self.system.name()))
    }
}

/// What writes have waited for readers of a snapshot; NaN where it is not known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReaderWait {
    pub(crate) count: f64,
    /// In milliseconds.
    pub(crate) p99: f64,
}

impl ReaderWait {
    const UNKNOWN: Self = Self {
        count: f64::NAN,
        p99: f64::NAN,
    };

    fn of(histograms: &Value) -> Self {
        let mut all = histograms.as_array().into_iter().flatten();
        let Some(own) = all.find(|one| one["class"] == "cbw-reader-wait") else {
            return Self::UNKNOWN;
        };
        let number = |name: &str| own[name].as_f64().unwrap_or(f64::NAN);
        Self {
            count: number("count"),
            p99: number("p99-ns") / 1e6,
        }
    }
}

fn accept(listener: &UnixListener, process: &mut Process) -> Result<UnixStream, String> {
    let failed = |error: std::io::Error| error.to_string();
    listener.set_nonblocking(true).map_err(failed)?;
    let end = Instant::now() + START_LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(failed)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(failed(error)),
            Err(_) => {}
        }
        if let Some(end) = process.ended() {
            return Err(end);
        }
        if Instant::now() > end {
            return Err("it does not connect to the monitor's socket".into());
        }
        sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_never_happened_has_a_count_and_no_length() {
        let histograms = json!([
            { "class": "guest-write", "count": 7, "p99-ns": 1 },
            { "class": "cbw-reader-wait", "count": 0 },
        ]);
        let wait = ReaderWait::of(&histograms);
        assert!(wait.count == 0.0 && wait.p99.is_nan());
        let wait = ReaderWait::of(&json!([
            { "class": "cbw-reader-wait", "count": 2, "p99-ns": 1_500_000 },
        ]));
        assert_eq!((wait.count, wait.p99), (2.0, 1.5));
        assert!(ReaderWait::of(&Value::Null).count.is_nan());
    }
}
