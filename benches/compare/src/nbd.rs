//! NBD servers on the same file in turn, with `fio` as the client.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use ringback_qmp_shim::size::parse_size;
use serde_json::Value;

use crate::cleanup::Scratch;
use crate::command::run;
use crate::daemon::process::Process;
use crate::figures::Spread;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Ringback,
    Qemu,
    Nbdkit,
}

const SERVERS: [Server; 3] = [Server::Ringback, Server::Qemu, Server::Nbdkit];

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
    fn name(self) -> &'static str {
        match self {
            Self::Ringback => "ringback daemon",
            Self::Qemu => "qemu-storage-daemon",
            Self::Nbdkit => "nbdkit file",
        }
    }

    fn command(self, options: &Options, directory: &Path) -> Command {
        if self == Self::Nbdkit {
            let mut command = Command::new("nbdkit");
            command.args(["-f", "-U", "nbd.sock", "file", "disk.raw"]);
            command.current_dir(directory);
            return command;
        }
        let mut command = match self {
            Self::Ringback => {
                let mut command = Command::new(&options.ringback);
                command.arg("daemon");
                command
            }
            _ => Command::new("qemu-storage-daemon"),
        };
        let file = directory.join("disk.raw");
        let socket = directory.join("nbd.sock");
        // O_DIRECT where there is any: what nbdkit keeps in the page cache is its own
        // affair.
        let file = format!(
            "file,node-name=file,filename={},cache.direct={}",
            file.display(),
            if directory.starts_with("/dev/shm") {
                "off"
            } else {
                "on"
            }
        );
        command.args(["--blockdev", &file]);
        command.args(["--blockdev", "raw,node-name=disk,file=file"]);
        let server = format!("addr.type=unix,addr.path={}", socket.display());
        command.args(["--nbd-server", &server]);
        command.args(["--export", "nbd,id=e,node-name=disk,name=,writable=on"]);
        command
    }
}

/// Starts a server and waits until it listens.
fn start(server: Server, options: &Options, directory: &Path) -> Result<Process, String> {
    let socket = directory.join("nbd.sock");
    // Of the one before.
    let _ = std::fs::remove_file(&socket);
    let mut command = server.command(options, directory);
    let mut process = Process::start(&mut command, &directory.join("log"))?;
    process
        .wait_socket(&socket)
        .map_err(|error| format!("{}: {error}", server.name()))?;
    Ok(process)
}

fn measure(
    server: Server,
    work: &Work,
    options: &Options,
    directory: &Path,
) -> Result<Outcome, String> {
    let running = start(server, options, directory)?;
    let before = running.cpu()?;
    let uri = format!(
        "--uri=nbd+unix:///?socket={}",
        directory.join("nbd.sock").display()
    );
    let mut command = Command::new("fio");
    command
        .args([
            "--name=client",
            "--ioengine=nbd",
            &uri,
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
    let used = (running.cpu()? - before).as_secs_f64();
    // Lines for people may come first.
    let json = &said[said.find('{').unwrap_or(0)..];
    let report: Value = serde_json::from_str(json).map_err(|error| format!("fio: {error}"))?;
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
    let scratch = Scratch::new(&options.directory)?;
    fill(options, &scratch.path().join("disk.raw"))?;
    for work in &WORKS {
        let mut outcomes: [Vec<Outcome>; 3] = Default::default();
        let mut failures: [Option<String>; 3] = Default::default();
        for round in 0..options.runs {
            for place in 0..SERVERS.len() {
                let index = (place + round) % SERVERS.len();
                if failures[index].is_some() {
                    continue;
                }
                match measure(SERVERS[index], work, options, scratch.path()) {
                    Ok(outcome) => outcomes[index].push(outcome),
                    Err(error) if SERVERS[index] == Server::Ringback => return Err(error),
                    Err(error) => failures[index] = Some(error),
                }
            }
        }
        print(work, &outcomes, &failures);
    }
    Ok(())
}

/// Data that is no zeroes.
fn fill(options: &Options, file: &Path) -> Result<(), String> {
    run(Command::new("fio")
        .args(["--name=fill", "--rw=write", "--bs=1M", "--ioengine=psync"])
        .args(["--refill_buffers=1", "--end_fsync=1"])
        .arg(format!("--size={}", options.size))
        .arg(format!("--filename={}", file.display())))
    .map(drop)
}

fn print(work: &Work, outcomes: &[Vec<Outcome>; 3], failures: &[Option<String>; 3]) {
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
    for (index, server) in SERVERS.iter().enumerate() {
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
    for (index, server) in SERVERS.iter().enumerate().skip(1) {
        if failures[index].is_some() {
            continue;
        }
        let ratio = |figure: fn(&Outcome) -> f64| {
            let pairs = outcomes[0].iter().zip(&outcomes[index]);
            Spread::new(pairs.map(|(ours, theirs)| figure(ours) / figure(theirs)))
        };
        let name = format!("ringback / {}", server.name());
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
