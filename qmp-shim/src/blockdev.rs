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
//! | `copy-before-write` | `file`, `target`, `bitmap.node`, `bitmap.name`, `on-cbw-error` (break-guest-write, break-snapshot), `cbw-timeout`, `min-cluster-size` |
//! | `snapshot-access` | `file` |
//!
//! `file` and `target` are [`Child`]ren: the name of a node, or the options of a new one.
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
//! referred to by name has settings of its own and inherits nothing.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{OptionError, Result};
use crate::keyval;
use crate::visit::{Alternate, Leaves, Reader, Word, words};

/// How deep nodes may be defined inside each other. References to nodes know no depth.
pub const MAX_NESTED: usize = 64;
/// Longest node-name, in bytes.
pub const MAX_NODE_NAME: usize = 31;
/// Largest disk: QEMU keeps the last GiB below 2^63 free.
pub const MAX_DISK: u64 = (i64::MAX as u64) & !((1 << 30) - 1);
/// Largest `min-cluster-size`: clusters are counted in 32 bits inside of QEMU, which dies
/// of a larger one.
pub const MAX_CLUSTER: u64 = 1 << 31;

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

/// Options of every driver, as given. [`CommonOptions::settle`] says what they amount to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommonOptions {
    /// The node's name; mandatory for the outermost node, made up for inner ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Whether discards reach the storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,
    /// How the host's page cache is used.
    #[serde(skip_serializing_if = "CacheOptions::is_empty")]
    pub cache: CacheOptions,
    /// Refuse writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Open the storage for writing only while somebody writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_read_only: Option<bool>,
    /// Open although another process writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_share: Option<bool>,
    /// Whether written zeroes become zero requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detect_zeroes: Option<DetectZeroes>,
}

/// The `cache` object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheOptions {
    /// Pass the page cache by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// Forget flushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_flush: Option<bool>,
}

impl CacheOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

words! {
    /// Whether discards reach the storage.
    pub enum Discard {
        /// They are answered and forgotten.
        Ignore = "ignore",
        /// They are passed on.
        Unmap = "unmap",
    }
}

words! {
    /// Whether written zeroes become zero requests.
    pub enum DetectZeroes {
        /// They are written.
        Off = "off",
        /// They become zero requests.
        On = "on",
        /// They become zero requests that may free storage.
        Unmap = "unmap",
    }
}

words! {
    /// Whether a file is locked against other processes.
    pub enum Locking {
        /// Where the host can do it well.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

words! {
    /// By which of QEMU's ways a file is read and written.
    pub enum Aio {
        /// A pool of threads.
        Threads = "threads",
        /// Linux AIO; needs `cache.direct`.
        Native = "native",
        /// `io_uring`.
        IoUring = "io_uring",
    }
}

words! {
    /// Who pays when old data cannot be saved.
    pub enum OnCbwError {
        /// The guest's write fails.
        BreakGuestWrite = "break-guest-write",
        /// The snapshot is lost.
        BreakSnapshot = "break-snapshot",
    }
}

/// A driver with its own options.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum DriverOptions {
    /// A regular file.
    File(FileOptions),
    /// A block or character device of the host.
    #[serde(rename = "host_device")]
    HostDevice(FileOptions),
    /// Another node's bytes, or a window onto them.
    Raw(RawOptions),
    /// A disk that forgets.
    NullCo(NullOptions),
    /// A filter that saves old data before it is overwritten.
    CopyBeforeWrite(CbwOptions),
    /// A reader's view of such a filter's snapshot.
    SnapshotAccess(SnapshotAccessOptions),
}

/// Options of `file` and `host_device`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileOptions {
    /// The path, taken as it is: no prefix has a meaning.
    pub filename: String,
    /// Locks against other processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locking: Option<Locking>,
    /// The way of reading and writing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aio: Option<Aio>,
}

