//! The bitmaps of an image file, read without ringback and without QEMU.

use std::path::Path;

/// A bitmap as the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) granularity: u64,
    pub(crate) flags: u32,
    /// One for each granule of the disk.
    pub(crate) dirty: Vec<bool>,
}

/// Places in an image file that tests damage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// Of the header extension's content.
    pub(crate) extension: usize,
    pub(crate) directory: usize,
    pub(crate) directory_size: usize,
    /// Of the first bitmap's table.
    pub(crate) table: usize,
}

fn number<const N: usize>(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..offset + N]
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Where the bitmaps extension's content lies.
fn extension(image: &[u8]) -> Option<usize> {
    let version = number::<4>(image, 4);
    let mut at = if version == 2 {
        72
    } else {
        number::<4>(image, 100) as usize
    };
    loop {
        match number::<4>(image, at) {
            0 => return None,
            0x2385_2875 => return Some(at + 8),
            _ => at += 8 + (number::<4>(image, at + 4) as usize).next_multiple_of(8),
        }
    }
}

pub(crate) fn places(path: &Path) -> Option<Places> {
    let image = std::fs::read(path).expect("an image");
    let extension = extension(&image)?;
    let directory = number::<8>(&image, extension + 16) as usize;
    Some(Places {
        extension,
        directory,
        directory_size: number::<8>(&image, extension + 8) as usize,
        table: number::<8>(&image, directory) as usize,
    })
}

/// All bitmaps of an image, in the order of the directory.
pub(crate) fn bitmaps(path: &Path) -> Vec<Stored> {
    let mut image = std::fs::read(path).expect("an image");
    // The last cluster may be cut.
    image.resize(image.len() + (2 << 20), 0);
    let Some(at) = extension(&image) else {
        return Vec::new();
    };
    assert_eq!(number::<8>(&image, 88) & 1, 1, "the bitmaps are up to date");
    let (cluster, disk) = (1 << number::<4>(&image, 20), number::<8>(&image, 24));
    let count = number::<4>(&image, at) as usize;
    let size = number::<8>(&image, at + 8) as usize;
    let start = number::<8>(&image, at + 16) as usize;
    let mut entry = start;
    let mut found = Vec::new();
    for _ in 0..count {
        let table = number::<8>(&image, entry) as usize;
        let table_len = number::<4>(&image, entry + 8) as usize;
        let name_len = number::<2>(&image, entry + 18) as usize;
        let name = &image[entry + 24..entry + 24 + name_len];
        let granularity = 1 << image[entry + 17];
        let mut bits = Vec::new();
        for index in 0..table_len {
            match number::<8>(&image, table + 8 * index) {
                0 => bits.extend(std::iter::repeat_n(0, cluster)),
                1 => bits.extend(std::iter::repeat_n(0xff, cluster)),
                offset => bits.extend_from_slice(&image[offset as usize..][..cluster]),
            }
        }
        let granules = disk.div_ceil(granularity) as usize;
        let dirty = |granule: usize| bits[granule / 8] >> (granule % 8) & 1 == 1;
        found.push(Stored {
            name: String::from_utf8(name.to_vec()).expect("text"),
            granularity,
            flags: number::<4>(&image, entry + 12) as u32,
            dirty: (0..granules).map(dirty).collect(),
        });
        entry += (24 + name_len).next_multiple_of(8);
    }
    assert_eq!(entry, start + size, "the directory's size");
    found
}
