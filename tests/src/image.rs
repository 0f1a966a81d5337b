//! Raw images: making, changing, comparing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use crate::process::{Finished, run};

/// Bytes of one KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes of one MiB.
pub const MIB: u64 = 1 << 20;

/// A file of zeroes that takes no space. What was there is lost.
///
/// # Panics
///
/// It cannot be made.
pub fn blank(path: &Path, bytes: u64) {
    let file = File::create(path);
    let made = file.and_then(|file| file.set_len(bytes));
    made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Writes into a file or device that exists.
///
/// # Panics
///
/// That fails.
pub fn write_at(path: &Path, offset: u64, data: &[u8]) {
    let file = OpenOptions::new().write(true).open(path);
    let written = file.and_then(|file| {
        file.write_all_at(data, offset)?;
        file.sync_all()
    });
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Bytes without a pattern, and never zero; the same for the same seed.
pub fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3] | 1
    };
    (0..bytes).map(|_| next()).collect()
}

/// All that a file or device holds.
///
/// # Panics
///
/// It cannot be read.
pub fn content(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Bytes that a file takes on its disk.
///
/// # Panics
///
/// There is no such file.
pub fn allocated(path: &Path) -> u64 {
    let data = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    data.blocks() * 512
}

/// Whether QEMU finds two raw images equal.
///
/// # Panics
///
/// It finds a difference, or cannot tell.
#[track_caller]
pub fn assert_identical(a: &Path, b: &Path) -> Finished {
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "raw"]);
    run(compare.arg(a).arg(b)).succeeded()
}
