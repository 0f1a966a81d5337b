//! The copy states of a copy-before-write filter: one cell per block.
//!
//! A cell says whether a block's old data has been saved, and whether the guest may overwrite
//! the source. Every change is one compare-and-swap, and every method tells what it found, so
//! that callers match on it.
//!
//! ```text
//!  to be saved:      untouched <-> saving -> saved --> closing ----------> passed
//!                        |            |        |          |                  |
//!  a client's discard:   |   saving, discarded |          |                  |
//!                        v            v        v          v                  v
//!  not to be saved:      +-------> unwanted <--+ --> closing, no copy -----> lost
//! ```
//!
//! # Encoding
//!
//! A cell is four bits, sixteen cells are a word. In memory that nobody has touched yet every cell
//! is what most of them are at first: *untouched*, or, where a bitmap says what is to be saved,
//! *unwanted*; words are stored with the difference to that. So the cells of a large disk of which
//! little is wanted take next to no memory, and no time to set up.
//!
//! | bits | state | | bits | state |
//! | --- | --- | --- | --- | --- |
//! | `0000` | untouched | | `0100` | saved |
//! | `0001` | unwanted | | `1000` | closing |
//! | `0010` | saving | | `1001` | closing, no copy |
//! | `0011` | saving, discarded | | `1100` | passed |
//! | | | | `1101` | lost |
//!
//! Bit 3: a guest write has swung the cell, the source is not to be read any more. Bit 0: there is
//! no saved copy, and there will be none. Bit 2: with bit 3, guest writes are free to go; without,
//! the old data is safe, on the target or in memory. Bit 1: with neither of them, a save is in
//! flight.
//!
//! # Invariants
//!
//! - A cell never goes back from bit 3 set to bit 3 clear, nor from bit 0 set to bit 0 clear.
//! - Whoever moves a cell from *untouched* to *saving* is its only saver, and alone moves it on
//!   with [`Cells::publish`] or [`Cells::unclaim`].
//!
//! # What this file does not do
//!
//! It does not move data, does not wait (neither for a save nor for readers), and cannot see
//! whether a guest write keeps the order that makes it safe: [`Cells::close`], then scan the
//! register after a fence, then wait for the readers found, then [`Cells::pass`], then write.

use crate::sync::{AtomicU64, Ordering, zeroed_words};
use std::ops::Range;

const CELLS_PER_WORD: u64 = 16;
const CELL_BITS: u64 = 4;
const CELL: u64 = 0b1111;

/// Bit 0 of every cell of a word. A pattern of one cell times this is the pattern in all cells.
const ONES: u64 = 0x1111_1111_1111_1111;

/// Bit 0 of the first cell of every group of 1, 2, 4, 8, 16 cells.
const FIRST_OF_GROUPS: [u64; 5] = [
    ONES,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
];

const NO_COPY: u64 = ONES;
const SAVING: u64 = 0b0010 * ONES;
const OPEN: u64 = 0b0100 * ONES;
const CLOSED: u64 = 0b1000 * ONES;

/// The copy state of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The old data is on the source only, and nobody has begun to save it.
    Untouched = 0b0000,
    /// The old data is on the source and need not be saved.
    Unwanted = 0b0001,
    /// Somebody is saving the old data.
    Saving = 0b0010,
    /// Somebody is saving the old data, which a client has discarded meanwhile.
    SavingDiscarded = 0b0011,
    /// The old data is safe, and the source still holds it too.
    Saved = 0b0100,
    /// The old data is safe, and a guest write is about to overwrite the source.
    Closing = 0b1000,
    /// There is no copy, and a guest write is about to overwrite the source.
    ClosingNoCopy = 0b1001,
    /// The old data is safe, and guest writes go straight to the source.
    Passed = 0b1100,
    /// There is no copy, and guest writes go straight to the source.
    Lost = 0b1101,
}

