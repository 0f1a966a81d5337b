//! Writing guest data.
//!
//! A write to clusters that are there and this image's own goes straight down.
//! Any other changes the mapping: it claims its guest clusters, takes host
//! clusters, writes the data and what must stay around it, and only then makes
//! the mapping point there (Q1: the write-back makes data durable before the
//! entry).

use std::ops::Range;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use super::allocator::Fresh;
use super::codec;
use super::entry::{Entry, is_copied, l1_entry, offset_of};
use super::frame::DIRTY;
use super::image::Qcow2;
use super::lookup::{Purpose, Room};
use super::reserved::Structure;
use crate::child::Child;
use crate::event::Event;
use crate::planted::{self, Fault};
use crate::request::ZeroFlags;
use crate::span::Span;
use crate::units::in_memory;

/// Up to this many bytes, data and what surrounds it are written as one.
const MERGE_MAX: u64 = 256 << 10;

/// A change of mapping that is prepared: data goes to `host`, entries follow.
struct Plan {
    /// Guest clusters concerned.
    clusters: Span,
    /// What the guest writes.
    span: Span,
    /// What is written: the guest's bytes and what must stay around them.
    filled: Span,
    /// Host offset of the first cluster.
    host: u64,
    /// The host clusters are new.
    fresh: Option<Fresh>,
    old: Vec<Entry>,
}

impl Plan {
    /// Where a guest offset goes.
    fn place(&self, offset: u64) -> u64 {
        self.host + (offset - self.clusters.offset)
    }

    fn place_span(&self, span: Span) -> Span {
        Span::new(self.place(span.offset), span.len)
    }
}

impl Qcow2 {
    /// Writes a window to `span`, of the same length.
    pub(crate) async fn write(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        if let Err(errno) = self.check_writable() {
            return (Err(errno), buf);
        }
        let mut rest = span;
        while !rest.is_empty() {
            let start = window.start + in_memory(rest.offset - span.offset);
            let result;
            (result, buf) = self
                .write_some(shard, backing, rest, buf, start..window.end)
                .await;
            match result {
                Ok(done) => rest = Span::between(rest.offset + done, rest.end()),
                Err(errno) => return (Err(errno), buf),
            }
        }
        (Ok(()), buf)
    }

    /// Writes the start of `rest`; answers how many bytes.
    async fn write_some(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        rest: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<u64>, Buf) {
        let run = {
            let _passage = self.epochs.enter(shard.index());
            let run = match self.write_run(shard, rest).await {
                Ok(run) => run,
                Err(errno) => return (Err(errno), buf),
            };
            if let Room::There { host } = run.room {
                let window = window.start..window.start + in_memory(run.len);
                let (result, buf) = self
                    .write_data(shard, Span::new(host, run.len), buf, window)
                    .await;
                return (result.map(|()| run.len), buf);
            }
            run
        };
        let window = window.start..window.start + in_memory(run.len);
        let span = Span::new(rest.offset, run.len);
        // Boxed: the rare way would make every request large.
        Box::pin(self.write_mapping(shard, backing, span, buf, window)).await
    }

    /// Guest bytes to a place in the data file.
    async fn write_data(
        &self,
        shard: &Shard,
        host: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        if self.data_file.is_none()
            && let Err(errno) = self.frame.check_overlap(shard, host, None).await
        {
            return (Err(errno), buf);
        }
        self.frame.file.event(shard, Event::WriteAio).await;
        self.data().write(shard, host, buf, window).await
    }

    /// Writes clusters whose mapping must change; answers how many bytes, none
    /// if somebody else has changed it meanwhile.
    async fn write_mapping(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<u64>, Buf) {
        let _turn = self.claim(shard, span).await;
        let plan = match self.plan(shard, span).await {
            Ok(Some(plan)) => plan,
            Ok(None) => return (Ok(0), buf),
            Err(errno) => return (Err(errno), buf),
        };
        let window = window.start..window.start + in_memory(plan.span.len);
        let (written, buf) = self.fill(shard, backing, &plan, buf, window).await;
        let result = match written {
            Ok(()) => self.link(shard, &plan).await,
            Err(errno) => {
                self.give_back(shard, &plan).await;
                Err(errno)
            }
        };
        (result.map(|()| plan.span.len), buf)
    }

