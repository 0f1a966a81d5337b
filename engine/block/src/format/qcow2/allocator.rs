//! Refcounts, and which host clusters are given out.
//!
//! One request at a time holds the allocator of an image, and holds it across
//! the I/O for refcount blocks; so everything here is as sequential as it reads.
//!
//! # Order on disk (Q1)
//!
//! A count that rises may reach the file at any time before the reference does;
//! a count that falls only after the reference is gone for good. So what is
//! freed while the image is in use is first remembered ([`Allocator::release`])
//! and counted down when a write-back has made the reference's end durable and
//! the requests of that time have ended ([`Allocator::count_down`]). Dirty blocks
//! may therefore be written whenever that suits.
//!
//! New blocks and larger tables are written at once and made durable in the
//! order contents, then pointer: there is one for every 2 GiB, at the usual
//! sizes.

use std::collections::BTreeMap;
use std::ops::Range;

use ringback_ring::{Errno, IoResult, Shard, error_text};

use super::epoch::Epochs;
use super::frame::{Frame, hex, word_bytes};
use super::header::{REFCOUNT_TABLE_BYTES_MAX, REFCOUNT_TABLE_POINTER_OFFSET};
use super::refcounts;
use super::reserved::Structure;
use crate::event::Event;
use crate::notice::Notice;
use crate::span::Span;
use crate::units::in_memory;

/// The block's offset in an entry of the refcount table; 0: there is none.
pub(crate) fn block_offset(entry: u64) -> u64 {
    entry & !0x1ff
}

/// Host offsets have 56 bits.
const HOST_END: u64 = 1 << 56;

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    /// Bytes that differ from the file.
    dirty: Option<Range<usize>>,
    last_used: u64,
}

impl Block {
    fn mark(&mut self, bytes: Range<usize>) {
        self.dirty = Some(match self.dirty.take() {
            None => bytes,
            Some(dirty) => dirty.start.min(bytes.start)..dirty.end.max(bytes.end),
        });
    }
}

/// Clusters that lost a reference.
#[derive(Clone, Debug)]
pub(crate) struct Freed {
    /// The bytes referred to: every cluster they touch counts one down.
    span: Span,
    /// The file may forget the bytes, too.
    punch: bool,
    /// Probably nobody else refers to them.
    reusable: bool,
    /// Set when the reference's end is durable.
    stamp: Option<u64>,
}

/// Newly taken clusters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh {
    /// Offset of the first.
    pub(crate) host: u64,
    /// Nobody ever wrote there: the file reads as zeroes.
    pub(crate) is_blank: bool,
}

/// Before the file grows, clusters that wait for a write-back are brought back:
/// whenever they are so many bytes, and else not more often than this.
const SETTLE_BYTES: u64 = 1 << 20;
const SETTLE_INTERVAL_NS: u64 = 1_000_000_000;

/// Unit in which dirty parts of blocks are written.
const WRITE_UNIT: usize = 512;

/// The refcounts of an image.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// Offsets of the blocks; 0: none, everything it would count is free.
    table: Vec<u64>,
    table_span: Span,
    blocks: BTreeMap<u64, Block>,
    /// Blocks that are kept in memory.
    capacity: usize,
    clock: u64,
    /// No cluster before this one is known to be free.
    cursor: u64,
    /// Behind the last compressed cluster, if it ended inside of a host cluster.
    packed_end: Option<u64>,
    freed: Vec<Freed>,
    /// Bytes in `freed` that will probably be free.
    waiting: u64,
    /// From here on the file holds nothing.
    blank_from: u64,
    /// No write-back before this instant only to find room.
    next_settle_ns: u64,
}

impl Allocator {
    /// `entries` is the refcount table, which lies at `table_span`; the file is
    /// `file_size` bytes long.
    pub(crate) fn new(entries: &[u64], table_span: Span, capacity: usize, file_size: u64) -> Self {
        Self {
            table: entries.iter().map(|&entry| block_offset(entry)).collect(),
            table_span,
            blocks: BTreeMap::new(),
            capacity: capacity.max(1),
            clock: 0,
            cursor: 0,
            packed_end: None,
            freed: Vec::new(),
            waiting: 0,
            blank_from: file_size,
            next_settle_ns: 0,
        }
    }

    fn block_of(frame: &Frame, cluster: u64) -> (u64, usize) {
        let per_block = frame.geometry.refcounts_per_block();
        (cluster / per_block, in_memory(cluster % per_block))
    }

