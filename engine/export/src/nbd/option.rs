//! One option of the negotiation: what it carries, and what it is answered with.

use ringback_block::protocol::nbd::wire::{OPTION_REPLY_MAGIC, STRING_MAX, option_reply as answer};
use ringback_ring::socket::Batch;

/// Names are shown up to here.
const SHOWN_MAX: usize = 80;

/// An error that an option is answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denial {
    pub(super) kind: u32,
    pub(super) text: String,
}

pub(super) fn deny<T>(kind: u32, text: impl Into<String>) -> Result<T, Denial> {
    let text = text.into();
    Err(Denial { kind, text })
}

pub(super) fn invalid<T>(text: impl Into<String>) -> Result<T, Denial> {
    deny(answer::ERR_INVALID, text)
}

/// The payload of an option, taken from the front.
pub(super) struct Payload<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) name: &'static str,
}

impl<'a> Payload<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Denial> {
        let Some((taken, rest)) = self.bytes.split_at_checked(len) else {
            return invalid(format!("Inconsistent lengths in option {}", self.name));
        };
        self.bytes = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Denial> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("exactly so many were taken"))
    }

    pub(super) fn length(&mut self) -> Result<usize, Denial> {
        let len = u32::from_be_bytes(self.array()?);
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    pub(super) fn text(&mut self, len: usize) -> Result<&'a [u8], Denial> {
        let bytes = self.take(len)?;
        if bytes.contains(&0) {
            return invalid(format!("Unexpected embedded NUL in option {}", self.name));
        }
        Ok(bytes)
    }

    /// The name of an export.
    pub(super) fn name(&mut self) -> Result<&'a [u8], Denial> {
        let len = self.length()?;
        if len > STRING_MAX {
            return invalid(format!("Invalid name length: {len}"));
        }
        self.text(len)
    }

    pub(super) fn end(&self) -> Result<(), Denial> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            invalid(format!("option '{}' has unexpected length", self.name))
        }
    }
}

/// A name as messages show it.
fn shown(name: &[u8]) -> String {
    if name.len() < SHOWN_MAX {
        return String::from_utf8_lossy(name).into_owned();
    }
    format!("{}...", String::from_utf8_lossy(&name[..SHOWN_MAX]))
}

pub(super) fn not_present<T>(name: &[u8]) -> Result<T, Denial> {
    let name = shown(name);
    deny(answer::ERR_UNKNOWN, format!("export '{name}' not present"))
}

pub(super) fn push_answer(batch: &mut Batch, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).expect("answers are short");
    batch.push_bytes(&OPTION_REPLY_MAGIC.to_be_bytes());
    batch.push_bytes(&option.to_be_bytes());
    batch.push_bytes(&kind.to_be_bytes());
    batch.push_bytes(&len.to_be_bytes());
    parts.iter().for_each(|part| batch.push_bytes(part));
}