    /// Under the claim: what has to be done now. None: nothing any more.
    async fn plan(&self, shard: &Shard, span: Span) -> IoResult<Option<Plan>> {
        let run = self.write_run(shard, span).await?;
        let span = Span::new(span.offset, run.len);
        let clusters = span.widen(self.cluster_size());
        if matches!(run.room, Room::There { .. }) {
            return Ok(None);
        }
        self.make_table(shard, span.offset).await?;
        let old = self.entries(shard, clusters, Purpose::Write).await?;
        let (host, fresh) = match run.room {
            Room::Own { host } => (host, None),
            _ => {
                let fresh = self.allocate_data(shard, clusters).await?;
                (fresh.host, Some(fresh))
            }
        };
        let filled = self.to_be_filled(span, &old, fresh.is_some());
        Ok(Some(Plan {
            clusters,
            span,
            filled,
            host,
            fresh,
            old,
        }))
    }

    pub(super) async fn allocate_data(&self, shard: &Shard, clusters: Span) -> IoResult<Fresh> {
        if self.data_file.is_some() {
            // Every byte lies at its guest offset. What is there is unknown.
            return Ok(Fresh {
                host: clusters.offset,
                is_blank: false,
            });
        }
        let count = clusters.len >> self.frame.geometry.cluster_bits;
        const WHAT: &str = "data cluster";
        let taken = {
            let mut allocator = self.allocator.lock().await;
            allocator
                .allocate_sparingly(shard, &self.frame, count, WHAT)
                .await?
        };
        if let Some(fresh) = taken {
            return Ok(fresh);
        }
        self.flush(shard).await?;
        let mut allocator = self.allocator.lock().await;
        allocator.allocate(shard, &self.frame, count, WHAT).await
    }

    /// The guest bytes that have to be written so that the touched subclusters
    /// become whole, and so that nothing is lost that only the old host cluster
    /// holds.
    fn to_be_filled(&self, span: Span, old: &[Entry], moves: bool) -> Span {
        let geometry = &self.frame.geometry;
        let whole = span.widen(geometry.subcluster_size);
        let (first, last) = (old.first(), old.last());
        let held = |entry: Option<&Entry>| match entry {
            Some(entry) if entry.stream.is_some() => u32::MAX,
            Some(entry) if moves => entry.data,
            _ => 0,
        };
        let (mut start, mut end) = (whole.offset, whole.end());
        if geometry.extended {
            let cluster = geometry.cluster_start(span.offset);
            let before = u64::from(held(first).trailing_zeros()) * geometry.subcluster_size;
            start = start.min(cluster + before);
            let cluster = geometry.cluster_start(span.end() - 1);
            let behind = u64::from(32 - held(last).leading_zeros()) * geometry.subcluster_size;
            end = end.max(cluster + behind);
        }
        // Subclusters of the own host cluster that hold data already are not
        // written again: others may be writing there.
        let start = match first {
            Some(entry) if !moves && self.holds(entry, span.offset) => span.offset,
            _ => start,
        };
        let end = match last {
            Some(entry) if !moves && self.holds(entry, span.end() - 1) => span.end(),
            _ => end,
        };
        Span::between(start, end)
    }

    fn holds(&self, entry: &Entry, offset: u64) -> bool {
        let bit = 1 << self.frame.geometry.subcluster(offset);
        entry.data & bit != 0
    }

    /// Writes the guest's bytes, and around them what was there before.
    async fn fill(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        plan: &Plan,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        // All of it, before any of it is touched.
        if self.data_file.is_none() {
            let host = plan.place_span(plan.filled);
            if let Err(errno) = self.frame.check_overlap(shard, host, None).await {
                return (Err(errno), buf);
            }
        }
        let head = Span::between(plan.filled.offset, plan.span.offset);
        let tail = Span::between(plan.span.end(), plan.filled.end());
        if head.is_empty() && tail.is_empty() {
            let host = plan.place_span(plan.span);
            return self.write_data(shard, host, buf, window).await;
        }
        let (result, buf) = match self.is_all_zero(shard, backing, [head, tail]).await {
            Ok(true) => {
                let zeroed = self.zero_around(shard, plan, [head, tail]).await;
                if zeroed.is_err() {
                    return (zeroed, buf);
                }
                let host = plan.place_span(plan.span);
                self.write_data(shard, host, buf, window).await
            }
            Ok(false) if plan.filled.len <= MERGE_MAX => {
                let result = self
                    .write_merged(shard, backing, plan, &buf[window.clone()])
                    .await;
                (result, buf)
            }
            Ok(false) => {
                self.write_pieces(shard, backing, plan, [head, tail], buf, window)
                    .await
            }
            Err(errno) => (Err(errno), buf),
        };
        (result, buf)
    }