    fn block_offset(&self, index: u64) -> u64 {
        self.table.get(in_memory(index)).copied().unwrap_or(0)
    }

    /// Brings a block into memory. It must exist.
    async fn load(&mut self, shard: &Shard, frame: &Frame, index: u64) -> IoResult<&mut Block> {
        frame.file.event(shard, Event::RefblockLoad).await;
        self.clock += 1;
        if !self.blocks.contains_key(&index) {
            let offset = self.block_offset(index);
            if frame.geometry.in_cluster(offset) != 0 {
                let (offset, index) = (hex(offset), hex(index));
                let message =
                    format!("Refblock offset {offset} unaligned (reftable index: {index})");
                return Err(frame.corruption(shard, true, message, None).await);
            }
            if !frame.geometry.is_place(offset) {
                return Err(Errno::EIO);
            }
            self.make_room(shard, frame).await?;
            let span = Span::new(offset, frame.geometry.cluster_size);
            let block = Block {
                bytes: frame.read_bytes(shard, span).await?,
                dirty: None,
                last_used: 0,
            };
            self.blocks.insert(index, block);
        }
        let block = self.blocks.get_mut(&index).expect("it is there by now");
        block.last_used = self.clock;
        Ok(block)
    }

    /// Blocks may be written at any time, so any may go.
    async fn make_room(&mut self, shard: &Shard, frame: &Frame) -> IoResult<()> {
        while self.blocks.len() >= self.capacity {
            let oldest = self.blocks.iter().min_by_key(|(_, block)| block.last_used);
            let Some((&index, _)) = oldest else { break };
            self.write_block(shard, frame, index).await?;
            self.blocks.remove(&index);
        }
        Ok(())
    }

    /// How many references a host cluster has.
    pub(crate) async fn refcount(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        cluster: u64,
    ) -> IoResult<u64> {
        let (index, place) = Self::block_of(frame, cluster);
        if self.block_offset(index) == 0 {
            return Ok(0);
        }
        let order = frame.geometry.refcount_order;
        let block = self.load(shard, frame, index).await?;
        Ok(refcounts::get(&block.bytes, order, place))
    }

    /// Counts every cluster of a range one up or down; all or none.
    pub(crate) async fn change(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        clusters: Range<u64>,
        up: bool,
    ) -> IoResult<()> {
        for cluster in clusters.clone() {
            if let Err(errno) = self.change_one(shard, frame, cluster, up).await {
                for undone in clusters.start..cluster {
                    self.change_one(shard, frame, undone, !up).await?;
                }
                return Err(errno);
            }
        }
        Ok(())
    }

    async fn change_one(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        cluster: u64,
        up: bool,
    ) -> IoResult<()> {
        let (index, place) = Self::block_of(frame, cluster);
        frame.file.event(shard, Event::RefblockAlloc).await;
        if self.block_offset(index) == 0 {
            // Who counts up has made the block before.
            return Err(Errno::EINVAL);
        }
        let order = frame.geometry.refcount_order;
        let block = self.load(shard, frame, index).await?;
        let count = refcounts::get(&block.bytes, order, place);
        let count = if up {
            Some(count + 1).filter(|&count| count <= refcounts::max(order) && count != 0)
        } else {
            count.checked_sub(1)
        };
        let count = count.ok_or(Errno::EINVAL)?;
        refcounts::set(&mut block.bytes, order, place, count);
        block.mark(refcounts::bytes_of(order, place));
        if count == 0 {
            self.cursor = self.cursor.min(cluster);
            self.end_packing_in(frame, cluster);
        }
        Ok(())
    }

    /// The next compressed cluster does not go on in this host cluster.
    fn end_packing_in(&mut self, frame: &Frame, cluster: u64) {
        let bits = frame.geometry.cluster_bits;
        if self.packed_end.is_some_and(|end| end >> bits == cluster) {
            self.packed_end = None;
        }
    }

    /// The first run of free clusters behind the cursor, which moves behind it.
    async fn find_free(&mut self, shard: &Shard, frame: &Frame, count: u64) -> IoResult<u64> {
        let (mut start, mut next) = (self.cursor, self.cursor);
        while next - start < count {
            if next >= HOST_END >> frame.geometry.cluster_bits {
                return Err(Errno::EFBIG);
            }
            if self.refcount(shard, frame, next).await? != 0 {
                start = next + 1;
            }
            next += 1;
        }
        self.cursor = next;
        Ok(start)
    }

