//! Commands and their schema against the installed qemu-storage-daemon.
//!
//! - What our schema says of a command, an event or a type, the daemon's says too, but for
//!   the extensions in [`EXTENSIONS`]. Ours may have less.
//! - Requests made at random, most of them with a mistake, get the same error from both. They
//!   name nothing that exists, so none of them does anything.
//!
//! Without qemu-storage-daemon the tests say so and pass, except where the environment has
//! `CI=true`: there they must run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command as Process, Stdio};

use ringback_qmp_shim::command::Command;
use ringback_qmp_shim::schema;
use serde_json::{Map, Value, json};

const DAEMON: &str = "qemu-storage-daemon";

/// Members that only ringback has.
const EXTENSIONS: &[&str] = &[
    "on-cbw-error",
    "cbw-timeout",
    "save-buffer",
    "latency-target",
];

/// A schema by name.
type Entries = BTreeMap<String, Value>;

fn daemon_is_missing() -> bool {
    let started = Process::new(DAEMON).arg("--version").output();
    if started.is_ok_and(|output| output.status.success()) {
        return false;
    }
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(
        !ci,
        "{DAEMON} is not installed, but CI must compare with it"
    );
    println!("skipped: {DAEMON} is not installed");
    true
}

/// Sends requests to a daemon of their own and returns the replies, one for each.
fn ask(requests: &[Value]) -> Vec<Value> {
    let mut daemon = Process::new(DAEMON)
        .args(["--chardev", "stdio,id=c", "--monitor", "c"])
        .current_dir(Path::new(env!("CARGO_TARGET_TMPDIR")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon starts");
    let mut input = daemon.stdin.take().expect("it is a pipe");
    let output = BufReader::new(daemon.stdout.take().expect("it is a pipe"));
    let mut lines = String::new();
    for request in [json!({"execute": "qmp_capabilities"})]
        .iter()
        .chain(requests)
        .chain([&json!({"execute": "quit"})])
    {
        lines.push_str(&request.to_string());
        lines.push('\n');
    }
    // Either pipe may fill up while the other one waits.
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let replies = output.lines().map_while(Result::ok);
    let replies = replies.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let is_reply = |line: &Value| line.get("return").is_some() || line.get("error").is_some();
    let mut replies: Vec<Value> = replies.filter(is_reply).collect();
    let written = writer.join().expect("writing does not panic");
    let status = daemon.wait().expect("the daemon ends");
    let answered = replies.len().saturating_sub(1);
    assert!(
        written.is_ok() && status.success() && answered == requests.len() + 1,
        "{DAEMON}: {status} at {:?}",
        requests.get(answered)
    );
    replies.pop();
    replies.remove(0);
    replies
}

fn entries(schema: &Value) -> Entries {
    let list = schema.as_array().expect("a schema is a list");
    let name = |entry: &Value| entry["name"].as_str().expect("it has a name").to_owned();
    list.iter()
        .map(|entry| (name(entry), entry.clone()))
        .collect()
}

fn their_entries() -> Entries {
    let replies = ask(&[json!({"execute": "query-qmp-schema"})]);
    entries(&replies[0]["return"])
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_default()
}

fn list<'a>(entry: &'a Value, key: &str) -> &'a [Value] {
    entry[key].as_array().map_or(&[], Vec::as_slice)
}

fn named<'a>(list: &'a [Value], key: &str, name: &str) -> Option<&'a Value> {
    list.iter().find(|entry| text(entry, key) == name)
}

/// Compares two schemas, type by type.
struct Comparison<'a> {
    ours: &'a Entries,
    theirs: &'a Entries,
    /// Pairs of types that are compared already, or are just being compared.
    seen: BTreeSet<(String, String)>,
    wrong: Vec<String>,
    extensions: BTreeSet<&'static str>,
}

