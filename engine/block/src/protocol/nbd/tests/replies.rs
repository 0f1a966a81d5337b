//! Replies, good and bad.

use ringback_ring::Errno;

use super::super::wire::command;
use super::*;
use crate::extent::{Content, Extent};

const ALL: [Headers; 3] = [Headers::Simple, Headers::Structured, Headers::Extended];

/// Starts a server that negotiates and then follows a script.
fn server(offer: Offer, script: impl FnOnce(&mut Peer) + Send + 'static) -> Scripted {
    Scripted::new(move |door| {
        let mut peer = door.open();
        peer.negotiate(&offer);
        script(&mut peer);
        // Parting, or the end.
        let _ = peer.0.read(&mut [0; 64]);
    })
}

fn offer(headers: Headers) -> Offer {
    Offer {
        headers,
        ..Offer::default()
    }
}

#[test]
fn reads_and_writes_with_every_kind_of_header() {
    for headers in ALL {
        let server = server(offer(headers), move |peer| {
            let request = peer.request(headers);
            assert_eq!(
                (request.command, request.offset, request.len),
                (command::WRITE, 512, 3)
            );
            assert_eq!(peer.take(3), [5; 3]);
            if headers == Headers::Extended {
                peer.chunk(headers, &request, chunk::NONE, chunk::DONE, &[]);
            } else {
                peer.simple(&request, 0);
            }
            let request = peer.request(headers);
            assert_eq!(
                (request.command, request.offset, request.len),
                (command::READ, 100, 6)
            );
            if headers == Headers::Simple {
                peer.simple(&request, 0);
                peer.put(b"abcdef");
                return;
            }
            // In any order, with a hole.
            peer.data(headers, &request, 104, b"ef", false);
            let hole = [&102_u64.to_be_bytes()[..], &2_u32.to_be_bytes()].concat();
            peer.chunk(headers, &request, chunk::OFFSET_HOLE, 0, &hole);
            peer.data(headers, &request, 100, b"ab", true);
        });
        let result = with_node(server.options(), async |shard, node| {
            write(&node, &shard, 512, 3, 5).await?;
            read(&node, &shard, 100, 6).await
        });
        let wanted = if headers == Headers::Simple {
            b"abcdef"
        } else {
            b"ab\0\0ef"
        };
        assert_eq!(result, Ok(wanted.to_vec()), "{headers:?}");
        server.finish();
    }
}

#[test]
fn answers_come_in_any_order() {
    let server = server(offer(Headers::Simple), |peer| {
        let requests: Vec<Request> = (0..32).map(|_| peer.request(Headers::Simple)).collect();
        for request in requests.iter().rev() {
            peer.simple(request, 0);
            peer.put(&[u8::try_from(request.offset / 512).expect("small"); 512]);
        }
    });
    with_node(server.options(), async |shard, node| {
        let tasks: Vec<_> = (0..32_u8)
            .map(|n| {
                let (shard, node) = (shard.clone(), Arc::clone(&node));
                let on = shard.clone();
                on.spawn(async move { read(&node, &shard, u64::from(n) * 512, 512).await })
            })
            .collect();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(task.join().await, Ok(vec![n; 512]));
        }
    });
    server.finish();
}

/// More requests than a connection has room for all come to their end, and so do
/// writes that are answered before they have been sent.
#[test]
fn requests_beyond_the_limit_wait() {
    let server = server(offer(Headers::Structured), |peer| {
        let mut unanswered = Vec::new();
        for n in 0..200 {
            let request = peer.request(Headers::Structured);
            assert_eq!(peer.take(4096), [9; 4096]);
            unanswered.push(request);
            // Never more than there is room for.
            assert!(unanswered.len() <= 64);
            if unanswered.len() == 64 || n + unanswered.len() >= 200 {
                for request in unanswered.drain(..) {
                    peer.simple(&request, 0);
                }
            }
        }
    });
    with_node(server.options(), async |shard, node| {
        let tasks: Vec<_> = (0..200)
            .map(|n| {
                let (shard, node) = (shard.clone(), Arc::clone(&node));
                let on = shard.clone();
                on.spawn(async move { write(&node, &shard, n * 4096, 4096, 9).await })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.join().await, Ok(()));
        }
    });
    server.finish();
}

