//! Image locks which QEMU and ringback respect in each other.
//!
//! Each permission has two bytes in the image file: one says that somebody
//! holds it, one that somebody does not share it. Locks on them are shared ones
//! of the open file description; a conflict is found by asking whether an
//! exclusive lock on the opposite byte would be refused. (The byte numbers are
//! QEMU's; they lie inside the file but lock no data.)

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Errno, IoResult};

const HELD_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// What a user of an image does, or does not let others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Reads and expects what it reads to make sense.
    ConsistentRead,
    /// Writes.
    Write,
    /// Writes, but never changes what a reader sees.
    WriteUnchanged,
    /// Changes the size.
    Resize,
}

impl Permission {
    /// Every permission, by its byte number.
    pub const ALL: [Self; 4] = [
        Self::ConsistentRead,
        Self::Write,
        Self::WriteUnchanged,
        Self::Resize,
    ];

    fn number(self) -> i64 {
        self as i64
    }

    /// QEMU's word for it in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::WriteUnchanged => "write unchanged",
            Self::Resize => "resize",
        }
    }
}

/// Why an image could not be locked. The text is QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Another process does not share what we want to do.
    #[error("Failed to get \"{}\" lock", .0.name())]
    NotShared(Permission),
    /// Another process does what we do not want to share.
    #[error("Failed to get shared \"{}\" lock", .0.name())]
    InUse(Permission),
    /// The lock call itself failed.
    #[error("Failed to lock byte {}: {}", .0, crate::error_text(*.1))]
    System(i64, Errno),
}

/// What is locked on one open file description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locks {
    /// What we do.
    pub held: Vec<Permission>,
    /// What others must not do.
    pub unshared: Vec<Permission>,
}

impl Locks {
    fn bytes(&self) -> BTreeSet<i64> {
        let held = self
            .held
            .iter()
            .map(|permission| HELD_BASE + permission.number());
        let unshared = self
            .unshared
            .iter()
            .map(|permission| UNSHARED_BASE + permission.number());
        held.chain(unshared).collect()
    }
}

/// Changes the locks of a file from one set to another. They last as long as
/// the open file description.
///
/// # Errors
///
/// [`LockError`]; the old locks are in force then.
pub fn change(file: BorrowedFd<'_>, old: &Locks, new: &Locks) -> Result<(), LockError> {
    let (old_bytes, new_bytes) = (old.bytes(), new.bytes());
    // All new locks first, then the tests: of two racing processes at least
    // one sees the other.
    let result = take(file, &new_bytes - &old_bytes).and_then(|()| test(file, new));
    let surplus = match result {
        Ok(()) => &old_bytes - &new_bytes,
        Err(_) => &new_bytes - &old_bytes,
    };
    for byte in surplus {
        // Unlocking what is not locked is no error, and there is nothing to do
        // about any other.
        let _ = set(file, byte, libc::F_UNLCK);
    }
    result
}

/// Puts locks on a file that another open file description holds already, which
/// keeps everybody else out.
///
/// # Errors
///
/// [`LockError::System`]; the file has no locks then.
pub(crate) fn copy(file: BorrowedFd<'_>, locks: &Locks) -> Result<(), LockError> {
    let taken = take(file, locks.bytes());
    if taken.is_err() {
        for byte in locks.bytes() {
            let _ = set(file, byte, libc::F_UNLCK);
        }
    }
    taken
}

fn take(file: BorrowedFd<'_>, bytes: BTreeSet<i64>) -> Result<(), LockError> {
    for byte in bytes {
        set(file, byte, libc::F_RDLCK).map_err(|errno| LockError::System(byte, errno))?;
    }
    Ok(())
}

fn test(file: BorrowedFd<'_>, locks: &Locks) -> Result<(), LockError> {
    for &permission in &locks.held {
        let byte = UNSHARED_BASE + permission.number();
        if is_taken(file, byte).map_err(|errno| LockError::System(byte, errno))? {
            return Err(LockError::NotShared(permission));
        }
    }
    for &permission in &locks.unshared {
        let byte = HELD_BASE + permission.number();
        if is_taken(file, byte).map_err(|errno| LockError::System(byte, errno))? {
            return Err(LockError::InUse(permission));
        }
    }
    Ok(())
}

