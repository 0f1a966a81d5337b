//! Reading, and asking what is where.

use std::ops::Range;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use super::codec;
use super::entry::Stream;
use super::frame::read_bytes;
use super::image::Qcow2;
use super::lookup::Place;
use crate::child::Child;
use crate::event::Event;
use crate::extent::{Content, Extent};
use crate::span::Span;
use crate::units::in_memory;

impl Qcow2 {
    /// Reads `span` into a window of the same length. What this image does not
    /// hold comes from `backing`, or is zero.
    pub(crate) async fn read(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        if let Err(errno) = self.frame.check_usable() {
            return (Err(errno), buf);
        }
        // Before the first look at a mapping, until the last byte is read (Q2).
        let _passage = self.epochs.enter(shard.index());
        let mut rest = span;
        while !rest.is_empty() {
            let run = match self.run(shard, rest).await {
                Ok(run) => run,
                Err(errno) => return (Err(errno), buf),
            };
            let at = window.start + in_memory(rest.offset - span.offset);
            let part = Span::new(rest.offset, run.len);
            let target = at..at + in_memory(run.len);
            let result;
            (result, buf) = self
                .read_run(shard, backing, run.place, part, buf, target)
                .await;
            if result.is_err() {
                return (result, buf);
            }
            rest = Span::between(part.end(), rest.end());
        }
        (Ok(()), buf)
    }

    async fn read_run(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        place: Place,
        part: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match (place, backing) {
            (Place::Data { host }, _) => {
                self.frame.file.event(shard, Event::ReadAio).await;
                let span = Span::new(host, part.len);
                self.data().read(shard, span, buf, window).await
            }
            (Place::Unallocated, Some(backing)) => {
                self.frame.file.event(shard, Event::ReadBackingAio).await;
                backing.read(shard, part, buf, window).await
            }
            (Place::Unallocated, None) | (Place::Zero, _) => {
                buf[window].fill(0);
                (Ok(()), buf)
            }
            (Place::Compressed(stream), _) => match Box::pin(self.unpack(shard, stream)).await {
                Ok(cluster) => {
                    let start = in_memory(self.frame.geometry.in_cluster(part.offset));
                    let bytes = &cluster[start..start + window.len()];
                    buf[window].copy_from_slice(bytes);
                    (Ok(()), buf)
                }
                Err(errno) => (Err(errno), buf),
            },
        }
    }

    /// A whole cluster's bytes from its compressed form. Decoding runs on a
    /// helper: it may take milliseconds.
    async fn unpack(&self, shard: &Shard, stream: Stream) -> IoResult<Vec<u8>> {
        self.frame.file.event(shard, Event::ReadCompressed).await;
        let packed =
            read_bytes(shard, &self.frame.file, Span::new(stream.host, stream.len)).await?;
        let (compression, len) = (self.compression, in_memory(self.cluster_size()));
        shard
            .blocking(move || codec::unpack(compression, &packed, len))
            .await
            .map_err(|_| Errno::EIO)
    }

    /// What is at the start of `span` (not empty), looking through the chain.
    pub(crate) async fn extent(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
    ) -> IoResult<Extent> {
        self.frame.check_usable()?;
        let _passage = self.epochs.enter(shard.index());
        let run = self.long_run(shard, span).await?;
        match (run.place, backing) {
            (Place::Data { .. } | Place::Compressed(_), _) => {
                Ok(Extent::here(Content::Data, run.len))
            }
            (Place::Zero, _) => Ok(Extent::here(Content::Zero, run.len)),
            (Place::Unallocated, None) => Ok(Extent {
                content: Content::Zero,
                len: run.len,
                depth: 0,
            }),
            (Place::Unallocated, Some(backing)) => {
                let behind_end = span.offset >= backing.size();
                let below = backing
                    .extent(shard, Span::new(span.offset, run.len))
                    .await?;
                Ok(Extent {
                    depth: match below.depth {
                        // Its end is what makes it read as zeroes.
                        _ if behind_end => 2,
                        0 => 0,
                        depth => depth + 1,
                    },
                    ..below
                })
            }
        }
    }

    /// A run that goes on from slice to slice; only for answers about content.
    async fn long_run(&self, shard: &Shard, span: Span) -> IoResult<super::lookup::Run> {
        let mut run = self.run(shard, span).await?;
        while run.len < span.len {
            let rest = Span::between(span.offset + run.len, span.end());
            let next = self.run(shard, rest).await?;
            let goes_on = match (run.place, next.place) {
                (Place::Data { host }, Place::Data { host: next }) => next == host + run.len,
                (Place::Unallocated, Place::Unallocated) | (Place::Zero, Place::Zero) => true,
                _ => false,
            };
            if !goes_on {
                break;
            }
            run.len += next.len;
        }
        Ok(run)
    }

    /// Whether a guest range surely reads as zeroes.
    pub(super) async fn reads_as_zeroes(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
    ) -> IoResult<bool> {
        let mut rest = span;
        while !rest.is_empty() {
            let extent = self.extent(shard, backing, rest).await?;
            if extent.content != Content::Zero {
                return Ok(false);
            }
            rest = Span::between(rest.offset + extent.len.min(rest.len), rest.end());
        }
        Ok(true)
    }
}
