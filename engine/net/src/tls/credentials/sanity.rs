//! Whether our own certificates are good for anything: better told when they are
//! loaded than by every peer.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, Error, RootCertStore};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::BasicConstraints;

use super::{CredentialsError, Files, provider};

/// That an authority is one, and has its time.
pub(super) fn check_authority(
    path: &Path,
    certificate: &CertificateDer<'_>,
) -> Result<(), CredentialsError> {
    let certificate =
        Certificate::from_der(certificate).map_err(|error| CredentialsError::Authorities {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    check_time("CA", path, &certificate)?;
    let certificate = certificate.tbs_certificate();
    // The first version of certificates knows no constraints.
    let has_extensions = certificate.extensions().is_some();
    let constraints = certificate.get_extension::<BasicConstraints>();
    let is_authority = constraints
        .ok()
        .flatten()
        .is_some_and(|(_, constraints)| constraints.ca);
    if has_extensions && !is_authority {
        let path = path.to_owned();
        return Err(CredentialsError::NotAuthority { path });
    }
    Ok(())
}

/// That ours has its time and that our authorities know it.
pub(super) fn check_own(
    files: &Files<'_>,
    chain: &[CertificateDer<'static>],
    authorities: &RootCertStore,
) -> Result<(), CredentialsError> {
    let path = files.certificate();
    let (own, between) = chain.split_first().expect("no chain is empty");
    let parsed = Certificate::from_der(own).map_err(|error| CredentialsError::Certificate {
        side: files.side,
        path: path.clone(),
        reason: error.to_string(),
    })?;
    check_time(files.side, &path, &parsed)?;
    let valid = match files.side {
        "server" => valid_server(own, between, authorities),
        _ => valid_client(own, between, authorities),
    };
    valid.map_err(|error| CredentialsError::Invalid {
        path,
        authorities: files.authority(),
        reason: match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "The certificate hasn't got a known issuer".into()
            }
            other => other.to_string(),
        },
    })
}

fn valid_server(
    own: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    authorities: &RootCertStore,
) -> Result<(), Error> {
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(own)?,
        authorities,
        between,
        UnixTime::now(),
        provider().signature_verification_algorithms.all,
    )
}

fn valid_client(
    own: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    authorities: &RootCertStore,
) -> Result<(), Error> {
    let authorities = Arc::new(authorities.clone());
    let verifier = WebPkiClientVerifier::builder_with_provider(authorities, provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    verifier
        .verify_client_cert(own, between, UnixTime::now())
        .map(drop)
}

fn check_time(
    side: &'static str,
    path: &Path,
    certificate: &Certificate,
) -> Result<(), CredentialsError> {
    let now = SystemTime::now();
    let validity = certificate.tbs_certificate().validity();
    let is_over = validity.not_after.to_system_time() < now;
    if is_over || validity.not_before.to_system_time() > now {
        return Err(CredentialsError::Time {
            side,
            path: path.to_owned(),
            is_over,
        });
    }
    Ok(())
}
