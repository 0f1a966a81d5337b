//! What a guest has written, and what a point in time may hold.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::pattern::{self, BLOCK, in_memory};

/// The generation of each block's content: that of the last write which was
/// answered.
#[derive(Debug)]
pub(crate) struct History {
    settled: Box<[AtomicU16]>,
    /// The last generation that was given out.
    last: AtomicU16,
}

fn block(offset: u64) -> usize {
    in_memory(offset) / BLOCK
}

impl History {
    /// Of a disk full of generation 0.
    pub(crate) fn new(size: u64) -> Self {
        Self {
            settled: (0..block(size)).map(|_| AtomicU16::new(0)).collect(),
            last: AtomicU16::new(0),
        }
    }

    /// A generation that nobody has written yet.
    ///
    /// # Errors
    ///
    /// All have been.
    pub(crate) fn fresh(&self) -> Result<u16, String> {
        match self.last.fetch_add(1, Ordering::Relaxed) {
            u16::MAX => Err("too many runs on one disk".into()),
            last => Ok(last + 1),
        }
    }

    /// The last generation that somebody may have written.
    pub(crate) fn last(&self) -> u16 {
        self.last.load(Ordering::Relaxed)
    }

    /// A write was answered.
    pub(crate) fn settle(&self, offset: u64, len: usize, generation: u16) {
        let first = block(offset);
        for settled in &self.settled[first..first + len / BLOCK] {
            settled.store(generation, Ordering::Release);
        }
    }

    /// What is there now; of blocks that are being written, what was there before.
    pub(crate) fn now(&self) -> PointInTime {
        let settled = self.settled.iter();
        PointInTime {
            settled: settled
                .map(|settled| settled.load(Ordering::Acquire))
                .collect(),
            elsewhere: 0,
            meanwhile: NONE,
        }
    }

    /// Offsets of the blocks that are of a generation.
    pub(crate) fn blocks_of(&self, generation: u16) -> Vec<u64> {
        let blocks = self.settled.iter().zip(0_u64..);
        let own = blocks.filter(|(settled, _)| settled.load(Ordering::Acquire) == generation);
        own.map(|(_, block)| block * BLOCK as u64).collect()
    }
}

/// What a disk held at an instant.
#[derive(Clone, Debug)]
pub(crate) struct PointInTime {
    settled: Box<[u16]>,
    /// The generation of what lies behind those.
    elsewhere: u16,
    /// The generations that were being written while the instant was chosen: a block
    /// may have one of these that is newer than what was settled, or not.
    meanwhile: RangeInclusive<u16>,
}

/// Generations when nothing is being written.
#[expect(clippy::reversed_empty_ranges, reason = "it is to be empty")]
const NONE: RangeInclusive<u16> = 1..=0;

impl PointInTime {
    /// Everything of one generation.
    pub(crate) fn all(generation: u16) -> Self {
        Self {
            settled: Box::default(),
            elsewhere: generation,
            meanwhile: NONE,
        }
    }

    /// The same, chosen while guests wrote these generations.
    pub(crate) fn while_writing(self, generations: RangeInclusive<u16>) -> Self {
        Self {
            meanwhile: generations,
            ..self
        }
    }

    /// Whether whole blocks that were read from `offset` are what was there.
    ///
    /// # Errors
    ///
    /// They are not: where first.
    pub(crate) fn check(&self, bytes: &[u8], offset: u64) -> Result<(), String> {
        for (index, bytes) in bytes.chunks(BLOCK).enumerate() {
            let at = offset + (index * BLOCK) as u64;
            let settled = self.settled.get(block(at)).copied();
            let settled = settled.unwrap_or(self.elsewhere);
            let may_be = |generation| pattern::is_generation(bytes, at, generation);
            let mut meanwhile = self.meanwhile.clone();
            let is_newer = |generation| generation > settled && may_be(generation);
            if !may_be(settled) && !meanwhile.any(is_newer) {
                let found = (0..=u16::MAX).find(|&generation| may_be(generation));
                let found = match found {
                    Some(generation) => format!("generation {generation}"),
                    None => format!("{:02x?}...", &bytes[..8.min(bytes.len())]),
                };
                return Err(format!(
                    "WRONG DATA in the block at offset {at}: {found}, not generation {settled}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 4 * BLOCK as u64;

    fn blocks(generations: [u16; 4]) -> Vec<u8> {
        let mut bytes = vec![0; 4 * BLOCK];
        for (index, generation) in generations.into_iter().enumerate() {
            let part = index * BLOCK..(index + 1) * BLOCK;
            pattern::fill(&mut bytes[part.clone()], part.start as u64, generation);
        }
        bytes
    }

    #[test]
    fn a_point_in_time_holds_what_was_settled() {
        let history = History::new(LEN);
        let (one, two) = (history.fresh().unwrap(), history.fresh().unwrap());
        history.settle(4096, 8192, one);
        let point = history.now().while_writing(one..=one);
        history.settle(4096, 4096, two);
        assert_eq!(point.check(&blocks([0, one, one, 0]), 0), Ok(()));
        // Written while the instant was chosen.
        assert_eq!(point.check(&blocks([one, one, one, 0]), 0), Ok(()));
        // Written before, and lost.
        assert!(point.check(&blocks([0, 0, one, 0]), 0).is_err());
        // Written afterwards.
        let error = point.check(&blocks([0, two, one, 0]), 0).unwrap_err();
        assert!(error.contains("offset 4096: generation 2"), "{error}");
        assert_eq!(history.blocks_of(two), [4096]);
        let later = history.now();
        assert_eq!(later.check(&blocks([0, two, one, 0]), 0), Ok(()));
    }

    #[test]
    fn what_was_in_flight_may_be_there_and_what_was_overwritten_may_not() {
        let history = History::new(LEN);
        let (one, two) = (history.fresh().unwrap(), history.fresh().unwrap());
        history.settle(4096, 4096, two);
        let point = history.now().while_writing(1..=history.last());
        assert_eq!(point.check(&blocks([one, two, two, 0]), 0), Ok(()));
        assert!(point.check(&blocks([0, one, 0, 0]), 0).is_err());
    }

    #[test]
    fn a_block_of_two_generations_is_wrong() {
        let history = History::new(LEN);
        let point = history.now().while_writing(1..=1);
        let mut torn = blocks([0; 4]);
        let newer = blocks([1; 4]);
        torn[512..1024].copy_from_slice(&newer[512..1024]);
        assert!(point.check(&torn, 0).is_err());
    }
}
