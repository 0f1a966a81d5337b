//! Damaged images: checked and repaired by us and by qemu-img, opened and read.
//!
//! `RINGBACK_CHECK_SEED=N` replays one seed; `RINGBACK_CHECK_COUNT=N` runs that
//! many.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringback_block::child::Child;
use ringback_block::format::qcow2::check::{CheckError, CheckReport, Repair, check};
use ringback_block::format::qcow2::{OpenOptions, Qcow2};
use ringback_block::graph::{Access, Graph, NodeSpec, Qcow2Spec};
use ringback_block::notice::{Notice, Notify};
use ringback_block::protocol::{FileProtocol, Protocol};
use ringback_block::storage::Storage;
use ringback_ring::file::{self, Cache, File};
use ringback_ring::shards::Config;
use ringback_ring::sim::Random;
use ringback_ring::{Shard, Shards};
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

use crate::tools::tool;

const DISK: u64 = 512 << 10;

/// What the sound images look like: options, whether with snapshots, with
/// bitmaps, with compressed clusters.
const SHAPES: [(&str, bool, bool, bool); 8] = [
    ("cluster_size=4k", true, true, true),
    ("cluster_size=64k", true, false, false),
    ("cluster_size=512,refcount_bits=64", true, true, false),
    ("cluster_size=512,refcount_bits=1", false, false, true),
    ("cluster_size=16k,extended_l2=on", true, false, true),
    ("cluster_size=4k,refcount_bits=8", false, true, true),
    ("cluster_size=4k,compat=0.10", true, false, true),
    ("cluster_size=64k,lazy_refcounts=on", false, true, false),
];

fn shards() -> Shards {
    let config = Config {
        count: 1,
        arena_bytes: 32 << 20,
        ..Config::default()
    };
    Shards::start(&config).expect("shards start")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds(count: u64) -> Range<u64> {
    match number("RINGBACK_CHECK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGBACK_CHECK_COUNT").unwrap_or(count),
    }
}

/// A sound image of a shape, as bytes.
fn sound(directory: &Path, shape: (&str, bool, bool, bool)) -> Vec<u8> {
    let (options, snapshots, bitmaps, compressed) = shape;
    let size = DISK.to_string();
    let run = |words: &[&str]| tool(directory, words);
    let io = |command: &str| run(&["qemu-io", "-f", "qcow2", "-c", command, "sound"]);
    if compressed {
        run(&[
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "first", &size,
        ]);
        run(&[
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            "write -P 7 8k 100k",
            "first",
        ]);
        run(&[
            "qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", options, "first",
            "sound",
        ]);
    } else {
        run(&[
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "sound", &size,
        ]);
    }
    io("write -P 1 128k 130k");
    if snapshots {
        run(&["qemu-img", "snapshot", "-c", "one", "sound"]);
        io("write -P 2 200k 80k");
        run(&["qemu-img", "snapshot", "-c", "two", "sound"]);
    }
    if !options.contains("0.10") {
        io("write -z 300k 64k");
    }
    if bitmaps {
        run(&["qemu-img", "bitmap", "--add", "-g", "4096", "sound", "b0"]);
        io("write -P 3 400k 10k");
    }
    io("write -P 4 0 5k");
    std::fs::read(directory.join("sound")).expect("the image")
}

fn word(bytes: &[u8], offset: u64) -> u64 {
    let found = bytes.get(offset as usize..).and_then(<[u8]>::first_chunk);
    u64::from_be_bytes(found.copied().unwrap_or([0; 8]))
}

