//! qcow2 images: what QEMU makes of ours, and we of QEMU's.

#![expect(clippy::cast_possible_truncation, reason = "test images are small")]

mod beside;
mod bitmap_crash;
mod bitmap_damage;
mod bitmaps;
mod check;
mod compressed;
mod create;
mod damage;
mod header;
mod qemu;
mod random;
mod resize;
mod resize_power;
mod session;
mod snapshots;
mod stored;
mod tools;
