//! The NBD server and the exports of nodes.

use super::argument::{Member, Members, arguments, objects};
use super::bitmap::BlockDirtyBitmapOrStr;
use crate::error::Result;
use crate::visit::{Reader, words};

arguments! {
    /// Arguments of `nbd-server-start`.
    pub struct NbdServerStart {
        /// How long a client may take to say what it wants, in seconds; 0: for ever. Default
        /// 10.
        handshake_max_seconds: Option<u32> = "handshake-max-seconds",
        /// Id of the TLS credentials.
        tls_creds: Option<String> = "tls-creds",
        /// Id of the object that says who may connect.
        tls_authz: Option<String> = "tls-authz",
        /// Clients at a time; 0 is no limit. Default 100.
        max_connections: Option<u32> = "max-connections",
        /// Where it listens.
        addr: SocketAddressLegacy = "addr",
    }

    /// Arguments of `nbd-server-add`.
    pub struct NbdServerAdd {
        /// Name of the export; default: as the node.
        name: Option<String> = "name",
        /// What a client is told about it.
        description: Option<String> = "description",
        /// The device or node.
        device: String = "device",
        /// Whether clients may write; default false.
        writable: Option<bool> = "writable",
        /// A bitmap that clients can see.
        bitmap: Option<String> = "bitmap",
    }

    /// Arguments of `nbd-server-remove`.
    pub struct NbdServerRemove {
        /// Name of the export.
        name: String = "name",
        /// Whether clients stand in the way; default safe.
        mode: Option<BlockExportRemoveMode> = "mode",
    }

    /// Arguments of `block-export-del`.
    pub struct BlockExportDel {
        /// The export.
        id: String = "id",
        /// Whether clients stand in the way; default safe.
        mode: Option<BlockExportRemoveMode> = "mode",
    }

    /// An address of the internet.
    pub struct InetSocketAddress {
        /// Name or number of the host.
        host: String = "host",
        /// Name or number of the port.
        port: String = "port",
        /// Names are refused.
        numeric: Option<bool> = "numeric",
        /// The last port to try.
        to: Option<u16> = "to",
        /// Whether IPv4 is tried.
        ipv4: Option<bool> = "ipv4",
        /// Whether IPv6 is tried.
        ipv6: Option<bool> = "ipv6",
        /// Ask the kernel to keep the connection alive.
        keep_alive: Option<bool> = "keep-alive",
        /// Use multipath TCP.
        mptcp: Option<bool> = "mptcp",
    }

    /// A socket in the file system.
    pub struct UnixSocketAddress {
        /// Its path.
        path: String = "path",
        /// It is in Linux's abstract namespace instead; default false.
        is_abstract: Option<bool> = "abstract",
        /// An abstract name ends where its text does; default true.
        tight: Option<bool> = "tight",
    }

    /// An address between a machine and its host.
    pub struct VsockSocketAddress {
        /// Number of the machine.
        cid: String = "cid",
        /// Number of the port.
        port: String = "port",
    }

    /// A file descriptor by name or number.
    pub struct FdSocketAddress {
        /// The name or number.
        str: String = "str",
    }

    /// An export for NBD clients.
    pub struct BlockExportOptionsNbd {
        /// Its name; default: as the node.
        name: Option<String> = "name",
        /// What a client is told about it.
        description: Option<String> = "description",
        /// Bitmaps that clients can see.
        bitmaps: Option<Vec<BlockDirtyBitmapOrStr>> = "bitmaps",
        /// Whether clients can see which image of a chain has the data; default false.
        allocation_depth: Option<bool> = "allocation-depth",
    }

    /// A disk for a machine of another process.
    pub struct BlockExportOptionsVhostUserBlk {
        /// Where it listens.
        addr: SocketAddress = "addr",
        /// Bytes in a sector; default 512.
        logical_block_size: Option<u64> = "logical-block-size",
        /// Default 1.
        num_queues: Option<u16> = "num-queues",
    }

    /// A file in the file system of the host.
    pub struct BlockExportOptionsFuse {
        /// The file that it covers.
        mountpoint: String = "mountpoint",
        /// Writes past the end make it larger; default false.
        growable: Option<bool> = "growable",
        /// Whether other users see it; default auto.
        allow_other: Option<FuseExportAllowOther> = "allow-other",
    }

    /// A disk for the kernel of the host.
    pub struct BlockExportOptionsVduseBlk {
        /// Its name.
        name: String = "name",
        /// Default 1.
        num_queues: Option<u16> = "num-queues",
        /// Requests in a queue; default 256.
        queue_size: Option<u16> = "queue-size",
        /// Bytes in a sector; default 512.
        logical_block_size: Option<u64> = "logical-block-size",
        /// Its serial number.
        serial: Option<String> = "serial",
    }
}

objects! { SocketAddress, SocketAddressLegacy, BlockExportAdd, }