impl State {
    fn of_bits(bits: u64) -> Self {
        match bits {
            0b0000 => Self::Untouched,
            0b0001 => Self::Unwanted,
            0b0010 => Self::Saving,
            0b0011 => Self::SavingDiscarded,
            0b0100 => Self::Saved,
            0b1000 => Self::Closing,
            0b1001 => Self::ClosingNoCopy,
            0b1100 => Self::Passed,
            0b1101 => Self::Lost,
            _ => unreachable!("a cell holds only what this file stores"),
        }
    }

    fn bits(self) -> u64 {
        u64::from(self as u8)
    }

    /// Where a snapshot reader finds the old data.
    pub fn side(self) -> Side {
        Side::of_bits(self.bits())
    }

    /// Whether guest writes may go straight to the source.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Passed | Self::Lost)
    }
}

/// Where a snapshot reader finds the old data of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// On the source, for as long as the reader is in the register.
    Source,
    /// In the saved copy.
    Copy,
    /// Nowhere: the guest may have overwritten it, and it was not saved.
    Gone,
}

impl Side {
    fn of_bits(bits: u64) -> Self {
        match (bits & 0b1000, bits & 0b0001) {
            (0, _) => Self::Source,
            (_, 0) => Self::Copy,
            _ => Self::Gone,
        }
    }

    /// The cells of `word` that are on another side: bit 3 of each.
    fn others(self, word: u64) -> u64 {
        // Brings bit 0 under bit 3, in all sixteen cells at once.
        let no_copy = word << 3;
        CLOSED
            & match self {
                Self::Source => word,
                Self::Copy => !word | no_copy,
                Self::Gone => !word | !no_copy,
            }
    }
}

/// What a guest write found when it wanted to close a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Close {
    /// The block is *closing*, swung by this call or by another write. The caller must scan the
    /// register after a fence, wait for the readers found, and [`Cells::pass`] the block; that
    /// another write had swung it does not say that this other write has waited.
    Closed,
    /// The block is *passed* or *lost*: nothing is left to do.
    Open,
    /// The block must be claimed and saved first.
    Untouched,
    /// Somebody is saving the block: wait for that, then close again.
    Saving,
}

/// What became of blocks whose save has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    /// All of them as the saver asked.
    Whole,
    /// These, in order, were discarded by a client while the save was in flight and are *unwanted*
    /// now, the others as the saver asked. The saver must discard what it wrote of them.
    Discarded(Vec<Range<u64>>),
}

/// What a client's discard of a block leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Discarded {
    /// Nothing: no copy had been made, or it is discarded already.
    Nothing,
    /// The target holds a copy: the caller must discard it.
    OnTarget,
    /// A save is in flight: its saver will discard what it writes.
    BySaver,
}

/// Consecutive blocks on which a snapshot reader does one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the old data of all of them is.
    pub side: Side,
    /// The first block that is not part of the run.
    pub end: u64,
}

/// How many blocks of a range are in the states which queries report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Still to be saved and not claimed.
    pub untouched: u64,
    /// Groups with such a one.
    pub untouched_groups: u64,
    /// Groups with one that is *passed* or *lost*.
    pub open_groups: u64,
}

/// Sixteen cells, as their states are encoded.
#[derive(Clone, Copy)]
struct Word<'a> {
    stored: &'a AtomicU64,
    /// What zeroes stand for: see the module's Encoding.
    at_first: u64,
}

impl Word<'_> {
    fn load(self, ordering: Ordering) -> u64 {
        self.stored.load(ordering) ^ self.at_first
    }

    /// Swaps the cells for what `after` makes of them, and returns what they were. When nothing
    /// changes it stores nothing: a word that all shards look at is not torn from their caches
    /// for that.
    fn change(self, after: impl Fn(u64) -> u64) -> u64 {
        let change = |stored: u64| {
            let before = stored ^ self.at_first;
            let after = after(before);
            (after != before).then_some(after ^ self.at_first)
        };
        // Release: the save is visible before *saved*, the end of the readers before *passed*.
        // Acquire: whoever moves a cell on comes after what brought it there.
        let swapped = self
            .stored
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        let (Ok(stored) | Err(stored)) = swapped;
        stored ^ self.at_first
    }
}

