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

/// Whether every byte is zero. Data gives itself away in the first bytes most
/// of the time, so the answer is usually quick.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk == &[0; 64]) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_told_from_data_at_any_place() {
        for len in [0, 1, 63, 64, 65, 4096, 4099] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for place in 0..len {
                bytes[place] = 1;
                assert!(!is_zero(&bytes), "{place} of {len}");
                bytes[place] = 0;
            }
        }
    }
}
