//! Making a new image.
//!
//! An empty image comes first, of size 0: header, refcount table, one refcount
//! block. It is opened and grown, and its backing file is named last. So
//! whatever is reserved goes the same ways as in an image that is in use.

use ringback_ring::{Errno, Shard, error_text};

use super::frame::write_bytes;
use super::header::{
    AUTOCLEAR_RAW_DATA_FILE, BACKING_NAME_MAX, COMPATIBLE_LAZY_REFCOUNTS, Extensions, Header,
    HeaderError, INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2,
    OpenMode,
};
use super::image::{Compression, Qcow2};
use super::open::{OpenOptions, Qcow2Error, read_header};
use super::refcounts;
use crate::child::Child;
use crate::request::Preallocation;
use crate::resize::ResizeError;
use crate::units::{SECTOR, in_memory};

/// No driver has so long a name that it would not fit.
const BACKING_FORMAT_MAX: u64 = 15;
const CLUSTER_SIZE: u64 = 65_536;
const REFCOUNT_BITS: u64 = 16;
/// The smallest cluster that has 32 subclusters of a sector.
const EXTENDED_CLUSTER_MIN: u64 = 32 * SECTOR;
/// What an empty image consists of: header, refcount table, refcount block.
const EMPTY_CLUSTERS: u64 = 3;

/// What a new image is to be. Names are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Of the disk, in bytes; a multiple of 512.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Bytes: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Of each refcount: a power of two up to 64.
    pub refcount_bits: u64,
    /// Refcounts may be written late.
    pub lazy_refcounts: bool,
    /// L2 entries have subclusters.
    pub extended_l2: bool,
    /// Guest data lies in a file of its own: its name, as the header will say.
    pub data_file: Option<String>,
    /// That file can be read by itself.
    pub data_file_raw: bool,
    /// What shows through: its name, as the header will say.
    pub backing_file: Option<String>,
    /// The driver to open it with.
    pub backing_format: Option<String>,
    /// How compressed clusters are packed.
    pub compression: Compression,
    /// What is reserved at once.
    pub preallocation: Preallocation,
}

impl CreateOptions {
    /// What QEMU would do by default.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: 3,
            cluster_size: CLUSTER_SIZE,
            refcount_bits: REFCOUNT_BITS,
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

    /// Whether the options fit each other; in QEMU's order.
    ///
    /// # Errors
    ///
    /// The first [`CreateError`].
    pub fn check(&self) -> Result<(), CreateError> {
        let is_old = self.version < 3;
        if !self.size.is_multiple_of(SECTOR) {
            return Err(CreateError::NotSectors);
        }
        if !(2..=3).contains(&self.version) {
            return Err(CreateError::Version(self.version));
        }
        if is_old && self.extended_l2 {
            return Err(CreateError::OldExtendedL2);
        }
        if !self.cluster_size.is_power_of_two() || !(9..=21).contains(&self.cluster_size.ilog2()) {
            return Err(CreateError::ClusterSize);
        }
        if self.extended_l2 && self.cluster_size < EXTENDED_CLUSTER_MIN {
            return Err(CreateError::ExtendedClusterSize);
        }
        let is_backed = self.backing_file.is_some();
        if is_backed && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return Err(CreateError::BackingAndPreallocation);
        }
        if self.backing_format.is_some() && !is_backed {
            return Err(CreateError::FormatWithoutBacking);
        }
        if is_old && self.lazy_refcounts {
            return Err(CreateError::OldLazyRefcounts);
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return Err(CreateError::RefcountBits);
        }
        if is_old && self.refcount_bits != REFCOUNT_BITS {
            return Err(CreateError::OldRefcountBits);
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(CreateError::RawWithoutDataFile);
        }
        if self.data_file_raw && is_backed {
            return Err(CreateError::RawAndBacking);
        }
        if is_old && self.data_file.is_some() {
            return Err(CreateError::OldDataFile);
        }
        if is_old && self.compression != Compression::Zlib {
            return Err(CreateError::OldCompression);
        }
        Ok(())
    }

    /// The header of an empty image.
    fn header(&self) -> Header {
        let when = |set: bool, bit: u64| if set { bit } else { 0 };
        let incompatible = when(self.data_file.is_some(), INCOMPATIBLE_DATA_FILE)
            | when(
                self.compression != Compression::Zlib,
                INCOMPATIBLE_COMPRESSION,
            )
            | when(self.extended_l2, INCOMPATIBLE_EXTENDED_L2);
        let data_file = self.data_file.as_ref();
        Header {
            version: self.version,
            cluster_bits: self.cluster_size.ilog2(),
            size: 0,
            l1_size: 0,
            l1_offset: 0,
            refcount_table_offset: self.cluster_size,
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshot_offset: 0,
            incompatible,
            compatible: when(self.lazy_refcounts, COMPATIBLE_LAZY_REFCOUNTS),
            autoclear: when(self.data_file_raw, AUTOCLEAR_RAW_DATA_FILE),
            refcount_order: self.refcount_bits.ilog2(),
            compression: self.compression,
            unknown_fields: Vec::new(),
            extensions: Extensions {
                data_file: data_file.map(|name| name.clone().into_bytes()),
                ..Extensions::default()
            },
            backing_file: None,
            warnings: Vec::new(),
        }
    }

    /// The clusters of an empty image.
    fn empty_image(&self) -> Result<Vec<u8>, HeaderError> {
        let cluster_size = in_memory(self.cluster_size);
        let mut bytes = self.header().serialize()?;
        bytes.resize(in_memory(EMPTY_CLUSTERS) * cluster_size, 0);
        let block_offset = 2 * self.cluster_size;
        bytes[cluster_size..cluster_size + 8].copy_from_slice(&block_offset.to_be_bytes());
        let block = &mut bytes[2 * cluster_size..];
        for cluster in 0..in_memory(EMPTY_CLUSTERS) {
            refcounts::set(block, self.refcount_bits.ilog2(), cluster, 1);
        }
        Ok(bytes)
    }
}

