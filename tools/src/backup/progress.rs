//! How far a backup is, for a person or a program that waits.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ringback_ring::remote::{Answer, Gone};
use serde_json::json;

use crate::report::human;

/// Between two looks at the run.
const POLL: Duration = Duration::from_millis(50);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Between two lines for programs.
const JSON_EVERY: Duration = Duration::from_secs(1);
/// The rate is that of the last seconds.
const RATE_OVER: Duration = Duration::from_secs(10);

/// Set by the run, shown by the main thread.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Its name, and how many stages there were before.
    stage: Mutex<(&'static str, u64)>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// A new stage, in which so many bytes are to be done.
    pub(crate) fn begin(&self, stage: &'static str, total: u64) {
        let mut current = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (stage, current.1 + 1);
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// So much more is done.
    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much is done, of so much.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }

    fn stage(&self) -> (&'static str, u64) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A bar on a terminal, plain lines elsewhere.
    Human,
    /// JSON objects, one a line.
    Json,
    /// Not at all.
    Quiet,
}

/// What can be said at one moment.
struct Moment {
    stage: &'static str,
    done: u64,
    total: u64,
    bytes_per_second: Option<f64>,
}

impl Moment {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn seconds_left(&self) -> Option<f64> {
        let rate = self.bytes_per_second.filter(|rate| *rate > 0.0)?;
        Some(self.total.saturating_sub(self.done) as f64 / rate)
    }

    fn percent(&self) -> u64 {
        // Nothing to do is done.
        (u128::from(self.done) * 100)
            .checked_div(u128::from(self.total))
            .map_or(100, |percent| {
                u64::try_from(percent.min(100)).unwrap_or(100)
            })
    }

    fn figures(&self) -> String {
        let mut text = format!(
            "{} of {}",
            human::bytes(self.done),
            human::bytes(self.total)
        );
        if let Some(rate) = self.bytes_per_second {
            text += &format!(", {}", human::rate(rate));
        }
        if let Some(seconds) = self.seconds_left() {
            text += &format!(", {} left", clock(seconds));
        }
        text
    }
}

/// `1:02:03`, `2:03`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole seconds for people; a float saturates"
)]
fn clock(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// Remembers the last seconds of a stage.
#[derive(Default)]
struct Meter {
    stage: u64,
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn look(&mut self, progress: &Progress, now: Instant) -> Moment {
        let (stage, number) = progress.stage();
        let done = progress.done.load(Ordering::Relaxed);
        if number != self.stage {
            self.stage = number;
            self.samples.clear();
        }
        self.samples.push_back((now, done));
        while let Some((then, _)) = self.samples.get(1)
            && now - *then > RATE_OVER
        {
            self.samples.pop_front();
        }
        let (then, before) = self.samples[0];
        let elapsed = (now - then).as_secs_f64();
        let rate = (elapsed >= 0.5).then(|| done.saturating_sub(before) as f64 / elapsed);
        Moment {
            stage,
            done,
            total: progress.total.load(Ordering::Relaxed),
            bytes_per_second: rate,
        }
    }
}

/// Shows it until the answer is there.
pub(crate) fn show_until<T>(
    progress: &Progress,
    style: Style,
    answer: &Answer<T>,
) -> Result<T, Gone> {
    let bar = (style == Style::Human && std::io::stderr().is_terminal()).then(new_bar);
    let mut meter = Meter::default();
    let mut shown = Instant::now();
    let result = loop {
        if let Some(result) = answer.try_take() {
            break result;
        }
        let now = Instant::now();
        let moment = meter.look(progress, now);
        match (&bar, style) {
            (Some(bar), _) => {
                bar.set_length(moment.total.max(1));
                bar.set_position(moment.done);
                bar.set_prefix(moment.stage);
                bar.set_message(format!("{:>3}%  {}", moment.percent(), moment.figures()));
            }
            (None, Style::Human) if now - shown >= LINE_EVERY => {
                shown = now;
                let (percent, figures) = (moment.percent(), moment.figures());
                say(&format!("{}: {percent}%, {figures}", moment.stage));
            }
            (None, Style::Json) if now - shown >= JSON_EVERY => {
                shown = now;
                say(&as_json(&moment).to_string());
            }
            _ => {}
        }
        std::thread::sleep(POLL);
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    result
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar
}

fn as_json(moment: &Moment) -> serde_json::Value {
    json!({
        "stage": moment.stage,
        "done_bytes": moment.done,
        "total_bytes": moment.total,
        "bytes_per_second": moment.bytes_per_second,
        "seconds_left": moment.seconds_left(),
    })
}

/// A line on standard error, where nobody may be listening.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_this_stage_and_the_last_seconds() {
        let progress = Progress::default();
        let mut meter = Meter::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        progress.begin("backup", 1000);
        progress.set(500, 1000);
        let first = meter.look(&progress, at(0));
        assert_eq!((first.bytes_per_second, first.percent()), (None, 50));
        progress.set(700, 1000);
        let moment = meter.look(&progress, at(2));
        assert_eq!(moment.bytes_per_second, Some(100.0));
        assert_eq!(moment.seconds_left(), Some(3.0));
        progress.begin("verifying", 10);
        assert_eq!(meter.look(&progress, at(3)).bytes_per_second, None);
    }

    #[test]
    fn times_are_as_on_a_clock() {
        assert_eq!(clock(59.2), "1:00");
        assert_eq!(clock(3723.0), "1:02:03");
    }
}
