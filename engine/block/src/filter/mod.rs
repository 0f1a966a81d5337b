//! Filters: nodes that observe, delay, copy or veto what passes through them.

pub mod blkdebug;
pub mod copy_before_write;
pub mod copy_on_read;
pub mod snapshot_access;
pub mod throttle;
