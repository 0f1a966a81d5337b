//! NBD servers on the same file in turn, with `fio` as the client.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use ringback_qmp_shim::size::parse_size;
use serde_json::Value;

use crate::command::{fio_report, run};
use crate::daemon::process::Process;
use crate::daemon::{Daemon, QSD, System};
use crate::figures::Spread;
use crate::images::Format;
use crate::place::{Image, Medium, Place};

/// What is compared.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The program under test
    #[arg(long, default_value = "target/release/ringback")]
    ringback: PathBuf,
    /// Where the file is made; /dev/shm for a disk that costs nothing
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    directory: PathBuf,
    /// Size of the disk
    #[arg(long, value_parser = parse_size, default_value = "1G")]
    size: u64,
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 3)]
    seconds: u32,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Server {
    Daemon(System),
    Nbdkit,
}

/// One that runs. Ended when dropped.
enum Running {
    Daemon(Daemon),
    Nbdkit(Process),
}

impl Running {
    fn process(&self) -> &Process {
        match self {
            Self::Daemon(daemon) => &daemon.process,
            Self::Nbdkit(process) => process,
        }
    }
}

/// What a client does.
struct Work {
    title: &'static str,
    kind: &'static str,
    len: &'static str,
    connections: u32,
    /// Requests in flight on each connection.
    depth: u32,
}

const WORKS: [Work; 5] = [
    work("4 KiB random reads", "randread", "4k", 1, 32),
    work("4 KiB random reads", "randread", "4k", 4, 8),
    work("4 KiB random writes", "randwrite", "4k", 1, 32),
    work("4 KiB random writes", "randwrite", "4k", 4, 8),
    work("1 MiB sequential reads", "read", "1m", 1, 8),
];

const fn work(
    title: &'static str,
    kind: &'static str,
    len: &'static str,
    connections: u32,
    depth: u32,
) -> Work {
    Work {
        title,
        kind,
        len,
        connections,
        depth,
    }
}

/// Requests a second, and processor time of the server for each, in microseconds.
struct Outcome {
    rate: f64,
    cpu_micros: f64,
}

impl Server {
    /// ringback first: the others are what it is divided by.
    fn all(options: &Options) -> [Self; 3] {
        [
            Self::Daemon(System::Ringback(options.ringback.clone())),
            // Its default.
            Self::Daemon(System::Qemu("threads")),
            Self::Nbdkit,
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Daemon(System::Ringback(_)) => "ringback daemon",
            Self::Daemon(System::Qemu(_)) => QSD,
            Self::Nbdkit => "nbdkit file",
        }
    }

    /// Starts it with a disk; answers also where the disk is offered.
    fn start(&self, place: &Place, disk: &Image) -> Result<(Running, String), String> {
        match self {
            Self::Daemon(system) => {
                let mut daemon = Daemon::start(system, place.path())?;
                daemon.add_image("disk", disk, false)?;
                daemon.export("disk", true)?;
                let uri = uri("disk", daemon.socket());
                Ok((Running::Daemon(daemon), uri))
            }
            Self::Nbdkit => {
                let socket = place.path().join("nbdkit.sock");
                let log = place.path().join("nbdkit.log");
                let process = start_nbdkit(&disk.path, &socket, &log)?;
                Ok((Running::Nbdkit(process), uri("", &socket)))
            }
        }
    }
}

fn uri(export: &str, socket: &Path) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

/// A server of a raw file, which listens.
pub(crate) fn start_nbdkit(file: &Path, socket: &Path, log: &Path) -> Result<Process, String> {
    // Of the one before.
    let _ = std::fs::remove_file(socket);
    let mut command = Command::new("nbdkit");
    command.arg("-f").arg("-U").arg(socket).arg("file");
    let mut process = Process::start(command.arg(file), log)?;
    process
        .wait_socket(socket)
        .map_err(|error| format!("nbdkit: {error}"))?;
    Ok(process)
}