const HOST: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the metadata lies: starts and lengths.
fn metadata(bytes: &[u8]) -> Vec<(u64, u64)> {
    let cluster = 1_u64 << (word(bytes, 16) as u32);
    let (l1_size, l1) = (word(bytes, 32) as u32, word(bytes, 40));
    let table = word(bytes, 48);
    let (snapshot_count, snapshots) = (word(bytes, 56) as u32, word(bytes, 64));
    let mut places = vec![(table, 64), (l1, u64::from(l1_size) * 8), (l1, 16)];
    for index in 0..l1_size.into() {
        let offset = word(bytes, l1 + index * 8) & HOST;
        if offset != 0 {
            // The first entries are those in use.
            places.push((offset, (DISK / cluster * 8).min(cluster)));
        }
    }
    for index in 0..cluster / 8 {
        let offset = word(bytes, table + index * 8) & HOST;
        if offset != 0 {
            places.push((offset, cluster.min(128)));
        }
    }
    if snapshot_count > 0 {
        places.push((snapshots, 160));
        let l1 = word(bytes, snapshots);
        places.push((l1, 16));
        places.push((word(bytes, l1) & HOST, (DISK / cluster * 8).min(cluster)));
    }
    places
}

/// Damages one or several words.
fn mutate(bytes: &mut [u8], places: &[(u64, u64)], random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let (start, len) = places[random.index(places.len())];
        let at = start + random.below(len.max(8) / 8) * 8;
        if at + 8 > bytes.len() as u64 {
            continue;
        }
        let old = word(bytes, at);
        let (other, other_len) = places[random.index(places.len())];
        let new = match random.below(8) {
            0..4 => old ^ 1 << random.below(64),
            4 => 0,
            5 => word(bytes, other + random.below(other_len.max(8) / 8) * 8),
            6 => old ^ random.below(256) << (8 * random.below(8)),
            _ => old.wrapping_add(random.below(5) << 9),
        };
        bytes[at as usize..at as usize + 8].copy_from_slice(&new.to_be_bytes());
    }
}

async fn child(shard: &Shard, path: PathBuf, write: bool) -> Child {
    let options = file::OpenOptions {
        path,
        write,
        cache: Cache::Buffered,
    };
    let file = File::open(shard, options).await.expect("the file opens");
    let protocol = Protocol::File(FileProtocol::new(file, true));
    Child::Storage(Arc::new(Storage::new(protocol, shard.set().count())))
}

type Checked = (Result<CheckReport, CheckError>, Vec<String>);

async fn check_file(shard: Shard, path: PathBuf, repair: Repair) -> Checked {
    let file = child(&shard, path, repair > Repair::Nothing).await;
    let mut lines = Vec::new();
    let mut say = |finding: &_| lines.extend(format!("{finding}").lines().map(str::to_owned));
    let result = check(&shard, &file, repair, &mut say).await;
    (result, lines)
}

fn ours(shards: &Shards, path: &Path, repair: Repair) -> Checked {
    let path = path.to_owned();
    shards
        .spawn_on(0, move |shard| check_file(shard, path, repair))
        .wait()
        .expect("checks end")
}

/// What qemu-img says: None if it could not check.
struct Theirs {
    status: i32,
    json: Option<serde_json::Value>,
    lines: Vec<String>,
}

impl Theirs {
    fn new(path: &Path, repair: &[&str]) -> Self {
        let output = Command::new("qemu-img")
            .args(["check", "-f", "qcow2", "--output=json"])
            .args(repair)
            .arg(path)
            .output()
            .expect("qemu-img runs");
        let text = String::from_utf8_lossy(&output.stderr);
        Self {
            status: output.status.code().expect("it ends by itself"),
            json: serde_json::from_slice(&output.stdout).ok(),
            lines: text.lines().map(str::to_owned).collect(),
        }
    }

    fn number(&self, name: &str) -> u64 {
        let json = self.json.as_ref().expect("it could check");
        json[name].as_u64().unwrap_or(0)
    }

    fn says(&self, part: &str) -> bool {
        self.lines.iter().any(|line| line.contains(part))
    }
}

fn class(report: &CheckReport) -> i32 {
    match (report.check_errors, report.corruptions, report.leaks) {
        (0, 0, 0) => 0,
        (0, 0, _) => 3,
        (0, _, _) => 2,
        _ => 1,
    }
}

