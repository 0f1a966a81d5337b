//! Where a peer is.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, SockaddrLike, SockaddrStorage, bind,
    getsockname, setsockopt, socket, sockopt,
};
use ringback_ring::{Errno, Shard, socket as ring_socket};

/// Connections that the kernel takes before they are accepted.
const BACKLOG: i32 = 128;
/// Port of NBD, by IANA.
pub const NBD_PORT: u16 = 10809;

/// Where a stream socket listens, or what it connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// Linux's name for a socket that no file system knows.
    Abstract(Vec<u8>),
    /// A port of a host, by name or number.
    Tcp {
        /// Name or number; empty is every address of this machine.
        host: String,
        /// Its port.
        port: u16,
        /// Only IPv4 (false: only IPv6), or whatever there is.
        is_ipv4: Option<bool>,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
        }
    }
}

/// What a host's name stands for, as far as it is wanted; an empty one is every
/// address of this machine. Blocks while name servers are asked.
///
/// # Errors
///
/// What the resolver answers; `AddrNotAvailable` if the host has no address of the
/// kind that is wanted.
pub fn resolve(
    host: &str,
    port: u16,
    is_ipv4: Option<bool>,
) -> io::Result<Vec<std::net::SocketAddr>> {
    let all: Vec<_> = if host.is_empty() {
        vec![
            (std::net::Ipv6Addr::UNSPECIFIED, port).into(),
            (std::net::Ipv4Addr::UNSPECIFIED, port).into(),
        ]
    } else {
        (host, port).to_socket_addrs()?.collect()
    };
    let wanted: Vec<_> = all
        .into_iter()
        .filter(|address| is_ipv4.is_none_or(|is_ipv4| address.is_ipv4() == is_ipv4))
        .collect();
    if wanted.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "no address of that kind",
        ));
    }
    Ok(wanted)
}

impl Address {
    /// Listens. A socket file that is in the way is replaced. Blocks while a host's
    /// name is looked up.
    ///
    /// # Errors
    ///
    /// What the kernel or the resolver answers.
    pub fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let listener = UnixListener::bind(path)?;
                Listener::new(Acceptor::Unix(listener), Some(path.clone()))
            }
            Self::Abstract(name) => {
                let address = SocketAddr::from_abstract_name(name)?;
                let listener = UnixListener::bind_addr(&address)?;
                Listener::new(Acceptor::Unix(listener), None)
            }
            Self::Tcp {
                host,
                port,
                is_ipv4,
            } => {
                let addresses = resolve(host, *port, *is_ipv4)?;
                Listener::at(&addresses, *is_ipv4 == Some(false))
            }
        }
    }
}

/// Otherwise Linux lets IPv4 in at the IPv6 address that stands for all.
fn bind_ipv6_alone(addresses: &[std::net::SocketAddr]) -> io::Result<TcpListener> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        let std::net::SocketAddr::V6(address) = address else {
            continue;
        };
        let bound = (|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet6, SockType::Stream, flags, None)?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn6::from(*address))?;
            Ok::<_, nix::errno::Errno>(socket)
        })();
        match bound {
            Ok(socket) => return Ok(socket.into()),
            Err(errno) => last = errno.into(),
        }
    }
    Err(last)
}

#[derive(Debug)]
enum Acceptor {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket that others connect to. A socket file is removed with it.
#[derive(Debug)]
pub struct Listener {
    acceptor: Acceptor,
    path: Option<PathBuf>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have taken it away already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    fn new(acceptor: Acceptor, path: Option<PathBuf>) -> io::Result<Self> {
        match &acceptor {
            Acceptor::Unix(listener) => listener.set_nonblocking(true)?,
            Acceptor::Tcp(listener) => listener.set_nonblocking(true)?,
        }
        let this = Self { acceptor, path };
        let backlog = nix::sys::socket::Backlog::new(BACKLOG)?;
        nix::sys::socket::listen(&this.as_fd(), backlog)?;
        Ok(this)
    }

    /// Listens at the first of some addresses that is free. `is_ipv6_alone`: at an
    /// IPv6 one, and IPv4 clients do not come in at it.
    ///
    /// # Errors
    ///
    /// What the kernel answers to the last of them.
    pub fn at(addresses: &[std::net::SocketAddr], is_ipv6_alone: bool) -> io::Result<Self> {
        let listener = if is_ipv6_alone {
            bind_ipv6_alone(addresses)?
        } else {
            TcpListener::bind(addresses)?
        };
        Self::new(Acceptor::Tcp(listener), None)
    }

    /// A socket that somebody else has bound, and may go on to use.
    ///
    /// # Errors
    ///
    /// ENOTSOCK, or what the kernel answers.
    pub fn from_descriptor(fd: OwnedFd) -> io::Result<Self> {
        let address = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
        let acceptor = match address.family() {
            Some(AddressFamily::Unix) => Acceptor::Unix(fd.into()),
            _ => Acceptor::Tcp(fd.into()),
        };
        Self::new(acceptor, None)
    }

    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match &self.acceptor {
            Acceptor::Unix(listener) => listener.as_fd(),
            Acceptor::Tcp(listener) => listener.as_fd(),
        }
    }

    /// Lets a shard wait for connections.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn incoming(self, shard: &Shard) -> io::Result<Incoming> {
        Ok(Incoming {
            shard: shard.clone(),
            socket: Rc::new(self.as_fd().try_clone_to_owned()?),
            listener: self,
        })
    }

    /// The port that it got, if it listens at one.
    pub fn port(&self) -> Option<u16> {
        match &self.acceptor {
            Acceptor::Tcp(listener) => Some(listener.local_addr().ok()?.port()),
            Acceptor::Unix(_) => None,
        }
    }

    /// The next connection, if one is there.
    fn accept(&self) -> io::Result<OwnedFd> {
        match &self.acceptor {
            Acceptor::Unix(listener) => Ok(listener.accept()?.0.into()),
            Acceptor::Tcp(listener) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                // A peer that has vanished is noticed one day.
                setsockopt(&stream, sockopt::KeepAlive, &true)?;
                Ok(stream.into())
            }
        }
    }
}

/// A listener, on the shard that waits for its connections.
#[derive(Debug)]
pub struct Incoming {
    shard: Shard,
    /// The same socket, for operations that may outlive the listener.
    socket: Rc<OwnedFd>,
    listener: Listener,
}

impl Incoming {
    /// The next connection; None when `stop` has answered before one was there. The
    /// listening socket is not shut down by that: whoever else holds it goes on
    /// accepting.
    ///
    /// # Errors
    ///
    /// There can be no connection now, or not any more.
    pub async fn next(&self, stop: impl Future<Output = ()>) -> io::Result<Option<OwnedFd>> {
        let mut stop = pin!(stop);
        loop {
            match self.listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return accepted.map(Some),
            }
            match ring_socket::readable(&self.shard, &self.socket, stop.as_mut()).await {
                Ok(()) => {}
                Err(Errno::ECANCELED) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    /// Whether somebody lets an IPv4 client in who listens everywhere in this way.
    fn lets_ipv4_in(is_ipv4: Option<bool>) -> bool {
        let address = Address::Tcp {
            host: String::new(),
            port: 0,
            is_ipv4,
        };
        let listener = address.listen().expect("a port");
        let port = listener.port().expect("a port");
        TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_ok()
    }

    #[test]
    fn ipv4_stays_out_where_it_is_off() {
        if TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)).is_err() {
            println!("skipped: needs IPv6");
            return;
        }
        assert!(lets_ipv4_in(None));
        assert!(lets_ipv4_in(Some(true)));
        assert!(!lets_ipv4_in(Some(false)));
    }
}
