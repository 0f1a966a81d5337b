//! Servers that go away, and what comes back.

use ringback_ring::Errno;

use super::super::error::NbdError;
use super::super::wire::command;
use super::*;
use crate::extent::{Content, Extent};

const SIMPLE: Offer = Offer {
    headers: Headers::Simple,
    has_bitmap: false,
    has_context: false,
    size: 1 << 20,
    flags: has::HAS_FLAGS | has::SEND_FLUSH,
    blocks: Some([1, 4096, 32 << 20]),
};

fn meet(door: &Door, offer: &Offer) -> Peer {
    let mut peer = door.open();
    peer.negotiate(offer);
    peer
}

/// Answers requests, all with success and reads with a byte, until the client goes.
fn serve(peer: &mut Peer, byte: u8) {
    loop {
        let request = peer.request(Headers::Simple);
        let len = usize::try_from(request.len).expect("short");
        match request.command {
            command::DISC => return,
            command::WRITE => drop(peer.take(len)),
            _ => {}
        }
        peer.simple(&request, 0);
        if request.command == command::READ {
            peer.put(&vec![byte; len]);
        }
    }
}

#[test]
fn requests_are_sent_again_to_a_server_that_comes_back() {
    let server = Scripted::new(|door| {
        let mut first = meet(door, &SIMPLE);
        let before: Vec<_> = (0..3)
            .map(|_| {
                let request = first.request(Headers::Simple);
                if request.command == command::WRITE {
                    first.take(100);
                }
                (request.command, request.offset)
            })
            .collect();
        drop(first);
        let mut second = meet(door, &SIMPLE);
        for wanted in before {
            let request = second.request(Headers::Simple);
            assert_eq!((request.command, request.offset), wanted);
            if request.command == command::WRITE {
                assert_eq!(second.take(100), [6; 100]);
            }
            second.simple(&request, 0);
            if request.command == command::READ {
                second.put(&[4; 512]);
            }
        }
        serve(&mut second, 4);
    });
    let mut options = server.options();
    options.reconnect_delay_s = 60;
    with_node(options, async |shard, node| {
        let (one, other) = (Arc::clone(&node), Arc::clone(&node));
        let (on_one, on_other) = (shard.clone(), shard.clone());
        let write = shard.spawn(async move { write(&one, &on_one, 0, 100, 6).await });
        let flush = shard.spawn(async move { other.flush(&on_other).await });
        assert_eq!(read(&node, &shard, 512, 512).await, Ok(vec![4; 512]));
        assert_eq!(write.join().await, Ok(()));
        assert_eq!(flush.join().await, Ok(()));
    });
    server.finish();
}

#[test]
fn without_a_delay_requests_fail_until_the_server_is_back() {
    let server = Scripted::new(|door| {
        let mut first = meet(door, &SIMPLE);
        first.request(Headers::Simple);
        drop(first);
        serve(&mut meet(door, &SIMPLE), 2);
    });
    with_node(server.options(), async |shard, node| {
        assert_eq!(read(&node, &shard, 0, 512).await, Err(Errno::EIO));
        let deadline_ns = shard.now_ns() + 60_000_000_000;
        loop {
            match read(&node, &shard, 0, 512).await {
                Ok(bytes) => break assert_eq!(bytes, [2; 512]),
                Err(errno) => assert_eq!(errno, Errno::EIO),
            }
            assert!(shard.now_ns() < deadline_ns, "it does not come back");
            shard.sleep_ns(1_000_000).await;
        }
    });
    server.finish();
}

#[test]
fn requests_wait_no_longer_than_they_are_told() {
    let server = Scripted::new(|door| {
        let mut first = meet(door, &SIMPLE);
        first.request(Headers::Simple);
        drop(first);
        // It never says a word again.
        while !door.open().is_left() {}
    });
    let mut options = server.options();
    options.reconnect_delay_s = 1;
    with_node(options, async |shard, node| {
        let before_ns = shard.now_ns();
        assert_eq!(read(&node, &shard, 0, 512).await, Err(Errno::EIO));
        let waited_ns = shard.now_ns() - before_ns;
        assert!(
            (900_000_000..10_000_000_000).contains(&waited_ns),
            "{waited_ns} ns"
        );
        // From now on without waiting.
        let before_ns = shard.now_ns();
        assert_eq!(read(&node, &shard, 0, 512).await, Err(Errno::EIO));
        assert!(shard.now_ns() - before_ns < 500_000_000);
    });
    server.finish();
}

/// A server that is there for a moment only, again and again: neither is it asked
/// without a pause, nor do requests wait longer than they are told.
#[test]
fn coming_and_going_is_not_being_there() {
    let (is_over, was_over) = std::sync::mpsc::channel();
    let (has_seen_it, was_seen) = std::sync::mpsc::channel();
    let server = Scripted::new(move |door| {
        let mut visits = 0;
        while was_over.try_recv().is_err() {
            drop(meet(door, &SIMPLE));
            visits += 1;
        }
        assert!(visits < 8, "{visits} connections");
        has_seen_it.send(()).expect("somebody waits");
    });
    let mut options = server.options();
    options.reconnect_delay_s = 2;
    with_node(options, async move |shard, node| {
        let before_ns = shard.now_ns();
        assert_eq!(read(&node, &shard, 0, 512).await, Err(Errno::EIO));
        assert!(shard.now_ns() - before_ns < 10_000_000_000);
        is_over.send(()).expect("a server");
        // It looks at this after one more visit.
        let seen = shard.blocking(move || was_seen.recv_timeout(LIMIT)).await;
        seen.expect("another visit");
    });
    server.finish();
}

