//! Block-copy: moving what a copy-before-write filter has still to save.

pub mod chunk;
pub mod pool;
pub mod rate;
