//! Fleecing readers: they read the snapshot all over the place while the backup
//! runs, and compare every byte with what the disk held at the point in time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringback_block::port::{Attachment, Port};
use ringback_block::span::Span;
use ringback_ring::remote::Answer;
use ringback_ring::{Errno, Shard};

use super::args::Args;
use super::random::Random;
use super::verify::Reference;

struct Shared {
    reference: Arc<Reference>,
    /// What may be read.
    areas: Vec<Span>,
    block: u64,
    stopping: AtomicBool,
    reads: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// All readers of a run.
pub(crate) struct Fleecing {
    shared: Arc<Shared>,
    tasks: Vec<Answer<()>>,
}

/// What they have read.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
    pub(crate) refused: u64,
    /// The first difference.
    pub(crate) failure: Option<String>,
}

impl Fleecing {
    /// Starts the readers, spread over the shards.
    pub(crate) fn start(
        shard: &Shard,
        view: &Attachment,
        reference: Arc<Reference>,
        areas: Vec<Span>,
        args: &Args,
    ) -> Self {
        let shared = Arc::new(Shared {
            reference,
            areas,
            block: args.fleece_block,
            stopping: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let set = shard.set();
        let mut tasks = Vec::new();
        for number in 0..args.fleece_depth {
            if shared.areas.is_empty() {
                break;
            }
            let index = usize::try_from(number).expect("few readers") % set.count();
            let mut random = Random::new(args.seed ^ (u64::from(number) << 32));
            let (shared, view) = (Arc::clone(&shared), view.clone());
            tasks.push(set.spawn_on(index, move |shard| async move {
                let port = view.port(&shard);
                while !shared.stopping.load(Ordering::Relaxed) {
                    shared.read_one(&shard, &port, &mut random).await;
                }
            }));
        }
        Self { shared, tasks }
    }

    /// Stops the readers and sums up.
    pub(crate) async fn stop(self) -> Summary {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("readers end before their shards");
        }
        let failure = self
            .shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Summary {
            reads: self.shared.reads.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            failure,
        }
    }
}

impl Shared {
    async fn read_one(&self, shard: &Shard, port: &Port, random: &mut Random) {
        let span = self.choose(random);
        let len = usize::try_from(span.len).expect("a small read");
        let buf = shard.buffer(len).await;
        let (result, buf) = port.read(shard, span.offset, buf, 0..len).await;
        match result {
            Ok(()) => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(span.len, Ordering::Relaxed);
                if let Err(mismatch) = self.reference.check(span.offset, &buf) {
                    self.fail(format!("a fleecing read: {mismatch}"));
                }
            }
            // The snapshot is lost: there is nothing to read any more.
            Err(Errno::EACCES) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                shard.sleep_ns(10_000_000).await;
            }
            Err(errno) => self.fail(format!(
                "a fleecing read of {len} bytes at {} failed: {}",
                span.offset,
                errno.desc()
            )),
        }
    }

    /// Somewhere inside an area, at a multiple of 512 bytes.
    fn choose(&self, random: &mut Random) -> Span {
        let count = self.areas.len() as u64;
        let index = usize::try_from(random.below(count)).expect("an index");
        let area = self.areas[index];
        let len = self.block.min(area.len);
        let start = random.below((area.len - len) / 512 + 1) * 512;
        Span::new(area.offset + start, len)
    }

    fn fail(&self, what: String) {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(what);
        self.stopping.store(true, Ordering::Relaxed);
    }
}
