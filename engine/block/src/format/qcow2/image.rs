//! One open image: its parts, and how they find each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringback_ring::{Errno, IoResult, Shard};

use super::allocator::Allocator;
use super::bitmaps::{Bitmaps, Loaded, StoredBitmap};
use super::entry::Rules;
use super::epoch::Epochs;
use super::frame::Frame;
use super::header::Header;
use super::snapshots::Snapshot;
use super::tables::Tables;
use super::write_back::{Rounds, WriteBack};
use crate::child::Child;
use crate::exclusive::Exclusive;
use crate::in_flight::{InFlight, Turn};
use crate::planted::{self, Fault};
use crate::span::Span;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// How an image treats discards; names as in QEMU's options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardRules {
    /// A guest's discards are followed at all (`discard=unmap`).
    pub enabled: bool,
    /// A guest's discard is passed on to the file.
    pub pass_request: bool,
    /// Clusters that lose their last reference otherwise are punched too.
    pub pass_other: bool,
    /// Discarded clusters keep their place in the file.
    pub keep_clusters: bool,
}

impl DiscardRules {
    /// Discards are followed, and passed on to the file.
    pub const DEFAULT: Self = Self {
        enabled: true,
        pass_request: true,
        pass_other: false,
        keep_clusters: false,
    };
}

/// An open image, without its backing file.
#[derive(Debug)]
pub struct Qcow2 {
    pub(super) frame: Frame,
    /// Where guest data lies, if not in the image's own file.
    pub(super) data_file: Option<DataFile>,
    pub(super) tables: Tables,
    pub(super) allocator: Exclusive<Allocator>,
    pub(super) write_back: Exclusive<WriteBack>,
    pub(super) rounds: Rounds,
    /// Guest clusters whose mapping is being changed.
    pub(super) changes: InFlight,
    pub(super) epochs: Epochs,
    pub(super) discard: DiscardRules,
    pub(super) compression: Compression,
    /// Refcounts are written when the image is closed, or made anew.
    pub(super) lazy_refcounts: bool,
    /// As it stands in the file, but for what `rewrite` names.
    pub(super) header: Exclusive<Header>,
    pub(super) bitmaps: Exclusive<Bitmaps>,
    /// Until the node takes them.
    loaded_bitmaps: Mutex<Vec<StoredBitmap>>,
    snapshots: Vec<Snapshot>,
    size: AtomicU64,
}

/// The file that holds guest data beside the image.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) child: Child,
    /// It can be read without the image: zeroes are written there, too.
    pub(super) is_raw: bool,
}

/// How compressed clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

/// The parts of which an image is made.
pub(super) struct Parts {
    pub(super) frame: Frame,
    pub(super) data_file: Option<DataFile>,
    pub(super) tables: Tables,
    pub(super) allocator: Allocator,
    pub(super) discard: DiscardRules,
    pub(super) compression: Compression,
    pub(super) lazy_refcounts: bool,
    pub(super) header: Header,
    pub(super) loaded: Loaded,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) size: u64,
    pub(super) shards: usize,
}

impl Qcow2 {
    pub(super) fn from_parts(parts: Parts) -> Self {
        Self {
            frame: parts.frame,
            data_file: parts.data_file,
            tables: parts.tables,
            allocator: Exclusive::new(parts.allocator),
            write_back: Exclusive::new(WriteBack::default()),
            rounds: Rounds::default(),
            changes: InFlight::new(parts.shards),
            epochs: Epochs::new(parts.shards),
            discard: parts.discard,
            compression: parts.compression,
            lazy_refcounts: parts.lazy_refcounts,
            header: Exclusive::new(parts.header),
            bitmaps: Exclusive::new(parts.loaded.bitmaps),
            loaded_bitmaps: Mutex::new(parts.loaded.stored),
            snapshots: parts.snapshots,
            size: AtomicU64::new(parts.size),
        }
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Where the state of a machine would begin, behind the disk: in bytes, as if
    /// the disk went on.
    pub fn vmstate_offset(&self) -> u64 {
        let geometry = &self.frame.geometry;
        geometry.l1_entries(self.size()) * geometry.table_coverage()
    }

    /// Whether the image's header says that it is corrupt.
    pub fn is_marked_corrupt(&self) -> bool {
        self.frame.incompatible() & super::header::INCOMPATIBLE_CORRUPT != 0
    }

    /// Its internal snapshots, oldest first.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    pub(super) fn loaded_bitmaps(&self) -> MutexGuard<'_, Vec<StoredBitmap>> {
        let loaded = self.loaded_bitmaps.lock();
        loaded.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another opening is of the same image, as far as its disk and its
    /// mapping tell.
    pub(crate) fn is_same_image(&self, other: &Self) -> bool {
        self.size() == other.size()
            && self.cluster_size() == other.cluster_size()
            && self.tables.l1() == other.tables.l1()
    }

    /// Whether clusters can be stored compressed: only in the image itself.
    pub fn can_compress(&self) -> bool {
        self.data_file.is_none()
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.frame.geometry.cluster_size
    }

    /// What a write takes hold of at least: a cluster, or a part of it with a state
    /// of its own.
    pub(crate) fn allocation_unit(&self) -> u64 {
        self.frame.geometry.subcluster_size
    }

    /// Where guest data is read and written.
    pub(super) fn data(&self) -> &Child {
        match &self.data_file {
            Some(data_file) => &data_file.child,
            None => &self.frame.file,
        }
    }

    /// The nodes that hold the image.
    pub(crate) fn children(&self) -> impl Iterator<Item = &Child> {
        let data_file = self.data_file.as_ref().map(|data_file| &data_file.child);
        std::iter::once(&self.frame.file).chain(data_file)
    }

    pub(super) fn rules(&self) -> Rules {
        Rules {
            version: self.frame.version,
            external: self.data_file.is_some(),
        }
    }

    /// The right to change the mapping of these clusters, alone.
    pub(super) async fn claim(&self, shard: &Shard, span: Span) -> Turn<'_> {
        let clusters = if planted::is(Fault::MappingNotClaimed) {
            Span::default()
        } else {
            span.widen(self.cluster_size())
        };
        self.changes.enter_exclusive(shard, clusters).await
    }

    /// Gives parts of the cache back that nobody used for so many seconds; 0:
    /// never. Ends with the image.
    pub fn clean_every(self: &Arc<Self>, shard: &Shard, seconds: u32) {
        if seconds == 0 {
            return;
        }
        let (image, timer) = (Arc::downgrade(self), shard.clone());
        drop(shard.spawn(async move {
            loop {
                timer.sleep_ns(u64::from(seconds) * NS_PER_SECOND).await;
                match image.upgrade() {
                    Some(image) => image.tables.clean(),
                    None => break,
                }
            }
        }));
    }

    /// Whether changes are possible at all.
    pub(super) fn check_writable(&self) -> IoResult<()> {
        self.frame.check_usable()?;
        if self.frame.writable {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }
}
