//! `--nbd-server` and `nbd-server-start`: where NBD clients come in.

use super::address::SocketAddress;
use super::error::{ArgumentError, Result};
use crate::keyval;
use crate::visit::Reader;

/// How many clients there may be if nobody says.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 100;
/// How long a client may take to choose an export if nobody says, in seconds.
pub const DEFAULT_HANDSHAKE_SECONDS: u32 = 10;

/// A server for NBD exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdServer {
    /// Where it listens.
    pub address: SocketAddress,
    /// Seconds until a client must have chosen an export; 0 is no limit.
    pub handshake_max_seconds: u32,
    /// Name of the object with the credentials; with one, TLS is mandatory.
    pub tls_creds: Option<String>,
    /// Name of the object that knows which clients may come.
    pub tls_authz: Option<String>,
    /// How many clients there may be at the same time; 0 is no limit.
    pub max_connections: u32,
}

impl NbdServer {
    /// Reads and checks the argument of `--nbd-server`, in either form.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn parse(text: &str) -> Result<Self> {
        let options = keyval::parse(text, None)?;
        let server = Self::read(Reader::of(&options), SocketAddress::read)?;
        server.check()?;
        // Nobody has given descriptors names as yet.
        server.address.descriptor()?;
        Ok(server)
    }

    /// Reads and checks the arguments of `nbd-server-start`, whose address has the older form.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn from_arguments(reader: Reader<'_>) -> Result<Self> {
        let server = Self::read(reader, SocketAddress::read_legacy)?;
        server.check()?;
        Ok(server)
    }

    fn read<'a>(
        mut reader: Reader<'a>,
        address: impl FnOnce(Reader<'a>) -> Result<SocketAddress>,
    ) -> Result<Self> {
        let seconds = reader.unsigned_32("handshake-max-seconds")?;
        let tls_creds = reader.text("tls-creds")?;
        let tls_authz = reader.text("tls-authz")?;
        let connections = reader.unsigned_32("max-connections")?;
        let address = address(reader.required("addr", Reader::object)?)?;
        reader.finish()?;
        Ok(Self {
            address,
            handshake_max_seconds: seconds.unwrap_or(DEFAULT_HANDSHAKE_SECONDS),
            tls_creds,
            tls_authz,
            max_connections: connections.unwrap_or(DEFAULT_MAX_CONNECTIONS),
        })
    }

    fn check(&self) -> Result<()> {
        if self.tls_authz.is_some() && self.tls_creds.is_none() {
            return Err(ArgumentError::ServerAuthzWithoutCreds);
        }
        self.address.check()
    }
}
