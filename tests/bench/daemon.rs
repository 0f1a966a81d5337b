//! What the program says of itself.

use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::process::{Finished, output_of, run};

fn daemon(arguments: &[&str]) -> Finished {
    run(Command::new(ringback()).arg("daemon").args(arguments))
}

#[test]
fn the_version() {
    let stdout = daemon(&["--version"]).succeeded().stdout;
    assert!(stdout.starts_with("ringback daemon "), "{stdout}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
}

#[test]
fn the_version_and_what_the_kernel_offers() {
    let stdout = daemon(&["--version", "-v"]).succeeded().stdout;
    assert!(stdout.starts_with("ringback daemon "), "{stdout}");
    let kernel = output_of("uname", &["-r"]);
    let kernel = format!("kernel: Linux {}", kernel.trim());
    assert!(stdout.contains(&kernel), "{stdout}");
    for feature in [
        "single-issuer",
        "defer-taskrun",
        "fixed-files",
        "fixed-buffers",
        "message-ring",
    ] {
        let line = format!("io_uring {feature}: ");
        assert!(stdout.contains(&line), "no '{line}' in {stdout}");
    }
    assert!(stdout.contains("locked memory limit"), "{stdout}");
}

#[test]
fn no_command_at_all() {
    run(&mut Command::new(ringback()))
        .failed_with(2)
        .saying("Usage: ringback");
}

#[test]
fn the_help_of_everything() {
    for arguments in [&["--help"][..], &["bench", "--help"], &["daemon", "--help"]] {
        let finished = run(Command::new(ringback()).args(arguments)).succeeded();
        assert!(finished.stdout.contains("Usage: ringback"));
    }
    run(Command::new(ringback()).arg("--version")).succeeded();
}
