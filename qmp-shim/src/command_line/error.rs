//! What can be wrong with a command line, beyond what [`OptionError`] knows.
//!
//! Texts are QEMU's where QEMU has one. The last group is our own.

use thiserror::Error;

use crate::error::OptionError;

/// Why an argument cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// A mistake that can be made in any set of options.
    #[error(transparent)]
    Option(#[from] OptionError),

    // Words of the command line.
    /// A word that belongs to no option.
    #[error("Unexpected argument")]
    UnexpectedWord,
    /// A key that is none.
    #[error("Invalid parameter '{key}'")]
    UnknownKey {
        /// The key as written.
        key: String,
    },

    // Names that come twice, or not at all.
    /// A name of an object or of a character device which is in use.
    #[error("attempt to add duplicate property '{id}' to object (type 'container')")]
    DuplicateName {
        /// The name.
        id: String,
    },
    /// No such character device.
    #[error("chardev \"{id}\" not found")]
    NoChardev {
        /// Its name.
        id: String,
    },
    /// A character device with two monitors.
    #[error("chardev '{id}' is already in use")]
    ChardevInUse {
        /// Its name.
        id: String,
    },
    /// No such iothread.
    #[error("iothread \"{id}\" not found")]
    NoIothread {
        /// Its name.
        id: String,
    },
    /// An export's name which is in use.
    #[error("Block export id '{id}' is already in use")]
    ExportInUse {
        /// The name.
        id: String,
    },
    /// No such object.
    #[error("No TLS credentials with id '{id}'")]
    NoCredentials {
        /// Its name.
        id: String,
    },
    /// An object of another type.
    #[error("Object with id '{id}' is not TLS credentials")]
    NotCredentials {
        /// Its name.
        id: String,
    },
    /// Credentials for the other end.
    #[error("Expected TLS credentials for a server endpoint")]
    ClientCredentials,
    /// The other way round.
    #[error("Expected TLS credentials for a client endpoint")]
    ServerCredentials,
    /// A second server.
    #[error("NBD server already running")]
    ServerRunning,
    /// An NBD export before there is a server.
    #[error("NBD server not running")]
    NoServer,

    // Character devices.
    /// No `id`.
    #[error("chardev: no id specified")]
    NoChardevId,
    /// No backend.
    #[error("chardev: \"{id}\" missing backend")]
    NoBackend {
        /// Name of the device.
        id: String,
    },
    /// A backend that nobody knows.
    #[error("'{backend}' is not a valid char driver name")]
    UnknownBackend {
        /// The name as written.
        backend: String,
    },
    /// No `path` of a file.
    #[error("chardev: file: no filename given")]
    NoChardevFile,
    /// No `path` of a pipe.
    #[error("chardev: pipe: no device path given")]
    NoChardevPipe,
    /// Two addresses.
    #[error("None or one of 'path', 'fd' or 'host' option required.")]
    SeveralAddresses,
    /// A host without a port.
    #[error("chardev: socket: no port given")]
    NoPort,
    /// Two names of one switch.
    #[error("'delay' and 'nodelay' are mutually exclusive")]
    DelayTwice,
    /// A socket that exists already cannot be connected again.
    #[error("'{option}' option is incompatible with 'fd' address type")]
    ReconnectDescriptor {
        /// `reconnect` or `reconnect-ms`.
        option: &'static str,
    },
    /// A listener does not connect.
    #[error("'{option}' option is incompatible with socket in server listen mode")]
    ReconnectListener {
        /// `reconnect` or `reconnect-ms`.
        option: &'static str,
    },
    /// A client has nothing to wait for.
    #[error("'wait' option is incompatible with socket in client connect mode")]
    WaitClient,
    /// The same time in two units.
    #[error("'reconnect' and 'reconnect-ms' are mutually exclusive")]
    ReconnectTwice,
    /// An authorization of nobody.
    #[error("'tls_authz' option requires 'tls_creds' option")]
    AuthzWithoutCreds,

    // Addresses.
    /// No number.
    #[error("Unable to parse FD number {text}")]
    NoDescriptor {
        /// The text as written.
        text: String,
    },
    /// A number that no descriptor can have.
    #[error("Unable to parse FD number {text}: Numerical result out of range")]
    DescriptorRange {
        /// The text as written.
        text: String,
    },
    /// A number that no socket can have.
    #[error("File descriptor '{text}' is not a socket")]
    NotASocket {
        /// The number as written.
        text: String,
    },
    /// Neither of the two versions.
    #[error("Cannot disable IPv4 and IPv6 at same time")]
    NoIpVersion,
    /// A path that does not fit into an address.
    #[error("UNIX socket path '{path}' is too long\nPath must be less than {max} bytes")]
    PathTooLong {
        /// The path.
        path: String,
        /// Longest path, in bytes.
        max: usize,
    },

    // Monitors.
    /// Human readers have no monitor here.
    #[error("Only QMP is supported")]
    OnlyQmp,

    // Objects.
    /// A type of QEMU's schema which the storage daemon has not got.
    #[error("invalid object type: {kind}")]
    InvalidObject {
        /// Name of the type.
        kind: String,
    },
    /// A secret in two places.
    #[error("'file' and 'data' are mutually exclusive")]
    SecretTwice,
    /// A secret of nothing.
    #[error("Either 'file' or 'data' must be provided")]
    NoSecret,
    /// A character that Base64 has not got.
    #[error("Base64 data contains invalid characters")]
    NotBase64,
    /// A number of an iothread out of range.
    #[error("{name} value must be in range [0, 9223372036854775807]")]
    PropertyRange {
        /// Name of the number.
        name: &'static str,
    },
    /// Bounds of a thread pool that hold nothing.
    #[error("bad thread-pool-min/thread-pool-max values")]
    ThreadPool,
    /// Credentials without a directory.
    #[error("Missing 'dir' property value")]
    NoDirectory,
    /// A user's name at the server.
    #[error("username should not be set when endpoint=server")]
    ServerUsername,

    // Exports.
    /// An id that breaks the rule for names.
    #[error("Invalid block export id")]
    ExportId,
    /// A name longer than a string of the protocol.
    #[error("export name '{name}' too long")]
    ExportNameTooLong {
        /// The name.
        name: String,
    },
    /// A description longer than a string of the protocol.
    #[error("description '{description}' too long")]
    DescriptionTooLong {
        /// The description.
        description: String,
    },
    /// A vhost-user address that is neither.
    #[error("Only socket address types 'unix' and 'fd' are supported")]
    VhostAddress,
    /// A block size that no disk can have.
    #[error("parameter logical-block-size must be a power of 2 between 512 and 2097152")]
    LogicalBlockSize,
    /// No queue.
    #[error("num-queues must be greater than 0")]
    NoQueues,

    // Drives.
    /// An option under both of its names.
    #[error("'{name}' and its alias '{alias}' can't be used at the same time")]
    AliasTwice {
        /// The newer name.
        name: &'static str,
        /// The older one.
        alias: &'static str,
    },
    /// A `cache` that is none.
    #[error("invalid cache option")]
    CacheMode,
    /// An `aio` that is none.
    #[error("invalid aio option")]
    AioMode,
    /// A `media` that is none.
    #[error("'{media}' invalid media")]
    Media {
        /// The word as written.
        media: String,
    },
    /// An `if` that is none.
    #[error("unsupported bus type '{interface}'")]
    Interface {
        /// The word as written.
        interface: String,
    },
    /// A place said in two ways.
    #[error("index cannot be used with bus and unit")]
    IndexAndBus,
    /// A `werror` that is none.
    #[error("'{action}' invalid write error action")]
    WriteErrorAction {
        /// The word as written.
        action: String,
    },
    /// A `rerror` that is none.
    #[error("'{action}' invalid read error action")]
    ReadErrorAction {
        /// The word as written.
        action: String,
    },
    /// A bus whose disks report every error.
    #[error("{option} is not supported by this bus type")]
    ErrorActionOfBus {
        /// `werror` or `rerror`.
        option: &'static str,
    },
    /// A driver under both of its names.
    #[error("Cannot specify both 'driver' and 'format'")]
    DriverAndFormat,

    // Devices.
    /// A model that nobody knows.
    #[error("'{model}' is not a valid device model name")]
    UnknownModel {
        /// The name as written.
        model: String,
    },
    /// A member that the model has not got.
    #[error("Property '{model}.{key}' not found")]
    UnknownProperty {
        /// Name of the model.
        model: &'static str,
        /// The member.
        key: String,
    },

    // Our own.
    /// A backend of QEMU's which ringback has not got.
    #[error(
        "Character device backend '{backend}' is not supported by ringback; use one of: socket, \
         stdio, null, file, pipe"
    )]
    UnsupportedBackend {
        /// Name of the backend.
        backend: String,
    },
    /// An option that the backend or address would not look at. QEMU forgets it.
    #[error("Parameter '{key}' has no meaning for {what}; leave it out")]
    Meaningless {
        /// The option.
        key: String,
        /// Who would not look at it.
        what: &'static str,
    },
    /// An option's value that ringback would not honour.
    #[error("{key}={value} is not supported by ringback; leave it out")]
    UnsupportedValue {
        /// The option.
        key: &'static str,
        /// Its value.
        value: &'static str,
    },
    /// A type of address that ringback has not got.
    #[error("Socket addresses of type 'vsock' are not supported by ringback; use inet, unix or fd")]
    Vsock,
    /// An empty path. QEMU makes up a name that nobody learns of.
    #[error("The path of a UNIX socket is empty")]
    EmptyPath,
    /// A path, host or the like with a NUL character.
    #[error("Parameter '{path}' contains a NUL character")]
    Nul {
        /// Name of the member.
        path: &'static str,
    },
    /// A number out of the range in which it means something.
    #[error("Parameter '{key}' must be a number from {min} to {max}")]
    NumberRange {
        /// The option.
        key: &'static str,
        /// Smallest one.
        min: u64,
        /// Largest one.
        max: u64,
    },
    /// An authorization of nobody.
    #[error("Parameter 'tls-authz' needs 'tls-creds'; give both or neither")]
    ServerAuthzWithoutCreds,
    /// A type of object which ringback has not got.
    #[error(
        "Object type '{kind}' is not supported by ringback; '--object help' lists those there are"
    )]
    UnsupportedObject {
        /// Name of the type.
        kind: String,
    },
    /// Text that ends in the middle of a group.
    #[error("Base64 data is incomplete")]
    IncompleteBase64,
    /// A device model of QEMU's that ringback has not got.
    #[error("Device model '{model}' is not supported by ringback; use one of: {supported}")]
    UnsupportedModel {
        /// Name of the model.
        model: String,
        /// The models there are, with commas.
        supported: String,
    },
    /// A type of export which ringback has not got.
    #[error("Exports of type '{kind}' are not supported by ringback; use nbd or vhost-user-blk")]
    UnsupportedExport {
        /// Name of the type.
        kind: &'static str,
    },
    /// A word that is no address.
    #[error("'{text}' is no address: HOST:PORT or unix:PATH is wanted")]
    AddressWord {
        /// The word.
        text: String,
    },
    /// Metrics are asked for at two places.
    #[error("Metrics are served already")]
    MetricsServed,
    /// A time of looking for work that is none.
    #[error("The time must be from 0 to {max} microseconds")]
    Poll {
        /// Longest time.
        max: u64,
    },
    /// A number of shards that is none.
    #[error("The number of shards must be from 1 to {max}")]
    Shards {
        /// Largest number.
        max: u16,
    },
}

/// What reading an argument gives.
pub type Result<T> = std::result::Result<T, ArgumentError>;
