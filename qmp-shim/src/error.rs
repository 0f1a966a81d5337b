//! What can be wrong with options, in the words in which it is reported.
//!
//! The texts that QEMU has are QEMU's, letter by letter, because clients match on them;
//! the last group is our own and names the way out.
//!
//! QEMU prints some names in full (`file.size`) and others without the path to them
//! (`size`). Each variant says which in the name of its field: `path` or `name`.

use thiserror::Error;

use crate::command_line::ArgumentError;
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

    // The flat options of QEMU's older interface.
    /// A word that is not one of the known ones.
    #[error("invalid parameter value: {value}")]
    InvalidValue {
        /// The word as written.
        value: String,
    },
    /// A `discard` which is none of ignore, off, unmap, on.
    #[error("Invalid discard option")]
    InvalidDiscard,
    /// A number of 2^64 or more.
    #[error("Value '{value}' is too large for parameter '{path}'")]
    NumberTooLarge {
        /// Name of the option.
        path: String,
        /// The number as written.
        value: String,
    },
    /// A size that is negative, or 2^64 or more.
    #[error("Value '{value}' is out of range for parameter '{path}'")]
    SizeOutOfRange {
        /// Name of the option.
        path: String,
        /// The size as written.
        value: String,
    },
    /// An option that a format or filter does not know.
    #[error("Block format '{driver}' does not support the option '{path}'")]
    FormatOption {
        /// Name of the driver.
        driver: String,
        /// Name of the option.
        path: String,
    },
    /// An option that a protocol does not know.
    #[error("Block protocol '{driver}' doesn't support the option '{path}'")]
    ProtocolOption {
        /// Name of the driver.
        driver: String,
        /// Name of the option.
        path: String,
    },
    /// A key that a rule does not know.
    #[error("[{section}] section doesn't support the option '{path}'")]
    SectionOption {
        /// Name of the rule's section.
        section: String,
        /// The key.
        path: String,
    },
    /// A rule whose index does not follow the others.
    #[error("Unused option '{key}' for [{section}]")]
    UnusedOption {
        /// Name of the rule's section.
        section: &'static str,
        /// The key, with its index.
        key: String,
    },
    /// A plain value in the place of a rule.
    #[error("[{section}] section (index {index}) does not consist of keys")]
    SectionWithoutKeys {
        /// Name of the rule's section.
        section: &'static str,
        /// Its index.
        index: usize,
    },
    /// A list with a hole.
    #[error("List indices are not contiguous, saw {seen} elements but {largest} largest index")]
    ListNotContiguous {
        /// How many elements there are.
        seen: usize,
        /// The largest index.
        largest: usize,
    },
    /// No driver, and nothing to find one by.
    #[error("Must specify either driver or file")]
    NoDriverOrFile,
    /// A driver that nobody knows.
    #[error("Unknown driver '{driver}'")]
    UnknownDriver {
        /// The name as written.
        driver: String,
    },
    /// A file name whose prefix names no protocol.
    #[error("Unknown protocol '{protocol}'")]
    UnknownProtocol {
        /// The prefix.
        protocol: String,
    },
    /// A child that must be there and is not.
    #[error("A block device must be specified for \"{child}\"")]
    NoChild {
        /// Name of the child.
        child: &'static str,
    },
    /// A node's name, and options or a file name with it.
    #[error("Cannot reference an existing block device with additional options or a new filename")]
    ReferenceWithOptions,
    /// A file name from outside, and the option as well.
    #[error("Can't specify 'file' and 'filename' options at the same time")]
    FileNameTwice,
    /// A `json:` name that is no JSON.
    #[error("Could not parse the JSON options: {0}")]
    JsonName(String),
    /// `blkdebug:` with one part only.
    #[error("blkdebug requires both config file and image path")]
    BlkdebugName,
    /// `null-co:` with anything but two slashes behind it.
    #[error("The only allowed filename for this driver is 'null-co://'")]
    NullName,
    /// An address in a name that is none of a server.
    #[error("error parsing address '{address}'")]
    NbdAddress {
        /// The address.
        address: String,
    },
    /// A name of an export with a URL that is none.
    #[error("No valid URL specified")]
    NbdUrl,
    /// A name of an export that begins otherwise.
    #[error("File name string for NBD must start with 'nbd:'")]
    NbdName,
    /// An option that a file name gives already.
    #[error("Option '{option}' cannot be used with a file name")]
    NotWithFileName {
        /// Name of the option.
        option: String,
    },

    // nbd.
    /// No server, in any of the ways to name it.
    #[error("NBD server address missing")]
    NoNbdServer,
    /// The server in two ways.
    #[error("Cannot use 'server' and path/host/port at the same time")]
    NbdServerTwice,
    /// The same.
    #[error("path and host may not be used at the same time")]
    NbdPathAndHost,
    /// The port of nothing.
    #[error("port may not be used without host")]
    NbdPortWithoutHost,
    /// What is wrong with the address of a socket.
    #[error(transparent)]
    Address(Box<ArgumentError>),

    // Backing files.
    /// Options for a backing file of a driver without.
    #[error("Driver doesn't support backing files")]
    NoBackingFiles,
    /// The backing file's own error.
    #[error("Could not open backing file: {0}")]
    Backing(Box<OptionError>),
    /// A relative backing file name below something that has no directory.
    #[error("Cannot use relative backing file names for '{overlay}'")]
    RelativeBackingName {
        /// The overlay's name.
        overlay: String,
    },
    /// A relative backing file name in an image without a file name.
    #[error("Cannot generate a base directory for {driver} nodes")]
    NoBaseDirectory {
        /// Name of the overlay's bottom driver.
        driver: String,
    },

    // The text of `--image-opts`, `-o` and `--object`.
    /// An `id` that breaks the rule for names.
    #[error(
        "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', \
         '.', '_', starting with a letter."
    )]
    InvalidId,

    // qcow2.
    /// A word for `overlap-check` that is none.
    #[error(
        "Unsupported value '{value}' for qcow2 option 'overlap-check'. Allowed are any of the \
         following: none, constant, cached, all"
    )]
    OverlapCheck {
        /// The word as written.
        value: String,
    },
    /// Two different words for `overlap-check`.
    #[error(
        "Conflicting values for qcow2 options 'overlap-check' ('{mode}') and \
         'overlap-check.template' ('{template}')"
    )]
    OverlapCheckConflict {
        /// That of `overlap-check`.
        mode: String,
        /// That of `overlap-check.template`.
        template: String,
    },
    /// All three cache sizes.
    #[error("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")]
    ThreeCacheSizes,
    /// A part of the cache that is larger than the whole.
    #[error("{part} may not exceed cache-size")]
    CacheTooLarge {
        /// Name of the part's option.
        part: &'static str,
    },
    /// Entries of the L2 cache that are not of a size they can have.
    #[error(
        "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
    )]
    L2EntrySize {
        /// The image's cluster size.
        cluster: u64,
    },
    /// A refcount cache of more clusters than can be counted.
    #[error("Refcount cache size too big")]
    RefcountCacheTooBig,
    /// A `cache-clean-interval` that is negative or above 2^32 - 1.
    #[error("Cache clean interval too big")]
    CleanIntervalTooBig,
    /// `discard-no-unref` on an old image.
    #[error("discard-no-unref is only supported since qcow2 version 3")]
    NoUnrefNeedsV3,
    /// `lazy-refcounts` on an old image.
    #[error("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")]
    LazyRefcountsNeedV3,
    /// `data-file` on an image that has none.
    #[error("'data-file' can only be set for images with an external data file")]
    NoDataFile,

    // blkdebug.
    /// A rule without an event.
    #[error("Missing event name for rule")]
    NoEvent,
    /// A limit that cannot be kept.
    #[error("Cannot meet constraints with {name} {value}")]
    Constraint {
        /// Name of the limit.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// A section of a config file that there is none of.
    #[error("There is no option group '{group}'")]
    NoSuchGroup {
        /// Its name as written.
        group: String,
    },
    /// A key before the first section of a config file.
    #[error("no group defined")]
    NoGroup,
    /// A line of a config file that is nothing.
    #[error("parse error")]
    ConfigLine,
    /// Two sections of a config file with one id.
    #[error("Duplicate ID '{id}' for {group}")]
    DuplicateId {
        /// The id.
        id: String,
        /// Name of the section.
        group: &'static str,
    },

    // Throttling.
    /// A node without a group.
    #[error("Please specify a throttle group")]
    NoThrottleGroup,
    /// A total together with a part of it.
    #[error("bps/iops/max total values and read/write values cannot be used at the same time")]
    TotalAndPart,
    /// `iops-size` without operations to count.
    #[error("iops size requires an iops value to be set")]
    IopsSizeAlone,
    /// A rate out of range.
    #[error("bps/iops/max values must be within [0, 1000000000000000]")]
    RateOutOfRange,
    /// A burst of no time.
    #[error("the burst length cannot be 0")]
    BurstLengthZero,
    /// A burst's length without its rate.
    #[error("burst length set without burst rate")]
    BurstLengthAlone,
    /// A burst of too much.
    #[error("burst length too high for this burst rate")]
    BurstTooLong,
    /// A burst without the rate it goes beyond.
    #[error("bps_max/iops_max require corresponding bps/iops values")]
    BurstAlone,
    /// A burst below the rate.
    #[error("bps_max/iops_max cannot be lower than bps/iops")]
    BurstBelowRate,
    /// A negative `x-` limit.
    #[error("Property values cannot be negative")]
    NegativeProperty,
    /// A burst's length out of range.
    #[error("{name} value must be in the range [0, 4294967295]")]
    BurstLengthRange {
        /// Name of the limit.
        name: String,
    },
    /// The same of an `x-` limit, with QEMU's missing blank.
    #[error("{name} value must be in therange [0, 4294967295]")]
    PropertyBurstLengthRange {
        /// Name of the property.
        name: String,
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
    /// A `save-buffer` where guests pay for what cannot be saved.
    #[error(
        "save-buffer needs on-cbw-error=break-snapshot: a guest whose old data is in memory \
         has been answered, and its write cannot fail any more"
    )]
    SaveBuffer,
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
    /// More options than any image needs.
    #[error("There are more than {max} options; define the inner nodes on their own")]
    TooManyOptions {
        /// The limit.
        max: usize,
    },
    /// A flat option with too long a name.
    #[error("The option '{start}...' has a name of more than {max} bytes")]
    OptionNameTooLong {
        /// How the name begins.
        start: String,
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
    /// A type of object which ringback has not got.
    #[error("Object type '{kind}' is not supported by ringback; there is only throttle-group")]
    UnsupportedObject {
        /// Name of the type.
        kind: String,
    },
    /// A limit in both of its spellings.
    #[error("Parameters 'limits.{key}' and '{property}' set the same limit; leave one of them out")]
    LimitTwice {
        /// One name.
        key: &'static str,
        /// The other one.
        property: &'static str,
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
    /// The text without the advice that QEMU prints for people and sends to no client.
    #[must_use]
    pub fn without_hint(&self) -> String {
        match self {
            Self::InvalidId => "Parameter 'id' expects an identifier".to_owned(),
            other => other.to_string(),
        }
    }
}

/// What reading options gives.
pub type Result<T> = std::result::Result<T, OptionError>;
