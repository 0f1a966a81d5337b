//! One entry in a node's list of bitmaps: name, bits, flags, and which flag forbids what.
//!
//! The flags follow QEMU: *busy* forbids every command, *read-only* forbids changes,
//! *inconsistent* forbids everything but removal. The life cycle, which changes them, is in
//! `named` and `frozen`.

use std::sync::Arc;

use super::{BitmapError, DirtyBitmap};

/// What a bitmap is, beside its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BitmapFlags {
    /// Writes mark it.
    pub recording: bool,
    /// A job or an export uses it.
    pub busy: bool,
    /// It is stored in the image when that is closed.
    pub persistent: bool,
    /// Its image is open read-only.
    pub read_only: bool,
    /// It was in use when a process died: its bits mean nothing.
    pub inconsistent: bool,
}

/// A bitmap of a node.
#[derive(Debug, Clone)]
pub struct NamedBitmap {
    /// Unique on the node; fixed.
    pub(super) id: u64,
    /// None for the successor of a frozen bitmap, until it inherits the name.
    pub(super) name: Option<String>,
    /// Changed only by replace and resize.
    pub(super) bits: Arc<DirtyBitmap>,
    pub(super) flags: BitmapFlags,
    /// While frozen: the entry of the same node which takes the marks.
    pub(super) successor: Option<u64>,
}

/// What a query shows of a bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapInfo {
    /// None for a successor.
    pub name: Option<String>,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// Dirty bytes, in whole granules.
    pub count: u64,
    /// The flags; a frozen bitmap counts as recording if its successor records.
    pub flags: BitmapFlags,
}

/// What somebody wants to do with a bitmap; the flags may forbid it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Removing: inconsistent bitmaps may go.
    Remove,
    /// Reading, or changing what is not stored: read-only bitmaps may.
    Read,
    /// Changing the bits.
    Change,
}

impl NamedBitmap {
    /// Its name; none for a successor.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Its bits.
    #[must_use]
    pub const fn bits(&self) -> &Arc<DirtyBitmap> {
        &self.bits
    }

    /// Its own flags: a frozen bitmap does not record, whatever its successor does.
    #[must_use]
    pub const fn flags(&self) -> BitmapFlags {
        self.flags
    }

    /// Whether a job may use it as it is: not busy and not inconsistent, and unless
    /// `read_only_allowed` not read-only.
    ///
    /// # Errors
    ///
    /// What is in the way.
    pub fn check_usable(&self, read_only_allowed: bool) -> Result<(), BitmapError> {
        self.check(if read_only_allowed {
            Use::Read
        } else {
            Use::Change
        })
    }

    /// QEMU's order: busy, read-only, inconsistent.
    pub(super) fn check(&self, purpose: Use) -> Result<(), BitmapError> {
        let name = || self.name.clone().unwrap_or_default();
        if self.flags.busy {
            return Err(BitmapError::Busy(name()));
        }
        if self.flags.read_only && purpose != Use::Read {
            return Err(BitmapError::ReadOnly(name()));
        }
        if self.flags.inconsistent && purpose != Use::Remove {
            return Err(BitmapError::Inconsistent(name()));
        }
        Ok(())
    }
}

/// The granularity of a bitmap for which none is asked: the cluster size of the format, at
/// least 4 KiB and at most 64 KiB; 64 KiB if there is no cluster size.
#[must_use]
pub fn default_granularity(cluster_size: Option<u64>) -> u64 {
    cluster_size.map_or(64 << 10, |size| size.clamp(4 << 10, 64 << 10))
}
