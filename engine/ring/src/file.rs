//! An open file or block device: what it is, and single operations on it.
//!
//! # What it does not do
//!
//! Each call is one operation and answers what the kernel answered, short
//! counts included. Alignment, short transfers, retries and the meaning of
//! errors are the business of the storage above.
//!
//! # Life
//!
//! A file occupies the same slot in the file table of every ring of its set.
//! Dropping the last handle empties the slots by message, and the descriptor is
//! closed when the last shard has done so: no operation can meet another file
//! under its slot.

use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;
use nix::unistd::{SysconfVar, sysconf};

use crate::buffer::{Arena, Buf};
use crate::device;
use crate::lock::{self, LockError, Locks};
use crate::op::{self, Load, Operation, Verb};
use crate::shard::Shard;
use crate::shards::{Shards, Slot};
use crate::{Errno, IoResult};

/// What a ring needs to find a file: plain numbers, valid as long as the
/// [`File`] lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileRef {
    pub(crate) slot: u32,
    pub(crate) fd: RawFd,
}

impl FileRef {
    /// A descriptor that no table of a ring holds.
    pub(crate) fn unregistered(fd: RawFd) -> Self {
        Self { slot: u32::MAX, fd }
    }
}

/// How long a simulated file takes to change its length.
const SIM_TRUNCATE_NS: u64 = 100_000;

/// How the page cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Direct where the file system can, else buffered with a warning.
    #[default]
    Auto,
    /// Direct or an error.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// How to open a file.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Where it is; in the simulation, its name there.
    pub path: PathBuf,
    /// For reading only, or for writing too.
    pub write: bool,
    /// Direct or buffered.
    pub cache: Cache,
}

/// Regular file or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file: grows when written behind its end.
    Regular,
    /// A block device: its size is fixed.
    BlockDevice,
}

/// What a file is and asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Regular file or block device.
    pub kind: Kind,
    /// Bytes when it was opened.
    pub size: u64,
    /// O_DIRECT is in force.
    pub direct: bool,
    /// Opened for writing.
    pub writable: bool,
    /// Offsets and lengths must be multiples of this many bytes; a power of
    /// two, 1 for buffered files.
    pub request_alignment: u32,
    /// Addresses too.
    pub memory_alignment: u32,
    /// Unit in which the file system keeps and caches a regular file: bytes, a
    /// power of two, at least a page.
    pub block_size: u64,
}

