//! The same session with `ringback daemon` and with `qemu-storage-daemon`.
//!
//! Of what comes back everything is compared, after what no client can count on
//! is made equal:
//!
//! - An answer stands directly behind its command: events may overtake it.
//! - A job that pauses and runs on without a command between has only shown
//!   that its disk stood still for a moment: both events are left out.
//! - How far a cancelled job had come.
//!
//! What `ringback` says differently, and why the tests look away:
//!
//! | what | why |
//! | --- | --- |
//! | entries of nodes beside [`COMPARED_OF_NODES`] | tests of queries look at them |
//! | who stands in whose way, behind `Permission conflict on node` | other words for the same |
//! | bitmaps of a copy-before-write filter | one stands with the disk, as in the transcript that is replayed |
//! | `ro` of a node under an overlay | QEMU makes it read-only for good |
//!
//! What the sessions leave out because the answers differ still:
//!
//! | what is asked | QEMU | ringback |
//! | --- | --- | --- |
//! | `host_device` of a regular file | refuses | opens it |
//! | `file` of `/dev/null` | `'file' driver requires ...` | words of its own |
//! | a backup to a read-only `raw` over a null disk | refuses | starts |
//! | a backup to the source of another | `Permission conflict` | `Node 'src' is busy` |
//! | a new size for a file under an image | `Permission conflict` | `Node basef is in use` |
//! | a new size for a read-only file | `Image is read-only` | `Could not resize file: ...` |
//! | a persistent bitmap of a raw disk whose name is taken | cannot store | already exists |
//! | a backup with a negative speed | shows `created`, `null` | no events |
//! | the end with a concluded job | shows `null` | no event |

use std::path::Path;

