//! Formats: where a guest's bytes live in the storage below.
//!
//! A format does not move data. It says where a range lives and makes room for
//! a write; [`Image`] moves the bytes, once, for all formats.

mod raw;

use std::ops::Range;
use std::sync::Arc;

use ringback_ring::{Buf, IoResult, Shard};

pub use raw::{Raw, RawError};

use crate::extent::Extent;
use crate::span::Span;
use crate::storage::Storage;

/// The formats that ringback has.
#[derive(Debug)]
pub enum Format {
    /// The storage itself, or a window of it.
    Raw(Raw),
}

/// A format and the storage it lives in: what a path ends with.
#[derive(Debug)]
pub struct Image {
    format: Format,
    storage: Arc<Storage>,
}

impl Image {
    /// Puts a format on a storage.
    pub fn new(format: Format, storage: Arc<Storage>) -> Self {
        Self { format, storage }
    }

    /// The storage below.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Size in bytes, as a guest sees it.
    pub fn size(&self) -> u64 {
        match &self.format {
            Format::Raw(raw) => raw.size(),
        }
    }

    /// Where a guest's range lives. For raw, always in one piece.
    fn place(&self, span: Span) -> Span {
        match &self.format {
            Format::Raw(raw) => raw.place(span),
        }
    }

    pub(crate) async fn read(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.storage
            .read(shard, self.place(span), buf, window)
            .await
    }

    pub(crate) async fn write(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.storage
            .write(shard, self.place(span), buf, window)
            .await
    }

    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        span: Span,
        may_unmap: bool,
    ) -> IoResult<()> {
        self.storage
            .write_zeroes(shard, self.place(span), may_unmap)
            .await
    }

    pub(crate) async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        self.storage.discard(shard, self.place(span)).await
    }

    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        self.storage.flush(shard).await
    }

    pub(crate) async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        self.storage.extent(shard, self.place(span)).await
    }
}
