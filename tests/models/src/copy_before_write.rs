//! Copy-before-write on one cluster or a few: snapshot readers and guest writers, claims, client
//! discards, and waits for readers.
//!
//! Where a writer would wait, most models let it give up: what it would do afterwards is what a
//! writer does that comes later, and loom plays that one too. Waits have a model of their own, with
//! a waker that counts: a model that sleeps would report a lost wake-up as a deadlock, but loom's
//! deadlocks end the whole process.

use crate::cells::{Cells, Close, Discarded, Settled, Side, State};
use crate::register::Register;
use crate::sync::{AtomicU64, Fault, Ordering, plant, planted};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use std::panic::{UnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Wake, Waker};

const OLD: u64 = 0;
const NEW: u64 = 1;
const EMPTY: u64 = 2;

/// All interleavings.
const UNBOUNDED: Option<usize> = None;

/// Runs a model, with as many switches away from a thread that could go on as `preemptions` says.
fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    builder.check(model);
}

/// Runs a model with a fault planted. It has to end in what this fault leads to, not in any panic.
fn check_finds(fault: Fault, symptoms: &[&str], model: impl FnOnce() + UnwindSafe) {
    plant(Some(fault));
    let ended = catch_unwind(model);
    plant(None);
    let panic = ended.expect_err("the model did not find the fault");
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .expect("a message");
    assert!(
        symptoms.iter().any(|symptom| text.contains(symptom)),
        "found something else: {text}"
    );
}

/// What a reader and a writer that missed each other lead to: the data, or an access in no order.
const MISSED: [&str; 2] = [NEW_DATA, "Causality violation"];
/// What a lost wake-up leads to.
const NOT_WOKEN: [&str; 1] = ["nobody woke the writer"];

const NEW_DATA: &str = "the snapshot has new data";

/// One cluster, its source, and the register of its readers.
struct Disk {
    cells: Cells,
    register: Register,
    /// In two halves, so that a read beside a write can be torn.
    source: [AtomicU64; 2],
    /// The source once more, one for each writer: loom reports an access that is not ordered with
    /// the reader's, even where the reader happened to load the old value.
    touched: [UnsafeCell<()>; 2],
    /// The saved copy, watched in the same way.
    copy: AtomicU64,
    copied: UnsafeCell<()>,
}

impl Disk {
    fn new(state: State) -> Arc<Self> {
        Self::with_slots(state, 2)
    }

    fn with_slots(state: State, slots: usize) -> Arc<Self> {
        let mut cells = Cells::new(1).expect("small");
        match state {
            State::Saved => {
                assert_eq!(cells.claim(0, 1), 1);
                assert_eq!(cells.publish(0, 1), Settled::Whole);
            }
            State::Unwanted => cells.set_unwanted_range(0, 1),
            State::Untouched => {}
            _ => panic!("no model begins with {state:?}"),
        }
        Arc::new(Self {
            cells,
            register: Register::with_slots(1, slots),
            source: [AtomicU64::new(OLD), AtomicU64::new(OLD)],
            touched: [UnsafeCell::new(()), UnsafeCell::new(())],
            copy: AtomicU64::new(if state == State::Untouched {
                EMPTY
            } else {
                OLD
            }),
            copied: UnsafeCell::new(()),
        })
    }

    fn read_source(&self) -> [u64; 2] {
        for touched in &self.touched {
            touched.with(|_| ());
        }
        [
            self.source[0].load(Ordering::Relaxed),
            self.source[1].load(Ordering::Relaxed),
        ]
    }

    fn write_source(&self, writer: usize) {
        self.touched[writer].with_mut(|_| ());
        self.source[0].store(NEW, Ordering::Relaxed);
        self.source[1].store(NEW, Ordering::Relaxed);
    }

    /// A snapshot read. It must never see what a guest wrote, nor a copy that is not there yet.
    fn snapshot_read(&self) {
        let ticket = self.register.try_enter(0, 0, 1).expect("a slot is free");
        self.read(self.cells.next_run(0, 1).side);
        self.register.leave(ticket);
    }

