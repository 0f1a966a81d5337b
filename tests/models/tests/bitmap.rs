//! Model of the dirty bitmap's words: marks, clears and searches that meet.
//!
//! Words are two bits wide here, so that two levels take three words and three levels seven. At
//! rest, when all threads have ended, three things must hold: no bit is lost, a search finds
//! every set bit, and the turns reported add up to the bits set.
//!
//! The bits at play are those of the upper half. A search that starts at bit 0 reaches them
//! only through the summaries, up to the top level; one that starts in their word would find
//! them without.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread::{self, JoinHandle};
use ringback_models::sync::Fault;
use ringback_models::words::Words;
use ringback_models::{check, check_finds};

/// Bits of a single word, without summary.
const ONE_LEVEL: u64 = 2;
/// Bits of two levels: two leaf words under one summary word.
const TWO_LEVELS: u64 = 4;
/// Bits of three levels: four leaf words, two summary words, one on top.
const THREE_LEVELS: u64 = 8;

type Small = Words<2>;

/// A bitmap with some bits set already.
struct Scene {
    words: Arc<Small>,
    /// The first bit at play.
    base: u64,
    /// Bits set from the beginning.
    before: u64,
}

impl Scene {
    /// `marked` counts from the first bit at play.
    fn new(bits: u64, marked: &[u64]) -> Self {
        let words = Arc::new(Small::new(bits).expect("a model has memory"));
        let base = bits / 2;
        let before = marked
            .iter()
            .map(|&bit| words.mark_range(base + bit, base + bit + 1))
            .sum();
        Self {
            words,
            base,
            before,
        }
    }

    fn spawn(&self, work: impl Fn(&Small, u64) -> u64 + 'static) -> JoinHandle<u64> {
        let (words, base) = (Arc::clone(&self.words), self.base);
        thread::spawn(move || work(&words, base))
    }

    /// Marks `from..to` in a thread of its own.
    fn marker(&self, from: u64, to: u64) -> JoinHandle<u64> {
        self.spawn(move |words, base| words.mark_range(base + from, base + to))
    }

    /// Clears `from..to` in a thread of its own.
    fn clearer(&self, from: u64, to: u64) -> JoinHandle<u64> {
        self.spawn(move |words, base| words.clear_range(base + from, base + to))
    }

    fn clear(&self, from: u64, to: u64) -> u64 {
        self.words.clear_range(self.base + from, self.base + to)
    }

    fn assert_set(&self, bit: u64) {
        assert!(self.words.is_set(self.base + bit), "broken: a bit is lost");
    }

    /// What must hold when nobody is at work.
    fn assert_rest(&self, marked: u64, cleared: u64) {
        let all = 0..self.words.len();
        let set: Vec<u64> = all.filter(|&bit| self.words.is_set(bit)).collect();
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(bit) = self.words.next_set(from, self.words.len()) {
            found.push(bit);
            from = bit + 1;
        }
        assert_eq!(set, found, "broken: a set bit is not found");
        let turned = self.before + marked - cleared;
        assert_eq!(set.len() as u64, turned, "broken: the turns do not add up");
    }
}

fn join(thread: JoinHandle<u64>) -> u64 {
    thread.join().expect("the thread ends")
}

/// A mark meets a clear of the other bit of its word: the bit must be there afterwards.
fn mark_meets_clear(bits: u64) {
    let scene = Scene::new(bits, &[0]);
    let marker = scene.marker(1, 2);
    let cleared = scene.clear(0, 1);
    let marked = join(marker);
    scene.assert_set(1);
    scene.assert_rest(marked, cleared);
}

/// Two marks of one bit: that which comes second writes nothing, yet when it returns the bit
/// must be found, though the first is still on its way up. No clear is under way then.
fn second_mark_is_found(bits: u64) {
    let scene = Scene::new(bits, &[0]);
    let first = scene.marker(1, 2);
    let cleared = scene.clear(0, 1);
    let second = scene.words.mark_range(scene.base + 1, scene.base + 2);
    assert!(
        scene.words.any(0, bits),
        "broken: a marked bit is not found"
    );
    let marked = second + join(first);
    scene.assert_set(1);
    scene.assert_rest(marked, cleared);
}

/// A mark and a clear meet a finder that takes what it finds.
fn marker_clearer_finder(bits: u64) {
    let scene = Scene::new(bits, &[0]);
    let marker = scene.marker(1, 2);
    let finder = scene.spawn(|words, _| {
        words
            .next_set(0, words.len())
            .map_or(0, |bit| words.clear_range(bit, bit + 1))
    });
    let mut cleared = scene.clear(0, 1);
    let marked = join(marker);
    cleared += join(finder);
    scene.assert_rest(marked, cleared);
}

/// Two clears of one bit meet a mark of it and of its neighbour.
fn two_clears_meet_mark(bits: u64) {
    let scene = Scene::new(bits, &[0]);
    let clearer = scene.clearer(0, 1);
    let marker = scene.marker(0, 2);
    let cleared = scene.clear(0, 1);
    let marked = join(marker);
    let cleared = cleared + join(clearer);
    scene.assert_set(1);
    scene.assert_rest(marked, cleared);
}

