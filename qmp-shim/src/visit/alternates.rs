//! Members that may be of two types.

use serde_json::Value;

use super::Reader;
use crate::error::{OptionError, Result};

/// A member that may be a string or an object, and which of them it is.
pub enum Alternate<'a> {
    /// The string.
    Text(&'a str),
    /// The object, to be read further.
    Object(Reader<'a>),
}

impl<'a> Reader<'a> {
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
}
