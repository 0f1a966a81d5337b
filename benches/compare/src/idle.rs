//! ringback's commands and a peer on the same files in turn, A B A B.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;
use ringback_qmp_shim::size::parse_size;
use serde_json::Value;

use crate::cleanup::Scratch;
use crate::command::{fio_report, run};
use crate::figures::Spread;

/// What they all need.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The program under test
    #[arg(long, default_value = "target/release/ringback")]
    ringback: PathBuf,
    /// Where the files are made
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    directory: PathBuf,
    /// Size of the disk
    #[arg(long, value_parser = parse_size, default_value = "4G")]
    size: u64,
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Copies in flight, for both
    #[arg(long, default_value_t = 16)]
    workers: u32,
    /// Seconds of each run of a guest
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scenario {
    Backup,
    Guest,
}

/// One figure of each program and run.
struct Figures {
    ringback: Vec<f64>,
    peer: Vec<f64>,
}

/// Runs both in turn and prints medians and ratios.
pub(crate) fn compare(scenario: Scenario, args: &Options) -> Result<(), String> {
    let scratch = Scratch::new(&args.directory)?;
    let (source, target) = (
        scratch.path().join("source.raw"),
        scratch.path().join("target.raw"),
    );
    fill(args, &source)?;
    let mut figures = Figures {
        ringback: Vec::new(),
        peer: Vec::new(),
    };
    if matches!(scenario, Scenario::Backup) {
        // Once uncounted: afterwards every run finds a target with all blocks.
        convert(args, &source, &target, false)?;
    }
    for _ in 0..args.runs {
        match scenario {
            Scenario::Backup => {
                figures.ringback.push(back_up(args, &source, &target)?);
                figures.peer.push(convert(args, &source, &target, true)?);
            }
            Scenario::Guest => {
                figures.ringback.push(guest(args, &source)?);
                figures.peer.push(fio(args, &source)?);
            }
        }
    }
    match scenario {
        Scenario::Backup => print(&figures, "qemu-img convert", "s", |ours, peer| peer / ours),
        Scenario::Guest => print(&figures, "fio", "IOPS", |ours, peer| ours / peer),
    }
    Ok(())
}

/// Speed of ringback by the speed of the peer, run by run; above 1 is faster.
fn print(figures: &Figures, peer: &str, unit: &str, ratio: impl Fn(f64, f64) -> f64) {
    let pairs = figures.ringback.iter().zip(&figures.peer);
    let ratios: Vec<f64> = pairs.map(|(&ours, &theirs)| ratio(ours, theirs)).collect();
    println!(
        "{:<18} {:>10} {:>10} {:>10}  {unit}",
        "", "min", "median", "max"
    );
    for (name, values) in [("ringback", &figures.ringback), (peer, &figures.peer)] {
        let Spread { low, middle, high } = Spread::new(values.iter().copied());
        println!("{name:<18} {low:>10.2} {middle:>10.2} {high:>10.2}");
    }
    let Spread { low, middle, high } = Spread::new(ratios);
    println!(
        "{:<18} {low:>10.2} {middle:>10.2} {high:>10.2}  (above 1: ringback is faster)",
        "speed ratio"
    );
}

/// A disk of data that does not compress.
fn fill(args: &Options, source: &Path) -> Result<(), String> {
    run(Command::new("fio")
        .args([
            "--name=fill",
            "--rw=write",
            "--bs=1M",
            "--direct=1",
            "--ioengine=io_uring",
        ])
        .args(["--iodepth=8", "--refill_buffers=1", "--end_fsync=1"])
        .arg(format!("--size={}", args.size))
        .arg(format!("--filename={}", source.display())))
    .map(drop)
}

fn bench(args: &Options, options: &[&str]) -> Result<Value, String> {
    let text = run(Command::new(&args.ringback)
        .args([
            "bench",
            "--no-progress",
            "--overwrite",
            "--json",
            "-",
            "--fleece-depth",
            "0",
        ])
        .args(options))?;
    // The report comes first, the table for people after it.
    let mut values = serde_json::Deserializer::from_str(&text).into_iter();
    values
        .next()
        .and_then(Result::ok)
        .ok_or_else(|| format!("no report in {text}"))
}

fn number(value: &Value, path: &str) -> Result<f64, String> {
    value
        .pointer(path)
        .and_then(Value::as_f64)
        .ok_or_else(|| format!("no {path} in the report"))
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str()
        .ok_or_else(|| format!("'{}' is not UTF-8", path.display()))
}

fn back_up(args: &Options, source: &Path, target: &Path) -> Result<f64, String> {
    let workers = args.workers.to_string();
    let options = [
        "--no-guest",
        "--source",
        text(source)?,
        "--target",
        text(target)?,
        "--workers",
        &workers,
    ];
    let report = bench(args, &[&options[..], &["--max-chunk", "1M"]].concat())?;
    number(&report, "/backup/seconds")
}

fn convert(args: &Options, source: &Path, target: &Path, exists: bool) -> Result<f64, String> {
    let workers = args.workers.min(16).to_string();
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-W", "-m", &workers, "-t", "none", "-T", "none"]);
    if exists {
        command.arg("-n");
    }
    command
        .args(["-f", "raw", "-O", "raw"])
        .args([source, target]);
    let start = Instant::now();
    run(&mut command)?;
    Ok(start.elapsed().as_secs_f64())
}

fn guest(args: &Options, source: &Path) -> Result<f64, String> {
    let seconds = args.seconds.to_string();
    let options = [
        "--source",
        text(source)?,
        "--read-share",
        "0",
        "--depth",
        "1",
        "--rate",
        "0",
    ];
    let rest = [
        "--queues",
        "1",
        "--baseline",
        &seconds,
        "--sync",
        "none",
        "--duration",
        "1",
    ];
    let report = bench(args, &[&options[..], &rest[..]].concat())?;
    Ok(number(&report, "/baseline/writes")? / number(&report, "/baseline/seconds")?)
}

fn fio(args: &Options, source: &Path) -> Result<f64, String> {
    let text = run(Command::new("fio")
        .args([
            "--name=guest",
            "--ioengine=io_uring",
            "--direct=1",
            "--rw=randwrite",
            "--bs=4k",
        ])
        .args(["--iodepth=1", "--time_based", "--output-format=json"])
        .arg(format!("--size={}", args.size))
        .arg(format!("--runtime={}", args.seconds))
        .arg(format!("--filename={}", source.display())))?;
    number(&fio_report(&text)?, "/jobs/0/write/iops")
}
