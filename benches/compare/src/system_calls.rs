//! How many system calls the daemons make for the same work, as `strace` counts them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use nix::sys::signal::Signal;
use ringback_qmp_shim::size::parse_size;
use serde_json::json;

use crate::command::{fio_report, run};
use crate::daemon::process::Process;
use crate::daemon::{Daemon, System};
use crate::images::Format;
use crate::place::{Image, Medium, Place};

/// What is compared.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The program under test
    #[arg(long, default_value = "target/release/ringback")]
    ringback: PathBuf,
    /// Where the files are made
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    directory: PathBuf,
    /// Size of the disk
    #[arg(long, value_parser = parse_size, default_value = "1G")]
    size: u64,
    /// Writes of a guest
    #[arg(long, default_value_t = 4000)]
    writes: u32,
}

/// What a daemon does, and what its calls are divided by.
#[derive(Clone, Copy)]
enum Work {
    /// A full backup with 16 workers, by MiB.
    Backup,
    /// Random 4 KiB writes with so many in flight, by write.
    Writes { depth: u32, is_filtered: bool },
}

const fn writes(depth: u32, is_filtered: bool) -> Work {
    Work::Writes { depth, is_filtered }
}

const WORKS: [(&str, Work); 5] = [
    ("a MiB copied, 16 workers", Work::Backup),
    ("a write, 1 in flight", writes(1, false)),
    ("a write, 16 in flight", writes(16, false)),
    (
        "a first write under copy-before-write, 1 in flight",
        writes(1, true),
    ),
    (
        "a first write under copy-before-write, 16 in flight",
        writes(16, true),
    ),
];

/// A call that is made less often for each unit of work is not worth a line.
const SHOWN_MIN: f64 = 0.05;

/// Prints how often each daemon makes which call for a unit of each work.
///
/// # Errors
///
/// A daemon, `strace` or `fio` fails or is not there.
pub(crate) fn compare(options: &Options) -> Result<(), String> {
    let place = Place::new(Medium::Memory, &options.directory, &options.directory)?;
    let disk = place.disk(Format::Raw, options.size)?;
    let target = place.target(Format::Raw, options.size)?;
    let systems = [
        System::Ringback(options.ringback.clone()),
        System::Qemu("io_uring"),
    ];
    for (title, work) in WORKS {
        println!("For {title}");
        for system in &systems {
            let calls = measure(system, work, options, &place, &disk, &target)?;
            println!("  {:<10} {}", system.name(), line(&calls));
        }
    }
    Ok(())
}

/// Calls for each unit of work.
fn measure(
    system: &System,
    work: Work,
    options: &Options,
    place: &Place,
    disk: &Image,
    target: &Image,
) -> Result<BTreeMap<String, f64>, String> {
    let mut daemon = Daemon::start(system, place.path())?;
    daemon.add_image("disk", disk, false)?;
    daemon.add_image("target", target, false)?;
    let node = match work {
        Work::Writes {
            is_filtered: true, ..
        } => {
            let filter = json!({
                "driver": "copy-before-write", "node-name": "filter", "file": "disk", "target": "target",
            });
            daemon.run("blockdev-add", &filter)?;
            "filter"
        }
        _ => "disk",
    };
    daemon.export(node, true)?;
    let counter = Counter::attach(&daemon, place.path())?;
    let units = match work {
        Work::Backup => {
            let full = json!({ "sync": "full", "x-perf": { "max-workers": 16 } });
            daemon.start_backup(&full)?;
            daemon.wait_backup()?;
            options.size as f64 / 1_048_576.0
        }
        Work::Writes { depth, .. } => guest(daemon.socket(), node, depth, options)?,
    };
    let calls = counter.detach(&mut daemon)?;
    daemon.quit()?;
    let each = |(name, count)| (name, count as f64 / units);
    Ok(calls.into_iter().map(each).collect())
}

/// Writes in random order, no place twice; answers how many.
fn guest(socket: &Path, node: &str, depth: u32, options: &Options) -> Result<f64, String> {
    let mut command = Command::new("fio");
    command
        .args([
            "--name=guest",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=4k",
        ])
        .args([
            format!("--uri=nbd+unix:///{node}?socket={}", socket.display()),
            format!("--iodepth={depth}"),
            format!("--number_ios={}", options.writes),
            format!("--size={}", options.size),
        ])
        .arg("--output-format=json");
    let report = fio_report(&run(&mut command)?)?;
    let total = report.pointer("/jobs/0/write/total_ios");
    total
        .and_then(serde_json::Value::as_f64)
        .ok_or_else(|| "fio reports no total_ios".into())
}

/// `strace`, which counts the calls of a daemon.
struct Counter {
    process: Process,
    summary: PathBuf,
}

impl Counter {
    fn attach(daemon: &Daemon, directory: &Path) -> Result<Self, String> {
        let summary = directory.join("strace.summary");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-c", "-o"])
            .arg(&summary)
            .args(["-p", &daemon.process.id().to_string()]);
        let mut process = Process::start(&mut command, &directory.join("strace.log"))?;
        process
            .wait_said("attached")
            .map_err(|error| format!("strace: {error}"))?;
        Ok(Self { process, summary })
    }

    fn detach(mut self, daemon: &mut Daemon) -> Result<BTreeMap<String, u64>, String> {
        // Those that end a comparison are blocked, in what it starts as well.
        self.process.signal(Signal::SIGQUIT)?;
        // It looks for signals when the daemon makes calls.
        daemon.run("query-jobs", &json!({}))?;
        // It says by its status that it was a signal that ended it.
        self.process.wait()?;
        let text = std::fs::read_to_string(&self.summary)
            .map_err(|error| format!("{}: {error}", self.summary.display()))?;
        Ok(counts(&text))
    }
}

/// The calls in a summary of `strace -c`: columns of time, share, count, errors, name.
fn counts(summary: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let count = words.clone().nth(3)?.parse().ok()?;
        let name = words.next_back()?;
        (name != "total").then(|| (name.to_owned(), count))
    };
    summary.lines().filter_map(row).collect()
}

/// The sum, and the most frequent calls.
fn line(calls: &BTreeMap<String, f64>) -> String {
    let sum: f64 = calls.values().sum();
    let mut shown: Vec<_> = calls.iter().filter(|call| *call.1 >= SHOWN_MIN).collect();
    shown.sort_by(|one, other| other.1.total_cmp(one.1));
    let shown: Vec<_> = shown
        .iter()
        .map(|(name, count)| format!("{name} {count:.2}"))
        .collect();
    format!("{sum:.2}: {}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.10    0.100000          10      9000           io_uring_enter
  9.90    0.010000           9      1000        30 futex
------ ----------- ----------- --------- --------- ----------------
100.00    0.110000           9     10000        30 total
";

    #[test]
    fn calls_are_found_with_and_without_errors() {
        let found = counts(SUMMARY);
        let expected = [("futex", 1000), ("io_uring_enter", 9000)];
        assert_eq!(
            found,
            expected
                .map(|(name, count)| (name.to_owned(), count))
                .into()
        );
    }

    #[test]
    fn what_is_rare_is_in_the_sum_only() {
        let calls = [("read", 0.01), ("io_uring_enter", 1.5), ("futex", 0.25)];
        let calls = calls.map(|(name, count)| (name.to_owned(), count)).into();
        assert_eq!(line(&calls), "1.76: io_uring_enter 1.50, futex 0.25");
    }
}
