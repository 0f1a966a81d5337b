//! Standard output, in the manner of C's stdio: what is printed stays in a
//! buffer until the buffer is full, the program asks for input, or it ends.
//! Standard error is immediate, so that on one pipe it comes first.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What stdio takes for a pipe or a file.
const BUFFER_BYTES: usize = 4096;

/// The buffer of standard output; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    buffer: Arc<Mutex<Vec<u8>>>,
    /// A terminal sees whole lines at once.
    by_line: bool,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self {
            buffer: Arc::default(),
            by_line: io::stdout().is_terminal(),
        }
    }

    fn buffer(&self) -> MutexGuard<'_, Vec<u8>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Text with its ends of lines.
    pub(crate) fn print(&self, text: &str) {
        let mut buffer = self.buffer();
        buffer.extend_from_slice(text.as_bytes());
        let due = if self.by_line {
            buffer
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |end| end + 1)
        } else {
            buffer.len() / BUFFER_BYTES * BUFFER_BYTES
        };
        emit(buffer.drain(..due).as_slice());
    }

    /// A line without its end.
    pub(crate) fn line(&self, text: &str) {
        self.print(&format!("{text}\n"));
    }

    pub(crate) fn flush(&self) {
        emit(&std::mem::take(&mut *self.buffer()));
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
