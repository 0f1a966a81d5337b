//! The flags that allow an entry's cluster to be written in place: set where
//! there is one reference, and nowhere else.

use std::collections::BTreeMap;

use ringback_ring::IoResult;

use super::walk::{Kind, Walked};
use super::{Checker, Finding, Repair, TABLES_MIN, TABLES_PER_FILE};
use crate::format::qcow2::entry::{COPIED, is_copied, offset_of};
use crate::span::Span;
use crate::units::in_memory;

impl Checker<'_> {
    /// Checks the flags of the active mapping, and sets them right. Refcounts
    /// are true and durable by now, where they could be repaired.
    pub(super) async fn check_copied(&mut self, walked: &Walked) -> IoResult<()> {
        let report = &self.report;
        let repair = match self.repair {
            Repair::Nothing => false,
            Repair::Leaks => report.check_errors + report.corruptions + report.leaks == 0,
            Repair::All => true,
        };
        let budget = self.file.size().saturating_mul(TABLES_PER_FILE);
        self.tables_left = budget.saturating_add(TABLES_MIN);
        let mut seen = BTreeMap::new();
        for index in 0..self.l1.len() {
            let entry = self.l1[index];
            let offset = offset_of(entry);
            if offset == 0 {
                continue;
            }
            let cluster = offset >> self.geometry.cluster_bits;
            let (shard, file) = (self.shard, self.file);
            let Ok(refcount) = self.ledger.get(shard, file, cluster).await else {
                continue;
            };
            if (refcount == 1) != is_copied(entry) {
                self.copied_table(walked, index as u64, refcount, repair)
                    .await?;
            }
            // A table that was seen says the same again.
            if let Some(&corruptions) = seen.get(&offset) {
                self.report.corruptions += corruptions;
                continue;
            }
            let is_only_table = walked.is_only_table(offset, self.geometry.cluster_size);
            let before = self.report.corruptions;
            self.copied_data(offset, repair && is_only_table).await?;
            seen.insert(offset, self.report.corruptions - before);
        }
        if repair {
            self.file.flush(self.shard).await?;
        }
        Ok(())
    }

    /// Sets the flag of an L1 entry right.
    async fn copied_table(
        &mut self,
        walked: &Walked,
        index: u64,
        refcount: u64,
        repair: bool,
    ) -> IoResult<()> {
        let entry = self.l1[in_memory(index)];
        let place = self.header.l1_offset + index * 8;
        let is_alone = walked.census.get(place >> self.geometry.cluster_bits) == 1;
        let repaired = repair && is_alone;
        self.corruption(&Finding::CopiedTable {
            index,
            entry,
            refcount,
            repaired,
        });
        if repaired {
            let entry = with_flag(entry, refcount == 1);
            self.write(place, &entry.to_be_bytes()).await?;
            self.l1[in_memory(index)] = entry;
            self.fixed(1);
        }
        Ok(())
    }

    /// Sets the flags of a table's entries right.
    async fn copied_data(&mut self, table: u64, repaired: bool) -> IoResult<()> {
        let span = Span::new(table, self.geometry.cluster_size);
        let mut bytes = self.read_table(span).await?;
        let mut changed = 0;
        let step = self.geometry.entry_words() * 8;
        for place in (0..bytes.len()).step_by(step) {
            let Some(&word) = bytes[place..].first_chunk::<8>() else {
                break;
            };
            let entry = u64::from_be_bytes(word);
            if self.kind(entry) != Kind::Host {
                continue;
            }
            let cluster = offset_of(entry) >> self.geometry.cluster_bits;
            let (shard, file) = (self.shard, self.file);
            let refcount = match self.header.has_data_file() {
                true => Ok(1),
                false => self.ledger.get(shard, file, cluster).await,
            };
            let Ok(refcount) = refcount else { continue };
            if (refcount == 1) == is_copied(entry) {
                continue;
            }
            self.corruption(&Finding::CopiedData {
                entry,
                refcount,
                repaired,
            });
            if repaired {
                let entry = with_flag(entry, refcount == 1);
                bytes[place..place + 8].copy_from_slice(&entry.to_be_bytes());
                changed += 1;
            }
        }
        if changed > 0 {
            self.write(table, &bytes).await?;
            self.fixed(changed);
        }
        Ok(())
    }

    fn fixed(&mut self, count: u64) {
        self.report.corruptions -= count;
        self.report.corruptions_fixed += count;
    }
}

fn with_flag(entry: u64, set: bool) -> u64 {
    if set { entry | COPIED } else { entry & !COPIED }
}