words! {
    /// Whether clients stand in the way of a removal.
    pub enum BlockExportRemoveMode {
        /// They do.
        Safe = "safe",
        /// They lose their connection.
        Hard = "hard",
    }
}

words! {
    /// Whether other users see a file.
    pub enum FuseExportAllowOther {
        /// They do not.
        Off = "off",
        /// They do.
        On = "on",
        /// They do if the host allows it.
        Auto = "auto",
    }
}

words! {
    /// Kinds of sockets.
    enum SocketAddressType {
        /// Of the internet.
        Inet = "inet",
        /// In the file system.
        Unix = "unix",
        /// Between a machine and its host.
        Vsock = "vsock",
        /// That is open already.
        Fd = "fd",
    }
}

words! {
    /// Kinds of exports.
    enum BlockExportType {
        /// For NBD clients.
        Nbd = "nbd",
        /// For a machine of another process.
        VhostUserBlk = "vhost-user-blk",
        /// In the file system of the host.
        Fuse = "fuse",
        /// For the kernel of the host.
        VduseBlk = "vduse-blk",
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq)]
pub enum SocketAddress {
    /// An address of the internet.
    Inet(InetSocketAddress),
    /// In the file system.
    Unix(UnixSocketAddress),
    /// Between a machine and its host.
    Vsock(VsockSocketAddress),
    /// One that is open already.
    Fd(FdSocketAddress),
}

/// The same in its older form, where everything but the type is inside of `data`.
#[derive(Debug, Clone, PartialEq)]
pub struct SocketAddressLegacy(pub SocketAddress);

impl Members for SocketAddress {
    fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(match Member::read_member(reader, "type")? {
            SocketAddressType::Inet => Self::Inet(Members::read_members(reader)?),
            SocketAddressType::Unix => Self::Unix(Members::read_members(reader)?),
            SocketAddressType::Vsock => Self::Vsock(Members::read_members(reader)?),
            SocketAddressType::Fd => Self::Fd(Members::read_members(reader)?),
        })
    }
}

impl Members for SocketAddressLegacy {
    fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self(match Member::read_member(reader, "type")? {
            SocketAddressType::Inet => SocketAddress::Inet(Member::read_member(reader, "data")?),
            SocketAddressType::Unix => SocketAddress::Unix(Member::read_member(reader, "data")?),
            SocketAddressType::Vsock => SocketAddress::Vsock(Member::read_member(reader, "data")?),
            SocketAddressType::Fd => SocketAddress::Fd(Member::read_member(reader, "data")?),
        }))
    }
}

/// Arguments of `block-export-add`.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockExportAdd {
    /// Id of the export.
    pub id: String,
    /// The export stays in its iothread whatever the node does; default false.
    pub fixed_iothread: Option<bool>,
    /// Where its requests run.
    pub iothread: Option<String>,
    /// The node.
    pub node_name: String,
    /// Whether clients may write; default false.
    pub writable: Option<bool>,
    /// Whether every write is followed by a flush; default false.
    pub writethrough: Option<bool>,
    /// Whether the node may belong to another process; default false.
    pub allow_inactive: Option<bool>,
    /// What kind of export it is.
    pub options: BlockExportOptions,
}

/// What is particular to one kind of export.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockExportOptions {
    /// For NBD clients.
    Nbd(BlockExportOptionsNbd),
    /// For a machine of another process.
    VhostUserBlk(BlockExportOptionsVhostUserBlk),
    /// In the file system of the host.
    Fuse(BlockExportOptionsFuse),
    /// For the kernel of the host.
    VduseBlk(BlockExportOptionsVduseBlk),
}

impl Members for BlockExportAdd {
    fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
        let kind = Member::read_member(reader, "type")?;
        Ok(Self {
            id: Member::read_member(reader, "id")?,
            fixed_iothread: Member::read_member(reader, "fixed-iothread")?,
            iothread: Member::read_member(reader, "iothread")?,
            node_name: Member::read_member(reader, "node-name")?,
            writable: Member::read_member(reader, "writable")?,
            writethrough: Member::read_member(reader, "writethrough")?,
            allow_inactive: Member::read_member(reader, "allow-inactive")?,
            options: BlockExportOptions::read(kind, reader)?,
        })
    }
}

impl BlockExportOptions {
    fn read(kind: BlockExportType, reader: &mut Reader<'_>) -> Result<Self> {
        Ok(match kind {
            BlockExportType::Nbd => Self::Nbd(Members::read_members(reader)?),
            BlockExportType::VhostUserBlk => Self::VhostUserBlk(Members::read_members(reader)?),
            BlockExportType::Fuse => Self::Fuse(Members::read_members(reader)?),
            BlockExportType::VduseBlk => Self::VduseBlk(Members::read_members(reader)?),
        })
    }
}
