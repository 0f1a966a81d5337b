//! JSON as QEMU reads it: RFC 8259 with strings in single quotes too, in ASCII letters
//! for keywords, and with QEMU's error texts and limits.
//!
//! A parser of our own, because a general one neither words its errors so, nor notices a
//! key that is given twice: of two values for one option, one would be lost silently.
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
//! At most [`MAX_DEPTH`] brackets are open at once, and nothing recurses: open objects
//! and lists are on a stack in memory. Tokens refer to the text, so memory is a small
//! multiple of its length, which the caller bounds.

use serde_json::{Map, Number, Value};
use thiserror::Error;

/// How many brackets can be open at once. It is QEMU's limit.
pub const MAX_DEPTH: usize = 1024;

/// Why a text is not one JSON value. The texts are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Characters that make no token.
    #[error("JSON parse error, stray '{token}'")]
    Stray {
        /// What was read when it stopped being a token.
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
    /// A code point in a string which Unicode sets aside as no character.
    #[error("JSON parse error, invalid UTF-8 sequence in string")]
    Noncharacter,
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
    let mut lexer = Lexer { text, at: 0 };
    let tokens = take_one_value(&mut lexer)?;
    let value = Parser {
        tokens: tokens.iter(),
        open: Vec::new(),
    }
    .parse()?;
    lexer.skip_blanks();
    if lexer.at < text.len() {
        return Err(JsonError::MoreThanOne);
    }
    Ok(value)
}

/// The tokens up to where the brackets balance, or cannot any more, or the text ends.
fn take_one_value<'a>(lexer: &mut Lexer<'a>) -> Result<Vec<Token<'a>>> {
    let mut tokens = Vec::new();
    // Braces and brackets are counted apart, as QEMU does: `{"a":[1}` goes on.
    let (mut braces, mut brackets) = (0isize, 0isize);
    while let Some(token) = lexer.next()? {
        match token {
            Token::Mark('{') => braces += 1,
            Token::Mark('}') => braces -= 1,
            Token::Mark('[') => brackets += 1,
            Token::Mark(']') => brackets -= 1,
            _ => {}
        }
        tokens.push(token);
        if braces < 0 || brackets < 0 || (braces == 0 && brackets == 0) {
            break;
        }
        if (braces + brackets).unsigned_abs() > MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
    }
    Ok(tokens)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    /// One of `{}[],:`.
    Mark(char),
    /// A string with its quotes and escapes.
    String(&'a str),
    /// A number in decimal.
    Number(&'a str),
    /// A word in small letters.
    Keyword(&'a str),
}

struct Lexer<'a> {
    text: &'a str,
    /// Where the next token is looked for; always between two characters.
    at: usize,
}

impl<'a> Lexer<'a> {
    fn skip_blanks(&mut self) {
        self.skip_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) {
        let rest = &self.text[self.at..];
        self.at += rest.find(|c| !wanted(c)).unwrap_or(rest.len());
    }

    fn next(&mut self) -> Result<Option<Token<'a>>> {
        self.skip_blanks();
        let start = self.at;
        let Some(first) = self.bump() else {
            return Ok(None);
        };
        match first {
            '{' | '}' | '[' | ']' | ',' | ':' => return Ok(Some(Token::Mark(first))),
            '"' | '\'' => self.string(start, first)?,
            '-' | '0'..='9' => self.number(start, first)?,
            'a'..='z' => self.skip_while(|c| c.is_ascii_lowercase()),
            _ => return Err(self.stray(start)),
        }
        let text = &self.text[start..self.at];
        Ok(Some(match first {
            '"' | '\'' => Token::String(text),
            'a'..='z' => Token::Keyword(text),
            _ => Token::Number(text),
        }))
    }

    /// Goes behind the closing quote. What an escape means is the parser's business.
    fn string(&mut self, start: usize, quote: char) -> Result<()> {
        loop {
            let mut next = self.bump();
            if next == Some(quote) {
                return Ok(());
            }
            if next == Some('\\') {
                next = self.bump();
            }
            if next.is_none_or(|c| c < ' ') {
                return Err(self.stray(start));
            }
        }
    }

    /// Goes behind the number whose first character, a sign or a digit, is read.
    fn number(&mut self, start: usize, first: char) -> Result<()> {
        let leading = if first == '-' {
            self.digit(start)?
        } else {
            first
        };
        if leading == '0' {
            // JSON has no octal: a digit behind a leading zero belongs to no token.
            if self.peek().is_some_and(|c| c.is_ascii_digit()) {
                self.bump();
                return Err(self.stray(start));
            }
        } else {
            self.skip_while(|c| c.is_ascii_digit());
        }
        if self.peek() == Some('.') {
            self.bump();
            self.digits(start)?;
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            self.bump();
            if matches!(self.peek(), Some('+' | '-')) {
                self.bump();
            }
            self.digits(start)?;
        }
        Ok(())
    }

    fn digit(&mut self, start: usize) -> Result<char> {
        match self.bump() {
            Some(digit @ '0'..='9') => Ok(digit),
            _ => Err(self.stray(start)),
        }
    }

    fn digits(&mut self, start: usize) -> Result<()> {
        self.digit(start)?;
        self.skip_while(|c| c.is_ascii_digit());
        Ok(())
    }

    fn stray(&self, start: usize) -> JsonError {
        JsonError::Stray {
            token: self.text[start..self.at].to_owned(),
        }
    }
}