/// Why a file could not be opened. Texts follow QEMU where it has one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// open(2) failed.
    #[error("Could not open '{}': {}", .path.display(), crate::error_text(*.errno))]
    System {
        /// As given.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// Neither a regular file nor a block device.
    #[error("Could not open '{}': it is {what}, not a regular file or a block device", .path.display())]
    WrongKind {
        /// As given.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// It could not be made.
    #[error("Could not create '{}': {}", .path.display(), .errno.desc())]
    Create {
        /// As given.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// Direct I/O was insisted on.
    #[error("Could not open '{}': filesystem does not support O_DIRECT (try cache.direct=off)", .0.display())]
    NoDirect(PathBuf),
    /// No alignment that we know is accepted.
    #[error("Could not find working O_DIRECT alignment for '{}' (try cache.direct=off)", .0.display())]
    NoAlignment(PathBuf),
    /// A device that the kernel holds read-only.
    #[error("Could not open '{}': The device is not writable: Permission denied", .0.display())]
    ReadOnlyDevice(PathBuf),
}

enum Backing {
    Host(Arc<HostFile>),
    Sim,
}

/// Closed when the last shard has emptied its slot.
struct HostFile {
    fd: OwnedFd,
    _slot: Slot,
}

struct Inner {
    reference: FileRef,
    backing: Backing,
    geometry: Geometry,
    path: PathBuf,
    set: Shards,
    locks: Mutex<Locks>,
}

/// A handle to an open file; clones share it.
#[derive(Clone)]
pub struct File {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("path", &self.inner.path)
            .field("geometry", &self.inner.geometry)
            .finish_non_exhaustive()
    }
}

impl File {
    /// Opens a file and puts it into the table of every ring of the shard's set.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the path and the cause.
    pub async fn open(shard: &Shard, options: OpenOptions) -> Result<Self, OpenError> {
        if let Some(world) = shard.set().world() {
            let found = world.open(&options)?;
            return Ok(Self::from_sim(shard, &options.path, found));
        }
        Self::open_with(shard, options.path.clone(), move || open_host(&options)).await
    }

    /// Opens a regular file for writing, or makes an empty one of mode 0644. One
    /// that exists keeps its content: it may be in use by somebody else, which
    /// only its locks tell.
    ///
    /// # Errors
    ///
    /// [`OpenError::Create`], or what [`File::open`] answers.
    pub async fn create(shard: &Shard, path: PathBuf, cache: Cache) -> Result<Self, OpenError> {
        let options = OpenOptions {
            path: path.clone(),
            write: true,
            cache,
        };
        if let Some(world) = shard.set().world() {
            world.create_if_missing(&path);
            return Self::open(shard, options).await;
        }
        let open = move || {
            create_host(&options.path)?;
            open_host(&options)
        };
        Self::open_with(shard, path, open).await
    }

    async fn open_with(
        shard: &Shard,
        path: PathBuf,
        open: impl FnOnce() -> Result<(OwnedFd, Geometry), OpenError> + Send + 'static,
    ) -> Result<Self, OpenError> {
        let (fd, geometry) = shard.blocking(open).await?;
        let slot = shard.set().take_slot();
        let reference = FileRef {
            slot: slot.number(),
            fd: fd.as_raw_fd(),
        };
        let host = Arc::new(HostFile { fd, _slot: slot });
        shard.set().register_file(reference).await;
        let set = shard.set().clone();
        let inner = Inner {
            reference,
            backing: Backing::Host(host),
            geometry,
            path,
            set,
            locks: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    fn from_sim(shard: &Shard, path: &Path, (slot, geometry): (u32, Geometry)) -> Self {
        let inner = Inner {
            reference: FileRef { slot, fd: -1 },
            backing: Backing::Sim,
            geometry,
            path: path.to_owned(),
            set: shard.set().clone(),
            locks: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What the file is and asks for.
    pub fn geometry(&self) -> &Geometry {
        &self.inner.geometry
    }

    /// Bytes that the file takes on its file system; none in the simulation.
    pub fn allocated_bytes(&self) -> Option<u64> {
        let Backing::Host(host) = &self.inner.backing else {
            return None;
        };
        let blocks = fstat(&host.fd).ok()?.st_blocks;
        Some(u64::try_from(blocks).ok()? * 512)
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Changes QEMU's image locks on the file to exactly these. Nothing to do in
    /// the simulation.
    ///
    /// # Errors
    ///
    /// [`LockError`] if another process uses the image in a way that conflicts;
    /// the locks are as they were then.
    pub fn lock(&self, wanted: &Locks) -> Result<(), LockError> {
        let Backing::Host(host) = &self.inner.backing else {
            return Ok(());
        };
        let mut current = self.locks();
        lock::change(host.fd.as_fd(), &current, wanted)?;
        *current = wanted.clone();
        Ok(())
    }

    /// Takes the locks that another handle of the same file holds, which then has
    /// none. There is no instant at which nobody holds them. Nothing to do in the
    /// simulation.
    ///
    /// # Errors
    ///
    /// [`LockError::System`]; the other handle still has its locks then.
    pub fn take_locks_of(&self, other: &Self) -> Result<(), LockError> {
        let (Backing::Host(to), Backing::Host(from)) = (&self.inner.backing, &other.inner.backing)
        else {
            return Ok(());
        };
        let taken = std::mem::take(&mut *other.locks());
        if let Err(error) = lock::copy(to.fd.as_fd(), &taken) {
            *other.locks() = taken;
            return Err(error);
        }
        // Less than before: nobody can mind.
        let _ = lock::change(from.fd.as_fd(), &taken, &Locks::default());
        *self.locks() = taken;
        Ok(())
    }

    fn locks(&self) -> std::sync::MutexGuard<'_, Locks> {
        let locks = self.inner.locks.lock();
        locks.unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads into a window of the buffer. Answers the bytes read: fewer than
    /// asked for is possible, none means the end of the file.
    pub async fn read(
        &self,
        shard: &Shard,
        buf: Buf,
        window: Range<usize>,
        offset: u64,
    ) -> (IoResult<usize>, Buf) {
        self.transfer(shard, Verb::Read, buf, window, offset).await
    }

    /// Writes a window of the buffer. Answers the bytes written, possibly fewer
    /// than asked for.
    pub async fn write(
        &self,
        shard: &Shard,
        buf: Buf,
        window: Range<usize>,
        offset: u64,
    ) -> (IoResult<usize>, Buf) {
        self.transfer(shard, Verb::Write, buf, window, offset).await
    }

    async fn transfer(
        &self,
        shard: &Shard,
        verb: Verb,
        buf: Buf,
        window: Range<usize>,
        offset: u64,
    ) -> (IoResult<usize>, Buf) {
        let len = window.len() as u64;
        let operation = Operation {
            verb,
            file: self.inner.reference,
            offset,
            len,
        };
        let load = Load::Window(buf, window);
        let (result, load) = op::submit(shard, &operation, load).await;
        let count = result.map(|count| usize::try_from(count).expect("no more than was asked for"));
        (count, load.into_buf())
    }

    /// Makes completed writes durable.
    pub async fn sync(&self, shard: &Shard) -> IoResult<()> {
        self.range(shard, Verb::Sync, 0, 0).await
    }

    /// Makes a range read as zeroes and keeps its space; may extend the file.
    pub async fn zero_range(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<()> {
        self.range(shard, Verb::ZeroRange, offset, len).await
    }

    /// Makes a range read as zeroes and gives its space back; never extends.
    pub async fn punch_hole(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<()> {
        self.range(shard, Verb::PunchHole, offset, len).await
    }

    /// Reserves space; may extend the file.
    pub async fn allocate(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<()> {
        self.range(shard, Verb::Allocate, offset, len).await
    }

    /// Tells a block device that it may forget a range, or a file that it may
    /// give the space back.
    pub async fn discard(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<()> {
        match (&self.inner.backing, self.inner.geometry.kind) {
            (Backing::Host(host), Kind::BlockDevice) => {
                let host = Arc::clone(host);
                shard
                    .blocking(move || device::discard(host.fd.as_fd(), offset, len))
                    .await
            }
            _ => self.punch_hole(shard, offset, len).await,
        }
    }

    async fn range(&self, shard: &Shard, verb: Verb, offset: u64, len: u64) -> IoResult<()> {
        let operation = Operation {
            verb,
            file: self.inner.reference,
            offset,
            len,
        };
        op::submit(shard, &operation, Load::None).await.0.map(drop)
    }

    /// The first byte of data at or after `offset`; ENXIO if there is none.
    pub async fn seek_data(&self, shard: &Shard, offset: u64) -> IoResult<u64> {
        self.seek(shard, offset, Seek::Data).await
    }

    /// The first hole at or after `offset`; the end of the file counts as one.
    pub async fn seek_hole(&self, shard: &Shard, offset: u64) -> IoResult<u64> {
        self.seek(shard, offset, Seek::Hole).await
    }

    async fn seek(&self, shard: &Shard, offset: u64, what: Seek) -> IoResult<u64> {
        match &self.inner.backing {
            Backing::Host(host) => {
                let host = Arc::clone(host);
                shard
                    .blocking(move || seek_host(host.fd.as_fd(), offset, what))
                    .await
            }
            Backing::Sim => {
                let world = self
                    .inner
                    .set
                    .world()
                    .expect("simulated files live in a world");
                world.seek(
                    self.inner.reference.slot,
                    offset,
                    matches!(what, Seek::Data),
                )
            }
        }
    }

    /// Makes a regular file exactly this long; what is added reads as zeroes.
    /// EFBIG where the process may not have so long a file.
    pub async fn truncate(&self, shard: &Shard, size: u64) -> IoResult<()> {
        match &self.inner.backing {
            Backing::Host(host) => {
                let host = Arc::clone(host);
                shard
                    .blocking(move || {
                        check_limit(host.fd.as_fd(), size)?;
                        let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
                        nix::unistd::ftruncate(host.fd.as_fd(), size)
                    })
                    .await
            }
            Backing::Sim => {
                let world = self
                    .inner
                    .set
                    .world()
                    .expect("simulated files live in a world");
                shard.sleep_ns(SIM_TRUNCATE_NS).await;
                world.truncate(self.inner.reference.slot, size)
            }
        }
    }

    /// The size now, in bytes.
    pub async fn size(&self, shard: &Shard) -> IoResult<u64> {
        match &self.inner.backing {
            Backing::Host(host) => {
                let (host, kind) = (Arc::clone(host), self.inner.geometry.kind);
                shard
                    .blocking(move || size_host(host.fd.as_fd(), kind))
                    .await
            }
            Backing::Sim => {
                let world = self
                    .inner
                    .set
                    .world()
                    .expect("simulated files live in a world");
                Ok(world.size(self.inner.reference.slot))
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Backing::Host(host) = &self.backing {
            // Not left to the end of the descriptor: the kernel's file table, or a
            // process that is just being started, may keep that for a while.
            let held = self.locks.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = lock::change(host.fd.as_fd(), held, &Locks::default());
            self.set.unregister_file(self.reference, host);
        }
    }
}

/// What a file's slot messages keep alive; opaque to the set.
pub(crate) trait KeepAlive: Send + Sync {}

impl KeepAlive for HostFile {}

#[derive(Clone, Copy)]
enum Seek {
    Data,
    Hole,
}

fn seek_host(fd: BorrowedFd<'_>, offset: u64, what: Seek) -> IoResult<u64> {
    let whence = match what {
        Seek::Data => nix::unistd::Whence::SeekData,
        Seek::Hole => nix::unistd::Whence::SeekHole,
    };
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let found = nix::unistd::lseek(fd, offset, whence)?;
    u64::try_from(found).map_err(|_| Errno::EIO)
}

fn size_host(fd: BorrowedFd<'_>, kind: Kind) -> IoResult<u64> {
    match kind {
        Kind::BlockDevice => device::size_bytes(fd),
        Kind::Regular => {
            let size = fstat(fd)?.st_size;
            u64::try_from(size).map_err(|_| Errno::EIO)
        }
    }
}

/// What stat(2) prefers for I/O is a block of the file system or more of them.
fn block_size(fd: BorrowedFd<'_>) -> u64 {
    let preferred = fstat(fd).map_or(0, |found| found.st_blksize);
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(0);
    let known = [preferred, page].map(|size| u64::try_from(size).unwrap_or(0));
    known[0].max(known[1]).max(4096).next_power_of_two()
}

/// A file that becomes longer than the process may make one ends the process by
/// a signal. Here it is an error.
fn check_limit(fd: BorrowedFd<'_>, size: u64) -> IoResult<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    if size > limit && size > size_host(fd, Kind::Regular)? {
        return Err(Errno::EFBIG);
    }
    Ok(())
}

fn open_host(options: &OpenOptions) -> Result<(OwnedFd, Geometry), OpenError> {
    let path = &options.path;
    refuse_special(path)?;
    let (file, direct) = match options.cache {
        Cache::Buffered => (open_flags(options, 0)?, false),
        Cache::Direct | Cache::Auto => open_direct(options)?,
    };
    let kind = kind_of(path, &file)?;
    if kind == Kind::BlockDevice && options.write && device::is_read_only(file.as_fd()) == Ok(true)
    {
        return Err(OpenError::ReadOnlyDevice(path.clone()));
    }
    let size = size_host(file.as_fd(), kind).map_err(|errno| OpenError::System {
        path: path.clone(),
        errno,
    })?;
    match alignment(&file, kind, direct) {
        Some((request_alignment, memory_alignment)) => {
            let geometry = Geometry {
                kind,
                size,
                direct,
                writable: options.write,
                request_alignment,
                memory_alignment,
                block_size: block_size(file.as_fd()),
            };
            Ok((file.into(), geometry))
        }
        None if options.cache == Cache::Auto => open_host(&OpenOptions {
            cache: Cache::Buffered,
            ..options.clone()
        }),
        None => Err(OpenError::NoAlignment(path.clone())),
    }
}

/// Makes a file if there is none. Whatever else stands at that path is left to
/// who opens it.
fn create_host(path: &Path) -> Result<(), OpenError> {
    let refused = |error: &std::io::Error| OpenError::Create {
        path: path.to_owned(),
        errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
    };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(OpenError::Create {
            path: path.to_owned(),
            errno: Errno::EISDIR,
        }),
        Ok(_) => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(refused(&error)),
        Err(_) => {
            let made = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(path);
            made.map(drop).map_err(|error| refused(&error))
        }
    }
}

fn system_error(path: &Path, error: &std::io::Error) -> OpenError {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    OpenError::System {
        path: path.to_owned(),
        errno,
    }
}

/// Before open(2): opening a FIFO would wait for its other end.
fn refuse_special(path: &Path) -> Result<(), OpenError> {
    let kind = fs::metadata(path)
        .map_err(|error| system_error(path, &error))?
        .file_type();
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "something else"
    };
    Err(OpenError::WrongKind {
        path: path.to_owned(),
        what,
    })
}

fn kind_of(path: &Path, file: &fs::File) -> Result<Kind, OpenError> {
    let kind = file
        .metadata()
        .map_err(|error| system_error(path, &error))?
        .file_type();
    // Looked at again on the descriptor: the path may have changed meanwhile.
    if kind.is_block_device() {
        Ok(Kind::BlockDevice)
    } else if kind.is_file() {
        Ok(Kind::Regular)
    } else {
        Err(OpenError::WrongKind {
            path: path.to_owned(),
            what: "something else",
        })
    }
}

fn open_flags(options: &OpenOptions, flags: i32) -> Result<fs::File, OpenError> {
    fs::OpenOptions::new()
        .read(true)
        .write(options.write)
        .custom_flags(flags | libc::O_CLOEXEC)
        .open(&options.path)
        .map_err(|error| system_error(&options.path, &error))
}

/// True: O_DIRECT is in force.
fn open_direct(options: &OpenOptions) -> Result<(fs::File, bool), OpenError> {
    let refused = match open_flags(options, libc::O_DIRECT) {
        Ok(file) => return Ok((file, true)),
        Err(error) => error,
    };
    let unsupported = matches!(
        refused,
        OpenError::System {
            errno: Errno::EINVAL,
            ..
        }
    );
    if !unsupported {
        return Err(refused);
    }
    let file = open_flags(options, 0)?;
    match options.cache {
        Cache::Direct => Err(OpenError::NoDirect(options.path.clone())),
        Cache::Auto | Cache::Buffered => Ok((file, false)),
    }
}

/// Request and memory alignment, or None if direct I/O works with none that we
/// know. Asked: the device, then statx, then the file itself.
fn alignment(file: &fs::File, kind: Kind, direct: bool) -> Option<(u32, u32)> {
    if !direct {
        return Some((1, 1));
    }
    let stated = device::direct_alignment(file.as_fd());
    match (kind, stated) {
        (_, Some(stated)) if stated.offset == 0 => None,
        (_, Some(stated)) if stated.offset.is_power_of_two() => {
            Some((stated.offset, stated.memory.max(1).next_power_of_two()))
        }
        (Kind::BlockDevice, _) => {
            let size = device::logical_block_size(file.as_fd()).ok()?;
            size.is_power_of_two().then_some((size, size))
        }
        (Kind::Regular, _) => probe_alignment(file).map(|size| (size, size)),
    }
}

/// Reads a little at growing alignments; the first that is not EINVAL wins. A
/// file that takes a single byte tells nothing: 4096 serves any of those.
fn probe_alignment(file: &fs::File) -> Option<u32> {
    let arena = Arena::new(0);
    let mut buf = arena.try_take(4096)?;
    let accepted = |buf: &mut Buf, len: u32| {
        let window = &mut buf[..len as usize];
        let result = file.read_at(window, 0);
        !matches!(result, Err(error) if error.raw_os_error() == Some(libc::EINVAL))
    };
    if accepted(&mut buf, 1) {
        return Some(4096);
    }
    [512, 1024, 2048, 4096]
        .into_iter()
        .find(|&len| accepted(&mut buf, len))
}