/// The copy states of all blocks of a disk.
#[derive(Debug)]
pub struct Cells {
    /// Shared by all shards, changed by compare-and-swap only. Cells behind `count` in the last
    /// word stay *untouched*.
    words: Box<[AtomicU64]>,
    /// Fixed.
    count: u64,
    /// Fixed: what a word of zeroes stands for.
    at_first: u64,
}

/// The part of a range that lies in one word.
struct Piece<'a> {
    word: Word<'a>,
    /// Index of the word's first cell.
    base: u64,
    /// All bits of the cells that belong to the range.
    cells: u64,
}

impl Piece<'_> {
    /// The index of the lowest cell that has a bit in `marks`.
    fn first_of(&self, marks: u64) -> u64 {
        self.base + u64::from(marks.trailing_zeros()) / CELL_BITS
    }
}

impl Cells {
    /// Cells for `count` blocks, all *untouched*. None when there is not so much memory.
    pub fn new(count: u64) -> Option<Self> {
        Self::all(count, 0)
    }

    /// Cells for `count` blocks, all *unwanted*. None when there is not so much memory.
    pub fn new_unwanted(count: u64) -> Option<Self> {
        Self::all(count, NO_COPY)
    }

    fn all(count: u64, at_first: u64) -> Option<Self> {
        let words = usize::try_from(count.div_ceil(CELLS_PER_WORD)).ok()?;
        Some(Self {
            words: zeroed_words(words)?,
            count,
            at_first,
        })
    }

    /// How many blocks there are.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there is no block at all.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The state of a block. A snapshot reader asks after it has entered the register.
    pub fn state(&self, index: u64) -> State {
        let (word, shift) = self.cell(index);
        // Acquire, here and in the scans of readers and writers: who sees *saved*, *closing* or
        // *passed* goes on to the copy or to the source, and must come after the save and after
        // the readers waited for.
        State::of_bits((word.load(Ordering::Acquire) >> shift) & CELL)
    }

    /// Sets up blocks `first..end` as *untouched*. Exclusive, because a filter that is visible
    /// has other ways to get there. In slices, if the range is large.
    pub fn set_untouched_range(&mut self, first: u64, end: u64) {
        self.set_up(first, end, 0);
    }

    /// Sets up blocks `first..end` as *unwanted*, in the same way.
    pub fn set_unwanted_range(&mut self, first: u64, end: u64) {
        self.set_up(first, end, NO_COPY);
    }

    fn set_up(&mut self, first: u64, end: u64, cells: u64) {
        for piece in self.pieces(first, end) {
            // Nobody else can see the cells yet.
            piece
                .word
                .change(|word| (word & !piece.cells) | (cells & piece.cells));
        }
    }

    /// Claims consecutive *untouched* blocks from `first` on, `count_max` at most, and returns
    /// how many. They are *saving* now and the caller's to save; it must end each of them with
    /// [`Cells::publish`] or [`Cells::unclaim`].
    #[must_use]
    pub fn claim(&self, first: u64, count_max: u64) -> u64 {
        let mut count = 0;
        let end = first.saturating_add(count_max).min(self.count);
        for piece in self.pieces(first.min(end), end) {
            let claimed = claim_piece(&piece);
            count += u64::from(claimed.count_ones());
            if claimed != piece.cells & ONES {
                break;
            }
        }
        count
    }

    /// The saver of blocks `first..end` has written their old data: *saving* to *saved*.
    ///
    /// To be called only while the snapshot is not broken, and after the data is where a snapshot
    /// reader would look for it.
    pub fn publish(&self, first: u64, end: u64) -> Settled {
        self.settle(first, end, |word, cells| {
            // In one step for all cells: 0010 moves up to 0100, 0011 loses its bit 1.
            let discarded = word & cells & NO_COPY;
            (word & !cells) | ((!word & cells & NO_COPY) << 2) | discarded
        })
    }

