//! From the command line to the end of the process.

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringback_tests::binary::ringback;
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{Running, run, wait_for};
use ringback_tests::qmp::{Daemon, Program, Qmp};
use ringback_tests::scratch::Scratch;
use serde_json::{Value, json};

use crate::beside::disks;

fn scratch() -> Scratch {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    disks(scratch.path());
    scratch
}

fn daemon(scratch: &Scratch, words: &[&str]) -> Command {
    let mut command = Program::Ringback.command();
    command.current_dir(scratch.path()).args(words);
    command
}

/// The same complaint as QEMU's, behind the name of the program.
#[test]
fn complaints() {
    let scratch = scratch();
    let has_qemu = needs(&[Need::Program("qemu-storage-daemon")]);
    for words in [
        &["--blockdev", "file,node-name=f,filename=nope"][..],
        &["--blockdev", "bogus,node-name=f"],
        &["--blockdev", "file,filename=disk"],
        &["--blockdev", "file,node-name=f,filename=disk,bogus=1"],
        &["--blockdev", "raw,node-name=r,file=f"],
        &["--chardev", "socket,path=x,server=on,wait=off"],
        &["--monitor", "chardev=nope"],
        &["--object", "bogus,id=o"],
        &["--bogus"],
        &["--blockdev"],
        &["word"],
    ] {
        let ours = run(&mut daemon(&scratch, words)).failed_with(1);
        assert!(!ours.stderr.is_empty(), "{ours:#?}");
        if !has_qemu {
            continue;
        }
        let mut qemu = Program::Qemu.command();
        let theirs = run(qemu.current_dir(scratch.path()).args(words)).failed_with(1);
        let bare = |text: &str, program: &str| text.replace(program, "PROGRAM");
        let ours = bare(&ours.stderr, "ringback daemon");
        let theirs = bare(&theirs.stderr, "qemu-storage-daemon");
        assert_eq!(last_words(&ours), last_words(&theirs), "{words:?}");
    }
}

/// Of the first line, what stands behind the option that is named there.
fn last_words(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("PROGRAM: ").unwrap_or(line);
    match line.split_once(": ") {
        Some((option, rest)) if option.starts_with("--") => rest,
        _ => line,
    }
}

#[test]
fn texts() {
    let scratch = scratch();
    let help = run(&mut daemon(&scratch, &["--help"])).succeeded();
    assert!(
        help.stdout.starts_with("Usage: ringback daemon"),
        "{help:#?}"
    );
    let version = run(&mut daemon(&scratch, &["--version"])).succeeded();
    assert!(
        version.stdout.starts_with("ringback daemon "),
        "{version:#?}"
    );
    for word in ["-h", "-V"] {
        let short = run(&mut daemon(&scratch, &[word])).succeeded();
        assert!(!short.stdout.is_empty(), "{short:#?}");
    }
}

#[test]
fn under_its_other_name() {
    let scratch = scratch();
    let link = scratch.join("qemu-storage-daemon");
    symlink(ringback(), &link).expect("a link");
    let version = run(Command::new(&link).arg("--version")).succeeded();
    assert!(
        version.stdout.contains("qemu-storage-daemon "),
        "{version:#?}"
    );
    let mut ask = Command::new(&link);
    ask.args(["--chardev", "stdio,id=c", "--monitor", "chardev=c"]);
    let text = "{'execute': 'qmp_capabilities'}{'execute': 'quit'}";
    let asked = Running::start_asking(&mut ask, text).finish().succeeded();
    assert_eq!(asked.stdout.lines().count(), 3, "{asked:#?}");
}

#[test]
fn on_standard_input() {
    let scratch = scratch();
    let words = ["--chardev", "stdio,id=c", "--monitor", "c"];
    let text = "{'execute': 'qmp_capabilities'}\n{'execute': 'query-jobs', 'id': 7}\n\
                {'execute': 'quit'}\n{'execute': 'query-jobs', 'id': 8}\n";
    let asked = Running::start_asking(&mut daemon(&scratch, &words), text);
    let asked = asked.finish().succeeded();
    let lines: Vec<Value> = asked
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(lines[0]["QMP"].is_object(), "{lines:?}");
    let answers = [
        json!({ "return": {} }),
        json!({ "return": [], "id": 7 }),
        json!({ "return": {} }),
    ];
    assert_eq!(lines[1..], answers);
}

