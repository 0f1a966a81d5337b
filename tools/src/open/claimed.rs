//! Devices that are somebody else's.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Whether a device is mounted, or part of a RAID or a volume group: no option makes
/// it ours then. For block devices O_EXCL asks just that; a file is nobody's, and
/// whatever else is wrong is found by who opens it.
pub(crate) fn is_claimed(path: &Path) -> bool {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_EXCL);
    let opened = options.open(path);
    opened.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY))
}
