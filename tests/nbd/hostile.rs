//! Clients that mean no good: the server neither dies nor forgets anybody else.

use ringback_block::protocol::nbd::wire::{
    OPTION_MAGIC, Request, command, option, option_reply as answer,
};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::wait_for;
use ringback_tests::qmp::{Daemon, Program};
use ringback_tests::random::Random;
use serde_json::json;

use crate::wire::{Answer, Client, Mode, info_payload, meta_payload, request};
use crate::{MIB, SOCKET, Served, scratch};

const NEEDED: &[Need] = &[Need::Program("qemu-img"), Need::Program("qemu-io")];

/// The bytes of a client that does everything right, until it hangs up.
fn good_bytes(mode: Mode) -> Vec<u8> {
    fn option(bytes: &mut Vec<u8>, kind: u32, payload: &[u8]) {
        bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        let len = u32::try_from(payload.len()).expect("a short payload");
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(payload);
    }
    let mut bytes = vec![0, 0, 0, 3];
    option(&mut bytes, option::LIST, &[]);
    match mode {
        Mode::Simple => {}
        Mode::Structured => option(&mut bytes, option::STRUCTURED_REPLY, &[]),
        Mode::Extended => option(&mut bytes, option::EXTENDED_HEADERS, &[]),
    }
    let queries = ["base:allocation", "qemu:dirty-bitmap:b0"];
    let meta = meta_payload("d", &queries);
    option(&mut bytes, option::LIST_META_CONTEXT, &meta);
    if mode != Mode::Simple {
        option(&mut bytes, option::SET_META_CONTEXT, &meta);
    }
    option(&mut bytes, option::INFO, &info_payload("d", &[1, 2, 3]));
    option(&mut bytes, option::GO, &info_payload("d", &[]));
    let requests = [
        (request(command::READ, 4096, 70_000), 0),
        (request(command::WRITE, 8192, 600), 600),
        (request(command::BLOCK_STATUS, 0, 1 << 20), 0),
        (request(command::WRITE_ZEROES, 65536, 65536), 0),
        (request(command::CACHE, 0, 65536), 0),
        (request(command::FLUSH, 0, 0), 0),
        (request(command::TRIM, 0, 4096), 0),
        (request(command::READ, 0, 1), 0),
    ];
    for (cookie, (request, payload)) in requests.into_iter().enumerate() {
        let request = Request {
            cookie: cookie as u64,
            ..request
        };
        match mode {
            Mode::Extended => bytes.extend_from_slice(&request.encode_extended()),
            _ => bytes.extend_from_slice(&request.encode()),
        }
        bytes.resize(bytes.len() + payload, 7);
    }
    bytes
}

#[test]
fn damaged_streams_harm_nobody_else() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let served = Served::start(Program::Ringback, &scratch);
    let path = served.socket();
    let mut witness = Client::go(&path, Mode::Structured, "d", &["base:allocation"]);
    let mut random = Random::new(5);
    for round in 0..600_u64 {
        let mode = [Mode::Simple, Mode::Structured, Mode::Extended][random.index(3)];
        let mut bytes = good_bytes(mode);
        for _ in 0..random.below(4) {
            let at = random.index(bytes.len());
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = [0, 0xff, 0x7f, 0x80][random.index(4)],
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, 0),
            }
        }
        if random.below(3) == 0 {
            bytes.truncate(random.index(bytes.len()));
        }
        let mut client = Client::connect_silent(&path);
        client.send(&bytes);
        if random.below(2) == 0 {
            client.hang_up();
            while client.receive(1).is_ok() {}
        }
        if round % 50 == 0 {
            let answer = witness.request(request(command::BLOCK_STATUS, 0, 8 << 20), &[]);
            assert!(matches!(answer, Answer::Status(_)), "{answer:?}");
        }
    }
    drop(witness);
    let mut served = served;
    // Every client is gone, so the exports are free.
    for id in ["e0", "e1"] {
        wait_for("exports without clients", || {
            let deletion = json!({ "id": id });
            served
                .daemon
                .qmp
                .execute("block-export-del", &deletion)
                .is_ok()
        });
    }
    let _ = served.daemon.quit();
}

#[test]
fn who_does_not_read_holds_only_itself() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let words = [
        "--blockdev",
        "null-co,node-name=n,size=1073741824,read-zeroes=on",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        "nbd,id=e,node-name=n,name=n,writable=on",
    ];
    let daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    let path = scratch.join(SOCKET);
    let mut deaf: Vec<_> = (0..4)
        .map(|_| Client::go(&path, Mode::Simple, "n", &[]))
        .collect();
    for client in &mut deaf {
        for _ in 0..200 {
            client.send_request(request(command::READ, 0, 1 << 20), &[]);
        }
    }
    let mut other = Client::go(&path, Mode::Simple, "n", &[]);
    for _ in 0..200 {
        let answer = other.request(request(command::READ, 4096, 4096), &[]);
        assert_eq!(answer, Answer::Bytes(vec![0; 4096]));
    }
    // What they have asked for is waited for by nobody.
    drop(deaf);
    let _ = daemon.quit();
}

