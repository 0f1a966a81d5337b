//! Buffers of commands: what they are filled with, and what is expected in
//! them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;

use ringback_ring::buffer::SLAB_BYTES;
use ringback_ring::{Buf, Errno, IoResult};

use super::{Call, Failure, size};
use crate::io::shell::Shell;

/// The longest transfer in bytes.
pub(super) const TRANSFER_MAX: u64 = 2_147_483_136;

/// What a write writes unless told otherwise.
pub(super) const FILL: u8 = 0xcd;
/// What a buffer holds before it is read into: a read that did nothing shows.
pub(super) const UNREAD: u8 = 0xab;

/// A buffer and the part of it that counts.
pub(super) struct Memory {
    pub(super) buf: Buf,
    pub(super) window: Range<usize>,
}

impl Memory {
    /// So many bytes, filled. With `-m` they begin beside the alignment.
    ///
    /// # Errors
    ///
    /// ENOMEM: other large buffers leave no room. Who waits for them keeps all
    /// others of the shard waiting, and a breakpoint may hold them for ever.
    pub(super) async fn filled(shell: &Shell, len: u64, fill: u8) -> IoResult<Self> {
        let len = usize::try_from(len).expect("a length below TRANSFER_MAX");
        let start = if shell.misalign() { 16 } else { 0 };
        let window = start..start + len;
        let needed = window.end.max(1);
        let mut buf = if needed <= SLAB_BYTES {
            shell.shard.buffer(needed).await
        } else {
            let arena = shell.shard.arena();
            arena.try_take(needed).ok_or(Errno::ENOMEM)?
        };
        buf[window.clone()].fill(fill);
        Ok(Self { buf, window })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf[self.window.clone()]
    }

    /// Repeats the beginning of a file until the memory is full.
    ///
    /// # Errors
    ///
    /// The line to print.
    pub(super) fn fill_from(&mut self, path: &str) -> Result<(), String> {
        let blame = |error: std::io::Error| {
            let text = match error.kind() {
                ErrorKind::InvalidInput => "Invalid argument".to_owned(),
                _ => error.to_string(),
            };
            let text = text
                .split(" (os error")
                .next()
                .unwrap_or_default()
                .to_owned();
            format!("{path}: {text}")
        };
        let bytes = &mut self.buf[self.window.clone()];
        let mut file = File::open(path).map_err(blame)?;
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(blame(error)),
            }
        }
        if filled == 0 {
            return Err(format!("{path}: file is empty"));
        }
        while filled < bytes.len() {
            let count = filled.min(bytes.len() - filled);
            bytes.copy_within(..count, filled);
            filled += count;
        }
        Ok(())
    }
}

/// One offset and the sum of several lengths.
///
/// # Errors
///
/// The line that says what is wrong.
pub(super) fn vector(offset: &str, lengths: &[String]) -> Result<(u64, u64), Failure> {
    let offset = size(offset)?;
    Ok((offset, sum(lengths)?))
}

/// The sum of lengths, none of which may be too long, nor all together.
///
/// # Errors
///
/// The line that says what is wrong.
pub(super) fn sum(lengths: &[String]) -> Result<u64, Failure> {
    let mut total = 0;
    for argument in lengths {
        let len = size(argument)?;
        if len > TRANSFER_MAX {
            return Err(Failure::Said(format!(
                "Argument '{argument}' exceeds maximum size {TRANSFER_MAX}"
            )));
        }
        total += len;
        if total > TRANSFER_MAX {
            return Err(Failure::Said(format!(
                "The total number of bytes exceed the maximum size {TRANSFER_MAX}"
            )));
        }
    }
    Ok(total)
}

/// The words that are no options, if there are so many.
///
/// # Errors
///
/// [`Failure::Usage`].
pub(super) fn exactly<const N: usize>(words: Vec<String>) -> Result<[String; N], Failure> {
    words.try_into().map_err(|_| Failure::Usage)
}

/// The first of at least two words, and the others.
///
/// # Errors
///
/// [`Failure::Usage`].
pub(super) fn offset_and_lengths(words: &[String]) -> Result<(&String, &[String]), Failure> {
    match words {
        [offset, lengths @ ..] if !lengths.is_empty() => Ok((offset, lengths)),
        _ => Err(Failure::Usage),
    }
}

/// Whether both are whole sectors.
///
/// # Errors
///
/// The line that blames one.
pub(super) fn check_sectors(offset: u64, count: u64) -> Result<(), Failure> {
    for (value, name) in [(offset, "offset"), (count, "count")] {
        if !value.is_multiple_of(512) {
            return Err(Failure::Said(format!(
                "{value} is not a sector-aligned value for '{name}'"
            )));
        }
    }
    Ok(())
}

/// `-P`: a byte.
///
/// # Errors
///
/// The line that says what is wrong.
pub(super) fn pattern(argument: &str) -> Result<u8, Failure> {
    crate::io::number::pattern(argument).map_err(Failure::Said)
}

/// Options that several commands share.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Common {
    pub(super) style: crate::io::report::Style,
}

impl Common {
    /// Takes the option if it is one of these.
    pub(super) fn take(&mut self, letter: char) -> bool {
        match letter {
            'C' => self.style.machine = true,
            'q' => self.style.quiet = true,
            // Ignored for old scripts; buffers are registered anyway.
            'p' | 'r' => {}
            _ => return false,
        }
        true
    }
}

/// For an option that the table of letters has and no arm has taken.
pub(super) fn unexpected(call: &Call, letter: char) -> Failure {
    Failure::Told(format!("{}: option '{letter}' is not handled", call.word))
}
