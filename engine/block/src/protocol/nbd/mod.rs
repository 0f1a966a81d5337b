//! NBD, as far as both sides share it.

pub mod wire;
