//! Where the disks of a comparison lie, and the images there.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use clap::ValueEnum;
use nix::fcntl::OFlag;

use crate::cleanup::{Registered, Scratch};
use crate::command;
use crate::guest::CLUSTER;
use crate::images;
use crate::pattern::{self, BLOCK};

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
}

impl Medium {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Loop => "loop",
            Self::Memory => "memory",
            Self::MemoryLoop => "memory-loop",
        }
    }

    fn is_loop(self) -> bool {
        matches!(self, Self::Loop | Self::MemoryLoop)
    }

    /// Why there are no disks of this kind here.
    pub(crate) fn missing(self, format: Format) -> Option<String> {
        if !self.is_loop() {
            return None;
        }
        let why = if format != Format::Raw {
            "only raw disks are put on loop devices"
        } else if !is_root() {
            "loop devices need root"
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

/// How a disk is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
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
            Medium::Memory | Medium::MemoryLoop => memory,
        };
        let directory = Scratch::new(parent)?;
        let direct = match medium {
            Medium::File => takes_direct(&directory.path().join("probe")),
            Medium::Loop | Medium::MemoryLoop => true,
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
        let path = self.file(&format!("disk.{}", format.name()));
        self.fill(&path, format, size)?;
        self.image(path, format, size)
    }

    /// Makes of a disk what [`Self::disk`] had made of it.
    pub(crate) fn refill(&self, disk: &Image) -> Result<(), String> {
        self.fill(&disk.path, disk.format, disk.size)
    }

    fn fill(&self, path: &Path, format: Format, size: u64) -> Result<(), String> {
        if format == Format::Raw {
            return images::fill(path, size, 0);
        }
        let raw = self.file("filled.raw");
        images::fill(&raw, size, 0)?;
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2", "-S", "0"]);
        command::run(convert.arg(&raw).arg(path))?;
        std::fs::remove_file(&raw).map_err(|error| format!("{}: {error}", raw.display()))
    }

    /// Where a disk of this size can be copied to. What is raw has been written all
    /// over, so that no run pays for the allocation of its blocks.
    pub(crate) fn target(&self, format: Format, size: u64) -> Result<Image, String> {
        let path = self.file(&format!("target.{}", format.name()));
        match format {
            Format::Raw => images::fill(&path, size, POISON)?,
            Format::Qcow2 => create(&path, size)?,
        }
        self.image(path, format, size)
    }

    /// An empty sparse image.
    pub(crate) fn sparse(&self, name: &str, size: u64) -> Result<Image, String> {
        let path = self.file(name);
        create(&path, size)?;
        self.image(path, Format::Qcow2, size)
    }

    fn image(&self, file: PathBuf, format: Format, size: u64) -> Result<Image, String> {
        let image = Image {
            path: file,
            format,
            size,
            direct: self.direct,
            is_device: false,
            _device: None,
        };
        if !self.medium.is_loop() {
            return Ok(image);
        }
        let device = LoopDevice::new(&image.path, self.medium == Medium::Loop)?;
        Ok(Image {
            path: device.path.clone(),
            is_device: true,
            _device: Some(Rc::new(device)),
            ..image
        })
    }
}

fn takes_direct(probe: &Path) -> bool {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(probe);
    file.is_ok()
}

/// An empty qcow2 image; what was there is gone.
fn create(path: &Path, size: u64) -> Result<(), String> {
    // A new file, not the old one with new content: its blocks are not there.
    let _ = std::fs::remove_file(path);
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    command::run(command.arg(path).arg(size.to_string())).map(drop)
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
    /// Detached with the last image on it.
    _device: Option<Rc<LoopDevice>>,
}

impl Image {
    /// Makes a target ready for another run: in every cluster something is wrong, so
    /// that nothing of the run before can be taken for a result of the next one. A
    /// qcow2 image is made anew.
    pub(crate) fn spoil(&self) -> Result<(), String> {
        if self.format == Format::Qcow2 {
            return create(&self.path, self.size);
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

fn in_memory(number: u64) -> usize {
    usize::try_from(number).expect("64-bit machines only")
}

/// A loop device, detached when dropped.
#[derive(Debug)]
struct LoopDevice {
    path: PathBuf,
    _registered: Registered,
}

impl LoopDevice {
    fn new(file: &Path, direct: bool) -> Result<Self, String> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]);
        if direct {
            command.arg("--direct-io=on");
        }
        let path = PathBuf::from(command::run(command.arg(file))?.trim());
        let registered = Registered::loop_device(path.clone());
        Ok(Self {
            path,
            _registered: registered,
        })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
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