    fn read(&self, side: Side) {
        match side {
            Side::Source => assert_eq!(self.read_source(), [OLD, OLD], "{NEW_DATA}"),
            Side::Copy => {
                self.copied.with(|_| ());
                assert_eq!(
                    self.copy.load(Ordering::Relaxed),
                    OLD,
                    "the copy is not there"
                );
            }
            Side::Gone => {}
        }
    }

    /// Saves the old data, if nobody else does.
    fn save(&self) {
        if self.cells.claim(0, 1) == 1 {
            assert_eq!(self.read_source(), [OLD, OLD], "{NEW_DATA}");
            self.copied.with_mut(|_| ());
            self.copy.store(OLD, Ordering::Relaxed);
            assert_eq!(self.cells.publish(0, 1), Settled::Whole);
        }
    }

    /// A guest write that gives up where it would wait.
    fn guest_write(&self, writer: usize) {
        if self.may_write() {
            self.write_source(writer);
        }
    }

    fn may_write(&self) -> bool {
        if planted(Fault::SavedTakenForOpen) && self.cells.state(0) == State::Saved {
            return true;
        }
        if planted(Fault::ClosingTakenForOpen) && self.cells.state(0) == State::Closing {
            return true;
        }
        if self.cells.all_open(0, 1) {
            return true;
        }
        if planted(Fault::ScanBeforeClosing) {
            let clear = self.register.overlapping(0, 1).is_none();
            return clear && self.close() != Closing::NotYet && self.pass();
        }
        match self.close() {
            Closing::NotYet => false,
            Closing::Open => true,
            Closing::Closed if planted(Fault::PassedBeforeScan) => {
                self.pass() && self.register.overlapping(0, 1).is_none()
            }
            Closing::Closed => self.register.overlapping(0, 1).is_none() && self.pass(),
        }
    }

    fn close(&self) -> Closing {
        match self.cells.close(0) {
            Close::Closed => Closing::Closed,
            Close::Open => Closing::Open,
            Close::Untouched | Close::Saving => Closing::NotYet,
        }
    }

    fn pass(&self) -> bool {
        self.cells.pass(0);
        true
    }
}

#[derive(PartialEq, Eq)]
enum Closing {
    NotYet,
    Closed,
    Open,
}

fn one_reader_two_writers(from: State) {
    check(Some(4), move || {
        let disk = Disk::new(from);
        let writers = [0, 1].map(|writer| {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.guest_write(writer))
        });
        disk.snapshot_read();
        join(writers);
    });
}

fn join<const N: usize>(threads: [thread::JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().expect("a panic ends the model");
    }
}

#[test]
fn a_reader_never_sees_what_two_writers_write() {
    one_reader_two_writers(State::Saved);
}

#[test]
fn a_reader_never_sees_what_two_writers_write_where_nothing_is_saved() {
    one_reader_two_writers(State::Unwanted);
}

#[test]
fn found_a_writer_that_takes_saved_for_open() {
    check_finds(Fault::SavedTakenForOpen, &MISSED, || {
        one_reader_two_writers(State::Saved)
    });
}

#[test]
fn found_a_writer_that_takes_closing_for_open() {
    check_finds(Fault::ClosingTakenForOpen, &MISSED, || {
        one_reader_two_writers(State::Saved)
    });
}

#[test]
fn found_passed_set_before_the_scan() {
    check_finds(Fault::PassedBeforeScan, &MISSED, || {
        one_reader_two_writers(State::Saved)
    });
}

#[test]
fn found_the_scan_before_closing() {
    check_finds(Fault::ScanBeforeClosing, &MISSED, || {
        one_reader_two_writers(State::Saved)
    });
}

#[test]
fn found_a_reader_without_its_fence() {
    check_finds(Fault::ReaderFenceMissing, &MISSED, || {
        one_reader_two_writers(State::Saved)
    });
}

#[test]
fn found_a_writer_without_its_fence() {
    check_finds(Fault::WriterFenceMissing, &MISSED, || {
        one_reader_two_writers(State::Saved)
    });
}

fn a_save_and_a_write_beside_a_reader(side: fn(&Cells) -> Side) {
    check(Some(4), move || {
        let disk = Disk::new(State::Untouched);
        let writer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                disk.save();
                disk.guest_write(0);
            })
        };
        let job = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.save())
        };
        let ticket = disk.register.try_enter(0, 0, 1).expect("a slot is free");
        disk.read(side(&disk.cells));
        disk.register.leave(ticket);
        join([writer, job]);
    });
}

