//! Bringing changed metadata into the file, in the order that Q1 asks for.
//!
//! | step | what is written | why then |
//! | --- | --- | --- |
//! | 1 | refcount blocks | counts that rose must be there before references |
//! | 2 | flush | guest data, new tables and counts are durable |
//! | 3 | slices of L2 tables | what they point at is there |
//! | 4 | flush, L1 entries | only if an L2 table is new or moved |
//! | 5 | flush | what was acknowledged is durable |
//! | 6 | (memory) counts fall | the references that ended are gone for good |
//!
//! The changes of step 3 and 4 are taken before the counts of step 1: so every
//! reference that is written was counted. References that ended are taken
//! first of all: so every one of them is gone with what is written.
//!
//! With lazy refcounts step 1 is left out while the image is marked dirty.

use std::sync::atomic::{AtomicU64, Ordering};

use ringback_ring::{IoResult, Shard, error_text};

use super::entry::offset_of;
use super::frame::DIRTY;
use super::image::Qcow2;
use super::reserved::Structure;
use super::tables::{DirtyL1Entry, DirtySlice};
use crate::event::Event;
use crate::notice::Notice;
use crate::planted::{self, Fault};
use crate::span::Span;

/// Neighbouring slices are written as one, up to this many bytes.
const MERGE_MAX: usize = 1 << 20;

/// The right to write back, and what has been achieved.
#[derive(Debug, Default)]
pub(crate) struct WriteBack {
    /// The number of the last round that succeeded.
    succeeded: u64,
}

/// Counts the rounds of write-back that began.
#[derive(Debug, Default)]
pub(crate) struct Rounds(AtomicU64);

