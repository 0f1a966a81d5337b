//! What can be wrong with options, in the words in which it is reported.
//!
//! The texts that QEMU has are QEMU's, letter by letter, because clients match on them;
//! the last group is our own and names the way out.
//!
//! QEMU prints some names in full (`file.size`) and others without the path to them
//! (`size`). Each variant says which in the name of its field: `path` or `name`.

use thiserror::Error;

use crate::json::JsonError;

/// Why a text or a value is not a set of options.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OptionError {
    // The key=value text.
    /// A key that is no name, or a list index where no list can be.
    #[error("Invalid parameter '{key}'")]
    InvalidKey {
        /// The key as written.
        key: String,
    },
    /// A key of one part that is too long.
    #[error("Parameter '{key}' is too long")]
    KeyTooLong {
        /// The key as written.
        key: String,
    },
    /// One part of a dotted key that is too long.
    #[error("Parameter fragment '{fragment}' is too long")]
    FragmentTooLong {
        /// The part, without the dots around it.
        fragment: String,
    },
    /// A key without a value.
    #[error("Expected '=' after parameter '{key}'")]
    NoValue {
        /// The key as written.
        key: String,
    },
    /// A key used in two ways: as a value, as an object, as a list.
    #[error("Parameters '{path}.*' used inconsistently")]
    UsedInconsistently {
        /// Full name of the key.
        path: String,
    },
    /// A list with a hole.
    #[error("Parameter '{path}' missing")]
    ListHole {
        /// Full name of the first element that is not there.
        path: String,
    },
    /// `help` or `?` where there is none to give.
    #[error("Help is not available for this option")]
    NoHelp,

    // The JSON text.
    /// The text is not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The JSON text is a value, but not an object.
    #[error("Invalid JSON object given")]
    NotAnObject,

    // The members.
    /// A mandatory member is not there.
    #[error("Parameter '{path}' is missing")]
    Missing {
        /// Full name of the member.
        path: String,
    },
    /// A member which nothing reads.
    #[error("Parameter '{path}' is unexpected")]
    Unexpected {
        /// Full name of the member.
        path: String,
    },
    /// Dotted keys below a member that is a plain value.
    #[error("Parameters '{path}.*' are unexpected")]
    UnexpectedBelow {
        /// Full name of the member.
        path: String,
    },
    /// A member of another type than the wanted one.
    #[error("Invalid parameter type for '{path}', expected: {wanted}")]
    WrongType {
        /// Name of the member, in full except for an alternate of two types.
        path: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A text or number which does not mean what is wanted.
    #[error("Parameter '{path}' expects {wanted}")]
    Expects {
        /// Name of the member, in full except for the range of a small integer.
        path: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A word that is not one of the known ones.
    #[error("Parameter '{name}' does not accept value '{value}'")]
    BadValue {
        /// Last part of the member's name.
        name: String,
        /// The word as written.
        value: String,
    },
    /// A number which the member cannot have.
    #[error("Value '{value}' is out of range for parameter '{name}'")]
    OutOfRange {
        /// Last part of the member's name.
        name: &'static str,
        /// The number.
        value: i64,
    },

    // The meaning of a node's options.
    /// The node that is being added has no name.
    #[error("'node-name' must be specified for the root node")]
    NodeNameMissing,
    /// A name that breaks the rule for names.
    #[error("Invalid node-name: '{name}'")]
    InvalidNodeName {
        /// The name.
        name: String,
    },
    /// A name of more than 31 bytes.
    #[error("Node name too long")]
    NodeNameTooLong,
    /// `force-share` on a node that can be written.
    #[error("force-share=on can only be used with read-only images")]
    ForceShareNeedsReadOnly,
    /// `detect-zeroes=unmap` on a node that does not unmap.
    #[error(
        "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
    )]
    DetectZeroesNeedsUnmap,
    /// An empty file name.
    #[error("The '{driver}' block driver requires a file name")]
    NoFileName {
        /// Name of the driver.
        driver: &'static str,
    },
    /// `aio=native` without `cache.direct`.
    #[error("aio=native was specified, but it requires cache.direct=on, which was not specified.")]
    NativeNeedsDirect,
    /// A `latency-ns` of 2^63 or more.
    #[error("latency-ns is invalid")]
    InvalidLatency,
    /// A `size` of raw that is not a number of sectors.
    #[error("Specified size is not multiple of 512")]
    SizeNotInSectors,
    /// A disk larger than any can be.
    #[error("Could not refresh total sector count: File too large")]
    DiskTooLarge,
    /// A `min-cluster-size` that no cluster can have.
    #[error("Cannot create block-copy-state: min-cluster-size needs to be a power of 2")]
    ClusterNotPowerOfTwo,
    /// A `min-cluster-size` above the largest one.
    #[error("Cannot create block-copy-state: min-cluster-size too large: {size} > {max}")]
    ClusterTooLarge {
        /// The size asked for.
        size: u64,
        /// The largest one.
        max: u64,
    },

    // Our own.
    /// The text is longer than any sensible one.
    #[error("The options are {len} bytes long, but at most {max} are read")]
    TextTooLong {
        /// Length of the text.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A dotted key with too many parts.
    #[error(
        "Parameter '{start}...' has more than {max} parts; define the inner nodes \
             on their own and refer to them by node-name"
    )]
    KeyTooDeep {
        /// How the key begins.
        start: String,
        /// The limit.
        max: usize,
    },
    /// Nodes inside nodes inside nodes.
    #[error(
        "Nodes are nested more than {max} deep; define the inner ones on their own \
             and refer to them by node-name"
    )]
    NodesTooDeep {
        /// The limit.
        max: usize,
    },
    /// A driver of QEMU's which ringback has not got.
    #[error("Driver '{driver}' is not supported by ringback; use one of: {supported}")]
    UnsupportedDriver {
        /// Name of the driver.
        driver: String,
        /// The drivers there are, with commas.
        supported: String,
    },
    /// An option of QEMU's which ringback would not honour.
    #[error("Parameter '{path}' is not supported by ringback; leave it out")]
    UnsupportedOption {
        /// Full name of the option.
        path: String,
    },
    /// A file name which no file can have.
    #[error("The file name '{}' contains a NUL character", name.escape_debug())]
    NulInFileName {
        /// The name.
        name: String,
    },
    /// A value that has no form as key=value text.
    #[error("Parameter '{path}' cannot be written as key=value text: {why}")]
    NotWritable {
        /// Full name of the member.
        path: String,
        /// What is in the way.
        why: &'static str,
    },
}

impl OptionError {
    /// The error's class in a QMP reply. Options have only the generic one.
    #[must_use]
    pub fn class(&self) -> &'static str {
        "GenericError"
    }
}

/// What reading options gives.
pub type Result<T> = std::result::Result<T, OptionError>;
