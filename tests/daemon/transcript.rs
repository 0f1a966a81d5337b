//! A transcript of QEMU's test of backups with bitmaps: 21 scenarios and the
//! arguments that are refused. It is replayed line by line: what was sent is
//! sent, what came must come, and no line is passed over.
//!
//! | in the transcript | here |
//! | --- | --- |
//! | `write ...`, `{"return": ""}` | the command, by the device |
//! | `{"return": ""}` alone | a flush by the device |
//! | `{}` | a step of making an image that is not shown: see [`Step`] |
//! | a `"bitmaps"` object | those of all nodes |
//! | `qemu_img compare` | QEMU's program, after the chain is made whole |

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{LIMIT, run};
use ringback_tests::qmp::{Daemon, Program};
use ringback_tests::scratch::Scratch;
use serde_json::{Map, Value, json};

const TRANSCRIPT: &str = include_str!("transcripts/bitmap-sync.out");
const DISK_BYTES: u64 = 67_108_864;
/// What stands before the names of files.
const PREFIX: &str = "TEST_DIR/PID-";
/// The scenarios and the refusals.
const SECTIONS: usize = 22;

/// What is made next for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    MakeFile,
    AddFile,
    MakeFormat,
    AddFormat,
}

impl Step {
    fn next(self) -> Self {
        match self {
            Self::MakeFile => Self::AddFile,
            Self::AddFile => Self::MakeFormat,
            Self::MakeFormat => Self::AddFormat,
            Self::AddFormat => Self::MakeFile,
        }
    }
}

/// What a scenario is about, by its heading.
#[derive(Clone, Copy, Debug)]
struct Scenario<'a> {
    bitmap_mode: &'a str,
    /// `without`, `simulated` or `intermediate`.
    failure: &'a str,
}

impl<'a> Scenario<'a> {
    /// None: the section about refusals.
    fn read(heading: &'a str) -> Option<Self> {
        let words: Vec<&str> = heading.split(' ').collect();
        match words.as_slice() {
            [
                "===",
                "Mode",
                _,
                "Bitmap",
                "Sync",
                bitmap_mode,
                "without",
                ..,
            ] => Some(Self {
                bitmap_mode,
                failure: "without",
            }),
            [
                "===",
                "Mode",
                _,
                "Bitmap",
                "Sync",
                bitmap_mode,
                "with",
                failure,
                ..,
            ] => Some(Self {
                bitmap_mode,
                failure,
            }),
            _ => None,
        }
    }

    /// What a backup stands on: the last one that is kept.
    fn base_of(self, image: &str) -> Option<&'static str> {
        match image {
            "bsync1" => Some("fbackup0"),
            "bsync2" if self.failure == "without" || self.bitmap_mode == "always" => Some("bsync1"),
            "bsync2" => Some("fbackup0"),
            _ => None,
        }
    }
}

struct Replay<'a> {
    lines: &'a [&'a str],
    at: usize,
    scenario: Option<Scenario<'a>>,
    scratch: Scratch,
    daemon: Option<Daemon>,
    step: Step,
    /// A backup that has to be pending before anything else is asked of it.
    to_be_pending: Option<String>,
    bitmaps: Value,
}