#[test]
fn options_that_are_too_long_are_refused_and_the_next_is_understood() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let served = Served::start(Program::Ringback, &scratch);
    let mut client = Client::connect(&served.socket(), 3);
    client.agree(option::STRUCTURED_REPLY, &[]);
    let contexts = meta_payload("d", &["base:allocation"]);
    client.agree(option::SET_META_CONTEXT, &contexts);
    let long = vec![0; 1 << 20];
    for (kind, refusal) in [
        (option::INFO, answer::ERR_TOO_BIG),
        (option::GO, answer::ERR_TOO_BIG),
        (option::LIST_META_CONTEXT, answer::ERR_TOO_BIG),
        (option::SET_META_CONTEXT, answer::ERR_TOO_BIG),
        (option::LIST, answer::ERR_INVALID),
        (option::EXTENDED_HEADERS, answer::ERR_INVALID),
        (77, answer::ERR_UNSUP),
    ] {
        let replies = client.option(kind, &long).expect("an answer");
        let kinds: Vec<u32> = replies.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [refusal], "option {kind}");
        assert_eq!(client.agree(option::LIST, &[]).len(), 2);
    }
    // The contexts went with the refused choice of others.
    client.agree(option::GO, &info_payload("d", &[]));
    client.mode = Mode::Structured;
    let answer = client.request(request(command::BLOCK_STATUS, 0, MIB), &[]);
    assert!(matches!(answer, Answer::Error(22, _)), "{answer:?}");
    let _ = served.daemon.quit();
}

/// Whoever has not chosen an export cannot make the server hold what it sends.
#[test]
fn long_options_take_no_memory() {
    if !needs(NEEDED) {
        return;
    }
    const CLIENTS: u64 = 8;
    let scratch = scratch();
    let mut served = Served::start(Program::Ringback, &scratch);
    drop(Client::go(&served.socket(), Mode::Structured, "d", &[]));
    let before = served.daemon.process().memory_max();
    let mut header = OPTION_MAGIC.to_be_bytes().to_vec();
    header.extend_from_slice(&option::LIST_META_CONTEXT.to_be_bytes());
    header.extend_from_slice(&(32_u32 << 20).to_be_bytes());
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            let mut client = Client::connect(&served.socket(), 3);
            client.send(&header);
            // Not all of it: the server waits for the rest.
            client.send(&vec![0; 16 << 20]);
            client
        })
        .collect();
    let held = served.daemon.process().memory_max() - before;
    assert!(held < CLIENTS * MIB, "{held} bytes for {CLIENTS} clients");
    drop(clients);
    let _ = served.daemon.quit();
}

/// As many queries as an option can have, all of them empty, beside somebody who
/// wants to go on.
#[test]
fn as_many_queries_as_possible_are_answered_beside_others() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let served = Served::start(Program::Ringback, &scratch);
    let mut client = Client::connect(&served.socket(), 3);
    let mut witness = Client::go(&served.socket(), Mode::Simple, "d", &[]);
    let queries = vec![""; 65_000];
    client.send_option(option::LIST_META_CONTEXT, &meta_payload("d", &queries));
    let read = witness.request(request(command::READ, 0, 512), &[]);
    assert!(matches!(read, Answer::Bytes(_)), "{read:?}");
    let end = client.receive(20).expect("an answer");
    assert_eq!(end[12..16], answer::ACK.to_be_bytes());
    let _ = served.daemon.quit();
}

#[test]
fn more_behind_the_contexts_is_refused() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let served = Served::start(Program::Ringback, &scratch);
    let mut client = Client::connect(&served.socket(), 3);
    client.agree(option::STRUCTURED_REPLY, &[]);
    let mut payload = meta_payload("d", &["base:allocation"]);
    // As if another option followed.
    payload.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    payload.extend_from_slice(&[0, 0, 0, 3, 0, 0, 0, 0]);
    let replies = client.option(option::SET_META_CONTEXT, &payload);
    let replies = replies.expect("an answer");
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].0, (1 << 31) + 3);
    // And the next option begins where it should.
    assert_eq!(client.agree(option::LIST, &[]).len(), 2);
    let _ = served.daemon.quit();
}

#[test]
fn contexts_in_a_question_without_chosen_ones_are_refused() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let served = Served::start(Program::Ringback, &scratch);
    let mut client = Client::go(&served.socket(), Mode::Extended, "d", &[]);
    let mut payload = (1_u64 << 20).to_be_bytes().to_vec();
    payload.extend_from_slice(&[0; 4]);
    let question = Request {
        flags: 1 << 5,
        ..request(command::BLOCK_STATUS, 0, payload.len() as u64)
    };
    let answer = client.request(question, &payload);
    assert!(matches!(answer, Answer::Error(22, _)), "{answer:?}");
    let answer = client.request(request(command::FLUSH, 0, 0), &[]);
    assert_eq!(answer, Answer::Bytes(Vec::new()));
    let _ = served.daemon.quit();
}
