//! Connecting.
//!
//! A peer that does not answer costs no thread, only an operation of the ring or now
//! and then a look. Names of hosts are looked up on a helper thread, for as long as
//! the system's resolver takes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect,
    getsockopt, setsockopt, shutdown, socket, sockopt,
};
use ringback_ring::Shard;
use ringback_ring::socket::writable;

use crate::address::{Address, resolve};

/// A UNIX socket whose backlog is full is tried again after this pause: the kernel
/// tells nobody but a thread that blocks when there is room.
const PAUSE_NS: u64 = 20_000_000;

impl Address {
    /// Connects, or gives up at an instant of [`Shard::now_ns`]. Of several addresses
    /// of a host each gets its share of the time, so that one which does not answer
    /// leaves some for the next.
    ///
    /// # Errors
    ///
    /// What the kernel or the resolver answers; `TimedOut` if time has run out.
    pub async fn connect(&self, shard: &Shard, deadline_ns: u64) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(path) => {
                let address = UnixAddr::new(path)?;
                first(shard, deadline_ns, &[address]).await
            }
            Self::Abstract(name) => {
                let address = UnixAddr::new_abstract(name)?;
                first(shard, deadline_ns, &[address]).await
            }
            Self::Tcp {
                host,
                port,
                is_ipv4,
            } => {
                let host = if host.is_empty() { "localhost" } else { host };
                let found = look_up(shard, deadline_ns, host, *port, *is_ipv4).await?;
                let found: Vec<_> = found.into_iter().map(SockaddrStorage::from).collect();
                first(shard, deadline_ns, &found).await
            }
        }
    }
}

