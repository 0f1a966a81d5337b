//! Tokens to values.

use serde_json::{Map, Number, Value};

use super::lexer::Kind;
use super::utf8::{self, is_noncharacter};
use super::{JsonError, Result};

/// A token of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Where its bytes end in the text. They begin where those of the token before end.
    pub(super) end: usize,
}

/// The value of the tokens of `text`, which must be those of one value or not enough.
pub(super) fn parse(text: &[u8], tokens: &[Token]) -> Result<Value> {
    let parser = Parser {
        text,
        at: 0,
        tokens: tokens.iter(),
        open: Vec::new(),
    };
    parser.parse()
}

/// An object or list whose closing bracket is still to come.
enum Open {
    /// Members so far, and the key whose value is being read.
    Object(Map<String, Value>, String),
    /// Elements so far.
    List(Vec<Value>),
    /// An object or list in the place of a key. That is an error, but what is wrong inside
    /// comes first.
    Key,
}

struct Parser<'a> {
    text: &'a [u8],
    /// Where the next token begins in `text`.
    at: usize,
    tokens: std::slice::Iter<'a, Token>,
    /// Innermost last.
    open: Vec<Open>,
}

impl<'a> Parser<'a> {
    /// The next token and its bytes.
    fn next(&mut self) -> Result<(Kind, &'a [u8])> {
        let token = self.tokens.next().ok_or(JsonError::PrematureEnd)?;
        let bytes = &self.text[self.at..token.end];
        self.at = token.end;
        Ok((token.kind, bytes))
    }

    /// What the next token is, without taking it.
    fn peek(&self) -> Result<Kind> {
        let next = self.tokens.as_slice().first();
        next.map(|token| token.kind).ok_or(JsonError::PrematureEnd)
    }

    fn next_kind(&mut self) -> Result<Kind> {
        Ok(self.next()?.0)
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
    fn begin_value(&mut self, (kind, bytes): (Kind, &[u8])) -> Result<Option<Value>> {
        let value = match kind {
            Kind::Mark(b'{') => return self.begin_object(),
            Kind::Mark(b'[') => return self.begin_list(),
            Kind::Mark(_) => return Err(JsonError::ExpectingValue),
            Kind::String => Value::String(unquote(bytes)?),
            Kind::Number => Value::Number(number(bytes)),
            Kind::Keyword => keyword(bytes)?,
        };
        Ok(Some(value))
    }

    fn begin_object(&mut self) -> Result<Option<Value>> {
        if self.peek()? == Kind::Mark(b'}') {
            self.next()?;
            return Ok(Some(Value::Object(Map::new())));
        }
        self.begin_member(Map::new())?;
        Ok(None)
    }

    fn begin_list(&mut self) -> Result<Option<Value>> {
        if self.peek()? == Kind::Mark(b']') {
            self.next()?;
            return Ok(Some(Value::Array(Vec::new())));
        }
        self.open.push(Open::List(Vec::new()));
        Ok(None)
    }

    /// Reads a key and its colon. The value is next.
    fn begin_member(&mut self, members: Map<String, Value>) -> Result<()> {
        if matches!(self.peek()?, Kind::Mark(b'{' | b'[')) {
            self.open.push(Open::Key);
            return Ok(());
        }
        let token = self.next()?;
        let Some(Value::String(key)) = self.begin_value(token)? else {
            return Err(JsonError::KeyNotString);
        };
        if self.next_kind()? != Kind::Mark(b':') {
            return Err(JsonError::MissingColon);
        }
        self.open.push(Open::Object(members, key));
        Ok(())
    }

    /// Puts a finished value into the innermost open one, and reads what follows:
    /// a closing bracket makes that one the finished value, a comma keeps it open.
    fn put(&mut self, parent: Open, value: Value) -> Result<Option<Value>> {
        match parent {
            Open::Object(mut members, key) => {
                if members.insert(key, value).is_some() {
                    return Err(JsonError::DuplicateKey);
                }
                match self.next_kind()? {
                    Kind::Mark(b'}') => return Ok(Some(Value::Object(members))),
                    Kind::Mark(b',') => {}
                    _ => return Err(JsonError::NoSeparatorInObject),
                }
                self.begin_member(members)?;
            }
            Open::Key => return Err(JsonError::KeyNotString),
            Open::List(mut elements) => {
                elements.push(value);
                match self.next_kind()? {
                    Kind::Mark(b']') => return Ok(Some(Value::Array(elements))),
                    Kind::Mark(b',') => self.open.push(Open::List(elements)),
                    _ => return Err(JsonError::NoSeparatorInList),
                }
            }
        }
        Ok(None)
    }
}

fn keyword(word: &[u8]) -> Result<Value> {
    match word {
        b"true" => Ok(Value::Bool(true)),
        b"false" => Ok(Value::Bool(false)),
        b"null" => Ok(Value::Null),
        _ => Err(JsonError::InvalidKeyword {
            word: utf8::to_text(word),
        }),
    }
}

/// An integer where 64 bits hold it, else a double, as QEMU keeps numbers.
fn number(digits: &[u8]) -> Number {
    // The lexer's numbers are ASCII, and all of them are numbers to Rust.
    let text = str::from_utf8(digits).unwrap_or("0");
    if let Ok(signed) = text.parse::<i64>() {
        return signed.into();
    }
    if let Ok(unsigned) = text.parse::<u64>() {
        return unsigned.into();
    }
    // One that overflows is infinite, which `Number` cannot hold; no option takes a
    // double, so the largest will do.
    let double: f64 = text.parse().unwrap_or(f64::MAX);
    Number::from_f64(double.clamp(f64::MIN, f64::MAX)).unwrap_or_else(|| 0.into())
}

/// The characters of a string token.
fn unquote(quoted: &[u8]) -> Result<String> {
    // Both quotes are one byte long. The closing one stays within reach of an escape
    // that is too short, because error texts show it.
    let inner_end = quoted.len() - 1;
    let mut text = String::with_capacity(inner_end);
    let mut at = 1;
    while at < inner_end {
        let rest = &quoted[at..];
        let (character, used) = match rest {
            [b'\\', ..] => unescape(rest)?,
            _ => {
                let (character, used) = utf8::first(rest);
                (character.ok_or(JsonError::InvalidUtf8)?, used)
            }
        };
        text.push(character);
        at += used;
    }
    Ok(text)
}

/// The character of the escape that `rest` begins with, and the escape's length.
fn unescape(rest: &[u8]) -> Result<(char, usize)> {
    let character = match rest.get(1) {
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
fn unescape_unicode(rest: &[u8]) -> Result<(char, usize)> {
    const LEN: usize = 6;
    let first = hex_digits(rest);
    let second = rest
        .get(LEN..)
        .filter(|tail| tail.starts_with(b"\\u"))
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
            escape: utf8::to_text(&rest[..used.min(rest.len())]),
        }),
    }
}

/// The four digits behind `\u`.
fn hex_digits(escape: &[u8]) -> Option<u32> {
    let digits = escape.get(2..6)?;
    // `from_str_radix` would take a plus for the first of the four.
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}
