//! Running another program to its end.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cleanup::Registered;

/// Nothing that is measured takes longer: what does hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);

/// What a program that was killed needs at most to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What it printed; an error with all it said if it failed, or does not come to an
/// end.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    run_within(LIMIT, command)
}

fn run_within(limit: Duration, command: &mut Command) -> Result<String, String> {
    let output = output_within(limit, command).map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn output_within(limit: Duration, command: &mut Command) -> Result<Output, String> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| error.to_string())?;
    let id = child.id();
    let _registered = Registered::process_group(id);
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // Nobody listens any more if it has been given up.
        let _ = sender.send(child.wait_with_output());
    });
    let output = receiver.recv_timeout(limit).map_err(|_| {
        // With the programs that it has started: they hold its disks and its pipes.
        let _ = killpg(Pid::from_raw(id.cast_signed()), Signal::SIGKILL);
        let _ = receiver.recv_timeout(KILL_LIMIT);
        format!("it has not ended after {} s", limit.as_secs_f64())
    })?;
    output.map_err(|error| error.to_string())
}

/// The report in what fio has printed with `--output-format=json`.
pub(crate) fn fio_report(said: &str) -> Result<Value, String> {
    // Lines for people may come first.
    let json = &said[said.find('{').unwrap_or(0)..];
    serde_json::from_str(json).map_err(|error| format!("fio: {error}"))
}

/// Whether there is a program of this name in the search path.
pub(crate) fn is_there(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else {
        return false;
    };
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn who_hangs_is_ended_with_all_that_it_has_started() {
        let start = Instant::now();
        // Each of the two would hold the pipes to its own end.
        let mut command = shell("sleep 100 & sleep 100");
        let error = run_within(Duration::from_millis(200), &mut command).unwrap_err();
        assert!(error.ends_with("it has not ended after 0.2 s"), "{error}");
        assert!(start.elapsed() < KILL_LIMIT, "something was left behind");
    }

    #[test]
    fn who_fails_says_why() {
        let error = run(&mut shell("echo not today >&2; exit 3")).unwrap_err();
        assert!(error.contains("not today"), "{error}");
        assert_eq!(run(&mut shell("echo done")), Ok("done\n".into()));
    }

    #[test]
    fn a_report_may_follow_other_lines() {
        let said = "note: something\n{\"jobs\": []}";
        assert_eq!(fio_report(said), Ok(serde_json::json!({ "jobs": [] })));
        assert!(fio_report("nothing").is_err());
    }
}
