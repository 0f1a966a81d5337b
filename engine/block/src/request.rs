//! What a request asks for beside its range.

/// How zeroes may be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// The space may be given back.
    pub may_unmap: bool,
    /// Rather EOPNOTSUPP than bytes written one by one.
    pub no_fallback: bool,
}

impl ZeroFlags {
    /// The space may be given back.
    pub const UNMAP: Self = Self {
        may_unmap: true,
        no_fallback: false,
    };
    /// The space stays where that is possible.
    pub const KEEP: Self = Self {
        may_unmap: false,
        no_fallback: false,
    };
}

/// How long the requests may be that a node passes on, in bytes. None: as long
/// as they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Reads and writes.
    pub(crate) transfer: Option<u64>,
    /// Zero writes.
    pub(crate) zero: Option<u64>,
    /// Discards.
    pub(crate) discard: Option<u64>,
}

impl Limits {
    /// The narrower of each.
    pub(crate) fn and(self, other: Self) -> Self {
        let both = |one: Option<u64>, two: Option<u64>| one.into_iter().chain(two).min();
        Self {
            transfer: both(self.transfer, other.transfer),
            zero: both(self.zero, other.zero),
            discard: both(self.discard, other.discard),
        }
    }
}

/// What is reserved when an image grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The tables of a format.
    Metadata,
    /// Tables and space, without writing it.
    Falloc,
    /// Tables and space, written with zeroes.
    Full,
}

impl Preallocation {
    /// QEMU's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}
