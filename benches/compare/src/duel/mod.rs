//! `daemons`: ringback's daemon and qemu-storage-daemon, driven by the same
//! commands and put under the same guest, in turn on the same disks.

mod cbw;
mod cell;
mod contest;
mod curve;
mod domination;
mod drain;
mod fleece;
mod idle_copy;
mod incremental;
mod slow_target;
mod stage;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::command;
use crate::daemon::QSD;
use crate::disks::{parse_disk_size, parse_seconds};
use crate::guest::{Area, CLUSTER, Load, Order, SMALL};
use crate::images::Format;
use crate::nbd_client::Pace;
use crate::output::{page, table};
use crate::place::Medium;

use cell::Column;
pub(crate) use cell::{Cell, Pair};
use contest::{Contestant, compete};
pub(crate) use curve::{P99, SPEED, UNBOUND};
pub(crate) use domination::points;
use stage::Stage;

/// What is compared.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The program under test
    #[arg(long, value_name = "FILE", default_value = "target/release/ringback")]
    ringback: PathBuf,
    /// A short look: a disk of 128M, 3 runs, 0.3 seconds, unless they are given
    #[arg(long)]
    quick: bool,
    /// Scenarios to run
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Scenario::ALL)]
    scenario: Vec<Scenario>,
    /// Only comparisons whose name, such as curve/raw/memory/rated, has each of
    /// these words
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    only: Vec<String>,
    /// Where disks lie
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["file", "memory"])]
    medium: Vec<Medium>,
    /// How disks are kept
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["raw"])]
    format: Vec<Format>,
    /// Guests of a curve
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["rated", "random"])]
    guest: Vec<Kind>,
    /// Copies in flight, each a point of a curve
    #[arg(long, value_delimiter = ',', default_values = ["1", "2", "4", "8", "16", "64"])]
    workers: Vec<u32>,
    /// Where files are made
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    directory: PathBuf,
    /// Where files in memory are made
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    memory: PathBuf,
    /// Size of a disk, a multiple of 1M
    #[arg(
        long, value_parser = parse_disk_size, default_value = "512M",
        default_value_if("quick", "true", "128M")
    )]
    size: u64,
    /// Runs of each
    #[arg(
        long, value_parser = clap::value_parser!(u16).range(1..), default_value = "5",
        default_value_if("quick", "true", "3")
    )]
    runs: u16,
    /// Seconds that a guest runs before a backup, or that a run takes
    #[arg(
        long, value_parser = parse_seconds, default_value = "1",
        default_value_if("quick", "true", "0.3")
    )]
    seconds: Duration,
    /// How qemu-storage-daemon does its I/O: auto tries each and takes the best
    #[arg(long, value_enum, default_value_t = Aio::Auto)]
    aio: Aio,
    /// Members that blockdev-backup gets in addition where it is ringback's, as a JSON
    /// object: extensions that QEMU does not have
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    extension: Option<Value>,
    /// Every figure as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Tables and curves as one page for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn parse_object(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if value.is_object() {
        Ok(value)
    } else {
        Err("it must be an object, such as {\"speed\": 0}".into())
    }
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Backup throughput against the guest's latency, by the number of workers
    Curve,
    /// The first write to each cluster under a copy-before-write filter
    Cbw,
    /// The same with a target that is slow, or stops for a while
    SlowTarget,
    /// Reads of the snapshot while a guest writes
    Fleece,
    /// A copy of an idle disk, against every program that can make one
    IdleCopy,
    /// A few dirty clusters of a very large disk
    Incremental,
    /// How long a request is held when a filter or a job comes
    Drain,
}

impl Scenario {
    const ALL: [Self; 7] = [
        Self::Curve,
        Self::Cbw,
        Self::SlowTarget,
        Self::Fleece,
        Self::IdleCopy,
        Self::Incremental,
        Self::Drain,
    ];
}

/// Guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// None
    Idle,
    /// 1,000 random 4 KiB writes a second, one at a time
    Rated,
    /// Random 4 KiB writes, 16 in flight
    Random,
    /// Sequential 64 KiB writes, 4 in flight
    Sequential,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Rated => "rated",
            Self::Random => "random",
            Self::Sequential => "sequential",
        }
    }

    fn load(self) -> Option<Load> {
        let (order, len, pace) = match self {
            Self::Idle => return None,
            Self::Rated => (Order::Random, SMALL, Pace::Every(Duration::from_millis(1))),
            Self::Random => (Order::Random, SMALL, Pace::Depth(16)),
            Self::Sequential => (Order::Sequential, 64 << 10, Pace::Depth(4)),
        };
        let area = Area::All;
        Some(Load {
            order,
            area,
            len,
            pace,
        })
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Idle => "no guest",
            Self::Rated => "a guest of 1,000 random 4 KiB writes a second",
            Self::Random => "a guest of random 4 KiB writes, 16 in flight",
            Self::Sequential => "a guest of sequential 64 KiB writes, 4 in flight",
        }
    }
}

/// `aio` of QEMU's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Aio {
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Native,
    Threads,
}

/// A run of all that is asked for.
struct Bench<'a> {
    options: &'a Options,
    cells: Vec<Cell>,
}

impl Bench<'_> {
    /// Whether a comparison of this name is wanted.
    fn wants(&self, name: &str) -> bool {
        self.options.only.iter().all(|word| name.contains(word))
    }

    fn rounds(&self) -> usize {
        self.options.runs.into()
    }

    /// The places and formats that are asked for and that there are.
    fn disks(&self) -> Vec<(Medium, Format)> {
        let Options { medium, format, .. } = self.options;
        let all = medium
            .iter()
            .flat_map(|&medium| format.iter().map(move |&format| (medium, format)));
        all.filter(|(medium, format)| match medium.missing(*format) {
            None => true,
            Some(why) => {
                println!("{why}");
                false
            }
        })
        .collect()
    }

    /// Has everybody compete on a stage, whose disk has to be what guests have written
    /// there afterwards.
    fn compete(
        &self,
        stage: &Stage,
        name: String,
        title: &str,
        columns: &'static [Column],
        contestants: Vec<Contestant<'_>>,
    ) -> Cell {
        let title = format!("{title}; {}", stage.describe());
        let good = || stage.make_good();
        let mut cell = compete(name, title, columns, contestants, self.rounds(), good);
        if cell.failure.is_none() {
            cell.failure = stage.verify_disk().err();
        }
        cell.pair_variants("qsd");
        cell
    }

    /// Makes a stage on each of these disks, and carries out those of the cases there
    /// that are wanted by name.
    fn on_stages<C: Copy>(
        &mut self,
        disks: Vec<(Medium, Format)>,
        cases: &[C],
        name: impl Fn(Medium, Format, C) -> String,
        carry_out: impl Fn(&Self, &Stage, C, String) -> Cell,
    ) -> Result<(), String> {
        for (medium, format) in disks {
            let named = cases.iter().map(|&case| (case, name(medium, format, case)));
            let wanted: Vec<_> = named.filter(|(_, name)| self.wants(name)).collect();
            if wanted.is_empty() {
                continue;
            }
            let stage = Stage::new(self, medium, format)?;
            for (case, name) in wanted {
                let cell = carry_out(self, &stage, case, name);
                let is_sound = cell.failure.is_none();
                self.keep(cell);
                if !is_sound && let Err(error) = stage.make_good() {
                    println!(
                        "{}: nothing more is compared there: {error}",
                        stage.describe()
                    );
                    break;
                }
            }
        }
        Ok(())
    }

    /// Keeps and prints what came of a comparison.
    fn keep(&mut self, cell: Cell) {
        print!("{}", table::render(&cell));
        self.cells.push(cell);
    }

    fn run(&mut self, scenario: Scenario) -> Result<(), String> {
        match scenario {
            Scenario::Curve => curve::run(self),
            Scenario::Cbw => cbw::run(self),
            Scenario::SlowTarget => slow_target::run(self),
            Scenario::Fleece => fleece::run(self),
            Scenario::IdleCopy => idle_copy::run(self),
            Scenario::Incremental => incremental::run(self),
            Scenario::Drain => drain::run(self),
        }
    }

    fn report(&self) -> Result<(), String> {
        let write = |path: &PathBuf, text: String| {
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        if let Some(path) = &self.options.json {
            let cells: Vec<Value> = self.cells.iter().map(Cell::to_json).collect();
            let report = json!({
                "machine": machine(),
                "size": self.options.size,
                "runs": self.options.runs,
                "quick": self.options.quick,
                "seconds": self.options.seconds.as_secs_f64(),
                "cells": cells,
            });
            write(path, format!("{report:#}\n"))?;
        }
        if let Some(path) = &self.options.html {
            write(path, page::render(&machine(), &self.cells))?;
        }
        Ok(())
    }
}