/// Compares a plain check. Answers whether QEMU could check at all.
fn compare(ours: &Checked, theirs: &Theirs) -> Result<bool, String> {
    let report = match &ours.0 {
        Ok(report) => report,
        // Neither can.
        Err(_) if theirs.status == 1 => return Ok(false),
        Err(error) => return Err(format!("we cannot check: {error}; {:?}", theirs.lines)),
    };
    if theirs.status == 1 && theirs.json.is_none() {
        // A bitmap's table that is damaged keeps QEMU from opening the image at
        // all; we count it as what it is.
        let bitmaps = theirs.says("bitmap");
        return if bitmaps {
            Ok(false)
        } else {
            Err(format!("they cannot check: {:?}", theirs.lines))
        };
    }
    let pairs = [
        ("check-errors", report.check_errors),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("image-end-offset", report.image_end_offset),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    for (name, value) in pairs {
        if theirs.number(name) != value {
            return Err(format!(
                "{name}: {value}, not {}\nours: {:#?}\ntheirs: {:#?}",
                theirs.number(name),
                ours.1,
                theirs.lines
            ));
        }
    }
    if class(report) != theirs.status {
        return Err(format!("status {}, not {}", class(report), theirs.status));
    }
    // What is wrong in a table that several refer to is said once by us. And an
    // entry of a bitmap's table has no line of theirs.
    let mut expected: Vec<&String> = theirs
        .lines
        .iter()
        .filter(|line| !line.starts_with("qemu-img: ") && !line.starts_with("qcow2: "))
        .collect();
    let mut said: Vec<&String> = ours
        .1
        .iter()
        .filter(|line| !line.contains("bitmap '"))
        .collect();
    if said != expected {
        for lines in [&mut said, &mut expected] {
            lines.sort();
            lines.dedup();
        }
    }
    if said != expected {
        return Err(format!(
            "lines:\nours: {:#?}\ntheirs: {:#?}",
            ours.1, theirs.lines
        ));
    }
    Ok(true)
}

/// Compares a repair.
fn compare_repair(
    shards: &Shards,
    directory: &Path,
    plain: &Theirs,
    loses_snapshots: bool,
) -> Result<(), String> {
    let (a, b) = (directory.join("ours"), directory.join("theirs"));
    let (first, lines) = ours(shards, &a, Repair::All);
    let first = match first {
        Ok(report) => report,
        Err(CheckError::Open(_)) => return Ok(()),
        Err(error) => return Err(format!("our repair: {error} {lines:#?}")),
    };
    // Ours again, and QEMU's word about ours.
    let again = ours(shards, &a, Repair::Nothing);
    let left = again.0.clone().map_err(|error| error.to_string())?;
    let verdict = Theirs::new(&a, &[]);
    compare(&again, &verdict).map_err(|error| format!("after our repair: {error}"))?;
    // With check errors it is not known what is left; and one repair may mend
    // another thing, too.
    let said = (first.leaks, first.corruptions);
    if first.check_errors == 0 && (left.leaks > said.0 || left.corruptions > said.1) {
        return Err(format!(
            "we said {said:?} are left: {left:?}\n{lines:#?}\n{:#?}",
            again.1
        ));
    }
    // QEMU makes the file as long as a block claims; that may be anything. And
    // it loses the snapshots of an image that has bitmaps, too.
    if plain.says("is outside image") || loses_snapshots {
        return Ok(());
    }
    let theirs = Theirs::new(&b, &["-r", "all"]);
    if theirs.json.is_none() {
        // It wrecks what it repairs, see the refcount table's reserved bits.
        return Ok(());
    }
    // We may keep what seems to be lost if a table could not be followed, leave
    // tables alone that are something else too, and mend more than QEMU does;
    // but where QEMU leaves nothing, neither do we.
    let kept = |line: &String| {
        [
            "reserved bits",
            "aligned",
            "exceeding the end",
            "overflow",
            "copied flag",
            "allocation map",
            "compressed cluster",
            "bitmap",
            "ERROR OFLAG_COPIED",
        ]
        .iter()
        .any(|reason| line.contains(reason))
    };
    if theirs.status == 0 && class(&left) != 0 && !lines.iter().any(kept) {
        return Err(format!(
            "QEMU leaves nothing, we leave {left:?}\nours: {lines:#?}\nagain: {:#?}\ntheirs: {:#?}",
            again.1, theirs.lines
        ));
    }
    if theirs.status == 0 && class(&left) == 0 {
        let fixed = (
            theirs.number("leaks-fixed"),
            theirs.number("corruptions-fixed"),
        );
        if fixed != (first.leaks_fixed, first.corruptions_fixed) {
            return Err(format!(
                "fixed {:?}, not {fixed:?}\nours: {lines:#?}\ntheirs: {:#?}",
                (first.leaks_fixed, first.corruptions_fixed),
                theirs.lines
            ));
        }
    }
    Ok(())
}

#[test]
fn damage_is_judged_and_repaired_as_by_qemu() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let shards = shards();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    let images: Vec<Vec<u8>> = SHAPES
        .iter()
        .map(|&shape| sound(directory, shape))
        .collect();
    let mut checked = 0;
    let all = seeds(100);
    let count = all.end - all.start;
    for seed in all {
        let mut random = Random::new(seed);
        let shape = random.index(images.len());
        let mut bytes = images[shape].clone();
        let places = metadata(&bytes);
        mutate(&mut bytes, &places, &mut random);
        for name in ["ours", "theirs"] {
            std::fs::write(directory.join(name), &bytes).expect("written");
        }
        let path = directory.join("ours");
        let theirs = Theirs::new(&path, &[]);
        let plain = ours(&shards, &path, Repair::Nothing);
        let result = compare(&plain, &theirs).and_then(|could_check| {
            if could_check {
                checked += 1;
                compare_repair(
                    &shards,
                    directory,
                    &theirs,
                    SHAPES[shape].1 && SHAPES[shape].2,
                )?;
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("RINGBACK_CHECK_SEED={seed} ({}): {error}", SHAPES[shape].0);
        }
    }
    assert!(
        checked * 2 >= count,
        "only {checked} of {count} could be checked"
    );
    shards.stop();
}

#[test]
fn sound_images_are_clean() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let shards = shards();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    for shape in SHAPES {
        sound(scratch.path(), shape);
        let path = scratch.path().join("sound");
        let found = ours(&shards, &path, Repair::Nothing);
        let report = found.0.clone().expect("it can be checked");
        assert_eq!(
            (class(&report), found.1.len()),
            (0, 0),
            "{shape:?}: {:?}",
            found.1
        );
        compare(&found, &Theirs::new(&path, &[])).expect("the same sums");
    }
    shards.stop();
}

#[test]
fn a_dirty_image_is_repaired_when_it_is_opened() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let shards = shards();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    tool(
        directory,
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "lazy_refcounts=on",
            "ours",
            "128M",
        ],
    );
    // It dies before it can write its refcounts.
    let died = Command::new("qemu-io")
        .args([
            "-f",
            "qcow2",
            "-c",
            "write -P 0x5a 0 512",
            "-c",
            "sigraise 9",
            "ours",
        ])
        .current_dir(directory)
        .output()
        .expect("qemu-io runs");
    assert!(!died.status.success());
    std::fs::copy(directory.join("ours"), directory.join("theirs")).expect("copied");
    let theirs = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "read 0 512", "theirs"])
        .current_dir(directory)
        .output()
        .expect("qemu-io runs");
    let expected = String::from_utf8_lossy(&theirs.stderr).into_owned();
    assert!(
        expected.contains("Rebuilding refcount structure"),
        "{expected}"
    );

    let said = Arc::new(Mutex::new(String::new()));
    let path = directory.join("ours");
    let place = path.clone();
    let heard = Arc::clone(&said);
    shards
        .spawn_on(0, move |shard| async move {
            let file = child(&shard, place, true).await;
            let mut options = OpenOptions::new(true);
            options.notify = Notify::new(move |notice| {
                if let Notice::Message(line) = notice {
                    let mut heard = heard.lock().expect("no panic");
                    heard.push_str(&line);
                    heard.push('\n');
                }
            });
            let image = Qcow2::open(&shard, file, None, &options).await;
            image
                .expect("it opens")
                .close(&shard)
                .await
                .expect("it closes");
        })
        .wait()
        .expect("it ends");
    assert_eq!(*said.lock().expect("no panic"), expected);
    let (ours, theirs) = (
        std::fs::read(&path).expect("ours"),
        std::fs::read(directory.join("theirs")).expect("theirs"),
    );
    assert!(ours == theirs, "the images differ");
    assert_eq!(Theirs::new(&path, &[]).status, 0);
    shards.stop();
}

