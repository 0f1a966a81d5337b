//! `drain`: how long a guest's request is held when a job or a filter comes, and
//! when it goes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::{Daemon, JOB, System};
use crate::duel::cell::{Better, Column, column};
use crate::duel::contest::{Contestant, Run, compete};
use crate::duel::stage::{Stage, entrant};
use crate::duel::{Bench, Kind};
use crate::figures::Spread;
use crate::guest::{Guest, Phase};

const COLUMNS: &[Column] = &[
    column("usual max", "ms", Better::Less),
    column("max at start", "ms", Better::Less),
    column("by usual", "x", Better::Less),
    column("max at end", "ms", Better::Less),
    column("command", "ms", Better::Less),
];

/// Stretches before the command, each with a longest latency.
const BEFORE: usize = 8;

/// What comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comer {
    /// A job with nothing to copy: it ends at once, and no write waits for a save.
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

    fn start(self, daemon: &mut Daemon) -> Result<(), String> {
        match self {
            Self::EmptyJob => {
                let job = json!({ "sync": "bitmap", "bitmap": "nothing", "bitmap-mode": "never" });
                daemon.start_backup(&job)
            }
            Self::SavingJob => daemon.start_backup(&json!({ "sync": "none" })),
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
            // It has ended by itself.
            Self::EmptyJob => daemon.wait_backup(),
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
    for (medium, format) in bench.disks() {
        let name =
            |kind: Kind| format!("drain/{}/{}/{}", format.name(), medium.name(), kind.name());
        let guests = [Kind::Rated, Kind::Random].into_iter();
        let guests: Vec<Kind> = guests.filter(|&kind| bench.wants(&name(kind))).collect();
        if guests.is_empty() {
            continue;
        }
        let stage = Stage::new(bench, medium, format)?;
        for kind in guests {
            let mut contestants = Vec::new();
            for comer in Comer::ALL {
                for system in &stage.systems {
                    let (stage, seconds) = (&stage, bench.options.seconds);
                    let run: Run<'_> =
                        Box::new(move || come_and_go(stage, system, comer, kind, seconds));
                    contestants.push(Contestant {
                        entrant: entrant(system, comer.name()),
                        run,
                    });
                }
            }
            let title = format!(
                "what comes and goes under {}; {}",
                kind.describe(),
                stage.describe()
            );
            let mut cell = compete(name(kind), title, COLUMNS, contestants, bench.rounds());
            cell.pair_variants("qsd");
            bench.keep(cell);
            stage.verify_disk()?;
        }
    }
    Ok(())
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
    let (before, after) = (stage.history.fresh()?, stage.history.fresh()?);
    let guest = Guest::start(daemon.socket(), node, load, &stage.history, before)?;
    let stretch = seconds / 4;
    for _ in 0..BEFORE {
        sleep(stretch);
        guest.next_phase();
    }
    let point = stage.history.now().while_writing(before);
    let begin = Instant::now();
    comer.start(&mut daemon)?;
    let command = begin.elapsed();
    guest.write(after);
    sleep(stretch);
    guest.next_phase();
    // Answered while the job was there for sure.
    let saved = stage.history.blocks_of(after);
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
    Ok(row(&phases, command))
}

fn row(phases: &[Phase], command: Duration) -> Vec<f64> {
    let longest = |phase: &Phase| Some(phase.longest()).filter(|longest| longest.is_finite());
    let usual: Vec<f64> = phases.iter().take(BEFORE).filter_map(longest).collect();
    let usual = if usual.is_empty() {
        f64::NAN
    } else {
        Spread::new(usual).middle
    };
    let at = |index: usize| phases.get(index).and_then(longest).unwrap_or(f64::NAN);
    let (start, end) = (at(BEFORE), at(BEFORE + 1));
    vec![
        usual,
        start,
        start / usual,
        end,
        command.as_secs_f64() * 1e3,
    ]
}
