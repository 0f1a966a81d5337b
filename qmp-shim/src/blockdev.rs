//! The options of a node: what `--blockdev` and `blockdev-add` take.
//!
//! # Which options there are
//!
//! Exactly these. Everything else is refused, so that no option is read and forgotten;
//! whoever opens a node honours or refuses each one.
//!
//! | driver | options |
//! | --- | --- |
//! | every one | `driver`, `node-name`, `discard` (ignore, unmap), `cache.direct`, `cache.no-flush`, `read-only`, `auto-read-only`, `force-share`, `detect-zeroes` (off, on, unmap) |
//! | `file`, `host_device` | `filename`, `locking` (auto, on, off), `aio` (threads, native, `io_uring`) |
//! | `raw` | `file`, `offset`, `size` |
//! | `null-co` | `size`, `latency-ns`, `read-zeroes` |
//! | `copy-before-write` | `file`, `target`, `bitmap.node`, `bitmap.name`, `on-cbw-error` (break-guest-write, break-snapshot), `cbw-timeout`, `min-cluster-size`, `save-buffer` |
//! | `snapshot-access` | `file` |
//! | `nbd` | `server`, `export`, `tls-creds`, `tls-hostname`, `x-dirty-bitmap`, `reconnect-delay`, `open-timeout` |
//! | `qcow2` | see [`qcow2`] |
//! | `blkdebug` | see [`blkdebug`] |
//! | `throttle` | `throttle-group`, `file` |
//! | `copy-on-read` | `file`, `bottom` |
//!
//! `file`, `target`, `image`, `data-file` and `backing` are [`Child`]ren: the name of a node,
//! or the options of a new one.
//!
//! QEMU's `pr-manager`, `aio-max-batch`, `drop-cache` and `x-check-cache-dropped` of files,
//! and its other drivers, are known by name and refused by name.
//!
//! # Two steps
//!
//! Reading knows names and types. Checking ([`BlockdevOptions::check`]) knows what goes
//! together and needs no disk to say so; it visits nodes in the order in which QEMU opens
//! them, so that of two mistakes the same one is reported. What depends on files or on
//! other nodes is the engine's to check.
//!
//! # What children inherit
//!
//! [`CommonOptions::settle`] fills in what is not given. A child defined inside its parent
//! takes `read-only`, `auto-read-only`, `force-share` and both `cache` settings from it,
//! and its `discard` is `unmap`: its parent has decided which discards reach it. A child
//! referred to by name has settings of its own and inherits nothing. A backing file is
//! read-only unless it says otherwise.
//!
//! # Two ways of opening
//!
//! The structures here are also what [`crate::open`] gives. There a child may be something
//! whose format is yet to be found, so whatever has children is generic over them.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::{OptionError, Result};
use crate::keyval;
use crate::visit::{Alternate, Leaves, Reader, Word};

pub mod blkdebug;
mod common;
mod copy_before_write;
mod file;
mod filters;
pub mod nbd;
mod null;
pub mod qcow2;
mod raw;

pub use blkdebug::BlkdebugOptions;
pub use common::{CacheOptions, CommonOptions, DetectZeroes, Discard, Settings};
pub use copy_before_write::{
    BitmapRef, CbwOptions, MAX_CLUSTER, OnCbwError, SnapshotAccessOptions, check_save_buffer,
};
pub use file::{Aio, FileOptions, Locking};
pub use filters::{CopyOnReadOptions, ThrottleOptions};
pub use nbd::NbdOptions;
pub use null::NullOptions;
pub use qcow2::Qcow2Options;
pub use raw::RawOptions;

/// How deep nodes may be defined inside each other. References to nodes know no depth.
pub const MAX_NESTED: usize = 64;
/// Longest node-name, in bytes.
pub const MAX_NODE_NAME: usize = 31;
/// Largest disk: QEMU keeps the last GiB below 2^63 free.
pub const MAX_DISK: u64 = (i64::MAX as u64) & !((1 << 30) - 1);

/// A node to be opened, with those below that are defined in the same breath.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlockdevOptions {
    /// What every driver has.
    #[serde(flatten)]
    pub common: CommonOptions,
    /// The driver and what is its own.
    #[serde(flatten)]
    pub driver: DriverOptions,
}

