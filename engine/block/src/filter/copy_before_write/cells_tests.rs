//! Tests of [`cells`](super::cells) against a naive vector of states.
//!
//! They stand beside the file, not in it: the model crate includes that file with loom's atomics,
//! which work only inside a model.

use super::cells::{Cells, Close, Discarded, Run, Settled, Side, State, Tally};
use proptest::prelude::*;
use std::ops::Range;

/// More than three words, and the last one not full.
const COUNT: u64 = 55;

fn cells(count: u64) -> Cells {
    Cells::new(count).unwrap()
}

fn at(index: u64) -> usize {
    usize::try_from(index).unwrap()
}

/// Brings an *untouched* cluster to a state, by the ways there are.
fn bring(cells: &Cells, index: u64, state: State) {
    let save = |settled| {
        assert_eq!(cells.claim(index, 1), 1);
        assert_eq!(cells.publish(index, index + 1), settled);
    };
    match state {
        State::Untouched => {}
        State::Unwanted => assert_eq!(cells.discard(index), Discarded::Nothing),
        State::Saving => assert_eq!(cells.claim(index, 1), 1),
        State::SavingDiscarded => {
            bring(cells, index, State::Saving);
            assert_eq!(cells.discard(index), Discarded::BySaver);
        }
        State::Saved => save(Settled::Whole),
        State::Closing | State::Passed => {
            save(Settled::Whole);
            assert_eq!(cells.close(index), Close::Closed);
        }
        State::ClosingNoCopy | State::Lost => {
            bring(cells, index, State::Unwanted);
            assert_eq!(cells.close(index), Close::Closed);
        }
    }
    if state.is_open() {
        cells.pass(index);
    }
    assert_eq!(cells.state(index), state);
}

const STATES: [State; 9] = [
    State::Untouched,
    State::Unwanted,
    State::Saving,
    State::SavingDiscarded,
    State::Saved,
    State::Closing,
    State::ClosingNoCopy,
    State::Passed,
    State::Lost,
];

/// A cluster in the given state, between two that must not change.
fn between_neighbours(state: State, act: impl Fn(&Cells, u64)) -> State {
    let cells = cells(48);
    for index in [14, 16] {
        bring(&cells, index, State::Saving);
    }
    bring(&cells, 15, state);
    act(&cells, 15);
    assert_eq!(cells.state(14), State::Saving);
    assert_eq!(cells.state(16), State::Saving);
    cells.state(15)
}

#[test]
fn a_fresh_filter_is_untouched_and_takes_odd_sizes() {
    for count in [0, 1, 15, 16, 17, COUNT] {
        let cells = cells(count);
        assert_eq!(cells.len(), count);
        assert_eq!(cells.is_empty(), count == 0);
        assert_eq!(
            cells.tally(0, count, 4),
            Tally {
                untouched: count,
                untouched_groups: count.div_ceil(4),
                open_groups: 0
            }
        );
        assert_eq!(cells.next_untouched(0, count), (count > 0).then_some(0));
        assert_eq!(cells.claim(0, u64::MAX), count);
        assert_eq!(cells.next_untouched(0, count), None);
    }
}

#[test]
fn a_disk_too_large_for_memory_is_refused() {
    assert!(Cells::new(u64::MAX).is_none());
}

#[test]
fn the_unwanted_are_set_up_in_words_and_at_ragged_ends() {
    for range in [0..0, 5..5, 3..4, 0..16, 3..47, 16..32, 15..33, 0..COUNT] {
        let mut cells = cells(COUNT);
        cells.set_unwanted_range(range.start, range.end);
        let mut others = Cells::new_unwanted(COUNT).unwrap();
        others.set_untouched_range(range.start, range.end);
        for index in 0..COUNT {
            let (inside, outside) = (State::Unwanted, State::Untouched);
            let (state, other) = match range.contains(&index) {
                true => (inside, outside),
                false => (outside, inside),
            };
            assert_eq!(cells.state(index), state, "{index} of {range:?}");
            assert_eq!(others.state(index), other, "{index} of {range:?}");
        }
    }
}

#[test]
fn close_tells_the_writer_what_to_do_next() {
    for (from, found, to) in [
        (State::Untouched, Close::Untouched, State::Untouched),
        (State::Unwanted, Close::Closed, State::ClosingNoCopy),
        (State::Saving, Close::Saving, State::Saving),
        (
            State::SavingDiscarded,
            Close::Saving,
            State::SavingDiscarded,
        ),
        (State::Saved, Close::Closed, State::Closing),
        (State::Closing, Close::Closed, State::Closing),
        (State::ClosingNoCopy, Close::Closed, State::ClosingNoCopy),
        (State::Passed, Close::Open, State::Passed),
        (State::Lost, Close::Open, State::Lost),
    ] {
        let act = |cells: &Cells, index| assert_eq!(cells.close(index), found, "{from:?}");
        assert_eq!(between_neighbours(from, act), to);
    }
}

