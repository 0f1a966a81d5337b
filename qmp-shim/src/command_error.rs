//! Why a command failed, as its reply says it.

use thiserror::Error;

use crate::error::OptionError;

/// The class of an error, by which a client may tell it from others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ErrorClass {
    /// Anything without a class of its own.
    #[default]
    GenericError,
    /// There is no such command.
    CommandNotFound,
    /// A device or job is not at work.
    DeviceNotActive,
    /// There is no such device.
    DeviceNotFound,
    /// The host's kernel lacks something.
    KvmMissingCap,
}

impl ErrorClass {
    /// QEMU's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::KvmMissingCap => "KVMMissingCap",
        }
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{desc}")]
pub struct CommandError {
    /// Its class.
    pub class: ErrorClass,
    /// What a person is told.
    pub desc: String,
}

impl CommandError {
    /// An error without a class of its own.
    #[must_use]
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::GenericError,
            desc: desc.into(),
        }
    }

    /// There is no command of that name.
    #[must_use]
    pub fn unknown(command: &str) -> Self {
        Self {
            class: ErrorClass::CommandNotFound,
            desc: format!("The command {command} has not been found"),
        }
    }
}

impl From<OptionError> for CommandError {
    fn from(error: OptionError) -> Self {
        Self::generic(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_texts_are_those_of_qemu() {
        let unknown = CommandError::unknown("x");
        assert_eq!(unknown.class.name(), "CommandNotFound");
        assert_eq!(unknown.to_string(), "The command x has not been found");
        let missing = CommandError::from(OptionError::Missing {
            path: "a.b".to_owned(),
        });
        assert_eq!(missing.class, ErrorClass::GenericError);
        assert_eq!(missing.desc, "Parameter 'a.b' is missing");
    }
}
