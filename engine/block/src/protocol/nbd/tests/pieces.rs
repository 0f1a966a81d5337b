//! Which requests a server sees: pieces, flags, and what it cannot do.

use std::sync::Mutex;

use super::super::wire::{command, request_flags as flag};
use super::*;
use crate::request::ZeroFlags;
use ringback_ring::Errno;

/// A request as the tests look at it.
type Seen = (u16, u16, u64, u64);

/// What a server with this offer sees. It answers everything with success, or with
/// an error by command.
fn seen(
    offer: Offer,
    errors: &'static [(u16, u32)],
    act: impl AsyncFnOnce(Shard, Arc<NbdProtocol>) + Send + 'static,
) -> Vec<Seen> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&all);
    let server = Scripted::new(move |door| {
        let mut peer = door.open();
        peer.negotiate(&offer);
        loop {
            let request = peer.request(offer.headers);
            if request.command == command::DISC {
                return;
            }
            let len = usize::try_from(request.len).unwrap_or(usize::MAX);
            if request.command == command::WRITE {
                peer.take(len);
            }
            let entry = (request.command, request.flags, request.offset, request.len);
            log.lock().expect("a log").push(entry);
            let error = errors.iter().find(|(kind, _)| *kind == request.command);
            let error = error.map_or(0, |(_, error)| *error);
            match offer.headers {
                Headers::Extended => peer.chunk(offer.headers, &request, chunk::NONE, 1, &[]),
                _ => peer.simple(&request, error),
            }
            if request.command == command::READ {
                peer.put(&vec![1; len]);
            }
        }
    });
    with_node(server.options(), act);
    server.finish();
    all.lock().expect("a log").split_off(0)
}

fn offer(headers: Headers, size: u64, maximum: u32) -> Offer {
    Offer {
        headers,
        size,
        blocks: Some([512, 4096, maximum]),
        ..Offer::default()
    }
}

#[test]
fn transfers_are_cut_at_the_servers_maximum() {
    // Of the maximum only whole units count.
    let list = seen(
        offer(Headers::Simple, 1 << 20, 4196),
        &[],
        async |shard, node| {
            write(&node, &shard, 512, 9216, 3).await.expect("a write");
            let bytes = read(&node, &shard, 1024, 4608).await.expect("a read");
            assert_eq!(bytes, [1; 4608]);
        },
    );
    assert_eq!(
        list,
        [
            (command::WRITE, 0, 512, 4096),
            (command::WRITE, 0, 4608, 4096),
            (command::WRITE, 0, 8704, 1024),
            (command::READ, 0, 1024, 4096),
            (command::READ, 0, 5120, 512),
            (command::FLUSH, 0, 0, 0),
        ]
    );
}

#[test]
fn long_ranges_are_cut_as_the_header_allows() {
    const SIZE: u64 = 6 << 30;
    let act = async |shard: Shard, node: Arc<NbdProtocol>| {
        node.discard(&shard, 0, SIZE).await.expect("a discard");
        let zeroed = node.write_zeroes(&shard, 0, SIZE, ZeroFlags::UNMAP).await;
        assert_eq!(zeroed, Ok(true));
    };
    let list = seen(offer(Headers::Extended, SIZE, 1 << 20), &[], act);
    assert_eq!(
        list[..2],
        [
            (command::TRIM, 0, 0, SIZE),
            (command::WRITE_ZEROES, 0, 0, SIZE)
        ]
    );
    let list = seen(offer(Headers::Simple, SIZE, 1 << 30), &[], act);
    let trim_max = (1 << 31) - 512;
    let trims = list.iter().filter(|seen| seen.0 == command::TRIM);
    let trims: Vec<_> = trims.map(|seen| seen.3).collect();
    assert_eq!(trims, [trim_max, trim_max, trim_max, 3 * 512]);
    let zeroes = list.iter().filter(|seen| seen.0 == command::WRITE_ZEROES);
    // No transfer is longer than 32 MiB.
    assert_eq!(zeroes.count(), 192);
}

#[test]
fn zeroes_keep_their_space_or_not_and_are_fast_or_not() {
    let list = seen(Offer::default(), &[], async |shard, node| {
        let fast = ZeroFlags {
            may_unmap: true,
            no_fallback: true,
        };
        for flags in [ZeroFlags::KEEP, ZeroFlags::UNMAP, fast] {
            let zeroed = node.write_zeroes(&shard, 0, 512, flags).await;
            assert_eq!(zeroed, Ok(true));
        }
        node.set_policy(false, false);
        let zeroed = node.write_zeroes(&shard, 0, 512, ZeroFlags::UNMAP).await;
        assert_eq!(zeroed, Ok(true));
        node.discard(&shard, 0, 512).await.expect("nothing to do");
    });
    let flags: Vec<u16> = list.iter().map(|seen| seen.1).collect();
    assert_eq!(
        flags,
        [flag::NO_HOLE, 0, flag::FAST_ZERO, flag::NO_HOLE, 0],
        "the last one is the flush of closing"
    );
}

#[test]
fn what_a_server_cannot_do_is_not_asked() {
    let bare = Offer {
        flags: has::HAS_FLAGS,
        ..Offer::default()
    };
    let list = seen(bare, &[], async |shard, node| {
        assert_eq!(node.flush(&shard).await, Ok(()));
        assert_eq!(node.discard(&shard, 0, 512).await, Ok(()));
        let zeroed = node.write_zeroes(&shard, 0, 512, ZeroFlags::UNMAP).await;
        assert_eq!(zeroed, Ok(false));
    });
    assert_eq!(list, []);
}

#[test]
fn what_a_server_does_not_support_after_all() {
    const UNSUPPORTED: u32 = 95;
    seen(
        Offer {
            headers: Headers::Simple,
            ..Offer::default()
        },
        &[
            (command::TRIM, UNSUPPORTED),
            (command::WRITE_ZEROES, UNSUPPORTED),
        ],
        async |shard, node| {
            assert_eq!(node.discard(&shard, 0, 512).await, Ok(()));
            let zeroed = node.write_zeroes(&shard, 0, 512, ZeroFlags::UNMAP).await;
            assert_eq!(zeroed, Ok(false));
        },
    );
    seen(
        Offer {
            headers: Headers::Simple,
            ..Offer::default()
        },
        &[(command::WRITE_ZEROES, 22)],
        async |shard, node| {
            let zeroed = node.write_zeroes(&shard, 0, 512, ZeroFlags::UNMAP).await;
            assert_eq!(zeroed, Err(Errno::EINVAL));
        },
    );
}

/// The last sector is longer than the export.
#[test]
fn behind_the_end_there_are_zeroes() {
    let odd = Offer {
        headers: Headers::Simple,
        size: 1000,
        ..Offer::default()
    };
    let list = seen(odd, &[], async |shard, node| {
        assert_eq!(node.size(), 1024);
        let bytes = read(&node, &shard, 512, 512).await.expect("a read");
        assert_eq!(bytes, [[1; 488].as_slice(), &[0; 24]].concat());
        write(&node, &shard, 998, 20, 7).await.expect("a write");
        write(&node, &shard, 1000, 24, 7)
            .await
            .expect("nothing to do");
        let extent = node.extent(&shard, 1000, 24).await;
        assert!(extent.is_ok());
        node.set_policy(true, true);
        assert_eq!(node.flush(&shard).await, Ok(()));
    });
    assert_eq!(
        list,
        [(command::READ, 0, 512, 488), (command::WRITE, 0, 998, 2)]
    );
}
