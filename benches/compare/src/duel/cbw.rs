//! `cbw`: what the first write to a cluster costs the guest under a
//! copy-before-write filter.

use serde_json::json;

use crate::daemon::{Daemon, System};
use crate::duel::Bench;
use crate::duel::cell::{Better, Column, Pair, column};
use crate::duel::contest::{Contestant, Run, compete};
use crate::duel::stage::{Stage, entrant};
use crate::guest::{Guest, Load, Order, SMALL};
use crate::nbd_client::Pace;

const COLUMNS: &[Column] = &[
    column("guest", "writes/s", Better::More),
    column("p50", "ms", Better::Less),
    column("p99", "ms", Better::Less),
    column("p99.9", "ms", Better::Less),
    column("max", "ms", Better::Less),
    column("CPU", "us/write", Better::Less),
];

/// What stands below the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    None,
    /// A save that fails fails the guest's write.
    BreakGuestWrite,
    /// A save that fails breaks the snapshot, so the guest need not wait for the
    /// target.
    BreakSnapshot,
}

impl Filter {
    const ALL: [Self; 3] = [Self::None, Self::BreakGuestWrite, Self::BreakSnapshot];

    fn name(self) -> &'static str {
        match self {
            Self::None => "no filter",
            Self::BreakGuestWrite => "break-guest-write",
            Self::BreakSnapshot => "break-snapshot",
        }
    }

    /// Puts it above `disk`, saving to `target`; answers the node for the guest.
    pub(super) fn insert(self, daemon: &mut Daemon) -> Result<&'static str, String> {
        if self == Self::None {
            return Ok("disk");
        }
        let filter = json!({
            "driver": "copy-before-write", "node-name": "cbw",
            "file": "disk", "target": "target",
            "on-cbw-error": self.name(),
        });
        daemon.run("blockdev-add", &filter)?;
        Ok("cbw")
    }

    /// Takes it away, when all that it has to save is saved.
    pub(super) fn remove(self, daemon: &mut Daemon, node: &str) -> Result<(), String> {
        daemon.unexport(node)?;
        if self != Self::None {
            daemon.del_node("cbw")?;
        }
        Ok(())
    }
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    for (medium, format) in bench.disks() {
        let name = |depth: usize| format!("cbw/{}/{}/depth-{depth}", format.name(), medium.name());
        let depths = [1, 16]
            .into_iter()
            .filter(|&depth| bench.wants(&name(depth)));
        let depths: Vec<usize> = depths.collect();
        if depths.is_empty() {
            continue;
        }
        let stage = Stage::new(bench, medium, format)?;
        for depth in depths {
            let mut contestants = Vec::new();
            for filter in Filter::ALL {
                for system in &stage.systems {
                    let stage = &stage;
                    let run: Run<'_> = Box::new(move || first_writes(stage, system, filter, depth));
                    contestants.push(Contestant {
                        entrant: entrant(system, filter.name()),
                        run,
                    });
                }
            }
            let title = format!(
                "the first 4 KiB write to every 64 KiB, {depth} in flight; {}",
                stage.describe()
            );
            let mut cell = compete(name(depth), title, COLUMNS, contestants, bench.rounds());
            cell.pair_variants("qsd");
            for system in ["ringback", "qsd"] {
                let alone = cell.find(system, Filter::None.name());
                for filter in [Filter::BreakGuestWrite, Filter::BreakSnapshot] {
                    if let (Some(of), Some(by)) = (cell.find(system, filter.name()), alone) {
                        cell.pairs.push(Pair { of, by });
                    }
                }
            }
            bench.keep(cell);
            stage.verify_disk()?;
        }
    }
    Ok(())
}

fn first_writes(
    stage: &Stage,
    system: &System,
    filter: Filter,
    depth: usize,
) -> Result<Vec<f64>, String> {
    let mut daemon = stage.start(system)?;
    daemon.add_image("target", &stage.target, false)?;
    let node = filter.insert(&mut daemon)?;
    daemon.export(node, true)?;
    let point = stage.history.now();
    let load = Load {
        order: Order::FirstWrites,
        len: SMALL,
        pace: Pace::Depth(depth),
    };
    let cpu = daemon.cpu_seconds()?;
    let generation = stage.history.fresh()?;
    let guest = Guest::start(daemon.socket(), node, load, &stage.history, generation)?;
    let phases = guest.finish()?;
    let [phase] = &phases[..] else {
        return Err("a guest of one phase has another one".into());
    };
    let cpu = daemon.cpu_seconds()? - cpu;
    filter.remove(&mut daemon, node)?;
    daemon.del_image("target")?;
    daemon.quit()?;
    if filter != Filter::None {
        stage.verify_saved(&point, &stage.history.blocks_of(generation))?;
    }
    let quantiles = [0.5, 0.99, 0.999, 1.0];
    let mut row = vec![phase.rate()];
    row.extend(quantiles.map(|quantile| phase.percentile(quantile)));
    row.push(cpu * 1e6 / (phase.rate() * phase.seconds));
    Ok(row)
}
