//! Each row of the protocol, and what must hold for any bytes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Incoming, Request, Session};
use crate::command_error::CommandError;
use crate::json;

const NEGOTIATE: &[u8] = br#"{"execute": "qmp_capabilities"}"#;

fn negotiated() -> Session {
    let mut session = Session::new(false);
    let incoming = session.receive(NEGOTIATE);
    assert_eq!(incoming, [answer(r#"{"return": {}}"#)]);
    assert!(session.is_negotiated());
    session
}

fn answer(line: &str) -> Incoming {
    Incoming::Answer(line.to_owned())
}

fn request(id: Option<Value>, command: &str, arguments: Value) -> Incoming {
    let Value::Object(arguments) = arguments else {
        panic!("arguments are an object");
    };
    Incoming::Request(Request {
        id,
        command: command.to_owned(),
        arguments,
    })
}

/// The errors' descriptions; a request is its command.
fn descriptions(incoming: &[Incoming]) -> Vec<String> {
    let describe = |incoming: &Incoming| match incoming {
        Incoming::Request(request) => format!("run {}", request.command),
        Incoming::Answer(line) => {
            let answer = json::parse_value(line).expect("answers are JSON");
            let desc = answer["error"]["desc"].as_str();
            desc.expect("it is an error").to_owned()
        }
    };
    incoming.iter().map(describe).collect()
}

#[test]
fn the_greeting_offers_nothing() {
    let greeting = Session::new(false).greeting();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        greeting,
        format!(
            "{{\"QMP\": {{\"version\": {{\"qemu\": {{\"micro\": 2, \"minor\": 0, \"major\": 10}}, \
             \"package\": \"ringback {version}\"}}, \"capabilities\": []}}}}"
        )
    );
}

#[test]
fn nothing_runs_before_the_negotiation() {
    let mut session = Session::new(false);
    for (text, wanted) in [
        (
            r#"{"execute": "query-jobs", "id": 1}"#,
            r#"{"id": 1, "error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}}"#,
        ),
        (
            r#"{"execute": "query-jobs", "arguments": []}"#,
            r#"{"error": {"class": "GenericError", "desc": "QMP input member 'arguments' must be an object"}}"#,
        ),
        (
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["bogus"]}}"#,
            r#"{"error": {"class": "GenericError", "desc": "Parameter 'null' does not accept value 'bogus'"}}"#,
        ),
        (
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob", 1]}}"#,
            r#"{"error": {"class": "GenericError", "desc": "Invalid parameter type for 'enable[1]', expected: string"}}"#,
        ),
        (
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": null}}"#,
            r#"{"error": {"class": "GenericError", "desc": "Invalid parameter type for 'enable', expected: array"}}"#,
        ),
        (
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"], "x": 1}}"#,
            r#"{"error": {"class": "GenericError", "desc": "Parameter 'x' is unexpected"}}"#,
        ),
        (
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#,
            r#"{"error": {"class": "GenericError", "desc": "Capability oob not available"}}"#,
        ),
        (
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob", "oob"]}}"#,
            r#"{"error": {"class": "GenericError", "desc": "Capability oob, oob not available"}}"#,
        ),
    ] {
        assert_eq!(session.receive(text.as_bytes()), [answer(wanted)], "{text}");
        assert!(!session.is_negotiated());
    }
}

