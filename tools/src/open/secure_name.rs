//! Names of exports that are reached by TLS, as libnbd writes them:
//! `nbds://HOST:PORT/EXPORT` and `nbds+unix://HOST/EXPORT?socket=PATH`.
//!
//! QEMU has no such names. To it they are `nbd://` and `nbd+unix://`, with the options
//! `tls-creds` and `tls-hostname`.

use ringback_net::ClientCredentials;
use ringback_qmp_shim::command_line::object::{Endpoint, TlsCredsKind, TlsCredsOptions};
use ringback_qmp_shim::open::nbd_name;
use serde_json::{Map, Value};

use super::credentials::TlsCreds;
use super::objects::Objects;

/// Stands for credentials that a name brings along. No object can be called so.
const OWN: &str = "#name";

/// A disk's name and options as QEMU has them.
pub(crate) struct QemuName {
    pub(crate) name: Option<String>,
    /// Flat.
    pub(crate) options: Map<String, Value>,
    /// That the name brings along.
    own: Option<ClientCredentials>,
}

impl QemuName {
    /// A name that has nothing to do with TLS is left as it is. Reads the files of
    /// credentials that the name brings along, and blocks meanwhile.
    ///
    /// # Errors
    ///
    /// The name asks for what is not there.
    pub(crate) fn of(
        name: Option<&str>,
        options: &Map<String, Value>,
        objects: &Objects,
    ) -> Result<Self, String> {
        let mut found = Self {
            name: name.map(str::to_owned),
            options: options.clone(),
            own: None,
        };
        let Some(name) = name.filter(|name| is_secure(name)) else {
            return Ok(found);
        };
        let secure = SecureName::parse(name)?;
        let id = match (secure.creds, secure.directory) {
            (Some(_), Some(_)) => {
                let why = "either tls-creds or tls-certificates says where credentials are";
                return Err(why.into());
            }
            (Some(id), None) => id,
            (None, Some(directory)) => {
                found.own = Some(load(directory, secure.verify_peer)?);
                OWN.into()
            }
            (None, None) => match objects.only_credentials() {
                Some(id) => id.to_owned(),
                None => {
                    let why = "which credentials? Add tls-certificates=DIR to the name, or give \
                               --object tls-creds-x509,id=ID,dir=DIR,endpoint=client and \
                               tls-creds=ID";
                    return Err(why.into());
                }
            },
        };
        if found.own.is_none() && !secure.verify_peer {
            let why = "tls-verify-peer goes with tls-certificates; an object has verify-peer";
            return Err(why.into());
        }
        let is_node = found
            .options
            .get("driver")
            .is_some_and(|driver| driver == "nbd");
        let prefix = if is_node { "" } else { "file." };
        let mut set = |key: &str, value: String| {
            let key = format!("{prefix}{key}");
            found.options.entry(key).or_insert_with(|| value.into());
        };
        set("tls-creds", id);
        if let Some(host) = secure.host {
            set("tls-hostname", host);
        }
        found.name = Some(secure.plain);
        Ok(found)
    }

    /// Credentials by their id.
    ///
    /// # Errors
    ///
    /// There are none.
    pub(crate) fn credentials(
        &self,
        id: &str,
        objects: &Objects,
    ) -> Result<ClientCredentials, String> {
        match &self.own {
            Some(own) if id == OWN => Ok(own.clone()),
            _ => objects.client_credentials(id),
        }
    }
}

fn is_secure(name: &str) -> bool {
    let scheme = name.split_once("://").map(|(scheme, _)| scheme);
    matches!(scheme, Some("nbds" | "nbds+tcp" | "nbds+unix"))
}

fn load(directory: String, verify_peer: bool) -> Result<ClientCredentials, String> {
    let creds = TlsCreds::load(TlsCredsOptions {
        kind: TlsCredsKind::X509 {
            sanity_check: true,
            passwordid: None,
        },
        verify_peer,
        dir: Some(directory),
        endpoint: Endpoint::Client,
        priority: None,
    })?;
    let client = creds.client().map_err(|error| error.to_string())?;
    Ok(client.clone())
}

/// What a name with `nbds` says.
#[derive(Debug, PartialEq, Eq)]
struct SecureName {
    /// The same export in the clear, as QEMU writes it.
    plain: String,
    host: Option<String>,
    creds: Option<String>,
    directory: Option<String>,
    verify_peer: bool,
}