impl<'a> Replay<'a> {
    fn new(lines: &'a [&'a str]) -> Self {
        Self {
            lines,
            at: 0,
            scenario: Scenario::read(lines[0]),
            scratch: Scratch::new(env!("CARGO_TARGET_TMPDIR")),
            daemon: None,
            step: Step::MakeFile,
            to_be_pending: None,
            bitmaps: Value::Null,
        }
    }

    fn run(mut self) {
        while self.at < self.lines.len() {
            let line = self.next();
            self.replay(line);
        }
        assert_eq!(
            self.step,
            Step::MakeFile,
            "an image was not made to its end"
        );
        self.end_daemon();
    }

    fn next(&mut self) -> &'a str {
        let line = self.lines[self.at];
        self.at += 1;
        line
    }

    fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("a daemon that was prepared")
    }

    fn replay(&mut self, line: &'a str) {
        match line {
            "" => {}
            "{}" => self.make_image(),
            "{" => self.compare_bitmaps(),
            r#"{"return": ""}"# => self.qemu_io("flush"),
            "--- Preparing image & VM ---" => self.prepare(),
            "--- Write #2 ---" => self.wait_pending(),
            "--- Verification ---" => self.end_daemon(),
            _ if line.starts_with("write ") => {
                self.qemu_io(line);
                assert_eq!(self.next(), r#"{"return": ""}"#);
            }
            _ if line.starts_with(r#"{"execute""#) => self.execute(line),
            _ if line.starts_with(r#"{"data""#) => self.wait_event(line),
            _ if line.starts_with("= Checking Bitmap ") => self.check_bitmap(line),
            _ if line.starts_with("qemu_img compare ") => self.compare_images(line),
            _ => assert!(line.starts_with("--") || line.starts_with("==="), "{line}"),
        }
    }

    fn prepare(&mut self) {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        create.arg(self.scratch.join("img"));
        run(create.arg(DISK_BYTES.to_string())).succeeded();
        let words = ["--device", "virtio-scsi,id=scsi0"];
        let daemon = Daemon::start(Program::Ringback, self.scratch.path(), &words);
        self.daemon = Some(daemon);
    }

    fn end_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let mut events = daemon.qmp.take_events();
            events.retain(|event| event.name.starts_with("BLOCK_JOB_"));
            assert_eq!(events, [], "not in the transcript");
            daemon.quit();
        }
    }

    fn execute(&mut self, line: &str) {
        // Of this one member the suite prints a name that QMP does not know.
        let sent = line.replace(PREFIX, "").replace("new-state", "new_state");
        let request: Value = serde_json::from_str(&sent).expect("a request");
        let command = request["execute"].as_str().expect("a name");
        let arguments = &request["arguments"];
        if command == "job-finalize" {
            self.wait_pending();
        }
        let reply = self.daemon().qmp.execute(command, arguments);
        let answer = match &reply {
            Ok(value) => json!({ "return": value }),
            Err(refusal) => {
                json!({ "error": { "class": refusal.class, "desc": refusal.desc } })
            }
        };
        let expected = self.next();
        let expected: Value = serde_json::from_str(expected).expect("an answer");
        assert_eq!(answer, expected, "{line}");
        match command {
            "blockdev-add" => {
                let device = json!({ "driver": "scsi-hd", "id": "device0", "drive": "drive0" });
                self.daemon().qmp.run("device_add", &device);
            }
            "blockdev-backup" if reply.is_ok() && arguments["auto-finalize"] == false => {
                let id = arguments["job-id"].as_str().expect("a name");
                self.to_be_pending = Some(id.to_owned());
            }
            _ => {}
        }
    }

    /// The transcript leaves out how the state of a job is waited for.
    fn wait_pending(&mut self) {
        if let Some(id) = self.to_be_pending.take() {
            self.daemon().qmp.wait_job(&id, "pending");
        }
    }

    fn wait_event(&mut self, line: &str) {
        let expected: Value = serde_json::from_str(line).expect("an event");
        let name = expected["event"].as_str().expect("a name");
        let data = &expected["data"];
        if name == "BLOCK_JOB_COMPLETED" && data.get("error").is_some() {
            // It fails before it could be pending.
            self.to_be_pending = None;
        }
        let is_same_job =
            |found: &Value| found["device"] == data["device"] && found["id"] == data["id"];
        let deadline = Instant::now() + LIMIT;
        let event = self.daemon().qmp.wait_event(name, is_same_job, deadline);
        assert_eq!(&event.data, data, "{line}");
    }

    fn qemu_io(&mut self, command: &str) {
        let line = format!("qemu-io -d device0 \"{command}\"");
        let arguments = json!({ "command-line": line });
        let reply = self.daemon().qmp.run("human-monitor-command", &arguments);
        assert_eq!(reply, "", "{command}");
    }

    fn make_image(&mut self) {
        let mut coming = self.lines[self.at..].iter();
        let target = coming.find_map(|line| {
            let request: Value = serde_json::from_str(line).ok()?;
            Some(request["arguments"]["target"].as_str()?.to_owned())
        });
        let target = target.expect("a backup to it");
        let image = image_of(&target);
        let protocol = format!("protocol-{target}");
        let step = self.step;
        self.step = step.next();
        let daemon = self.daemon();
        let mut create = |id: &str, options: Value| {
            let arguments = json!({ "job-id": id, "options": options });
            daemon.qmp.run("blockdev-create", &arguments);
            daemon.qmp.wait_job(id, "concluded");
            let jobs = daemon.qmp.run("query-jobs", &json!({}));
            assert_eq!(jobs[0]["id"], id, "{jobs}");
            assert_eq!(jobs[0].get("error"), None, "{jobs}");
        };
        match step {
            Step::MakeFile => {
                let options = json!({ "driver": "file", "filename": image, "size": 0 });
                create("bdc-file-job", options);
            }
            Step::AddFile => {
                let options = json!({ "driver": "file", "node-name": protocol, "filename": image });
                daemon.qmp.run("blockdev-add", &options);
            }
            Step::MakeFormat => {
                let options = json!({ "driver": "qcow2", "file": protocol, "size": DISK_BYTES });
                create("bdc-fmt-job", options);
            }
            Step::AddFormat => {
                let options = json!({ "driver": "qcow2", "node-name": target, "file": protocol });
                daemon.qmp.run("blockdev-add", &options);
            }
        }
    }

    fn compare_bitmaps(&mut self) {
        let mut text = "{".to_owned();
        let expected: Value = loop {
            text += self.next();
            if let Ok(whole) = serde_json::from_str(&text) {
                break whole;
            }
        };
        let nodes = self.daemon().qmp.run("query-named-block-nodes", &json!({}));
        let mut found = Map::new();
        for node in nodes.as_array().expect("a list of nodes") {
            if let Some(bitmaps) = node.get("dirty-bitmaps") {
                let name = node["node-name"].as_str().expect("a name");
                found.insert(name.to_owned(), bitmaps.clone());
            }
        }
        self.bitmaps = json!({ "bitmaps": found });
        assert_eq!(self.bitmaps, expected, "line {} of the section", self.at);
    }

    /// By the numbers that have come from the daemon last.
    fn check_bitmap(&mut self, line: &str) {
        let name = line.trim_start_matches("= Checking Bitmap ");
        let name = name.trim_end_matches(" =");
        let is_it = |bitmap: &&Value| match bitmap.get("name") {
            Some(found) => found == name,
            // Where writes are noted while a backup runs.
            None => name == "(anonymous)" && bitmap["recording"] == true,
        };
        let bitmaps = self.bitmaps["bitmaps"]["drive0"].as_array();
        let bitmap = bitmaps.and_then(|bitmaps| bitmaps.iter().find(is_it));
        let bitmap = bitmap.unwrap_or_else(|| panic!("{line}: {}", self.bitmaps));
        let number = |name: &str| bitmap[name].as_u64().expect("a number");
        let sectors = number("count") / number("granularity");
        let found = format!("expecting {sectors} dirty sectors; have {sectors}. OK!");
        assert_eq!(found, self.next(), "{line}");
    }

    fn compare_images(&mut self, line: &str) {
        let mut words = line.split('"');
        let mut image = || {
            let quoted = words.nth(1).expect("two names in quotes");
            quoted.strip_prefix(PREFIX).expect("a file of the test")
        };
        let (a, b) = (image(), image());
        let scenario = self.scenario.expect("a comparison belongs to a scenario");
        if let Some(base) = scenario.base_of(a) {
            let mut rebase = qemu_img(self.scratch.path());
            rebase.args(["rebase", "-u", "-b", base, "-F", "qcow2", a]);
            run(&mut rebase).succeeded();
        }
        let mut compare = qemu_img(self.scratch.path());
        let compared = run(compare.args(["compare", a, b]));
        let found = match compared.status.code() {
            Some(0) => "Identical",
            Some(1) => "Mismatch",
            _ => panic!("{compared:#?}"),
        };
        assert!(
            line.ends_with(&format!(" ==> {found}, OK!")),
            "{line}: {found}"
        );
    }
}

