//! One protocol seen as a disk of bytes: any offset, any length.
//!
//! The device's alignment ends here. A request that is aligned goes straight
//! down; any other is cut into a head, an aligned body and a tail, and head and
//! tail are read, changed and written back under the rules of
//! `in_flight`.

use std::ops::Range;
use std::sync::Arc;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use crate::extent::Extent;
use crate::in_flight::InFlight;
use crate::protocol::Protocol;
use crate::request::{Preallocation, ZeroFlags};
use crate::resize::ResizeError;
use crate::span::Span;
use crate::traffic::Traffic;
use crate::units::in_memory;

/// Zeroes are written from one buffer of this size where the protocol has no
/// better way.
const ZERO_BUFFER: u64 = 1 << 20;

/// A protocol without its alignment.
#[derive(Debug)]
pub struct Storage {
    protocol: Protocol,
    in_flight: InFlight,
    traffic: Arc<Traffic>,
    unit: u64,
    memory_unit: usize,
}

impl Storage {
    /// A storage that `shards` shards will use.
    pub fn new(protocol: Protocol, shards: usize) -> Self {
        let (unit, memory_unit) = (protocol.request_alignment(), protocol.memory_alignment());
        Self {
            protocol,
            in_flight: InFlight::new(shards),
            traffic: Arc::new(Traffic::new(shards)),
            unit,
            memory_unit,
        }
    }

    /// A storage that goes on with what another one has counted.
    pub(crate) fn continuing(protocol: Protocol, shards: usize, other: &Self) -> Self {
        Self {
            traffic: Arc::clone(&other.traffic),
            ..Self::new(protocol, shards)
        }
    }

