//! The file that holds the number of the process, locked as long as it lives.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use ringback_ring::error_text;

/// A file with the process's number, removed when dropped.
pub(super) struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    _file: Flock<File>,
}

impl PidFile {
    /// Makes the file, or takes over one whose process has gone.
    ///
    /// # Errors
    ///
    /// The reason, in QEMU's words.
    pub(super) fn make(path: &str) -> Result<Self, String> {
        // The directory may change when the process goes into the background.
        let path = std::path::absolute(path).map_err(|error| error.to_string())?;
        loop {
            let file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(|error| format!("Cannot open pid file: {}", text(&error)))?;
            let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
                .map_err(|(_, errno)| format!("Cannot lock pid file: {}", error_text(errno)))?;
            if !is_still_there(&path, &file) {
                // Its owner has removed it between the two steps.
                continue;
            }
            file.set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()))
                .map_err(|error| format!("Failed to write pid file: {}", text(&error)))?;
            return Ok(Self { path, _file: file });
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_still_there(path: &PathBuf, file: &File) -> bool {
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(here)) => there.ino() == here.ino() && there.dev() == here.dev(),
        _ => false,
    }
}

fn text(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |errno| error_text(Errno::from_raw(errno)),
    )
}
