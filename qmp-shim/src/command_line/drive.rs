//! `--drive`: a disk with its image, in the older language of QEMU's `-drive`.
//!
//! What is said of the drive itself is taken out of the text; the rest are flat options of
//! the image's nodes, which [`crate::open`] understands.
//!
//! Statistics (`stats-...`) are refused: ringback keeps its own.

use serde_json::{Map, Value};

use super::error::{ArgumentError, Result};
use crate::blockdev::{Aio, DetectZeroes, Settings};
use crate::error::OptionError;
use crate::open::{self, OpenNode};
use crate::opts;
use crate::throttle_group::Limits;
use crate::visit::{Owner, Reader, Word, words};

/// A disk to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Drive {
    /// Its name.
    pub id: Option<String>,
    /// The bus it is on, and there where. [`Interface::None`] waits for a device.
    pub interface: Interface,
    /// Place on the bus.
    pub place: Place,
    /// What kind of disk it is.
    pub media: Media,
    /// The image's name. It may also stand among the options.
    pub file: Option<String>,
    /// Flat options of the image's nodes.
    pub options: Map<String, Value>,
    /// What the outermost node has if its options do not say otherwise.
    pub settings: Settings,
    /// Whether writes are kept in an overlay that is thrown away.
    pub snapshot: bool,
    /// Whether a write is answered when it is on the disk.
    pub writethrough: bool,
    /// How files are read and written, where a program may choose.
    pub aio: Option<Aio>,
    /// Whether what is read from a backing file is kept.
    pub copy_on_read: bool,
    /// What a write does that fails.
    pub werror: WriteErrorAction,
    /// What a read does that fails.
    pub rerror: ReadErrorAction,
    /// What holds its requests back.
    pub throttle: Option<DriveThrottle>,
}

/// What holds a drive's requests back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveThrottle {
    /// The drives with which it shares the limits; none is the drive's own name.
    pub group: Option<String>,
    /// The limits. Those of the group's last drive count.
    pub limits: Limits,
}

/// Where on its bus a drive is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Number among all drives of the interface; not together with the others.
    pub index: Option<u16>,
    /// Number of the bus.
    pub bus: Option<u16>,
    /// Number on the bus.
    pub unit: Option<u16>,
}

words! {
    /// What a drive is connected to.
    pub enum Interface {
        /// What the machine has by default.
        Default = "",
        /// Nothing, until a device names it.
        None = "none",
        /// IDE.
        Ide = "ide",
        /// SCSI.
        Scsi = "scsi",
        /// A floppy controller.
        Floppy = "floppy",
        /// Parallel flash.
        Pflash = "pflash",
        /// Memory technology devices.
        Mtd = "mtd",
        /// SD cards.
        Sd = "sd",
        /// virtio-blk.
        Virtio = "virtio",
        /// Xen.
        Xen = "xen",
    }
}

words! {
    /// What kind of disk.
    pub enum Media {
        /// A hard disk.
        Disk = "disk",
        /// A disc that can be taken out and not be written.
        Cdrom = "cdrom",
    }
}

words! {
    /// What a write does that fails.
    pub enum WriteErrorAction {
        /// The guest waits if the host's disk is full, and else learns of it.
        Enospc = "enospc",
        /// The guest does not learn of it.
        Ignore = "ignore",
        /// The guest learns of it.
        Report = "report",
        /// The guest waits.
        Stop = "stop",
    }
}

words! {
    /// What a read does that fails.
    pub enum ReadErrorAction {
        /// The guest learns of it.
        Report = "report",
        /// The guest does not learn of it.
        Ignore = "ignore",
        /// The guest waits.
        Stop = "stop",
    }
}

/// Older names of options.
const ALIASES: &[(&str, &str)] = &[
    ("iops", "throttling.iops-total"),
    ("iops_rd", "throttling.iops-read"),
    ("iops_wr", "throttling.iops-write"),
    ("bps", "throttling.bps-total"),
    ("bps_rd", "throttling.bps-read"),
    ("bps_wr", "throttling.bps-write"),
    ("iops_max", "throttling.iops-total-max"),
    ("iops_rd_max", "throttling.iops-read-max"),
    ("iops_wr_max", "throttling.iops-write-max"),
    ("bps_max", "throttling.bps-total-max"),
    ("bps_rd_max", "throttling.bps-read-max"),
    ("bps_wr_max", "throttling.bps-write-max"),
    ("iops_size", "throttling.iops-size"),
    ("group", "throttling.group"),
    ("readonly", "read-only"),
];

/// Options that are being taken apart.
struct Parts {
    options: Map<String, Value>,
}

