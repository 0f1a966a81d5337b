//! A stream socket on a shard's ring.
//!
//! A socket belongs to one shard. Dropping the last handle shuts it down, so that
//! operations in flight on it end; the descriptor is closed after the last of
//! them. The simulation has no network: nothing here may be called in it.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{self, Shutdown};

use crate::buffer::Buf;
use crate::file::FileRef;
use crate::op::{self, Load, Operation, Verb};
use crate::shard::Shard;
use crate::uring::Message;
use crate::{Errno, IoResult};

/// Bytes to be sent: small ones, copied in, and windows of buffers, in order.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    parts: VecDeque<Part>,
}

#[derive(Debug)]
enum Part {
    /// Of `bytes`.
    Bytes(Range<usize>),
    Window(Buf, Range<usize>),
}

impl Part {
    fn window(&mut self) -> &mut Range<usize> {
        match self {
            Self::Bytes(window) | Self::Window(_, window) => window,
        }
    }
}

impl Batch {
    /// Whether there is nothing to be sent.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Appends a copy of some bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        match self.parts.back_mut() {
            Some(Part::Bytes(window)) => window.end = self.bytes.len(),
            _ => self.parts.push_back(Part::Bytes(start..self.bytes.len())),
        }
    }

    /// Appends a window of a buffer, which is not copied.
    pub fn push_window(&mut self, buf: Buf, window: Range<usize>) {
        assert!(window.end <= buf.len(), "the window lies inside the buffer");
        if window.start < window.end {
            self.parts.push_back(Part::Window(buf, window));
        }
    }

    /// What there is to be sent.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| match part {
            Part::Bytes(window) => &self.bytes[window.clone()],
            Part::Window(buf, window) => &buf[window.clone()],
        })
    }

    /// So many bytes have been sent.
    pub fn advance(&mut self, mut sent: usize) {
        while let Some(part) = self.parts.front_mut() {
            let window = part.window();
            let taken = sent.min(window.len());
            window.start += taken;
            sent -= taken;
            if window.start < window.end {
                return;
            }
            self.parts.pop_front();
        }
        self.bytes.clear();
    }
}

/// A connected stream socket, or one that listens.
#[derive(Debug)]
pub struct Socket {
    fd: Rc<OwnedFd>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Socket {
    /// Takes a socket over.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd: Rc::new(fd) }
    }

    /// Ends both directions: who waits to receive finds the end, who sends an
    /// error, and who waits for a connection EINVAL.
    pub fn shut_down(&self) {
        // It may have ended already.
        let _ = socket::shutdown(self.fd.as_raw_fd(), Shutdown::Both);
    }

    /// The descriptor, for questions about the socket.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn operation(&self, verb: Verb, len: usize) -> Operation {
        Operation {
            verb,
            file: FileRef::unregistered(self.fd.as_raw_fd()),
            offset: 0,
            len: len as u64,
        }
    }

    /// Receives into a window of the buffer. Answers the bytes received, none at
    /// the end of the stream; with `all`, fewer than asked for only at the end or
    /// before an error.
    pub async fn receive(
        &self,
        shard: &Shard,
        buf: Buf,
        window: Range<usize>,
        all: bool,
    ) -> (IoResult<usize>, Buf) {
        let operation = self.operation(Verb::Receive { all }, window.len());
        let load = Load::Window(buf, window);
        let (result, load) =
            op::submit_on(shard, &operation, load, Some(Rc::clone(&self.fd))).await;
        (result.map(count), load.into_buf())
    }

    /// Sends a batch to the last byte. Answers it, empty, for further use.
    pub async fn send(&self, shard: &Shard, batch: Batch) -> IoResult<Batch> {
        let mut message = Message::new(batch);
        while !message.batch().is_empty() {
            let operation = self.operation(Verb::Send, 0);
            let socket = Some(Rc::clone(&self.fd));
            let load = Load::Message(message);
            let (result, load) = op::submit_on(shard, &operation, load, socket).await;
            let Load::Message(sent) = load else {
                unreachable!("a send gives its message back")
            };
            message = sent;
            match result.map(count) {
                Ok(count) => message.batch().advance(count),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(message.into_batch())
    }

    /// Waits until there is something to receive, a connection to accept, or the
    /// socket has been shut down.
    pub async fn readable(&self, shard: &Shard) -> IoResult<()> {
        let operation = self.operation(Verb::Readable, 0);
        let socket = Some(Rc::clone(&self.fd));
        let (result, _) = op::submit_on(shard, &operation, Load::None, socket).await;
        result.map(drop)
    }
}

fn count(result: u64) -> usize {
    usize::try_from(result).expect("no more than was asked for")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Arena;

    fn joined(batch: &Batch) -> Vec<u8> {
        batch.parts().flatten().copied().collect()
    }

    #[test]
    fn a_batch_is_sent_in_order_and_by_any_pieces() {
        let arena = Arena::new(1 << 20);
        let mut batch = Batch::default();
        batch.push_bytes(b"one ");
        batch.push_bytes(b"two ");
        let mut buf = arena.try_take(16).expect("room");
        buf[..8].copy_from_slice(b"..three ");
        batch.push_window(buf, 2..8);
        batch.push_window(arena.try_take(1).expect("room"), 0..0);
        batch.push_bytes(b"four");
        assert_eq!(joined(&batch), b"one two three four");
        assert_eq!(batch.parts().count(), 3, "small bytes are joined");
        batch.advance(0);
        batch.advance(3);
        assert_eq!(joined(&batch), b" two three four");
        batch.advance(9);
        assert_eq!(joined(&batch), b"ee four");
        batch.advance(7);
        assert!(batch.is_empty());
        batch.push_bytes(b"again");
        assert_eq!(joined(&batch), b"again");
    }
}
