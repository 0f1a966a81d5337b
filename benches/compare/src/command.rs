//! Running another program to its end.

use std::process::{Command, Stdio};

use crate::cleanup::Registered;

/// What it printed; an error with all it said if it failed.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let registered = Registered::process(child.id());
    let output = child
        .wait_with_output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    drop(registered);
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Whether there is a program of this name in the search path.
pub(crate) fn is_there(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else {
        return false;
    };
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
