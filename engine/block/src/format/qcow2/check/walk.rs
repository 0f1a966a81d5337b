//! The way along every reference of an image.

use std::collections::BTreeMap;

use ringback_ring::{Errno, IoResult};

use super::census::Census;
use super::snapshot_table::BadL1;
use super::{Checker, Finding, TABLES_MIN, TABLES_PER_FILE};
use crate::format::qcow2::entry::{COMPRESSED, ZERO, decode_stream, is_copied, offset_of};
use crate::format::qcow2::refcounts;
use crate::span::Span;
use crate::units::in_memory;

/// Bits that must be 0.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const BLOCK_RESERVED: u64 = 0x1ff;
const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
const BITMAP_ALL_ONES: u64 = 1;
/// Subclusters with data, in the second word of an extended entry.
const SUBCLUSTERS_DATA: u64 = 0xffff_ffff;

/// Bytes of a bitmap directory entry before its extra data.
const DIRECTORY_FIXED: usize = 24;
const BITMAP_TABLE_MAX: u32 = 0x800_0000;
const BITMAP_FLAGS: u32 = 0b11;
const BITMAP_DIRTY_TRACKING: u8 = 1;
const BITMAP_NAME_MAX: usize = 1023;
/// Tables are read in pieces of this size.
const PIECE: u64 = 2 << 20;

/// What a walk finds out, beside its findings.
pub(super) struct Walked {
    pub(super) census: Census,
    /// How many L1 entries refer to an L2 table, by its offset.
    pub(super) tables: BTreeMap<u64, u64>,
    /// The refcount structure itself is damaged.
    pub(super) rebuild: bool,
}

/// An L2 table that was met.
#[derive(Clone, Copy, Debug, Default)]
struct Visits {
    /// So often after the first time.
    again: u64,
    /// What its entries count for, each time.
    corruptions: u64,
    clusters: Clusters,
}

/// Guest clusters, for the statistics.
#[derive(Clone, Copy, Debug, Default)]
struct Clusters {
    allocated: u64,
    compressed: u64,
    fragmented: u64,
}

/// What an entry of an L2 table is, apart from being right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Compressed,
    /// A host cluster, with data or zeroes.
    Host,
    Zero,
    Unallocated,
}

/// A walk on its way.
struct Walk {
    census: Census,
    tables: BTreeMap<u64, Visits>,
    /// Preallocated clusters at impossible places become zeroes.
    repair: bool,
    /// Entries that do so, when everything has been counted.
    zeroed: Vec<ZeroedEntry>,
}

/// An entry that becomes zeroes.
struct ZeroedEntry {
    table: u64,
    place: u64,
    bytes: Vec<u8>,
}

impl Walked {
    /// Whether nothing but L1 entries refers to an L2 table: only then may it be
    /// changed.
    pub(super) fn is_only_table(&self, offset: u64, cluster_size: u64) -> bool {
        let times = self.tables.get(&offset).copied().unwrap_or(0);
        offset.is_multiple_of(cluster_size) && self.census.get(offset / cluster_size) == times
    }
}

