//! `slow-target`: a guest under a copy-before-write filter whose target is slow, or
//! stops for a while.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::command;
use crate::daemon::process::Process;
use crate::daemon::{Daemon, System};
use crate::duel::Bench;
use crate::duel::cbw::Filter;
use crate::duel::cell::{Better, Column, column};
use crate::duel::contest::{Contestant, Run, compete};
use crate::duel::stage::{Stage, entrant};
use crate::guest::{Guest, Load, Order, SMALL};
use crate::nbd_client::Pace;
use crate::place::Format;

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
/// A guest whose saves, 13 MB/s, such a target can take.
const INTERVAL: Duration = Duration::from_millis(5);

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

const FILTERS: [(Filter, &str); 2] = [
    (Filter::BreakGuestWrite, "break-guest-write"),
    (Filter::BreakSnapshot, "break-snapshot"),
];

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    for (medium, format) in bench.disks() {
        if format != Format::Raw {
            println!("slow-target is left out for qcow2: its targets are raw");
            continue;
        }
        let name = |case: &Case| format!("slow-target/raw/{}/{}", medium.name(), case.name);
        let wanted = |case: &&Case| {
            if !bench.wants(&name(case)) {
                return false;
            }
            let there = case.trouble == Trouble::Slow || command::is_there("nbdkit");
            if !there {
                println!("{} is left out: nbdkit is not there", name(case));
            }
            there
        };
        let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
        if cases.is_empty() {
            continue;
        }
        let stage = Stage::new(bench, medium, format)?;
        for case in cases {
            let mut contestants = Vec::new();
            for (filter, filter_name) in FILTERS {
                for system in &stage.systems {
                    let (stage, seconds) = (&stage, bench.options.seconds);
                    let run: Run<'_> =
                        Box::new(move || under_trouble(stage, system, case, filter, seconds));
                    contestants.push(Contestant {
                        entrant: entrant(system, filter_name),
                        run,
                    });
                }
            }
            let title = format!("{}; {}", case.title, stage.describe());
            let mut cell = compete(name(case), title, COLUMNS, contestants, bench.rounds());
            cell.pair_variants("qsd");
            bench.keep(cell);
            stage.verify_disk()?;
        }
    }
    Ok(())
}

fn under_trouble(
    stage: &Stage,
    system: &System,
    case: &Case,
    filter: Filter,
    seconds: Duration,
) -> Result<Vec<f64>, String> {
    let mut daemon = stage.start(system)?;
    let server = match case.trouble {
        Trouble::Slow => {
            add_slow_target(&mut daemon, stage)?;
            None
        }
        Trouble::Stops => Some(add_nbd_target(&mut daemon, stage)?),
    };
    let node = filter.insert(&mut daemon)?;
    daemon.export(node, true)?;
    let point = stage.history.now();
    let load = Load {
        order: Order::FirstWrites,
        len: SMALL,
        pace: case.pace,
    };
    let generation = stage.history.fresh()?;
    let guest = Guest::start(daemon.socket(), node, load, &stage.history, generation)?;
    sleep(seconds);
    if let Some(server) = &server {
        server.signal(Signal::SIGSTOP)?;
        sleep(PAUSE);
        server.signal(Signal::SIGCONT)?;
        sleep(seconds);
    }
    let phases = guest.stop()?;
    filter.remove(&mut daemon, node)?;
    daemon.del_node("target")?;
    daemon.quit()?;
    // It has written what it has answered.
    drop(server);
    stage.verify_saved(&point, &stage.history.blocks_of(generation))?;
    let [phase] = &phases[..] else {
        return Err("a guest of one phase has another one".into());
    };
    let quantiles = [0.5, 0.99, 1.0];
    let mut row = vec![phase.rate()];
    row.extend(quantiles.map(|quantile| phase.percentile(quantile)));
    Ok(row)
}

/// The target behind a throttle filter.
fn add_slow_target(daemon: &mut Daemon, stage: &Stage) -> Result<(), String> {
    let group = json!({
        "qom-type": "throttle-group", "id": "slow", "limits": { "bps-write": SPEED },
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
    // Of the one before.
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("nbdkit");
    command.arg("-f").arg("-U").arg(&socket).arg("file");
    command.arg(&stage.target.path);
    let log = stage.place.path().join("nbdkit.log");
    let mut server = Process::start(&mut command, &log)?;
    server
        .wait_socket(&socket)
        .map_err(|error| format!("nbdkit: {error}"))?;
    let node = json!({
        "driver": "nbd", "node-name": "target",
        "server": { "type": "unix", "path": socket },
    });
    daemon.run("blockdev-add", &node)?;
    Ok(server)
}
