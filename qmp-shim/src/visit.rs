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
use crate::number::{parse_i64, parse_u64};
use crate::size::parse_size;

mod flat;

pub use flat::FlatChild;
pub(crate) use flat::{opts_number, opts_size};

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

/// A type whose values are words.
pub trait Word: Copy + 'static {
    /// Every word and what it stands for.
    const WORDS: &'static [(&'static str, Self)];

    /// The value a word stands for.
    #[must_use]
    fn from_word(word: &str) -> Option<Self> {
        Self::WORDS
            .iter()
            .find(|(known, _)| *known == word)
            .map(|&(_, value)| value)
    }
}

/// Declares an enum of words: `Variant = "word"`. The first one is the default.
macro_rules! words {
    (
        $(#[$attribute:meta])*
        $vis:vis enum $name:ident {
            $(#[$first_doc:meta])*
            $first:ident = $first_word:literal,
            $($(#[$doc:meta])* $variant:ident = $word:literal,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize)]
        $vis enum $name {
            $(#[$first_doc])*
            #[default]
            #[serde(rename = $first_word)]
            $first,
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $crate::visit::Word for $name {
            const WORDS: &'static [(&'static str, Self)] =
                &[($first_word, Self::$first), $(($word, Self::$variant),)*];
        }
    };
}
pub(crate) use words;

/// A member that may be a string or an object, and which of them it is.
pub enum Alternate<'a> {
    /// The string.
    Text(&'a str),
    /// The object, to be read further.
    Object(Reader<'a>),
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

    /// The string of a plain member in a tree of text.
    fn leaf_text(&self, name: &str, value: &'a Value) -> Result<&'a str> {
        value.as_str().ok_or_else(|| OptionError::UnexpectedBelow {
            path: self.path(name),
        })
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

    /// A string.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        Ok(self.borrow_text(name)?.map(str::to_owned))
    }

    fn borrow_text(&mut self, name: &'static str) -> Result<Option<&'a str>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match self.leaves {
            Leaves::Text | Leaves::Opts => self.leaf_text(name, value).map(Some),
            Leaves::Typed => value
                .as_str()
                .map(Some)
                .ok_or_else(|| self.wrong_type(name, "string")),
        }
    }

    /// A word of `W`.
    ///
    /// # Errors
    ///
    /// When it is no string, or a word that `W` does not know.
    pub fn word<W: Word>(&mut self, name: &'static str) -> Result<Option<W>> {
        let Some(word) = self.borrow_text(name)? else {
            return Ok(None);
        };
        let bad_value = || self.bad_word(name, word);
        W::from_word(word).map(Some).ok_or_else(bad_value)
    }

    fn bad_word(&self, name: &str, word: &str) -> OptionError {
        let value = word.to_owned();
        match self.leaves {
            Leaves::Opts => OptionError::InvalidValue { value },
            Leaves::Text | Leaves::Typed => OptionError::BadValue {
                name: name.to_owned(),
                value,
            },
        }
    }

    /// A boolean.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn boolean(&mut self, name: &'static str) -> Result<Option<bool>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match self.leaves {
            Leaves::Text | Leaves::Opts => match self.leaf_text(name, value)? {
                "on" | "yes" | "true" | "y" => Ok(Some(true)),
                "off" | "no" | "false" | "n" => Ok(Some(false)),
                _ => Err(self.expects(name, "'on' or 'off'")),
            },
            Leaves::Typed => value
                .as_bool()
                .map(Some)
                .ok_or_else(|| self.wrong_type(name, "boolean")),
        }
    }

    /// A signed integer of 64 bits.
    ///
    /// # Errors
    ///
    /// When it is something else or out of that range.
    pub fn signed(&mut self, name: &'static str) -> Result<Option<i64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = match self.leaves {
            Leaves::Text => {
                parse_i64(self.leaf_text(name, value)?).ok_or_else(|| self.expects(name, "integer"))
            }
            Leaves::Opts => self.opts_number(name, value).map(u64::cast_signed),
            Leaves::Typed => value
                .as_i64()
                .ok_or_else(|| self.wrong_type(name, "integer")),
        };
        number.map(Some)
    }

    /// A number of bytes or the like which QEMU declares as signed: an integer from 0
    /// to 2^63 - 1, without suffix. The older interface has a size in this place.
    ///
    /// # Errors
    ///
    /// As [`Reader::signed`], and when it is negative.
    pub fn not_negative(&mut self, name: &'static str) -> Result<Option<u64>> {
        if self.leaves == Leaves::Opts {
            return self.size(name);
        }
        let Some(value) = self.signed(name)? else {
            return Ok(None);
        };
        let number = u64::try_from(value);
        number
            .map(Some)
            .map_err(|_| OptionError::OutOfRange { name, value })
    }

    /// An unsigned integer of 64 bits.
    ///
    /// # Errors
    ///
    /// When it is something else or out of that range.
    pub fn unsigned(&mut self, name: &'static str) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = match self.leaves {
            Leaves::Text => {
                parse_u64(self.leaf_text(name, value)?).ok_or_else(|| self.expects(name, "integer"))
            }
            Leaves::Opts => self.opts_number(name, value),
            Leaves::Typed => self.typed_unsigned(name, value),
        };
        number.map(Some)
    }

    fn typed_unsigned(&self, name: &str, value: &Value) -> Result<u64> {
        value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
            .ok_or_else(|| self.expects(name, "uint64"))
    }

    /// An unsigned integer of 32 bits.
    ///
    /// # Errors
    ///
    /// When it is something else or out of that range.
    pub fn unsigned_32(&mut self, name: &'static str) -> Result<Option<u32>> {
        let Some(value) = self.unsigned(name)? else {
            return Ok(None);
        };
        let out_of_range = |_| OptionError::Expects {
            path: name.to_owned(),
            wanted: "uint32_t",
        };
        u32::try_from(value).map(Some).map_err(out_of_range)
    }

    /// An unsigned integer of 16 bits.
    ///
    /// # Errors
    ///
    /// When it is something else or out of that range.
    pub fn unsigned_16(&mut self, name: &'static str) -> Result<Option<u16>> {
        let Some(value) = self.unsigned(name)? else {
            return Ok(None);
        };
        let out_of_range = |_| OptionError::Expects {
            path: name.to_owned(),
            wanted: "uint16_t",
        };
        u16::try_from(value).map(Some).map_err(out_of_range)
    }

    /// A list of unsigned integers of 64 bits, in a tree of JSON values.
    ///
    /// # Errors
    ///
    /// When it is no list, or an element is something else or out of that range.
    pub fn list_of_unsigned(&mut self, name: &'static str) -> Result<Option<Vec<u64>>> {
        let Some(elements) = self.elements(name)? else {
            return Ok(None);
        };
        let read = |(index, value): (usize, &Value)| {
            let number = value.as_u64();
            let number = number.or_else(|| value.as_i64().map(i64::cast_unsigned));
            number.ok_or_else(|| OptionError::Expects {
                path: self.element_path(name, index),
                wanted: "uint64",
            })
        };
        let numbers = elements.iter().enumerate().map(read);
        numbers.collect::<Result<_>>().map(Some)
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

    /// A size in bytes.
    ///
    /// # Errors
    ///
    /// When it is something else or does not fit 64 bits.
    pub fn size(&mut self, name: &'static str) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let bytes = match self.leaves {
            Leaves::Text => {
                parse_size(self.leaf_text(name, value)?).map_err(|_| self.expects(name, "size"))
            }
            Leaves::Opts => self.opts_size(name, value),
            Leaves::Typed => self.typed_unsigned(name, value),
        };
        bytes.map(Some)
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

    /// A list of objects, to be read further. An element that is no object is an error in its
    /// place, so that mistakes inside of the ones before it come first. In a flat map the errors of the objects name
    /// `section` and not the list, and one object may stand there without an index.
    ///
    /// # Errors
    ///
    /// When it is no list.
    pub fn objects(&mut self, name: &'static str) -> Result<Option<Vec<Result<Reader<'a>>>>> {
        if self.is_flat {
            let sections = self.flat_objects(name)?;
            return Ok(sections.map(|sections| sections.into_iter().map(Ok).collect()));
        }
        let Some(elements) = self.elements(name)? else {
            return Ok(None);
        };
        let read = |(index, value): (usize, &'a Value)| match value {
            Value::Object(members) => {
                let prefix = self.element_path(name, index) + ".";
                Ok(Reader::inside(members, self.leaves, prefix))
            }
            _ => Err(OptionError::WrongType {
                path: self.element_path(name, index),
                wanted: "object",
            }),
        };
        Ok(Some(elements.iter().enumerate().map(read).collect()))
    }

    fn inner_keys(&self) -> impl Iterator<Item = &'a str> {
        self.members
            .keys()
            .filter_map(|key| key.strip_prefix(&self.lookup))
    }

    /// A list of words.
    ///
    /// # Errors
    ///
    /// When it is no list, or an element is something else.
    pub fn list_of_words<W: Word>(&mut self, name: &'static str) -> Result<Option<Vec<W>>> {
        let bad_value = |word: &str| OptionError::BadValue {
            name: "null".to_owned(),
            value: word.to_owned(),
        };
        let word = |word: &str| W::from_word(word).ok_or_else(|| bad_value(word));
        if self.is_flat {
            let elements = self.flat_elements(name)?;
            let elements = elements.map(|elements| elements.into_iter().map(word).collect());
            return elements.transpose();
        }
        let Some(elements) = self.elements(name)? else {
            return Ok(None);
        };
        let read = |(index, value): (usize, &'a Value)| match value.as_str() {
            Some(text) => word(text),
            None if self.leaves == Leaves::Text => Err(OptionError::UnexpectedBelow {
                path: self.element_path(name, index),
            }),
            None => Err(OptionError::WrongType {
                path: self.element_path(name, index),
                wanted: "string",
            }),
        };
        elements
            .iter()
            .enumerate()
            .map(read)
            .collect::<Result<_>>()
            .map(Some)
    }

    fn elements(&mut self, name: &'static str) -> Result<Option<&'a [Value]>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(elements)) => Ok(Some(elements)),
            Some(_) => Err(self.wrong_type(name, "array")),
        }
    }

    fn element_path(&self, name: &str, index: usize) -> String {
        match self.leaves {
            Leaves::Text | Leaves::Opts => format!("{}.{index}", self.path(name)),
            Leaves::Typed => format!("{}[{index}]", self.path(name)),
        }
    }

    /// Whether a member is there and null. It counts as read only if it is.
    pub fn null(&mut self, name: &'static str) -> bool {
        let is_null = self.members.get(&format!("{}{name}", self.lookup)) == Some(&Value::Null);
        if is_null {
            self.known.push(name);
        }
        is_null
    }

    /// A string or null, which is an inner `None`. `wanted` is what QEMU calls this pair in
    /// errors.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn text_or_null(
        &mut self,
        name: &'static str,
        wanted: &'static str,
    ) -> Result<Option<Option<String>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(Value::String(text)) => Ok(Some(Some(text.clone()))),
            Some(_) => Err(OptionError::WrongType {
                path: name.to_owned(),
                wanted,
            }),
        }
    }

    /// A string or an object. `wanted` is what QEMU calls this pair in errors.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn alternate(
        &mut self,
        name: &'static str,
        wanted: &'static str,
    ) -> Result<Option<Alternate<'a>>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        self.either(name, self.path(name), value, wanted).map(Some)
    }

    /// A list whose elements are strings or objects. An element of another type is an error in
    /// its place, so that mistakes inside of the ones before it come first.
    ///
    /// # Errors
    ///
    /// When it is no list.
    pub fn alternates(
        &mut self,
        name: &'static str,
        wanted: &'static str,
    ) -> Result<Option<Vec<Result<Alternate<'a>>>>> {
        let Some(elements) = self.elements(name)? else {
            return Ok(None);
        };
        let read =
            |(index, value)| self.either("null", self.element_path(name, index), value, wanted);
        Ok(Some(elements.iter().enumerate().map(read).collect()))
    }

    fn either(
        &self,
        name: &str,
        path: String,
        value: &'a Value,
        wanted: &'static str,
    ) -> Result<Alternate<'a>> {
        match value {
            Value::String(text) => Ok(Alternate::Text(text)),
            Value::Object(members) => {
                let prefix = path + ".";
                Ok(Alternate::Object(Reader::inside(
                    members,
                    self.leaves,
                    prefix,
                )))
            }
            _ => Err(OptionError::WrongType {
                path: name.to_owned(),
                wanted,
            }),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyval;
    use serde_json::json;

    words! {
        /// A word for the tests.
        enum Colour {
            /// Red.
            Red = "red",
            /// Green.
            Green = "green",
        }
    }

    /// Reads member `m` of a JSON object or of `key=value` text. A macro, since a method
    /// passed to a function would have to fit every lifetime of a reader.
    macro_rules! read {
        ($text:expr, $method:expr) => {{
            let options = keyval::parse($text, None).unwrap();
            Reader::of(&options)
                .required("m", $method)
                .map_err(|error| error.to_string())
        }};
    }

    fn one(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<()>> {
        Ok(reader.alternate(name, "Ref")?.map(|_| ()))
    }

    fn many(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<()>> {
        for element in reader.alternates(name, "Ref")?.unwrap_or_default() {
            if let Alternate::Object(inner) = element? {
                inner.finish()?;
            }
        }
        Ok(Some(()))
    }

    fn object(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<()>> {
        Ok(reader.object(name)?.map(|_| ()))
    }

    fn error<T>(text: &str) -> std::result::Result<T, String> {
        Err(text.to_owned())
    }

    #[test]
    fn texts_and_words() {
        assert_eq!(read!("m=x", Reader::text), Ok("x".to_owned()));
        assert_eq!(read!(r#"{"m":"x"}"#, Reader::text), Ok("x".to_owned()));
        assert_eq!(read!("m=green", Reader::word), Ok(Colour::Green));
        assert_eq!(Colour::default(), Colour::Red);
        for (text, wanted) in [
            ("n=x", "Parameter 'm' is missing"),
            ("m.a=x", "Parameters 'm.*' are unexpected"),
            ("m.0=x", "Parameters 'm.*' are unexpected"),
            (
                r#"{"m":1}"#,
                "Invalid parameter type for 'm', expected: string",
            ),
            (
                r#"{"m":null}"#,
                "Invalid parameter type for 'm', expected: string",
            ),
        ] {
            assert_eq!(read!(text, Reader::text), error(wanted), "{text}");
            assert_eq!(read!(text, Reader::word::<Colour>), error(wanted), "{text}");
        }
        let wanted = error("Parameter 'm' does not accept value 'blue'");
        assert_eq!(read!("m=blue", Reader::word::<Colour>), wanted);
    }

    #[test]
    fn booleans() {
        for text in ["m=on", "m=yes", "m=true", "m=y", r#"{"m":true}"#] {
            assert_eq!(read!(text, Reader::boolean), Ok(true), "{text}");
        }
        for text in ["m=off", "m=no", "m=false", "m=n", r#"{"m":false}"#] {
            assert_eq!(read!(text, Reader::boolean), Ok(false), "{text}");
        }
        for text in ["m=", "m=1", "m=ON", "m=on "] {
            let wanted = error("Parameter 'm' expects 'on' or 'off'");
            assert_eq!(read!(text, Reader::boolean), wanted, "{text}");
        }
        let wanted = error("Invalid parameter type for 'm', expected: boolean");
        assert_eq!(read!(r#"{"m":"on"}"#, Reader::boolean), wanted);
        assert_eq!(
            read!("m.a=1", Reader::boolean),
            error("Parameters 'm.*' are unexpected")
        );
    }

    #[test]
    fn integers() {
        assert_eq!(read!("m=-0x10", Reader::signed), Ok(-16));
        assert_eq!(read!(r#"{"m":-16}"#, Reader::signed), Ok(-16));
        assert_eq!(read!("m=-1", Reader::unsigned), Ok(u64::MAX));
        assert_eq!(read!(r#"{"m":-1}"#, Reader::unsigned), Ok(u64::MAX));
        assert_eq!(read!("m=4294967295", Reader::unsigned_32), Ok(u32::MAX));
        let wanted = error("Parameter 'm' expects integer");
        for text in ["m=", "m=1k", "m=1.5", "m=18446744073709551616"] {
            assert_eq!(read!(text, Reader::signed).map(|_| ()), wanted, "{text}");
            assert_eq!(read!(text, Reader::unsigned).map(|_| ()), wanted, "{text}");
        }
        for text in [
            r#"{"m":"1"}"#,
            r#"{"m":1.0}"#,
            r#"{"m":true}"#,
            r#"{"m":1e400}"#,
        ] {
            let wanted = error("Invalid parameter type for 'm', expected: integer");
            assert_eq!(read!(text, Reader::signed), wanted, "{text}");
            let wanted = error("Parameter 'm' expects uint64");
            assert_eq!(read!(text, Reader::unsigned), wanted, "{text}");
            assert_eq!(read!(text, Reader::size), wanted, "{text}");
        }
        for text in ["m=4294967296", "m=-1", r#"{"m":-1}"#] {
            let wanted = error("Parameter 'm' expects uint32_t");
            assert_eq!(read!(text, Reader::unsigned_32), wanted, "{text}");
        }
        let wanted = error("Value '-5' is out of range for parameter 'm'");
        assert_eq!(read!("m=-5", Reader::not_negative), wanted);
    }

    #[test]
    fn sizes_have_suffixes_in_text_only() {
        assert_eq!(read!("m=1.5k", Reader::size), Ok(1536));
        assert_eq!(read!(r#"{"m":1536}"#, Reader::size), Ok(1536));
        for text in ["m=", "m=-1", "m=1x", "m=16e"] {
            assert_eq!(
                read!(text, Reader::size),
                error("Parameter 'm' expects size"),
                "{text}"
            );
        }
    }

    #[test]
    fn inner_members_have_dotted_names() {
        let tree = json!({"a": {"b": {"c": 1}}});
        let mut outer = Reader::new(tree.as_object().unwrap(), Leaves::Typed);
        let mut a = outer.object("a").unwrap().unwrap();
        let mut b = a.object("b").unwrap().unwrap();
        let found = b.text("c").unwrap_err().to_string();
        assert_eq!(
            found,
            "Invalid parameter type for 'a.b.c', expected: string"
        );
        let found = a.required("x", Reader::text).unwrap_err().to_string();
        assert_eq!(found, "Parameter 'a.x' is missing");
        let wanted = error("Invalid parameter type for 'm', expected: object");
        assert_eq!(read!("m=1", object), wanted);
        assert_eq!(read!("m.0=1", object), wanted);
    }

    #[test]
    fn alternates_and_lists_of_them() {
        assert_eq!(read!("m=x", one), Ok(()));
        assert_eq!(read!("m.a=x", one), Ok(()));
        let wanted = error("Invalid parameter type for 'm', expected: Ref");
        assert_eq!(read!("m.0=x", one), wanted);
        assert_eq!(read!(r#"{"m":null}"#, one), wanted);
        for (text, wanted) in [
            ("m=x", "Invalid parameter type for 'm', expected: array"),
            (
                "m.0=x,m.1.0=y",
                "Invalid parameter type for 'null', expected: Ref",
            ),
            ("m.0=x,m.1.z=y", "Parameter 'm.1.z' is unexpected"),
            (r#"{"m":["x",{"z":1}]}"#, "Parameter 'm[1].z' is unexpected"),
            // The first mistake, though a later one is of the more obvious kind.
            (r#"{"m":[{"z":1},7]}"#, "Parameter 'm[0].z' is unexpected"),
        ] {
            assert_eq!(read!(text, many), error(wanted), "{text}");
        }
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        let options = keyval::parse("a=1,b=2,c=3", None).unwrap();
        let mut reader = Reader::of(&options);
        reader.text("a").unwrap();
        reader.unsupported("z").unwrap();
        let found = reader.unsupported("c").unwrap_err().to_string();
        assert_eq!(
            found,
            "Parameter 'c' is not supported by ringback; leave it out"
        );
        let found = reader.finish().unwrap_err().to_string();
        assert_eq!(found, "Parameter 'b' is unexpected");
    }
}
