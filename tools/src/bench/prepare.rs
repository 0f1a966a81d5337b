//! The files of a bench: made on the spot or given, and what may be overwritten.
//!
//! Everything is looked at before anything is written: sizes, kinds, rights,
//! and whether a given disk holds data. A given disk is written only if it is
//! blank or `--overwrite` says so.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::args::Args;
use crate::nodes::Disk;
use crate::open::is_claimed;

/// The two disks of a run.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Where the guest works.
    pub(crate) source: Disk,
    /// Where the backup goes.
    pub(crate) target: Disk,
    /// The source has no data that must survive, and reads as zeroes now.
    pub(crate) source_is_blank: bool,
    /// What was made for this run.
    scratch: Option<TempDir>,
    /// A target that did not exist.
    made_target: Option<MadeFile>,
}

impl Disks {
    /// Everything is open: what was made for this run loses its name, so that its
    /// space comes back however the run ends; a target that was asked for stays.
    pub(crate) fn begin(&mut self) {
        self.scratch = None;
        if let Some(made) = &mut self.made_target {
            made.keep = true;
        }
    }

    /// Checks what is given and makes what is not.
    pub(crate) fn prepare(args: &Args) -> Result<Self, String> {
        let source = given(args.source.as_deref(), "source", !args.no_guest, args)?;
        let target = given(args.target.as_deref(), "target", true, args)?;
        if let Some(disk) = &source {
            check_given("source", disk, !args.no_guest, args)?;
        }
        let source_size = match &source {
            Some(disk) => disk.size(size_of(&disk.path)?),
            None => args.size,
        };
        let source_is_blank = source.is_none() || (!args.no_guest && !args.overwrite);
        let needs_scratch = source.is_none() || target.is_none();
        let scratch = needs_scratch.then(|| scratch_directory(args)).transpose()?;
        let made_target = prepare_target(target.as_ref(), source.as_ref(), source_size, args)?;
        let make = |name: &str| {
            let directory = scratch
                .as_ref()
                .expect("there is one if a disk is made")
                .path();
            make_disk(directory, name, source_size, args)
        };
        let source = source.map_or_else(|| make("source"), Ok)?;
        let target = target.map_or_else(|| make("target"), Ok)?;
        Ok(Self {
            source,
            target,
            source_is_blank,
            scratch,
            made_target,
        })
    }
}

/// A file that goes again unless the run begins.
#[derive(Debug)]
struct MadeFile {
    path: PathBuf,
    keep: bool,
}

impl Drop for MadeFile {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn given(text: Option<&str>, name: &str, write: bool, args: &Args) -> Result<Option<Disk>, String> {
    let Some(text) = text else { return Ok(None) };
    let disk = if args.image_opts {
        Disk::parse(name, text, write, args.cache())
            .map_err(|error| format!("--{name}: {error}"))?
    } else {
        Disk::plain(name, Path::new(text), write, args.cache())
    };
    Ok(Some(disk))
}

/// A disk that exists and will be read, and written if `write`.
fn check_given(name: &str, disk: &Disk, write: bool, args: &Args) -> Result<(), String> {
    let path = disk.path.as_path();
    let kind = path
        .metadata()
        .map_err(|error| failed(name, path, &error))?
        .file_type();
    if kind.is_dir() {
        return Err(format!(
            "--{name} '{}' is a directory; give a file or a block device",
            path.display()
        ));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(format!(
            "--{name} '{}' is neither a file nor a block device",
            path.display()
        ));
    }
    let size = disk.size(size_of(path)?);
    if size == 0 || !size.is_multiple_of(512) {
        return Err(format!(
            "--{name} '{}' has {size} bytes, which is not a multiple of 512 greater than 0: disks \
             consist of sectors",
            path.display()
        ));
    }
    if write {
        OpenOptions::new().write(true).open(path).map_err(|error| {
            let hint = if name == "source" {
                "; --no-guest only reads it"
            } else {
                ""
            };
            format!(
                "--{name} '{}' cannot be written: {}{hint}",
                path.display(),
                plain(&error)
            )
        })?;
        if kind.is_block_device() {
            check_unclaimed(name, path)?;
        }
        check_blank(name, disk, size, args)?;
    } else {
        File::open(path).map_err(|error| failed(name, path, &error))?;
    }
    Ok(())
}

fn check_unclaimed(name: &str, path: &Path) -> Result<(), String> {
    if is_claimed(path) {
        return Err(format!(
            "--{name} '{}' is in use: it is mounted, or part of another device",
            path.display()
        ));
    }
    Ok(())
}

fn check_blank(name: &str, disk: &Disk, size: u64, args: &Args) -> Result<(), String> {
    if args.overwrite {
        return Ok(());
    }
    let path = disk.path.as_path();
    match first_data(path, disk.offset(), size).map_err(|error| failed(name, path, &error))? {
        None => Ok(()),
        Some(offset) => Err(format!(
            "--{name} '{}' holds data (at byte {offset}), which this would overwrite; use \
             --overwrite if it may be lost",
            path.display()
        )),
    }
}

/// The target may be made if it is a file that does not exist yet.
fn prepare_target(
    target: Option<&Disk>,
    source: Option<&Disk>,
    source_size: u64,
    args: &Args,
) -> Result<Option<MadeFile>, String> {
    let Some(target) = target else {
        return Ok(None);
    };
    let path = target.path.as_path();
    if source.is_some_and(|source| is_same(&source.path, path)) {
        return Err(format!(
            "--source and --target are the same disk, '{}'",
            path.display()
        ));
    }
    if !args.image_opts && !path.exists() {
        create(path, source_size).map_err(|error| failed("target", path, &error))?;
        return Ok(Some(MadeFile {
            path: path.to_owned(),
            keep: false,
        }));
    }
    check_given("target", target, true, args)?;
    let size = target.size(size_of(path)?);
    if size != source_size {
        let how = if size < source_size {
            "smaller"
        } else {
            "larger"
        };
        return Err(format!(
            "--target '{}' has {size} bytes and is {how} than the source with {source_size}: a raw \
             backup needs a target of the same size",
            path.display()
        ));
    }
    Ok(None)
}

/// The same file under another name, the same device by another file, or a loop
/// device and the file behind it.
fn is_same(a: &Path, b: &Path) -> bool {
    identity(a).is_some_and(|a| identity(b) == Some(a))
}

/// What tells a disk from every other: of a block device its number, of a file
/// its file system and inode; a loop device is the file behind it.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let data = path.metadata().ok()?;
    if !data.file_type().is_block_device() {
        return Some((data.dev(), data.ino()));
    }
    let number = data.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let behind = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    match std::fs::read_to_string(behind) {
        Ok(file) => identity(Path::new(file.trim_end_matches('\n'))),
        Err(_) => Some((0, number)),
    }
}

