//! Ranges of bytes on a disk.

/// A half-open range of bytes: `offset..end()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Span {
    /// `len` bytes from `offset`. The end must not pass 2^64 - 1; disks end at
    /// 2^63 - 1, and requests are checked against the disk's size first.
    pub fn new(offset: u64, len: u64) -> Self {
        debug_assert!(offset.checked_add(len).is_some());
        Self { offset, len }
    }

    /// From one byte up to another.
    pub fn between(start: u64, end: u64) -> Self {
        debug_assert!(start <= end);
        Self {
            offset: start,
            len: end - start,
        }
    }

    /// The first byte behind the range.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// No byte at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// The smallest range of whole units that holds this one. `unit` is a power
    /// of two.
    pub fn widen(&self, unit: u64) -> Self {
        let start = self.offset & !(unit - 1);
        Self::between(start, self.end().next_multiple_of(unit))
    }

    /// The largest range of whole units inside this one; empty if there is none.
    pub fn shrink(&self, unit: u64) -> Self {
        let start = self.offset.next_multiple_of(unit);
        let end = self.end() & !(unit - 1);
        Self::between(start, end.max(start))
    }

    /// Whether both ends are multiples of `unit`, a power of two.
    pub fn is_aligned(&self, unit: u64) -> bool {
        (self.offset | self.len) & (unit - 1) == 0
    }

    /// The part that lies inside `other`.
    pub fn clip(&self, other: &Self) -> Self {
        let start = self.offset.clamp(other.offset, other.end());
        Self::between(start, self.end().clamp(start, other.end().max(start)))
    }

    /// Cut into pieces of at most `len_max` bytes, in order.
    pub fn pieces(self, len_max: u64) -> impl Iterator<Item = Self> {
        assert!(len_max > 0, "pieces have a length");
        let mut rest = self;
        std::iter::from_fn(move || {
            let piece = Self::new(rest.offset, rest.len.min(len_max));
            rest = Self::between(piece.end(), rest.end());
            (!piece.is_empty()).then_some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn widening_holds_and_shrinking_is_held(offset in 0u64..10_000, len in 0u64..10_000, bits in 0u32..13) {
            let (span, unit) = (Span::new(offset, len), 1 << bits);
            let (wide, narrow) = (span.widen(unit), span.shrink(unit));
            prop_assert!(wide.is_aligned(unit) && narrow.is_aligned(unit));
            prop_assert!(wide.offset <= offset && wide.end() >= span.end());
            prop_assert!(wide.offset + unit > offset && wide.end() < span.end() + unit);
            prop_assert!(narrow.is_empty() || (narrow.offset >= offset && narrow.end() <= span.end()));
        }

        #[test]
        fn pieces_cover_exactly(offset in 0u64..10_000, len in 0u64..10_000, len_max in 1u64..3000) {
            let mut next = offset;
            for piece in Span::new(offset, len).pieces(len_max) {
                prop_assert_eq!(piece.offset, next);
                prop_assert!(piece.len > 0 && piece.len <= len_max);
                next = piece.end();
            }
            prop_assert_eq!(next, offset + len);
        }
    }
}
