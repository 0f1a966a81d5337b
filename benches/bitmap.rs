//! Dirty bitmaps: what marking costs a guest write, and finding costs a job.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ringback_block::bitmap::DirtyBitmap;

/// 8 TiB at 64 KiB: 2^27 granules.
const SIZE: u64 = 8 << 40;
const GRANULARITY: u64 = 65536;

fn bitmap() -> DirtyBitmap {
    DirtyBitmap::new(SIZE, GRANULARITY, 2).expect("memory for the bitmap")
}

fn marking(criterion: &mut Criterion) {
    let hot = bitmap();
    hot.mark(0, 0, 4096);
    criterion.bench_function("mark what is dirty already", |bencher| {
        bencher.iter(|| hot.mark(0, black_box(0), 4096));
    });
    let scattered = bitmap();
    let mut offset = 0u64;
    criterion.bench_function("mark scattered 4 KiB writes", |bencher| {
        bencher.iter(|| {
            offset = (offset + 0x9e37_79b9_7f4a_7000) % SIZE;
            scattered.mark(0, offset, 4096);
        });
    });
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