/// What the figures were taken on.
fn machine() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let version = command::run(Command::new(QSD).arg("--version"));
    let version = version
        .ok()
        .and_then(|said| Some(said.lines().next()?.to_owned()));
    format!(
        "{cores} cores, Linux {}, {}",
        kernel.trim(),
        version.unwrap_or_else(|| format!("no {QSD}"))
    )
}

/// Runs all scenarios.
///
/// # Errors
///
/// Something is missing without which nothing can be done, or somebody has failed
/// or been wrong; what there is to report is reported before.
pub(crate) fn compare(options: &Options) -> Result<(), String> {
    if options.size < 16 * CLUSTER {
        return Err("a disk of less than 1M shows nothing".into());
    }
    for program in ["qemu-img", QSD] {
        if !command::is_there(program) {
            println!("{program} is not there: it is left out, and with it all that needs it");
        }
    }
    let mut bench = Bench {
        options,
        cells: Vec::new(),
    };
    let mut errors = Vec::new();
    for &scenario in &options.scenario {
        if let Err(error) = bench.run(scenario) {
            eprintln!("{scenario:?}: {error}");
            errors.push(format!("{scenario:?}: {error}"));
        }
    }
    bench.report()?;
    for cell in &bench.cells {
        if let Some(failure) = &cell.failure {
            errors.push(format!("{}: {failure}", cell.name));
        }
        for series in &cell.series {
            if let Some(failure) = &series.failure {
                errors.push(format!(
                    "{}: {}: {failure}",
                    cell.name,
                    series.entrant.name()
                ));
            }
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(format!("FAILED\n{}", errors.join("\n")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ringback_tests::binary::ringback;
    use ringback_tests::needs::{Need, needs};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(words: &[&str]) -> Options {
        Line::parse_from([&["compare"], words].concat()).options
    }

    /// Names of the comparisons that these words bring, each with ratios, on a page
    /// that has curves if there are any.
    fn cells(words: &[&str]) -> Vec<String> {
        // Where flushes cost nothing, if there is such a place.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.unwrap();
        let (json, html) = (directory.path().join("json"), directory.path().join("html"));
        let small = [
            "--medium=memory",
            "--size=4M",
            "--runs=1",
            "--seconds=0.05",
            "--aio=io_uring",
        ];
        let options = Options {
            ringback: ringback().to_owned(),
            memory: directory.path().to_owned(),
            json: Some(json.clone()),
            html: Some(html.clone()),
            ..options(&[&small, words].concat())
        };
        assert_eq!(compare(&options), Ok(()));
        let report: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
        let cells = report["cells"].as_array().unwrap();
        let page = std::fs::read_to_string(html).unwrap();
        let left = std::fs::read_dir(directory.path()).unwrap();
        assert_eq!(left.count(), 2, "only the reports are left");
        let named = cells.iter().map(|cell| {
            let name = cell["name"].as_str().unwrap().to_owned();
            assert!(!cell["ratios"].as_array().unwrap().is_empty(), "{name}");
            assert!(page.contains(&name));
            name
        });
        let names: Vec<String> = named.collect();
        let has_curve = names.iter().any(|name| name.starts_with("curve/"));
        assert_eq!(page.contains("<polyline"), has_curve);
        names
    }

    #[test]
    fn every_scenario_comes_to_its_end_on_a_small_disk() {
        let needed = ["qemu-img", QSD, "nbdcopy", "qemu-nbd", "fio"].map(Need::Program);
        if !needs(&needed) {
            return;
        }
        let both = "--format=raw,qcow2";
        let copies = cells(&["--scenario=idle-copy", both, "--workers=1,4"]);
        assert_eq!(copies.len(), 2, "{copies:?}");
        let curves = cells(&["--scenario=curve", "--guest=idle,random", "--workers=4"]);
        assert_eq!(curves.len(), 2, "{curves:?}");
        let filters = cells(&["--scenario=cbw,fleece,drain", "--format=qcow2"]);
        assert_eq!(filters.len(), 6, "{filters:?}");
        assert_eq!(
            cells(&["--scenario=slow-target,incremental", "--only=memory/r"]),
            ["slow-target/raw/memory/rated"]
        );
        assert_eq!(
            cells(&["--scenario=incremental", "--only=1T"]),
            ["incremental/qcow2/memory/1T"]
        );
    }

    const COLUMNS: &[Column] = &[cell::column("guest", "writes/s", cell::Better::More)];

    #[test]
    fn who_fails_midway_leaves_nothing_to_the_next_one() {
        if !needs(&[Need::Program(QSD)]) {
            return;
        }
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.unwrap();
        let options = Options {
            ringback: ringback().to_owned(),
            memory: directory.path().to_owned(),
            ..options(&["--size=4M", "--runs=2", "--aio=io_uring"])
        };
        let bench = Bench {
            options: &options,
            cells: Vec::new(),
        };
        let stage = Stage::new(&bench, Medium::Memory, Format::Raw).unwrap();
        let contestants = stage.contestants(
            &["writes"],
            |_, variant| Some(variant.to_owned()),
            |system, _| write_a_while(&stage, system),
        );
        let cell = bench.compete(&stage, "cell".into(), "guests", COLUMNS, contestants);
        let [sound, failed] = &cell.series[..] else {
            panic!("two of them");
        };
        assert_eq!(failed.failure.as_deref(), Some("no more of this"));
        assert_eq!((sound.rounds.len(), &sound.failure), (2, &None));
        // The disk is what the one that did not fail has written since.
        assert_eq!(cell.failure, None);
    }

    /// A guest for a moment, on what must be the disk of the history. With QEMU it fails
    /// while the guest runs.
    fn write_a_while(stage: &Stage, system: &crate::daemon::System) -> Result<Vec<f64>, String> {
        stage.verify_disk()?;
        let mut daemon = stage.start(system)?;
        daemon.export("disk", true)?;
        let history = stage.history();
        let load = Kind::Random.load().ok_or("a guest without a load")?;
        let generation = history.fresh()?;
        let socket = daemon.socket().to_owned();
        let guest = crate::guest::Guest::start(&socket, "disk", load, &history, generation)?;
        std::thread::sleep(Duration::from_millis(50));
        if system.name() == "qsd" {
            return Err("no more of this".into());
        }
        let phase = guest.stop_in_first_phase()?;
        daemon.quit()?;
        Ok(vec![phase.rate()])
    }

    #[test]
    fn a_short_look_is_short_but_for_what_is_asked_for() {
        let usual = options(&[]);
        assert!(usual.runs >= 5 && usual.size == 512 << 20);
        let quick = options(&["--quick", "--runs=7"]);
        assert_eq!((quick.runs, quick.size), (7, 128 << 20));
        assert_eq!(quick.seconds, Duration::from_millis(300));
    }

    #[test]
    fn only_what_has_every_word_is_wanted() {
        let options = options(&["--only", "curve,memory"]);
        let bench = Bench {
            options: &options,
            cells: Vec::new(),
        };
        assert!(bench.wants("curve/raw/memory/rated"));
        assert!(!bench.wants("curve/raw/file/rated"));
        assert!(!bench.wants("drain/raw/memory/rated"));
    }
}
