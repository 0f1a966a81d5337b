//! Credentials for TLS of nodes and servers, and lists of who may come in.

use ringback_export::nbd::{Authorization, Tls};
use ringback_net::{AccessList, AccessRule, ClientCredentials, NamePattern};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::object::{
    AuthzListOptions, MatchFormat, Policy, TlsCredsOptions,
};
use ringback_qmp_shim::command_line::{ArgumentError, NbdServer};
use ringback_qmp_shim::visit::Word;
use serde_json::{Value, json};

use super::{Object, Objects, generic};
use crate::daemon::control::Control;
use crate::open::TlsCreds;

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
        self.credentials(id)?.client().cloned()
    }
}

impl Control {
    pub(super) async fn make_credentials(
        &self,
        options: &TlsCredsOptions,
    ) -> Result<TlsCreds, CommandError> {
        let options = options.clone();
        let loaded = self.shard.blocking(move || TlsCreds::load(options)).await;
        loaded.map_err(generic)
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
        let credentials = self.objects.credentials(id)?.server()?;
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
