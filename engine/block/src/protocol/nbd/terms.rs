//! What a server has said of its export, and which requests fit.

use super::error::NbdError;
use super::wire::{PAYLOAD_MAX, export_flags as has};
use crate::span::Span;
use crate::units::{DISK_SIZE_MAX, SECTOR};

/// No server's smallest request may be larger, in bytes: each small write takes
/// twice as much memory. (The document says: should not be above 64 KiB.)
const UNIT_MAX: u32 = 1 << 20;

/// Which headers replies have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Headers {
    /// A number and perhaps bytes.
    Simple,
    /// Chunks, and simple replies where there is nothing to say.
    Structured,
    /// Chunks with long headers; lengths of requests have 64 bits.
    Extended,
}

/// Sizes of requests that a server likes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// The unit of requests.
    pub(super) minimum: u32,
    /// The longest transfer.
    pub(super) maximum: u32,
}

impl Blocks {
    /// From the server's three numbers.
    pub(super) fn new(minimum: u32, preferred: u32, maximum: u32) -> Result<Self, NbdError> {
        if !minimum.is_power_of_two() {
            return Err(NbdError::MinimumBlock(minimum));
        }
        if minimum > UNIT_MAX {
            return Err(NbdError::LargeMinimumBlock(minimum));
        }
        if !preferred.is_power_of_two() || preferred < minimum {
            return Err(NbdError::PreferredBlock(preferred));
        }
        if maximum < minimum {
            return Err(NbdError::MaximumBlock(maximum));
        }
        Ok(Self { minimum, maximum })
    }
}

/// The numbers of the contexts that have been agreed upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contexts {
    /// What takes space and what is zero, or what was asked for instead.
    pub(super) usual: Option<u32>,
    /// The bitmap.
    pub(super) bitmap: Option<u32>,
}

impl Contexts {
    fn has_any(self) -> bool {
        self.usual.is_some() || self.bitmap.is_some()
    }
}

/// What a server has said of its export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// Bytes; need not be whole sectors.
    pub(super) size: u64,
    /// See [`super::wire::export_flags`].
    pub(super) flags: u16,
    pub(super) headers: Headers,
    /// Contexts of metadata that are there.
    pub(super) contexts: Contexts,
    /// The unit of requests, a power of two.
    pub(super) unit: u64,
    /// Whole units.
    transfer_max: u64,
}

