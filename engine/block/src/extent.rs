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
}
