//! `file` and `host_device`: regular files and block devices.
//!
//! # Failed flushes
//!
//! After a failed flush of a buffered file the kernel has dropped the pages that
//! it could not write; a later flush that succeeds would prove nothing. So the
//! error is remembered and every later flush fails with it. Direct writes are
//! on the device already, and a flush can be tried again.
//!
//! # What is not supported
//!
//! A file system that does not know one of the fallocate modes is not asked
//! again.
//!
//! # Two lengths
//!
//! A format that will write behind the end has the file made longer before
//! (`ahead`). The size of the disk is what was written, not what the file got.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use ringback_ring::file::Kind;
use ringback_ring::{Buf, Errno, File, IoResult, Shard};

use super::ahead::Ahead;
use crate::extent::{Content, Extent};
use crate::planted::{self, Fault};
use crate::span::Span;
use crate::units::SECTOR;

/// How often the kernel may say "try again" before it is taken as an error.
const AGAIN_MAX: u32 = 1000;

/// The largest single transfer; larger ones are cut. (io_uring counts bytes in
/// 31 bits.)
const TRANSFER_MAX: usize = 1 << 30;

/// One open file or block device as a disk.
#[derive(Debug)]
pub struct FileProtocol {
    file: File,
    /// Bytes of the disk now: writes behind its end make it grow.
    end: AtomicU64,
    /// Bytes of the file, which may have become longer before that.
    ahead: Ahead,
    /// Discards are passed on (`discard=unmap`) or ignored.
    discard: AtomicBool,
    /// Flushes are answered and forgotten (`cache.no-flush`).
    no_flush: AtomicBool,
    /// Writes since the last flush; a flush without any is free.
    dirty: AtomicBool,
    /// Flushes under way.
    syncs: AtomicU32,
    /// Errno of a failed flush of a buffered file, or 0.
    flush_failed: AtomicI32,
    cannot_zero: AtomicBool,
    cannot_punch: AtomicBool,
    cannot_discard: AtomicBool,
    cannot_allocate: AtomicBool,
}

fn is_unsupported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENODEV | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENOTTY
    )
}

impl FileProtocol {
    /// A disk of the file's size, rounded up to whole sectors.
    pub fn new(file: File, discard: bool) -> Self {
        let size = file.geometry().size;
        Self {
            ahead: Ahead::new(size, file.geometry().kind == Kind::Regular),
            end: AtomicU64::new(size),
            file,
            discard: AtomicBool::new(discard),
            no_flush: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            syncs: AtomicU32::new(0),
            flush_failed: AtomicI32::new(0),
            cannot_zero: AtomicBool::new(false),
            cannot_punch: AtomicBool::new(false),
            cannot_discard: AtomicBool::new(false),
            cannot_allocate: AtomicBool::new(false),
        }
    }