/// How a read of 4096 bytes at 8192 and another request after it end.
fn read_answered(
    headers: Headers,
    answer: impl FnOnce(&mut Peer, &Request) + Send + 'static,
) -> (IoResult<Vec<u8>>, IoResult<()>) {
    let server = server(offer(headers), move |peer| {
        let request = peer.request(headers);
        answer(peer, &request);
        // The connection may be over.
        let mut bytes = [0; EXTENDED_REQUEST_BYTES];
        let len = if headers == Headers::Extended {
            EXTENDED_REQUEST_BYTES
        } else {
            REQUEST_BYTES
        };
        if peer.0.read_exact(&mut bytes[..len]).is_ok() {
            let cookie = u64::from_be_bytes(bytes[8..16].try_into().expect("eight"));
            let flush = Request { cookie, ..request };
            if headers == Headers::Extended {
                peer.chunk(headers, &flush, chunk::NONE, chunk::DONE, &[]);
            } else {
                peer.simple(&flush, 0);
            }
        }
    });
    let results = with_node(server.options(), async |shard, node| {
        let first = read(&node, &shard, 8192, 4096).await;
        (first, node.flush(&shard).await)
    });
    server.finish();
    results
}

#[test]
fn a_read_with_bytes_missing_has_failed() {
    for headers in [Headers::Structured, Headers::Extended] {
        let (first, then) = read_answered(headers, move |peer, request| {
            peer.data(headers, request, 8192, &[1; 4095], true);
        });
        assert_eq!((first, then), (Err(Errno::EIO), Ok(())));
        let (first, then) = read_answered(headers, move |peer, request| {
            peer.chunk(headers, request, chunk::NONE, chunk::DONE, &[]);
        });
        assert_eq!((first, then), (Err(Errno::EIO), Ok(())));
    }
}

#[test]
fn errors_of_the_server_are_told() {
    for (number, errno) in [
        (1, Errno::EPERM),
        (5, Errno::EIO),
        (28, Errno::ENOSPC),
        (108, Errno::ESHUTDOWN),
        (77, Errno::EINVAL),
    ] {
        let (first, then) = read_answered(Headers::Simple, move |peer, request| {
            peer.simple(request, number);
        });
        assert_eq!((first, then), (Err(errno), Ok(())));
        let (first, then) = read_answered(Headers::Structured, move |peer, request| {
            // A part, an error that is not the last chunk, another one with a place.
            peer.data(Headers::Structured, request, 8192, b"x", false);
            let body = [&number.to_be_bytes()[..], &3_u16.to_be_bytes(), b"bad"].concat();
            peer.chunk(Headers::Structured, request, chunk::ERROR, 0, &body);
            let body = [&5_u32.to_be_bytes()[..], &[0; 2], &9000_u64.to_be_bytes()].concat();
            peer.chunk(Headers::Structured, request, chunk::ERROR_OFFSET, 1, &body);
        });
        assert_eq!((first, then), (Err(errno), Ok(())));
    }
}

type Script = Box<dyn FnOnce(&mut Peer, &Request) + Send>;

