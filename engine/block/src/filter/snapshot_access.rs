//! snapshot-access: the disk as it was when a copy-before-write filter was put
//! above it.
//!
//! # Order of a read
//!
//! Register the range; the register fences; then look at *access* and at the
//! copy states. A run whose old data is still on the source is read there while
//! the registration, shrunk to that run, holds guest changes of those blocks
//! back. A run that a guest has changed, or is about to, is read from memory or
//! from the target. After the last byte *broken* and *access* are looked at once more:
//! bytes read while the snapshot broke, or while a client discarded them, are
//! not handed out.
//!
//! A snapshot read never waits for a guest's change or for a save (C3).

use std::ops::Range;
use std::sync::Arc;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use crate::extent::{Content, Extent};
use crate::filter::copy_before_write::cells::Side;
use crate::filter::copy_before_write::{CopyBeforeWrite, EXTENT_MAX};
use crate::metrics::{Class, Metrics};
use crate::span::Span;
use crate::units::in_memory;

/// A discard goes in slices of this many clusters.
const SLICE_CLUSTERS: u64 = 1024;

/// The point-in-time view of a filter.
#[derive(Debug)]
pub struct SnapshotAccess {
    filter: Arc<CopyBeforeWrite>,
}

/// Where the start of a range has to be read, and how far that holds.
struct Run {
    side: Side,
    span: Span,
}

impl SnapshotAccess {
    /// The view of this filter.
    pub fn new(filter: Arc<CopyBeforeWrite>) -> Self {
        Self { filter }
    }

    /// Whose view it is.
    pub(crate) fn filter(&self) -> &CopyBeforeWrite {
        &self.filter
    }

    pub(crate) fn size(&self) -> u64 {
        self.filter.size()
    }

    /// EACCES unless every byte may be read.
    fn check(&self, span: Span) -> IoResult<()> {
        if self.filter.broken().is_some() {
            return Err(Errno::EACCES);
        }
        match self.filter.access().next_zero(span.offset, span.end()) {
            Some(_) => Err(Errno::EACCES),
            None => Ok(()),
        }
    }

    fn run(&self, span: Span) -> Run {
        let blocks = self.filter.blocks(span);
        let run = self.filter.cells().next_run(blocks.start, blocks.end);
        let bytes = self.filter.bytes(blocks.start, run.end);
        Run {
            side: run.side,
            span: bytes.clip(&span),
        }
    }

    /// Reads the view; EACCES where it may not be read, or is lost.
    pub(crate) async fn read(
        &self,
        shard: &Shard,
        span: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let start = shard.now_ns();
        let mut result = self.check(span);
        let mut rest = span;
        while result.is_ok() && !rest.is_empty() {
            let at = window.start + in_memory(rest.offset - span.offset);
            let done;
            (result, done, buf) = self.read_run(shard, rest, buf, at).await;
            rest = Span::between(rest.offset + done, rest.end());
        }
        // After the last byte: see the module's Order.
        let result = result.and_then(|()| self.check(span));
        shard
            .local::<Metrics>()
            .record(Class::SnapshotRead, shard.now_ns() - start);
        (result, buf)
    }

    /// Reads the first run of `rest` to `at` in the buffer; answers its length.
    async fn read_run(
        &self,
        shard: &Shard,
        rest: Span,
        buf: Buf,
        at: usize,
    ) -> (IoResult<()>, u64, Buf) {
        let reading = self.filter.enter_reader(shard, rest).await;
        // The register has fenced: now the looks.
        if let Err(errno) = self.check(rest) {
            return (Err(errno), 0, buf);
        }
        let run = self.run(rest);
        let window = at..at + in_memory(run.span.len);
        let (result, buf) = match run.side {
            Side::Source => {
                reading.shrink(run.span);
                self.filter
                    .source()
                    .read(shard, run.span.offset, buf, window)
                    .await
            }
            Side::Copy => {
                drop(reading);
                self.filter.read_saved(shard, run.span, buf, window).await
            }
            Side::Gone => (Err(Errno::EACCES), buf),
        };
        (result, run.span.len, buf)
    }

    /// What is at the start of `span`. What comes from the target is data.
    pub(crate) async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        let span = Span::new(span.offset, span.len.min(EXTENT_MAX));
        self.check(span)?;
        let reading = self.filter.enter_reader(shard, span).await;
        let run = self.run(span);
        let extent = match run.side {
            Side::Source => {
                reading.shrink(run.span);
                self.filter.source().extent(shard, run.span).await?
            }
            Side::Copy => Extent::here(Content::Data, run.span.len),
            Side::Gone => return Err(Errno::EACCES),
        };
        drop(reading);
        self.check(span)?;
        Ok(extent)
    }

    /// A client will not read these bytes any more. Only whole clusters count.
    pub(crate) async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        let cluster_size = self.filter.cluster_size();
        let end = if span.end() == self.size() {
            span.end().next_multiple_of(cluster_size)
        } else {
            span.end()
        };
        let inner = Span::between(span.offset, end.max(span.offset)).shrink(cluster_size);
        for slice in inner.pieces(SLICE_CLUSTERS * cluster_size) {
            let slice = slice.clip(&Span::new(0, self.size()));
            self.filter.discard(shard, slice).await?;
            shard.yield_now().await;
        }
        Ok(())
    }
}
