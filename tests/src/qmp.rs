//! A client of QMP, and daemons for it: `ringback daemon` or
//! `qemu-storage-daemon`, started with the same words.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::binary::ringback;
use crate::process::{Finished, LIMIT, Running};

/// Which of the two daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `ringback daemon`.
    Ringback,
    /// `qemu-storage-daemon`.
    Qemu,
}

impl Program {
    /// A command line without options.
    pub fn command(self) -> Command {
        match self {
            Self::Ringback => {
                let mut command = Command::new(ringback());
                command.arg("daemon");
                command
            }
            Self::Qemu => Command::new("qemu-storage-daemon"),
        }
    }
}

/// An error as it comes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Such as `GenericError`.
    pub class: String,
    /// For people.
    pub desc: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Such as `JOB_STATUS_CHANGE`.
    pub name: String,
    /// Its members; null if it has none.
    pub data: Value,
}

/// What comes from the other side, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// The answer of a command.
    Reply(Result<Value, Refusal>),
    /// Something that happened.
    Event(Event),
}

/// A monitor that is talked to.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// Not waited for yet.
    events: VecDeque<Event>,
    /// Everything since [`Self::take_log`], answers too.
    log: Vec<Incoming>,
    greeting: Value,
}

impl Qmp {
    /// Reads the greeting on a connection; negotiates nothing.
    ///
    /// # Panics
    ///
    /// There is none.
    #[track_caller]
    pub fn greeted(stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(LIMIT))
            .expect("a time limit for a socket");
        let mut qmp = Self {
            reader: BufReader::new(stream),
            events: VecDeque::new(),
            log: Vec::new(),
            greeting: Value::Null,
        };
        qmp.greeting = qmp.line().expect("a greeting");
        assert!(qmp.greeting["QMP"].is_object(), "{}", qmp.greeting);
        qmp
    }

    /// Connects to a daemon that listens, or is about to.
    ///
    /// # Panics
    ///
    /// Nobody listens in time, or talks.
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        let end = Instant::now() + LIMIT;
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Self::greeted(stream),
                Err(error) if Instant::now() >= end => panic!("{}: {error}", path.display()),
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// The same, ready for commands.
    ///
    /// # Panics
    ///
    /// The other side refuses.
    #[must_use]
    #[track_caller]
    pub fn negotiated(mut self) -> Self {
        let reply = self.execute("qmp_capabilities", &json!({}));
        assert_eq!(reply, Ok(json!({})));
        self.log.clear();
        self
    }

    /// What the other side said first.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    ///
    /// Nobody takes them.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        let mut stream = self.reader.get_ref();
        stream.write_all(bytes).expect("somebody who reads");
    }

    /// The next message, whatever it is. None: the other side has hung up.
    ///
    /// # Panics
    ///
    /// Nothing comes in time, or it is not JSON.
    #[track_caller]
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("nothing comes from the monitor: {error}"),
            Ok(_) => {
                assert!(
                    line.ends_with("\r\n"),
                    "an end of line is missing: {line:?}"
                );
                let value = serde_json::from_str(&line);
                Some(value.unwrap_or_else(|error| panic!("{error}: {line}")))
            }
        }
    }

    /// The next message, kept where it belongs.
    #[track_caller]
    fn receive(&mut self) -> Option<Incoming> {
        let mut line = self.line()?;
        let incoming = if let Some(name) = line["event"].as_str() {
            assert!(line["timestamp"]["seconds"].is_u64(), "{line}");
            let name = name.to_owned();
            let data = line["data"].take();
            Incoming::Event(Event { name, data })
        } else if line.get("error").is_some() {
            let word = |name: &str| {
                let word = line["error"][name].as_str();
                word.unwrap_or_else(|| panic!("{line}")).to_owned()
            };
            let (class, desc) = (word("class"), word("desc"));
            Incoming::Reply(Err(Refusal { class, desc }))
        } else {
            assert!(line.get("return").is_some(), "{line}");
            Incoming::Reply(Ok(line["return"].take()))
        };
        self.log.push(incoming.clone());
        if let Incoming::Event(event) = &incoming {
            self.events.push_back(event.clone());
        }
        Some(incoming)
    }

    /// Runs a command. Events that come before its answer are kept.
    ///
    /// # Errors
    ///
    /// Those of the command.
    ///
    /// # Panics
    ///
    /// The other side hangs up.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Refusal> {
        let reply = self.execute_if_alive(command, arguments);
        reply.unwrap_or_else(|| panic!("hung up on {command} {arguments}"))
    }

    /// The same. None: the other side hangs up instead of an answer.
    pub fn execute_if_alive(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Option<Result<Value, Refusal>> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.send(format!("{request}\n").as_bytes());
        loop {
            if let Incoming::Reply(reply) = self.receive()? {
                return Some(reply);
            }
        }
    }

    /// Runs a command that must succeed, and answers what it returns.
    ///
    /// # Panics
    ///
    /// It does not.
    #[track_caller]
    pub fn run(&mut self, command: &str, arguments: &Value) -> Value {
        let reply = self.execute(command, arguments);
        reply.unwrap_or_else(|refusal| panic!("{command} {arguments}: {refusal:?}"))
    }

    /// Runs a command that must fail, and answers why.
    ///
    /// # Panics
    ///
    /// It succeeds.
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: &Value) -> Refusal {
        match self.execute(command, arguments) {
            Ok(value) => panic!("{command} {arguments} was not refused: {value}"),
            Err(refusal) => refusal,
        }
    }

    /// Takes the first event of this name for which `is_it` holds; others stay.
    ///
    /// # Panics
    ///
    /// It has not come by the deadline.
    #[track_caller]
    pub fn wait_event(
        &mut self,
        name: &str,
        is_it: impl Fn(&Value) -> bool,
        deadline: Instant,
    ) -> Event {
        let mut looked_at = 0;
        loop {
            let fits = |event: &Event| event.name == name && is_it(&event.data);
            if let Some(index) = self.events.iter().skip(looked_at).position(fits) {
                let event = self.events.remove(looked_at + index);
                return event.expect("an event that was found");
            }
            looked_at = self.events.len();
            let waits = deadline.saturating_duration_since(Instant::now());
            assert!(!waits.is_zero(), "no {name} among {:#?}", self.events);
            let stream = self.reader.get_ref();
            stream
                .set_read_timeout(Some(waits))
                .expect("a time limit for a socket");
            let received = self.receive();
            let stream = self.reader.get_ref();
            stream
                .set_read_timeout(Some(LIMIT))
                .expect("a time limit for a socket");
            assert!(received.is_some(), "hung up before {name}");
        }
    }

    /// Waits until a job has come to this state.
    ///
    /// # Panics
    ///
    /// It does not in time.
    #[track_caller]
    pub fn wait_job(&mut self, id: &str, status: &str) {
        let is_it = |data: &Value| data["id"] == id && data["status"] == status;
        self.wait_event("JOB_STATUS_CHANGE", is_it, Instant::now() + LIMIT);
    }

    /// Events that nobody has waited for.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// All answers and events since the last call, in their order.
    pub fn take_log(&mut self) -> Vec<Incoming> {
        std::mem::take(&mut self.log)
    }

    /// Reads until the other side hangs up.
    ///
    /// # Panics
    ///
    /// It does not in time.
    #[track_caller]
    pub fn wait_end(&mut self) {
        while self.receive().is_some() {}
    }
}