fn place(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

/// Chunks that break the rules, as kind, flags and body.
fn bad_chunks() -> Vec<(u16, u16, Vec<u8>)> {
    let data = |offset: u64, len: usize| [&offset.to_be_bytes()[..], &vec![1; len]].concat();
    vec![
        (chunk::NONE, 0, vec![]),
        (chunk::NONE, 1, vec![1]),
        (chunk::OFFSET_DATA, 1, vec![]),
        (chunk::OFFSET_DATA, 1, vec![0; 7]),
        (chunk::OFFSET_DATA, 1, data(8192, 0)),
        (chunk::OFFSET_DATA, 1, data(8192, 4097)),
        (chunk::OFFSET_DATA, 1, data(8191, 2)),
        (chunk::OFFSET_DATA, 1, data(12288, 1)),
        (chunk::OFFSET_DATA, 1, data(u64::MAX, 4)),
        (chunk::OFFSET_HOLE, 1, place(8192, 0)),
        (chunk::OFFSET_HOLE, 1, place(8192, u32::MAX)),
        (chunk::OFFSET_HOLE, 1, place(0, 4096)),
        (chunk::OFFSET_HOLE, 1, vec![0; 11]),
        (chunk::BLOCK_STATUS, 1, vec![0; 12]),
        (chunk::BLOCK_STATUS_EXTENDED, 1, vec![0; 24]),
        (3, 1, vec![]),
        (99, 1, vec![0; 8]),
        (chunk::ERROR, 1, vec![0; 6]),
        (chunk::ERROR, 1, vec![0, 0, 0, 5, 0]),
        (chunk::ERROR, 1, vec![0, 0, 0, 5, 0, 1]),
        (chunk::ERROR, 1, vec![1; 1 << 17]),
        (chunk::ERROR_BIT | 77, 1, vec![]),
    ]
}

#[test]
fn who_breaks_the_rules_is_left_for_good() {
    for headers in [Headers::Structured, Headers::Extended] {
        for (kind, flags, body) in bad_chunks() {
            let what = format!("{headers:?} {kind} {flags} {} bytes", body.len());
            let (first, then) = read_answered(headers, move |peer, request| {
                peer.chunk(headers, request, kind, flags, &body);
            });
            assert_eq!(
                (first, then),
                (Err(Errno::EINVAL), Err(Errno::EIO)),
                "{what}"
            );
        }
    }
    let simple: Script = Box::new(|peer, request| peer.simple(request, 0));
    let error: Script = Box::new(|peer, request| peer.simple(request, 5));
    let twice: Script = Box::new(|peer, request| {
        for _ in 0..2 {
            peer.data(Headers::Structured, request, 8192, &[1; 8], false);
        }
    });
    for script in [simple, error, twice] {
        let results = read_answered(Headers::Structured, script);
        assert_eq!(results, (Err(Errno::EINVAL), Err(Errno::EIO)));
    }
}

/// What cannot be told to belong to a request.
#[test]
fn replies_to_nobody_end_the_connection() {
    for headers in ALL {
        let cookie: Script = Box::new(move |peer, request| {
            let cookie = request.cookie ^ 1 << 40;
            let other = Request { cookie, ..*request };
            if headers == Headers::Simple {
                peer.simple(&other, 0);
            } else {
                peer.data(headers, &other, 8192, &[1; 4096], true);
            }
        });
        let magic: Script = Box::new(|peer, _| peer.put(&[0x55; 64]));
        // Headers that were not agreed upon.
        let kind: Script = Box::new(move |peer, request| match headers {
            Headers::Extended => peer.simple(request, 0),
            Headers::Simple => peer.data(Headers::Structured, request, 8192, &[1; 4096], true),
            Headers::Structured => peer.data(Headers::Extended, request, 8192, &[1; 4096], true),
        });
        let end: Script = Box::new(|peer, _| {
            let _ = peer.0.shutdown(std::net::Shutdown::Both);
        });
        for script in [cookie, magic, kind, end] {
            let results = read_answered(headers, script);
            assert_eq!(results, (Err(Errno::EIO), Err(Errno::EIO)), "{headers:?}");
        }
    }
}

/// How a question about the range from 4096 to 12288 is answered.
fn asked(
    change: impl FnOnce(&mut Offer),
    body: impl FnOnce(&Request) -> Vec<u8> + Send + 'static,
) -> IoResult<Extent> {
    let mut offer = Offer::default();
    change(&mut offer);
    let headers = offer.headers;
    let server = server(offer, move |peer| {
        let request = peer.request(headers);
        assert_eq!((request.command, request.flags), (command::BLOCK_STATUS, 8));
        assert_eq!((request.offset, request.len), (4096, 8192));
        let kind = match headers {
            Headers::Extended => chunk::BLOCK_STATUS_EXTENDED,
            _ => chunk::BLOCK_STATUS,
        };
        let body = body(&request);
        peer.chunk(headers, &request, kind, chunk::DONE, &body);
    });
    let extent = with_node(server.options(), async |shard, node| {
        node.extent(&shard, 4096, 8192).await
    });
    server.finish();
    extent
}

fn narrow(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut body = context.to_be_bytes().to_vec();
    for (len, flags) in extents {
        body.extend_from_slice(&len.to_be_bytes());
        body.extend_from_slice(&flags.to_be_bytes());
    }
    body
}

#[test]
fn extents_as_a_server_tells_them() {
    let told = |extents: &'static [(u32, u32)]| asked(|_| {}, |_| narrow(CONTEXT, extents));
    let extent = |content, len, depth| {
        Ok(Extent {
            content,
            len,
            depth,
        })
    };
    assert_eq!(told(&[(4096, 0)]), extent(Content::Data, 4096, 1));
    assert_eq!(told(&[(512, 3), (7, 0)]), extent(Content::Zero, 512, 1));
    assert_eq!(told(&[(512, 2)]), extent(Content::Zero, 512, 1));
    assert_eq!(told(&[(512, 1)]), extent(Content::Data, 512, 0));
    assert_eq!(told(&[(u32::MAX, 3)]), extent(Content::Zero, 8192, 1));
    let long = asked(
        |offer| offer.headers = Headers::Extended,
        |_| {
            let mut body = CONTEXT.to_be_bytes().to_vec();
            body.extend_from_slice(&1_u32.to_be_bytes());
            body.extend_from_slice(&(1_u64 << 40).to_be_bytes());
            body.extend_from_slice(&3_u64.to_be_bytes());
            body
        },
    );
    assert_eq!(long, extent(Content::Zero, 8192, 1));
}

/// A server whose answers are no whole units.
#[test]
fn extents_are_whole_units() {
    let told = |extents: &'static [(u32, u32)]| {
        asked(
            |offer| offer.blocks = Some([4096, 4096, 65536]),
            |_| narrow(CONTEXT, extents),
        )
    };
    assert_eq!(told(&[(4097, 3)]), Ok(Extent::here(Content::Zero, 4096)));
    assert_eq!(told(&[(100, 3)]), Ok(Extent::here(Content::Data, 4096)));
}

