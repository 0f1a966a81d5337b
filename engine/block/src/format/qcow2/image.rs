//! One open image: its parts, and how they find each other.

use std::sync::atomic::{AtomicU64, Ordering};

use ringback_ring::{Errno, IoResult, Shard};

use super::allocator::Allocator;
use super::entry::Rules;
use super::epoch::Epochs;
use super::frame::Frame;
use super::tables::Tables;
use super::write_back::{Rounds, WriteBack};
use crate::child::Child;
use crate::exclusive::Exclusive;
use crate::in_flight::{InFlight, Turn};
use crate::planted::{self, Fault};
use crate::span::Span;

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

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.frame.geometry.cluster_size
    }

    /// Where guest data is read and written.
    pub(super) fn data(&self) -> &Child {
        match &self.data_file {
            Some(data_file) => &data_file.child,
            None => &self.frame.file,
        }
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
