//! What a check finds, in QEMU's words.

use std::fmt;

use ringback_ring::{Errno, error_text};

use crate::format::qcow2::Qcow2Error;

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Nothing.
    Nothing,
    /// Refcounts that are too high (`-r leaks`).
    Leaks,
    /// Whatever can be repaired (`-r all`).
    All,
}

/// Why an image could not be checked, or no further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// It cannot even be opened.
    #[error(transparent)]
    Open(#[from] Qcow2Error),
    /// The check ended before its time.
    #[error("Check failed: {}", error_text(*.0))]
    Failed(Errno),
}

impl From<Errno> for CheckError {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// The sums of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Clusters that are counted more often than referred to: space is lost.
    pub leaks: u64,
    /// What may destroy data, now or with the next write.
    pub corruptions: u64,
    /// What could not be looked at.
    pub check_errors: u64,
    /// Leaks that were repaired; not part of `leaks`.
    pub leaks_fixed: u64,
    /// Corruptions that were repaired; not part of `corruptions`.
    pub corruptions_fixed: u64,
    /// Where the last used cluster ends, in bytes.
    pub image_end_offset: u64,
    /// Clusters of the disk, as a guest sees it.
    pub total_clusters: u64,
    /// How many of them the image holds.
    pub allocated_clusters: u64,
    /// How many of those are compressed.
    pub compressed_clusters: u64,
    /// How many of those do not follow the one before them.
    pub fragmented_clusters: u64,
}

/// One thing that is not as it should be, or was done about it. Its text is
/// the line that QEMU prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// An L1 entry with bits that must be 0.
    L1Reserved {
        /// The entry.
        entry: u64,
    },
    /// An L1 entry whose table begins inside of a cluster.
    TableUnaligned {
        /// The offset of the table.
        offset: u64,
    },
    /// An L2 entry with bits that must be 0.
    L2Reserved {
        /// The entry.
        entry: u64,
    },
    /// A compressed cluster that claims to be writable in place.
    CompressedCopied {
        /// Where the stream begins.
        host: u64,
    },
    /// A compressed cluster, but data lies in a file of its own.
    CompressedWithDataFile {
        /// Its place in the table.
        index: u64,
        /// The entry.
        entry: u64,
    },
    /// A compressed cluster with subclusters.
    CompressedSubclusters {
        /// Its place in the table.
        index: u64,
        /// The entry.
        entry: u64,
    },
    /// Subclusters that are data and zeroes at once.
    Subclusters {
        /// The host cluster.
        host: u64,
    },
    /// Subclusters of a cluster that is not there.
    SubclustersUnallocated,
    /// A cluster of zeroes with a place inside of a cluster.
    PreallocatedUnaligned {
        /// That place.
        host: u64,
        /// The entry says zeroes without a place by now.
        repaired: bool,
    },
    /// A cluster of data with a place inside of a cluster.
    DataUnaligned {
        /// That place.
        host: u64,
    },
    /// A reference behind the end of the file.
    BehindEnd {
        /// First byte referred to.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// More references than can be counted.
    Overflow {
        /// The cluster's offset.
        offset: u64,
    },
    /// Snapshots in an image whose data lies in a file of its own.
    SnapshotsWithDataFile {
        /// How many.
        count: u64,
    },
    /// A snapshot whose L1 table begins inside of a cluster.
    SnapshotL1Unaligned {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// The offset of the table.
        offset: u64,
    },
    /// A snapshot whose L1 table is longer than any.
    SnapshotL1TooLarge {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// Entries of the table.
        size: u32,
    },
    /// The snapshot table cannot be read.
    SnapshotTable {
        /// Why.
        message: String,
    },
    /// More snapshots than any image may have.
    SnapshotsOverhanging {
        /// How many more.
        count: u64,
        /// They are taken off the table.
        repaired: bool,
    },
    /// Snapshots in a table that is longer than any.
    SnapshotsTooLong {
        /// How many are taken off the table.
        count: u64,
    },
    /// More extra data than an entry may have.
    SnapshotExtra {
        /// The entry's place in the table.
        index: u64,
        /// Bytes of it.
        len: u32,
    },
    /// An entry without the data that version 3 asks for.
    SnapshotIncomplete {
        /// The entry's place in the table.
        index: u64,
        /// It gets them.
        repaired: bool,
    },
    /// The repaired snapshot table could not be written.
    SnapshotTableNotWritten {
        /// Why.
        errno: Errno,
    },
    /// A bitmap's table has an entry that points nowhere sensible. (QEMU counts
    /// it, and prints nothing.)
    BitmapEntry {
        /// The bitmap's name.
        name: String,
        /// The entry's place in the bitmap's table.
        index: u64,
    },
    /// A refcount table entry with bits that must be 0.
    RefcountTableReserved {
        /// Its place.
        index: u64,
    },
    /// A refcount block that begins inside of a cluster.
    RefcountBlockUnaligned {
        /// Its place in the refcount table.
        index: u64,
    },
    /// A refcount block behind the end of the file.
    RefcountBlockOutside {
        /// Its place in the refcount table.
        index: u64,
        /// There will be another one.
        repaired: bool,
    },
    /// A refcount block that is something else, too.
    RefcountBlockShared {
        /// Its place in the refcount table.
        index: u64,
        /// References to its cluster.
        references: u64,
    },
    /// A refcount that could not be read.
    RefcountUnreadable {
        /// The cluster.
        cluster: u64,
        /// Why.
        errno: Errno,
    },
    /// A refcount that is not the number of references.
    Refcount {
        /// The cluster.
        cluster: u64,
        /// What the file says.
        refcount: u64,
        /// What is true.
        references: u64,
        /// It is set right.
        repaired: bool,
    },
    /// All refcounts are made anew.
    Rebuilding,
    /// They would have to be, but that was not asked for.
    NeedRebuild,
    /// They were, and are still wrong.
    StillBroken,
    /// An L1 entry that allows or forbids writing in place, wrongly.
    CopiedTable {
        /// Its place in the L1 table.
        index: u64,
        /// The entry.
        entry: u64,
        /// References to the table.
        refcount: u64,
        /// It is set right.
        repaired: bool,
    },
    /// An L2 entry that does.
    CopiedData {
        /// The entry.
        entry: u64,
        /// References to the cluster.
        refcount: u64,
        /// It is set right.
        repaired: bool,
    },
    /// A repaired table lies where something else lies.
    TableOverlap {
        /// What kind of table it is: `L1` or `L2`.
        table: &'static str,
    },
}