fn scratch_directory(args: &Args) -> Result<TempDir, String> {
    let directory = match &args.directory {
        Some(directory) => directory.clone(),
        // Not /tmp, which is memory on many systems: a disk belongs on a disk.
        None if Path::new("/var/tmp").is_dir() => "/var/tmp".into(),
        None => std::env::temp_dir(),
    };
    tempfile::Builder::new()
        .prefix("ringback-bench.")
        .tempdir_in(&directory)
        .map_err(|error| {
            format!(
                "cannot make a scratch directory in '{}': {}",
                directory.display(),
                plain(&error)
            )
        })
}

fn make_disk(directory: &Path, name: &str, size: u64, args: &Args) -> Result<Disk, String> {
    let path = directory.join(format!("{name}.raw"));
    create(&path, size).map_err(|error| failed(name, &path, &error))?;
    Ok(Disk::plain(name, &path, true, args.cache()))
}

fn create(path: &Path, size: u64) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_len(size)
}

/// Of a file or a block device.
fn size_of(path: &Path) -> Result<u64, String> {
    let size = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    size.map_err(|error| {
        format!(
            "cannot find the size of '{}': {}",
            path.display(),
            plain(&error)
        )
    })
}

/// Where in the file the first byte that is not zero is, among `len` from
/// `start`. Holes of a file cost nothing; everything else is read.
fn first_data(path: &Path, start: u64, len: u64) -> std::io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    let mut buf = vec![0; 1 << 20];
    let end = start.saturating_add(len);
    let mut position = start;
    while position < end {
        let signed = i64::try_from(position).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        position = match nix::unistd::lseek(&file, signed, nix::unistd::Whence::SeekData) {
            Ok(found) => u64::try_from(found).expect("lseek answers positions"),
            Err(nix::errno::Errno::ENXIO) => return Ok(None),
            // A device or file system without holes: go on where we are.
            Err(_) => position,
        };
        file.seek(SeekFrom::Start(position))?;
        let wanted = end.saturating_sub(position).min(buf.len() as u64);
        let wanted = usize::try_from(wanted).expect("no longer than the buffer");
        let count = file.read(&mut buf[..wanted])?;
        if count == 0 {
            return Ok(None);
        }
        if let Some(at) = buf[..count].iter().position(|&byte| byte != 0) {
            return Ok(Some(position + at as u64));
        }
        position += count as u64;
    }
    Ok(None)
}

fn failed(name: &str, path: &Path, error: &std::io::Error) -> String {
    format!("--{name} '{}': {}", path.display(), plain(error))
}

/// Without Rust's "(os error N)".
fn plain(error: &std::io::Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotFound, _) => "no such file or directory".into(),
        (_, Some(errno)) => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
        _ => error.to_string(),
    }
}