#[test]
fn a_reader_goes_from_the_source_to_the_finished_copy() {
    a_save_and_a_write_beside_a_reader(|cells| cells.next_run(0, 1).side);
}

#[test]
fn a_reader_that_asks_for_one_state_goes_to_the_finished_copy() {
    a_save_and_a_write_beside_a_reader(|cells| cells.state(0).side());
}

/// The second read takes the slot of the first. A scan in between may load bounds of both, and
/// then has to come after the first one's reads all the same.
#[test]
fn a_slot_used_again_hides_no_reader() {
    check(UNBOUNDED, || {
        let disk = Disk::with_slots(State::Saved, 1);
        let writer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.guest_write(0))
        };
        disk.snapshot_read();
        let elsewhere = disk
            .register
            .try_enter(0, 7, 8)
            .expect("the slot is free again");
        disk.register.leave(elsewhere);
        disk.snapshot_read();
        join([writer]);
    });
}

/// The discard may meet *saved*, *closing* and *passed*. None of them opens the source again, and
/// the copy is discarded once.
#[test]
fn a_discard_beside_a_guest_write_keeps_the_reader_safe() {
    check(Some(4), || {
        let disk = Disk::new(State::Saved);
        let writer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.guest_write(0))
        };
        let client = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || assert_eq!(disk.cells.discard(0), Discarded::OnTarget))
        };
        disk.snapshot_read();
        join([writer, client]);
        let left = disk.cells.state(0);
        assert!(
            matches!(left, State::Unwanted | State::ClosingNoCopy | State::Lost),
            "{left:?}"
        );
    });
}

/// Counts wake-ups. The count is of std: the model looks at it when the reader's thread has ended.
#[derive(Default)]
struct Woken(std::sync::atomic::AtomicUsize);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What lets the writer go on.
#[derive(Clone, Copy)]
enum Ending {
    Leaves,
    /// It never leaves: only the shrinking can let the writer go on.
    ShrinksTo(u64, u64),
}

/// The cluster is 4..5 of the register here, the reader enters 3..6.
fn read_then_end(disk: &Disk, ending: Ending) {
    let ticket = disk.register.try_enter(0, 3, 6).expect("a slot is free");
    disk.read(disk.cells.next_run(0, 1).side);
    match ending {
        Ending::Leaves => disk.register.leave(ticket),
        Ending::ShrinksTo(start, end) => {
            disk.register.shrink(&ticket, start, end);
            std::mem::forget(ticket);
        }
    }
}

fn a_writer_waits_for_a_reader(ending: Ending) {
    check(UNBOUNDED, move || {
        let disk = Disk::new(State::Saved);
        let reader = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || read_then_end(&disk, ending))
        };
        let woken = std::sync::Arc::new(Woken::default());
        let waker = Waker::from(std::sync::Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        assert_eq!(disk.cells.close(0), Close::Closed);
        let mut waiting = pin!(disk.register.wait_clear(4, 5));
        if waiting.as_mut().poll(&mut context).is_ready() {
            disk.cells.pass(0);
            disk.write_source(0);
            join([reader]);
        } else {
            join([reader]);
            assert!(
                woken.0.load(Ordering::Relaxed) > 0,
                "nobody woke the writer"
            );
            assert!(waiting.as_mut().poll(&mut context).is_ready());
        }
    });
}

#[test]
fn a_writer_is_woken_when_its_reader_leaves() {
    a_writer_waits_for_a_reader(Ending::Leaves);
}

#[test]
fn a_writer_is_woken_when_its_reader_shrinks() {
    a_writer_waits_for_a_reader(Ending::ShrinksTo(5, 6));
    a_writer_waits_for_a_reader(Ending::ShrinksTo(3, 4));
}

#[test]
fn found_a_reader_that_leaves_without_a_fence() {
    check_finds(Fault::LeaveFenceMissing, &NOT_WOKEN, || {
        a_writer_waits_for_a_reader(Ending::Leaves)
    });
}

