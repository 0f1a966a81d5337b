//! From the options of `nbd` to what the engine connects to.

use ringback_block::graph::NodeSpec;
use ringback_block::protocol::nbd::{Options, Tls};
use ringback_net::{Address, ClientCredentials};
use ringback_qmp_shim::blockdev::{NbdOptions, Settings};
use ringback_qmp_shim::command_line::{InetAddress, SocketAddress};

use crate::address::{family, unix_address, unresolved};

/// How the servers of NBD nodes are spoken to.
#[derive(Clone, Copy)]
pub(crate) struct Servers<'a> {
    /// Finds the credentials of a client by the id of their object; or says why there
    /// are none.
    pub(crate) find_credentials: &'a dyn Fn(&str) -> Result<ClientCredentials, String>,
    /// The name of a bitmap that they are asked for.
    pub(crate) bitmap: Option<&'a str>,
}

/// An export of a server.
pub(super) fn nbd(
    options: &NbdOptions,
    settings: &Settings,
    servers: Servers<'_>,
) -> Result<NodeSpec, String> {
    let tls = match &options.tls_creds {
        Some(id) => Some(Tls {
            credentials: (servers.find_credentials)(id)?,
            host: certified_host(options).map(str::to_owned),
        }),
        None => None,
    };
    Ok(NodeSpec::Nbd(Box::new(Options {
        address: address(&options.server)?,
        export: options.export.clone().unwrap_or_default(),
        context: options.x_dirty_bitmap.clone(),
        bitmap: servers.bitmap.map(str::to_owned),
        tls,
        reconnect_delay_s: options.reconnect_delay.unwrap_or(0),
        open_timeout_s: options.open_timeout.unwrap_or(0),
        write: !settings.read_only,
        auto_read_only: settings.auto_read_only,
    })))
}

/// The name that the server's certificate must have. A socket of this machine does
/// not tell how the server is called.
fn certified_host(options: &NbdOptions) -> Option<&str> {
    match (&options.tls_hostname, &options.server) {
        (Some(given), _) => Some(given),
        (None, SocketAddress::Inet(inet)) => Some(&inet.host),
        (None, _) => None,
    }
}

fn address(server: &SocketAddress) -> Result<Address, String> {
    match server {
        SocketAddress::Unix(unix) => unix_address(unix),
        SocketAddress::Inet(inet) => inet_address(inet),
        SocketAddress::Fd(_) => Err(
            "An NBD server cannot be reached over a descriptor (server.type=fd): it could not \
             be connected to again"
                .into(),
        ),
    }
}

fn inet_address(inet: &InetAddress) -> Result<Address, String> {
    // Names of services are not looked up.
    let port = inet
        .port
        .parse()
        .map_err(|_| unresolved(inet, "Servname not supported for ai_socktype"))?;
    if inet.host.is_empty() {
        return Err(unresolved(inet, "Name or service not known"));
    }
    Ok(Address::Tcp {
        host: inet.host.clone(),
        port,
        is_ipv4: family(inet)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(host: &str, port: &str) -> InetAddress {
        InetAddress {
            host: host.into(),
            port: port.into(),
            ..InetAddress::default()
        }
    }

    #[test]
    fn ports_and_hosts_are_checked_before_anybody_is_asked() {
        for (host, port, why) in [
            ("h", "x", "Servname not supported for ai_socktype"),
            ("h", "70000", "Servname not supported for ai_socktype"),
            ("", "1", "Name or service not known"),
        ] {
            let wanted = format!("address resolution failed for {host}:{port}: {why}");
            assert_eq!(inet_address(&inet(host, port)), Err(wanted));
        }
        let numeric = InetAddress {
            numeric: true,
            ..inet("h", "1")
        };
        assert!(inet_address(&numeric).is_err());
        assert!(inet_address(&inet("::1", "10809")).is_ok());
    }
}
