//! From the greeting to the export.

use super::*;
use crate::protocol::nbd::NbdError;

/// How opening ends when a server follows this script.
fn opening(script: impl FnOnce(&mut Peer) + Send + 'static) -> Result<(), NbdError> {
    opening_with(|_| {}, script)
}

fn opening_with(
    change: impl FnOnce(&mut Options) + Send + 'static,
    script: impl FnOnce(&mut Peer) + Send + 'static,
) -> Result<(), NbdError> {
    let server = Scripted::new(move |door| script(&mut door.open()));
    let mut options = server.options();
    change(&mut options);
    let opened = on_shards(1, |shard| async move {
        let node = NbdProtocol::open(&shard, options).await?;
        node.close(&shard).await;
        Ok(())
    });
    server.finish();
    opened
}

fn refusal(script: impl FnOnce(&mut Peer) + Send + 'static) -> String {
    opening(script).expect_err("a refusal").to_string()
}

/// Refuses everything up to an option, and answers that.
fn up_to(peer: &mut Peer, wanted: u32) {
    peer.greet(3);
    loop {
        let (kind, _) = peer.option();
        if kind == wanted {
            return;
        }
        let is_structured = kind == option::STRUCTURED_REPLY;
        let answer = if is_structured {
            reply::ACK
        } else {
            reply::ERR_UNSUP
        };
        peer.answer(kind, answer, &[]);
    }
}

#[test]
fn what_is_no_server() {
    let first = refusal(|peer| peer.put(b"HTTP/1.1 400"));
    assert_eq!(first, "Bad initial magic received: 0x485454502f312e31");
    let second = refusal(|peer| peer.put(b"NBDMAGICxxxxxxxx"));
    assert_eq!(second, "Bad server magic received: 0x7878787878787878");
    let end = "Unexpected end-of-file before all data were read";
    let nothing = refusal(|_| {});
    assert!(
        nothing == format!("Failed to read initial magic: {end}")
            || nothing.contains("reset by peer"),
        "{nothing}"
    );
    let later = refusal(|peer| {
        peer.greet(3);
        peer.option();
    });
    assert_eq!(later, format!("Failed to read option reply: {end}"));
}

#[test]
fn options_are_asked_for_in_order() {
    let opened = opening(|peer| {
        peer.greet(3);
        for (wanted, payload) in [
            (option::EXTENDED_HEADERS, &b""[..]),
            (option::STRUCTURED_REPLY, b""),
            (
                option::SET_META_CONTEXT,
                b"\0\0\0\x02ex\0\0\0\x01\0\0\0\x0fbase:allocation",
            ),
        ] {
            assert_eq!(peer.option(), (wanted, payload.to_vec()));
            let is_structured = wanted == option::STRUCTURED_REPLY;
            let answer = if is_structured {
                reply::ACK
            } else {
                reply::ERR_POLICY
            };
            peer.answer(wanted, answer, b"");
        }
        assert_eq!(
            peer.option(),
            (option::GO, b"\0\0\0\x02ex\0\x01\0\x03".to_vec())
        );
        peer.export_info(4096, 1);
        peer.answer(option::GO, reply::ACK, &[]);
        // It takes leave.
        let parting = peer.request(Headers::Structured);
        assert_eq!(parting.command, super::super::wire::command::DISC);
        assert!(peer.is_left());
    });
    assert_eq!(opened, Ok(()));
}

#[test]
fn what_a_server_may_refuse_an_export_with() {
    for (code, text) in [
        (reply::ERR_UNKNOWN, "Requested export not available"),
        (reply::ERR_POLICY, "Denied by server for option 7 (go)"),
        (reply::ERR_INVALID, "Invalid parameters for option 7 (go)"),
        (
            reply::ERR_PLATFORM,
            "Server lacks support for option 7 (go)",
        ),
        (
            reply::ERR_TLS_REQD,
            "TLS negotiation required before option 7 (go)",
        ),
        (
            reply::ERR_SHUTDOWN,
            "Server shutting down before option 7 (go)",
        ),
        (
            reply::ERR_BLOCK_SIZE_REQD,
            "Server requires INFO_BLOCK_SIZE for option 7 (go)",
        ),
        (
            reply::ERROR + 99,
            "Unknown error code when asking for option 7 (go)",
        ),
    ] {
        let told = refusal(move |peer| {
            up_to(peer, option::GO);
            peer.answer(option::GO, code, b"no\n way");
            assert_eq!(peer.option(), (option::ABORT, Vec::new()));
        });
        assert_eq!(told, text);
    }
}

