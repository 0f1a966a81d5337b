//! Standard output, in the manner of C's stdio: what the program prints stays in
//! a buffer until the buffer is full, the program asks for input, or it ends.
//! Standard error is immediate, so that on one pipe it comes first. A daemon
//! does not let anybody wait.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What stdio takes for a pipe or a file.
const BUFFER_BYTES: usize = 4096;

/// When what is printed is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Once the buffer is full.
    Blocks,
    /// A terminal sees whole lines at once.
    Lines,
    /// At once.
    Now,
    /// Never, both streams: tests look at the buffer.
    #[cfg(test)]
    Kept,
}

/// The buffer of standard output; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    buffer: Arc<Mutex<Vec<u8>>>,
    due: Due,
}

impl Output {
    /// Of a program.
    pub(crate) fn new() -> Self {
        Self::due(if io::stdout().is_terminal() {
            Due::Lines
        } else {
            Due::Blocks
        })
    }

    /// Of a daemon.
    pub(crate) fn immediate() -> Self {
        Self::due(Due::Now)
    }

    /// Of a test.
    #[cfg(test)]
    pub(crate) fn kept() -> Self {
        Self::due(Due::Kept)
    }

    fn due(due: Due) -> Self {
        Self {
            buffer: Arc::default(),
            due,
        }
    }

    fn buffer(&self) -> MutexGuard<'_, Vec<u8>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Text with its ends of lines.
    pub(crate) fn print(&self, text: &str) {
        let mut buffer = self.buffer();
        buffer.extend_from_slice(text.as_bytes());
        let due = match self.due {
            Due::Blocks => buffer.len() / BUFFER_BYTES * BUFFER_BYTES,
            Due::Lines => buffer
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |end| end + 1),
            Due::Now => buffer.len(),
            #[cfg(test)]
            Due::Kept => 0,
        };
        emit(buffer.drain(..due).as_slice());
    }

    /// A line without its end.
    pub(crate) fn line(&self, text: &str) {
        self.print(&format!("{text}\n"));
    }

    /// A line on standard error.
    pub(crate) fn complain(&self, text: &str) {
        #[cfg(test)]
        if self.due == Due::Kept {
            self.line(&format!("E: {text}"));
            return;
        }
        complain(text);
    }

    pub(crate) fn flush(&self) {
        emit(&std::mem::take(&mut *self.buffer()));
    }

    /// What a test has kept so far; lines of standard error begin with `E: `.
    #[cfg(test)]
    pub(crate) fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.buffer());
        String::from_utf8(bytes).expect("all output is text")
    }
}

/// Nobody may be listening; that is no error of a command.
fn emit(bytes: &[u8]) {
    if !bytes.is_empty() {
        let mut out = io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
}

/// A line on standard error, in one piece.
pub(crate) fn complain(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}
