//! Why the graph refuses. Texts follow QEMU where it has one.

use ringback_ring::file::OpenError;
use ringback_ring::lock::{LockError, Permission};
use ringback_ring::{Errno, error_text};

use crate::bitmap::BitmapError;
use crate::filter::blkdebug::LimitError;
use crate::filter::copy_before_write::CbwError;
use crate::filter::throttle::LimitsError;
use crate::format::RawError;
use crate::format::qcow2::Qcow2Error;
use crate::format::qcow2::create::CreateError;
use crate::protocol::nbd::NbdError;
use crate::resize::ResizeError;

/// Why the graph refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GraphError {
    /// The file could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The server's export could not be opened.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// Another process uses it.
    #[error("{error}\nIs another process using the image [{path}]?")]
    Lock {
        /// Which file.
        path: String,
        /// How it is used.
        error: LockError,
    },
    /// The window does not fit.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// The image could not be opened.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    /// There can be no such image, or it could not be made.
    #[error(transparent)]
    CreateQcow2(#[from] CreateError),
    /// The filter could not be made.
    #[error(transparent)]
    Filter(#[from] CbwError),
    /// A filter's limit cannot be.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The limits of a throttle group make no sense.
    #[error(transparent)]
    Throttle(#[from] LimitsError),
    /// No throttle group of that name.
    #[error("Throttle group '{0}' does not exist")]
    NoGroup(String),
    /// The name of a group is taken.
    #[error("attempt to add duplicate property '{0}' to object (type 'container')")]
    DuplicateGroup(String),
    /// Nodes are members of the group.
    #[error("object '{0}' is in use, can not be deleted")]
    GroupInUse(String),
    /// Names of groups are identifiers.
    #[error("Parameter 'id' expects an identifier")]
    InvalidId,
    /// The node is not a throttle.
    #[error("Node '{0}' is not a throttle filter")]
    NoThrottle(String),
    /// What is read could not be copied there.
    #[error("Can't use copy-on-read on read-only device")]
    CopyOnReadReadOnly,
    /// The bitmap refused.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// The node's format stores no bitmaps.
    #[error("Can't store persistent bitmaps to {0}: Operation not supported")]
    NotStorable(String),
    /// No node of that name.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    NotFound(String),
    /// No node of that name, where a bitmap is looked for.
    #[error("Node '{0}' not found")]
    NoNode(String),
    /// The name is taken.
    #[error("Duplicate nodes with node-name='{0}'")]
    Duplicate(String),
    /// Names are identifiers of at most 31 bytes.
    #[error("Invalid node-name: '{0}'")]
    InvalidName(String),
    /// Two users contradict each other.
    #[error(
        "Permission conflict on node '{node}': permissions '{}' are both required by {writer} \
         and unshared by {other}.", .permission.name()
    )]
    Conflict {
        /// What they contradict each other in.
        permission: Permission,
        /// Where.
        node: String,
        /// Who writes.
        writer: String,
        /// Who minds.
        other: String,
    },
    /// A file whose last unit is cut cannot be written without growing.
    #[error(
        "Node '{0}' cannot be written: its size is not a multiple of the request alignment (try \
         cache.direct=off)"
    )]
    Unaligned(String),
    /// The last request of a filter's unit would reach behind the end.
    #[error(
        "Cannot get 'write' permission without 'resize': Image size is not a multiple of request \
         alignment"
    )]
    NotWhole,
    /// Somebody wants to write what was opened for reading.
    #[error("Block node is read-only")]
    ReadOnly,
    /// A node cannot become read-only while somebody writes to it.
    #[error("Read-only block node '{0}' cannot support read-write users")]
    ReadOnlyUsers(String),
    /// A node would stand on itself.
    #[error("Making '{child}' a {edge} child of '{parent}' would create a cycle")]
    Cycle {
        /// What was to be below.
        child: String,
        /// As what.
        edge: &'static str,
        /// Below which node.
        parent: String,
    },
    /// An open image stays the same image, whichever node holds it.
    #[error("The new 'file' child of node '{0}' does not hold the image that is open there")]
    OtherImage(String),
    /// The node is of another kind.
    #[error("Cannot change the option 'driver'")]
    OtherDriver,
    /// A job's two ends must differ.
    #[error("Source and target cannot be the same")]
    SameNode,
    /// A filter's old data may still be in memory when the disk is overwritten.
    #[error(
        "node '{0}' takes what a copy-before-write filter saves, and cannot show that filter's \
         disk from now on: let it do so when the filter is made"
    )]
    TargetShowsSource(String),
    /// A job's two ends must be equally long.
    #[error(
        "Source and target image have different sizes ('{source_node}' has {source_size} bytes, '{target_node}' {target_size})"
    )]
    Sizes {
        /// What is to be copied.
        source_node: String,
        /// How long it is.
        source_size: u64,
        /// Where to.
        target_node: String,
        /// How long that is.
        target_size: u64,
    },
    /// Only a copy-before-write node has a snapshot.
    #[error("Node '{0}' is not a copy-before-write filter: it has no snapshot")]
    NoSnapshot(String),
    /// The node could not be made longer or shorter.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// An image could not be written when it was closed.
    #[error("Could not write node '{node}' when it was closed: {}", error_text(*.errno))]
    Close {
        /// Which node.
        node: String,
        /// Why.
        errno: Errno,
    },
    /// Its first bytes could not be read.
    #[error("Could not read image for determining its format: {}", error_text(*.0))]
    Peek(Errno),
    /// An overlay comes without one.
    #[error("The overlay already has a backing image")]
    HasBacking,
    /// Only images have a backing file.
    #[error("Node '{0}' cannot have a backing file")]
    NoBacking(String),
    /// The node is part of something.
    #[error("Node {0} is in use")]
    InUse(String),
}
