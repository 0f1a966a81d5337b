//! Dirty bitmaps: what marking costs a guest write, with nobody beside it and
//! with a second shard that marks the same bitmap; and what finding costs a job.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use ringback_block::bitmap::DirtyBitmap;

/// 8 TiB at 64 KiB: 2^27 granules.
const SIZE: u64 = 8 << 40;
const GRANULARITY: u64 = 65536;
const GRANULES: u64 = SIZE / GRANULARITY;

/// A guest's write.
const BLOCK: u64 = 4096;
/// A range of 16 granules.
const RANGE: u64 = 1 << 20;

/// Marks between two clearings, whose time does not count.
const BATCH: u64 = 1 << 18;

fn bitmap() -> DirtyBitmap {
    // A range at the last place fits in.
    DirtyBitmap::new(SIZE + RANGE, GRANULARITY, 2).expect("memory for the bitmap")
}

/// Places all over the disk, each once; two shards' places never meet, but share
/// words.
fn place(index: u64, shard: u64) -> u64 {
    // Odd: it visits every granule before the first comes again.
    const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
    (2 * index + shard).wrapping_mul(STRIDE) % GRANULES * GRANULARITY
}

/// How long so many marks of clean places take.
fn mark_clean(bitmap: &DirtyBitmap, shard: usize, count: u64, len: u64) -> Duration {
    let mut took = Duration::ZERO;
    let mut next = 0;
    while next < count {
        let end = count.min(next + BATCH);
        let start = Instant::now();
        for index in next..end {
            bitmap.mark(shard, place(index, shard as u64), len);
        }
        took += start.elapsed();
        for index in next..end {
            bitmap.clear(shard, place(index, shard as u64), len);
        }
        next = end;
    }
    took
}

/// What the second shard does meanwhile.
type Neighbour = fn(&DirtyBitmap, u64);

fn marks_one_place(bitmap: &DirtyBitmap, _: u64) {
    bitmap.mark(1, black_box(0), BLOCK);
}

fn marks_clean_places(bitmap: &DirtyBitmap, index: u64) {
    let place = place(index, 1);
    bitmap.mark(1, place, BLOCK);
    bitmap.clear(1, place, BLOCK);
}

/// Ends the neighbour, also when a bench panics: its thread is waited for.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `bench` while a second thread, as another shard, does what `neighbour` says.
fn beside(neighbour: Option<Neighbour>, bitmap: &DirtyBitmap, bench: impl FnOnce()) {
    let (is_over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        if let Some(neighbour) = neighbour {
            let (is_over, turns) = (&is_over, &turns);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    neighbour(bitmap, turns.fetch_add(1, Ordering::Relaxed));
                }
            });
            while turns.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
        }
        let _end = End(&is_over);
        bench();
    });
}

fn marking(criterion: &mut Criterion) {
    let neighbours: [(&str, Option<Neighbour>); 3] = [
        ("one shard", None),
        (
            "beside one that marks one dirty place",
            Some(marks_one_place),
        ),
        (
            "beside one that marks clean places",
            Some(marks_clean_places),
        ),
    ];
    for (name, neighbour) in neighbours {
        let bitmap = bitmap();
        let mut group = criterion.benchmark_group(name);
        beside(neighbour, &bitmap, || mark_all_ways(&mut group, &bitmap));
        group.finish();
    }
}

fn mark_all_ways(group: &mut BenchmarkGroup<'_, WallTime>, bitmap: &DirtyBitmap) {
    bitmap.mark(0, 0, RANGE);
    for (what, len) in [("4 KiB", BLOCK), ("1 MiB", RANGE)] {
        group.bench_function(format!("mark {what}, dirty"), |bencher| {
            bencher.iter(|| bitmap.mark(0, black_box(0), len));
        });
    }
    for (what, len) in [("4 KiB", BLOCK), ("1 MiB", RANGE)] {
        group.bench_function(
            format!("mark {what}, clean, all over the disk"),
            |bencher| {
                bencher.iter_custom(|count| mark_clean(bitmap, 0, count, len));
            },
        );
    }
}

fn finding(criterion: &mut Criterion) {
    let sparse = bitmap();
    for index in 0..1000 {
        sparse.mark(0, index * (SIZE / 1000), 1);
    }
    criterion.bench_function("visit 1,000 dirty areas of 8 TiB", |bencher| {
        bencher.iter(|| black_box(sparse.areas().count()));
    });
}

criterion_group!(benches, marking, finding);
criterion_main!(benches);
