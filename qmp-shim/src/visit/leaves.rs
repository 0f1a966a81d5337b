//! Members that are plain values.

use serde_json::Value;

use super::{Leaves, Reader, Word};
use crate::error::{OptionError, Result};
use crate::number::{parse_i64, parse_u64};
use crate::size::parse_size;

impl<'a> Reader<'a> {
    /// The string of a plain member in a tree of text.
    pub(super) fn leaf_text(&self, name: &str, value: &'a Value) -> Result<&'a str> {
        value.as_str().ok_or_else(|| OptionError::UnexpectedBelow {
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

    pub(super) fn typed_unsigned(&self, name: &str, value: &Value) -> Result<u64> {
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
}
