//! `key=value,key=value` as `--image-opts` and `-o` take it: QEMU's older text, whose result
//! is flat and whose keys can be anything.
//!
//! - A comma in a value is doubled. A key that comes again replaces the value.
//! - A key alone is a boolean: `read-only` is `read-only=on`, and `noread-only` is
//!   `read-only=off`. It is out of date, so it gives a warning, in QEMU's words.
//! - `id` must be an identifier, and only the first one counts.
//!
//! [`crate::keyval`] is the newer text, with trees and without short forms.

use serde_json::{Map, Value};

use crate::error::{OptionError, Result};
use crate::keyval::{MAX_TEXT, take_value};

/// Options and what is to be said about them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Opts {
    /// A string for each key.
    pub options: Map<String, Value>,
    /// Warnings, to be printed behind the program's name and `warning: `. One has two lines.
    pub warnings: Vec<String>,
}

/// Reads the text.
///
/// # Errors
///
/// When it is longer than [`MAX_TEXT`] or its `id` is no identifier.
pub fn parse(text: &str) -> Result<Opts> {
    parse_implied(text, None)
}

/// Reads the text; a first part without an equals sign is the value of `implied_key`.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_implied(text: &str, implied_key: Option<&str>) -> Result<Opts> {
    if text.len() > MAX_TEXT {
        return Err(OptionError::TextTooLong {
            len: text.len(),
            max: MAX_TEXT,
        });
    }
    let mut opts = Opts::default();
    for pair in split(text, implied_key) {
        opts.warnings.extend(pair.warning);
        if pair.key == "id" {
            if opts.options.contains_key("id") {
                continue;
            }
            check_id(&pair.value)?;
        }
        opts.options.insert(pair.key, Value::from(pair.value));
    }
    Ok(opts)
}

/// A key and its value as they were written.
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
    /// What is to be said about the way in which it was written.
    pub(crate) warning: Option<String>,
}

/// The parts of a text in their order. A first part without an equals sign is the value of
/// `implied_key`.
pub(crate) fn split(text: &str, implied_key: Option<&str>) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut rest = text;
    let mut implied_key = implied_key;
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let mut warning = None;
        let implied = implied_key.take();
        let (key, value, after) = if let Some(tail) = tail.strip_prefix('=') {
            let (value, after) = take_value(tail);
            (word, value, after)
        } else if let Some(key) = implied {
            let (value, after) = take_value(rest);
            (key, value, after)
        } else {
            let (key, value) = short_form(word);
            if !matches!(word, "help" | "?") {
                warning = Some(format!(
                    "short-form boolean option '{word}' deprecated\n\
                     Please use {key}={value} instead"
                ));
            }
            (
                key,
                value.to_owned(),
                tail.strip_prefix(',').unwrap_or(tail),
            )
        };
        pairs.push(Pair {
            key: key.to_owned(),
            value,
            warning,
        });
        rest = after;
    }
    pairs
}

/// What a key alone stands for. Every key that begins with `no` is a negated one.
fn short_form(key: &str) -> (&str, &'static str) {
    match key.strip_prefix("no") {
        Some(negated) => (negated, "off"),
        None => (key, "on"),
    }
}

/// Checks the form of an id: a letter, then letters, digits, `-`, `.` and `_`.
///
/// # Errors
///
/// [`OptionError::InvalidId`].
pub fn check_id(id: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.bytes().all(fits) {
        Ok(())
    } else {
        Err(OptionError::InvalidId)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn options(text: &str) -> Value {
        Value::Object(parse(text).unwrap().options)
    }

    #[test]
    fn texts_are_read() {
        for (text, wanted) in [
            ("", json!({})),
            ("a=b", json!({"a": "b"})),
            ("a=b,,c,d=e=f", json!({"a": "b,c", "d": "e=f"})),
            ("a=1,a=2,", json!({"a": "2"})),
            ("a.b.0=1,a.b=2", json!({"a.b.0": "1", "a.b": "2"})),
            ("=x", json!({"": "x"})),
            ("help,?", json!({"help": "on", "?": "on"})),
            ("id=x,id=1", json!({"id": "x"})),
            ("a\u{e9} =", json!({"a\u{e9} ": ""})),
        ] {
            assert_eq!(options(text), wanted, "{text}");
            assert_eq!(parse(text).unwrap().warnings, [""; 0], "{text}");
        }
        assert_eq!(parse("a=1,id=1"), Err(OptionError::InvalidId));
    }

    #[test]
    fn a_key_alone_is_a_boolean_and_warns() {
        let opts = parse("read-only,noforce-share,a=b,node-name").unwrap();
        let wanted = json!({
            "read-only": "on", "force-share": "off", "a": "b", "de-name": "off",
        });
        assert_eq!(Value::Object(opts.options), wanted);
        assert_eq!(
            opts.warnings[1],
            "short-form boolean option 'noforce-share' deprecated\n\
             Please use force-share=off instead"
        );
        assert_eq!(opts.warnings.len(), 3);
    }

    proptest! {
        #[test]
        fn any_text_is_options_or_an_error(text in "[a-d=,.]{0,30}|.{0,30}") {
            let _ = parse(&text);
        }

        #[test]
        fn values_survive(value in ".{0,20}") {
            let text = format!("a={},b=1", value.replace(',', ",,"));
            prop_assert_eq!(options(&text), json!({"a": value, "b": "1"}));
        }
    }
}
