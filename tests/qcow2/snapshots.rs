//! Internal snapshots that qemu-img made, read by ringback.

use std::path::Path;

use ringback_block::format::qcow2::{OpenOptions, OverlapCheck, SnapshotSelector};
use ringback_ring::sim::Random;
use ringback_ring::{Shard, Shards};
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

use crate::qemu;
use crate::session::{Session, on_shard, start_shards};

const SIZE: usize = 3 << 20;

fn tool(directory: &Path, words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    qemu::run(directory, &words);
}

fn write_some(directory: &Path, random: &mut Random) {
    for _ in 0..4 {
        let offset = random.index(SIZE / 512) * 512;
        let len = (1 + random.index(300)).min((SIZE - offset) / 512) * 512;
        let pattern = 1 + random.index(250);
        let command = match random.index(4) {
            0 => format!("write -z -u {offset} {len}"),
            1 => format!("discard {offset} {len}"),
            _ => format!("write -P {pattern} {offset} {len}"),
        };
        qemu::run(
            directory,
            &["qemu-io", "-f", "qcow2", "-c", &command, "disk"],
        );
    }
}

async fn content(
    shard: Shard,
    path: std::path::PathBuf,
    selector: Option<SnapshotSelector>,
) -> Vec<u8> {
    let mut options = OpenOptions::new(false);
    options.snapshot = selector;
    let session = Session::open(&shard, &path, options)
        .await
        .expect("a snapshot");
    let size = session.graph.size("disk").expect("the node");
    let bytes = session.read(0, size as usize).await.expect("it is read");
    session.close().await.expect("closed");
    bytes
}

fn read(shards: &Shards, directory: &Path, selector: Option<SnapshotSelector>) -> Vec<u8> {
    let path = directory.join("disk");
    on_shard(shards, move |shard| content(shard, path, selector))
}

/// What the disk is now, as QEMU reads it.
fn converted(directory: &Path, snapshot: Option<&str>) -> Vec<u8> {
    let select = snapshot
        .map(|name| format!("-l {name} "))
        .unwrap_or_default();
    tool(
        directory,
        &format!("qemu-img convert {select}-f qcow2 -O raw disk raw"),
    );
    std::fs::read(directory.join("raw")).expect("the converted image")
}

#[test]
fn snapshots_read_as_qemu_reads_them() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let shards = start_shards(1);
    for (seed, options) in [
        "cluster_size=512",
        "cluster_size=65536,compat=0.10",
        "cluster_size=65536,extended_l2=on",
        "cluster_size=4096,refcount_bits=64",
    ]
    .into_iter()
    .enumerate()
    {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
        let directory = scratch.path();
        let mut random = Random::new(seed as u64);
        tool(
            directory,
            &format!("qemu-img create -q -f qcow2 -o {options} disk {SIZE}"),
        );
        let names = ["first", "second", "third"];
        for name in names {
            write_some(directory, &mut random);
            tool(directory, &format!("qemu-img snapshot -c {name} disk"));
        }
        write_some(directory, &mut random);
        // What ringback writes changes no snapshot.
        let expected: Vec<_> = names
            .iter()
            .map(|name| converted(directory, Some(name)))
            .collect();
        let path = directory.join("disk");
        on_shard(&shards, move |shard| async move {
            let mut options = OpenOptions::new(true);
            options.overlap_check = OverlapCheck::ALL;
            let session = Session::open(&shard, &path, options).await.expect("open");
            let image = session.graph.qcow2("disk").expect("an image");
            let listed: Vec<_> = image
                .snapshots()
                .iter()
                .map(|snapshot| {
                    (
                        snapshot.id.clone(),
                        snapshot.name.clone(),
                        snapshot.disk_size,
                    )
                })
                .collect();
            let entry = |id: &str, name: &str| (id.into(), name.into(), Some(SIZE as u64));
            assert_eq!(
                listed,
                [
                    entry("1", "first"),
                    entry("2", "second"),
                    entry("3", "third")
                ]
            );
            for cluster in 0..20 {
                let offset = cluster * 150_000 / 512 * 512;
                session.write(offset, 1024, 99).await.expect("a write");
            }
            session.close().await.expect("closed");
        });
        qemu::check(directory, "disk");
        for (index, name) in names.iter().enumerate() {
            assert_eq!(
                converted(directory, Some(name)),
                expected[index],
                "untouched"
            );
            for selector in [
                SnapshotSelector::Name((*name).into()),
                SnapshotSelector::Id((index + 1).to_string()),
                SnapshotSelector::IdOrName((*name).into()),
            ] {
                let found = read(&shards, directory, Some(selector));
                assert!(found == expected[index], "{options}: {name}");
            }
        }
        assert!(read(&shards, directory, None) == converted(directory, None));
    }
    shards.stop();
}