/// Two clears that empty two leaf words under one summary word meet a mark in one of them.
fn neighbours_clear(bits: u64) {
    let scene = Scene::new(bits, &[0, 2]);
    let clearer = scene.clearer(2, 3);
    let marker = scene.marker(1, 2);
    let cleared = scene.clear(0, 1);
    let marked = join(marker);
    let cleared = cleared + join(clearer);
    scene.assert_set(1);
    scene.assert_rest(marked, cleared);
}

/// A range across words meets a clear across words.
fn ranges_meet(bits: u64) {
    let scene = Scene::new(bits, &[1, 2]);
    let marker = scene.marker(0, 3);
    let cleared = scene.clear(1, 4);
    let marked = join(marker);
    scene.assert_set(0);
    scene.assert_rest(marked, cleared);
}

/// A merge of one word meets a clear of the other bit of that word.
fn merge_meets_clear(bits: u64) {
    let scene = Scene::new(bits, &[0]);
    let marker = scene.spawn(|words, base| words.mark_leaf(base / 2, 0b10));
    let cleared = scene.clear(0, 1);
    let marked = join(marker);
    scene.assert_set(1);
    scene.assert_rest(marked, cleared);
}

/// B2: data is written before its bit is set, and read after its bit is cleared. What was
/// read is new, or the bit is set again.
fn data_is_read_or_dirty(bits: u64) {
    let scene = Scene::new(bits, &[0]);
    let data = Arc::new(AtomicU64::new(0));
    let disk = Arc::clone(&data);
    let marker = scene.spawn(move |words, base| {
        disk.store(1, Ordering::Relaxed);
        words.mark_range(base, base + 1)
    });
    scene.clear(0, 1);
    let read = data.load(Ordering::Relaxed);
    join(marker);
    assert!(
        read == 1 || scene.words.any(0, bits),
        "broken: a write is neither read nor dirty"
    );
}

#[test]
fn a_mark_survives_a_clear_on_two_levels() {
    check(3, || mark_meets_clear(TWO_LEVELS));
}

#[test]
fn a_mark_survives_a_clear_on_three_levels() {
    check(3, || mark_meets_clear(THREE_LEVELS));
}

#[test]
fn a_mark_that_finds_its_bit_set_makes_sure_of_the_summary() {
    check(3, || second_mark_is_found(TWO_LEVELS));
}

#[test]
fn a_mark_that_finds_its_bit_set_makes_sure_of_three_levels() {
    check(2, || second_mark_is_found(THREE_LEVELS));
}

#[test]
fn marker_clearer_and_finder_agree_on_two_levels() {
    check(3, || marker_clearer_finder(TWO_LEVELS));
}

#[test]
fn marker_clearer_and_finder_agree_on_three_levels() {
    check(2, || marker_clearer_finder(THREE_LEVELS));
}

#[test]
fn two_clears_and_a_mark_agree_on_two_levels() {
    check(3, || two_clears_meet_mark(TWO_LEVELS));
}

#[test]
fn clears_of_neighbours_keep_a_mark_on_three_levels() {
    check(3, || neighbours_clear(THREE_LEVELS));
}

#[test]
fn ranges_that_overlap_agree_on_three_levels() {
    check(3, || ranges_meet(THREE_LEVELS));
}

#[test]
fn a_merge_survives_a_clear() {
    check(3, || merge_meets_clear(THREE_LEVELS));
}

#[test]
fn a_racing_write_is_read_or_dirty() {
    check(3, || data_is_read_or_dirty(TWO_LEVELS));
    check(3, || data_is_read_or_dirty(ONE_LEVEL));
}

#[test]
fn finds_a_mark_without_fence() {
    check_finds(Fault::MarkFenceMissing, 3, || mark_meets_clear(TWO_LEVELS));
}

#[test]
fn finds_a_merge_without_fence() {
    check_finds(Fault::MarkFenceMissing, 3, || merge_meets_clear(TWO_LEVELS));
}

#[test]
fn finds_a_mark_whose_data_has_no_fence() {
    check_finds(Fault::MarkFenceMissing, 3, || {
        data_is_read_or_dirty(ONE_LEVEL)
    });
}

#[test]
fn finds_a_mark_that_trusts_a_set_leaf() {
    check_finds(Fault::MarkTrustsSetLeaf, 3, || {
        second_mark_is_found(TWO_LEVELS)
    });
}

#[test]
fn finds_a_clear_without_fence() {
    check_finds(Fault::ClearFenceMissing, 3, || mark_meets_clear(TWO_LEVELS));
}

#[test]
fn finds_a_clear_without_second_look() {
    check_finds(Fault::ClearSecondLookMissing, 3, || {
        mark_meets_clear(TWO_LEVELS)
    });
}

#[test]
fn finds_a_restored_bit_that_does_not_climb() {
    check_finds(Fault::RestoreDoesNotClimb, 3, || {
        neighbours_clear(THREE_LEVELS)
    });
}

#[test]
fn finds_a_clear_that_reads_data_before_its_fence() {
    check_finds(Fault::ClearReadsBeforeFence, 3, || {
        data_is_read_or_dirty(ONE_LEVEL)
    });
}
