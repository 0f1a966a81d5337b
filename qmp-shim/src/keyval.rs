//! `key=value,key=value`: QEMU's text for a tree of options on a command line.
//!
//! ```text
//! raw,node-name=disk,file.driver=file,file.filename=a,,b.img
//! ^implied key       ^dots go inwards          comma  ^^
//! ```
//!
//! - `a.b=1` is a member of an object, `a.0=1` an element of a list; indices count from 0
//!   and leave no hole. One key is one of: value, object, list.
//! - A comma in a value is doubled. A key that comes again replaces the value.
//! - The first part may be a bare value for the *implied key* (`driver` of a block
//!   device); such a value has neither comma nor equals sign.
//! - Every leaf is a string; what it means depends on who reads it ([`crate::visit`]).
//! - A text that begins with `{` is a JSON object instead. Its leaves have types.
//!
//! # Limits
//!
//! A text is at most [`MAX_TEXT`] bytes, one part of a key at most [`MAX_FRAGMENT`], a key
//! at most [`MAX_PARTS`] parts. A list's elements are counted, not believed: memory follows
//! the text's length and never an index in it.

use serde_json::{Map, Value};

use crate::error::{OptionError, Result};
use crate::json;

/// Longest text that is read, in bytes. Linux passes at most 128 KiB in one argument.
pub const MAX_TEXT: usize = 1 << 20;
/// Longest part of a key, in bytes. It is QEMU's limit.
pub const MAX_FRAGMENT: usize = 127;
/// Most parts of a dotted key. QEMU has no such limit; whoever walks the tree needs one.
pub const MAX_PARTS: usize = 128;

/// A tree of options and how its leaves are written.
#[derive(Debug, Clone, PartialEq)]
pub enum Options {
    /// From `key=value`: every leaf is a string.
    Text(Map<String, Value>),
    /// From JSON: leaves have types.
    Typed(Map<String, Value>),
}

/// Reads either form. `implied_key` is what a bare first value is for.
///
/// # Errors
///
/// See [`OptionError`]: those of the text and of JSON.
pub fn parse(text: &str, implied_key: Option<&str>) -> Result<Options> {
    if text.len() > MAX_TEXT {
        return Err(OptionError::TextTooLong {
            len: text.len(),
            max: MAX_TEXT,
        });
    }
    // No blank may stand before the brace: it would be a blank in the first key.
    if !text.starts_with('{') {
        return parse_keyval(text, implied_key).map(Options::Text);
    }
    match json::parse_value(text)? {
        Value::Object(members) => Ok(Options::Typed(members)),
        _ => Err(OptionError::NotAnObject),
    }
}

/// Reads `key=value` text only.
///
/// # Errors
///
/// See [`OptionError`]: those of the text.
pub fn parse_keyval(text: &str, implied_key: Option<&str>) -> Result<Map<String, Value>> {
    match parse_or_help(text, implied_key)? {
        (_, true) => Err(OptionError::NoHelp),
        (root, false) => Ok(root),
    }
}

/// Reads `key=value` text, and says whether it asks for help.
pub(crate) fn parse_or_help(
    text: &str,
    implied_key: Option<&str>,
) -> Result<(Map<String, Value>, bool)> {
    if text.len() > MAX_TEXT {
        return Err(OptionError::TextTooLong {
            len: text.len(),
            max: MAX_TEXT,
        });
    }
    let mut root = Map::new();
    let mut help = false;
    let mut rest = text;
    let mut implied_key = implied_key;
    while !rest.is_empty() {
        let end = rest.find([',', '=']).unwrap_or(rest.len());
        let (key, tail) = rest.split_at(end);
        // Only the first part may be bare.
        let implied = implied_key.take().filter(|_| !key.is_empty());
        if let Some(value) = tail.strip_prefix('=') {
            let path = split_key(key)?;
            let (value, after) = take_value(value);
            store(&mut root, &path, value)?;
            rest = after;
            continue;
        }
        rest = tail.strip_prefix(',').unwrap_or(tail);
        if matches!(key, "help" | "?") {
            help = true;
        } else if let Some(implied) = implied {
            store(&mut root, &split_key(implied)?, key.to_owned())?;
        } else {
            split_key(key)?;
            return Err(OptionError::NoValue {
                key: key.to_owned(),
            });
        }
    }
    make_lists(&mut root, "")?;
    Ok((root, help))
}

/// The value up to a comma that is not doubled, and the text behind that comma.
pub(crate) fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(part);
        match after.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, after),
        }
    }
}

