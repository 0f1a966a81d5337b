//! A stream of bytes to a peer.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ringback_ring::socket::Batch;
use ringback_ring::{Buf, IoResult, Shard, Socket};

/// A connection, on the shard that owns it. One task at a time receives, one at a
/// time sends.
#[derive(Debug)]
pub struct Connection {
    shard: Shard,
    socket: Socket,
}

impl Connection {
    /// A connection on a connected stream socket.
    pub fn new(shard: &Shard, socket: OwnedFd) -> Rc<Self> {
        Rc::new(Self {
            shard: shard.clone(),
            socket: Socket::new(socket),
        })
    }

    /// The shard that owns it.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Receives into a window of the buffer. Answers the bytes received, none at
    /// the end of the stream; with `all`, fewer than asked for only at the end.
    pub async fn receive(
        &self,
        buf: Buf,
        window: Range<usize>,
        all: bool,
    ) -> (IoResult<usize>, Buf) {
        self.socket.receive(&self.shard, buf, window, all).await
    }

    /// Sends all of it. Answers the batch, empty.
    pub async fn send(&self, batch: Batch) -> IoResult<Batch> {
        self.socket.send(&self.shard, batch).await
    }

    /// Sends all of it, or as much as goes. Answers the batch in any case, for the
    /// buffers that were lent to it.
    pub async fn send_lent(&self, batch: Batch) -> (IoResult<()>, Batch) {
        self.socket.send_lent(&self.shard, batch).await
    }

    /// Ends the stream in both directions, at once.
    pub fn shut_down(&self) {
        self.socket.shut_down();
    }
}
