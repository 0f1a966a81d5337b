//! The header of an image: everything in its first cluster.
//!
//! The order of the checks and the texts of the errors are QEMU's, so that of
//! two mistakes the same one is reported.

mod extensions;

use super::geometry::Geometry;
use super::image::Compression;
use crate::units::{DISK_SIZE_MAX, SECTOR};

pub use extensions::{BitmapsExtension, Extensions};

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the header that every reader of version 3 must find.
const LENGTH_MIN: u32 = 104;
/// Bytes of version 2's.
const LENGTH_OLD: u32 = 72;
/// Bytes of what is written today: with the compression type, and padding.
const LENGTH: u32 = 112;
/// Where the incompatible feature bits stand.
pub(crate) const INCOMPATIBLE_OFFSET: u64 = 72;
/// Where offset and length of the refcount table stand.
pub(crate) const REFCOUNT_TABLE_POINTER_OFFSET: u64 = 48;
/// Enough for [`Header::peek_cluster_size`].
pub const PEEK_BYTES: u64 = 112;

/// No refcount table is longer, in bytes.
pub(crate) const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// No image has more internal snapshots.
pub(crate) const SNAPSHOTS_MAX: u32 = 65_536;
/// The least that an entry of the snapshot table takes.
const SNAPSHOT_BYTES_MIN: u64 = 40;
/// No L1 table is longer: 32 MiB.
pub(crate) const L1_ENTRIES_MAX: u32 = (32 << 20) / 8;
/// No name is longer, in bytes.
pub(crate) const BACKING_NAME_MAX: u64 = 1023;

/// Method of encryption: none.
const CRYPT_NONE: u32 = 0;
/// QEMU's older one.
const CRYPT_AES: u32 = 1;
/// The only one that has an extension.
const CRYPT_LUKS: u32 = 2;

/// Refcounts may be wrong.
pub const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Structures contradict each other.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Guest data lies in a file of its own.
pub const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Compressed clusters are not deflated.
pub const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// L2 entries have subclusters.
pub const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0b1_1111;
/// Refcounts may be written late.
pub const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;
/// The bitmaps are up to date.
pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
/// The data file can be read by itself.
pub const AUTOCLEAR_RAW_DATA_FILE: u64 = 1 << 1;
const AUTOCLEAR_KNOWN: u64 = 0b11;

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading.
    ReadOnly,
    /// Writing, too.
    ReadWrite,
    /// Looking for damage: some is let pass.
    Check,
}

