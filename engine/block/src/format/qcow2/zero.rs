//! Zeroes and discards: changes of mapping that write no guest data.

use ringback_ring::{Errno, IoResult, Shard};

use super::entry::Entry;
use super::image::Qcow2;
use super::lookup::{Place, Purpose};
use crate::child::Child;
use crate::request::ZeroFlags;
use crate::span::Span;
use crate::units::in_memory;

/// Zeroes that have to be written as data go in pieces of this size.
const PIECE: u64 = 1 << 20;

impl Qcow2 {
    /// Makes `span` read as zeroes: by its entries where that is possible, else
    /// by writing them.
    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        self.check_writable()?;
        if span.is_empty() {
            // At the end of a disk of no bytes it would be taken for that end's cluster.
            return Ok(());
        }
        let flags = ZeroFlags {
            may_unmap: flags.may_unmap && self.discard.enabled,
            ..flags
        };
        let unit = self.frame.geometry.subcluster_size;
        let whole = self.whole_units(span, unit);
        let (head, tail) = if whole.is_empty() {
            // Inside one unit, or across the border of two.
            let border = span
                .offset
                .next_multiple_of(unit)
                .clamp(span.offset, span.end());
            (
                Span::between(span.offset, border),
                Span::between(border, span.end()),
            )
        } else {
            (
                Span::between(span.offset, whole.offset),
                Span::between(whole.end().min(span.end()), span.end()),
            )
        };
        self.zero_part(shard, backing, head, flags).await?;
        self.zero_units(shard, backing, whole, flags).await?;
        self.zero_part(shard, backing, tail, flags).await
    }

    /// The whole units inside a span; the disk's end ends one. It ends the last
    /// cluster, too, but, as in QEMU, not if it cuts a unit.
    fn whole_units(&self, span: Span, unit: u64) -> Span {
        if span.end() != self.size() {
            return span.shrink(unit);
        }
        let last = Span::new(span.end().saturating_sub(1), 1).widen(self.cluster_size());
        let end = if span.offset <= last.offset && span.end().is_multiple_of(unit) {
            last.end()
        } else {
            span.end().next_multiple_of(unit)
        };
        Span::between(span.offset, end).shrink(unit)
    }

    /// A part of one unit.
    async fn zero_part(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        part: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        if part.is_empty() {
            return Ok(());
        }
        let unit = part.widen(self.frame.geometry.subcluster_size);
        let holds_data = {
            let _passage = self.epochs.enter(shard.index());
            let place = self.run(shard, part).await?.place;
            !matches!(place, Place::Zero | Place::Unallocated)
        };
        // If the rest of the unit is zero, too, its entry can say so.
        if !holds_data && (self.frame.version >= 3 || backing.is_none()) {
            let on_disk = unit.clip(&Span::new(0, self.size().max(part.end())));
            let _turn = self.claim(shard, unit).await;
            if self.is_zero_around(shard, backing, on_disk, part).await?
                && self.zero_claimed(shard, backing, unit, flags).await? > 0
            {
                return Ok(());
            }
        }
        self.write_zero_bytes(shard, backing, part, flags).await
    }

    /// Whether what lies around `part` in `unit` reads as zeroes, and `part`
    /// itself is not data of this image.
    async fn is_zero_around(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        unit: Span,
        part: Span,
    ) -> IoResult<bool> {
        let place = self.run(shard, part).await?.place;
        if !matches!(place, Place::Zero | Place::Unallocated) {
            return Ok(false);
        }
        for rest in [
            Span::between(unit.offset, part.offset),
            Span::between(part.end(), unit.end()),
        ] {
            if !rest.is_empty() && !self.reads_as_zeroes(shard, backing, rest).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn write_zero_bytes(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        if flags.no_fallback {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut buf = shard.buffer_now(in_memory(span.len.min(PIECE)));
        buf.fill(0);
        for piece in span.pieces(PIECE) {
            let window = 0..in_memory(piece.len);
            let result;
            (result, buf) = self.write(shard, backing, piece, buf, window).await;
            result?;
        }
        Ok(())
    }

    /// Whole subclusters (without them: clusters), in slices.
    async fn zero_units(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        if !span.is_empty() && self.cuts_packed(shard, span).await? {
            // QEMU then writes all of it as data, and so do we.
            let inside = span.clip(&Span::new(0, self.size()));
            return self.write_zero_bytes(shard, backing, inside, flags).await;
        }
        let mut rest = span;
        while !rest.is_empty() {
            let part = self.within_slice(rest);
            let done = {
                let _turn = self.claim(shard, part).await;
                self.zero_claimed(shard, backing, part, flags).await?
            };
            let mut end = part.offset + done;
            if done < part.len {
                // No entry can say that this is zero.
                let cluster = Span::new(end, 1).widen(self.cluster_size()).clip(&part);
                let inside = cluster.clip(&Span::new(0, self.size()));
                self.write_zero_bytes(shard, backing, inside, flags).await?;
                end = cluster.end();
            }
            rest = Span::between(end, rest.end());
            if !rest.is_empty() {
                shard.yield_now().await;
            }
        }
        Ok(())
    }

    /// Whether a span of whole subclusters begins or ends inside a compressed
    /// cluster.
    async fn cuts_packed(&self, shard: &Shard, span: Span) -> IoResult<bool> {
        let cluster_size = self.cluster_size();
        let _passage = self.epochs.enter(shard.index());
        for (edge, inside) in [(span.offset, span.offset), (span.end(), span.end() - 1)] {
            if !edge.is_multiple_of(cluster_size) {
                let place = self.run(shard, Span::new(inside, 1)).await?.place;
                if matches!(place, Place::Compressed(_)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Under the claim on these clusters, which lie in one slice: answers how
    /// many bytes from the start could be made zero by their entries.
    async fn zero_claimed(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<u64> {
        if self.frame.version < 3 && (backing.is_some() || flags.no_fallback) {
            return Ok(0);
        }
        self.make_table(shard, span.offset).await?;
        let old = self.entries(shard, span, Purpose::Write).await?;
        // A part of a compressed cluster would have to be unpacked.
        let packed = self
            .clusters_of_guest(span)
            .zip(&old)
            .find(|(cluster, old)| {
                old.stream.is_some() && self.subclusters(span.clip(cluster)) != u32::MAX
            });
        let span = match packed {
            Some((cluster, _)) => Span::between(span.offset, cluster.offset.max(span.offset)),
            None => span,
        };
        if span.is_empty() {
            return Ok(0);
        }
        if let Some(data_file) = self.data_file.as_ref().filter(|file| file.is_raw) {
            let inside = span.clip(&Span::new(0, self.size().max(span.offset)));
            data_file.child.write_zeroes(shard, inside, flags).await?;
        }
        let new: Vec<Entry> = self
            .clusters_of_guest(span)
            .zip(&old)
            .map(|(cluster, &old)| {
                let mask = self.subclusters(span.clip(&cluster));
                self.zeroed(old, mask, flags.may_unmap)
            })
            .collect();
        self.replace(shard, span, &old[..new.len()], &new).await?;
        Ok(span.len)
    }

    /// The entry of a cluster of which these subclusters become zeroes.
    fn zeroed(&self, old: Entry, mask: u32, may_unmap: bool) -> Entry {
        let whole = mask == u32::MAX;
        if self.frame.version < 3 {
            return Entry::EMPTY;
        }
        if whole && (old.stream.is_some() || (may_unmap && !self.discard.keep_clusters)) {
            return Entry::ZEROES;
        }
        Entry {
            data: old.data & !mask,
            zero: old.zero | mask,
            ..old
        }
    }

    /// Replaces entries by others that refer to no more than the old ones.
    async fn replace(
        &self,
        shard: &Shard,
        span: Span,
        old: &[Entry],
        new: &[Entry],
    ) -> IoResult<()> {
        if old == new {
            return Ok(());
        }
        self.change_entries(shard, self.frame.geometry.cluster_start(span.offset), new)
            .await?;
        let released: Vec<Entry> = old
            .iter()
            .zip(new)
            .filter(|(old, new)| old.holds_anything() && !new.holds_anything())
            .map(|(&old, _)| old)
            .collect();
        self.release_old(shard, &released, self.discard.pass_request)
            .await;
        self.write_back_if_crowded(shard).await
    }

    fn clusters_of_guest(&self, span: Span) -> impl Iterator<Item = Span> {
        let cluster_size = self.cluster_size();
        span.widen(cluster_size).pieces(cluster_size)
    }

    /// A hint that the content of `span` is no longer needed. Only whole
    /// clusters count; they read as zeroes afterwards where the format can say
    /// so.
    pub(crate) async fn discard(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
    ) -> IoResult<()> {
        self.check_writable()?;
        if !self.discard.enabled || (self.frame.version < 3 && backing.is_some()) {
            return Ok(());
        }
        let mut rest = self.whole_units(span, self.cluster_size());
        while !rest.is_empty() {
            let part = self.within_slice(rest);
            {
                let _turn = self.claim(shard, part).await;
                self.discard_claimed(shard, backing, part).await?;
            }
            rest = Span::between(part.end(), rest.end());
            if !rest.is_empty() {
                shard.yield_now().await;
            }
        }
        Ok(())
    }

    async fn discard_claimed(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        span: Span,
    ) -> IoResult<()> {
        let Ok(old) = self.entries(shard, span, Purpose::Discard).await else {
            // Damage was told; the hint is not followed.
            return self.frame.check_usable();
        };
        let new: Vec<Entry> = old
            .iter()
            .map(|&old| self.discarded(old, backing.is_some()))
            .collect();
        if new != old {
            self.make_table(shard, span.offset).await?;
        }
        self.replace(shard, span, &old, &new).await?;
        self.punch_kept(shard, span, &old).await
    }

    fn discarded(&self, old: Entry, has_backing: bool) -> Entry {
        if self.frame.version < 3 {
            return Entry::EMPTY;
        }
        if !old.holds_anything() && !has_backing {
            // It reads as zeroes as it is.
            return old;
        }
        if self.discard.keep_clusters && old.stream.is_none() && old.holds_anything() {
            return Entry {
                data: 0,
                zero: u32::MAX,
                ..old
            };
        }
        Entry::ZEROES
    }

    /// Host clusters that stay although their content does not; and the data
    /// file's, which are never freed.
    async fn punch_kept(&self, shard: &Shard, span: Span, old: &[Entry]) -> IoResult<()> {
        if !self.discard.pass_request {
            return Ok(());
        }
        if let Some(data_file) = &self.data_file {
            let inside = span.clip(&Span::new(0, self.size().max(span.offset)));
            return data_file.child.discard(shard, inside).await;
        }
        if self.discard.keep_clusters {
            for host in old.iter().filter_map(Entry::own_host) {
                let cluster = Span::new(host, self.cluster_size());
                // A damaged entry may point at the image's own structures.
                if self.frame.reserved.find(cluster).is_none() {
                    self.frame.file.discard(shard, cluster).await?;
                }
            }
        }
        Ok(())
    }
}
