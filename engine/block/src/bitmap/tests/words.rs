//! Words against a `Vec<bool>`, at widths that give one to many levels.

use proptest::prelude::*;

use crate::bitmap::words::Words;

/// One call, on a range given in bits.
#[derive(Debug, Clone, Copy)]
enum Step {
    Mark(u64, u64),
    MarkLeaf(u64, u64),
    Clear(u64, u64),
}

fn step(bits: u64) -> impl Strategy<Value = Step> {
    let place = || (0..bits + 70, prop_oneof![0..8_u64, 0..bits + 70]);
    prop_oneof![
        3 => place().prop_map(|(from, len)| Step::Mark(from, from + len)),
        1 => (0..bits / 2 + 2, any::<u64>()).prop_map(|(index, mask)| Step::MarkLeaf(index, mask)),
        3 => place().prop_map(|(from, len)| Step::Clear(from, from + len)),
    ]
}

/// Sets a range of the model; says how many bits turned.
fn turn(model: &mut [bool], range: impl Iterator<Item = u64>, value: bool) -> u64 {
    range.fold(0, |turned, index| {
        match model.get_mut(usize::try_from(index).unwrap()) {
            Some(bit) => turned + u64::from(std::mem::replace(bit, value) != value),
            None => turned,
        }
    })
}

fn apply<const WIDTH: u64>(words: &Words<WIDTH>, model: &mut [bool], step: Step) {
    let (turned, expected) = match step {
        Step::Mark(from, to) => (words.mark_range(from, to), turn(model, from..to, true)),
        Step::Clear(from, to) => (words.clear_range(from, to), turn(model, from..to, false)),
        Step::MarkLeaf(index, mask) => {
            let wanted = (0..WIDTH).filter(|bit| mask >> bit & 1 == 1);
            let wanted = wanted.map(|bit| index * WIDTH + bit);
            (words.mark_leaf(index, mask), turn(model, wanted, true))
        }
    };
    assert_eq!(turned, expected, "{step:?}");
}

fn naive_next(model: &[bool], from: u64, to: u64, value: bool) -> Option<u64> {
    let to = to.min(model.len() as u64);
    (from..to).find(|&index| model[usize::try_from(index).unwrap()] == value)
}

fn compare<const WIDTH: u64>(words: &Words<WIDTH>, model: &[bool], from: u64, to: u64) {
    assert_eq!(
        words.next_set(from, to),
        naive_next(model, from, to, true),
        "set {from}..{to}"
    );
    assert_eq!(
        words.next_clear(from, to),
        naive_next(model, from, to, false),
        "clear {from}..{to}"
    );
    assert_eq!(
        words.any(from, to),
        naive_next(model, from, to, true).is_some()
    );
    assert_eq!(
        words.is_set(from),
        naive_next(model, from, from + 1, true).is_some()
    );
}

fn run<const WIDTH: u64>(bits: u64, steps: &[Step], looks: &[(u64, u64)]) {
    let words = Words::<WIDTH>::new(bits).unwrap();
    let mut model = vec![false; usize::try_from(bits).unwrap()];
    for &step in steps {
        apply(&words, &mut model, step);
        for &(from, to) in looks {
            compare(&words, &model, from, to);
        }
        compare(&words, &model, 0, u64::MAX);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn behaves_like_a_list_of_bools(
        (bits, steps) in (0..700_u64)
            .prop_flat_map(|bits| (Just(bits), prop::collection::vec(step(bits), 1..20))),
        looks in prop::collection::vec((0..750_u64, 0..750_u64), 8),
    ) {
        run::<2>(bits, &steps, &looks);
        run::<8>(bits, &steps, &looks);
        run::<64>(bits, &steps, &looks);
    }

    #[test]
    fn behaves_like_a_list_of_bools_on_three_levels_of_production_width(
        steps in prop::collection::vec(step(9000), 1..12),
        looks in prop::collection::vec((0..9100_u64, 0..9100_u64), 8),
    ) {
        run::<64>(9000, &steps, &looks);
    }
}

#[test]
fn summaries_cost_less_than_two_percent() {
    for granules in [1 << 27, (1 << 27) + 1, 1 << 40, 1 << 54] {
        let leaf = granules / 8;
        assert!(
            Words::<64>::bytes_needed(granules) <= leaf + leaf / 50,
            "{granules}"
        );
    }
}

#[test]
fn a_sparse_bitmap_is_searched_and_cleared_through_its_summaries() {
    // Bit by bit, or with its 1 GiB of words touched, this would take minutes.
    let words = Words::<64>::new(1 << 33).unwrap();
    let marked = [0, 12_345, (1 << 32) + 7, (1 << 33) - 1];
    for bit in marked {
        assert_eq!(words.mark_range(bit, bit + 1), 1);
    }
    for _ in 0..1000 {
        assert_eq!(words.next_set(12_346, u64::MAX), Some((1 << 32) + 7));
        assert_eq!(words.next_set((1 << 32) + 8, (1 << 33) - 1), None);
    }
    assert_eq!(words.clear_range(1, u64::MAX), 3);
    assert_eq!(words.next_set(0, u64::MAX), Some(0));
    assert_eq!(words.next_set(1, u64::MAX), None);
}

#[test]
fn no_bits_are_no_trouble() {
    let words = Words::<64>::new(0).unwrap();
    assert!(words.is_empty());
    assert_eq!(words.mark_range(0, 10), 0);
    assert_eq!(words.mark_leaf(0, u64::MAX), 0);
    assert_eq!(words.clear_range(0, 10), 0);
    assert_eq!(
        (words.next_set(0, 10), words.next_clear(0, 10)),
        (None, None)
    );
    assert!(!words.is_set(0));
}

#[test]
fn refuses_what_does_not_fit_in_memory() {
    assert!(Words::<64>::new(1 << 62).is_none());
}
