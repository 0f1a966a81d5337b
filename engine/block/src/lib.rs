//! What a disk is: from a byte on a device up to the view of a point in time.
//!
//! Nothing here touches the kernel, the clock or a thread: all of that comes
//! from a [`ringback_ring::Shard`], so that the same code runs on a simulated
//! machine.
//!
//! # The way of a guest's write
//!
//! | # | where | what happens |
//! | --- | --- | --- |
//! | 1 | [`port`] | the gate is open; one more request in flight |
//! | 2 | [`path`] | down through the layers |
//! | 3 | [`filter::copy_before_write`] | old data saved, readers of it gone |
//! | 4 | [`mod@format`] | where the bytes live |
//! | 5 | [`storage`] | alignment, unaligned edges |
//! | 6 | [`protocol`] | short transfers, retries |
//! | 7 | `ringback_ring` | one operation on the shard's ring |
//! | 8 | [`bitmap`] | marked dirty, before the guest is told |

#![forbid(unsafe_code)]

pub mod bitmap;
pub mod child;
pub mod copy;
pub mod event;
mod exclusive;
pub mod extent;
pub mod filter;
pub mod format;
pub mod graph;
mod in_flight;
pub mod job;
pub mod metrics;
pub mod notice;
pub mod path;
pub mod planted;
pub mod port;
pub mod protocol;
pub mod register;
#[cfg(test)]
mod register_tests;
pub mod request;
pub mod resize;
pub mod span;
pub mod storage;
pub mod sync;
pub mod traffic;
pub mod units;
pub mod usage;
