//! `qcow2`: a disk in a file that grows with what is written.
//!
//! # Map
//!
//! | module | noun |
//! | --- | --- |
//! | `header` | the first cluster of an image |
//! | `geometry` | sizes that follow from it |
//! | `entry` | the bits of a mapping |
//! | `tables` | the mapping in memory |
//! | `lookup` | from a guest offset to a run with one answer |
//! | `allocator`, `refcounts` | which host clusters are taken |
//! | `read`, `write`, `zero` | what a guest asks for |
//! | `codec` | compressed clusters |
//! | `create` | a new image |
//! | `resize`, `preallocate` | another size, and space for it |
//! | `vmstate` | bytes behind the end of the disk |
//! | `write_back` | metadata on its way into the file |
//! | `epoch` | when a freed cluster is really unused |
//! | `bitmaps`, `bitmap_directory`, `bitmap_table` | persistent bitmaps |
//! | `snapshots` | internal snapshots, to be read |
//! | `rewrite` | changing the header of an open image |
//! | `check` | damage, and what can be done about it |
//! | `reserved`, `frame` | what belongs to the image itself, and damage |
//!
//! # The way of a write to a cluster that is not there yet
//!
//! 1. The guest clusters are claimed: whoever else changes their mapping waits.
//! 2. An L2 table is made if there is none, and host clusters are taken.
//! 3. Data goes down, with what must stay around it.
//! 4. The entry is changed in memory: from here on everybody sees the data.
//! 5. A flush writes counts, then the entry (`write_back`).

mod allocator;
mod bitmap_directory;
mod bitmap_table;
mod bitmaps;
pub mod check;
mod codec;
pub mod create;
mod entry;
mod epoch;
mod frame;
mod geometry;
pub mod header;
mod image;
mod lookup;
mod open;
mod preallocate;
mod read;
mod refcounts;
mod reserved;
mod resize;
mod rewrite;
mod snapshots;
mod tables;
mod vmstate;
mod write;
mod write_back;
mod zero;

pub use bitmap_directory::{BitmapsError, NotStorable};
pub use bitmaps::{ListedBitmap, StoredBitmap};
pub use image::{Compression, DiscardRules, Qcow2};
pub use open::{OpenOptions, Qcow2Error, read_header};
pub use reserved::OverlapCheck;
pub use snapshots::{Snapshot, SnapshotSelector, SnapshotsError};
