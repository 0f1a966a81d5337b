//! What the run is at, for a person who waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ringback_ring::remote::{Answer, Gone};

/// Set by the run, shown by the main thread.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    stage: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// A new stage of `total` units.
    pub(crate) fn begin(&self, stage: &'static str, total: u64) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// So much more is done.
    pub(crate) fn add(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// So much is done, of so much.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }
}

/// Shows a bar on a terminal until the answer is there. Elsewhere nothing is
/// shown: the report says everything.
pub(crate) fn show_until<T>(
    progress: &Progress,
    hidden: bool,
    answer: &Answer<T>,
) -> Result<T, Gone> {
    let bar = if hidden {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(1)
    };
    let style = ProgressStyle::with_template("{msg:24} [{bar:40}] {percent:>3}%  {elapsed}");
    bar.set_style(
        style
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> "),
    );
    let result = loop {
        if let Some(result) = answer.try_take() {
            break result;
        }
        bar.set_message(
            *progress
                .stage
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        bar.set_length(progress.total.load(Ordering::Relaxed).max(1));
        bar.set_position(progress.done.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(50));
    };
    bar.finish_and_clear();
    result
}
