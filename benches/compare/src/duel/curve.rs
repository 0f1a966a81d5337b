//! `curve`: a full backup under a guest, by the number of workers.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::daemon::System;
use crate::duel::cell::{Better, Column, column};
use crate::duel::contest::{Contestant, Run, compete};
use crate::duel::stage::{Stage, entrant, workers_name};
use crate::duel::{Bench, Kind, domination};
use crate::guest::{Guest, Phase};

/// Columns that the curve is made of.
pub(crate) const SPEED: usize = 0;
pub(crate) const P99: usize = 4;

const COLUMNS: &[Column] = &[
    column("backup", "MB/s", Better::More),
    column("CPU", "s/GiB", Better::Less),
    column("guest", "writes/s", Better::More),
    column("p50", "ms", Better::Less),
    column("p99", "ms", Better::Less),
    column("p99.9", "ms", Better::Less),
    column("max", "ms", Better::Less),
    column("alone", "writes/s", Better::More),
    column("alone p50", "ms", Better::Less),
    column("alone p99", "ms", Better::Less),
];

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    for (medium, format) in bench.disks() {
        let name =
            |kind: Kind| format!("curve/{}/{}/{}", format.name(), medium.name(), kind.name());
        let guests = bench.options.guest.iter().copied();
        let guests: Vec<Kind> = guests.filter(|&kind| bench.wants(&name(kind))).collect();
        if guests.is_empty() {
            continue;
        }
        let stage = Stage::new(bench, medium, format)?;
        for kind in guests {
            let mut contestants = Vec::new();
            for &workers in &bench.options.workers {
                for system in &stage.systems {
                    let stage = &stage;
                    let seconds = bench.options.seconds;
                    let run: Run<'_> =
                        Box::new(move || backup(stage, system, workers, kind, seconds));
                    contestants.push(Contestant {
                        entrant: entrant(system, workers_name(workers)),
                        run,
                    });
                }
            }
            let title = format!(
                "full backup under {}; {}",
                kind.describe(),
                stage.describe()
            );
            let mut cell = compete(name(kind), title, COLUMNS, contestants, bench.rounds());
            cell.pair_variants("qsd");
            if kind != Kind::Idle {
                cell.notes
                    .extend(domination::verdict(&cell, "qsd", SPEED, P99));
            }
            bench.keep(cell);
            stage.verify_disk()?;
        }
    }
    Ok(())
}

/// One backup, verified.
fn backup(
    stage: &Stage,
    system: &System,
    workers: u32,
    kind: Kind,
    seconds: Duration,
) -> Result<Vec<f64>, String> {
    let mut daemon = stage.start(system)?;
    daemon.add_image("target", &stage.target, false)?;
    daemon.export("disk", true)?;
    let (before, after) = (stage.history.fresh()?, stage.history.fresh()?);
    let guest = kind.load().map(|load| {
        let guest = Guest::start(daemon.socket(), "disk", load, &stage.history, before)?;
        sleep(seconds);
        Ok::<_, String>(guest)
    });
    let guest = guest.transpose()?;
    let point = stage.history.now().while_writing(before);
    let arguments = stage.backup_arguments(system, workers);
    let (start, cpu) = (Instant::now(), daemon.cpu_seconds()?);
    if let Some(guest) = &guest {
        guest.next_phase();
    }
    daemon.start_backup(&arguments)?;
    if let Some(guest) = &guest {
        // What is sent from here on is none of the backup's.
        guest.write(after);
    }
    let cost = stage.finish_backup(&mut daemon, start, cpu)?;
    let phases = guest.map(Guest::stop).transpose()?.unwrap_or_default();
    daemon.quit()?;
    stage.verify_target(&point)?;
    Ok(row(stage, cost.seconds, cost.cpu_seconds, &phases))
}

fn row(stage: &Stage, seconds: f64, cpu_seconds: f64, phases: &[Phase]) -> Vec<f64> {
    let mut row = vec![
        stage.mib() * f64::from(1 << 20) / 1e6 / seconds,
        cpu_seconds / (stage.mib() / 1024.0),
    ];
    let figures = |phase: &Phase, quantiles: &[f64]| {
        let mut figures = vec![phase.rate()];
        figures.extend(quantiles.iter().map(|&quantile| phase.percentile(quantile)));
        figures
    };
    match phases {
        [alone, during, ..] => {
            row.extend(figures(during, &[0.5, 0.99, 0.999, 1.0]));
            row.extend(figures(alone, &[0.5, 0.99]));
        }
        _ => row.resize(COLUMNS.len(), f64::NAN),
    }
    row
}
