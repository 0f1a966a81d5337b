//! What a client asks of the protocol itself, with `qmp_capabilities`.

use serde_json::{Map, Value};

use crate::command::{Command, QmpCapability};
use crate::command_error::{CommandError, ErrorClass};
use crate::visit::Word as _;

/// The command that ends the negotiation.
pub(super) const COMMAND: &str = "qmp_capabilities";

/// The capabilities that the arguments of [`COMMAND`] ask for.
///
/// # Errors
///
/// When the arguments are none of this command.
pub(super) fn wanted(arguments: &Map<String, Value>) -> Result<Vec<QmpCapability>, CommandError> {
    match Command::read(COMMAND, arguments)? {
        Command::QmpCapabilities(asked) => Ok(asked.enable.unwrap_or_default()),
        _ => Ok(Vec::new()),
    }
}

/// Nothing is offered: a client that wants something gets an error, which names it as
/// often as it was named.
///
/// # Errors
///
/// When anything is wanted.
pub(super) fn refuse(wanted: &[QmpCapability]) -> Result<(), CommandError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = wanted.iter().map(|&capability| capability.word()).collect();
    let names = names.join(", ");
    Err(CommandError::generic(format!(
        "Capability {names} not available"
    )))
}

/// What any other command gets before the negotiation has ended.
pub(super) fn expected() -> CommandError {
    CommandError::new(
        ErrorClass::CommandNotFound,
        format!("Expecting capabilities negotiation with '{COMMAND}'"),
    )
}

/// What [`COMMAND`] gets afterwards.
pub(super) fn complete() -> CommandError {
    CommandError::new(
        ErrorClass::CommandNotFound,
        "Capabilities negotiation is already complete, command ignored",
    )
}
