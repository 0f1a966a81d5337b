//! The data path of a disk: what one request goes through, top to bottom.
//!
//! A path is made by the graph when something attaches to a node, never changes
//! afterwards, and is replaced as a whole while nothing is in flight. It is a
//! list of layers, the top node first, above a base that holds the bytes. I/O
//! never looks at the graph.
//!
//! # Order of a write
//!
//! Down through the layers, each of which may delay or veto; the bytes move;
//! up again, each layer marks its dirty bitmaps. Only then does the caller
//! learn of it (B1), also when the write failed: part of it may have reached
//! the disk.

use std::ops::Range;
use std::sync::Arc;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use crate::bitmap::DirtyBitmap;
use crate::extent::Extent;
use crate::filter::copy_before_write::CopyBeforeWrite;
use crate::filter::snapshot_access::SnapshotAccess;
use crate::format::Image;
use crate::planted::{self, Fault};
use crate::span::Span;

/// One node's part of a path: what it does to changes, and which bitmaps record
/// them.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// Copies old data away before it is overwritten.
    pub copy_before_write: Option<Arc<CopyBeforeWrite>>,
    /// Bitmaps that record now.
    pub recorders: Vec<Arc<DirtyBitmap>>,
    /// Where the path's first byte lies on this node.
    pub offset: u64,
}

/// What holds the bytes.
#[derive(Clone, Debug)]
pub enum Base {
    /// A format on a storage.
    Image(Arc<Image>),
    /// The point-in-time view of a copy-before-write filter.
    Snapshot(Arc<SnapshotAccess>),
}

/// An immutable way from the top of a disk to its bytes.
#[derive(Clone, Debug)]
pub struct Path {
    layers: Arc<[Layer]>,
    base: Base,
}

impl Path {
    /// Layers from the top down, above a base.
    pub fn new(layers: Vec<Layer>, base: Base) -> Self {
        Self {
            layers: layers.into(),
            base,
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match &self.base {
            Base::Image(image) => image.size(),
            Base::Snapshot(snapshot) => snapshot.size(),
        }
    }

    fn check(&self, span: Span) -> IoResult<()> {
        let end = span.offset.checked_add(span.len).ok_or(Errno::EIO)?;
        if end > self.size() {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    }

    /// Reads `window.len()` bytes from `offset` into the window. A range behind
    /// the end is EIO.
    pub async fn read(
        &self,
        shard: &Shard,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let span = Span {
            offset,
            len: window.len() as u64,
        };
        if let Err(errno) = self.check(span) {
            return (Err(errno), buf);
        }
        if span.is_empty() {
            return (Ok(()), buf);
        }
        match &self.base {
            Base::Image(image) => image.read(shard, span, buf, window).await,
            // Boxed: a snapshot reads through paths of its own.
            Base::Snapshot(snapshot) => Box::pin(snapshot.read(shard, span, buf, window)).await,
        }
    }

    /// Writes the window's bytes to `offset`. A range behind the end is EIO.
    pub async fn write(
        &self,
        shard: &Shard,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let span = Span {
            offset,
            len: window.len() as u64,
        };
        if let Err(errno) = self.before_change(shard, span).await {
            return (Err(errno), buf);
        }
        if span.is_empty() {
            return (Ok(()), buf);
        }
        let (result, buf) = match &self.base {
            Base::Image(image) => image.write(shard, span, buf, window).await,
            Base::Snapshot(_) => (Err(Errno::EOPNOTSUPP), buf),
        };
        self.after_change(shard, span);
        (result, buf)
    }

    /// Makes a range read as zeroes; with `may_unmap` the space may be given
    /// back.
    pub async fn write_zeroes(&self, shard: &Shard, span: Span, may_unmap: bool) -> IoResult<()> {
        self.before_change(shard, span).await?;
        let result = match &self.base {
            Base::Image(image) => image.write_zeroes(shard, span, may_unmap).await,
            Base::Snapshot(_) => Err(Errno::EOPNOTSUPP),
        };
        self.after_change(shard, span);
        result
    }

    /// A hint that the range's content is no longer needed.
    pub async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        self.before_change(shard, span).await?;
        let result = match &self.base {
            Base::Image(image) => image.discard(shard, span).await,
            Base::Snapshot(snapshot) => Box::pin(snapshot.discard(shard, span)).await,
        };
        self.after_change(shard, span);
        result
    }

    /// Makes every acknowledged write durable.
    pub async fn flush(&self, shard: &Shard) -> IoResult<()> {
        match &self.base {
            Base::Image(image) => image.flush(shard).await,
            Base::Snapshot(_) => Ok(()),
        }
    }

    /// What is at the start of `span` (not empty), and how far that holds.
    pub async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        self.check(span)?;
        match &self.base {
            Base::Image(image) => image.extent(shard, span).await,
            Base::Snapshot(snapshot) => Box::pin(snapshot.extent(shard, span)).await,
        }
    }

    async fn before_change(&self, shard: &Shard, span: Span) -> IoResult<()> {
        self.check(span)?;
        for layer in self.layers.iter() {
            if let Some(filter) = &layer.copy_before_write {
                filter.before_change(shard, span).await?;
            }
        }
        Ok(())
    }

    fn after_change(&self, shard: &Shard, span: Span) {
        if planted::is(Fault::MarkAfterAcknowledgement) {
            let (path, late) = (self.clone(), shard.clone());
            shard.spawn(async move {
                late.sleep_ns(50_000).await;
                path.mark(&late, span);
            });
            return;
        }
        self.mark(shard, span);
    }

    fn mark(&self, shard: &Shard, span: Span) {
        for layer in self.layers.iter() {
            for bitmap in &layer.recorders {
                bitmap.mark(shard.index(), layer.offset + span.offset, span.len);
            }
        }
    }
}
