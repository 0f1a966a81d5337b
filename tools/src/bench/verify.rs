//! Comparing disks with what they must hold, byte for byte.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringback_block::port::{Attachment, Port};
use ringback_block::span::Span;
use ringback_ring::{Buf, Shard};

use super::history::Snapshot;
use super::progress::Progress;

/// One read of a comparison.
const SLICE: u64 = 1 << 20;
/// Reads in flight on each shard.
const DEPTH: usize = 4;

/// What a disk must hold.
pub(crate) enum Reference {
    /// What the guest had written at some instant.
    Written(Snapshot),
    /// What another disk holds, which nobody writes any more.
    Disk(Attachment),
}

impl Reference {
    /// Compares, where that needs no reading.
    pub(crate) fn check(&self, offset: u64, data: &[u8]) -> Result<(), String> {
        match self {
            Self::Written(snapshot) => snapshot
                .check(offset, data)
                .map_err(|mismatch| mismatch.to_string()),
            // Compared against the finished backup later.
            Self::Disk(_) => Ok(()),
        }
    }

    async fn compare(&self, shard: &Shard, span: Span, data: &[u8]) -> Result<(), String> {
        let Self::Disk(other) = self else {
            return self.check(span.offset, data);
        };
        let (result, expected) = read(shard, &other.port(shard), span).await;
        result?;
        match (0..data.len()).find(|&at| data[at] != expected[at]) {
            None => Ok(()),
            Some(at) => Err(format!(
                "byte {} is {:#04x} and on the source {:#04x}",
                span.offset + at as u64,
                data[at],
                expected[at]
            )),
        }
    }
}

async fn read(shard: &Shard, port: &Port, span: Span) -> (Result<(), String>, Buf) {
    let len = usize::try_from(span.len).expect("a slice");
    let buf = shard.buffer_now(len);
    let (result, buf) = port.read(shard, span.offset, buf, 0..len).await;
    let result = result.map_err(|errno| {
        format!(
            "reading {len} bytes at {} to verify them failed: {}",
            span.offset,
            errno.desc()
        )
    });
    (result, buf)
}

struct Comparison {
    areas: Vec<Span>,
    reference: Arc<Reference>,
    next: AtomicU64,
    checked: AtomicU64,
    stopping: AtomicBool,
    failure: Mutex<Option<String>>,
    progress: Arc<Progress>,
}

/// Compares the areas of a disk on all shards; how many bytes were right before
/// the first difference was met, and that difference.
pub(crate) async fn compare(
    shard: &Shard,
    disk: &Attachment,
    areas: &[Span],
    reference: &Arc<Reference>,
    progress: &Arc<Progress>,
) -> (u64, Option<String>) {
    let slices: Vec<Span> = areas.iter().flat_map(|area| area.pieces(SLICE)).collect();
    let comparison = Arc::new(Comparison {
        areas: slices,
        reference: Arc::clone(reference),
        next: AtomicU64::new(0),
        checked: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        failure: Mutex::new(None),
        progress: Arc::clone(progress),
    });
    let (work, disk) = (Arc::clone(&comparison), disk.clone());
    shard
        .set()
        .on_each(move |shard| {
            let (work, disk) = (Arc::clone(&work), disk.clone());
            async move { work.run_on(&shard, &disk).await }
        })
        .await;
    let failure = comparison
        .failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    (comparison.checked.load(Ordering::Relaxed), failure)
}

impl Comparison {
    async fn run_on(self: Arc<Self>, shard: &Shard, disk: &Attachment) {
        let tasks: Vec<_> = (0..DEPTH)
            .map(|_| {
                let (this, home, port) = (Arc::clone(&self), shard.clone(), disk.port(shard));
                shard.spawn(async move { this.work(&home, &port).await })
            })
            .collect();
        for task in tasks {
            task.join().await;
        }
    }

    async fn work(&self, shard: &Shard, port: &Port) {
        while let Some(slice) = self.take() {
            let (result, buf) = read(shard, port, slice).await;
            let result = match result {
                Ok(()) => self.reference.compare(shard, slice, &buf).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {
                    self.checked.fetch_add(slice.len, Ordering::Relaxed);
                    self.progress.add(slice.len);
                }
                Err(what) => self.fail(what),
            }
        }
    }

    fn take(&self) -> Option<Span> {
        if self.stopping.load(Ordering::Relaxed) {
            return None;
        }
        let index = usize::try_from(self.next.fetch_add(1, Ordering::Relaxed)).ok()?;
        self.areas.get(index).copied()
    }

    fn fail(&self, what: String) {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(what);
        self.stopping.store(true, Ordering::Relaxed);
    }
}
