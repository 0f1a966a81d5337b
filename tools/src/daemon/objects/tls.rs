//! Credentials for TLS, and lists of who may come in.

use std::path::Path;

use ringback_export::nbd::{Authorization, Tls};
use ringback_net::{
    AccessList, AccessRule, ClientCredentials, Demands, NamePattern, ServerCredentials,
};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::object::{
    AuthzListOptions, Endpoint, MatchFormat, Policy, TlsCredsKind, TlsCredsOptions,
};
use ringback_qmp_shim::command_line::{ArgumentError, NbdServer};
use ringback_qmp_shim::visit::Word;
use serde_json::{Value, json};

use super::{Object, Objects, generic};
use crate::daemon::control::Control;

/// Notations of GnuTLS that say nothing special.
const PLAIN_PRIORITIES: [&str; 2] = ["", "NORMAL"];

/// Credentials, and the properties they were made with.
pub(super) struct TlsCreds {
    options: TlsCredsOptions,
    side: Side,
}

enum Side {
    Server(ServerCredentials),
    Client(ClientCredentials),
}

impl TlsCreds {
    fn read(options: TlsCredsOptions) -> Result<Self, CommandError> {
        let (sanity_check, passwordid) = match &options.kind {
            TlsCredsKind::X509 {
                sanity_check,
                passwordid,
            } => (*sanity_check, passwordid),
            TlsCredsKind::Psk { .. } => return Err(only_x509("tls-creds-psk")),
            TlsCredsKind::Anon => return Err(only_x509("tls-creds-anon")),
        };
        if passwordid.is_some() {
            return Err(generic(
                "ringback does not support 'passwordid' of 'tls-creds-x509': the key must not be \
                 encrypted",
            ));
        }
        let priority = options.priority.as_deref().unwrap_or_default();
        if !PLAIN_PRIORITIES.contains(&priority) {
            return Err(generic(format!(
                "ringback does not support the priority '{priority}': TLS 1.2 and 1.3 with their \
                 safe ciphers are on, and 'NORMAL' is the only name for it"
            )));
        }
        let demands = Demands {
            verify_peer: options.verify_peer,
            sanity_check,
        };
        let directory = options.dir.as_deref().ok_or(ArgumentError::NoDirectory)?;
        let directory = Path::new(directory);
        let side = match options.endpoint {
            Endpoint::Server => ServerCredentials::load(directory, demands).map(Side::Server),
            Endpoint::Client => ClientCredentials::load(directory, demands).map(Side::Client),
        };
        let side = side.map_err(|error| generic(error.to_string()))?;
        Ok(Self { options, side })
    }

    pub(super) fn properties(&self) -> Vec<(String, &'static str, Value)> {
        let options = &self.options;
        let sanity_check = match options.kind {
            TlsCredsKind::X509 { sanity_check, .. } => sanity_check,
            TlsCredsKind::Psk { .. } | TlsCredsKind::Anon => false,
        };
        let priority = options.priority.as_deref().unwrap_or_default();
        [
            (
                "endpoint",
                "QCryptoTLSCredsEndpoint",
                json!(options.endpoint.word()),
            ),
            ("dir", "string", json!(options.dir)),
            ("verify-peer", "bool", json!(options.verify_peer)),
            ("priority", "string", json!(priority)),
            ("sanity-check", "bool", json!(sanity_check)),
            ("passwordid", "string", json!("")),
        ]
        .map(|(name, kind, value)| (name.to_owned(), kind, value))
        .into()
    }
}

fn only_x509(kind: &str) -> CommandError {
    generic(format!(
        "ringback has no objects of the type '{kind}': use certificates, with 'tls-creds-x509'"
    ))
}

/// The properties of a list.
pub(super) fn list_properties(list: &AuthzListOptions) -> Vec<(String, &'static str, Value)> {
    let rules = list.rules.iter().map(|rule| {
        let mut entry = json!({ "match": rule.pattern, "policy": rule.policy.word() });
        if rule.format != MatchFormat::default() {
            entry["format"] = rule.format.word().into();
        }
        entry
    });
    vec![
        (
            "policy".into(),
            "QAuthZListPolicy",
            list.policy.word().into(),
        ),
        ("rules".into(), "QAuthZListRule", rules.collect()),
    ]
}

/// What a list comes to.
pub(super) fn access_list(options: &AuthzListOptions) -> AccessList {
    let rules = options.rules.iter().map(|rule| AccessRule {
        names: match rule.format {
            MatchFormat::Exact => NamePattern::Exact(rule.pattern.clone()),
            MatchFormat::Glob => NamePattern::Glob(rule.pattern.clone()),
        },
        allows: rule.policy == Policy::Allow,
    });
    AccessList {
        rules: rules.collect(),
        allows_others: options.policy == Policy::Allow,
    }
}

impl Objects {
    fn credentials(&self, id: &str) -> Result<&TlsCreds, ArgumentError> {
        let name = || id.to_owned();
        match self.get(id) {
            Some(Object::TlsCreds(creds)) => Ok(creds),
            Some(_) => Err(ArgumentError::NotCredentials { id: name() }),
            None => Err(ArgumentError::NoCredentials { id: name() }),
        }
    }

    /// What a client shows, and whom it believes. A node keeps the credentials also
    /// when the object goes.
    pub(in crate::daemon) fn client_credentials(
        &self,
        id: &str,
    ) -> Result<ClientCredentials, ArgumentError> {
        match &self.credentials(id)?.side {
            Side::Client(credentials) => Ok(credentials.clone()),
            Side::Server(_) => Err(ArgumentError::ServerCredentials),
        }
    }
}

impl Control {
    pub(super) async fn make_credentials(
        &self,
        options: &TlsCredsOptions,
    ) -> Result<TlsCreds, CommandError> {
        let options = options.clone();
        self.shard.blocking(move || TlsCreds::read(options)).await
    }

    /// What a server demands of its clients, if anything. The server keeps the
    /// credentials also when the object goes.
    pub(in crate::daemon) fn server_tls(
        &self,
        server: &NbdServer,
    ) -> Result<Option<Tls>, CommandError> {
        let Some(id) = &server.tls_creds else {
            return Ok(None);
        };
        let Side::Server(credentials) = &self.objects.credentials(id)?.side else {
            return Err(ArgumentError::ClientCredentials.into());
        };
        if server.tls_authz.is_some() && !credentials.verifies() {
            return Err(generic(
                "'tls-authz' needs credentials with 'verify-peer': who shows no certificate has \
                 no name",
            ));
        }
        let authorization = server.tls_authz.as_ref().map(|id| Authorization {
            id: id.clone(),
            lists: self.objects.access_lists.clone(),
        });
        Ok(Some(Tls {
            credentials: credentials.clone(),
            authorization,
        }))
    }
}
