//! Byte streams for protocols: where to connect, who connects, and a connection
//! that reads ahead and sends in batches.
//!
//! Everything that can wait, waits on a shard's ring or on a helper thread. A
//! connection belongs to the shard on which it was made.
//!
//! | module | noun |
//! | --- | --- |
//! | [`address`] | where a peer is; listening and connecting |
//! | [`connection`] | a stream of bytes to a peer |
//! | [`reader`] | what has been received and not yet taken |

#![forbid(unsafe_code)]

pub mod address;
pub mod connection;
pub mod reader;

pub use address::{Address, Listener};
pub use connection::Connection;
pub use reader::{ReadError, Reader};
