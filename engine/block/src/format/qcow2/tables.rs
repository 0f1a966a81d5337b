//! The mapping in memory: the L1 table, and the slices of L2 tables that are
//! cached.
//!
//! # Who may do what
//!
//! Anybody looks entries up without a lock. Entries, and which slices are
//! cached, change under `state`, for a few instructions; loading and writing
//! slices happens outside of it.
//!
//! # Slices
//!
//! A slice is a part of an L2 table, counted by the guest bytes that it maps,
//! not by where it lies: when a table moves, its slices stay. It is found
//! through three levels of slots, which are made when first used, so that a
//! lookup is three loads whatever the disk's size.
//!
//! A slice with changes that are not in the file is never thrown away. So a
//! cache may outgrow its capacity, until the next write-back.
//!
//! # Stale slices
//!
//! A lookup may hold a slice that was thrown away meanwhile and hence miss
//! later changes. Those changes overlap the lookup's request in time, so the
//! old mapping is as good an answer as the new one; and the clusters of the old
//! one are kept until that request has ended (Q2).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;

use arc_swap::ArcSwapOption;
use ringback_ring::WaitQueue;

use super::geometry::Geometry;
use crate::planted::{self, Fault};
use crate::units::in_memory;

/// Slots of one leaf, of one node above, and of the root: 2^34 slices, which is
/// the longest L1 table at the largest cluster size in the smallest parts.
const LEAF_BITS: u32 = 11;
const MIDDLE_BITS: u32 = 12;
const ROOT_BITS: u32 = 11;

type Leaf = Box<[ArcSwapOption<Slice>]>;
type Middle = Box<[OnceLock<Leaf>]>;

/// An L2 entry as it stands in a table: one word, and the subcluster bitmap of
/// an extended one (else 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawEntry {
    pub(crate) word: u64,
    pub(crate) bitmap: u64,
}

/// A cached part of an L2 table, in host byte order.
#[derive(Debug)]
pub(crate) struct Slice {
    index: u64,
    words: Box<[AtomicU64]>,
    /// Odd while an entry of two words is being changed.
    version: AtomicU64,
    /// Looked at since the clock's hand passed.
    used: AtomicBool,
}

impl Slice {
    fn new(index: u64, bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let words = words.iter().map(|&word| u64::from_be_bytes(word));
        Self::from_words(index, words.map(AtomicU64::new).collect())
    }

    fn from_words(index: u64, words: Box<[AtomicU64]>) -> Self {
        Self {
            index,
            words,
            version: AtomicU64::new(0),
            used: AtomicBool::new(true),
        }
    }

    /// An entry by its place in the slice.
    pub(crate) fn entry(&self, geometry: &Geometry, place: usize) -> RawEntry {
        if !geometry.extended {
            let word = self.words[place].load(Ordering::Acquire);
            return RawEntry { word, bitmap: 0 };
        }
        loop {
            let before = self.version.load(Ordering::Acquire);
            let entry = RawEntry {
                word: self.words[2 * place].load(Ordering::Relaxed),
                bitmap: self.words[2 * place + 1].load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return entry;
            }
            std::hint::spin_loop();
        }
    }

    /// One writer at a time: under the lock of the tables.
    fn set(&self, geometry: &Geometry, place: usize, entry: RawEntry) {
        if !geometry.extended {
            self.words[place].store(entry.word, Ordering::Release);
            return;
        }
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.words[2 * place].store(entry.word, Ordering::Relaxed);
        self.words[2 * place + 1].store(entry.bitmap, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_be_bytes())
            .collect()
    }

