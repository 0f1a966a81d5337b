//! Good input, changed at random: nothing may panic, hang or eat the memory.
//!
//! `RINGBACK_HOSTILE_SEED=N` replays one change, `RINGBACK_HOSTILE_COUNT=N` makes
//! that many of each kind. The fuzz targets in `tests/fuzz` look for more.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringback_block::protocol::nbd::wire::{PAYLOAD_MAX, Request};
use ringback_ring::sim::Random;
use ringback_tests::hostile::{self, TEMPLATES};

/// Runs all seeds, and says which one fails first.
fn each_seed(few: u64, run: impl Fn(&mut Random)) {
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let seeds = match number("RINGBACK_HOSTILE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGBACK_HOSTILE_COUNT").unwrap_or(few),
    };
    for seed in seeds {
        let mut random = Random::new(seed);
        let ended = catch_unwind(AssertUnwindSafe(|| run(&mut random)));
        assert!(ended.is_ok(), "RINGBACK_HOSTILE_SEED={seed}");
    }
}

fn byte(random: &mut Random) -> u8 {
    match random.below(4) {
        0 => 0,
        1 => 0xff,
        2 => 1 << random.below(8),
        _ => random.bits().to_le_bytes()[0],
    }
}

/// Single bytes of an image, those of its tables more often: they lie in front.
fn damage(bytes: &mut [u8], random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let reach = [104, 4096, bytes.len()][random.index(3)].min(bytes.len());
        let at = random.index(reach);
        if random.below(3) == 0 {
            let at = at & !7;
            let new = (random.bits() >> random.below(64)).to_be_bytes();
            for (old, new) in bytes[at..].iter_mut().zip(new) {
                *old = new;
            }
        } else {
            bytes[at] = byte(random);
        }
    }
}

#[test]
fn damaged_images() {
    each_seed(150, |random| {
        let mut bytes = TEMPLATES[random.index(TEMPLATES.len())].to_vec();
        damage(&mut bytes, random);
        if random.below(10) == 0 {
            let len = random.index(bytes.len());
            bytes.truncate(len);
        }
        hostile::image(&bytes);
    });
}

#[test]
fn damaged_headers() {
    each_seed(5000, |random| {
        let mut bytes = TEMPLATES[random.index(TEMPLATES.len())][..512].to_vec();
        damage(&mut bytes, random);
        hostile::header(&bytes);
    });
}

const OPTIONS: &[&str] = &[
    "driver=qcow2,node-name=a,file.driver=file,file.filename=x,,y,read-only=on",
    "raw,size=1k,offset=0x200,file.driver=null-co,file.latency-ns=3",
    "driver=blkdebug,image.filename=b,inject-error.0.event=l2_load,inject-error.0.errno=5",
    r#"{"driver":"throttle","throttle-group":"g","file":{"driver":"file","filename":"\u00e4"}}"#,
    r#"json:{"driver":"raw","file.filename":"a","file":{"aio":"native"}}"#,
    "blkdebug:rules:/tmp/a",
    "throttle-group,id=g,limits.bps-total=1000,x-iops-read-max-length=4",
    "nbd://host:10809/export",
    "overlap-check.template=all,overlap-check.main-header=off,noread-only",
];

const CONFIG: &[&str] = &[
    "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nonce = \"on\"\n",
    "[set-state \"a\"]\nevent = \"l2_load\"\nstate = \"1\"\nnew_state = \"2\"\n# text\n",
];

/// Words of one text put together anew, with a little noise.
fn jumble(texts: &[&str], random: &mut Random) -> String {
    let mut text: Vec<char> = texts[random.index(texts.len())].chars().collect();
    for _ in 0..1 + random.below(5) {
        if text.is_empty() {
            break;
        }
        let at = random.index(text.len());
        match random.below(5) {
            0 => drop(text.remove(at)),
            1 => text.insert(at, char::from(byte(random))),
            2 => {
                let until = at + random.index(text.len() - at);
                let part = text[at..until].to_vec();
                let to = random.index(text.len());
                text.splice(to..to, part);
            }
            3 => text.insert(at, [',', '=', '.', '{', '"', '[', ':'][random.index(7)]),
            _ => {
                let other: Vec<char> = texts[random.index(texts.len())].chars().collect();
                let from = random.index(other.len());
                text.splice(at.., other[from..].iter().copied());
            }
        }
    }
    text.into_iter().collect()
}

/// A number that is small, near the end of the disk, or far beyond.
fn place(random: &mut Random) -> u64 {
    let near = random.below(3 << 10);
    match random.below(8) {
        0..4 => near << 9,
        4 => near,
        5 => (1 << 20) - near,
        6 => u64::from(PAYLOAD_MAX) - 2 + random.below(4),
        _ => random.bits() >> random.below(64),
    }
}

/// A few requests, some of which make sense, with or without what belongs to them.
fn requests(is_extended: bool, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..random.below(12) {
        let request = Request {
            flags: [0, 0, 1, 1 << random.below(16)][random.index(4)],
            command: u16::try_from(random.index(10)).expect("small"),
            cookie,
            offset: place(random),
            len: match place(random) {
                len if is_extended => len,
                len => len & u64::from(u32::MAX),
            },
        };
        if is_extended {
            bytes.extend_from_slice(&request.encode_extended());
        } else {
            bytes.extend_from_slice(&request.encode());
        }
        if random.below(3) == 0 {
            let len = usize::try_from(request.len.min(64 << 10)).expect("short");
            bytes.resize(bytes.len() + len, byte(random));
        }
    }
    bytes
}

#[test]
fn clients_of_the_nbd_server() {
    each_seed(1500, |random| {
        let introduction = [0, 1, 2, 3][random.index(4)];
        let is_leaving = [0, 4][random.index(2)];
        let piece_len = [0, 7, 31][random.index(3)];
        let mut bytes = vec![introduction | is_leaving | piece_len << 3];
        bytes.extend(requests(introduction == 3, random));
        if bytes.len() > 8 && random.below(2) == 0 {
            damage(&mut bytes[1..], random);
        }
        hostile::nbd_client(&bytes);
    });
}

#[test]
fn jumbled_options() {
    each_seed(5000, |random| hostile::options(&jumble(OPTIONS, random)));
}

#[test]
fn jumbled_rules() {
    each_seed(5000, |random| {
        hostile::blkdebug_config(&jumble(CONFIG, random))
    });
}
