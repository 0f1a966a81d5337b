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
