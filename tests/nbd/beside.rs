//! The same bytes to `ringback daemon` and to `qemu-storage-daemon`: what comes
//! back must be the same. The shapes of replies to reads may differ, the bytes not.
//!
//! `RINGBACK_NBD_SEED=N` replays one seed; `RINGBACK_NBD_COUNT=N` runs that many.

use ringback_block::protocol::nbd::wire::{Request, command, info, option, request_flags};
use ringback_tests::needs::{Need, needs};
use ringback_tests::qmp::Program;
use ringback_tests::random::Random;

use crate::wire::{
    Answer, Client, Mode, OptionReply, PAYLOAD_MAX, info_payload, meta_payload, request,
};
use crate::{MIB, Served, scratch};

const NEEDED: &[Need] = &[
    Need::Program("qemu-storage-daemon"),
    Need::Program("qemu-img"),
    Need::Program("qemu-io"),
];

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("RINGBACK_NBD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGBACK_NBD_COUNT").unwrap_or(count),
    }
}

type Dialogue = Vec<(u32, Vec<u8>)>;

/// What a server answers; none: it hangs up there.
fn talk(path: &std::path::Path, flags: u32, options: &Dialogue) -> Vec<Option<Vec<OptionReply>>> {
    let mut client = Client::connect(path, flags);
    let mut answers = Vec::new();
    for (kind, payload) in options {
        let answer = client.option(*kind, payload).ok();
        let is_over = answer.is_none() || is_chosen(*kind, answer.as_ref());
        answers.push(answer);
        if is_over {
            break;
        }
    }
    answers
}

/// Whether an answer ends the choice of an export.
fn is_chosen(kind: u32, answer: Option<&Vec<OptionReply>>) -> bool {
    let last = answer.and_then(|replies| replies.last());
    kind == option::GO && last.is_some_and(|(reply, _)| *reply == 1)
}

const NAMES: &[&str] = &["d", "r", "", "nope", "d\0", "dd"];
const QUERIES: &[&str] = &[
    "base:allocation",
    "base:",
    "qemu:",
    "qemu:allocation-depth",
    "qemu:dirty-bitmap:",
    "qemu:dirty-bitmap:b0",
    "qemu:dirty-bitmap:b1",
    "qemu:dirty-bitmap:zz",
    "base",
    "",
    "x:y",
    "qemu:dirty-bitmap:b0\0",
];

fn an_option(random: &mut Random) -> (u32, Vec<u8>) {
    let name = random.of(NAMES);
    let mut some = |all: &[&'static str]| {
        let count = random.below(4);
        (0..count).map(|_| random.of(all)).collect::<Vec<_>>()
    };
    let queries = some(QUERIES);
    match random.below(12) {
        0 => (option::LIST, Vec::new()),
        1 | 2 => (option::STRUCTURED_REPLY, Vec::new()),
        3 => (option::EXTENDED_HEADERS, Vec::new()),
        4 | 5 => {
            let infos = [
                info::EXPORT,
                info::NAME,
                info::DESCRIPTION,
                info::BLOCK_SIZE,
                77,
            ];
            let count = random.below(4);
            let infos: Vec<_> = (0..count).map(|_| random.of(&infos)).collect();
            (option::INFO, info_payload(name, &infos))
        }
        6 => (option::GO, info_payload(random.of(NAMES), &[])),
        7 | 8 => (option::LIST_META_CONTEXT, meta_payload(name, &queries)),
        9 | 10 => (option::SET_META_CONTEXT, meta_payload(name, &queries)),
        _ => (random.of(&[0, 4, 99, u32::MAX, 3, 5, 8, 11]), vec![0; 5]),
    }
}

/// Cuts a payload short, or makes it longer where that is no header of an option.
fn damaged((kind, mut payload): (u32, Vec<u8>), random: &mut Random) -> (u32, Vec<u8>) {
    let is_meta = matches!(kind, option::LIST_META_CONTEXT | option::SET_META_CONTEXT);
    match random.below(8) {
        0 if !payload.is_empty() => {
            payload.truncate(usize::try_from(random.below(payload.len() as u64)).expect("short"));
        }
        // QEMU takes what follows for the next option.
        1 if !is_meta => payload.push(0),
        _ => {}
    }
    (kind, payload)
}

#[test]
fn options_are_answered_as_qemu_answers() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let both = [Program::Ringback, Program::Qemu].map(|it| Served::start(it, &scratch));
    for seed in seeds(300) {
        let mut random = Random::new(seed);
        let options: Dialogue = (0..8)
            .map(|_| {
                let option = an_option(&mut random);
                damaged(option, &mut random)
            })
            .collect();
        let [ours, theirs] = both.each_ref().map(|it| talk(&it.socket(), 3, &options));
        assert_eq!(ours, theirs, "RINGBACK_NBD_SEED={seed}: {options:?}");
    }
    both.into_iter().for_each(|it| drop(it.daemon.quit()));
}