    /// Takes `count` adjacent host clusters; answers the offset of the first.
    /// `what` is for the message if the image would have its own header
    /// overwritten.
    pub(crate) async fn allocate(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        count: u64,
        what: &str,
    ) -> IoResult<Fresh> {
        frame.file.event(shard, Event::ClusterAlloc).await;
        let host = self.reserve(shard, frame, count, what).await?;
        let span = Span::new(host, count << frame.geometry.cluster_bits);
        frame.file.grow_ahead(shard, span.end()).await;
        self.change(shard, frame, clusters_of(frame, span), true)
            .await?;
        frame.check_overlap(shard, span, None).await?;
        let is_blank = host >= self.blank_from;
        self.blank_from = self.blank_from.max(span.end());
        Ok(Fresh { host, is_blank })
    }

    /// As [`Allocator::allocate`], without counting.
    async fn reserve(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        count: u64,
        what: &str,
    ) -> IoResult<u64> {
        loop {
            let cursor = self.cursor;
            let first = self.find_free(shard, frame, count).await?;
            if first == 0 {
                let message = format!("Preventing invalid allocation of {what} at offset 0");
                return Err(frame.corruption(shard, true, message, None).await);
            }
            if !self.make_blocks(shard, frame, first..first + count).await? {
                return Ok(first << frame.geometry.cluster_bits);
            }
            // A new block may have taken one of them: look again.
            self.cursor = cursor;
        }
    }

