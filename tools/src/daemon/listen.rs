//! From an address of the command language to a socket that listens.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

use nix::sys::socket::{getsockopt, sockopt};
use ringback_net::Listener;
use ringback_net::address::resolve;
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::{InetAddress, SocketAddress, UnixAddress};
use ringback_ring::{Shard, inherited_descriptor};

use crate::address::{family, unix_address, unresolved};

fn generic(text: impl Into<String>) -> CommandError {
    CommandError::generic(text)
}

fn text(error: &io::Error) -> String {
    let errno = error.raw_os_error().map(ringback_ring::Errno::from_raw);
    errno.map_or_else(|| error.to_string(), ringback_ring::error_text)
}

/// Listens where an address says. A host's name is looked up beside the shard.
pub(super) async fn listen(
    shard: &Shard,
    address: &SocketAddress,
) -> Result<Listener, CommandError> {
    match address {
        SocketAddress::Unix(unix) => listen_unix(unix),
        SocketAddress::Inet(inet) => {
            let inet = inet.clone();
            shard.blocking(move || listen_inet(&inet)).await
        }
        SocketAddress::Fd(_) => {
            let number = address.descriptor()?.unwrap_or(-1);
            listen_at_descriptor(number)
        }
    }
}

fn listen_unix(unix: &UnixAddress) -> Result<Listener, CommandError> {
    let address = unix_address(unix).map_err(generic)?;
    address.listen().map_err(|error| {
        let path = &unix.path;
        generic(format!("Failed to bind socket to {path}: {}", text(&error)))
    })
}

fn listen_inet(inet: &InetAddress) -> Result<Listener, CommandError> {
    let unresolved = |why: &str| generic(unresolved(inet, why));
    // As strtol and getaddrinfo have it, only the lower half of a number counts.
    let number: u64 = match inet.port.as_str() {
        "" => 0,
        port => port
            .parse()
            .map_err(|_| unresolved("Servname not supported for ai_socktype"))?,
    };
    let port = u16::try_from(number & 0xffff).expect("sixteen bits");
    let is_ipv4 = family(inet).map_err(generic)?;
    let resolved = resolve(&inet.host, port, is_ipv4);
    let mut addresses = resolved.map_err(|error| match error.raw_os_error() {
        None => unresolved("Name or service not known"),
        Some(_) => unresolved(&text(&error)),
    })?;
    let mut last = None;
    for port in port..=inet.to.unwrap_or(port).max(port) {
        for address in &mut addresses {
            address.set_port(port);
        }
        match Listener::at(&addresses, is_ipv4 == Some(false)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => last = Some(error),
            Err(error) => {
                let text = text(&error);
                return Err(generic(format!("Failed to bind socket: {text}")));
            }
        }
    }
    let why = last.map_or_else(String::new, |error| text(&error));
    Err(generic(format!("Failed to find an available port: {why}")))
}

fn listen_at_descriptor(number: i32) -> Result<Listener, CommandError> {
    let not_a_socket = || generic(format!("File descriptor '{number}' is not a socket"));
    let fd = inherited_descriptor(number).map_err(|_| not_a_socket())?;
    match getsockopt(&fd, sockopt::AcceptConn) {
        Ok(true) => {}
        Ok(false) => {
            let number = fd.as_raw_fd();
            return Err(generic(format!(
                "File descriptor '{number}' is a socket that nobody has called listen() on"
            )));
        }
        Err(_) => return Err(not_a_socket()),
    }
    Listener::from_descriptor(fd).map_err(|error| generic(text(&error)))
}
