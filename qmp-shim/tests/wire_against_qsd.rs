//! Our end of a QMP conversation and qemu-storage-daemon's, held against each other.
//!
//! Both get the same bytes: random streams of requests that are right, wrong, mutated or
//! garbage, each followed by a request that marks its end. Every line of the daemon must
//! have the bytes of ours, but for the order of keys, which is that of a hash table there.
//! A tiny dispatcher stands for the commands.
//!
//! What differs on purpose is kept out of the streams: `oob`, which we do not offer (the
//! daemon also lets an `exec-oob` that it refuses overtake others). Doubles that overflow
//! the daemon writes as `inf`, which is not JSON; with us they become the largest one. Of
//! several wrong members of one object the daemon names an arbitrary one, so there any
//! will do.
//!
//! `WIRE_SEEDS` in the environment sets another number of conversations. Without the
//! daemon the tests say so and pass, except where the environment has `CI=true`: there
//! they must run.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at what it cannot go on with"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ringback_qmp_shim::CommandError;
use ringback_qmp_shim::json::parse_value;
use ringback_qmp_shim::wire::{Incoming, Request, Session};
use serde_json::{Value, json};

const DAEMON: &str = "qemu-storage-daemon";

/// How many daemons are started, and how many streams each one gets.
const CONVERSATIONS: u64 = 6;
const STREAMS: u64 = 150;

/// Commands that return an empty list as long as nothing is there.
const COMMANDS: &[&str] = &["query-jobs", "query-block-jobs", "query-block-exports"];

#[test]
fn both_answer_the_same_to_random_streams() {
    if !daemon_is_installed() {
        return;
    }
    let seeds = std::env::var("WIRE_SEEDS").map_or(CONVERSATIONS, |seeds| seeds.parse().unwrap());
    let mut answers = 0;
    for seed in 0..seeds {
        let mut random = Random(seed);
        let mut daemon = Daemon::start(false);
        let mut session = Session::new(false);
        for number in 0..STREAMS {
            // One seed in three never negotiates on purpose.
            let negotiate = seed % 3 > 0 && number == STREAMS / 10;
            let mut stream = random.stream();
            if negotiate {
                stream = br#"{"execute": "qmp_capabilities"}"#.to_vec();
            }
            let mark = format!("end of {number}");
            stream.extend_from_slice(b"\xff\n");
            stream
                .extend_from_slice(format!("{{'execute':'query-jobs','id':'{mark}'}}").as_bytes());
            let theirs = daemon.ask(&stream, &mark);
            let ours = answer(&mut session, &stream);
            let same = ours.len() == theirs.len()
                && ours
                    .iter()
                    .zip(&theirs)
                    .all(|(ours, theirs)| fits(ours, theirs));
            assert!(
                same,
                "seed {seed}, stream {number}: {}\n{}",
                stream.escape_ascii(),
                first_difference(&ours, &theirs),
            );
            answers += ours.len();
        }
    }
    println!("{answers} answers are the same");
}

