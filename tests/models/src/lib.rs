//! The lock-free pieces of the engine, compiled from their own source files against the model
//! checker's atomics.
//!
//! A piece that is model-checked names atomics only through `crate::sync`; here that is loom's.
//! The tests explore every interleaving and every value that the memory model allows, within a
//! bound on preemptions. A green test alone proves little: for each step that an algorithm
//! rests on, a test plants the bug of leaving it out and demands that the checker finds it.
//!
//! No code of the engine is copied here, and nothing here runs outside a model.
#![forbid(unsafe_code)]

#[path = "../../../engine/block/src/filter/copy_before_write/cells.rs"]
pub mod cells;
#[cfg(test)]
mod copy_before_write;
#[path = "../../../engine/block/src/register.rs"]
pub mod register;
pub mod sync;
#[path = "../../../engine/block/src/bitmap/words.rs"]
pub mod words;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Checks `scenario`, with at most `preemptions` forced switches of threads.
pub fn check(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(scenario);
}

/// Checks that `scenario` fails, and nowhere but in one of its own assertions, once `fault` is
/// planted.
///
/// # Panics
///
/// If the checker does not find the fault.
pub fn check_finds(
    fault: sync::Fault,
    preemptions: usize,
    scenario: impl Fn() + Send + Sync + 'static,
) {
    sync::plant(Some(fault));
    let outcome = catch_unwind(AssertUnwindSafe(|| check(preemptions, scenario)));
    sync::plant(None);
    let failure = outcome.expect_err("the fault is found");
    let text = failure
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| failure.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    assert!(
        text.contains("broken:"),
        "{fault:?}: failed elsewhere: {text}"
    );
}
