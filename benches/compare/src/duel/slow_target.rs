//! `slow-target`: a guest under a copy-before-write filter whose target is slow, or
//! stops for a while, beside the same guest with the same target that does neither.

use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::command;
use crate::daemon::process::Process;
use crate::daemon::{Daemon, System};
use crate::drive::Pace;
use crate::duel::Bench;
use crate::duel::cbw::Filter;
use crate::duel::cell::{Better, Column, column};
use crate::duel::stage::Stage;
use crate::guest::{Area, CLUSTER, Guest, Load, Order, SMALL};
use crate::images::Format;
use crate::nbd::start_nbdkit;

const COLUMNS: &[Column] = &[
    column("guest", "writes/s", Better::More),
    column("p50", "ms", Better::Less),
    column("p99", "ms", Better::Less),
    column("max", "ms", Better::Less),
];

/// Bytes a second of the slow target.
const SPEED: u64 = 20_000_000;
/// How long the other one stops.
const PAUSE: Duration = Duration::from_secs(5);
/// First writes of the paced guest a second.
const RATE: u64 = 200;
const INTERVAL: Duration = Duration::from_micros(1_000_000 / RATE);
/// How much ringback keeps in memory by default.
const SAVE_BUFFER: u64 = 64 << 20;

// Even if whole clusters are saved the paced guest asks less of the slow target than
// it takes, and the buffer holds what comes while the other one stops.
const _: () = assert!(RATE * CLUSTER < SPEED);
const _: () = assert!(RATE * CLUSTER * PAUSE.as_secs() < SAVE_BUFFER);

/// What is wrong with the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// A throttle group lets no more through.
    Slow,
    /// An NBD server that stops, and goes on later.
    Stops,
}

/// A target, a guest.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    trouble: Trouble,
    pace: Pace,
    title: &'static str,
}

const CASES: [Case; 3] = [
    Case {
        name: "rated",
        trouble: Trouble::Slow,
        pace: Pace::Every(INTERVAL),
        title: "200 first writes a second, a target of 20 MB/s",
    },
    Case {
        name: "unlimited",
        trouble: Trouble::Slow,
        pace: Pace::Depth(16),
        title: "first writes, 16 in flight, a target of 20 MB/s",
    },
    Case {
        name: "stops",
        trouble: Trouble::Stops,
        pace: Pace::Every(INTERVAL),
        title: "200 first writes a second, a target that does not answer for 5 s",
    },
];

impl Case {
    /// How long its guest has to find clusters that nobody has written yet.
    fn lasts(self, seconds: Duration) -> Duration {
        match self.trouble {
            Trouble::Slow => seconds,
            Trouble::Stops => seconds + PAUSE + seconds,
        }
    }

    /// Bytes of the least disk whose clusters last for a paced guest. One without a
    /// pace may be through before: its rate is that of the whole disk then.
    fn needs(self, seconds: Duration) -> u64 {
        let Pace::Every(interval) = self.pace else {
            return 0;
        };
        let clusters = self.lasts(seconds).as_nanos().div_ceil(interval.as_nanos());
        u64::try_from(clusters).map_or(u64::MAX, |clusters| clusters.saturating_mul(CLUSTER))
    }
}

/// A contender.
#[derive(Clone, Copy, Debug)]
struct Variant {
    filter: Filter,
    /// Without it all else is the same.
    in_trouble: bool,
}