impl Comparison<'_> {
    /// `at` says how the types were reached.
    fn types(&mut self, our_name: &str, their_name: &str, at: &str) {
        if !self
            .seen
            .insert((our_name.to_owned(), their_name.to_owned()))
        {
            return;
        }
        let ours = self.ours[our_name].clone();
        let theirs = self.theirs[their_name].clone();
        let kind = text(&ours, "meta-type");
        if kind != text(&theirs, "meta-type") {
            let theirs = text(&theirs, "meta-type");
            self.wrong
                .push(format!("{at}: {kind}, but {theirs} of QEMU"));
            return;
        }
        match kind {
            "builtin" => self.equal(&ours["json-type"], &theirs["json-type"], at),
            "array" => self.types(
                text(&ours, "element-type"),
                text(&theirs, "element-type"),
                &format!("{at}[]"),
            ),
            "enum" => {
                for word in list(&ours, "members") {
                    let word = text(word, "name");
                    if named(list(&theirs, "members"), "name", word).is_none() {
                        self.wrong.push(format!("{at}: word {word}"));
                    }
                }
            }
            "alternate" => {
                for branch in list(&ours, "members") {
                    let name = text(branch, "type");
                    let kind = text(&self.ours[name], "meta-type");
                    let fits = |other: &&Value| {
                        let other_name = text(other, "type");
                        let is_same = kind != "builtin" || name == other_name;
                        is_same && text(&self.theirs[other_name], "meta-type") == kind
                    };
                    match list(&theirs, "members").iter().find(fits) {
                        Some(other) => self.types(name, text(other, "type"), at),
                        None => self.wrong.push(format!("{at}: branch {name}")),
                    }
                }
            }
            "object" => self.objects(&ours, &theirs, at),
            other => self.wrong.push(format!("{at}: {other}")),
        }
    }

    fn equal(&mut self, ours: &Value, theirs: &Value, at: &str) {
        if ours != theirs {
            self.wrong
                .push(format!("{at}: {ours}, but {theirs} of QEMU"));
        }
    }

    fn objects(&mut self, ours: &Value, theirs: &Value, at: &str) {
        let their_members = list(theirs, "members");
        let mut last = 0;
        for member in list(ours, "members") {
            let name = text(member, "name");
            let at = format!("{at}.{name}");
            if let Some(extension) = EXTENSIONS.iter().find(|known| **known == name)
                && named(their_members, "name", name).is_none()
            {
                self.extensions.insert(extension);
                continue;
            }
            let place = their_members
                .iter()
                .position(|other| text(other, "name") == name);
            let Some(place) = place else {
                self.wrong.push(format!("{at}: only here"));
                continue;
            };
            if place < last {
                self.wrong.push(format!("{at}: stands elsewhere"));
            }
            last = place;
            let other = &their_members[place];
            let is_optional = |member: &Value| member.get("default").is_some();
            if is_optional(member) != is_optional(other) {
                self.wrong.push(format!("{at}: optional or not"));
            }
            self.features(member, other, &at);
            self.types(text(member, "type"), text(other, "type"), &at);
        }
        for other in their_members {
            let name = text(other, "name");
            let is_required = other.get("default").is_none();
            if is_required && named(list(ours, "members"), "name", name).is_none() {
                self.wrong
                    .push(format!("{at}.{name}: required, but missing here"));
            }
        }
        self.equal(&ours["tag"], &theirs["tag"], at);
        for case in list(ours, "variants") {
            let name = text(case, "case");
            let at = format!("{at}<{name}>");
            match named(list(theirs, "variants"), "case", name) {
                Some(other) => self.types(text(case, "type"), text(other, "type"), &at),
                None => self.wrong.push(format!("{at}: only here")),
            }
        }
    }

    fn features(&mut self, ours: &Value, theirs: &Value, at: &str) {
        for feature in list(ours, "features") {
            if !list(theirs, "features").contains(feature) {
                self.wrong.push(format!("{at}: feature {feature}"));
            }
        }
    }
}