/// An object or list whose closing bracket is still to come.
enum Open {
    /// Members so far, and the key whose value is being read.
    Object(Map<String, Value>, String),
    /// Elements so far.
    List(Vec<Value>),
}

struct Parser<'t, 'a> {
    tokens: std::slice::Iter<'t, Token<'a>>,
    /// Innermost last.
    open: Vec<Open>,
}

impl<'a> Parser<'_, 'a> {
    fn next(&mut self) -> Result<Token<'a>> {
        self.tokens.next().copied().ok_or(JsonError::PrematureEnd)
    }

    fn parse(mut self) -> Result<Value> {
        loop {
            let token = self.next()?;
            let Some(mut value) = self.begin_value(token)? else {
                continue;
            };
            // A value may close any number of brackets behind it.
            loop {
                match self.open.pop() {
                    None => return Ok(value),
                    Some(parent) => match self.put(parent, value)? {
                        Some(closed) => value = closed,
                        None => break,
                    },
                }
            }
        }
    }

    /// Begins a value with its first token: `None` when elements or members follow.
    fn begin_value(&mut self, token: Token<'a>) -> Result<Option<Value>> {
        let value = match token {
            Token::Mark('{') => return self.begin_object(),
            Token::Mark('[') => return self.begin_list(),
            Token::Mark(_) => return Err(JsonError::ExpectingValue),
            Token::String(quoted) => Value::String(unquote(quoted)?),
            Token::Number(text) => Value::Number(number(text)),
            Token::Keyword("true") => Value::Bool(true),
            Token::Keyword("false") => Value::Bool(false),
            Token::Keyword("null") => Value::Null,
            Token::Keyword(word) => {
                return Err(JsonError::InvalidKeyword {
                    word: word.to_owned(),
                });
            }
        };
        Ok(Some(value))
    }

    fn begin_object(&mut self) -> Result<Option<Value>> {
        let token = self.next()?;
        if token == Token::Mark('}') {
            return Ok(Some(Value::Object(Map::new())));
        }
        let key = self.key(token)?;
        self.open.push(Open::Object(Map::new(), key));
        Ok(None)
    }

    fn begin_list(&mut self) -> Result<Option<Value>> {
        // The iterator is cheap to copy: look at the next token without taking it.
        match self.tokens.clone().next() {
            None => Err(JsonError::PrematureEnd),
            Some(Token::Mark(']')) => {
                self.tokens.next();
                Ok(Some(Value::Array(Vec::new())))
            }
            Some(_) => {
                self.open.push(Open::List(Vec::new()));
                Ok(None)
            }
        }
    }

    /// A member's key, of which `token` is the first token, and its colon.
    fn key(&mut self, token: Token<'a>) -> Result<String> {
        let key = match token {
            Token::String(quoted) => unquote(quoted)?,
            Token::Mark('{' | '[') | Token::Number(_) => return Err(JsonError::KeyNotString),
            Token::Keyword("true" | "false" | "null") => return Err(JsonError::KeyNotString),
            Token::Mark(_) | Token::Keyword(_) => {
                self.begin_value(token)?;
                return Err(JsonError::KeyNotString);
            }
        };
        match self.next()? {
            Token::Mark(':') => Ok(key),
            _ => Err(JsonError::MissingColon),
        }
    }

    /// Puts a finished value into the innermost open one, and reads what follows:
    /// a closing bracket makes that one the finished value, a comma keeps it open.
    fn put(&mut self, parent: Open, value: Value) -> Result<Option<Value>> {
        match parent {
            Open::Object(mut members, key) => {
                if members.insert(key, value).is_some() {
                    return Err(JsonError::DuplicateKey);
                }
                match self.next()? {
                    Token::Mark('}') => return Ok(Some(Value::Object(members))),
                    Token::Mark(',') => {}
                    _ => return Err(JsonError::NoSeparatorInObject),
                }
                let token = self.next()?;
                let key = self.key(token)?;
                self.open.push(Open::Object(members, key));
            }
            Open::List(mut elements) => {
                elements.push(value);
                match self.next()? {
                    Token::Mark(']') => return Ok(Some(Value::Array(elements))),
                    Token::Mark(',') => self.open.push(Open::List(elements)),
                    _ => return Err(JsonError::NoSeparatorInList),
                }
            }
        }
        Ok(None)
    }
}