/// A daemon and its monitor, ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Running,
    /// The monitor.
    pub qmp: Qmp,
}

impl Daemon {
    /// Starts a daemon in a directory, with these words and a monitor, and
    /// negotiates. The daemon connects to the test, so nobody has to guess when
    /// it listens.
    ///
    /// # Panics
    ///
    /// It ends, or does not connect in time.
    #[track_caller]
    pub fn start(program: Program, directory: &Path, words: &[&str]) -> Self {
        let socket: PathBuf = directory.join("monitor.sock");
        // Of a daemon that was there before.
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        let mut command = program.command();
        command.current_dir(directory);
        command.args(["--chardev", "socket,id=test,path=monitor.sock,server=off"]);
        command.args(["--monitor", "chardev=test"]);
        let mut process = Running::start(command.args(words));
        let stream = accept(&listener, &mut process);
        let Some(stream) = stream else {
            panic!("{program:?} does not start: {:#?}", process.finish());
        };
        let qmp = Qmp::greeted(stream).negotiated();
        Self { process, qmp }
    }

    /// The process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }

    /// Ends it by command.
    ///
    /// # Panics
    ///
    /// It fails, or does not end in time.
    #[track_caller]
    pub fn quit(mut self) -> Finished {
        self.qmp.run("quit", &json!({}));
        self.ended()
    }

    /// Waits until it has ended for a reason of its own.
    ///
    /// # Panics
    ///
    /// It fails, or does not end in time.
    #[track_caller]
    pub fn ended(self) -> Finished {
        let finished = self.process.finish().succeeded();
        assert!(!finished.stderr.contains("panicked"), "{finished:#?}");
        finished
    }
}

/// None: the process has ended.
fn accept(listener: &UnixListener, process: &mut Running) -> Option<UnixStream> {
    listener
        .set_nonblocking(true)
        .expect("a socket that does not wait");
    let end = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a socket that waits");
                return Some(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "nobody connects: {process:?}");
                if !process.is_running() {
                    return None;
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}