#[test]
fn extents_that_cannot_be() {
    for body in [
        narrow(CONTEXT, &[]),
        narrow(CONTEXT + 1, &[(512, 0)]),
        narrow(CONTEXT, &[(0, 0)]),
        narrow(CONTEXT, &[(512, 0); 200]),
        vec![0; 5],
        vec![],
    ] {
        assert_eq!(asked(|_| {}, |_| body), Err(Errno::EINVAL));
    }
    let count = asked(
        |offer| offer.headers = Headers::Extended,
        |_| [&CONTEXT.to_be_bytes()[..], &2_u32.to_be_bytes(), &[1; 16]].concat(),
    );
    assert_eq!(count, Err(Errno::EINVAL));
}

/// An error is one of the question only, told in a chunk or by a mere number; a
/// success by a mere number is no answer. QEMU has the same.
#[test]
fn a_question_about_extents_may_fail() {
    let headers = Headers::Structured;
    let outcome = |answer: fn(&mut Peer, &Request)| {
        let server = server(offer(headers), move |peer| {
            let request = peer.request(headers);
            assert_eq!(request.command, command::BLOCK_STATUS);
            answer(peer, &request);
            let request = peer.request(headers);
            peer.data(headers, &request, 0, &[4; 512], true);
        });
        let outcome = with_node(server.options(), async |shard, node| {
            let extent = node.extent(&shard, 0, 4096).await;
            (extent, read(&node, &shard, 0, 512).await)
        });
        server.finish();
        outcome
    };
    let by_number = outcome(|peer, request| peer.simple(request, 12));
    assert_eq!(by_number, (Err(Errno::ENOMEM), Ok(vec![4; 512])));
    let in_a_chunk = outcome(|peer, request| {
        let body = [0, 0, 0, 12, 0, 0];
        peer.chunk(
            Headers::Structured,
            request,
            chunk::ERROR,
            chunk::DONE,
            &body,
        );
    });
    assert_eq!(in_a_chunk, by_number);
    let success = outcome(|peer, request| peer.simple(request, 0));
    assert_eq!(success, (Err(Errno::EIO), Ok(vec![4; 512])));
}