    /// What is below.
    pub fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    /// What has been changed through it.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.protocol.size()
    }

    /// Whether a write may end behind the end.
    pub(crate) fn can_grow(&self) -> bool {
        self.protocol.can_grow()
    }

    /// Whether the device takes this transfer as it is.
    fn is_aligned(&self, span: Span, window: &Range<usize>) -> bool {
        span.is_aligned(self.unit) && window.start.is_multiple_of(self.memory_unit)
    }

    /// Reads `span` into a window of the same length.
    pub(crate) async fn read(
        &self,
        shard: &Shard,
        span: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        if self.is_aligned(span, &window) {
            return self.protocol.read(shard, span.offset, buf, window).await;
        }
        let wide = span.widen(self.unit);
        let bounce = shard.buffer_now(in_memory(wide.len));
        let whole = 0..in_memory(wide.len);
        let widened = self.protocol.read(shard, wide.offset, bounce, whole);
        let (result, bounce) = Box::pin(widened).await;
        if result.is_ok() {
            let start = in_memory(span.offset - wide.offset);
            buf[window.clone()].copy_from_slice(&bounce[start..start + window.len()]);
        }
        (result, buf)
    }

    /// Writes a window to `span`, of the same length.
    pub(crate) async fn write(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.traffic.before_write(span.end());
        let written = self.write_any(shard, span, buf, window).await;
        self.traffic.after_write(shard, span.end());
        written
    }

    async fn write_any(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        if self.unit == 1 {
            return self.protocol.write(shard, span.offset, buf, window).await;
        }
        if self.is_aligned(span, &window) {
            let _turn = self.in_flight.enter_shared(shard, span).await;
            return self.protocol.write(shard, span.offset, buf, window).await;
        }
        let widened = self.write_widened(shard, span, |bytes| bytes.copy_from_slice(&buf[window]));
        (Box::pin(widened).await, buf)
    }

    /// Read, modify, write on whole units, alone on them.
    async fn write_widened(
        &self,
        shard: &Shard,
        span: Span,
        modify: impl FnOnce(&mut [u8]),
    ) -> IoResult<()> {
        let wide = span.widen(self.unit);
        let whole = 0..in_memory(wide.len);
        let mut bounce = shard.buffer_now(whole.len());
        let _turn = self.in_flight.enter_exclusive(shard, wide).await;
        // Only the first and the last unit keep old bytes. Between them there
        // is nothing to read.
        let edge = in_memory(self.unit);
        let result;
        if wide.len <= 2 * self.unit {
            (result, bounce) = self
                .protocol
                .read(shard, wide.offset, bounce, whole.clone())
                .await;
            result?;
        } else {
            let head;
            (head, bounce) = self
                .protocol
                .read(shard, wide.offset, bounce, 0..edge)
                .await;
            head?;
            let tail = whole.end - edge..whole.end;
            (result, bounce) = self
                .protocol
                .read(shard, wide.end() - self.unit, bounce, tail)
                .await;
            result?;
        }
        let start = in_memory(span.offset - wide.offset);
        modify(&mut bounce[start..start + in_memory(span.len)]);
        self.protocol
            .write(shard, wide.offset, bounce, whole)
            .await
            .0
    }

    /// Makes `span` read as zeroes.
    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        self.traffic.before_write(span.end());
        let result = self.zero_any(shard, span, flags).await;
        self.traffic.after_write(shard, span.end());
        result
    }

    async fn zero_any(&self, shard: &Shard, span: Span, flags: ZeroFlags) -> IoResult<()> {
        for part in head_body_tail(span, self.unit) {
            if part.is_aligned(self.unit) {
                self.zero_aligned(shard, part, flags).await?;
            } else if flags.no_fallback {
                return Err(Errno::EOPNOTSUPP);
            } else {
                self.write_widened(shard, part, |bytes| bytes.fill(0))
                    .await?;
            }
        }
        Ok(())
    }

    async fn zero_aligned(&self, shard: &Shard, span: Span, flags: ZeroFlags) -> IoResult<()> {
        let _turn = match self.unit {
            1 => None,
            _ => Some(self.in_flight.enter_shared(shard, span).await),
        };
        if self
            .protocol
            .write_zeroes(shard, span.offset, span.len, flags)
            .await?
        {
            return Ok(());
        }
        if flags.no_fallback {
            return Err(Errno::EOPNOTSUPP);
        }
        self.write_zero_bytes(shard, span).await
    }

    async fn write_zero_bytes(&self, shard: &Shard, span: Span) -> IoResult<()> {
        let mut buf = shard.buffer_now(in_memory(span.len.min(ZERO_BUFFER)));
        buf.fill(0);
        for piece in span.pieces(ZERO_BUFFER) {
            let window = 0..in_memory(piece.len);
            let result;
            (result, buf) = self.protocol.write(shard, piece.offset, buf, window).await;
            result?;
        }
        Ok(())
    }

    /// A hint; only whole units are passed on.
    pub(crate) async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        let inner = span.shrink(self.unit);
        if inner.is_empty() {
            return Ok(());
        }
        let _turn = match self.unit {
            1 => None,
            _ => Some(self.in_flight.enter_shared(shard, inner).await),
        };
        let result = self.protocol.discard(shard, inner.offset, inner.len).await;
        if self.protocol.discards() {
            self.traffic.after_discard(shard, inner.len, result.is_ok());
        }
        result
    }

    /// A new length in bytes; what is added reads as zeroes.
    pub(crate) async fn truncate(
        &self,
        shard: &Shard,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), ResizeError> {
        let old = self.size();
        match &self.protocol {
            Protocol::Null(_) => return Err(ResizeError::Unsupported),
            Protocol::Nbd(_) if size > old => return Err(ResizeError::Export),
            Protocol::Nbd(_) | Protocol::File(_) => {}
        }
        if !self.can_grow() && size > old {
            return Err(ResizeError::Device);
        }
        if size < old && preallocation != Preallocation::Off {
            return Err(ResizeError::PreallocatedShrink);
        }
        let added = Span::between(old.min(size), size);
        match preallocation {
            Preallocation::Metadata => return Err(ResizeError::Mode(preallocation)),
            Preallocation::Falloc if !added.is_empty() => {
                if let Err(errno) = self.protocol.allocate(shard, added).await {
                    // What was reserved already is given back.
                    let _ = self.protocol.truncate(shard, old).await;
                    return Err(ResizeError::Preallocate(errno));
                }
            }
            _ => {}
        }
        let truncated = self.protocol.truncate(shard, size).await;
        truncated.map_err(ResizeError::File)?;
        if preallocation == Preallocation::Full
            && let Err(errno) = self.fill_with_zeroes(shard, added).await
        {
            let _ = self.protocol.truncate(shard, old).await;
            return Err(ResizeError::Fill(errno));
        }
        Ok(())
    }

    /// See [`Protocol::grow_ahead`].
    pub(crate) async fn grow_ahead(&self, shard: &Shard, end: u64) {
        self.protocol.grow_ahead(shard, end).await;
    }

    /// See [`Protocol::cut_ahead`].
    pub(crate) async fn cut_ahead(&self, shard: &Shard) -> IoResult<()> {
        self.protocol.cut_ahead(shard).await
    }

    async fn fill_with_zeroes(&self, shard: &Shard, span: Span) -> IoResult<()> {
        for part in head_body_tail(span, self.unit) {
            if part.is_aligned(self.unit) {
                self.write_zero_bytes(shard, part).await?;
            } else {
                self.write_widened(shard, part, |bytes| bytes.fill(0))
                    .await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        self.protocol.flush(shard).await
    }

    pub(crate) async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        self.protocol.extent(shard, span.offset, span.len).await
    }
}

/// Up to three parts, in order: what precedes the first whole unit, the whole
/// units, what follows the last. A span inside one unit is one part.
fn head_body_tail(span: Span, unit: u64) -> impl Iterator<Item = Span> {
    let body = span.shrink(unit);
    let parts = if body.is_empty() {
        [span, Span::default(), Span::default()]
    } else {
        [
            Span::between(span.offset, body.offset),
            body,
            Span::between(body.end(), span.end()),
        ]
    };
    parts.into_iter().filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(offset: u64, len: u64) -> Vec<(u64, u64)> {
        head_body_tail(Span::new(offset, len), 512)
            .map(|part| (part.offset, part.len))
            .collect()
    }

    #[test]
    fn requests_are_cut_at_whole_units() {
        assert_eq!(parts(0, 1024), [(0, 1024)]);
        assert_eq!(parts(100, 10), [(100, 10)]);
        assert_eq!(parts(100, 1000), [(100, 412), (512, 512), (1024, 76)]);
        assert_eq!(parts(512, 600), [(512, 512), (1024, 88)]);
        assert_eq!(parts(500, 20), [(500, 20)]);
        assert_eq!(parts(7, 0), []);
    }
}
