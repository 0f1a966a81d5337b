//! Stream sockets on a shard's ring.
//!
//! A socket belongs to one shard. Dropping the last handle shuts it down, so that
//! operations in flight on it end; the descriptor is closed after the last of
//! them. The simulation has no network: nothing here may be called in it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

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
    /// Lent buffers that have been sent, with their lenders' names for them.
    sent: Vec<(u64, Buf)>,
}

#[derive(Debug)]
enum Part {
    /// Of `bytes`.
    Bytes(Range<usize>),
    Window(Buf, Range<usize>),
    /// The same of a buffer that somebody wants back, under this name.
    Lent(Buf, Range<usize>, u64),
}

impl Part {
    fn window(&mut self) -> &mut Range<usize> {
        match self {
            Self::Bytes(window) | Self::Window(_, window) | Self::Lent(_, window, _) => window,
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

    /// Appends a window of a buffer that [`Batch::take_back`] gives back.
    pub fn lend_window(&mut self, buf: Buf, window: Range<usize>, name: u64) {
        assert!(window.end <= buf.len(), "the window lies inside the buffer");
        if window.start < window.end {
            self.parts.push_back(Part::Lent(buf, window, name));
        } else {
            self.sent.push((name, buf));
        }
    }

    /// Every lent buffer with its name, whether it was sent or not. What was not
    /// sent is forgotten.
    pub fn take_back(&mut self) -> Vec<(u64, Buf)> {
        let mut lent = std::mem::take(&mut self.sent);
        for part in self.parts.drain(..) {
            if let Part::Lent(buf, _, name) = part {
                lent.push((name, buf));
            }
        }
        self.bytes.clear();
        lent
    }

    /// What there is to be sent.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| match part {
            Part::Bytes(window) => &self.bytes[window.clone()],
            Part::Window(buf, window) | Part::Lent(buf, window, _) => &buf[window.clone()],
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
            if let Some(Part::Lent(buf, _, name)) = self.parts.pop_front() {
                self.sent.push((name, buf));
            }
        }
        self.bytes.clear();
    }
}

/// A connected stream socket.
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

    /// Ends both directions: who waits to receive finds the end, and who sends an
    /// error.
    pub fn shut_down(&self) {
        // It may have ended already.
        let _ = socket::shutdown(self.fd.as_raw_fd(), Shutdown::Both);
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
        let (result, batch) = self.send_lent(shard, batch).await;
        result.map(|()| batch)
    }

    /// Sends a batch to the last byte, or as far as it goes. Answers it in any
    /// case: lent buffers are in it.
    pub async fn send_lent(&self, shard: &Shard, batch: Batch) -> (IoResult<()>, Batch) {
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
                Err(errno) => return (Err(errno), message.into_batch()),
            }
        }
        (Ok(()), message.into_batch())
    }
}

/// Waits until there is something to receive on a socket or a connection to accept,
/// or until `stop` answers, by which the socket itself is not concerned. When this
/// answers, or some time after it was dropped, the kernel does not hold the socket
/// any more.
///
/// # Errors
///
/// ECANCELED: `stop` has answered, whatever else has happened.
pub async fn readable(
    shard: &Shard,
    socket: &Rc<OwnedFd>,
    stop: impl Future<Output = ()>,
) -> IoResult<()> {
    let operation = Operation {
        verb: Verb::Readable,
        file: FileRef::unregistered(socket.as_raw_fd()),
        offset: 0,
        len: 0,
    };
    let mut waiting = op::submit_on(shard, &operation, Load::None, Some(Rc::clone(socket)));
    let mut stop = pin!(stop);
    let mut is_stopped = false;
    poll_fn(|cx| {
        if let Poll::Ready((result, _)) = Pin::new(&mut waiting).poll(cx) {
            return Poll::Ready(match is_stopped {
                true => Err(Errno::ECANCELED),
                false => result.map(drop),
            });
        }
        if !is_stopped && stop.as_mut().poll(cx).is_ready() {
            is_stopped = true;
            waiting.cancel();
        }
        Poll::Pending
    })
    .await
}

/// Waits until an attempt to connect has ended in one way or the other, or the socket
/// has been shut down.
pub async fn writable(shard: &Shard, socket: &Rc<OwnedFd>) -> IoResult<()> {
    let operation = Operation {
        verb: Verb::Writable,
        file: FileRef::unregistered(socket.as_raw_fd()),
        offset: 0,
        len: 0,
    };
    let socket = Some(Rc::clone(socket));
    let (result, _) = op::submit_on(shard, &operation, Load::None, socket).await;
    result.map(drop)
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
        batch.advance(8);
        assert_eq!(joined(&batch), b"ee four");
        batch.advance(7);
        assert!(batch.is_empty());
        batch.push_bytes(b"again");
        assert_eq!(joined(&batch), b"again");
    }

    #[test]
    fn lent_buffers_come_back_sent_or_not() {
        let arena = Arena::new(1 << 20);
        let mut batch = Batch::default();
        for name in 1..=3 {
            let mut buf = arena.try_take(4).expect("room");
            buf.fill(b'0' + u8::try_from(name).expect("small"));
            batch.lend_window(buf, 0..if name == 2 { 0 } else { 4 }, name);
        }
        assert_eq!(joined(&batch), b"11113333");
        batch.advance(5);
        let mut names: Vec<u64> = batch
            .take_back()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        names.sort_unstable();
        assert_eq!(names, [1, 2, 3]);
        assert!(batch.is_empty() && batch.take_back().is_empty());
    }
}
