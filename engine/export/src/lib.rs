//! Offers disks to the outside.
//!
//! An export is a user of a node like any other: it sends its requests through a
//! port of the shard that serves the client, and knows nothing of what lies below.

#![forbid(unsafe_code)]

pub mod nbd;