/// A driver with its own options. `N` is what a child defined inside is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum DriverOptions<N = BlockdevOptions> {
    /// A regular file.
    File(FileOptions),
    /// A block or character device of the host.
    #[serde(rename = "host_device")]
    HostDevice(FileOptions),
    /// Another node's bytes, or a window onto them.
    Raw(RawOptions<N>),
    /// A disk that forgets.
    NullCo(NullOptions),
    /// An export of a server.
    Nbd(NbdOptions),
    /// A filter that saves old data before it is overwritten.
    CopyBeforeWrite(CbwOptions<N>),
    /// A reader's view of such a filter's snapshot.
    SnapshotAccess(SnapshotAccessOptions<N>),
    /// An image in QEMU's own format.
    Qcow2(Box<Qcow2Options<N>>),
    /// A filter that makes things fail.
    Blkdebug(Box<BlkdebugOptions<N>>),
    /// A filter that holds requests back.
    Throttle(ThrottleOptions<N>),
    /// A filter that copies what is read from a backing file.
    CopyOnRead(CopyOnReadOptions<N>),
}

/// A node below another.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Child<N = BlockdevOptions> {
    /// One that exists, by its name. Whether it does is the engine's to find out.
    Node(String),
    /// One to be opened along with its parent.
    Options(Box<N>),
}

/// The backing file of an image, where the options say something about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Backing<N = BlockdevOptions> {
    /// None, whatever the image says.
    None,
    /// This one, whatever the image says.
    Child(Child<N>),
}

impl<N: Serialize> Serialize for Backing<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_unit(),
            Self::Child(child) => child.serialize(serializer),
        }
    }
}

/// What a child is to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Where a format or filter has its bytes.
    Storage,
    /// Another disk that a filter works with.
    Data,
}

/// How children are read. The two ways of opening differ in little else.
pub(crate) trait Children {
    /// What a child defined inside is.
    type Node;

    /// A child, if there is one.
    fn optional(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
        role: Role,
    ) -> Result<Option<Child<Self::Node>>>;

    /// A child that must be there.
    fn required(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
        role: Role,
    ) -> Result<Child<Self::Node>>;

    /// What the options say about a backing file.
    fn backing(&mut self, reader: &mut Reader<'_>) -> Result<Option<Backing<Self::Node>>>;
}

// Reading: names and types.

/// The drivers of QEMU 10.0, and which of them are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    File,
    HostDevice,
    Raw,
    NullCo,
    Nbd,
    CopyBeforeWrite,
    SnapshotAccess,
    Qcow2,
    Blkdebug,
    Throttle,
    CopyOnRead,
}

impl Driver {
    /// The driver's name.
    pub(crate) fn name(self) -> &'static str {
        self.word()
    }

    /// Whether it is nothing without a `filename`.
    pub(crate) fn needs_file_name(self) -> bool {
        matches!(self, Self::File | Self::HostDevice)
    }

    /// Whether a node of this driver stands at the bottom, or where one could.
    pub(crate) fn is_protocol(self) -> bool {
        match self {
            Self::File | Self::HostDevice | Self::NullCo | Self::Nbd | Self::Blkdebug => true,
            Self::Raw
            | Self::CopyBeforeWrite
            | Self::SnapshotAccess
            | Self::Qcow2
            | Self::Throttle
            | Self::CopyOnRead => false,
        }
    }
}

impl Word for Driver {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("file", Self::File),
        ("host_device", Self::HostDevice),
        ("raw", Self::Raw),
        ("null-co", Self::NullCo),
        ("nbd", Self::Nbd),
        ("copy-before-write", Self::CopyBeforeWrite),
        ("snapshot-access", Self::SnapshotAccess),
        ("qcow2", Self::Qcow2),
        ("blkdebug", Self::Blkdebug),
        ("throttle", Self::Throttle),
        ("copy-on-read", Self::CopyOnRead),
    ];
}

/// The other drivers of QEMU 10.0, less those that need libblkio, which is rarely built
/// in. Their names deserve another answer than a slip of the pen does.
const UNSUPPORTED_DRIVERS: &[&str] = &[
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "dmg",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "http",
    "https",
    "iscsi",
    "luks",
    "nfs",
    "null-aio",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "ssh",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

impl BlockdevOptions {
    /// Reads and checks the argument of `--blockdev`, in either form.
    ///
    /// # Errors
    ///
    /// See [`OptionError`].
    pub fn parse(text: &str) -> Result<Self> {
        let options = keyval::parse(text, Some("driver"))?;
        let read = Self::read(Reader::of(&options))?;
        read.check()?;
        Ok(read)
    }

    /// Reads and checks the arguments of `blockdev-add`.
    ///
    /// # Errors
    ///
    /// See [`OptionError`].
    pub fn from_arguments(arguments: &Map<String, Value>) -> Result<Self> {
        let read = Self::read(Reader::new(arguments, Leaves::Typed))?;
        read.check()?;
        Ok(read)
    }

    /// Reads an object to its end, without checking what goes together.
    ///
    /// # Errors
    ///
    /// See [`OptionError`].
    pub fn read(reader: Reader<'_>) -> Result<Self> {
        Self::read_nested(reader, 0)
    }

    /// `depth` counts the parents and bounds the recursion.
    pub(crate) fn read_nested(mut reader: Reader<'_>, depth: usize) -> Result<Self> {
        if depth > MAX_NESTED {
            return Err(OptionError::NodesTooDeep { max: MAX_NESTED });
        }
        let driver = read_driver(&mut reader)?;
        let common = CommonOptions::read(&mut reader)?;
        let driver = DriverOptions::read(driver, &mut reader, &mut Nested { depth })?;
        reader.finish()?;
        Ok(Self { common, driver })
    }

    /// The options as a JSON object, from which [`BlockdevOptions::from_arguments`] makes
    /// the same options.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(members)) => members,
            other => unreachable!("options are an object of strings and numbers: {other:?}"),
        }
    }
}

