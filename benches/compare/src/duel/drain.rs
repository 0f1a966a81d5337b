//! `drain`: how long a guest's request is held when a job or a filter comes, and
//! when it goes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::{Daemon, JOB, System};
use crate::duel::cell::{Better, Cell, Column, column};
use crate::duel::stage::Stage;
use crate::duel::{Bench, Kind};
use crate::figures::Spread;
use crate::guest::{Guest, Phase};

const COLUMNS: &[Column] = &[
    column("usual max", "ms", Better::Less),
    column("max without", "ms", Better::Less),
    column("max at start", "ms", Better::Less),
    column("start by without", "x", Better::Less),
    column("max at end", "ms", Better::Less),
    column("end by without", "x", Better::Less),
    column("command", "ms", Better::Less),
];
const START_BY_WITHOUT: usize = 3;

/// A guest that is held longer than that is taken for dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Stretches before the command, each with a longest latency. The usual one is their
/// median. Who comes may hold a request as long as the slowest one in flight takes, and
/// that is the longest of all of them.
const BEFORE: usize = 8;

/// What comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comer {
    /// A job with nothing to copy: no write waits for a save, and it is ready to end at
    /// once.
    EmptyJob,
    /// A job that saves what is overwritten.
    SavingJob,
    /// A copy-before-write filter that saves nothing, put in by `blockdev-reopen`.
    Filter,
}

impl Comer {
    const ALL: [Self; 3] = [Self::EmptyJob, Self::SavingJob, Self::Filter];

    fn name(self) -> &'static str {
        match self {
            Self::EmptyJob => "empty job",
            Self::SavingJob => "job, sync=none",
            Self::Filter => "filter",
        }
    }

    fn prepare(self, daemon: &mut Daemon) -> Result<&'static str, String> {
        // Without a bit, and it gets none.
        let bitmap = json!({ "node": "disk", "name": "nothing", "disabled": true });
        daemon.run("block-dirty-bitmap-add", &bitmap)?;
        if self != Self::Filter {
            return Ok("disk");
        }
        let top = json!({ "driver": "raw", "node-name": "top", "file": "disk" });
        daemon.run("blockdev-add", &top)?;
        Ok("top")
    }

    fn start(self, daemon: &mut Daemon, stage: &Stage, system: &System) -> Result<(), String> {
        match self {
            Self::EmptyJob => {
                // Without finalizing it would go while its start is still looked at.
                let job = json!({
                    "sync": "bitmap", "bitmap": "nothing", "bitmap-mode": "never",
                    "auto-finalize": false,
                });
                daemon.start_backup(&stage.extended(system, job))
            }
            Self::SavingJob => {
                daemon.start_backup(&stage.extended(system, json!({ "sync": "none" })))
            }
            Self::Filter => {
                let filter = json!({
                    "driver": "copy-before-write", "node-name": "cbw",
                    "file": "disk", "target": "target",
                    "bitmap": { "node": "disk", "name": "nothing" },
                });
                daemon.run("blockdev-add", &filter)?;
                daemon.run("blockdev-reopen", &reopened("cbw")).map(drop)
            }
        }
    }

    fn end(self, daemon: &mut Daemon) -> Result<(), String> {
        match self {
            Self::EmptyJob => {
                daemon.qmp.wait_status(JOB, "pending")?;
                daemon.run("job-finalize", &json!({ "id": JOB }))?;
                daemon.wait_backup()
            }
            Self::SavingJob => {
                daemon.run("job-cancel", &json!({ "id": JOB }))?;
                daemon.qmp.wait_gone(JOB)
            }
            Self::Filter => {
                daemon.run("blockdev-reopen", &reopened("disk"))?;
                daemon.del_node("cbw")
            }
        }
    }
}

fn reopened(file: &str) -> Value {
    json!({ "options": [{ "driver": "raw", "node-name": "top", "file": file }] })
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    let seconds = bench.options.seconds;
    bench.on_stages(
        bench.disks(),
        &[Kind::Rated, Kind::Random],
        |medium, format, kind| {
            let (format, medium) = (format.name(), medium.name());
            format!("drain/{format}/{medium}/{}", kind.name())
        },
        |bench, stage, kind, name| {
            let contestants = stage.contestants(
                &Comer::ALL,
                |_, comer| Some(comer.name().to_owned()),
                move |system, comer| come_and_go(stage, system, comer, kind, seconds),
            );
            let title = format!("what comes and goes under {}", kind.describe());
            let mut cell = bench.compete(stage, name, &title, COLUMNS, contestants);
            cell.notes.extend(verdict(&cell));
            cell
        },
    )
}