    /// Whether discards are passed on, and whether flushes are left out.
    pub(crate) fn set_policy(&self, discard: bool, no_flush: bool) {
        self.discard.store(discard, Ordering::Relaxed);
        self.no_flush.store(no_flush, Ordering::Relaxed);
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    #[cfg(test)]
    pub(super) fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    pub(crate) fn size(&self) -> u64 {
        self.end.load(Ordering::Acquire).next_multiple_of(SECTOR)
    }

    pub(crate) fn can_grow(&self) -> bool {
        self.file.geometry().kind == Kind::Regular
    }

    /// Loads first, as [`Self::set_dirty`] does.
    fn reach(&self, end: u64) {
        if self.end.load(Ordering::Relaxed) < end {
            self.end.fetch_max(end, Ordering::AcqRel);
            self.ahead.reach(end);
        }
    }

    /// A new length; a device keeps its own, and takes any up to it.
    pub(crate) async fn truncate(&self, shard: &Shard, size: u64) -> IoResult<()> {
        if !self.can_grow() {
            return if size <= self.file.geometry().size {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            };
        }
        self.set_dirty();
        let is_long_already =
            self.end.load(Ordering::Acquire) < size && size <= self.ahead.length();
        if !is_long_already {
            self.file.truncate(shard, size).await?;
            self.ahead.set(size);
        }
        self.end.store(size, Ordering::Release);
        Ok(())
    }

    /// See [`super::Protocol::grow_ahead`].
    pub(crate) async fn grow_ahead(&self, shard: &Shard, end: u64) {
        self.ahead.grow(shard, &self.file, end).await;
    }

    /// See [`super::Protocol::cut_ahead`].
    pub(crate) async fn cut_ahead(&self, shard: &Shard) -> IoResult<()> {
        let end = self.end.load(Ordering::Acquire);
        if self.ahead.length() <= end {
            return Ok(());
        }
        self.set_dirty();
        self.ahead.cut(shard, &self.file, end).await
    }

    /// Reserves space in a regular file, which may make it longer.
    pub(crate) async fn allocate(&self, shard: &Shard, span: Span) -> IoResult<()> {
        self.set_dirty();
        let _beyond = self.ahead.enter(span.end()).await;
        again(shard, async || {
            self.file.allocate(shard, span.offset, span.len).await
        })
        .await?;
        self.reach(span.end());
        Ok(())
    }

    /// Whether discards reach the file.
    pub(crate) fn discards(&self) -> bool {
        self.discard.load(Ordering::Relaxed)
    }

    pub(crate) fn request_alignment(&self) -> u64 {
        self.file.geometry().request_alignment.into()
    }

    pub(crate) fn memory_alignment(&self) -> usize {
        self.file.geometry().memory_alignment as usize
    }

    pub(crate) async fn read(
        &self,
        shard: &Shard,
        offset: u64,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let mut transfer = Transfer::new(self, offset, window);
        while let Some((at, piece)) = transfer.next() {
            let result;
            (result, buf) = self.file.read(shard, buf, piece.clone(), at).await;
            if let Ok(count) = result
                && (count == 0 || !count.is_multiple_of(transfer.unit))
            {
                // Only the end of the file cuts a unit. The rest reads as
                // zeroes.
                buf[piece.start + count..transfer.window.end].fill(0);
                return (Ok(()), buf);
            }
            if let Err(errno) = transfer.advance(shard, result).await {
                return (Err(errno), buf);
            }
        }
        (Ok(()), buf)
    }

    pub(crate) async fn write(
        &self,
        shard: &Shard,
        offset: u64,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let end = offset + window.len() as u64;
        let _beyond = self.ahead.enter(end).await;
        let mut transfer = Transfer::new(self, offset, window);
        while let Some((at, piece)) = transfer.next() {
            let result;
            (result, buf) = self.file.write(shard, buf, piece, at).await;
            if let Err(errno) = transfer.advance(shard, result).await {
                return (Err(errno), buf);
            }
        }
        self.set_dirty();
        self.reach(end);
        (Ok(()), buf)
    }

    /// Loads first: writes from several shards do not fight for the line.
    fn set_dirty(&self) {
        if !self.dirty.load(Ordering::Relaxed) {
            self.dirty.store(true, Ordering::Release);
        }
    }

    /// A hole where that is allowed and possible, else allocated zeroes, else
    /// false.
    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        offset: u64,
        len: u64,
        may_unmap: bool,
    ) -> IoResult<bool> {
        let _beyond = self.ahead.enter(offset + len).await;
        let done = (may_unmap && self.discards() && self.try_punch(shard, offset, len).await?)
            || self.try_zero(shard, offset, len).await?
            || self.try_punch_and_allocate(shard, offset, len).await?;
        if done {
            self.set_dirty();
            self.reach(offset + len);
        }
        Ok(done)
    }

