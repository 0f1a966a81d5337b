//! A simulated file: what a reader sees now, what would survive a power cut,
//! and what lies between.

use std::collections::VecDeque;
use std::ops::Range;

use super::random::Random;
use crate::file::{Geometry, Kind};
use crate::{Errno, IoResult};

/// Unit of tearing: a device never tears a sector.
pub(super) const SECTOR: u64 = 512;
/// Unit of allocation: `seek_data` and `seek_hole` see blocks of this size.
const BLOCK: u64 = 4096;

/// How a simulated file behaves. Rates are in parts per million.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// Regular file or block device.
    pub kind: Kind,
    /// Unit of requests, as of O_DIRECT; others are refused with EINVAL.
    pub request_alignment: u32,
    /// Shortest and longest time that an operation takes, in nanoseconds.
    pub latency_ns: (u64, u64),
    /// Operations that take up to twenty times as long.
    pub slow_rate: u32,
    /// Reads that fail with EIO.
    pub read_error_rate: u32,
    /// Writes that fail with EIO.
    pub write_error_rate: u32,
    /// Syncs that fail with EIO.
    pub sync_error_rate: u32,
    /// Transfers that move only a part.
    pub short_rate: u32,
    /// Operations that are told to try again.
    pub again_rate: u32,
    /// Allocated bytes at which writes answer ENOSPC.
    pub space_limit: Option<u64>,
    /// fallocate is not supported.
    pub no_fallocate: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self {
            kind: Kind::Regular,
            request_alignment: 512,
            latency_ns: (20_000, 200_000),
            slow_rate: 0,
            read_error_rate: 0,
            write_error_rate: 0,
            sync_error_rate: 0,
            short_rate: 0,
            again_rate: 0,
            space_limit: None,
            no_fallocate: false,
        }
    }
}

/// What a change puts into its range.
enum Change {
    Data(Vec<u8>),
    Zeroes,
    /// The file ends at `offset` from here on.
    End,
}

/// A change that a cache holds: not yet sure to survive.
struct Unflushed {
    order: u64,
    offset: u64,
    change: Change,
    len: u64,
}

/// One simulated file or device.
pub(super) struct Disk {
    pub(super) options: FileOptions,
    live: Vec<u8>,
    durable: Vec<u8>,
    cached: VecDeque<Unflushed>,
    next_order: u64,
    allocated: Vec<bool>,
    /// The next sync fails: see [`Disk::collide`].
    collided: bool,
}

/// Simulated disks fit in memory, so their offsets fit in a `usize`.
fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated disks are small")
}

impl Disk {
    pub(super) fn new(size: u64, options: FileOptions) -> Self {
        Self {
            options,
            live: vec![0; at(size)],
            durable: vec![0; at(size)],
            cached: VecDeque::new(),
            next_order: 0,
            allocated: vec![false; at(size.div_ceil(BLOCK))],
            collided: false,
        }
    }

    /// All of it, as if written long ago; blocks of zeroes are holes.
    pub(super) fn fill(&mut self, bytes: Vec<u8>) {
        self.allocated = bytes
            .chunks(at(BLOCK))
            .map(|block| block.iter().any(|&byte| byte != 0))
            .collect();
        self.durable.clone_from(&bytes);
        self.live = bytes;
    }

    pub(super) fn size(&self) -> u64 {
        self.live.len() as u64
    }

    pub(super) fn geometry(&self, writable: bool) -> Geometry {
        Geometry {
            kind: self.options.kind,
            size: self.size(),
            direct: self.options.request_alignment > 1,
            writable,
            request_alignment: self.options.request_alignment,
            memory_alignment: self.options.request_alignment,
            block_size: BLOCK,
        }
    }

    /// Whether the device would take this transfer at all.
    pub(super) fn accepts(&self, offset: u64, len: u64) -> bool {
        let unit = u64::from(self.options.request_alignment);
        offset.is_multiple_of(unit) && len.is_multiple_of(unit)
    }

    pub(super) fn live(&self) -> &[u8] {
        &self.live
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let start = at(offset).min(self.live.len());
        let len = into.len().min(self.live.len() - start);
        into[..len].copy_from_slice(&self.live[start..start + len]);
        len
    }

    /// What a write would answer: a device is full at its end, a file system at
    /// its limit.
    pub(super) fn check_room(&self, offset: u64, len: u64) -> IoResult<()> {
        let beyond = offset + len > self.size();
        if beyond && self.options.kind == Kind::BlockDevice {
            return Err(Errno::ENOSPC);
        }
        let Some(limit) = self.options.space_limit else {
            return Ok(());
        };
        let fresh = (offset / BLOCK..(offset + len).div_ceil(BLOCK))
            .filter(|&block| !self.allocated.get(at(block)).copied().unwrap_or(false))
            .count() as u64;
        let used = self.allocated.iter().filter(|&&used| used).count() as u64;
        if (used + fresh) * BLOCK > limit {
            Err(Errno::ENOSPC)
        } else {
            Ok(())
        }
    }