    /// Makes the first missing block for these clusters. False: none is missing.
    async fn make_blocks(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        clusters: Range<u64>,
    ) -> IoResult<bool> {
        let first = Self::block_of(frame, clusters.start).0;
        let last = Self::block_of(frame, clusters.end - 1).0;
        for index in first..=last {
            if index >= self.table.len() as u64 {
                self.grow_table(shard, frame, index).await?;
                return Ok(true);
            }
            if self.block_offset(index) == 0 {
                self.make_block(shard, frame, index).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn make_block(&mut self, shard: &Shard, frame: &Frame, index: u64) -> IoResult<()> {
        frame.file.event(shard, Event::RefblockAlloc).await;
        let cluster = self.find_free(shard, frame, 1).await?;
        if cluster == 0 {
            let message = "Preventing invalid allocation of refcount block at offset 0".into();
            return Err(frame.corruption(shard, true, message, None).await);
        }
        let (mut index, mut cluster) = (index, cluster);
        let (mut own, mut place) = Self::block_of(frame, cluster);
        // A block that lies in the range which it counts describes itself. One
        // that lies elsewhere needs that range's block first, which goes right
        // behind it.
        while own != index && own < self.table.len() as u64 && self.block_offset(own) == 0 {
            index = own;
            cluster = self.find_free(shard, frame, 1).await?;
            (own, place) = Self::block_of(frame, cluster);
        }
        if own >= self.table.len() as u64 {
            self.cursor = self.cursor.min(cluster);
            return self.grow_table(shard, frame, own).await;
        }
        let describes_itself = own == index;
        let geometry = &frame.geometry;
        let mut bytes = vec![0; in_memory(geometry.cluster_size)];
        if describes_itself {
            refcounts::set(&mut bytes, geometry.refcount_order, place, 1);
        } else {
            self.change_one(shard, frame, cluster, true).await?;
        }
        let offset = cluster << geometry.cluster_bits;
        let span = Span::new(offset, geometry.cluster_size);
        frame.check_overlap(shard, span, None).await?;
        self.blank_from = self.blank_from.max(span.end());
        frame.file.event(shard, Event::RefblockAllocWrite).await;
        frame.write_bytes(shard, offset, &bytes).await?;
        self.write_dirty(shard, frame).await?;
        frame.file.flush(shard).await?;
        frame.file.event(shard, Event::RefblockAllocHookup).await;
        let entry_offset = self.table_span.offset + index * 8;
        frame
            .write_bytes(shard, entry_offset, &offset.to_be_bytes())
            .await?;
        frame.file.flush(shard).await?;
        frame.reserved.add(span, Structure::RefcountBlock);
        self.table[in_memory(index)] = offset;
        Ok(())
    }

    /// Writes every dirty block.
    pub(crate) async fn write_dirty(&mut self, shard: &Shard, frame: &Frame) -> IoResult<()> {
        let dirty = self
            .blocks
            .iter()
            .filter(|(_, block)| block.dirty.is_some());
        for index in dirty.map(|(&index, _)| index).collect::<Vec<_>>() {
            self.write_block(shard, frame, index).await?;
        }
        Ok(())
    }

    /// Writes a block's dirty part, if it has one.
    async fn write_block(&mut self, shard: &Shard, frame: &Frame, index: u64) -> IoResult<()> {
        let start = self.block_offset(index);
        let Some(block) = self.blocks.get_mut(&index) else {
            return Ok(());
        };
        let Some(dirty) = block.dirty.clone() else {
            return Ok(());
        };
        let range = dirty.start / WRITE_UNIT * WRITE_UNIT
            ..dirty
                .end
                .next_multiple_of(WRITE_UNIT)
                .min(block.bytes.len());
        let bytes = &block.bytes[range.clone()];
        let span = Span::new(start + range.start as u64, bytes.len() as u64);
        frame
            .check_overlap(shard, span, Some(Structure::RefcountBlock))
            .await?;
        frame.file.event(shard, Event::RefblockUpdatePart).await;
        frame.write_bytes(shard, span.offset, bytes).await?;
        block.dirty = None;
        Ok(())
    }

    /// Makes a table that reaches `index`, in clusters that its own new blocks
    /// count: at the start of the first range that no block of the old table
    /// could count.
    async fn grow_table(&mut self, shard: &Shard, frame: &Frame, index: u64) -> IoResult<()> {
        frame.file.event(shard, Event::ReftableGrow).await;
        let geometry = &frame.geometry;
        let (cluster_size, per_block) = (geometry.cluster_size, geometry.refcounts_per_block());
        let base = (index + 1).max(self.table.len() as u64);
        // Each depends on the other, and a few rounds settle both.
        let (mut block_count, mut table_clusters) = (1, 1);
        loop {
            let entries = (base + block_count) * 3 / 2;
            let clusters = (entries * 8).div_ceil(cluster_size);
            let blocks = (clusters + block_count).div_ceil(per_block);
            if clusters <= table_clusters && blocks <= block_count {
                break;
            }
            table_clusters = clusters.max(table_clusters);
            block_count = blocks.max(block_count);
        }
        let table_bytes = table_clusters * cluster_size;
        if table_bytes > REFCOUNT_TABLE_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        let first = base
            .checked_mul(per_block)
            .filter(|first| *first < HOST_END >> geometry.cluster_bits)
            .ok_or(Errno::EFBIG)?;
        let area = Span::new(
            first << geometry.cluster_bits,
            (block_count + table_clusters) * cluster_size,
        );
        frame.check_overlap(shard, area, None).await?;
        self.blank_from = self.blank_from.max(area.end());
        let mut table = self.table.clone();
        table.resize(in_memory(table_bytes / 8), 0);
        frame
            .file
            .event(shard, Event::RefblockAllocWriteBlocks)
            .await;
        for block in 0..block_count {
            let mut bytes = vec![0; in_memory(cluster_size)];
            let counted = (block_count + table_clusters - block * per_block).min(per_block);
            for place in 0..in_memory(counted) {
                refcounts::set(&mut bytes, geometry.refcount_order, place, 1);
            }
            let offset = area.offset + block * cluster_size;
            frame.write_bytes(shard, offset, &bytes).await?;
            table[in_memory(base + block)] = offset;
        }
        let table_span = Span::new(area.offset + block_count * cluster_size, table_bytes);
        frame
            .file
            .event(shard, Event::RefblockAllocWriteTable)
            .await;
        let bytes = word_bytes(&table);
        frame.write_bytes(shard, table_span.offset, &bytes).await?;
        frame.file.flush(shard).await?;
        frame
            .file
            .event(shard, Event::RefblockAllocSwitchTable)
            .await;
        let mut pointer = table_span.offset.to_be_bytes().to_vec();
        let clusters = u32::try_from(table_clusters).map_err(|_| Errno::EFBIG)?;
        pointer.extend_from_slice(&clusters.to_be_bytes());
        frame
            .write_bytes(shard, REFCOUNT_TABLE_POINTER_OFFSET, &pointer)
            .await?;
        frame.file.flush(shard).await?;
        let old = std::mem::replace(&mut self.table_span, table_span);
        self.table = table;
        let blocks = Span::new(area.offset, block_count * cluster_size);
        frame.reserved.remove(old);
        frame.reserved.add(blocks, Structure::RefcountBlock);
        frame.reserved.add(table_span, Structure::RefcountTable);
        self.change(shard, frame, clusters_of(frame, old), false)
            .await
    }

    /// Takes room for `len` bytes of a compressed cluster: right behind the last
    /// one, if that is possible.
    pub(crate) async fn allocate_bytes(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        len: u64,
    ) -> IoResult<u64> {
        frame.file.event(shard, Event::ClusterAllocBytes).await;
        let (bits, cluster_size) = (frame.geometry.cluster_bits, frame.geometry.cluster_size);
        let max = refcounts::max(frame.geometry.refcount_order);
        if let Some(end) = self.packed_end
            && self.refcount(shard, frame, end >> bits).await? >= max
        {
            self.packed_end = None;
        }
        let room = self
            .packed_end
            .map_or(0, |end| cluster_size - frame.geometry.in_cluster(end));
        let start = match self.packed_end {
            Some(end) if room >= len => end,
            _ => {
                let fresh = self.reserve(shard, frame, 1, "compressed cluster").await?;
                match self.packed_end {
                    Some(end) if end + room == fresh => end,
                    _ => fresh,
                }
            }
        };
        let span = Span::new(start, len);
        frame.file.grow_ahead(shard, span.end()).await;
        self.change(shard, frame, clusters_of(frame, span), true)
            .await?;
        self.blank_from = self
            .blank_from
            .max(span.end().next_multiple_of(cluster_size));
        self.packed_end = Some(span.end()).filter(|&end| frame.geometry.in_cluster(end) != 0);
        Ok(start)
    }

    /// A reference to these bytes has ended in memory: `reusable` if this
    /// was probably the last one.
    pub(crate) fn release(&mut self, span: Span, punch: bool, reusable: bool) {
        self.waiting += if reusable { span.len } else { 0 };
        self.freed.push(Freed {
            span,
            punch,
            reusable,
            stamp: None,
        });
    }

    /// As [`Allocator::allocate`], but None if the file would grow although a
    /// write-back would make room: because much is waiting for one, or because
    /// there was none for this purpose lately.
    pub(crate) async fn allocate_sparingly(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        count: u64,
        what: &str,
    ) -> IoResult<Option<Fresh>> {
        let bytes = count << frame.geometry.cluster_bits;
        let waiting = self.waiting;
        let now = shard.now_ns();
        let is_due = waiting >= SETTLE_BYTES.max(bytes) || now >= self.next_settle_ns;
        if waiting > 0 && is_due {
            let cursor = self.cursor;
            let host = self.reserve(shard, frame, count, what).await?;
            self.cursor = cursor;
            if host >= self.blank_from {
                self.next_settle_ns = now + SETTLE_INTERVAL_NS;
                return Ok(None);
            }
        }
        self.allocate(shard, frame, count, what).await.map(Some)
    }

    /// How many ended references a write-back that begins now makes durable, if
    /// its mapping is taken after this.
    pub(crate) fn released_count(&self) -> usize {
        self.freed.len()
    }

    /// The first `count` ended references are durable.
    pub(crate) fn released_durably(&mut self, count: usize, epochs: &Epochs) {
        let stamp = epochs.stamp();
        for freed in self.freed.iter_mut().take(count) {
            freed.stamp.get_or_insert(stamp);
        }
    }

    /// Takes what nobody can use any more off the list. Must be followed by
    /// [`Allocator::count_down`] or [`Allocator::put_back`]. Before that the file
    /// may forget it: until then nobody else is given these clusters.
    pub(crate) fn take_ended(&mut self, epochs: &Epochs) -> Vec<Freed> {
        let is_over = |stamp| epochs.has_ended(stamp);
        let ended = self
            .freed
            .iter()
            .take_while(|freed| freed.stamp.is_some_and(is_over))
            .count();
        let ended: Vec<Freed> = self.freed.drain(..ended).collect();
        self.waiting -= reusable_bytes(&ended);
        ended
    }

    /// The host clusters of what was freed that the file may forget: those
    /// without another reference. None of them gets one from here on.
    pub(crate) async fn forgettable(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        ended: &[Freed],
    ) -> IoResult<Vec<Span>> {
        let mut forgettable = Vec::new();
        for freed in ended.iter().filter(|freed| freed.punch) {
            for cluster in clusters_of(frame, freed.span) {
                let start = cluster << frame.geometry.cluster_bits;
                let bytes = Span::new(start, frame.geometry.cluster_size);
                let is_last = self.refcount(shard, frame, cluster).await? == 1;
                // A damaged entry may point at the image's own structures.
                if is_last && frame.reserved.find(bytes).is_none() {
                    self.end_packing_in(frame, cluster);
                    forgettable.push(bytes);
                }
            }
        }
        Ok(forgettable)
    }

    /// Counts down what was taken off the list. With an error, what is left of
    /// `ended` could not be counted down.
    pub(crate) async fn count_down(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        ended: &mut Vec<Freed>,
    ) -> IoResult<()> {
        while let Some(freed) = ended.last() {
            frame.file.event(shard, Event::ClusterFree).await;
            let clusters = clusters_of(frame, freed.span);
            match self.change(shard, frame, clusters, false).await {
                Ok(()) => {}
                // No request is to blame for it, and trying again would not help.
                Err(Errno::EINVAL) => frame.notify.send(Notice::Message(format!(
                    "qcow2_free_clusters failed: {}",
                    error_text(Errno::EINVAL)
                ))),
                Err(errno) => return Err(errno),
            }
            ended.pop();
        }
        Ok(())
    }

    /// Puts what was taken off the list where it was.
    pub(crate) fn put_back(&mut self, ended: &mut Vec<Freed>) {
        self.waiting += reusable_bytes(ended);
        ended.append(&mut self.freed);
        std::mem::swap(ended, &mut self.freed);
    }

    /// Frees clusters that nothing in the file ever referred to.
    pub(crate) async fn free_unused(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        span: Span,
    ) -> IoResult<()> {
        frame.file.event(shard, Event::ClusterFree).await;
        self.change(shard, frame, clusters_of(frame, span), false)
            .await
    }

    /// Gives back the blocks which count nothing but themselves. What they count
    /// must be durable.
    pub(crate) async fn drop_empty_blocks(&mut self, shard: &Shard, frame: &Frame) -> IoResult<()> {
        let order = frame.geometry.refcount_order;
        // The first one counts the header.
        for index in 1..self.table.len() as u64 {
            let offset = self.block_offset(index);
            if offset == 0 {
                continue;
            }
            let cluster = offset >> frame.geometry.cluster_bits;
            let (own, place) = Self::block_of(frame, cluster);
            let mut bytes = self.load(shard, frame, index).await?.bytes.clone();
            if own == index && refcounts::get(&bytes, order, place) == 1 {
                refcounts::set(&mut bytes, order, place, 0);
            }
            if bytes.iter().any(|&byte| byte != 0) {
                continue;
            }
            frame.file.event(shard, Event::ReftableUpdate).await;
            let entry_offset = self.table_span.offset + index * 8;
            frame.write_bytes(shard, entry_offset, &[0; 8]).await?;
            frame.file.flush(shard).await?;
            self.table[in_memory(index)] = 0;
            self.blocks.remove(&index);
            let span = Span::new(offset, frame.geometry.cluster_size);
            frame.reserved.remove(span);
            if own == index {
                self.cursor = self.cursor.min(cluster);
            } else {
                self.change_one(shard, frame, cluster, false).await?;
            }
        }
        Ok(())
    }

    /// The end of the last used cluster of a file that is `file_size` bytes
    /// long.
    pub(crate) async fn used_end(
        &mut self,
        shard: &Shard,
        frame: &Frame,
        file_size: u64,
    ) -> IoResult<u64> {
        let mut end = file_size.div_ceil(frame.geometry.cluster_size);
        while end > 0 {
            let (index, place) = Self::block_of(frame, end - 1);
            if self.block_offset(index) == 0 {
                end -= place as u64 + 1;
            } else if self.refcount(shard, frame, end - 1).await? == 0 {
                end -= 1;
            } else {
                break;
            }
        }
        Ok(end << frame.geometry.cluster_bits)
    }

    /// The file ends here: behind it nothing is left.
    pub(crate) fn file_was_cut(&mut self, end: u64) {
        self.blank_from = self.blank_from.min(end);
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.blocks.values().any(|block| block.dirty.is_some())
    }

    /// Where the refcount table lies, and the offsets of the blocks.
    pub(crate) fn table(&self) -> (Span, &[u64]) {
        (self.table_span, &self.table)
    }
}

fn reusable_bytes(freed: &[Freed]) -> u64 {
    let reusable = freed.iter().filter(|freed| freed.reusable);
    reusable.map(|freed| freed.span.len).sum()
}

/// The clusters that a range touches.
pub(crate) fn clusters_of(frame: &Frame, span: Span) -> Range<u64> {
    let bits = frame.geometry.cluster_bits;
    let end = span.end().div_ceil(frame.geometry.cluster_size);
    span.offset >> bits..end
}