impl Qcow2 {
    /// Makes everything that was acknowledged durable. Several flushes at a
    /// time share a round that began after all of them.
    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        if !self.frame.is_usable() {
            return Ok(());
        }
        self.frame.file.event(shard, Event::FlushToOs).await;
        let begun_before = self.rounds.0.load(Ordering::Acquire);
        let mut write_back = self.write_back.lock().await;
        if write_back.succeeded > begun_before {
            return Ok(());
        }
        let round = self.rounds.0.fetch_add(1, Ordering::AcqRel) + 1;
        self.round(shard).await?;
        write_back.succeeded = round;
        Ok(())
    }

    /// Before changes that nobody has written outgrow the cache.
    pub(super) async fn write_back_if_crowded(&self, shard: &Shard) -> IoResult<()> {
        let (dirty, capacity) = self.tables.dirty_count();
        if dirty > capacity / 2 {
            self.flush(shard).await
        } else {
            Ok(())
        }
    }

    async fn round(&self, shard: &Shard) -> IoResult<()> {
        if !self.frame.writable {
            return Ok(());
        }
        let is_lazy = self.frame.incompatible() & DIRTY != 0;
        let (l1, slices, released) = {
            let mut allocator = self.allocator.lock().await;
            let released = allocator.released_count();
            let (l1, slices) = self.tables.take_dirty();
            let is_late = planted::is(Fault::CountAfterEntry);
            if !is_lazy
                && !is_late
                && let Err(errno) = allocator.write_dirty(shard, &self.frame).await
            {
                self.tables.written(&l1, false);
                return Err(errno);
            }
            (l1, slices, released)
        };
        let result = self.write_tables(shard, &l1, &slices).await;
        self.tables.written(&l1, result.is_ok());
        result?;
        if planted::is(Fault::CountAfterEntry) {
            let mut allocator = self.allocator.lock().await;
            allocator.write_dirty(shard, &self.frame).await?;
            self.frame.file.flush(shard).await?;
        }
        self.allocator
            .lock()
            .await
            .released_durably(released, &self.epochs);
        self.settle(shard).await
    }

    /// Lets go of the clusters that nobody can use any more. The file forgets
    /// them first: once they are counted down, somebody else may have them.
    async fn settle(&self, shard: &Shard) -> IoResult<()> {
        let (mut ended, forgettable) = {
            let mut allocator = self.allocator.lock().await;
            let mut ended = allocator.take_ended(&self.epochs);
            match allocator.forgettable(shard, &self.frame, &ended).await {
                Ok(forgettable) => (ended, forgettable),
                Err(errno) => {
                    allocator.put_back(&mut ended);
                    return Err(errno);
                }
            }
        };
        if planted::is(Fault::ForgottenWhenFree) {
            let mut allocator = self.allocator.lock().await;
            allocator.count_down(shard, &self.frame, &mut ended).await?;
        }
        for span in forgettable {
            // A hint; the cluster becomes free either way.
            let _ = self.frame.file.discard(shard, span).await;
        }
        let mut allocator = self.allocator.lock().await;
        let result = allocator.count_down(shard, &self.frame, &mut ended).await;
        // What could not be counted down waits for the next write-back.
        allocator.put_back(&mut ended);
        result
    }

    async fn write_tables(
        &self,
        shard: &Shard,
        l1: &[DirtyL1Entry],
        slices: &[DirtySlice],
    ) -> IoResult<()> {
        if planted::is(Fault::PointerBeforeTable) {
            self.write_l1(shard, l1).await?;
        }
        if !planted::is(Fault::EntryBeforeData) {
            self.flush_data(shard).await?;
        }
        if l1.is_empty() && slices.is_empty() && !planted::is(Fault::EntryBeforeData) {
            return Ok(());
        }
        self.write_slices(shard, slices).await?;
        if !l1.is_empty() {
            self.flush_file(shard).await?;
            self.write_l1(shard, l1).await?;
        }
        self.flush_file(shard).await
    }

    async fn flush_data(&self, shard: &Shard) -> IoResult<()> {
        if let Some(data_file) = &self.data_file {
            data_file.child.flush(shard).await?;
        }
        self.flush_file(shard).await
    }

    async fn flush_file(&self, shard: &Shard) -> IoResult<()> {
        self.frame.file.event(shard, Event::FlushToDisk).await;
        self.frame.file.flush(shard).await
    }

    async fn write_slices(&self, shard: &Shard, slices: &[DirtySlice]) -> IoResult<()> {
        let geometry = &self.frame.geometry;
        let place =
            |slice: &DirtySlice| offset_of(slice.l1_entry) + geometry.slice_offset(slice.slice);
        let mut rest = slices;
        while let Some(first) = rest.first() {
            let start = place(first);
            let mut bytes = Vec::new();
            let mut count = 0;
            for slice in rest {
                let follows = place(slice) == start + bytes.len() as u64;
                if !follows || bytes.len() >= MERGE_MAX {
                    break;
                }
                bytes.extend_from_slice(&slice.bytes);
                count += 1;
            }
            rest = &rest[count..];
            let span = Span::new(start, bytes.len() as u64);
            self.frame
                .check_overlap(shard, span, Some(Structure::ActiveL2))
                .await?;
            self.frame.file.event(shard, Event::L2Update).await;
            self.frame.write_bytes(shard, start, &bytes).await?;
        }
        Ok(())
    }

    async fn write_l1(&self, shard: &Shard, changed: &[DirtyL1Entry]) -> IoResult<()> {
        let offset = self.tables.l1_offset();
        for entry in changed {
            self.frame.file.event(shard, Event::L1Update).await;
            self.frame
                .write_bytes(shard, offset + entry.index * 8, &entry.entry.to_be_bytes())
                .await?;
        }
        Ok(())
    }

    async fn write_counts(&self, shard: &Shard) -> IoResult<()> {
        let mut allocator = self.allocator.lock().await;
        if allocator.is_dirty() {
            allocator.write_dirty(shard, &self.frame).await?;
            self.frame.file.flush(shard).await?;
        }
        Ok(())
    }

    fn tell_failure(&self, cache: &str, result: IoResult<()>) {
        if let Err(errno) = result {
            let text = error_text(errno);
            let text = format!("Failed to flush the {cache} cache: {text}");
            self.frame.notify.send(Notice::Error(text));
        }
    }

    /// Writes everything and leaves the image as if nobody had it open. Nothing
    /// else may be in flight.
    pub async fn close(&self, shard: &Shard) -> IoResult<()> {
        // First, so that the flushes below make it durable.
        if let Err(errno) = self.frame.file.cut_ahead(shard).await {
            // It is longer than it must be: no harm to data.
            tracing::warn!(
                node = self.frame.name,
                "could not cut the tail of the file off: {errno}"
            );
        }
        if !self.frame.writable || !self.frame.is_usable() {
            return Ok(());
        }
        let flushed = self.flush(shard).await;
        self.tell_failure("L2 table", flushed);
        // What was freed has been counted down by now, and goes into the file.
        let counted = self.write_counts(shard).await;
        self.tell_failure("refcount block", counted);
        flushed.and(counted)?;
        if self.frame.incompatible() & DIRTY != 0 {
            self.frame.set_feature(shard, DIRTY, false).await?;
            self.frame.file.flush(shard).await?;
        }
        Ok(())
    }
}
