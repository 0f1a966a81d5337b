//! `cbw`: what the first write to a cluster costs the guest under a
//! copy-before-write filter.

use serde_json::json;

use crate::daemon::{Daemon, System};
use crate::drive::Pace;
use crate::duel::Bench;
use crate::duel::cell::{Better, Column, column};
use crate::duel::stage::Stage;
use crate::guest::{Area, Guest, Load, Order, SMALL};

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
    /// target: ringback then has a save buffer.
    BreakSnapshot,
    /// The same without ringback's buffer, as in QEMU.
    Unbuffered,
}

impl Filter {
    /// All that save.
    pub(super) const SAVING: [Self; 3] =
        [Self::BreakGuestWrite, Self::BreakSnapshot, Self::Unbuffered];

    fn name(self) -> &'static str {
        match self {
            Self::None => "no filter",
            Self::BreakGuestWrite => "break-guest-write",
            Self::BreakSnapshot => "break-snapshot",
            Self::Unbuffered => "break-snapshot, save-buffer=0",
        }
    }

    /// None where a system knows nothing like it.
    pub(super) fn name_for(self, system: &System) -> Option<&'static str> {
        let is_extension = self == Self::Unbuffered;
        let knows_extensions = matches!(system, System::Ringback(_));
        (knows_extensions || !is_extension).then_some(self.name())
    }

    /// Puts it above `disk`, saving to `target`; answers the node for the guest.
    pub(super) fn insert(self, daemon: &mut Daemon) -> Result<&'static str, String> {
        let policy = match self {
            Self::None => return Ok("disk"),
            Self::BreakGuestWrite => "break-guest-write",
            Self::BreakSnapshot | Self::Unbuffered => "break-snapshot",
        };
        let mut filter = json!({
            "driver": "copy-before-write", "node-name": "cbw",
            "file": "disk", "target": "target", "on-cbw-error": policy,
        });
        if self == Self::Unbuffered {
            filter["save-buffer"] = 0.into();
        }
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
    bench.on_stages(
        bench.disks(),
        &[1, 16],
        |medium, format, depth| format!("cbw/{}/{}/depth-{depth}", format.name(), medium.name()),
        |bench, stage, depth, name| {
            let filters = [&[Filter::None], &Filter::SAVING[..]].concat();
            let contestants = stage.contestants(
                &filters,
                |system, filter| filter.name_for(system).map(str::to_owned),
                move |system, filter| first_writes(stage, system, filter, depth),
            );
            let title = format!("the first 4 KiB write to every 64 KiB, {depth} in flight");
            let mut cell = bench.compete(stage, name, &title, COLUMNS, contestants);
            // By the one that never has a buffer.
            cell.pair(
                ("ringback", Filter::Unbuffered.name()),
                ("qsd", Filter::BreakSnapshot.name()),
            );
            for system in ["ringback", "qsd"] {
                for filter in Filter::SAVING {
                    let alone = (system, Filter::None.name());
                    cell.pair((system, filter.name()), alone);
                }
            }
            cell
        },
    )
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
    let history = stage.history();
    let point = history.now();
    let load = Load {
        order: Order::FirstWrites,
        area: Area::All,
        len: SMALL,
        pace: Pace::Depth(depth),
    };
    let cpu = daemon.cpu_seconds()?;
    let generation = history.fresh()?;
    let guest = Guest::start(daemon.socket(), node, load, &history, generation)?;
    let phase = guest.finish()?;
    filter.remove(&mut daemon, node)?;
    // With what a save buffer has put off.
    let cpu = daemon.cpu_seconds()? - cpu;
    daemon.del_image("target")?;
    daemon.quit()?;
    if filter != Filter::None {
        stage.verify_saved(&point, &history.blocks_of(generation))?;
    }
    let mut row = vec![phase.rate()];
    row.extend(phase.percentiles([0.5, 0.99, 0.999, 1.0]));
    row.push(cpu * 1e6 / phase.answered());
    Ok(row)
}
