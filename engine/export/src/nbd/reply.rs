//! What is sent back, in batches.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use ringback_block::protocol::nbd::wire::{self, Request, chunk, command};
use ringback_net::Connection;
use ringback_ring::socket::Batch;
use ringback_ring::{Buf, Errno, LocalQueue};

/// What a client has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Headers {
    /// A number and perhaps bytes.
    Simple,
    /// Chunks, and simple replies where there is nothing to say.
    Structured,
    /// Chunks with long headers.
    Extended,
}

/// An error as a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) errno: Errno,
    /// Where there is room for a text.
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self {
            errno,
            text: text.into(),
        }
    }

    /// A request that makes no sense.
    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self::new(Errno::EINVAL, text)
    }
}

/// What a request has brought.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing but success.
    Done,
    /// Bytes of the disk, all of those asked for.
    Data(Buf, Range<usize>),
    /// All of them are zeroes.
    Zeroes,
    /// Per context its number and its extents.
    Status(Vec<(u32, Vec<(u64, u32)>)>),
}

/// What is ready to be sent, and what counts as held until it is.
#[derive(Default)]
struct Ready {
    batch: Batch,
    requests: usize,
    bytes: u64,
}

/// Replies that wait to be sent. Requests count until they have been.
#[derive(Default)]
pub(super) struct Outbox {
    ready: RefCell<Ready>,
    filled: LocalQueue,
    /// Nothing more comes.
    is_closed: Cell<bool>,
    /// Nothing more can be sent.
    is_broken: Cell<bool>,
    /// Requests, and their bytes, that the server holds.
    requests: Cell<usize>,
    bytes: Cell<u64>,
    sent: LocalQueue,
}

impl Outbox {
    /// Waits until the client may have another request.
    pub(super) async fn room(&self, requests_max: usize, bytes_max: u64) {
        self.sent
            .wait_until(|| self.requests.get() < requests_max && self.bytes.get() < bytes_max)
            .await;
    }

    /// A request of so many bytes has come.
    pub(super) fn begin(&self, bytes: u64) {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// Waits until every request has been answered.
    pub(super) async fn answered(&self) {
        self.sent.wait_until(|| self.requests.get() == 0).await;
    }

    /// Nothing more will come: the sender may go when all is sent.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.filled.wake_all();
    }

    /// Whether the client cannot be reached any more.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.get()
    }

    fn release(&self, requests: usize, bytes: u64) {
        self.requests.set(self.requests.get() - requests);
        self.bytes.set(self.bytes.get() - bytes);
        self.sent.wake_all();
    }

    /// A request of so many bytes is answered.
    pub(super) fn end(&self, bytes: u64, write: impl FnOnce(&mut Batch)) {
        if self.is_broken.get() {
            self.release(1, bytes);
            return;
        }
        let mut ready = self.ready.borrow_mut();
        write(&mut ready.batch);
        ready.requests += 1;
        ready.bytes += bytes;
        drop(ready);
        self.filled.wake_all();
    }

    /// Sends what comes, until it is closed.
    pub(super) async fn send_all(&self, connection: &Connection) {
        let mut spare = Batch::default();
        loop {
            self.filled
                .wait_until(|| self.is_closed.get() || self.ready.borrow().requests > 0)
                .await;
            let empty = Ready {
                batch: std::mem::take(&mut spare),
                ..Ready::default()
            };
            let ready = self.ready.replace(empty);
            if ready.requests == 0 {
                return;
            }
            if !self.is_broken.get() {
                match connection.send(ready.batch).await {
                    Ok(batch) => spare = batch,
                    Err(_) => {
                        self.is_broken.set(true);
                        // Who receives must not go on either.
                        connection.shut_down();
                    }
                }
            }
            self.release(ready.requests, ready.bytes);
        }
    }
}

