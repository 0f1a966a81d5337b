//! Real threads on the cells and the register. The model checker tries all orders of a few steps;
//! this tries a few orders of many steps, with the real queue of wakers and the real memory.

use super::cells::{Cells, Close, Run, Settled, Side, State};
use crate::register::Register;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread. A wake-up that is lost hangs the test.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

fn at(index: u64) -> usize {
    usize::try_from(index).unwrap()
}

#[test]
fn every_cluster_is_claimed_by_exactly_one_thread() {
    const COUNT: u64 = 100_003;
    let cells = Cells::new(COUNT).unwrap();
    let claims: Vec<AtomicU8> = (0..COUNT).map(|_| AtomicU8::new(0)).collect();
    let claim_all = |from: u64, count_max: u64| {
        let mut next = Some(from);
        while let Some(first) = next {
            let claimed = cells.claim(first, count_max);
            for cluster in first..first + claimed {
                claims[at(cluster)].fetch_add(1, Ordering::Relaxed);
            }
            assert_eq!(cells.publish(first, first + claimed), Settled::Whole);
            next = cells.next_untouched(0, COUNT);
        }
    };
    thread::scope(|scope| {
        for (from, count_max) in [(0, 1), (0, 5), (50, 37), (COUNT / 2, 16)] {
            scope.spawn(move || claim_all(from, count_max));
        }
    });
    assert!(
        claims
            .iter()
            .all(|claims| claims.load(Ordering::Relaxed) == 1)
    );
    assert!((0..COUNT).all(|cluster| cells.state(cluster) == State::Saved));
}

/// One disk with a word a cluster. The old data of a cluster is its index plus one.
struct Disk {
    cells: Cells,
    register: Register,
    source: Vec<AtomicU64>,
    copy: Vec<AtomicU64>,
}

const CLUSTERS: u64 = 40;
const NEW: u64 = u64::MAX;

impl Disk {
    fn new(shards: usize) -> Self {
        let old = || {
            (0..CLUSTERS)
                .map(|index| AtomicU64::new(index + 1))
                .collect()
        };
        Self {
            cells: Cells::new(CLUSTERS).unwrap(),
            register: Register::with_slots(shards, 2),
            source: old(),
            copy: (0..CLUSTERS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn save(&self, first: u64, count_max: u64) {
        let end = first + self.cells.claim(first, count_max);
        for index in first..end {
            let old = self.source[at(index)].load(Ordering::Relaxed);
            self.copy[at(index)].store(old, Ordering::Relaxed);
        }
        assert_eq!(self.cells.publish(first, end), Settled::Whole);
    }

    fn guest_write(&self, first: u64, end: u64) {
        if !self.cells.all_open(first, end) {
            for index in first..end {
                self.close(index);
            }
            block_on(self.register.wait_clear(first, end));
            for index in first..end {
                self.cells.pass(index);
            }
        }
        for index in first..end {
            self.source[at(index)].store(NEW, Ordering::Relaxed);
        }
    }

    fn close(&self, index: u64) {
        loop {
            match self.cells.close(index) {
                Close::Closed | Close::Open => return,
                Close::Untouched => self.save(index, 1),
                Close::Saving => thread::yield_now(),
            }
        }
    }

    fn snapshot_read(&self, shard: usize, first: u64, end: u64) {
        let ticket = block_on(self.register.enter(shard, first, end));
        let mut from = first;
        while from < end {
            let Run { side, end: run_end } = self.cells.next_run(from, end);
            for index in from..run_end {
                let data = match side {
                    Side::Source => self.source[at(index)].load(Ordering::Relaxed),
                    Side::Copy => self.copy[at(index)].load(Ordering::Relaxed),
                    Side::Gone => panic!("all clusters are wanted"),
                };
                assert_eq!(data, index + 1, "the snapshot is wrong");
            }
            from = run_end;
            self.register.shrink(&ticket, from, end);
        }
        self.register.leave(ticket);
    }
}

fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

fn race(disk: &Disk, seed: u64) {
    let written = AtomicBool::new(false);
    let written = &written;
    thread::scope(|scope| {
        for shard in 0..2 {
            scope.spawn(move || {
                let mut state = seed * 2 + shard + 1;
                while !written.load(Ordering::Relaxed) {
                    let first = random(&mut state, CLUSTERS);
                    let count = 1 + random(&mut state, CLUSTERS - first);
                    disk.snapshot_read(at(shard), first, first + count);
                }
            });
        }
        scope.spawn(move || {
            while let Some(first) = disk.cells.next_untouched(0, CLUSTERS) {
                disk.save(first, 3);
            }
        });
        let writer = scope.spawn(move || write_all(disk, seed));
        write_all(disk, seed + 7);
        writer.join().unwrap();
        written.store(true, Ordering::Relaxed);
    });
    assert!(disk.cells.all_open(0, CLUSTERS));
}

fn write_all(disk: &Disk, seed: u64) {
    let mut state = seed * 0x9E37 + 5;
    for _ in 0..CLUSTERS {
        let first = random(&mut state, CLUSTERS);
        disk.guest_write(first, (first + 3).min(CLUSTERS));
    }
    for first in 0..CLUSTERS {
        disk.guest_write(first, first + 1);
    }
}

#[test]
fn snapshot_reads_hold_still_under_guest_writes_and_a_job() {
    for seed in 0..300 {
        race(&Disk::new(2), seed);
    }
}