/// After [`option::GO`], in a server's own way.
fn after_go(answer: impl FnOnce(&mut Peer) + Send + 'static) -> String {
    refusal(|peer| {
        up_to(peer, option::GO);
        answer(peer);
    })
}

#[test]
fn answers_that_cannot_be() {
    let magic = after_go(|peer| peer.put(&[7; 20]));
    assert_eq!(magic, "Unexpected option reply magic");
    let other = after_go(|peer| peer.answer(option::LIST, reply::ACK, &[]));
    assert_eq!(other, "Unexpected option type 3 (list), expected 7 (go)");
    let kind = after_go(|peer| peer.answer(option::GO, reply::SERVER, &[]));
    assert_eq!(kind, "unexpected reply type 2 (server), expected 3 (info)");
    let wrong = "reply to option 7 (go) has a wrong length";
    for payload in [&b""[..], b"\0", b"\0\0", b"\0\x00123456789", b"\0\x03123"] {
        let told = after_go(move |peer| peer.answer(option::GO, reply::INFO, payload));
        assert_eq!(told, wrong, "{payload:?}");
    }
    let long = after_go(|peer| {
        peer.put(&OPTION_REPLY_MAGIC.to_be_bytes());
        peer.put(&[0, 0, 0, 7, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff]);
    });
    assert_eq!(long, wrong);
    let omitted = "broken server omitted NBD_INFO_EXPORT";
    assert_eq!(
        after_go(|peer| peer.answer(option::GO, reply::ACK, &[])),
        omitted
    );
    let no_flags = after_go(|peer| {
        peer.export_info(1024, 0);
        peer.answer(option::GO, reply::ACK, &[]);
    });
    assert_eq!(no_flags, omitted);
}

#[test]
fn sizes_that_cannot_be() {
    let whole = after_go(|peer| {
        peer.block_info([4096, 4096, 1 << 20]);
        peer.export_info(1_049_088, 1);
        peer.answer(option::GO, reply::ACK, &[]);
    });
    assert_eq!(
        whole,
        "export size 1049088 is not multiple of minimum block size 4096"
    );
    let blocks = after_go(|peer| peer.block_info([3, 4096, 8192]));
    assert_eq!(blocks, "server minimum block size 3 is not a power of two");
    let large = after_go(|peer| {
        peer.export_info(u64::MAX - 511, 1);
        peer.answer(option::GO, reply::ACK, &[]);
    });
    assert_eq!(large, "export size 18446744073709551104 is too large");
}

/// After the question for a context, in a server's own way.
fn after_context(answer: impl FnOnce(&mut Peer) + Send + 'static) -> String {
    refusal(|peer| {
        up_to(peer, option::SET_META_CONTEXT);
        answer(peer);
    })
}

#[test]
fn contexts_that_nobody_has_asked_for() {
    assert_eq!(
        after_context(|peer| peer.context(0, b"base:other")),
        "Failed to negotiate meta context 'base:allocation', server answered with different \
         context 'base:other'"
    );
    let many = after_context(|peer| {
        peer.context(0, b"base:allocation");
        peer.context(1, b"base:allocation");
    });
    assert_eq!(many, "Server answered with more than one context");
    let short = after_context(|peer| {
        peer.answer(option::SET_META_CONTEXT, reply::META_CONTEXT, &[0; 3]);
    });
    assert_eq!(
        short,
        "reply to option 10 (set meta context) has a wrong length"
    );
}

#[test]
fn a_bitmap_that_is_not_there() {
    let opened = opening_with(
        |options| options.context = Some("qemu:dirty-bitmap:b".into()),
        |peer| {
            peer.negotiate(&Offer {
                has_context: false,
                ..Offer::default()
            });
            peer.request(Headers::Structured);
        },
    );
    assert_eq!(opened, Err(NbdError::NoContext));
}