#[test]
fn the_negotiation_ends_once() {
    let mut session = Session::new(false);
    let text = r#"{"execute": "qmp_capabilities", "arguments": {"enable": []}, "id": null}"#;
    let twice = [text, text, r#"{"execute": "stop"}"#].concat();
    assert_eq!(
        session.receive(twice.as_bytes()),
        [
            answer(r#"{"return": {}, "id": null}"#),
            answer(
                r#"{"id": null, "error": {"class": "CommandNotFound", "desc": "Capabilities negotiation is already complete, command ignored"}}"#
            ),
            request(None, "stop", json!({})),
        ]
    );
    // Arguments come first, also now.
    let bad = br#"{"execute": "qmp_capabilities", "arguments": {"enable": ["x"]}}"#;
    assert_eq!(
        descriptions(&session.receive(bad)),
        ["Parameter 'null' does not accept value 'x'"]
    );
    let late = br#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#;
    assert_eq!(
        descriptions(&session.receive(late)),
        ["Capabilities negotiation is already complete, command ignored"]
    );
}

#[test]
fn requests_need_no_line_end() {
    let mut session = negotiated();
    let text =
        br#"{"execute":"a"}{'execute':'b','arguments':{'x':[1]},'id':{"z":1.5}} {"execute":"c"#;
    assert_eq!(
        session.receive(text),
        [
            request(None, "a", json!({})),
            request(Some(json!({"z": 1.5})), "b", json!({"x": [1]})),
        ]
    );
    assert_eq!(session.receive(b"\""), []);
    assert_eq!(session.receive(b"}"), [request(None, "c", json!({}))]);
}

#[test]
fn what_is_no_request_is_answered_in_its_turn() {
    for (text, wanted) in [
        (r#"[1]"#, &["QMP input must be a JSON object"][..]),
        ("1 ", &["QMP input must be a JSON object"]),
        ("1", &[]),
        ("\"a\"", &["QMP input must be a JSON object"]),
        ("null ", &["QMP input must be a JSON object"]),
        ("{}", &["QMP input lacks member 'execute'"]),
        (r#"{"id":3}"#, &["QMP input lacks member 'execute'"]),
        (
            r#"{"execute":1}"#,
            &["QMP input member 'execute' must be a string"],
        ),
        (r#"{"foo":1}"#, &["QMP input member 'foo' is unexpected"]),
        (
            r#"{"exec-oob":"quit"}"#,
            &["QMP input member 'exec-oob' is unexpected"],
        ),
        (
            r#"{"execute":"quit","exec-oob":"quit"}"#,
            &["QMP input member 'exec-oob' is unexpected"],
        ),
        (
            r#"{"execute":"x","arguments":null}"#,
            &["QMP input member 'arguments' must be an object"],
        ),
        (
            r#"{"execute":"x","arguments":{"a":1,"a":1}}{"execute":"y"}"#,
            &["JSON parse error, duplicate key", "run y"],
        ),
        (
            r#"{"execute":"x",}{"execute":"y"}"#,
            &["JSON parse error, expecting value", "run y"],
        ),
        (",:]}", &["JSON parse error, expecting value"; 4]),
        (
            r#"{"execute" "x"}"#,
            &["JSON parse error, missing : in object pair"],
        ),
        (
            r#"{"execute":"x"]"#,
            &["JSON parse error, expected separator in dict"],
        ),
        (
            "garbage {}",
            &[
                "JSON parse error, invalid keyword 'garbage'",
                "QMP input lacks member 'execute'",
            ],
        ),
        // The lexer goes on behind the character that it stumbles over.
        (r#"{"id":1.}"#, &["JSON parse error, stray '1.}'"]),
        (
            r#"{"id":01}"#,
            &[
                "JSON parse error, stray '01'",
                "JSON parse error, expecting value",
            ],
        ),
        (
            "{\"id\":\"a\tb\"}",
            &[
                "JSON parse error, stray '\"a\t'",
                "JSON parse error, expecting value",
            ],
        ),
        (
            "{\"id\":%d}",
            &[
                "JSON parse error, stray '%'",
                "JSON parse error, expecting value",
            ],
        ),
        // A bad token goes on over blanks, tabs and words, but not over a line end.
        (
            "T rue\t1\n1 ",
            &[
                "JSON parse error, stray 'T'",
                "QMP input must be a JSON object",
            ],
        ),
        (
            r#"{"id":"\x"}"#,
            &["JSON parse error, invalid escape sequence in string"],
        ),
        (
            r#"{"id":"\ud83d"}"#,
            &[r"JSON parse error, \ud83d is not a valid Unicode character"],
        ),
    ] {
        let incoming = negotiated().receive(text.as_bytes());
        assert_eq!(descriptions(&incoming), wanted, "{text}");
    }
}

#[test]
fn bytes_that_are_no_text_are_answered() {
    for (bytes, wanted) in [
        // A client begins anew, whatever it left behind.
        (
            &b"{\"execute\": \"x\xff\n{\"execute\":\"y\"}"[..],
            &["JSON parse error, stray '\"x\u{fffd}'", "run y"][..],
        ),
        (
            b"{\"execute\": \xff\n{\"execute\":\"y\"}",
            &["JSON parse error, stray '\u{fffd}'", "run y"],
        ),
        (
            b"T\xff\n{\"execute\":\"y\"}",
            &[
                "JSON parse error, stray 'T'",
                "JSON parse error, stray '\u{fffd}'",
                "run y",
            ],
        ),
        (
            b"\0\x0c",
            &[
                "JSON parse error, stray ''",
                "JSON parse error, stray '\u{c}'",
            ],
        ),
        (b"'a\0", &["JSON parse error, stray ''a'"]),
        (b"\xc3\xa9\n", &["JSON parse error, stray '\u{fffd}'"]),
        (
            b"'\xc3'\"\xed\xa0\x80\"'\xef\xbf\xbf'",
            &["JSON parse error, invalid UTF-8 sequence in string"; 3],
        ),
        (b"{'execute':'\xc0\x80'}", &["run \0"]),
    ] {
        let incoming = negotiated().receive(bytes);
        assert_eq!(descriptions(&incoming), wanted, "{bytes:x?}");
    }
}

#[test]
fn an_id_is_echoed_unless_the_text_is_broken() {
    let mut session = negotiated();
    for (text, wanted) in [
        (
            r#"{"id": [null, {"a": "\u00e9"}]}"#,
            r#"{"id": [null, {"a": "\u00E9"}], "error": {"class": "GenericError", "desc": "QMP input lacks member 'execute'"}}"#,
        ),
        (
            r#"{"id": 1, "execute": x}"#,
            r#"{"error": {"class": "GenericError", "desc": "JSON parse error, invalid keyword 'x'"}}"#,
        ),
        (
            r#"[{"id": 1}]"#,
            r#"{"error": {"class": "GenericError", "desc": "QMP input must be a JSON object"}}"#,
        ),
    ] {
        assert_eq!(session.receive(text.as_bytes()), [answer(wanted)]);
    }
    let id = json!({"z": 1, "a": [0.5]});
    assert_eq!(
        session.success(Some(&id), &json!({"b": []})),
        r#"{"return": {"b": []}, "id": {"z": 1, "a": [0.5]}}"#
    );
    assert_eq!(
        session.failure(Some(&json!(null)), &CommandError::not_found("x")),
        r#"{"id": null, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}"#
    );
}

#[test]
fn events_have_a_time() {
    let session = negotiated();
    assert_eq!(
        session.event(
            "JOB_STATUS_CHANGE",
            Some(&json!({"id": "j"})),
            1 << 33,
            999_999
        ),
        r#"{"timestamp": {"seconds": 8589934592, "microseconds": 999999}, "event": "JOB_STATUS_CHANGE", "data": {"id": "j"}}"#
    );
    assert_eq!(
        session.event("STOP", None, 0, 1),
        r#"{"timestamp": {"seconds": 0, "microseconds": 1}, "event": "STOP"}"#
    );
}

#[test]
fn pretty_lines_end_as_lines_of_the_wire() {
    let session = Session::new(true);
    assert_eq!(
        session.success(Some(&json!("a\nb")), &json!({})),
        "{\r\n    \"return\": {\r\n    },\r\n    \"id\": \"a\\nb\"\r\n}"
    );
}

#[test]
fn depth_is_counted_with_the_request() {
    let nested = |depth| {
        let id = "[".repeat(depth) + &"]".repeat(depth);
        format!(r#"{{"execute":"x","id":{id}}}"#)
    };
    let mut session = negotiated();
    let [Incoming::Request(request)] = &session.receive(nested(1023).as_bytes())[..] else {
        panic!("the deepest id is accepted");
    };
    let echoed = session.success(request.id.as_ref(), &json!({}));
    assert!(echoed.ends_with(&("]".repeat(1023) + "}")));

    // The bracket too many forgets what was open: so many close nothing.
    let incoming = session.receive(nested(1024).as_bytes());
    let mut wanted = vec!["JSON nesting depth limit exceeded"];
    wanted.extend(["JSON parse error, expecting value"; 1025]);
    assert_eq!(descriptions(&incoming), wanted);
}

#[test]
fn a_value_has_a_longest_text() {
    // With the quotes, one byte less than the limit.
    let longest = |len: usize| ["'", &"x".repeat(len - 2), "' {}"].concat();
    let mut session = negotiated();
    let incoming = session.receive(longest(json::MAX_TEXT - 1).as_bytes());
    assert_eq!(
        descriptions(&incoming),
        [
            "QMP input must be a JSON object",
            "QMP input lacks member 'execute'"
        ]
    );
    let incoming = session.receive(longest(json::MAX_TEXT).as_bytes());
    assert_eq!(
        descriptions(&incoming),
        [
            "JSON token size limit exceeded",
            "QMP input lacks member 'execute'"
        ]
    );
    // All tokens of a value count, and those behind the one too many begin another value.
    let half = "x".repeat(json::MAX_TEXT / 2);
    let text = format!("['{half}','{half}\\'-',1]");
    assert_eq!(
        descriptions(&session.receive(text.as_bytes())),
        [
            "JSON token size limit exceeded",
            "JSON parse error, expecting value",
            "QMP input must be a JSON object",
            "JSON parse error, expecting value",
        ]
    );
}

#[test]
fn a_value_has_a_largest_number_of_tokens() {
    let elements = |count: usize| ["[0", &",0".repeat(count - 1), "]"].concat();
    let mut session = negotiated();
    // Two brackets, and a comma less than elements: an odd number in all.
    let most = json::MAX_TOKENS / 2 - 1;
    assert_eq!(
        descriptions(&session.receive(elements(most).as_bytes())),
        ["QMP input must be a JSON object"]
    );
    assert_eq!(
        descriptions(&session.receive(elements(most + 1).as_bytes())),
        ["JSON token count limit exceeded"]
    );
}

#[test]
fn long_strings_may_come_byte_by_byte() {
    let command = "\u{e9}".repeat(5 << 20);
    let mut session = negotiated();
    let text = format!(r#"{{"execute":"{command}"}}"#);
    let (last, others) = text.as_bytes().split_last().expect("there is a brace");
    for byte in others {
        assert_eq!(session.receive(&[*byte]), []);
    }
    assert_eq!(
        session.receive(&[*last]),
        [request(None, &command, json!({}))]
    );
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // A double without a fraction comes back as an integer.
        prop::num::f64::NORMAL
            .prop_filter("has a fraction", |double| double.fract() != 0.0)
            .prop_map(Value::from),
        any::<String>()
            .prop_filter("no character", |s| write_is_exact(s))
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"\\\\\u{e9}]{0,4}", inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Code points that are no characters become U+FFFD.
fn write_is_exact(text: &str) -> bool {
    let written = json::write_value(&Value::from(text), false);
    text.contains('\u{fffd}') || !written.contains("\\uFFFD")
}

const PIECES: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b" ",
    b"\n",
    b"\"",
    b"'",
    b"\\",
    b"\"execute\"",
    b"\"a\"",
    b"'id'",
    b"1",
    b"-0.5e3",
    b"01",
    b"true",
    b"null",
    b"{\"execute\":\"a\"}",
    b"\xff",
    b"\xc3\xa9",
    b"\0",
    b"\\u00e9",
    NEGOTIATE,
];

/// Bytes that come near to JSON.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        3 => prop::sample::select(
            PIECES
        )
        .prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_cut_gives_the_same(
        bytes in any_bytes(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut whole = Session::new(false);
        let wanted = whole.receive(&bytes);
        prop_assert!(wanted.len() <= bytes.len());

        let mut bit_by_bit = Session::new(false);
        let single: Vec<_> = bytes.iter().flat_map(|&byte| bit_by_bit.receive(&[byte])).collect();
        prop_assert_eq!(&single, &wanted);

        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let mut in_pieces = Session::new(false);
        let mut found = Vec::new();
        let mut start = 0;
        for end in cuts {
            found.extend(in_pieces.receive(&bytes[start..end]));
            start = end;
        }
        prop_assert_eq!(&found, &wanted);
        prop_assert_eq!(in_pieces.is_negotiated(), whole.is_negotiated());
    }

    #[test]
    fn any_client_is_heard_after_ff(bytes in any_bytes()) {
        let mut session = negotiated();
        session.receive(&bytes);
        let incoming = session.receive(b"\xff\n{\"execute\": \"x\"}");
        // Before it, there is what the FF ended or spoiled.
        prop_assert_eq!(incoming.last(), Some(&request(None, "x", json!({}))));
        prop_assert!(incoming.len() <= 3);
    }

    #[test]
    fn any_value_survives_the_way_out_and_in(id in any_value(), pretty: bool) {
        let session = Session::new(pretty);
        let line = session.success(Some(&id), &id);
        prop_assert!(line.is_ascii());
        prop_assert_eq!(pretty, line.contains('\n'));
        prop_assert_eq!(json::parse_value(&line), Ok(json!({"return": id, "id": id})));
        let text = format!("{{\"execute\": \"x\", \"id\": {}}}", json::write_value(&id, pretty));
        let incoming = negotiated().receive(text.as_bytes());
        prop_assert_eq!(incoming, [request(Some(id), "x", json!({}))]);
    }
}
