//! What a command that failed is answered.

use std::fmt;

use thiserror::Error;

use crate::command_line::ArgumentError;
use crate::error::OptionError;

/// What kind of error a client is told of. QEMU's schema has these five, and asks clients
/// to look at no other part of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Nearly everything.
    GenericError,
    /// There is no such command, or not now.
    CommandNotFound,
    /// There is no such block job, say.
    DeviceNotActive,
    /// There is no such device.
    DeviceNotFound,
    /// The kernel's virtual machine cannot do it. No command here gives it.
    KVMMissingCap,
}

impl ErrorClass {
    /// Its name in an answer.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::KVMMissingCap => "KVMMissingCap",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a command failed. It is shown as its description.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{desc}")]
pub struct CommandError {
    /// What kind of error it is.
    pub class: ErrorClass,
    /// One sentence for a person, without a full stop. Scripts match on QEMU's.
    pub desc: String,
}

impl CommandError {
    /// An error of no special class.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self::new(ErrorClass::GenericError, desc)
    }

    /// There is no such command.
    #[must_use]
    pub fn not_found(command: &str) -> Self {
        let desc = format!("The command {command} has not been found");
        Self::new(ErrorClass::CommandNotFound, desc)
    }

    /// There is no such device.
    #[must_use]
    pub fn device_not_found(device: &str) -> Self {
        let desc = format!("Device '{device}' not found");
        Self::new(ErrorClass::DeviceNotFound, desc)
    }

    /// What a `block-job-` command says when there is no such job.
    #[must_use]
    pub fn block_job_not_found(job: &str) -> Self {
        let desc = format!("Block job '{job}' not found");
        Self::new(ErrorClass::DeviceNotActive, desc)
    }

    /// An error of any class.
    pub fn new(class: ErrorClass, desc: impl Into<String>) -> Self {
        Self {
            class,
            desc: desc.into(),
        }
    }
}

impl From<OptionError> for CommandError {
    fn from(error: OptionError) -> Self {
        Self::generic(error.without_hint())
    }
}

impl From<ArgumentError> for CommandError {
    fn from(error: ArgumentError) -> Self {
        match error {
            ArgumentError::Option(error) => error.into(),
            // The other lines are advice for people, which QEMU sends to no client.
            other => {
                let text = other.to_string();
                Self::generic(text.lines().next().unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_class_and_text() {
        for (error, class, desc) in [
            (CommandError::generic("Oh"), "GenericError", "Oh"),
            (
                CommandError::not_found("x"),
                "CommandNotFound",
                "The command x has not been found",
            ),
            (
                CommandError::device_not_found("d0"),
                "DeviceNotFound",
                "Device 'd0' not found",
            ),
            (
                CommandError::block_job_not_found("j"),
                "DeviceNotActive",
                "Block job 'j' not found",
            ),
            (
                OptionError::Missing {
                    path: "a.b".to_owned(),
                }
                .into(),
                "GenericError",
                "Parameter 'a.b' is missing",
            ),
        ] {
            assert_eq!(error.class.to_string(), class);
            assert_eq!(error.to_string(), desc);
        }
    }
}
