//! The directory of persistent bitmaps: which there are, and where their tables
//! lie.
//!
//! Entries follow each other, each padded to 8 bytes: the table's offset (8
//! bytes) and length in entries (4), flags (4), type (1), granularity as a power
//! of two (1), length of the name (2) and of extra data (4), extra data, name.
//! The order of the checks and their texts are QEMU's.

use ringback_ring::Errno;

use super::geometry::Geometry;
use ringback_ring::error_text;

/// The bitmap is being changed, or its user died.
pub(super) const IN_USE: u32 = 1 << 0;
/// Writes mark the bitmap.
pub(super) const AUTO: u32 = 1 << 1;
const FLAGS_KNOWN: u32 = IN_USE | AUTO;
/// The only type there is: a dirty bitmap.
const TYPE: u8 = 1;
/// Bytes of an entry without its name.
const FIXED: usize = 24;
/// Where the flags stand in an entry.
pub(super) const FLAGS_OFFSET: u64 = 12;
const NAME_MAX: usize = 1023;
const TABLE_LEN_MAX: u32 = 0x800_0000;
/// Bytes of bits that a bitmap may have.
pub(super) const BITS_BYTES_MAX: u64 = 512 << 20;
pub(super) const COUNT_MAX: usize = 65_535;
/// So many entries with the longest names.
pub(super) const DIRECTORY_BYTES_MAX: u64 = 67_107_840;

/// Why an image's bitmaps could not be read, made or stored. Texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapsError {
    /// A directory of no bytes.
    #[error("Requested bitmap directory size is zero")]
    EmptyDirectory,
    /// The directory could not be read.
    #[error("Failed to read bitmap directory: {}", error_text(*.0))]
    ReadDirectory(Errno),
    /// An entry crosses the directory's end.
    #[error("Broken bitmap directory")]
    Broken,
    /// The header says less.
    #[error("More bitmaps found than specified in header extension")]
    More,
    /// The header says more.
    #[error("Less bitmaps found than specified in header extension")]
    Less,
    /// Data of a future version.
    #[error("Bitmap extra data is not supported")]
    ExtraData,
    /// Numbers that no bitmap can have.
    #[error("Bitmap '{0}' doesn't satisfy the constraints")]
    Constraints(String),
    /// Two of one name.
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    /// The table of a bitmap is out of order, or could not be read.
    #[error(
        "Could not read bitmap_table table from image for bitmap '{name}': {}", error_text(*.errno)
    )]
    Table {
        /// Which bitmap.
        name: String,
        /// What is wrong.
        errno: Errno,
    },
    /// The bits are out of order, or could not be read.
    #[error("Could not read bitmap '{name}' from image: {}", error_text(*.errno))]
    Bits {
        /// Which bitmap.
        name: String,
        /// What is wrong.
        errno: Errno,
    },
    /// The image cannot take the bitmap.
    #[error("Can't make bitmap '{bitmap}' persistent in '{node}': {reason}")]
    NotStorable {
        /// Which bitmap.
        bitmap: String,
        /// Of which node.
        node: String,
        /// Why not.
        reason: NotStorable,
    },
    /// The bits could not be written; the file has the old ones, marked as in
    /// use.
    #[error(
        "Lost persistent bitmaps during inactivation of node '{node}': Failed to write bitmap \
         '{bitmap}' to file: {}", error_text(*.errno)
    )]
    Store {
        /// Of which node.
        node: String,
        /// Which bitmap.
        bitmap: String,
        /// What went wrong.
        errno: Errno,
    },
    /// Directory or header could not be written.
    #[error("Failed to update bitmap extension: {}", error_text(*.0))]
    Commit(Errno),
}

/// Why an image cannot take a bitmap. Texts are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStorable {
    /// Version 2 has no bitmaps.
    #[error("Cannot store dirty bitmaps in qcow2 v2 files")]
    OldVersion,
    /// The name is too long.
    #[error("Name length exceeds maximum (1023 characters)")]
    NameLength,
    /// More than 512 MiB of bits.
    #[error("Too much space will be occupied by the bitmap. Use larger granularity")]
    TooMuchSpace,
    /// The format has no table without entries.
    #[error("A disk of no bytes has no bits to store")]
    EmptyDisk,
    /// 65535 at most.
    #[error("Maximum number of persistent bitmaps is already reached")]
    Count,
    /// The names are too long, together.
    #[error("Not enough space in the bitmap directory")]
    DirectorySpace,
}

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DirectoryEntry {
    pub(super) name: Vec<u8>,
    pub(super) table_offset: u64,
    /// Entries of the table: one a cluster of bits.
    pub(super) table_len: u32,
    pub(super) flags: u32,
    pub(super) granularity_bits: u8,
}

