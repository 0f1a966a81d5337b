//! The same command line to ringback and to the installed qemu-storage-daemon: both print the
//! same lines and end with the same status.
//!
//! One line a row, in `command_line_texts.txt`; more are made here from every option and member.
//! Each is followed by an option that both refuse: so the daemon ends, and a line that is right
//! shows that it is by what is said of that option. A row's mark says what is expected:
//!
//! - `=` the same lines from both;
//! - `>` only qemu-storage-daemon refuses it, because of a file, a socket or a node, which the
//!   shim does not look at;
//! - `!` we refuse it in words of our own, which stand in [`OUR_WORDS`] with the reason,
//!   whatever qemu-storage-daemon does.
//!
//! Without qemu-storage-daemon the test says so and passes, except where the environment
//! has `CI=true`: there it must run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ringback_qmp_shim::command_line::{Request, parse};

const DAEMON: &str = "qemu-storage-daemon";
const ROWS: &str = include_str!("command_line_texts.txt");

/// The end of every command line.
const STOP: [&str; 2] = ["--export", "stop"];
/// What both say of it.
const STOPPED: &str = "--export stop: Parameter 'type' does not accept value 'stop'\n";

/// Our own words, and why they are not QEMU's.
const OUR_WORDS: &[&str] = &[
    // A letter that ringback has in addition.
    "x: Unexpected argument",
    // There are no trace events here.
    "Parameter 'events' is not supported by ringback",
    "Parameter 'file' is not supported by ringback",
    // Options that ringback has in addition.
    "--drive if=x: unsupported bus type 'x'",
    "--device zz: 'zz' is not a valid device model name",
    "The number of shards must be from 1 to",
    // QEMU makes up a name for the socket, and says it nowhere.
    "The path of a UNIX socket is empty",
    // QEMU forgets options that say something of another backend or address.
    " has no meaning for ",
    "'reconnect-ms' option is incompatible with",
    // QEMU cuts numbers off, or makes others of them.
    "Parameter 'to' must be a number from",
    "Parameter 'reconnect-ms' must be a number from",
    // What QEMU has and ringback has not.
    "Character device backend '",
    "=on is not supported by ringback",
    "Parameter 'tls-creds' is not supported by ringback",
    "Parameter 'logfile' is not supported by ringback",
    "Parameter 'addr.mptcp' is not supported by ringback",
    "Parameter 'keyid' is not supported by ringback",
    "Socket addresses of type 'vsock' are not supported by ringback",
    "Object type '",
    "Exports of type '",
    // QEMU has no use for it without a key's id, and forgets it.
    "Parameter 'iv' is not supported by ringback",
    // QEMU takes what it can read of it.
    "Base64 data is incomplete",
    // QEMU has the members of these types, but not the types.
    "invalid object type: ",
    // QEMU takes 0, and then there is no block.
    "parameter logical-block-size must be a power of 2",
    // QEMU would let everybody in.
    "Parameter 'tls-authz' needs 'tls-creds'",
];

#[test]
fn both_say_the_same_of_a_command_line() {
    if !daemon_is_installed() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "{DAEMON} is not installed, but CI must compare with it"
        );
        eprintln!("skipped: {DAEMON} is not installed");
        return;
    }
    let mut lines = rows();
    lines.extend(made_up());
    let directory = empty_directory();
    let mut wrong = Vec::new();
    for (mark, words) in &lines {
        let ours = ask_us(words);
        let theirs = ask_daemon(&directory, words);
        if !fits(mark, &ours, &theirs) {
            let words = words.join(" ");
            wrong.push(format!(
                "{mark} {words}\n  ours:\n{ours}  theirs:\n{theirs}"
            ));
        }
    }
    let compared = lines.len();
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 800, "only {compared}: is the table complete?");
}

fn rows() -> Vec<(String, Vec<String>)> {
    let rows = ROWS
        .lines()
        .filter(|row| !row.is_empty() && !row.starts_with('#'));
    rows.map(|row| {
        let (mark, text) = row.split_once(' ').expect("a mark");
        let text = text
            .strip_prefix('|')
            .and_then(|text| text.strip_suffix('|'));
        let words = text.expect("words between bars").split('|');
        (mark.to_owned(), words.map(str::to_owned).collect())
    })
    .collect()
}

