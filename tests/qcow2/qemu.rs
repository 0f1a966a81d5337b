//! QEMU's tools, and what they say about images.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs a tool in a directory; what it wrote to standard output.
#[track_caller]
pub(crate) fn run(directory: &Path, words: &[&str]) -> String {
    match try_run(directory, words) {
        Ok(stdout) => stdout,
        Err(stderr) => panic!("{words:?}: {stderr}"),
    }
}

/// The same; standard error if it failed.
pub(crate) fn try_run(directory: &Path, words: &[&str]) -> Result<String, String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(directory)
        .output()
        .expect("the tool runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// Fails unless `qemu-img check` finds nothing at all, not even a leak.
#[track_caller]
pub(crate) fn check(directory: &Path, name: &str) {
    run(directory, &["qemu-img", "check", "-q", "-f", "qcow2", name]);
}

/// What `qemu-img info` says about an image's bitmaps: name, granularity, flags.
#[track_caller]
pub(crate) fn bitmaps(directory: &Path, name: &str) -> Vec<(String, u64, Vec<String>)> {
    let words = ["qemu-img", "info", "-f", "qcow2", "--output=json", name];
    let info: Value = serde_json::from_str(&run(directory, &words)).expect("JSON");
    let found = &info["format-specific"]["data"]["bitmaps"];
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let bitmap = |value: &Value| {
        let flags = value["flags"].as_array().expect("flags");
        (
            text(&value["name"]),
            value["granularity"].as_u64().expect("a number"),
            flags.iter().map(text).collect(),
        )
    };
    found
        .as_array()
        .map_or_else(Vec::new, |found| found.iter().map(bitmap).collect())
}
