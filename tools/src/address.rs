//! From an address of the command language to one of the engine: what listening and
//! connecting have in common.

use ringback_net::Address;
use ringback_qmp_shim::command_line::{InetAddress, UnixAddress};

/// Longest name of a UNIX socket, in bytes: its last byte in the kernel is a NUL, or
/// the first, which makes it abstract.
const UNIX_NAME_MAX: usize = 107;

/// A UNIX socket.
///
/// # Errors
///
/// There can be no such socket.
pub(crate) fn unix_address(unix: &UnixAddress) -> Result<Address, String> {
    let path = &unix.path;
    if path.len() > UNIX_NAME_MAX {
        return Err(format!("UNIX socket path '{path}' is too long"));
    }
    if path.contains('\0') {
        return Err("The path of a UNIX socket contains a NUL character".into());
    }
    if !unix.is_abstract {
        return Ok(Address::Unix(path.into()));
    }
    let mut name = path.clone().into_bytes();
    if !unix.is_tight {
        name.resize(UNIX_NAME_MAX, 0);
    }
    Ok(Address::Abstract(name))
}

/// What the system's resolver would say of a host and its port.
pub(crate) fn unresolved(inet: &InetAddress, why: &str) -> String {
    let (host, port) = (&inet.host, &inet.port);
    format!("address resolution failed for {host}:{port}: {why}")
}

/// Which addresses of a host count: only those of IPv4 (false: only those of IPv6), or
/// all.
///
/// # Errors
///
/// None does; or the host is not a number where it must be one.
pub(crate) fn family(inet: &InetAddress) -> Result<Option<bool>, String> {
    let is_number = inet.host.is_empty() || inet.host.parse::<std::net::IpAddr>().is_ok();
    if inet.numeric && !is_number {
        return Err(unresolved(inet, "Name or service not known"));
    }
    match (inet.ipv4, inet.ipv6) {
        (Some(false), Some(false)) => Err("Cannot disable IPv4 and IPv6 at same time".into()),
        (Some(true), Some(true)) | (None, None) => Ok(None),
        (Some(is_ipv4), _) => Ok(Some(is_ipv4)),
        (None, Some(is_ipv6)) => Ok(Some(!is_ipv6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abstract_names_can_be_filled_up() {
        let unix = |is_tight| UnixAddress {
            path: "a".into(),
            is_abstract: true,
            is_tight,
        };
        assert_eq!(
            unix_address(&unix(true)),
            Ok(Address::Abstract(b"a".to_vec()))
        );
        let filled = unix_address(&unix(false));
        assert!(matches!(filled, Ok(Address::Abstract(name)) if name.len() == UNIX_NAME_MAX));
    }

    #[test]
    fn names_that_no_socket_can_have_are_refused() {
        let unix = |path: &str| UnixAddress {
            path: path.into(),
            is_abstract: false,
            is_tight: true,
        };
        assert!(unix_address(&unix(&"p".repeat(107))).is_ok());
        let long = "p".repeat(108);
        assert_eq!(
            unix_address(&unix(&long)),
            Err(format!("UNIX socket path '{long}' is too long"))
        );
        assert!(unix_address(&unix("a\0b")).is_err());
    }

    #[test]
    fn families_as_they_are_switched() {
        let family = |ipv4, ipv6| {
            family(&InetAddress {
                host: "h".into(),
                ipv4,
                ipv6,
                ..InetAddress::default()
            })
        };
        assert_eq!(family(None, None), Ok(None));
        assert_eq!(family(Some(true), Some(true)), Ok(None));
        assert_eq!(family(Some(true), Some(false)), Ok(Some(true)));
        assert_eq!(family(Some(false), None), Ok(Some(false)));
        assert_eq!(family(None, Some(true)), Ok(Some(false)));
        assert_eq!(family(None, Some(false)), Ok(Some(true)));
        assert_eq!(
            family(Some(false), Some(false)),
            Err("Cannot disable IPv4 and IPv6 at same time".into())
        );
    }
}
