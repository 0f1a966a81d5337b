//! Tests that need more than the program: on a user's machine they are skipped
//! with a line that says why; with `CI=true` in the environment they fail, so
//! that nobody takes a machine without QEMU for one on which all is well.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a test may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root, for devices and mounts.
    Root,
    /// Loop devices; root too.
    LoopDevices,
    /// A program in the search path.
    Program(&'static str),
    /// A module of Python's, and Python.
    PythonModule(&'static str),
}

/// Whether all that is needed is there. If not, the test returns early.
///
/// # Panics
///
/// Something is missing and `CI=true`.
#[must_use]
pub fn needs(needed: &[Need]) -> bool {
    let Some(missing) = needed.iter().find_map(|need| missing(*need)) else {
        return true;
    };
    assert!(
        std::env::var_os("CI").is_none_or(|value| value != "true"),
        "CI lacks something: {missing}"
    );
    println!("skipped: {missing}");
    false
}

fn missing(need: Need) -> Option<String> {
    let is_root = is_root();
    match need {
        Need::Root => (!is_root).then(|| "needs root".into()),
        Need::LoopDevices if !is_root => Some("needs root for loop devices".into()),
        Need::LoopDevices if !Path::new("/dev/loop-control").exists() => {
            Some("needs loop devices (/dev/loop-control)".into())
        }
        Need::LoopDevices => missing(Need::Program("losetup")),
        Need::PythonModule(_) if find("python3").is_none() => Some("needs 'python3'".into()),
        Need::PythonModule(name) => {
            let mut python = Command::new("python3");
            python.args(["-c", &format!("import {name}")]);
            let is_there = python.output().is_ok_and(|output| output.status.success());
            (!is_there).then(|| format!("needs the Python module '{name}'"))
        }
        Need::Program(name) => find(name).is_none().then(|| format!("needs '{name}'")),
    }
}

/// Whether this process is root's.
///
/// # Panics
///
/// There is no `/proc`.
pub fn is_root() -> bool {
    let own = std::fs::metadata("/proc/self").expect("/proc is mounted");
    own.uid() == 0
}

/// Where a program is, as execvp finds it.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
