//! Real threads on one bitmap: what the model checker proves in the small, at full width.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::bitmap::{Area, DirtyBitmap};

const GRANULARITY: u64 = 4096;
/// Enough for four levels.
const GRANULES: u64 = 64 * 64 * 64 + 100;

fn bitmap(shards: usize) -> DirtyBitmap {
    DirtyBitmap::new(GRANULES * GRANULARITY, GRANULARITY, shards).unwrap()
}

/// Granules in an order that is scattered and the same in each run (xorshift).
fn scattered(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed), |&x| {
        let x = x ^ x << 13;
        let x = x ^ x >> 7;
        Some(x ^ x << 17)
    })
    .map(|x| x % GRANULES)
}

fn dirty_bytes(bitmap: &DirtyBitmap) -> u64 {
    bitmap.areas().map(|area: Area| area.len).sum()
}

#[test]
fn marks_of_four_threads_add_up() {
    let bitmap = bitmap(4);
    thread::scope(|scope| {
        for shard in 0..4 {
            let bitmap = &bitmap;
            scope.spawn(move || {
                for granule in scattered(shard as u64 + 1).take(60_000) {
                    bitmap.mark(shard, granule * GRANULARITY, 3 * GRANULARITY);
                }
            });
        }
    });
    let all = (0..4).flat_map(|shard| scattered(shard + 1).take(60_000));
    let mut expected = std::collections::BTreeSet::new();
    expected.extend(all.flat_map(|granule| granule..(granule + 3).min(GRANULES)));
    assert_eq!(bitmap.count(), expected.len() as u64 * GRANULARITY);
    assert_eq!(dirty_bytes(&bitmap), bitmap.count());
}

#[test]
fn marks_and_clears_that_race_leave_exact_counts() {
    let bitmap = bitmap(4);
    thread::scope(|scope| {
        for shard in 0..4 {
            let bitmap = &bitmap;
            scope.spawn(move || {
                for (turn, granule) in scattered(shard as u64 + 9).take(100_000).enumerate() {
                    // A narrow stretch, so that the threads meet and words empty often.
                    let offset = granule % 300 * GRANULARITY;
                    if turn % 2 == shard % 2 {
                        bitmap.mark(shard, offset, GRANULARITY);
                    } else {
                        bitmap.clear(shard, offset, 40 * GRANULARITY);
                    }
                }
            });
        }
    });
    assert_eq!(dirty_bytes(&bitmap), bitmap.count());
    let seen = (0..GRANULES)
        .filter(|granule| bitmap.is_dirty(granule * GRANULARITY))
        .count();
    assert_eq!(seen as u64 * GRANULARITY, bitmap.count());
}

#[test]
fn a_job_that_takes_work_while_guests_write_misses_nothing() {
    let bitmap = bitmap(3);
    let writing = AtomicBool::new(true);
    let mut taken = vec![false; usize::try_from(GRANULES).unwrap()];
    thread::scope(|scope| {
        let guests: Vec<_> = (0..2)
            .map(|shard| {
                let bitmap = &bitmap;
                scope.spawn(move || {
                    for granule in scattered(shard as u64 + 77).take(100_000) {
                        bitmap.mark(shard, granule * GRANULARITY, 1);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            guests.into_iter().for_each(|guest| guest.join().unwrap());
            writing.store(false, Ordering::Release);
        });
        loop {
            // Before the look: what is marked until then must be found by it.
            let last = !writing.load(Ordering::Acquire);
            while let Some(area) = bitmap.next_dirty_area(0, u64::MAX, 1 << 20) {
                bitmap.clear(2, area.offset, area.len);
                let first = area.offset / GRANULARITY;
                for granule in first..first + area.len / GRANULARITY {
                    taken[usize::try_from(granule).unwrap()] = true;
                }
            }
            if last {
                break;
            }
        }
    });
    assert_eq!(bitmap.count(), 0);
    for granule in (0..2).flat_map(|shard| scattered(shard + 77).take(100_000)) {
        assert!(
            taken[usize::try_from(granule).unwrap()],
            "{granule} is lost"
        );
    }
}
