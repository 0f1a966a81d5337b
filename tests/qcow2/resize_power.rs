//! The power fails while a disk changes its size: it is the old disk or the
//! new one, and no structure is damaged.

use std::process::Command;
use std::sync::{Arc, Mutex};

use ringback_block::format::qcow2;
use ringback_block::format::qcow2::create::CreateOptions;
use ringback_block::graph::{Access, Graph, NodeSpec, Qcow2Spec};
use ringback_block::protocol::create_file;
use ringback_block::request::Preallocation;
use ringback_ring::Shard;
use ringback_ring::file::Cache;
use ringback_ring::sim::{Random, Sim};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::run;
use ringback_tests::scratch::Scratch;

const SECTORS_MAX: u64 = 600;

/// What the disk may hold after a cut.
#[derive(Default)]
struct Progress {
    /// One of these; none: a write was under way.
    allowed: Vec<Vec<u8>>,
    resizes: usize,
}

type Shared = Arc<Mutex<Progress>>;

fn set(progress: &Shared, allowed: &[&Vec<u8>]) {
    let mut progress = progress.lock().expect("no panic");
    progress.allowed = allowed.iter().map(|&model| model.clone()).collect();
}

async fn make(shard: Shard, options: CreateOptions) {
    create_file(&shard, "disk".into(), 0, Preallocation::Off)
        .await
        .expect("a file");
    let mut graph = Graph::new();
    graph.add(&shard, "disk", disk()).await.expect("a node");
    let created = graph.create_qcow2(&shard, "disk", None, &options).await;
    created.expect("an image");
}

fn disk() -> NodeSpec {
    NodeSpec::File {
        path: "disk".into(),
        write: true,
        cache: Cache::Auto,
        discard: true,
    }
}

/// Writes and resizes until the power goes.
async fn work(shard: Shard, size: u64, progress: Shared, seed: u64) {
    let mut random = Random::new(seed);
    let mut graph = Graph::new();
    graph.add(&shard, "disk", disk()).await.expect("a node");
    let mut options = qcow2::OpenOptions::new(true);
    if random.below(2) == 0 {
        options.l2_cache_size = Some(0);
        options.l2_cache_entry_size = Some(512);
        options.refcount_cache_size = Some(0);
    }
    let spec = NodeSpec::Qcow2(Qcow2Spec {
        file: "disk".into(),
        backing: None,
        data_file: None,
        options,
        force_share: false,
    });
    graph.add(&shard, "image", spec).await.expect("an image");
    let access = Access {
        read: true,
        write: true,
        alone_writing: true,
        ..Access::default()
    };
    let (_, disk) = graph
        .attach(&shard, "image", "guest", access)
        .await
        .expect("a guest");
    let port = disk.port(&shard);
    let mut model = vec![0; size as usize];
    loop {
        set(&progress, &[]);
        for _ in 0..random.below(4) {
            let start = random.index(model.len());
            let len = 1 + random.index((model.len() - start).min(9000));
            let value = 1 + random.below(255) as u8;
            model[start..start + len].fill(value);
            let mut buf = shard.buffer(len).await;
            buf[..len].fill(value);
            let written = port.write(&shard, start as u64, buf, 0..len).await;
            written.0.expect("written");
        }
        port.flush(&shard).await.expect("flushed");
        let mut new = model.clone();
        new.resize((1 + random.below(SECTORS_MAX)) as usize * 512, 0);
        let mode = [
            Preallocation::Off,
            Preallocation::Metadata,
            Preallocation::Falloc,
        ];
        let mode = if new.len() < model.len() {
            Preallocation::Off
        } else {
            mode[random.index(3)]
        };
        set(&progress, &[&model, &new]);
        let resized = graph.resize(&shard, "image", new.len() as u64, mode).await;
        resized.expect("another size");
        progress.lock().expect("no panic").resizes += 1;
        set(&progress, &[&new]);
        model = new;
    }
}

/// Answers how many changes of size were complete.
fn run_seed(seed: u64) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let mut sim = Sim::new(random.bits(), 1);
    let options = CreateOptions {
        cluster_size: [512, 512, 4096][random.index(3)],
        refcount_bits: [16, 64][random.index(2)],
        ..CreateOptions::new((1 + random.below(SECTORS_MAX)) * 512)
    };
    let size = options.size;
    let made = sim.shards().spawn_on(0, move |shard| make(shard, options));
    sim.run(&made).map_err(|stalled| stalled.to_string())?;
    let progress = Shared::default();
    let (shared, work_seed) = (Arc::clone(&progress), random.bits());
    let ended = sim
        .shards()
        .spawn_on(0, move |shard| work(shard, size, shared, work_seed));
    sim.run_until(sim.world().now_ns() + random.below(120_000_000));
    if let Some(result) = ended.try_take() {
        return Err(format!("the work ended: {result:?}"));
    }
    let sim = sim.cut_power();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let path = scratch.join("disk");
    std::fs::write(&path, sim.world().content("disk")).expect("a copy");
    let check = run(Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(&path));
    // 3: clusters are leaked, no harm to data.
    if !matches!(check.status.code(), Some(0 | 3)) {
        return Err(format!("check: {check:?}"));
    }
    let raw = scratch.join("raw");
    run(Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([&path, &raw]))
    .succeeded();
    let found = std::fs::read(raw).expect("the converted image");
    let progress = progress.lock().expect("no panic");
    if !progress.allowed.is_empty() && !progress.allowed.contains(&found) {
        let sizes: Vec<usize> = progress.allowed.iter().map(Vec::len).collect();
        let differ: Vec<_> = progress
            .allowed
            .iter()
            .map(|model| model.iter().zip(&found).position(|(a, b)| a != b))
            .collect();
        return Err(format!(
            "{} bytes, neither of {sizes:?}; differences at {differ:?}",
            found.len()
        ));
    }
    Ok(progress.resizes)
}

#[test]
fn a_power_cut_leaves_the_old_disk_or_the_new_one() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let seeds = match number("RINGBACK_QCOW2_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGBACK_QCOW2_COUNT").unwrap_or(60),
    };
    let mut resizes = 0;
    for seed in seeds {
        match run_seed(seed) {
            Ok(complete) => resizes += complete,
            Err(error) => panic!("RINGBACK_QCOW2_SEED={seed}: {error}"),
        }
    }
    assert!(resizes > 0, "the cuts come too early to prove anything");
}
