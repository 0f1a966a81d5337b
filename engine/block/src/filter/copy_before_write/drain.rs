//! What is done with a save buffer: old data comes in for guests, goes out to the
//! target, and is read in between.

use std::ops::Range;
use std::sync::Arc;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use super::CopyBeforeWrite;
use super::cells::Settled;
use super::save_buffer::{Batch, Content, Piece};
use crate::copy::chunk::{Chunk, CopyError, Side};
use crate::copy::control::Action;
use crate::metrics::{Class, Metrics};
use crate::planted::{self, Fault};
use crate::span::Span;
use crate::sync::Ordering;
use crate::units::{in_memory, is_zero};

/// A batch that could not be written is tried again this much later.
const RETRY_NS: u64 = 10_000_000;

impl CopyBeforeWrite {
    /// Waits for room for old data, if it goes to memory. Answers for how many of
    /// the blocks: for one, if it had to wait, so that long changes do not wait for
    /// what short ones take again and again.
    pub(super) async fn reserve(
        &self,
        shard: &Shard,
        first: u64,
        count: u64,
        deadline_ns: Option<u64>,
    ) -> IoResult<u64> {
        let bytes = self.bytes(first, first + count);
        if !self.buffer.is_on() || self.buffer.try_reserve(bytes.len) {
            return Ok(count);
        }
        let len = self.bytes(first, first + 1).len;
        let since = shard.now_ns();
        let is_broken = || self.broken().is_some();
        let reserved = self
            .buffer
            .reserve(shard, len, deadline_ns, is_broken)
            .await;
        shard
            .local::<Metrics>()
            .record(Class::RoomWait, shard.now_ns() - since);
        match (reserved, self.broken()) {
            (true, _) => Ok(1),
            (false, Some(errno)) => Err(errno),
            (false, None) => Err(Errno::ETIMEDOUT),
        }
    }

    pub(super) fn give_room_back(&self, len: u64) {
        if self.buffer.is_on() {
            self.buffer.give_back(len);
        }
    }

    /// Claimed blocks, for which there is room: from here on they are *saved*, and
    /// stay claimed until the target has them.
    pub(super) async fn save_to_memory(
        self: &Arc<Self>,
        shard: &Shard,
        chunk: Chunk,
        buf: Buf,
    ) -> IoResult<()> {
        let bytes = self.bytes(chunk.first, chunk.end);
        let read = self.read_old_data(shard, bytes, buf).await;
        // As for every save: only while not broken (C6).
        let old = match (read, self.broken()) {
            (Ok(old), None) => old,
            (Err(errno), _) | (Ok(_), Some(errno)) => {
                self.buffer.give_back(bytes.len);
                self.release(shard, chunk).await;
                return Err(errno);
            }
        };
        // Others may bring it to the target before this is over: till then whoever
        // waits for claims waits for this one.
        self.claimed.fetch_add(1, Ordering::SeqCst);
        // Before anybody can look for it here.
        for (span, content) in old {
            self.keep(shard, span, content);
        }
        if let Settled::Discarded(runs) = self.cells.publish(chunk.first, chunk.end) {
            for run in runs {
                let bytes = self.bytes(run.start, run.end);
                for span in self.buffer.discard(bytes) {
                    // Written already; a hint, and the client has been answered.
                    let _ = self.target().discard(shard, span).await;
                }
            }
        }
        self.wake_waiters_for(chunk);
        self.give_back(1);
        if planted::is(Fault::MemoryCountsAsTarget) {
            self.give_back(bytes.len);
        }
        Ok(())
    }

    async fn read_old_data(
        &self,
        shard: &Shard,
        bytes: Span,
        mut buf: Buf,
    ) -> IoResult<Vec<(Span, Content)>> {
        let mut old = Vec::new();
        for piece in bytes.pieces(buf.len() as u64) {
            let window = 0..in_memory(piece.len);
            let result;
            (result, buf) = self.copier().read(shard, piece, buf).await;
            result?;
            let content = match &buf[window] {
                zeroes if is_zero(zeroes) => Content::Zeroes,
                data => Content::Data(data.into()),
            };
            old.push((piece, content));
        }
        Ok(old)
    }

