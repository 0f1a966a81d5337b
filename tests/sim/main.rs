//! Whole runs on a simulated machine, each from a seed.
//!
//! `RINGBACK_SIM_SEED=N` replays one seed; `RINGBACK_SIM_COUNT=N` runs that
//! many instead of a thousand.

#![expect(clippy::cast_possible_truncation, reason = "simulated disks are small")]

mod model;
mod power;
mod qcow2;
mod scenario;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use ringback_block::planted::{self, Fault};

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number")),
    )
}

/// What a seed is run through.
type Scene = fn(u64) -> Result<(), String>;

/// One seed; a panic is a violation, too.
fn run(scene: Scene, seed: u64) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| scene(seed))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panicked: {}", text.unwrap_or("?")))
    })
}

/// Runs seeds `0..count` on all cores, with a fault or without; the first
/// failure.
fn run_many(scene: Scene, count: u64, fault: Option<Fault>) -> Option<(u64, String)> {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<_> = std::thread::scope(|scope| {
        let work = || {
            let _planted = fault.map(planted::plant);
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= count {
                    return None;
                }
                if let Err(what) = run(scene, seed) {
                    next.store(count, Ordering::Relaxed);
                    return Some((seed, what));
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().expect("no panic escapes"))
            .collect()
    });
    failures.into_iter().min()
}

fn assert_holds(scene: Scene) {
    if let Some(seed) = from_environment("RINGBACK_SIM_SEED") {
        run(scene, seed).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        return;
    }
    let count = from_environment("RINGBACK_SIM_COUNT").unwrap_or(1000);
    if let Some((seed, what)) = run_many(scene, count, None) {
        panic!("RINGBACK_SIM_SEED={seed}: {what}");
    }
}

#[test]
fn a_thousand_seeds_keep_every_promise() {
    assert_holds(scenario::run);
}

#[test]
fn what_was_flushed_survives_a_thousand_power_cuts() {
    assert_holds(power::run);
}

#[test]
fn images_survive_power_cuts() {
    assert_holds(qcow2::run);
}

#[test]
fn a_flush_that_does_nothing_is_found() {
    assert_found_in(power::run, Fault::FlushForgotten);
}

#[test]
fn a_seed_replays() {
    let _planted = planted::plant(Fault::ShortCutOnSaved);
    let (seed, what) = (0..1000)
        .find_map(|seed| run(scenario::run, seed).err().map(|what| (seed, what)))
        .expect("the fault is found");
    assert_eq!(run(scenario::run, seed), Err(what), "seed {seed}");
}

/// A fault that is not found within the seeds that every run tries would not be
/// found when somebody makes it by mistake.
fn assert_found(fault: Fault) {
    assert_found_in(scenario::run, fault);
}

fn assert_found_in(scene: Scene, fault: Fault) {
    let found = run_many(scene, 4000, Some(fault));
    let (seed, what) = found.unwrap_or_else(|| panic!("{fault:?} was not found"));
    println!("{fault:?} was found by seed {seed}: {what}");
}

#[test]
fn scanning_before_closing_is_found() {
    assert_found(Fault::ScanBeforeClosing);
}

#[test]
fn taking_saved_for_passed_is_found() {
    assert_found(Fault::ShortCutOnSaved);
}

#[test]
fn passing_before_the_scan_is_found() {
    assert_found(Fault::PassBeforeScan);
}

#[test]
fn marking_after_the_acknowledgement_is_found() {
    assert_found(Fault::MarkAfterAcknowledgement);
}

#[test]
fn calling_the_snapshot_broken_too_late_is_found() {
    assert_found(Fault::BrokenStoredLate);
}

#[test]
fn a_timeout_that_frees_the_cell_is_found() {
    assert_found(Fault::TimeoutFreesCell);
}

#[test]
fn forgetting_old_data_before_it_is_written_is_found() {
    assert_found(Fault::FreedBeforeWritten);
}

#[test]
fn taking_memory_for_the_target_is_found() {
    assert_found(Fault::MemoryCountsAsTarget);
}

#[test]
fn a_claim_leaked_on_cancel_is_found() {
    assert_found(Fault::ClaimLeakedOnCancel);
}

#[test]
fn unaligned_writes_that_do_not_wait_are_found() {
    assert_found(Fault::UnalignedNotSerialised);
}

#[test]
fn qcow2_an_entry_before_its_data_is_found() {
    assert_found_in(qcow2::run, Fault::EntryBeforeData);
}

#[test]
fn qcow2_a_count_after_its_entry_is_found() {
    assert_found_in(qcow2::run, Fault::CountAfterEntry);
}

#[test]
fn qcow2_a_pointer_before_its_table_is_found() {
    assert_found_in(qcow2::run, Fault::PointerBeforeTable);
}

#[test]
fn qcow2_a_cluster_that_is_free_at_once_is_found() {
    assert_found_in(qcow2::run, Fault::FreedAtOnce);
}

#[test]
fn qcow2_a_mapping_that_two_change_is_found() {
    assert_found_in(qcow2::run, Fault::MappingNotClaimed);
}

#[test]
fn qcow2_a_cluster_forgotten_when_it_is_free_is_found() {
    assert_found_in(qcow2::run, Fault::ForgottenWhenFree);
}

#[test]
fn qcow2_a_slice_that_loses_its_changes_is_found() {
    assert_found_in(qcow2::run, Fault::DirtySliceEvicted);
}

#[test]
fn qcow2_zeroes_over_live_bytes_are_found() {
    assert_found_in(qcow2::run, Fault::LiveBytesZeroed);
}