/// Options of `raw`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RawOptions {
    /// Where the bytes are.
    pub file: Child,
    /// Where the window begins; any byte, at most 2^63 - 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How long the window is; whole sectors, at most 2^63 - 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Options of `null-co`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NullOptions {
    /// Length of the disk in bytes, at most [`MAX_DISK`]. 1 GiB when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// How long a request takes, below 2^63. 0 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<u64>,
    /// Whether a read fills its buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_zeroes: Option<bool>,
}

/// Options of `copy-before-write`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CbwOptions {
    /// The disk that is written to.
    pub file: Child,
    /// Where old data goes.
    pub target: Child,
    /// Which clusters belong to the snapshot; all of them when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap: Option<BitmapRef>,
    /// What happens when old data cannot be saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_cbw_error: Option<OnCbwError>,
    /// After how many seconds saving counts as failed; 0 or not given: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cbw_timeout: Option<u32>,
    /// The least size of a cluster: 0 or a power of two up to [`MAX_CLUSTER`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cluster_size: Option<u64>,
}

/// A dirty bitmap by node and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BitmapRef {
    /// The node that it is on.
    pub node: String,
    /// Its name.
    pub name: String,
}

/// Options of `snapshot-access`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotAccessOptions {
    /// The filter whose snapshot is read.
    pub file: Child,
}

/// A node below another.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Child {
    /// One that exists, by its name. Whether it does is the engine's to find out.
    Node(String),
    /// One to be opened along with its parent.
    Options(Box<BlockdevOptions>),
}

/// What a node's common options amount to, inheritance included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// Refuse writes.
    pub read_only: bool,
    /// Open the storage for writing only while somebody writes.
    pub auto_read_only: bool,
    /// Open although another process writes.
    pub force_share: bool,
    /// Pass the page cache by.
    pub direct: bool,
    /// Whether `direct` was said, here or by a parent, rather than assumed. ringback may
    /// choose where nobody did.
    pub direct_given: bool,
    /// Forget flushes.
    pub no_flush: bool,
    /// Whether discards reach the storage.
    pub discard: Discard,
    /// Whether written zeroes become zero requests.
    pub detect_zeroes: DetectZeroes,
}

impl CommonOptions {
    /// Fills in what is not given, from the parent for a node defined inside of one.
    #[must_use]
    pub fn settle(&self, parent: Option<&Settings>) -> Settings {
        let inherited = match parent {
            None => Settings::default(),
            Some(parent) => Settings {
                discard: Discard::Unmap,
                detect_zeroes: DetectZeroes::Off,
                ..*parent
            },
        };
        Settings {
            read_only: self.read_only.unwrap_or(inherited.read_only),
            auto_read_only: self.auto_read_only.unwrap_or(inherited.auto_read_only),
            force_share: self.force_share.unwrap_or(inherited.force_share),
            direct: self.cache.direct.unwrap_or(inherited.direct),
            direct_given: self.cache.direct.is_some() || inherited.direct_given,
            no_flush: self.cache.no_flush.unwrap_or(inherited.no_flush),
            discard: self.discard.unwrap_or(inherited.discard),
            detect_zeroes: self.detect_zeroes.unwrap_or(inherited.detect_zeroes),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            node_name: reader.text("node-name")?,
            discard: reader.word("discard")?,
            cache: CacheOptions::read(reader)?,
            read_only: reader.boolean("read-only")?,
            auto_read_only: reader.boolean("auto-read-only")?,
            force_share: reader.boolean("force-share")?,
            detect_zeroes: reader.word("detect-zeroes")?,
        })
    }
}

impl CacheOptions {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let Some(mut cache) = reader.object("cache")? else {
            return Ok(Self::default());
        };
        let options = Self {
            direct: cache.boolean("direct")?,
            no_flush: cache.boolean("no-flush")?,
        };
        cache.finish()?;
        Ok(options)
    }
}

// Reading: names and types.

/// The drivers of QEMU 10.0, and which of them are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    File,
    HostDevice,
    Raw,
    NullCo,
    CopyBeforeWrite,
    SnapshotAccess,
}

