//! qcow2 images: what QEMU makes of ours, and we of QEMU's.

#![expect(clippy::cast_possible_truncation, reason = "test images are small")]

mod create;
mod random;
mod resize;
mod resize_power;