/// Its number is in the file, and nobody else gets it.
#[test]
fn a_pid_file() {
    let scratch = scratch();
    let words = ["--pidfile", "pid"];
    let mut first = Daemon::start(Program::Ringback, scratch.path(), &words);
    // It is written before anybody is served.
    let number = std::fs::read_to_string(scratch.join("pid")).expect("a file");
    assert!(number.trim().parse::<u32>().is_ok(), "{number:?}");
    run(&mut daemon(&scratch, &words))
        .failed_with(1)
        .saying("cannot create PID file: Cannot lock pid file: Resource temporarily unavailable");
    assert!(scratch.join("pid").exists());
    assert!(first.process().is_running());
    first.quit();
    assert!(!scratch.join("pid").exists());
    // One that a process left behind by dying.
    std::fs::write(scratch.join("pid"), "1\n").expect("a file");
    Daemon::start(Program::Ringback, scratch.path(), &words).quit();
    let words = ["--pidfile", "no/where"];
    run(&mut daemon(&scratch, &words))
        .failed_with(1)
        .saying("cannot create PID file: Cannot open pid file: No such file or directory");
}

/// A process that is no child, ended when a test panics.
struct Background(Pid);

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

#[test]
fn in_the_background() {
    let scratch = scratch();
    let words = [
        "--daemonize",
        "--pidfile",
        "pid",
        "--blockdev",
        "file,node-name=f,filename=disk",
        "--chardev",
        "socket,id=c,path=qmp.sock,server=on,wait=off",
        "--monitor",
        "chardev=c",
    ];
    // When the caller is back, the process has its number.
    run(&mut daemon(&scratch, &words)).succeeded();
    let number = std::fs::read_to_string(scratch.join("pid")).expect("a file");
    let number: i32 = number.trim().parse().expect("a number");
    let background = Background(Pid::from_raw(number));
    let mut qmp = Qmp::connect(&scratch.join("qmp.sock")).negotiated();
    let nodes = qmp.run("query-named-block-nodes", &json!({}));
    assert_eq!(nodes[0]["node-name"], "f");
    qmp.run("quit", &json!({}));
    qmp.wait_end();
    wait_for("the end of the process", || !scratch.join("pid").exists());
    std::mem::forget(background);
    let words = [
        "--daemonize",
        "--blockdev",
        "file,node-name=f,filename=nope",
    ];
    run(&mut daemon(&scratch, &words))
        .failed_with(1)
        .saying("Could not open 'nope': No such file or directory");
}

/// A signal ends it as a command does: images are written and closed.
#[test]
fn signals() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let scratch = scratch();
        let qemu_img = |words: &[&str]| {
            let mut command = Command::new("qemu-img");
            run(command.current_dir(scratch.path()).args(words)).succeeded()
        };
        qemu_img(&["create", "-q", "-f", "qcow2", "image", "1M"]);
        let words = [
            "--blockdev",
            "file,node-name=f,filename=image",
            "--blockdev",
            "qcow2,node-name=q,file=f",
            "--blockdev",
            "file,node-name=dst,filename=blank",
        ];
        let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
        let bitmap = json!({ "node": "q", "name": "b", "persistent": true });
        daemon.qmp.run("block-dirty-bitmap-add", &bitmap);
        let write = json!({ "command-line": "qemu-io q \"write -P 5 64k 64k\"" });
        daemon.qmp.run("human-monitor-command", &write);
        let backup = json!({ "job-id": "j", "device": "q", "target": "dst", "sync": "none" });
        daemon.qmp.run("blockdev-backup", &backup);
        daemon.process().signal(signal);
        daemon.qmp.wait_end();
        let events: Vec<String> = daemon
            .qmp
            .take_events()
            .into_iter()
            .map(|event| event.name)
            .collect();
        assert!(
            events.contains(&"BLOCK_JOB_CANCELLED".to_owned()),
            "{events:?}"
        );
        let finished = daemon.ended();
        assert_eq!(finished.stderr, "", "{signal}");
        qemu_img(&["check", "-q", "image"]);
        let info = qemu_img(&["info", "--output=json", "image"]).stdout;
        let info: Value = serde_json::from_str(&info).expect("JSON");
        let bitmaps = &info["format-specific"]["data"]["bitmaps"];
        assert_eq!(bitmaps[0]["name"], "b", "{signal}: {info}");
    }
}

