//! Reserving host clusters before anything is written.

use ringback_ring::{IoResult, Shard};

use super::entry::Entry;
use super::image::Qcow2;
use super::lookup::Purpose;
use crate::child::Child;
use crate::request::{Preallocation, ZeroFlags};
use crate::resize::ResizeError;
use crate::span::Span;

impl Qcow2 {
    /// Gives host clusters to guest clusters that read as zeroes and have none;
    /// they still do afterwards.
    pub(super) async fn preallocate(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        added: Span,
        mode: Preallocation,
    ) -> Result<(), ResizeError> {
        let mut rest = added.widen(self.cluster_size());
        while !rest.is_empty() {
            let part = self.within_slice(rest);
            self.preallocate_part(shard, backing, part, (added, mode))
                .await?;
            self.write_back_if_crowded(shard)
                .await
                .map_err(ResizeError::Preallocate)?;
            rest = Span::between(part.end(), rest.end());
            shard.yield_now().await;
        }
        Ok(())
    }

    /// Whole clusters in one slice.
    async fn preallocate_part(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        part: Span,
        (added, mode): (Span, Preallocation),
    ) -> Result<(), ResizeError> {
        let _turn = self.claim(shard, part).await;
        self.make_table(shard, part.offset)
            .await
            .map_err(ResizeError::Preallocate)?;
        let old = self.entries(shard, part, Purpose::Write).await;
        let old = old.map_err(ResizeError::Preallocate)?;
        let mut run = Span::new(part.offset, 0);
        for (cluster, entry) in part.pieces(self.cluster_size()).zip(&old) {
            let takes = self
                .can_preallocate(shard, backing, cluster, entry)
                .await
                .map_err(ResizeError::Preallocate)?;
            if takes {
                run.len += cluster.len;
                continue;
            }
            self.preallocate_run(shard, run, added, mode).await?;
            run = Span::new(cluster.end(), 0);
        }
        self.preallocate_run(shard, run, added, mode).await
    }

    /// Whether a cluster has no host cluster, and would read the same from one
    /// that is empty.
    async fn can_preallocate(
        &self,
        shard: &Shard,
        backing: Option<&Child>,
        cluster: Span,
        entry: &Entry,
    ) -> IoResult<bool> {
        if entry.holds_anything() {
            return Ok(false);
        }
        let is_data = !self.frame.geometry.extended && entry.zero == 0;
        let inside = cluster.clip(&Span::new(0, self.size()));
        Ok(!is_data || backing.is_none() || self.reads_as_zeroes(shard, backing, inside).await?)
    }

    async fn preallocate_run(
        &self,
        shard: &Shard,
        run: Span,
        added: Span,
        mode: Preallocation,
    ) -> Result<(), ResizeError> {
        if run.is_empty() {
            return Ok(());
        }
        let fresh = self.allocate_data(shard, run).await;
        let fresh = fresh.map_err(ResizeError::Preallocate)?;
        let host = Span::new(fresh.host, run.len);
        let reserved = if self.data_file.is_some() {
            // Behind the old end it was emptied.
            let old_end = added.offset.next_multiple_of(self.cluster_size());
            let kept = run.clip(&Span::new(0, old_end));
            self.zero_host(shard, kept).await
        } else {
            let end = match mode {
                Preallocation::Falloc | Preallocation::Full => run.end(),
                _ => self.unit_end(run.end().min(added.end())),
            };
            let wanted = Span::new(host.offset, end - run.offset);
            self.reserve_host(shard, wanted, fresh.is_blank, mode).await
        };
        let linked = match reserved {
            Ok(()) => self
                .link_preallocated(shard, run, host)
                .await
                .map_err(ResizeError::Preallocate),
            Err(error) => Err(error),
        };
        if linked.is_err() && self.data_file.is_none() {
            let mut allocator = self.allocator.lock().await;
            let _ = allocator.free_unused(shard, &self.frame, host).await;
        }
        linked
    }

    /// Makes host bytes read as zeroes, and take space if they shall.
    async fn reserve_host(
        &self,
        shard: &Shard,
        host: Span,
        is_blank: bool,
        mode: Preallocation,
    ) -> Result<(), ResizeError> {
        let file = &self.frame.file;
        let size = file.size();
        let takes_space = matches!(mode, Preallocation::Falloc | Preallocation::Full);
        if !is_blank || takes_space {
            self.zero_host(shard, host.clip(&Span::new(0, size)))
                .await?;
        }
        if host.end() <= size {
            return Ok(());
        }
        let mode = if takes_space {
            mode
        } else {
            Preallocation::Off
        };
        file.truncate(shard, host.end(), mode).await
    }

    async fn zero_host(&self, shard: &Shard, host: Span) -> Result<(), ResizeError> {
        if host.is_empty() {
            return Ok(());
        }
        let zeroed = self.data().write_zeroes(shard, host, ZeroFlags::KEEP);
        zeroed.await.map_err(ResizeError::Preallocate)
    }

    async fn link_preallocated(&self, shard: &Shard, run: Span, host: Span) -> IoResult<()> {
        self.set_dirty_if_lazy(shard).await?;
        let old = self.entries(shard, run, Purpose::Write).await?;
        let new: Vec<Entry> = host
            .pieces(self.cluster_size())
            .zip(&old)
            .map(|(host, old)| {
                let data = if self.frame.geometry.extended {
                    0
                } else {
                    !old.zero
                };
                Entry {
                    data,
                    zero: old.zero,
                    ..Entry::data_at(host.offset)
                }
            })
            .collect();
        self.change_entries(shard, run.offset, &new).await
    }
}