#[test]
fn a_snapshot_keeps_its_size() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    tool(
        directory,
        &format!("qemu-img create -q -f qcow2 disk {SIZE}"),
    );
    qemu::run(directory, &["qemu-io", "-c", "write -P 7 0 3M", "disk"]);
    tool(directory, "qemu-img snapshot -c s disk");
    tool(directory, "qemu-img resize -q --shrink disk 1M");
    let shards = start_shards(1);
    let found = read(&shards, directory, Some(SnapshotSelector::Name("s".into())));
    assert!(found == vec![7; SIZE], "as it was when it was made");
    shards.stop();
}

/// What opening answers, for writing or of a snapshot.
fn opening(shards: &Shards, directory: &Path, write: bool, selector: Option<&str>) -> String {
    let path = directory.join("disk");
    let selector = selector.map(|text| SnapshotSelector::IdOrName(text.into()));
    on_shard(shards, move |shard| async move {
        let mut options = OpenOptions::new(write);
        options.snapshot = selector;
        match Session::open(&shard, &path, options).await {
            Ok(session) => {
                session.close().await.expect("closed");
                "open".into()
            }
            Err(error) => error.to_string(),
        }
    })
}

#[test]
fn damage_is_told_and_stops_nothing_else() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    tool(
        directory,
        &format!("qemu-img create -q -f qcow2 disk {SIZE}"),
    );
    qemu::run(directory, &["qemu-io", "-c", "write -P 7 0 1M", "disk"]);
    tool(directory, "qemu-img snapshot -c s disk");
    let path = directory.join("disk");
    let image = std::fs::read(&path).expect("an image");
    let mut place = [0; 8];
    place.copy_from_slice(&image[64..72]);
    let table = u64::from_be_bytes(place) as usize;
    let damage = |at: usize, bytes: &[u8]| {
        let mut damaged = image.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, damaged).expect("written");
    };
    let shards = start_shards(1);
    let open = |write, selector| opening(&shards, directory, write, selector);
    damage(0, b"Q");
    assert_eq!(open(false, Some("s")), "open");
    assert_eq!(open(false, Some("1")), "open");
    assert_eq!(
        open(false, Some("nothing")),
        "Failed to load snapshot: Can't find snapshot"
    );
    assert_eq!(
        open(true, Some("s")),
        "A snapshot can only be opened read-only"
    );
    damage(table + 6, &[2]);
    assert_eq!(open(true, None), "open");
    assert_eq!(
        open(false, Some("s")),
        "Failed to load snapshot: Snapshot L1 table offset invalid"
    );
    damage(table + 8, &u32::MAX.to_be_bytes());
    assert_eq!(open(true, None), "open");
    assert_eq!(
        open(false, Some("s")),
        "Failed to load snapshot: Snapshot L1 table too large"
    );
    damage(table + 36, &1025_u32.to_be_bytes());
    let words = ["qemu-img", "info", "-f", "qcow2", "disk"];
    let told = qemu::try_run(directory, &words).expect_err("QEMU refuses, too");
    let text = told
        .trim()
        .trim_start_matches("qemu-img: Could not open 'disk': ");
    assert_eq!(open(false, None), text);
    // A disk that ends nowhere.
    damage(table + 48, &[0xff; 8]);
    assert_eq!(open(true, None), "open");
    assert_eq!(
        open(false, Some("s")),
        "Failed to load snapshot: File too large"
    );
    shards.stop();
}

#[test]
fn random_damage_never_panics() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    tool(
        directory,
        "qemu-img create -q -f qcow2 -o cluster_size=512 disk 64k",
    );
    qemu::run(directory, &["qemu-io", "-c", "write -P 7 0 32k", "disk"]);
    tool(directory, "qemu-img snapshot -c one disk");
    tool(directory, "qemu-img snapshot -c two disk");
    let path = directory.join("disk");
    let image = std::fs::read(&path).expect("an image");
    let mut place = [0; 8];
    place.copy_from_slice(&image[64..72]);
    let table = u64::from_be_bytes(place) as usize;
    let shards = start_shards(1);
    let mut random = Random::new(3);
    let mut opened = 0;
    for _ in 0..200 {
        let mut damaged = image.clone();
        let at = [60 + random.index(12), table + random.index(140)][random.index(2)];
        damaged[at] ^= 1 << random.index(8);
        std::fs::write(&path, damaged).expect("written");
        for write in [false, true] {
            let selector = (!write).then_some("two");
            let answer = opening(&shards, directory, write, selector);
            assert!(!answer.is_empty());
            opened += usize::from(answer == "open");
        }
    }
    assert!(opened > 50, "most damage is small");
    shards.stop();
}