    async fn is_all_zero(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        parts: [Span; 2],
    ) -> IoResult<bool> {
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            if !self.reads_as_zeroes(shard, backing, part).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes what is filled around the guest's bytes read as zeroes before these
    /// go down.
    ///
    /// New clusters are zeroed as a whole. In one that is there already, bytes
    /// between head and tail may be live: a reader, or a power cut, would find
    /// zeroes there that nobody wrote.
    async fn zero_around(&self, shard: &Shard, plan: &Plan, parts: [Span; 2]) -> IoResult<()> {
        self.frame.file.event(shard, Event::ClusterAllocSpace).await;
        let [head, tail] = match plan.fresh {
            Some(fresh) if fresh.is_blank => return Ok(()),
            Some(_) => [plan.filled, Span::default()],
            None if planted::is(Fault::LiveBytesZeroed) => [plan.filled, Span::default()],
            None => {
                let unit = self.frame.geometry.subcluster_size;
                let [head, tail] = parts.map(|part| match part.is_empty() {
                    true => part,
                    false => part.widen(unit),
                });
                let is_one = head == tail;
                [head, if is_one { Span::default() } else { tail }]
            }
        };
        for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
            let host = plan.place_span(part);
            self.data()
                .write_zeroes(shard, host, ZeroFlags::KEEP)
                .await?;
        }
        Ok(())
    }