impl Word for Driver {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("file", Self::File),
        ("host_device", Self::HostDevice),
        ("raw", Self::Raw),
        ("null-co", Self::NullCo),
        ("copy-before-write", Self::CopyBeforeWrite),
        ("snapshot-access", Self::SnapshotAccess),
    ];
}

/// The other drivers of QEMU 10.0, less those that need libblkio, which is rarely built
/// in. Their names deserve another answer than a slip of the pen does.
const UNSUPPORTED_DRIVERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-on-read",
    "dmg",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "ssh",
    "throttle",
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
    fn read_nested(mut reader: Reader<'_>, depth: usize) -> Result<Self> {
        if depth > MAX_NESTED {
            return Err(OptionError::NodesTooDeep { max: MAX_NESTED });
        }
        let driver = read_driver(&mut reader)?;
        let common = CommonOptions::read(&mut reader)?;
        let driver = DriverOptions::read(driver, &mut reader, depth)?;
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
    if let Some(driver) = Driver::from_word(&name) {
        return Ok(driver);
    }
    if UNSUPPORTED_DRIVERS.contains(&name.as_str()) {
        let supported: Vec<_> = Driver::WORDS.iter().map(|(word, _)| *word).collect();
        let supported = supported.join(", ");
        return Err(OptionError::UnsupportedDriver {
            driver: name,
            supported,
        });
    }
    Err(OptionError::BadValue {
        name: "driver".to_owned(),
        value: name,
    })
}

impl DriverOptions {
    fn read(driver: Driver, reader: &mut Reader<'_>, depth: usize) -> Result<Self> {
        Ok(match driver {
            Driver::File => Self::File(FileOptions::read(reader)?),
            Driver::HostDevice => Self::HostDevice(FileOptions::read(reader)?),
            Driver::Raw => Self::Raw(RawOptions {
                file: Child::read(reader, "file", depth)?,
                // QEMU's schema has the size first.
                size: reader.not_negative("size")?,
                offset: reader.not_negative("offset")?,
            }),
            Driver::NullCo => Self::NullCo(NullOptions {
                size: reader.not_negative("size")?,
                latency_ns: reader.unsigned("latency-ns")?,
                read_zeroes: reader.boolean("read-zeroes")?,
            }),
            Driver::CopyBeforeWrite => Self::CopyBeforeWrite(CbwOptions {
                file: Child::read(reader, "file", depth)?,
                target: Child::read(reader, "target", depth)?,
                bitmap: BitmapRef::read(reader)?,
                on_cbw_error: reader.word("on-cbw-error")?,
                cbw_timeout: reader.unsigned_32("cbw-timeout")?,
                min_cluster_size: reader.size("min-cluster-size")?,
            }),
            Driver::SnapshotAccess => Self::SnapshotAccess(SnapshotAccessOptions {
                file: Child::read(reader, "file", depth)?,
            }),
        })
    }
}

impl FileOptions {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let filename = reader.required("filename", Reader::text)?;
        reader.unsupported("pr-manager")?;
        let locking = reader.word("locking")?;
        let aio = reader.word("aio")?;
        for name in ["aio-max-batch", "drop-cache", "x-check-cache-dropped"] {
            reader.unsupported(name)?;
        }
        Ok(Self {
            filename,
            locking,
            aio,
        })
    }
}

impl BitmapRef {
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        let Some(mut bitmap) = reader.object("bitmap")? else {
            return Ok(None);
        };
        let read = Self {
            node: bitmap.required("node", Reader::text)?,
            name: bitmap.required("name", Reader::text)?,
        };
        bitmap.finish()?;
        Ok(Some(read))
    }
}