/// Noise where replies should be, sometimes with a good beginning.
#[test]
fn noise_harms_nobody() {
    for seed in 0..60_u64 {
        let headers = ALL[usize::try_from(seed % 3).expect("small")];
        let (first, _) = read_answered(headers, move |peer, request| {
            let mut state = seed;
            let mut noise = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(99);
                (state >> 33).to_be_bytes()[7]
            };
            if headers != Headers::Simple && seed % 2 == 0 {
                let kind = u16::from(noise() % 8) | u16::from(noise() % 2) << 15;
                let body: Vec<u8> = (0..noise()).map(|_| noise() % 3).collect();
                peer.chunk(headers, request, kind, u16::from(noise() % 2), &body);
            }
            let bytes: Vec<u8> = (0..300).map(|_| noise()).collect();
            peer.put(&bytes);
            let _ = peer.0.shutdown(std::net::Shutdown::Write);
        });
        assert!(first.is_err(), "seed {seed}");
    }
}

/// Offsets and lengths of what is dirty, and up to where that is known.
type Found = (Vec<(u64, u64)>, u64);

/// How the question of what is dirty from an offset on is answered, and another
/// request after it. The server's unit is 512 bytes.
fn dirty(
    headers: Headers,
    from: u64,
    bodies: impl FnOnce(&Request) -> Vec<Vec<u8>> + Send + 'static,
) -> (IoResult<Found>, IoResult<()>) {
    let offer = Offer {
        headers,
        has_bitmap: true,
        blocks: Some([512, 4096, 1 << 20]),
        ..Offer::default()
    };
    let server = server(offer, move |peer| {
        let request = peer.request(headers);
        assert_eq!((request.command, request.flags), (command::BLOCK_STATUS, 0));
        assert_eq!((request.offset, request.len), (from, (1 << 20) - from));
        let kind = match headers {
            Headers::Extended => chunk::BLOCK_STATUS_EXTENDED,
            _ => chunk::BLOCK_STATUS,
        };
        let bodies = bodies(&request);
        let last = bodies.len() - 1;
        for (index, body) in bodies.iter().enumerate() {
            let flags = if index == last { chunk::DONE } else { 0 };
            peer.chunk(headers, &request, kind, flags, body);
        }
        let len = match headers {
            Headers::Extended => EXTENDED_REQUEST_BYTES,
            _ => REQUEST_BYTES,
        };
        let mut bytes = vec![0; len];
        if peer.0.read_exact(&mut bytes).is_ok() {
            let cookie = u64::from_be_bytes(bytes[8..16].try_into().expect("eight"));
            let flush = Request { cookie, ..request };
            peer.chunk(headers, &flush, chunk::NONE, chunk::DONE, &[]);
        }
    });
    let mut options = server.options();
    options.bitmap = Some("b".into());
    let results = with_node(options, async move |shard, node| {
        let found = node.dirty_areas(&shard, from).await;
        let found = found.map(|(areas, end)| {
            let areas = areas.iter().map(|area| (area.offset, area.len));
            (areas.collect(), end)
        });
        (found, node.flush(&shard).await)
    });
    server.finish();
    results
}

fn wide(context: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let count = u32::try_from(extents.len()).expect("few");
    let mut body = [context.to_be_bytes(), count.to_be_bytes()].concat();
    for (len, flags) in extents {
        body.extend_from_slice(&len.to_be_bytes());
        body.extend_from_slice(&flags.to_be_bytes());
    }
    body
}

