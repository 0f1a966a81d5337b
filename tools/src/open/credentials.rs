//! Credentials for TLS, as an object of a command line or of QMP says where they are.

use std::path::Path;

use ringback_net::{ClientCredentials, Demands, ServerCredentials};
use ringback_qmp_shim::command_line::ArgumentError;
use ringback_qmp_shim::command_line::object::{Endpoint, TlsCredsKind, TlsCredsOptions};
use ringback_qmp_shim::visit::Word;
use serde_json::{Value, json};

/// Notations of GnuTLS that say nothing special.
const PLAIN_PRIORITIES: [&str; 2] = ["", "NORMAL"];

/// Credentials, and the properties they were made with.
#[derive(Clone, Debug)]
pub(crate) struct TlsCreds {
    options: TlsCredsOptions,
    side: Side,
}

#[derive(Clone, Debug)]
enum Side {
    Server(ServerCredentials),
    Client(ClientCredentials),
}

impl TlsCreds {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    ///
    /// The kind or an option is none that is here; or the file that is of no use.
    pub(crate) fn load(options: TlsCredsOptions) -> Result<Self, String> {
        let (sanity_check, passwordid) = match &options.kind {
            TlsCredsKind::X509 {
                sanity_check,
                passwordid,
            } => (*sanity_check, passwordid),
            TlsCredsKind::Psk { .. } => return Err(only_x509("tls-creds-psk")),
            TlsCredsKind::Anon => return Err(only_x509("tls-creds-anon")),
        };
        if passwordid.is_some() {
            return Err(
                "ringback does not support 'passwordid' of 'tls-creds-x509': the key must not be \
                 encrypted"
                    .into(),
            );
        }
        let priority = options.priority.as_deref().unwrap_or_default();
        if !PLAIN_PRIORITIES.contains(&priority) {
            return Err(format!(
                "ringback does not support the priority '{priority}': TLS 1.2 and 1.3 with their \
                 safe ciphers are on, and 'NORMAL' is the only name for it"
            ));
        }
        let demands = Demands {
            verify_peer: options.verify_peer,
            sanity_check,
        };
        let directory = options.dir.as_deref();
        let directory = directory.ok_or_else(|| ArgumentError::NoDirectory.to_string())?;
        let directory = Path::new(directory);
        let side = match options.endpoint {
            Endpoint::Server => ServerCredentials::load(directory, demands).map(Side::Server),
            Endpoint::Client => ClientCredentials::load(directory, demands).map(Side::Client),
        };
        let side = side.map_err(|error| error.to_string())?;
        Ok(Self { options, side })
    }

    /// What a client shows, and whom it believes.
    ///
    /// # Errors
    ///
    /// They are a server's.
    pub(crate) fn client(&self) -> Result<&ClientCredentials, ArgumentError> {
        match &self.side {
            Side::Client(credentials) => Ok(credentials),
            Side::Server(_) => Err(ArgumentError::ServerCredentials),
        }
    }

    /// What a server shows, and whom it believes.
    ///
    /// # Errors
    ///
    /// They are a client's.
    pub(crate) fn server(&self) -> Result<&ServerCredentials, ArgumentError> {
        match &self.side {
            Side::Server(credentials) => Ok(credentials),
            Side::Client(_) => Err(ArgumentError::ClientCredentials),
        }
    }

    /// Name, type and value of each property.
    pub(crate) fn properties(&self) -> Vec<(String, &'static str, Value)> {
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

fn only_x509(kind: &str) -> String {
    format!("ringback has no objects of the type '{kind}': use certificates, with 'tls-creds-x509'")
}

/// What to do about a failure of TLS; none: it is none, or nobody knows.
pub(crate) fn advice(error: &str) -> Option<&'static str> {
    const ADVICE: [(&str, &str); 8] = [
        (
            "Certificate does not match the hostname",
            "tls-hostname=NAME says by which name the server's certificate calls it",
        ),
        (
            "No hostname for certificate validation",
            "a UNIX socket does not tell how the server is called: tls-hostname=NAME does",
        ),
        (
            "Unable to access credentials",
            "the directory must have ca-cert.pem, and client-cert.pem with client-key.pem if the \
             server asks for them",
        ),
        (
            "invalid peer certificate",
            "ca-cert.pem of the credentials must be of the authority that has signed the \
             server's certificate, which must be valid",
        ),
        (
            " TLS channel: ",
            "the server has hung up: it asks for client-cert.pem and client-key.pem of an \
             authority that it knows, and its tls-authz must let them in",
        ),
        (
            "TLS negotiation required before",
            "the server wants TLS: name it with nbds:// and give credentials",
        ),
        (
            "option 5 (starttls)",
            "the server does without TLS: name it with nbd://, if that is meant",
        ),
        (
            "STARTTLS",
            "the server cannot do TLS: name it with nbd://, if that is meant",
        ),
    ];
    let mut known = ADVICE.into_iter();
    let found = known.find(|(text, _)| error.contains(text));
    found.map(|(_, advice)| advice)
}
