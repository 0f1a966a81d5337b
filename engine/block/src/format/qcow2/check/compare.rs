//! The census against the ledger.

use std::collections::BTreeSet;

use ringback_ring::{Errno, IoResult};

use super::census::Census;
use super::walk::Walked;
use super::{Checker, Finding, Repair};
use crate::span::Span;

/// What a comparison finds out, beside its findings.
#[derive(Clone, Copy, Debug)]
struct Compared {
    /// Where the last cluster ends that either side knows of.
    end: u64,
    /// A used cluster counts as free: whatever allocates next may destroy it.
    rebuild: bool,
}

impl Checker<'_> {
    /// Counts references, compares, and repairs refcounts.
    pub(super) async fn check_refcounts(&mut self) -> IoResult<Walked> {
        let mut walked = self.walk(self.repairs_all()).await?;
        let before = self.report;
        let nobody = BTreeSet::new();
        let mut compared = self
            .compare(&walked.census, Repair::Nothing, &nobody)
            .await?;
        let is_wrong = self.report.leaks > 0 || self.report.corruptions > 0;
        if walked.rebuild || compared.rebuild {
            match self.repair {
                Repair::Nothing => {}
                Repair::Leaks => {
                    self.say(&Finding::NeedRebuild);
                    return Err(Errno::EIO);
                }
                Repair::All => (walked, compared) = self.rebuild_and_compare(walked).await?,
            }
        } else if self.repair > Repair::Nothing && is_wrong {
            self.report = before;
            compared = self.compare(&walked.census, self.repair, &nobody).await?;
        }
        self.report.image_end_offset = compared.end << self.geometry.cluster_bits;
        Ok(walked)
    }

    async fn rebuild_and_compare(&mut self, walked: Walked) -> IoResult<(Walked, Compared)> {
        self.say(&Finding::Rebuilding);
        let found = self.report;
        let old = self.rebuild(walked.census).await?;
        self.report.corruptions = 0;
        self.report.leaks = 0;
        self.report.allocated_clusters = 0;
        self.report.compressed_clusters = 0;
        self.report.fragmented_clusters = 0;
        let walked = self.walk(false).await?;
        let counted = self.report;
        // What the old structure took is lost now.
        let compared = self.compare(&walked.census, Repair::Leaks, &old).await?;
        if compared.rebuild || walked.rebuild {
            // A table that lies in the header, say, changes with every repair.
            self.say(&Finding::StillBroken);
            self.report.check_errors += 1;
        }
        self.report.corruptions_fixed =
            counted.corruptions_fixed + found.corruptions.saturating_sub(self.report.corruptions);
        self.report.leaks_fixed =
            counted.leaks_fixed + found.leaks.saturating_sub(self.report.leaks);
        Ok((walked, compared))
    }

    /// Compares all clusters, and repairs counts in place: too high ones only if
    /// it is sure that nothing refers there, or they are in `lost`.
    async fn compare(
        &mut self,
        census: &Census,
        repair: Repair,
        lost: &BTreeSet<u64>,
    ) -> IoResult<Compared> {
        let per_block = self.geometry.refcounts_per_block();
        // The header is always there.
        let mut compared = Compared {
            end: 1,
            rebuild: false,
        };
        let mut freed = Vec::new();
        for index in 0..census.len().div_ceil(per_block) {
            let clusters = index * per_block..((index + 1) * per_block).min(census.len());
            if self.ledger.block_offset(index) == 0 && !census.may_hold(&clusters) {
                continue;
            }
            for cluster in clusters {
                let references = census.get(cluster);
                let Some(refcount) = self.refcount(cluster).await else {
                    continue;
                };
                if references > 0 || refcount > 0 {
                    compared.end = cluster + 1;
                }
                if refcount == references {
                    continue;
                }
                compared.rebuild |= refcount == 0;
                let repaired = match refcount > references {
                    true => repair >= Repair::Leaks && (self.complete || lost.contains(&cluster)),
                    false => repair == Repair::All && refcount > 0,
                };
                self.say(&Finding::Refcount {
                    cluster,
                    refcount,
                    references,
                    repaired,
                });
                let (left, fixed) = match refcount > references {
                    true => (&mut self.report.leaks, &mut self.report.leaks_fixed),
                    false => (
                        &mut self.report.corruptions,
                        &mut self.report.corruptions_fixed,
                    ),
                };
                *(if repaired { fixed } else { left }) += 1;
                if repaired {
                    let (shard, file) = (self.shard, self.file);
                    self.ledger.set(shard, file, cluster, references).await?;
                    if references == 0 {
                        push_cluster(&mut freed, cluster);
                    }
                }
            }
        }
        if repair > Repair::Nothing {
            self.ledger.write_dirty(self.shard, self.file).await?;
            self.forget(&freed).await;
        }
        Ok(compared)
    }

    /// What the file says about a cluster. None: it could not be read. A block
    /// that lies nowhere sensible counts nothing if it is to be replaced.
    async fn refcount(&mut self, cluster: u64) -> Option<u64> {
        let (shard, file) = (self.shard, self.file);
        match self.ledger.get(shard, file, cluster).await {
            Ok(refcount) => Some(refcount),
            Err(_) if self.repairs_all() && self.ledger.is_misplaced(cluster) => Some(0),
            Err(errno) => {
                self.report.check_errors += 1;
                self.say(&Finding::RefcountUnreadable { cluster, errno });
                None
            }
        }
    }

    /// Nothing refers to these clusters, and nothing counts them any more.
    async fn forget(&self, clusters: &[(u64, u64)]) {
        let bits = self.geometry.cluster_bits;
        let end = Span::new(0, self.file.size());
        for &(first, count) in clusters {
            let span = Span::new(first << bits, count << bits).clip(&end);
            // A hint: the clusters are free either way.
            let _ = self.file.discard(self.shard, span).await;
        }
    }
}

/// Runs of clusters, as start and length.
fn push_cluster(runs: &mut Vec<(u64, u64)>, cluster: u64) {
    match runs.last_mut() {
        Some((first, count)) if *first + *count == cluster => *count += 1,
        _ => runs.push((cluster, 1)),
    }
}