#[test]
fn discard_tells_who_discards_the_copy_and_never_reopens_the_source() {
    for (from, left, to) in [
        (State::Untouched, Discarded::Nothing, State::Unwanted),
        (State::Unwanted, Discarded::Nothing, State::Unwanted),
        (State::Saving, Discarded::BySaver, State::SavingDiscarded),
        (
            State::SavingDiscarded,
            Discarded::BySaver,
            State::SavingDiscarded,
        ),
        (State::Saved, Discarded::OnTarget, State::Unwanted),
        (State::Closing, Discarded::OnTarget, State::ClosingNoCopy),
        (
            State::ClosingNoCopy,
            Discarded::Nothing,
            State::ClosingNoCopy,
        ),
        (State::Passed, Discarded::OnTarget, State::Lost),
        (State::Lost, Discarded::Nothing, State::Lost),
    ] {
        let act = |cells: &Cells, index| assert_eq!(cells.discard(index), left, "{from:?}");
        assert_eq!(between_neighbours(from, act), to);
        assert!(from.side() == Side::Source || to.side() != Side::Source);
    }
}

#[test]
fn pass_is_for_closed_clusters_only() {
    for from in STATES {
        let passed =
            std::panic::catch_unwind(|| between_neighbours(from, |cells, index| cells.pass(index)));
        match from {
            State::Closing | State::Passed => assert_eq!(passed.unwrap(), State::Passed),
            State::ClosingNoCopy | State::Lost => assert_eq!(passed.unwrap(), State::Lost),
            _ => assert!(passed.is_err(), "{from:?}"),
        }
    }
}

#[test]
fn only_clusters_being_saved_are_published_or_unclaimed() {
    for from in STATES {
        let is_saving = matches!(from, State::Saving | State::SavingDiscarded);
        for settle in [Cells::publish, Cells::unclaim] {
            let settled = std::panic::catch_unwind(|| {
                between_neighbours(from, |cells, index| {
                    let _ = settle(cells, index, index + 1);
                })
            });
            assert_eq!(settled.is_ok(), is_saving, "{from:?}");
        }
    }
}

#[test]
fn the_saver_learns_which_runs_were_discarded() {
    for (settle, rest) in [
        (
            Cells::publish as fn(&Cells, u64, u64) -> Settled,
            State::Saved,
        ),
        (Cells::unclaim, State::Untouched),
    ] {
        let cells = cells(COUNT);
        assert_eq!(cells.claim(2, 40), 40);
        for index in [2, 3, 14, 15, 16, 17, 40] {
            assert_eq!(cells.discard(index), Discarded::BySaver);
        }
        let runs = vec![2..4, 14..18, 40..41];
        assert_eq!(settle(&cells, 2, 42), Settled::Discarded(runs.clone()));
        for index in 2..42 {
            let discarded = runs.iter().any(|run| run.contains(&index));
            let state = if discarded { State::Unwanted } else { rest };
            assert_eq!(cells.state(index), state, "{index}");
        }
        assert_eq!(
            cells.tally(0, 2, 1).untouched + cells.tally(42, COUNT, 1).untouched,
            15
        );
    }
}

#[test]
fn a_claim_ends_at_the_first_cluster_that_is_taken() {
    let cells = cells(COUNT);
    bring(&cells, 20, State::Saved);
    bring(&cells, 33, State::Unwanted);
    assert_eq!(cells.claim(20, 5), 0);
    assert_eq!(cells.claim(3, 0), 0);
    assert_eq!(cells.claim(3, 2), 2);
    assert_eq!(cells.claim(5, 100), 15);
    assert_eq!(cells.claim(21, 100), 12);
    assert_eq!(cells.claim(34, 100), COUNT - 34);
    assert_eq!(cells.claim(COUNT, 1), 0);
    assert_eq!(cells.claim(u64::MAX, u64::MAX), 0);
    assert_eq!(cells.next_untouched(0, COUNT), Some(0));
    assert_eq!(cells.next_untouched(3, COUNT), None);
}