#[test]
fn our_schema_is_part_of_that_of_qemu() {
    if daemon_is_missing() {
        return;
    }
    let ours = entries(&schema::introspect());
    let theirs = their_entries();
    let mut comparison = Comparison {
        ours: &ours,
        theirs: &theirs,
        seen: BTreeSet::new(),
        wrong: Vec::new(),
        extensions: BTreeSet::new(),
    };
    let mut count = 0;
    for (name, entry) in &ours {
        let kind = text(entry, "meta-type");
        let Some(other) = theirs
            .get(name)
            .filter(|_| kind == "command" || kind == "event")
        else {
            continue;
        };
        count += 1;
        comparison.features(entry, other, name);
        comparison.types(text(entry, "arg-type"), text(other, "arg-type"), name);
        if kind == "command" {
            let at = format!("{name}()");
            comparison.types(text(entry, "ret-type"), text(other, "ret-type"), &at);
        }
    }
    let wrong = comparison.wrong;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(comparison.extensions.len(), EXTENSIONS.len());
    assert!(count > 60, "only {count} commands and events in both");
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.throw().is_multiple_of(sides)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let count = u64::try_from(from.len()).expect("it is small");
        let index = usize::try_from(self.throw() % count).expect("it is small");
        &from[index]
    }
}

/// Neither a file, nor an id, nor a node-name, nor a number.
const NOTHING: &str = "/nonexistent/1 x";

/// Makes requests out of the schema.
struct Maker<'a> {
    entries: &'a Entries,
    dice: Dice,
    /// In how many values there is one mistake.
    rarity: u64,
    /// Whether numbers may be negative: where a node's options have such, the answers of
    /// ringback are its own.
    with_negative: bool,
}

impl Maker<'_> {
    fn value(&mut self, kind: &str, member: &str, depth: u32) -> Value {
        if self.dice.one_in(self.rarity) {
            let wrong = [
                json!(7),
                json!("bogus"),
                json!(true),
                json!(1.5),
                json!(null),
                json!([]),
            ];
            let wrong: Vec<_> = wrong.into_iter().chain([json!({})]).collect();
            let wrong = self.dice.pick(&wrong).clone();
            let is_list = kind.starts_with('[');
            // Nothing that could be good: the daemon dies of some lists without elements.
            let is_fine = kind == "str" || kind == "any";
            return match wrong {
                Value::Array(_) if is_list => json!({}),
                Value::String(_) if is_fine => json!(7),
                Value::Number(_) if kind == "int" => json!("bogus"),
                wrong => wrong,
            };
        }
        let entry = &self.entries[kind];
        match text(entry, "meta-type") {
            "builtin" => self.leaf(kind, member),
            "array" => {
                let element = text(entry, "element-type");
                let count = 1 + self.dice.throw() % 2;
                (0..count).map(|_| self.value(element, "", depth)).collect()
            }
            "enum" => self.dice.pick(list(entry, "members"))["name"].clone(),
            "alternate" => {
                let fits = |branch: &&Value| {
                    let kind = text(branch, "type");
                    depth < 3 || text(&self.entries[kind], "meta-type") != "object"
                };
                let branches: Vec<_> = list(entry, "members").iter().filter(fits).collect();
                let branch = text(self.dice.pick::<&Value>(&branches), "type");
                self.value(branch, member, depth + 1)
            }
            "object" => self.object(entry, depth),
            other => panic!("{kind} is a {other}"),
        }
    }

    fn leaf(&mut self, kind: &str, member: &str) -> Value {
        match kind {
            // A name would be looked up in the network.
            "str" if member == "host" => json!("127.0.0.1"),
            "str" => json!(NOTHING),
            "bool" => json!(self.dice.one_in(2)),
            "int" if self.with_negative => {
                let largest = i64::MAX.cast_unsigned();
                let numbers = [
                    0,
                    1,
                    65535,
                    65536,
                    u64::from(u32::MAX) + 1,
                    largest,
                    largest + 1,
                ];
                let negative = self.dice.one_in(6);
                if negative {
                    json!(-1)
                } else {
                    json!(self.dice.pick(&numbers))
                }
            }
            "int" => json!(self.dice.pick(&[0, 1, 512, 65536])),
            "any" => json!({"a": [1]}),
            "null" => Value::Null,
            other => panic!("no {other} goes in"),
        }
    }

    fn object(&mut self, entry: &Value, depth: u32) -> Value {
        let mut made = Map::new();
        self.members(entry, depth, &mut made);
        let tag = text(entry, "tag");
        let case = made.get(tag).and_then(Value::as_str).unwrap_or_default();
        if let Some(case) = named(list(entry, "variants"), "case", case) {
            let added = &self.entries[text(case, "type")];
            self.members(added, depth, &mut made);
        }
        // One at most, since QEMU names any one of several.
        if self.dice.one_in(self.rarity) {
            made.insert("zzz".to_owned(), json!(1));
        }
        made.into()
    }

    fn members(&mut self, entry: &Value, depth: u32, made: &mut Map<String, Value>) {
        for member in list(entry, "members") {
            let name = text(member, "name");
            let is_optional = member.get("default").is_some();
            let is_left_out = if is_optional {
                !self.dice.one_in(3)
            } else {
                self.dice.one_in(self.rarity * 2)
            };
            if !is_left_out && !EXTENSIONS.contains(&name) {
                let value = self.value(text(member, "type"), name, depth);
                made.insert(name.to_owned(), value);
            }
        }
    }
}

