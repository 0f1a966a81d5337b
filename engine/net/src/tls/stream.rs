//! A TLS session over a socket of the ring.
//!
//! # Order
//!
//! The session is changed by two tasks, one that receives and one that sends, but
//! never while they wait: each turns bytes into bytes at one go. What is encrypted
//! stands in one queue inside the session and must reach the socket in that order.
//! So whoever takes from the queue has the *turn*, takes, and gives the turn back
//! only when what it took is sent and the queue is empty.
//!
//! TLS may want to say something of its own while bytes are received. The receiver
//! must not wait for the sender, who may wait for a peer that first wants to be
//! read from: so whoever has the turn sends it too, or a task of its own does.
//!
//! # Ends
//!
//! A sender that is dropped half-way, or a session that finds something wrong with
//! what the peer sends, ends the connection in both directions.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;
use std::rc::Rc;

use ringback_ring::socket::Batch;
use ringback_ring::{Buf, Errno, IoResult, LocalQueue, Shard, Socket};

use super::{TlsError, name};

/// Encrypted bytes received at once: some records of 16 KiB.
const RECEIVED_BYTES: usize = 128 << 10;
/// Bytes encrypted at once: enough for one operation, and no long pause for the
/// other tasks of the shard.
const SENT_BYTES: usize = 256 << 10;

/// How long a peer may take to receive why it is left.
const LAST_WORD_NS: u64 = 1_000_000_000;

pub(crate) struct Stream {
    shard: Shard,
    socket: Rc<Socket>,
    session: RefCell<rustls::Connection>,
    received: RefCell<Received>,
    /// Somebody sends.
    is_taken: Cell<bool>,
    given_back: LocalQueue,
    /// The session has ended by an error.
    is_broken: Cell<bool>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// Received and not given to the session.
struct Received {
    /// Missing only while it is being received into.
    buf: Option<Buf>,
    filled: Range<usize>,
    /// What the session found wrong, behind all that can still be read from it.
    error: Option<rustls::Error>,
}

/// What became of a part of the encrypted stream.
enum Decrypted {
    /// As much as was wanted.
    Enough,
    /// So many bytes; for more, more must be received.
    Hungry(usize),
    /// So many bytes, and there will be no more: the end, or an error if one asks
    /// again.
    End(usize),
}

/// The right to send.
struct Turn<'a> {
    stream: &'a Stream,
    is_whole: bool,
}

impl Turn<'_> {
    fn done(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            // The peer could not make sense of what follows.
            self.stream.socket.shut_down();
        }
        self.stream.is_taken.set(false);
        self.stream.given_back.wake_all();
    }
}

/// Where a session writes its records.
struct Outlet<'a>(&'a mut Batch);

