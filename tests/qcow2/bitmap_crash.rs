//! Power cuts while persistent bitmaps are loaded, used, removed and stored, on
//! a simulated machine. QEMU judges what is left.
//!
//! A bitmap that the file calls good must know of every byte that changed, and
//! must have kept what it knew before.
//!
//! `RINGBACK_CRASH_SEED=N` replays one seed; `RINGBACK_CRASH_COUNT=N` runs that
//! many.

use std::path::{Path, PathBuf};

use ringback_block::format::qcow2::OpenOptions;
use ringback_block::graph::{BitmapSpec, Graph, NodeSpec};
use ringback_ring::Shard;
use ringback_ring::file::Cache;
use ringback_ring::sim::{FileOptions, Random, Sim};
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

use crate::qemu;
use crate::session::Session;
use crate::stored::{self, Stored};

const IN_USE: u32 = 1;
const SIZE: u64 = 1 << 20;
const GRANULARITY: u64 = 4096;

/// An image as it is before the simulation.
struct Base {
    image: Vec<u8>,
    disk: Vec<u8>,
    bitmaps: Vec<Stored>,
}

fn make(directory: &Path, options: &str) -> Base {
    let size = SIZE.to_string();
    let create = [
        "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "disk", &size,
    ];
    qemu::run(directory, &create);
    // Most clusters are there, and overwritten in place: nothing else is changed
    // then.
    let command = "write -P 3 0 768k";
    qemu::run(
        directory,
        &["qemu-io", "-f", "qcow2", "-c", command, "disk"],
    );
    for name in ["first", "second"] {
        let granularity = GRANULARITY.to_string();
        let words = [
            "qemu-img",
            "bitmap",
            "--add",
            "-g",
            &granularity,
            "disk",
            name,
        ];
        qemu::run(directory, &words);
    }
    for command in ["write -P 1 64k 128k", "write -P 2 900k 4k"] {
        qemu::run(
            directory,
            &["qemu-io", "-f", "qcow2", "-c", command, "disk"],
        );
    }
    let mut image = std::fs::read(directory.join("disk")).expect("an image");
    // Whole sectors of any disk.
    image.resize(image.len().next_multiple_of(4096), 0);
    Base {
        image,
        disk: content(directory),
        bitmaps: stored::bitmaps(&directory.join("disk")),
    }
}

fn content(directory: &Path) -> Vec<u8> {
    let words = [
        "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "disk", "raw",
    ];
    qemu::run(directory, &words);
    std::fs::read(directory.join("raw")).expect("the converted image")
}

/// Puts the image on the simulated machine's disk.
async fn install(shard: Shard, image: Vec<u8>) {
    let mut graph = Graph::new();
    let spec = NodeSpec::File {
        path: PathBuf::from("disk"),
        write: true,
        cache: Cache::Auto,
        discard: true,
    };
    graph.add(&shard, "file", spec).await.expect("a file");
    let access = ringback_block::graph::Access {
        write: true,
        ..Default::default()
    };
    let (user, file) = graph
        .attach(&shard, "file", "installer", access)
        .await
        .expect("a user");
    let port = file.port(&shard);
    let mut buf = shard.buffer(image.len()).await;
    buf[..image.len()].copy_from_slice(&image);
    port.write(&shard, 0, buf, 0..image.len())
        .await
        .0
        .expect("written");
    port.flush(&shard).await.expect("flushed");
    graph.detach(user).await;
}

/// What is cut off. Errors are part of it.
async fn use_it(shard: Shard, seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..2 {
        let mut options = OpenOptions::new(true);
        options.refcount_cache_size = Some(0);
        let Ok(mut session) = Session::open(&shard, Path::new("disk"), options).await else {
            return;
        };
        for _ in 0..random.index(4) {
            let offset = random.below(SIZE / 512) * 512;
            let len = (1 + random.below(30)).min((SIZE - offset) / 512) * 512;
            let _ = session.write(offset, len as usize, 0xee).await;
            if random.below(3) == 0 {
                let _ = session.flush().await;
            }
        }
        if random.below(2) == 0 {
            let spec = BitmapSpec {
                name: format!("new{}", random.below(1000)),
                granularity: Some(GRANULARITY),
                // It knows of nothing that came before.
                disabled: true,
                persistent: true,
            };
            let _ = session
                .graph
                .transact(&shard, &["disk"], async |transaction| {
                    transaction.add_bitmap("disk", &spec)
                })
                .await;
        }
        if random.below(3) == 0 {
            let name = ["first", "second"][random.index(2)];
            let _ = session
                .graph
                .transact(&shard, &["disk"], async |transaction| {
                    transaction.remove_bitmap("disk", name).await
                })
                .await;
        }
        let _ = session.close().await;
    }
}

