//! What every part of an open image stands on: its file, its sizes, which of
//! its clusters are its own, and whether it can still be trusted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ringback_ring::{Buf, Errno, IoResult, Shard};

use super::geometry::Geometry;
use super::header::INCOMPATIBLE_OFFSET;
pub(crate) use super::header::{INCOMPATIBLE_CORRUPT as CORRUPT, INCOMPATIBLE_DIRTY as DIRTY};
use super::reserved::{Reserved, Structure};
use crate::child::Child;
use crate::exclusive::Exclusive;
use crate::notice::{Notice, Notify};
use crate::span::Span;
use crate::units::in_memory;

/// A number as C's `%#x` has it, which QEMU's messages do: zero has no prefix.
pub(crate) fn hex(number: u64) -> String {
    match number {
        0 => "0".into(),
        _ => format!("{number:#x}"),
    }
}

/// The file of an image, and how much of it can be relied on.
#[derive(Debug)]
pub(crate) struct Frame {
    /// The node's name, for notices.
    pub(crate) name: String,
    pub(crate) file: Child,
    pub(crate) geometry: Geometry,
    pub(crate) reserved: Reserved,
    pub(crate) version: u32,
    pub(crate) writable: bool,
    pub(crate) notify: Notify,
    /// Orders writes of the feature bits against each other and against a
    /// rewrite of the whole header. What else writes into the header holds the
    /// allocator, as a rewrite does, or runs alone.
    pub(crate) header_writes: Exclusive<()>,
    incompatible: AtomicU64,
    /// Found corrupt in a way that nothing more can be done with it.
    unusable: AtomicBool,
    /// A corruption has been reported already.
    reported: AtomicBool,
}

impl Frame {
    pub(crate) fn new(
        name: String,
        file: Child,
        geometry: Geometry,
        reserved: Reserved,
        (version, incompatible): (u32, u64),
        writable: bool,
        notify: Notify,
    ) -> Self {
        Self {
            name,
            file,
            geometry,
            reserved,
            version,
            writable,
            notify,
            header_writes: Exclusive::new(()),
            incompatible: AtomicU64::new(incompatible),
            unusable: AtomicBool::new(false),
            reported: AtomicBool::new(false),
        }
    }

    /// ENOMEDIUM once a fatal corruption was found.
    pub(crate) fn check_usable(&self) -> IoResult<()> {
        if self.unusable.load(Ordering::Relaxed) {
            Err(Errno::ENOMEDIUM)
        } else {
            Ok(())
        }
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.check_usable().is_ok()
    }

    pub(crate) fn incompatible(&self) -> u64 {
        self.incompatible.load(Ordering::Acquire)
    }

    /// Sets or clears a feature bit, first in the file and then here: nobody acts
    /// on a bit that a power cut could take back. One that is set is durable.
    pub(crate) async fn set_feature(&self, shard: &Shard, bit: u64, set: bool) -> IoResult<()> {
        let _alone = self.header_writes.lock().await;
        let old = self.incompatible();
        let new = if set { old | bit } else { old & !bit };
        if old == new {
            return Ok(());
        }
        if self.version >= 3 {
            self.write_bytes(shard, INCOMPATIBLE_OFFSET, &new.to_be_bytes())
                .await?;
            if set {
                self.file.flush(shard).await?;
            }
        }
        self.incompatible.store(new, Ordering::Release);
        Ok(())
    }

    /// Tells about a corruption. A fatal one, found on an image that is open for
    /// writing, is written into the header and ends the use of the image.
    /// Answers what the request has to answer.
    pub(crate) async fn corruption(
        &self,
        shard: &Shard,
        fatal: bool,
        message: String,
        span: Option<Span>,
    ) -> Errno {
        let fatal = fatal && self.writable;
        let first = !self.reported.swap(true, Ordering::AcqRel);
        let ends = fatal && !self.unusable.swap(true, Ordering::AcqRel);
        if first || ends {
            self.notify.send(Notice::ImageCorrupt {
                node: self.name.clone(),
                message,
                fatal,
                span,
            });
        }
        if ends {
            // If this fails as well there is nothing left to try.
            let _ = self.set_feature(shard, CORRUPT, true).await;
        }
        Errno::EIO
    }

    /// Refuses a write that would hit one of the image's own structures, other
    /// than `itself`.
    pub(crate) async fn check_overlap(
        &self,
        shard: &Shard,
        span: Span,
        itself: Option<Structure>,
    ) -> IoResult<()> {
        match self.reserved.find(span) {
            Some(hit) if Some(hit) != itself => {
                let message = format!(
                    "Preventing invalid write on metadata (overlaps with {})",
                    hit.name()
                );
                Err(self.corruption(shard, true, message, Some(span)).await)
            }
            _ => Ok(()),
        }
    }

    /// Reads a range into memory; zeroes behind the end of the file.
    pub(crate) async fn read_bytes(&self, shard: &Shard, span: Span) -> IoResult<Vec<u8>> {
        read_bytes(shard, &self.file, span).await
    }

    pub(crate) async fn write_bytes(
        &self,
        shard: &Shard,
        offset: u64,
        bytes: &[u8],
    ) -> IoResult<()> {
        write_bytes(shard, &self.file, offset, bytes).await
    }
}

/// The largest piece in which tables are read and written.
const PIECE: u64 = 1 << 20;

/// Reads a range into memory; zeroes behind the end.
pub(crate) async fn read_bytes(shard: &Shard, file: &Child, span: Span) -> IoResult<Vec<u8>> {
    let mut bytes = Vec::with_capacity(in_memory(span.len));
    for piece in span.pieces(PIECE) {
        let window = 0..in_memory(piece.len);
        let buf = shard.buffer_now(window.len());
        let (result, buf) = file.read(shard, piece, buf, window.clone()).await;
        result?;
        bytes.extend_from_slice(&buf[window]);
    }
    Ok(bytes)
}

pub(crate) async fn write_bytes(
    shard: &Shard,
    file: &Child,
    offset: u64,
    bytes: &[u8],
) -> IoResult<()> {
    let span = Span::new(offset, bytes.len() as u64);
    for piece in span.pieces(PIECE) {
        let start = in_memory(piece.offset - offset);
        let window = 0..in_memory(piece.len);
        let mut buf: Buf = shard.buffer_now(window.len());
        buf[window.clone()].copy_from_slice(&bytes[start..start + window.len()]);
        file.write(shard, piece, buf, window).await.0?;
    }
    Ok(())
}

/// Reads a table of big-endian words.
pub(crate) async fn read_words(shard: &Shard, file: &Child, span: Span) -> IoResult<Vec<u64>> {
    let bytes = read_bytes(shard, file, span).await?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|&word| u64::from_be_bytes(word)).collect())
}

/// A table as it stands in the file.
pub(crate) fn word_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
