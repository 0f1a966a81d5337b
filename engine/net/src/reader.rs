//! What has been received and not yet taken.

use std::ops::Range;
use std::rc::Rc;

use ringback_ring::{Buf, Errno};

use crate::connection::Connection;

/// Bytes received at once: many small requests in one operation.
const AHEAD_BYTES: usize = 64 << 10;

/// Why there is nothing more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The peer has ended the stream before the first of the wanted bytes.
    #[error("the peer has closed the connection")]
    End,
    /// The peer has ended the stream within them.
    #[error("the peer has closed the connection within a message")]
    Truncated,
    /// The connection has failed.
    #[error("{}", ringback_ring::error_text(*.0))]
    Io(Errno),
}

/// Receives ahead and hands out.
#[derive(Debug)]
pub struct Reader {
    connection: Rc<Connection>,
    /// Missing only while it is being received into.
    buf: Option<Buf>,
    /// What is there and not taken.
    filled: Range<usize>,
}

impl Reader {
    /// Of a connection, from where it stands.
    pub fn new(connection: &Rc<Connection>) -> Self {
        Self {
            buf: Some(connection.shard().buffer_now(AHEAD_BYTES)),
            connection: Rc::clone(connection),
            filled: 0..0,
        }
    }

    /// Bytes that can be taken without receiving.
    pub fn buffered(&self) -> &[u8] {
        match &self.buf {
            Some(buf) => &buf[self.filled.clone()],
            None => &[],
        }
    }

    /// Receives until `len` bytes are there, and shows all there are.
    ///
    /// # Errors
    ///
    /// See [`ReadError`]. Nothing is lost of what is there.
    ///
    /// # Panics
    ///
    /// If `len` is more than is ever read ahead.
    pub async fn fill(&mut self, len: usize) -> Result<&[u8], ReadError> {
        assert!(len <= AHEAD_BYTES, "{len} bytes are not received ahead");
        while self.filled.len() < len {
            self.receive_more(len).await?;
        }
        Ok(self.buffered())
    }

    async fn receive_more(&mut self, len: usize) -> Result<(), ReadError> {
        let mut buf = self.buf.take().ok_or(ReadError::Io(Errno::ECANCELED))?;
        if self.filled.start + len > AHEAD_BYTES || self.filled.is_empty() {
            buf.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let window = self.filled.end..AHEAD_BYTES;
        let (result, buf) = self.connection.receive(buf, window, false).await;
        self.buf = Some(buf);
        match result {
            Ok(0) if self.filled.is_empty() => Err(ReadError::End),
            Ok(0) => Err(ReadError::Truncated),
            Ok(count) => {
                self.filled.end += count;
                Ok(())
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(ReadError::Io(errno)),
        }
    }

    /// Takes what [`Reader::buffered`] shows first.
    ///
    /// # Panics
    ///
    /// If so much is not there.
    pub fn consume(&mut self, len: usize) {
        assert!(len <= self.filled.len(), "only what is there is consumed");
        self.filled.start += len;
    }

    /// Takes exactly so many bytes, and no memory before they are there.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn take(&mut self, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            if self.filled.is_empty() {
                let received = self.receive_more(1).await;
                received.map_err(|error| within(error, bytes.is_empty()))?;
                continue;
            }
            let count = self.filled.len().min(len - bytes.len());
            bytes.extend_from_slice(&self.buffered()[..count]);
            self.consume(count);
        }
        Ok(bytes)
    }

    /// Takes exactly `N` bytes.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn take_array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let there = self.fill(N).await?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&there[..N]);
        self.consume(N);
        Ok(bytes)
    }

    /// Takes bytes into a window of a buffer: what is not there yet is received
    /// right into it.
    pub async fn take_into(
        &mut self,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (Result<(), ReadError>, Buf) {
        let count = self.filled.len().min(window.len());
        buf[window.start..window.start + count].copy_from_slice(&self.buffered()[..count]);
        self.consume(count);
        let mut from = window.start + count;
        while from < window.end {
            let (result, back) = self.connection.receive(buf, from..window.end, true).await;
            buf = back;
            match result {
                Ok(0) => return (Err(within(ReadError::End, from == window.start)), buf),
                Ok(count) => from += count,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return (Err(ReadError::Io(errno)), buf),
            }
        }
        (Ok(()), buf)
    }

    /// Takes bytes and forgets them.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn skip(&mut self, mut len: u64) -> Result<(), ReadError> {
        let mut is_first = true;
        while len > 0 {
            if self.filled.is_empty() {
                let received = self.receive_more(1).await;
                received.map_err(|error| within(error, is_first))?;
            }
            let count = self
                .filled
                .len()
                .min(usize::try_from(len).unwrap_or(usize::MAX));
            self.consume(count);
            len -= count as u64;
            is_first = false;
        }
        Ok(())
    }
}

/// An end is one within a message unless nothing of it has come.
fn within(error: ReadError, is_first: bool) -> ReadError {
    match error {
        ReadError::End if !is_first => ReadError::Truncated,
        other => other,
    }
}
