//! `--monitor`: who may give commands.

use super::error::{ArgumentError, Result};
use crate::keyval;
use crate::visit::{Reader, words};

/// A monitor on a character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// The monitor's name.
    pub id: Option<String>,
    /// The character device's.
    pub chardev: String,
    /// Whether replies are laid out for a reader.
    pub pretty: bool,
    mode: Mode,
}

words! {
    /// Who speaks at the other end.
    enum Mode {
        /// A program.
        Control = "control",
        /// A person.
        Readline = "readline",
    }
}

impl Monitor {
    /// Reads the argument, in either form.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn parse(text: &str) -> Result<Self> {
        let options = keyval::parse(text, Some("chardev"))?;
        Self::read(Reader::of(&options))
    }

    /// Reads the members.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn read(mut reader: Reader<'_>) -> Result<Self> {
        let id = reader.text("id")?;
        let mode = reader.word("mode")?.unwrap_or_default();
        let pretty = reader.boolean("pretty")?.unwrap_or(false);
        let chardev = reader.required("chardev", Reader::text)?;
        reader.finish()?;
        Ok(Self {
            id,
            chardev,
            pretty,
            mode,
        })
    }

    /// Refuses the mode which there is none of. QEMU looks for the character device first.
    ///
    /// # Errors
    ///
    /// [`ArgumentError::OnlyQmp`].
    pub fn check_mode(&self) -> Result<()> {
        match self.mode {
            Mode::Control => Ok(()),
            Mode::Readline => Err(ArgumentError::OnlyQmp),
        }
    }
}
