//! Byte streams for protocols: where to connect, who connects and who may, and a
//! connection, in the clear or under TLS, that reads ahead and sends in batches.
//!
//! Everything that can wait, waits on a shard's ring; only the names of hosts are
//! looked up on a helper thread. A connection belongs to the shard on which it was
//! made.
//!
//! | module | noun |
//! | --- | --- |
//! | [`address`] | where a peer is; listening |
//! | [`authorization`] | who may come in, by name |
//! | `connecting` | how a connection to a peer comes to be |
//! | [`connection`] | a stream of bytes to a peer |
//! | [`reader`] | what has been received and not yet taken |
//! | [`mod@tls`] | certificates, and a session between peers that have them |

#![forbid(unsafe_code)]

pub mod address;
pub mod authorization;
mod connecting;
pub mod connection;
pub mod reader;
pub mod tls;

pub use address::{Address, Incoming, Listener};
pub use authorization::{AccessList, AccessLists, AccessRule, NamePattern};
pub use connection::Connection;
pub use reader::{ReadError, Reader};
pub use tls::{ClientCredentials, CredentialsError, Demands, ServerCredentials, TlsError};
