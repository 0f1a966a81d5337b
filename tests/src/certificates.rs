//! Authorities and certificates, made for one test and good for nothing else.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// The name by which clients call the server.
pub const HOST: &str = "localhost";

/// Who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    ///
    /// The machine has no randomness.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// Makes whoever uses a directory trust this authority.
    ///
    /// # Panics
    ///
    /// The directory cannot be written.
    pub fn trusted_in(&self, directory: &Path) {
        write(directory, "ca-cert.pem", &self.pem);
    }

    /// Puts a certificate of this authority into a directory, with its key. `side` is
    /// `server` or `client`; the name becomes `O=Acme,CN=name`.
    ///
    /// # Panics
    ///
    /// The directory cannot be written.
    pub fn sign(&self, directory: &Path, side: &str, name: &str) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let names = &mut params.distinguished_name;
        names.push(DnType::OrganizationName, "Acme");
        names.push(DnType::CommonName, name);
        if side == "server" {
            let host = HOST.try_into().expect("a name of the DNS");
            params.subject_alt_names = vec![rcgen::SanType::DnsName(host)];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        } else {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
        let key = KeyPair::generate().expect("a key");
        let own = params.signed_by(&key, &self.issuer).expect("a certificate");
        write(directory, &format!("{side}-cert.pem"), &own.pem());
        write(directory, &format!("{side}-key.pem"), &key.serialize_pem());
    }
}

fn write(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