    fn keep(self: &Arc<Self>, shard: &Shard, span: Span, content: Content) {
        if self.buffer.keep(span, content, shard.now_ns()) {
            let (filter, home) = (Arc::clone(self), shard.clone());
            shard.spawn(async move { filter.drain(&home).await });
        }
    }

    /// Takes batches out, when it is time, until there is nothing left for this task.
    async fn drain(self: Arc<Self>, shard: &Shard) {
        self.buffer.linger(shard, || self.broken().is_some()).await;
        while let Some(batch) = self.buffer.next_batch() {
            if planted::is(Fault::FreedBeforeWritten) {
                self.settle_batch(shard, &batch).await;
                let _ = self.bring(shard, &batch).await;
                continue;
            }
            match self.bring(shard, &batch).await {
                Ok(()) => self.settle_batch(shard, &batch).await,
                Err(errno) => self.handle_failure(shard, &batch, errno).await,
            }
        }
    }

    /// Writes a batch to the target, unless nobody will read it there.
    async fn bring(&self, shard: &Shard, batch: &Batch) -> IoResult<()> {
        if self.broken().is_some() {
            return Ok(());
        }
        let copier = self.copier();
        if batch.parts.is_empty() {
            let copied = copier.copy_zeroes(shard, batch.span).await;
            return copied.map(drop).map_err(|error| error.errno);
        }
        let len = in_memory(batch.span.len);
        // Guests that wait for room hold buffers: this one must not wait for theirs.
        let mut buf = shard.buffer_now(len);
        batch.copy_to(&mut buf);
        copier.write(shard, batch.span, buf, 0..len).await.0
    }

    async fn settle_batch(&self, shard: &Shard, batch: &Batch) {
        let discarded = self.buffer.remove(batch);
        for span in discarded {
            // A hint, and the client has been answered already.
            let _ = self.target().discard(shard, span).await;
        }
        if self.broken().is_none() {
            self.count_copied(batch.span);
            shard
                .local::<Metrics>()
                .record(Class::Drain, shard.now_ns() - batch.since_ns);
        }
        // Last: whoever waits for this may give the target to somebody else.
        if !planted::is(Fault::MemoryCountsAsTarget) {
            self.give_back(batch.span.len);
        }
    }

    /// The guest has been let through already: the data stays in memory for as long
    /// as whoever owns the target wants to try again.
    async fn handle_failure(self: &Arc<Self>, shard: &Shard, batch: &Batch, errno: Errno) {
        let job = self.job.load_full();
        let action = job.as_ref().map_or(Action::Report, |job| {
            job.handle_error(CopyError {
                side: Side::Target,
                errno,
            })
        });
        let goes_on = match (action, &job) {
            (Action::Stop, Some(job)) => job.may_go_on(shard).await,
            (Action::Ignore, Some(job)) => !job.is_stopping(),
            _ => false,
        };
        if !goes_on {
            self.break_snapshot(shard, errno);
        } else if action == Action::Ignore {
            shard.sleep_ns(RETRY_NS).await;
        }
        self.buffer.put_back(batch);
    }

    /// Reads what has been saved, wherever it is now.
    pub(crate) async fn read_saved(
        &self,
        shard: &Shard,
        span: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let mut rest = span;
        let mut has_waited = false;
        while !rest.is_empty() {
            let at = window.start + in_memory(rest.offset - span.offset);
            let len = match self.buffer.piece(rest) {
                Piece::Zeroes(len) => {
                    buf[at..at + in_memory(len)].fill(0);
                    len
                }
                Piece::Data(data, range) => {
                    let len = range.len();
                    buf[at..at + len].copy_from_slice(&data[range]);
                    len as u64
                }
                Piece::Elsewhere(len) => {
                    let result;
                    let part = at..at + in_memory(len);
                    (result, buf) = self.target().read(shard, rest.offset, buf, part).await;
                    if result.is_err() {
                        return (result, buf);
                    }
                    has_waited = true;
                    len
                }
            };
            rest = Span::between(rest.offset + len, rest.end());
        }
        // A client that reads what is in memory, again and again, never waits for
        // anything: those who bring it to the target must have their turn.
        if !has_waited {
            shard.yield_now().await;
        }
        (Ok(()), buf)
    }
}
