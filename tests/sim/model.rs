//! What the simulated disk must hold, byte by byte, according to what its
//! guests were told.
//!
//! Every guest owns stripes of the disk that nobody else writes, so that the
//! order of concurrent writes never matters; stripes are not aligned to
//! anything, so that neighbours meet in one sector all the time.

use std::ops::Range;

/// The bytes that are known.
#[derive(Clone, Default)]
pub(crate) struct Image {
    bytes: Vec<u8>,
    /// Writes that failed leave behind what nobody knows.
    known: Vec<bool>,
}

impl Image {
    pub(crate) fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            known: vec![true; len],
        }
    }

    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.known[offset..offset + bytes.len()].fill(true);
    }

    pub(crate) fn forget(&mut self, range: Range<usize>) {
        self.known[range].fill(false);
    }

    /// The first byte that is known and different.
    pub(crate) fn mismatch(&self, offset: usize, bytes: &[u8]) -> Option<String> {
        let range = offset..offset + bytes.len();
        // Most comparisons succeed, and then this is quick.
        if self.bytes[range.clone()] == *bytes {
            return None;
        }
        let wrong = |&at: &usize| self.known[offset + at] && self.bytes[offset + at] != bytes[at];
        let at = (0..bytes.len()).find(wrong)?;
        Some(format!(
            "byte {} is {:#04x} and must be {:#04x}",
            offset + at,
            bytes[at],
            self.bytes[offset + at]
        ))
    }
}

/// The guest's disk, and the disk at the point in time.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) live: Image,
    pub(crate) snapshot: Option<Image>,
    /// Clusters whose discard by the fleecing client has been asked for, and
    /// those for which it has been answered.
    pub(crate) discard_begun: Vec<bool>,
    pub(crate) discard_done: Vec<bool>,
    /// What was written since the point in time.
    pub(crate) changed: Vec<ringback_block::span::Span>,
    /// The first broken promise.
    pub(crate) violation: Option<String>,
    /// The point of no return: guests stop when they see it.
    pub(crate) stopping: bool,
}

impl Model {
    pub(crate) fn violate(&mut self, what: impl FnOnce() -> String) {
        self.stopping = true;
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }
}