/// Runs one seed up to the cut; see [`judge`].
fn run(base: &Base, directory: &Path, seed: u64, longest_ns: u64) -> (usize, usize) {
    let mut random = Random::new(seed);
    let mut sim = Sim::new(random.bits(), 1);
    let options = FileOptions {
        short_rate: 20_000,
        write_error_rate: if random.below(4) == 0 { 20_000 } else { 0 },
        ..FileOptions::default()
    };
    let len = base.image.len() as u64;
    sim.world().create("disk", len, FileOptions::default());
    let image = base.image.clone();
    let installed = sim.shards().spawn_on(0, move |shard| install(shard, image));
    sim.run(&installed).expect("it is installed");
    sim.world().set_options("disk", |disk| *disk = options);
    let start = sim.world().now_ns();
    let seed = random.bits();
    let used = sim.shards().spawn_on(0, move |shard| use_it(shard, seed));
    sim.run_until(start + random.below(longest_ns));
    println!(
        "lasted {} {}",
        sim.world().now_ns() - start,
        used.try_take().is_some()
    );
    let sim = sim.cut_power();
    std::fs::write(directory.join("disk"), sim.world().content("disk")).expect("written");
    judge(base, directory)
}

/// How many bitmaps the file calls good, and how many in use.
fn judge(base: &Base, directory: &Path) -> (usize, usize) {
    // Leaks may be left, and nothing else is wrong.
    let check = ["qemu-img", "check", "-q", "-f", "qcow2", "disk"];
    let output = std::process::Command::new(check[0])
        .args(&check[1..])
        .current_dir(directory)
        .output()
        .expect("qemu-img runs");
    let code = output.status.code();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {said}");
    let disk = content(directory);
    let (mut good, mut in_use) = (0, 0);
    for bitmap in stored::bitmaps(&directory.join("disk")) {
        if bitmap.flags & IN_USE != 0 {
            in_use += 1;
            continue;
        }
        good += 1;
        let Some(before) = base.bitmaps.iter().find(|old| old.name == bitmap.name) else {
            assert!(!bitmap.dirty.contains(&true), "it was disabled: {bitmap:?}");
            continue;
        };
        for (granule, &dirty) in bitmap.dirty.iter().enumerate() {
            let start = granule * GRANULARITY as usize;
            let bytes = start..start + GRANULARITY as usize;
            let changed = disk[bytes.clone()] != base.disk[bytes];
            let name = &bitmap.name;
            assert!(
                dirty || !changed,
                "'{name}' does not know of a write to {start}"
            );
            assert!(
                dirty || !before.dirty[granule],
                "'{name}' has forgotten {start}"
            );
        }
    }
    (good, in_use)
}

#[test]
fn bitmaps_survive_power_cuts_or_say_that_they_did_not() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let seeds = match number("RINGBACK_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGBACK_CRASH_COUNT").unwrap_or(60),
    };
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let bases = [
        "cluster_size=512",
        "cluster_size=4096",
        "cluster_size=16384",
    ]
    .map(|options| (make(scratch.path(), options), scratch.path()));
    let is_one = seeds.end - seeds.start == 1;
    let (mut good, mut in_use) = (0, 0);
    for seed in seeds {
        println!("RINGBACK_CRASH_SEED={seed}");
        let (base, directory) = &bases[seed as usize % 3];
        // Most runs end on their own after 2 to 12 ms.
        let found = run(base, directory, seed, 12_000_000);
        good += found.0;
        in_use += found.1;
    }
    assert!(is_one || (good > 10 && in_use > 10), "{good}, {in_use}");
}
