//! Where the disks of a comparison lie, and the images there.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use clap::ValueEnum;

use crate::cleanup::{Device, Registered, Scratch, ZRAM_CONTROL};
use crate::command;
use crate::guest::CLUSTER;
use crate::images::{self, Format};
use crate::pattern::{self, BLOCK, in_memory};

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Medium {
    /// Files in --directory, past the page cache
    File,
    /// Loop devices over such files; needs root
    Loop,
    /// Files in --memory: the processor is the limit
    Memory,
    /// Loop devices over files in --memory; needs root
    MemoryLoop,
    /// Devices in compressed memory; needs root
    Zram,
}

impl Medium {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Loop => "loop",
            Self::Memory => "memory",
            Self::MemoryLoop => "memory-loop",
            Self::Zram => "zram",
        }
    }

    fn is_device(self) -> bool {
        matches!(self, Self::Loop | Self::MemoryLoop | Self::Zram)
    }

    /// Why there are no disks of this kind here.
    pub(crate) fn missing(self, format: Format) -> Option<String> {
        if !self.is_device() {
            return None;
        }
        let why = if format != Format::Raw {
            "only raw disks are put on devices"
        } else if !is_root() {
            "devices need root"
        } else if self == Self::Zram {
            if Path::new(ZRAM_CONTROL).exists() {
                return None;
            }
            "the kernel has no zram, or it is not loaded (modprobe zram)"
        } else if !Path::new("/dev/loop-control").exists() || !command::is_there("losetup") {
            "there are no loop devices"
        } else {
            return None;
        };
        Some(format!("{} is left out: {why}", self.name()))
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// A directory for disks of one kind, gone when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    medium: Medium,
    directory: Scratch,
    /// Disks are read and written past the page cache.
    pub(crate) direct: bool,
}

