//! `tls-creds-x509`, `tls-creds-psk` and `tls-creds-anon`.

use crate::command_line::error::{ArgumentError, Result};
use crate::visit::{Reader, words};

/// Credentials for TLS. What the files hold is looked at when the object is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsCredsOptions {
    /// The kind and what is its own.
    pub kind: TlsCredsKind,
    /// Whether the other side must show who it is.
    pub verify_peer: bool,
    /// The directory with the files.
    pub dir: Option<String>,
    /// Which side we are.
    pub endpoint: Endpoint,
    /// Algorithms, in the notation of GnuTLS.
    pub priority: Option<String>,
}

/// A kind of credentials with its own options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsCredsKind {
    /// Certificates.
    X509 {
        /// Whether certificates are checked at the start.
        sanity_check: bool,
        /// The secret that opens the key's file.
        passwordid: Option<String>,
    },
    /// Keys that both sides have.
    Psk {
        /// Whose key a client takes.
        username: Option<String>,
    },
    /// None at all: secrecy without knowing from whom.
    Anon,
}

words! {
    /// Which side of a connection.
    pub enum Endpoint {
        /// Who connects.
        Client = "client",
        /// Who listens.
        Server = "server",
    }
}

impl TlsCredsOptions {
    /// What all kinds have; the kind is to be filled in.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            kind: TlsCredsKind::Anon,
            verify_peer: reader.boolean("verify-peer")?.unwrap_or(true),
            dir: reader.text("dir")?,
            endpoint: reader.word("endpoint")?.unwrap_or_default(),
            priority: reader.text("priority")?,
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.dir.as_ref().is_some_and(|dir| dir.contains('\0')) {
            return Err(ArgumentError::Nul { path: "dir" });
        }
        match &self.kind {
            TlsCredsKind::Anon => Ok(()),
            TlsCredsKind::Psk { username: Some(_) } if self.endpoint == Endpoint::Server => {
                Err(ArgumentError::ServerUsername)
            }
            _ if self.dir.is_none() => Err(ArgumentError::NoDirectory),
            _ => Ok(()),
        }
    }
}

impl TlsCredsKind {
    pub(super) fn read_x509(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self::X509 {
            sanity_check: reader.boolean("sanity-check")?.unwrap_or(true),
            passwordid: reader.text("passwordid")?,
        })
    }

    pub(super) fn read_psk(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self::Psk {
            username: reader.text("username")?,
        })
    }
}
