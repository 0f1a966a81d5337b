//! The content of a block: a pure function of the run's seed, the block's index and its version.
//!
//! Nothing is remembered here: which version a block has, or may have, is the business of
//! `history`. The content is no checksum and no encryption; it is made to differ everywhere and to
//! say where it comes from.
//!
//! # Content
//!
//! Version 0 is a block that was never written: all bytes zero. From version 1 on every sector of
//! 512 bytes starts with a header, little-endian, and goes on with pseudo-random bytes which no
//! compressor makes smaller:
//!
//! ```text
//!  0        8        16       24          28         32                512
//!  | magic  | seed   | block  | version   | sector   | pseudo-random ... |
//! ```
//!
//! `sector` counts from the start of the block. A block that ends in the middle of a sector holds
//! the first part of that sector. Two versions of a sector, and two sectors of a block, differ in every
//! aligned 8 bytes of the pseudo-random part, so that a mixture of two is seen wherever its seam is.

use std::fmt;

use super::random::{STEP, mix};

/// Bytes which carry a header of their own: the smallest unit that a device writes as a whole.
pub(crate) const SECTOR_LEN: usize = 512;

const HEADER_LEN: usize = 32;
const MAGIC: [u8; 8] = *b"ringback";
/// The generators that run side by side, so that the processor need not wait for one.
const LANES: usize = 4;
const ZEROES: [u8; SECTOR_LEN] = [0; SECTOR_LEN];

type Sector = [u8; SECTOR_LEN];

/// Writes the content of a block over all of `data`, whose length is the block's.
pub(crate) fn fill(seed: u64, block: u64, version: u32, data: &mut [u8]) {
    if version == 0 {
        data.fill(0);
        return;
    }
    let content = Content {
        seed,
        block,
        version,
    };
    let block_key = content.block_key();
    let (sectors, tail) = data.as_chunks_mut::<SECTOR_LEN>();
    let mut index = 0;
    for sector in sectors {
        content.fill_sector(block_key, index, sector);
        index += 1;
    }
    if !tail.is_empty() {
        let mut sector = ZEROES;
        content.fill_sector(block_key, index, &mut sector);
        tail.copy_from_slice(&sector[..tail.len()]);
    }
}

/// Whether `data` is the content of this block, from its first byte on.
pub(crate) fn check(seed: u64, block: u64, version: u32, data: &[u8]) -> Result<(), Mismatch> {
    check_part(seed, block, version, 0, data)
}

/// Whether `data` is a part of the content of this block, `start` bytes after its first byte.
///
/// Sectors are generated one by one beside the data, in the processor's first cache: that is
/// quicker than a block of scratch memory, and no caller has to keep one.
pub(crate) fn check_part(
    seed: u64,
    block: u64,
    version: u32,
    start: usize,
    data: &[u8],
) -> Result<(), Mismatch> {
    let content = Content {
        seed,
        block,
        version,
    };
    let block_key = content.block_key();
    let mut expected = ZEROES;
    let mut position = 0;
    while position < data.len() {
        let index = (start + position) / SECTOR_LEN;
        let skipped = (start + position) % SECTOR_LEN;
        let len = (SECTOR_LEN - skipped).min(data.len() - position);
        if version > 0 {
            content.fill_sector(block_key, sector_index(index), &mut expected);
        }
        let found = &data[position..position + len];
        if let Some(wrong) = first_difference(&expected[skipped..skipped + len], found) {
            return Err(Mismatch {
                offset: offset_of(start + position + wrong),
                expected: Expected::Version { block, version },
                found: content.classify(sector_index(index), skipped, found),
            });
        }
        position += len;
    }
    Ok(())
}

/// A byte that is not what it has to be, and where the data there comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// The first wrong byte. Counted from the start of the block by the functions of this module,
    /// from the start of the disk by those of `history`.
    pub(crate) offset: u64,
    /// What had to be there.
    pub(crate) expected: Expected,
    /// What is there instead, in the sector of the first wrong byte.
    pub(crate) found: Found,
}

/// What had to be at the place of a mismatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The content of a block; version 0 is a block that was never written.
    Version {
        /// The block's index.
        block: u64,
        /// Its version.
        version: u32,
    },
}

