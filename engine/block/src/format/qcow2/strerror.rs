//! Error numbers in the words of the C library, which QEMU's messages end with.

use ringback_ring::Errno;

/// What `strerror` says about the errors that an image's contents lead to;
/// others in the words of `Errno`.
pub(super) fn strerror(errno: Errno) -> &'static str {
    match errno {
        Errno::EIO => "Input/output error",
        Errno::ENOMEM => "Cannot allocate memory",
        errno => errno.desc(),
    }
}
