//! QEMU's programs.

use std::path::Path;
use std::process::Command;

/// Runs a program, which must succeed.
pub(crate) fn tool(directory: &Path, words: &[&str]) {
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(directory)
        .output()
        .expect("the tool runs");
    assert!(
        output.status.success(),
        "{words:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
