//! Where the program under test is.
//!
//! Cargo tells a test the path only of programs of its own package, and builds
//! the others only on request. So: beside the test executable, and built once
//! if it is not there or older than the sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// `ringback` of the profile that this test was built with.
///
/// # Panics
///
/// It cannot be built.
pub fn ringback() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let directory = profile_directory();
        let binary = directory.join("ringback");
        if !is_current(&binary) {
            build(&directory);
        }
        assert!(binary.exists(), "no '{}'", binary.display());
        binary
    })
}

/// `target/<profile>`: a test lies in `target/<profile>/deps`.
fn profile_directory() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let directory = test.parent().and_then(Path::parent);
    directory.expect("a test lies in 'deps'").to_owned()
}

fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("'tests' lies in the workspace")
}

fn is_current(binary: &Path) -> bool {
    let Some(built) = modified(binary) else {
        return false;
    };
    ["Cargo.lock", "Cargo.toml", "engine", "qmp-shim", "tools"]
        .into_iter()
        .all(|name| newest(&workspace().join(name)).is_none_or(|changed| changed <= built))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|data| data.modified()).ok()
}

/// The last change of a file, or of the files below a directory.
fn newest(path: &Path) -> Option<SystemTime> {
    if !path.is_dir() {
        return modified(path);
    }
    let entries = fs::read_dir(path).ok()?.filter_map(Result::ok);
    entries.filter_map(|entry| newest(&entry.path())).max()
}

fn build(profile_directory: &Path) {
    let profile = profile_directory
        .file_name()
        .and_then(|name| name.to_str())
        .expect("profiles have plain names");
    let profile = if profile == "debug" { "dev" } else { profile };
    let target = profile_directory.parent().expect("a target directory");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "ringback"])
        .args(["--profile", profile])
        .arg("--target-dir")
        .arg(target)
        .current_dir(workspace())
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "cargo build --package ringback: {status}");
}
