//! Dirty bitmaps: which parts of a disk were written.
//!
//! # Invariants
//!
//! - **B1** A write's bits are set before the write is acknowledged, and a failed write's bits
//!   too. Kept by who completes the write; [`DirtyBitmap::mark`] is what it calls.
//! - **B2** Who takes work clears first and reads the data afterwards, so that a write which
//!   races is either copied or dirty again. The fences for it are in [`words`].
//! - **B3** A bitmap is frozen, and thawed, while its node is drained. Kept by the caller of
//!   [`NodeBitmaps::freeze`] and its counterparts.
//! - **B4** A summary bit is never missing over a dirty leaf. Kept by [`words`].
//!
//! # What lives where
//!
//! - [`words`]: bits and their summaries, lock-free, checked by a model checker.
//! - `dirty`: one bitmap of one disk, in bytes, with a granularity and counters; `merge`: two.
//! - `named`: the bitmaps of a node, `entry`: one of them, `frozen`: their life under a job;
//!   control path only.
//!
//! Where bitmaps are stored is not known here.

mod dirty;
mod entry;
mod frozen;
mod merge;
mod named;
#[cfg(test)]
mod tests;
pub mod words;

pub use dirty::{Area, Areas, DirtyBitmap};
pub use entry::{BitmapFlags, BitmapInfo, NamedBitmap, default_granularity};
pub use named::NodeBitmaps;

/// Why a bitmap was not made or not changed; the texts are QEMU's where QEMU has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// The granularity is no power of two from 512 bytes to 2 GiB.
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    /// The disk is larger than 2^63 - 1 bytes.
    #[error("Disk size {size} is too large for a dirty bitmap")]
    Size {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// The memory for the bits was refused.
    #[error(
        "Cannot allocate {bytes} bytes for a dirty bitmap with granularity {granularity}, \
         use a larger granularity"
    )]
    Memory {
        /// How much memory the bits need.
        bytes: u64,
        /// The granularity asked for.
        granularity: u64,
    },
    /// A bitmap needs a name.
    #[error("Bitmap name cannot be empty")]
    NameEmpty,
    /// The name is longer than 1023 bytes.
    #[error("Bitmap name too long: {0}")]
    NameTooLong(String),
    /// The node has a bitmap of this name.
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    /// The node has no bitmap of this name.
    #[error("Dirty bitmap '{0}' not found")]
    NotFound(String),
    /// A job or an export uses the bitmap.
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    Busy(String),
    /// The bitmap belongs to an image that is open read-only.
    #[error("Bitmap '{0}' is readonly and cannot be modified")]
    ReadOnly(String),
    /// The bitmap was in use when a process died; only removal is left.
    #[error("Bitmap '{0}' is inconsistent and cannot be used")]
    Inconsistent(String),
    /// The bitmap is not frozen, so it has no successor to take over or to take back.
    #[error("Bitmap '{0}' has no successor")]
    NotFrozen(String),
    /// A merge of bitmaps whose disks differ in size.
    #[error(
        "Bitmaps are of different sizes (destination size is {destination}, source size is \
         {source_size}) and can't be merged"
    )]
    SizesDiffer {
        /// Size of the bitmap merged into, in bytes.
        destination: u64,
        /// Size of the bitmap merged from, in bytes.
        source_size: u64,
    },
}

impl BitmapError {
    /// What the user can do about it, where QEMU prints a hint beside the error.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Inconsistent(_) => {
                Some("Try block-dirty-bitmap-remove to delete this bitmap from disk")
            }
            _ => None,
        }
    }
}
