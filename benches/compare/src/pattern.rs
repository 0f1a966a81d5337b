//! What disks hold, and where requests go: both follow from numbers, so that
//! every participant does the same and everything that is read can be checked.

use std::sync::atomic::{AtomicU8, Ordering};

/// The unit that is written as one, in bytes.
pub(crate) const BLOCK: usize = 4096;
/// Every sector begins with a word of its own.
const SECTOR: usize = 512;

/// What a disk should hold: each word tells its offset and how often its block
/// has been written.
pub(crate) struct Content {
    generations: Box<[AtomicU8]>,
}

impl Content {
    /// A disk of this many bytes, a multiple of [`BLOCK`], of generation 0.
    pub(crate) fn new(size: u64) -> Self {
        let blocks = size / BLOCK as u64;
        Self {
            generations: (0..blocks).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    fn generation(&self, offset: u64) -> &AtomicU8 {
        &self.generations[in_memory(offset) / BLOCK]
    }

    /// What a write of this generation at `offset`, a multiple of [`BLOCK`],
    /// has to write. Two of one generation write the same.
    pub(crate) fn prepare(&self, bytes: &mut [u8], offset: u64, generation: u8) {
        fill(bytes, offset, generation.into());
        for start in (0..bytes.len()).step_by(BLOCK) {
            let block = self.generation(offset + start as u64);
            block.store(generation, Ordering::Relaxed);
        }
    }

    /// Whether every sector that was read from `offset` is the one written
    /// there last.
    pub(crate) fn check(&self, bytes: &[u8], offset: u64) -> Result<(), String> {
        let (words, _) = bytes.as_chunks::<8>();
        for index in (0..words.len()).step_by(SECTOR / 8) {
            let at = offset + index as u64 * 8;
            let generation = self.generation(at).load(Ordering::Relaxed);
            let wanted = word(at, generation.into());
            let found = u64::from_le_bytes(words[index]);
            if found != wanted {
                return Err(format!(
                    "wrong data at offset {at}: {found:#x}, not {wanted:#x}"
                ));
            }
        }
        Ok(())
    }

    /// The blocks that have been written again since the start.
    pub(crate) fn overwritten(&self) -> impl Iterator<Item = u64> {
        let blocks = self.generations.iter().zip(0_u64..);
        blocks
            .filter(|(generation, _)| generation.load(Ordering::Relaxed) > 0)
            .map(|(_, block)| block * BLOCK as u64)
    }
}

/// Does not compress, and is not the same anywhere else.
fn word(offset: u64, generation: u16) -> u64 {
    (offset ^ (u64::from(generation) << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995
}

/// Whether a block, whole sectors that were read from `offset`, is of a
/// generation.
pub(crate) fn is_generation(block: &[u8], offset: u64, generation: u16) -> bool {
    let (words, _) = block.as_chunks::<8>();
    let mut sectors = (0..words.len()).step_by(SECTOR / 8);
    sectors.all(|index| {
        u64::from_le_bytes(words[index]) == word(offset + index as u64 * 8, generation)
    })
}

/// The content of a generation at `offset`.
pub(crate) fn fill(bytes: &mut [u8], offset: u64, generation: u16) {
    let (words, _) = bytes.as_chunks_mut::<8>();
    for (bytes, at) in words.iter_mut().zip((offset..).step_by(8)) {
        *bytes = word(at, generation).to_le_bytes();
    }
}

/// Where the requests of a run go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Anywhere.
    Random {
        /// Another one, other places.
        seed: u64,
    },
    /// Each so many bytes behind the one before, around the end: what `qemu-img
    /// bench -S` does.
    Stride {
        /// Bytes.
        step: u64,
    },
}

impl Order {
    /// The offset of a request by its number, for requests of `len` bytes.
    pub(crate) fn offset(self, index: u64, size: u64, len: usize) -> u64 {
        let len = len as u64;
        match self {
            Self::Random { seed } => mix(seed.wrapping_add(index)) % (size / len) * len,
            Self::Stride { step } => {
                let around = u128::from(index) * u128::from(step) % u128::from(size);
                u64::try_from(around).expect("less than the size")
            }
        }
    }
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number of bytes that are there at once.
pub(crate) fn in_memory(number: u64) -> usize {
    usize::try_from(number).expect("64-bit machines only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_from_elsewhere_is_found() {
        let content = Content::new(4 * BLOCK as u64);
        let mut bytes = vec![0; BLOCK];
        fill(&mut bytes, 4096, 0);
        assert_eq!(content.check(&bytes, 4096), Ok(()));
        assert!(content.check(&bytes, 8192).is_err());
        bytes[3584] ^= 1;
        assert!(content.check(&bytes, 4096).is_err());
    }

    #[test]
    fn old_data_is_found() {
        let content = Content::new(4 * BLOCK as u64);
        let (mut old, mut new) = (vec![0; BLOCK], vec![0; BLOCK]);
        fill(&mut old, 8192, 0);
        content.prepare(&mut new, 8192, 1);
        assert!(content.check(&old, 8192).is_err());
        assert_eq!(content.check(&new, 8192), Ok(()));
        assert_eq!(content.overwritten().collect::<Vec<_>>(), [8192]);
    }

    #[test]
    fn requests_stay_inside_the_disk() {
        for order in [Order::Random { seed: 7 }, Order::Stride { step: 12_288 }] {
            for index in 0..1000 {
                let offset = order.offset(index, 1 << 20, BLOCK);
                assert!(offset.is_multiple_of(4096) && offset < 1 << 20);
            }
        }
    }
}
