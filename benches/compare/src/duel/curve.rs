//! `curve`: a full backup under a guest, by the number of workers.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::{ReaderWait, System};
use crate::duel::cell::{Better, Column, column};
use crate::duel::stage::{Cost, Stage, workers_name};
use crate::duel::{Bench, Kind, domination};
use crate::guest::{Guest, Phase};

/// Columns that the curve is made of.
pub(crate) const SPEED: usize = 0;
pub(crate) const P99: usize = 4;

/// A curve of its own: ringback with nothing that slows it down for a guest.
pub(crate) const UNBOUND: &str = "ringback, no latency target";

const COLUMNS: &[Column] = &[
    column("backup", "MB/s", Better::More),
    column("CPU", "s/GiB", Better::Less),
    column("guest", "writes/s", Better::More),
    column("p50", "ms", Better::Less),
    column("p99", "ms", Better::Less),
    column("p99.9", "ms", Better::Less),
    column("max", "ms", Better::Less),
    column("reader waits", "", Better::Less),
    column("reader wait p99", "ms", Better::Less),
    column("alone", "writes/s", Better::More),
    column("alone p50", "ms", Better::Less),
    column("alone p99", "ms", Better::Less),
];

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    let (workers, seconds) = (&bench.options.workers, bench.options.seconds);
    bench.on_stages(
        bench.disks(),
        &bench.options.guest,
        |medium, format, kind| {
            let (format, medium) = (format.name(), medium.name());
            format!("curve/{format}/{medium}/{}", kind.name())
        },
        |bench, stage, kind, name| {
            let run = move |system: &System, workers| {
                let arguments = stage.backup_arguments(system, workers);
                backup(stage, system, &arguments, kind, seconds)
            };
            let run_unbound = move |system: &System, workers| {
                let mut arguments = stage.backup_arguments(system, workers);
                arguments["x-perf"]["latency-target"] = json!(0);
                backup(stage, system, &arguments, kind, seconds)
            };
            let mut contestants =
                stage.contestants(workers, |_, workers| Some(workers_name(workers)), run);
            let name_unbound = |system: &System, workers| {
                let has_one = matches!(system, System::Ringback(_)) && kind != Kind::Idle;
                has_one.then(|| workers_name(workers))
            };
            for mut unbound in stage.contestants(workers, name_unbound, run_unbound) {
                unbound.entrant.system = UNBOUND;
                contestants.push(unbound);
            }
            let title = format!("full backup under {}", kind.describe());
            let mut cell = bench.compete(stage, name, &title, COLUMNS, contestants);
            if kind != Kind::Idle {
                let verdict = domination::verdict(&cell, &["ringback", UNBOUND], "qsd", SPEED, P99);
                cell.notes.extend(verdict);
            }
            cell
        },
    )
}

/// One backup, verified.
fn backup(
    stage: &Stage,
    system: &System,
    arguments: &Value,
    kind: Kind,
    seconds: Duration,
) -> Result<Vec<f64>, String> {
    let mut daemon = stage.start(system)?;
    daemon.add_image("target", &stage.target, false)?;
    daemon.export("disk", true)?;
    let history = stage.history();
    let (before, after) = (history.fresh()?, history.fresh()?);
    let guest = kind.load().map(|load| {
        let guest = Guest::start(daemon.socket(), "disk", load, &history, before)?;
        sleep(seconds);
        Ok::<_, String>(guest)
    });
    let guest = guest.transpose()?;
    let point = history.now().while_writing(before..=before);
    // What was before does not count.
    daemon.reader_wait()?;
    let (start, cpu) = (Instant::now(), daemon.cpu_seconds()?);
    if let Some(guest) = &guest {
        guest.next_phase();
    }
    daemon.start_backup(arguments)?;
    if let Some(guest) = &guest {
        // What is sent from here on is none of the backup's.
        guest.write(after);
    }
    let cost = stage.finish_backup(&mut daemon, start, cpu)?;
    let phases = guest.map(Guest::stop).transpose()?.unwrap_or_default();
    let wait = daemon.reader_wait()?;
    daemon.quit()?;
    stage.verify_target(&point)?;
    Ok(row(stage, cost, wait, &phases))
}

fn row(stage: &Stage, cost: Cost, wait: ReaderWait, phases: &[Phase]) -> Vec<f64> {
    let mut row = vec![stage.speed(cost.seconds), stage.per_gib(cost.cpu_seconds)];
    match phases {
        [alone, during, ..] => {
            row.push(during.rate());
            row.extend(during.percentiles([0.5, 0.99, 0.999, 1.0]));
            row.extend([wait.count, wait.p99]);
            row.push(alone.rate());
            row.extend(alone.percentiles([0.5, 0.99]));
        }
        _ => row.resize(COLUMNS.len(), f64::NAN),
    }
    row
}
