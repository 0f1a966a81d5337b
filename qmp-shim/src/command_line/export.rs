//! `--export` and `block-export-add`: disks for clients.

use super::address::SocketAddress;
use super::error::{ArgumentError, Result};
use crate::keyval;
use crate::opts::check_id;
use crate::visit::{Alternate, Reader, words};

/// Longest name and longest description of an NBD export, in bytes.
pub const MAX_NBD_STRING: usize = 4096;
/// Largest logical block of a vhost-user disk, in bytes.
pub const MAX_LOGICAL_BLOCK: u64 = 2 << 20;

/// An export to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name in commands.
    pub id: String,
    /// The node whose bytes it shows.
    pub node_name: String,
    /// Whether clients may write.
    pub writable: bool,
    /// Whether a write is answered when it is on the disk.
    pub writethrough: bool,
    /// The iothread that serves it.
    pub iothread: Option<String>,
    /// Whether it stays there when the node's thread is to change.
    pub fixed_iothread: bool,
    /// Whether an inactive node is good enough.
    pub allow_inactive: bool,
    /// The type and what is its own.
    pub kind: ExportKind,
}

/// A type of export with its own options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportKind {
    /// Over the network.
    Nbd(NbdExport),
    /// To a virtual machine of this host, over shared memory.
    VhostUserBlk(VhostUserBlkExport),
    /// As a file of this host. Known by name only.
    Fuse,
    /// As a device of this host. Known by name only.
    VduseBlk,
}

/// What is NBD's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NbdExport {
    /// Its name for clients; none is the node's.
    pub name: Option<String>,
    /// A line for people.
    pub description: Option<String>,
    /// The bitmaps that clients may read, in the order in which they are offered.
    pub bitmaps: Vec<ExportBitmap>,
    /// Whether clients may ask which image of the chain a block comes from.
    pub allocation_depth: bool,
}

/// A bitmap that clients may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportBitmap {
    /// The node that has it; none is the first one that has, from the exported one down.
    pub node: Option<String>,
    /// Its name.
    pub name: String,
}

/// What is vhost-user's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserBlkExport {
    /// Where it listens: a UNIX socket or a descriptor.
    pub address: SocketAddress,
    /// Bytes of a logical block: a power of two from 512 to [`MAX_LOGICAL_BLOCK`].
    pub logical_block_size: u64,
    /// How many virtqueues there are, at least 1.
    pub num_queues: u16,
}

words! {
    /// Types of exports.
    enum Type {
        /// See [`ExportKind::Nbd`].
        Nbd = "nbd",
        /// See [`ExportKind::VhostUserBlk`].
        VhostUserBlk = "vhost-user-blk",
        /// See [`ExportKind::Fuse`].
        Fuse = "fuse",
        /// See [`ExportKind::VduseBlk`].
        VduseBlk = "vduse-blk",
    }
}

words! {
    /// Who may use a file of FUSE.
    enum AllowOther {
        /// Only who runs the daemon.
        Off = "off",
        /// Everybody.
        On = "on",
        /// Everybody, if the host lets us.
        Auto = "auto",
    }
}