impl Place {
    /// Makes a directory in `disk` or, for media in memory, in `memory`.
    pub(crate) fn new(medium: Medium, disk: &Path, memory: &Path) -> Result<Self, String> {
        let parent = match medium {
            Medium::File | Medium::Loop => disk,
            Medium::Memory | Medium::MemoryLoop | Medium::Zram => memory,
        };
        let directory = Scratch::new(parent)?;
        let direct = match medium {
            Medium::File => images::takes_direct(directory.path()),
            Medium::Loop | Medium::MemoryLoop | Medium::Zram => true,
            // qemu-storage-daemon does not get along with O_DIRECT on tmpfs.
            Medium::Memory => false,
        };
        Ok(Self {
            medium,
            directory,
            direct,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A disk full of content of generation 0.
    pub(crate) fn disk(&self, format: Format, size: u64) -> Result<Image, String> {
        let disk = self.image(&format!("disk.{}", format.name()), format, size)?;
        self.refill(&disk)?;
        Ok(disk)
    }

    /// Makes of a disk what [`Self::disk`] had made of it.
    pub(crate) fn refill(&self, disk: &Image) -> Result<(), String> {
        if disk.format == Format::Raw {
            return images::fill(&disk.path, disk.size, 0);
        }
        let raw = self.file("filled.raw");
        images::fill(&raw, disk.size, 0)?;
        images::convert(&raw, &disk.path, CLUSTER, self.direct)?;
        std::fs::remove_file(&raw).map_err(|error| format!("{}: {error}", raw.display()))
    }

    /// Where a disk of this size can be copied to. What is raw has been written all
    /// over, so that no run pays for the allocation of its blocks.
    pub(crate) fn target(&self, format: Format, size: u64) -> Result<Image, String> {
        let target = self.image(&format!("target.{}", format.name()), format, size)?;
        match format {
            Format::Raw => images::fill(&target.path, size, POISON)?,
            Format::Qcow2 => target.spoil()?,
        }
        Ok(target)
    }

    /// An empty sparse image.
    pub(crate) fn sparse(&self, name: &str, size: u64) -> Result<Image, String> {
        let image = self.image(name, Format::Qcow2, size)?;
        images::create(&image.path, image.format, size, CLUSTER)?;
        Ok(image)
    }

    /// Where an image will be: a path, or a device that is there already.
    fn image(&self, name: &str, format: Format, size: u64) -> Result<Image, String> {
        let file = self.file(name);
        let device = match self.medium {
            Medium::File | Medium::Memory => None,
            Medium::Loop | Medium::MemoryLoop => {
                let made = File::create(&file).and_then(|file| file.set_len(size));
                made.map_err(|error| format!("{}: {error}", file.display()))?;
                Some(OwnDevice::over(&file, self.medium == Medium::Loop)?)
            }
            Medium::Zram => Some(OwnDevice::zram(size)?),
        };
        Ok(Image {
            path: device.as_ref().map_or(file, |own| own.device.path()),
            format,
            size,
            direct: self.direct,
            is_device: device.is_some(),
            _device: device.map(Rc::new),
        })
    }
}

/// The generation of what no disk ever holds.
const POISON: u16 = u16::MAX;

/// A disk image, or a device with one.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    /// Bytes of the disk.
    pub(crate) size: u64,
    pub(crate) direct: bool,
    pub(crate) is_device: bool,
    /// Removed with the last image on it.
    _device: Option<Rc<OwnDevice>>,
}

impl Image {
    /// Makes a target ready for another run: in every cluster something is wrong, so
    /// that nothing of the run before can be taken for a result of the next one. A
    /// qcow2 image is made anew.
    pub(crate) fn spoil(&self) -> Result<(), String> {
        if self.format == Format::Qcow2 {
            return images::create(&self.path, self.format, self.size, CLUSTER);
        }
        let spoiled = || -> std::io::Result<()> {
            let file = OpenOptions::new().write(true).open(&self.path)?;
            let mut block = [0; BLOCK];
            for (index, offset) in (0..self.size).step_by(in_memory(CLUSTER)).enumerate() {
                // Not always the same block of a cluster.
                let offset = offset + (index % (in_memory(CLUSTER) / BLOCK) * BLOCK) as u64;
                pattern::fill(&mut block, offset, POISON);
                file.write_all_at(&block, offset)?;
            }
            Ok(())
        };
        spoiled().map_err(|error| format!("{}: {error}", self.path.display()))
    }

    /// Brings its data to the disk, and out of the page cache where it would help
    /// whoever comes next.
    pub(crate) fn settle(&self) -> Result<(), String> {
        images::settle(&self.path)
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> Result<(), String> {
        let synced = OpenOptions::new().write(true).open(&self.path);
        let synced = synced.and_then(|file| file.sync_data());
        synced.map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

/// A block device, removed when dropped.
#[derive(Debug)]
struct OwnDevice {
    device: Device,
    _registered: Registered,
}

impl OwnDevice {
    fn new(device: Device) -> Self {
        let registered = Registered::device(device.clone());
        Self {
            device,
            _registered: registered,
        }
    }

    /// Over a file.
    fn over(file: &Path, direct: bool) -> Result<Self, String> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]);
        if direct {
            command.arg("--direct-io=on");
        }
        let path = command::run(command.arg(file))?;
        Ok(Self::new(Device::Loop(path.trim().into())))
    }

    /// In compressed memory.
    fn zram(size: u64) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("zram: {error}");
        // Reading is how one is asked for.
        let number = std::fs::read_to_string(Path::new(ZRAM_CONTROL).join("hot_add"));
        let number = number.map_err(failed)?;
        let number: u32 = number
            .trim()
            .parse()
            .map_err(|_| format!("zram: no number of a device: {number}"))?;
        let own = Self::new(Device::Zram(number));
        let limit = format!("/sys/block/zram{number}/disksize");
        std::fs::write(limit, size.to_string()).map_err(failed)?;
        Ok(own)
    }
}

impl Drop for OwnDevice {
    fn drop(&mut self) {
        self.device.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use crate::verify;

    const SIZE: u64 = 4 * CLUSTER;

    fn place() -> Place {
        let tmp = std::env::temp_dir();
        Place::new(Medium::File, &tmp, &tmp).unwrap()
    }

    #[test]
    fn a_target_that_nobody_writes_is_wrong_everywhere() {
        let place = place();
        let target = place.target(Format::Raw, SIZE).unwrap();
        // A run that went well, and one that does nothing.
        images::fill(&target.path, SIZE, 0).unwrap();
        let point = History::new(SIZE).now();
        assert_eq!(verify::raw(&target, &point, verify::whole(SIZE)), Ok(()));
        target.spoil().unwrap();
        for cluster in 0..4 {
            let part = [(cluster * CLUSTER, in_memory(CLUSTER))];
            assert!(verify::raw(&target, &point, part.into_iter()).is_err());
        }
    }
}