/// Events go to all that have negotiated; answers to who has asked.
#[test]
fn several_monitors() {
    let scratch = scratch();
    let words = [
        "--blockdev",
        "file,node-name=src,filename=disk",
        "--blockdev",
        "file,node-name=dst,filename=blank",
        "--chardev",
        "socket,id=two,path=two.sock,server=on,wait=off",
        "--monitor",
        "chardev=two",
        "--chardev",
        "socket,id=three,path=three.sock,server=on,wait=off",
        "--monitor",
        "chardev=three,pretty=off",
    ];
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    let mut second = Qmp::connect(&scratch.join("two.sock")).negotiated();
    let mut silent = Qmp::connect(&scratch.join("three.sock"));
    let backup = json!({ "job-id": "j", "device": "src", "target": "dst", "sync": "full" });
    daemon.qmp.run("blockdev-backup", &backup);
    daemon.qmp.wait_job("j", "null");
    second.wait_job("j", "null");
    let refusal = silent.refused("query-jobs", &json!({}));
    assert_eq!(refusal.class, "CommandNotFound");
    assert_eq!(silent.take_events(), []);
    second.run("quit", &json!({}));
    second.wait_end();
    silent.wait_end();
    daemon.ended();
}

/// A monitor has one client; the next is greeted when the first has gone.
#[test]
fn a_second_client_waits() {
    let scratch = scratch();
    let socket = "socket,id=c,path=qmp.sock,server=on,wait=off";
    let words = ["--chardev", socket, "--monitor", "chardev=c"];
    let running = Running::start(&mut daemon(&scratch, &words));
    let path = scratch.join("qmp.sock");
    let mut first = Qmp::connect(&path).negotiated();
    let second = UnixStream::connect(&path).expect("a connection that waits");
    second.set_nonblocking(true).expect("a socket");
    assert_eq!(first.run("query-jobs", &json!({})), json!([]));
    let mut byte = [0];
    let early = std::io::Read::read(&mut &second, &mut byte);
    let early = early.expect_err("nothing to read yet").kind();
    assert_eq!(early, std::io::ErrorKind::WouldBlock);
    drop(first);
    second.set_nonblocking(false).expect("a socket");
    let mut second = Qmp::greeted(second);
    // It has to negotiate for itself.
    let refusal = second.refused("query-jobs", &json!({}));
    assert_eq!(refusal.class, "CommandNotFound");
    let mut second = second.negotiated();
    second.run("quit", &json!({}));
    running.finish().succeeded();
}

#[test]
fn over_tcp() {
    let scratch = scratch();
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port();
    let socket = format!("socket,id=c,host=127.0.0.1,port={port},server=on,wait=off");
    let words = ["--chardev", &socket, "--monitor", "chardev=c"];
    let mut running = Running::start(&mut daemon(&scratch, &words));
    let mut stream = None;
    wait_for("the port", || {
        stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some() || !running.is_running()
    });
    let mut stream = stream.expect("a daemon that listens");
    stream
        .write_all(b"{\"execute\": \"qmp_capabilities\"} {\"execute\": \"quit\"}")
        .expect("somebody who reads");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut stream, &mut said).expect("three lines");
    assert_eq!(said.lines().count(), 3, "{said}");
    running.finish().succeeded();
}

/// A listening socket that the caller has opened.
#[test]
fn on_a_socket_of_the_caller() {
    let scratch = scratch();
    let path = scratch.join("qmp.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    // Of what a test opens a child inherits only what stands at 0, 1 and 2.
    let script = "exec \"$0\" daemon --chardev socket,id=c,fd=9,server=on,wait=off \
                  --monitor chardev=c 9<&0";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(ringback());
    let input = listener.try_clone().expect("a socket");
    let mut child = shell.stdin(OwnedFd::from(input)).spawn().expect("a shell");
    let mut qmp = Qmp::connect(&path).negotiated();
    qmp.run("quit", &json!({}));
    assert!(child.wait().expect("a child").success());
}

/// What comes behind a command that ends it gets no answer.
#[test]
fn requests_behind_the_end() {
    let scratch = scratch();
    let mut daemon = Daemon::start(Program::Ringback, scratch.path(), &[]);
    daemon
        .qmp
        .send(b"{'execute': 'quit', 'id': 1}{'execute': 'query-jobs', 'id': 2}");
    assert_eq!(daemon.qmp.line(), Some(json!({ "return": {}, "id": 1 })));
    assert_eq!(daemon.qmp.line(), None);
    daemon.ended();
}
