//! Making the disk longer or shorter. Nothing of a guest's is in flight.
//!
//! # Order on disk
//!
//! | longer | shorter |
//! | --- | --- |
//! | what lies behind the old end is dropped | the size |
//! | a larger L1 table | what lies behind the new end is dropped |
//! | zeroes where old bytes would show through | empty refcount blocks |
//! | what is to be reserved | the file ends where the last used cluster does |
//! | a flush, then the size | |
//!
//! So a crash leaves the old disk or the new one. Behind the end there may be
//! clusters that nobody reads; the next change of size drops them.
//!
//! # What is added reads as zeroes
//!
//! Four kinds of old bytes could come back: the rest of the cluster in which
//! the old end lies, a backing file that is longer, what was left behind the
//! end, and what a data file holds there.

use ringback_ring::{Errno, IoResult, Shard};

use super::allocator::Allocator;
use super::entry::{Entry, offset_of};
use super::frame::word_bytes;
use super::header::L1_ENTRIES_MAX;
use super::image::{DataFile, Qcow2};
use super::lookup::Purpose;
use super::reserved::Structure;
use crate::child::Child;
use crate::event::Event;
use crate::exclusive::Held;
use crate::request::{Preallocation, ZeroFlags};
use crate::resize::{DISK_BYTES_MAX, ResizeError};
use crate::span::Span;
use crate::units::{DISK_SIZE_MAX, SECTOR};

/// Where the disk's size stands in the header.
const SIZE_OFFSET: u64 = 24;
/// Where length and offset of the L1 table stand.
const L1_POINTER_OFFSET: u64 = 36;
/// Where the number of snapshots stands.
const SNAPSHOT_COUNT_OFFSET: u64 = 60;

/// So many ended references wait for a write-back at the most, about.
const RELEASED_MAX: usize = 1 << 16;

impl Qcow2 {
    /// Makes the disk exactly `size` bytes long. What is added reads as zeroes,
    /// also where the backing file is longer.
    pub(crate) async fn truncate(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), ResizeError> {
        if size > DISK_SIZE_MAX {
            return Err(ResizeError::Negative);
        }
        if size > DISK_BYTES_MAX {
            return Err(ResizeError::TooLarge(size));
        }
        self.check_writable().map_err(ResizeError::Image)?;
        if !size.is_multiple_of(SECTOR) {
            return Err(ResizeError::NotSectors);
        }
        if self.frame.version < 3 && self.has_snapshots(shard).await? {
            return Err(ResizeError::OldSnapshots);
        }
        if size < self.size() {
            if preallocation != Preallocation::Off {
                return Err(ResizeError::PreallocatedImageShrink);
            }
            self.shrink(shard, size).await
        } else {
            self.grow(shard, backing, size, preallocation).await
        }
    }

    /// From the file: whoever makes a snapshot writes it there.
    async fn has_snapshots(&self, shard: &Shard) -> Result<bool, ResizeError> {
        let field = Span::new(SNAPSHOT_COUNT_OFFSET, 4);
        let count = self.frame.read_bytes(shard, field).await;
        Ok(count.map_err(ResizeError::Image)? != [0; 4])
    }

    async fn grow(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), ResizeError> {
        let entries = self.frame.geometry.l1_entries(size);
        let old = self.size();
        self.drop_behind(shard, old)
            .await
            .map_err(ResizeError::Drop)?;
        self.grow_l1(shard, entries)
            .await
            .map_err(ResizeError::L1Table)?;
        // Nobody looks yet; but what is done below lies inside of the disk.
        self.set_size(size);
        let added = Span::between(old, size);
        let result = match self.fill_added(shard, backing, added, preallocation).await {
            Ok(()) => self
                .write_size(shard, size)
                .await
                .map_err(ResizeError::Size),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.set_size(old);
        }
        result
    }

