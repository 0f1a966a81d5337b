//! The bitmap of a disk against a list of granules, with rounding done the slow way.

use proptest::prelude::*;

use crate::bitmap::{Area, BitmapError, DirtyBitmap};

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const SIZE_MAX: u64 = (1 << 63) - 1;

/// Which granules are dirty, and nothing clever.
#[derive(Debug, Clone)]
struct Naive {
    size: u64,
    granularity: u64,
    dirty: Vec<bool>,
}

impl Naive {
    fn new(size: u64, granularity: u64) -> Self {
        let granules = usize::try_from(size.div_ceil(granularity)).unwrap();
        Self {
            size,
            granularity,
            dirty: vec![false; granules],
        }
    }

    /// The part of granule `index` that is on the disk.
    fn bytes(&self, index: usize) -> std::ops::Range<u64> {
        let start = index as u64 * self.granularity;
        start..(start + self.granularity).min(self.size)
    }

    fn mark(&mut self, offset: u64, len: u64) {
        for index in 0..self.dirty.len() {
            let bytes = self.bytes(index);
            if bytes.start.max(offset) < bytes.end.min(offset.saturating_add(len)) {
                self.dirty[index] = true;
            }
        }
    }

    fn clear(&mut self, offset: u64, len: u64) {
        for index in 0..self.dirty.len() {
            let bytes = self.bytes(index);
            if offset <= bytes.start && bytes.end <= offset.saturating_add(len) {
                self.dirty[index] = false;
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        for index in (0..other.dirty.len()).filter(|&index| other.dirty[index]) {
            let bytes = other.bytes(index);
            self.mark(bytes.start, bytes.end - bytes.start);
        }
    }

    fn areas(&self) -> Vec<Area> {
        let mut areas: Vec<Area> = Vec::new();
        for bytes in (0..self.dirty.len())
            .filter(|&i| self.dirty[i])
            .map(|i| self.bytes(i))
        {
            let len = bytes.end - bytes.start;
            match areas.last_mut() {
                Some(last) if last.offset + last.len == bytes.start => last.len += len,
                _ => areas.push(Area {
                    offset: bytes.start,
                    len,
                }),
            }
        }
        areas
    }

    fn next(&self, offset: u64, end: u64, value: bool) -> Option<u64> {
        (0..self.dirty.len())
            .filter(|&index| self.dirty[index] == value)
            .map(|index| self.bytes(index))
            .find(|bytes| bytes.start.max(offset) < bytes.end.min(end))
            .map(|bytes| bytes.start.max(offset))
    }
}

fn check_same(bitmap: &DirtyBitmap, naive: &Naive) {
    assert_eq!(bitmap.areas().collect::<Vec<_>>(), naive.areas());
    let dirty = naive.dirty.iter().filter(|&&dirty| dirty).count() as u64;
    assert_eq!(bitmap.count(), dirty * naive.granularity);
}

fn check_looks(bitmap: &DirtyBitmap, naive: &Naive, offset: u64, len: u64) {
    let end = offset + len;
    let (dirty, zero) = (
        naive.next(offset, end, true),
        naive.next(offset, end, false),
    );
    assert_eq!(bitmap.next_dirty(offset, end), dirty);
    assert_eq!(bitmap.next_zero(offset, end), zero);
    assert_eq!(bitmap.any_dirty(offset, len), dirty.is_some());
    assert_eq!(
        bitmap.is_dirty(offset),
        naive.next(offset, offset + 1, true).is_some()
    );
    let area = bitmap.next_dirty_area(offset, end, 3000);
    let expected = dirty.map(|start| {
        let limit = end.min(naive.size).min(start + 3000);
        let stop = naive.next(start, limit, false).unwrap_or(limit);
        Area {
            offset: start,
            len: stop - start,
        }
    });
    assert_eq!(area, expected);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Mark(u64, u64),
    Clear(u64, u64),
    MarkAll,
    ClearAll,
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![0..2000_u64, 0..200_000_u64, Just(u64::MAX)];
    prop_oneof![
        8 => (0..200_000_u64, len()).prop_map(|(offset, len)| Step::Mark(offset, len)),
        8 => (0..200_000_u64, len()).prop_map(|(offset, len)| Step::Clear(offset, len)),
        1 => Just(Step::MarkAll),
        1 => Just(Step::ClearAll),
    ]
}

fn apply(bitmap: &DirtyBitmap, naive: &mut Naive, shard: usize, step: Step) {
    match step {
        Step::Mark(offset, len) => {
            bitmap.mark(shard, offset, len);
            naive.mark(offset, len);
        }
        Step::Clear(offset, len) => {
            bitmap.clear(shard, offset, len);
            naive.clear(offset, len);
        }
        Step::MarkAll => {
            bitmap.mark_all(shard);
            naive.mark(0, u64::MAX);
        }
        Step::ClearAll => {
            bitmap.clear_all(shard);
            naive.clear(0, u64::MAX);
        }
    }
}

fn granularity() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![512, 1024, 4096, 65_536, 2 * GIB])
}

