//! `idle-copy`: a disk that nobody uses, copied by whoever can.

use std::process::Command;
use std::time::Instant;

use nix::sys::resource::UsageWho;

use crate::command;
use crate::duel::Bench;
use crate::duel::cell::{Better, Cell, Column, Entrant, Pair, column};
use crate::duel::contest::Contestant;
use crate::duel::stage::{Stage, mib, workers_name};
use crate::images::{Format, qemu_cache};
use crate::load::Meter;

const SPEED: usize = 0;
const COLUMNS: &[Column] = &[
    column("copy", "MB/s", Better::More),
    column("CPU", "s/GiB", Better::Less),
    column("memory", "MiB", Better::Less),
];

/// The daemons run already, as they do on a host; a program is what somebody starts
/// there for this one copy.
const COUNTED: &str = "counted of a daemon: from the command to the end of the job, without \
    the daemon's start; of a program: from its start to its end; of both with a flush of the \
    target; of fio: the time that it reports, without its start, and processor time with it";

/// Depths of fio's reads and writes.
const FIO_DEPTHS: [u32; 3] = [2, 8, 32];

/// Programs that copy without a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    QemuImg,
    Nbdcopy,
    /// Reads the disk and writes the target, both at this depth: no copy, but what
    /// the device can do.
    Fio(u32),
}

impl Peer {
    fn entrant(self) -> Entrant {
        let (system, variant) = match self {
            Self::QemuImg => ("qemu-img convert", String::new()),
            Self::Nbdcopy => ("nbdcopy", String::new()),
            Self::Fio(depth) => ("fio", format!("depth {depth}")),
        };
        Entrant { system, variant }
    }

    /// Why it does not take part.
    fn missing(self, format: Format) -> Option<String> {
        let needed: &[&str] = match (self, format) {
            (Self::QemuImg, _) => &["qemu-img"],
            (Self::Nbdcopy, Format::Raw) => &["nbdcopy"],
            (Self::Nbdcopy, Format::Qcow2) => &["nbdcopy", "qemu-nbd"],
            (Self::Fio(_), Format::Raw) => &["fio"],
            (Self::Fio(_), Format::Qcow2) => return Some("fio knows no qcow2".into()),
        };
        let missing = needed.iter().find(|program| !command::is_there(program))?;
        Some(format!("{missing} is not there"))
    }

    fn command(self, stage: &Stage) -> Command {
        let (disk, target) = (&stage.disk.path, &stage.target.path);
        let format = stage.disk.format.name();
        let direct = stage.disk.direct;
        match self {
            Self::QemuImg => {
                let cache = qemu_cache(direct);
                let mut command = Command::new("qemu-img");
                command.args(["convert", "-n", "-W", "-m", "16", "-t", cache, "-T", cache]);
                command
                    .args(["-f", format, "-O", format])
                    .args([disk, target]);
                command
            }
            Self::Nbdcopy => {
                let mut command = Command::new("nbdcopy");
                command.arg("--flush");
                if stage.disk.format == Format::Raw {
                    command.args([disk, target]);
                    return command;
                }
                command.arg("--");
                // Not told to stay: it ends with the last connection, also if it misses
                // the signal that nbdcopy sends.
                for (mode, path) in [("-r", disk), ("--shared=0", target)] {
                    command.args(["[", "qemu-nbd", mode, "-f", format]);
                    command.args(["--cache", qemu_cache(direct)]);
                    command.arg(path).arg("]");
                }
                command
            }
            Self::Fio(depth) => {
                let mut command = Command::new("fio");
                command.args(["--output-format=json", "--ioengine=io_uring", "--bs=1M"]);
                command.arg(format!("--direct={}", u8::from(direct)));
                command.args([
                    format!("--iodepth={depth}"),
                    format!("--size={}", stage.disk.size),
                ]);
                command.args(["--name=read", "--rw=read", "--allow_file_create=0"]);
                command.arg(format!("--filename={}", disk.display()));
                command.args(["--name=write", "--rw=write", "--end_fsync=1"]);
                command.arg(format!("--filename={}", target.display()));
                command
            }
        }
    }

    fn copy(self, stage: &Stage) -> Result<Vec<f64>, String> {
        stage.target.spoil()?;
        stage.rest()?;
        let mut command = self.command(stage);
        let meter = Meter::start(UsageWho::RUSAGE_CHILDREN)?;
        let start = Instant::now();
        let said = command::run(&mut command)?;
        stage.target.sync()?;
        let elapsed = start.elapsed().as_secs_f64();
        let cpu = meter.stop(1)?.cpu_seconds;
        let seconds = match self {
            // Its start takes a third of a second.
            Self::Fio(_) => fio_seconds(&said)?,
            _ => elapsed,
        };
        if !matches!(self, Self::Fio(_)) {
            stage.verify_target(&stage.history().now())?;
        }
        Ok(row(stage, seconds, cpu, f64::NAN))
    }
}

/// The longer of its two jobs, from its report.
fn fio_seconds(said: &str) -> Result<f64, String> {
    let report = command::fio_report(said)?;
    let jobs = report["jobs"].as_array().into_iter().flatten();
    let millis = jobs.filter_map(|job| job["job_runtime"].as_f64());
    let longest = millis.max_by(f64::total_cmp).filter(|&millis| millis > 0.0);
    longest
        .map(|millis| millis / 1e3)
        .ok_or_else(|| "fio reports no time".into())
}

fn row(stage: &Stage, seconds: f64, cpu_seconds: f64, memory: f64) -> Vec<f64> {
    vec![stage.speed(seconds), stage.per_gib(cpu_seconds), memory]
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    let workers = &bench.options.workers;
    bench.on_stages(
        bench.disks(),
        &[()],
        |medium, format, ()| format!("idle-copy/{}/{}", format.name(), medium.name()),
        |bench, stage, (), name| {
            let mut contestants = stage.contestants(
                workers,
                |_, workers| Some(workers_name(workers)),
                move |system, workers| {
                    let (cost, memory) = stage.copy(system, workers)?;
                    Ok(row(stage, cost.seconds, cost.cpu_seconds, mib(memory)))
                },
            );
            let mut notes = vec![COUNTED.to_owned()];
            let peers = [Peer::QemuImg, Peer::Nbdcopy];
            for peer in peers.into_iter().chain(FIO_DEPTHS.map(Peer::Fio)) {
                let entrant = peer.entrant();
                if let Some(why) = peer.missing(stage.disk.format) {
                    notes.push(format!("{} is left out: {why}", entrant.name()));
                    continue;
                }
                contestants.push(Contestant {
                    entrant,
                    run: Box::new(move || peer.copy(stage)),
                });
            }
            let title = "a copy of an idle disk";
            let mut cell = bench.compete(stage, name, title, COLUMNS, contestants);
            cell.notes = notes;
            pair_best(&mut cell);
            cell
        },
    )
}

/// The best of ringback by the best of each other.
fn pair_best(cell: &mut Cell) {
    let Some(of) = cell.best("ringback", SPEED) else {
        return;
    };
    for peer in ["qsd", "qemu-img convert", "nbdcopy", "fio"] {
        let best = cell.best(peer, SPEED);
        if let Some(pair) = best.map(|by| Pair { of, by })
            && !cell.pairs.contains(&pair)
        {
            cell.pairs.push(pair);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_two_jobs_counts() {
        let said = r#"note: something
            {"jobs": [{"job_runtime": 250}, {"job_runtime": 1500}]}"#;
        assert_eq!(fio_seconds(said), Ok(1.5));
        assert!(fio_seconds(r#"{"jobs": []}"#).is_err());
    }
}