/// Whether a text is one of those that only the reading of arguments gives.
fn is_about_arguments(text: &str) -> bool {
    let about = [
        "' is missing",
        "' is unexpected",
        "' expects uint",
        "' does not accept value '",
    ];
    text.starts_with("Invalid parameter type for '")
        || text.starts_with("Parameter '") && about.iter().any(|about| text.contains(about))
}

#[test]
fn both_give_the_same_errors_for_arguments() {
    if daemon_is_missing() {
        return;
    }
    let ours = entries(&schema::introspect());
    let theirs = their_entries();
    let is_command = |entry: &&Value| text(entry, "meta-type") == "command";
    let commands: Vec<&Value> = ours
        .values()
        .filter(is_command)
        .filter(|entry| theirs.contains_key(text(entry, "name")) && text(entry, "name") != "quit")
        .collect();
    let mut requests = Vec::new();
    for seed in 0..60 {
        for command in &commands {
            let name = text(command, "name");
            let mut maker = Maker {
                entries: &ours,
                dice: Dice(seed),
                rarity: [4, 12, 40][usize::try_from(seed % 3).expect("it is small")],
                with_negative: !["blockdev-add", "blockdev-reopen", "blockdev-create"]
                    .contains(&name),
            };
            let mut arguments = maker.object(&ours[text(command, "arg-type")], 0);
            if let Some(Value::Array(actions)) = arguments.get_mut("actions") {
                // The daemon dies when it takes back what it could not do with a bitmap.
                actions.insert(0, json!({"type": "abort", "data": {}}));
            }
            requests.push(json!({"execute": name, "arguments": arguments}));
        }
    }
    let replies = ask(&requests);
    let mut wrong = Vec::new();
    let mut refused = 0;
    for (request, reply) in requests.iter().zip(&replies) {
        let arguments = request["arguments"].as_object().expect("it was made so");
        let read = Command::read(text(request, "execute"), arguments);
        let their_text = text(&reply["error"], "desc");
        let fits = match &read {
            Ok(_) => !is_about_arguments(their_text),
            Err(error) => {
                refused += 1;
                text(&reply["error"], "class") == error.class.name() && their_text == error.desc
            }
        };
        if !fits {
            let read = read.map(|command| command.name());
            wrong.push(format!(
                "{request}\n    ours:   {read:?}\n    theirs: {reply}"
            ));
        }
    }
    let count = requests.len();
    assert!(
        wrong.is_empty(),
        "{} of {count} differ\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    assert!(
        refused > 1000 && refused < count - 1000,
        "{refused} of {count}"
    );
}
