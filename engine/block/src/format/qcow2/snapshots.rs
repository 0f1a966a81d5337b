//! Internal snapshots: the table of them, and reading one of their disks.
//!
//! Entries follow each other, each at a multiple of 8 bytes: offset of the L1
//! table (8 bytes) and its length in entries (4), lengths of id and name (2
//! each), date in seconds and nanoseconds (4 each), the machine's clock (8), size
//! of its state (4), length of extra data (4), extra data, id, name. Extra data:
//! size of the state (8 bytes), size of the disk (8), instruction count (8), and
//! what the future may bring.

use std::collections::BTreeSet;

use ringback_ring::{Errno, Shard};

use super::entry::offset_of;
use super::frame::{Frame, read_bytes, read_words};
use super::header::Header;
use super::reserved::Structure;
use crate::child::Child;
use crate::span::Span;
use crate::units::{DISK_SIZE_MAX, SECTOR, in_memory};
use ringback_ring::error_text;

/// Bytes of an entry before its extra data.
pub(super) const FIXED: usize = 40;
pub(super) const EXTRA_MAX: u32 = 1024;
pub(super) const TABLE_BYTES_MAX: u64 = 64 << 20;
/// The table's length is not written anywhere: it is read in pieces.
const PIECE: u64 = 64 << 10;
const L1_BYTES_MAX: u64 = 32 << 20;
/// No instruction count was kept.
const NO_COUNT: u64 = u64::MAX;
/// Clusters of inactive tables that are watched over: more than any real image
/// has, and few enough for the memory.
const RESERVED_MAX: usize = 1 << 20;

/// Why an image's snapshots, or one of them, could not be read. Texts are
/// QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotsError {
    /// The table could not be read.
    #[error("Failed to read snapshot table: {}", error_text(*.0))]
    Read(Errno),
    /// More extra data than anybody writes.
    #[error(
        "Too much extra metadata in snapshot table entry {0}\nYou can force-remove this extra \
         metadata with qemu-img check -r all"
    )]
    ExtraData(u32),
    /// More than 64 MiB.
    #[error("Snapshot table is too big")]
    TooBig,
    /// No snapshot of that id or name.
    #[error("Failed to load snapshot: Can't find snapshot")]
    NotFound,
    /// Its L1 table is unaligned.
    #[error("Failed to load snapshot: Snapshot L1 table offset invalid")]
    L1Offset,
    /// Its L1 table is longer than 32 MiB.
    #[error("Failed to load snapshot: Snapshot L1 table too large")]
    L1Size,
    /// No disk is so large.
    #[error("Failed to load snapshot: File too large")]
    DiskSize,
    /// Its L1 table could not be read.
    #[error("Failed to load snapshot: Could not read L1 table: {}", error_text(*.0))]
    ReadL1(Errno),
    /// A snapshot is read, and never written.
    #[error("A snapshot can only be opened read-only")]
    ReadOnly,
}

/// Which snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotSelector {
    /// By its id.
    Id(String),
    /// By its name; the first one, if there are several.
    Name(String),
    /// By its id, or if there is none, by its name.
    IdOrName(String),
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// A number, usually.
    pub id: String,
    /// Names may repeat, or be empty.
    pub name: String,
    /// When it was made: seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// Since the machine was started, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of the machine's state; 0 if only the disk was kept.
    pub vm_state_size: u64,
    /// Bytes of the disk; none in old images: as large as the image's disk now.
    pub disk_size: Option<u64>,
    /// Instructions that the machine had executed, if it counted them.
    pub icount: Option<u64>,
    pub(super) l1_offset: u64,
    pub(super) l1_size: u32,
}

impl Snapshot {
    fn l1_span(&self, cluster_size: u64) -> Result<Span, SnapshotsError> {
        let len = u64::from(self.l1_size) * 8;
        let end = self.l1_offset.checked_add(len);
        if !self.l1_offset.is_multiple_of(cluster_size) || end.is_none_or(|end| end > DISK_SIZE_MAX)
        {
            return Err(SnapshotsError::L1Offset);
        }
        if len > L1_BYTES_MAX {
            return Err(SnapshotsError::L1Size);
        }
        Ok(Span::new(self.l1_offset, len))
    }
}

/// The bytes of a table as far as they were needed.
struct Reader<'a> {
    shard: &'a Shard,
    file: &'a Child,
    offset: u64,
    bytes: Vec<u8>,
    next: usize,
}

