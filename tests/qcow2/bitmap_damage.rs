//! Damaged directories of bitmaps: ringback opens what QEMU opens, and says what
//! QEMU says.

use std::path::{Path, PathBuf};

use ringback_block::format::qcow2::OpenOptions;
use ringback_ring::Shards;
use ringback_ring::sim::Random;
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

use crate::session::{Session, on_shard, start_shards};
use crate::{qemu, stored};

/// What both say: None if they open the image.
fn compare(shards: &Shards, directory: &Path, what: &str) {
    let words = ["qemu-img", "info", "-f", "qcow2", "damaged"];
    let expected = qemu::try_run(directory, &words).err().map(|text| {
        let text = text
            .trim()
            .trim_start_matches("qemu-img: Could not open 'damaged': ");
        text.to_owned()
    });
    let path: PathBuf = directory.join("damaged");
    let found = on_shard(shards, move |shard| async move {
        let options = OpenOptions::new(false);
        match Session::open(&shard, &path, options).await {
            Ok(session) => {
                session.close().await.expect("closed");
                None
            }
            Err(error) => Some(error.to_string()),
        }
    });
    assert_eq!(found, expected, "{what}");
}

fn image(directory: &Path) -> Vec<u8> {
    let create = "qemu-img create -q -f qcow2 -o cluster_size=4096 disk 64M";
    let add = "qemu-img bitmap --add -g 512 disk aa";
    let more = "qemu-img bitmap --add disk bb";
    for words in [create, add, more] {
        let words: Vec<&str> = words.split(' ').collect();
        qemu::run(directory, &words);
    }
    qemu::run(directory, &["qemu-io", "-c", "write 1M 9M", "disk"]);
    std::fs::read(directory.join("disk")).expect("an image")
}

#[test]
fn chosen_damage() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    let image = image(directory);
    let places = stored::places(&directory.join("disk")).expect("bitmaps");
    let shards = start_shards(1);
    let (extension, entry, table) = (places.extension, places.directory, places.table);
    let size = places.directory_size as u64;
    let damages: &[(&str, usize, &[u8])] = &[
        ("no damage", 0, b"Q"),
        ("fewer bitmaps said", extension, &1_u32.to_be_bytes()),
        ("more bitmaps said", extension, &3_u32.to_be_bytes()),
        ("no directory", extension + 8, &[0; 8]),
        ("a longer one", extension + 8, &(size + 8).to_be_bytes()),
        ("much longer", extension + 8, &(size + 4000).to_be_bytes()),
        ("a shorter one", extension + 8, &(size - 8).to_be_bytes()),
        ("one by a byte", extension + 8, &(size - 1).to_be_bytes()),
        (
            "behind the end",
            extension + 16,
            &(1_u64 << 40).to_be_bytes(),
        ),
        ("nowhere", extension + 16, &(1_u64 << 63).to_be_bytes()),
        ("the header as one", extension + 16, &[0; 8]),
        ("no table", entry, &[0; 8]),
        (
            "a table behind the end",
            entry,
            &(1_u64 << 40).to_be_bytes(),
        ),
        ("a table nowhere", entry, &(1_u64 << 63).to_be_bytes()),
        ("a shorter table", entry + 8, &3_u32.to_be_bytes()),
        ("a longer table", entry + 8, &5_u32.to_be_bytes()),
        ("a huge table", entry + 8, &u32::MAX.to_be_bytes()),
        ("an empty table", entry + 8, &[0; 4]),
        ("in use", entry + 12, &3_u32.to_be_bytes()),
        ("unknown flags", entry + 12, &4_u32.to_be_bytes()),
        ("another type", entry + 16, &[2]),
        ("fine granularity", entry + 17, &[8]),
        ("coarser granularity", entry + 17, &[10]),
        ("coarsest granularity", entry + 17, &[31]),
        ("coarse granularity", entry + 17, &[32]),
        ("a long name", entry + 18, &1024_u16.to_be_bytes()),
        ("a name longer by one", entry + 18, &[0, 3]),
        ("extra data", entry + 20, &8_u32.to_be_bytes()),
        ("much extra data", entry + 20, &1024_u32.to_be_bytes()),
        ("a name twice", entry + 24, b"bb"),
        ("a name that is no text", entry + 24, b"\xff\xfe"),
        ("a name that ends early", entry + 24, b"a\0"),
        ("all ones", table, &1_u64.to_be_bytes()),
        ("an offset and all ones", table, &0x1_0001_u64.to_be_bytes()),
        ("reserved low bits", table, &0x1_0002_u64.to_be_bytes()),
        ("reserved high bits", table, &(1_u64 << 60).to_be_bytes()),
        ("an unaligned offset", table, &0x1_0200_u64.to_be_bytes()),
        ("bits behind the end", table, &(1_u64 << 40).to_be_bytes()),
    ];
    for (what, at, bytes) in damages {
        let mut damaged = image.clone();
        damaged[*at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(directory.join("damaged"), damaged).expect("written");
        compare(&shards, directory, what);
    }
    shards.stop();
}

#[test]
fn random_damage() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    let image = image(directory);
    let places = stored::places(&directory.join("disk")).expect("bitmaps");
    let shards = start_shards(1);
    let mut random = Random::new(1);
    for round in 0..80 {
        let mut damaged = image.clone();
        for _ in 0..1 + random.index(2) {
            let at = match random.index(4) {
                0 => places.extension + random.index(24),
                1 => places.table + random.index(32),
                _ => places.directory + random.index(places.directory_size),
            };
            damaged[at] ^= 1 << random.index(8);
        }
        std::fs::write(directory.join("damaged"), damaged).expect("written");
        compare(&shards, directory, &format!("round {round}"));
    }
    shards.stop();
}
