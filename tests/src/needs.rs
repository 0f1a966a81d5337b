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
    /// A module of Python's, and a Python that has it: see [`python_with`].
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
        Need::PythonModule(name) => python_with(name)
            .is_none()
            .then(|| format!("needs the Python module '{name}'")),
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

/// The first Python in the search path that has a module: what a distribution
/// packages is known to its own Python only, and another may come before it.
pub fn python_with(module: &str) -> Option<PathBuf> {
    let import = format!("import {module}");
    candidates("python3").find(|python| {
        let mut command = Command::new(python);
        // Away from directories here that Python would take for modules.
        command.args(["-c", &import]).current_dir("/");
        let output = command.output();
        output.is_ok_and(|output| output.status.success())
    })
}

/// Where a program is, as execvp finds it.
fn find(program: &str) -> Option<PathBuf> {
    candidates(program).next()
}

fn candidates(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let candidates = directories.into_iter();
    let candidates = candidates.map(move |directory| directory.join(program));
    candidates.filter(|candidate| candidate.is_file())
}
