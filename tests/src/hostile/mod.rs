//! Input made to do harm: what must hold for any bytes at all.
//!
//! The same functions serve the fuzz targets (`tests/fuzz`), which need a nightly
//! compiler, and tests that change good input at random (`tests/hostile`). None
//! of them may panic, hang, or take memory out of proportion to its input.

mod image;
mod nbd;
mod text;

pub use image::{TEMPLATES, header, image, patched};
pub use nbd::nbd_client;
pub use text::{blkdebug_config, options};
