//! Loop devices and mounts that go away when a test ends, also by panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{output_of, run};
use crate::scratch::Scratch;

/// A loop device over a file.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// A writable one with sectors of so many bytes.
    ///
    /// # Panics
    ///
    /// It cannot be made. See [`crate::needs`].
    pub fn new(file: &Path, sector: u32) -> Self {
        Self::make(file, &["--sector-size", &sector.to_string()])
    }

    /// One that the kernel holds read-only.
    ///
    /// # Panics
    ///
    /// It cannot be made. See [`crate::needs`].
    pub fn read_only(file: &Path) -> Self {
        Self::make(file, &["--read-only"])
    }

    fn make(file: &Path, options: &[&str]) -> Self {
        let file = file.to_str().expect("a plain path");
        let arguments = [&["--find", "--show"], options, &[file]].concat();
        let path = output_of("losetup", &arguments);
        Self {
            path: path.trim().into(),
        }
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}

/// A file system, mounted in a scratch directory.
#[derive(Debug)]
pub struct Mount<'a> {
    path: PathBuf,
    /// Lives longer: it cannot be removed while something is mounted in it.
    _scratch: &'a Scratch,
}

impl<'a> Mount<'a> {
    /// A ramfs: it has no `O_DIRECT`.
    ///
    /// # Panics
    ///
    /// It cannot be mounted. See [`crate::needs`].
    pub fn ramfs(scratch: &'a Scratch) -> Self {
        Self::make(scratch, "ramfs", Path::new("ramfs"), &[])
    }

    /// A tmpfs in which so many bytes fit.
    ///
    /// # Panics
    ///
    /// It cannot be mounted. See [`crate::needs`].
    pub fn tmpfs(scratch: &'a Scratch, bytes: u64) -> Self {
        let options = ["-o", &format!("size={bytes}")];
        Self::make(scratch, "tmpfs", Path::new("tmpfs"), &options)
    }

    /// A new ext4 on a device, mounted read-only: who overwrites it harms
    /// nobody, while the kernel may never end writing back a mutilated one.
    ///
    /// # Panics
    ///
    /// It cannot be made or mounted. See [`crate::needs`].
    pub fn ext4(scratch: &'a Scratch, device: &LoopDevice) -> Self {
        run(Command::new("mkfs.ext4").arg("-q").arg(device.path())).succeeded();
        Self::make(scratch, "ext4", device.path(), &["-o", "ro"])
    }

    fn make(scratch: &'a Scratch, kind: &str, what: &Path, options: &[&str]) -> Self {
        let path = scratch.directory(kind);
        let mut mount = Command::new("mount");
        mount.args(["-t", kind]).args(options).arg(what).arg(&path);
        run(&mut mount).succeeded();
        Self {
            path,
            _scratch: scratch,
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may still hold a file.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .status();
    }
}

/// A file that nobody may change, root neither, until dropped.
#[derive(Debug)]
pub struct Immutable<'a> {
    path: &'a Path,
}

impl<'a> Immutable<'a> {
    /// Makes a file immutable. `None`: its file system or a missing `chattr`
    /// does not allow it.
    pub fn new(path: &'a Path) -> Option<Self> {
        let done = Command::new("chattr").arg("+i").arg(path).status();
        let this = Self { path };
        let refused = || fs::OpenOptions::new().write(true).open(path).is_err();
        (done.is_ok_and(|status| status.success()) && refused()).then_some(this)
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(self.path).status();
    }
}
