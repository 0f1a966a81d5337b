//! The simulated ring: replays from a seed, tears, fails, loses.

use std::path::PathBuf;

use ringback_ring::file::{Cache, OpenOptions};
use ringback_ring::sim::{FileOptions, Sim};
use ringback_ring::{Errno, File, Shard};

async fn open(shard: &Shard, name: &str) -> File {
    let options = OpenOptions {
        path: PathBuf::from(name),
        write: true,
        cache: Cache::Auto,
    };
    File::open(shard, options).await.expect("the file exists")
}

async fn write(
    shard: &Shard,
    file: &File,
    offset: u64,
    len: usize,
    value: u8,
) -> Result<usize, Errno> {
    let mut buf = shard.buffer(len).await;
    buf.fill(value);
    file.write(shard, buf, 0..len, offset).await.0
}

async fn read(shard: &Shard, file: &File, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let buf = shard.buffer(len).await;
    let (result, buf) = file.read(shard, buf, 0..len, offset).await;
    result.map(|count| buf[..count].to_vec())
}

/// A race of one writer and one reader on each shard; what the readers saw.
fn race(seed: u64) -> Vec<Vec<u8>> {
    let mut sim = Sim::new(seed, 2);
    sim.world().create("disk", 1 << 20, FileOptions::default());
    let answer = sim.shards().spawn_on(0, |shard| async move {
        let file = open(&shard, "disk").await;
        let set = shard.set().clone();
        set.on_each(move |shard| {
            let file = file.clone();
            async move {
                let writer = {
                    let (shard, file) = (shard.clone(), file.clone());
                    shard
                        .clone()
                        .spawn(async move { write(&shard, &file, 0, 8192, 1).await })
                };
                let seen = read(&shard, &file, 0, 8192)
                    .await
                    .expect("no errors asked for");
                writer.join().await.expect("no errors asked for");
                seen
            }
        })
        .await
    });
    sim.run(&answer).expect("it ends")
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..50 {
        assert_eq!(race(seed), race(seed), "seed {seed}");
    }
}

#[test]
fn overlapping_requests_tear_each_other() {
    let torn = (0..50)
        .flat_map(race)
        .filter(|seen| seen.contains(&0) && seen.contains(&1))
        .count();
    assert!(torn > 5, "only {torn} of 100 reads were torn");
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_tears_the_rest() {
    let mut lost = 0;
    for seed in 0..50 {
        let mut sim = Sim::new(seed, 1);
        sim.world().create("disk", 1 << 16, FileOptions::default());
        let answer = sim.shards().spawn_on(0, |shard| async move {
            let file = open(&shard, "disk").await;
            write(&shard, &file, 0, 16384, 1).await.expect("a write");
            file.sync(&shard).await.expect("a sync");
            write(&shard, &file, 8192, 16384, 2).await.expect("a write");
        });
        sim.run(&answer).expect("it ends");
        let sim = sim.cut_power();
        let content = sim.world().content("disk");
        assert!(content[..8192].iter().all(|&byte| byte == 1), "seed {seed}");
        for (index, sector) in content.chunks(512).enumerate() {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "seed {seed}: a torn sector"
            );
            let allowed: &[u8] = match index {
                0..16 => &[1],
                16..32 => &[1, 2],
                32..48 => &[0, 2],
                _ => &[0],
            };
            assert!(allowed.contains(&sector[0]), "seed {seed}: sector {index}");
            lost += usize::from((16..48).contains(&index) && sector[0] != 2);
        }
    }
    assert!(lost > 100, "cuts lose something: {lost}");
}

#[test]
fn faults_come_at_their_rates() {
    let mut sim = Sim::new(1, 1);
    let options = FileOptions {
        write_error_rate: 100_000,
        short_rate: 100_000,
        again_rate: 100_000,
        ..FileOptions::default()
    };
    sim.world().create("disk", 1 << 20, options);
    let answer = sim.shards().spawn_on(0, |shard| async move {
        let file = open(&shard, "disk").await;
        let mut counts = [0; 4];
        for _ in 0..1000 {
            let kind = match write(&shard, &file, 4096, 8192, 1).await {
                Ok(8192) => 0,
                Ok(_) => 1,
                Err(Errno::EIO) => 2,
                Err(Errno::EAGAIN) => 3,
                Err(other) => panic!("unexpected {other}"),
            };
            counts[kind] += 1;
        }
        counts
    });
    let [whole, short, failed, again] = sim.run(&answer).expect("it ends");
    assert!(whole > 600, "{whole}");
    assert!(
        (20..200).contains(&short) && (20..200).contains(&failed) && (20..200).contains(&again)
    );
}

#[test]
fn limits_answer_as_devices_do() {
    let mut sim = Sim::new(1, 1);
    let full = FileOptions {
        space_limit: Some(8192),
        ..FileOptions::default()
    };
    sim.world().create("full", 0, full);
    sim.world().create("disk", 1 << 20, FileOptions::default());
    let answer = sim.shards().spawn_on(0, |shard| async move {
        let (full, disk) = (open(&shard, "full").await, open(&shard, "disk").await);
        assert_eq!(write(&shard, &full, 0, 8192, 1).await, Ok(8192));
        assert_eq!(write(&shard, &full, 8192, 512, 1).await, Err(Errno::ENOSPC));
        assert_eq!(write(&shard, &disk, 100, 512, 1).await, Err(Errno::EINVAL));
        assert_eq!(
            read(&shard, &disk, (1 << 20) - 512, 1024)
                .await
                .expect("a short read")
                .len(),
            512
        );
        assert_eq!(disk.seek_data(&shard, 0).await, Err(Errno::ENXIO));
        write(&shard, &disk, 8192, 4096, 1).await.expect("a write");
        assert_eq!(disk.seek_data(&shard, 0).await, Ok(8192));
        assert_eq!(disk.seek_hole(&shard, 8192).await, Ok(12288));
    });
    sim.run(&answer).expect("it ends");
}

#[test]
fn waiting_for_nothing_is_found() {
    let mut sim = Sim::new(1, 1);
    let answer = sim.shards().spawn_on(0, |_| std::future::pending::<()>());
    assert!(sim.run(&answer).is_err());
}
