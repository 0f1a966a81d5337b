//! Formats: where a guest's bytes live in the node below.
//!
//! A format says where a range lives and makes room for a write; an [`Image`]
//! is a format in use, above its file and, for some, a backing file.
//!
//! What qcow2 does with a request is boxed: its futures are large, and would make a
//! raw disk's requests as large.

pub mod qcow2;
mod raw;

use std::ops::Range;
use std::sync::Arc;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use qcow2::Qcow2;
pub use raw::{Raw, RawError};

use crate::child::Child;
use crate::event::Event;
use crate::extent::Extent;
use crate::filter::throttle::Throttle;
use crate::request::{Limits, Preallocation, ZeroFlags};
use crate::resize::ResizeError;
use crate::span::Span;

/// A format and the nodes it lives in: what a path ends with.
#[derive(Debug)]
pub enum Image {
    /// The node below itself, or a window of it.
    Raw {
        /// The window.
        raw: Raw,
        /// The node below.
        file: Child,
    },
    /// A qcow2 image.
    Qcow2 {
        /// The image, which knows its own file.
        image: Arc<Qcow2>,
        /// What shows through where the image holds nothing.
        backing: Option<Child>,
    },
}

impl Image {
    /// Size in bytes, as a guest sees it.
    pub fn size(&self) -> u64 {
        match self {
            Self::Raw { raw, file } => raw.size(file.size()),
            Self::Qcow2 { image, .. } => image.size(),
        }
    }

    /// Unit in which it is told who holds what, in bytes.
    pub(crate) fn allocation_unit(&self) -> u64 {
        match self {
            Self::Raw { file, .. } => file.allocation_unit(),
            Self::Qcow2 { image, .. } => image.allocation_unit(),
        }
    }

    /// Every throttle below; see [`Path::for_each_throttle`].
    ///
    /// [`Path::for_each_throttle`]: crate::path::Path::for_each_throttle
    pub(crate) fn for_each_throttle(&self, act: &dyn Fn(&Arc<Throttle>)) {
        match self {
            Self::Raw { file, .. } => file.for_each_throttle(act),
            Self::Qcow2 { image, backing } => {
                image
                    .children()
                    .for_each(|child| child.for_each_throttle(act));
                if let Some(backing) = backing {
                    backing.for_each_throttle(act);
                }
            }
        }
    }

    /// How the node below cuts requests; a format with a structure of its own
    /// makes requests as it likes.
    pub(crate) fn limits(&self) -> Limits {
        match self {
            Self::Raw { file, .. } => file.limits(),
            Self::Qcow2 { .. } => Limits::default(),
        }
    }

    /// Whether a write behind the end makes it longer.
    pub(crate) fn can_grow(&self) -> bool {
        match self {
            Self::Raw { raw, file } => raw.is_open_ended() && file.can_grow(),
            Self::Qcow2 { .. } => false,
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
            Self::Raw { raw, file } => {
                file.event(shard, Event::ReadAio).await;
                file.read(shard, raw.place(span), buf, window).await
            }
            Self::Qcow2 { image, backing } => {
                Box::pin(image.read(shard, backing.as_ref(), span, buf, window)).await
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
            Self::Raw { raw, file } => {
                file.event(shard, Event::WriteAio).await;
                file.write(shard, raw.place(span), buf, window).await
            }
            Self::Qcow2 { image, backing } => {
                Box::pin(image.write(shard, backing.as_ref(), span, buf, window)).await
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
            Self::Raw { raw, file } => file.write_zeroes(shard, raw.place(span), flags).await,
            Self::Qcow2 { image, backing } => {
                Box::pin(image.write_zeroes(shard, backing.as_ref(), span, flags)).await
            }
        }
    }

    pub(crate) async fn write_compressed(
        &self,
        shard: &Shard,
        span: Span,
        bytes: &[u8],
    ) -> IoResult<()> {
        match self {
            Self::Raw { .. } => Err(Errno::EOPNOTSUPP),
            Self::Qcow2 { image, .. } => Box::pin(image.write_compressed(shard, span, bytes)).await,
        }
    }

    pub(crate) async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        match self {
            Self::Raw { raw, file } => file.discard(shard, raw.place(span)).await,
            Self::Qcow2 { image, backing } => {
                Box::pin(image.discard(shard, backing.as_ref(), span)).await
            }
        }
    }

    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        match self {
            Self::Raw { file, .. } => {
                file.event(shard, Event::FlushToOs).await;
                file.event(shard, Event::FlushToDisk).await;
                file.flush(shard).await
            }
            Self::Qcow2 { image, .. } => Box::pin(image.flush(shard)).await,
        }
    }

    pub(crate) async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        match self {
            Self::Raw { raw, file } => file.extent(shard, raw.place(span)).await,
            Self::Qcow2 { image, backing } => {
                Box::pin(image.extent(shard, backing.as_ref(), span)).await
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
            Self::Raw { raw, file } if raw.is_open_ended() => {
                let size = size
                    .checked_add(raw.offset())
                    .ok_or(ResizeError::File(Errno::EFBIG))?;
                file.truncate(shard, size, preallocation).await
            }
            Self::Raw { .. } => Err(ResizeError::Window),
            Self::Qcow2 { image, backing } => {
                image
                    .truncate(shard, backing.as_ref(), size, preallocation)
                    .await
            }
        }
    }

    /// Reads from a machine's state; see [`Path::load_vmstate`].
    ///
    /// [`Path::load_vmstate`]: crate::path::Path::load_vmstate
    pub(crate) async fn load_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self {
            Self::Raw { file, .. } => file.load_vmstate(shard, position, buf, window).await,
            Self::Qcow2 { image, .. } => image.load_vmstate(shard, position, buf, window).await,
        }
    }

    /// Writes into a machine's state; see [`Path::save_vmstate`].
    ///
    /// [`Path::save_vmstate`]: crate::path::Path::save_vmstate
    pub(crate) async fn save_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self {
            Self::Raw { file, .. } => file.save_vmstate(shard, position, buf, window).await,
            Self::Qcow2 { image, .. } => image.save_vmstate(shard, position, buf, window).await,
        }
    }
}