/// A sentence on who of ringback holds the guest longer than it is held without.
fn verdict(cell: &Cell) -> Option<String> {
    let goal = "at ringback's start no request takes longer than the longest without";
    if let Some(why) = cell.why_not_judged(&["ringback"]) {
        return Some(format!("{goal}: {why}"));
    }
    let ours = cell.series_of(&["ringback"]);
    let ratios: Vec<(&str, f64)> = ours
        .filter_map(|series| {
            // The goal is one for every request: the worst round counts.
            let ratios = series.spread(START_BY_WITHOUT)?;
            Some((series.entrant.variant.as_str(), ratios.high))
        })
        .collect();
    if ratios.is_empty() {
        return None;
    }
    let late = ratios.iter().filter(|(_, ratio)| *ratio > 1.0);
    let late: Vec<&str> = late.map(|(variant, _)| *variant).collect();
    Some(if late.is_empty() {
        format!("{goal}: met")
    } else {
        format!("{goal}: missed by {}", late.join("; "))
    })
}

fn come_and_go(
    stage: &Stage,
    system: &System,
    comer: Comer,
    kind: Kind,
    seconds: Duration,
) -> Result<Vec<f64>, String> {
    let mut daemon = stage.start(system)?;
    daemon.add_image("target", &stage.target, false)?;
    let node = comer.prepare(&mut daemon)?;
    daemon.export(node, true)?;
    let load = kind.load().ok_or("a guest without a load")?;
    let history = stage.history();
    let (before, after) = (history.fresh()?, history.fresh()?);
    let guest = Guest::start(daemon.socket(), node, load, &history, before)?;
    // Long enough for a request on a busy machine.
    let stretch = (seconds / 4).max(Duration::from_millis(50));
    for _ in 0..BEFORE {
        sleep(stretch);
        guest.next_phase();
    }
    let point = history.now().while_writing(before..=before);
    let begin = Instant::now();
    comer.start(&mut daemon, stage, system)?;
    let command = begin.elapsed();
    guest.write(after);
    sleep(stretch);
    guest.next_phase();
    // A stretch of its own: who is held at the start is answered in it, and not held at
    // the end as well. All that is answered here was sent while the job was there.
    let saved = loop {
        sleep(stretch);
        let saved = history.blocks_of(after);
        if !saved.is_empty() {
            break saved;
        }
        if begin.elapsed() > ANSWER_LIMIT {
            let limit = ANSWER_LIMIT.as_secs();
            return Err(format!(
                "no write was answered in {limit} s after the start"
            ));
        }
    };
    guest.next_phase();
    comer.end(&mut daemon)?;
    sleep(stretch);
    let phases = guest.stop()?;
    daemon.unexport(node)?;
    if comer == Comer::Filter {
        daemon.del_node("top")?;
    }
    daemon.del_image("target")?;
    daemon.quit()?;
    if comer == Comer::SavingJob {
        stage.verify_saved(&point, &saved)?;
    }
    row(&phases, command)
}

fn row(phases: &[Phase], command: Duration) -> Result<Vec<f64>, String> {
    // What the command holds is answered later, so it is not among these.
    let before = phases.iter().take(BEFORE).map(Phase::longest);
    let before: Vec<f64> = before.filter(|longest| longest.is_finite()).collect();
    if before.is_empty() {
        return Err("no write was answered before the start".into());
    }
    let Spread { middle, high, .. } = Spread::new(before);
    let Some([start, _between, end]) = phases.get(BEFORE..) else {
        return Err("the guest has not been there at the start and the end".into());
    };
    let (start, end) = (start.longest_touching(), end.longest_touching());
    Ok(vec![
        middle,
        high,
        start,
        start / high,
        end,
        end / high,
        command.as_secs_f64() * 1e3,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::tests::phase;

    #[test]
    fn the_start_is_measured_by_the_longest_without() {
        let mut phases: Vec<Phase> = [1, 2, 1, 1, 10, 1, 1, 1].map(phase).into();
        phases.extend([phase(20), phase(99), phase(5)]);
        let row = row(&phases, Duration::from_millis(3)).unwrap();
        let rounded = row.iter().map(|figure| (figure * 10.0).round() / 10.0);
        let expected = [1.0, 10.0, 20.0, 2.0, 5.0, 0.5, 3.0];
        assert_eq!(rounded.collect::<Vec<_>>(), expected);
    }
}