    /// Makes what is added read as zeroes, and reserves it.
    async fn fill_added(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        added: Span,
        preallocation: Preallocation,
    ) -> Result<(), ResizeError> {
        if let Some(data_file) = &self.data_file {
            empty_behind(shard, &data_file.child, added.offset).await?;
        }
        self.zero_added(shard, backing, added)
            .await
            .map_err(ResizeError::Zero)?;
        let is_raw = self.data_file.as_ref().is_some_and(|file| file.is_raw);
        let preallocation = match preallocation {
            // Who reads the data file alone must find every byte at its place.
            Preallocation::Off if is_raw => Preallocation::Metadata,
            preallocation => preallocation,
        };
        if let Some(data_file) = &self.data_file {
            self.grow_data_file(shard, data_file, added, preallocation)
                .await?;
        }
        if preallocation != Preallocation::Off && !added.is_empty() {
            self.preallocate(shard, backing, added, preallocation)
                .await?;
        }
        self.flush(shard).await.map_err(ResizeError::Zero)
    }

    /// Zeroes where old bytes would show through.
    async fn zero_added(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        added: Span,
    ) -> IoResult<()> {
        let tail_end = added.offset.next_multiple_of(self.cluster_size());
        let tail = Span::between(added.offset, tail_end.min(added.end()));
        if !tail.is_empty() && !self.reads_as_zeroes(shard, backing, tail).await? {
            self.write_zeroes(shard, backing, tail, ZeroFlags::KEEP)
                .await?;
        }
        let behind = Span::between(tail.end(), added.end());
        let Some(backing) = backing else {
            return Ok(());
        };
        if backing.size() <= behind.offset {
            return Ok(());
        }
        // Whole clusters can be zero by their entries.
        let end = backing.size().next_multiple_of(self.cluster_size());
        let shows = Span::between(behind.offset, end.min(added.end()));
        self.write_zeroes(shard, Some(backing), shows, ZeroFlags::KEEP)
            .await
    }

    /// The data file goes as far as the disk; to the end of a cluster's unit if
    /// anything is reserved.
    async fn grow_data_file(
        &self,
        shard: &Shard,
        data_file: &DataFile,
        added: Span,
        preallocation: Preallocation,
    ) -> Result<(), ResizeError> {
        let (end, mode) = match preallocation {
            Preallocation::Off => (added.end(), Preallocation::Off),
            Preallocation::Metadata => (self.unit_end(added.end()), Preallocation::Off),
            mode => (self.unit_end(added.end()), mode),
        };
        if data_file.child.size() >= end {
            return Ok(());
        }
        data_file.child.truncate(shard, end, mode).await
    }

    /// The end of the subcluster, or cluster, in which a disk ends.
    pub(super) fn unit_end(&self, end: u64) -> u64 {
        end.next_multiple_of(self.frame.geometry.subcluster_size)
    }

    async fn shrink(&self, shard: &Shard, size: u64) -> Result<(), ResizeError> {
        let old = self.size();
        // What was acknowledged does not depend on what happens now.
        self.flush(shard).await.map_err(ResizeError::Image)?;
        self.set_size(size);
        if let Err(errno) = self.write_size(shard, size).await {
            self.set_size(old);
            return Err(ResizeError::Size(errno));
        }
        if let Err(errno) = self.drop_behind(shard, size).await {
            self.set_size(old);
            // If that fails as well, the size may be either.
            let _ = self.write_size(shard, old).await;
            return Err(ResizeError::Drop(errno));
        }
        if let Err(errno) = self.cut_files(shard).await {
            // The disk is what it should be; its files take more room than
            // they need.
            tracing::warn!(
                node = self.frame.name,
                "could not cut the tail of the image off: {errno}"
            );
        }
        Ok(())
    }

    /// Writes the size into the header, durably.
    async fn write_size(&self, shard: &Shard, size: u64) -> IoResult<()> {
        self.frame
            .write_bytes(shard, SIZE_OFFSET, &size.to_be_bytes())
            .await?;
        self.frame.file.flush(shard).await
    }

