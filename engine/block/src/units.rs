//! Units which the field has agreed on.

/// The unit of sizes at the edges: what a disk's size is rounded up to.
pub const SECTOR: u64 = 512;

/// No disk is larger, in bytes: offsets must fit in a signed 64-bit number.
pub const DISK_SIZE_MAX: u64 = (1 << 63) - 1;

/// An index or length inside a buffer, from a number of bytes that is known to
/// fit in memory.
pub(crate) fn in_memory(len: u64) -> usize {
    usize::try_from(len).expect("a length inside a buffer fits in a usize")
}