impl Write for Outlet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push_bytes(bytes);
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, all: &[IoSlice<'_>]) -> io::Result<usize> {
        all.iter().for_each(|bytes| self.0.push_bytes(bytes));
        Ok(all.iter().map(|bytes| bytes.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// Agrees with the peer upon a session. `ahead` are bytes of the peer that have
    /// come already; `name` is what a server should be called.
    pub(crate) async fn start(
        shard: &Shard,
        socket: &Rc<Socket>,
        mut session: rustls::Connection,
        ahead: &[u8],
        name: Option<&str>,
    ) -> Result<Rc<Self>, TlsError> {
        // What is bounded is what we encrypt at once.
        session.set_buffer_limit(None);
        let len = RECEIVED_BYTES.max(ahead.len());
        let mut buf = shard.buffer_now(len);
        buf[..ahead.len()].copy_from_slice(ahead);
        let this = Rc::new(Self {
            shard: shard.clone(),
            socket: Rc::clone(socket),
            session: RefCell::new(session),
            received: RefCell::new(Received {
                buf: Some(buf),
                filled: 0..ahead.len(),
                error: None,
            }),
            is_taken: Cell::new(false),
            given_back: LocalQueue::new(),
            is_broken: Cell::new(false),
        });
        match this.shake_hands(name).await {
            Ok(()) => Ok(this),
            Err(error) => {
                socket.shut_down();
                Err(error)
            }
        }
    }

    async fn shake_hands(&self, name: Option<&str>) -> Result<(), TlsError> {
        loop {
            self.flush().await?;
            if !self.session.borrow().is_handshaking() {
                return Ok(());
            }
            if self.received.borrow().filled.is_empty() && self.receive_more().await? == 0 {
                return Err(TlsError::Ended);
            }
            let failed = {
                let (mut received, mut session) =
                    (self.received.borrow_mut(), self.session.borrow_mut());
                received.feed(&mut session);
                // What breaks after the handshake is found by who receives.
                session.is_handshaking().then(|| received.error.clone())
            };
            if let Some(error) = failed.flatten() {
                // The peer shall know why; it may be gone.
                let _ = self.flush().await;
                return Err(TlsError::of(&error, name));
            }
        }
    }

    /// Whom the peer has proved to be, if it has, and if that can be read.
    pub(crate) fn peer_name(&self) -> Option<String> {
        let session = self.session.borrow();
        let certificate = session.peer_certificates()?.first()?;
        name::distinguished_name(certificate)
    }

    /// See [`crate::Connection::receive`]. A stream that the peer ends without
    /// TLS's farewell ends all the same: what has come is whole, record by record,
    /// and the protocols above know their last message.
    pub(crate) async fn receive(
        self: &Rc<Self>,
        mut buf: Buf,
        window: Range<usize>,
        all: bool,
    ) -> (IoResult<usize>, Buf) {
        let mut at = window.start;
        loop {
            let decrypted = self.decrypt(&mut buf[at..window.end]);
            let decrypted = match decrypted {
                Ok(decrypted) => decrypted,
                Err(error) => {
                    tracing::info!("TLS connection broken: {error}");
                    self.end_broken().await;
                    return (Err(Errno::EPROTO), buf);
                }
            };
            if self.session.borrow().wants_write() && !self.is_taken.get() {
                let this = Rc::clone(self);
                drop(self.shard.spawn(async move { this.flush().await }));
            }
            match decrypted {
                Decrypted::Enough => return (Ok(window.len()), buf),
                Decrypted::End(count) => return (Ok(at + count - window.start), buf),
                Decrypted::Hungry(count) => at += count,
            }
            if at > window.start && !all {
                return (Ok(at - window.start), buf);
            }
            match self.receive_more().await {
                Ok(0) => return (Ok(at - window.start), buf),
                Ok(_) => {}
                Err(errno) => return (Err(errno), buf),
            }
        }
    }

    /// Fills a place from what has been received, as far as it goes.
    fn decrypt(&self, place: &mut [u8]) -> Result<Decrypted, rustls::Error> {
        let mut session = self.session.borrow_mut();
        let mut received = self.received.borrow_mut();
        let mut count = 0;
        loop {
            while count < place.len() {
                match session.reader().read(&mut place[count..]) {
                    Ok(0) => return Ok(Decrypted::End(count)),
                    Ok(read) => count += read,
                    // The session has no other errors here than that it has nothing.
                    Err(_) => break,
                }
            }
            if count == place.len() {
                return Ok(Decrypted::Enough);
            }
            match &received.error {
                // What came whole before it is handed out first.
                Some(_) if count > 0 => return Ok(Decrypted::End(count)),
                Some(error) => return Err(error.clone()),
                None => {}
            }
            if received.filled.is_empty() {
                return Ok(Decrypted::Hungry(count));
            }
            received.feed(&mut session);
        }
    }

    /// Receives from the socket; the end of it is no bytes.
    async fn receive_more(&self) -> IoResult<usize> {
        let buf = self.received.borrow_mut().buf.take();
        let buf = buf.ok_or(Errno::ECANCELED)?;
        let window = 0..buf.len();
        let (result, buf) = self.socket.receive(&self.shard, buf, window, false).await;
        let mut received = self.received.borrow_mut();
        received.buf = Some(buf);
        received.filled = 0..*result.as_ref().unwrap_or(&0);
        result
    }

    async fn end_broken(&self) {
        self.is_broken.set(true);
        if !self.is_taken.get() {
            // The peer shall know why; it may be gone, or not read.
            let deadline_ns = self.shard.now_ns() + LAST_WORD_NS;
            let _ = self.shard.within(deadline_ns, self.flush()).await;
        }
        self.socket.shut_down();
    }

    /// See [`crate::Connection::send`].
    pub(crate) async fn send(&self, batch: Batch) -> IoResult<Batch> {
        let (result, batch) = self.send_lent(batch).await;
        result.map(|()| batch)
    }

    /// See [`crate::Connection::send_lent`].
    pub(crate) async fn send_lent(&self, mut batch: Batch) -> (IoResult<()>, Batch) {
        let result = self.send_encrypted(&mut batch).await;
        (result, batch)
    }

    async fn send_encrypted(&self, batch: &mut Batch) -> IoResult<()> {
        let turn = self.turn().await;
        let mut records = Batch::default();
        loop {
            if self.is_broken.get() {
                return Err(Errno::EPIPE);
            }
            self.encrypt(batch)?;
            self.take_records(&mut records);
            if records.is_empty() {
                turn.done();
                return Ok(());
            }
            records = self.socket.send(&self.shard, records).await?;
        }
    }

    /// Sends what the session has to say.
    async fn flush(&self) -> IoResult<()> {
        let turn = self.turn().await;
        let mut records = Batch::default();
        loop {
            self.take_records(&mut records);
            if records.is_empty() {
                turn.done();
                return Ok(());
            }
            records = self.socket.send(&self.shard, records).await?;
        }
    }

    /// Tells the peer that this was all.
    pub(crate) async fn say_farewell(&self) {
        self.session.borrow_mut().send_close_notify();
        // It may be gone.
        let _ = self.flush().await;
    }

    async fn turn(&self) -> Turn<'_> {
        self.given_back
            .wait_until(|| !self.is_taken.replace(true))
            .await;
        Turn {
            stream: self,
            is_whole: false,
        }
    }

    /// Encrypts a part of the batch. Small parts share records.
    fn encrypt(&self, batch: &mut Batch) -> IoResult<()> {
        let mut room = SENT_BYTES;
        let mut parts = Vec::new();
        for part in batch.parts() {
            let part = &part[..part.len().min(room)];
            parts.push(IoSlice::new(part));
            room -= part.len();
            if room == 0 {
                break;
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        let mut session = self.session.borrow_mut();
        // Nothing is taken any more by a session that has said farewell.
        match session.writer().write_vectored(&parts) {
            Ok(taken) if taken > 0 => {
                drop(parts);
                batch.advance(taken);
                Ok(())
            }
            _ => Err(Errno::EPIPE),
        }
    }

    fn take_records(&self, records: &mut Batch) {
        let mut session = self.session.borrow_mut();
        while session.wants_write() {
            let written = session.write_tls(&mut Outlet(records));
            written.expect("there is always room in memory");
        }
    }
}

impl Received {
    /// Gives the session a part.
    fn feed(&mut self, session: &mut rustls::Connection) {
        if let Err(error) = self.try_feed(session) {
            self.filled = 0..0;
            self.error = Some(error);
        }
    }

    fn try_feed(&mut self, session: &mut rustls::Connection) -> Result<(), rustls::Error> {
        let Some(buf) = &self.buf else {
            return Ok(());
        };
        let mut rest = &buf[self.filled.clone()];
        match session.read_tls(&mut rest) {
            // After the peer's farewell nothing counts any more.
            Ok(0) => self.filled.start = self.filled.end,
            Ok(count) => self.filled.start += count,
            Err(error) => return Err(rustls::Error::General(error.to_string())),
        }
        session.process_new_packets().map(drop)
    }
}