use ringback_tests::image::{MIB, blank, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::qmp::{Daemon, Event, Incoming, Program, Refusal};
use ringback_tests::scratch::Scratch;
use serde_json::{Map, Value, json};

/// A session with one of them, and what has come of it.
pub(crate) struct Talk {
    program: Program,
    scratch: Scratch,
    daemon: Daemon,
    lines: Vec<Line>,
}

/// What was said by whom.
#[derive(Clone, Debug, PartialEq)]
enum Line {
    Command(String),
    Answer(String),
    Event { job: String, text: String },
}

impl Line {
    fn text(&self) -> &str {
        let (Self::Command(text) | Self::Answer(text) | Self::Event { text, .. }) = self;
        text
    }

    /// Commands and answers stand before all events.
    fn job(&self) -> &str {
        match self {
            Self::Event { job, .. } => job,
            _ => "",
        }
    }
}

impl Talk {
    /// Starts a daemon in a directory with the files of [`disks`].
    pub(crate) fn start(program: Program, words: &[&str]) -> Self {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
        disks(scratch.path());
        let daemon = Daemon::start(program, scratch.path(), words);
        Self {
            program,
            scratch,
            daemon,
            lines: Vec::new(),
        }
    }

    /// Where its files are.
    pub(crate) fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Says a command, whatever the answer is.
    #[track_caller]
    pub(crate) fn say(&mut self, command: &str, arguments: &Value) -> Result<Value, Refusal> {
        let reply = self.say_if_alive(command, arguments);
        reply.unwrap_or_else(|| panic!("{:?} died of {command} {arguments}", self.program))
    }

    /// The same. None: the daemon has died of it.
    pub(crate) fn say_if_alive(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Option<Result<Value, Refusal>> {
        self.note();
        self.lines
            .push(Line::Command(format!("> {command} {arguments}")));
        let reply = self.daemon.qmp.execute_if_alive(command, arguments);
        self.note();
        reply
    }

    /// Says a command that must be followed.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let reply = self.say(command, arguments);
        reply.unwrap_or_else(|refusal| {
            panic!("{:?}: {command} {arguments}: {refusal:?}", self.program)
        })
    }

    /// Says a command that must be refused, and answers the description.
    #[track_caller]
    pub(crate) fn refused(&mut self, command: &str, arguments: &Value) -> String {
        match self.say(command, arguments) {
            Err(refusal) => refusal.desc,
            Ok(value) => panic!("{:?}: {command} {arguments}: {value}", self.program),
        }
    }

    /// A question whose answer is not compared.
    #[track_caller]
    pub(crate) fn look(&mut self, command: &str, arguments: &Value) -> Value {
        self.note();
        let value = self.daemon.qmp.run(command, arguments);
        for incoming in self.daemon.qmp.take_log() {
            if let Incoming::Event(event) = incoming {
                self.note_event(&event);
            }
        }
        value
    }

    /// Waits until a job has come to this state.
    #[track_caller]
    pub(crate) fn until(&mut self, id: &str, status: &str) {
        self.daemon.qmp.wait_job(id, status);
        self.note();
    }

    /// Waits for an event of this name.
    #[track_caller]
    pub(crate) fn until_event(&mut self, name: &str) {
        let deadline = std::time::Instant::now() + ringback_tests::process::LIMIT;
        self.daemon.qmp.wait_event(name, |_| true, deadline);
        self.note();
    }

    /// A line for the shell in the daemon. Only `ringback` has one.
    #[track_caller]
    pub(crate) fn shell(&mut self, line: &str) -> String {
        let arguments = json!({ "command-line": line });
        let reply = self.ask("human-monitor-command", &arguments);
        reply.as_str().expect("a text").to_owned()
    }

    fn note(&mut self) {
        for incoming in self.daemon.qmp.take_log() {
            match incoming {
                Incoming::Reply(Ok(value)) => {
                    let value = stable(value);
                    self.lines.push(Line::Answer(format!("< {value}")));
                }
                Incoming::Reply(Err(Refusal { class, desc })) => {
                    let conflict = "Permission conflict on node";
                    let desc = if desc.starts_with(conflict) {
                        conflict
                    } else {
                        &desc
                    };
                    self.lines.push(Line::Answer(format!("< {class}: {desc}")));
                }
                Incoming::Event(event) => self.note_event(&event),
            }
        }
    }

    fn note_event(&mut self, event: &Event) {
        let data = &event.data;
        let job = data["id"].as_str().or(data["device"].as_str());
        let job = job.unwrap_or_default().to_owned();
        let text = if event.name == "JOB_STATUS_CHANGE" {
            let status = data["status"].as_str().expect("a state");
            format!("{job}:{status}")
        } else {
            let mut data = stable(data.clone());
            if event.name == "BLOCK_JOB_CANCELLED" {
                data["offset"] = Value::Null;
            }
            format!("{} {data}", event.name)
        };
        self.lines.push(Line::Event { job, text });
    }

    /// What was said so far, made comparable; behind each command the events are
    /// in order for each job, but not among jobs.
    pub(crate) fn lines_by_job(&mut self) -> Vec<String> {
        self.note();
        let mut lines = comparable(self.lines.clone());
        for part in lines.chunk_by_mut(|_, next| matches!(next, Line::Event { .. })) {
            part.sort_by(|a, b| a.job().cmp(b.job()));
        }
        lines.iter().map(|line| line.text().to_owned()).collect()
    }

    /// Ends the daemon; what was said, made comparable.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.note();
        self.daemon.quit();
        let lines = comparable(self.lines);
        lines.iter().map(|line| line.text().to_owned()).collect()
    }

    /// Ends the daemon; what was said, as it was, and its directory.
    #[track_caller]
    pub(crate) fn finish_as_it_was(mut self) -> (Vec<String>, Scratch) {
        self.note();
        self.daemon.quit();
        let lines = self.lines.iter().map(|line| line.text().to_owned());
        (lines.collect(), self.scratch)
    }

    /// The same, and what the daemon wrote to its standard output.
    #[track_caller]
    pub(crate) fn finish_with_output(mut self) -> (Vec<String>, String, Scratch) {
        self.note();
        let finished = self.daemon.quit();
        let lines = self.lines.iter().map(|line| line.text().to_owned());
        (lines.collect(), finished.stdout, self.scratch)
    }

    /// The same where `quit` was said already.
    #[track_caller]
    pub(crate) fn ended(self) -> (Vec<String>, Scratch) {
        self.daemon.ended();
        let lines = self.lines.iter().map(|line| line.text().to_owned());
        (lines.collect(), self.scratch)
    }
}

/// `disk`, `spare`: a MiB of bytes without a pattern; `blank`, `blank2`: as long,
/// zeroes.
pub(crate) fn disks(directory: &Path) {
    for name in ["disk", "blank", "blank2", "spare"] {
        blank(&directory.join(name), MIB);
    }
    write_at(&directory.join("disk"), 0, &noise(1, MIB));
    write_at(&directory.join("spare"), 0, &noise(2, MIB));
}

/// What a node's entry is compared by: how it looks otherwise is a matter of the
/// tests of queries.
const COMPARED_OF_NODES: [&str; 6] = [
    "node-name",
    "drv",
    "ro",
    "dirty-bitmaps",
    "backing_file",
    "backing_file_depth",
];

