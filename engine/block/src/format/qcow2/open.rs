//! Opening an image: from the bytes of its header to an image in use.

use ringback_ring::{Errno, Shard};

use super::allocator::Allocator;
use super::check::{CheckError, Finding, Repair, check};
use super::entry::offset_of;
use super::frame::{DIRTY, Frame, read_bytes};
use super::geometry::Geometry;
use super::header::{Header, HeaderError, OpenMode, PEEK_BYTES};
use super::image::{DataFile, DiscardRules, Parts, Qcow2};
use super::reserved::{OverlapCheck, Reserved, Structure};
use super::tables::Tables;
use crate::child::Child;
use crate::notice::{Notice, Notify};
use crate::span::Span;
use crate::units::in_memory;

/// The most that is cached of L2 tables unless somebody says otherwise: enough
/// for 256 GiB at 64 KiB clusters.
const L2_CACHE_BYTES: u64 = 32 << 20;
/// The same of refcount blocks, but at least [`REFCOUNT_BLOCKS_MIN`].
const REFCOUNT_CACHE_BYTES: u64 = 1 << 20;
const REFCOUNT_BLOCKS_MIN: u64 = 4;
/// Seconds after which unused parts of the cache are given back.
const CACHE_CLEAN_INTERVAL: u32 = 600;
/// L2 tables are read and written in parts of this size.
const SLICE_BYTES: u64 = 4096;

/// How to open an image.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The node's name, for messages.
    pub name: String,
    /// For writing too.
    pub write: bool,
    /// What becomes of discards.
    pub discard: DiscardRules,
    /// Which structures guest data must never hit.
    pub overlap_check: OverlapCheck,
    /// None: as the image says.
    pub lazy_refcounts: Option<bool>,
    /// Bytes of L2 tables in memory.
    pub l2_cache_size: Option<u64>,
    /// Bytes of a part of an L2 table: a power of two from 512 to the cluster
    /// size.
    pub l2_cache_entry_size: Option<u64>,
    /// Bytes of refcount blocks in memory.
    pub refcount_cache_size: Option<u64>,
    /// Unused parts of the cache are given back after this many seconds; 0 never.
    pub cache_clean_interval: u32,
    /// Who is told about damage.
    pub notify: Notify,
}

impl OpenOptions {
    /// What QEMU would do by default.
    pub fn new(write: bool) -> Self {
        Self {
            name: String::new(),
            write,
            discard: DiscardRules::DEFAULT,
            overlap_check: OverlapCheck::CACHED,
            lazy_refcounts: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            cache_clean_interval: CACHE_CLEAN_INTERVAL,
            notify: Notify::default(),
        }
    }
}

/// Why an image could not be opened. Texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Error {
    /// The header is not in order.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The first bytes could not be read.
    #[error("Could not read qcow2 header: {}", .0.desc())]
    ReadHeader(Errno),
    /// The L1 table could not be read.
    #[error("Could not read L1 table: {}", .0.desc())]
    ReadL1(Errno),
    /// The refcount table could not be read.
    #[error("Could not initialize refcount handling: {}", .0.desc())]
    Refcounts(Errno),
    /// The header asks for a data file, and none was given.
    #[error("'data-file' is required for this image")]
    DataFileMissing,
    /// A data file was given, and the header knows none.
    #[error("'data-file' can only be set for images with an external data file")]
    DataFileNotWanted,
    /// A size of the cache that the image cannot have.
    #[error("L2 cache entry size must be a power of two between 512 and the cluster size ({0})")]
    CacheEntrySize(u64),
    /// It was left dirty, and that cannot be mended.
    #[error("Could not repair dirty image: {}", super::check::reason(*.0))]
    RepairDirty(Errno),
    /// The header could not be changed.
    #[error("Could not update qcow2 header: {}", .0.desc())]
    UpdateHeader(Errno),
}

/// Reads the header of the image in `file`.
///
/// # Errors
///
/// [`Qcow2Error`] if it cannot be read or is not in order.
pub async fn read_header(
    shard: &Shard,
    file: &Child,
    mode: OpenMode,
) -> Result<Header, Qcow2Error> {
    let fixed = read_bytes(shard, file, Span::new(0, PEEK_BYTES))
        .await
        .map_err(Qcow2Error::ReadHeader)?;
    let cluster_size = Header::peek_cluster_size(&fixed)?;
    let cluster = read_bytes(shard, file, Span::new(0, cluster_size))
        .await
        .map_err(Qcow2Error::ReadHeader)?;
    Ok(Header::parse(&cluster, mode)?)
}

impl Qcow2 {
    /// Opens the image in `file`. `data_file` must be given if its header says
    /// that guest data lies elsewhere.
    ///
    /// An image that was left dirty is repaired first if it is opened for
    /// writing; what is found and done goes out as [`Notice::Message`], line by
    /// line. Corruptions that stay do not keep it from being opened.
    ///
    /// # Errors
    ///
    /// [`Qcow2Error`]; nothing has been changed then, but for what a repair
    /// achieved.
    pub async fn open(
        shard: &Shard,
        file: Child,
        data_file: Option<Child>,
        options: &OpenOptions,
    ) -> Result<Self, Qcow2Error> {
        let image = Self::open_as_it_is(shard, file.clone(), data_file.clone(), options).await?;
        if !options.write || image.frame.incompatible() & DIRTY == 0 {
            return Ok(image);
        }
        // What was loaded is about to change.
        drop(image);
        Box::pin(repair_dirty(shard, &file, options)).await?;
        Self::open_as_it_is(shard, file, data_file, options).await
    }