fn read_driver(reader: &mut Reader<'_>) -> Result<Driver> {
    let name = reader.required("driver", Reader::text)?;
    find_driver(&name)?.ok_or_else(|| OptionError::BadValue {
        name: "driver".to_owned(),
        value: name,
    })
}

/// The driver of that name; an error if only QEMU has it.
pub(crate) fn find_driver(name: &str) -> Result<Option<Driver>> {
    if !UNSUPPORTED_DRIVERS.contains(&name) {
        return Ok(Driver::from_word(name));
    }
    let supported: Vec<_> = Driver::WORDS.iter().map(|(word, _)| *word).collect();
    Err(OptionError::UnsupportedDriver {
        driver: name.to_owned(),
        supported: supported.join(", "),
    })
}

impl<N> DriverOptions<N> {
    pub(crate) fn read(
        driver: Driver,
        reader: &mut Reader<'_>,
        children: &mut impl Children<Node = N>,
    ) -> Result<Self> {
        Ok(match driver {
            Driver::File => Self::File(FileOptions::read(reader)?),
            Driver::HostDevice => Self::HostDevice(FileOptions::read(reader)?),
            Driver::Raw => Self::Raw(RawOptions::read(reader, children)?),
            Driver::NullCo => Self::NullCo(NullOptions::read(reader)?),
            Driver::Nbd => Self::Nbd(NbdOptions::read(reader)?),
            Driver::CopyBeforeWrite => Self::CopyBeforeWrite(CbwOptions::read(reader, children)?),
            Driver::SnapshotAccess => {
                Self::SnapshotAccess(SnapshotAccessOptions::read(reader, children)?)
            }
            Driver::Qcow2 => Self::Qcow2(Box::new(Qcow2Options::read(reader, children)?)),
            Driver::Blkdebug => Self::Blkdebug(Box::new(BlkdebugOptions::read(reader, children)?)),
            Driver::Throttle => Self::Throttle(ThrottleOptions::read(reader, children)?),
            Driver::CopyOnRead => Self::CopyOnRead(CopyOnReadOptions::read(reader, children)?),
        })
    }
}

/// Children in the newer interface: a name or options.
struct Nested {
    /// How many parents the node has whose children are read.
    depth: usize,
}

impl Nested {
    fn child(&self, child: Alternate<'_>) -> Result<Child> {
        Ok(match child {
            Alternate::Text(node) => Child::Node(node.to_owned()),
            Alternate::Object(inner) => Child::Options(Box::new(BlockdevOptions::read_nested(
                inner,
                self.depth + 1,
            )?)),
        })
    }
}

impl Children for Nested {
    type Node = BlockdevOptions;

    fn optional(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
        _role: Role,
    ) -> Result<Option<Child>> {
        let child = reader.alternate(name, "BlockdevRef")?;
        child.map(|child| self.child(child)).transpose()
    }

    fn required(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
        _role: Role,
    ) -> Result<Child> {
        let child = reader.required(name, |reader, name| reader.alternate(name, "BlockdevRef"))?;
        self.child(child)
    }

    fn backing(&mut self, reader: &mut Reader<'_>) -> Result<Option<Backing>> {
        if reader.null("backing") {
            return Ok(Some(Backing::None));
        }
        match reader.alternate("backing", "BlockdevRefOrNull")? {
            None => Ok(None),
            // QEMU takes this for null, and warns that it will not do so for ever.
            Some(Alternate::Text("")) => Ok(Some(Backing::None)),
            Some(child) => Ok(Some(Backing::Child(self.child(child)?))),
        }
    }
}

// Checking: what goes together.

impl BlockdevOptions {
    /// Checks what can be checked without a disk, this node as the outermost one.
    ///
    /// # Errors
    ///
    /// See [`OptionError`]: what concerns the meaning of a node's options.
    pub fn check(&self) -> Result<()> {
        if self.common.node_name.is_none() {
            return Err(OptionError::NodeNameMissing);
        }
        self.check_node(None)
    }

