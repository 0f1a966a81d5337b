//! Members that are lists.

use serde_json::Value;

use super::{Leaves, Reader, Word};
use crate::error::{OptionError, Result};

impl<'a> Reader<'a> {
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

    pub(super) fn elements(&mut self, name: &'static str) -> Result<Option<&'a [Value]>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(elements)) => Ok(Some(elements)),
            Some(_) => Err(self.wrong_type(name, "array")),
        }
    }

    pub(super) fn element_path(&self, name: &str, index: usize) -> String {
        match self.leaves {
            Leaves::Text | Leaves::Opts => format!("{}.{index}", self.path(name)),
            Leaves::Typed => format!("{}[{index}]", self.path(name)),
        }
    }
}
