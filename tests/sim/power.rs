//! Power cuts: what was flushed is there afterwards, and nothing appears that
//! was never written.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringback_block::graph::{Access, Graph, NodeSpec};
use ringback_block::port::{Attachment, Port};
use ringback_ring::Shard;
use ringback_ring::file::Cache;
use ringback_ring::sim::{FileOptions, Random, Sim};

const SIZE: usize = 32 << 10;
const GUESTS: usize = 3;

/// Every value that each byte was ever given, and how far back a cut may go.
struct Model {
    values: Vec<Vec<u8>>,
    /// Index of the last acknowledged value.
    acknowledged: Vec<usize>,
    /// Index of the oldest value that may still be there.
    oldest: Vec<usize>,
    flushes: usize,
}

type Shared = Arc<Mutex<Model>>;

fn lock(model: &Shared) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one seed up to a power cut and looks at what is left.
pub(crate) fn run(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let shards = 1 + random.index(2);
    let mut sim = Sim::new(random.bits(), shards);
    let options = FileOptions {
        request_alignment: [512, 4096][random.index(2)],
        short_rate: 20_000,
        again_rate: 20_000,
        sync_error_rate: if random.below(3) == 0 { 200_000 } else { 0 },
        ..FileOptions::default()
    };
    sim.world().create("disk", SIZE as u64, options);
    let model: Shared = Arc::new(Mutex::new(Model {
        values: vec![vec![0]; SIZE],
        acknowledged: vec![0; SIZE],
        oldest: vec![0; SIZE],
        flushes: 0,
    }));
    let (shared, guest_seed) = (Arc::clone(&model), random.bits());
    drop(sim.shards().spawn_on(0, move |shard| async move {
        start_guests(&shard, &shared, guest_seed).await;
        // The disk lives until the power goes.
        std::future::pending::<()>().await;
    }));
    sim.run_until(sim.world().now_ns() + random.below(30_000_000));
    let sim = sim.cut_power();
    check(&lock(&model), &sim.world().content("disk"))
}

fn check(model: &Model, content: &[u8]) -> Result<(), String> {
    for (at, byte) in content.iter().enumerate() {
        let allowed = &model.values[at][model.oldest[at]..];
        if !allowed.contains(byte) {
            return Err(format!(
                "after {} flushes byte {at} is {byte:#04x} and may be {allowed:02x?}",
                model.flushes
            ));
        }
    }
    Ok(())
}

async fn start_guests(shard: &Shard, model: &Shared, seed: u64) {
    let mut random = Random::new(seed);
    let mut graph = Graph::new();
    let spec = NodeSpec::File {
        path: PathBuf::from("disk"),
        write: true,
        cache: Cache::Auto,
        discard: true,
    };
    graph.add(shard, "disk", spec).await.expect("a node");
    let access = Access {
        read: true,
        write: true,
        alone_writing: true,
        ..Access::default()
    };
    let (_, disk) = graph
        .attach(shard, "disk", "guest", access)
        .await
        .expect("a guest");
    for number in 0..GUESTS {
        spawn_guest(shard, &disk, number, model, random.bits());
    }
}

fn spawn_guest(shard: &Shard, disk: &Attachment, number: usize, model: &Shared, seed: u64) {
    let (disk, model) = (disk.clone(), Arc::clone(model));
    let index = number % shard.set().count();
    drop(shard.set().spawn_on(index, move |shard| async move {
        let port = disk.port(&shard);
        let mut random = Random::new(seed);
        loop {
            match random.below(4) {
                0 => flush(&shard, &port, &model).await,
                _ => write(&shard, &port, number, &model, &mut random).await,
            }
        }
    }));
}

/// Somewhere in this guest's third of the disk, at any byte.
async fn write(shard: &Shard, port: &Port, number: usize, model: &Shared, random: &mut Random) {
    let third = SIZE / GUESTS;
    let start = random.index(third);
    let len = 1 + random.index((third - start).min(3000));
    let start = number * third + start;
    let value = random.bits().to_le_bytes()[0];
    let mut buf = shard.buffer(len).await;
    buf.fill(value);
    // Possible from here on, whether it is acknowledged or not.
    lock(model).values[start..start + len]
        .iter_mut()
        .for_each(|values| values.push(value));
    let (result, _) = port.write(shard, start as u64, buf, 0..len).await;
    if result.is_ok() {
        let mut model = lock(model);
        let Model {
            values,
            acknowledged,
            ..
        } = &mut *model;
        for at in start..start + len {
            acknowledged[at] = values[at].len() - 1;
        }
    }
}

async fn flush(shard: &Shard, port: &Port, model: &Shared) {
    let before = lock(model).acknowledged.clone();
    if port.flush(shard).await.is_ok() {
        let mut model = lock(model);
        model.flushes += 1;
        for (oldest, at_least) in model.oldest.iter_mut().zip(before) {
            *oldest = (*oldest).max(at_least);
        }
    }
}