/// Why a header is not in order. Texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Something else.
    #[error("Image is not in qcow2 format")]
    Magic,
    /// A version of the future, or of the past.
    #[error("Unsupported qcow2 version {0}")]
    Version(u32),
    /// Not 512 bytes to 2 MiB.
    #[error("Unsupported cluster size: 2^{0}")]
    ClusterSize(u32),
    /// Less than version 3 needs.
    #[error("qcow2 header too short")]
    TooShort,
    /// More than the first cluster.
    #[error("qcow2 header exceeds cluster size")]
    TooLong,
    /// Outside of the first cluster.
    #[error("Invalid backing file offset")]
    BackingOffset,
    /// Neither zlib nor zstd.
    #[error("qcow2: unknown compression type: {0}")]
    CompressionType(u8),
    /// Zlib, but the feature bit says otherwise.
    #[error("qcow2: Compression type incompatible feature bit must not be set")]
    CompressionBitSet,
    /// Not zlib, but the feature bit says so.
    #[error("qcow2: Compression type incompatible feature bit must be set")]
    CompressionBitMissing,
    /// Features that this program does not know.
    #[error("Unsupported qcow2 feature(s): {0}")]
    Features(String),
    /// Marked corrupt.
    #[error("qcow2: Image is corrupt; cannot be opened read/write")]
    Corrupt,
    /// Clusters too small for 32 subclusters of 512 bytes.
    #[error("Unsupported subcluster size: {0}")]
    SubclusterSize(u64),
    /// More than 64 bits.
    #[error("Reference count entry width too large; may not exceed 64 bits")]
    RefcountWidth,
    /// No clusters.
    #[error("Image does not contain a reference count table")]
    NoRefcountTable,
    /// More than 8 MiB.
    #[error("Reference count table too large")]
    RefcountTableSize,
    /// Unaligned, or behind every end.
    #[error("Reference count table offset invalid")]
    RefcountTableOffset,
    /// More than 65536.
    #[error("Snapshot table too large")]
    SnapshotCount,
    /// Unaligned.
    #[error("Snapshot table offset invalid")]
    SnapshotOffset,
    /// More than 32 MiB.
    #[error("Active L1 table too large")]
    L1Size,
    /// Unaligned.
    #[error("Active L1 table offset invalid")]
    L1Offset,
    /// No L1 table could map it.
    #[error("Image is too big")]
    TooBig,
    /// It does not map the whole disk.
    #[error("L1 table is too small")]
    L1TooSmall,
    /// Encrypted: not supported.
    #[error(
        "Encrypted images are not supported (encryption method {0}); decrypt the image with qemu-img convert"
    )]
    Encrypted(u32),
    /// Not AES, not LUKS.
    #[error("Unsupported encryption method {0}")]
    EncryptionMethod(u32),
    /// Sizes are counted in 63 bits.
    #[error("Could not refresh total sector count: File too large")]
    Size,
    /// Longer than 1023 bytes, or than the first cluster.
    #[error("Backing file name too long")]
    BackingName,
    /// An extension that reaches too far.
    #[error("Header extension too large")]
    ExtensionTooLarge,
    /// No format has so long a name.
    #[error("ERROR: ext_backing_format: len={0} too large (>=16)")]
    BackingFormat(u32),
    /// LUKS belongs to encrypted images.
    #[error("CRYPTO header extension only expected with LUKS encryption method")]
    UnexpectedLuks,
    /// Not 16 bytes.
    #[error("CRYPTO header extension size {0}, but expected size 16")]
    LuksLength(u32),
    /// Unaligned.
    #[error(
        "Encryption header offset '{offset}' is not a multiple of cluster size '{cluster_size}'"
    )]
    LuksOffset {
        /// Where the header of the encryption is said to be.
        offset: u64,
        /// What it should be a multiple of.
        cluster_size: u64,
    },
    /// LUKS, but not where its header is.
    #[error("Missing CRYPTO header for crypt method 2")]
    LuksMissing,
    /// Not 24 bytes.
    #[error("bitmaps_ext: Invalid extension length")]
    BitmapsLength,
    /// Not zero.
    #[error("bitmaps_ext: Reserved field is not zero")]
    BitmapsReserved,
    /// More than anybody makes.
    #[error("bitmaps_ext: Image has {0} bitmaps, exceeding the QEMU supported maximum of 65535")]
    BitmapsCount(u32),
    /// An extension about nothing.
    #[error("found bitmaps extension with zero bitmaps")]
    NoBitmaps,
    /// Unaligned.
    #[error("bitmaps_ext: invalid bitmap directory offset")]
    BitmapsOffset,
    /// Larger than so many bitmaps can need.
    #[error(
        "bitmaps_ext: bitmap directory size ({0}) exceeds the maximum supported size (67107840)"
    )]
    BitmapsSize(u64),
    /// Names and extensions must fit into the first cluster.
    #[error("No space left in the file header")]
    NoSpace,
}

/// A header as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Logarithm of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Of the disk, in bytes.
    pub size: u64,
    /// Entries of the L1 table.
    pub l1_size: u32,
    /// Where it lies.
    pub l1_offset: u64,
    /// Where the refcount table lies.
    pub refcount_table_offset: u64,
    /// How long it is.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Where their table lies.
    pub snapshot_offset: u64,
    /// Feature bits that a program must know.
    pub incompatible: u64,
    /// Feature bits that a program may ignore.
    pub compatible: u64,
    /// Feature bits that a program which does not know them must clear.
    pub autoclear: u64,
    /// Logarithm of a refcount's bits.
    pub refcount_order: u32,
    /// How compressed clusters are packed.
    pub compression: Compression,
    /// Header bytes of the future, kept as they are.
    pub unknown_fields: Vec<u8>,
    /// What follows the fixed part.
    pub extensions: Extensions,
    /// The backing file's name, as the image has it.
    pub backing_file: Option<Vec<u8>>,
    /// What whoever opens the image should be told.
    pub warnings: Vec<String>,
}

