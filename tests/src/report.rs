//! The report of `ringback bench --json`.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// A report; its parts are named by JSON pointers, as in `/backup/seconds`.
#[derive(Clone, Debug)]
pub struct Report {
    value: Value,
}

impl Report {
    /// From a file.
    ///
    /// # Panics
    ///
    /// There is none, or it is not JSON.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path);
        Self::parse(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// From text.
    ///
    /// # Panics
    ///
    /// It is not JSON.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let value = serde_json::from_str(text);
        Self {
            value: value.unwrap_or_else(|error| panic!("{error}: {text}")),
        }
    }

    /// Any part.
    ///
    /// # Panics
    ///
    /// There is none of this name.
    #[track_caller]
    pub fn get(&self, pointer: &str) -> &Value {
        let part = self.value.pointer(pointer);
        part.unwrap_or_else(|| panic!("no '{pointer}' in {:#}", self.value))
    }

    /// A part that did not take place.
    ///
    /// # Panics
    ///
    /// There is no such field at all.
    #[track_caller]
    pub fn is_null(&self, pointer: &str) -> bool {
        self.get(pointer).is_null()
    }

    /// A count, or an amount of bytes or nanoseconds.
    ///
    /// # Panics
    ///
    /// It is not one.
    #[track_caller]
    pub fn count(&self, pointer: &str) -> u64 {
        let value = self.get(pointer);
        value
            .as_u64()
            .unwrap_or_else(|| panic!("'{pointer}' is {value}, not a count"))
    }

    /// Any number.
    ///
    /// # Panics
    ///
    /// It is not one.
    #[track_caller]
    pub fn number(&self, pointer: &str) -> f64 {
        let value = self.get(pointer);
        value
            .as_f64()
            .unwrap_or_else(|| panic!("'{pointer}' is {value}, not a number"))
    }

    /// Yes or no.
    ///
    /// # Panics
    ///
    /// It is neither.
    #[track_caller]
    pub fn flag(&self, pointer: &str) -> bool {
        let value = self.get(pointer);
        value
            .as_bool()
            .unwrap_or_else(|| panic!("'{pointer}' is {value}, not a flag"))
    }

    /// A text.
    ///
    /// # Panics
    ///
    /// It is not one.
    #[track_caller]
    pub fn text(&self, pointer: &str) -> &str {
        let value = self.get(pointer);
        value
            .as_str()
            .unwrap_or_else(|| panic!("'{pointer}' is {value}, not a text"))
    }
}
