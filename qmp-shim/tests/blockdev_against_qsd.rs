//! The same `--blockdev` or `--object` text to ringback and to the installed
//! qemu-storage-daemon: both accept it, or both refuse it with the same words.
//!
//! One text a row, in `blockdev_texts.txt` and `object_texts.txt`, between bars since blanks matter. A row's mark
//! says what is expected:
//!
//! - `=` the same answer from both;
//! - `>` only qemu-storage-daemon refuses it, because of a file or of another node, which
//!   the shim does not look at; the row would be an error of ours if we refused it too;
//! - `!` we refuse it in words of our own, which stand in [`OUR_WORDS`] with the reason,
//!   whatever qemu-storage-daemon does.
//!
//! Without qemu-storage-daemon the test says so and passes, except where the environment
//! has `CI=true`: there it must run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

mod images;

use images::smallest_qcow2;
use ringback_qmp_shim::{BlockdevOptions, OptionError, ThrottleGroupOptions};

const DAEMON: &str = "qemu-storage-daemon";
const BLOCKDEV_ROWS: &str = include_str!("blockdev_texts.txt");
const OBJECT_ROWS: &str = include_str!("object_texts.txt");

/// An option behind the tested one that the daemon refuses in any case: so it ends, and
/// its last words say whether it got that far.
const STOP: [&str; 2] = ["--nbd-server", "addr.type=stop"];

/// Our own words, by what they begin with, and why they are not QEMU's.
const OUR_WORDS: &[&str] = &[
    // A driver or option of QEMU's which ringback has not got; QEMU goes on with it.
    "Driver '",
    "Parameter 'pr-manager' is not supported by ringback",
    "Parameter 'aio-max-batch' is not supported by ringback",
    "Parameter 'drop-cache' is not supported by ringback",
    "Parameter 'x-check-cache-dropped' is not supported by ringback",
    "Parameter 'encrypt' is not supported by ringback",
    "Object type '",
    // QEMU takes either of two values, and makes something else of negative numbers.
    "Parameters 'limits.bps-total' and 'x-bps-total' set the same limit",
    "Value '-5' is out of range for parameter 'iops-size'",
    "bps-total-max-length value must be in the range",
    // QEMU cuts larger numbers off and so makes others of them.
    "Value '99999999999' is out of range for parameter 'errno'",
    "Value '4294967296' is out of range for parameter 'state'",
    // QEMU opens the image before it looks at these.
    "Cannot meet constraints with align 3",
    "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
    "Cache clean interval too big",
    // QEMU encodes NUL as two other bytes and looks for such a file.
    "The file name 'a\\0.img' contains a NUL character",
    "Invalid node-name: 'a\0'",
    "Parameter 'driver' does not accept value 'a\0'",
    // QEMU opens the file before it looks at these; we refuse before anything is opened.
    "Value '-512' is out of range for parameter 'size'",
    "Specified size is not multiple of 512",
    "aio=native was specified, but it requires cache.direct=on",
    // QEMU dies.
    "Cannot create block-copy-state: min-cluster-size too large: 4294967296 > 2147483648",
];

#[test]
fn both_give_the_same_answer_for_nodes() {
    let parse = |text: &str| BlockdevOptions::parse(text).map(|_| ());
    compare("--blockdev", BLOCKDEV_ROWS, 700, parse);
}

#[test]
fn both_give_the_same_answer_for_objects() {
    let parse = |text: &str| ThrottleGroupOptions::parse(text).map(|_| ());
    compare("--object", OBJECT_ROWS, 40, parse);
}

fn compare(option: &str, rows: &str, least: usize, parse: fn(&str) -> Result<(), OptionError>) {
    if !daemon_is_installed() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "{DAEMON} is not installed, but CI must compare with it"
        );
        println!("skipped: {DAEMON} is not installed");
        return;
    }
    let directory = prepare_directory(option);
    let mut wrong = Vec::new();
    let mut compared = 0;
    for row in rows
        .lines()
        .filter(|row| !row.is_empty() && !row.starts_with('#'))
    {
        let (mark, text) = row.split_at(1);
        let text = text
            .strip_prefix(" |")
            .and_then(|text| text.strip_suffix('|'));
        let text = text.expect("the text stands between bars");
        let ours = parse(text).map_err(|error| error.to_string());
        let theirs = ask_daemon(&directory, option, text);
        compared += 1;
        if !fits(mark, &ours, &theirs) {
            wrong.push(format!(
                "{mark} {text}\n    ours:   {ours:?}\n    theirs: {theirs:?}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        compared > least,
        "only {compared} rows: is the table complete?"
    );
}

type Answer = Result<(), String>;

fn fits(mark: &str, ours: &Answer, theirs: &Answer) -> bool {
    match (mark, ours, theirs) {
        ("=", ours, theirs) => ours == theirs,
        (">", Ok(()), Err(_)) => true,
        ("!", Err(ours), theirs) => {
            theirs.as_ref() != Err(ours) && OUR_WORDS.iter().any(|words| ours.starts_with(words))
        }
        _ => false,
    }
}

fn daemon_is_installed() -> bool {
    Command::new(DAEMON)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A directory with a file of 1 MiB, a qcow2 image and nothing else that a row could name.
fn prepare_directory(option: &str) -> PathBuf {
    let name = format!("against_qsd{option}");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&directory).expect("the build directory is writable");
    let file = std::fs::File::create(directory.join("a.img")).expect("ditto");
    file.set_len(1 << 20).expect("ditto");
    std::fs::write(directory.join("q.qcow2"), smallest_qcow2("", "")).expect("ditto");
    directory
}

fn ask_daemon(directory: &Path, option: &str, text: &str) -> Answer {
    let output = Command::new(DAEMON)
        .args([option, text])
        .args(STOP)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .output()
        .expect("the daemon starts");
    match last_words(&output, option, text) {
        None => Ok(()),
        Some(words) => Err(words),
    }
}

/// What the daemon says of the tested option, or nothing if it went on to [`STOP`].
fn last_words(output: &Output, option: &str, text: &str) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let prefix = format!("{DAEMON}: {option} {text}: ");
    // The quoted text may contain line ends, so cut at prefixes and not into lines.
    let last = said.rsplit(&prefix).next().unwrap_or(&said);
    if said.contains(&format!("{DAEMON}: {} {}: ", STOP[0], STOP[1])) {
        return None;
    }
    Some(last.strip_suffix('\n').unwrap_or(last).to_owned())
}
