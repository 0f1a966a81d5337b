//! The text of a file with rules.
//!
//! ```text
//! # a comment
//! [inject-error]
//! event = "write_aio"
//! errno = "28"
//!
//! [set-state "name"]
//! event = "l2_update"
//! new_state = "2"
//! ```
//!
//! The form is stricter than it looks, and so is QEMU's reader of it: a section begins in
//! the first column, a value has double quotes around it, a blank stands before the equals
//! sign. A value without quotes is an empty one. What follows the closing quote, or the
//! bracket, is nothing. A section may have a name, which no other of its kind may have.

use serde_json::{Map, Value};

use super::{InjectError, SetState};
use crate::error::{OptionError, Result};
use crate::keyval::MAX_TEXT;
use crate::number::parse_u64;
use crate::opts::check_id;
use crate::visit::{Owner, Reader};

/// What a file of rules holds, each kind in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Rules by which requests fail.
    pub inject_error: Vec<InjectError>,
    /// Rules by which the state changes.
    pub set_state: Vec<SetState>,
}

/// The kinds of section and their keys.
const SECTIONS: [(&str, &[&str]); 2] = [
    (
        "inject-error",
        &[
            "event",
            "state",
            "iotype",
            "errno",
            "sector",
            "once",
            "immediately",
        ],
    ),
    ("set-state", &["event", "state", "new_state"]),
];

struct Section {
    kind: &'static str,
    keys: &'static [&'static str],
    id: Option<String>,
    options: Map<String, Value>,
}

/// Reads the text of a file with rules.
///
/// # Errors
///
/// In QEMU's words: see [`OptionError`]. Mistakes of form come first, wrong names of events
/// and missing ones after the whole text was read.
pub fn parse(text: &str) -> Result<Rules> {
    if text.len() > MAX_TEXT {
        return Err(OptionError::TextTooLong {
            len: text.len(),
            max: MAX_TEXT,
        });
    }
    let mut sections: Vec<Section> = Vec::new();
    for line in text.split('\n') {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.strip_prefix('[').and_then(section_head) {
            Some((name, id)) => {
                let section = open_section(name, id, &sections)?;
                sections.push(section);
            }
            None => set(sections.last_mut(), line)?,
        }
    }
    // QEMU takes one kind after the other, which decides between two mistakes.
    Ok(Rules {
        inject_error: read_kind(&sections, "inject-error", InjectError::read)?,
        set_state: read_kind(&sections, "set-state", SetState::read)?,
    })
}