    fn touch(&self) {
        // Loads first: a slice in use is read by all shards.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

/// The L1 table. Entries are as in the file.
#[derive(Debug)]
struct L1 {
    offset: u64,
    entries: Vec<u64>,
    /// Changed, and not in the file yet.
    dirty: BTreeSet<u64>,
}

#[derive(Debug)]
struct State {
    l1: L1,
    /// Every cached slice.
    resident: Vec<Arc<Slice>>,
    /// Where the clock that looks for unused slices goes on.
    hand: usize,
    capacity: usize,
    /// Being read from the file.
    loading: BTreeSet<u64>,
    dirty: BTreeSet<u64>,
    /// Being written: changes may or may not be in the file.
    writing: BTreeSet<u64>,
}

/// The mapping of one image.
#[derive(Debug)]
pub(crate) struct Tables {
    geometry: Geometry,
    root: Box<[OnceLock<Middle>]>,
    state: Mutex<State>,
    loaded: WaitQueue,
}

/// What has to be done before a slice can be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is cached by now.
    Nothing,
    /// The whole L2 table is missing: nothing there is allocated.
    Table,
    /// Read it from here, then call [`Tables::insert`] or [`Tables::give_up`].
    Load {
        /// The L1 entry.
        l1_entry: u64,
    },
}

/// A slice's bytes as they have to be written.
#[derive(Debug)]
pub(crate) struct DirtySlice {
    pub(crate) slice: u64,
    /// The L1 entry of its table.
    pub(crate) l1_entry: u64,
    pub(crate) bytes: Vec<u8>,
}

/// An L1 entry as it has to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirtyL1Entry {
    pub(crate) index: u64,
    pub(crate) entry: u64,
}

