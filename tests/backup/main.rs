//! `ringback backup` as a user meets it, with QEMU's programs as the judge of
//! what it makes.

mod devices;
mod full;
mod harness;
mod incremental;
mod nbd;
mod refusals;
mod resume;
mod server_bitmap;
mod verify;
