//! What a new image consists of, before anything is preallocated.
//!
//! An image is made empty first and then grown to its size: the L1 table gets
//! its place last, and where that takes more refcounts than one table of one
//! cluster can hold, the refcount table moves. The bytes are QEMU's but for
//! what freed clusters still contain.

mod options;
mod space;

pub use options::{CreateError, CreateOptions, Preallocation, Version};
use space::Space;

use super::geometry::Geometry;
use super::header::{
    AUTOCLEAR_RAW_DATA_FILE, COMPATIBLE_LAZY_REFCOUNTS, Extensions, Header,
    INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2,
};
use super::image::Compression;
use super::refcounts;
use crate::units::in_memory;

/// The largest L1 table: 32 MiB.
const L1_ENTRIES_MAX: u64 = (32 << 20) / 8;
const ENTRY_BYTES: u64 = 8;
/// Longer names of backing files are not read.
const BACKING_NAME_MAX: usize = 1023;

/// A part of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins; a multiple of the cluster size.
    pub offset: u64,
    /// What is written there.
    pub bytes: Vec<u8>,
}

/// A new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What stands in the first piece.
    pub header: Header,
    /// All parts, from the start to the end. What lies between two of them is
    /// unused.
    pub pieces: Vec<Piece>,
}

impl Layout {
    /// Lays out an image without any preallocation, whatever the options say
    /// about it.
    ///
    /// # Errors
    ///
    /// The first [`CreateError`] in QEMU's order.
    pub fn new(options: &CreateOptions) -> Result<Self, CreateError> {
        options.check()?;
        let mut header = options.header();
        if header.serialize().is_err() {
            return Err(CreateError::DataFileName);
        }
        let geometry = Geometry::new(
            header.cluster_bits,
            options.extended_l2,
            header.refcount_order,
            options.cluster_size,
        );
        let l1_entries = geometry.l1_entries(options.size);
        if l1_entries > L1_ENTRIES_MAX {
            return Err(CreateError::TooLarge);
        }
        let mut space = Space::new(options.cluster_size, geometry.refcounts_per_block());
        if l1_entries > 0 {
            let clusters = (l1_entries * ENTRY_BYTES).div_ceil(options.cluster_size);
            header.l1_offset = space.allocate(clusters)? << header.cluster_bits;
            header.l1_size = u32::try_from(l1_entries).map_err(|_| CreateError::TooLarge)?;
        }
        let table = space.table();
        header.refcount_table_offset = table.start << header.cluster_bits;
        header.refcount_table_clusters =
            u32::try_from(table.end - table.start).map_err(|_| CreateError::TooLarge)?;
        options.add_backing(&mut header)?;
        let mut first = header.serialize().map_err(|_| options.no_backing_space())?;
        first.resize(in_memory(options.cluster_size), 0);
        let l1 = vec![0; in_memory(l1_entries * ENTRY_BYTES)];
        let mut pieces = vec![
            Piece {
                offset: 0,
                bytes: first,
            },
            refcount_table(&space, &header),
        ];
        pieces.extend(refcount_blocks(&space, &header));
        if !l1.is_empty() {
            pieces.push(Piece {
                offset: header.l1_offset,
                bytes: l1,
            });
        }
        pieces.sort_by_key(|piece| piece.offset);
        Ok(Self { header, pieces })
    }

    /// Where the file ends.
    pub fn file_size(&self) -> u64 {
        let last = self.pieces.last();
        last.map_or(0, |piece| piece.offset + piece.bytes.len() as u64)
    }
}

impl CreateOptions {
    /// The header of an image of size 0 without a backing file, whose refcount
    /// table is still at its first place. The size is that of the disk.
    fn header(&self) -> Header {
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        let is_packed_anew = self.compression != Compression::Zlib;
        Header {
            version: self.version.number(),
            cluster_bits: self.cluster_size.ilog2(),
            size: self.size,
            l1_size: 0,
            l1_offset: 0,
            refcount_table_offset: self.cluster_size,
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshot_offset: 0,
            incompatible: flag(self.data_file.is_some(), INCOMPATIBLE_DATA_FILE)
                | flag(is_packed_anew, INCOMPATIBLE_COMPRESSION)
                | flag(self.extended_l2, INCOMPATIBLE_EXTENDED_L2),
            compatible: flag(self.lazy_refcounts, COMPATIBLE_LAZY_REFCOUNTS),
            autoclear: flag(self.data_file_raw, AUTOCLEAR_RAW_DATA_FILE),
            refcount_order: self.refcount_bits.ilog2(),
            compression: self.compression,
            unknown_fields: Vec::new(),
            extensions: Extensions {
                data_file: self.data_file.clone(),
                ..Extensions::default()
            },
            backing_file: None,
            warnings: Vec::new(),
        }
    }

    fn add_backing(&self, header: &mut Header) -> Result<(), CreateError> {
        let Some(name) = &self.backing_file else {
            return Ok(());
        };
        if name.len() > BACKING_NAME_MAX {
            let (file, format) = self.backing_texts();
            return Err(CreateError::BackingFileName { file, format });
        }
        header.backing_file = Some(name.clone());
        header
            .extensions
            .backing_format
            .clone_from(&self.backing_format);
        Ok(())
    }

    fn no_backing_space(&self) -> CreateError {
        let (file, format) = self.backing_texts();
        CreateError::BackingFileSpace { file, format }
    }

    fn backing_texts(&self) -> (String, String) {
        let name = self.backing_file.as_deref().unwrap_or_default();
        let format = self.backing_format.clone().unwrap_or_default();
        (String::from_utf8_lossy(name).into_owned(), format)
    }
}

fn refcount_table(space: &Space, header: &Header) -> Piece {
    let len = u64::from(header.refcount_table_clusters) << header.cluster_bits;
    let mut bytes = vec![0; in_memory(len)];
    for (index, cluster) in space.blocks() {
        let entry = cluster << header.cluster_bits;
        bytes[in_memory(index * ENTRY_BYTES)..][..8].copy_from_slice(&entry.to_be_bytes());
    }
    Piece {
        offset: header.refcount_table_offset,
        bytes,
    }
}

fn refcount_blocks(space: &Space, header: &Header) -> impl Iterator<Item = Piece> {
    let (bits, order) = (header.cluster_bits, header.refcount_order);
    let per_block = 1_u64 << (bits + 3 - order);
    space.blocks().map(move |(index, cluster)| {
        let mut bytes = vec![0; 1 << bits];
        for slot in 0..per_block {
            if space.is_used(index * per_block + slot) {
                refcounts::set(&mut bytes, order, in_memory(slot), 1);
            }
        }
        Piece {
            offset: cluster << bits,
            bytes,
        }
    })
}

#[cfg(test)]
mod tests;
