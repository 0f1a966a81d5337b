//! What a copy-before-write filter is asked for, and the units that follow from it.

use crate::bitmap::{BitmapError, DirtyBitmap};

/// No filter has smaller clusters; QEMU's default.
pub const CLUSTER_SIZE_DEFAULT: u64 = 65536;
/// Nor larger ones.
pub const CLUSTER_SIZE_MAX: u64 = 1 << 31;
/// No filter saves in smaller units.
pub const BLOCK_SIZE_MIN: u64 = 4096;
/// So that the blocks of a cluster have their states in one word.
const BLOCKS_IN_CLUSTER_MAX: u64 = 16;
/// On larger disks blocks are larger, as long as they are smaller than clusters:
/// 64 MiB of copy states.
const BLOCKS_MAX: u64 = 1 << 27;
/// Room for old data on its way to the target, where there is any.
pub const SAVE_BUFFER_DEFAULT: u64 = 64 << 20;

/// What happens when old data cannot be saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCbwError {
    /// The guest's write fails, the snapshot stays good.
    #[default]
    BreakGuestWrite,
    /// The guest's write goes on, the snapshot is lost.
    BreakSnapshot,
}

/// Options of the filter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What happens when old data cannot be saved.
    pub on_cbw_error: OnCbwError,
    /// How long a guest's change waits for saves, in nanoseconds; 0: as long
    /// as it takes.
    pub cbw_timeout_ns: u64,
    /// Copy in units of at least this many bytes, a power of two; 0: no wish.
    pub min_cluster_size: u64,
    /// Unit in which the target is allocated, in bytes, a power of two; 0: none.
    pub target_cluster_size: u64,
    /// The least that can be written to the target without its reading or filling
    /// what lies beside it, in bytes, a power of two; 0: anything.
    pub target_block_size: u64,
    /// The target shows the disk below the filter where nothing is saved: old data
    /// must be there before it is overwritten, and in whole clusters.
    pub target_shows_source: bool,
    /// Bytes of old data that may be in memory on their way to the target; 0: a
    /// guest's change waits until they are there. Only with
    /// [`OnCbwError::BreakSnapshot`]: what is in memory only can be lost.
    pub save_buffer: u64,
    /// What is saved is stored compressed.
    pub compress: bool,
    /// Other processes may write to the disk. What they overwrite is not saved:
    /// what is copied is then of no single instant.
    pub shares_writes: bool,
}

/// What a filter saves.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// The whole disk.
    Everything,
    /// What is dirty here; only that can be read from the snapshot.
    Snapshot(&'a DirtyBitmap),
    /// What is dirty here. The rest counts as readable until it is overwritten.
    Saved(&'a DirtyBitmap),
}

/// Why a filter could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CbwError {
    /// The wish for a cluster size cannot be met.
    #[error("Cannot create block-copy-state: min-cluster-size needs to be a power of 2")]
    NotPowerOfTwo,
    /// Nor can this one.
    #[error("Cannot create block-copy-state: min-cluster-size too large: {0} > {CLUSTER_SIZE_MAX}")]
    TooLarge(u64),
    /// The target cannot hold what may have to be saved.
    #[error(
        "the target has {target_size} bytes and the source {source_size}: it must not be shorter"
    )]
    Sizes {
        /// Of the disk that is watched.
        source_size: u64,
        /// Of where its old data goes.
        target_size: u64,
    },
    /// No memory for the copy states.
    #[error(
        "no memory for the copy states of {blocks} blocks; a larger min-cluster-size needs less"
    )]
    Memory {
        /// How many states were asked for.
        blocks: u64,
    },
    /// The bitmap does not fit the disk.
    #[error("Cannot create block-copy-state: Failed to merge bitmap to internal copy-bitmap: {0}")]
    Bitmap(#[from] BitmapError),
}

impl Options {
    /// Unit of copying in bytes.
    pub(super) fn cluster_size(&self) -> Result<u64, CbwError> {
        let wish = self.min_cluster_size;
        if wish != 0 && !wish.is_power_of_two() {
            return Err(CbwError::NotPowerOfTwo);
        }
        if wish > CLUSTER_SIZE_MAX {
            return Err(CbwError::TooLarge(wish));
        }
        Ok(wish.max(CLUSTER_SIZE_DEFAULT).max(self.target_cluster_size))
    }

    /// Unit of what is saved for guests, in bytes.
    pub(super) fn block_size(&self, cluster_size: u64, disk_size: u64) -> u64 {
        // Who asks for a least size means what is saved for guests, too.
        if self.compress || self.target_shows_source || self.min_cluster_size != 0 {
            return cluster_size;
        }
        let mut size = self
            .target_block_size
            .max(BLOCK_SIZE_MIN)
            .max(cluster_size / BLOCKS_IN_CLUSTER_MAX);
        while disk_size / size > BLOCKS_MAX {
            size *= 2;
        }
        size.min(cluster_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_small_as_the_target_and_the_memory_allow() {
        let options = Options::default();
        let size = |options: &Options, disk_size| {
            let cluster_size = options.cluster_size().expect("a good wish");
            options.block_size(cluster_size, disk_size)
        };
        assert_eq!(size(&options, 1 << 30), 4096);
        assert_eq!(size(&options, 1 << 40), 8192);
        assert_eq!(size(&options, 1 << 45), 65536, "a cluster at most");
        let of_target = |target_cluster_size, target_block_size| Options {
            target_cluster_size,
            target_block_size,
            ..options
        };
        assert_eq!(size(&of_target(65536, 65536), 1 << 30), 65536);
        assert_eq!(size(&of_target(65536, 2048), 1 << 30), 4096);
        assert_eq!(size(&of_target(2 << 20, 65536), 1 << 30), 128 << 10);
        let wished = Options {
            min_cluster_size: 32768,
            ..options
        };
        assert_eq!(size(&wished, 1 << 30), 65536);
        let shows = Options {
            target_shows_source: true,
            ..options
        };
        assert_eq!(size(&shows, 1 << 30), 65536);
    }
}
