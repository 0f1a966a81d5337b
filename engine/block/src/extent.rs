//! What is at a place of a disk.

/// What a reader would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes that have to be read.
    Data,
    /// Zeroes, known without reading.
    Zero,
}

/// A run with one answer, from the offset that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What is there.
    pub content: Content,
    /// How far the answer holds, in bytes; at least 1.
    pub len: u64,
    /// Which image of a backing chain holds it: 1 the topmost, 2 its backing
    /// file, and so on; 0 none of them.
    pub depth: u32,
}

impl Extent {
    /// A run that the topmost image holds.
    pub fn here(content: Content, len: u64) -> Self {
        Self {
            content,
            len,
            depth: 1,
        }
    }

    /// The same answer, no longer than `len`.
    #[must_use]
    pub fn at_most(self, len: u64) -> Self {
        Self {
            len: self.len.min(len),
            ..self
        }
    }
}