/// Without what differs from one run to the next, members by their names.
fn stable(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(stable).collect(),
        Value::Object(mut members) => {
            let is_job = members.contains_key("io-status");
            if members.contains_key("backing_file_depth") {
                members.retain(|name, _| COMPARED_OF_NODES.contains(&name.as_str()));
            }
            // Those without a name belong to a filter.
            if let Some(Value::Array(bitmaps)) = members.get_mut("dirty-bitmaps") {
                bitmaps.retain(|bitmap| bitmap.get("name").is_some());
                if bitmaps.is_empty() {
                    members.remove("dirty-bitmaps");
                }
            }
            members.sort_keys();
            let members: Map<String, Value> = members
                .into_iter()
                .map(|(name, value)| {
                    let value = match name.as_str() {
                        // Of a job: whether it sleeps. Of a bitmap it counts.
                        "busy" if is_job => Value::Null,
                        _ => stable(value),
                    };
                    (name, value)
                })
                .collect();
            members.into()
        }
        Value::String(text) if text.starts_with("#block") => "#block".into(),
        other => other,
    }
}

/// See the module's text.
fn comparable(lines: Vec<Line>) -> Vec<Line> {
    let mut kept: Vec<Line> = Vec::new();
    // Where the last command stands, and what each job has shown since.
    let mut command_at = 0;
    for line in lines {
        match &line {
            Line::Command(_) => {
                command_at = kept.len();
                kept.push(line);
            }
            Line::Answer(_) => kept.insert(command_at + 1, line),
            Line::Event { job, text } => {
                let since = kept.get(command_at + 1..).unwrap_or_default();
                let of_job = |line: &Line| matches!(line, Line::Event { job: of, .. } if of == job);
                let last = since.iter().rposition(of_job);
                let last = last.map(|index| command_at + 1 + index);
                match last {
                    Some(last)
                        if *text == format!("{job}:running")
                            && kept[last].text() == format!("{job}:paused") =>
                    {
                        kept.remove(last);
                    }
                    _ => kept.push(line),
                }
            }
        }
    }
    kept
}

/// The same session with both. Answers what `ringback` said.
///
/// # Panics
///
/// QEMU's daemon says something else.
#[track_caller]
pub(crate) fn beside(words: &[&str], session: impl Fn(&mut Talk)) -> Vec<String> {
    let mut talk = Talk::start(Program::Ringback, words);
    session(&mut talk);
    let ours = talk.finish();
    if needs(&[Need::Program("qemu-storage-daemon")]) {
        let mut talk = Talk::start(Program::Qemu, words);
        session(&mut talk);
        let theirs = talk.finish();
        assert_same(&ours, &theirs);
    }
    ours
}

/// The same where events are in order for each job, but not among jobs.
#[track_caller]
pub(crate) fn beside_by_job(words: &[&str], session: impl Fn(&mut Talk)) {
    let said = |program| {
        let mut talk = Talk::start(program, words);
        session(&mut talk);
        let lines = talk.lines_by_job();
        talk.finish();
        lines
    };
    let ours = said(Program::Ringback);
    if needs(&[Need::Program("qemu-storage-daemon")]) {
        assert_same(&ours, &said(Program::Qemu));
    }
}

/// Whether both have said the same.
#[track_caller]
pub(crate) fn assert_same(ours: &[String], theirs: &[String]) {
    if let Some(at) = (0..ours.len().max(theirs.len())).find(|&at| ours.get(at) != theirs.get(at)) {
        let from = at.saturating_sub(6);
        let shown = |lines: &[String]| {
            let lines = lines.iter().skip(from).take(12);
            let short = lines.map(|line| line.chars().take(300).collect::<String>());
            short.collect::<Vec<_>>().join("\n  ")
        };
        panic!(
            "ringback:\n  {}\nqemu-storage-daemon:\n  {}\nat\n  {}\nand\n  {}",
            shown(ours),
            shown(theirs),
            ours.get(at).map_or("the end", String::as_str),
            theirs.get(at).map_or("the end", String::as_str)
        );
    }
}

/// The events among lines.
pub(crate) fn events(lines: &[String]) -> Vec<&str> {
    lines
        .iter()
        .map(String::as_str)
        .filter(|line| !line.starts_with(['<', '>']))
        .collect()
}

/// Arguments with some members more, or others.
pub(crate) fn with(base: &Value, more: &Value) -> Value {
    let mut all = base.clone();
    for (name, value) in more.as_object().expect("an object") {
        all[name] = value.clone();
    }
    all
}
