//! Filling a disk with a content that can be checked: version 1 of each block,
//! or zeroes where the disk shall be sparse.

use std::rc::Rc;
use std::sync::Arc;

use ringback_block::port::Attachment;
use ringback_block::request::ZeroFlags;
use ringback_block::span::Span;
use ringback_ring::Shard;

use super::args::Args;
use super::guest::Guest;
use super::progress::Progress;
use super::{pattern, random};

const MIB: u64 = 1 << 20;

/// Fills a disk.
#[derive(Clone)]
pub(super) struct Filler {
    pieces: Arc<Vec<Span>>,
    guest: Guest,
    disk: Attachment,
    args: Args,
    progress: Arc<Progress>,
    blank: bool,
}

/// Pieces in flight on each shard.
const FILL_DEPTH: usize = 4;

impl Filler {
    /// For a disk of so many bytes; `blank` if it reads as zeroes already.
    pub(super) fn new(
        size: u64,
        blank: bool,
        guest: Guest,
        disk: Attachment,
        args: &Args,
        progress: Arc<Progress>,
    ) -> Self {
        // Whole blocks, about a MiB of them.
        let unit = args.block * MIB.div_ceil(args.block);
        let pieces = Arc::new(Span::new(0, size).pieces(unit).collect());
        Self {
            pieces,
            guest,
            disk,
            args: args.clone(),
            progress,
            blank,
        }
    }

    /// Fills on all shards and flushes; bytes of data that were written.
    pub(super) async fn run(self, shard: &Shard) -> Result<u64, String> {
        let port = self.disk.port(shard);
        let work = move |shard: Shard| {
            let filler = self.clone();
            async move { filler.run_on(&shard).await }
        };
        let mut bytes = 0;
        for filled in shard.set().on_each(work).await {
            bytes += filled?;
        }
        let flushed = port.flush(shard).await;
        flushed.map_err(|errno| format!("flushing the disk: {}", errno.desc()))?;
        Ok(bytes)
    }

    async fn run_on(self, shard: &Shard) -> Result<u64, String> {
        let this = Rc::new(self);
        let lanes = shard.set().count() * FILL_DEPTH;
        let tasks: Vec<_> = (0..FILL_DEPTH)
            .map(|depth| {
                let (this, home) = (Rc::clone(&this), shard.clone());
                let lane = shard.index() * FILL_DEPTH + depth;
                shard.spawn(async move { this.lane(&home, lane, lanes).await })
            })
            .collect();
        let mut bytes = 0;
        for task in tasks {
            bytes += task.join().await?;
        }
        Ok(bytes)
    }

    async fn lane(&self, shard: &Shard, lane: usize, lanes: usize) -> Result<u64, String> {
        let mut bytes = 0;
        for &piece in self.pieces.iter().skip(lane).step_by(lanes) {
            let result = if self.holds_data(piece) {
                bytes += piece.len;
                self.write(shard, piece).await
            } else if self.blank {
                Ok(())
            } else {
                self.disk
                    .port(shard)
                    .write_zeroes(shard, piece, ZeroFlags::UNMAP)
                    .await
            };
            result.map_err(|errno| {
                format!(
                    "filling the disk at byte {} failed: {}",
                    piece.offset,
                    errno.desc()
                )
            })?;
            self.progress.add(piece.len);
        }
        Ok(bytes)
    }

    fn holds_data(&self, piece: Span) -> bool {
        random::mix(piece.offset ^ self.args.seed) % 100 < u64::from(self.args.fill)
    }

    async fn write(&self, shard: &Shard, piece: Span) -> ringback_ring::IoResult<()> {
        let layout = self.guest.layout();
        let len = usize::try_from(piece.len).expect("a piece fits in memory");
        let mut buf = shard.buffer(len).await;
        let first = piece.offset / self.args.block;
        let block_len = usize::try_from(self.args.block).expect("a block fits in memory");
        for (block, bytes) in (first..).zip(buf.chunks_mut(block_len)) {
            let version = self.guest.preload(block);
            pattern::fill(layout.seed, block, version, bytes);
        }
        self.disk
            .port(shard)
            .write(shard, piece.offset, buf, 0..len)
            .await
            .0
    }
}