impl Export {
    /// Reads and checks the argument of `--export`, in either form.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn parse(text: &str) -> Result<Self> {
        let options = keyval::parse(text, Some("type"))?;
        let export = Self::read(Reader::of(&options))?;
        export.check()?;
        if let ExportKind::VhostUserBlk(own) = &export.kind {
            // Nobody has given descriptors names as yet.
            own.address.descriptor()?;
        }
        Ok(export)
    }

    /// Reads and checks the arguments of `block-export-add`.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn from_arguments(reader: Reader<'_>) -> Result<Self> {
        let export = Self::read(reader)?;
        export.check()?;
        Ok(export)
    }

    fn read(mut reader: Reader<'_>) -> Result<Self> {
        let kind = reader.required("type", Reader::word::<Type>)?;
        let id = reader.required("id", Reader::text)?;
        let fixed_iothread = reader.boolean("fixed-iothread")?.unwrap_or(false);
        let iothread = reader.text("iothread")?;
        let node_name = reader.required("node-name", Reader::text)?;
        let writable = reader.boolean("writable")?.unwrap_or(false);
        let writethrough = reader.boolean("writethrough")?.unwrap_or(false);
        let allow_inactive = reader.boolean("allow-inactive")?.unwrap_or(false);
        let kind = match kind {
            Type::Nbd => ExportKind::Nbd(NbdExport::read(&mut reader)?),
            Type::VhostUserBlk => ExportKind::VhostUserBlk(VhostUserBlkExport::read(&mut reader)?),
            Type::Fuse => {
                reader.required("mountpoint", Reader::text)?;
                reader.boolean("growable")?;
                reader.word::<AllowOther>("allow-other")?;
                ExportKind::Fuse
            }
            Type::VduseBlk => {
                reader.required("name", Reader::text)?;
                reader.unsigned_16("num-queues")?;
                reader.unsigned_16("queue-size")?;
                reader.size("logical-block-size")?;
                reader.text("serial")?;
                ExportKind::VduseBlk
            }
        };
        reader.finish()?;
        Ok(Self {
            id,
            node_name,
            writable,
            writethrough,
            iothread,
            fixed_iothread,
            allow_inactive,
            kind,
        })
    }

    /// What can be wrong with it in itself.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn check(&self) -> Result<()> {
        check_id(&self.id).map_err(|_| ArgumentError::ExportId)?;
        match &self.kind {
            ExportKind::Nbd(own) => own.check(),
            ExportKind::VhostUserBlk(own) => own.check(),
            ExportKind::Fuse | ExportKind::VduseBlk => Ok(()),
        }
    }

    /// Refuses the types which ringback only knows by name. To be asked when the export is
    /// made.
    ///
    /// # Errors
    ///
    /// [`ArgumentError::UnsupportedExport`].
    pub fn check_supported(&self) -> Result<()> {
        let kind = match self.kind {
            ExportKind::Nbd(_) | ExportKind::VhostUserBlk(_) => return Ok(()),
            ExportKind::Fuse => "fuse",
            ExportKind::VduseBlk => "vduse-blk",
        };
        Err(ArgumentError::UnsupportedExport { kind })
    }
}

impl NbdExport {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let name = reader.text("name")?;
        let description = reader.text("description")?;
        let bitmaps = reader.alternates("bitmaps", "BlockDirtyBitmapOrStr")?;
        let bitmaps = bitmaps.unwrap_or_default().into_iter();
        let bitmaps = bitmaps
            .map(|bitmap| ExportBitmap::read(bitmap?))
            .collect::<Result<_>>()?;
        Ok(Self {
            name,
            description,
            bitmaps,
            allocation_depth: reader.boolean("allocation-depth")?.unwrap_or(false),
        })
    }

    fn check(&self) -> Result<()> {
        if let Some(name) = &self.name
            && name.len() > MAX_NBD_STRING
        {
            return Err(ArgumentError::ExportNameTooLong { name: name.clone() });
        }
        if let Some(description) = &self.description
            && description.len() > MAX_NBD_STRING
        {
            let description = description.clone();
            return Err(ArgumentError::DescriptionTooLong { description });
        }
        Ok(())
    }
}

impl ExportBitmap {
    fn read(element: Alternate<'_>) -> Result<Self> {
        Ok(match element {
            Alternate::Text(name) => Self {
                node: None,
                name: name.to_owned(),
            },
            Alternate::Object(mut reader) => {
                let node = reader.required("node", Reader::text)?;
                let name = reader.required("name", Reader::text)?;
                reader.finish()?;
                Self {
                    node: Some(node),
                    name,
                }
            }
        })
    }
}

impl VhostUserBlkExport {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let address = SocketAddress::read(reader.required("addr", Reader::object)?)?;
        Ok(Self {
            address,
            logical_block_size: reader.size("logical-block-size")?.unwrap_or(512),
            num_queues: reader.unsigned_16("num-queues")?.unwrap_or(1),
        })
    }

    fn check(&self) -> Result<()> {
        let size = self.logical_block_size;
        if matches!(self.address, SocketAddress::Inet(_)) {
            return Err(ArgumentError::VhostAddress);
        }
        if !size.is_power_of_two() || !(512..=MAX_LOGICAL_BLOCK).contains(&size) {
            return Err(ArgumentError::LogicalBlockSize);
        }
        if self.num_queues == 0 {
            return Err(ArgumentError::NoQueues);
        }
        self.address.check()
    }
}
