//! The history of a disk under a guest load: which version every block has now, and which it had
//! at a point in time.
//!
//! It remembers versions, not data: `pattern` makes the data again whenever something read has to
//! be verified. It neither issues requests nor takes the point in time.
//!
//! # Point in time
//!
//! Every queue is frozen while the disk is drained: what has been acknowledged by then is part of
//! the point in time, and nothing else is. A write that waits at the closed gate counts as not yet
//! made.

use std::collections::BTreeMap;

use ringback_block::span::Span;

use super::layout::DiskLayout;
use super::load::RequestKind;
use super::pattern::{self, Mismatch};

/// What one queue has written to the blocks which it owns.
#[derive(Debug)]
pub(crate) struct QueueHistory {
    layout: DiskLayout,
    queue: u32,
    /// The acknowledged version of each owned block. Moved by `end_write` and `preload`.
    versions: Vec<u32>,
    /// The blocks with a request under way, from its `begin` to its `end`: at most one a block, so
    /// that what a read has to return is never in doubt.
    in_flight: BTreeMap<u64, RequestKind>,
}

impl QueueHistory {
    /// The history of a queue on a disk that holds only zeroes.
    pub(crate) fn new(layout: DiskLayout, queue: u32) -> Self {
        assert!(
            queue < layout.queue_count,
            "the layout has no queue {queue}"
        );
        let count = usize::try_from(layout.owned_count(queue)).expect("versions are in memory");
        Self {
            layout,
            queue,
            versions: vec![0; count],
            in_flight: BTreeMap::new(),
        }
    }

    /// Whether a request for this block is under way, so that it must not get a second one.
    pub(crate) fn is_busy(&self, block: u64) -> bool {
        self.in_flight.contains_key(&block)
    }

    /// The version which a read of this block returns, as long as no write to it is under way.
    pub(crate) fn version(&self, block: u64) -> u32 {
        self.versions[self.nth(block)]
    }

    /// Notes that a block is filled before the load starts, and says with which version.
    pub(crate) fn preload(&mut self, block: u64) -> u32 {
        let version = self.begin_write(block);
        self.end_write(block);
        version
    }

    /// Marks an idle block as being written, and says which version to write.
    pub(crate) fn begin_write(&mut self, block: u64) -> u32 {
        self.begin(block, RequestKind::Write);
        self.version(block) + 1
    }

    /// Notes that a write was acknowledged: from here on reads have to return it.
    pub(crate) fn end_write(&mut self, block: u64) {
        self.end(block, RequestKind::Write);
        let nth = self.nth(block);
        self.versions[nth] += 1;
    }

    /// Marks an idle block as being read.
    pub(crate) fn begin_read(&mut self, block: u64) {
        self.begin(block, RequestKind::Read);
    }

    /// Ends a read of a whole block and verifies what it returned.
    pub(crate) fn end_read(&mut self, block: u64, data: &[u8]) -> Result<(), Mismatch> {
        self.end(block, RequestKind::Read);
        assert_eq!(
            data.len(),
            self.layout.len(block),
            "a guest reads whole blocks"
        );
        pattern::check(self.layout.seed, block, self.version(block), data)
            .map_err(|mismatch| mismatch.moved_by(self.layout.offset(block)))
    }

    /// A copy of the versions for a point in time; the module says when to take it.
    pub(crate) fn freeze(&self) -> Frozen {
        Frozen {
            queue: self.queue,
            versions: self.versions.clone(),
        }
    }

    fn begin(&mut self, block: u64, kind: RequestKind) {
        assert_eq!(
            self.layout.owner(block),
            self.queue,
            "block {block} has another owner"
        );
        let earlier = self.in_flight.insert(block, kind);
        assert_eq!(earlier, None, "block {block} was busy");
    }

    fn end(&mut self, block: u64, kind: RequestKind) {
        let begun = self.in_flight.remove(&block);
        assert_eq!(
            begun,
            Some(kind),
            "block {block} was busy with something else"
        );
    }

    fn nth(&self, block: u64) -> usize {
        debug_assert_eq!(self.layout.owner(block), self.queue);
        self.layout.nth_of_owner(block)
    }
}

/// What one queue had written at a point in time: its share of a `Snapshot`.
#[derive(Debug, Clone)]
pub(crate) struct Frozen {
    queue: u32,
    /// The acknowledged versions of its blocks.
    versions: Vec<u32>,
}

/// The disk at a point in time, put together from all of its queues.
#[derive(Debug)]
pub(crate) struct Snapshot {
    layout: DiskLayout,
    /// By queue.
    versions: Vec<Vec<u32>>,
}

