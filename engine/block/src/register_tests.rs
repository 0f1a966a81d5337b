//! Tests of the [`register`](crate::register) in one thread, against a naive list of readers.
//!
//! They stand beside the file, not in it: the model crate includes that file with loom's atomics,
//! which work only inside a model.

use crate::register::{Register, Ticket};
use proptest::prelude::*;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn is_ready<T>(future: Pin<&mut impl Future<Output = T>>, woken: &Arc<Woken>) -> bool {
    let waker = Waker::from(Arc::clone(woken));
    future.poll(&mut Context::from_waker(&waker)).is_ready()
}

#[test]
fn a_scan_finds_exactly_those_who_overlap() {
    let register = Register::new(2);
    let ticket = register.try_enter(1, 10, 20).unwrap();
    for (start, end, found) in [
        (0, 10, false),
        (0, 11, true),
        (12, 13, true),
        (19, 30, true),
        (20, 30, false),
        (15, 15, false),
        (0, u64::MAX, true),
    ] {
        assert_eq!(
            register.overlapping(start, end).is_some(),
            found,
            "{start}..{end}"
        );
    }
    register.leave(ticket);
    assert_eq!(register.overlapping(0, u64::MAX), None);
}

#[test]
fn a_reader_that_left_is_not_taken_for_the_next_one_in_its_slot() {
    let register = Register::with_slots(1, 1);
    let first = register.try_enter(0, 0, 8).unwrap();
    let found = register.overlapping(0, 8).unwrap();
    assert!(!register.has_left(found, 0, 8));
    register.leave(first);
    assert!(register.has_left(found, 0, 8));
    let second = register.try_enter(0, 0, 8).unwrap();
    assert!(register.has_left(found, 0, 8));
    assert_ne!(register.overlapping(0, 8), Some(found));
    register.leave(second);
}

#[test]
fn all_slots_of_a_shard_are_used_and_no_more() {
    for slots in [1, 7, 64] {
        let register = Register::with_slots(2, slots);
        let mut tickets: Vec<Ticket> = (0..slots)
            .map(|_| register.try_enter(0, 0, 1).unwrap())
            .collect();
        assert!(register.try_enter(0, 0, 1).is_none());
        register.leave(register.try_enter(1, 0, 1).unwrap());
        register.leave(tickets.remove(slots / 2));
        tickets.push(register.try_enter(0, 5, 6).unwrap());
        assert!(register.overlapping(5, 6).is_some());
        tickets
            .into_iter()
            .for_each(|ticket| register.leave(ticket));
    }
}

#[test]
fn a_full_shard_lets_the_next_reader_in_when_one_leaves() {
    let register = Register::with_slots(1, 1);
    let woken = Arc::new(Woken::default());
    let first = register.try_enter(0, 0, 1).unwrap();
    let mut entering = pin!(register.enter(0, 3, 4));
    assert!(!is_ready(entering.as_mut(), &woken));
    assert_eq!(register.overlapping(3, 4), None);
    register.leave(first);
    assert_eq!(woken.count(), 1);
    let waker = Waker::noop();
    let mut context = Context::from_waker(waker);
    let std::task::Poll::Ready(second) = entering.as_mut().poll(&mut context) else {
        panic!("the slot is free");
    };
    assert!(register.overlapping(3, 4).is_some());
    register.leave(second);
}

#[test]
fn with_nobody_there_a_writer_goes_straight_on() {
    let register = Register::new(3);
    let elsewhere = register.try_enter(2, 100, 200).unwrap();
    let woken = Arc::new(Woken::default());
    assert!(is_ready(pin!(register.wait_clear(0, 100)), &woken));
    register.leave(elsewhere);
}

#[test]
fn a_writer_waits_for_all_who_overlap() {
    let register = Register::new(2);
    let woken = Arc::new(Woken::default());
    let near = register.try_enter(0, 0, 4).unwrap();
    let far = register.try_enter(1, 3, 9).unwrap();
    let mut waiting = pin!(register.wait_clear(2, 4));
    assert!(!is_ready(waiting.as_mut(), &woken));
    register.leave(near);
    assert_eq!(woken.count(), 1);
    assert!(!is_ready(waiting.as_mut(), &woken));
    register.leave(far);
    assert_eq!(woken.count(), 2);
    assert!(is_ready(waiting.as_mut(), &woken));
}

