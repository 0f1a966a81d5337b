//! `blockdev-create`: new images.

use super::argument::{Member, Members, arguments, objects};
use crate::blockdev::{Child, Driver, find_driver};
use crate::error::{OptionError, Result};
use crate::visit::{Reader, words};

arguments! {
    /// Arguments of `blockdev-create`.
    pub struct BlockdevCreate {
        /// Id of the job.
        job_id: String = "job-id",
        /// What is made.
        options: BlockdevCreateOptions = "options",
    }

    /// A file on the host.
    pub struct BlockdevCreateOptionsFile {
        /// Its name.
        filename: String = "filename",
        /// Its size in bytes.
        size: u64 = "size",
        /// How much of it is allocated; default off.
        preallocation: Option<PreallocMode> = "preallocation",
        /// Switch copy-on-write off; default false.
        nocow: Option<bool> = "nocow",
        /// How much the host allocates at a time, in bytes; 0 leaves it to the host.
        extent_size_hint: Option<u64> = "extent-size-hint",
    }
}

objects! { BlockdevCreateOptions, }

words! {
    /// How much of a new image is allocated.
    pub enum PreallocMode {
        /// Nothing.
        Off = "off",
        /// What describes the data.
        Metadata = "metadata",
        /// All, unwritten.
        Falloc = "falloc",
        /// All, written.
        Full = "full",
    }
}

words! {
    /// Version of the qcow2 format.
    pub enum BlockdevQcow2Version {
        /// Version 2, `compat=0.10`.
        V2 = "v2",
        /// Version 3, `compat=1.1`.
        V3 = "v3",
    }
}

words! {
    /// How compressed clusters of qcow2 are compressed.
    pub enum Qcow2CompressionType {
        /// Deflate.
        Zlib = "zlib",
        /// Zstandard.
        Zstd = "zstd",
    }
}

/// What is made, by driver.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockdevCreateOptions {
    /// A file on the host.
    File(BlockdevCreateOptionsFile),
    /// A qcow2 image in a node that is there.
    Qcow2(Box<BlockdevCreateOptionsQcow2>),
    /// A driver that makes nothing: the command is refused when it runs.
    Other {
        /// Name of the driver.
        driver: &'static str,
    },
}

/// A qcow2 image in a node that is there. `encrypt` is refused by name.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockdevCreateOptionsQcow2 {
    /// Where the image goes.
    pub file: Child,
    /// Where its data goes; default: into `file`.
    pub data_file: Option<Child>,
    /// The data file is a raw image in its own right; default false.
    pub data_file_raw: Option<bool>,
    /// Clusters have subclusters; default false.
    pub extended_l2: Option<bool>,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Version of the format; default v3.
    pub version: Option<BlockdevQcow2Version>,
    /// Name of the backing file.
    pub backing_file: Option<String>,
    /// Name of the backing file's driver.
    pub backing_fmt: Option<&'static str>,
    /// Bytes in a cluster; default 65536.
    pub cluster_size: Option<u64>,
    /// How much is allocated; default off.
    pub preallocation: Option<PreallocMode>,
    /// Put refcounts off; default off.
    pub lazy_refcounts: Option<bool>,
    /// Bits in a refcount; default 16.
    pub refcount_bits: Option<i64>,
    /// How compressed clusters are compressed; default zlib.
    pub compression_type: Option<Qcow2CompressionType>,
}

impl Members for BlockdevCreateOptionsQcow2 {
    fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
        let file = Member::read_member(reader, "file")?;
        let data_file = Member::read_member(reader, "data-file")?;
        let data_file_raw = Member::read_member(reader, "data-file-raw")?;
        let extended_l2 = Member::read_member(reader, "extended-l2")?;
        let size = Member::read_member(reader, "size")?;
        let version = Member::read_member(reader, "version")?;
        let backing_file = Member::read_member(reader, "backing-file")?;
        let backing_fmt: Option<Driver> = read_driver(reader, "backing-fmt")?;
        reader.unsupported("encrypt")?;
        Ok(Self {
            file,
            data_file,
            data_file_raw,
            extended_l2,
            size,
            version,
            backing_file,
            backing_fmt: backing_fmt.map(Driver::name),
            cluster_size: Member::read_member(reader, "cluster-size")?,
            preallocation: Member::read_member(reader, "preallocation")?,
            lazy_refcounts: Member::read_member(reader, "lazy-refcounts")?,
            refcount_bits: Member::read_member(reader, "refcount-bits")?,
            compression_type: Member::read_member(reader, "compression-type")?,
        })
    }
}

impl Members for BlockdevCreateOptions {
    fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
        let driver = reader.required("driver", read_driver)?;
        Ok(match driver {
            Driver::File => Self::File(Members::read_members(reader)?),
            Driver::Qcow2 => Self::Qcow2(Members::read_members(reader)?),
            other => Self::Other {
                driver: other.name(),
            },
        })
    }
}

/// A driver by name. One that only QEMU has is refused by name.
fn read_driver(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Driver>> {
    let Some(word) = reader.text(name)? else {
        return Ok(None);
    };
    let driver = find_driver(&word)?.ok_or_else(|| OptionError::BadValue {
        name: name.to_owned(),
        value: word,
    });
    driver.map(Some)
}
