//! What the name of a source or target stands for, and how it is recognized
//! later.

use std::fs::Metadata;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path at which nothing is.
    Missing(PathBuf),
    /// A regular file.
    File(PathBuf),
    /// A block device.
    Device(PathBuf),
    /// A URI or another name with a meaning: what it is, only opening tells.
    Elsewhere,
}

impl Place {
    /// Looks at what a name stands for.
    ///
    /// # Errors
    ///
    /// It is there and cannot hold a disk, or cannot be looked at.
    pub(crate) fn of(name: &str) -> Result<Self, String> {
        if name.is_empty() {
            return Err("a disk must have a name".into());
        }
        let Some(path) = path_of(name) else {
            return Ok(Self::Elsewhere);
        };
        let kind = match path.metadata() {
            Ok(data) => data.file_type(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Missing(path)),
            Err(error) => return Err(format!("'{name}': {}", reason(&error))),
        };
        if kind.is_file() {
            Ok(Self::File(path))
        } else if kind.is_block_device() {
            Ok(Self::Device(path))
        } else if kind.is_dir() {
            Err(format!("'{name}' is a directory"))
        } else {
            Err(format!("'{name}' is neither a file nor a block device"))
        }
    }
}

/// The path that a name is; none if it has a meaning of its own, such as
/// `nbd://host` or `json:{...}`.
fn path_of(name: &str) -> Option<PathBuf> {
    if let Some(path) = name.strip_prefix("file:") {
        return Some(path.into());
    }
    let prefix_end = name.find([':', '/']);
    let has_prefix = prefix_end.is_some_and(|at| name[at..].starts_with(':'));
    (!has_prefix).then(|| name.into())
}

/// By what a file or device is recognized when a backup goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Without links and detours.
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
    /// Of a file.
    pub(crate) inode: Option<u64>,
    /// When a file was last written, in nanoseconds since 1970.
    pub(crate) modified_ns: Option<i64>,
    /// Number of a device.
    pub(crate) device: Option<u64>,
}

impl Identity {
    /// Looks at a file or device that is there.
    pub(crate) fn of(path: &Path) -> Result<Self, String> {
        let fail = |error: &std::io::Error| format!("'{}': {}", path.display(), reason(error));
        let data = path.metadata().map_err(|error| fail(&error))?;
        let is_device = data.file_type().is_block_device();
        let size_bytes = if is_device {
            let file = std::fs::File::open(path);
            file.and_then(|mut file| file.seek(SeekFrom::End(0)))
                .map_err(|error| fail(&error))?
        } else {
            data.len()
        };
        Ok(Self {
            path: path.canonicalize().map_err(|error| fail(&error))?,
            size_bytes,
            inode: (!is_device).then(|| data.ino()),
            modified_ns: (!is_device).then(|| modified_ns(&data)),
            device: is_device.then(|| data.rdev()),
        })
    }

    /// Whether it is the same place, whatever was written there since.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        self.path == other.path && self.inode == other.inode && self.device == other.device
    }
}

fn modified_ns(data: &Metadata) -> i64 {
    let seconds = data.mtime().saturating_mul(1_000_000_000);
    seconds.saturating_add(data.mtime_nsec())
}

/// Whether two paths lead to the same file or device.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) else {
        return false;
    };
    if a.file_type().is_block_device() && b.file_type().is_block_device() {
        return a.rdev() == b.rdev();
    }
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Without Rust's "(os error N)".
pub(crate) fn reason(error: &std::io::Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotFound, _) => "no such file or directory".into(),
        (_, Some(errno)) => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_meaning_are_no_paths() {
        for name in ["nbd://host/x", "nbd+unix:///x?socket=s", "json:{}"] {
            assert_eq!(path_of(name), None, "{name}");
        }
        for (name, path) in [
            ("disk.img", "disk.img"),
            ("./a:b", "./a:b"),
            ("/a/b:c", "/a/b:c"),
            ("file:a:b", "a:b"),
        ] {
            assert_eq!(path_of(name), Some(path.into()), "{name}");
        }
    }
}
