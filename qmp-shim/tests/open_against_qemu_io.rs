//! The same file name or `--image-opts` text to ringback and to the installed qemu-io: both
//! accept it, or both refuse it with the same words; and both warn alike.
//!
//! One row a line, in `open_texts.txt`: a mark, `o` for options or `n` for a name, and the text
//! between bars. The mark says what is expected:
//!
//! - `=` the same answer from both;
//! - `>` only qemu-io refuses it, because of a file, another node or an object, which the shim
//!   does not look at;
//! - `!` we refuse it in words of our own, which stand in [`OUR_WORDS`] with the reason,
//!   whatever qemu-io does.
//!
//! Without qemu-io the test says so and passes, except where the environment has `CI=true`:
//! there it must run.

use std::path::{Path, PathBuf};
use std::process::Command;

mod images;

use images::smallest_qcow2;
use ringback_qmp_shim::blockdev::{Backing, Child, Discard, DriverOptions, Settings};
use ringback_qmp_shim::open::{BackingHeader, DriverNode, OpenNode, open};
use ringback_qmp_shim::{OptionError, opts};

const PROGRAM: &str = "qemu-io";
const ROWS: &str = include_str!("open_texts.txt");

/// The images there are: name, and name and format of the backing file.
const IMAGES: [(&str, &str, &str); 5] = [
    ("q.qcow2", "", ""),
    ("o.qcow2", "a.img", "raw"),
    ("p.qcow2", "q.qcow2", ""),
    ("sub/s.qcow2", "../o.qcow2", "qcow2"),
    ("u.qcow2", "foo:bar", "raw"),
];

/// Our own words, by what they begin with, and why they are not QEMU's.
const OUR_WORDS: &[&str] = &[
    // QEMU has the driver; a QEMU without it says the same.
    "Unknown protocol 'http'",
    "Unknown protocol 'fat'",
    "Driver '",
    "Parameter 'encrypt' is not supported by ringback",
    "Parameter 'pr-manager' is not supported by ringback",
    "Parameter 'drop-cache' is not supported by ringback",
    // QEMU opens a file, or looks for a node or an object, before it finds these.
    "Block format 'throttle' does not support the option 'x'",
    "Block protocol 'file' doesn't support the option 'foo'",
    // QEMU cuts larger numbers off and so makes others of them.
    "Value '4294967296' is out of range for parameter 'state'",
];

#[derive(Debug, PartialEq)]
struct Answer {
    warnings: Vec<String>,
    result: Result<(), String>,
}