/// What is known of a bitmap `b` when a server has negotiated in its own way.
fn bitmap_of(script: impl FnOnce(&mut Peer) + Send + 'static) -> (bool, Option<Vec<String>>) {
    let server = Scripted::new(move |door| {
        let mut peer = door.open();
        script(&mut peer);
        peer.export_info(1 << 20, 1);
        peer.answer(option::GO, reply::ACK, &[]);
        peer.request(Headers::Structured);
    });
    let mut options = server.options();
    options.bitmap = Some("b".into());
    let known = with_node(options, async |_, node| {
        let offered = node.offered_bitmaps().map(<[String]>::to_vec);
        (node.has_bitmap(), offered)
    });
    server.finish();
    known
}

#[test]
fn a_bitmap_is_asked_for_beside_the_usual_context() {
    let known = bitmap_of(|peer| {
        up_to(peer, option::SET_META_CONTEXT);
        peer.context(3, b"qemu:dirty-bitmap:b");
        peer.context(4, b"base:allocation");
        peer.answer(option::SET_META_CONTEXT, reply::ACK, &[]);
        assert_eq!(peer.option().0, option::GO);
    });
    assert_eq!(known, (true, None));
}

#[test]
fn a_missing_bitmap_is_looked_for_among_the_others() {
    const LIST: u32 = option::LIST_META_CONTEXT;
    let listed = |names: &'static [&'static [u8]], last: u32| {
        bitmap_of(move |peer| {
            up_to(peer, option::SET_META_CONTEXT);
            peer.context(4, b"base:allocation");
            peer.answer(option::SET_META_CONTEXT, reply::ACK, &[]);
            let query = b"\0\0\0\x02ex\0\0\0\x01\0\0\0\x12qemu:dirty-bitmap:";
            assert_eq!(peer.option(), (LIST, query.to_vec()));
            for name in names {
                peer.answer(LIST, reply::META_CONTEXT, &[&[0; 4], *name].concat());
            }
            peer.answer(LIST, last, &[]);
            assert_eq!(peer.option().0, option::GO);
        })
    };
    let names = listed(
        &[b"qemu:dirty-bitmap:a\n", b"other:x", b"qemu:dirty-bitmap:c"],
        reply::ACK,
    );
    assert_eq!(names, (false, Some(vec!["a ".into(), "c".into()])));
    assert_eq!(listed(&[], reply::ACK), (false, Some(Vec::new())));
    assert_eq!(listed(&[], reply::ERR_UNSUP), (false, None));
    let unknown = bitmap_of(|peer| {
        up_to(peer, option::SET_META_CONTEXT);
        peer.answer(option::SET_META_CONTEXT, reply::ERR_UNSUP, &[]);
        assert_eq!(peer.option().0, option::GO);
    });
    assert_eq!(unknown, (false, None));
}

#[test]
fn two_contexts_of_one_number_cannot_be_told_apart() {
    let opened = opening_with(
        |options| options.bitmap = Some("b".into()),
        |peer| {
            up_to(peer, option::SET_META_CONTEXT);
            peer.context(3, b"qemu:dirty-bitmap:b");
            peer.context(3, b"base:allocation");
        },
    );
    assert_eq!(opened, Err(NbdError::ManyContexts));
    let long = |options: &mut Options| options.bitmap = Some("b".repeat(4096));
    let server = Scripted::new(|_| ());
    let mut options = server.options();
    long(&mut options);
    let opened = on_shards(1, |shard| async move {
        NbdProtocol::open(&shard, options).await.map(drop)
    });
    server.finish();
    assert_eq!(opened, Err(NbdError::QueryTooLong));
}

fn read_only(change: impl FnOnce(&mut Options) + Send + 'static) -> Result<(), NbdError> {
    opening_with(change, |peer| {
        peer.negotiate(&Offer {
            flags: has::HAS_FLAGS | has::READ_ONLY,
            ..Offer::default()
        });
        peer.request(Headers::Structured);
    })
}

#[test]
fn an_export_for_reading_only() {
    assert_eq!(read_only(|_| {}), Err(NbdError::ReadOnly));
    assert_eq!(read_only(|options| options.write = false), Ok(()));
    assert_eq!(read_only(|options| options.auto_read_only = true), Ok(()));
}

