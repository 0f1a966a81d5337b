//! Reading typed members out of a tree of options.
//!
//! A [`Reader`] stands on one object. Members are asked for by name and type in the order
//! in which their mistakes shall be reported; [`Reader::finish`] then refuses whatever
//! nobody asked for. A member that is not there is `None`, and [`Reader::required`] makes
//! an error of that.
//!
//! The same questions work on both forms of options, which differ in their leaves:
//!
//! | asked for | JSON | key=value text |
//! | --- | --- | --- |
//! | text, word | string | as it stands |
//! | boolean | `true`, `false` | `on` `yes` `true` `y`, `off` `no` `false` `n` |
//! | integer | integer | C notation, see [`crate::number`] |
//! | size | integer | with suffix, see [`crate::size`] |
//!
//! Unsigned integers take negative ones, which count down from 2^64: so does QEMU.
//!
//! A third form is QEMU's older one, where options are flat (`cache.direct` is a key, not
//! a member of `cache`): [`Reader::flat`]. Its leaves are texts, and what QEMU's newer
//! interface calls an integer may there be a size with a suffix.
//!
//! # Names in errors
//!
//! Most errors give the member's full name, `file.size`. QEMU leaves the path out when a
//! word is unknown, when a small integer is out of its range, and when an alternate has a
//! wrong type (where an element of a list then has the name `null`). So do we.

use serde_json::{Map, Value};

use crate::error::{OptionError, Result};
use crate::keyval::Options;

mod alternates;
mod flat;
mod leaves;
mod lists;
#[cfg(test)]
mod tests;
mod word;

pub use alternates::Alternate;
pub use flat::FlatChild;
pub(crate) use flat::{opts_number, opts_size};
pub use word::Word;
pub(crate) use word::words;

/// What the leaves of a tree are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// Strings, whatever they mean.
    Text,
    /// JSON values.
    Typed,
    /// Strings, with the conversions and errors of QEMU's older interface.
    Opts,
}