impl Reader<'_> {
    /// The next `len` bytes.
    async fn take(&mut self, len: usize) -> Result<&[u8], SnapshotsError> {
        let end = self.next + len;
        if end as u64 > TABLE_BYTES_MAX {
            return Err(SnapshotsError::TooBig);
        }
        while self.bytes.len() < end {
            let place = self.offset + self.bytes.len() as u64;
            let piece = Span::new(place, PIECE);
            let more = read_bytes(self.shard, self.file, piece)
                .await
                .map_err(SnapshotsError::Read)?;
            self.bytes.extend_from_slice(&more);
        }
        let taken = &self.bytes[self.next..end];
        self.next = end;
        Ok(taken)
    }

    fn align(&mut self) {
        self.next = self.next.next_multiple_of(8);
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Reads the table of an image that is being opened.
pub(super) async fn read_table(
    shard: &Shard,
    file: &Child,
    header: &Header,
) -> Result<(Vec<Snapshot>, Span), SnapshotsError> {
    let mut reader = Reader {
        shard,
        file,
        offset: header.snapshot_offset,
        bytes: Vec::new(),
        next: 0,
    };
    let table_end_max = header.snapshot_offset.checked_add(TABLE_BYTES_MAX + PIECE);
    if header.snapshot_count > 0 && table_end_max.is_none_or(|end| end > DISK_SIZE_MAX) {
        return Err(SnapshotsError::Read(Errno::EIO));
    }
    let mut snapshots = Vec::new();
    for index in 0..header.snapshot_count {
        reader.align();
        snapshots.push(read_entry(&mut reader, index).await?);
    }
    let span = Span::new(header.snapshot_offset, reader.next as u64);
    Ok((snapshots, span))
}

async fn read_entry(reader: &mut Reader<'_>, index: u32) -> Result<Snapshot, SnapshotsError> {
    let fixed = reader.take(FIXED).await?.to_vec();
    let field = |range: std::ops::Range<usize>| number(&fixed[range]);
    let short = |range| u32::try_from(field(range)).expect("four bytes");
    let extra_len = short(36..40);
    if extra_len > EXTRA_MAX {
        return Err(SnapshotsError::ExtraData(index));
    }
    let extra = reader.take(extra_len as usize).await?.to_vec();
    let extra_field = |start: usize| extra.get(start..start + 8).map(number);
    let id = reader.take(in_memory(field(12..14))).await?;
    let id = String::from_utf8_lossy(id).into_owned();
    let name = reader.take(in_memory(field(14..16))).await?;
    let name = String::from_utf8_lossy(name).into_owned();
    Ok(Snapshot {
        id,
        name,
        date_sec: short(16..20),
        date_nsec: short(20..24),
        vm_clock_nsec: field(24..32),
        vm_state_size: extra_field(0).unwrap_or_else(|| field(32..36)),
        disk_size: extra_field(8),
        icount: extra_field(16).filter(|&count| count != NO_COUNT),
        l1_offset: field(0..8),
        l1_size: short(8..12),
    })
}

/// Finds a snapshot.
pub(super) fn find<'a>(
    snapshots: &'a [Snapshot],
    selector: &SnapshotSelector,
) -> Result<&'a Snapshot, SnapshotsError> {
    let by_id = |id: &String| snapshots.iter().find(|snapshot| snapshot.id == *id);
    let by_name = |name: &String| snapshots.iter().find(|snapshot| snapshot.name == *name);
    let found = match selector {
        SnapshotSelector::Id(id) => by_id(id),
        SnapshotSelector::Name(name) => by_name(name),
        SnapshotSelector::IdOrName(text) => by_id(text).or_else(|| by_name(text)),
    };
    found.ok_or(SnapshotsError::NotFound)
}

/// A snapshot's disk: its L1 table, where that lies, and the size.
pub(super) struct View {
    pub(super) l1: Vec<u64>,
    pub(super) l1_offset: u64,
    pub(super) size: u64,
}

/// Reads what is needed to read a snapshot's disk.
pub(super) async fn view(
    shard: &Shard,
    file: &Child,
    header: &Header,
    snapshot: &Snapshot,
) -> Result<View, SnapshotsError> {
    let span = snapshot.l1_span(1 << header.cluster_bits)?;
    let size = snapshot.disk_size.unwrap_or(header.size);
    if size > DISK_SIZE_MAX {
        return Err(SnapshotsError::DiskSize);
    }
    let l1 = read_words(shard, file, span)
        .await
        .map_err(SnapshotsError::ReadL1)?;
    Ok(View {
        l1,
        l1_offset: span.offset,
        size: size - size % SECTOR,
    })
}

/// Watches over the tables of snapshots. A damaged L1 table protects nothing,
/// and stops nobody.
pub(super) async fn reserve(shard: &Shard, frame: &Frame, snapshots: &[Snapshot], table: Span) {
    let reserved = &frame.reserved;
    reserved.add(table, Structure::SnapshotTable);
    let cluster_size = frame.geometry.cluster_size;
    let inside = Span::new(0, frame.file.size());
    let (mut l2_tables, mut clusters) = (BTreeSet::new(), BTreeSet::new());
    for snapshot in snapshots {
        let Ok(span) = snapshot.l1_span(cluster_size) else {
            continue;
        };
        // Behind the file's end is nothing that refers to anything.
        let span = span.clip(&inside);
        if reserved.is_watched(Structure::InactiveL1) {
            clusters.extend(span.widen(cluster_size).pieces(cluster_size));
        }
        if reserved.is_watched(Structure::InactiveL2) {
            let Ok(l1) = read_words(shard, &frame.file, span).await else {
                continue;
            };
            let tables = l1.iter().map(|&entry| offset_of(entry));
            l2_tables.extend(tables.filter(|&offset| offset != 0));
        }
        if clusters.len() + l2_tables.len() > RESERVED_MAX {
            tracing::warn!(
                node = frame.name,
                "so many tables of snapshots are not watched over"
            );
            break;
        }
    }
    for cluster in clusters {
        reserved.add(cluster, Structure::InactiveL1);
    }
    for offset in l2_tables {
        // An active table is often a snapshot's, too, and named as the active
        // one.
        let cluster = Span::new(offset, cluster_size);
        if reserved.find(cluster).is_none() {
            reserved.add(cluster, Structure::InactiveL2);
        }
    }
}