#[test]
fn a_server_without_go() {
    let listed = opening(|peer| {
        up_to(peer, option::GO);
        peer.answer(option::GO, reply::ERR_UNSUP, &[]);
        assert_eq!(peer.option().0, option::LIST);
        peer.answer(option::LIST, reply::SERVER, b"\0\0\0\x01x");
        peer.answer(option::LIST, reply::SERVER, b"\0\0\0\x02exand more");
        peer.answer(option::LIST, reply::ACK, &[]);
        assert_eq!(peer.option(), (option::EXPORT_NAME, b"ex".to_vec()));
        peer.put(&[&1024_u64.to_be_bytes()[..], &1_u16.to_be_bytes()].concat());
        peer.request(Headers::Structured);
    });
    assert_eq!(listed, Ok(()));
    let missing = refusal(|peer| {
        up_to(peer, option::GO);
        peer.answer(option::GO, reply::ERR_UNSUP, &[]);
        peer.option();
        peer.answer(option::LIST, reply::SERVER, b"\0\0\0\x02ey");
        peer.answer(option::LIST, reply::ACK, &[]);
    });
    assert_eq!(missing, "No export with name 'ex' available");
    let wrong = refusal(|peer| {
        up_to(peer, option::GO);
        peer.answer(option::GO, reply::ERR_UNSUP, &[]);
        peer.option();
        peer.answer(option::LIST, reply::SERVER, b"\0\0\0\x09ex");
    });
    assert_eq!(wrong, "reply to option 3 (list) has a wrong length");
}

#[test]
fn servers_of_older_styles() {
    let not_fixed = opening(|peer| {
        peer.greet(0);
        assert_eq!(peer.option(), (option::EXPORT_NAME, b"ex".to_vec()));
        peer.put(&[&1024_u64.to_be_bytes()[..], &1_u16.to_be_bytes(), &[0; 124]].concat());
        peer.request(Headers::Simple);
    });
    assert_eq!(not_fixed, Ok(()));
    let old = |flags: u32| {
        move |peer: &mut Peer| {
            peer.put(b"NBDMAGIC");
            peer.put(&super::super::wire::OLD_STYLE_MAGIC.to_be_bytes());
            peer.put(&[&1024_u64.to_be_bytes()[..], &flags.to_be_bytes(), &[0; 124]].concat());
            let _ = peer.0.read(&mut [0; 64]);
        }
    };
    let no_name = |options: &mut Options| options.export = String::new();
    assert_eq!(opening_with(no_name, old(1)), Ok(()));
    let flags = opening_with(no_name, old(1 << 16));
    assert_eq!(flags, Err(NbdError::ExportFlags(1 << 16)));
    assert_eq!(opening(old(1)), Err(NbdError::OldStyleName));
}

#[test]
fn who_is_silent_is_left_in_time() {
    let started = std::time::Instant::now();
    let opened = opening_with(
        |options| options.open_timeout_s = 1,
        |peer| assert!(peer.is_left()),
    );
    assert_eq!(opened, Err(NbdError::Timeout));
    assert!(started.elapsed() < LIMIT / 2);
}

/// Noise where a server should speak, sometimes with a good beginning.
#[test]
fn noise_is_refused() {
    for seed in 0..60_u64 {
        let mut state = seed;
        let mut noise = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            (state >> 33).to_be_bytes()[7]
        };
        let refused = opening(move |peer| {
            match seed % 3 {
                0 => peer.put(b"NBDMAGIC"),
                1 => up_to(peer, option::GO),
                _ => up_to(peer, option::SET_META_CONTEXT),
            }
            if seed % 3 > 0 {
                peer.put(&OPTION_REPLY_MAGIC.to_be_bytes());
                let option = if seed % 3 == 1 {
                    option::GO
                } else {
                    option::SET_META_CONTEXT
                };
                peer.put(&option.to_be_bytes());
                peer.put(&[0, 0, 0, noise() % 6, 0, 0, 0, noise() % 64]);
            }
            let bytes: Vec<u8> = (0..200).map(|_| noise()).collect();
            peer.put(&bytes);
        });
        assert!(refused.is_err(), "seed {seed}");
    }
}
