//! What an image may be made of. The order of the checks and the texts of the
//! errors are QEMU's.

use crate::format::qcow2::image::Compression;
use crate::units::SECTOR;

/// Clusters have 512 bytes to 2 MiB.
const CLUSTER_SIZE_MAX: u64 = 2 << 20;
/// 32 subclusters of at least 512 bytes.
const CLUSTER_SIZE_EXTENDED_MIN: u64 = 16 << 10;
/// The only width of refcounts that version 2 knows.
const REFCOUNT_BITS_OLD: u64 = 16;
const REFCOUNT_BITS_MAX: u64 = 64;
/// What QEMU takes for the largest disk.
const SIZE_MAX: u64 = 0x7fff_ffff_c000_0000;

/// The version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `compat=0.10`.
    Two,
    /// `compat=1.1`.
    Three,
}

impl Version {
    /// As in the header.
    pub fn number(self) -> u32 {
        match self {
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// What of the disk has its place before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    Off,
    /// All mappings; the file stays sparse.
    Metadata,
    /// All clusters, without writing them.
    Falloc,
    /// All clusters, with zeroes.
    Full,
}

/// How to make an image; names as in QEMU's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Of the disk, in bytes: a multiple of 512.
    pub size: u64,
    /// Of the format.
    pub version: Version,
    /// In bytes.
    pub cluster_size: u64,
    /// Width of a refcount.
    pub refcount_bits: u64,
    /// Refcounts may be written late.
    pub lazy_refcounts: bool,
    /// 32 subclusters a cluster.
    pub extended_l2: bool,
    /// The name of the file in which guest data lies, as the header will have
    /// it. None: guest data lies in the image.
    pub data_file: Option<Vec<u8>>,
    /// The data file can be read by itself.
    pub data_file_raw: bool,
    /// The name of the backing file, as the header will have it.
    pub backing_file: Option<Vec<u8>>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Of compressed clusters.
    pub compression: Compression,
    /// What is made beyond the empty image.
    pub preallocation: Preallocation,
}

/// Why no such image can be made. Texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// Disks consist of sectors.
    #[error("Image size must be a multiple of 512 bytes")]
    NotSectors,
    /// Version 2 has none.
    #[error(
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    ExtendedL2Version,
    /// Not a power of two, too small or too large.
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterSize,
    /// Subclusters would be smaller than a sector.
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ExtendedL2ClusterSize,
    /// Preallocated clusters would hide the backing file.
    #[error(
        "Backing file and preallocation can only be used at the same time if extended_l2 is on"
    )]
    BackingPreallocation,
    /// The format of nothing.
    #[error("Backing format cannot be used without backing file")]
    BackingFormatAlone,
    /// Version 2 has none.
    #[error(
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or \
         greater)"
    )]
    LazyRefcountsVersion,
    /// Not one of 1, 2, 4, 8, 16, 32, 64.
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    /// Version 2 has 16 bits.
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use \
         version=v3 or greater)"
    )]
    RefcountBitsVersion,
    /// The data file would not be all of the disk.
    #[error("Backing file and data-file-raw cannot be used at the same time")]
    BackingRaw,
    /// Version 2 has none.
    #[error(
        "External data files are only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    DataFileVersion,
    /// A property of nothing.
    #[error("data-file-raw requires data-file")]
    RawAlone,
    /// Version 2 has none.
    #[error(
        "Non-zlib compression type is only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    CompressionVersion,
    /// More than 63 bits.
    #[error("Could not resize image: Image size cannot be negative")]
    SizeNegative,
    /// More than QEMU takes for possible.
    #[error("Could not resize image: offset({0}) exceeds maximum({SIZE_MAX})")]
    SizeMax(u64),
    /// Its L1 table would have more than 32 MiB.
    #[error(
        "The image size is too large for file format 'qcow2' (try using a larger cluster size)"
    )]
    TooLarge,
    /// The name of the data file does not fit into the first cluster.
    #[error("Could not update qcow2 header: No space left on device")]
    DataFileName,
    /// The name of the backing file does not fit into the first cluster.
    #[error(
        "Could not assign backing file '{file}' with format '{format}': No space left on device"
    )]
    BackingFileSpace {
        /// The name.
        file: String,
        /// The format.
        format: String,
    },
    /// The name of the backing file is longer than 1023 bytes.
    #[error("Could not assign backing file '{file}' with format '{format}': Invalid argument")]
    BackingFileName {
        /// The name.
        file: String,
        /// The format.
        format: String,
    },
}

impl CreateOptions {
    /// QEMU's defaults for a disk of this size.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: Version::Three,
            cluster_size: 64 << 10,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            data_file: None,
            data_file_raw: false,
            backing_file: None,
            backing_format: None,
            compression: Compression::Zlib,
            preallocation: Preallocation::Off,
        }
    }

    /// What is made beyond the empty image. A data file that can be read by
    /// itself needs its mappings: unmapped clusters would not be looked for
    /// there.
    pub fn effective_preallocation(&self) -> Preallocation {
        match self.preallocation {
            Preallocation::Off if self.data_file_raw => Preallocation::Metadata,
            preallocation => preallocation,
        }
    }

    /// Whether the options agree with each other and with the format, but for
    /// what [`Layout`](super::Layout) finds out: whether all has its place.
    ///
    /// # Errors
    ///
    /// The first [`CreateError`] in QEMU's order.
    pub fn check(&self) -> Result<(), CreateError> {
        if !self.size.is_multiple_of(SECTOR) {
            return Err(CreateError::NotSectors);
        }
        let is_old = self.version == Version::Two;
        let has_backing = self.backing_file.is_some();
        let is_cluster_size = self.cluster_size.is_power_of_two()
            && (SECTOR..=CLUSTER_SIZE_MAX).contains(&self.cluster_size);
        let is_small = self.cluster_size < CLUSTER_SIZE_EXTENDED_MIN;
        let has_space = self.preallocation != Preallocation::Off;
        let is_width =
            self.refcount_bits.is_power_of_two() && self.refcount_bits <= REFCOUNT_BITS_MAX;
        let is_other_width = self.refcount_bits != REFCOUNT_BITS_OLD;
        let is_packed_anew = self.compression != Compression::Zlib;
        let rules = [
            (is_old && self.extended_l2, CreateError::ExtendedL2Version),
            (!is_cluster_size, CreateError::ClusterSize),
            (
                self.extended_l2 && is_small,
                CreateError::ExtendedL2ClusterSize,
            ),
            (
                has_backing && has_space && !self.extended_l2,
                CreateError::BackingPreallocation,
            ),
            (
                self.backing_format.is_some() && !has_backing,
                CreateError::BackingFormatAlone,
            ),
            (
                is_old && self.lazy_refcounts,
                CreateError::LazyRefcountsVersion,
            ),
            (!is_width, CreateError::RefcountBits),
            (is_old && is_other_width, CreateError::RefcountBitsVersion),
            (
                self.data_file_raw && self.data_file.is_none(),
                CreateError::RawAlone,
            ),
            (self.data_file_raw && has_backing, CreateError::BackingRaw),
            (
                is_old && self.data_file.is_some(),
                CreateError::DataFileVersion,
            ),
            (is_old && is_packed_anew, CreateError::CompressionVersion),
            (self.size > i64::MAX as u64, CreateError::SizeNegative),
            (self.size > SIZE_MAX, CreateError::SizeMax(self.size)),
        ];
        let broken = rules.into_iter().find(|(is_broken, _)| *is_broken);
        broken.map_or(Ok(()), |(_, error)| Err(error))
    }
}
