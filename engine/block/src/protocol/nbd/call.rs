//! One request and its buffer, from the caller's side.
//!
//! The buffer is lent out: to the batch that is being sent, or to the receiver
//! while bytes come in. A call has ended only when it has its outcome *and* its
//! buffer: a server may answer before everything has been sent to it.

use std::cell::RefCell;
use std::ops::Range;

use ringback_ring::{Buf, Errno, IoResult, LocalQueue};

use super::wire::Request;

/// A run of bytes in the answer to a question about a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// At least 1.
    pub(super) len: u64,
    pub(super) is_dirty: bool,
}

/// What a request has brought, beside bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing but success.
    Done,
    /// How far the server's flags hold from the start of the range, in bytes.
    Extent {
        /// At least 1.
        len: u64,
        /// Of the context that was negotiated.
        flags: u32,
    },
    /// What the bitmap says from the start of the range on. May end before the range
    /// does, or behind it.
    Runs(Vec<Run>),
}

/// Why a request has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// For good.
    Error(Errno),
    /// With the connection: another may be tried.
    Lost,
}

/// A request on its way. Its cookie is given when it is sent.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) request: Request,
    /// The bytes of the buffer that are read into or written.
    pub(super) window: Range<usize>,
    has_cargo: bool,
    /// Missing while it is lent out.
    cargo: RefCell<Option<Buf>>,
    outcome: RefCell<Option<Result<Answer, Failure>>>,
    changed: LocalQueue,
}

impl Call {
    pub(super) fn new(request: Request, cargo: Option<(Buf, Range<usize>)>) -> Self {
        let (cargo, window) = match cargo {
            Some((buf, window)) => (Some(buf), window),
            None => (None, 0..0),
        };
        Self {
            request,
            window,
            has_cargo: cargo.is_some(),
            cargo: RefCell::new(cargo),
            outcome: RefCell::new(None),
            changed: LocalQueue::new(),
        }
    }

    /// The buffer, to be given back.
    pub(super) fn lend(&self) -> Option<Buf> {
        self.cargo.borrow_mut().take()
    }

    pub(super) fn give_back(&self, buf: Buf) {
        *self.cargo.borrow_mut() = Some(buf);
        self.changed.wake_all();
    }

    /// The first outcome counts.
    pub(super) fn end(&self, outcome: Result<Answer, Failure>) {
        self.outcome.borrow_mut().get_or_insert(outcome);
        self.changed.wake_all();
    }

    pub(super) fn fail(&self, errno: Errno) {
        self.end(Err(Failure::Error(errno)));
    }

    /// The outcome, and the buffer if there was one.
    pub(super) async fn wait(&self) -> (Result<Answer, Failure>, Option<Buf>) {
        let is_over = || {
            let is_whole = !self.has_cargo || self.cargo.borrow().is_some();
            is_whole && self.outcome.borrow().is_some()
        };
        self.changed.wait_until(is_over).await;
        let outcome = self.outcome.borrow_mut().take();
        let outcome = outcome.unwrap_or(Err(Failure::Error(Errno::EIO)));
        (outcome, self.lend())
    }
}

/// What a failed request is to who asked.
pub(super) fn errno(outcome: Result<Answer, Failure>) -> IoResult<Answer> {
    outcome.map_err(|failure| match failure {
        Failure::Error(errno) => errno,
        Failure::Lost => Errno::EIO,
    })
}
