//! The table of internal snapshots, as far as it can be read.

use ringback_ring::{Errno, IoResult};

use super::census::Census;
use super::{Checker, Finding, Repair};
use crate::format::qcow2::geometry::Geometry;
use crate::format::qcow2::header::{L1_ENTRIES_MAX, SNAPSHOTS_MAX};
use crate::format::qcow2::snapshots::{EXTRA_MAX, FIXED, TABLE_BYTES_MAX};
use crate::span::Span;
use crate::units::in_memory;

/// Bytes of extra data that have a meaning today.
const KNOWN_EXTRA: usize = 24;
/// Bytes of extra data that version 3 asks for.
const REQUIRED_EXTRA: u32 = 16;
/// Where count and offset of the table stand in the header.
const POINTER_OFFSET: u64 = 60;
/// Bytes that are read at a time: more than any entry has.
const WINDOW: u64 = 1 << 20;

/// An entry.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) l1_offset: u64,
    pub(super) l1_size: u32,
    pub(super) id: Vec<u8>,
    pub(super) name: Vec<u8>,
    fixed: Vec<u8>,
    extra: Vec<u8>,
}

/// Why a snapshot's L1 table cannot be looked at.
pub(super) enum BadL1 {
    Unaligned,
    TooLarge,
}

impl Snapshot {
    pub(super) fn l1_span(&self, geometry: &Geometry) -> Result<Span, BadL1> {
        if geometry.in_cluster(self.l1_offset) != 0 {
            return Err(BadL1::Unaligned);
        }
        if self.l1_size > L1_ENTRIES_MAX {
            return Err(BadL1::TooLarge);
        }
        let len = u64::from(self.l1_size) * 8;
        if self.l1_offset.checked_add(len).is_none() {
            return Err(BadL1::TooLarge);
        }
        Ok(Span::new(self.l1_offset, len))
    }

    pub(super) fn id(&self) -> String {
        text(&self.id)
    }

    pub(super) fn name(&self) -> String {
        text(&self.name)
    }

    fn len(&self) -> u64 {
        (FIXED + self.extra.len() + self.id.len() + self.name.len()) as u64
    }

    /// As it is written: with everything that version 3 asks for.
    fn append(&self, bytes: &mut Vec<u8>, disk_size: u64) {
        let mut extra = self.extra.clone();
        let known = |end: usize| self.extra.len() >= end;
        extra.resize(extra.len().max(KNOWN_EXTRA), 0);
        if !known(8) {
            // The size of the machine's state, which had 32 bits only.
            let mut wide = [0; 8];
            wide[4..].copy_from_slice(&self.fixed[32..36]);
            extra[..8].copy_from_slice(&wide);
        }
        if !known(16) {
            extra[8..16].copy_from_slice(&disk_size.to_be_bytes());
        }
        if !known(24) {
            // No instruction count.
            extra[16..24].copy_from_slice(&u64::MAX.to_be_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend_from_slice(&self.fixed[..36]);
        let extra_len = u32::try_from(extra.len()).expect("at most 1024 bytes");
        bytes.extend_from_slice(&extra_len.to_be_bytes());
        bytes.extend_from_slice(&extra);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.name);
    }
}

/// Up to the first zero, as QEMU prints it.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

fn number<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[offset..offset + N]);
    number
}

