//! A daemon with a monitor, and somebody who talks to it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringback_tests::binary::ringback;
use ringback_tests::process::LIMIT;
use serde_json::{Value, json};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `ringback daemon`.
    Ringback,
    /// `qemu-storage-daemon`.
    Qemu,
}

/// A daemon that is asked things; it ends when dropped.
pub(crate) struct Daemon {
    child: Child,
    reader: BufReader<UnixStream>,
    /// Events that came before answers.
    pub(crate) events: Vec<Value>,
}

impl Daemon {
    /// Starts one in a directory.
    pub(crate) fn start(program: Program, directory: &Path, words: &[&str]) -> Self {
        let mut command = match program {
            Program::Ringback => {
                let mut command = Command::new(ringback());
                command.arg("daemon");
                command
            }
            Program::Qemu => Command::new("qemu-storage-daemon"),
        };
        let socket = directory.join(format!("{program:?}.sock"));
        let chardev = format!(
            "socket,id=monitor,path={},server=on,wait=off",
            socket.display()
        );
        let child = command
            .current_dir(directory)
            .args(["--chardev", &chardev, "--monitor", "chardev=monitor"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("a daemon");
        let stream = connect(&socket);
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        let mut daemon = Self {
            child,
            reader: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = daemon.line();
        assert!(greeting["QMP"].is_object(), "{greeting}");
        daemon.ask("qmp_capabilities", &json!({}));
        daemon
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Sends a command; answers what is returned, or the error with its class.
    pub(crate) fn say(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        let request = format!("{request}\n");
        let stream = self.reader.get_mut();
        stream.write_all(request.as_bytes()).expect("it listens");
        loop {
            let line = self.line();
            if line.get("event").is_some() {
                self.events.push(line);
            } else if let Some(answer) = line.get("return") {
                return answer.clone();
            } else {
                return line;
            }
        }
    }

    /// Sends a command that must be followed.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let answer = self.say(command, arguments);
        assert!(
            answer.get("error").is_none(),
            "{command} {arguments}: {answer}"
        );
        answer
    }

    /// A command for people.
    #[track_caller]
    pub(crate) fn human(&mut self, line: &str) -> String {
        let arguments = json!({ "command-line": line });
        let answer = self.ask("human-monitor-command", &arguments);
        answer.as_str().expect("a text").to_owned()
    }

    /// Asks until the answer is as wanted.
    #[track_caller]
    pub(crate) fn ask_until(&mut self, command: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let answer = self.ask(command, &json!({}));
            if is_wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < end, "{command}: {answer}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn connect(socket: &Path) -> UnixStream {
    let end = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < end, "{}: {error}", socket.display()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
