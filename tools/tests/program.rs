//! The program as it is started. Cargo builds it for these tests together with all others; so
//! the tests of other packages, which start it too, find it built.

use std::process::Command;

fn ringback(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringback"));
    let output = command.args(arguments).output().expect("it starts");
    let said = String::from_utf8(output.stdout).expect("text");
    (output.status.success(), said)
}

#[test]
fn it_knows_its_version() {
    let version = format!("ringback {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(ringback(&["--version"]), (true, version));
}

#[test]
fn every_command_explains_itself() {
    let (is_good, help) = ringback(&["--help"]);
    assert!(is_good);
    for command in ["backup", "bench", "daemon", "io", "report"] {
        let listed = help
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        assert!(listed.into_iter().any(|word| word == command), "{help}");
        let (is_good, text) = ringback(&[command, "--help"]);
        assert!(is_good && text.contains(command), "{text}");
    }
}