impl Checker<'_> {
    /// What kind of entry a word is.
    pub(super) fn kind(&self, word: u64) -> Kind {
        if word & COMPRESSED != 0 {
            Kind::Compressed
        } else if offset_of(word) != 0 {
            Kind::Host
        } else if word & ZERO != 0 && !self.geometry.extended {
            Kind::Zero
        } else if self.header.has_data_file() && is_copied(word) {
            Kind::Host
        } else {
            Kind::Unallocated
        }
    }

    /// Counts every reference of the image.
    pub(super) async fn walk(&mut self, repair: bool) -> IoResult<Walked> {
        let budget = self.file.size().saturating_mul(TABLES_PER_FILE);
        self.tables_left = budget.saturating_add(TABLES_MIN);
        let mut walk = Walk {
            census: Census::new(self.cluster_count()),
            tables: BTreeMap::new(),
            repair,
            zeroed: Vec::new(),
        };
        self.count(&mut walk, Span::new(0, self.geometry.cluster_size), 1);
        let l1 = Span::new(self.header.l1_offset, u64::from(self.header.l1_size) * 8);
        self.walk_l1(&mut walk, l1, true).await?;
        self.walk_snapshots(&mut walk).await?;
        self.count_again(&mut walk).await?;
        let snapshots = Span::new(self.header.snapshot_offset, self.snapshot_bytes);
        self.count(&mut walk, snapshots, 1);
        self.count(&mut walk, self.ledger.table_span, 1);
        self.walk_bitmaps(&mut walk).await?;
        let rebuild = self.walk_blocks(&mut walk);
        let walked = Walked {
            census: walk.census,
            tables: walk
                .tables
                .into_iter()
                .map(|(offset, visits)| (offset, visits.again + 1))
                .collect(),
            rebuild,
        };
        self.write_zeroed(&walked, walk.zeroed).await?;
        Ok(walked)
    }

    /// Counts references to every cluster of a range.
    fn count(&mut self, walk: &mut Walk, span: Span, times: u64) {
        if span.is_empty() {
            return;
        }
        if !self.is_near(span) {
            self.corruption(&Finding::BehindEnd {
                offset: span.offset,
                len: span.len,
            });
            self.complete = false;
            return;
        }
        let bits = self.geometry.cluster_bits;
        let max = refcounts::max(self.geometry.refcount_order);
        for cluster in span.offset >> bits..=(span.end() - 1) >> bits {
            let excess = walk.census.add(cluster, times, max);
            if excess > 0 {
                self.report.corruptions += excess;
                // The census says less than the truth.
                self.complete = false;
                self.say(&Finding::Overflow {
                    offset: cluster << bits,
                });
            }
        }
    }

    /// The last cluster may be written in part only.
    pub(super) fn is_near(&self, span: Span) -> bool {
        let end = span.offset.checked_add(span.len);
        end.is_some_and(|end| end < self.file.size() + self.geometry.cluster_size)
    }

    async fn walk_l1(&mut self, walk: &mut Walk, l1: Span, active: bool) -> IoResult<()> {
        if l1.is_empty() {
            return Ok(());
        }
        self.count(walk, l1, 1);
        let entries = super::words(&self.read_table(l1).await?);
        for entry in entries.into_iter().filter(|&entry| entry != 0) {
            if entry & L1_RESERVED != 0 {
                self.corruption(&Finding::L1Reserved { entry });
                self.complete = false;
            }
            let offset = offset_of(entry);
            let table = Span::new(offset, self.geometry.cluster_size);
            self.count(walk, table, 1);
            if self.geometry.in_cluster(offset) != 0 {
                self.corruption(&Finding::TableUnaligned { offset });
                self.complete = false;
            }
            self.visit(walk, offset, active).await?;
        }
        Ok(())
    }

    /// Walks an L2 table, but only the first time.
    async fn visit(&mut self, walk: &mut Walk, offset: u64, active: bool) -> IoResult<()> {
        if let Some(visits) = walk.tables.get_mut(&offset) {
            visits.again += 1;
            self.report.corruptions += visits.corruptions;
            let clusters = visits.clusters;
            if active {
                self.add_clusters(clusters);
            }
            return Ok(());
        }
        let (before, zeroed) = (self.report.corruptions, walk.zeroed.len());
        let clusters = self.walk_l2(walk, offset).await?;
        if active {
            self.add_clusters(clusters);
        }
        let visits = Visits {
            again: 0,
            // What becomes zeroes is wrong only once.
            corruptions: self.report.corruptions - before - (walk.zeroed.len() - zeroed) as u64,
            clusters,
        };
        walk.tables.insert(offset, visits);
        Ok(())
    }

    fn add_clusters(&mut self, clusters: Clusters) {
        self.report.allocated_clusters += clusters.allocated;
        self.report.compressed_clusters += clusters.compressed;
        self.report.fragmented_clusters += clusters.fragmented;
    }

    /// The entries of an L2 table as pairs of words, the second of which is 0
    /// without subclusters.
    async fn l2_entries(&mut self, offset: u64) -> IoResult<Vec<(u64, u64)>> {
        let table = Span::new(offset, self.geometry.cluster_size);
        let words = super::words(&self.read_table(table).await?);
        let second = |words: &[u64]| match self.geometry.extended {
            true => words.get(1).copied().unwrap_or(0),
            false => 0,
        };
        let entries = words.chunks(self.geometry.entry_words());
        Ok(entries.map(|words| (words[0], second(words))).collect())
    }

    async fn walk_l2(&mut self, walk: &mut Walk, offset: u64) -> IoResult<Clusters> {
        let mut clusters = Clusters::default();
        let mut next = 0;
        let cluster_size = self.geometry.cluster_size;
        for (index, (word, bitmap)) in (0..).zip(self.l2_entries(offset).await?) {
            let kind = self.kind(word);
            if kind != Kind::Compressed && word & L2_RESERVED != 0 {
                self.corruption(&Finding::L2Reserved { entry: word });
                self.complete = false;
            }
            match kind {
                Kind::Compressed => {
                    if self.walk_stream(walk, index, word, bitmap) {
                        clusters.allocated += 1;
                        clusters.compressed += 1;
                        // There is no other way to pack them.
                        clusters.fragmented += 1;
                    }
                }
                Kind::Host => {
                    let host = offset_of(word);
                    if bitmap >> 32 & bitmap != 0 {
                        self.corruption(&Finding::Subclusters { host });
                    }
                    let place = (offset, index);
                    if self.geometry.in_cluster(host) != 0
                        && self.unaligned(walk, place, (word, bitmap))
                    {
                        continue;
                    }
                    clusters.allocated += 1;
                    if next != 0 && host != next {
                        clusters.fragmented += 1;
                    }
                    next = host + cluster_size;
                    if !self.header.has_data_file() {
                        self.count(walk, Span::new(host, cluster_size), 1);
                    }
                }
                Kind::Unallocated if bitmap & SUBCLUSTERS_DATA != 0 => {
                    self.corruption(&Finding::SubclustersUnallocated);
                    self.complete = false;
                }
                Kind::Zero | Kind::Unallocated => {}
            }
        }
        Ok(clusters)
    }

    /// False: nothing can be said about the stream.
    fn walk_stream(&mut self, walk: &mut Walk, index: u64, word: u64, bitmap: u64) -> bool {
        let stream = decode_stream(&self.geometry, word);
        if is_copied(word) {
            self.corruption(&Finding::CompressedCopied { host: stream.host });
            self.complete = false;
        }
        let entry = word & !crate::format::qcow2::entry::COPIED;
        if self.header.has_data_file() {
            self.corruption(&Finding::CompressedWithDataFile { index, entry });
            return false;
        }
        if bitmap != 0 {
            self.corruption(&Finding::CompressedSubclusters { index, entry });
            self.complete = false;
            return false;
        }
        self.count(walk, Span::new(stream.host, stream.len), 1);
        true
    }

    /// A host cluster that begins inside of a cluster. True: its entry says
    /// zeroes by now, and nothing else.
    fn unaligned(
        &mut self,
        walk: &mut Walk,
        (table, index): (u64, u64),
        (word, bitmap): (u64, u64),
    ) -> bool {
        let host = offset_of(word);
        let holds_data = match self.geometry.extended {
            true => bitmap & SUBCLUSTERS_DATA != 0,
            false => word & ZERO == 0,
        };
        if holds_data {
            self.corruption(&Finding::DataUnaligned { host });
            self.complete = false;
            return false;
        }
        self.corruption(&Finding::PreallocatedUnaligned {
            host,
            repaired: walk.repair,
        });
        if !walk.repair {
            return false;
        }
        let entry_bytes = self.geometry.entry_words() as u64 * 8;
        let mut bytes = match self.geometry.extended {
            true => 0_u64,
            false => ZERO,
        }
        .to_be_bytes()
        .to_vec();
        if self.geometry.extended {
            bytes.extend_from_slice(&bitmap.to_be_bytes());
        }
        walk.zeroed.push(ZeroedEntry {
            table,
            place: table + index * entry_bytes,
            bytes,
        });
        true
    }

    /// The clusters that these entries claimed may be freed only when they claim
    /// them no more: so this is durable before anything else is repaired.
    async fn write_zeroed(&mut self, walked: &Walked, zeroed: Vec<ZeroedEntry>) -> IoResult<()> {
        if zeroed.is_empty() {
            return Ok(());
        }
        for entry in zeroed {
            if walked.is_only_table(entry.table, self.geometry.cluster_size) {
                self.write(entry.place, &entry.bytes).await?;
                self.report.corruptions -= 1;
                self.report.corruptions_fixed += 1;
            } else {
                self.say(&Finding::TableOverlap { table: "L2" });
                self.report.check_errors += 1;
                self.complete = false;
            }
        }
        self.file.flush(self.shard).await
    }

    async fn walk_snapshots(&mut self, walk: &mut Walk) -> IoResult<()> {
        let snapshots = std::mem::take(&mut self.snapshots);
        if self.header.has_data_file() && !snapshots.is_empty() {
            let count = snapshots.len() as u64;
            self.corruption(&Finding::SnapshotsWithDataFile { count });
        }
        let mut result = Ok(());
        for snapshot in &snapshots {
            let finding = match snapshot.l1_span(&self.geometry) {
                Ok(l1) => {
                    result = self.walk_l1(walk, l1, false).await;
                    if result.is_err() {
                        break;
                    }
                    continue;
                }
                Err(BadL1::Unaligned) => Finding::SnapshotL1Unaligned {
                    id: snapshot.id(),
                    name: snapshot.name(),
                    offset: snapshot.l1_offset,
                },
                Err(BadL1::TooLarge) => Finding::SnapshotL1TooLarge {
                    id: snapshot.id(),
                    name: snapshot.name(),
                    size: snapshot.l1_size,
                },
            };
            self.corruption(&finding);
            self.complete = false;
        }
        self.snapshots = snapshots;
        result
    }

    /// Counts what shared L2 tables refer to for all but the first of those who
    /// share them. What is wrong with an entry has been said.
    async fn count_again(&mut self, walk: &mut Walk) -> IoResult<()> {
        let shared: Vec<(u64, u64)> = walk
            .tables
            .iter()
            .filter(|(_, visits)| visits.again > 0)
            .map(|(&offset, visits)| (offset, visits.again))
            .collect();
        for (offset, times) in shared {
            for (word, bitmap) in self.l2_entries(offset).await? {
                let span = match self.kind(word) {
                    _ if self.header.has_data_file() => continue,
                    Kind::Compressed if bitmap == 0 => {
                        let stream = decode_stream(&self.geometry, word);
                        Span::new(stream.host, stream.len)
                    }
                    Kind::Host => Span::new(offset_of(word), self.geometry.cluster_size),
                    _ => continue,
                };
                if self.is_near(span) {
                    self.count(walk, span, times);
                }
            }
        }
        Ok(())
    }

    /// The directory of persistent bitmaps, their tables, and their data. A
    /// directory that makes no sense ends the check, as it ends any opening.
    async fn walk_bitmaps(&mut self, walk: &mut Walk) -> IoResult<()> {
        let Some(bitmaps) = self.header.extensions.bitmaps else {
            return Ok(());
        };
        let directory = Span::new(bitmaps.directory_offset, bitmaps.directory_size);
        if directory.offset > i64::MAX as u64 {
            self.report.corruptions += 1;
            return Err(Errno::EINVAL);
        }
        self.count(walk, directory, 1);
        let bytes = self.read_table(directory).await?;
        let entries =
            parse_directory(&bytes, in_memory(directory.len), bitmaps.count).filter(|entries| {
                entries
                    .iter()
                    .all(|entry| self.geometry.in_cluster(entry.table) == 0)
            });
        let Some(entries) = entries else {
            self.report.corruptions += 1;
            return Err(Errno::EINVAL);
        };
        for entry in entries {
            let table = Span::new(entry.table, u64::from(entry.size) * 8);
            self.count(walk, table, 1);
            self.walk_bitmap_table(walk, &entry, table).await?;
        }
        Ok(())
    }

    async fn walk_bitmap_table(
        &mut self,
        walk: &mut Walk,
        entry: &DirectoryEntry,
        table: Span,
    ) -> IoResult<()> {
        let mut index = 0;
        for piece in super::inside(self.file, table).pieces(PIECE) {
            for word in super::words(&self.read_table(piece).await?) {
                let offset = offset_of(word);
                let is_good = word & BITMAP_RESERVED == 0
                    && self.geometry.in_cluster(offset) == 0
                    && (offset == 0 || word & BITMAP_ALL_ONES == 0);
                if !is_good {
                    self.corruption(&Finding::BitmapEntry {
                        name: entry.name.clone(),
                        index,
                    });
                    self.complete = false;
                } else if offset != 0 {
                    self.count(walk, Span::new(offset, self.geometry.cluster_size), 1);
                }
                index += 1;
            }
        }
        Ok(())
    }

    /// The refcount blocks. Answers whether some cannot be used.
    fn walk_blocks(&mut self, walk: &mut Walk) -> bool {
        let mut rebuild = false;
        let repairs = walk.repair;
        for index in 0..self.ledger.table.len() {
            let entry = self.ledger.table[index];
            let index = index as u64;
            let offset = self.ledger.block_offset(index);
            let cluster = offset >> self.geometry.cluster_bits;
            if entry & BLOCK_RESERVED != 0 {
                self.corruption(&Finding::RefcountTableReserved { index });
                rebuild = true;
            } else if self.geometry.in_cluster(offset) != 0 {
                self.corruption(&Finding::RefcountBlockUnaligned { index });
                rebuild = true;
            } else if cluster >= walk.census.len() {
                self.corruption(&Finding::RefcountBlockOutside {
                    index,
                    repaired: repairs,
                });
                // The file is not made longer for its sake, as QEMU does.
                rebuild |= repairs;
            } else if offset != 0 {
                self.count(walk, Span::new(offset, self.geometry.cluster_size), 1);
                let references = walk.census.get(cluster);
                if references != 1 {
                    self.corruption(&Finding::RefcountBlockShared { index, references });
                    rebuild = true;
                }
            }
        }
        rebuild
    }
}