    async fn open_as_it_is(
        shard: &Shard,
        file: Child,
        data_file: Option<Child>,
        options: &OpenOptions,
    ) -> Result<Self, Qcow2Error> {
        let mode = if options.write {
            OpenMode::ReadWrite
        } else {
            OpenMode::ReadOnly
        };
        let header = read_header(shard, &file, mode).await?;
        let geometry = geometry(&header, options)?;
        let data_file = match (data_file, header.has_data_file()) {
            (Some(child), true) => Some(DataFile {
                child,
                is_raw: header.is_raw_data_file(),
            }),
            (None, false) => None,
            (None, true) => return Err(Qcow2Error::DataFileMissing),
            (Some(_), false) => return Err(Qcow2Error::DataFileNotWanted),
        };
        let l1 = read_words(
            shard,
            &file,
            Span::new(header.l1_offset, u64::from(header.l1_size) * 8),
        )
        .await
        .map_err(Qcow2Error::ReadL1)?;
        file.event(shard, crate::event::Event::ReftableLoad).await;
        let table_span = Span::new(
            header.refcount_table_offset,
            u64::from(header.refcount_table_clusters) * geometry.cluster_size,
        );
        let table = read_words(shard, &file, table_span)
            .await
            .map_err(Qcow2Error::Refcounts)?;
        let reserved = Reserved::new(&geometry, options.overlap_check);
        reserve(&reserved, &geometry, &header, &l1, &table);
        let need = geometry.l1_entries(header.size) * geometry.cluster_size;
        let cache_bytes = options
            .l2_cache_size
            .unwrap_or_else(|| need.min(L2_CACHE_BYTES));
        let blocks = options
            .refcount_cache_size
            .unwrap_or(REFCOUNT_CACHE_BYTES)
            .div_ceil(geometry.cluster_size)
            .max(REFCOUNT_BLOCKS_MIN);
        let file_size = file.size();
        let frame = Frame::new(
            options.name.clone(),
            file,
            geometry,
            reserved,
            (header.version, header.incompatible),
            options.write,
            options.notify.clone(),
        );
        let image = Self::from_parts(Parts {
            tables: Tables::new(geometry, header.l1_offset, l1, cache_bytes),
            allocator: Allocator::new(&table, table_span, in_memory(blocks), file_size),
            frame,
            data_file,
            discard: options.discard,
            compression: header.compression,
            lazy_refcounts: options
                .lazy_refcounts
                .unwrap_or_else(|| header.has_lazy_refcounts()),
            size: header.size,
            shards: shard.set().count(),
        });
        Ok(image)
    }
}

async fn repair_dirty(
    shard: &Shard,
    file: &Child,
    options: &OpenOptions,
) -> Result<(), Qcow2Error> {
    let mut say = |finding: &Finding| {
        options.notify.send(Notice::Message(finding.to_string()));
    };
    match check(shard, file, Repair::All, &mut say).await {
        Ok(report) if report.check_errors > 0 => Err(Qcow2Error::RepairDirty(Errno::EIO)),
        Ok(_) => Ok(()),
        Err(CheckError::Failed(errno)) => Err(Qcow2Error::RepairDirty(errno)),
        Err(CheckError::Open(error)) => Err(error),
    }
}

fn geometry(header: &Header, options: &OpenOptions) -> Result<Geometry, Qcow2Error> {
    let cluster_size = 1 << header.cluster_bits;
    let slice = options
        .l2_cache_entry_size
        .unwrap_or_else(|| SLICE_BYTES.min(cluster_size));
    if !slice.is_power_of_two() || slice < 512 || slice > cluster_size {
        return Err(Qcow2Error::CacheEntrySize(cluster_size));
    }
    Ok(Geometry::new(
        header.cluster_bits,
        header.has_extended_l2(),
        header.refcount_order,
        slice,
    ))
}

/// A table of big-endian words.
async fn read_words(shard: &Shard, file: &Child, span: Span) -> Result<Vec<u64>, Errno> {
    let bytes = read_bytes(shard, file, span).await?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|&word| u64::from_be_bytes(word)).collect())
}

fn reserve(
    reserved: &Reserved,
    geometry: &Geometry,
    header: &Header,
    l1: &[u64],
    refcount_table: &[u64],
) {
    let cluster = |offset: u64| Span::new(offset, geometry.cluster_size);
    reserved.add(cluster(0), Structure::Header);
    let l1_bytes = u64::from(header.l1_size) * 8;
    reserved.add(Span::new(header.l1_offset, l1_bytes), Structure::ActiveL1);
    let table_bytes = u64::from(header.refcount_table_clusters) * geometry.cluster_size;
    reserved.add(
        Span::new(header.refcount_table_offset, table_bytes),
        Structure::RefcountTable,
    );
    for offset in l1.iter().map(|&entry| offset_of(entry)) {
        if offset != 0 {
            reserved.add(cluster(offset), Structure::ActiveL2);
        }
    }
    for offset in refcount_table.iter().map(|&entry| offset_of(entry)) {
        if offset != 0 {
            reserved.add(cluster(offset), Structure::RefcountBlock);
        }
    }
}