/// Why an image could not be made. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// Disks consist of sectors.
    #[error("Image size must be a multiple of 512 bytes")]
    NotSectors,
    /// Neither 2 nor 3.
    #[error("Unsupported qcow2 version {0}")]
    Version(u32),
    /// Subclusters came with version 3.
    #[error(
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    OldExtendedL2,
    /// Not 512 bytes to 2 MiB.
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterSize,
    /// No room for 32 subclusters.
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ExtendedClusterSize,
    /// What is reserved would hide the backing file.
    #[error(
        "Backing file and preallocation can only be used at the same time if extended_l2 is on"
    )]
    BackingAndPreallocation,
    /// A format of nothing.
    #[error("Backing format cannot be used without backing file")]
    FormatWithoutBacking,
    /// Late refcounts came with version 3.
    #[error(
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or \
         greater)"
    )]
    OldLazyRefcounts,
    /// Not 1 to 64, or no power of two.
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    /// Other widths came with version 3.
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use \
         version=v3 or greater)"
    )]
    OldRefcountBits,
    /// A property of nothing.
    #[error("data-file-raw requires data-file")]
    RawWithoutDataFile,
    /// Who reads the data file alone would miss what shows through.
    #[error("Backing file and data-file-raw cannot be used at the same time")]
    RawAndBacking,
    /// Data files came with version 3.
    #[error(
        "External data files are only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    OldDataFile,
    /// The choice came with version 3.
    #[error(
        "Non-zlib compression type is only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    OldCompression,
    /// A file for guest data was named and not given, or given and not named.
    #[error("'data-file' is required for this image")]
    DataFile,
    /// The old content could not be taken away.
    #[error("Could not empty the file: {0}")]
    Empty(ResizeError),
    /// The name of the data file does not fit into the first cluster.
    #[error("Could not update qcow2 header: No space left on device")]
    HeaderSpace,
    /// The first clusters could not be written.
    #[error("Could not write qcow2 header: {}", error_text(*.0))]
    WriteHeader(Errno),
    /// What was written is no image.
    #[error(transparent)]
    Open(#[from] Qcow2Error),
    /// The empty image did not grow.
    #[error("Could not resize image: {0}")]
    Resize(#[from] ResizeError),
    /// The name of the backing file does not fit.
    #[error("Could not assign backing file '{name}' with format '{format}': {}", error_text(*.errno))]
    Backing {
        /// As asked for.
        name: String,
        /// As asked for.
        format: String,
        /// ENOSPC: not into the first cluster. EINVAL: into no image.
        errno: Errno,
    },
    /// The image could not be written to its end.
    #[error("Could not flush the new image: {}", error_text(*.0))]
    Close(Errno),
}

impl CreateError {
    /// The disk is larger than clusters of this size can map.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Resize(error) if error.errno() == Errno::EFBIG)
    }
}

