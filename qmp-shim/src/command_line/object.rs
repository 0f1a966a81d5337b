//! `--object` and `object-add`: what other options refer to by an id.

use serde_json::Value;

use super::error::{ArgumentError, Result};
use crate::error::OptionError;
use crate::keyval::{self, Options};
use crate::opts::check_id;
use crate::throttle_group::ThrottleGroupOptions;
use crate::visit::{Reader, Word, words};

mod authz;
mod help;
mod iothread;
mod secret;
mod tls_creds;

pub use authz::{
    AuthzFileOptions, AuthzListOptions, AuthzRule, AuthzSimpleOptions, MatchFormat, Policy,
};
pub use iothread::IothreadOptions;
pub use secret::{Secret, SecretFormat, SecretOptions, SecretSource};
pub use tls_creds::{Endpoint, TlsCredsKind, TlsCredsOptions};

/// An object to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectOptions {
    /// Its name.
    pub id: String,
    /// The type and what is its own.
    pub kind: ObjectKind,
}

/// A type of object with its own options.
#[derive(Debug, Clone, PartialEq)]
pub enum ObjectKind {
    /// Limits that nodes share.
    ThrottleGroup(Box<ThrottleGroupOptions>),
    /// A thread that serves exports.
    Iothread(IothreadOptions),
    /// A password or key.
    Secret(SecretOptions),
    /// Credentials for TLS.
    TlsCreds(TlsCredsOptions),
    /// Who may come in, as a list of patterns.
    AuthzList(AuthzListOptions),
    /// The same in a file.
    AuthzListFile(AuthzFileOptions),
    /// One who may come in.
    AuthzSimple(AuthzSimpleOptions),
}

words! {
    /// Types that are here, or that qemu-storage-daemon reads whole before it refuses them.
    enum Type {
        /// See [`ObjectKind`]; the others likewise.
        ThrottleGroup = "throttle-group",
        /// A thread.
        Iothread = "iothread",
        /// A password.
        Secret = "secret",
        /// Certificates.
        TlsCredsX509 = "tls-creds-x509",
        /// Keys that both sides have.
        TlsCredsPsk = "tls-creds-psk",
        /// None at all.
        TlsCredsAnon = "tls-creds-anon",
        /// Patterns.
        AuthzList = "authz-list",
        /// Patterns in a file.
        AuthzListFile = "authz-listfile",
        /// One identity.
        AuthzSimple = "authz-simple",
        /// The accounts of the host.
        AuthzPam = "authz-pam",
    }
}

/// What `--object` says.
#[derive(Debug, Clone, PartialEq)]
pub enum ObjectRequest {
    /// Make this one.
    Make(ObjectOptions),
    /// Print this text.
    Help(String),
}

impl ObjectOptions {
    /// Reads and checks the argument of `--object`, in either form.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn parse(text: &str) -> Result<ObjectRequest> {
        let is_json = text.starts_with('{');
        if !is_json && let (members, true) = keyval::parse_or_help(text, Some("qom-type"))? {
            let kind = members.get("qom-type").and_then(Value::as_str);
            return Ok(ObjectRequest::Help(help::help(kind)));
        }
        let options: Options = keyval::parse(text, Some("qom-type"))?;
        Self::read(Reader::of(&options)).map(ObjectRequest::Make)
    }

    /// Reads an object to its end and checks it.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn read(mut reader: Reader<'_>) -> Result<Self> {
        let kind = reader.required("qom-type", Reader::text)?;
        let kind = read_type(kind)?;
        let id = reader.required("id", Reader::text)?;
        let kind = match kind {
            Type::ThrottleGroup => {
                let group = ThrottleGroupOptions::read_members(reader, id.clone())?;
                ObjectKind::ThrottleGroup(Box::new(group))
            }
            Type::Iothread => {
                let own = IothreadOptions::read(&mut reader)?;
                end(reader, &id)?;
                ObjectKind::Iothread(own.check()?)
            }
            Type::Secret => {
                let own = secret::Members::read(&mut reader)?;
                end(reader, &id)?;
                ObjectKind::Secret(own.check()?)
            }
            Type::TlsCredsX509 => creds(reader, &id, TlsCredsKind::read_x509)?,
            Type::TlsCredsPsk => creds(reader, &id, TlsCredsKind::read_psk)?,
            Type::TlsCredsAnon => creds(reader, &id, |_| Ok(TlsCredsKind::Anon))?,
            Type::AuthzList => {
                let own = AuthzListOptions::read(&mut reader)?;
                end(reader, &id)?;
                ObjectKind::AuthzList(own)
            }
            Type::AuthzListFile => {
                let own = AuthzFileOptions::read(&mut reader)?;
                end(reader, &id)?;
                ObjectKind::AuthzListFile(own)
            }
            Type::AuthzSimple => {
                let own = AuthzSimpleOptions::read(&mut reader)?;
                end(reader, &id)?;
                ObjectKind::AuthzSimple(own)
            }
            Type::AuthzPam => {
                reader.required("service", Reader::text)?;
                end(reader, &id)?;
                return Err(ArgumentError::InvalidObject {
                    kind: "authz-pam".to_owned(),
                });
            }
        };
        Ok(Self { id, kind })
    }
}

/// Nothing may be left, and the id must be one.
fn end(reader: Reader<'_>, id: &str) -> Result<()> {
    reader.finish()?;
    Ok(check_id(id)?)
}

fn creds(
    mut reader: Reader<'_>,
    id: &str,
    own: impl FnOnce(&mut Reader<'_>) -> Result<TlsCredsKind>,
) -> Result<ObjectKind> {
    let mut options = TlsCredsOptions::read(&mut reader)?;
    options.kind = own(&mut reader)?;
    end(reader, id)?;
    options.check()?;
    Ok(ObjectKind::TlsCreds(options))
}

/// The types of qemu-storage-daemon that are not here.
const UNSUPPORTED: &[&str] = &[
    "main-loop",
    "pr-manager-helper",
    "secret_keyring",
    "thread-context",
];

/// The types of QEMU's schema which qemu-storage-daemon has not got either.
const OF_THE_SYSTEM_EMULATOR: &[&str] = &[
    "acpi-generic-initiator",
    "acpi-generic-port",
    "can-bus",
    "can-host-socketcan",
    "colo-compare",
    "cryptodev-backend",
    "cryptodev-backend-builtin",
    "cryptodev-backend-lkcf",
    "cryptodev-vhost-user",
    "dbus-vmstate",
    "filter-buffer",
    "filter-dump",
    "filter-mirror",
    "filter-redirector",
    "filter-replay",
    "filter-rewriter",
    "input-barrier",
    "input-linux",
    "iommufd",
    "memory-backend-epc",
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "memory-backend-shm",
    "pef-guest",
    "qtest",
    "rng-builtin",
    "rng-egd",
    "rng-random",
    "s390-pv-guest",
    "sev-guest",
    "sev-snp-guest",
    "tls-cipher-suites",
    "x-remote-object",
    "x-vfio-user-server",
];

fn read_type(kind: String) -> Result<Type> {
    if let Some(known) = Type::from_word(&kind) {
        Ok(known)
    } else if UNSUPPORTED.contains(&kind.as_str()) {
        Err(ArgumentError::UnsupportedObject { kind })
    } else if OF_THE_SYSTEM_EMULATOR.contains(&kind.as_str()) {
        Err(ArgumentError::InvalidObject { kind })
    } else {
        let name = "qom-type".to_owned();
        Err(OptionError::BadValue { name, value: kind }.into())
    }
}
