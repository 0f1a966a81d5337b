//! Servers that go away, and what comes back.

use ringback_ring::Errno;

use super::super::wire::command;
use super::*;

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
        assert_eq!(read(&node, &shard, 0, 512).await, Err(Errno::EIO));
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

/// A server that accepts nothing more keeps nobody from closing the node.
#[test]
fn a_server_that_hangs_can_be_left() {
    let server = Scripted::new(|door| {
        let mut peer = meet(door, &SIMPLE);
        peer.request(Headers::Simple);
        assert!(peer.0.read_to_end(&mut Vec::new()).is_ok());
    });
    with_node(server.options(), async |shard, node| {
        let (of_task, on) = (Arc::clone(&node), shard.clone());
        let hanging = shard.spawn(async move { read(&of_task, &on, 0, 512).await });
        shard.sleep_ns(1_000_000).await;
        node.close(&shard).await;
        assert_eq!(hanging.join().await, Err(Errno::EIO));
    });
    server.finish();
}
