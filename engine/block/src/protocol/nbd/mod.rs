//! `nbd`: a disk that a server offers over the network; and, for both sides, the
//! numbers and layouts of NBD.
//!
//! | module | noun |
//! | --- | --- |
//! | [`wire`] | numbers and layouts, which the server shares |
//! | [`error`] | why an export could not be opened |
//! | `terms` | what a server has said of its export, and which requests fit |
//! | `negotiation` | from the greeting to the export |
//! | `connect` | how a connection comes to be, also again and again |
//! | `call` | one request and its buffer, from the caller's side |
//! | `session` | requests in flight on one connection; sending |
//! | `receive` | replies |
//! | `coverage` | which bytes of a read have come |
//! | `lane` | the requests of one shard, over connections that come and go |
//! | `lanes` | which lanes a shard has |
//! | `shared` | what all shards know of a node |
//! | `client` | the disk: which lane, which pieces |
//!
//! # Connections and shards
//!
//! A connection belongs to one shard. The first one is made where the node is
//! opened, and is the *owner's*: it alone decides whether the server is there, and
//! is made again when it breaks. If the server allows several connections, another
//! shard makes one of its own with its first request; until that is up, and
//! whenever it breaks, the shard's requests go by message through the owner's.
//!
//! # Whom it trusts
//!
//! Nobody: every length and offset of a server is checked before it is used. A
//! server that breaks the rules loses its connection for good, and the node with it.

mod call;
mod client;
mod connect;
mod coverage;
pub mod error;
mod lane;
mod lanes;
mod negotiation;
mod receive;
mod session;
mod shared;
mod terms;
#[cfg(test)]
mod tests;
pub mod wire;

pub use client::{NbdProtocol, Options};
pub use error::NbdError;
pub use negotiation::Tls;