    /// The bytes reach the cache: readers see them, a power cut may not.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.extend_to(offset + data.len() as u64);
        self.live[at(offset)..at(offset) + data.len()].copy_from_slice(data);
        self.mark_allocated(offset, data.len() as u64, true);
        self.remember(offset, data.len() as u64, Change::Data(data.to_vec()));
    }

    /// Zeroes; `keep` says whether the space stays allocated.
    pub(super) fn zero(&mut self, offset: u64, len: u64, keep: bool) {
        let end = if keep {
            offset + len
        } else {
            (offset + len).min(self.size())
        };
        if end <= offset {
            return;
        }
        self.extend_to(end);
        self.live[at(offset)..at(end)].fill(0);
        self.mark_allocated(offset, end - offset, keep);
        self.remember(offset, end - offset, Change::Zeroes);
    }

    /// A new end: behind it nothing is left, up to it zeroes are added.
    pub(super) fn truncate(&mut self, size: u64) -> IoResult<()> {
        if self.options.kind == Kind::BlockDevice {
            return Err(Errno::EINVAL);
        }
        self.live.resize(at(size), 0);
        self.allocated.resize(at(size.div_ceil(BLOCK)), false);
        self.remember(size, 0, Change::End);
        Ok(())
    }

    /// The block in which the file ends, if that is not where it begins. A file
    /// that gets longer has the rest of it zeroed through the page cache.
    pub(super) fn block_at_end(&self) -> Option<Range<u64>> {
        let start = self.size() / BLOCK * BLOCK;
        (start < self.size()).then_some(start..start + BLOCK)
    }

    /// The page cache and a direct write had a block at once: Linux says so once,
    /// as the failure of a sync.
    pub(super) fn collide(&mut self) {
        self.collided = true;
    }

    pub(super) fn take_collision(&mut self) -> bool {
        std::mem::take(&mut self.collided)
    }

    fn remember(&mut self, offset: u64, len: u64, change: Change) {
        self.cached.push_back(Unflushed {
            order: self.next_order,
            offset,
            change,
            len,
        });
        self.next_order += 1;
    }

    fn extend_to(&mut self, size: u64) {
        if size > self.size() {
            self.live.resize(at(size), 0);
            self.allocated.resize(at(size.div_ceil(BLOCK)), false);
        }
    }

    /// Blocks that a hole only touches stay allocated.
    fn mark_allocated(&mut self, offset: u64, len: u64, allocated: bool) {
        let blocks = if allocated {
            offset / BLOCK..(offset + len).div_ceil(BLOCK)
        } else {
            let end = if offset + len == self.size() {
                (offset + len).div_ceil(BLOCK)
            } else {
                (offset + len) / BLOCK
            };
            offset.div_ceil(BLOCK)..end
        };
        for block in blocks {
            self.allocated[at(block)] = allocated;
        }
    }

    /// Changes before this mark are what a sync submitted now makes durable.
    pub(super) fn sync_mark(&self) -> u64 {
        self.next_order
    }

    pub(super) fn sync(&mut self, mark: u64) {
        let flushed = self.cached.partition_point(|change| change.order < mark);
        for change in self.cached.drain(..flushed) {
            apply(&mut self.durable, &change, |_| true);
        }
    }

    /// Power is gone: of what was cached any sectors may have made it.
    pub(super) fn cut_power(&mut self, random: &mut Random) {
        // Each cut decides anew how much of the cache was lost.
        let kept = u32::try_from(random.below(1_000_001)).expect("a million fits");
        for change in std::mem::take(&mut self.cached) {
            apply(&mut self.durable, &change, |_| random.per_million(kept));
        }
        self.live.clone_from(&self.durable);
        self.allocated
            .resize(self.durable.len().div_ceil(at(BLOCK)), true);
        for (block, allocated) in self.live.chunks(at(BLOCK)).zip(&mut self.allocated) {
            *allocated |= block.iter().any(|&byte| byte != 0);
        }
    }

    /// As lseek does: the next data or the next hole.
    pub(super) fn seek(&self, offset: u64, data: bool) -> IoResult<u64> {
        if offset >= self.size() {
            return Err(Errno::ENXIO);
        }
        let from = offset / BLOCK;
        let found = (from..self.allocated.len() as u64)
            .find(|&block| self.allocated[at(block)] == data)
            .map(|block| (block * BLOCK).max(offset));
        match (found, data) {
            (Some(found), _) => Ok(found),
            (None, true) => Err(Errno::ENXIO),
            (None, false) => Ok(self.size()),
        }
    }
}

/// Puts a change into durable bytes, sector by sector as `keep` says.
fn apply(durable: &mut Vec<u8>, change: &Unflushed, mut keep: impl FnMut(u64) -> bool) {
    if matches!(change.change, Change::End) && keep(change.offset / SECTOR) {
        durable.resize(at(change.offset), 0);
    }
    let mut done = 0;
    while done < change.len {
        let offset = change.offset + done;
        let len = (SECTOR - offset % SECTOR).min(change.len - done);
        if keep(offset / SECTOR) {
            let end = at(offset + len);
            if durable.len() < end {
                durable.resize(end, 0);
            }
            match &change.change {
                Change::Data(data) => {
                    durable[at(offset)..end].copy_from_slice(&data[at(done)..at(done + len)])
                }
                Change::Zeroes | Change::End => durable[at(offset)..end].fill(0),
            }
        }
        done += len;
    }
}
