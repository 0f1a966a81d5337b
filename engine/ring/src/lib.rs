//! The kernel side of ringback.
//!
//! A *shard* is one pinned thread with its own ring, executor, timers and
//! buffers; tasks never leave it. Everything above this crate asks a [`Shard`]
//! for I/O, for time and for memory, and therefore cannot tell whether it runs
//! on the kernel's io_uring or in the deterministic simulation of [`sim`].
//!
//! # Map
//!
//! | module | noun |
//! | --- | --- |
//! | [`shard`] | one thread's executor and ring, seen by the tasks on it |
//! | [`shards`] | the set of all shards of a process: start, messages, stop |
//! | `task` | task slab, ready queue, wakers |
//! | `op` | one operation in flight, and who owns its buffer |
//! | `driver` | the two rings, `uring` and `sim`, behind one enum |
//! | [`mod@file`] | an open file or block device and what it can do |
//! | [`socket`] | a connection; waiting for one |
//! | [`lock`] | image locks which QEMU understands |
//! | [`buffer`] | aligned, registered memory |
//! | [`wait_queue`] | tasks that wait for each other, on one shard or on several |
//!
//! # Unsafe
//!
//! Only `uring`, `buffer`, `task` and `device` may hold unsafe code.

#![deny(unsafe_code)]

pub mod buffer;
mod device;
mod driver;
pub mod file;
pub mod lock;
mod mailbox;
mod op;
mod polling;
pub mod probe;
pub mod remote;
pub mod shard;
pub mod shards;
pub mod sim;
pub mod socket;
mod task;
mod timer;
mod uring;
pub mod wait_queue;

pub use buffer::Buf;
pub use device::inherited_descriptor;
pub use file::File;
pub use nix::errno::Errno;
pub use shard::Shard;
pub use shards::Shards;
pub use socket::Socket;
pub use wait_queue::{LocalQueue, WaitQueue};

/// What every I/O operation answers: a value, or the errno that a guest or a
/// client would be told.
pub type IoResult<T> = Result<T, Errno>;

/// The C library's text of an error, which users know from every other program.
pub fn error_text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_texts_of_the_c_library() {
        assert_eq!(error_text(Errno::EIO), "Input/output error");
        assert_eq!(error_text(Errno::EOPNOTSUPP), "Operation not supported");
        assert_eq!(error_text(Errno::EPERM), "Operation not permitted");
    }
}