fn marked(size: u64, granularity: u64, marks: &[(u64, u64)]) -> (DirtyBitmap, Naive) {
    let bitmap = DirtyBitmap::new(size, granularity, 2).unwrap();
    let mut naive = Naive::new(size, granularity);
    for &(offset, len) in marks {
        bitmap.mark(0, offset, len);
        naive.mark(offset, len);
    }
    (bitmap, naive)
}

fn marks() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0..200_000_u64, 0..5000_u64), 0..12)
}

proptest! {
    #[test]
    fn behaves_like_a_list_of_granules(
        size in 0..200_000_u64,
        granularity in granularity(),
        steps in prop::collection::vec(step(), 1..16),
        looks in prop::collection::vec((0..210_000_u64, 0..50_000_u64), 6),
    ) {
        let bitmap = DirtyBitmap::new(size, granularity, 3).unwrap();
        let mut naive = Naive::new(size, granularity);
        for (index, &step) in steps.iter().enumerate() {
            apply(&bitmap, &mut naive, index % 3, step);
            check_same(&bitmap, &naive);
            for &(offset, len) in &looks {
                check_looks(&bitmap, &naive, offset, len);
            }
        }
    }

    #[test]
    fn merges_across_granularities(
        size in 0..200_000_u64,
        (here, there) in (granularity(), granularity()),
        (marks_here, marks_there) in (marks(), marks()),
        budget in 0..5_u64,
    ) {
        let (bitmap, mut naive) = marked(size, here, &marks_here);
        let (other, other_naive) = marked(size, there, &marks_there);
        naive.merge(&other_naive);
        let mut from = Some(0);
        while let Some(offset) = from {
            from = bitmap.merge_slice(1, &other, offset, budget);
            assert!(from.is_none_or(|next| next > offset), "a slice gets somewhere");
        }
        check_same(&bitmap, &naive);
        check_same(&other, &other_naive);
        // A second merge turns nothing.
        bitmap.merge_from(0, &other).unwrap();
        check_same(&bitmap, &naive);
    }

    #[test]
    fn slices_do_what_the_whole_does(size in 0..300_000_u64, marks in marks(), from in 0..2000_u64) {
        let (bitmap, mut naive) = marked(size, 512, &marks);
        let mut next = Some(from);
        while let Some(offset) = next {
            next = bitmap.clear_slice(1, offset, 1);
        }
        naive.clear(from, u64::MAX);
        check_same(&bitmap, &naive);
        let mut next = Some(from);
        while let Some(offset) = next {
            next = bitmap.mark_slice(0, offset, 1);
        }
        naive.mark(from, u64::MAX);
        check_same(&bitmap, &naive);
    }

    #[test]
    fn a_resize_keeps_what_still_exists(
        (size, new_size) in (0..200_000_u64, 0..200_000_u64),
        marks in marks(),
    ) {
        let (bitmap, naive) = marked(size, 1024, &marks);
        let mut expected = Naive::new(new_size, 1024);
        for (new, old) in expected.dirty.iter_mut().zip(&naive.dirty) {
            *new = *old;
        }
        check_same(&bitmap.resized(new_size).unwrap(), &expected);
    }

    #[test]
    fn the_end_of_the_largest_disk_is_like_any_other(
        back in 1..20 * GIB,
        len in prop_oneof![1..8 * GIB, Just(u64::MAX)],
    ) {
        let offset = SIZE_MAX - back;
        let bitmap = DirtyBitmap::new(SIZE_MAX, 2 * GIB, 1).unwrap();
        bitmap.mark(0, offset, len);
        let first = offset / (2 * GIB) * (2 * GIB);
        let end = offset.saturating_add(len).min(SIZE_MAX);
        let last = end.next_multiple_of(2 * GIB);
        prop_assert_eq!(bitmap.count(), last - first);
        let area = Area { offset: first, len: last.min(SIZE_MAX) - first };
        prop_assert_eq!(bitmap.areas().collect::<Vec<_>>(), [area]);
        bitmap.clear(0, first, u64::MAX);
        prop_assert_eq!(bitmap.count(), 0);
        prop_assert_eq!(bitmap.next_dirty(0, u64::MAX), None);
    }
}