#[test]
#[should_panic(expected = "block 17 of 17")]
fn a_cluster_behind_the_end_is_refused_though_its_word_exists() {
    let _ = cells(17).state(17);
}

#[test]
#[should_panic(expected = "blocks 0..18 of 17")]
fn a_range_behind_the_end_is_refused() {
    cells(17).all_open(0, 18);
}

/// One random step on a range. Its end may be behind the disk's.
#[derive(Clone, Debug)]
enum Step {
    Claim(u64, u64),
    Publish,
    Unclaim,
    Close(u64),
    Pass(u64),
    Discard(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..COUNT, 0..24_u64).prop_map(|(first, count)| Step::Claim(first, count)),
        2 => Just(Step::Publish),
        1 => Just(Step::Unclaim),
        4 => (0..COUNT).prop_map(Step::Close),
        4 => (0..COUNT).prop_map(Step::Pass),
        2 => (0..COUNT).prop_map(Step::Discard),
    ];
    prop::collection::vec(step, 0..120)
}

/// What the cells should be: a vector of states, and the claims not yet settled.
struct Naive {
    states: Vec<State>,
    claims: Vec<Range<u64>>,
}

impl Naive {
    fn state(&mut self, index: u64) -> &mut State {
        &mut self.states[at(index)]
    }

    fn claim(&mut self, first: u64, count_max: u64) -> u64 {
        let end = (first + count_max).min(COUNT);
        let free = |index: &u64| self.states[at(*index)] == State::Untouched;
        let claimed = first + (first..end).take_while(free).count() as u64;
        for index in first..claimed {
            *self.state(index) = State::Saving;
        }
        if claimed > first {
            self.claims.push(first..claimed);
        }
        claimed - first
    }

    /// The states after the oldest claim ended, and its discarded clusters one by one.
    fn settle(&mut self, claim: &Range<u64>, state: State) -> Vec<u64> {
        let mut discarded = Vec::new();
        for index in claim.clone() {
            *self.state(index) = if *self.state(index) == State::Saving {
                state
            } else {
                discarded.push(index);
                State::Unwanted
            };
        }
        discarded
    }

    fn run(&self, from: u64, end: u64) -> Run {
        let states = &self.states[at(from)..at(end)];
        let side = states[0].side();
        let count = states
            .iter()
            .take_while(|state| state.side() == side)
            .count() as u64;
        Run {
            side,
            end: from + count,
        }
    }
}

fn clusters_of(settled: &Settled) -> Vec<u64> {
    match settled {
        Settled::Whole => Vec::new(),
        Settled::Discarded(runs) => {
            assert!(
                runs.windows(2).all(|pair| pair[0].end < pair[1].start),
                "not joined"
            );
            runs.iter().cloned().flatten().collect()
        }
    }
}

fn play(cells: &Cells, naive: &mut Naive, step: &Step) {
    match *step {
        Step::Claim(first, count) => {
            assert_eq!(cells.claim(first, count), naive.claim(first, count));
        }
        Step::Publish if !naive.claims.is_empty() => {
            let claim = naive.claims.remove(0);
            let settled = cells.publish(claim.start, claim.end);
            assert_eq!(clusters_of(&settled), naive.settle(&claim, State::Saved));
        }
        Step::Unclaim if !naive.claims.is_empty() => {
            let claim = naive.claims.remove(0);
            let settled = cells.unclaim(claim.start, claim.end);
            assert_eq!(
                clusters_of(&settled),
                naive.settle(&claim, State::Untouched)
            );
        }
        Step::Publish | Step::Unclaim => {}
        Step::Close(index) => {
            let closed = cells.close(index) == Close::Closed;
            match *naive.state(index) {
                State::Saved => *naive.state(index) = State::Closing,
                State::Unwanted => *naive.state(index) = State::ClosingNoCopy,
                State::Closing | State::ClosingNoCopy => {}
                _ => assert!(!closed),
            }
        }
        Step::Pass(index) => match *naive.state(index) {
            State::Closing => {
                cells.pass(index);
                *naive.state(index) = State::Passed;
            }
            State::ClosingNoCopy => {
                cells.pass(index);
                *naive.state(index) = State::Lost;
            }
            _ => {}
        },
        Step::Discard(index) => {
            let _ = cells.discard(index);
            *naive.state(index) = match *naive.state(index) {
                State::Untouched | State::Saved | State::Unwanted => State::Unwanted,
                State::Saving | State::SavingDiscarded => State::SavingDiscarded,
                State::Closing | State::ClosingNoCopy => State::ClosingNoCopy,
                State::Passed | State::Lost => State::Lost,
            };
        }
    }
}