impl Tables {
    /// `cache_bytes` of L2 tables are cached, at least two slices.
    pub(crate) fn new(
        geometry: Geometry,
        l1_offset: u64,
        l1_entries: Vec<u64>,
        cache_bytes: u64,
    ) -> Self {
        let state = State {
            l1: L1 {
                offset: l1_offset,
                entries: l1_entries,
                dirty: BTreeSet::new(),
            },
            resident: Vec::new(),
            hand: 0,
            capacity: in_memory(cache_bytes / geometry.slice_bytes()).max(2),
            loading: BTreeSet::new(),
            dirty: BTreeSet::new(),
            writing: BTreeSet::new(),
        };
        Self {
            geometry,
            root: (0..1 << ROOT_BITS).map(|_| OnceLock::new()).collect(),
            state: Mutex::new(state),
            loaded: WaitQueue::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, slice: u64) -> Option<&ArcSwapOption<Slice>> {
        let (root, middle, leaf) = places(slice);
        let leaves = self.root.get(root)?.get()?;
        Some(&leaves[middle].get()?[leaf])
    }

    fn make_slot(&self, slice: u64) -> &ArcSwapOption<Slice> {
        let (root, middle, leaf) = places(slice);
        let leaves = self.root[root]
            .get_or_init(|| (0..1 << MIDDLE_BITS).map(|_| OnceLock::new()).collect());
        let leaf_slots = leaves[middle].get_or_init(|| {
            (0..1 << LEAF_BITS)
                .map(|_| ArcSwapOption::const_empty())
                .collect()
        });
        &leaf_slots[leaf]
    }

    /// Runs `look` on a cached slice. None: it is not cached.
    pub(crate) fn look<T>(&self, slice: u64, look: impl FnOnce(&Slice) -> T) -> Option<T> {
        let found = self.slot(slice)?.load();
        let slice = found.as_ref()?;
        slice.touch();
        Some(look(slice))
    }

    /// What has to be done before a slice can be looked at; waits for who is
    /// loading it already.
    pub(crate) async fn missing(&self, slice: u64) -> Missing {
        std::future::poll_fn(|cx| {
            if let Some(missing) = self.try_missing(slice) {
                return Poll::Ready(missing);
            }
            self.loaded.push(cx.waker().clone());
            // After the push: whoever has loaded wakes afterwards.
            fence(Ordering::SeqCst);
            match self.try_missing(slice) {
                Some(missing) => Poll::Ready(missing),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn try_missing(&self, slice: u64) -> Option<Missing> {
        let mut state = self.state();
        if self.slot(slice).is_some_and(|slot| slot.load().is_some()) {
            return Some(Missing::Nothing);
        }
        let l1_index = self.geometry.l1_index_of_slice(slice);
        match state.l1.entries.get(in_memory(l1_index)).copied() {
            None | Some(0) => Some(Missing::Table),
            Some(l1_entry) if state.loading.insert(slice) => Some(Missing::Load { l1_entry }),
            Some(_) => None,
        }
    }

    /// Puts a slice that has been read into the cache.
    pub(crate) fn insert(&self, slice: u64, bytes: &[u8]) {
        debug_assert_eq!(bytes.len() as u64, self.geometry.slice_bytes());
        let mut state = self.state();
        self.make_room(&mut state);
        let loaded = Arc::new(Slice::new(slice, bytes));
        self.make_slot(slice).store(Some(Arc::clone(&loaded)));
        state.resident.push(loaded);
        self.end_loading(state, slice);
    }

    /// A slice could not be read.
    pub(crate) fn give_up(&self, slice: u64) {
        let state = self.state();
        self.end_loading(state, slice);
    }

    fn end_loading(&self, mut state: MutexGuard<'_, State>, slice: u64) {
        state.loading.remove(&slice);
        drop(state);
        // The change first, then the look for who waits.
        fence(Ordering::SeqCst);
        self.loaded.wake_all();
    }

    /// Throws slices away that nobody looked at lately, until one more fits.
    fn make_room(&self, state: &mut State) {
        // Twice around: the first time takes the marks away.
        let mut steps = 2 * state.resident.len();
        while state.resident.len() >= state.capacity && steps > 0 {
            steps -= 1;
            if state.hand >= state.resident.len() {
                state.hand = 0;
            }
            let slice = &state.resident[state.hand];
            let is_bound =
                state.dirty.contains(&slice.index) || state.writing.contains(&slice.index);
            let is_bound = is_bound && !planted::is(Fault::DirtySliceEvicted);
            if is_bound || slice.used.swap(false, Ordering::Relaxed) {
                state.hand += 1;
            } else {
                self.throw_away(state, state.hand);
            }
        }
    }

    fn throw_away(&self, state: &mut State, place: usize) {
        let slice = state.resident.swap_remove(place);
        if let Some(slot) = self.slot(slice.index) {
            slot.store(None);
        }
    }

    /// Throws away what nobody looked at since the last call.
    pub(crate) fn clean(&self) {
        let mut state = self.state();
        let mut place = 0;
        while place < state.resident.len() {
            let slice = &state.resident[place];
            let is_bound =
                state.dirty.contains(&slice.index) || state.writing.contains(&slice.index);
            if is_bound || slice.used.swap(false, Ordering::Relaxed) {
                place += 1;
            } else {
                self.throw_away(&mut state, place);
            }
        }
    }

    /// Changes entries of a cached slice. False: it is not cached, or its table
    /// is shared with a snapshot, and nothing has happened.
    pub(crate) fn change(
        &self,
        slice: u64,
        entries: impl IntoIterator<Item = (usize, RawEntry)>,
    ) -> bool {
        let mut state = self.state();
        let l1_index = in_memory(self.geometry.l1_index_of_slice(slice));
        let Some(found) = self.slot(slice).and_then(ArcSwapOption::load_full) else {
            return false;
        };
        if !state
            .l1
            .entries
            .get(l1_index)
            .is_some_and(|&entry| super::entry::is_copied(entry))
        {
            return false;
        }
        for (place, entry) in entries {
            found.set(&self.geometry, place, entry);
        }
        state.dirty.insert(slice);
        true
    }

    /// The L1 entry at an index; 0 behind the end of the table.
    pub(crate) fn l1_entry(&self, index: u64) -> u64 {
        let state = self.state();
        let entry = state.l1.entries.get(in_memory(index));
        entry.copied().unwrap_or(0)
    }

    /// Points an L1 entry somewhere else: at once for everybody, in the file
    /// with the next write-back.
    pub(crate) fn set_l1_entry(&self, index: u64, entry: u64) {
        let mut state = self.state();
        state.l1.entries[in_memory(index)] = entry;
        state.l1.dirty.insert(index);
    }

    /// As [`Tables::set_l1_entry`], for a table that is empty: one of its slices
    /// needs no reading.
    pub(crate) fn set_l1_entry_of_empty(&self, index: u64, entry: u64, slice: u64) {
        let mut state = self.state();
        self.make_room(&mut state);
        let words = (0..self.geometry.slice_words())
            .map(|_| AtomicU64::new(0))
            .collect();
        let empty = Arc::new(Slice::from_words(slice, words));
        self.make_slot(slice).store(Some(Arc::clone(&empty)));
        state.resident.push(empty);
        state.l1.entries[in_memory(index)] = entry;
        state.l1.dirty.insert(index);
    }

    /// Where the L1 table lies, and its entries.
    pub(crate) fn l1(&self) -> (u64, Vec<u64>) {
        let state = self.state();
        (state.l1.offset, state.l1.entries.clone())
    }

    pub(crate) fn l1_offset(&self) -> u64 {
        self.state().l1.offset
    }

    pub(crate) fn l1_len(&self) -> u64 {
        self.state().l1.entries.len() as u64
    }

    /// The L1 table has moved, and ends after `len` entries, those behind the
    /// old end being 0.
    pub(crate) fn move_l1(&self, offset: u64, len: u64) {
        let mut state = self.state();
        state.l1.offset = offset;
        state.l1.entries.resize(in_memory(len), 0);
        state.l1.dirty.retain(|&index| index < len);
    }

    /// Forgets every slice of a table, whatever it holds: the table is gone.
    pub(crate) fn forget_table(&self, l1_index: u64) {
        let per_table = self.geometry.slices_per_table();
        let slices = l1_index * per_table..(l1_index + 1) * per_table;
        let mut state = self.state();
        let mut place = 0;
        while place < state.resident.len() {
            if slices.contains(&state.resident[place].index) {
                self.throw_away(&mut state, place);
            } else {
                place += 1;
            }
        }
        state.dirty.retain(|slice| !slices.contains(slice));
    }

    /// How many slices have changes that are not in the file, and how many may
    /// be cached.
    pub(crate) fn dirty_count(&self) -> (usize, usize) {
        let state = self.state();
        (state.dirty.len(), state.capacity)
    }

    /// What a write-back has to write, as it is now. Must be followed by
    /// [`Tables::written`].
    pub(crate) fn take_dirty(&self) -> (Vec<DirtyL1Entry>, Vec<DirtySlice>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let l1_entry = |index: u64| state.l1.entries[in_memory(index)];
        let l1 = state
            .l1
            .dirty
            .iter()
            .map(|&index| DirtyL1Entry {
                index,
                entry: l1_entry(index),
            })
            .collect();
        let slices = state
            .dirty
            .iter()
            .filter_map(|&slice| {
                let found = self.slot(slice)?.load_full()?;
                Some(DirtySlice {
                    slice,
                    l1_entry: l1_entry(self.geometry.l1_index_of_slice(slice)),
                    bytes: found.to_bytes(),
                })
            })
            .collect();
        state.l1.dirty.clear();
        state.writing = std::mem::take(&mut state.dirty);
        (l1, slices)
    }

    /// A write-back has ended; after a failed one everything is to be written
    /// again.
    pub(crate) fn written(&self, l1: &[DirtyL1Entry], succeeded: bool) {
        let mut guard = self.state();
        let state = &mut *guard;
        let writing = std::mem::take(&mut state.writing);
        if !succeeded {
            state.dirty.extend(writing);
            let len = state.l1.entries.len() as u64;
            let again = l1.iter().map(|entry| entry.index);
            state.l1.dirty.extend(again.filter(|&index| index < len));
        }
    }
}

fn places(slice: u64) -> (usize, usize, usize) {
    let mask = |bits: u32| (1 << bits) - 1;
    (
        in_memory(slice >> (MIDDLE_BITS + LEAF_BITS)),
        in_memory((slice >> LEAF_BITS) & mask(MIDDLE_BITS)),
        in_memory(slice & mask(LEAF_BITS)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(extended: bool) -> Geometry {
        Geometry::new(16, extended, 4, 4096)
    }

    fn tables(slices: u64) -> Tables {
        let l1 = vec![super::super::entry::l1_entry(0x40000); 4];
        Tables::new(geometry(false), 0x30000, l1, slices * 4096)
    }

    /// Gives the slice a cached life, as a reader would.
    fn load(tables: &Tables, slice: u64) {
        assert!(matches!(
            tables.try_missing(slice),
            Some(Missing::Load { .. })
        ));
        tables.insert(slice, &[0; 4096]);
    }

    fn word(tables: &Tables, slice: u64) -> Option<u64> {
        tables.look(slice, |found| found.entry(&geometry(false), 0).word)
    }

    #[test]
    fn a_slice_is_loaded_once_and_found_without_a_lock() {
        let tables = tables(8);
        assert_eq!(word(&tables, 3), None);
        load(&tables, 3);
        assert_eq!(tables.try_missing(3), Some(Missing::Nothing));
        assert_eq!(word(&tables, 3), Some(0));
        // Four tables of sixteen slices, and nothing behind them.
        assert_eq!(tables.try_missing(64), Some(Missing::Table));
    }

    #[test]
    fn who_comes_while_a_slice_is_loaded_waits() {
        let tables = tables(8);
        assert!(matches!(tables.try_missing(5), Some(Missing::Load { .. })));
        assert_eq!(tables.try_missing(5), None);
        tables.give_up(5);
        load(&tables, 5);
    }

    #[test]
    fn changes_stay_until_they_are_written() {
        let tables = tables(2);
        load(&tables, 0);
        let changed = RawEntry { word: 7, bitmap: 0 };
        assert!(tables.change(0, [(0, changed)]));
        for slice in 1..20 {
            load(&tables, slice);
        }
        assert_eq!(word(&tables, 0), Some(7), "never thrown away while dirty");
        let (l1, slices) = tables.take_dirty();
        assert_eq!((l1.len(), slices.len()), (0, 1));
        assert_eq!(slices[0].bytes[..8], 7_u64.to_be_bytes());
        for slice in 20..40 {
            load(&tables, slice);
        }
        assert_eq!(word(&tables, 0), Some(7), "nor while it is being written");
        tables.written(&l1, false);
        assert_eq!(
            tables.take_dirty().1.len(),
            1,
            "a failed write counts for nothing"
        );
        tables.written(&l1, true);
        assert_eq!(tables.take_dirty().1.len(), 0);
        tables.written(&l1, true);
        for slice in 40..60 {
            load(&tables, slice);
        }
        assert_eq!(word(&tables, 0), None, "clean slices go");
    }

    #[test]
    fn what_nobody_looks_at_is_cleaned_away() {
        let tables = tables(8);
        load(&tables, 1);
        load(&tables, 2);
        tables.clean();
        assert_eq!(word(&tables, 2), Some(0), "new slices count as used");
        tables.clean();
        assert_eq!(word(&tables, 1), None);
        assert_eq!(word(&tables, 2), Some(0));
    }

    #[test]
    fn the_largest_mapping_has_a_slot_for_each_slice() {
        let geometry = Geometry::new(21, false, 4, 512);
        let l1_entries: u64 = (32 << 20) / 8;
        let last = l1_entries * geometry.slices_per_table() - 1;
        let tables = Tables::new(geometry, 0, Vec::new(), 1 << 20);
        assert!(tables.slot(last).is_none());
        assert!(tables.make_slot(last).load().is_none());
    }

    #[test]
    fn shared_tables_are_not_changed() {
        let tables = Tables::new(geometry(false), 0x30000, vec![0x40000], 1 << 20);
        load(&tables, 0);
        assert!(!tables.change(0, [(0, RawEntry { word: 7, bitmap: 0 })]));
        assert_eq!(word(&tables, 0), Some(0));
    }

    #[test]
    fn both_words_of_an_entry_change_as_one() {
        let geometry = geometry(true);
        let slice = Slice::new(0, &[0; 4096]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..20_000 {
                    let entry = RawEntry {
                        word: round,
                        bitmap: !round,
                    };
                    slice.set(&geometry, 9, entry);
                }
            });
            for _ in 0..20_000 {
                let entry = slice.entry(&geometry, 9);
                let is_whole = entry.bitmap == !entry.word;
                assert!(is_whole || entry == RawEntry::default(), "{entry:?}");
            }
        });
    }
}