    /// The order is that of QEMU's opening: the child `file` before its parent's own
    /// settings are complete, the driver's own rules then, other children where the driver
    /// opens them.
    fn check_node(&self, parent: Option<&Settings>) -> Result<()> {
        let settings = self.common.settle(parent);
        if settings.force_share && !settings.read_only {
            return Err(OptionError::ForceShareNeedsReadOnly);
        }
        let inside = |child: &Child| match child {
            Child::Options(child) => child.check_node(Some(&settings)),
            Child::Node(_) => Ok(()),
        };
        match &self.driver {
            DriverOptions::Blkdebug(_) => {}
            driver => driver.main_child().map_or(Ok(()), inside)?,
        }
        self.check_settings(&settings)?;
        match &self.driver {
            DriverOptions::CopyBeforeWrite(cbw) => inside(&cbw.target)?,
            DriverOptions::Blkdebug(blkdebug) => inside(&blkdebug.image)?,
            _ => {}
        }
        self.driver.check(&settings)?;
        let DriverOptions::Qcow2(qcow2) = &self.driver else {
            return Ok(());
        };
        if let Some(data_file) = &qcow2.data_file {
            inside(data_file)?;
        }
        match &qcow2.backing {
            Some(Backing::Child(Child::Options(backing))) => {
                let checked = backing.check_node(Some(&settings.for_backing()));
                checked.map_err(|error| OptionError::Backing(Box::new(error)))
            }
            _ => Ok(()),
        }
    }

    fn check_settings(&self, settings: &Settings) -> Result<()> {
        self.driver.check_file_name()?;
        self.common.check(settings)
    }
}

/// Checks the form of a node-name: a letter, then letters, digits, `-`, `.` and `_`.
///
/// # Errors
///
/// When it has another form or is longer than [`MAX_NODE_NAME`].
pub fn check_node_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.bytes().all(fits) {
        return Err(OptionError::InvalidNodeName {
            name: name.to_owned(),
        });
    }
    if name.len() > MAX_NODE_NAME {
        return Err(OptionError::NodeNameTooLong);
    }
    Ok(())
}

impl<N> DriverOptions<N> {
    /// The driver's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::HostDevice(_) => "host_device",
            Self::Raw(_) => "raw",
            Self::NullCo(_) => "null-co",
            Self::Nbd(_) => "nbd",
            Self::CopyBeforeWrite(_) => "copy-before-write",
            Self::SnapshotAccess(_) => "snapshot-access",
            Self::Qcow2(_) => "qcow2",
            Self::Blkdebug(_) => "blkdebug",
            Self::Throttle(_) => "throttle",
            Self::CopyOnRead(_) => "copy-on-read",
        }
    }

    /// The child that holds the node's bytes, which every driver but a storage has. It is
    /// called `file`, and `image` below blkdebug.
    #[must_use]
    pub fn main_child(&self) -> Option<&Child<N>> {
        match self {
            Self::File(_) | Self::HostDevice(_) | Self::NullCo(_) | Self::Nbd(_) => None,
            Self::Raw(raw) => Some(&raw.file),
            Self::CopyBeforeWrite(cbw) => Some(&cbw.file),
            Self::SnapshotAccess(access) => Some(&access.file),
            Self::Qcow2(qcow2) => Some(&qcow2.file),
            Self::Blkdebug(blkdebug) => Some(&blkdebug.image),
            Self::Throttle(throttle) => Some(&throttle.file),
            Self::CopyOnRead(copy_on_read) => Some(&copy_on_read.file),
        }
    }

    pub(crate) fn check_file_name(&self) -> Result<()> {
        match self {
            Self::File(file) | Self::HostDevice(file) if file.filename.is_empty() => {
                Err(OptionError::NoFileName {
                    driver: self.name(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The driver's own rules, as far as they need neither image nor children.
    pub(crate) fn check(&self, settings: &Settings) -> Result<()> {
        match self {
            Self::File(file) | Self::HostDevice(file) => file.check(settings),
            Self::Raw(raw) => raw.check(),
            Self::NullCo(null) => null.check(),
            Self::CopyBeforeWrite(cbw) => cbw.check(),
            Self::Nbd(_) | Self::SnapshotAccess(_) | Self::Throttle(_) | Self::CopyOnRead(_) => {
                Ok(())
            }
            Self::Qcow2(qcow2) => qcow2.check(),
            Self::Blkdebug(blkdebug) => blkdebug.check(),
        }
    }
}

#[cfg(test)]
mod tests;