    /// Drops every entry behind the cluster in which `end` lies, durably, and
    /// lets go of the clusters.
    async fn drop_behind(&self, shard: &Shard, end: u64) -> IoResult<()> {
        let geometry = &self.frame.geometry;
        let first = end.next_multiple_of(self.cluster_size());
        let table_end = first.next_multiple_of(geometry.table_coverage());
        let mut dropped = false;
        let mut rest = Span::between(first, table_end);
        while !rest.is_empty() && self.tables.l1_entry(geometry.l1_index(first)) != 0 {
            let part = self.within_slice(rest);
            dropped |= self.drop_entries(shard, part).await?;
            self.write_back_if_crowded(shard).await?;
            rest = Span::between(part.end(), rest.end());
        }
        for index in geometry.l1_index(table_end)..self.tables.l1_len() {
            if self.tables.l1_entry(index) != 0 {
                self.drop_table(shard, index).await?;
                dropped = true;
                self.settle_if_much_waits(shard).await?;
            }
        }
        if dropped {
            self.flush(shard).await?;
        }
        Ok(())
    }

    /// What has been let go of is remembered until a write-back: not without
    /// bound.
    async fn settle_if_much_waits(&self, shard: &Shard) -> IoResult<()> {
        let waiting = self.allocator.lock().await.released_count();
        if waiting < RELEASED_MAX {
            return Ok(());
        }
        self.flush(shard).await
    }

    /// Whole clusters in one slice hold nothing any more. False: as before.
    async fn drop_entries(&self, shard: &Shard, span: Span) -> IoResult<bool> {
        let _turn = self.claim(shard, span).await;
        let old = self.entries(shard, span, Purpose::Discard).await?;
        if old.iter().all(|entry| *entry == Entry::EMPTY) {
            return Ok(false);
        }
        self.make_table(shard, span.offset).await?;
        let new = vec![Entry::EMPTY; old.len()];
        self.change_entries(shard, span.offset, &new).await?;
        self.release_old(shard, &old, true).await;
        Ok(true)
    }

    /// A whole L2 table is gone, with all that it refers to. It may be shared
    /// with a snapshot: each table counts its own references.
    async fn drop_table(&self, shard: &Shard, index: u64) -> IoResult<()> {
        let geometry = &self.frame.geometry;
        let coverage = geometry.table_coverage();
        let mut rest = Span::new(index * coverage, coverage);
        let _turn = self.claim(shard, rest).await;
        let mut old = Vec::new();
        while !rest.is_empty() {
            let part = self.within_slice(rest);
            let entries = self.entries(shard, part, Purpose::Discard).await?;
            old.extend(entries.into_iter().filter(Entry::holds_anything));
            rest = Span::between(part.end(), rest.end());
        }
        let table = Span::new(
            offset_of(self.tables.l1_entry(index)),
            geometry.cluster_size,
        );
        self.frame
            .file
            .event(shard, Event::L1ShrinkFreeL2Clusters)
            .await;
        let mut allocator = self.allocator.lock().await;
        self.tables.forget_table(index);
        self.tables.set_l1_entry(index, 0);
        self.frame.reserved.remove(table);
        allocator.release(table, true, true);
        drop(allocator);
        self.release_old(shard, &old, true).await;
        Ok(())
    }

    /// The files end where the last used cluster does.
    async fn cut_files(&self, shard: &Shard) -> IoResult<()> {
        if let Some(data_file) = &self.data_file
            && data_file.child.can_grow()
            && data_file.child.size() > self.size()
        {
            let cut = data_file
                .child
                .truncate(shard, self.size(), Preallocation::Off);
            cut.await.map_err(ResizeError::errno)?;
        }
        let file = &self.frame.file;
        let mut allocator = self.allocator.lock().await;
        allocator.write_dirty(shard, &self.frame).await?;
        file.flush(shard).await?;
        allocator.drop_empty_blocks(shard, &self.frame).await?;
        let end = allocator.used_end(shard, &self.frame, file.size()).await?;
        if end >= file.size() || !file.can_grow() {
            return Ok(());
        }
        let cut = file.truncate(shard, end, Preallocation::Off).await;
        cut.map_err(ResizeError::errno)?;
        allocator.file_was_cut(end);
        Ok(())
    }

