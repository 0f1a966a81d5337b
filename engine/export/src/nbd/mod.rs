//! The NBD server.
//!
//! | module | noun |
//! | --- | --- |
//! | [`export`] | a disk under a name, with what clients may ask about it |
//! | `exports` | the disks that can be chosen now |
//! | [`server`] | what listens, and how many clients there may be |
//! | [`tls`] | TLS, and who may come in |
//! | `negotiation` | from the greeting to the choice of an export |
//! | `option` | what one step of that carries, and its answer |
//! | `context` | what can be asked about ranges of a disk |
//! | `session` | a client's requests, many at once |
//! | `request` | what one request does |
//! | `status` | the extents of a range |
//! | `reply` | what is sent back, in batches |
//!
//! # One client
//!
//! Each connection lives on one shard, chosen in turn. One task receives: it reads
//! ahead, so that many requests come by one operation, and starts a task for each.
//! They end in any order and leave their replies in an outbox; one task sends
//! whatever is there by one operation, bytes of disks straight from the buffer
//! into which they were read.
//!
//! What a client can make the server hold is bounded: requests and their bytes
//! count until their replies are gone, and beyond the bound nothing more is
//! received. A client who does not read therefore holds back nobody but itself.

mod context;
pub mod export;
mod exports;
mod negotiation;
mod option;
mod reply;
mod request;
pub mod server;
mod session;
mod status;
pub mod tls;

pub use export::{Export, ExportedBitmap};
pub use server::{Options, Server};
pub use tls::{Authorization, Tls};