/// What a sector turned out to hold. Everything but `Damaged`, `Headless` and `Foreign` has been
/// compared to the last byte, not only by its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Only zeroes.
    Zeroes,
    /// Another version of the same block.
    Version(u32),
    /// Another sector of the same block.
    Sector {
        /// The version which the sector belongs to.
        version: u32,
        /// Its position in the block.
        sector: u32,
    },
    /// A sector of another block.
    Block {
        /// The index of that block.
        block: u64,
        /// The version which the sector belongs to.
        version: u32,
    },
    /// A sector that a run with another seed has left behind.
    OtherRun {
        /// The seed of that run.
        seed: u64,
    },
    /// The header of a sector with a content that does not belong to it: torn or corrupted.
    Damaged {
        /// The block which the header names.
        block: u64,
        /// The version which it names.
        version: u32,
    },
    /// Something that was not written by a bench.
    Foreign,
    /// Something other than zeroes, of which too little was read to see its header.
    Headless,
}

impl Mismatch {
    /// The same mismatch, its offset counted from a place that lies `distance` bytes earlier.
    pub(crate) fn moved_by(self, distance: u64) -> Self {
        Self {
            offset: self.offset + distance,
            ..self
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "the byte at offset {} is wrong: {}, but found ",
            self.offset, self.expected
        )?;
        match (self.expected, self.found) {
            // The same version: it is its content that must have been damaged.
            (
                Expected::Version { block, version },
                Found::Damaged {
                    block: b,
                    version: v,
                },
            ) if (block, version) == (b, v) => out.write_str("that version with damaged content"),
            (_, found) => write!(out, "{found}"),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { block, version: 0 } => {
                write!(out, "expected zeroes, as block {block} was never written")
            }
            Self::Version { block, version } => {
                write!(out, "expected version {version} of block {block}")
            }
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => out.write_str("zeroes"),
            Self::Version(version) => write!(out, "version {version} of the same block"),
            Self::Sector { version, sector } => {
                write!(
                    out,
                    "sector {sector} of version {version} of the same block"
                )
            }
            Self::Block { block, version } => write!(out, "version {version} of block {block}"),
            Self::OtherRun { seed } => write!(out, "data of a run with seed {seed}"),
            Self::Damaged { block, version } => {
                write!(
                    out,
                    "damaged data that starts as version {version} of block {block}"
                )
            }
            Self::Foreign => out.write_str("foreign data"),
            Self::Headless => out.write_str("other data, whose sector header was not read"),
        }
    }
}

/// What determines the bytes of a block.
#[derive(Debug, Clone, Copy)]
struct Content {
    seed: u64,
    block: u64,
    version: u32,
}

impl Content {
    /// The part of a sector's key that all sectors and versions of the block share.
    fn block_key(&self) -> u64 {
        mix(mix(self.seed.wrapping_add(STEP)) ^ self.block)
    }

    /// Writes one sector. All of it, so that the caller's buffer may hold anything.
    fn fill_sector(&self, block_key: u64, index: u32, sector: &mut Sector) {
        let mut lanes = self.lanes(block_key, index);
        let (header, fill) = sector.split_at_mut(HEADER_LEN);
        let (words, _) = fill.as_chunks_mut::<8>();
        for words in words.chunks_exact_mut(LANES) {
            for (word, lane) in words.iter_mut().zip(&mut lanes) {
                *lane = xorshift(*lane);
                *word = lane.to_le_bytes();
            }
        }
        header[..8].copy_from_slice(&MAGIC);
        header[8..16].copy_from_slice(&self.seed.to_le_bytes());
        header[16..24].copy_from_slice(&self.block.to_le_bytes());
        header[24..28].copy_from_slice(&self.version.to_le_bytes());
        header[28..].copy_from_slice(&index.to_le_bytes());
    }

    /// The start of each generator: different for every version and position, as `mix` is a
    /// bijection, and so, as `xorshift` is one too, are all words which follow.
    fn lanes(&self, block_key: u64, index: u32) -> [u64; LANES] {
        let key = mix(block_key ^ (u64::from(self.version) << 32 | u64::from(index)));
        let mut step = 0_u64;
        std::array::from_fn(|_| {
            step = step.wrapping_add(STEP);
            mix(key.wrapping_add(step))
        })
    }

    /// Says what `found` is, which stands `skipped` bytes into the sector `index` of this block.
    fn classify(&self, index: u32, skipped: usize, found: &[u8]) -> Found {
        if first_difference(&ZEROES[..found.len()], found).is_none() {
            return Found::Zeroes;
        }
        let Some(header) = found.get(..HEADER_LEN).filter(|_| skipped == 0) else {
            return Found::Headless;
        };
        match Header::parse(header) {
            Some(header) => self.classify_header(index, &header, found),
            None => Found::Foreign,
        }
    }

