//! Block-copy: moving what a copy-before-write filter has still to save.

pub mod chunk;
pub mod control;
mod flushes;
pub mod governor;
#[cfg(test)]
mod governor_tests;
pub mod guest;
mod measure;
pub(crate) mod pace;
mod pauses;
pub mod pool;
pub mod rate;

/// How far a copy is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Copied, by a job or for guests.
    pub offset: u64,
    /// That plus what remains.
    pub len: u64,
}
