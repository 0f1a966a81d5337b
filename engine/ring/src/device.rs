//! Questions to the kernel about files and block devices that neither the ring
//! nor nix can ask, and one about descriptors.

#![expect(unsafe_code, reason = "ioctl and statx take raw pointers")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

use crate::{Errno, IoResult};

mod ioctl {
    use nix::{ioctl_read_bad, ioctl_write_ptr_bad, libc, request_code_none, request_code_read};

    ioctl_read_bad!(
        logical_block_size,
        request_code_none!(0x12, 104),
        libc::c_int
    );
    ioctl_read_bad!(read_only, request_code_none!(0x12, 94), libc::c_int);
    ioctl_read_bad!(
        size_bytes,
        request_code_read!(0x12, 114, size_of::<usize>()),
        u64
    );
    ioctl_write_ptr_bad!(discard, request_code_none!(0x12, 119), [u64; 2]);
}

/// BLKSSZGET: the unit of I/O on a block device.
pub(crate) fn logical_block_size(device: BorrowedFd<'_>) -> IoResult<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the request writes one int, which `size` is.
    unsafe { ioctl::logical_block_size(device.as_raw_fd(), &raw mut size)? };
    u32::try_from(size).map_err(|_| Errno::EINVAL)
}

/// BLKROGET.
pub(crate) fn is_read_only(device: BorrowedFd<'_>) -> IoResult<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: the request writes one int, which `flag` is.
    unsafe { ioctl::read_only(device.as_raw_fd(), &raw mut flag)? };
    Ok(flag != 0)
}

/// BLKGETSIZE64.
pub(crate) fn size_bytes(device: BorrowedFd<'_>) -> IoResult<u64> {
    let mut size = 0;
    // SAFETY: the request writes one 64-bit number, which `size` is.
    unsafe { ioctl::size_bytes(device.as_raw_fd(), &raw mut size)? };
    Ok(size)
}

/// BLKDISCARD. Blocks until the device has answered.
pub(crate) fn discard(device: BorrowedFd<'_>, offset: u64, len: u64) -> IoResult<()> {
    let range = [offset, len];
    // SAFETY: the request reads two 64-bit numbers, which `range` holds.
    unsafe { ioctl::discard(device.as_raw_fd(), &raw const range)? };
    Ok(())
}

/// What direct I/O on a file asks for, as statx tells (Linux 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectAlignment {
    pub(crate) memory: u32,
    /// Zero: the file cannot be read or written directly.
    pub(crate) offset: u32,
}

/// None where the kernel or the file system does not say.
pub(crate) fn direct_alignment(file: BorrowedFd<'_>) -> Option<DirectAlignment> {
    let mut answer = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH makes stand
    // for the descriptor; the kernel writes one statx, for which there is room.
    let status = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if status != 0 {
        return None;
    }
    // SAFETY: all-zero bytes are a valid statx, and the kernel filled it.
    let answer = unsafe { answer.assume_init() };
    (answer.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DirectAlignment {
        memory: answer.stx_dio_mem_align,
        offset: answer.stx_dio_offset_align,
    })
}

/// Takes over a copy of a descriptor that the process was started with.
///
/// # Errors
///
/// EBADF if there is none of this number.
pub fn inherited_descriptor(number: i32) -> IoResult<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC reads no memory, and a number that is no
    // descriptor is answered with EBADF.
    let copy = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
