//! What a `blkdebug` filter is told when it is made.

use ringback_ring::lock::Permission;

use crate::event::Event;

/// Sizes must be below this (2^31 - 1).
pub(super) const SIZE_MAX: u64 = 0x7fff_ffff;

/// What kind of request a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IoType {
    /// Bytes are read.
    Read,
    /// Bytes are written.
    Write,
    /// A range is made to read as zeroes.
    WriteZeroes,
    /// A range is given up.
    Discard,
    /// Writes are made durable.
    Flush,
    /// It is asked what is there.
    BlockStatus,
}

impl IoType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Discard,
        Self::Flush,
        Self::BlockStatus,
    ];

    /// QEMU's word for it in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::BlockStatus => "block-status",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// From an event on, requests fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectError {
    /// What makes the rule active.
    pub event: Event,
    /// Only in this state; 0: in any.
    pub state: i64,
    /// Which requests; none: all but block status.
    pub io_type: Option<IoType>,
    /// What they answer. Zero or less: the rule matches, and they succeed.
    pub errno: i32,
    /// Only requests that touch this sector of 512 bytes.
    pub sector: Option<u64>,
    /// The rule is gone when it has made one request fail.
    pub once: bool,
    /// The request fails before anybody else can go on.
    pub immediately: bool,
}

impl InjectError {
    /// Everything but block status fails with EIO, in any state.
    pub fn new(event: Event) -> Self {
        Self {
            event,
            state: 0,
            io_type: None,
            errno: 5,
            sector: None,
            once: false,
            immediately: false,
        }
    }
}

/// An event changes the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetState {
    /// Which event.
    pub event: Event,
    /// Only in this state; 0: in any.
    pub state: i64,
    /// The state afterwards.
    pub new_state: i64,
}

/// Rules, in the order in which they were given, and limits. A limit of 0 is
/// none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What fails.
    pub inject_error: Vec<InjectError>,
    /// How the state changes.
    pub set_state: Vec<SetState>,
    /// Unit of requests in bytes, a power of two.
    pub align: u64,
    /// The longest read or write, in bytes.
    pub max_transfer: u64,
    /// Unit of zero writes, in bytes.
    pub opt_write_zero: u64,
    /// The longest zero write, in bytes.
    pub max_write_zero: u64,
    /// Unit of discards, in bytes.
    pub opt_discard: u64,
    /// The longest discard, in bytes.
    pub max_discard: u64,
    /// What the filter does with the node below, beside what its users do.
    pub take_child_perms: Vec<Permission>,
    /// What others must not do with the node below.
    pub unshare_child_perms: Vec<Permission>,
}

/// A limit that cannot be. The text is QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot meet constraints with {option} {value}")]
pub struct LimitError {
    /// Which option.
    pub option: &'static str,
    /// Its value.
    pub value: u64,
}

impl Options {
    /// Checks the limits above a node whose requests come in units of
    /// `below` bytes.
    ///
    /// # Errors
    ///
    /// [`LimitError`] with the first limit that cannot be.
    pub fn check(&self, below: u64) -> Result<(), LimitError> {
        let check = |option, value: u64, fits: bool| {
            if value == 0 || (value < SIZE_MAX && fits) {
                Ok(())
            } else {
                Err(LimitError { option, value })
            }
        };
        let is_multiple = |value: u64, unit: u64| value.is_multiple_of(unit.max(1));
        check("align", self.align, self.align.is_power_of_two())?;
        let unit = self.align.max(below);
        for (option, value, unit) in [
            ("max-transfer", self.max_transfer, unit),
            ("opt-write-zero", self.opt_write_zero, unit),
            (
                "max-write-zero",
                self.max_write_zero,
                unit.max(self.opt_write_zero),
            ),
            ("opt-discard", self.opt_discard, unit),
            ("max-discard", self.max_discard, unit.max(self.opt_discard)),
        ] {
            check(option, value, is_multiple(value, unit))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_limit_that_cannot_be_is_named() {
        let with = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check(512).map_err(|error| error.to_string())
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(
            with(|options| options.align = 3000),
            Err("Cannot meet constraints with align 3000".into())
        );
        assert_eq!(
            with(|options| options.align = 1 << 31),
            Err("Cannot meet constraints with align 2147483648".into())
        );
        assert_eq!(
            with(|options| (options.align, options.max_transfer) = (4096, 512)),
            Err("Cannot meet constraints with max-transfer 512".into())
        );
        assert_eq!(
            with(|options| options.max_transfer = 100),
            Err("Cannot meet constraints with max-transfer 100".into()),
            "the node below wants whole sectors"
        );
        assert_eq!(
            with(|options| (options.opt_write_zero, options.max_write_zero) = (1536, 4608)),
            Ok(())
        );
        assert_eq!(
            with(|options| (options.opt_write_zero, options.max_write_zero) = (1536, 4096)),
            Err("Cannot meet constraints with max-write-zero 4096".into())
        );
        assert_eq!(
            with(|options| (options.opt_discard, options.max_discard) = (4096, 6144)),
            Err("Cannot meet constraints with max-discard 6144".into())
        );
    }

    #[test]
    fn kinds_have_names() {
        for kind in IoType::ALL {
            assert_eq!(IoType::from_name(kind.name()), Some(kind));
        }
        assert_eq!(IoType::from_name("Read"), None);
    }
}