impl Variant {
    fn name(self, filter: &str) -> String {
        if self.in_trouble {
            return filter.to_owned();
        }
        format!("{filter}, sound target")
    }
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    let mut disks = bench.disks();
    if disks.iter().any(|&(_, format)| format != Format::Raw) {
        println!("slow-target is left out for qcow2: its targets are raw");
        disks.retain(|&(_, format)| format == Format::Raw);
    }
    let has_nbdkit = command::is_there("nbdkit");
    if !has_nbdkit {
        println!("slow-target with a target that stops is left out: nbdkit is not there");
    }
    let there = |case: &Case| has_nbdkit || case.trouble != Trouble::Stops;
    let mut cases: Vec<Case> = CASES.into_iter().filter(there).collect();
    let (seconds, size) = (bench.options.seconds, bench.options.size);
    cases.retain(|case| {
        let needed = case.needs(seconds);
        if needed > size {
            println!(
                "slow-target/{} is left out: its guest writes to each cluster once, which for {:?} \
                 takes a disk of {} MiB or more",
                case.name,
                case.lasts(seconds),
                needed.div_ceil(1 << 20)
            );
        }
        needed <= size
    });
    bench.on_stages(
        disks,
        &cases,
        |medium, _, case| format!("slow-target/raw/{}/{}", medium.name(), case.name),
        |bench, stage, case, name| {
            let variants = Filter::SAVING
                .map(|filter| [true, false].map(|in_trouble| Variant { filter, in_trouble }));
            let contestants = stage.contestants(
                variants.as_flattened(),
                |system, variant| Some(variant.name(variant.filter.name_for(system)?)),
                move |system, variant| under_trouble(stage, system, case, variant, seconds),
            );
            let mut cell = bench.compete(stage, name, case.title, COLUMNS, contestants);
            for system in &stage.systems {
                for filter in Filter::SAVING {
                    let Some(filter_name) = filter.name_for(system) else {
                        continue;
                    };
                    let [of, by] = [true, false]
                        .map(|in_trouble| Variant { filter, in_trouble }.name(filter_name));
                    cell.pair((system.name(), &of), (system.name(), &by));
                }
            }
            cell
        },
    )
}

fn under_trouble(
    stage: &Stage,
    system: &System,
    case: Case,
    variant: Variant,
    seconds: Duration,
) -> Result<Vec<f64>, String> {
    let mut daemon = stage.start(system)?;
    let server = match case.trouble {
        Trouble::Slow => {
            // No limit is one of 0.
            let limit = if variant.in_trouble { SPEED } else { 0 };
            add_throttled_target(&mut daemon, stage, limit)?;
            None
        }
        Trouble::Stops => Some(add_nbd_target(&mut daemon, stage)?),
    };
    let node = variant.filter.insert(&mut daemon)?;
    daemon.export(node, true)?;
    let history = stage.history();
    let point = history.now();
    let load = Load {
        order: Order::FirstWrites,
        area: Area::All,
        len: SMALL,
        pace: case.pace,
    };
    let generation = history.fresh()?;
    let guest = Guest::start(daemon.socket(), node, load, &history, generation)?;
    sleep(seconds);
    if let Some(server) = &server {
        if variant.in_trouble {
            server.signal(Signal::SIGSTOP)?;
        }
        sleep(PAUSE);
        if variant.in_trouble {
            server.signal(Signal::SIGCONT)?;
        }
        sleep(seconds);
    }
    let phase = guest.stop_in_first_phase()?;
    variant.filter.remove(&mut daemon, node)?;
    daemon.del_node("target")?;
    daemon.quit()?;
    // It has written what it has answered.
    drop(server);
    stage.verify_saved(&point, &history.blocks_of(generation))?;
    let mut row = vec![phase.rate()];
    row.extend(phase.percentiles([0.5, 0.99, 1.0]));
    Ok(row)
}

/// The target behind a throttle filter.
fn add_throttled_target(daemon: &mut Daemon, stage: &Stage, limit: u64) -> Result<(), String> {
    let group = json!({
        "qom-type": "throttle-group", "id": "slow", "limits": { "bps-write": limit },
    });
    daemon.run("object-add", &group)?;
    daemon.add_image("behind", &stage.target, false)?;
    let node = json!({
        "driver": "throttle", "node-name": "target",
        "throttle-group": "slow", "file": "behind",
    });
    daemon.run("blockdev-add", &node).map(drop)
}

/// The target behind a server.
fn add_nbd_target(daemon: &mut Daemon, stage: &Stage) -> Result<Process, String> {
    let socket = stage.place.path().join("target.sock");
    let log = stage.place.path().join("nbdkit.log");
    let server = start_nbdkit(&stage.target.path, &socket, &log)?;
    let node = json!({
        "driver": "nbd", "node-name": "target",
        "server": { "type": "unix", "path": socket },
    });
    daemon.run("blockdev-add", &node)?;
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paced_guest_needs_a_cluster_for_each_write() {
        let [rated, unlimited, stops] = CASES;
        let second = Duration::from_secs(1);
        assert_eq!(rated.needs(second), 200 * CLUSTER);
        assert_eq!(unlimited.needs(second), 0);
        assert_eq!(stops.needs(second), 1400 * CLUSTER);
    }
}