impl Checker<'_> {
    /// Reads the table. Answers how many of its entries have to be repaired, or
    /// are left out.
    pub(super) async fn read_snapshots(&mut self) -> IoResult<u64> {
        let (offset, all) = (self.header.snapshot_offset, self.header.snapshot_count);
        let mut count = all;
        let mut bad = 0;
        if all > SNAPSHOTS_MAX && self.repairs_all() {
            let over = u64::from(all - SNAPSHOTS_MAX);
            self.say(&Finding::SnapshotsOverhanging {
                count: over,
                repaired: true,
            });
            bad += over;
            count = SNAPSHOTS_MAX;
        }
        if count > SNAPSHOTS_MAX {
            self.unreadable("snapshot table too large".into());
            self.say(&Finding::SnapshotsOverhanging {
                count: (count - SNAPSHOTS_MAX).into(),
                repaired: false,
            });
            return Err(Errno::EFBIG);
        }
        let is_aligned = self.geometry.in_cluster(offset) == 0;
        if !is_aligned || offset > i64::MAX as u64 - TABLE_BYTES_MAX {
            self.unreadable("snapshot table offset invalid".into());
            return Err(Errno::EINVAL);
        }
        bad += self.read_entries(count).await?;
        if self.header.version >= 3 {
            bad += self.find_incomplete();
        }
        Ok(bad)
    }

    fn unreadable(&mut self, message: String) {
        self.report.check_errors += 1;
        self.say(&Finding::SnapshotTable { message });
    }

    async fn read_entries(&mut self, count: u32) -> IoResult<u64> {
        let start = self.header.snapshot_offset;
        let mut window = Window {
            start,
            bytes: Vec::new(),
        };
        let (mut place, mut bad, mut len) = (start, 0, 0_u64);
        for index in 0..count {
            place = place.next_multiple_of(8);
            let fixed = window.read(self, place, FIXED).await?;
            place += FIXED as u64;
            let extra_len = u32::from_be_bytes(number(&fixed, 36));
            if extra_len > EXTRA_MAX && !self.repairs_all() {
                self.unreadable(format!(
                    "failed to read the snapshot table: Too much extra metadata in snapshot \
                     table entry {index}\nYou can force-remove this extra metadata with \
                     qemu-img check -r all"
                ));
                return Err(Errno::EFBIG);
            }
            let kept = extra_len.min(EXTRA_MAX) as usize;
            let extra = window.read(self, place, kept).await?;
            place += u64::from(extra_len);
            let id_len = u16::from_be_bytes(number(&fixed, 12)).into();
            let id = window.read(self, place, id_len).await?;
            place += id_len as u64;
            let name_len = u16::from_be_bytes(number(&fixed, 14)).into();
            let name = window.read(self, place, name_len).await?;
            place += name_len as u64;
            let snapshot = Snapshot {
                l1_offset: u64::from_be_bytes(number(&fixed, 0)),
                l1_size: u32::from_be_bytes(number(&fixed, 8)),
                id,
                name,
                fixed,
                extra,
            };
            len = len.next_multiple_of(8) + snapshot.len();
            if len > TABLE_BYTES_MAX || place - start > i32::MAX as u64 {
                if !self.repairs_all() {
                    self.unreadable(
                        "failed to read the snapshot table: Snapshot table is too big".into(),
                    );
                    return Err(Errno::EFBIG);
                }
                let over = u64::from(count - index);
                self.say(&Finding::SnapshotsTooLong { count: over });
                return Ok(bad + over);
            }
            if extra_len > EXTRA_MAX {
                self.say(&Finding::SnapshotExtra {
                    index: index.into(),
                    len: extra_len,
                });
                bad += 1;
            }
            self.snapshots.push(snapshot);
            self.snapshot_bytes = place - start;
        }
        Ok(bad)
    }

    /// Entries without the data that version 3 asks for.
    fn find_incomplete(&mut self) -> u64 {
        let repaired = self.repairs_all();
        let incomplete: Vec<u64> = (0..)
            .zip(&self.snapshots)
            .filter(|(_, snapshot)| snapshot.extra.len() < REQUIRED_EXTRA as usize)
            .map(|(index, _)| index)
            .collect();
        for &index in &incomplete {
            self.say(&Finding::SnapshotIncomplete { index, repaired });
        }
        incomplete.len() as u64
    }

    /// A new table, then the header's pointer to it; the old one is free then.
    pub(super) async fn rewrite_snapshots(&mut self, bad: u64, census: &Census) -> IoResult<()> {
        debug_assert_eq!(self.repair, Repair::All);
        match self.try_rewrite_snapshots(census).await {
            Ok(()) => {
                self.report.corruptions_fixed += bad;
                Ok(())
            }
            Err(errno) => {
                self.report.corruptions += bad;
                self.report.check_errors += 1;
                self.say(&Finding::SnapshotTableNotWritten { errno });
                Err(errno)
            }
        }
    }

    async fn try_rewrite_snapshots(&mut self, census: &Census) -> IoResult<()> {
        // Where it was not counted it does not count down. The file may grow.
        let old = Span::new(self.header.snapshot_offset, self.snapshot_bytes);
        let was_counted = !old.is_empty() && self.is_near(old);
        let mut bytes = Vec::new();
        for snapshot in &self.snapshots {
            snapshot.append(&mut bytes, self.header.size);
        }
        let (shard, file, bits) = (self.shard, self.file, self.geometry.cluster_bits);
        let clusters = (bytes.len() as u64).div_ceil(self.geometry.cluster_size);
        let offset = match clusters {
            0 => 0,
            _ => match self.ledger.allocate(shard, file, clusters).await {
                Err(Errno::ENOSPC) => self.make_room(census, clusters).await? << bits,
                first => first? << bits,
            },
        };
        self.write(offset, &bytes).await?;
        self.ledger.write_dirty(shard, file).await?;
        let count = u32::try_from(self.snapshots.len()).map_err(|_| Errno::EFBIG)?;
        let mut pointer = count.to_be_bytes().to_vec();
        pointer.extend_from_slice(&offset.to_be_bytes());
        self.write(POINTER_OFFSET, &pointer).await?;
        file.flush(shard).await?;
        if was_counted {
            for cluster in old.offset >> bits..old.end().div_ceil(self.geometry.cluster_size) {
                let count = self.ledger.get(shard, file, cluster).await?;
                if count > 0 {
                    self.ledger.set(shard, file, cluster, count - 1).await?;
                }
            }
            self.ledger.write_dirty(shard, file).await?;
        }
        Ok(())
    }
}

impl Checker<'_> {
    /// Takes clusters behind the end, which no refcount block counts yet: with
    /// new refcounts, that do. Answers the first.
    async fn make_room(&mut self, census: &Census, count: u64) -> IoResult<u64> {
        let mut census = census.clone();
        let first = census.len();
        for cluster in first..first + count {
            census.set(cluster, 1);
        }
        let (shard, file) = (self.shard, self.file);
        for cluster in self.rebuild(census).await? {
            let count = self.ledger.get(shard, file, cluster).await?;
            if count > 0 {
                self.ledger.set(shard, file, cluster, count - 1).await?;
            }
        }
        Ok(first)
    }
}

/// The part of the table that is in memory.
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Zeroes behind the end of the file.
    async fn read(&mut self, checker: &Checker<'_>, offset: u64, len: usize) -> IoResult<Vec<u8>> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + len as u64 > end {
            let span = Span::new(offset, WINDOW);
            self.bytes = super::read_inside(checker.shard, checker.file, span).await?;
            self.start = offset;
        }
        let start = in_memory(offset - self.start).min(self.bytes.len());
        let found = &self.bytes[start..(start + len).min(self.bytes.len())];
        let mut read = found.to_vec();
        read.resize(len, 0);
        Ok(read)
    }
}
