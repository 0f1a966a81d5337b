//! TLS with certificates, 1.2 or later, under a connection.
//!
//! | module | noun |
//! | --- | --- |
//! | [`credentials`] | a directory with certificates and keys |
//! | `stream` | a TLS session over a socket of the ring |
//! | [`name`] | whom a certificate is about |
//!
//! A connection starts in the clear. When both sides have agreed upon TLS, one of
//! [`Connection::start_tls_server`] and [`Connection::start_tls_client`] changes
//! it for good; whatever was received ahead then belongs to TLS.
//!
//! [`Connection::start_tls_server`]: crate::Connection::start_tls_server
//! [`Connection::start_tls_client`]: crate::Connection::start_tls_client

use ringback_ring::Errno;
use rustls::CertificateError;

pub mod credentials;
pub mod name;
pub(crate) mod stream;
#[cfg(test)]
mod tests;

pub use credentials::{ClientCredentials, CredentialsError, Demands, ServerCredentials};

/// Why there is no TLS. The connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The connection has failed.
    #[error("{}", ringback_ring::error_text(*.0))]
    Io(Errno),
    /// The peer has closed it.
    #[error("the peer has closed the connection during the TLS handshake")]
    Ended,
    /// The peer shows no certificate, and shall.
    #[error("Verify failed: No certificate was found.")]
    NoCertificate,
    /// The server's certificate is about somebody else.
    #[error("Certificate does not match the hostname {name}")]
    WrongName {
        /// Whom it should be about.
        name: String,
    },
    /// A server is to be verified, and nobody knows what it is called.
    #[error("No hostname for certificate validation")]
    NoName,
    /// Neither a name of the DNS nor a number of IP.
    #[error("'{name}' is no hostname that a certificate could be about")]
    BadName {
        /// What it is.
        name: String,
    },
    /// One side does not accept what the other sends.
    #[error("TLS handshake failed: {0}")]
    Refused(String),
}

impl TlsError {
    /// `name` is what a server should be called.
    fn of(error: &rustls::Error, name: Option<&str>) -> Self {
        match (error, name) {
            (rustls::Error::NoCertificatesPresented, _) => Self::NoCertificate,
            (
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ),
                Some(name),
            ) => Self::WrongName { name: name.into() },
            _ => Self::Refused(error.to_string()),
        }
    }
}

impl From<Errno> for TlsError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno)
    }
}