    /// The saver of blocks `first..end` gives up, or has not begun: *saving* to *untouched*.
    pub fn unclaim(&self, first: u64, end: u64) -> Settled {
        self.settle(first, end, |word, cells| word & !(cells & SAVING))
    }

    /// A guest write wants to overwrite a block: *saved* to *closing*, *unwanted* to *closing,
    /// no copy*.
    pub fn close(&self, index: u64) -> Close {
        // When the cell was swung already, this is a load, not a store. The fence of the scan
        // orders both: a reader that fences later sees the cell as we do, or newer.
        let before = self.change(index, |state| match state {
            State::Saved => State::Closing,
            State::Unwanted => State::ClosingNoCopy,
            other => other,
        });
        match before {
            State::Saved | State::Unwanted | State::Closing | State::ClosingNoCopy => Close::Closed,
            State::Passed | State::Lost => Close::Open,
            State::Untouched => Close::Untouched,
            State::Saving | State::SavingDiscarded => Close::Saving,
        }
    }

    /// The readers that a closed block was waiting for have left: *closing* to *passed*,
    /// *closing, no copy* to *lost*. The caller's scan came after its [`Cells::close`].
    pub fn pass(&self, index: u64) {
        self.change(index, |state| match state {
            State::Closing => State::Passed,
            State::ClosingNoCopy => State::Lost,
            State::Passed | State::Lost => state,
            _ => panic!("block {index} is {state:?}: it was not closed before it was passed"),
        });
    }

    /// A fleecing client will not read a block any more.
    pub fn discard(&self, index: u64) -> Discarded {
        let before = self.change(index, |state| match state {
            // A save would be for nobody.
            State::Untouched => State::Unwanted,
            // The saver is writing to the target just now; a discard beside it could be overtaken.
            State::Saving => State::SavingDiscarded,
            // The source holds the data too, so that readers who came before keep what they read.
            State::Saved => State::Unwanted,
            // Not *unwanted*: its writer may have scanned the register. A reader that then came
            // and was sent to the source would read beside the write.
            State::Closing => State::ClosingNoCopy,
            State::Passed => State::Lost,
            State::Unwanted | State::SavingDiscarded | State::ClosingNoCopy | State::Lost => state,
        });
        match before {
            State::Saved | State::Closing | State::Passed => Discarded::OnTarget,
            State::Saving | State::SavingDiscarded => Discarded::BySaver,
            State::Untouched | State::Unwanted | State::ClosingNoCopy | State::Lost => {
                Discarded::Nothing
            }
        }
    }

    /// A block need not be saved: *untouched* to *unwanted*.
    pub fn leave_out(&self, index: u64) {
        self.change(index, |state| match state {
            State::Untouched => State::Unwanted,
            other => other,
        });
    }

    /// Whether all blocks `first..end` are *passed* or *lost*, so that a guest write need not
    /// stop here. One load for sixteen blocks.
    pub fn all_open(&self, first: u64, end: u64) -> bool {
        self.pieces(first, end).all(|piece| {
            let open = open_cells(piece.word.load(Ordering::Acquire));
            open & piece.cells == CLOSED & piece.cells
        })
    }

    /// The first *untouched* block of `from..end`.
    pub fn next_untouched(&self, from: u64, end: u64) -> Option<u64> {
        self.pieces(from, end).find_map(|piece| {
            // Relaxed: where to look next. Only the claim decides.
            let untouched = untouched_cells(piece.word.load(Ordering::Relaxed)) & piece.cells;
            (untouched != 0).then(|| piece.first_of(untouched))
        })
    }

    /// The first block of `from..end` that is not *untouched*; `end` if all are.
    pub fn next_touched(&self, from: u64, end: u64) -> u64 {
        let mut pieces = self.pieces(from, end);
        let found = pieces.find_map(|piece| {
            // Relaxed: as above.
            let untouched = untouched_cells(piece.word.load(Ordering::Relaxed));
            let touched = piece.cells & ONES & !untouched;
            (touched != 0).then(|| piece.first_of(touched))
        });
        found.unwrap_or(end)
    }

