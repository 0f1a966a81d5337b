//! Where bytes end up: the bottom of every path.
//!
//! A protocol moves whole, aligned ranges: it goes on after short transfers,
//! tries again where the kernel says so, and reads zeroes behind the end of a
//! file. Alignment itself is the business of [`crate::storage`].

mod ahead;
mod create;
mod file;
pub mod nbd;
mod null;

use std::ops::Range;

use ringback_ring::{Buf, Errno, IoResult, Shard};

pub use create::{CreateFileError, create_file};
pub use file::FileProtocol;
pub use nbd::NbdProtocol;
pub use null::NullProtocol;

use crate::extent::Extent;
use crate::request::ZeroFlags;
use crate::span::Span;

/// The protocols that ringback has.
#[derive(Debug)]
pub enum Protocol {
    /// A regular file or a block device.
    File(FileProtocol),
    /// Nothing: writes go nowhere, reads bring nothing or zeroes.
    Null(NullProtocol),
    /// An export of a server.
    Nbd(NbdProtocol),
}

impl Protocol {
    /// Reads a whole window.
    pub(crate) async fn read(
        &self,
        shard: &Shard,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self {
            Self::File(file) => file.read(shard, offset, buf, window).await,
            Self::Null(null) => null.read(shard, buf, window).await,
            Self::Nbd(nbd) => Box::pin(nbd.read(shard, offset, buf, window)).await,
        }
    }

    /// Writes a whole window.
    pub(crate) async fn write(
        &self,
        shard: &Shard,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self {
            Self::File(file) => file.write(shard, offset, buf, window).await,
            Self::Null(null) => (null.pause(shard).await, buf),
            Self::Nbd(nbd) => Box::pin(nbd.write(shard, offset, buf, window)).await,
        }
    }

    /// Makes a range read as zeroes. False: this protocol cannot, or not without
    /// writing them where that is not wanted.
    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoResult<bool> {
        match self {
            Self::File(file) => {
                let may_unmap = flags.may_unmap;
                file.write_zeroes(shard, offset, len, may_unmap).await
            }
            Self::Null(_) => Ok(false),
            Self::Nbd(nbd) => nbd.write_zeroes(shard, offset, len, flags).await,
        }
    }

    /// A hint that the range may be forgotten.
    pub(crate) async fn discard(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<()> {
        match self {
            Self::File(file) => file.discard(shard, offset, len).await,
            Self::Null(_) => Ok(()),
            Self::Nbd(nbd) => nbd.discard(shard, offset, len).await,
        }
    }

    /// Whether discards go any further.
    pub(crate) fn discards(&self) -> bool {
        match self {
            Self::File(file) => file.discards(),
            Self::Null(_) => false,
            Self::Nbd(nbd) => nbd.discards(),
        }
    }

    /// Makes acknowledged writes durable.
    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        match self {
            Self::File(file) => file.flush(shard).await,
            Self::Null(null) => null.pause(shard).await,
            Self::Nbd(nbd) => nbd.flush(shard).await,
        }
    }

    /// What is at `offset`; looks at most `len` bytes (at least 1) far.
    pub(crate) async fn extent(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<Extent> {
        match self {
            Self::File(file) => file.extent(shard, offset, len).await,
            Self::Null(null) => Ok(null.extent(len)),
            Self::Nbd(nbd) => nbd.extent(shard, offset, len).await,
        }
    }

    /// Whether a write may end behind the end.
    pub(crate) fn can_grow(&self) -> bool {
        match self {
            Self::File(file) => file.can_grow(),
            Self::Null(_) | Self::Nbd(_) => false,
        }
    }

    /// A new length in bytes.
    pub(crate) async fn truncate(&self, shard: &Shard, size: u64) -> IoResult<()> {
        match self {
            Self::File(file) => file.truncate(shard, size).await,
            Self::Null(_) => Err(Errno::EOPNOTSUPP),
            // Anything up to its size changes nothing.
            Self::Nbd(nbd) if size <= nbd.size() => Ok(()),
            Self::Nbd(_) => Err(Errno::EINVAL),
        }
    }

    /// A hint that writes will follow, up to `end`: a file becomes so long, and
    /// somewhat longer, without taking space. Its size does not say so.
    pub(crate) async fn grow_ahead(&self, shard: &Shard, end: u64) {
        match self {
            Self::File(file) => file.grow_ahead(shard, end).await,
            Self::Null(_) | Self::Nbd(_) => {}
        }
    }

    /// Ends what [`Protocol::grow_ahead`] began: a file is as long as its size
    /// says. Nothing else may be in flight.
    pub(crate) async fn cut_ahead(&self, shard: &Shard) -> IoResult<()> {
        match self {
            Self::File(file) => file.cut_ahead(shard).await,
            Self::Null(_) | Self::Nbd(_) => Ok(()),
        }
    }

    /// Reserves space, which may make it longer.
    pub(crate) async fn allocate(&self, shard: &Shard, span: Span) -> IoResult<()> {
        match self {
            Self::File(file) => file.allocate(shard, span).await,
            Self::Null(_) | Self::Nbd(_) => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Size in bytes, rounded up to whole sectors.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(file) => file.size(),
            Self::Null(null) => null.size(),
            Self::Nbd(nbd) => nbd.size(),
        }
    }

    /// Unit of offsets and lengths, a power of two.
    pub fn request_alignment(&self) -> u64 {
        match self {
            Self::File(file) => file.request_alignment(),
            Self::Null(_) => 1,
            Self::Nbd(nbd) => nbd.request_alignment(),
        }
    }

    /// Unit of addresses, a power of two.
    pub(crate) fn memory_alignment(&self) -> usize {
        match self {
            Self::File(file) => file.memory_alignment(),
            Self::Null(_) | Self::Nbd(_) => 1,
        }
    }

    /// Whether writes are possible.
    pub fn is_writable(&self) -> bool {
        match self {
            Self::File(file) => file.file().geometry().writable,
            Self::Null(_) => true,
            Self::Nbd(nbd) => nbd.is_writable(),
        }
    }

    /// Whether discards are passed on, and whether flushes are left out.
    pub(crate) fn set_policy(&self, discard: bool, no_flush: bool) {
        match self {
            Self::File(file) => file.set_policy(discard, no_flush),
            Self::Null(_) => {}
            Self::Nbd(nbd) => nbd.set_policy(discard, no_flush),
        }
    }

    /// Ends the use of whatever is not only ours. Nothing may be in flight.
    pub(crate) async fn close(&self, shard: &Shard) {
        match self {
            Self::File(_) | Self::Null(_) => {}
            Self::Nbd(nbd) => nbd.close(shard).await,
        }
    }
}