impl Header {
    /// The size of a cluster, from the first [`PEEK_BYTES`].
    ///
    /// # Errors
    ///
    /// [`HeaderError`] if this is no image, or none of ours.
    pub fn peek_cluster_size(bytes: &[u8]) -> Result<u64, HeaderError> {
        let fields = Fields(bytes);
        if bytes.get(..4) != Some(&MAGIC) {
            return Err(HeaderError::Magic);
        }
        let version = fields.u32(4);
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        match fields.u32(20) {
            bits @ 9..=21 => Ok(1 << bits),
            bits => Err(HeaderError::ClusterSize(bits)),
        }
    }

    /// Reads a header from the image's whole first cluster.
    ///
    /// # Errors
    ///
    /// The first [`HeaderError`] in QEMU's order.
    pub fn parse(cluster: &[u8], mode: OpenMode) -> Result<Self, HeaderError> {
        let cluster_size = Self::peek_cluster_size(cluster)?;
        debug_assert_eq!(cluster.len() as u64, cluster_size);
        let fields = Fields(cluster);
        let version = fields.u32(4);
        let length = header_length(&fields, version, cluster_size)?;
        let backing_offset = fields.u64(8);
        if backing_offset > cluster_size {
            return Err(HeaderError::BackingOffset);
        }
        let is_new = version >= 3;
        let bits = |offset| if is_new { fields.u64(offset) } else { 0 };
        let (incompatible, compatible, autoclear) = (bits(72), bits(80), bits(88));
        let compression = compression(&fields, length, incompatible)?;
        let extension_end = if backing_offset == 0 {
            cluster_size
        } else {
            backing_offset
        };
        let mut header = Self {
            version,
            cluster_bits: fields.u32(20),
            size: fields.u64(24),
            l1_size: fields.u32(36),
            l1_offset: fields.u64(40),
            refcount_table_offset: fields.u64(48),
            refcount_table_clusters: fields.u32(56),
            snapshot_count: fields.u32(60),
            snapshot_offset: fields.u64(64),
            incompatible,
            compatible,
            autoclear,
            refcount_order: if is_new { fields.u32(96) } else { 4 },
            compression,
            unknown_fields: unknown_fields(cluster, length),
            extensions: Extensions::default(),
            backing_file: None,
            warnings: Vec::new(),
        };
        let extension_area = Extensions::area(cluster, length, extension_end);
        let crypt_method = fields.u32(32);
        if incompatible & !INCOMPATIBLE_KNOWN != 0 {
            let names = header.unknown_features(extension_area, crypt_method);
            return Err(HeaderError::Features(names));
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 && mode == OpenMode::ReadWrite {
            return Err(HeaderError::Corrupt);
        }
        header.check_tables(mode)?;
        match crypt_method {
            // LUKS is refused once its extension has been looked at.
            CRYPT_NONE | CRYPT_LUKS => {}
            CRYPT_AES => return Err(HeaderError::Encrypted(crypt_method)),
            method => return Err(HeaderError::EncryptionMethod(method)),
        }
        let has_luks = header.parse_extensions(extension_area, crypt_method)?;
        if crypt_method == CRYPT_LUKS {
            return Err(if has_luks {
                HeaderError::Encrypted(crypt_method)
            } else {
                HeaderError::LuksMissing
            });
        }
        header.parse_backing_name(cluster, backing_offset, fields.u32(16))?;
        // Disks consist of sectors.
        header.size -= header.size % SECTOR;
        if header.size > DISK_SIZE_MAX {
            return Err(HeaderError::Size);
        }
        Ok(header)
    }

    fn check_tables(&self, mode: OpenMode) -> Result<(), HeaderError> {
        let cluster_size: u64 = 1 << self.cluster_bits;
        let is_aligned = |offset: u64| offset.is_multiple_of(cluster_size);
        if self.has_extended_l2() && cluster_size / 32 < SECTOR {
            return Err(HeaderError::SubclusterSize(cluster_size / 32));
        }
        if self.refcount_order > 6 {
            return Err(HeaderError::RefcountWidth);
        }
        if self.refcount_table_clusters == 0 && mode != OpenMode::Check {
            return Err(HeaderError::NoRefcountTable);
        }
        let table_bytes = u64::from(self.refcount_table_clusters) * cluster_size;
        if table_bytes > REFCOUNT_TABLE_BYTES_MAX {
            return Err(HeaderError::RefcountTableSize);
        }
        let table_end = self.refcount_table_offset.checked_add(table_bytes);
        if !is_aligned(self.refcount_table_offset)
            || table_end.is_none_or(|end| end > DISK_SIZE_MAX)
        {
            return Err(HeaderError::RefcountTableOffset);
        }
        // A check looks at the snapshot table itself.
        let is_check = mode == OpenMode::Check;
        if self.snapshot_count > SNAPSHOTS_MAX && !is_check {
            return Err(HeaderError::SnapshotCount);
        }
        let snapshot_bytes = u64::from(self.snapshot_count) * SNAPSHOT_BYTES_MIN;
        let snapshot_end = self.snapshot_offset.checked_add(snapshot_bytes);
        let is_valid = is_aligned(self.snapshot_offset)
            && snapshot_end.is_some_and(|end| end <= DISK_SIZE_MAX);
        if !is_valid && !is_check {
            return Err(HeaderError::SnapshotOffset);
        }
        if self.l1_size > L1_ENTRIES_MAX {
            return Err(HeaderError::L1Size);
        }
        let l1_end = self.l1_offset.checked_add(u64::from(self.l1_size) * 8);
        if !is_aligned(self.l1_offset) || l1_end.is_none_or(|end| end > DISK_SIZE_MAX) {
            return Err(HeaderError::L1Offset);
        }
        let geometry = Geometry::new(
            self.cluster_bits,
            self.has_extended_l2(),
            self.refcount_order,
            cluster_size,
        );
        // Sizes just below 2^64 need no entries here, as QEMU's sum wraps: they
        // are refused for themselves later.
        let wraps = self.size > u64::MAX - (geometry.table_coverage() - 1);
        let needed = if wraps {
            0
        } else {
            geometry.l1_entries(self.size)
        };
        if needed > i32::MAX as u64 {
            return Err(HeaderError::TooBig);
        }
        if u64::from(self.l1_size) < needed {
            return Err(HeaderError::L1TooSmall);
        }
        Ok(())
    }

    fn parse_backing_name(
        &mut self,
        cluster: &[u8],
        offset: u64,
        len: u32,
    ) -> Result<(), HeaderError> {
        if offset == 0 {
            return Ok(());
        }
        let room = (cluster.len() as u64 - offset).min(BACKING_NAME_MAX);
        if u64::from(len) > room {
            return Err(HeaderError::BackingName);
        }
        let start = crate::units::in_memory(offset);
        let name = until_nul(&cluster[start..start + len as usize]);
        self.backing_file = Some(name.to_vec()).filter(|name| !name.is_empty());
        Ok(())
    }

    /// The header as it is written, without the rest of its cluster.
    ///
    /// # Errors
    ///
    /// [`HeaderError::NoSpace`].
    pub fn serialize(&self) -> Result<Vec<u8>, HeaderError> {
        let is_new = self.version >= 3;
        let length = match is_new {
            true => {
                LENGTH
                    + u32::try_from(self.unknown_fields.len()).map_err(|_| HeaderError::NoSpace)?
            }
            false => LENGTH_OLD,
        };
        let mut bytes = vec![0; length as usize];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(0, &MAGIC);
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_size.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_table_offset.to_be_bytes());
        put(56, &self.refcount_table_clusters.to_be_bytes());
        put(60, &self.snapshot_count.to_be_bytes());
        put(64, &self.snapshot_offset.to_be_bytes());
        if is_new {
            put(72, &self.incompatible.to_be_bytes());
            put(80, &self.compatible.to_be_bytes());
            put(88, &self.autoclear.to_be_bytes());
            put(96, &self.refcount_order.to_be_bytes());
            put(100, &length.to_be_bytes());
            put(104, &[u8::from(self.compression == Compression::Zstd)]);
            put(LENGTH as usize, &self.unknown_fields);
        }
        let with_names = is_new && self.cluster_bits > 12;
        self.extensions.append(&mut bytes, with_names);
        if let Some(name) = &self.backing_file {
            let offset = bytes.len() as u64;
            let len = u32::try_from(name.len()).map_err(|_| HeaderError::NoSpace)?;
            bytes.extend_from_slice(name);
            bytes[8..16].copy_from_slice(&offset.to_be_bytes());
            bytes[16..20].copy_from_slice(&len.to_be_bytes());
        }
        if bytes.len() as u64 > 1 << self.cluster_bits {
            return Err(HeaderError::NoSpace);
        }
        Ok(bytes)
    }