/// Longer than any client that is in use sends, and understood all the same.
#[test]
fn long_options_are_answered_as_qemu_answers() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let both = [Program::Ringback, Program::Qemu].map(|it| Served::start(it, &scratch));
    let names: Vec<String> = (0..4000)
        .map(|number| format!("qemu:dirty-bitmap:a bitmap number {number}"))
        .collect();
    let mut queries: Vec<&str> = names.iter().map(String::as_str).collect();
    queries.extend(["base:allocation", "qemu:dirty-bitmap:b1"]);
    let long = ["x".repeat(4000), "y".repeat(5000)];
    let long = [long[0].as_str(), &long[1], "qemu:dirty-bitmap:b0"];
    let infos = vec![info::NAME; 65_535];
    let options = vec![
        (option::STRUCTURED_REPLY, Vec::new()),
        (option::LIST_META_CONTEXT, meta_payload("d", &queries)),
        (option::LIST_META_CONTEXT, meta_payload("d", &long)),
        (option::SET_META_CONTEXT, meta_payload("d", &queries)),
        (option::INFO, info_payload("d", &infos)),
        (option::INFO, info_payload(&"n".repeat(4096), &infos)),
        (option::LIST, vec![0; 1 << 20]),
        (77, vec![0; 1 << 20]),
        (option::GO, info_payload("d", &infos)),
    ];
    let [ours, theirs] = both.each_ref().map(|it| talk(&it.socket(), 3, &options));
    assert_eq!(ours, theirs);
    assert_eq!(ours.len(), options.len());
    both.into_iter().for_each(|it| drop(it.daemon.quit()));
}

#[test]
fn the_oldest_option_and_odd_flags_are_answered_as_qemu_answers() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let both = [Program::Ringback, Program::Qemu].map(|it| Served::start(it, &scratch));
    for flags in [0, 1, 2, 3, 4, 0x8000_0000] {
        for name in ["d", "r", "nope", "", "\0zz"] {
            let [ours, theirs] = both.each_ref().map(|served| {
                let mut client = Client::connect(&served.socket(), flags);
                client.send_option(option::EXPORT_NAME, name.as_bytes());
                let len = if flags & 2 == 0 { 134 } else { 10 };
                client.receive(len).ok()
            });
            assert_eq!(ours, theirs, "{flags:#x} {name:?}");
        }
    }
    both.into_iter().for_each(|it| drop(it.daemon.quit()));
}

/// QEMU also tells where the file below has a hole in a cluster that is in use.
/// Here that is data.
fn without_holes_below(mut answer: Answer) -> Answer {
    const ZERO_IN_USE: u64 = 2;
    if let Answer::Status(contexts) = &mut answer {
        for (_, extents) in contexts.iter_mut().filter(|(id, _)| *id == 0) {
            let mut joined: Vec<(u64, u64)> = Vec::new();
            for &(len, flags) in extents.iter() {
                let flags = if flags == ZERO_IN_USE { 0 } else { flags };
                match joined.last_mut() {
                    Some((last, same)) if *same == flags => *last += len,
                    _ => joined.push((len, flags)),
                }
            }
            *extents = joined;
        }
    }
    answer
}

fn a_request(random: &mut Random, mode: Mode, size: u64) -> (Request, Vec<u8>) {
    let command = random.of(&[
        command::READ,
        command::READ,
        command::WRITE,
        command::WRITE,
        command::FLUSH,
        command::TRIM,
        command::CACHE,
        command::WRITE_ZEROES,
        command::BLOCK_STATUS,
        command::BLOCK_STATUS,
        8,
        77,
    ]);
    let unit = random.of(&[1, 512, 4096, 65536]);
    let offset = random.below(size / unit + 2) * unit;
    let len = match random.below(12) {
        0 => 0,
        1 => size,
        2 => size - offset.min(size),
        _ => (1 + random.below(300_000)).next_multiple_of(unit),
    };
    let mut flags = 0;
    for flag in [
        request_flags::FUA,
        request_flags::NO_HOLE,
        request_flags::DF,
        request_flags::REQ_ONE,
    ] {
        if random.below(6) == 0 {
            flags |= flag;
        }
    }
    if random.below(30) == 0 {
        flags |= 1 << random.of(&[6, 9, 15]);
    }
    let payload = match command {
        command::WRITE => vec![random.of(&[0, 7, 9]); usize::try_from(len).expect("short")],
        _ => Vec::new(),
    };
    if mode == Mode::Extended && command == command::WRITE && random.below(2) == 0 {
        flags |= request_flags::PAYLOAD_LEN;
    }
    let request = Request {
        flags,
        ..request(command, offset, len)
    };
    (request, payload)
}

