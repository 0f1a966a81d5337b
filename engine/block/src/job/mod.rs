//! Long operations.

pub mod backup;