    /// Bits of the future that whoever writes to the image must clear.
    pub fn unknown_autoclear(&self) -> u64 {
        self.autoclear & !AUTOCLEAR_KNOWN
    }

    /// Guest data lies in a file of its own.
    pub fn has_data_file(&self) -> bool {
        self.incompatible & INCOMPATIBLE_DATA_FILE != 0
    }

    /// That file can be read by itself.
    pub fn is_raw_data_file(&self) -> bool {
        self.autoclear & AUTOCLEAR_RAW_DATA_FILE != 0
    }

    /// L2 entries have subclusters.
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// Refcounts may be written late.
    pub fn has_lazy_refcounts(&self) -> bool {
        self.compatible & COMPATIBLE_LAZY_REFCOUNTS != 0
    }
}

fn header_length(fields: &Fields<'_>, version: u32, cluster_size: u64) -> Result<u32, HeaderError> {
    let length = match version {
        2 => LENGTH_OLD,
        _ => fields.u32(100),
    };
    if version >= 3 && length < LENGTH_MIN {
        return Err(HeaderError::TooShort);
    }
    if u64::from(length) > cluster_size {
        return Err(HeaderError::TooLong);
    }
    Ok(length)
}

fn compression(
    fields: &Fields<'_>,
    length: u32,
    incompatible: u64,
) -> Result<Compression, HeaderError> {
    let kind = if length > LENGTH_MIN {
        fields.0[LENGTH_MIN as usize]
    } else {
        0
    };
    let is_marked = incompatible & INCOMPATIBLE_COMPRESSION != 0;
    match (kind, is_marked) {
        (0, false) => Ok(Compression::Zlib),
        (0, true) => Err(HeaderError::CompressionBitSet),
        (1, true) => Ok(Compression::Zstd),
        (1, false) => Err(HeaderError::CompressionBitMissing),
        (kind, _) => Err(HeaderError::CompressionType(kind)),
    }
}

fn unknown_fields(cluster: &[u8], length: u32) -> Vec<u8> {
    let fields = cluster.get(LENGTH as usize..length as usize);
    fields.unwrap_or_default().to_vec()
}

/// Names are C strings to everybody else.
fn until_nul(name: &[u8]) -> &[u8] {
    name.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Big-endian numbers at fixed places; what is not there is zero.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let found = self.0.get(offset..).and_then(<[u8]>::first_chunk);
        found.copied().unwrap_or([0; N])
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.bytes(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_be_bytes(self.bytes(offset))
    }
}

#[cfg(test)]
pub(crate) mod tests;
