//! One operation in flight: a slab entry that owns whatever memory the ring may
//! still touch, and the future that waits for it.
//!
//! # Ownership
//!
//! The ring's `user_data` is the slab key. The entry holds the buffer from
//! submission to completion. If the future is dropped first, the entry becomes
//! an orphan and frees the buffer when its completion arrives: never earlier.

use std::cell::RefCell;
use std::future::Future;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::buffer::Buf;
use crate::file::FileRef;
use crate::shard::Shard;
use crate::uring::Message;
use crate::{Errno, IoResult};

/// What a ring can be asked to do. Offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Into the op's buffer.
    Read,
    /// From the op's buffer.
    Write,
    /// Make completed writes durable (data and the size, not the times).
    Sync,
    /// Zeroes that stay allocated.
    ZeroRange,
    /// Zeroes that give space back.
    PunchHole,
    /// Plain preallocation; the content reads as zeroes where it was a hole.
    Allocate,
    /// From a socket into the op's buffer: at least a byte, or all of it.
    Receive {
        /// Whether to wait until the window is full.
        all: bool,
    },
    /// The op's message into a socket.
    Send,
    /// Until a socket has something to receive, or a connection to accept. The
    /// only one that can be cancelled.
    Readable,
    /// Until a socket has been connected, or not.
    Writable,
}

/// An operation as the driver sees it.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) verb: Verb,
    pub(crate) file: FileRef,
    pub(crate) offset: u64,
    /// Of a range; for transfers it is the length of the window.
    pub(crate) len: u64,
}

/// What an operation owns while the ring may touch it.
pub(crate) enum Load {
    None,
    /// These bytes of a buffer.
    Window(Buf, Range<usize>),
    /// Pieces of several.
    Message(Box<Message>),
}

impl Load {
    /// Of a transfer, which keeps what it was given.
    pub(crate) fn into_buf(self) -> Buf {
        match self {
            Self::Window(buf, _) => buf,
            Self::None | Self::Message(_) => unreachable!("a transfer gives its buffer back"),
        }
    }
}

enum Progress {
    Waiting(Option<Waker>),
    Done(i64),
    Orphan,
}

struct Entry {
    progress: Progress,
    load: Load,
    /// A descriptor that no table of the ring holds.
    _socket: Option<Rc<OwnedFd>>,
}

/// All operations in flight of one shard.
#[derive(Default)]
pub(crate) struct Ops {
    entries: RefCell<Vec<Option<Entry>>>,
    free: RefCell<Vec<u32>>,
}

impl Ops {
    fn insert(&self, entry: Entry) -> u32 {
        let mut entries = self.entries.borrow_mut();
        if let Some(key) = self.free.borrow_mut().pop() {
            entries[key as usize] = Some(entry);
            return key;
        }
        let key = u32::try_from(entries.len()).expect("fewer than 2^32 operations in flight");
        entries.push(Some(entry));
        key
    }

    fn remove(&self, key: u32) -> Entry {
        let entry = self.entries.borrow_mut()[key as usize]
            .take()
            .expect("a live key");
        self.free.borrow_mut().push(key);
        entry
    }

    /// A completion arrived. `read_into` gives the simulation access to the
    /// buffer; the kernel has written it already.
    pub(crate) fn complete(&self, key: u32, result: i64, read_into: impl FnOnce(&mut [u8])) {
        let mut entries = self.entries.borrow_mut();
        let entry = entries[key as usize]
            .as_mut()
            .expect("completions arrive once");
        if let Load::Window(buf, window) = &mut entry.load {
            read_into(&mut buf[window.clone()]);
        }
        match std::mem::replace(&mut entry.progress, Progress::Done(result)) {
            Progress::Waiting(Some(waker)) => {
                drop(entries);
                waker.wake();
            }
            Progress::Waiting(None) => {}
            Progress::Orphan => {
                drop(entries);
                drop(self.remove(key));
            }
            Progress::Done(_) => unreachable!("completions arrive once"),
        }
    }

    /// How many operations the ring may still touch.
    pub(crate) fn in_flight(&self) -> usize {
        self.entries.borrow().len() - self.free.borrow().len()
    }

    /// Runs `with` on what a live operation owns.
    pub(crate) fn with_load<T>(&self, key: u32, with: impl FnOnce(&mut Load) -> T) -> T {
        let mut entries = self.entries.borrow_mut();
        let entry = entries[key as usize].as_mut().expect("a live key");
        with(&mut entry.load)
    }

    /// Forgets everything: only after the ring is gone.
    pub(crate) fn clear(&self) {
        self.entries.borrow_mut().clear();
        self.free.borrow_mut().clear();
    }
}

/// Waits for one operation. Dropping it early neither cancels the operation nor
/// frees its buffer; only a wait for readiness is cancelled, for nothing else might
/// ever end it.
pub(crate) struct OpFuture<'a> {
    shard: &'a Shard,
    key: u32,
    is_wait: bool,
    finished: bool,
}

impl OpFuture<'_> {
    /// Ends a wait for readiness early; the future answers when that is done.
    pub(crate) fn cancel(&self) {
        debug_assert!(self.is_wait, "transfers run to their end");
        self.shard.driver_cancel_wait(self.key);
    }
}

/// Hands an operation and what it owns to the shard's ring.
pub(crate) fn submit<'a>(shard: &'a Shard, operation: &Operation, load: Load) -> OpFuture<'a> {
    submit_on(shard, operation, load, None)
}

/// The same on a descriptor that no table of the ring holds: it stays open until
/// the operation has ended.
pub(crate) fn submit_on<'a>(
    shard: &'a Shard,
    operation: &Operation,
    load: Load,
    socket: Option<Rc<OwnedFd>>,
) -> OpFuture<'a> {
    if let Load::Window(buf, window) = &load {
        assert!(window.end <= buf.len(), "the window lies inside the buffer");
    }
    let entry = Entry {
        progress: Progress::Waiting(None),
        load,
        _socket: socket,
    };
    let key = shard.ops().insert(entry);
    shard.driver_submit(key, operation);
    OpFuture {
        shard,
        key,
        is_wait: operation.verb == Verb::Readable,
        finished: false,
    }
}

impl Future for OpFuture<'_> {
    type Output = (IoResult<u64>, Load);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ops = self.shard.ops();
        {
            let mut entries = ops.entries.borrow_mut();
            let entry = entries[self.key as usize].as_mut().expect("a live key");
            if let Progress::Waiting(waker) = &mut entry.progress {
                *waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let entry = ops.remove(self.key);
        self.finished = true;
        let Progress::Done(result) = entry.progress else {
            unreachable!("only the future orphans")
        };
        Poll::Ready((outcome(result), entry.load))
    }
}

impl Drop for OpFuture<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let ops = self.shard.ops();
        let done = {
            let mut entries = ops.entries.borrow_mut();
            let Some(entry) = entries.get_mut(self.key as usize).and_then(Option::as_mut) else {
                return; // The shard is being torn down.
            };
            let done = matches!(entry.progress, Progress::Done(_));
            entry.progress = Progress::Orphan;
            done
        };
        if done {
            drop(ops.remove(self.key));
        } else if self.is_wait {
            self.cancel();
        }
    }
}

/// The kernel's convention: negative is an errno.
fn outcome(result: i64) -> IoResult<u64> {
    u64::try_from(result)
        .map_err(|_| Errno::from_raw(i32::try_from(-result).unwrap_or(nix::libc::EIO)))
}
