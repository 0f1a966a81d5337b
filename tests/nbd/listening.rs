//! Listening sockets that the server shares with somebody else.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::wait_for;
use ringback_tests::qmp::{Daemon, Program};
use ringback_tests::scratch::Scratch;
use serde_json::json;

use crate::scratch;

/// A daemon whose server listens at a socket that it has inherited. The server is
/// visited and stopped.
fn serve_and_stop(
    server: Program,
    scratch: &Scratch,
    listener: impl AsFd,
    mut visit: impl FnMut() -> bool,
) -> Daemon {
    let fd = listener.as_fd();
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor");
    let number = fd.as_raw_fd();
    let server_words = format!("addr.type=fd,addr.str={number}");
    let words = ["--nbd-server", &server_words];
    let mut daemon = Daemon::start(server, scratch.path(), &words);
    wait_for("a greeting", &mut visit);
    daemon.qmp.run("nbd-server-stop", &json!({}));
    daemon
}

/// Whether whoever connects is greeted.
fn greets(mut stream: impl std::io::Read) -> bool {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).is_ok() && greeting.starts_with(b"NBDMAGIC")
}

/// Waits for one connection.
fn accept<T>(mut accept: impl FnMut() -> std::io::Result<T>) {
    wait_for("a connection", || match accept() {
        Ok(_) => true,
        // The server has set the socket so.
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("nobody can be accepted any more: {error}"),
    });
}

/// QEMU removes the socket's file, as if it had made it.
#[test]
fn a_unix_socket_that_was_handed_over_listens_on_for_others() {
    let scratch = scratch();
    let path = scratch.join("handed-over.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let visit = || greets(UnixStream::connect(&path).expect("somebody listens"));
    let daemon = serve_and_stop(Program::Ringback, &scratch, &listener, visit);
    let _visitor = UnixStream::connect(&path).expect("somebody listens");
    accept(|| listener.accept());
    let _ = daemon.quit();
}

fn goes_on_without_the_server(server: Program) {
    let scratch = scratch();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    let visit = || greets(TcpStream::connect(address).expect("somebody listens"));
    let daemon = serve_and_stop(server, &scratch, &listener, visit);
    let _visitor = TcpStream::connect(address).expect("somebody listens");
    accept(|| listener.accept());
    let _ = daemon.quit();
}

#[test]
fn a_socket_that_was_handed_over_listens_on_for_others() {
    goes_on_without_the_server(Program::Ringback);
}

#[test]
fn a_socket_that_was_handed_over_listens_on_for_others_with_qemu() {
    if needs(&[Need::Program("qemu-storage-daemon")]) {
        goes_on_without_the_server(Program::Qemu);
    }
}
