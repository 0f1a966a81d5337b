//! What must not stay behind when somebody ends a comparison: programs that were
//! started, directories of large files, block devices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Something to be undone.
#[derive(Debug)]
enum LeftOver {
    /// A program that leads a process group, and all that it has started.
    ProcessGroup(i32),
    Directory(PathBuf),
    Device(Device),
}

/// A block device that was made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// Over a file, at this path.
    Loop(PathBuf),
    /// In compressed memory, with this number.
    Zram(u32),
}

/// Where zram devices are made and removed.
pub(crate) const ZRAM_CONTROL: &str = "/sys/class/zram-control";

impl Device {
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Loop(path) => path.clone(),
            Self::Zram(number) => format!("/dev/zram{number}").into(),
        }
    }

    /// It may be in use, or gone: nobody can do more about that.
    pub(crate) fn remove(&self) {
        match self {
            Self::Loop(path) => {
                let _ = Command::new("losetup").arg("--detach").arg(path).status();
            }
            Self::Zram(number) => {
                let control = Path::new(ZRAM_CONTROL).join("hot_remove");
                let _ = std::fs::write(control, number.to_string());
            }
        }
    }
}

static LEFT_OVERS: Mutex<Vec<(u64, LeftOver)>> = Mutex::new(Vec::new());

fn left_overs() -> MutexGuard<'static, Vec<(u64, LeftOver)>> {
    LEFT_OVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Undone at a signal, as long as this lives. Whoever holds it undoes it
/// otherwise.
#[derive(Debug)]
pub(crate) struct Registered(u64);

impl Registered {
    fn new(what: LeftOver) -> Self {
        let mut all = left_overs();
        let number = all.last().map_or(0, |(number, _)| number + 1);
        all.push((number, what));
        Self(number)
    }

    pub(crate) fn process_group(leader: u32) -> Self {
        Self::new(LeftOver::ProcessGroup(leader.cast_signed()))
    }

    pub(crate) fn device(device: Device) -> Self {
        Self::new(LeftOver::Device(device))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        left_overs().retain(|(number, _)| *number != self.0);
    }
}

/// A directory for large files, gone when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: TempDir,
    _registered: Registered,
}

impl Scratch {
    pub(crate) fn new(parent: &Path) -> Result<Self, String> {
        let directory = tempfile::Builder::new()
            .prefix("ringback-compare.")
            .tempdir_in(parent)
            .map_err(|error| format!("{}: {error}", parent.display()))?;
        let registered = Registered::new(LeftOver::Directory(directory.path().to_owned()));
        Ok(Self {
            directory,
            _registered: registered,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Ends this process at SIGINT, SIGTERM and SIGHUP, and clears up before. To be
/// called while there is no other thread: each has to leave the signals alone. So do
/// programs that are started, which inherit that: they are killed.
///
/// # Errors
///
/// The kernel does not hold signals back.
pub(crate) fn at_signals() -> Result<(), String> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals
        .thread_block()
        .map_err(|errno| format!("cannot hold signals back: {}", errno.desc()))?;
    std::thread::spawn(move || {
        let signal = signals.wait().unwrap_or(Signal::SIGTERM);
        // Kept to the end: nobody registers or lets go any more.
        let all = left_overs();
        clear_up(&all);
        eprintln!("ringback-compare: ended by {signal}; what was begun is removed");
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

/// Processes first, for they hold devices and write files.
fn clear_up(all: &[(u64, LeftOver)]) {
    for (_, what) in all {
        if let LeftOver::ProcessGroup(leader) = what {
            // It may have ended by itself.
            let _ = killpg(Pid::from_raw(*leader), Signal::SIGKILL);
        }
    }
    for (_, what) in all {
        if let LeftOver::Device(device) = what {
            device.remove();
        }
    }
    for (_, what) in all {
        if let LeftOver::Directory(path) = what {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_registered_goes() {
        let directory = tempfile::tempdir().unwrap();
        let files = directory.path().join("files");
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("large"), "data").unwrap();
        let mut sleep = Command::new("sleep");
        let mut child = sleep.arg("100").process_group(0).spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        let all = [
            (0, LeftOver::Directory(files.clone())),
            (1, LeftOver::ProcessGroup(id)),
        ];
        clear_up(&all);
        assert!(!files.exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn what_was_undone_is_forgotten() {
        let parent = tempfile::tempdir().unwrap();
        let known = |path: &Path| {
            let all = left_overs();
            all.iter()
                .any(|(_, what)| matches!(what, LeftOver::Directory(known) if known == path))
        };
        let scratch = Scratch::new(parent.path()).unwrap();
        let path = scratch.path().to_owned();
        assert!(path.exists() && known(&path));
        drop(scratch);
        assert!(!path.exists() && !known(&path));
    }
}