impl Terms {
    pub(super) fn new(
        size: u64,
        flags: u16,
        headers: Headers,
        contexts: Contexts,
        blocks: Option<Blocks>,
    ) -> Result<Self, NbdError> {
        if size > DISK_SIZE_MAX & !(SECTOR - 1) {
            return Err(NbdError::TooLarge(size));
        }
        let blocks = blocks.unwrap_or(Blocks {
            minimum: if contexts.has_any() || !size.is_multiple_of(SECTOR) {
                1
            } else {
                512
            },
            maximum: PAYLOAD_MAX,
        });
        let unit = u64::from(blocks.minimum);
        if !size.is_multiple_of(unit) {
            return Err(NbdError::SizeNotWhole {
                size,
                unit: blocks.minimum,
            });
        }
        Ok(Self {
            size,
            flags,
            headers,
            contexts,
            unit,
            transfer_max: u64::from(blocks.maximum.min(PAYLOAD_MAX)) & !(unit - 1),
        })
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The longest read and write.
    pub(super) fn transfer_max(&self) -> u64 {
        self.transfer_max
    }

    /// The longest zero write.
    pub(super) fn zero_max(&self) -> u64 {
        match self.headers {
            Headers::Extended => u64::MAX,
            _ => self.transfer_max,
        }
    }

    /// The longest trim and the longest question about extents.
    pub(super) fn range_max(&self) -> u64 {
        match self.headers {
            Headers::Extended => u64::MAX,
            _ => u64::from(i32::MAX.unsigned_abs()) & !(self.unit - 1),
        }
    }

    /// The part of a range that the server has: the last sector of the node may be
    /// longer than the export.
    pub(super) fn clip(&self, offset: u64, len: u64) -> Span {
        let len = len.min(u64::MAX - offset);
        Span::new(offset, len).clip(&Span::new(0, self.size))
    }

    /// Whether requests made for these terms can be sent to a server that has come
    /// back with others.
    pub(super) fn check_successor(
        &self,
        other: &Self,
        is_writable: bool,
        needs_context: bool,
    ) -> Result<(), NbdError> {
        const ABILITIES: u16 =
            has::SEND_FLUSH | has::SEND_TRIM | has::SEND_WRITE_ZEROES | has::SEND_FAST_ZERO;
        let changed = |what| Err(NbdError::Changed(what));
        if other.size < self.size {
            return changed("it is smaller");
        }
        if is_writable && other.has(has::READ_ONLY) {
            return changed("it is read-only");
        }
        if other.unit > self.unit {
            return changed("its minimum block size is larger");
        }
        if other.transfer_max < self.transfer_max {
            return changed("its maximum block size is smaller");
        }
        if is_writable && self.flags & ABILITIES & !other.flags != 0 {
            return changed("the server can do less");
        }
        if self.headers == Headers::Extended && other.headers != Headers::Extended {
            return changed("the server knows no long requests any more");
        }
        let lacks_context = needs_context && other.contexts.usual.is_none();
        if lacks_context || (self.contexts.bitmap.is_some() && other.contexts.bitmap.is_none()) {
            return changed("the bitmap is gone");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(size: u64, flags: u16) -> Terms {
        let blocks = Blocks::new(512, 4096, 1 << 20).expect("good blocks");
        let terms = Terms::new(
            size,
            flags,
            Headers::Structured,
            Contexts::default(),
            Some(blocks),
        );
        terms.expect("good terms")
    }

    #[test]
    fn sizes_of_blocks_are_checked() {
        let check = |minimum, preferred, maximum| Blocks::new(minimum, preferred, maximum).err();
        assert_eq!(check(3, 4096, 8192), Some(NbdError::MinimumBlock(3)));
        assert_eq!(check(0, 4096, 8192), Some(NbdError::MinimumBlock(0)));
        assert_eq!(check(512, 256, 8192), Some(NbdError::PreferredBlock(256)));
        assert_eq!(check(512, 4096, 100), Some(NbdError::MaximumBlock(100)));
        let huge = 1 << 31;
        assert_eq!(
            check(huge, huge, huge),
            Some(NbdError::LargeMinimumBlock(huge))
        );
        assert_eq!(check(1, 1, 1), None);
    }

    #[test]
    fn without_blocks_the_unit_is_a_guess() {
        let unit = |size, usual, bitmap| {
            let contexts = Contexts { usual, bitmap };
            let terms = Terms::new(size, 1, Headers::Simple, contexts, None);
            terms.expect("good terms").unit
        };
        assert_eq!(unit(1024, None, None), 512);
        assert_eq!(unit(1000, None, None), 1);
        assert_eq!(unit(1024, Some(0), None), 1);
        assert_eq!(unit(1024, None, Some(0)), 1);
    }

    #[test]
    fn sizes_are_whole_units_and_fit_a_disk() {
        let blocks = Blocks::new(4096, 4096, 4096).ok();
        let made = Terms::new(1_049_088, 1, Headers::Simple, Contexts::default(), blocks);
        assert_eq!(
            made.expect_err("a cut unit").to_string(),
            "export size 1049088 is not multiple of minimum block size 4096"
        );
        let made = Terms::new(u64::MAX, 1, Headers::Simple, Contexts::default(), None);
        assert_eq!(made, Err(NbdError::TooLarge(u64::MAX)));
    }

    #[test]
    fn who_comes_back_with_less_is_refused() {
        let first = terms(1 << 20, has::SEND_FLUSH);
        let check = |other: Terms| first.check_successor(&other, true, false).is_ok();
        assert!(check(terms(1 << 20, has::SEND_FLUSH)));
        assert!(check(terms(2 << 20, has::SEND_FLUSH | has::SEND_TRIM)));
        assert!(!check(terms(1 << 19, has::SEND_FLUSH)));
        assert!(!check(terms(1 << 20, has::SEND_FLUSH | has::READ_ONLY)));
        assert!(!check(terms(1 << 20, 0)));
        let with_bitmap = Terms {
            contexts: Contexts {
                usual: None,
                bitmap: Some(1),
            },
            ..first
        };
        assert!(
            with_bitmap
                .check_successor(&with_bitmap, false, false)
                .is_ok()
        );
        assert!(with_bitmap.check_successor(&first, false, false).is_err());
    }

    #[test]
    fn only_a_bitmap_asked_for_by_name_has_no_substitute() {
        let with_context = |usual| {
            let blocks = Blocks::new(512, 4096, 1 << 20).expect("good blocks");
            let contexts = Contexts {
                usual,
                bitmap: None,
            };
            let terms = Terms::new(1 << 20, 1, Headers::Structured, contexts, Some(blocks));
            terms.expect("good terms")
        };
        let (first, other) = (with_context(Some(0)), with_context(None));
        assert_eq!(first.check_successor(&other, true, false), Ok(()));
        assert_eq!(
            first.check_successor(&other, true, true),
            Err(NbdError::Changed("the bitmap is gone"))
        );
    }
}