impl SecureName {
    fn parse(name: &str) -> Result<Self, String> {
        let name = name.split_once('#').map_or(name, |(before, _)| before);
        let (scheme, rest) = name.split_once("://").ok_or("no URI")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match place.find('/') {
            Some(at) => place.split_at(at),
            None => (place, ""),
        };
        let is_unix = scheme == "nbds+unix";
        let mut parsed = Self {
            plain: String::new(),
            host: None,
            creds: None,
            directory: None,
            verify_peer: true,
        };
        if is_unix {
            // It can say how the server is called; the socket does not.
            let host = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host);
            if !host.is_empty() {
                parsed.host = Some(decode(host)?);
            }
        }
        let mut socket = None;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match key {
                "socket" if is_unix => socket = Some(value),
                "tls-hostname" => parsed.host = Some(decode(value)?),
                "tls-creds" => parsed.creds = Some(decode(value)?),
                "tls-certificates" => parsed.directory = Some(decode(value)?),
                "tls-verify-peer" => parsed.verify_peer = truth(value)?,
                "tls-psk-file" | "tls-username" => {
                    return Err(format!(
                        "'{key}' is not supported: use certificates, with tls-certificates=DIR"
                    ));
                }
                other => return Err(format!("unknown parameter '{other}'")),
            }
        }
        parsed.plain = if is_unix {
            let socket = socket.ok_or("socket=PATH is missing")?;
            format!("nbd+unix://{path}?socket={socket}")
        } else {
            format!("nbd://{authority}{path}")
        };
        Ok(parsed)
    }
}

fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        other => Err(format!("tls-verify-peer is true or false, not '{other}'")),
    }
}

fn decode(text: &str) -> Result<String, String> {
    nbd_name::decode(text).ok_or_else(|| format!("'{text}' is badly encoded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> SecureName {
        SecureName::parse(name).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[test]
    fn they_become_names_of_qemu() {
        let tcp = parse("nbds://h:1/e%2Fx?tls-certificates=/a%20b&tls-verify-peer=0#x");
        assert_eq!(tcp.plain, "nbd://h:1/e%2Fx");
        assert_eq!(tcp.directory.as_deref(), Some("/a b"));
        assert_eq!((tcp.host, tcp.verify_peer), (None, false));
        let unix = parse("nbds+unix://alice@h/e?socket=/p%20q&tls-creds=t");
        assert_eq!(unix.plain, "nbd+unix:///e?socket=/p%20q");
        assert_eq!(unix.host.as_deref(), Some("h"));
        assert_eq!(unix.creds.as_deref(), Some("t"));
        let unix = parse("nbds+unix://h/e?socket=p&tls-hostname=g");
        assert_eq!(unix.host.as_deref(), Some("g"));
    }

    #[test]
    fn what_is_wrong_with_one_is_said() {
        for (name, why) in [
            ("nbds+unix:///e", "socket=PATH is missing"),
            ("nbds://h/e?socket=p", "unknown parameter 'socket'"),
            ("nbds://h/e?tls-psk-file=k", "use certificates"),
            ("nbds://h/e?tls-verify-peer=2", "true or false"),
            ("nbds://h/e?tls-hostname=%4", "badly encoded"),
            ("nbds://h/e?tls-hostname=%+1", "badly encoded"),
        ] {
            let error = SecureName::parse(name).expect_err(name);
            assert!(error.contains(why), "{name}: {error}");
        }
    }

    #[test]
    fn credentials_must_be_there() {
        let objects = Objects::default();
        let of = |name| {
            let found = QemuName::of(Some(name), &Map::new(), &objects);
            found.map(|found| found.name.unwrap_or_default())
        };
        assert_eq!(of("nbd://h/e"), Ok("nbd://h/e".into()));
        let error = of("nbds://h/e").expect_err("no credentials");
        assert!(error.contains("which credentials?"), "{error}");
        let error = of("nbds://h/e?tls-creds=a&tls-certificates=b").expect_err("two");
        assert!(error.contains("either"), "{error}");
        let error = of("nbds://h/e?tls-certificates=/nowhere").expect_err("no files");
        assert!(error.contains("/nowhere/ca-cert.pem"), "{error}");
    }
}
