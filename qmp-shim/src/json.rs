//! JSON as QEMU reads and writes it: RFC 8259 with strings in single quotes too, in ASCII
//! letters for keywords, and with QEMU's error texts and limits.
//!
//! A parser of our own, because a general one neither words its errors so, nor notices a
//! key that is given twice: of two values for one option, one would be lost silently.
//!
//! [`parse_value`] reads a text that holds one value. [`Stream`] reads values that follow
//! each other, in bytes that arrive bit by bit. Both cut and parse with the same code.
//! [`write_value`] and [`write_object`] are the way out.
//!
//! # Order of errors
//!
//! The text is cut into tokens until its brackets balance; only then are the tokens
//! parsed. So a character which begins no token is reported before a comma that is
//! missing further left, and a text that ends early may be reported for what it says
//! so far.
//!
//! # Limits
//!
//! At most [`MAX_DEPTH`] brackets are open at once, and nothing that reads recurses: open
//! objects and lists are on a stack in memory. The tokens of one value have fewer than
//! [`MAX_TEXT`] bytes, and there are at most [`MAX_TOKENS`] of them. Time is linear in the
//! number of bytes, however they are cut.

use serde_json::Value;
use thiserror::Error;

mod lexer;
mod parser;
mod stream;
mod utf8;
mod write;

pub use stream::Stream;
pub use write::{write_object, write_value};

/// How many brackets can be open at once. It is QEMU's limit.
pub const MAX_DEPTH: usize = 1024;

/// What the tokens of one value must stay below, in bytes without the blanks between
/// them. It is QEMU's limit.
pub const MAX_TEXT: usize = 64 << 20;

/// How many tokens one value can have. It is QEMU's limit.
pub const MAX_TOKENS: usize = 2 << 20;

/// Why a text is not one JSON value. The texts are QEMU's.
///
/// A text that is quoted is first made characters: each malformed sequence of UTF-8 is
/// shown as U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Characters that make no token.
    #[error("JSON parse error, stray '{token}'")]
    Stray {
        /// What was read when it stopped being a token. A NUL at its end is not shown.
        token: String,
    },
    /// The text ends inside a value.
    #[error("JSON parse error, premature EOI")]
    PrematureEnd,
    /// A bare word other than true, false and null.
    #[error("JSON parse error, invalid keyword '{word}'")]
    InvalidKeyword {
        /// The word.
        word: String,
    },
    /// A comma, colon or closing bracket in the place of a value.
    #[error("JSON parse error, expecting value")]
    ExpectingValue,
    /// A value that is no string in the place of a key.
    #[error("JSON parse error, key is not a string in object")]
    KeyNotString,
    /// No colon behind a key.
    #[error("JSON parse error, missing : in object pair")]
    MissingColon,
    /// The same key twice in one object.
    #[error("JSON parse error, duplicate key")]
    DuplicateKey,
    /// No comma between two members of an object.
    #[error("JSON parse error, expected separator in dict")]
    NoSeparatorInObject,
    /// No comma between two elements of a list.
    #[error("JSON parse error, expected separator in list")]
    NoSeparatorInList,
    /// A backslash before a character that it does not go with.
    #[error("JSON parse error, invalid escape sequence in string")]
    InvalidEscape,
    /// An escape that names no character.
    #[error("JSON parse error, {escape} is not a valid Unicode character")]
    InvalidCharacter {
        /// The escape as written.
        escape: String,
    },
    /// Bytes in a string that are no UTF-8, or a code point which Unicode sets aside as
    /// no character.
    #[error("JSON parse error, invalid UTF-8 sequence in string")]
    InvalidUtf8,
    /// [`MAX_TEXT`] bytes or more.
    #[error("JSON token size limit exceeded")]
    TooLong,
    /// More tokens than [`MAX_TOKENS`].
    #[error("JSON token count limit exceeded")]
    TooManyTokens,
    /// More brackets open at once than [`MAX_DEPTH`].
    #[error("JSON nesting depth limit exceeded")]
    TooDeep,
    /// Something follows the value.
    #[error("Expecting at most one JSON value")]
    MoreThanOne,
}

type Result<T> = std::result::Result<T, JsonError>;

/// Reads a text that holds one JSON value and blanks around it.
///
/// # Errors
///
/// See [`JsonError`]. An empty text ends too early.
pub fn parse_value(text: &str) -> Result<Value> {
    let mut stream = Stream::new();
    let mut read = stream.feed(text.as_bytes());
    read.extend(stream.finish());
    let mut read = read.into_iter();
    let first = read.next().unwrap_or(Err(JsonError::PrematureEnd))?;
    match read.next() {
        None => Ok(first),
        Some(_) => Err(JsonError::MoreThanOne),
    }
}