/// Every member of every option with values that it cannot have: a text for a number or
/// switch, dots behind it, and each of JSON's types. What is right by chance is right in both.
fn made_up() -> Vec<(String, Vec<String>)> {
    // Whole arguments, to which one member is added.
    const BASES: &[(&str, &str, &str, &[&str])] = &[
        (
            "--nbd-server",
            "addr.type=inet,addr.host=127.0.0.1,addr.port=0",
            r#""addr":{"type":"inet","host":"127.0.0.1","port":"0"}"#,
            &[
                "tls-creds",
                "max-connections",
                "handshake-max-seconds",
                "bogus",
            ],
        ),
        (
            "--export",
            "nbd,id=1,node-name=n",
            r#""type":"nbd","id":"1","node-name":"n""#,
            &[
                "fixed-iothread",
                "iothread",
                "writable",
                "writethrough",
                "allow-inactive",
                "name",
                "description",
                "bitmaps",
                "allocation-depth",
                "num-queues",
            ],
        ),
        (
            "--export",
            "vhost-user-blk,id=1,node-name=n,addr.type=fd,addr.str=x",
            r#""type":"vhost-user-blk","id":"1","node-name":"n","addr":{"type":"fd","str":"x"}"#,
            &["logical-block-size", "num-queues", "iothread", "name"],
        ),
        (
            "--object",
            "iothread,id=1",
            r#""qom-type":"iothread","id":"1""#,
            &[
                "aio-max-batch",
                "thread-pool-min",
                "thread-pool-max",
                "poll-max-ns",
                "poll-grow",
                "poll-shrink",
            ],
        ),
        (
            "--object",
            "secret,id=1",
            r#""qom-type":"secret","id":"1""#,
            &["data", "file", "format", "keyid", "iv"],
        ),
        (
            "--object",
            "tls-creds-x509,id=1",
            r#""qom-type":"tls-creds-x509","id":"1""#,
            &[
                "dir",
                "endpoint",
                "priority",
                "verify-peer",
                "sanity-check",
                "passwordid",
            ],
        ),
        (
            "--object",
            "tls-creds-psk,id=1",
            r#""qom-type":"tls-creds-psk","id":"1""#,
            &["username", "verify-peer", "dir", "endpoint"],
        ),
        (
            "--object",
            "authz-list,id=1",
            r#""qom-type":"authz-list","id":"1""#,
            &["policy", "rules", "identity"],
        ),
        (
            "--monitor",
            "zz",
            r#""chardev":"zz""#,
            &["mode", "pretty", "id", "x"],
        ),
    ];
    const TEXTS: &[&str] = &["=x", "=", "=-1", ".x=1", ".0=1", "=0x10", "=1.5", "", "=on"];
    const VALUES: &[&str] = &[
        "1", "-1", "1.5", "true", "null", "[]", "{}", r#""x""#, "[1]",
    ];
    let mut lines = Vec::new();
    let mut add = |words: Vec<String>| lines.push(("=".to_owned(), words));
    for (option, text, json, members) in BASES {
        for member in *members {
            for value in TEXTS {
                add(vec![
                    (*option).to_owned(),
                    format!("{text},{member}{value}"),
                ]);
            }
            for value in VALUES {
                let argument = format!(r#"{{{json},"{member}":{value}}}"#);
                add(vec![(*option).to_owned(), argument]);
            }
        }
    }
    // Longer than any row should be.
    let node = [
        "--blockdev",
        "null-co,node-name=n",
        "--nbd-server",
        "addr.type=unix,addr.path=s",
    ];
    for len in [4096, 4097] {
        for member in ["name", "description"] {
            let mut words: Vec<_> = node.map(str::to_owned).into();
            let value = "x".repeat(len);
            words.push("--export".to_owned());
            words.push(format!("nbd,id=e,node-name=n,{member}={value}"));
            add(words);
        }
    }
    for len in [107, 108, 109] {
        for rest in ["", ",addr.abstract=on"] {
            let path = "x".repeat(len);
            let argument = format!("addr.type=unix,addr.path={path}{rest}");
            add(vec!["--nbd-server".to_owned(), argument]);
        }
    }
    lines
}

fn fits(mark: &str, ours: &str, theirs: &str) -> bool {
    match mark {
        "=" => ours == theirs,
        ">" => ours == format!("{DAEMON}: {STOPPED}") && !theirs.ends_with(STOPPED),
        "!" => ours != theirs && OUR_WORDS.iter().any(|words| ours.contains(words)),
        _ => false,
    }
}

fn ask_us(words: &[String]) -> String {
    let mut words = words.to_vec();
    words.extend(STOP.map(str::to_owned));
    let answer = parse(DAEMON, &words);
    let mut lines = answer.warnings;
    match answer.request {
        Err(line) => lines.push(line),
        Ok(Request::Show(text)) => lines.push(format!("help: {text}")),
        Ok(Request::Run(line)) => lines.push(format!("runs: {line:?}")),
    }
    lines.push(String::new());
    lines.join("\n")
}

fn daemon_is_installed() -> bool {
    Command::new(DAEMON)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn empty_directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("command_line_against_qsd");
    // It may not be there.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).expect("the build directory is writable");
    directory
}

fn ask_daemon(directory: &Path, words: &[String]) -> String {
    // A line that makes it wait for somebody shall fail the test and not hold it up.
    let output = Command::new("timeout")
        .args(["20", DAEMON])
        .args(words)
        .args(STOP)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .expect("the daemon starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(1) => said,
        other => format!("{said}ended with {other:?}\n"),
    }
}
