//! From what a run has measured to what its report says.

use hdrhistogram::Histogram;
use ringback_block::copy::control::JobError;
use ringback_block::metrics::{self, Class};

use super::args::{Args, SyncArg};
use super::guest::{Failure, Guest, Phase};
use super::session::{Middle, SECOND_NS};
use crate::report::latency::LatencySummary;
use crate::report::{self, BenchReport, GuestPhase};

pub(super) fn guest_phase(guest: &Guest, phase: Phase, seconds: f64) -> GuestPhase {
    let stats = guest.phase_stats(phase);
    GuestPhase {
        seconds,
        reads: stats.read.len(),
        writes: stats.write.len(),
        read_latency: LatencySummary::of(&stats.read),
        write_latency: LatencySummary::of(&stats.write),
    }
}

pub(super) fn fill_in(
    report: &mut BenchReport,
    args: &Args,
    middle: &Middle,
    guest: &Guest,
    measured: &metrics::Snapshot,
) {
    if !args.no_guest {
        report.during = Some(guest_phase(guest, Phase::During, middle.seconds));
        report.point_in_time = Some(report::PointInTime {
            drain_pause_ns: middle.pause_ns,
        });
        let (saves, waits) = (
            measured.class(Class::SaveWait),
            measured.class(Class::ReaderWait),
        );
        report.copy_before_write = Some(report::CopyBeforeWrite {
            saves: measured.class(Class::Save).len(),
            saved_bytes: measured.saved_bytes,
            save_latency: LatencySummary::of(saves),
            reader_waits: waits.len(),
            reader_wait_latency: LatencySummary::of(waits),
            broken: middle.filter.broken().is_some(),
        });
    }
    report.backup = Some(backup_part(args, middle));
    report.fleecing = middle.fleecing.as_ref().map(|summary| report::Fleecing {
        reads: summary.reads,
        bytes: summary.bytes,
        read_latency: LatencySummary::of(measured.class(Class::SnapshotRead)),
        refused: summary.refused,
    });
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn backup_part(args: &Args, middle: &Middle) -> report::Backup {
    let seconds = middle.outcome.duration_ns as f64 / SECOND_NS as f64;
    let moved = middle.filter.progress().offset;
    let result = match (args.sync, middle.outcome.result) {
        (SyncArg::None, Ok(())) => "ended after its time".into(),
        (_, Ok(())) => "completed".into(),
        (_, Err(error)) => error.to_string(),
    };
    report::Backup {
        bytes_total: middle.bytes_total,
        bytes_copied: middle.outcome.copied.data,
        bytes_zero: middle.outcome.copied.zero,
        seconds,
        bytes_per_second: if seconds > 0.0 {
            moved as f64 / seconds
        } else {
            0.0
        },
        workers: args.workers,
        result,
    }
}

/// What went wrong, if it was not a difference.
pub(super) fn failure(middle: &Middle, guest: &Guest) -> Option<String> {
    if let Some(Failure::Request(what)) = guest.failure() {
        return Some(what);
    }
    match middle.outcome.result {
        Ok(()) => None,
        Err(JobError::Cancelled) if guest.failure().is_some() => None,
        Err(error) => Some(format!("the backup failed: {error}")),
    }
}

pub(super) fn histograms(
    guest: &Guest,
    measured: &metrics::Snapshot,
) -> Vec<(&'static str, Histogram<u64>)> {
    let (baseline, during) = (
        guest.phase_stats(Phase::Baseline),
        guest.phase_stats(Phase::During),
    );
    let guests = [
        ("guest-read-baseline", baseline.read),
        ("guest-write-baseline", baseline.write),
        ("guest-read-during", during.read),
        ("guest-write-during", during.write),
    ];
    let engine = Class::ALL.map(|class| (class.name(), measured.class(class).clone()));
    guests.into_iter().chain(engine).collect()
}