fn qemu_img(directory: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.current_dir(directory);
    command
}

fn image_of(target: &str) -> String {
    if let Some(number) = target.strip_prefix("ref_target_") {
        format!("fbackup{number}")
    } else if let Some(number) = target.strip_prefix("backup_target_") {
        format!("bsync{number}")
    } else {
        target.to_owned()
    }
}

/// The lines from one heading to the next.
fn sections<'a>(lines: &'a [&'a str]) -> Vec<&'a [&'a str]> {
    let is_heading = |line: &str| line.starts_with("=== ");
    let first = lines.iter().position(|line| is_heading(line));
    let first = first.expect("a heading");
    assert!(lines[..first].iter().all(|line| line.is_empty()));
    lines[first..]
        .chunk_by(|_, line| !is_heading(line))
        .collect()
}

/// Every `part`th of `parts` sections: they need nothing of each other.
fn replay_part(part: usize, parts: usize) {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let lines: Vec<&str> = TRANSCRIPT.lines().map(str::trim_end).collect();
    let sections = sections(&lines);
    assert_eq!(sections.len(), SECTIONS);
    for section in sections.into_iter().skip(part).step_by(parts) {
        println!("{}", section[0]);
        Replay::new(section).run();
    }
}

#[test]
fn bitmap_sync_first_part() {
    replay_part(0, 2);
}

#[test]
fn bitmap_sync_second_part() {
    replay_part(1, 2);
}