#[test]
fn what_is_dirty_is_told_for_both_contexts() {
    let (found, then) = dirty(Headers::Structured, 0, |_| {
        vec![
            narrow(CONTEXT, &[(4096, 3), (1 << 19, 0)]),
            narrow(BITMAP, &[(1024, 1), (512, 1), (512, 0), (512, 1)]),
        ]
    });
    assert_eq!(found, Ok((vec![(0, 1536), (2048, 512)], 2560)));
    assert_eq!(then, Ok(()));
    // It may end behind the export, and say nothing of the usual context.
    let (found, then) = dirty(Headers::Extended, 4096, |_| {
        vec![wide(BITMAP, &[(512, 0), (u64::MAX, 1)])]
    });
    assert_eq!(found, Ok((vec![(4608, (1 << 20) - 4608)], 1 << 20)));
    assert_eq!(then, Ok(()));
}

/// An answer that ends inside of a unit is believed up to that unit.
#[test]
fn what_is_dirty_ends_with_a_unit() {
    let answered = |extents: &'static [(u32, u32)]| {
        dirty(Headers::Structured, 0, move |_| {
            vec![narrow(BITMAP, extents)]
        })
        .0
    };
    assert_eq!(answered(&[(512, 0), (100, 1)]), Ok((vec![], 512)));
    assert_eq!(answered(&[(512, 1), (100, 1)]), Ok((vec![(0, 512)], 512)));
    assert_eq!(answered(&[(100, 0)]), Ok((vec![(0, 512)], 512)));
}

#[test]
fn long_answers_about_a_bitmap_come_whole() {
    let (found, then) = dirty(Headers::Structured, 0, |_| {
        let extents: Vec<(u32, u32)> = (0..2048).map(|n| (512, n % 2)).collect();
        vec![narrow(BITMAP, &extents)]
    });
    let (areas, end) = found.expect("an answer");
    assert_eq!((areas.len(), end), (1024, 1 << 20));
    assert_eq!(areas[1023], ((1 << 20) - 512, 512));
    assert_eq!(then, Ok(()));
}

#[test]
fn wrong_answers_about_a_bitmap_end_the_connection() {
    type Bodies = Vec<Vec<u8>>;
    let wrong: Vec<(&str, Bodies)> = vec![
        ("another context", vec![narrow(99, &[(512, 0)])]),
        ("no length", vec![narrow(BITMAP, &[(512, 0), (0, 1)])]),
        ("no extents", vec![narrow(BITMAP, &[])]),
        (
            "twice",
            vec![narrow(BITMAP, &[(512, 0)]), narrow(BITMAP, &[(512, 0)])],
        ),
        (
            "the usual twice",
            vec![narrow(CONTEXT, &[(512, 0)]), narrow(CONTEXT, &[(512, 0)])],
        ),
    ];
    for (what, bodies) in wrong {
        let (found, then) = dirty(Headers::Structured, 0, |_| bodies);
        assert_eq!(
            (found, then),
            (Err(Errno::EINVAL), Err(Errno::EIO)),
            "{what}"
        );
    }
    let mut other = wide(BITMAP, &[(512, 0)]);
    other[7] = 2;
    let (found, then) = dirty(Headers::Extended, 0, |_| vec![other]);
    assert_eq!((found, then), (Err(Errno::EINVAL), Err(Errno::EIO)));
    // Only the usual one.
    let (found, then) = dirty(Headers::Structured, 0, |_| {
        vec![narrow(CONTEXT, &[(512, 0)])]
    });
    assert_eq!((found, then), (Err(Errno::EIO), Ok(())));
}

/// Other questions are answered for the bitmap, too, which does not count.
#[test]
fn extents_beside_a_bitmap() {
    let offer = Offer {
        has_bitmap: true,
        ..Offer::default()
    };
    let server = server(offer, |peer| {
        let request = peer.request(Headers::Structured);
        assert_eq!(request.flags, 8);
        for (context, flags, last) in [(BITMAP, 1, 0), (CONTEXT, 3, chunk::DONE)] {
            let body = narrow(context, &[(4096, flags)]);
            peer.chunk(
                Headers::Structured,
                &request,
                chunk::BLOCK_STATUS,
                last,
                &body,
            );
        }
    });
    let mut options = server.options();
    options.bitmap = Some("b".into());
    let extent = with_node(options, async |shard, node| {
        node.extent(&shard, 4096, 8192).await
    });
    server.finish();
    assert_eq!(extent, Ok(Extent::here(Content::Zero, 4096)));
}