/// Everything that can be asked about every range that begins at `from`.
fn compare_from(cells: &Cells, naive: &Naive, from: u64) {
    for end in from..=COUNT {
        let states = &naive.states[at(from)..at(end)];
        let count = |wanted: &dyn Fn(State) -> bool| {
            states.iter().filter(|state| wanted(**state)).count() as u64
        };
        let untouched = |state| state == State::Untouched;
        for group in [1, 2, 4, 8, 16] {
            if !from.is_multiple_of(group) {
                break;
            }
            let groups = |wanted: &dyn Fn(State) -> bool| {
                let groups = states.chunks(at(group));
                groups
                    .filter(|group| group.iter().any(|state| wanted(*state)))
                    .count() as u64
            };
            let tally = Tally {
                untouched: count(&untouched),
                untouched_groups: groups(&untouched),
                open_groups: groups(&State::is_open),
            };
            assert_eq!(cells.tally(from, end, group), tally);
        }
        let all_open = count(&State::is_open) == end - from;
        assert_eq!(cells.all_open(from, end), all_open);
        let touched = states.iter().position(|state| !untouched(*state));
        let touched = touched.map_or(end, |at| from + at as u64);
        assert_eq!(cells.next_touched(from, end), touched);
        let next = states
            .iter()
            .position(|state| untouched(*state))
            .map(|at| from + at as u64);
        assert_eq!(cells.next_untouched(from, end), next);
        if from < end {
            assert_eq!(cells.next_run(from, end), naive.run(from, end));
        }
    }
}

fn compare(cells: &Cells, naive: &Naive) {
    for (index, state) in naive.states.iter().enumerate() {
        assert_eq!(cells.state(index as u64), *state, "cluster {index}");
    }
    for from in 0..=COUNT {
        compare_from(cells, naive, from);
    }
}

proptest! {
    #[test]
    fn the_cells_are_a_vector_of_states(
        unwanted in (0..=COUNT, 0..=COUNT),
        is_unwanted_at_first: bool,
        steps in steps(),
    ) {
        let (first, end) = (unwanted.0.min(unwanted.1), unwanted.0.max(unwanted.1));
        let cells = if is_unwanted_at_first {
            let mut cells = Cells::new_unwanted(COUNT).unwrap();
            cells.set_untouched_range(0, first);
            cells.set_untouched_range(end, COUNT);
            cells
        } else {
            let mut cells = cells(COUNT);
            cells.set_unwanted_range(first, end);
            cells
        };
        let states = (0..COUNT).map(|index| {
            if (first..end).contains(&index) { State::Unwanted } else { State::Untouched }
        });
        let mut naive = Naive { states: states.collect(), claims: Vec::new() };
        for step in &steps {
            play(&cells, &mut naive, step);
        }
        compare(&cells, &naive);
    }

    #[test]
    fn every_mixture_of_states_is_scanned_right(
        states in prop::collection::vec(prop::sample::select(STATES.to_vec()), at(COUNT)),
    ) {
        let cells = cells(COUNT);
        for (index, state) in states.iter().enumerate() {
            bring(&cells, index as u64, *state);
        }
        compare(&cells, &Naive { states, claims: Vec::new() });
    }

    #[test]
    fn long_runs_are_found_over_many_words(
        borders in prop::collection::vec((0..COUNT, prop::sample::select(STATES.to_vec())), 0..5),
    ) {
        let cells = cells(COUNT);
        let mut states = vec![State::Untouched; at(COUNT)];
        for (from, state) in borders {
            states[at(from)..].fill(state);
        }
        for (index, state) in states.iter().enumerate() {
            bring(&cells, index as u64, *state);
        }
        compare(&cells, &Naive { states, claims: Vec::new() });
    }
}

#[test]
fn what_is_settled_is_told_from_what_is_not() {
    let cells = cells(COUNT);
    let state = |index: u64| STATES[at(index * 5 % 9)];
    (0..COUNT).for_each(|index| bring(&cells, index, state(index)));
    let is_settled = |index: &u64| {
        !matches!(
            state(*index),
            State::Untouched | State::Saving | State::SavingDiscarded
        )
    };
    for from in 0..=COUNT {
        for end in from..=COUNT {
            let unsettled = (from..end).find(|index| !is_settled(index));
            assert_eq!(cells.next_settled(from, end), (from..end).find(is_settled));
            assert_eq!(cells.next_unsettled(from, end), unsettled);
        }
    }
}