impl Child {
    fn read(reader: &mut Reader<'_>, name: &'static str, depth: usize) -> Result<Self> {
        let child = reader.required(name, |reader, name| reader.alternate(name, "BlockdevRef"))?;
        Ok(match child {
            Alternate::Text(node) => Self::Node(node.to_owned()),
            Alternate::Object(inner) => {
                Self::Options(Box::new(BlockdevOptions::read_nested(inner, depth + 1)?))
            }
        })
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

    /// The order is that of QEMU's opening: the main child before its parent's own
    /// settings are complete, the target after, the driver's own rules last.
    fn check_node(&self, parent: Option<&Settings>) -> Result<()> {
        let settings = self.common.settle(parent);
        if settings.force_share && !settings.read_only {
            return Err(OptionError::ForceShareNeedsReadOnly);
        }
        if let Some(Child::Options(file)) = self.driver.file() {
            file.check_node(Some(&settings))?;
        }
        self.driver.check_file_name()?;
        let unmaps = settings.discard == Discard::Unmap;
        if settings.detect_zeroes == DetectZeroes::Unmap && !unmaps {
            return Err(OptionError::DetectZeroesNeedsUnmap);
        }
        if let Some(name) = &self.common.node_name {
            check_node_name(name)?;
        }
        if let DriverOptions::CopyBeforeWrite(CbwOptions {
            target: Child::Options(target),
            ..
        }) = &self.driver
        {
            target.check_node(Some(&settings))?;
        }
        self.driver.check(&settings)
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

impl DriverOptions {
    /// The driver's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::HostDevice(_) => "host_device",
            Self::Raw(_) => "raw",
            Self::NullCo(_) => "null-co",
            Self::CopyBeforeWrite(_) => "copy-before-write",
            Self::SnapshotAccess(_) => "snapshot-access",
        }
    }

    /// The main child, which every driver but a storage has.
    #[must_use]
    pub fn file(&self) -> Option<&Child> {
        match self {
            Self::File(_) | Self::HostDevice(_) | Self::NullCo(_) => None,
            Self::Raw(raw) => Some(&raw.file),
            Self::CopyBeforeWrite(cbw) => Some(&cbw.file),
            Self::SnapshotAccess(access) => Some(&access.file),
        }
    }

    fn check_file_name(&self) -> Result<()> {
        match self {
            Self::File(file) | Self::HostDevice(file) if file.filename.is_empty() => {
                Err(OptionError::NoFileName {
                    driver: self.name(),
                })
            }
            _ => Ok(()),
        }
    }

    fn check(&self, settings: &Settings) -> Result<()> {
        match self {
            Self::File(file) | Self::HostDevice(file) => file.check(settings),
            Self::Raw(raw) => match raw.size {
                Some(size) if size % 512 != 0 => Err(OptionError::SizeNotInSectors),
                _ => Ok(()),
            },
            Self::NullCo(null) => null.check(),
            Self::CopyBeforeWrite(cbw) => check_cluster_size(cbw.min_cluster_size.unwrap_or(0)),
            Self::SnapshotAccess(_) => Ok(()),
        }
    }
}

impl FileOptions {
    fn check(&self, settings: &Settings) -> Result<()> {
        if self.filename.contains('\0') {
            return Err(OptionError::NulInFileName {
                name: self.filename.clone(),
            });
        }
        if self.aio == Some(Aio::Native) && !settings.direct {
            return Err(OptionError::NativeNeedsDirect);
        }
        Ok(())
    }
}

impl NullOptions {
    fn check(self) -> Result<()> {
        if self
            .latency_ns
            .is_some_and(|latency| i64::try_from(latency).is_err())
        {
            return Err(OptionError::InvalidLatency);
        }
        if self.size.is_some_and(|size| size > MAX_DISK) {
            return Err(OptionError::DiskTooLarge);
        }
        Ok(())
    }
}

/// QEMU checks the range of 63 bits, then the form, and then dies of sizes from 2^32 on.
fn check_cluster_size(size: u64) -> Result<()> {
    let signed_max = i64::MAX.cast_unsigned();
    if size > signed_max {
        return Err(OptionError::ClusterTooLarge {
            size,
            max: signed_max,
        });
    }
    if size != 0 && !size.is_power_of_two() {
        return Err(OptionError::ClusterNotPowerOfTwo);
    }
    if size > MAX_CLUSTER {
        return Err(OptionError::ClusterTooLarge {
            size,
            max: MAX_CLUSTER,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
