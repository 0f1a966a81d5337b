//! What a client asks of the protocol itself, with `qmp_capabilities`.

use serde_json::{Map, Value};

use crate::command_error::{CommandError, ErrorClass};
use crate::visit::{Leaves, Reader, Word as _, words};

/// The command that ends the negotiation.
pub(super) const COMMAND: &str = "qmp_capabilities";

words! {
    /// An extension of the protocol.
    pub(super) enum Capability {
        /// Commands that overtake others.
        OutOfBand = "oob",
    }
}

/// The capabilities that the arguments of [`COMMAND`] ask for.
///
/// # Errors
///
/// When the arguments are none of this command.
pub(super) fn wanted(arguments: &Map<String, Value>) -> Result<Vec<Capability>, CommandError> {
    let mut reader = Reader::new(arguments, Leaves::Typed);
    let wanted = reader.list_of_words("enable")?;
    reader.finish()?;
    Ok(wanted.unwrap_or_default())
}

/// Nothing is offered: a client that wants something gets an error, which names it as
/// often as it was named.
///
/// # Errors
///
/// When anything is wanted.
pub(super) fn refuse(wanted: &[Capability]) -> Result<(), CommandError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = wanted.iter().map(|&capability| name(capability)).collect();
    let names = names.join(", ");
    Err(CommandError::generic(format!(
        "Capability {names} not available"
    )))
}

fn name(capability: Capability) -> &'static str {
    let known = Capability::WORDS.iter();
    let mut names = known.filter(|(_, value)| *value == capability);
    names.next().map_or("", |(name, _)| name)
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