#[test]
fn requests_are_answered_as_qemu_answers() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let both = [Program::Ringback, Program::Qemu].map(|it| Served::start(it, &scratch));
    for seed in seeds(40) {
        let mut random = Random::new(seed);
        let mode = random.of(&[Mode::Simple, Mode::Structured, Mode::Extended]);
        let (export, size) = random.of(&[("d", 8 * MIB), ("d", 8 * MIB), ("r", 5_120_000)]);
        let contexts: &[&str] = match (mode, export) {
            (Mode::Simple, _) => &[],
            (_, "d") => random.of(&[
                &["base:allocation"][..],
                &["base:allocation", "qemu:allocation-depth"],
                &["qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"],
            ]),
            _ => &["base:allocation"],
        };
        let mut clients = both
            .each_ref()
            .map(|it| Client::go(&it.socket(), mode, export, contexts));
        for step in 0..60 {
            let (request, payload) = a_request(&mut random, mode, size);
            if request.command == command::CACHE && export == "d" {
                // QEMU fills the image from its backing file then.
                continue;
            }
            let [ours, theirs] = clients
                .each_mut()
                .map(|client| without_holes_below(client.request(request, &payload)));
            assert_eq!(
                ours, theirs,
                "RINGBACK_NBD_SEED={seed}: step {step}: {request:?} {mode:?} {export}"
            );
        }
    }
    both.into_iter().for_each(|it| drop(it.daemon.quit()));
}

#[test]
fn requests_at_the_limits_are_answered_as_qemu_answers() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let both = [Program::Ringback, Program::Qemu].map(|it| Served::start(it, &scratch));
    let too_long = PAYLOAD_MAX + 1;
    let cases = [
        request(command::READ, 0, too_long),
        request(command::CACHE, 0, too_long),
        request(command::WRITE, 0, too_long),
        request(command::READ, u64::MAX, 1),
        request(command::READ, u64::MAX - 5, 10),
        request(command::TRIM, 0, u64::from(u32::MAX)),
        request(command::FLUSH, u64::MAX, 0),
        request(command::BLOCK_STATUS, 0, 8 * MIB + 1),
        request(command::DISC, 3, 4),
    ];
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        for case in cases {
            let [ours, theirs] = both.each_ref().map(|served| {
                let mut client = Client::go(&served.socket(), mode, "d", &[]);
                let answer = client.request(case, &[]);
                // Whether it goes on.
                let after = match case.command {
                    command::DISC => Answer::Gone,
                    _ => client.request(request(command::READ, 0, 512), &[]),
                };
                (answer, after)
            });
            assert_eq!(ours, theirs, "{mode:?} {case:?}");
        }
    }
    both.into_iter().for_each(|it| drop(it.daemon.quit()));
}

/// A question about ranges that brings its contexts.
fn status_payload(len: u64, ids: &[u32]) -> Vec<u8> {
    let mut bytes = len.to_be_bytes().to_vec();
    ids.iter()
        .for_each(|id| bytes.extend_from_slice(&id.to_be_bytes()));
    bytes
}

#[test]
fn questions_with_contexts_are_answered_as_qemu_answers() {
    if !needs(NEEDED) {
        return;
    }
    let scratch = scratch();
    let both = [Program::Ringback, Program::Qemu].map(|it| Served::start(it, &scratch));
    let chosen = ["base:allocation", "qemu:dirty-bitmap:b1"];
    let cases = [
        status_payload(MIB, &[3, 0]),
        status_payload(8 * MIB, &[0]),
        status_payload(8 * MIB, &[3]),
        status_payload(MIB, &[]),
        status_payload(MIB, &[0, 0]),
        status_payload(MIB, &[1]),
        status_payload(9 * MIB, &[0]),
        status_payload(0, &[0]),
        vec![0; 7],
        vec![0; 4096],
    ];
    for case in &cases {
        let [ours, theirs] = both.each_ref().map(|served| {
            let mut client = Client::go(&served.socket(), Mode::Extended, "d", &chosen);
            let question = Request {
                flags: request_flags::PAYLOAD_LEN,
                ..request(command::BLOCK_STATUS, 0, case.len() as u64)
            };
            let answer = without_holes_below(client.request(question, case));
            (answer, client.request(request(command::FLUSH, 0, 0), &[]))
        });
        assert_eq!(ours, theirs, "{case:?}");
    }
    both.into_iter().for_each(|it| drop(it.daemon.quit()));
}
