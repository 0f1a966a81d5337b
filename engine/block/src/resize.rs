//! Why a disk kept its size.

use ringback_ring::{Errno, error_text};

use crate::request::Preallocation;
use crate::units::DISK_SIZE_MAX;

/// No disk is made longer than this, in bytes: QEMU's limit, which leaves room to align.
pub(crate) const DISK_BYTES_MAX: u64 = DISK_SIZE_MAX & !((1 << 30) - 1);

/// Why a disk kept its size. The texts are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// The node has no size of its own.
    #[error("Image format driver does not support resize")]
    Unsupported,
    /// A window keeps its size.
    #[error("Cannot resize fixed-size raw disks")]
    Window,
    /// A device cannot become longer.
    #[error("Cannot grow device files")]
    Device,
    /// A file has no tables that could be made.
    #[error("Unsupported preallocation mode: {}", .0.name())]
    Mode(Preallocation),
    /// Nothing is reserved where a file becomes shorter.
    #[error("Cannot use preallocation for shrinking files")]
    PreallocatedShrink,
    /// The file did not change.
    #[error("Could not resize file: {}", error_text(*.0))]
    File(Errno),
    /// There is no room.
    #[error("Could not preallocate new data: {}", error_text(*.0))]
    Preallocate(Errno),
    /// Zeroes could not be written into a file.
    #[error("Could not write zeros for preallocation: {}", error_text(*.0))]
    Fill(Errno),
    /// A format counts sectors.
    #[error("The new size must be a multiple of 512")]
    NotSectors,
    /// More than a signed number of bytes can say.
    #[error("Image size cannot be negative")]
    Negative,
    /// Less than that, and still more than any disk has.
    #[error("offset({0}) exceeds maximum({DISK_BYTES_MAX})")]
    TooLarge(u64),
    /// The image cannot be changed at all.
    #[error("Could not resize image: {}", error_text(*.0))]
    Image(Errno),
    /// In old images, snapshots do not know their size.
    #[error("Can't resize a v2 image which has snapshots")]
    OldSnapshots,
    /// Nothing is reserved where an image becomes shorter.
    #[error("Preallocation can't be used for shrinking an image")]
    PreallocatedImageShrink,
    /// No room for a longer L1 table, or it would become too long.
    #[error("Failed to grow the L1 table: {}", error_text(*.0))]
    L1Table(Errno),
    /// What lies behind the end could not be dropped.
    #[error("Failed to discard cropped clusters: {}", error_text(*.0))]
    Drop(Errno),
    /// What is added would not read as zeroes.
    #[error("Failed to zero out new clusters: {}", error_text(*.0))]
    Zero(Errno),
    /// The header could not be written.
    #[error("Failed to update the image size: {}", error_text(*.0))]
    Size(Errno),
}

impl ResizeError {
    /// What it is as the answer to a request.
    pub fn errno(self) -> Errno {
        match self {
            Self::Unsupported | Self::Window | Self::Mode(_) | Self::OldSnapshots => {
                Errno::EOPNOTSUPP
            }
            Self::TooLarge(_) => Errno::EIO,
            Self::Device
            | Self::NotSectors
            | Self::Negative
            | Self::PreallocatedShrink
            | Self::PreallocatedImageShrink => Errno::EINVAL,
            Self::File(errno)
            | Self::Preallocate(errno)
            | Self::Fill(errno)
            | Self::Image(errno)
            | Self::L1Table(errno)
            | Self::Drop(errno)
            | Self::Zero(errno)
            | Self::Size(errno) => errno,
        }
    }
}