fn range(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("lock types are small numbers"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("a small number"),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(file: BorrowedFd<'_>, byte: i64, kind: i32) -> IoResult<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(byte, kind))).map(drop)
}

/// Whether another open file description has a lock on the byte.
fn is_taken(file: BorrowedFd<'_>, byte: i64) -> IoResult<bool> {
    let mut answer = range(byte, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer))?;
    Ok(i32::from(answer.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn open(path: &std::path::Path) -> std::fs::File {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .expect("open")
    }

    fn lock(
        file: &std::fs::File,
        held: &[Permission],
        unshared: &[Permission],
    ) -> Result<(), LockError> {
        let new = Locks {
            held: held.to_vec(),
            unshared: unshared.to_vec(),
        };
        change(file.as_fd(), &Locks::default(), &new)
    }

    #[test]
    fn two_writers_that_share_coexist() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        let (a, b) = (open(image.path()), open(image.path()));
        let held = [Permission::ConsistentRead, Permission::Write];
        lock(&a, &held, &[Permission::Resize]).expect("the first");
        lock(&b, &held, &[Permission::Resize]).expect("the second");
    }

    #[test]
    fn conflicts_are_named_and_leave_no_lock() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        let (a, b, c) = (open(image.path()), open(image.path()), open(image.path()));
        lock(&a, &[Permission::Write], &[]).expect("the writer");
        let refused = lock(&b, &[Permission::ConsistentRead], &[Permission::Write]);
        assert_eq!(refused, Err(LockError::InUse(Permission::Write)));
        // `b` holds nothing: a second sharing writer gets in.
        lock(&c, &[Permission::Write], &[]).expect("another writer");
        drop((a, c));
        lock(&b, &[Permission::ConsistentRead], &[Permission::Write]).expect("alone now");
        let d = open(image.path());
        let refused = lock(&d, &[Permission::Write], &[]);
        assert_eq!(refused, Err(LockError::NotShared(Permission::Write)));
        assert_eq!(
            refused.expect_err("refused").to_string(),
            "Failed to get \"write\" lock"
        );
    }

    #[test]
    fn locks_are_handed_on_without_an_instant_in_between() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        let (old, new, other) = (open(image.path()), open(image.path()), open(image.path()));
        let writer = Locks {
            held: vec![Permission::Write],
            unshared: vec![Permission::Write],
        };
        change(old.as_fd(), &Locks::default(), &writer).expect("the first");
        copy(new.as_fd(), &writer).expect("handed on");
        change(old.as_fd(), &writer, &Locks::default()).expect("let go");
        lock(&other, &[Permission::Write], &[]).expect_err("still held");
        change(new.as_fd(), &writer, &writer).expect("it does not meet itself");
        drop(new);
        lock(&other, &[Permission::Write], &[]).expect("free");
    }

    #[test]
    fn a_refused_change_keeps_the_old_locks_and_a_granted_one_drops_them() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        let (a, b) = (open(image.path()), open(image.path()));
        let reader = Locks {
            held: vec![Permission::ConsistentRead],
            unshared: vec![],
        };
        let writer = Locks {
            held: vec![Permission::Write],
            unshared: vec![],
        };
        let alone = Locks {
            held: vec![],
            unshared: vec![Permission::Write],
        };
        change(a.as_fd(), &Locks::default(), &reader).expect("a reader");
        lock(&b, &[Permission::Write], &[]).expect("a writer");
        change(a.as_fd(), &reader, &alone).expect_err("there is a writer");
        assert_eq!(is_taken(b.as_fd(), HELD_BASE), Ok(true), "still a reader");
        change(a.as_fd(), &reader, &writer).expect("they share");
        assert_eq!(
            is_taken(b.as_fd(), HELD_BASE),
            Ok(false),
            "no longer a reader"
        );
    }
}
