//! Making a file to keep a disk in.

use std::path::PathBuf;

use ringback_ring::file::{Cache, Kind, OpenError};
use ringback_ring::lock::{LockError, Locks, Permission};
use ringback_ring::{Errno, File, Shard, error_text};

use super::{FileProtocol, Protocol};
use crate::request::Preallocation;
use crate::resize::ResizeError;
use crate::storage::Storage;

/// Why a file could not be made. The texts are QEMU's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CreateFileError {
    /// It could not be made or opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another process uses it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It did not become as long as it should.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// What was written may not be durable.
    #[error("Could not flush file to disk: {}", error_text(*.0))]
    Flush(Errno),
}

/// Makes a regular file of `size` bytes that reads as zeroes. One that exists
/// is emptied first, unless another process uses it; so after an error it may
/// be empty.
///
/// # Errors
///
/// [`CreateFileError`].
pub async fn create_file(
    shard: &Shard,
    path: PathBuf,
    size: u64,
    preallocation: Preallocation,
) -> Result<(), CreateFileError> {
    let file = File::create(shard, path, Cache::Buffered).await?;
    // Locks last as long as the file is open.
    file.lock(&Locks {
        held: vec![Permission::Write, Permission::Resize],
        unshared: vec![Permission::Resize],
    })?;
    if file.geometry().kind != Kind::Regular {
        return Err(ResizeError::File(Errno::EINVAL).into());
    }
    let protocol = Protocol::File(FileProtocol::new(file, false));
    let storage = Storage::new(protocol, shard.set().count());
    storage.truncate(shard, 0, Preallocation::Off).await?;
    storage.truncate(shard, size, preallocation).await?;
    if preallocation == Preallocation::Off {
        return Ok(());
    }
    storage.flush(shard).await.map_err(CreateFileError::Flush)
}