fn measure(
    server: &Server,
    work: &Work,
    options: &Options,
    place: &Place,
    disk: &Image,
) -> Result<Outcome, String> {
    let (running, uri) = server.start(place, disk)?;
    let before = running.process().cpu()?;
    let mut command = Command::new("fio");
    command
        .args([
            "--name=client",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--output-format=json",
        ])
        .args(["--time_based", "--thread", "--group_reporting"])
        .args([
            format!("--rw={}", work.kind),
            format!("--bs={}", work.len),
            format!("--iodepth={}", work.depth),
            format!("--numjobs={}", work.connections),
            format!("--size={}", options.size),
            format!("--runtime={}", options.seconds),
        ]);
    let said = run(&mut command)?;
    let used = (running.process().cpu()? - before).as_secs_f64();
    let report = fio_report(&said)?;
    let side = if work.kind.ends_with("write") {
        "write"
    } else {
        "read"
    };
    let number = |name: &str| {
        let value = report.pointer(&format!("/jobs/0/{side}/{name}"));
        value
            .and_then(Value::as_f64)
            .ok_or_else(|| format!("fio reports no {name}"))
    };
    Ok(Outcome {
        rate: number("iops")?,
        cpu_micros: used * 1e6 / number("total_ios")?,
    })
}

/// Runs all of them in turn and prints medians and ratios.
///
/// # Errors
///
/// If ringback or the client fails. Another server that is not there is left out.
pub(crate) fn compare(options: &Options) -> Result<(), String> {
    // O_DIRECT where there is any: what nbdkit keeps in the page cache is its own affair.
    let medium = if options.directory.starts_with("/dev/shm") {
        Medium::Memory
    } else {
        Medium::File
    };
    let place = Place::new(medium, &options.directory, &options.directory)?;
    let disk = place.disk(Format::Raw, options.size)?;
    let servers = Server::all(options);
    for work in &WORKS {
        let mut outcomes: [Vec<Outcome>; 3] = Default::default();
        let mut failures: [Option<String>; 3] = Default::default();
        for round in 0..options.runs {
            for turn in 0..servers.len() {
                let index = (turn + round) % servers.len();
                if failures[index].is_some() {
                    continue;
                }
                match measure(&servers[index], work, options, &place, &disk) {
                    Ok(outcome) => outcomes[index].push(outcome),
                    Err(error) if index == 0 => return Err(error),
                    Err(error) => failures[index] = Some(error),
                }
            }
        }
        print(work, &servers, &outcomes, &failures);
    }
    Ok(())
}

fn print(
    work: &Work,
    servers: &[Server; 3],
    outcomes: &[Vec<Outcome>; 3],
    failures: &[Option<String>; 3],
) {
    let Work {
        title,
        connections,
        depth,
        ..
    } = work;
    println!("{title}, {connections} connection(s), depth {depth} on each");
    println!(
        "  {:<36} {:^32}  {:^26}",
        "", "requests/s", "CPU us/request"
    );
    let line = |name: &str, rate: Spread, digits: usize, cpu: Spread, note: &str| {
        let columns = |values: Spread, width: usize, digits: usize| {
            let Spread { low, middle, high } = values;
            format!("{low:>width$.digits$} {middle:>width$.digits$} {high:>width$.digits$}")
        };
        let (rate, cpu) = (columns(rate, 10, digits), columns(cpu, 8, 2));
        println!("  {name:<36} {rate}  {cpu}{note}");
    };
    let figures = |outcomes: &[Outcome], figure: fn(&Outcome) -> f64| {
        Spread::new(outcomes.iter().map(figure))
    };
    for (index, server) in servers.iter().enumerate() {
        match &failures[index] {
            Some(failure) => println!("  {:<36} failed: {failure}", server.name()),
            None => {
                let all = &outcomes[index];
                let rate = figures(all, |outcome| outcome.rate);
                let cpu = figures(all, |outcome| outcome.cpu_micros);
                line(server.name(), rate, 0, cpu, "");
            }
        }
    }
    for (index, server) in servers.iter().enumerate().skip(1) {
        let name = format!("ringback / {}", server.name());
        if failures[index].is_some() {
            println!("  {name:<36} not judged: {} failed", server.name());
            continue;
        }
        let ratio = |figure: fn(&Outcome) -> f64| {
            let pairs = outcomes[0].iter().zip(&outcomes[index]);
            Spread::new(pairs.map(|(ours, theirs)| figure(ours) / figure(theirs)))
        };
        let (rate, cpu) = (
            ratio(|outcome| outcome.rate),
            ratio(|outcome| outcome.cpu_micros),
        );
        let note = match rate.middle >= 1.0 && cpu.middle <= 1.0 {
            true => "  goal ahead in both: met",
            false => "  goal ahead in both: missed",
        };
        line(&name, rate, 3, cpu, note);
    }
    println!();
}