#[test]
fn both_give_the_same_answer() {
    if !is_installed() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "{PROGRAM} is not installed, but CI must compare with it"
        );
        println!("skipped: {PROGRAM} is not installed");
        return;
    }
    let directory = prepare_directory();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for row in ROWS
        .lines()
        .filter(|row| !row.is_empty() && !row.starts_with('#'))
    {
        let (mark, row) = row.split_at(1);
        let (kind, text) = row.split_at(2);
        let text = text
            .strip_prefix(" |")
            .and_then(|text| text.strip_suffix('|'))
            .expect("the text stands between bars");
        let is_options = kind == " o";
        let ours = our_answer(is_options, text);
        let theirs = their_answer(&directory, is_options, text);
        compared += 1;
        if !fits(mark, &ours, &theirs) {
            wrong.push(format!(
                "{mark}{kind} {text}\n    ours:   {ours:?}\n    theirs: {theirs:?}"
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
        compared > 150,
        "only {compared} rows: is the table complete?"
    );
}

fn fits(mark: &str, ours: &Answer, theirs: &Answer) -> bool {
    match (mark, &ours.result, &theirs.result) {
        ("=", Ok(()), _) => ours == theirs,
        // What a node has to say is lost if it cannot be opened.
        ("=", Err(_), _) => {
            ours.result == theirs.result && theirs.warnings.starts_with(&ours.warnings)
        }
        (">", Ok(()), Err(_)) => true,
        ("!", Err(words), theirs) => {
            theirs.as_ref() != Err(words) && OUR_WORDS.iter().any(|known| words.starts_with(known))
        }
        _ => false,
    }
}

/// What qemu-io says for a node if its command line says nothing.
fn defaults() -> Settings {
    Settings {
        discard: Discard::Unmap,
        ..Settings::default()
    }
}

fn our_answer(is_options: bool, text: &str) -> Answer {
    let mut warnings = Vec::new();
    let opened = if is_options {
        opts::parse(text).and_then(|opts| {
            warnings = opts.warnings;
            open(None, &opts.options, &defaults())
        })
    } else {
        open(Some(text), &serde_json::Map::new(), &defaults())
    };
    let result = opened.and_then(|node| finish(node, &mut warnings).map(|_| ()));
    Answer {
        warnings,
        result: result.map_err(|error| error.to_string()),
    }
}

/// Goes on as the engine would: finds formats and backing files. Gives the path at the bottom.
fn finish(node: OpenNode, warnings: &mut Vec<String>) -> Result<Option<String>, OptionError> {
    let node = match node {
        OpenNode::Driver(node) => node,
        OpenNode::Probe(probe) => {
            let path = finish_child(&probe.file, warnings)?;
            let format = if path.is_some_and(|path| path.ends_with(".qcow2")) {
                "qcow2"
            } else {
                "raw"
            };
            let file = probe.file.clone();
            probe.resolve(format, file)?
        }
    };
    warnings.extend(node.warnings.clone());
    let path = match &node.driver {
        DriverOptions::File(file) | DriverOptions::HostDevice(file) => Some(file.filename.clone()),
        driver => match driver.main_child() {
            Some(child) => finish_child(child, warnings)?,
            None => None,
        },
    };
    match &node.driver {
        DriverOptions::CopyBeforeWrite(cbw) => {
            finish_child(&cbw.target, warnings)?;
        }
        DriverOptions::Qcow2(qcow2) => {
            assert!(matches!(
                qcow2.backing,
                None | Some(Backing::None | Backing::Child(Child::Node(_)))
            ));
            finish_backing(&node, path.as_deref(), warnings)?;
        }
        _ => {}
    }
    Ok(path)
}

fn finish_child(
    child: &Child<OpenNode>,
    warnings: &mut Vec<String>,
) -> Result<Option<String>, OptionError> {
    match child {
        Child::Node(_) => Ok(None),
        Child::Options(node) => finish((**node).clone(), warnings),
    }
}

fn finish_backing(
    node: &DriverNode,
    path: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<(), OptionError> {
    let same = |name: &str| path.is_some_and(|path| path.trim_start_matches("sub/../") == name);
    let image = IMAGES.iter().find(|(name, _, _)| same(name));
    let header = BackingHeader {
        file: image.map_or("", |(_, backing, _)| backing),
        format: image.map(|(_, _, format)| *format),
    };
    if let Some(backing) = node.backing(header, path)? {
        finish_child(&backing, warnings).map_err(|error| OptionError::Backing(Box::new(error)))?;
    }
    Ok(())
}

fn is_installed() -> bool {
    Command::new(PROGRAM)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn prepare_directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("open_against_qemu_io");
    std::fs::create_dir_all(directory.join("sub")).expect("the build directory is writable");
    for name in ["a.img", "a:b", "c,d.img"] {
        let file = std::fs::File::create(directory.join(name)).expect("ditto");
        file.set_len(1 << 20).expect("ditto");
    }
    for (name, backing, format) in IMAGES {
        let image = smallest_qcow2(backing, format);
        std::fs::write(directory.join(name), image).expect("ditto");
    }
    std::fs::write(
        directory.join("rules"),
        "[inject-error]\nevent = \"write_aio\"\n",
    )
    .expect("ditto");
    directory
}

fn their_answer(directory: &Path, is_options: bool, text: &str) -> Answer {
    let mut command = Command::new(PROGRAM);
    if is_options {
        command.arg("--image-opts");
    }
    let output = command
        .args([text, "-c", "quit"])
        .current_dir(directory)
        .env("LC_ALL", "C")
        .output()
        .expect("qemu-io starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let mut said = said.as_ref();
    let mut warnings = Vec::new();
    let prefix = format!("{PROGRAM}: warning: ");
    while let Some(rest) = said.strip_prefix(prefix.as_str()) {
        // One kind has two lines.
        let lines = if rest.starts_with("short-form") { 2 } else { 1 };
        let end = rest
            .match_indices('\n')
            .nth(lines - 1)
            .map_or(rest.len(), |(at, _)| at);
        // That is about the target of a copy, and not about options.
        if !rest.starts_with("The target block device") {
            warnings.push(rest[..end].to_owned());
        }
        said = rest[end..].strip_prefix('\n').unwrap_or("");
    }
    let result = if output.status.success() {
        Ok(())
    } else {
        Err(last_words(said, is_options, text))
    };
    Answer { warnings, result }
}

fn last_words(said: &str, is_options: bool, text: &str) -> String {
    let said = said.strip_suffix('\n').unwrap_or(said);
    let prefix = if is_options {
        "can't open: ".to_owned()
    } else {
        format!("can't open device {text}: ")
    };
    let said = said
        .split_once(&format!("{PROGRAM}: "))
        .map_or(said, |(_, said)| said);
    said.strip_prefix(&prefix).unwrap_or(said).to_owned()
}