    /// Makes the L1 table at least this long: exactly, and in clusters of its
    /// own. Others may use the image meanwhile.
    pub(super) async fn grow_l1(&self, shard: &Shard, entries: u64) -> IoResult<()> {
        if entries <= self.tables.l1_len() {
            return Ok(());
        }
        if entries > L1_ENTRIES_MAX.into() {
            return Err(Errno::EFBIG);
        }
        // Nobody writes L1 entries to the old place, and nobody adds a table.
        let _write_back = self.write_back.lock().await;
        let mut allocator = self.allocator.lock().await;
        if entries <= self.tables.l1_len() {
            return Ok(());
        }
        let file = &self.frame.file;
        file.event(shard, Event::L1GrowAllocTable).await;
        let bytes = entries * 8;
        let count = bytes.div_ceil(self.cluster_size());
        let fresh = allocator
            .allocate(shard, &self.frame, count, "L1 table")
            .await?;
        let table = Span::new(fresh.host, bytes);
        let written = self.write_l1_copy(shard, &mut allocator, table).await;
        if let Err(errno) = written {
            let _ = allocator.free_unused(shard, &self.frame, table).await;
            return Err(errno);
        }
        let old = Span::new(self.tables.l1_offset(), self.tables.l1_len() * 8);
        if let Err(errno) = self.point_at_l1(shard, table).await {
            // The header may point at either: both stay, and if the old pointer
            // can be put back, all is as it was.
            let _ = self.point_at_l1(shard, old).await;
            return Err(errno);
        }
        self.tables.move_l1(table.offset, entries);
        self.frame.reserved.remove(old);
        self.frame.reserved.add(table, Structure::ActiveL1);
        if old.is_empty() {
            return Ok(());
        }
        // A failure leaks the old table: no harm to data.
        let _ = allocator.free_unused(shard, &self.frame, old).await;
        Ok(())
    }

    /// The table as it is in memory, at its new place. What it refers to is
    /// counted first: some of these references are not in the file yet.
    async fn write_l1_copy(
        &self,
        shard: &Shard,
        allocator: &mut Held<'_, Allocator>,
        table: Span,
    ) -> IoResult<()> {
        let file = &self.frame.file;
        allocator.write_dirty(shard, &self.frame).await?;
        file.flush(shard).await?;
        file.event(shard, Event::L1GrowWriteTable).await;
        let (_, entries) = self.tables.l1();
        let mut bytes = word_bytes(&entries);
        bytes.resize(crate::units::in_memory(table.len), 0);
        self.frame.write_bytes(shard, table.offset, &bytes).await?;
        file.flush(shard).await
    }

    async fn point_at_l1(&self, shard: &Shard, table: Span) -> IoResult<()> {
        let file = &self.frame.file;
        file.event(shard, Event::L1GrowActivateTable).await;
        let len = u32::try_from(table.len / 8).map_err(|_| Errno::EFBIG)?;
        let mut pointer = len.to_be_bytes().to_vec();
        pointer.extend_from_slice(&table.offset.to_be_bytes());
        self.frame
            .write_bytes(shard, L1_POINTER_OFFSET, &pointer)
            .await?;
        file.flush(shard).await
    }
}

/// What a data file holds behind the old end must not come back.
async fn empty_behind(shard: &Shard, file: &Child, end: u64) -> Result<(), ResizeError> {
    let size = file.size();
    if size <= end {
        return Ok(());
    }
    if file.can_grow() {
        return file.truncate(shard, end, Preallocation::Off).await;
    }
    let behind = Span::between(end, size);
    file.write_zeroes(shard, behind, ZeroFlags::UNMAP)
        .await
        .map_err(ResizeError::Zero)
}
