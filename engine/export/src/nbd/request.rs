//! What one request does.

use std::ops::Range;
use std::rc::Rc;

use ringback_block::metrics::clients::{self, Recorder};
use ringback_block::port::Port;
use ringback_block::protocol::nbd::wire::{PAYLOAD_MAX, Request, command, request_flags as flag};
use ringback_block::request::ZeroFlags;
use ringback_block::span::Span;
use ringback_block::units::is_zero;
use ringback_ring::{Buf, Errno, IoResult, Shard};

use super::context::Context;
use super::export::Export;
use super::reply::{Failure, Headers, Outcome};
use super::status::{self, Question};

/// Reads of at least so many bytes are looked through: what is all zeroes goes out
/// as a hole. Less than that is sent faster than looked at.
const HOLE_BYTES_MIN: u64 = 32 << 10;
/// Bytes that are read at once only to be near.
pub(super) const CACHE_BYTES: u64 = 1 << 20;

/// What came with a request.
#[derive(Debug)]
pub(super) enum Payload {
    None,
    /// What is to be written.
    Data(Buf, Range<usize>),
    /// The contexts that are asked for, and the length that they are asked about.
    Contexts(Vec<Context>, u64),
}

/// Whether a request makes sense. What is looked at first is what others look at
/// first.
pub(super) fn check(request: &Request, export: &Export, headers: Headers) -> Result<(), Failure> {
    check_length(request)?;
    check_read_only(request, export)?;
    check_bounds(request, export)?;
    check_flags(request, headers)
}

/// Where bytes go to or come from memory.
pub(super) fn check_length(request: &Request) -> Result<(), Failure> {
    let transfers = matches!(
        request.command,
        command::READ | command::WRITE | command::CACHE
    );
    let has_payload = request.flags & flag::PAYLOAD_LEN != 0;
    if (transfers || has_payload) && request.len > u64::from(PAYLOAD_MAX) {
        return Err(Failure::invalid(format!(
            "len ({}) is larger than max len ({PAYLOAD_MAX})",
            request.len
        )));
    }
    Ok(())
}

fn check_read_only(request: &Request, export: &Export) -> Result<(), Failure> {
    let changes = matches!(
        request.command,
        command::WRITE | command::TRIM | command::WRITE_ZEROES
    );
    if changes && !export.is_writable {
        return Err(Failure::invalid("Export is read-only"));
    }
    Ok(())
}

pub(super) fn check_bounds(request: &Request, export: &Export) -> Result<(), Failure> {
    let (from, len, size) = (request.offset, request.len, export.size);
    if from > size || len > size - from {
        return Err(Failure::invalid(format!(
            "operation past EOF; From: {from}, Len: {len}, Size: {size}"
        )));
    }
    Ok(())
}

fn check_flags(request: &Request, headers: Headers) -> Result<(), Failure> {
    let chunks = if headers == Headers::Simple {
        0
    } else {
        flag::DF
    };
    let payload = if headers == Headers::Extended {
        flag::PAYLOAD_LEN
    } else {
        0
    };
    let (name, allowed) = match request.command {
        command::READ => ("read", chunks),
        command::WRITE => ("write", payload),
        command::FLUSH => ("flush", 0),
        command::TRIM => ("trim", 0),
        command::CACHE => ("cache", 0),
        command::WRITE_ZEROES => ("write zeroes", flag::NO_HOLE | flag::FAST_ZERO),
        command::BLOCK_STATUS => ("block status", flag::REQ_ONE | payload),
        _ => ("<unknown>", 0),
    };
    if request.flags & !(allowed | flag::FUA) != 0 {
        let flags = request.flags;
        return Err(Failure::invalid(format!(
            "unsupported flags for command {name} (got {flags:#x})"
        )));
    }
    Ok(())
}

/// What a request needs.
pub(super) struct Worker<'a> {
    pub(super) shard: &'a Shard,
    pub(super) port: &'a Rc<Port>,
    pub(super) export: &'a Export,
    pub(super) recorder: &'a Recorder,
    pub(super) headers: Headers,
    /// What the client has chosen.
    pub(super) contexts: &'a [Context],
    /// Whether nobody waits for the answer any more.
    pub(super) is_pointless: &'a dyn Fn() -> bool,
}

/// Questions and what is read for nobody are nothing that a guest waits for.
fn measured_as(request: &Request) -> Option<clients::Request> {
    match request.command {
        command::READ => Some(clients::Request::Read),
        command::WRITE | command::WRITE_ZEROES => Some(clients::Request::Write),
        command::FLUSH => Some(clients::Request::Flush),
        command::TRIM => Some(clients::Request::Discard),
        _ => None,
    }
}

fn failed(text: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure::new(errno, text)
}