/// The parts of a dotted key; indices without leading zeroes.
///
/// A vendor's name (`__org.example_name`) is one part, dots and all.
fn split_key(key: &str) -> Result<Vec<&str>> {
    let invalid = || OptionError::InvalidKey {
        key: key.to_owned(),
    };
    let mut parts = Vec::new();
    let mut rest = key;
    loop {
        let index = (!parts.is_empty()).then(|| index_len(rest)).flatten();
        let len = index.or_else(|| name_len(rest)).ok_or_else(invalid)?;
        let (part, after) = rest.split_at(len);
        if !after.is_empty() && !after.starts_with('.') {
            return Err(invalid());
        }
        if len > MAX_FRAGMENT {
            return Err(too_long(key, part));
        }
        if parts.len() == MAX_PARTS {
            let start = key.chars().take(40).collect();
            return Err(OptionError::KeyTooDeep {
                start,
                max: MAX_PARTS,
            });
        }
        parts.push(if index.is_some() {
            without_zeroes(part)
        } else {
            part
        });
        match after.strip_prefix('.') {
            Some(inner) => rest = inner,
            None => return Ok(parts),
        }
    }
}

fn too_long(key: &str, part: &str) -> OptionError {
    if part.len() == key.len() {
        OptionError::KeyTooLong {
            key: key.to_owned(),
        }
    } else {
        OptionError::FragmentTooLong {
            fragment: part.to_owned(),
        }
    }
}

/// Length of the list index that `text` begins with.
fn index_len(text: &str) -> Option<usize> {
    let len = span(text, |byte| byte.is_ascii_digit());
    (len > 0).then_some(len)
}

fn without_zeroes(index: &str) -> &str {
    let digits = index.trim_start_matches('0');
    if digits.is_empty() { "0" } else { digits }
}

/// Length of the name that `text` begins with: a letter, then letters, digits, `_`, `-`.
/// A vendor's name has its reversed domain before it, between `__` and `_`.
fn name_len(text: &str) -> Option<usize> {
    let prefix = match text.strip_prefix("__") {
        None => 0,
        Some(domain) => {
            let len = span(domain, |byte| {
                byte.is_ascii_alphanumeric() || b"-.".contains(&byte)
            });
            domain[len..].strip_prefix('_')?;
            2 + len + 1
        }
    };
    let name = &text[prefix..];
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    Some(
        prefix
            + span(name, |byte| {
                byte.is_ascii_alphanumeric() || b"_-".contains(&byte)
            }),
    )
}

/// How many bytes at the start are wanted ones. They are all ASCII where this is used.
fn span(text: &str, wanted: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|&byte| wanted(byte)).count()
}

/// Puts a value where `path` leads, objects made on the way. Lists are objects as yet.
fn store(root: &mut Map<String, Value>, path: &[&str], value: String) -> Result<()> {
    let conflict = |parts: &[&str]| OptionError::UsedInconsistently {
        path: parts.join("."),
    };
    let Some((last, way)) = path.split_last() else {
        return Ok(());
    };
    let mut members = root;
    for (depth, part) in way.iter().enumerate() {
        let inner = members
            .entry(*part)
            .or_insert_with(|| Value::Object(Map::new()));
        members = inner
            .as_object_mut()
            .ok_or_else(|| conflict(&path[..=depth]))?;
    }
    match members.insert((*last).to_owned(), Value::String(value)) {
        Some(Value::Object(_)) => Err(conflict(path)),
        _ => Ok(()),
    }
}

/// Turns objects whose keys are indices into lists. Recursion is as deep as the tree, which
/// the caller bounds, here with [`MAX_PARTS`].
pub(crate) fn make_lists(members: &mut Map<String, Value>, prefix: &str) -> Result<()> {
    for (key, value) in members.iter_mut() {
        let Value::Object(inner) = value else {
            continue;
        };
        let path = format!("{prefix}{key}");
        make_lists(inner, &format!("{path}."))?;
        // A name begins with a letter or an underscore, so a digit tells an index.
        let indices = inner
            .keys()
            .filter(|key| key.starts_with(|c: char| c.is_ascii_digit()))
            .count();
        if indices == 0 {
            continue;
        }
        if indices < inner.len() {
            return Err(OptionError::UsedInconsistently { path });
        }
        *value = Value::Array(take_elements(std::mem::take(inner), &path)?);
    }
    Ok(())
}