    /// The first block of `from..end` of which nothing is left to save: it is saved, or need
    /// not be.
    pub fn next_settled(&self, from: u64, end: u64) -> Option<u64> {
        self.pieces(from, end).find_map(|piece| {
            // Acquire: what is seen *saved* is on the target, or was put into memory before.
            let unsettled = unsettled_cells(piece.word.load(Ordering::Acquire));
            let settled = piece.cells & ONES & !unsettled;
            (settled != 0).then(|| piece.first_of(settled))
        })
    }

    /// The first block of `from..end` that is still to be saved, or being saved.
    pub fn next_unsettled(&self, from: u64, end: u64) -> Option<u64> {
        self.pieces(from, end).find_map(|piece| {
            let word = piece.word.load(Ordering::Acquire);
            let unsettled = unsettled_cells(word) & piece.cells;
            (unsettled != 0).then(|| piece.first_of(unsettled))
        })
    }

    /// The longest run of blocks from `from` on, and before `end`, whose old data a snapshot
    /// reader finds on the same side. `from..end` is not empty.
    pub fn next_run(&self, from: u64, end: u64) -> Run {
        assert!(from < end, "a run has at least one block");
        let (_, shift) = self.cell(from);
        let mut found = None;
        for piece in self.pieces(from, end) {
            // The first word is loaded once, for the side and for the run: between two loads the
            // cell could change sides.
            let word = piece.word.load(Ordering::Acquire);
            let side = *found.get_or_insert_with(|| Side::of_bits((word >> shift) & CELL));
            let others = side.others(word) & piece.cells;
            if others != 0 {
                return Run {
                    side,
                    end: piece.first_of(others),
                };
            }
        }
        Run {
            side: found.expect("the range is not empty"),
            end,
        }
    }

    /// Counts states in `first..end`, for queries, also by groups of `group` cells: a power of two,
    /// 16 at most, which divides `first`. In slices, if the range is large; each word is looked at
    /// once, so that the sums are exact only while nothing changes.
    pub fn tally(&self, first: u64, end: u64, group: u64) -> Tally {
        assert!(group.is_power_of_two() && group <= CELLS_PER_WORD && first.is_multiple_of(group));
        let count = |marks: u64| u64::from(marks.count_ones());
        let mut tally = Tally::default();
        for piece in self.pieces(first, end) {
            // Relaxed: a number for a person, after which nobody touches data.
            let word = piece.word.load(Ordering::Relaxed);
            let untouched = untouched_cells(word) & piece.cells;
            tally.untouched += count(untouched);
            tally.untouched_groups += count(first_of_groups(untouched, group));
            tally.open_groups += count(first_of_groups(
                (open_cells(word) & piece.cells) >> 3,
                group,
            ));
        }
        tally
    }

    /// Ends the saves of `first..end` as `after` says (of a word and the range's cells in it), and
    /// reports which of them a client had discarded.
    fn settle(&self, first: u64, end: u64, after: impl Fn(u64, u64) -> u64) -> Settled {
        let mut runs = Vec::new();
        for piece in self.pieces(first, end) {
            let before = piece.word.change(|word| {
                let not_discarded = word & !NO_COPY;
                assert!(
                    not_discarded & piece.cells == SAVING & piece.cells,
                    "a block of {first}..{end} is not being saved"
                );
                after(word, piece.cells)
            });
            push_runs(&mut runs, piece.base, before & piece.cells & NO_COPY);
        }
        if runs.is_empty() {
            Settled::Whole
        } else {
            Settled::Discarded(runs)
        }
    }

    /// Moves one cell on, and returns the state that it was in.
    fn change(&self, index: u64, next: impl Fn(State) -> State) -> State {
        let (word, shift) = self.cell(index);
        let state_in = |word: u64| State::of_bits((word >> shift) & CELL);
        let before = word.change(|word| {
            let after = next(state_in(word));
            (word & !(CELL << shift)) | (after.bits() << shift)
        });
        state_in(before)
    }