#[test]
fn refuses_a_wrong_granularity() {
    for granularity in [0, 1, 100, 256, 3 << 20, 4 * GIB, 1 << 63, u64::MAX] {
        let error = DirtyBitmap::new(GIB, granularity, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Granularity must be power of 2 and at least 512"
        );
    }
    assert!(DirtyBitmap::new(GIB, 2 * GIB, 1).is_ok());
}

#[test]
fn refuses_sizes_without_overflow() {
    assert_eq!(
        DirtyBitmap::new(SIZE_MAX + 1, 512, 1).unwrap_err(),
        BitmapError::Size { size: SIZE_MAX + 1 }
    );
    let error = DirtyBitmap::new(SIZE_MAX, 512, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Cannot allocate 2287542667870728 bytes for a dirty bitmap with granularity 512, \
         use a larger granularity"
    );
}

#[test]
fn counts_the_whole_of_a_granule_that_sticks_out() {
    let bitmap = DirtyBitmap::new(100 * KIB, 64 * KIB, 1).unwrap();
    bitmap.mark_all(0);
    assert_eq!(bitmap.count(), 128 * KIB);
    assert_eq!(
        bitmap.areas().collect::<Vec<_>>(),
        [Area {
            offset: 0,
            len: 100 * KIB
        }]
    );
}

#[test]
fn a_clear_keeps_granules_at_its_edges() {
    let bitmap = DirtyBitmap::new(100 * KIB, 16 * KIB, 1).unwrap();
    bitmap.mark_all(0);
    bitmap.clear(0, KIB, 62 * KIB);
    assert_eq!(bitmap.next_zero(0, u64::MAX), Some(16 * KIB));
    assert_eq!(bitmap.next_dirty(16 * KIB, u64::MAX), Some(48 * KIB));
    // The last granule is cut by the end of the disk, not by the range.
    bitmap.clear(0, 96 * KIB, 4 * KIB);
    assert!(!bitmap.is_dirty(99 * KIB));
    assert!(bitmap.is_dirty(95 * KIB));
}

#[test]
fn words_are_the_stored_form() {
    let bitmap = DirtyBitmap::new(4 << 20, 64 * KIB, 1).unwrap();
    bitmap.mark(0, 0, 1);
    bitmap.mark(0, 192 * KIB, 1);
    assert_eq!(
        (bitmap.word_count(), bitmap.word(0), bitmap.word(1)),
        (1, 0b1001, 0)
    );
    let other = bitmap.fresh().unwrap();
    other.mark_word(0, 0, bitmap.word(0));
    other.mark_word(0, 7, u64::MAX);
    assert_eq!(other.count(), 128 * KIB);
}

#[test]
fn a_merge_of_unequal_disks_is_refused() {
    let bitmap = DirtyBitmap::new(4 << 20, 64 * KIB, 1).unwrap();
    let other = DirtyBitmap::new(1 << 30, 64 * KIB, 1).unwrap();
    assert_eq!(
        bitmap.merge_from(0, &other).unwrap_err().to_string(),
        "Bitmaps are of different sizes (destination size is 4194304, source size is \
         1073741824) and can't be merged"
    );
}
