//! The choices of a guest load: what a queue asks for next, and when.
//!
//! Choices only. The requests are made by the caller, which also knows the time: nothing here
//! reads a clock.

use std::num::NonZeroU32;

use super::layout::DiskLayout;
use super::random::Random;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// What a guest asks a disk for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// Read a block and verify it.
    Read,
    /// Write the next version of a block.
    Write,
}

/// The order in which a queue visits its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessOrder {
    /// Every block is as likely as any other.
    Random,
    /// One block after the other, then again from the start.
    Sequential,
}

/// The next request of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What to do.
    pub(crate) kind: RequestKind,
    /// With which block, one that the queue owns.
    pub(crate) block: u64,
}

/// The sequence of choices of one queue, repeatable from a seed.
///
/// Every choice takes the same draws from the generator whatever is busy, so that two runs of one
/// seed ask for the same requests in the same order, but for the few that had to step aside.
#[derive(Debug, Clone)]
pub(crate) struct QueueLoad {
    layout: DiskLayout,
    queue: u32,
    read_percent: u8,
    order: AccessOrder,
    /// Drawn from by every choice.
    random: Random,
    /// The position among the queue's blocks that a sequential choice starts at; moved by it.
    cursor: u64,
}

impl QueueLoad {
    /// The choices of one queue of a disk. Queues of one seed choose independently.
    pub(crate) fn new(
        layout: DiskLayout,
        queue: u32,
        read_percent: u8,
        order: AccessOrder,
        seed: u64,
    ) -> Self {
        assert!(
            queue < layout.queue_count,
            "the layout has no queue {queue}"
        );
        let mut seeds = Random::new(seed);
        // A stretch of the seed's own numbers apart, so that seed 1 queue 1 is not seed 2 queue 0.
        let queue_seed = (0..=queue).fold(0, |_, _| seeds.next());
        Self {
            layout,
            queue,
            read_percent,
            order,
            random: Random::new(queue_seed),
            cursor: 0,
        }
    }

    /// The next request. A block that `is_busy` gives way to the next idle one that the queue
    /// owns; `None` if there is none.
    pub(crate) fn next(&mut self, is_busy: impl Fn(u64) -> bool) -> Option<Choice> {
        let owned_count = self.layout.owned_count(self.queue);
        if owned_count == 0 {
            return None;
        }
        let kind = if self.random.percent(self.read_percent) {
            RequestKind::Read
        } else {
            RequestKind::Write
        };
        let first = match self.order {
            AccessOrder::Random => self.random.below(owned_count),
            AccessOrder::Sequential => self.cursor,
        };
        let nth = (first..owned_count)
            .chain(0..first)
            .find(|&nth| !is_busy(self.layout.owned_block(self.queue, nth)))?;
        self.cursor = (nth + 1) % owned_count;
        Some(Choice {
            kind,
            block: self.layout.owned_block(self.queue, nth),
        })
    }
}

/// When requests are due.
///
/// With a rate the load is open: requests have an intended start each, whether or not the disk has
/// kept up, and a latency counted from there includes the time for which a slow disk held back the
/// requests behind (else a stall of one second would count as one slow request: coordinated
/// omission). Without a rate it is closed: a request is due as soon as there is room for it.
#[derive(Debug, Clone)]
pub(crate) struct Pacer {
    /// Requests a second of all queues together.
    rate_per_second: Option<NonZeroU32>,
    start_ns: u64,
    /// The place of the next request in the common schedule; moved by every request.
    next_slot: u64,
    /// How many queues share the schedule.
    slot_step: u32,
}

impl Pacer {
    /// The part of one queue in a schedule that `queue_count` queues take in turns, so that their
    /// common rate is exact and they do not all start at the same instant.
    pub(crate) fn for_queue(
        rate_per_second: Option<NonZeroU32>,
        start_ns: u64,
        queue: u32,
        queue_count: NonZeroU32,
    ) -> Self {
        let slot_step = queue_count.get();
        Self {
            rate_per_second,
            start_ns,
            next_slot: u64::from(queue),
            slot_step,
        }
    }