impl Parts {
    fn text(&mut self, key: &str) -> Option<String> {
        match self.options.remove(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    fn boolean(&mut self, key: &'static str) -> Result<Option<bool>> {
        let value = Reader::flat(&self.options, Owner::Nobody).boolean(key)?;
        self.options.remove(key);
        Ok(value)
    }

    fn number(&mut self, key: &'static str) -> Result<Option<u16>> {
        let value = Reader::flat(&self.options, Owner::Nobody).unsigned(key)?;
        self.options.remove(key);
        let range = |_| ArgumentError::NumberRange {
            key,
            min: 0,
            max: u16::MAX.into(),
        };
        value
            .map(|value| u16::try_from(value).map_err(range))
            .transpose()
    }

    /// Older names become newer ones.
    fn rename(&mut self) -> Result<()> {
        for (alias, name) in ALIASES {
            let Some(value) = self.options.remove(*alias) else {
                continue;
            };
            if self.options.contains_key(*name) {
                return Err(ArgumentError::AliasTwice { name, alias });
            }
            self.options.insert((*name).to_owned(), value);
        }
        Ok(())
    }

    fn refuse_statistics(&self) -> Result<()> {
        let is_statistics = |key: &&String| key.starts_with("stats-");
        match self.options.keys().find(is_statistics) {
            None => Ok(()),
            Some(path) => Err(OptionError::UnsupportedOption { path: path.clone() }.into()),
        }
    }

    fn throttle(&mut self) -> Result<Option<DriveThrottle>> {
        let group = self.text("throttling.group");
        let has_limits = self
            .options
            .keys()
            .any(|key| key.starts_with("throttling."));
        let limits = Limits::take_from_drive(&mut self.options)?;
        Ok((group.is_some() || has_limits).then_some(DriveThrottle { group, limits }))
    }
}

/// What `cache=` stands for.
struct CacheMode {
    direct: bool,
    no_flush: bool,
    writethrough: bool,
}

impl CacheMode {
    fn parse(word: &str) -> Result<Self> {
        let (direct, no_flush, writethrough) = match word {
            "none" | "off" => (true, false, false),
            "directsync" => (true, false, true),
            "writeback" => (false, false, false),
            "writethrough" => (false, false, true),
            "unsafe" => (false, true, false),
            _ => return Err(ArgumentError::CacheMode),
        };
        Ok(Self {
            direct,
            no_flush,
            writethrough,
        })
    }
}

impl Drive {
    /// Reads and checks the argument. Warnings are added for what is out of date or without
    /// effect.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`]. Mistakes in the image's own options are among them, as far as
    /// they show without the image.
    pub fn parse(text: &str, warnings: &mut Vec<String>) -> Result<Self> {
        let opts = opts::parse(text)?;
        warnings.extend(opts.warnings);
        let mut parts = Parts {
            options: opts.options,
        };
        let id = parts.text("id");
        parts.rename()?;
        let mode = parts.text("cache");
        let mode = mode.map(|word| CacheMode::parse(&word)).transpose()?;
        let place = Place {
            bus: parts.number("bus")?,
            unit: parts.number("unit")?,
            index: parts.number("index")?,
        };
        let read_only = parts.boolean("read-only")?.unwrap_or(false);
        let copy_on_read = parts.boolean("copy-on-read")?.unwrap_or(false);
        let media = read_media(parts.text("media"))?;
        let read_only = read_only || media == Media::Cdrom;
        if read_only && copy_on_read {
            warnings.push("disabling copy-on-read on read-only drive".to_owned());
        }
        let interface = read_interface(parts.text("if"))?;
        if place.index.is_some() && (place.bus.is_some() || place.unit.is_some()) {
            return Err(ArgumentError::IndexAndBus);
        }
        let write_error = error_action(&mut parts, "werror", interface)?;
        let read_error = error_action(&mut parts, "rerror", interface)?;
        let writeback = parts.boolean("cache.writeback")?;
        let throttle = parts.throttle()?;
        parts.refuse_statistics()?;
        let aio = read_aio(parts.text("aio"))?;
        if let Some(throttle) = &throttle {
            throttle.limits.check()?;
        }
        let detect_zeroes = read_detect_zeroes(&mut parts)?;
        name_driver(&mut parts)?;
        let werror = read_werror(write_error)?;
        let rerror = read_rerror(read_error)?;
        let snapshot = parts.boolean("snapshot")?.unwrap_or(false);
        let file = parts.text("file").filter(|file| !file.is_empty());
        let drive = Self {
            id,
            interface,
            place,
            media,
            file,
            options: parts.options,
            settings: Settings {
                // Only the overlay is written.
                read_only: read_only || snapshot,
                auto_read_only: true,
                direct: mode.as_ref().is_some_and(|mode| mode.direct),
                direct_given: mode.is_some(),
                no_flush: mode.as_ref().is_some_and(|mode| mode.no_flush),
                detect_zeroes,
                ..Settings::default()
            },
            snapshot,
            writethrough: match writeback {
                Some(writeback) => !writeback,
                None => mode.is_some_and(|mode| mode.writethrough),
            },
            aio,
            copy_on_read: copy_on_read && !read_only,
            werror,
            rerror,
            throttle,
        };
        if drive.open()?.is_some() {
            drive.check_native()?;
        } else if drive.settings.direct_given {
            // There is nothing that `cache` could be about.
            return Err(OptionError::NoDriverOrFile.into());
        }
        Ok(drive)
    }

    /// The image's outermost node; none of a drive without a disk in it.
    ///
    /// # Errors
    ///
    /// See [`OptionError`].
    pub fn open(&self) -> Result<Option<OpenNode>> {
        if self.is_empty() {
            return Ok(None);
        }
        let node = open::open(self.file.as_deref(), &self.options, &self.settings)?;
        Ok(Some(node))
    }

    /// Whether there is no disk in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.file.is_none() && self.options.is_empty()
    }

    fn check_native(&self) -> Result<()> {
        let mut reader = Reader::flat(&self.options, Owner::Nobody);
        let direct = match reader.object("cache")? {
            Some(mut cache) => cache.boolean("direct")?,
            None => None,
        };
        if self.aio == Some(Aio::Native) && !direct.unwrap_or(self.settings.direct) {
            return Err(OptionError::NativeNeedsDirect.into());
        }
        Ok(())
    }
}

fn read_media(word: Option<String>) -> Result<Media> {
    let Some(media) = word else {
        return Ok(Media::default());
    };
    Media::from_word(&media).ok_or(ArgumentError::Media { media })
}

fn read_interface(word: Option<String>) -> Result<Interface> {
    let Some(interface) = word else {
        return Ok(Interface::Default);
    };
    Interface::from_word(&interface)
        .filter(|known| *known != Interface::Default)
        .ok_or(ArgumentError::Interface { interface })
}

/// The word of `werror` or `rerror`, if the interface has such a thing.
fn error_action(
    parts: &mut Parts,
    option: &'static str,
    interface: Interface,
) -> Result<Option<String>> {
    let word = parts.text(option);
    let can = matches!(
        interface,
        Interface::Default | Interface::None | Interface::Ide | Interface::Scsi | Interface::Virtio
    );
    if word.is_some() && !can {
        return Err(ArgumentError::ErrorActionOfBus { option });
    }
    Ok(word)
}

fn read_werror(word: Option<String>) -> Result<WriteErrorAction> {
    let Some(action) = word else {
        return Ok(WriteErrorAction::default());
    };
    WriteErrorAction::from_word(&action).ok_or(ArgumentError::WriteErrorAction { action })
}

fn read_rerror(word: Option<String>) -> Result<ReadErrorAction> {
    let Some(action) = word else {
        return Ok(ReadErrorAction::default());
    };
    ReadErrorAction::from_word(&action).ok_or(ArgumentError::ReadErrorAction { action })
}

fn read_aio(word: Option<String>) -> Result<Option<Aio>> {
    let Some(word) = word else {
        return Ok(None);
    };
    Aio::from_word(&word)
        .map(Some)
        .ok_or(ArgumentError::AioMode)
}

/// A drive that does not unmap writes zeroes, as QEMU's does; only nodes refuse that.
fn read_detect_zeroes(parts: &mut Parts) -> Result<DetectZeroes> {
    let word: Option<DetectZeroes> =
        Reader::flat(&parts.options, Owner::Nobody).word("detect-zeroes")?;
    parts.options.remove("detect-zeroes");
    let discard = parts.options.get("discard").and_then(Value::as_str);
    Ok(match word.unwrap_or_default() {
        DetectZeroes::Unmap if !matches!(discard, Some("unmap" | "on")) => DetectZeroes::On,
        word => word,
    })
}

/// `format` is the outermost node's driver.
fn name_driver(parts: &mut Parts) -> Result<()> {
    let Some(format) = parts.text("format") else {
        return Ok(());
    };
    if parts.options.contains_key("driver") {
        return Err(ArgumentError::DriverAndFormat);
    }
    parts
        .options
        .insert("driver".to_owned(), Value::from(format));
    Ok(())
}