/// Makes a new image in `file`, whose content is lost; guest data goes into
/// `data_file` if the options name one, and what that holds is lost, too.
///
/// The backing file is named and not looked at.
///
/// # Errors
///
/// [`CreateError`]. After a failed check nothing has been touched; after any
/// other error there is no usable image.
pub async fn create(
    shard: &Shard,
    file: &Child,
    data_file: Option<&Child>,
    options: &CreateOptions,
) -> Result<(), CreateError> {
    options.check()?;
    if data_file.is_some() != options.data_file.is_some() {
        return Err(CreateError::DataFile);
    }
    let empty = options
        .empty_image()
        .map_err(|_| CreateError::HeaderSpace)?;
    for child in std::iter::once(file).chain(data_file) {
        let emptied = child.truncate(shard, 0, Preallocation::Off).await;
        emptied.map_err(CreateError::Empty)?;
    }
    write_bytes(shard, file, 0, &empty)
        .await
        .map_err(CreateError::WriteHeader)?;
    // As long as nothing is cached but tables that are being filled.
    let open_options = OpenOptions {
        l2_cache_entry_size: Some(options.cluster_size),
        lazy_refcounts: Some(false),
        ..OpenOptions::new(true)
    };
    let image = Qcow2::open(shard, file.clone(), data_file.cloned(), &open_options).await?;
    image
        .truncate(shard, None, options.size, options.preallocation)
        .await?;
    image.close(shard).await.map_err(CreateError::Close)?;
    if let Some(name) = &options.backing_file {
        name_backing(shard, file, name, options.backing_format.as_deref()).await?;
    }
    file.flush(shard).await.map_err(CreateError::Close)
}

async fn name_backing(
    shard: &Shard,
    file: &Child,
    name: &str,
    format: Option<&str>,
) -> Result<(), CreateError> {
    let refused = |errno| CreateError::Backing {
        name: name.into(),
        format: format.unwrap_or_default().into(),
        errno,
    };
    let is_long = |text: &str, max: u64| text.len() as u64 > max;
    if is_long(name, BACKING_NAME_MAX)
        || format.is_some_and(|format| is_long(format, BACKING_FORMAT_MAX))
    {
        return Err(refused(Errno::EINVAL));
    }
    let mut header = read_header(shard, file, OpenMode::ReadWrite).await?;
    header.backing_file = Some(name.into());
    header.extensions.backing_format = format.map(str::to_owned);
    let bytes = header.serialize().map_err(|_| refused(Errno::ENOSPC))?;
    write_bytes(shard, file, 0, &bytes)
        .await
        .map_err(CreateError::WriteHeader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_image_is_one() {
        for (version, cluster_size, refcount_bits) in
            [(2, 512, 16), (3, 65_536, 1), (3, 1 << 21, 64)]
        {
            let options = CreateOptions {
                version,
                cluster_size,
                refcount_bits,
                ..CreateOptions::new(0)
            };
            options.check().expect("in order");
            let bytes = options.empty_image().expect("room");
            assert_eq!(bytes.len() as u64, 3 * cluster_size);
            let header = Header::parse(&bytes[..in_memory(cluster_size)], OpenMode::ReadWrite);
            assert_eq!(header, Ok(options.header()));
            let block = &bytes[2 * in_memory(cluster_size)..];
            let order = options.refcount_bits.ilog2();
            let counts = [0, 1, 2, 3].map(|cluster| refcounts::get(block, order, cluster));
            assert_eq!(counts, [1, 1, 1, 0]);
        }
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let options = CreateOptions {
            cluster_size: 512,
            data_file: Some("d".repeat(500)),
            ..CreateOptions::new(0)
        };
        assert_eq!(options.check(), Ok(()));
        assert_eq!(options.empty_image(), Err(HeaderError::NoSpace));
    }
}