/// An integer where 64 bits hold it, else a double, as QEMU keeps numbers.
fn number(text: &str) -> Number {
    if let Ok(signed) = text.parse::<i64>() {
        return signed.into();
    }
    if let Ok(unsigned) = text.parse::<u64>() {
        return unsigned.into();
    }
    // The lexer's numbers are all numbers to Rust. One that overflows is infinite,
    // which `Number` cannot hold; no option takes a double, so the largest will do.
    let double: f64 = text.parse().unwrap_or(f64::MAX);
    Number::from_f64(double.clamp(f64::MIN, f64::MAX)).unwrap_or_else(|| 0.into())
}

/// The characters of a string token.
fn unquote(quoted: &str) -> Result<String> {
    // Both quotes are one byte long. The closing one stays within reach of an escape
    // that is too short, because error texts show it.
    let inner_end = quoted.len() - 1;
    let mut text = String::with_capacity(inner_end);
    let mut at = 1;
    while at < inner_end {
        let rest = &quoted[at..];
        let Some(next) = rest.chars().next() else {
            break;
        };
        if next == '\\' {
            let (character, used) = unescape(rest)?;
            text.push(character);
            at += used;
        } else if is_noncharacter(next) {
            return Err(JsonError::Noncharacter);
        } else {
            text.push(next);
            at += next.len_utf8();
        }
    }
    Ok(text)
}

/// The character of the escape that `rest` begins with, and the escape's length.
fn unescape(rest: &str) -> Result<(char, usize)> {
    let character = match rest.as_bytes().get(1) {
        Some(b'"') => '"',
        Some(b'\'') => '\'',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unescape_unicode(rest),
        _ => return Err(JsonError::InvalidEscape),
    };
    Ok((character, 2))
}

/// `\uXXXX`, or two of them when the first is the upper half of a pair.
fn unescape_unicode(rest: &str) -> Result<(char, usize)> {
    const LEN: usize = 6;
    let first = hex_digits(rest);
    let second = rest
        .get(LEN..)
        .filter(|tail| tail.starts_with("\\u"))
        .and_then(hex_digits);
    let (code, used) = match (first, second) {
        (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) => (
            Some(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)),
            2 * LEN,
        ),
        _ => (first, LEN),
    };
    match code.and_then(char::from_u32) {
        Some(character) if !is_noncharacter(character) => Ok((character, used)),
        _ => Err(JsonError::InvalidCharacter {
            escape: up_to(rest, used).to_owned(),
        }),
    }
}

/// The four digits behind `\u`.
fn hex_digits(escape: &str) -> Option<u32> {
    let digits = escape.get(2..6)?;
    // `from_str_radix` would take a plus for the first of the four.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

/// The first `len` bytes, fewer where that would split a character.
fn up_to(text: &str, len: usize) -> &str {
    let end = (0..=len.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// Unicode section 23.7: code points that are never characters.
fn is_noncharacter(character: char) -> bool {
    let code = u32::from(character);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
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
