//! Requests from several shards.

use ringback_ring::Errno;

use super::super::wire::command;
use super::*;

fn offer(flags: u16) -> Offer {
    Offer {
        headers: Headers::Simple,
        has_context: false,
        flags: has::HAS_FLAGS | has::SEND_FLUSH | flags,
        ..Offer::default()
    }
}

/// A small disk on a connection, until the client takes leave.
fn serve(peer: &mut Peer, disk: &std::sync::Mutex<Vec<u8>>) {
    assert!(serve_until_left(peer, disk), "the client takes leave");
}

/// The same; false: the client went without a word.
fn serve_until_left(peer: &mut Peer, disk: &std::sync::Mutex<Vec<u8>>) -> bool {
    while peer.has_more() {
        let request = peer.request(Headers::Simple);
        let start = usize::try_from(request.offset).expect("small");
        let end = start + usize::try_from(request.len).expect("small");
        match request.command {
            command::DISC => return true,
            command::READ => {
                peer.simple(&request, 0);
                let bytes = disk.lock().expect("a disk")[start..end].to_vec();
                peer.put(&bytes);
            }
            command::WRITE => {
                let bytes = peer.take(end - start);
                disk.lock().expect("a disk")[start..end].copy_from_slice(&bytes);
                peer.simple(&request, 0);
            }
            _ => peer.simple(&request, 0),
        }
    }
    false
}

fn disk() -> Arc<std::sync::Mutex<Vec<u8>>> {
    Arc::new(std::sync::Mutex::new(vec![0; 1 << 20]))
}

/// From the other shard: writes, flushes, and reads it again.
async fn use_from_afar(shard: &Shard, node: &Arc<NbdProtocol>, value: u8) {
    let node = Arc::clone(node);
    let answer = shard.set().spawn_on(1, move |shard| async move {
        write(&node, &shard, 4096, 5000, value).await?;
        node.flush(&shard).await?;
        read(&node, &shard, 4096, 5000).await
    });
    assert_eq!(answer.await.expect("a shard"), Ok(vec![value; 5000]));
}

#[test]
fn one_connection_serves_every_shard() {
    let disk = disk();
    let server = Scripted::new(move |door| {
        let mut peer = door.open();
        peer.negotiate(&offer(0));
        serve(&mut peer, &disk);
    });
    with_node(server.options(), async |shard, node| {
        for value in 1..4 {
            use_from_afar(&shard, &node, value).await;
            let here = read(&node, &shard, 9000, 10).await;
            assert_eq!(here, Ok(vec![value; 10]));
        }
    });
    server.finish();
}

#[test]
fn a_server_that_allows_it_gets_a_connection_from_each_shard() {
    let disk = disk();
    let (second_is_there, is_second_there) = std::sync::mpsc::channel();
    let server = Scripted::new(move |door| {
        std::thread::scope(|scope| {
            for index in 0..2 {
                let mut peer = door.open();
                peer.negotiate(&offer(has::CAN_MULTI_CONN));
                if index == 1 {
                    second_is_there.send(()).expect("somebody waits");
                }
                let disk = Arc::clone(&disk);
                scope.spawn(move || serve(&mut peer, &disk));
            }
        });
    });
    with_node(server.options(), async move |shard, node| {
        // The first request goes the other way, and makes the connection.
        use_from_afar(&shard, &node, 1).await;
        shard
            .blocking(move || is_second_there.recv_timeout(LIMIT))
            .await
            .expect("a second connection");
        for value in 2..20 {
            use_from_afar(&shard, &node, value).await;
        }
    });
    server.finish();
}

/// A further connection that breaks is one less, and no more: with a delay its
/// requests go through the first one.
#[test]
fn a_further_connection_that_breaks_is_done_without() {
    let disk = disk();
    let (is_broken, was_broken) = std::sync::mpsc::channel();
    let server = Scripted::new(move |door| {
        std::thread::scope(|scope| {
            let mut first = door.open();
            first.negotiate(&offer(has::CAN_MULTI_CONN));
            let disk = &disk;
            scope.spawn(move || serve(&mut first, disk));
            let mut second = door.open();
            second.negotiate(&offer(has::CAN_MULTI_CONN));
            second.request(Headers::Simple);
            drop(second);
            is_broken.send(()).expect("somebody waits");
        });
    });
    let mut options = server.options();
    options.reconnect_delay_s = 60;
    with_node(options, async move |shard, node| {
        let deadline_ns = shard.now_ns() + 60_000_000_000;
        while was_broken.try_recv().is_err() {
            use_from_afar(&shard, &node, 3).await;
            assert!(shard.now_ns() < deadline_ns, "no second connection");
        }
        use_from_afar(&shard, &node, 4).await;
    });
    server.finish();
}

/// Who breaks the rules on one connection is trusted on none.
#[test]
fn a_server_that_breaks_the_rules_is_left_by_every_shard() {
    let disk = disk();
    let (has_been_left, was_left) = std::sync::mpsc::channel();
    let server = Scripted::new(move |door| {
        std::thread::scope(|scope| {
            let mut first = door.open();
            first.negotiate(&offer(has::CAN_MULTI_CONN));
            let disk = &disk;
            scope.spawn(move || {
                serve_until_left(&mut first, disk);
                has_been_left.send(()).expect("somebody waits");
            });
            let mut second = door.open();
            second.negotiate(&offer(has::CAN_MULTI_CONN));
            second.request(Headers::Simple);
            second.put(b"That is no reply.");
            assert!(second.is_left());
        });
    });
    let mut options = server.options();
    options.reconnect_delay_s = 60;
    with_node(options, async move |shard, node| {
        let deadline_ns = shard.now_ns() + 60_000_000_000;
        let failed =
            loop {
                let node = Arc::clone(&node);
                let answer = shard.set().spawn_on(1, move |shard| async move {
                    read(&node, &shard, 0, 512).await
                });
                if let Err(errno) = answer.await.expect("a shard") {
                    break errno;
                }
                assert!(shard.now_ns() < deadline_ns, "no second connection");
            };
        assert_eq!(failed, Errno::EIO);
        let left = shard.blocking(move || was_left.recv_timeout(LIMIT)).await;
        left.expect("the first connection ends, too");
        assert_eq!(read(&node, &shard, 0, 512).await, Err(Errno::EIO));
    });
    server.finish();
}