    fn classify_header(&self, index: u32, header: &Header, found: &[u8]) -> Found {
        let Header {
            content: other,
            sector,
        } = *header;
        let mut whole = ZEROES;
        other.fill_sector(other.block_key(), sector, &mut whole);
        if first_difference(&whole[..found.len()], found).is_some() {
            Found::Damaged {
                block: other.block,
                version: other.version,
            }
        } else if other.seed != self.seed {
            Found::OtherRun { seed: other.seed }
        } else if other.block != self.block {
            Found::Block {
                block: other.block,
                version: other.version,
            }
        } else if sector != index {
            Found::Sector {
                version: other.version,
                sector,
            }
        } else {
            Found::Version(other.version)
        }
    }
}

/// What the header of a sector claims.
#[derive(Debug, Clone, Copy)]
struct Header {
    content: Content,
    sector: u32,
}

impl Header {
    /// Reads a header; `None` if the magic is missing.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (seed, rest) = rest.split_first_chunk()?;
        let (block, rest) = rest.split_first_chunk()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (sector, _) = rest.split_first_chunk()?;
        let content = Content {
            seed: u64::from_le_bytes(*seed),
            block: u64::from_le_bytes(*block),
            version: u32::from_le_bytes(*version),
        };
        Some(Self {
            content,
            sector: u32::from_le_bytes(*sector),
        })
    }
}

/// One step of Marsaglia's xorshift generator: a bijection in six quick operations, where a
/// multiplication for every word would be the slowest part of it all.
const fn xorshift(mut lane: u64) -> u64 {
    lane ^= lane << 13;
    lane ^= lane >> 7;
    lane ^ (lane << 17)
}

/// Where two slices of one length differ first. They are compared as a whole before they are
/// searched, because they are nearly always equal.
fn first_difference(expected: &[u8], found: &[u8]) -> Option<usize> {
    if expected == found {
        return None;
    }
    expected
        .iter()
        .zip(found)
        .position(|(expected, found)| expected != found)
}

fn sector_index(index: usize) -> u32 {
    u32::try_from(index).expect("a block has fewer than 2^32 sectors")
}

