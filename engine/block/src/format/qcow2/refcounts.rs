//! Refcounts as they stand in a refcount block.
//!
//! A count takes 1 to 64 bits. Counts shorter than a byte fill it from its
//! lowest bit on; longer ones are big endian.

use bitvec::field::BitField;
use bitvec::order::Lsb0;
use bitvec::view::BitView;

/// The largest count of `1 << order` bits.
pub(crate) fn max(order: u32) -> u64 {
    u64::MAX >> (64 - (1 << order))
}

/// The count at an index. `order` is 0 to 6: the logarithm of its bits.
pub(crate) fn get(block: &[u8], order: u32, index: usize) -> u64 {
    let width = 1_usize << order;
    match order {
        0..3 => block.view_bits::<Lsb0>()[index * width..][..width].load_le(),
        _ => {
            let bytes = width / 8;
            let mut word = [0; 8];
            word[8 - bytes..].copy_from_slice(&block[index * bytes..][..bytes]);
            u64::from_be_bytes(word)
        }
    }
}

/// Changes the count at an index to a value of at most [`max`].
pub(crate) fn set(block: &mut [u8], order: u32, index: usize, value: u64) {
    debug_assert!(value <= max(order));
    let width = 1_usize << order;
    match order {
        0..3 => block.view_bits_mut::<Lsb0>()[index * width..][..width].store_le(value),
        _ => {
            let bytes = width / 8;
            block[index * bytes..][..bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
        }
    }
}

/// The bytes of a block that hold the count at an index.
pub(crate) fn bytes_of(order: u32, index: usize) -> std::ops::Range<usize> {
    let bit = index << order;
    bit / 8..(bit + (1 << order)).div_ceil(8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_counts_fill_a_byte_from_its_lowest_bit() {
        assert_eq!(get(&[0b0000_0010], 0, 1), 1);
        assert_eq!(get(&[0b0011_0110], 1, 2), 3);
        assert_eq!(get(&[0xab], 2, 0), 0xb);
        assert_eq!(get(&[0, 0, 1, 2], 4, 1), 0x0102);
        assert_eq!(bytes_of(0, 9), 1..2);
        assert_eq!(bytes_of(6, 1), 8..16);
        assert_eq!((max(0), max(4), max(6)), (1, 65_535, u64::MAX));
    }

    proptest! {
        #[test]
        fn what_is_set_is_got_and_nothing_else_changes(
            order in 0u32..7,
            index in 0usize..64,
            value: u64,
            mut block in proptest::collection::vec(any::<u8>(), 512),
        ) {
            let value = value & max(order);
            let before: Vec<u64> = (0..64).map(|at| get(&block, order, at)).collect();
            set(&mut block, order, index, value);
            for (at, &old) in before.iter().enumerate() {
                prop_assert_eq!(get(&block, order, at), if at == index { value } else { old });
            }
        }
    }
}