impl Worker<'_> {
    /// Does it, and records how long it took.
    pub(super) async fn run(
        &self,
        request: &Request,
        payload: Payload,
    ) -> Result<Outcome, Failure> {
        let start_ns = self.shard.now_ns();
        let outcome = self.answer(request, payload).await;
        if let Some(kind) = measured_as(request) {
            self.recorder.record(kind, self.shard.now_ns() - start_ns);
        }
        outcome
    }

    /// Everything but a read or a write is boxed: it is rare, and would make each request's
    /// task large.
    async fn answer(&self, request: &Request, payload: Payload) -> Result<Outcome, Failure> {
        let span = Span::new(request.offset, request.len);
        let is_forced = request.flags & flag::FUA != 0;
        match request.command {
            command::READ => self.read(request, span, is_forced).await,
            command::WRITE => {
                let written = self.write(span, payload).await;
                self.settle(written, is_forced, "writing to file failed")
                    .await
            }
            command::FLUSH => {
                let flushed = Box::pin(self.port.flush(self.shard)).await;
                flushed.map_err(failed("flush failed"))?;
                Ok(Outcome::Done)
            }
            command::TRIM => {
                let trimmed = match span.is_empty() {
                    true => Ok(()),
                    false => Box::pin(self.port.discard(self.shard, span)).await,
                };
                self.settle(trimmed, is_forced, "discard failed").await
            }
            command::WRITE_ZEROES => {
                let flags = ZeroFlags {
                    may_unmap: request.flags & flag::NO_HOLE == 0,
                    no_fallback: request.flags & flag::FAST_ZERO != 0,
                };
                let zeroed = match span.is_empty() {
                    true => Ok(()),
                    false => Box::pin(self.port.write_zeroes(self.shard, span, flags)).await,
                };
                self.settle(zeroed, is_forced, "writing to file failed")
                    .await
            }
            command::CACHE => {
                let read = Box::pin(self.read_for_nobody(span)).await;
                read.map_err(failed("caching data failed"))?;
                Ok(Outcome::Done)
            }
            command::BLOCK_STATUS => Box::pin(self.status(request, payload)).await,
            kind => Err(Failure::invalid(format!(
                "invalid request type ({kind}) received"
            ))),
        }
    }

    async fn read(
        &self,
        request: &Request,
        span: Span,
        is_forced: bool,
    ) -> Result<Outcome, Failure> {
        if is_forced {
            let flushed = Box::pin(self.port.flush(self.shard)).await;
            flushed.map_err(failed("flush failed"))?;
        }
        if span.is_empty() {
            return Ok(Outcome::Done);
        }
        let len = usize::try_from(span.len).expect("checked to be short");
        let buf = self.shard.buffer_now(len);
        let (result, buf) = self.port.read(self.shard, span.offset, buf, 0..len).await;
        result.map_err(failed("reading from file failed"))?;
        let may_be_hole = self.headers != Headers::Simple && request.flags & flag::DF == 0;
        if may_be_hole && span.len >= HOLE_BYTES_MIN && is_zero(&buf[..len]) {
            return Ok(Outcome::Zeroes);
        }
        Ok(Outcome::Data(buf, 0..len))
    }

    async fn write(&self, span: Span, payload: Payload) -> IoResult<()> {
        match payload {
            Payload::Data(buf, window) if !window.is_empty() => {
                let written = self.port.write(self.shard, span.offset, buf, window);
                written.await.0
            }
            _ => Ok(()),
        }
    }

    /// After a change: durable, if that was asked for.
    async fn settle(
        &self,
        changed: IoResult<()>,
        is_forced: bool,
        text: &'static str,
    ) -> Result<Outcome, Failure> {
        changed.map_err(failed(text))?;
        if is_forced || self.export.is_writethrough {
            let flushed = Box::pin(self.port.flush(self.shard)).await;
            flushed.map_err(failed(text))?;
        }
        Ok(Outcome::Done)
    }

    async fn read_for_nobody(&self, span: Span) -> IoResult<()> {
        for piece in span.pieces(CACHE_BYTES) {
            let len = usize::try_from(piece.len).expect("short pieces");
            let buf = self.shard.buffer_now(len);
            let read = self.port.read(self.shard, piece.offset, buf, 0..len).await;
            read.0?;
        }
        Ok(())
    }

    async fn status(&self, request: &Request, payload: Payload) -> Result<Outcome, Failure> {
        if self.contexts.is_empty() {
            return Err(Failure::invalid("CMD_BLOCK_STATUS not negotiated"));
        }
        let (contexts, len) = match payload {
            Payload::Contexts(contexts, len) => (contexts, len),
            _ => (self.contexts.to_vec(), request.len),
        };
        if len == 0 {
            return Err(Failure::invalid("need non-zero length"));
        }
        let question = Question {
            span: Span::new(request.offset, len),
            contexts: &contexts,
            is_one_enough: request.flags & flag::REQ_ONE != 0,
        };
        let answer = status::answer(self, &question).await;
        let answer = answer.map_err(failed("can't get block status"))?;
        Ok(Outcome::Status(answer))
    }
}
