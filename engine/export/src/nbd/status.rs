//! The extents of a range, as the contexts see them.

use ringback_block::bitmap::DirtyBitmap;
use ringback_block::extent::{Content, Extent};
use ringback_block::protocol::nbd::wire::allocation;
use ringback_block::span::Span;
use ringback_ring::{Errno, IoResult};

use super::context::Context;
use super::request::Worker;

/// Most extents of a context in one answer, which then ends before the range does.
pub(super) const EXTENTS_MAX: usize = 128 << 10;
/// Looks at the disk between two turns of others.
const LOOKS_MAX: usize = 64;

/// What is asked.
pub(super) struct Question<'a> {
    /// Not empty.
    pub(super) span: Span,
    pub(super) contexts: &'a [Context],
    /// Whether the first extent of each context will do.
    pub(super) is_one_enough: bool,
}

/// A context's number, and its extents as lengths and flags.
type Answer = (u32, Vec<(u64, u32)>);

/// Extents, neighbours of one kind joined.
struct Runs {
    runs: Vec<(u64, u32)>,
    max: usize,
    /// Another extent of another kind has come.
    is_full: bool,
}

impl Runs {
    fn new(is_one_enough: bool) -> Self {
        Self {
            runs: Vec::new(),
            max: if is_one_enough { 1 } else { EXTENTS_MAX },
            is_full: false,
        }
    }

    fn push(&mut self, len: u64, flags: u32) {
        let has_room = self.runs.len() < self.max;
        match self.runs.last_mut() {
            _ if self.is_full => {}
            Some((last, same)) if *same == flags => *last += len,
            _ if !has_room => self.is_full = true,
            _ => self.runs.push((len, flags)),
        }
    }
}

/// What all contexts have to say.
pub(super) async fn answer(worker: &Worker<'_>, question: &Question<'_>) -> IoResult<Vec<Answer>> {
    let has = |context| question.contexts.contains(&context);
    let (mut allocation, mut depth) = (Vec::new(), Vec::new());
    if has(Context::Allocation) || has(Context::Depth) {
        (allocation, depth) = disk(worker, question).await?;
    }
    let mut answers = Vec::new();
    for &context in question.contexts {
        let extents = match context {
            Context::Allocation => std::mem::take(&mut allocation),
            Context::Depth => std::mem::take(&mut depth),
            Context::Bitmap(index) => {
                bitmap(worker, &worker.export.bitmaps[index].bits, question).await?
            }
        };
        answers.push((context.id(), extents));
    }
    Ok(answers)
}

/// Both contexts that the disk answers, in one walk.
async fn disk(
    worker: &Worker<'_>,
    question: &Question<'_>,
) -> IoResult<(Vec<(u64, u32)>, Vec<(u64, u32)>)> {
    let has = |context| question.contexts.contains(&context);
    let mut allocation = Runs::new(question.is_one_enough);
    let mut depth = Runs::new(question.is_one_enough);
    // What nobody has asked for ends no walk.
    allocation.is_full = !has(Context::Allocation);
    depth.is_full = !has(Context::Depth);
    let end = question.span.end();
    let mut offset = question.span.offset;
    let mut looks = 0;
    while offset < end && !(allocation.is_full && depth.is_full) {
        pause(worker, &mut looks).await?;
        let rest = Span::between(offset, end);
        let extent = worker.port.extent(worker.shard, rest).await?;
        let extent = extent.at_most(rest.len);
        allocation.push(extent.len, allocation_flags(&extent));
        depth.push(extent.len, extent.depth);
        offset += extent.len;
    }
    Ok((allocation.runs, depth.runs))
}

fn allocation_flags(extent: &Extent) -> u32 {
    match extent.content {
        Content::Data => 0,
        Content::Zero => allocation::HOLE | allocation::ZERO,
    }
}

async fn bitmap(
    worker: &Worker<'_>,
    bits: &DirtyBitmap,
    question: &Question<'_>,
) -> IoResult<Vec<(u64, u32)>> {
    const DIRTY: u32 = 1;
    let mut runs = Runs::new(question.is_one_enough);
    let end = question.span.end();
    let mut offset = question.span.offset;
    let mut looks = 0;
    while offset < end && !runs.is_full {
        pause(worker, &mut looks).await?;
        let dirty = bits.next_dirty(offset, end).unwrap_or(end);
        if dirty > offset {
            runs.push(dirty - offset, 0);
            offset = dirty;
            continue;
        }
        let clean = bits.next_zero(offset, end).unwrap_or(end);
        // It may be clean again by now.
        if clean > offset {
            runs.push(clean - offset, DIRTY);
            offset = clean;
        }
    }
    Ok(runs.runs)
}

/// A long walk lets others go on, and ends when nobody waits for it.
async fn pause(worker: &Worker<'_>, looks: &mut usize) -> IoResult<()> {
    *looks += 1;
    if looks.is_multiple_of(LOOKS_MAX) {
        worker.shard.yield_now().await;
        if (worker.is_pointless)() {
            return Err(Errno::ECANCELED);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_a_kind_are_joined_up_to_the_limit() {
        let mut one = Runs::new(true);
        one.push(10, 0);
        one.push(5, 0);
        assert!(!one.is_full);
        one.push(1, 3);
        assert!(one.is_full);
        one.push(1, 0);
        assert_eq!(one.runs, [(15, 0)]);
        let mut many = Runs::new(false);
        for index in 0..300_000_u64 {
            many.push(4096, u32::from(index % 2 == 0));
        }
        assert_eq!(many.runs.len(), EXTENTS_MAX);
    }
}