#[test]
fn newcomers_do_not_hold_a_writer_up() {
    let register = Register::with_slots(1, 2);
    let woken = Arc::new(Woken::default());
    let first = register.try_enter(0, 0, 4).unwrap();
    let mut waiting = pin!(register.wait_clear(0, 4));
    assert!(!is_ready(waiting.as_mut(), &woken));
    // One in another slot, and one in the very slot of the reader that is waited for.
    let second = register.try_enter(0, 0, 4).unwrap();
    register.leave(first);
    let third = register.try_enter(0, 0, 4).unwrap();
    assert!(is_ready(waiting.as_mut(), &woken));
    register.leave(second);
    register.leave(third);
}

#[test]
fn a_reader_that_shrinks_lets_writers_of_the_rest_go() {
    let register = Register::new(1);
    let (low_woken, high_woken) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
    let counts = || (low_woken.count(), high_woken.count());
    let ticket = register.try_enter(0, 0, 10).unwrap();
    let mut low = pin!(register.wait_clear(0, 2));
    let mut high = pin!(register.wait_clear(8, 10));
    assert!(!is_ready(low.as_mut(), &low_woken));
    assert!(!is_ready(high.as_mut(), &high_woken));
    register.shrink(&ticket, 0, 10);
    assert_eq!(counts(), (0, 0));
    register.shrink(&ticket, 2, 10);
    assert_eq!(counts(), (1, 1));
    assert!(is_ready(low.as_mut(), &low_woken));
    assert!(!is_ready(high.as_mut(), &high_woken));
    register.shrink(&ticket, 5, 5);
    assert_eq!(counts(), (1, 2));
    assert!(is_ready(high.as_mut(), &high_woken));
    assert_eq!(register.overlapping(0, u64::MAX), None);
    register.leave(ticket);
}

#[test]
fn a_wait_that_is_given_up_does_no_harm() {
    let register = Register::new(1);
    let woken = Arc::new(Woken::default());
    let ticket = register.try_enter(0, 0, 10).unwrap();
    {
        let mut given_up = pin!(register.wait_clear(0, 2));
        assert!(!is_ready(given_up.as_mut(), &woken));
    }
    register.leave(ticket);
    assert_eq!(woken.count(), 1);
    assert_eq!(register.overlapping(0, 10), None);
}

#[test]
#[should_panic(expected = "5..10 shrinks to 4..10")]
fn a_range_does_not_grow() {
    let register = Register::new(1);
    let ticket = register.try_enter(0, 5, 10).unwrap();
    register.shrink(&ticket, 4, 10);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "keeps writers waiting for ever")]
fn a_ticket_must_be_given_back() {
    drop(Register::new(1).try_enter(0, 0, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Enter(usize, u64, u64),
    Shrink(usize, u64, u64),
    Leave(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bounds = || (0..50_u64, 0..50_u64);
    let step = prop_oneof![
        (0..2_usize, bounds()).prop_map(|(shard, (a, b))| Step::Enter(shard, a.min(b), a.max(b))),
        (0..9_usize, bounds()).prop_map(|(reader, (cut, keep))| Step::Shrink(reader, cut, keep)),
        (0..9_usize).prop_map(Step::Leave),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn the_register_is_a_list_of_ranges(steps in steps()) {
        let register = Register::with_slots(2, 4);
        let mut readers: Vec<(Ticket, Range<u64>)> = Vec::new();
        let mut count = [0_usize; 2];
        let mut shards: Vec<usize> = Vec::new();
        for step in steps {
            match step {
                Step::Enter(shard, start, end) => {
                    let ticket = register.try_enter(shard, start, end);
                    assert_eq!(ticket.is_some(), count[shard] < 4);
                    if let Some(ticket) = ticket {
                        readers.push((ticket, start..end));
                        shards.push(shard);
                        count[shard] += 1;
                    }
                }
                Step::Shrink(reader, cut, keep) => {
                    if let Some((ticket, range)) = readers.get_mut(reader) {
                        let start = (range.start + cut).min(range.end);
                        let end = (start + keep).min(range.end);
                        register.shrink(ticket, start, end);
                        *range = start..end;
                    }
                }
                Step::Leave(reader) if reader < readers.len() => {
                    register.leave(readers.swap_remove(reader).0);
                    count[shards.swap_remove(reader)] -= 1;
                }
                Step::Leave(_) => {}
            }
            for at in 0..50 {
                let found = register.overlapping(at, at + 1).is_some();
                assert_eq!(found, readers.iter().any(|(_, range)| range.contains(&at)));
            }
        }
        readers.into_iter().for_each(|(ticket, _)| register.leave(ticket));
        assert_eq!(register.overlapping(0, u64::MAX), None);
    }
}