#[cfg(test)]
mod tests {
    use super::utf8::is_noncharacter;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn values_are_read() {
        for (text, wanted) in [
            ("{}", json!({})),
            ("[]", json!([])),
            (" [ ] ", json!([])),
            ("null", json!(null)),
            (
                "\t{\r\n\"a\" : [ 1 , -2.5, true ] }",
                json!({"a": [1, -2.5, true]}),
            ),
            (r#"{'a':'b"c','d':"e'f"}"#, json!({"a": "b\"c", "d": "e'f"})),
            (
                r#""\u00e9\n\t\"\\\/\b\f\r\'""#,
                json!("\u{e9}\n\t\"\\/\u{8}\u{c}\r'"),
            ),
            (
                r#""\ud83d\ude00x\uD83D\uDE00""#,
                json!("\u{1f600}x\u{1f600}"),
            ),
            (r#""\u0000""#, json!("\0")),
            ("\"\u{7f}\u{e9}\"", json!("\u{7f}\u{e9}")),
            ("-0", json!(0)),
            ("9223372036854775807", json!(i64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("18446744073709551615", json!(u64::MAX)),
            ("18446744073709551616", json!(18_446_744_073_709_551_616.0)),
            ("1E+5", json!(1e5)),
            ("1e400", json!(f64::MAX)),
            ("[[],{},[{}]]", json!([[], {}, [{}]])),
        ] {
            assert_eq!(parse_value(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn errors_are_those_of_qemu() {
        for (text, wanted) in [
            ("", "JSON parse error, premature EOI"),
            ("{", "JSON parse error, premature EOI"),
            (r#"{"a""#, "JSON parse error, premature EOI"),
            (r#"{"a":"#, "JSON parse error, premature EOI"),
            (r#"{"a":12"#, "JSON parse error, premature EOI"),
            (r#"{"a":[1,"#, "JSON parse error, premature EOI"),
            (
                r#"{"a":1 1"#,
                "JSON parse error, expected separator in dict",
            ),
            (r#"{"a":1 $"#, "JSON parse error, stray '$'"),
            ("{1:2, $", "JSON parse error, stray '$'"),
            ("{]$", "JSON parse error, expecting value"),
            ("{a:1", "JSON parse error, invalid keyword 'a'"),
            ("{1:2}", "JSON parse error, key is not a string in object"),
            (
                "{[{}]:2}",
                "JSON parse error, key is not a string in object",
            ),
            ("{[{]", "JSON parse error, expecting value"),
            ("{{", "JSON parse error, premature EOI"),
            (
                r#"{"a":[1}"#,
                "JSON parse error, expected separator in list",
            ),
            (r#"{"a":[1}$"#, "JSON parse error, stray '$'"),
            (r#"{"a":1}$"#, "Expecting at most one JSON value"),
            (r#"{"a":1}]"#, "Expecting at most one JSON value"),
            (r#"{"a":1,"a":}"#, "JSON parse error, expecting value"),
            (r#"{"a":1,"a":1}"#, "JSON parse error, duplicate key"),
            (
                r#"{"a":"\x"}"#,
                "JSON parse error, invalid escape sequence in string",
            ),
            (
                r#"{"a":"\ud83d"}"#,
                r"JSON parse error, \ud83d is not a valid Unicode character",
            ),
            (
                r#"{"a":"\ud83f\udffe"}"#,
                r"JSON parse error, \ud83f\udffe is not a valid Unicode character",
            ),
            (
                r#"{"a":"\u00"}"#,
                "JSON parse error, \\u00\" is not a valid Unicode character",
            ),
            (
                "{\"a\":\"\u{fffe}\"}",
                "JSON parse error, invalid UTF-8 sequence in string",
            ),
            ("{\"a\":\"x\ty\"}", "JSON parse error, stray '\"x\t'"),
            (r#"{"a":"\"#, "JSON parse error, stray '\"\\'"),
            // Two tokens, since QEMU's zero takes no exponent.
            ("0e1", "Expecting at most one JSON value"),
            (r#"{"a":01}"#, "JSON parse error, stray '01'"),
            (r#"{"a":1.}"#, "JSON parse error, stray '1.}'"),
            (r#"{"a":-"#, "JSON parse error, stray '-'"),
            (r#"{"a":TRUE}"#, "JSON parse error, stray 'T'"),
        ] {
            let found = parse_value(text).map_err(|error| error.to_string());
            assert_eq!(found, Err(wanted.to_owned()), "{text}");
        }
    }

    #[test]
    fn depth_is_limited_and_costs_no_stack() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse_value(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(parse_value(&nested(MAX_DEPTH + 1)), Err(JsonError::TooDeep));
        assert_eq!(parse_value(&"[".repeat(1 << 20)), Err(JsonError::TooDeep));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            ".{0,10}"
                .prop_filter("no character", |s| !s.chars().any(is_noncharacter))
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{0,4}", inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in ".{0,60}") {
            let _ = parse_value(&text);
        }

        #[test]
        fn any_text_that_looks_like_json_is_a_value_or_an_error(
            text in r#"[{}\[\],:"'\\u0-9a-f.eE \-\u{e9}]{0,60}"#,
        ) {
            let _ = parse_value(&text);
        }

        #[test]
        fn what_serde_writes_is_read_back(value in any_value()) {
            prop_assert_eq!(parse_value(&value.to_string()), Ok(value));
        }
    }
}