/// The addresses of a host. A number is one already, and waits for no helper.
async fn look_up(
    shard: &Shard,
    deadline_ns: u64,
    host: &str,
    port: u16,
    is_ipv4: Option<bool>,
) -> io::Result<Vec<SocketAddr>> {
    if host.parse::<IpAddr>().is_ok() {
        return resolve(host, port, is_ipv4);
    }
    let host = host.to_owned();
    let work = shard.blocking(move || resolve(&host, port, is_ipv4));
    let found = shard.within(deadline_ns, work).await;
    found.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

/// The first of some addresses at which there is somebody.
async fn first(
    shard: &Shard,
    deadline_ns: u64,
    addresses: &[impl SockaddrLike],
) -> io::Result<OwnedFd> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for (address, others) in addresses.iter().zip((1..=addresses.len() as u64).rev()) {
        let now_ns = shard.now_ns();
        let share_ns = deadline_ns.saturating_sub(now_ns) / others;
        let connected = shard.within(now_ns + share_ns, connect_to(shard, address));
        match connected.await {
            Some(Ok(socket)) => return Ok(socket),
            Some(Err(error)) => last = error,
            None => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// An attempt under way. One that is dropped is given up: its operation ends.
struct Attempt {
    fd: Rc<OwnedFd>,
    has_ended: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.has_ended {
            // Whatever comes of it: the socket is not used any more.
            let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        }
    }
}

async fn connect_to(shard: &Shard, address: &impl SockaddrLike) -> io::Result<OwnedFd> {
    let family = address.family().unwrap_or(AddressFamily::Unspec);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    if family != AddressFamily::Unix {
        setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        // A peer that has vanished is noticed one day.
        setsockopt(&fd, sockopt::KeepAlive, &true)?;
    }
    loop {
        match connect(fd.as_raw_fd(), address) {
            Ok(()) => break,
            Err(Errno::EAGAIN) => shard.sleep_ns(PAUSE_NS).await,
            Err(Errno::EINPROGRESS) => {
                finish(shard, &fd).await?;
                break;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    // The ring waits by itself, unless a socket says that nothing should.
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(fd)
}

/// Waits for the end of an attempt.
async fn finish(shard: &Shard, fd: &OwnedFd) -> io::Result<()> {
    let mut attempt = Attempt {
        fd: Rc::new(fd.try_clone()?),
        has_ended: false,
    };
    writable(shard, &attempt.fd).await?;
    attempt.has_ended = true;
    match getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    use nix::sys::socket::{Backlog, listen};
    use ringback_ring::Shards;
    use ringback_ring::shards::Config;
    use ringback_ring::socket::Batch;

    use super::*;
    use crate::Connection;

    const SECOND_NS: u64 = 1_000_000_000;

    fn on_a_shard<T, F>(make: impl FnOnce(Shard) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let config = Config {
            count: 1,
            pin: false,
            ..Config::default()
        };
        let set = Shards::start(&config).expect("a shard");
        let value = set.spawn_on(0, make).wait().expect("a shard that runs");
        set.stop();
        value
    }

    /// A port of this machine that answers nobody: its backlog is full.
    fn silent_port() -> (TcpListener, Vec<TcpStream>, SockaddrStorage) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        listen(&listener.as_fd(), Backlog::new(0).expect("a backlog")).expect("it listens");
        let mut crowd = Vec::new();
        let soon = Duration::from_millis(200);
        while let Ok(one) = TcpStream::connect_timeout(&address, soon) {
            crowd.push(one);
        }
        (listener, crowd, address.into())
    }

    /// More of them than there are helper threads: none of them takes one.
    #[test]
    fn who_waits_for_room_in_a_backlog_takes_no_thread() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).expect("a socket");
        listen(&listener.as_fd(), Backlog::new(0).expect("a backlog")).expect("it listens");
        let first = UnixStream::connect(&path).expect("room for one");
        on_a_shard(move |shard| async move {
            let address = Address::Unix(path);
            let deadline_ns = shard.now_ns() + 60 * SECOND_NS;
            let others: Vec<_> = (0..4)
                .map(|_| {
                    let (address, on) = (address.clone(), shard.clone());
                    shard.spawn(async move {
                        let socket = address.connect(&on, deadline_ns).await?;
                        let connection = Connection::new(&on, socket);
                        let mut batch = Batch::default();
                        batch.push_bytes(b"!");
                        connection.send(batch).await?;
                        Ok::<_, io::Error>(())
                    })
                })
                .collect();
            let soon_ns = shard.now_ns() + SECOND_NS / 10;
            let too_late = address.connect(&shard, soon_ns).await;
            assert_eq!(
                too_late.expect_err("no room").kind(),
                io::ErrorKind::TimedOut
            );
            let spoken = shard.blocking(move || {
                drop(first);
                let mut spoken = 0;
                while spoken < 4 {
                    let (mut one, _) = listener.accept().expect("somebody");
                    spoken += one.read(&mut [0]).expect("a word or the end");
                }
                spoken
            });
            assert_eq!(spoken.await, 4);
            for other in others {
                other.join().await.expect("room at last");
            }
        });
    }

    #[test]
    fn an_address_that_does_not_answer_leaves_time_for_the_next() {
        let (_listener, _crowd, silent) = silent_port();
        let good = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let good: SockaddrStorage = good.local_addr().expect("its address").into();
        on_a_shard(move |shard| async move {
            let deadline_ns = shard.now_ns() + SECOND_NS;
            let found = first(&shard, deadline_ns, &[silent, good]).await;
            assert!(found.is_ok(), "{found:?}");
        });
    }

    #[test]
    fn all_addresses_together_take_no_longer_than_they_may() {
        let (_listener, _crowd, silent) = silent_port();
        on_a_shard(move |shard| async move {
            let begin = Instant::now();
            let deadline_ns = shard.now_ns() + SECOND_NS / 2;
            let found = first(&shard, deadline_ns, &[silent; 8]).await;
            let error = found.expect_err("nobody");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let took = begin.elapsed();
            assert!(took >= Duration::from_millis(400), "{took:?}");
            assert!(took < Duration::from_secs(4), "{took:?}");
        });
    }

    #[test]
    fn a_port_without_anybody_refuses_at_once() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        drop(listener);
        let address = Address::Tcp {
            host: "127.0.0.1".into(),
            port,
            is_ipv4: None,
        };
        let error = on_a_shard(move |shard| async move {
            let deadline_ns = shard.now_ns() + 60 * SECOND_NS;
            let connected = address.connect(&shard, deadline_ns).await;
            connected.err().map(|error| error.kind())
        });
        assert_eq!(error, Some(io::ErrorKind::ConnectionRefused));
    }
}