impl Snapshot {
    /// Puts the shares of all queues together, in any order.
    pub(crate) fn new(layout: DiskLayout, mut shares: Vec<Frozen>) -> Self {
        shares.sort_unstable_by_key(|share| share.queue);
        let queues = shares.iter().map(|share| share.queue);
        assert!(
            queues.eq(0..layout.queue_count),
            "every queue has exactly one share"
        );
        let versions = shares.into_iter().map(|share| share.versions).collect();
        Self { layout, versions }
    }

    /// Verifies any range of the disk, aligned or not, up to its end.
    pub(crate) fn check(&self, offset: u64, data: &[u8]) -> Result<(), Mismatch> {
        let mut offset = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let (block, start) = self.layout.locate(offset);
            let block_len = self.layout.len(block);
            assert!(
                start < block_len,
                "offset {offset} is past the end of the disk"
            );
            let (part, behind) = rest.split_at(rest.len().min(block_len - start));
            self.check_part(block, start, part)
                .map_err(|mismatch| mismatch.moved_by(self.layout.offset(block)))?;
            offset = self.layout.offset(block + 1);
            rest = behind;
        }
        Ok(())
    }

    /// The blocks that have another version than in an earlier snapshot of the
    /// same disk.
    pub(crate) fn changed_since(&self, earlier: &Self) -> impl Iterator<Item = Span> {
        let blocks = 0..self.layout.block_count();
        blocks
            .filter(|&block| self.version(block) != earlier.version(block))
            .map(|block| {
                let len = u64::try_from(self.layout.len(block)).expect("a block is small");
                Span::new(self.layout.offset(block), len)
            })
    }

    fn version(&self, block: u64) -> u32 {
        let queue = usize::try_from(self.layout.owner(block)).expect("a queue's index is small");
        self.versions[queue][self.layout.nth_of_owner(block)]
    }

    fn check_part(&self, block: u64, start: usize, part: &[u8]) -> Result<(), Mismatch> {
        let version = self.version(block);
        pattern::check_part(self.layout.seed, block, version, start, part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::pattern::{Expected, Found};
    use super::*;

    fn layout(disk_len: u64, block_len: usize, queue_count: u32) -> DiskLayout {
        DiskLayout::new(7, disk_len, block_len, queue_count)
    }

    fn content(layout: &DiskLayout, block: u64, version: u32) -> Vec<u8> {
        let mut data = vec![0; layout.len(block)];
        pattern::fill(layout.seed, block, version, &mut data);
        data
    }

    /// One queue with block 1 at version 1 and everything else untouched.
    fn one_write() -> (DiskLayout, QueueHistory) {
        let layout = layout(3 * 1024 + 512, 1024, 1);
        let mut history = QueueHistory::new(layout, 0);
        assert_eq!(history.preload(1), 1);
        (layout, history)
    }

    #[test]
    fn a_write_counts_from_its_acknowledgement() {
        let (_, mut history) = one_write();
        assert_eq!(history.begin_write(1), 2);
        assert!(history.is_busy(1));
        assert_eq!(history.version(1), 1);
        history.end_write(1);
        assert!(!history.is_busy(1));
        assert_eq!(history.version(1), 2);
    }

    #[test]
    fn a_read_is_held_against_the_acknowledged_version() {
        let (layout, mut history) = one_write();
        history.begin_read(1);
        assert!(history.is_busy(1));
        assert_eq!(history.end_read(1, &content(&layout, 1, 1)), Ok(()));
        history.begin_read(1);
        let mismatch = history.end_read(1, &content(&layout, 1, 2)).unwrap_err();
        assert_eq!(mismatch.offset, 1024 + 24);
        assert_eq!(
            mismatch.expected,
            Expected::Version {
                block: 1,
                version: 1
            }
        );
        assert_eq!(mismatch.found, Found::Version(2));
    }

    #[test]
    fn the_short_last_block_is_read_with_its_own_length() {
        let (layout, mut history) = one_write();
        history.preload(3);
        history.begin_read(3);
        assert_eq!(history.end_read(3, &content(&layout, 3, 1)), Ok(()));
    }

    #[test]
    #[should_panic(expected = "block 1 was busy")]
    fn a_busy_block_gets_no_second_request() {
        let (_, mut history) = one_write();
        history.begin_read(1);
        history.begin_write(1);
    }

    #[test]
    #[should_panic(expected = "block 1 has another owner")]
    fn a_queue_leaves_the_blocks_of_others_alone() {
        QueueHistory::new(layout(4096, 512, 2), 0).begin_read(1);
    }

    #[test]
    fn a_snapshot_does_not_follow_later_writes() {
        let (layout, mut history) = one_write();
        let snapshot = Snapshot::new(layout, vec![history.freeze()]);
        history.preload(1);
        assert_eq!(snapshot.check(1024, &content(&layout, 1, 1)), Ok(()));
        let mismatch = snapshot.check(1024, &content(&layout, 1, 2)).unwrap_err();
        assert_eq!(
            (mismatch.offset, mismatch.found),
            (1024 + 24, Found::Version(2))
        );
    }

    #[test]
    #[should_panic(expected = "past the end of the disk")]
    fn a_snapshot_ends_where_its_disk_ends() {
        let (layout, history) = one_write();
        let snapshot = Snapshot::new(layout, vec![history.freeze()]);
        let _ = snapshot.check(layout.disk_len - 512, &[0; 513]);
    }

    #[test]
    #[should_panic(expected = "every queue has exactly one share")]
    fn a_snapshot_needs_every_queue() {
        let layout = layout(4096, 512, 2);
        Snapshot::new(layout, vec![QueueHistory::new(layout, 1).freeze()]);
    }

    #[test]
    fn a_write_that_was_not_acknowledged_is_not_part_of_the_instant() {
        let (layout, mut history) = one_write();
        history.begin_write(1);
        let snapshot = Snapshot::new(layout, vec![history.freeze()]);
        assert_eq!(snapshot.check(1024, &content(&layout, 1, 1)), Ok(()));
        assert!(snapshot.check(1024, &content(&layout, 1, 2)).is_err());
    }

    /// A byte of a range, and how to falsify it.
    type Change = Option<(prop::sample::Index, u8)>;

    #[derive(Debug, Clone)]
    struct Case {
        layout: DiskLayout,
        before: Vec<prop::sample::Index>,
        after: Vec<prop::sample::Index>,
        ranges: Vec<(prop::sample::Index, usize, Change)>,
    }

    fn cases() -> impl Strategy<Value = Case> {
        let layout = (1_u64..20_000, 1_usize..6, 1_u32..5)
            .prop_map(|(disk_len, sectors, queues)| layout(disk_len, sectors * 512, queues));
        let writes = || prop::collection::vec(any::<prop::sample::Index>(), 0..40);
        let change = prop::option::of((any::<prop::sample::Index>(), 1_u8..));
        let range = (any::<prop::sample::Index>(), 1_usize..5_000, change);
        let ranges = prop::collection::vec(range, 1..8);
        (layout, writes(), writes(), ranges).prop_map(|(layout, before, after, ranges)| Case {
            layout,
            before,
            after,
            ranges,
        })
    }

    /// A disk of plain bytes beside its histories.
    struct Model {
        layout: DiskLayout,
        disk: Vec<u8>,
        histories: Vec<QueueHistory>,
    }

    impl Model {
        fn new(layout: DiskLayout) -> Self {
            let disk = vec![0; usize::try_from(layout.disk_len).unwrap()];
            let histories = (0..layout.queue_count)
                .map(|queue| QueueHistory::new(layout, queue))
                .collect();
            Self {
                layout,
                disk,
                histories,
            }
        }

        fn write(&mut self, pick: &prop::sample::Index) {
            let block = u64::try_from(pick.index(self.block_count())).unwrap();
            let owner = usize::try_from(self.layout.owner(block)).unwrap();
            let version = self.histories[owner].begin_write(block);
            let start = usize::try_from(self.layout.offset(block)).unwrap();
            let data = &mut self.disk[start..start + self.layout.len(block)];
            pattern::fill(self.layout.seed, block, version, data);
            self.histories[owner].end_write(block);
            self.histories[owner].begin_read(block);
            assert_eq!(self.histories[owner].end_read(block, data), Ok(()));
        }

        fn block_count(&self) -> usize {
            usize::try_from(self.layout.block_count()).unwrap()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_snapshot_is_the_disk_at_that_instant(case in cases()) {
            let mut model = Model::new(case.layout);
            case.before.iter().for_each(|pick| model.write(pick));
            let shares = model.histories.iter().rev().map(QueueHistory::freeze).collect();
            let snapshot = Snapshot::new(case.layout, shares);
            let disk = model.disk.clone();
            case.after.iter().for_each(|pick| model.write(pick));
            for (start, len, change) in &case.ranges {
                let start = start.index(disk.len());
                let mut data = disk[start..disk.len().min(start + len)].to_vec();
                let mut expected = Ok(());
                if let Some((at, flip)) = change {
                    let at = at.index(data.len());
                    data[at] ^= flip;
                    expected = Err(u64::try_from(start + at).unwrap());
                }
                let offset = u64::try_from(start).unwrap();
                let checked = snapshot.check(offset, &data).map_err(|mismatch| mismatch.offset);
                prop_assert_eq!(checked, expected);
            }
            let latest = Snapshot::new(
                case.layout,
                model.histories.iter().map(QueueHistory::freeze).collect(),
            );
            prop_assert_eq!(latest.check(0, &model.disk), Ok(()));
        }
    }
}