#[test]
fn found_a_reader_that_shrinks_without_a_fence() {
    check_finds(Fault::LeaveFenceMissing, &NOT_WOKEN, || {
        a_writer_waits_for_a_reader(Ending::ShrinksTo(5, 6))
    });
}

#[test]
fn found_a_waiter_without_its_fence() {
    check_finds(Fault::WaitFenceMissing, &NOT_WOKEN, || {
        a_writer_waits_for_a_reader(Ending::Leaves)
    });
}

#[test]
fn found_a_waiter_that_does_not_look_again() {
    check_finds(Fault::WaitSecondLookMissing, &NOT_WOKEN, || {
        a_writer_waits_for_a_reader(Ending::Leaves)
    });
}

/// Five clusters over the border of two words. Each claimer takes what it can get, as a job does.
#[test]
fn two_claimers_never_get_the_same_cluster() {
    const FIRST: u64 = 14;
    const END: u64 = 19;
    check(UNBOUNDED, || {
        let cells = Arc::new(Cells::new(END).expect("small"));
        let saved: Arc<[UnsafeCell<()>; 5]> = Arc::new(Default::default());
        let claim_all = |from: u64| {
            let (cells, saved) = (Arc::clone(&cells), Arc::clone(&saved));
            move || {
                let mut count = 0;
                let mut next = cells.next_untouched(from, END);
                while let Some(first) = next {
                    let claimed = cells.claim(first, 3);
                    for cluster in first..first + claimed {
                        // Claimed twice would be touched twice, in no order.
                        saved[usize::try_from(cluster - FIRST).expect("small")].with_mut(|_| ());
                    }
                    count += claimed;
                    next = cells.next_untouched(first + claimed, END);
                }
                count
            }
        };
        let other = thread::spawn(claim_all(15));
        let first_count = claim_all(FIRST)();
        let second_count = other.join().expect("a panic ends the model");
        assert_eq!(first_count + second_count, END - FIRST);
        assert!((FIRST..END).all(|cluster| cells.state(cluster) == State::Saving));
    });
}

/// Neighbours in one word: a swap that fails because of the other one must not lose either.
#[test]
fn neighbours_in_a_word_do_not_disturb_each_other() {
    check(Some(4), || {
        let cells = Arc::new(Cells::new(2).expect("small"));
        let threads = [0, 1].map(|cluster| {
            let cells = Arc::clone(&cells);
            thread::spawn(move || {
                assert_eq!(cells.claim(cluster, 1), 1);
                assert_eq!(cells.publish(cluster, cluster + 1), Settled::Whole);
                assert_eq!(cells.close(cluster), Close::Closed);
                cells.pass(cluster);
            })
        });
        join(threads);
        assert!(cells.all_open(0, 2));
    });
}

/// A save that ends as `publish` or `unclaim` beside a client's discard. What is written to the
/// target is discarded once, after it was written.
fn a_discard_beside_a_save(publish: bool) {
    check(UNBOUNDED, move || {
        let cells = Arc::new(Cells::new(1).expect("small"));
        let target = Arc::new(UnsafeCell::new(()));
        let client = {
            let (cells, target) = (Arc::clone(&cells), Arc::clone(&target));
            thread::spawn(move || {
                let discarded = cells.discard(0);
                if discarded == Discarded::OnTarget {
                    target.with_mut(|_| ());
                }
                discarded
            })
        };
        let mut discarded_by_saver = false;
        if cells.claim(0, 1) == 1 {
            target.with_mut(|_| ());
            let settled = if publish {
                cells.publish(0, 1)
            } else {
                cells.unclaim(0, 1)
            };
            discarded_by_saver = settled != Settled::Whole;
            if discarded_by_saver {
                target.with_mut(|_| ());
            }
        }
        let found = client.join().expect("a panic ends the model");
        assert_eq!(discarded_by_saver, found == Discarded::BySaver);
        assert_eq!(cells.state(0), State::Unwanted);
    });
}

#[test]
fn a_copy_is_discarded_once_by_its_saver_or_the_client() {
    a_discard_beside_a_save(true);
}

#[test]
fn an_unclaimed_cluster_that_was_discarded_is_unwanted() {
    a_discard_beside_a_save(false);
}