/// An entry of the bitmap directory.
struct DirectoryEntry {
    table: u64,
    /// Entries of the table.
    size: u32,
    name: String,
}

/// None: it is not in order.
fn parse_directory(bytes: &[u8], len: usize, count: u32) -> Option<Vec<DirectoryEntry>> {
    let mut entries = Vec::new();
    let mut place = 0;
    while place < len {
        let rest = bytes.get(place..)?;
        let fixed = rest.first_chunk::<DIRECTORY_FIXED>()?;
        let number = |at: usize| {
            u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let table = u64::from(number(0)) << 32 | u64::from(number(4));
        let (size, flags) = (number(8), number(12));
        let name_len = usize::from(u16::from_be_bytes([fixed[18], fixed[19]]));
        let is_good = table != 0
            && (1..=BITMAP_TABLE_MAX).contains(&size)
            && table.checked_add(u64::from(size) * 8).is_some_and(|end| end <= i64::MAX as u64)
            && flags & !BITMAP_FLAGS == 0
            && fixed[16] == BITMAP_DIRTY_TRACKING
            && (9..=31).contains(&fixed[17])
            && (1..=BITMAP_NAME_MAX).contains(&name_len)
            // No extra data: none has a meaning yet.
            && number(20) == 0;
        if !is_good {
            return None;
        }
        let name = rest.get(DIRECTORY_FIXED..DIRECTORY_FIXED + name_len)?;
        entries.push(DirectoryEntry {
            table,
            size,
            name: String::from_utf8_lossy(name).into_owned(),
        });
        place += (DIRECTORY_FIXED + name_len).next_multiple_of(8);
    }
    (entries.len() as u64 == u64::from(count) && place == len).then_some(entries)
}
