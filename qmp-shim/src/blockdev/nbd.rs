//! `nbd`: a disk that a server offers over the network.

use serde::Serialize;
use serde_json::Map;

use crate::command_line::address::{InetAddress, SocketAddress, UnixAddress};
use crate::error::{OptionError, Result};
use crate::visit::{Leaves, Reader};

/// The port of NBD, which the older interface assumes.
pub const NBD_PORT: &str = "10809";

/// Options of `nbd`. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NbdOptions {
    /// Where the server is.
    pub server: SocketAddress,
    /// The export's name; not given is the empty name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
    /// Id of the object with the credentials of TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// The name that the server's certificate must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<String>,
    /// The context of metadata that is asked for instead of `base:allocation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_dirty_bitmap: Option<String>,
    /// How long requests wait for a server that is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_delay: Option<u32>,
    /// How long the server is waited for at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_timeout: Option<u32>,
}

impl NbdOptions {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        if reader.is_flat() {
            return Self::read_flat(reader);
        }
        let server = reader.required("server", Reader::object)?;
        Ok(Self {
            server: SocketAddress::read(server).map_err(option_error)?,
            export: reader.text("export")?,
            tls_creds: reader.text("tls-creds")?,
            tls_hostname: reader.text("tls-hostname")?,
            x_dirty_bitmap: reader.text("x-dirty-bitmap")?,
            reconnect_delay: reader.unsigned_32("reconnect-delay")?,
            open_timeout: reader.unsigned_32("open-timeout")?,
        })
    }

    /// The older interface also knows `host`, `port` and `path`.
    fn read_flat(reader: &mut Reader<'_>) -> Result<Self> {
        // Numbers are signed there, and cut; beyond 136 years it does not matter.
        let seconds =
            |number: Option<u64>| number.map(|number| number.try_into().unwrap_or(u32::MAX));
        let (path, host, port) = (
            reader.text("path")?,
            reader.text("host")?,
            reader.text("port")?,
        );
        let export = reader.text("export")?;
        let tls_creds = reader.text("tls-creds")?;
        let tls_hostname = reader.text("tls-hostname")?;
        let x_dirty_bitmap = reader.text("x-dirty-bitmap")?;
        let reconnect_delay = seconds(reader.unsigned("reconnect-delay")?);
        let open_timeout = seconds(reader.unsigned("open-timeout")?);
        let given = reader.flat_child("server").options;
        let server = match (path, host) {
            (None, None) if given.is_empty() => return Err(OptionError::NoNbdServer),
            (None, None) if port.is_none() => read_server(&given)?,
            (None, None) => return Err(OptionError::NbdServerTwice),
            _ if !given.is_empty() => return Err(OptionError::NbdServerTwice),
            (Some(_), Some(_)) => return Err(OptionError::NbdPathAndHost),
            (Some(_), None) if port.is_some() => return Err(OptionError::NbdPortWithoutHost),
            (Some(path), None) => SocketAddress::Unix(UnixAddress {
                path,
                is_abstract: false,
                is_tight: true,
            }),
            (None, Some(host)) => SocketAddress::Inet(InetAddress {
                host,
                port: port.unwrap_or_else(|| NBD_PORT.to_owned()),
                ..InetAddress::default()
            }),
        };
        Ok(Self {
            server,
            export,
            tls_creds,
            tls_hostname,
            x_dirty_bitmap,
            reconnect_delay,
            open_timeout,
        })
    }
}

/// The address is read as the newer interface does it, also behind the older one.
fn read_server(given: &Map<String, serde_json::Value>) -> Result<SocketAddress> {
    SocketAddress::read(Reader::new(given, Leaves::Text)).map_err(option_error)
}

fn option_error(error: crate::command_line::ArgumentError) -> OptionError {
    match error {
        crate::command_line::ArgumentError::Option(error) => error,
        other => OptionError::Address(Box::new(other)),
    }
}