impl DirectoryEntry {
    /// The name for messages: as C would print it.
    pub(super) fn label(&self) -> String {
        let name = self.name.split(|&byte| byte == 0).next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }

    /// Bytes that it takes in the directory.
    pub(super) fn size(&self) -> u64 {
        entry_size(self.name.len())
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    pub(super) fn is_auto(&self) -> bool {
        self.flags & AUTO != 0
    }

    fn satisfies_constraints(&self, kind: u8, geometry: &Geometry, disk_size: u64) -> bool {
        let bytes = u64::from(self.table_len) * geometry.cluster_size;
        let covered = (u128::from(bytes) * 8) << self.granularity_bits.min(64);
        self.table_len != 0
            && self.table_offset != 0
            && geometry.in_cluster(self.table_offset) == 0
            && self.table_len <= TABLE_LEN_MAX
            && (9..=31).contains(&self.granularity_bits)
            && self.flags & !FLAGS_KNOWN == 0
            && self.name.len() <= NAME_MAX
            && kind == TYPE
            && bytes <= BITS_BYTES_MAX
            && (self.is_in_use() || covered >= u128::from(disk_size))
    }

    fn append(&self, bytes: &mut Vec<u8>) {
        let name_len = u16::try_from(self.name.len()).expect("names were checked");
        bytes.extend_from_slice(&self.table_offset.to_be_bytes());
        bytes.extend_from_slice(&self.table_len.to_be_bytes());
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        bytes.extend_from_slice(&[TYPE, self.granularity_bits]);
        bytes.extend_from_slice(&name_len.to_be_bytes());
        bytes.extend_from_slice(&0_u32.to_be_bytes());
        bytes.extend_from_slice(&self.name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
}

/// Bytes that an entry with a name of this length takes.
pub(super) fn entry_size(name_len: usize) -> u64 {
    (FIXED + name_len).next_multiple_of(8) as u64
}

/// Reads a directory for a disk of `disk_size` bytes. The header says that it
/// has `count` entries.
pub(super) fn parse(
    bytes: &[u8],
    count: u32,
    geometry: &Geometry,
    disk_size: u64,
) -> Result<Vec<DirectoryEntry>, BitmapsError> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let fixed = rest.first_chunk::<FIXED>().ok_or(BitmapsError::Broken)?;
        if entries.len() == count as usize {
            return Err(BitmapsError::More);
        }
        let number = |range: std::ops::Range<usize>| {
            let bytes = fixed[range].iter();
            bytes.fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
        };
        let short = |range| u32::try_from(number(range)).expect("four bytes");
        let (name_len, extra_len) = (number(18..20), number(20..24));
        let size = (FIXED as u64 + name_len + extra_len).next_multiple_of(8);
        // With extra data it is an error either way. Which one is told depends on
        // the signed 32-bit number in which QEMU counts.
        let counted = size & u64::from(u32::MAX);
        if extra_len != 0 && (counted > i32::MAX as u64 || counted <= rest.len() as u64) {
            return Err(BitmapsError::ExtraData);
        }
        if size > rest.len() as u64 {
            return Err(BitmapsError::Broken);
        }
        let name_end = FIXED + crate::units::in_memory(name_len);
        let entry = DirectoryEntry {
            name: rest[FIXED..name_end].to_vec(),
            table_offset: number(0..8),
            table_len: short(8..12),
            flags: short(12..16),
            granularity_bits: fixed[17],
        };
        if !entry.satisfies_constraints(fixed[16], geometry, disk_size) {
            return Err(BitmapsError::Constraints(entry.label()));
        }
        entries.push(entry);
        rest = &rest[crate::units::in_memory(size)..];
    }
    if entries.len() < count as usize {
        return Err(BitmapsError::Less);
    }
    Ok(entries)
}

/// The directory as it is written.
pub(super) fn serialize<'a>(entries: impl Iterator<Item = &'a DirectoryEntry>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        entry.append(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: u64 = 64 << 20;

    fn geometry() -> Geometry {
        Geometry::new(16, false, 4, 4096)
    }

    fn entry(name: &str) -> DirectoryEntry {
        DirectoryEntry {
            name: name.as_bytes().to_vec(),
            table_offset: 7 << 16,
            table_len: 1,
            flags: AUTO,
            granularity_bits: 16,
        }
    }

    fn read(bytes: &[u8], count: u32) -> Result<Vec<DirectoryEntry>, BitmapsError> {
        parse(bytes, count, &geometry(), DISK)
    }

    /// The answer to one entry of which some bytes were changed.
    fn changed(at: usize, bytes: &[u8]) -> Result<Vec<DirectoryEntry>, BitmapsError> {
        let mut directory = serialize([entry("a")].iter());
        directory[at..at + bytes.len()].copy_from_slice(bytes);
        read(&directory, 1)
    }

    #[test]
    fn a_directory_comes_back() {
        let entries = [entry("a"), entry("longer than eight"), entry("12345678")];
        let bytes = serialize(entries.iter());
        assert_eq!(bytes.len(), 32 + 48 + 32);
        assert_eq!(
            bytes.len() as u64,
            entries.iter().map(DirectoryEntry::size).sum::<u64>()
        );
        assert_eq!(read(&bytes, 3), Ok(entries.to_vec()));
        assert_eq!(read(&bytes, 2), Err(BitmapsError::More));
        assert_eq!(read(&bytes, 4), Err(BitmapsError::Less));
        assert_eq!(
            read(&bytes[..bytes.len() - 1], 3),
            Err(BitmapsError::Broken)
        );
        assert_eq!(read(&bytes[..40], 3), Err(BitmapsError::Broken));
    }

    #[test]
    fn what_no_bitmap_can_have_is_refused() {
        let bad = || Err(BitmapsError::Constraints("a".into()));
        assert_eq!(changed(0, &[0; 8]), bad(), "no table");
        assert_eq!(changed(6, &[2]), bad(), "an unaligned table");
        assert_eq!(changed(8, &[0; 4]), bad(), "a table without entries");
        assert_eq!(changed(8, &8193_u32.to_be_bytes()), bad(), "too many bits");
        assert_eq!(changed(12, &4_u32.to_be_bytes()), bad(), "unknown flags");
        assert_eq!(changed(16, &[2]), bad(), "another type");
        assert_eq!(changed(17, &[8]), bad());
        assert_eq!(changed(17, &[32]), bad());
        assert_eq!(changed(17, &[255]), bad());
        assert!(changed(17, &[31]).is_ok());
        assert_eq!(changed(23, &[1]), Err(BitmapsError::ExtraData));
        assert_eq!(changed(22, &[1, 0]), Err(BitmapsError::Broken));
        assert_eq!(changed(18, &[4, 0]), Err(BitmapsError::Broken));
    }

    #[test]
    fn the_longest_name_is_1023_bytes() {
        for (len, is_good) in [(1023, true), (1024, false)] {
            let long = entry(&"n".repeat(len));
            let found = read(&serialize([long].iter()), 1);
            assert_eq!(found.is_ok(), is_good);
        }
    }

    #[test]
    fn a_table_too_small_for_the_disk_is_refused_unless_its_bits_mean_nothing() {
        let mut small = entry("a");
        small.granularity_bits = 9;
        let disk = (512 << 19) + 1;
        let bytes = serialize([small.clone()].iter());
        assert!(parse(&bytes, 1, &geometry(), disk - 1).is_ok());
        assert!(parse(&bytes, 1, &geometry(), disk).is_err());
        small.flags |= IN_USE;
        let bytes = serialize([small].iter());
        assert!(parse(&bytes, 1, &geometry(), disk).is_ok());
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            names in prop::collection::vec("[a-z]{1,40}", 0..5),
            damage in prop::collection::vec((0_usize..400, any::<u8>()), 0..6),
            cut in 0_usize..400,
            count in 0_u32..6,
            disk in any::<u64>(),
        ) {
            let entries: Vec<_> = names.iter().map(|name| entry(name)).collect();
            let mut bytes = serialize(entries.iter());
            for (at, value) in damage {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(cut.max(1));
            if let Ok(found) = parse(&bytes, count, &geometry(), disk) {
                prop_assert_eq!(found.len(), count as usize);
                let size: u64 = found.iter().map(DirectoryEntry::size).sum();
                prop_assert_eq!(size, bytes.len() as u64);
            }
        }
    }
}
