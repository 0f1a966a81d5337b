//! Formats: where a guest's bytes live in the node below.
//!
//! A format does not move data. It says where a range lives and makes room for
//! a write; [`Image`] moves the bytes.

mod raw;

use std::ops::Range;

use ringback_ring::{Buf, Errno, IoResult, Shard};

pub use raw::{Raw, RawError};

use crate::child::Child;
use crate::event::Event;
use crate::extent::Extent;
use crate::request::{Preallocation, ZeroFlags};
use crate::span::Span;

/// The formats that ringback has.
#[derive(Debug)]
pub enum Format {
    /// The node below itself, or a window of it.
    Raw(Raw),
}

/// A format and the node it lives in: what a path ends with.
#[derive(Debug)]
pub struct Image {
    format: Format,
    file: Child,
}

impl Image {
    /// Puts a format on a node.
    pub fn new(format: Format, file: Child) -> Self {
        Self { format, file }
    }

    /// The node below.
    pub fn file(&self) -> &Child {
        &self.file
    }

    /// Size in bytes, as a guest sees it.
    pub fn size(&self) -> u64 {
        match &self.format {
            Format::Raw(raw) => raw.size(self.file.size()),
        }
    }

    /// Unit in which it is told who holds what, in bytes.
    pub(crate) fn cluster_size(&self) -> u64 {
        match &self.format {
            Format::Raw(_) => self.file.cluster_size(),
        }
    }

    /// Whether a write behind the end makes it longer.
    pub(crate) fn can_grow(&self) -> bool {
        match &self.format {
            Format::Raw(raw) => raw.is_open_ended() && self.file.can_grow(),
        }
    }

    pub(crate) async fn read(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match &self.format {
            Format::Raw(raw) => {
                self.file.event(shard, Event::ReadAio).await;
                self.file.read(shard, raw.place(span), buf, window).await
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
        match &self.format {
            Format::Raw(raw) => {
                self.file.event(shard, Event::WriteAio).await;
                self.file.write(shard, raw.place(span), buf, window).await
            }
        }
    }

    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        match &self.format {
            Format::Raw(raw) => self.file.write_zeroes(shard, raw.place(span), flags).await,
        }
    }

    pub(crate) async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        match &self.format {
            Format::Raw(raw) => self.file.discard(shard, raw.place(span)).await,
        }
    }

    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        match &self.format {
            Format::Raw(_) => {
                self.file.event(shard, Event::FlushToOs).await;
                self.file.event(shard, Event::FlushToDisk).await;
                self.file.flush(shard).await
            }
        }
    }

    pub(crate) async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        match &self.format {
            Format::Raw(raw) => self.file.extent(shard, raw.place(span)).await,
        }
    }

    pub(crate) async fn truncate(
        &self,
        shard: &Shard,
        size: u64,
        preallocation: Preallocation,
    ) -> IoResult<()> {
        match &self.format {
            Format::Raw(raw) if raw.is_open_ended() => {
                let size = size.checked_add(raw.offset()).ok_or(Errno::EFBIG)?;
                self.file.truncate(shard, size, preallocation).await
            }
            Format::Raw(_) => Err(Errno::EOPNOTSUPP),
        }
    }
}