fn read_kind<T>(
    sections: &[Section],
    kind: &'static str,
    read: fn(&mut Reader<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let sections = sections.iter().filter(|section| section.kind == kind);
    sections
        .map(|section| read(&mut Reader::flat(&section.options, Owner::Section(kind))))
        .collect()
}

/// Name and id of a section, behind its opening bracket.
fn section_head(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(found) = named_head(text) {
        return Some(found);
    }
    let name = text.split(']').next().unwrap_or(text);
    (!name.is_empty()).then_some((name, None))
}

/// `name "id"`; neither the closing quote nor the bracket is missed.
fn named_head(text: &str) -> Option<(&str, Option<&str>)> {
    let end = text.find(is_blank)?;
    let (name, rest) = text.split_at(end);
    let id = rest.trim_start_matches(is_blank).strip_prefix('"')?;
    let id = id.split('"').next().unwrap_or(id);
    (!name.is_empty() && !id.is_empty()).then_some((name, Some(id)))
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\x0b' | '\x0c')
}

fn open_section(name: &str, id: Option<&str>, others: &[Section]) -> Result<Section> {
    let Some(&(kind, keys)) = SECTIONS.iter().find(|(kind, _)| *kind == name) else {
        return Err(OptionError::NoSuchGroup {
            group: name.to_owned(),
        });
    };
    if let Some(id) = id {
        check_id(id)?;
        let same = |other: &Section| other.kind == kind && other.id.as_deref() == Some(id);
        if others.iter().any(same) {
            return Err(OptionError::DuplicateId {
                id: id.to_owned(),
                group: kind,
            });
        }
    }
    Ok(Section {
        kind,
        keys,
        id: id.map(str::to_owned),
        options: Map::new(),
    })
}

/// Reads `key = "value"`. The type of a value is checked at once, its meaning later.
fn set(section: Option<&mut Section>, line: &str) -> Result<()> {
    let line = line.trim_start_matches(is_blank);
    let end = line.find(is_blank).unwrap_or(line.len());
    let (key, rest) = line.split_at(end);
    if key.is_empty() {
        return Err(OptionError::ConfigLine);
    }
    let Some(section) = section else {
        return Err(OptionError::NoGroup);
    };
    if !section.keys.contains(&key) {
        return Err(OptionError::InvalidKey {
            key: key.to_owned(),
        });
    }
    let value = quoted(rest).unwrap_or_default();
    check_type(key, value)?;
    section.options.insert(key.to_owned(), Value::from(value));
    Ok(())
}

fn quoted(rest: &str) -> Option<&str> {
    let value = rest.trim_start_matches(is_blank).strip_prefix('=')?;
    let value = value.trim_start_matches(is_blank).strip_prefix('"')?;
    value.split('"').next()
}

fn check_type(key: &str, value: &str) -> Result<()> {
    let expects = |wanted| OptionError::Expects {
        path: key.to_owned(),
        wanted,
    };
    match key {
        "once" | "immediately" => match value {
            "on" | "yes" | "true" | "y" | "off" | "no" | "false" | "n" => Ok(()),
            _ => Err(expects("'on' or 'off'")),
        },
        "state" | "errno" | "sector" | "new_state" if parse_u64(value).is_none() => {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            Err(if digits {
                OptionError::NumberTooLarge {
                    path: key.to_owned(),
                    value: value.to_owned(),
                }
            } else {
                expects("a number")
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Event, IoType};
    use super::*;

    fn error(text: &str) -> String {
        parse(text)
            .map(|rules| panic!("{text} gave {rules:?}"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn rules_are_read_in_order() {
        let text = "# rules\n\n[inject-error \"a\"]\n\tevent = \"write_aio\" and more\r\n\
                    iotype =\"write\"\nerrno = \"28\"\nsector = \"0x10\"\nonce = \"yes\"\n\
                    [set-state]\nevent = \"none\"\nevent = \"l2_load\"\n\
                    [inject-error] and more\nevent = \"none\"\nerrno = \"0\"";
        let rule = InjectError {
            event: Event::WriteAio,
            state: None,
            iotype: Some(IoType::Write),
            errno: Some(28),
            sector: Some(16),
            once: Some(true),
            immediately: None,
        };
        let suppress = InjectError {
            event: Event::None,
            iotype: None,
            errno: Some(0),
            sector: None,
            once: None,
            ..rule
        };
        let state = SetState {
            event: Event::L2Load,
            state: None,
            new_state: 0,
        };
        let wanted = Rules {
            inject_error: vec![rule, suppress],
            set_state: vec![state],
        };
        assert_eq!(parse(text), Ok(wanted));
        assert_eq!(parse(""), Ok(Rules::default()));
    }

    /// Each of these was given to qemu-io as a file.
    #[test]
    fn errors_are_those_of_qemu() {
        let id = "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, \
                  '-', '.', '_', starting with a letter.";
        let rule = "[inject-error]\nevent = \"write_aio\"\n";
        for (text, wanted) in [
            (
                "[inject-error \"a\"]\n[inject-error \"a\"]\n",
                "Duplicate ID 'a' for inject-error",
            ),
            (
                "[inject-error a]",
                "There is no option group 'inject-error a'",
            ),
            (
                "[inject-error \"\"]",
                "There is no option group 'inject-error \"\"'",
            ),
            (
                "[inject-error ]",
                "There is no option group 'inject-error '",
            ),
            ("[bogus]", "There is no option group 'bogus'"),
            ("[inject-error \"1\"]", id),
            ("[inject-error \"a b\"]", id),
            ("[inject-error \"a]", id),
            ("foo", "no group defined"),
            (" [inject-error]", "no group defined"),
            ("  # x", "no group defined"),
            ("\t\n", "parse error"),
            ("[inject-error]\nfoo", "Invalid parameter 'foo'"),
            ("[inject-error]\n= \"x\"", "Invalid parameter '='"),
            (
                "[inject-error]\nevent=\"x\"",
                "Invalid parameter 'event=\"x\"'",
            ),
            ("[inject-error]\nevent= \"x\"", "Invalid parameter 'event='"),
            ("[inject-error]\nevent = none", "invalid parameter value: "),
            ("[inject-error]\nevent", "invalid parameter value: "),
            (
                "[inject-error]\nevent = = \"x\"",
                "invalid parameter value: ",
            ),
            ("[inject-error]\n", "Missing event name for rule"),
            (
                "[set-state]\nevent = \"x\"\n[inject-error]\n",
                "Missing event name for rule",
            ),
            (
                &format!("{rule}errno = \"EIO\""),
                "Parameter 'errno' expects a number",
            ),
            (
                &format!("{rule}once = \"1\""),
                "Parameter 'once' expects 'on' or 'off'",
            ),
            (
                &format!("{rule}once"),
                "Parameter 'once' expects 'on' or 'off'",
            ),
            (
                &format!("{rule}iotype = \"x\""),
                "invalid parameter value: x",
            ),
            (
                &format!("{rule}new_state = \"1\""),
                "Invalid parameter 'new_state'",
            ),
            (
                &format!("{rule}event = \"x\"\n[bogus]"),
                "There is no option group 'bogus'",
            ),
            (
                &format!("{rule}state = \"99999999999999999999999\""),
                "Value '99999999999999999999999' is too large for parameter 'state'",
            ),
            (
                "[set-state]\nevent = \"none\"\nerrno = \"1\"",
                "Invalid parameter 'errno'",
            ),
        ] {
            assert_eq!(error(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_rules_or_an_error(text in "(\\[inject-error\\]|[a-e=\"\\[\\] \n\t#]){0,40}") {
            let _ = parse(&text);
        }
    }
}
