//! What a format or a filter does its I/O on: the node below.
//!
//! Most formats stand directly on a file; that is a plain call. Anything else
//! below (a filter, bitmaps, another format) is a path of its own and costs one
//! boxed future a request.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use crate::event::Event;
use crate::extent::{Content, Extent};
use crate::filter::throttle::Throttle;
use crate::path::Path;
use crate::request::{Limits, Preallocation, ZeroFlags};
use crate::resize::ResizeError;
use crate::span::Span;
use crate::storage::Storage;
use crate::units::in_memory;

/// The type of a recursion must be written out.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The node below.
///
/// Reads behind its end bring zeroes; writes behind its end make it grow, if it
/// can.
#[derive(Clone, Debug)]
pub enum Child {
    /// A protocol, nothing in between.
    Storage(Arc<Storage>),
    /// Whatever else.
    Path(Arc<Path>),
}

impl Child {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Storage(storage) => storage.size(),
            Self::Path(path) => path.size(),
        }
    }

    /// Unit of requests in bytes: others cost more, but are served.
    pub(crate) fn request_alignment(&self) -> u64 {
        match self {
            Self::Storage(storage) => storage.protocol().request_alignment(),
            Self::Path(path) => path.request_alignment(),
        }
    }

    /// Unit in which it is told who holds what, in bytes; a power of two.
    pub(crate) fn allocation_unit(&self) -> u64 {
        match self {
            Self::Storage(storage) => storage.protocol().request_alignment(),
            Self::Path(path) => path.allocation_unit(),
        }
    }

    /// How long the requests may be that go through.
    pub(crate) fn limits(&self) -> Limits {
        match self {
            Self::Storage(_) => Limits::default(),
            Self::Path(path) => path.limits(),
        }
    }

    /// Every throttle that a request may meet on its way down.
    pub(crate) fn for_each_throttle(&self, act: &dyn Fn(&Arc<Throttle>)) {
        match self {
            Self::Storage(_) => {}
            Self::Path(path) => path.for_each_throttle(act),
        }
    }

    /// Whether a write may end behind the end.
    pub(crate) fn can_grow(&self) -> bool {
        match self {
            Self::Storage(storage) => storage.can_grow(),
            Self::Path(path) => path.can_grow(),
        }
    }

    pub(crate) async fn read(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self {
            Self::Storage(storage) => storage.read(shard, span, buf, window).await,
            Self::Path(path) => {
                let inside = span.clip(&Span::new(0, path.size()));
                let end = window.start + in_memory(inside.len);
                let mut buf = buf;
                buf[end..window.end].fill(0);
                if inside.is_empty() {
                    return (Ok(()), buf);
                }
                let read: Boxed<'_, _> =
                    Box::pin(path.read(shard, span.offset, buf, window.start..end));
                read.await
            }
        }
    }

    pub(crate) async fn write(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self {
            Self::Storage(storage) => storage.write(shard, span, buf, window).await,
            Self::Path(path) => {
                let write: Boxed<'_, _> = Box::pin(path.write_growing(shard, span, buf, window));
                write.await
            }
        }
    }

    /// Writes clusters compressed; EOPNOTSUPP where the node cannot.
    pub(crate) async fn write_compressed(
        &self,
        shard: &Shard,
        span: Span,
        bytes: &[u8],
    ) -> IoResult<()> {
        match self {
            Self::Storage(_) => Err(Errno::EOPNOTSUPP),
            Self::Path(path) => {
                let write: Boxed<'_, _> =
                    Box::pin(path.write_compressed(shard, span.offset, bytes));
                write.await
            }
        }
    }

    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        match self {
            Self::Storage(storage) => storage.write_zeroes(shard, span, flags).await,
            Self::Path(path) => {
                let zero: Boxed<'_, _> = Box::pin(path.write_zeroes_growing(shard, span, flags));
                zero.await
            }
        }
    }

    pub(crate) async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        match self {
            Self::Storage(storage) => storage.discard(shard, span).await,
            Self::Path(path) => {
                let inside = span.clip(&Span::new(0, path.size()));
                let discard: Boxed<'_, _> = Box::pin(path.discard(shard, inside));
                discard.await
            }
        }
    }

    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        match self {
            Self::Storage(storage) => storage.flush(shard).await,
            Self::Path(path) => {
                let flush: Boxed<'_, _> = Box::pin(path.flush(shard));
                flush.await
            }
        }
    }

    pub(crate) async fn truncate(
        &self,
        shard: &Shard,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), ResizeError> {
        match self {
            Self::Storage(storage) => storage.truncate(shard, size, preallocation).await,
            Self::Path(path) => {
                let truncate: Boxed<'_, _> = Box::pin(path.truncate(shard, size, preallocation));
                truncate.await
            }
        }
    }

    /// A hint that writes will follow, up to `end`: a file may become so long
    /// before. Its size does not say so.
    pub(crate) async fn grow_ahead(&self, shard: &Shard, end: u64) {
        match self {
            Self::Storage(storage) => storage.grow_ahead(shard, end).await,
            Self::Path(path) => path.grow_ahead(shard, end).await,
        }
    }

    /// A file that became longer by [`Child::grow_ahead`] becomes as long as its
    /// size says. Nothing else may be in flight.
    pub(crate) async fn cut_ahead(&self, shard: &Shard) -> IoResult<()> {
        match self {
            Self::Storage(storage) => storage.cut_ahead(shard).await,
            Self::Path(path) => path.cut_ahead(shard).await,
        }
    }

    /// Reads from a machine's state; see [`Path::load_vmstate`].
    pub(crate) async fn load_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self {
            Self::Storage(_) => (Err(Errno::EOPNOTSUPP), buf),
            Self::Path(path) => {
                let load: Boxed<'_, _> = Box::pin(path.load_vmstate(shard, position, buf, window));
                load.await
            }
        }
    }

    /// Writes into a machine's state; see [`Path::save_vmstate`].
    pub(crate) async fn save_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self {
            Self::Storage(_) => (Err(Errno::EOPNOTSUPP), buf),
            Self::Path(path) => {
                let save: Boxed<'_, _> = Box::pin(path.save_vmstate(shard, position, buf, window));
                save.await
            }
        }
    }

    /// What is at the start of `span` (not empty); zeroes behind the end.
    pub(crate) async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        let inside = span.clip(&Span::new(0, self.size()));
        if inside.is_empty() {
            return Ok(Extent::here(Content::Zero, span.len));
        }
        match self {
            Self::Storage(storage) => storage.extent(shard, inside).await,
            Self::Path(path) => {
                let extent: Boxed<'_, _> = Box::pin(path.extent(shard, inside));
                extent.await
            }
        }
    }

    /// A request passes a point; whoever listens below may hold it up.
    pub(crate) async fn event(&self, shard: &Shard, event: Event) {
        match self {
            Self::Storage(_) => {}
            Self::Path(path) => path.event(shard, event).await,
        }
    }
}