fn verb(repaired: bool) -> &'static str {
    if repaired { "Repairing" } else { "ERROR" }
}

impl fmt::Display for Finding {
    #[expect(clippy::too_many_lines, reason = "one line of text each")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::L1Reserved { entry } => {
                write!(f, "ERROR found L1 entry with reserved bits set: {entry:x}")
            }
            Self::TableUnaligned { offset } => write!(
                f,
                "ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
            ),
            Self::L2Reserved { entry } => {
                write!(f, "ERROR found l2 entry with reserved bits set: {entry:x}")
            }
            Self::CompressedCopied { host } => write!(
                f,
                "ERROR: coffset={host:#x}: copied flag must never be set for compressed clusters"
            ),
            Self::CompressedWithDataFile { index, entry } => write!(
                f,
                "ERROR compressed cluster {index} with data file, entry={entry:#x}"
            ),
            Self::CompressedSubclusters { index, entry } => write!(
                f,
                "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, \
                 entry={entry:#x}"
            ),
            Self::Subclusters { host } => write!(
                f,
                "ERROR offset={host:x}: Allocated cluster has corrupted subcluster allocation bitmap"
            ),
            Self::SubclustersUnallocated => {
                f.write_str("ERROR: Unallocated cluster has non-zero subcluster allocation map")
            }
            Self::PreallocatedUnaligned { host, repaired } => write!(
                f,
                "{} offset={host:x}: Preallocated cluster is not properly aligned; L2 entry \
                 corrupted.",
                verb(*repaired)
            ),
            Self::DataUnaligned { host } => write!(
                f,
                "ERROR offset={host:x}: Data cluster is not properly aligned; L2 entry corrupted."
            ),
            Self::BehindEnd { offset, len } => write!(
                f,
                "ERROR: counting reference for region exceeding the end of the file by one \
                 cluster or more: offset {offset:#x} size {len:#x}"
            ),
            Self::Overflow { offset } => write!(
                f,
                "ERROR: overflow cluster offset={offset:#x}\nUse qemu-img amend to increase the \
                 refcount entry width or qemu-img convert to create a clean copy if the image \
                 cannot be opened for writing"
            ),
            Self::SnapshotsWithDataFile { count } => {
                write!(f, "ERROR {count} snapshots in image with data file")
            }
            Self::SnapshotL1Unaligned { id, name, offset } => write!(
                f,
                "ERROR snapshot {id} ({name}) l1_offset={offset:#x}: L1 table is not cluster \
                 aligned; snapshot table entry corrupted"
            ),
            Self::SnapshotL1TooLarge { id, name, size } => write!(
                f,
                "ERROR snapshot {id} ({name}) l1_size={size:#x}: L1 table is too large; snapshot \
                 table entry corrupted"
            ),
            Self::SnapshotTable { message } => write!(f, "ERROR {message}"),
            Self::SnapshotsOverhanging {
                count,
                repaired: true,
            } => {
                write!(f, "Discarding {count} overhanging snapshots")
            }
            Self::SnapshotsOverhanging {
                count,
                repaired: false,
            } => write!(
                f,
                "You can force-remove all {count} overhanging snapshots with qemu-img check -r all"
            ),
            Self::SnapshotsTooLong { count } => write!(
                f,
                "Discarding {count} overhanging snapshots (snapshot table is too big)"
            ),
            Self::SnapshotExtra { index, len } => write!(
                f,
                "Discarding too much extra metadata in snapshot table entry {index} ({len} > 1024)"
            ),
            Self::SnapshotIncomplete { index, repaired } => write!(
                f,
                "{} snapshot table entry {index} is incomplete",
                verb(*repaired)
            ),
            Self::SnapshotTableNotWritten { errno } => {
                write!(
                    f,
                    "ERROR failed to update snapshot table: {}",
                    error_text(*errno)
                )
            }
            Self::BitmapEntry { name, index } => {
                write!(f, "ERROR bitmap '{name}': table entry {index} is invalid")
            }
            Self::RefcountTableReserved { index } => {
                write!(
                    f,
                    "ERROR refcount table entry {index} has reserved bits set"
                )
            }
            Self::RefcountBlockUnaligned { index } => write!(
                f,
                "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
            ),
            Self::RefcountBlockOutside { index, repaired } => write!(
                f,
                "{} refcount block {index} is outside image",
                verb(*repaired)
            ),
            Self::RefcountBlockShared { index, references } => {
                write!(f, "ERROR refcount block {index} refcount={references}")
            }
            Self::RefcountUnreadable { cluster, errno } => write!(
                f,
                "Can't get refcount for cluster {cluster}: {}",
                error_text(*errno)
            ),
            Self::Refcount {
                cluster,
                refcount,
                references,
                repaired,
            } => {
                let verb = match repaired {
                    true => "Repairing",
                    false if refcount < references => "ERROR",
                    false => "Leaked",
                };
                write!(
                    f,
                    "{verb} cluster {cluster} refcount={refcount} reference={references}"
                )
            }
            Self::Rebuilding => f.write_str("Rebuilding refcount structure"),
            Self::NeedRebuild => f.write_str("ERROR need to rebuild refcount structures"),
            Self::StillBroken => f.write_str("ERROR rebuilt refcount structure is still broken"),
            Self::CopiedTable {
                index,
                entry,
                refcount,
                repaired,
            } => write!(
                f,
                "{} OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} \
                 refcount={refcount}",
                verb(*repaired)
            ),
            Self::CopiedData {
                entry,
                refcount,
                repaired,
            } => write!(
                f,
                "{} OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}",
                verb(*repaired)
            ),
            Self::TableOverlap { table } => write!(
                f,
                "ERROR: Could not write {table} table; metadata overlap check failed: \
                 Input/output error"
            ),
        }
    }
}
