//! A directory with certificates and keys.
//!
//! The files have the names that QEMU gives them: `ca-cert.pem` (whom we trust),
//! `ca-crl.pem` (what of theirs is void; optional), and for each side its
//! certificate, with those between it and the authority behind it, and its key:
//! `server-cert.pem` and `server-key.pem`, `client-cert.pem` and `client-key.pem`.
//! A client may have none of its own. A `dh-params.pem` is not looked at.
//!
//! All of them are read once. Keys must not be encrypted.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::TlsError;
use anyone::Anyone;

mod anyone;
mod sanity;

/// Stands for a server whose name is unknown and not asked for. A number is never
/// sent to a server as its name.
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// No file is longer, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// What is asked of the peer and of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demands {
    /// The peer must show a certificate of an authority that we trust; a client
    /// expects in it the name by which it calls the server.
    pub verify_peer: bool,
    /// Our own certificates must be good when they are loaded.
    pub sanity_check: bool,
}

/// Why a directory is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// A file that cannot be read.
    #[error("Unable to access credentials {}: {reason}", path.display())]
    Access {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        reason: String,
    },
    /// No certificates of authorities.
    #[error("Unable to import CA certificate list {}: {reason}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No list of what is void.
    #[error("Cannot load CRL '{}': {reason}", path.display())]
    Revocations {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No certificate of our own.
    #[error("Unable to import {side} certificate {}: {reason}", path.display())]
    Certificate {
        /// `server` or `client`.
        side: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No key, or one for another certificate.
    #[error(
        "Cannot load certificate '{}' & key '{}': {reason}",
        certificate.display(),
        key.display()
    )]
    Key {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What is wrong with the key.
        reason: String,
    },
    /// A certificate before or after its time.
    #[error("The {side} certificate {} {}", path.display(), if *is_over {
        "has expired"
    } else {
        "is not yet active"
    })]
    Time {
        /// `CA`, `server` or `client`.
        side: &'static str,
        /// The file.
        path: PathBuf,
        /// After, not before.
        is_over: bool,
    },
    /// The certificate of nobody who could issue others.
    #[error("The certificate {} basic constraints do not show a CA", path.display())]
    NotAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The authority would not know us.
    #[error(
        "Our own certificate {} failed validation against {}: {reason}",
        path.display(),
        authorities.display()
    )]
    Invalid {
        /// Our certificate's file.
        path: PathBuf,
        /// That of the authorities.
        authorities: PathBuf,
        /// What is wrong with ours.
        reason: String,
    },
    /// What the files do not explain.
    #[error("No use of the credentials in {}: {reason}", path.display())]
    Other {
        /// The directory.
        path: PathBuf,
        /// What TLS says about them.
        reason: String,
    },
}

/// What a server shows, and whom it believes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerCredentials {
    config: Arc<ServerConfig>,
    verifies: bool,
}

/// What a client shows, and whom it believes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientCredentials {
    config: Arc<ClientConfig>,
    verifies: bool,
}

impl ServerCredentials {
    /// Reads a directory. Blocks.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] names the file.
    pub fn load(directory: &Path, demands: Demands) -> Result<Self, CredentialsError> {
        let files = Files::new(directory, "server");
        let authorities = files.authorities(demands)?;
        let revocations = files.revocations()?;
        let (chain, key) = files.own(&authorities, demands)?;
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| files.other(&error))?;
        let builder = if demands.verify_peer {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
                    .with_crls(revocations)
                    // Of an authority between, for which there is no list.
                    .allow_unknown_revocation_status()
                    .build()
                    .map_err(|error| files.bad_revocations(&error))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| files.bad_key(key_reason(&error)))?;
        // A client is looked at afresh each time: he may be void by then.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            verifies: demands.verify_peer,
        })
    }

    /// Whether a client must show who it is.
    pub fn verifies(&self) -> bool {
        self.verifies
    }

    pub(crate) fn session(&self) -> Result<rustls::Connection, TlsError> {
        let session = ServerConnection::new(Arc::clone(&self.config));
        let session = session.map_err(|error| TlsError::of(&error, None))?;
        Ok(session.into())
    }
}

