//! qcow2 images: what QEMU makes of ours, and we of QEMU's.

#![expect(clippy::cast_possible_truncation, reason = "test images are small")]

mod beside;
mod random;
