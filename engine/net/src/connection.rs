//! A stream of bytes to a peer.

use std::cell::OnceCell;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ringback_ring::socket::Batch;
use ringback_ring::{Buf, IoResult, Shard, Socket};

use crate::reader::Reader;
use crate::tls::stream::Stream;
use crate::tls::{ClientCredentials, ServerCredentials, TlsError};

/// A connection, on the shard that owns it. One task at a time receives, one at a
/// time sends. In the clear, until TLS is started, by one task and while no other
/// uses it.
#[derive(Debug)]
pub struct Connection {
    shard: Shard,
    socket: Rc<Socket>,
    /// The same socket, for what tests do below TLS.
    #[cfg(test)]
    raw: std::os::unix::net::UnixStream,
    /// Set when TLS has been started.
    tls: OnceCell<Rc<Stream>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // TLS may still be about to send something of its own.
        self.shut_down();
    }
}

impl Connection {
    /// A connection on a connected stream socket.
    pub fn new(shard: &Shard, socket: OwnedFd) -> Rc<Self> {
        Rc::new(Self {
            shard: shard.clone(),
            #[cfg(test)]
            raw: socket.try_clone().expect("a descriptor is left").into(),
            socket: Rc::new(Socket::new(socket)),
            tls: OnceCell::new(),
        })
    }

    /// The shard that owns it.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Whether TLS has been started.
    pub fn is_tls(&self) -> bool {
        self.tls.get().is_some()
    }

    /// Whom the peer's certificate is about, in the form of [`crate::tls::name`].
    /// None without TLS, or if there was no certificate or none that can be read.
    pub fn peer_name(&self) -> Option<String> {
        self.tls.get()?.peer_name()
    }

    /// Starts TLS with a client, which begins to speak. What the reader has
    /// received ahead is taken from it, as the beginning of TLS.
    ///
    /// # Errors
    ///
    /// [`TlsError`]; the connection has been shut down then, or will be when this
    /// is dropped before its end.
    ///
    /// # Panics
    ///
    /// If TLS has been started.
    pub async fn start_tls_server(
        &self,
        reader: &mut Reader,
        credentials: &ServerCredentials,
    ) -> Result<(), TlsError> {
        let session = credentials.session()?;
        self.start_tls(reader, session, None).await
    }

    /// Starts TLS with a server, which is known as `host`, a name or a number: it
    /// must prove so unless the credentials do not ask for it. What the reader has
    /// received ahead is taken from it, as the beginning of TLS.
    ///
    /// # Errors
    ///
    /// [`TlsError`]; the connection is of no more use then.
    ///
    /// # Panics
    ///
    /// If TLS has been started.
    pub async fn start_tls_client(
        &self,
        reader: &mut Reader,
        credentials: &ClientCredentials,
        host: Option<&str>,
    ) -> Result<(), TlsError> {
        let session = credentials.session(host)?;
        self.start_tls(reader, session, host).await
    }

    async fn start_tls(
        &self,
        reader: &mut Reader,
        session: rustls::Connection,
        host: Option<&str>,
    ) -> Result<(), TlsError> {
        assert!(!self.is_tls(), "TLS is started once");
        let ahead = reader.buffered().to_vec();
        reader.consume(ahead.len());
        let stream = Stream::start(&self.shard, &self.socket, session, &ahead, host).await?;
        self.tls.set(stream).expect("one task starts TLS");
        Ok(())
    }

    /// Receives into a window of the buffer. Answers the bytes received, none at
    /// the end of the stream; with `all`, fewer than asked for only at the end.
    /// EPROTO: what the peer sends is not TLS any more, and the connection has been
    /// shut down.
    pub async fn receive(
        &self,
        buf: Buf,
        window: Range<usize>,
        all: bool,
    ) -> (IoResult<usize>, Buf) {
        match self.tls.get() {
            Some(stream) => stream.receive(buf, window, all).await,
            None => self.socket.receive(&self.shard, buf, window, all).await,
        }
    }

    /// Sends all of it. Answers the batch, empty. Dropped before its end under TLS,
    /// it shuts the connection down.
    pub async fn send(&self, batch: Batch) -> IoResult<Batch> {
        match self.tls.get() {
            Some(stream) => stream.send(batch).await,
            None => self.socket.send(&self.shard, batch).await,
        }
    }

    /// Ends the stream in both directions when everything has been sent; under
    /// TLS the peer is told that this was all.
    pub async fn finish(&self) {
        if let Some(stream) = self.tls.get() {
            stream.say_farewell().await;
        }
        self.shut_down();
    }

    /// The socket below TLS.
    #[cfg(test)]
    pub(crate) fn raw(&self) -> &std::os::unix::net::UnixStream {
        &self.raw
    }

    /// Sends all of it, or as much as goes. Answers the batch in any case, for the
    /// buffers that were lent to it.
    pub async fn send_lent(&self, batch: Batch) -> (IoResult<()>, Batch) {
        match self.tls.get() {
            Some(stream) => stream.send_lent(batch).await,
            None => self.socket.send_lent(&self.shard, batch).await,
        }
    }

    /// Ends the stream in both directions, at once.
    pub fn shut_down(&self) {
        self.socket.shut_down();
    }
}