fn offset_of(position: usize) -> u64 {
    u64::try_from(position).expect("a position in memory fits 64 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: u64 = 42;

    fn block(index: u64, version: u32, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        fill(SEED, index, version, &mut data);
        data
    }

    fn found(data: &[u8], index: u64, version: u32) -> (u64, Found) {
        let mismatch = check(SEED, index, version, data).unwrap_err();
        (mismatch.offset, mismatch.found)
    }

    #[test]
    fn version_zero_is_all_zeroes() {
        assert_eq!(block(3, 0, 1536), vec![0; 1536]);
        assert_eq!(check(SEED, 3, 0, &[0; 1536]), Ok(()));
    }

    #[test]
    fn every_sector_says_what_it_is() {
        let data = block(0x0102, 7, 1024);
        let header = Header::parse(&data[512..]).unwrap();
        assert_eq!(&data[512..520], b"ringback");
        assert_eq!((header.content.seed, header.content.block), (SEED, 0x0102));
        assert_eq!((header.content.version, header.sector), (7, 1));
    }

    #[test]
    fn no_word_of_two_versions_is_the_same() {
        let (old, new) = (block(5, 1, 4096), block(5, 2, 4096));
        for (sector, (old, new)) in old.chunks(512).zip(new.chunks(512)).enumerate() {
            for (old, new) in old[32..].chunks(8).zip(new[32..].chunks(8)) {
                assert_ne!(old, new, "sector {sector}");
            }
        }
    }

    #[test]
    fn the_fill_has_no_visible_structure() {
        let data = block(9, 3, 1 << 20);
        let mut counts = [0_u32; 256];
        for byte in data.chunks(512).flat_map(|sector| &sector[32..]) {
            counts[usize::from(*byte)] += 1;
        }
        // 983,040 bytes: 3,840 of each value expected, with a standard deviation of 62.
        assert!(
            counts.iter().all(|count| (3_400..4_300).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn what_is_there_instead_is_named() {
        let zeroes = vec![0; 4096];
        assert_eq!(found(&zeroes, 5, 2), (0, Found::Zeroes));
        // The headers differ first in the version, 24 bytes in.
        assert_eq!(found(&block(5, 1, 4096), 5, 2), (24, Found::Version(1)));
        let other = Found::Block {
            block: 6,
            version: 2,
        };
        assert_eq!(found(&block(6, 2, 4096), 5, 2), (16, other));
        assert_eq!(found(&[0xaa; 4096], 5, 2), (0, Found::Foreign));
        assert_eq!(found(&block(5, 1, 4096), 5, 0), (0, Found::Version(1)));
    }

    #[test]
    fn a_torn_block_is_seen_at_its_seam() {
        let mut data = block(5, 2, 4096);
        data[1024..].copy_from_slice(&block(5, 3, 4096)[1024..]);
        assert_eq!(found(&data, 5, 2), (1024 + 24, Found::Version(3)));
        data[..1024].fill(0);
        assert_eq!(found(&data, 5, 3), (0, Found::Zeroes));
    }

    #[test]
    fn a_sector_at_the_wrong_place_is_named() {
        let mut data = block(5, 2, 4096);
        data.copy_within(512..1024, 1024);
        assert_eq!(
            found(&data, 5, 2),
            (
                1024 + 28,
                Found::Sector {
                    version: 2,
                    sector: 1
                }
            )
        );
    }

    #[test]
    fn one_flipped_bit_is_damage() {
        let mut data = block(5, 2, 4096);
        data[700] ^= 1;
        let mismatch = check(SEED, 5, 2, &data).unwrap_err();
        assert_eq!(
            mismatch.found,
            Found::Damaged {
                block: 5,
                version: 2
            }
        );
        assert_eq!(
            mismatch.to_string(),
            "the byte at offset 700 is wrong: expected version 2 of block 5, but found that \
             version with damaged content"
        );
    }

    #[test]
    fn another_run_is_named() {
        let mut data = vec![0; 512];
        fill(SEED + 1, 5, 2, &mut data);
        assert_eq!(found(&data, 5, 2), (8, Found::OtherRun { seed: SEED + 1 }));
    }

    #[test]
    fn a_part_without_header_is_judged_by_its_bytes() {
        let old = block(5, 1, 4096);
        let part = |data: &[u8]| check_part(SEED, 5, 2, 600, data).unwrap_err();
        let mismatch = part(&old[600..700]);
        assert_eq!((mismatch.offset, mismatch.found), (600, Found::Headless));
        assert_eq!(part(&[0; 100]).found, Found::Zeroes);
    }

    #[test]
    fn a_mismatch_reads_as_one_sentence() {
        let sentence =
            |data: &[u8], version| check(SEED, 5, version, data).unwrap_err().to_string();
        assert_eq!(
            sentence(&[0; 512], 2),
            "the byte at offset 0 is wrong: expected version 2 of block 5, but found zeroes"
        );
        assert_eq!(
            sentence(&block(5, 1, 512), 0),
            "the byte at offset 0 is wrong: expected zeroes, as block 5 was never written, but \
             found version 1 of the same block"
        );
    }

    /// The content of one byte, worked out without lanes, slices or short cuts.
    fn model_byte(seed: u64, block: u64, version: u32, position: usize) -> u8 {
        if version == 0 {
            return 0;
        }
        let (sector, at) = (position / 512, position % 512);
        let sector = u32::try_from(sector).unwrap();
        if at < 32 {
            let mut header = MAGIC.to_vec();
            header.extend(seed.to_le_bytes());
            header.extend(block.to_le_bytes());
            header.extend(version.to_le_bytes());
            header.extend(sector.to_le_bytes());
            return header[at];
        }
        let word = (at - 32) / 8;
        let block_key = mix(mix(seed.wrapping_add(STEP)) ^ block);
        let key = mix(block_key ^ (u64::from(version) << 32) ^ u64::from(sector));
        let lane = u64::try_from(word % 4 + 1).unwrap();
        let mut state = mix(key.wrapping_add(STEP.wrapping_mul(lane)));
        for _ in 0..=word / 4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        state.to_le_bytes()[at % 8]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn fill_is_the_model(
            seed: u64, block: u64, version in 0_u32..4, len in 0_usize..3000,
        ) {
            let mut data = vec![0xff; len];
            fill(seed, block, version, &mut data);
            let model: Vec<u8> =
                (0..len).map(|position| model_byte(seed, block, version, position)).collect();
            prop_assert_eq!(data, model);
        }

        #[test]
        fn any_part_checks_and_any_change_is_found_where_it_is(
            seed: u64,
            block: u64,
            version in 0_u32..4,
            start in 0_usize..2000,
            len in 1_usize..2000,
            at: prop::sample::Index,
            flip in 1_u8..,
        ) {
            let mut data = vec![0; 4096];
            fill(seed, block, version, &mut data);
            let mut part = data[start..start + len].to_vec();
            prop_assert_eq!(check_part(seed, block, version, start, &part), Ok(()));
            let at = at.index(len);
            part[at] ^= flip;
            let mismatch = check_part(seed, block, version, start, &part).unwrap_err();
            prop_assert_eq!(mismatch.offset, u64::try_from(start + at).unwrap());
        }
    }
}