#[test]
fn both_write_the_same_bytes() {
    if !daemon_is_installed() {
        return;
    }
    let requests: &[&[u8]] = &[
        br#"{"execute": "query-jobs", "id": 1}"#,
        br#"{"exec-oob": "query-jobs", "id": 1}"#,
        br#"{"execute": "qmp_capabilities", "arguments": {"enable": ["bogus"]}}"#,
        br#"{"execute": "qmp_capabilities", "arguments": {"enable": [1]}}"#,
        br#"{"execute": "qmp_capabilities", "arguments": {"enable": "oob"}}"#,
        br#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"], "x": 1}}"#,
        br#"{"execute": "qmp_capabilities", "arguments": {}, "id": {}}"#,
        br#"{"execute": "qmp_capabilities", "id": []}"#,
        br#"{"exec-oob": "query-jobs", "id": {"a": [{}, [], null]}}"#,
        br#"{"exec-oob": "query-jobs", "execute": "query-jobs"}"#,
        br#"{"execute": "query-jobs", "id": {"a": [{"b": [1, true, "\u00e9\b/"]}, {}, [[]]]}}"#,
        b"{'execute': 'a\x7f\xc3\xa9\xc0\x80\\u0001\\\"\\''}",
        br#"{"execute": "query-jobs", "id": [0.1, 1E2, 1e-5, 1e17, 123456789.125, -0, -0.0]}"#,
        br#"{"execute": "query-jobs", "id": [562949953421311.125, 562949953421311.375, 5e-324]}"#,
        br#"{"execute": "query-jobs", "id": [9223372036854775808, 18446744073709551616]}"#,
        b"\xff\n",
        b"\0",
        b"\n\"ab\xf4\x90\x80\x80\xf8\x88\x80\x80\x80\xed\xa0\x80\xe2\x82\xff\n",
    ];
    for pretty in [false, true] {
        let mut daemon = Daemon::start(pretty);
        let mut session = Session::new(pretty);
        assert_eq!(
            shape_of_greeting(&daemon.greeting),
            shape_of_greeting(&format!("{}\r\n", session.greeting()))
        );
        for (number, request) in requests.iter().enumerate() {
            let mark = format!("end of {number}");
            let end = format!("{{'execute':'query-jobs','id':'{mark}'}}");
            let stream = [request, end.as_bytes()].concat();
            let theirs = daemon.ask(&stream, &mark);
            let ours = answer(&mut session, &stream);
            assert_eq!(ours, theirs, "{}", request.escape_ascii());
        }
    }
}

/// The greeting up to where the two programs say who they are.
fn shape_of_greeting(greeting: &str) -> &str {
    greeting.split_once("\"package\"").unwrap().0
}

/// Our lines, with their ends.
fn answer(session: &mut Session, stream: &[u8]) -> Vec<String> {
    // Pieces of odd sizes, as a socket may cut them.
    let incoming = stream.chunks(61).flat_map(|piece| session.receive(piece));
    let incoming: Vec<_> = incoming.collect();
    let answer = |incoming| match incoming {
        Incoming::Answer(line) => line,
        Incoming::Request(request) => match run(&request) {
            Ok(value) => session.success(request.id.as_ref(), &value),
            Err(error) => session.failure(request.id.as_ref(), &error),
        },
    };
    let lines = incoming.into_iter().map(answer);
    lines.map(|line| line + "\r\n").collect()
}

fn run(request: &Request) -> Result<Value, CommandError> {
    if !COMMANDS.contains(&request.command.as_str()) {
        return Err(CommandError::not_found(&request.command));
    }
    match request.arguments.keys().next() {
        None => Ok(json!([])),
        Some(name) => Err(CommandError::generic(format!(
            "Parameter '{name}' is unexpected"
        ))),
    }
}

fn fits(ours: &str, theirs: &str) -> bool {
    if ours == theirs {
        return true;
    }
    let theirs = &match parse_value(theirs.trim()) {
        Ok(_) => theirs.to_owned(),
        Err(_) => theirs.replace("inf", "1.7976931348623157e+308"),
    };
    let (Ok(our_value), Ok(their_value)) = (parse_value(ours.trim()), parse_value(theirs.trim()))
    else {
        return false;
    };
    let sorted = |line: &str| {
        let mut bytes = line.as_bytes().to_vec();
        bytes.sort_unstable();
        bytes
    };
    // The order of keys does not matter to values, and moves but does not change bytes.
    (our_value == their_value && sorted(ours) == sorted(theirs))
        || name_other_members(&our_value, &their_value)
}

/// Both are the same kind of error, about members of one object.
fn name_other_members(ours: &Value, theirs: &Value) -> bool {
    let desc = |answer: &Value| answer["error"]["desc"].as_str().map(str::to_owned);
    let (Some(our_desc), Some(their_desc)) = (desc(ours), desc(theirs)) else {
        return false;
    };
    ours["id"] == theirs["id"]
        && ours["error"]["class"] == theirs["error"]["class"]
        && ["QMP input member '", "Parameter '"]
            .iter()
            .any(|start| our_desc.starts_with(start) && their_desc.starts_with(start))
}