    async fn try_zero(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<bool> {
        if self.cannot_zero.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let result = again(shard, async || {
            self.file.zero_range(shard, offset, len).await
        })
        .await;
        supported(result, &self.cannot_zero)
    }

    /// Punching never extends a file, so the range must lie inside.
    async fn try_punch(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<bool> {
        if self.cannot_punch.load(Ordering::Relaxed)
            || offset + len > self.end.load(Ordering::Acquire)
        {
            return Ok(false);
        }
        let result = again(shard, async || {
            self.file.punch_hole(shard, offset, len).await
        })
        .await;
        supported(result, &self.cannot_punch)
    }

    async fn try_punch_and_allocate(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<bool> {
        if self.cannot_allocate.load(Ordering::Relaxed)
            || self.file.geometry().kind == Kind::BlockDevice
            || !self.try_punch(shard, offset, len).await?
        {
            return Ok(false);
        }
        let result = again(shard, async || self.file.allocate(shard, offset, len).await).await;
        supported(result, &self.cannot_allocate)
    }

    /// Success also where the hint is not understood: it is a hint.
    pub(crate) async fn discard(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<()> {
        if !self.discards() || self.cannot_discard.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.set_dirty();
        let result = again(shard, async || self.file.discard(shard, offset, len).await).await;
        supported(result, &self.cannot_discard).map(drop)
    }

    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        if self.no_flush.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.flush_failed.load(Ordering::Acquire) {
            0 => {}
            errno => return Err(Errno::from_raw(errno)),
        }
        // Counted before the flag is taken: who finds the flag down while
        // another sync is under way must not answer before that has ended, and
        // makes one of its own.
        let others = self.syncs.fetch_add(1, Ordering::AcqRel);
        let dirty = self.dirty.swap(false, Ordering::AcqRel);
        let needed = (dirty || others > 0) && !planted::is(Fault::FlushForgotten);
        let result = if needed {
            self.sync(shard).await
        } else {
            Ok(())
        };
        self.syncs.fetch_sub(1, Ordering::AcqRel);
        result
    }

    async fn sync(&self, shard: &Shard) -> IoResult<()> {
        let result = again(shard, async || self.file.sync(shard).await).await;
        if let Err(errno) = result {
            self.dirty.store(true, Ordering::Release);
            if !self.file.geometry().direct {
                self.flush_failed.store(errno as i32, Ordering::Release);
            }
            return result;
        }
        // The kernel reports a lost page once: another sync that overlapped
        // this one may have got the report.
        match self.flush_failed.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        }
    }

    pub(crate) async fn extent(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<Extent> {
        let data = Extent::here(Content::Data, len);
        if self.file.geometry().kind == Kind::BlockDevice {
            return Ok(data);
        }
        match self.file.seek_data(shard, offset).await {
            // Nothing but holes up to the end of the file.
            Err(Errno::ENXIO) => Ok(Extent::here(Content::Zero, len)),
            // A file system that cannot tell: data is never wrong.
            Err(_) => Ok(data),
            Ok(start) if start > offset => {
                // A sector that is zero only in part is data.
                match (start & !(SECTOR - 1)).saturating_sub(offset) {
                    0 => Ok(Extent::here(Content::Data, len.min(SECTOR))),
                    zeroes => Ok(Extent::here(Content::Zero, len.min(zeroes))),
                }
            }
            Ok(_) => match self.file.seek_hole(shard, offset).await {
                Ok(end) if end > offset => {
                    Ok(Extent::here(Content::Data, self.up_to(offset, end, len)))
                }
                // The file shrank meanwhile, or the file system cannot tell.
                _ => Ok(data),
            },
        }
    }

    /// Data up to `end`, but never inside a sector: a file's last, partial
    /// sector counts as whole.
    fn up_to(&self, offset: u64, end: u64, len: u64) -> u64 {
        len.min(end.next_multiple_of(SECTOR).max(offset + 1) - offset)
    }
}

/// True: done. False: not supported, and remembered; or not for this range,
/// which EINVAL says (a device whose unit is larger than the request's).
fn supported(result: IoResult<()>, cannot: &AtomicBool) -> IoResult<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) if is_unsupported(errno) => {
            cannot.store(true, Ordering::Relaxed);
            Ok(false)
        }
        Err(errno) => Err(errno),
    }
}

/// Repeats an operation that the kernel or a signal put off.
async fn again(shard: &Shard, operation: impl AsyncFn() -> IoResult<()>) -> IoResult<()> {
    for _ in 0..AGAIN_MAX {
        match operation().await {
            Err(Errno::EAGAIN | Errno::EINTR) => shard.yield_now().await,
            result => return result,
        }
    }
    Err(Errno::EAGAIN)
}

/// A transfer that may take several operations.
struct Transfer {
    offset: u64,
    window: Range<usize>,
    unit: usize,
    retries: u32,
}

impl Transfer {
    fn new(protocol: &FileProtocol, offset: u64, window: Range<usize>) -> Self {
        let unit = protocol.file.geometry().request_alignment as usize;
        Self {
            offset,
            window,
            unit,
            retries: 0,
        }
    }

    /// What is left to do: where, and which part of the buffer.
    fn next(&self) -> Option<(u64, Range<usize>)> {
        let len = self.window.len().min(TRANSFER_MAX);
        (len > 0).then(|| (self.offset, self.window.start..self.window.start + len))
    }

    async fn advance(&mut self, shard: &Shard, result: IoResult<usize>) -> IoResult<()> {
        match result {
            Err(Errno::EAGAIN | Errno::EINTR) => self.retry(shard).await,
            Err(errno) => Err(errno),
            Ok(count) => {
                // After a short count direct I/O goes on at a whole unit; the
                // part of a unit that was moved is moved once more. A transfer
                // that moves no whole unit would never end.
                let whole = count - count % self.unit;
                self.offset += whole as u64;
                self.window.start += whole;
                if whole == 0 { Err(Errno::EIO) } else { Ok(()) }
            }
        }
    }

    async fn retry(&mut self, shard: &Shard) -> IoResult<()> {
        self.retries += 1;
        if self.retries > AGAIN_MAX {
            return Err(Errno::EAGAIN);
        }
        shard.yield_now().await;
        Ok(())
    }
}