    /// Small ranges: old and new bytes in one buffer, one write.
    async fn write_merged(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        plan: &Plan,
        new: &[u8],
    ) -> IoResult<()> {
        let whole = 0..in_memory(plan.filled.len);
        let mut merged = shard.buffer_now(whole.len());
        let start = in_memory(plan.span.offset - plan.filled.offset);
        let head = Span::between(plan.filled.offset, plan.span.offset);
        let tail = Span::between(plan.span.end(), plan.filled.end());
        self.frame.file.event(shard, Event::CowRead).await;
        for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
            let at = in_memory(part.offset - plan.filled.offset);
            let window = at..at + in_memory(part.len);
            let result;
            (result, merged) = self.read(shard, backing, part, merged, window).await;
            result?;
        }
        merged[start..start + new.len()].copy_from_slice(new);
        self.frame.file.event(shard, Event::CowWrite).await;
        let host = plan.place_span(plan.filled);
        self.write_data(shard, host, merged, whole).await.0
    }

    /// Large ranges: old bytes around, the guest's from its own buffer.
    async fn write_pieces(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        plan: &Plan,
        parts: [Span; 2],
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            for piece in part.pieces(MERGE_MAX) {
                if let Err(errno) = self.copy_old(shard, backing, plan, piece).await {
                    return (Err(errno), buf);
                }
            }
        }
        let host = plan.place_span(plan.span);
        self.write_data(shard, host, buf, window).await
    }

    async fn copy_old(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        plan: &Plan,
        part: Span,
    ) -> IoResult<()> {
        let window = 0..in_memory(part.len);
        let old = shard.buffer_now(window.len());
        self.frame.file.event(shard, Event::CowRead).await;
        let (result, old) = self.read(shard, backing, part, old, window.clone()).await;
        result?;
        self.frame.file.event(shard, Event::CowWrite).await;
        self.data()
            .write(shard, plan.place_span(part), old, window)
            .await
            .0
    }

    /// Makes the mapping point at what has been written.
    async fn link(&self, shard: &Shard, plan: &Plan) -> IoResult<()> {
        if plan.fresh.is_some()
            && let Err(errno) = self.set_dirty_if_lazy(shard).await
        {
            self.give_back(shard, plan).await;
            return Err(errno);
        }
        let geometry = &self.frame.geometry;
        let clusters = plan.clusters.pieces(geometry.cluster_size);
        let new: Vec<Entry> = clusters
            .zip(&plan.old)
            .map(|(cluster, old)| {
                let filled = plan.filled.clip(&cluster);
                let mut entry = Entry::data_at(plan.place(cluster.offset));
                if geometry.extended {
                    let data = self.subclusters(filled);
                    let kept = if plan.fresh.is_some() { 0 } else { old.data };
                    entry.data = data | kept;
                    entry.zero = old.zero & !entry.data;
                }
                entry
            })
            .collect();
        let changed = self.change_entries(shard, plan.clusters.offset, &new);
        if let Err(errno) = changed.await {
            self.give_back(shard, plan).await;
            return Err(errno);
        }
        if plan.fresh.is_some() {
            self.release_old(shard, &plan.old, false).await;
        }
        self.write_back_if_crowded(shard).await
    }

    /// The mapping has not changed: nothing refers to the new clusters.
    async fn give_back(&self, shard: &Shard, plan: &Plan) {
        if plan.fresh.is_none() || self.data_file.is_some() {
            return;
        }
        let span = plan.place_span(plan.clusters);
        let mut allocator = self.allocator.lock().await;
        // If that fails as well, they are leaked: no harm to data.
        let _ = allocator.free_unused(shard, &self.frame, span).await;
    }

    /// With lazy refcounts, the first new reference makes the image dirty: its
    /// refcounts are not to be trusted until it is closed.
    pub(super) async fn set_dirty_if_lazy(&self, shard: &Shard) -> IoResult<()> {
        if !self.lazy_refcounts || self.frame.incompatible() & DIRTY != 0 {
            return Ok(());
        }
        self.frame.set_feature(shard, DIRTY, true).await
    }

    /// Replaces the entries of neighbouring clusters in one slice, whose L2
    /// table is this image's own; all, or with an error none. Must be followed by
    /// [`Qcow2::write_back_if_crowded`], once the old references are released: if
    /// that fails the entries have changed all the same.
    pub(super) async fn change_entries(
        &self,
        shard: &Shard,
        guest: u64,
        entries: &[Entry],
    ) -> IoResult<()> {
        let geometry = &self.frame.geometry;
        let slice = geometry.slice_index(guest);
        let first = geometry.entry_in_slice(guest);
        loop {
            let raw = entries
                .iter()
                .enumerate()
                .map(|(index, entry)| (first + index, entry.encode(geometry)));
            if self.tables.change(slice, raw) {
                break;
            }
            // It was thrown out of the cache meanwhile.
            self.load_slice(shard, guest).await?;
        }
        Ok(())
    }

    /// The old references of changed entries are gone.
    pub(super) async fn release_old(&self, shard: &Shard, old: &[Entry], punch: bool) {
        if self.data_file.is_some() || !old.iter().any(Entry::holds_anything) {
            return;
        }
        let cluster_size = self.cluster_size();
        let mut allocator = self.allocator.lock().await;
        if planted::is(Fault::FreedAtOnce) {
            for host in old.iter().filter_map(|entry| entry.host) {
                let cluster = Span::new(host, cluster_size);
                let _ = allocator.free_unused(shard, &self.frame, cluster).await;
            }
            return;
        }
        for entry in old {
            match (entry.stream, entry.host) {
                (Some(stream), _) => {
                    allocator.release(Span::new(stream.host, stream.len), punch, true);
                }
                (None, Some(host)) => {
                    let span = Span::new(host, cluster_size);
                    allocator.release(span, punch, entry.copied);
                }
                (None, None) => {}
            }
        }
    }

    /// Makes sure that the L2 table for a guest offset exists and belongs to
    /// this image alone.
    pub(super) async fn make_table(&self, shard: &Shard, guest: u64) -> IoResult<()> {
        let geometry = &self.frame.geometry;
        let index = geometry.l1_index(guest);
        if is_copied(self.tables.l1_entry(index)) {
            return Ok(());
        }
        if index >= self.tables.l1_len() {
            return Err(Errno::EIO);
        }
        let mut allocator = self.allocator.lock().await;
        let old = self.tables.l1_entry(index);
        if is_copied(old) {
            return Ok(());
        }
        let fresh = allocator
            .allocate(shard, &self.frame, 1, "L2 table")
            .await?;
        let new = Span::new(fresh.host, geometry.cluster_size);
        let made = self.write_new_table(shard, offset_of(old), new);
        if let Err(errno) = made.await {
            let _ = allocator.free_unused(shard, &self.frame, new).await;
            return Err(errno);
        }
        if self.lazy_refcounts && self.frame.incompatible() & DIRTY == 0 {
            // From the first cluster on counts are put off; those of tables
            // before it are not.
            allocator.write_dirty(shard, &self.frame).await?;
        }
        self.frame.reserved.add(new, Structure::ActiveL2);
        let entry = l1_entry(fresh.host);
        if offset_of(old) == 0 {
            let slice = geometry.slice_index(guest);
            self.tables.set_l1_entry_of_empty(index, entry, slice);
        } else {
            self.tables.set_l1_entry(index, entry);
            let old = Span::new(offset_of(old), geometry.cluster_size);
            self.frame.reserved.remove(old);
            allocator.release(old, self.discard.pass_other, false);
        }
        Ok(())
    }

    /// A new L2 table: empty, or the copy of one that a snapshot shares.
    ///
    /// An empty one is written also where the file reads as zeroes: it may stay
    /// empty, and a table behind the end of the file counts as a corruption.
    async fn write_new_table(&self, shard: &Shard, old: u64, new: Span) -> IoResult<()> {
        let frame = &self.frame;
        if old == 0 {
            frame.file.event(shard, Event::L2AllocWrite).await;
            return frame.file.write_zeroes(shard, new, ZeroFlags::KEEP).await;
        }
        if frame.geometry.in_cluster(old) != 0 {
            let message = format!("L2 table offset {old:#x} unaligned");
            return Err(frame.corruption(shard, true, message, None).await);
        }
        frame.file.event(shard, Event::L2AllocCowRead).await;
        let bytes = frame.read_bytes(shard, Span::new(old, new.len)).await?;
        frame.file.event(shard, Event::L2AllocWrite).await;
        frame.write_bytes(shard, new.offset, &bytes).await
    }

    /// Writes whole clusters (the disk's end counts as a cluster's end) in
    /// compressed form. Only what holds nothing yet can be written so.
    pub(crate) async fn write_compressed(
        &self,
        shard: &Shard,
        span: Span,
        bytes: &[u8],
    ) -> IoResult<()> {
        self.check_writable()?;
        if !self.can_compress() {
            return Err(Errno::EOPNOTSUPP);
        }
        // Nothing at all is aligned, wherever it is.
        if span.is_empty() {
            return Ok(());
        }
        let cluster_size = self.cluster_size();
        let ends_well = span.end().is_multiple_of(cluster_size) || span.end() == self.size();
        if !span.offset.is_multiple_of(cluster_size) || !ends_well {
            return Err(Errno::EINVAL);
        }
        let mut result = Ok(());
        for piece in span.pieces(cluster_size) {
            let start = in_memory(piece.offset - span.offset);
            let mut cluster = vec![0; in_memory(cluster_size)];
            cluster[..in_memory(piece.len)]
                .copy_from_slice(&bytes[start..start + in_memory(piece.len)]);
            // As in QEMU, one that is taken does not hold up the others.
            result = result.and(self.write_packed(shard, piece, cluster).await);
        }
        result
    }

    async fn write_packed(&self, shard: &Shard, guest: Span, cluster: Vec<u8>) -> IoResult<()> {
        let compression = self.compression;
        let (packed, cluster) = shard
            .blocking(move || (codec::pack(compression, &cluster), cluster))
            .await;
        let Some(packed) = packed else {
            let window = 0..in_memory(guest.len);
            let mut buf = shard.buffer_now(window.len());
            buf.copy_from_slice(&cluster[window.clone()]);
            return self.write(shard, None, guest, buf, window).await.0;
        };
        let _turn = self.claim(shard, guest).await;
        self.make_table(shard, guest.offset).await?;
        let old = self.entries(shard, guest, Purpose::Write).await?;
        if old.iter().any(Entry::holds_anything) {
            return Err(Errno::EIO);
        }
        let len = packed.len() as u64;
        let host = {
            let mut allocator = self.allocator.lock().await;
            allocator.allocate_bytes(shard, &self.frame, len).await?
        };
        let stream = Span::new(host, len);
        let written = self.write_stream(shard, stream, &packed).await;
        if let Err(errno) = written {
            let mut allocator = self.allocator.lock().await;
            let _ = allocator.free_unused(shard, &self.frame, stream).await;
            return Err(errno);
        }
        self.frame
            .file
            .event(shard, Event::L2UpdateCompressed)
            .await;
        let entry = Entry {
            stream: Some(super::entry::Stream { host, len }),
            ..Entry::EMPTY
        };
        let changed = self.change_entries(shard, guest.offset, &[entry]).await;
        if let Err(errno) = changed {
            let mut allocator = self.allocator.lock().await;
            let _ = allocator.free_unused(shard, &self.frame, stream).await;
            return Err(errno);
        }
        self.write_back_if_crowded(shard).await
    }

    async fn write_stream(&self, shard: &Shard, stream: Span, packed: &[u8]) -> IoResult<()> {
        self.frame.check_overlap(shard, stream, None).await?;
        self.frame.file.event(shard, Event::WriteCompressed).await;
        self.frame.write_bytes(shard, stream.offset, packed).await
    }
}