/// Whose options a flat [`Reader`] reads: it stands in the error for an unknown one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// Nobody: the text is that of QEMU's newer interface.
    Nobody,
    /// A node with a format or filter driver.
    Format(&'a str),
    /// A node with a protocol driver.
    Protocol(&'a str),
    /// A rule of blkdebug, by the name of its section.
    Section(&'a str),
}

/// Reads the members of one object.
pub struct Reader<'a> {
    members: &'a Map<String, Value>,
    leaves: Leaves,
    /// What stands before a member's name in its full name: nothing, or `file.`.
    prefix: String,
    /// What stands before a member's name in a flat map; nothing in a tree.
    lookup: String,
    /// Whether members of inner objects are in `members` too, under dotted names.
    is_flat: bool,
    owner: Owner<'a>,
    /// Names asked for so far. A few dozen at most, so a list will do.
    known: Vec<&'static str>,
    /// Names whose inner members somebody has asked for, in a flat map.
    known_inside: Vec<&'static str>,
    /// Whether any name is good.
    is_open: bool,
}

impl<'a> Reader<'a> {
    /// Reads the outermost object, whose members have no prefix.
    #[must_use]
    pub fn new(members: &'a Map<String, Value>, leaves: Leaves) -> Self {
        Self::inside(members, leaves, String::new())
    }

    /// Reads what [`crate::keyval::parse`] gave.
    #[must_use]
    pub fn of(options: &'a Options) -> Self {
        match options {
            Options::Text(members) => Self::new(members, Leaves::Text),
            Options::Typed(members) => Self::new(members, Leaves::Typed),
        }
    }

    /// Reads an object whose members have a prefix in errors.
    pub(crate) fn inside(members: &'a Map<String, Value>, leaves: Leaves, prefix: String) -> Self {
        Self {
            members,
            leaves,
            prefix,
            lookup: String::new(),
            is_flat: false,
            owner: Owner::Nobody,
            known: Vec::new(),
            known_inside: Vec::new(),
            is_open: false,
        }
    }

    /// Reads a flat map of strings, as QEMU's older interface has it.
    #[must_use]
    pub fn flat(members: &'a Map<String, Value>, owner: Owner<'a>) -> Self {
        Self {
            is_flat: true,
            owner,
            ..Self::new(members, Leaves::Opts)
        }
    }

    /// Whether this is a reader of a flat map.
    #[must_use]
    pub fn is_flat(&self) -> bool {
        self.is_flat
    }

    /// From here on values are converted as QEMU's newer interface does it. Some drivers
    /// have that behind the older one.
    pub fn convert_as_text(&mut self) {
        if self.leaves == Leaves::Opts {
            self.leaves = Leaves::Text;
        }
    }

    /// A member's full name.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn take(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        if self.is_flat {
            // Null, and lists and objects that are empty, say nothing in the older interface.
            let value = self.members.get(&format!("{}{name}", self.lookup));
            return value.filter(|value| value.is_string());
        }
        self.members.get(name)
    }

    fn wrong_type(&self, name: &str, wanted: &'static str) -> OptionError {
        OptionError::WrongType {
            path: self.path(name),
            wanted,
        }
    }

    fn expects(&self, name: &str, wanted: &'static str) -> OptionError {
        OptionError::Expects {
            path: self.path(name),
            wanted,
        }
    }

    /// Reads a member with one of the other methods and insists that it is there.
    ///
    /// # Errors
    ///
    /// [`OptionError::Missing`], and the errors of `read`.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Result<Option<T>>,
    ) -> Result<T> {
        read(self, name)?.ok_or_else(|| OptionError::Missing {
            path: self.path(name),
        })
    }

    /// A value of any type, in a tree of JSON values. Null is a value.
    pub fn any(&mut self, name: &'static str) -> Option<&'a Value> {
        self.take(name)
    }

    /// All members of an object for which there are no rules. They all count as read.
    pub fn all(&mut self) -> &'a Map<String, Value> {
        self.is_open = true;
        self.members
    }

    /// An object, to be read further.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn object(&mut self, name: &'static str) -> Result<Option<Reader<'a>>> {
        if self.is_flat {
            self.known_inside.push(name);
            let inner = self.inner(&format!("{name}."), true);
            return Ok(inner.has_members().then_some(inner));
        }
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(members)) => {
                let prefix = format!("{}.", self.path(name));
                Ok(Some(Reader::inside(members, self.leaves, prefix)))
            }
            Some(_) => Err(self.wrong_type(name, "object")),
        }
    }

    /// The same map, but only what is below `dotted`.
    fn inner(&self, dotted: &str, named_in_full: bool) -> Self {
        Self {
            prefix: if named_in_full {
                format!("{}{dotted}", self.prefix)
            } else {
                String::new()
            },
            lookup: format!("{}{dotted}", self.lookup),
            known: Vec::new(),
            known_inside: Vec::new(),
            ..*self
        }
    }

    fn has_members(&self) -> bool {
        self.members.keys().any(|key| key.starts_with(&self.lookup))
    }

    fn inner_keys(&self) -> impl Iterator<Item = &'a str> {
        self.members
            .keys()
            .filter_map(|key| key.strip_prefix(&self.lookup))
    }

    /// Whether a member is there and null. It counts as read only if it is.
    pub fn null(&mut self, name: &'static str) -> bool {
        let is_null = self.members.get(&format!("{}{name}", self.lookup)) == Some(&Value::Null);
        if is_null {
            self.known.push(name);
        }
        is_null
    }

    /// Says that a member exists in QEMU and not here.
    ///
    /// # Errors
    ///
    /// [`OptionError::UnsupportedOption`] when it is given.
    pub fn unsupported(&mut self, name: &'static str) -> Result<()> {
        let inside = self.is_flat && self.inner(&format!("{name}."), true).has_members();
        match self.take(name) {
            None if !inside => Ok(()),
            _ => Err(OptionError::UnsupportedOption {
                path: self.path(name),
            }),
        }
    }

    /// Ends the reading of this object.
    ///
    /// # Errors
    ///
    /// [`OptionError::Unexpected`] for the first member that nobody asked for.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "nothing is to be read afterwards"
    )]
    pub fn finish(self) -> Result<()> {
        let is_known = |key: &str| {
            let inside = |name: &&str| {
                let rest = key.strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with('.'))
            };
            self.is_open || self.known.contains(&key) || self.known_inside.iter().any(inside)
        };
        match self.inner_keys().find(|key| !is_known(key)) {
            None => Ok(()),
            Some(key) => Err(self.unknown(key)),
        }
    }

    fn unknown(&self, key: &str) -> OptionError {
        let path = self.path(key);
        match self.owner {
            Owner::Nobody => OptionError::Unexpected { path },
            Owner::Format(driver) => OptionError::FormatOption {
                driver: driver.to_owned(),
                path,
            },
            Owner::Protocol(driver) => OptionError::ProtocolOption {
                driver: driver.to_owned(),
                path,
            },
            Owner::Section(section) => OptionError::SectionOption {
                section: section.to_owned(),
                path,
            },
        }
    }
}