fn take_elements(mut members: Map<String, Value>, path: &str) -> Result<Vec<Value>> {
    (0..members.len())
        .map(|index| match members.get_mut(&index.to_string()) {
            Some(element) => Ok(element.take()),
            None => Err(OptionError::ListHole {
                path: format!("{path}.{index}"),
            }),
        })
        .collect()
}

/// Writes a tree as `key=value` text, from which [`parse_keyval`] makes the same tree
/// with a string for every leaf: numbers in decimal, booleans as `on` and `off`.
///
/// # Errors
///
/// [`OptionError::NotWritable`] for what the text has no form for: null, empty objects
/// and lists, keys that are no names, too many levels.
pub fn write_keyval(members: &Map<String, Value>) -> Result<String> {
    let mut text = String::new();
    for (key, value) in members {
        write_member(&mut text, key, value, 1)?;
    }
    Ok(text)
}

fn write_member(text: &mut String, path: &str, value: &Value, parts: usize) -> Result<()> {
    let refuse = |why| {
        Err(OptionError::NotWritable {
            path: path.to_owned(),
            why,
        })
    };
    if parts > MAX_PARTS {
        return refuse("it is nested too deeply");
    }
    let leaf = match value {
        Value::Null => return refuse("null has no text"),
        Value::Bool(on) => (if *on { "on" } else { "off" }).to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(string) => string.replace(',', ",,"),
        Value::Array(elements) if elements.is_empty() => return refuse("it is an empty list"),
        Value::Object(members) if members.is_empty() => return refuse("it is an empty object"),
        Value::Array(elements) => {
            return elements
                .iter()
                .enumerate()
                .try_for_each(|(index, element)| {
                    write_member(text, &format!("{path}.{index}"), element, parts + 1)
                });
        }
        Value::Object(members) => {
            return members.iter().try_for_each(|(key, member)| {
                write_member(text, &format!("{path}.{key}"), member, parts + 1)
            });
        }
    };
    if split_key(path).map_or(true, |split| split.len() != parts) {
        return refuse("a key in it is no name");
    }
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(path);
    text.push('=');
    text.push_str(&leaf);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> std::result::Result<Value, String> {
        parse_keyval(text, Some("driver"))
            .map(Value::Object)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn trees_are_read() {
        for (text, wanted) in [
            ("", json!({})),
            ("raw", json!({"driver": "raw"})),
            ("raw,a=b", json!({"driver": "raw", "a": "b"})),
            ("a=b,", json!({"a": "b"})),
            ("a=", json!({"a": ""})),
            ("a=b=c", json!({"a": "b=c"})),
            ("a=b,,c,,,d=e", json!({"a": "b,c,", "d": "e"})),
            ("a=,,", json!({"a": ","})),
            ("a=1,a=2", json!({"a": "2"})),
            ("help=1", json!({"help": "1"})),
            (
                "a.b=1,c=2,a.d=3",
                json!({"a": {"b": "1", "d": "3"}, "c": "2"}),
            ),
            ("a.1=y,a.0=x", json!({"a": ["x", "y"]})),
            (
                "a.0.b=x,a.0.c=y,a.1=z",
                json!({"a": [{"b": "x", "c": "y"}, "z"]}),
            ),
            ("a.0.0=x", json!({"a": [["x"]]})),
            ("a.00=x,a.01=y", json!({"a": ["x", "y"]})),
            ("f.o_-=3", json!({"f": {"o_-": "3"}})),
            ("__org.x-1_y_z.0=3", json!({"__org.x-1_y_z": ["3"]})),
            (".x,a=b", json!({"driver": ".x", "a": "b"})),
            ("a=\u{e9}", json!({"a": "\u{e9}"})),
        ] {
            assert_eq!(read(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn errors_are_those_of_qemu() {
        let long = "a".repeat(128);
        let too_long = format!("Parameter '{long}' is too long");
        let fragment = format!("Parameter fragment '{long}' is too long");
        for (text, wanted) in [
            ("=x", "Invalid parameter ''"),
            (",", "Invalid parameter ''"),
            (",,", "Invalid parameter ''"),
            ("raw,,a=b", "Invalid parameter ''"),
            (".a=1", "Invalid parameter '.a'"),
            ("a.=1", "Invalid parameter 'a.'"),
            ("a..b=1", "Invalid parameter 'a..b'"),
            ("0=1", "Invalid parameter '0'"),
            ("0.a=1", "Invalid parameter '0.a'"),
            ("a.1x=1", "Invalid parameter 'a.1x'"),
            ("a.-1=1", "Invalid parameter 'a.-1'"),
            ("_a=1", "Invalid parameter '_a'"),
            ("a =1", "Invalid parameter 'a '"),
            ("\u{e9}=1", "Invalid parameter '\u{e9}'"),
            ("__=1", "Invalid parameter '__'"),
            ("__org=1", "Invalid parameter '__org'"),
            ("__org.x_.y=1", "Invalid parameter '__org.x_.y'"),
            ("__org_1=1", "Invalid parameter '__org_1'"),
            ("?=1", "Invalid parameter '?'"),
            ("raw,a", "Expected '=' after parameter 'a'"),
            ("raw,a,,b=1", "Expected '=' after parameter 'a'"),
            ("raw,a.b,c=1", "Expected '=' after parameter 'a.b'"),
            ("a=1,a.b=1", "Parameters 'a.*' used inconsistently"),
            ("a.b=1,a=1", "Parameters 'a.*' used inconsistently"),
            ("a.b.c=1,a.b=1", "Parameters 'a.b.*' used inconsistently"),
            ("a.0=1,a.b=1", "Parameters 'a.*' used inconsistently"),
            ("a.1=1", "Parameter 'a.0' missing"),
            ("a.0=1,a.2=1", "Parameter 'a.1' missing"),
            ("a.0.1=1", "Parameter 'a.0.0' missing"),
            ("a.99999999999999999999999=1", "Parameter 'a.0' missing"),
            ("help", "Help is not available for this option"),
            ("raw,?", "Help is not available for this option"),
            ("raw,help,x", "Expected '=' after parameter 'x'"),
            (&format!("{long}=1"), &too_long),
            (&format!("{long}.x=1"), &fragment),
            (&format!("x.0.{long}=1"), &fragment),
        ] {
            assert_eq!(read(text), Err(wanted.to_owned()), "{text}");
        }
    }

    #[test]
    fn without_an_implied_key_every_part_needs_a_value() {
        let error = OptionError::NoValue {
            key: "raw".to_owned(),
        };
        assert_eq!(parse_keyval("raw,a=b", None), Err(error));
    }

    #[test]
    fn a_brace_begins_json() {
        let wanted = json!({"a": 1}).as_object().cloned().unwrap();
        assert_eq!(parse(r#"{"a":1}"#, None), Ok(Options::Typed(wanted)));
        let error = parse(r#"{"a":1},"#, None).unwrap_err();
        assert_eq!(error.to_string(), "Expecting at most one JSON value");
        let error = parse(r#" {"a":1,"b":2}"#, Some("driver")).unwrap_err();
        assert_eq!(error.to_string(), r#"Invalid parameter '"b":2}'"#);
    }

    #[test]
    fn hostile_texts_are_refused_cheaply() {
        let deep = |parts: usize| "a.".repeat(parts - 1) + "a=1";
        assert!(read(&deep(MAX_PARTS)).is_ok());
        for parts in [MAX_PARTS + 1, 100_000] {
            assert!(
                read(&deep(parts))
                    .unwrap_err()
                    .contains("more than 128 parts")
            );
        }
        assert!(
            read(&"a".repeat(MAX_TEXT + 1))
                .unwrap_err()
                .contains("1048577 bytes long")
        );
        assert!(read(&",a.1".repeat(1000)).is_err());
    }

    fn any_tree() -> impl Strategy<Value = Map<String, Value>> {
        let leaf = ".{0,10}".prop_map(Value::from);
        let key = "[a-z][a-z0-9_-]{0,5}|__[a-z0-9.-]{0,5}_[a-z]{1,3}";
        let tree = leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..5).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 1..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        prop::collection::btree_map(key, tree, 0..5)
            .prop_map(|members| members.into_iter().collect())
    }

    proptest! {
        #[test]
        fn any_text_is_a_tree_or_an_error(text in ".{0,60}") {
            let _ = parse(&text, Some("driver"));
            let _ = parse(&text, None);
        }

        #[test]
        fn any_text_that_looks_like_options_is_a_tree_or_an_error(
            text in r"[a-c0-2.,=_\-\u{e9}]{0,60}",
        ) {
            let _ = parse(&text, Some("driver"));
        }

        #[test]
        fn what_is_written_is_read_back(tree in any_tree()) {
            let text = write_keyval(&tree).unwrap();
            prop_assert_eq!(parse_keyval(&text, None), Ok(tree));
        }
    }
}