impl ClientCredentials {
    /// Reads a directory. Blocks.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] names the file.
    pub fn load(directory: &Path, demands: Demands) -> Result<Self, CredentialsError> {
        let files = Files::new(directory, "client");
        let authorities = files.authorities(demands)?;
        let revocations = files.revocations()?;
        // With one and without the other there is nothing that could be shown.
        let has_own = files.path("client-cert.pem").exists() && files.key().exists();
        let own = match has_own {
            true => Some(files.own(&authorities, demands)?),
            false => None,
        };
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| files.other(&error))?;
        let builder = if demands.verify_peer {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(authorities), provider)
                    .with_crls(revocations)
                    .allow_unknown_revocation_status()
                    .build()
                    .map_err(|error| files.bad_revocations(&error))?;
            builder.with_webpki_verifier(verifier)
        } else {
            let anyone = Arc::new(Anyone::new(&provider));
            builder.dangerous().with_custom_certificate_verifier(anyone)
        };
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| files.bad_key(key_reason(&error)))?,
        };
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            verifies: demands.verify_peer,
        })
    }

    /// With a server that is called so.
    pub(crate) fn session(&self, host: Option<&str>) -> Result<rustls::Connection, TlsError> {
        let name = match host {
            Some(host) => {
                let name = ServerName::try_from(host.to_owned());
                name.map_err(|_| TlsError::BadName { name: host.into() })?
            }
            None if self.verifies => return Err(TlsError::NoName),
            None => ServerName::IpAddress(NOBODY.into()),
        };
        let session = ClientConnection::new(Arc::clone(&self.config), name);
        let session = session.map_err(|error| TlsError::of(&error, host))?;
        Ok(session.into())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn key_reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "The certificate and the given key do not match.".into()
        }
        other => other.to_string(),
    }
}

/// A certificate with those that lead to its authority, and its key.
type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The files of one side in a directory.
struct Files<'a> {
    directory: &'a Path,
    side: &'static str,
}

impl<'a> Files<'a> {
    fn new(directory: &'a Path, side: &'static str) -> Self {
        Self { directory, side }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn authority(&self) -> PathBuf {
        self.path("ca-cert.pem")
    }

    fn certificate(&self) -> PathBuf {
        self.path(&format!("{}-cert.pem", self.side))
    }

    fn key(&self) -> PathBuf {
        self.path(&format!("{}-key.pem", self.side))
    }

    fn bad_key(&self, reason: impl Into<String>) -> CredentialsError {
        CredentialsError::Key {
            certificate: self.certificate(),
            key: self.key(),
            reason: reason.into(),
        }
    }

    fn bad_revocations(&self, reason: &dyn std::fmt::Display) -> CredentialsError {
        CredentialsError::Revocations {
            path: self.path("ca-crl.pem"),
            reason: reason.to_string(),
        }
    }

    fn other(&self, error: &rustls::Error) -> CredentialsError {
        CredentialsError::Other {
            path: self.directory.to_owned(),
            reason: error.to_string(),
        }
    }

    fn authorities(&self, demands: Demands) -> Result<RootCertStore, CredentialsError> {
        let path = self.authority();
        let bad = |reason: String| CredentialsError::Authorities {
            path: path.clone(),
            reason,
        };
        let bytes = read(&path)?;
        let all = certificates(&bytes).map_err(bad)?;
        let mut store = RootCertStore::empty();
        for authority in all {
            if demands.sanity_check {
                sanity::check_authority(&path, &authority)?;
            }
            store
                .add(authority)
                .map_err(|error| bad(error.to_string()))?;
        }
        Ok(store)
    }

    fn revocations(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, CredentialsError> {
        let path = self.path("ca-crl.pem");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let bytes = read(&path)?;
        let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
        let all = all.map_err(|error| self.bad_revocations(&error))?;
        if all.is_empty() {
            return Err(self.bad_revocations(&"no list in PEM is in it"));
        }
        Ok(all)
    }

    fn own(&self, authorities: &RootCertStore, demands: Demands) -> Result<Own, CredentialsError> {
        let path = self.certificate();
        let bytes = read(&path)?;
        let key = read(&self.key())?;
        let chain = certificates(&bytes).map_err(|reason| CredentialsError::Certificate {
            side: self.side,
            path: path.clone(),
            reason,
        })?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|_| self.bad_key("no key in PEM is in it, or it is encrypted"))?;
        if demands.sanity_check {
            sanity::check_own(self, &chain, authorities)?;
        }
        Ok((chain, key))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    use std::io::Read;
    let fail = |reason: String| CredentialsError::Access {
        path: path.to_owned(),
        reason,
    };
    let told = |error: std::io::Error| {
        let errno = error.raw_os_error().map(nix::errno::Errno::from_raw);
        fail(errno.map_or_else(|| error.to_string(), ringback_ring::error_text))
    };
    let file = std::fs::File::open(path).map_err(told)?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(told)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(fail(format!("more than {FILE_MAX} bytes")));
    }
    Ok(bytes)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| error.to_string())?;
    if all.is_empty() {
        return Err("no certificate in PEM is in it".into());
    }
    Ok(all)
}