/// Opens, reads, closes. Errors are fine.
async fn open_and_read(shard: Shard, path: PathBuf) {
    let mut graph = Graph::new();
    let file = NodeSpec::File {
        path,
        write: false,
        cache: Cache::Buffered,
        discard: false,
    };
    graph.add(&shard, "file", file).await.expect("a file");
    let spec = NodeSpec::Qcow2(Qcow2Spec {
        file: "file".into(),
        backing: None,
        data_file: None,
        options: OpenOptions::new(false),
        force_share: false,
    });
    if graph.add(&shard, "disk", spec).await.is_err() {
        return;
    }
    let size = graph.size("disk").expect("it is there").min(16 * DISK);
    let access = Access {
        read: true,
        write: false,
        alone_writing: true,
        ..Access::default()
    };
    let attached = graph.attach(&shard, "disk", "guest", access).await;
    let (user, disk) = attached.expect("a guest");
    let port = disk.port(&shard);
    let step = 64 << 10;
    for offset in (0..size).step_by(step) {
        let len = step.min((size - offset) as usize);
        let buf = shard.buffer(len).await;
        let (_, _) = port.read(&shard, offset, buf, 0..len).await;
    }
    drop(port);
    graph.detach(user).await;
}

#[test]
fn whatever_is_in_an_image_nothing_panics_or_hangs() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let shards = shards();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    let images: Vec<Vec<u8>> = SHAPES
        .iter()
        .map(|&shape| sound(directory, shape))
        .collect();
    let path = directory.join("mutated");
    for seed in seeds(2000) {
        let mut random = Random::new(seed ^ 0x5eed << 32);
        let mut bytes = images[random.index(images.len())].clone();
        let mut places = metadata(&bytes);
        // The header's fields, and anything at all.
        places.extend([(16, 96), (16, 96), (104, 200), (0, bytes.len() as u64)]);
        mutate(&mut bytes, &places, &mut random);
        if random.below(10) == 0 {
            bytes.truncate(random.index(bytes.len()));
        }
        std::fs::write(&path, &bytes).expect("written");
        let (place, repairs) = (path.clone(), random.below(25) == 0);
        let began = Instant::now();
        shards
            .spawn_on(0, move |shard| async move {
                open_and_read(shard.clone(), place.clone()).await;
                let _ = check_file(shard.clone(), place.clone(), Repair::Nothing).await;
                if repairs {
                    let _ = check_file(shard.clone(), place.clone(), Repair::All).await;
                    let _ = check_file(shard, place, Repair::Leaks).await;
                }
            })
            .wait()
            .unwrap_or_else(|error| panic!("RINGBACK_CHECK_SEED={seed}: {error}"));
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "RINGBACK_CHECK_SEED={seed} took {:?}",
            began.elapsed()
        );
        let length = std::fs::metadata(&path).expect("it is there").len();
        assert!(
            length <= bytes.len() as u64 * 2 + (16 << 20),
            "RINGBACK_CHECK_SEED={seed}: the file has grown to {length}"
        );
    }
    shards.stop();
}
