//! Opening an image: from the bytes of its header to an image in use.

use ringback_ring::{Errno, Shard, error_text};

use super::allocator::{Allocator, block_offset};
use super::check::{CheckError, Finding, Repair, check};
use super::entry::offset_of;
use super::frame::{DIRTY, Frame, read_bytes, read_words};
use super::geometry::Geometry;
use super::header::{Header, HeaderError, OpenMode, PEEK_BYTES};
use super::image::{DataFile, DiscardRules, Parts, Qcow2};
use super::reserved::{OverlapCheck, Reserved, Structure};
use super::snapshots::{self, SnapshotSelector, SnapshotsError, View};
use super::tables::Tables;
use super::{bitmap_directory::BitmapsError, bitmaps};
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
    /// Bytes of L2 tables and refcount blocks in memory, together.
    pub cache_size: Option<u64>,
    /// Bytes of L2 tables in memory.
    pub l2_cache_size: Option<u64>,
    /// Bytes of a part of an L2 table: a power of two from 512 to the cluster
    /// size.
    pub l2_cache_entry_size: Option<u64>,
    /// Bytes of refcount blocks in memory.
    pub refcount_cache_size: Option<u64>,
    /// Unused parts of the cache are given back after this many seconds; 0 never.
    pub cache_clean_interval: u32,
    /// Read this internal snapshot, not the disk as it is now.
    pub snapshot: Option<SnapshotSelector>,
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
            cache_size: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            cache_clean_interval: CACHE_CLEAN_INTERVAL,
            snapshot: None,
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
    #[error("Could not read qcow2 header: {}", error_text(*.0))]
    ReadHeader(Errno),
    /// The L1 table could not be read.
    #[error("Could not read L1 table: {}", error_text(*.0))]
    ReadL1(Errno),
    /// The refcount table could not be read.
    #[error("Could not initialize refcount handling: {}", error_text(*.0))]
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
    /// The snapshots, or the one asked for, could not be read.
    #[error(transparent)]
    Snapshots(#[from] SnapshotsError),
    /// The bitmaps could not be read, made or stored.
    #[error(transparent)]
    Bitmaps(#[from] BitmapsError),
    /// It was left dirty, and that cannot be mended.
    #[error("Could not repair dirty image: {}", error_text(*.0))]
    RepairDirty(Errno),
    /// The header could not be changed.
    #[error("Could not update qcow2 header: {}", error_text(*.0))]
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
    /// achieved, and unless what failed was the first change itself.
    pub async fn open(
        shard: &Shard,
        file: Child,
        data_file: Option<Child>,
        options: &OpenOptions,
    ) -> Result<Self, Qcow2Error> {
        let mut image =
            Self::open_as_it_is(shard, file.clone(), data_file.clone(), options).await?;
        if options.write && image.frame.incompatible() & DIRTY != 0 {
            // What was loaded is about to change.
            drop(image);
            Box::pin(repair_dirty(shard, &file, options)).await?;
            image = Self::open_as_it_is(shard, file, data_file, options).await?;
        }
        if options.write {
            image
                .begin_writing(shard)
                .await
                .map_err(Qcow2Error::UpdateHeader)?;
        }
        Ok(image)
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
        if options.write && options.snapshot.is_some() {
            return Err(SnapshotsError::ReadOnly.into());
        }
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
        let l1_span = Span::new(header.l1_offset, u64::from(header.l1_size) * 8);
        let l1 = read_words(shard, &file, l1_span)
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
        let (cache_bytes, blocks) = cache_sizes(&geometry, header.size, options);
        for warning in &header.warnings {
            options.notify.send(Notice::Warning(warning.clone()));
        }
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
        let (snapshots, snapshot_table) =
            snapshots::read_table(shard, &frame.file, &header).await?;
        if options.write {
            snapshots::reserve(shard, &frame, &snapshots, snapshot_table).await;
        }
        let mut loaded = bitmaps::load(shard, &frame, &header).await?;
        let disk = match &options.snapshot {
            None => View {
                l1,
                l1_offset: header.l1_offset,
                size: header.size,
            },
            Some(selector) => {
                // They are about the disk as it is now.
                loaded.stored.clear();
                let snapshot = snapshots::find(&snapshots, selector)?;
                snapshots::view(shard, &frame.file, &header, snapshot).await?
            }
        };
        let image = Self::from_parts(Parts {
            tables: Tables::new(geometry, disk.l1_offset, disk.l1, cache_bytes),
            allocator: Allocator::new(&table, table_span, in_memory(blocks), file_size),
            frame,
            data_file,
            discard: options.discard,
            compression: header.compression,
            // Version 2 could not say that it is dirty.
            lazy_refcounts: header.version >= 3
                && options
                    .lazy_refcounts
                    .unwrap_or_else(|| header.has_lazy_refcounts()),
            size: disk.size,
            header,
            loaded,
            snapshots,
            shards: shard.set().count(),
        });
        Ok(image)
    }

    /// What must be said in the file before anything is changed: bitmaps are in
    /// use, features that this program does not know were not looked after.
    async fn begin_writing(&self, shard: &Shard) -> Result<(), Errno> {
        self.mark_bitmaps_in_use(shard).await?;
        let is_current = {
            let header = self.header.lock().await;
            header.unknown_autoclear() == 0 && !header.extensions.stale_bitmaps
        };
        if is_current {
            return Ok(());
        }
        self.rewrite_header(shard, |header| {
            header.autoclear &= !header.unknown_autoclear();
            // It is not written again.
            header.extensions.stale_bitmaps = false;
        })
        .await
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

/// Bytes of L2 tables and the number of refcount blocks to be kept in memory.
fn cache_sizes(geometry: &Geometry, disk_size: u64, options: &OpenOptions) -> (u64, u64) {
    let blocks_min = REFCOUNT_BLOCKS_MIN * geometry.cluster_size;
    let (tables, blocks) = match options.cache_size {
        None => (options.l2_cache_size, options.refcount_cache_size),
        Some(total) => {
            let blocks = match (options.refcount_cache_size, options.l2_cache_size) {
                (Some(blocks), _) => blocks,
                (None, Some(tables)) => total.saturating_sub(tables),
                (None, None) => blocks_min.min(total),
            };
            let tables = options.l2_cache_size;
            let rest = total.saturating_sub(blocks);
            (Some(tables.unwrap_or(rest)), Some(blocks))
        }
    };
    let need = geometry.l1_entries(disk_size) * geometry.cluster_size;
    let blocks = blocks.unwrap_or(REFCOUNT_CACHE_BYTES);
    (
        tables.unwrap_or_else(|| need.min(L2_CACHE_BYTES)),
        blocks
            .div_ceil(geometry.cluster_size)
            .max(REFCOUNT_BLOCKS_MIN),
    )
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
    for offset in refcount_table.iter().map(|&entry| block_offset(entry)) {
        if offset != 0 && geometry.is_place(offset) {
            reserved.add(cluster(offset), Structure::RefcountBlock);
        }
    }
}
