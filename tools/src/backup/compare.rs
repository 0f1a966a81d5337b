//! Comparing source and target, on all shards.
//!
//! Where both are known to hold zeroes nothing is read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringback_block::extent::Content;
use ringback_block::port::{Attachment, Port};
use ringback_block::span::Span;
use ringback_ring::{Buf, Shard, error_text};

use super::interrupt::Interrupt;
use super::progress::Progress;
use super::spans;

/// One read.
const SLICE: u64 = 1 << 20;
/// Reads of each disk in flight on each shard.
const DEPTH: usize = 4;
/// Zeroes are looked at in stretches of at most this many bytes.
const ZEROES_MAX: u64 = 1 << 30;

/// Two disks, and who may end a comparison of them.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) source: Attachment,
    pub(crate) target: Attachment,
    pub(crate) interrupt: Interrupt,
    pub(crate) progress: Arc<Progress>,
}

/// A comparison under way, shared by its workers.
struct Comparison {
    pair: Pair,
    areas: Vec<Span>,
    /// Differences are told in whole units.
    unit: u64,
    work: Mutex<Work>,
}

#[derive(Default)]
struct Work {
    /// The area that is worked on, and where in it.
    index: usize,
    offset: u64,
    differing: Vec<Span>,
    failure: Option<String>,
}

/// Compares the areas, which are in ascending order. Answers where the disks
/// differ, in units of so many bytes.
///
/// # Errors
///
/// One of the disks could not be read, or the comparison was interrupted.
pub(crate) async fn differing(
    shard: &Shard,
    pair: &Pair,
    areas: Vec<Span>,
    unit: u64,
) -> Result<Vec<Span>, String> {
    let size = areas.last().map_or(0, Span::end);
    let comparison = Arc::new(Comparison {
        pair: pair.clone(),
        areas,
        unit,
        work: Mutex::default(),
    });
    let shared = Arc::clone(&comparison);
    shard
        .set()
        .on_each(move |shard| {
            let comparison = Arc::clone(&shared);
            async move { comparison.run_on(&shard).await }
        })
        .await;
    let mut work = comparison.work();
    if let Some(failure) = work.failure.take() {
        return Err(failure);
    }
    let mut differing = std::mem::take(&mut work.differing);
    differing.sort_unstable_by_key(|span| span.offset);
    Ok(spans::widened(&differing, unit, size))
}

impl Comparison {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run_on(self: Arc<Self>, shard: &Shard) {
        let tasks: Vec<_> = (0..DEPTH)
            .map(|_| {
                let (this, home) = (Arc::clone(&self), shard.clone());
                shard.spawn(async move { this.run(&home).await })
            })
            .collect();
        for task in tasks {
            task.join().await;
        }
    }

    async fn run(&self, shard: &Shard) {
        let source = self.pair.source.port(shard);
        let target = self.pair.target.port(shard);
        while let Some(stretch) = self.take() {
            if let Err(failure) = self.compare(shard, &source, &target, stretch).await {
                self.work().failure.get_or_insert(failure);
            }
        }
    }

    /// The next slice; none: everything is taken, or it is of no use any more.
    fn take(&self) -> Option<Span> {
        let mut work = self.work();
        if work.failure.is_none() && self.pair.interrupt.asked().is_some() {
            work.failure = Some("interrupted".into());
        }
        if work.failure.is_some() {
            return None;
        }
        let area = self.areas.get(work.index)?;
        let start = work.offset.max(area.offset);
        let end = area.end().min(start.saturating_add(ZEROES_MAX));
        work.offset = end;
        if end == area.end() {
            work.index += 1;
        }
        Some(Span::between(start, end))
    }

    async fn compare(
        &self,
        shard: &Shard,
        source: &Port,
        target: &Port,
        stretch: Span,
    ) -> Result<(), String> {
        let mut at = stretch.offset;
        while at < stretch.end() && self.pair.interrupt.asked().is_none() {
            let rest = Span::between(at, stretch.end());
            let span = match zeroes(shard, source, rest).await {
                Some(here) => match zeroes(shard, target, here).await {
                    Some(both) => {
                        self.pair.progress.add(both.len);
                        at = both.end();
                        continue;
                    }
                    None => here,
                },
                None => rest,
            };
            let slice = Span::new(span.offset, span.len.min(SLICE));
            self.compare_slice(shard, source, target, slice).await?;
            self.pair.progress.add(slice.len);
            at = slice.end();
        }
        Ok(())
    }

    async fn compare_slice(
        &self,
        shard: &Shard,
        source: &Port,
        target: &Port,
        slice: Span,
    ) -> Result<(), String> {
        let expected = read(shard, source, slice, "source").await?;
        let found = read(shard, target, slice, "target").await?;
        let len = usize::try_from(slice.len).expect("a slice is in memory");
        let (expected, found) = (&expected[..len], &found[..len]);
        if expected == found {
            return Ok(());
        }
        let mut offset = slice.offset;
        while offset < slice.end() {
            let end = (offset + 1).next_multiple_of(self.unit).min(slice.end());
            let at = |offset: u64| usize::try_from(offset - slice.offset).expect("in the slice");
            let part = at(offset)..at(end);
            if expected[part.clone()] != found[part] {
                self.work().differing.push(Span::between(offset, end));
            }
            offset = end;
        }
        Ok(())
    }
}

/// The zeroes at the beginning of a range, if it is known that there are some.
async fn zeroes(shard: &Shard, port: &Port, span: Span) -> Option<Span> {
    let extent = port.extent(shard, span).await.ok()?;
    let len = extent.len.min(span.len);
    (extent.content == Content::Zero && len > 0).then(|| Span::new(span.offset, len))
}

async fn read(shard: &Shard, port: &Port, span: Span, side: &str) -> Result<Buf, String> {
    let len = usize::try_from(span.len).expect("a slice is in memory");
    let buf = shard.buffer_now(len);
    let (result, buf) = port.read(shard, span.offset, buf, 0..len).await;
    result.map_err(|errno| {
        format!(
            "reading {len} bytes at {} of the {side} failed: {}",
            span.offset,
            error_text(errno)
        )
    })?;
    Ok(buf)
}
