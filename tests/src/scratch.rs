//! Directories that go away when a test ends, also by panic.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory of one test.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// Makes one. `parent` is `env!("CARGO_TARGET_TMPDIR")`, which Cargo tells
    /// tests alone: on a disk, where `/tmp` often is memory.
    ///
    /// # Panics
    ///
    /// It cannot be made.
    pub fn new(parent: &str) -> Self {
        let directory = fs::create_dir_all(parent).and_then(|()| {
            tempfile::Builder::new()
                .prefix("ringback-tests.")
                .tempdir_in(parent)
        });
        Self {
            directory: directory.expect("a scratch directory"),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it; nothing is made.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A directory in it, made if need be.
    ///
    /// # Panics
    ///
    /// It cannot be made.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }
}

/// The names in a directory, sorted.
///
/// # Panics
///
/// It cannot be read.
pub fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory to read");
    let mut names: Vec<String> = entries
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            name.to_string_lossy().into_owned()
        })
        .collect();
    names.sort();
    names
}