fn first_difference(ours: &[String], theirs: &[String]) -> String {
    let same = ours
        .iter()
        .zip(theirs)
        .take_while(|(ours, theirs)| fits(ours, theirs));
    let at = same.count();
    format!(
        "answer {at} of {} and {}\n    ours:   {:?}\n    theirs: {:?}",
        ours.len(),
        theirs.len(),
        ours.get(at),
        theirs.get(at)
    )
}

fn daemon_is_installed() -> bool {
    let installed = Command::new(DAEMON)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(
        installed || !ci,
        "{DAEMON} is not installed, but CI must compare with it"
    );
    if !installed {
        println!("skipped: {DAEMON} is not installed");
    }
    installed
}

/// A daemon with a monitor on its standard input and output.
struct Daemon {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pretty: bool,
    greeting: String,
}

impl Daemon {
    fn start(pretty: bool) -> Self {
        let monitor = if pretty { "c,pretty=on" } else { "c" };
        let mut process = Command::new(DAEMON)
            .args(["--chardev", "stdio,id=c,signal=off", "--monitor", monitor])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut daemon = Self {
            process,
            input,
            output,
            pretty,
            greeting: String::new(),
        };
        daemon.greeting = daemon.message();
        daemon
    }

    /// What is answered to the stream, up to the request with the mark for an id.
    fn ask(&mut self, stream: &[u8], mark: &str) -> Vec<String> {
        // Far below what a pipe holds, so the daemon need not be read meanwhile.
        assert!(stream.len() < 1 << 15);
        self.input.write_all(stream).unwrap();
        let mark = format!("\"id\": \"{mark}\"");
        let mut messages = Vec::new();
        loop {
            let message = self.message();
            let last = message.contains(&mark);
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    fn message(&mut self) -> String {
        let mut message = String::new();
        loop {
            let len = self.output.read_line(&mut message).unwrap();
            assert!(len > 0, "{DAEMON} has ended: {message}");
            if !self.pretty || message.ends_with("\n}\r\n") {
                return message;
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Splitmix64: the same streams from the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    fn stream(&mut self) -> Vec<u8> {
        let mut stream = Vec::new();
        for _ in 0..=self.below(4) {
            let piece = match self.below(12) {
                0..5 => self.request().into_bytes(),
                5..9 => self.mutated(),
                9 => self.tokens().into_bytes(),
                10 => self.garbage(),
                _ if self.one_in(8) => self.deep(),
                _ => self.value(3).into_bytes(),
            };
            stream.extend(piece);
            let between = self.pick(&["", "", " ", "\n", "\r\n", "\t"]);
            stream.extend_from_slice(between.as_bytes());
        }
        stream
    }

    fn request(&mut self) -> String {
        let command = match self.below(8) {
            0 => "'no-such-command'".to_owned(),
            1 => self.string(),
            2 if self.one_in(4) => self.value(1),
            _ => format!("\"{}\"", self.pick(COMMANDS)),
        };
        let mut members = vec![format!("\"execute\": {command}")];
        if self.one_in(2) {
            members.push(format!("\"id\": {}", self.value(3)));
        }
        match self.below(12) {
            0 => members.push("\"arguments\": {}".to_owned()),
            1 => members.push(format!("\"arguments\": {{\"x\": {}}}", self.value(2))),
            2 => members.push(format!("\"arguments\": {}", self.value(2))),
            3 => members.push(format!("{}: {}", self.string(), self.value(2))),
            4 => members.push(format!("\"id\": {}", self.value(1))),
            5 => drop(members.remove(0)),
            6 => {
                // Never one that both accept, so that seeds stay without negotiation.
                let enable = self.pick(&["['bogus']", "1", "[1]", "{}", "[[]]", "null"]);
                members[0] = "\"execute\": \"qmp_capabilities\"".to_owned();
                members.push(format!("\"arguments\": {{\"enable\": {enable}}}"));
            }
            _ => {}
        }
        if !members.is_empty() {
            let first = self.below(members.len());
            members.rotate_left(first);
        }
        format!("{{{}}}", members.join(self.pick(&[",", ", ", " , "])))
    }

    /// JSON, but for a few strings that are wrong.
    fn value(&mut self, depth: usize) -> String {
        let kinds = if depth == 0 { 5 } else { 8 };
        match self.below(kinds) {
            0 => self.pick(&["null", "true", "false"]).to_owned(),
            1 => self
                .pick(&["0", "-1", "-0", "18446744073709551616"])
                .to_owned(),
            2 => self.number(),
            3 | 4 => self.string(),
            5 | 6 => {
                let elements: Vec<_> = (0..self.below(4)).map(|_| self.value(depth - 1)).collect();
                format!("[{}]", elements.join(","))
            }
            _ => {
                let members: Vec<_> = (0..self.below(4))
                    .map(|_| format!("{}:{}", self.string(), self.value(depth - 1)))
                    .collect();
                format!("{{{}}}", members.join(","))
            }
        }
    }

    fn number(&mut self) -> String {
        let sign = self.pick(&["", "-"]);
        let shift = self.below(64);
        let integer = self.next() >> shift;
        let fraction = match self.below(3) {
            0 => String::new(),
            _ => format!(".{}", self.next() >> shift),
        };
        let exponent = match self.below(3) {
            0 => format!("{}{}", self.pick(&["e", "E-", "e+"]), self.below(400)),
            _ => String::new(),
        };
        format!("{sign}{integer}{fraction}{exponent}")
    }

    fn string(&mut self) -> String {
        let quote = self.pick(&["\"", "\"", "'"]);
        let mut text = quote.to_owned();
        for _ in 0..self.below(6) {
            let piece = match self.below(8) {
                0 => self.pick(&["\\n", "\\t", "\\\\", "\\/", "\\b\\f", "\\r", "\\'", "\\\""]),
                1 => self.pick(&["\\u00e9", "\\u0000", "\\uD83D\\uDE00", "\\u007F"]),
                2 if self.one_in(4) => {
                    self.pick(&["\\ud800", "\\uFFFE", "\\x", "\\u12", "\u{fffe}"])
                }
                3 => self.pick(&["\u{e9}", "\u{20ac}", "\u{1f600}", "\u{7f}"]),
                _ => self.pick(&["a", "b", "/", "<", "id", " ", "{", "]", "%d"]),
            };
            text.push_str(piece);
        }
        text + quote
    }

    /// A request with a few bytes changed.
    fn mutated(&mut self) -> Vec<u8> {
        let mut bytes = self.request().into_bytes();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, self.pick(&["{", "}", "[", "]", ",", ":"]).as_bytes()[0]),
                2 => bytes[at] = self.byte(),
                3 => bytes.insert(at, self.byte()),
                _ => bytes.truncate(at.max(1)),
            }
            if bytes.is_empty() {
                break;
            }
        }
        bytes
    }

    fn tokens(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..self.below(12) {
            text.push_str(self.pick(&[
                "{", "}", "[", "]", ",", ":", "1", "0", "01", "-", "1.", "2.5", "1e", "1e+", "0e1",
                "0.0e1", "'a'", "'b'", "\"", "'", "true", "nul", "T", ".", "/", " ", "\n",
            ]));
        }
        text
    }

    fn garbage(&mut self) -> Vec<u8> {
        let len = self.below(12);
        (0..len).map(|_| self.byte()).collect()
    }

    /// Around the limit of depth.
    fn deep(&mut self) -> Vec<u8> {
        let depth = 1015 + self.below(20);
        let closed = self.below(depth + 2);
        let open = self.pick(&["[", "{'a':"]).repeat(depth);
        let close = self.pick(&["]", "}"]).repeat(closed);
        (open + &close).into_bytes()
    }
}
