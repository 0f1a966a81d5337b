//! Long operations.

pub mod backup;
pub mod control;