/// Writes a reply as the client understands it.
pub(super) fn write(
    batch: &mut Batch,
    headers: Headers,
    request: &Request,
    result: Result<Outcome, Failure>,
) {
    match (headers, result) {
        (Headers::Simple, Err(failure)) => {
            simple(batch, request, wire::error_to_wire(failure.errno))
        }
        (Headers::Simple, Ok(outcome)) => {
            simple(batch, request, 0);
            if let Outcome::Data(buf, window) = outcome {
                batch.push_window(buf, window);
            }
        }
        (_, Err(failure)) => error_chunk(batch, headers, request, &failure),
        (Headers::Structured, Ok(Outcome::Done)) if request.command != command::READ => {
            simple(batch, request, 0);
        }
        (_, Ok(Outcome::Done)) => chunk_header(batch, headers, request, chunk::NONE, true, 0),
        (_, Ok(Outcome::Data(buf, window))) => {
            let len = 8 + window.len() as u64;
            chunk_header(batch, headers, request, chunk::OFFSET_DATA, true, len);
            batch.push_bytes(&request.offset.to_be_bytes());
            batch.push_window(buf, window);
        }
        (_, Ok(Outcome::Zeroes)) => {
            chunk_header(batch, headers, request, chunk::OFFSET_HOLE, true, 12);
            batch.push_bytes(&request.offset.to_be_bytes());
            let len = u32::try_from(request.len).expect("reads have lengths of 32 bits");
            batch.push_bytes(&len.to_be_bytes());
        }
        (_, Ok(Outcome::Status(contexts))) => status_chunks(batch, headers, request, &contexts),
    }
}

fn simple(batch: &mut Batch, request: &Request, error: u32) {
    batch.push_bytes(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    batch.push_bytes(&error.to_be_bytes());
    batch.push_bytes(&request.cookie.to_be_bytes());
}

fn chunk_header(
    batch: &mut Batch,
    headers: Headers,
    request: &Request,
    kind: u16,
    is_last: bool,
    len: u64,
) {
    let flags = if is_last { chunk::DONE } else { 0 };
    let magic = match headers {
        Headers::Extended => wire::EXTENDED_CHUNK_MAGIC,
        Headers::Simple | Headers::Structured => wire::CHUNK_MAGIC,
    };
    batch.push_bytes(&magic.to_be_bytes());
    batch.push_bytes(&flags.to_be_bytes());
    batch.push_bytes(&kind.to_be_bytes());
    batch.push_bytes(&request.cookie.to_be_bytes());
    if headers == Headers::Extended {
        batch.push_bytes(&request.offset.to_be_bytes());
        batch.push_bytes(&len.to_be_bytes());
    } else {
        let len = u32::try_from(len).expect("payloads are below 4 GiB");
        batch.push_bytes(&len.to_be_bytes());
    }
}

fn error_chunk(batch: &mut Batch, headers: Headers, request: &Request, failure: &Failure) {
    let text = &failure.text;
    let len = u16::try_from(text.len()).expect("texts of errors are short");
    chunk_header(
        batch,
        headers,
        request,
        chunk::ERROR,
        true,
        6 + u64::from(len),
    );
    batch.push_bytes(&wire::error_to_wire(failure.errno).to_be_bytes());
    batch.push_bytes(&len.to_be_bytes());
    batch.push_bytes(text.as_bytes());
}

fn status_chunks(
    batch: &mut Batch,
    headers: Headers,
    request: &Request,
    contexts: &[(u32, Vec<(u64, u32)>)],
) {
    for (index, (id, extents)) in contexts.iter().enumerate() {
        let is_last = index + 1 == contexts.len();
        if headers == Headers::Extended {
            let len = 8 + 16 * extents.len() as u64;
            let kind = chunk::BLOCK_STATUS_EXTENDED;
            chunk_header(batch, headers, request, kind, is_last, len);
            batch.push_bytes(&id.to_be_bytes());
            let count = u32::try_from(extents.len()).expect("few extents");
            batch.push_bytes(&count.to_be_bytes());
            for &(len, flags) in extents {
                batch.push_bytes(&len.to_be_bytes());
                batch.push_bytes(&u64::from(flags).to_be_bytes());
            }
        } else {
            let len = 4 + 8 * extents.len() as u64;
            chunk_header(batch, headers, request, chunk::BLOCK_STATUS, is_last, len);
            batch.push_bytes(&id.to_be_bytes());
            for &(len, flags) in extents {
                let len = u32::try_from(len).expect("no longer than a request of 32 bits");
                batch.push_bytes(&len.to_be_bytes());
                batch.push_bytes(&flags.to_be_bytes());
            }
        }
    }
}