    fn cell(&self, index: u64) -> (Word<'_>, u64) {
        assert!(index < self.count, "block {index} of {}", self.count);
        let word = self.word(index / CELLS_PER_WORD);
        (word, index % CELLS_PER_WORD * CELL_BITS)
    }

    fn word(&self, index: u64) -> Word<'_> {
        let index = usize::try_from(index).expect("the words of all cells are in memory");
        Word {
            stored: &self.words[index],
            at_first: self.at_first,
        }
    }

    fn pieces(&self, first: u64, end: u64) -> impl Iterator<Item = Piece<'_>> {
        assert!(
            first <= end && end <= self.count,
            "blocks {first}..{end} of {}",
            self.count
        );
        let words = first / CELLS_PER_WORD..end.div_ceil(CELLS_PER_WORD);
        words.map(move |index| {
            let base = index * CELLS_PER_WORD;
            // From the range's first cell up, without those above its last one.
            let from = u64::MAX << (first.saturating_sub(base) * CELL_BITS);
            let above = (base + CELLS_PER_WORD).saturating_sub(end) * CELL_BITS;
            let cells = from & (u64::MAX >> above);
            Piece {
                word: self.word(index),
                base,
                cells,
            }
        })
    }
}

/// The *untouched* cells of a word: bit 0 of each.
///
/// Folds the four bits of every cell onto its bit 0 with three shifts. What a shift brings in from
/// the cell above lands in bits 1 to 3, which the mask takes away; so the answer is exact, unlike
/// that of the usual trick with a subtraction, whose borrow may reach the next cell.
fn untouched_cells(word: u64) -> u64 {
    !(word | word >> 1 | word >> 2 | word >> 3) & ONES
}

/// The *untouched* cells of a word and those that are being saved: bit 0 of each. Of the others
/// each has bit 2 or 3, or is *unwanted*, whose bits are those of [`NO_COPY`] alone.
fn unsettled_cells(word: u64) -> u64 {
    let (bit_1, bits_2_and_3) = (word >> 1, word >> 2 | word >> 3);
    !bits_2_and_3 & (!word | bit_1) & ONES
}

/// The *passed* and *lost* cells of a word: bit 3 of each. They alone have bits 2 and 3.
fn open_cells(word: u64) -> u64 {
    word & ((word & OPEN) << 1)
}

/// Of marks in bit 0 of cells: for each group of `group` cells that has one, a mark in the group's
/// first cell.
fn first_of_groups(mut marks: u64, group: u64) -> u64 {
    let mut cells = 1;
    while cells < group {
        marks |= marks >> (cells * CELL_BITS);
        cells *= 2;
    }
    marks & FIRST_OF_GROUPS[group.ilog2() as usize]
}

/// Claims the leading *untouched* cells of a piece; bit 0 of each that it got.
fn claim_piece(piece: &Piece<'_>) -> u64 {
    let claimable = |word: u64| {
        let wanted = piece.cells & ONES;
        let taken = wanted & !untouched_cells(word);
        // All bits below the lowest cell that is taken; all bits there are when none is.
        let below = (taken & taken.wrapping_neg()).wrapping_sub(1);
        wanted & below
    };
    // The swap succeeds on a word whose cells were untouched at that very moment: nobody else can
    // have claimed them too.
    claimable(piece.word.change(|word| word | claimable(word) << 1))
}

/// Adds the cells marked in `marks` (bit 0 of each) of the word at `base`, joined to runs.
fn push_runs(runs: &mut Vec<Range<u64>>, base: u64, mut marks: u64) {
    while marks != 0 {
        let index = base + u64::from(marks.trailing_zeros()) / CELL_BITS;
        match runs.last_mut() {
            Some(run) if run.end == index => run.end = index + 1,
            _ => runs.push(index..index + 1),
        }
        marks &= marks - 1;
    }
}
