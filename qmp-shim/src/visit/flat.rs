//! What is particular to flat maps, the options of QEMU's older interface.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Owner, Reader};
use crate::error::{OptionError, Result};
use crate::number::{parse_u64, skip_blanks};
use crate::size::{SizeError, parse_size};

/// What a flat map says of a child: a reference, options, both or neither.
pub struct FlatChild {
    /// The value of the child's name itself.
    pub reference: Option<Value>,
    /// The options of the child, without its name before theirs.
    pub options: Map<String, Value>,
}

impl<'a> Reader<'a> {
    /// What a flat map says of the child `name`. It counts as read.
    pub fn flat_child(&mut self, name: &'static str) -> FlatChild {
        self.known.push(name);
        self.known_inside.push(name);
        let dotted = format!("{}{name}.", self.lookup);
        let inside = self.members.iter().filter_map(|(key, value)| {
            let inner = key.strip_prefix(&dotted)?;
            Some((inner.to_owned(), value.clone()))
        });
        FlatChild {
            reference: self.members.get(&format!("{}{name}", self.lookup)).cloned(),
            options: inside.collect(),
        }
    }

    pub(super) fn flat_objects(&mut self, name: &'static str) -> Result<Option<Vec<Reader<'a>>>> {
        self.known_inside.push(name);
        let section = |dotted: String| Reader {
            owner: Owner::Section(name),
            ..self.inner(&dotted, false)
        };
        let whole = section(format!("{name}."));
        if !whole.has_members() {
            return Ok(None);
        }
        let mut indices = BTreeSet::new();
        let mut stray = None;
        for key in whole.inner_keys() {
            let (index, is_inside) = match key.split_once('.') {
                Some((index, _)) => (index, true),
                None => (key, false),
            };
            match parse_index(index) {
                Some(index) if is_inside => {
                    indices.insert(index);
                }
                Some(index) => {
                    return Err(OptionError::SectionWithoutKeys {
                        section: name,
                        index,
                    });
                }
                None => stray = stray.or(Some(key)),
            }
        }
        if indices.is_empty() {
            return Ok(Some(vec![whole]));
        }
        let follows = indices
            .iter()
            .enumerate()
            .take_while(|(at, index)| at == *index);
        let count = follows.count();
        let beyond = || {
            whole.inner_keys().find(|key| {
                let index = key
                    .split_once('.')
                    .and_then(|(index, _)| parse_index(index));
                index.is_some_and(|index| index >= count)
            })
        };
        match stray.or_else(beyond) {
            None => Ok(Some(
                (0..count)
                    .map(|index| section(format!("{name}.{index}.")))
                    .collect(),
            )),
            Some(key) => Err(OptionError::UnusedOption {
                section: name,
                key: key.to_owned(),
            }),
        }
    }

    pub(super) fn flat_elements(&mut self, name: &'static str) -> Result<Option<Vec<&'a str>>> {
        self.known_inside.push(name);
        let inner = self.inner(&format!("{name}."), true);
        let count = inner.inner_keys().count();
        if count == 0 {
            return Ok(None);
        }
        let mut largest = 0;
        for key in inner.inner_keys() {
            let index = key
                .parse::<usize>()
                .map_err(|_| self.wrong_type(name, "array"))?;
            largest = largest.max(index);
        }
        let element = |index: usize| inner.members.get(&format!("{}{index}", inner.lookup));
        (0..count)
            .map(|index| match element(index) {
                Some(value) => self.leaf_text(name, value),
                None => Err(OptionError::ListNotContiguous {
                    seen: count,
                    largest,
                }),
            })
            .collect::<Result<_>>()
            .map(Some)
    }

    pub(super) fn opts_number(&self, name: &str, value: &Value) -> Result<u64> {
        opts_number(&self.path(name), self.leaf_text(name, value)?)
    }

    pub(super) fn opts_size(&self, name: &str, value: &Value) -> Result<u64> {
        opts_size(&self.path(name), self.leaf_text(name, value)?)
    }
}

/// A number as QEMU's older interface reads it, for the option `path`.
pub(crate) fn opts_number(path: &str, text: &str) -> Result<u64> {
    parse_u64(text).ok_or_else(|| {
        let path = path.to_owned();
        if is_decimal(text) {
            OptionError::NumberTooLarge {
                path,
                value: text.to_owned(),
            }
        } else {
            OptionError::Expects {
                path,
                wanted: "a number",
            }
        }
    })
}

/// A size as QEMU's older interface reads it, for the option `path`.
pub(crate) fn opts_size(path: &str, text: &str) -> Result<u64> {
    let out_of_range = || OptionError::SizeOutOfRange {
        path: path.to_owned(),
        value: text.to_owned(),
    };
    match parse_size(text) {
        Ok(size) => Ok(size),
        Err(SizeError::TooLarge { .. }) => Err(out_of_range()),
        Err(_) if is_negative_size(text) => Err(out_of_range()),
        Err(_) => Err(OptionError::Expects {
            path: path.to_owned(),
            wanted: OPTS_SIZE,
        }),
    }
}

/// What QEMU's older interface wants for a size; it prints the hint with the error.
const OPTS_SIZE: &str = "a non-negative number below 2^64\n\
    Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
    and exabytes, respectively.";

/// A negative size is a size, but out of range.
fn is_negative_size(text: &str) -> bool {
    let rest = skip_blanks(text).strip_prefix('-');
    rest.is_some_and(|rest| {
        rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') && parse_size(rest).is_ok()
    })
}

/// An index of a list as QEMU writes it: without leading zeroes.
fn parse_index(text: &str) -> Option<usize> {
    let index = text.parse().ok()?;
    (format!("{index}") == text).then_some(index)
}

fn is_decimal(text: &str) -> bool {
    let digits = skip_blanks(text).trim_start_matches(['+', '-']);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}
