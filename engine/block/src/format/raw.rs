//! `raw`: the storage as it is, or a window of it.

use crate::span::Span;
use crate::units::SECTOR;

/// A window of the node below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw {
    offset: u64,
    /// None: as far as the node goes, also when it grows.
    size: Option<u64>,
}

/// Why a window does not fit. The texts are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RawError {
    /// The window starts behind the end.
    #[error("Offset ({offset}) cannot be greater than size of the containing file ({containing})")]
    Offset {
        /// As asked for.
        offset: u64,
        /// What there is.
        containing: u64,
    },
    /// The window ends behind the end.
    #[error(
        "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  \
         actual size of the containing file ({containing})"
    )]
    Size {
        /// As asked for.
        offset: u64,
        /// As asked for.
        size: u64,
        /// What there is.
        containing: u64,
    },
    /// Disks consist of sectors.
    #[error("Specified size is not multiple of 512")]
    NotSectors,
}

impl Raw {
    /// Whether it is less than all of the node below.
    pub(crate) fn is_window(&self) -> bool {
        self.offset > 0 || self.size.is_some()
    }

    /// A window from `offset` with `size` bytes, or as far as it goes.
    ///
    /// # Errors
    ///
    /// [`RawError`] if it does not lie inside `containing` bytes.
    pub fn new(offset: u64, size: Option<u64>, containing: u64) -> Result<Self, RawError> {
        if offset > containing {
            return Err(RawError::Offset { offset, containing });
        }
        let rest = containing - offset;
        match size {
            Some(size) if !size.is_multiple_of(SECTOR) => Err(RawError::NotSectors),
            Some(size) if size > rest => Err(RawError::Size {
                offset,
                size,
                containing,
            }),
            _ => Ok(Self { offset, size }),
        }
    }

    /// Size in bytes above a node of `containing` bytes.
    pub(crate) fn size(&self, containing: u64) -> u64 {
        self.size.unwrap_or_else(|| {
            let rest = containing.saturating_sub(self.offset);
            // An offset inside a sector leaves part of one: it is not shown.
            rest - rest % SECTOR
        })
    }

    pub(crate) fn is_open_ended(&self) -> bool {
        self.size.is_none()
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn place(&self, span: Span) -> Span {
        debug_assert!(self.size.is_none_or(|size| span.end() <= size));
        Span::new(self.offset + span.offset, span.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_must_lie_inside() {
        let raw = Raw::new(1024, None, 1 << 20).expect("fits");
        assert_eq!(raw.size(1 << 20), (1 << 20) - 1024);
        assert_eq!(raw.place(Span::new(10, 20)), Span::new(1034, 20));
        assert_eq!(
            Raw::new(1 << 20, None, 1 << 20).map(|raw| raw.size(1 << 20)),
            Ok(0)
        );
        assert_eq!(
            Raw::new(2_097_152, None, 1_048_576)
                .expect_err("too far")
                .to_string(),
            "Offset (2097152) cannot be greater than size of the containing file (1048576)"
        );
        assert_eq!(
            Raw::new(512, Some(1_048_576), 1_048_576)
                .expect_err("too long")
                .to_string(),
            "The sum of offset (512) and size (1048576) has to be smaller or equal to the  actual \
             size of the containing file (1048576)"
        );
        assert_eq!(Raw::new(0, Some(1000), 4096), Err(RawError::NotSectors));
        assert_eq!(
            Raw::new(u64::MAX, Some(u64::MAX), 0),
            Err(RawError::Offset {
                offset: u64::MAX,
                containing: 0
            })
        );
    }
}