    /// The intended start of the next request, which is `now_ns` if the load is closed.
    ///
    /// Worked out from the start each time: no error adds up, however long the load runs.
    pub(crate) fn next_due(&mut self, now_ns: u64) -> u64 {
        let Some(rate) = self.rate_per_second else {
            return now_ns;
        };
        let since_start = u128::from(self.next_slot) * NS_PER_SECOND / u128::from(rate.get());
        self.next_slot += u64::from(self.slot_step);
        self.start_ns + u64::try_from(since_start).expect("a load ends within 500 years")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(block_count: u64, queue_count: u32) -> DiskLayout {
        DiskLayout::new(0, block_count * 4096, 4096, queue_count)
    }

    fn choices(load: &mut QueueLoad, count: usize) -> Vec<Choice> {
        (0..count).map(|_| load.next(|_| false).unwrap()).collect()
    }

    fn rate(per_second: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(per_second)
    }

    #[test]
    fn a_seed_repeats_its_choices() {
        let load = |queue, seed| {
            let mut load = QueueLoad::new(layout(64, 2), queue, 50, AccessOrder::Random, seed);
            choices(&mut load, 32)
        };
        assert_eq!(load(0, 1), load(0, 1));
        assert_ne!(load(0, 1), load(0, 2));
        assert_ne!(load(0, 1)[0].block / 2, load(1, 1)[0].block / 2);
    }

    #[test]
    fn a_queue_visits_all_of_its_blocks_and_no_other() {
        let mut load = QueueLoad::new(layout(10, 3), 1, 0, AccessOrder::Random, 1);
        let mut blocks: Vec<u64> = choices(&mut load, 200)
            .iter()
            .map(|one| one.block)
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!(blocks, [1, 4, 7]);
    }

    #[test]
    fn sequential_wraps() {
        let mut load = QueueLoad::new(layout(8, 3), 0, 100, AccessOrder::Sequential, 1);
        let blocks: Vec<u64> = choices(&mut load, 5).iter().map(|one| one.block).collect();
        assert_eq!(blocks, [0, 3, 6, 0, 3]);
    }

    #[test]
    fn the_share_of_reads_is_kept() {
        let mut load = QueueLoad::new(layout(100, 1), 0, 30, AccessOrder::Random, 1);
        let choices = choices(&mut load, 10_000);
        let reads = choices
            .iter()
            .filter(|one| one.kind == RequestKind::Read)
            .count();
        assert!((2_800..3_200).contains(&reads), "{reads}");
    }

    #[test]
    fn a_busy_block_gives_way_to_the_next_and_leaves_the_sequence_alone() {
        let mut free = QueueLoad::new(layout(4, 1), 0, 50, AccessOrder::Random, 3);
        let mut held = free.clone();
        for _ in 0..100 {
            let free = free.next(|_| false).unwrap();
            let held = held.next(|block| block == 2).unwrap();
            assert_eq!(held.kind, free.kind);
            assert_eq!(held.block, if free.block == 2 { 3 } else { free.block });
        }
    }

    #[test]
    fn nothing_is_chosen_when_all_is_busy_or_nothing_is_owned() {
        let mut load = QueueLoad::new(layout(4, 1), 0, 50, AccessOrder::Random, 3);
        assert_eq!(load.next(|_| true), None);
        let mut load = QueueLoad::new(layout(2, 3), 2, 50, AccessOrder::Random, 3);
        assert_eq!(load.next(|_| false), None);
    }

    #[test]
    fn an_open_load_keeps_its_schedule_however_late_it_is() {
        let mut pacer = Pacer::for_queue(rate(3), 10, 0, NonZeroU32::MIN);
        let due: Vec<u64> = (0..4).map(|_| pacer.next_due(9_999_999_999)).collect();
        assert_eq!(due, [10, 333_333_343, 666_666_676, 1_000_000_010]);
    }

    #[test]
    fn queues_take_turns_in_one_schedule() {
        let queue_count = NonZeroU32::new(2).unwrap();
        let mut first = Pacer::for_queue(rate(1_000), 0, 0, queue_count);
        let mut second = Pacer::for_queue(rate(1_000), 0, 1, queue_count);
        let due = [&mut first, &mut second].map(|pacer| [pacer.next_due(0), pacer.next_due(0)]);
        assert_eq!(due, [[0, 2_000_000], [1_000_000, 3_000_000]]);
    }

    #[test]
    fn a_closed_load_is_due_now() {
        let mut pacer = Pacer::for_queue(None, 10, 0, NonZeroU32::MIN);
        assert_eq!([pacer.next_due(50), pacer.next_due(60)], [50, 60]);
    }
}