/// A smaller export, one for reading only, and one with less to offer are left; the
/// right one is taken.
#[test]
fn what_comes_back_must_be_what_was_there() {
    let server = Scripted::new(|door| {
        let mut first = meet(door, &SIMPLE);
        first.request(Headers::Simple);
        drop(first);
        for other in [
            Offer {
                size: 512,
                ..SIMPLE
            },
            Offer {
                flags: SIMPLE.flags | has::READ_ONLY,
                ..SIMPLE
            },
            Offer {
                flags: has::HAS_FLAGS,
                ..SIMPLE
            },
        ] {
            let mut peer = meet(door, &other);
            assert_eq!(peer.request(Headers::Simple).command, command::DISC);
        }
        serve(&mut meet(door, &SIMPLE), 8);
    });
    let mut options = server.options();
    options.reconnect_delay_s = 60;
    with_node(options, async |shard, node| {
        let end = (1 << 20) - 512;
        assert_eq!(read(&node, &shard, end, 512).await, Ok(vec![8; 512]));
    });
    server.finish();
}

/// A server that answers nothing more keeps nobody from closing the node.
#[test]
fn a_server_that_hangs_can_be_left() {
    let (has_come, came) = std::sync::mpsc::channel();
    let server = Scripted::new(move |door| {
        let mut peer = meet(door, &SIMPLE);
        assert_eq!(peer.request(Headers::Simple).command, command::READ);
        has_come.send(()).expect("somebody waits");
        assert!(peer.0.read_to_end(&mut Vec::new()).is_ok());
    });
    with_node(server.options(), async move |shard, node| {
        let (of_task, on) = (Arc::clone(&node), shard.clone());
        let hanging = shard.spawn(async move { read(&of_task, &on, 0, 512).await });
        let came = shard.blocking(move || came.recv_timeout(LIMIT)).await;
        came.expect("a request");
        node.close(&shard).await;
        assert_eq!(hanging.join().await, Err(Errno::EIO));
    });
    server.finish();
}

/// Nor does one that never answers the last flush.
#[test]
fn a_last_flush_is_not_waited_for_without_limit() {
    let server = Scripted::new(|door| {
        let mut peer = meet(door, &SIMPLE);
        let write = peer.request(Headers::Simple);
        peer.take(512);
        peer.simple(&write, 0);
        assert_eq!(peer.request(Headers::Simple).command, command::FLUSH);
        assert_eq!(peer.request(Headers::Simple).command, command::DISC);
        assert!(peer.is_left());
    });
    with_node(server.options(), async |shard, node| {
        assert_eq!(write(&node, &shard, 0, 512, 1).await, Ok(()));
        let before_ns = shard.now_ns();
        node.close_within(&shard, 300_000_000).await;
        let took_ns = shard.now_ns() - before_ns;
        assert!(
            (300_000_000..10_000_000_000).contains(&took_ns),
            "{took_ns} ns"
        );
    });
    server.finish();
}

/// Whoever has no room for clients is waited for as long as was said.
#[test]
fn a_full_backlog_is_a_server_that_does_not_answer() {
    let server = Scripted::new(|_| {});
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("full");
    let listener = UnixListener::bind(&path).expect("a socket");
    let backlog = nix::sys::socket::Backlog::new(0).expect("a backlog");
    nix::sys::socket::listen(&listener, backlog).expect("it listens");
    let _first = UnixStream::connect(&path).expect("room for one");
    let mut options = server.options();
    options.address = Address::Unix(path);
    options.open_timeout_s = 1;
    let took = on_shards(1, |shard| async move {
        let before_ns = shard.now_ns();
        let opened = NbdProtocol::open(&shard, options).await;
        assert_eq!(opened.err(), Some(NbdError::Timeout));
        shard.now_ns() - before_ns
    });
    assert!((1_000_000_000..10_000_000_000).contains(&took), "{took} ns");
    server.finish();
}

/// Without the context of before, everything is data, and the server is not asked:
/// QEMU goes on so, too.
#[test]
fn a_context_that_does_not_come_back_makes_everything_data() {
    let with_context = Offer::default();
    let without = Offer {
        has_context: false,
        ..with_context
    };
    let headers = with_context.headers;
    let server = Scripted::new(move |door| {
        let mut first = meet(door, &with_context);
        let request = first.request(headers);
        assert_eq!(request.command, command::BLOCK_STATUS);
        drop(first);
        let mut second = meet(door, &without);
        let request = second.request(headers);
        assert_eq!(request.command, command::READ);
        second.data(headers, &request, request.offset, &[3; 512], true);
        assert_eq!(second.request(headers).command, command::DISC);
    });
    let mut options = server.options();
    options.reconnect_delay_s = 60;
    with_node(options, async |shard, node| {
        let extent = node.extent(&shard, 4096, 8192).await;
        assert_eq!(extent, Ok(Extent::here(Content::Data, 8192)));
        assert_eq!(read(&node, &shard, 0, 512).await, Ok(vec![3; 512]));
    });
    server.finish();
}
