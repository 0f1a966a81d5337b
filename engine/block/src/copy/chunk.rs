//! One chunk of a copy: read, look for zeroes, write.
//!
//! Old data is read into the very buffer that goes to the target.

use std::ops::Range;
use std::sync::Arc;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use crate::metrics::{Class, Metrics};
use crate::path::Path;
use crate::request::ZeroFlags;
use crate::span::Span;
use crate::units::{in_memory, is_zero};

/// The most that is copied with one buffer; larger chunks go in pieces.
pub const BYTES_MAX: u64 = 1 << 20;

/// Claimed blocks: `first..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) first: u64,
    pub(crate) end: u64,
}

/// Which side of a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Reading.
    Source,
    /// Writing.
    Target,
}

/// A copy that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyError {
    /// Where.
    pub side: Side,
    /// Why.
    pub errno: Errno,
}

/// What a copy moved, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Read and written.
    pub data: u64,
    /// Written as zeroes.
    pub zero: u64,
}

/// From where to where bytes are copied, and how.
#[derive(Clone)]
pub(crate) struct Copier {
    pub(crate) source: Arc<Path>,
    pub(crate) target: Arc<Path>,
    /// What is written is stored compressed.
    pub(crate) compress: bool,
    /// The most that is copied with one buffer; a compressed cluster is written
    /// in one piece.
    pub(crate) piece_max: u64,
}

impl Copier {
    /// The buffer that a chunk of these bytes needs.
    pub(crate) fn buffer_len(&self, bytes: Span) -> usize {
        in_memory(bytes.len.min(self.piece_max))
    }

    /// Copies `bytes` from one disk to the same place of the other, through a
    /// buffer of [`Self::buffer_len`] bytes or more.
    pub(crate) async fn copy(
        &self,
        shard: &Shard,
        bytes: Span,
        mut buf: Buf,
    ) -> Result<Copied, CopyError> {
        let mut copied = Copied::default();
        for piece in bytes.pieces(self.piece_max) {
            let window = 0..in_memory(piece.len);
            let read;
            (read, buf) = self.read(shard, piece, buf).await;
            read.map_err(|errno| CopyError {
                side: Side::Source,
                errno,
            })?;
            if is_zero(&buf[window.clone()]) {
                copied.zero += self.copy_zeroes(shard, piece).await?.zero;
            } else {
                let written;
                (written, buf) = self.write(shard, piece, buf, window).await;
                written.map_err(|errno| CopyError {
                    side: Side::Target,
                    errno,
                })?;
                copied.data += piece.len;
            }
        }
        Ok(copied)
    }

    /// Reads a piece of at most [`Self::buffer_len`] bytes.
    pub(crate) async fn read(&self, shard: &Shard, piece: Span, buf: Buf) -> (IoResult<()>, Buf) {
        let start = shard.now_ns();
        let window = 0..in_memory(piece.len);
        let (result, buf) = self.source.read(shard, piece.offset, buf, window).await;
        let metrics = shard.local::<Metrics>();
        metrics.record(Class::CopyRead, shard.now_ns() - start);
        (result, buf)
    }

    /// Writes a piece, as it is to be stored.
    pub(crate) async fn write(
        &self,
        shard: &Shard,
        piece: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let start = shard.now_ns();
        let (result, buf) = if self.compress {
            let bytes = &buf[window];
            let written = self.target.write_compressed(shard, piece.offset, bytes);
            (written.await, buf)
        } else {
            self.target.write(shard, piece.offset, buf, window).await
        };
        let metrics = shard.local::<Metrics>();
        metrics.record(Class::CopyWrite, shard.now_ns() - start);
        (result, buf)
    }

    /// Makes `bytes` of the target read as zeroes, as they are known to do on
    /// the source.
    pub(crate) async fn copy_zeroes(
        &self,
        shard: &Shard,
        bytes: Span,
    ) -> Result<Copied, CopyError> {
        let start = shard.now_ns();
        let flags = ZeroFlags::UNMAP;
        let written = self.target.write_zeroes(shard, bytes, flags).await;
        let metrics = shard.local::<Metrics>();
        metrics.record(Class::CopyWrite, shard.now_ns() - start);
        written.map_err(|errno| CopyError {
            side: Side::Target,
            errno,
        })?;
        Ok(Copied {
            data: 0,
            zero: bytes.len,
        })
    }
}
