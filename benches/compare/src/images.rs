//! The files that are read and written, and looking at them afterwards.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use serde_json::Value;

use crate::cleanup::Scratch;
use crate::command;
use crate::pattern;

/// Bytes that are written at a time.
const PIECE: u64 = 1 << 20;

/// How a disk is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A directory of images, gone when dropped.
pub(crate) struct Images {
    directory: Scratch,
    pub(crate) cluster_size: u64,
    /// The file system takes O_DIRECT.
    pub(crate) direct: bool,
}

impl Images {
    pub(crate) fn new(directory: &Path, cluster_size: u64) -> Result<Self, String> {
        let directory = Scratch::new(directory)?;
        let direct = takes_direct(directory.path());
        Ok(Self {
            directory,
            cluster_size,
            direct,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A raw file full of content of generation 0.
    pub(crate) fn fill_raw(&self, name: &str, size: u64) -> Result<PathBuf, String> {
        let path = self.path(name);
        fill(&path, size, 0)?;
        if self.direct {
            // Pages that are cached get in the way of direct reads.
            settle(&path)?;
        }
        Ok(path)
    }

    /// A qcow2 image of a raw file.
    pub(crate) fn convert(&self, raw: &Path, name: &str) -> Result<PathBuf, String> {
        let path = self.path(name);
        convert(raw, &path, self.cluster_size, self.direct)?;
        Ok(path)
    }

    /// An empty disk; what was there is gone.
    pub(crate) fn create(&self, format: Format, name: &str, size: u64) -> Result<(), String> {
        create(&self.path(name), format, size, self.cluster_size)
    }
}

/// Whether files of a directory can be written past the page cache.
pub(crate) fn takes_direct(directory: &Path) -> bool {
    let probe = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(directory.join("probe"));
    probe.is_ok()
}

/// The cache mode of QEMU's programs that does I/O past the page cache, or through it.
pub(crate) fn qemu_cache(direct: bool) -> &'static str {
    if direct { "none" } else { "writeback" }
}

/// A qcow2 image with every cluster of a raw file in it, in order, made by qemu-img.
pub(crate) fn convert(
    raw: &Path,
    path: &Path,
    cluster_size: u64,
    direct: bool,
) -> Result<(), String> {
    let cache = qemu_cache(direct);
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2", "-S", "0"]);
    command.args(["-T", cache, "-t", cache]);
    command.args(["-o", &format!("cluster_size={cluster_size}")]);
    command::run(command.args([raw, path])).map(drop)
}

/// An empty image; what was there is gone.
pub(crate) fn create(
    path: &Path,
    format: Format,
    size: u64,
    cluster_size: u64,
) -> Result<(), String> {
    // A new file, not the old one with new content: its blocks are not there.
    let _ = fs::remove_file(path);
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", format.name()]);
    if format == Format::Qcow2 {
        command.args(["-o", &format!("cluster_size={cluster_size}")]);
    }
    command::run(command.arg(path).arg(size.to_string())).map(drop)
}

/// Writes content of a generation over a whole file, which is made if need be, or
/// device.
pub(crate) fn fill(path: &Path, size: u64, generation: u16) -> Result<(), String> {
    let filled = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut piece = vec![0; usize::try_from(PIECE).unwrap_or(0)];
        for offset in (0..size).step_by(piece.len()) {
            pattern::fill(&mut piece, offset, generation);
            let len = piece
                .len()
                .min(usize::try_from(size - offset).unwrap_or(usize::MAX));
            file.write_all(&piece[..len])?;
        }
        file.sync_all()
    };
    filled().map_err(|error| format!("{}: {error}", path.display()))
}

/// Brings a file's data to the disk and out of the page cache.
pub(crate) fn settle(path: &Path) -> Result<(), String> {
    let settled = || -> std::io::Result<()> {
        let file = fs::File::open(path)?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    };
    settled().map_err(|error| format!("{}: {error}", path.display()))
}

/// The report of qemu-img on a qcow2 image.
///
/// # Errors
///
/// Something is wrong with the image.
pub(crate) fn check(path: &Path) -> Result<Value, String> {
    let mut command = Command::new("qemu-img");
    command.args(["check", "--output=json", "-f", "qcow2"]);
    let said = command::run(command.arg(path))?;
    serde_json::from_str(&said).map_err(|error| format!("qemu-img check: {error}"))
}
