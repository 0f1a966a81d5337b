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
mod options;
mod slow_target;
mod stage;

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::command;
use crate::daemon::QSD;
use crate::guest::CLUSTER;
use crate::images::Format;
use crate::output::{page, table};
use crate::place::Medium;

use cell::Column;
pub(crate) use cell::{Cell, Pair};
use contest::{Contestant, compete};
pub(crate) use curve::{P99, SPEED, UNBOUND};
pub(crate) use domination::points;
pub(crate) use options::Options;
use options::{Aio, Kind, Scenario};
use stage::Stage;

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
        let good = || {
            // What a system has done to the disk must not be covered up.
            stage.verify_disk_after_failure()?;
            stage.make_good()
        };
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
    use std::time::Duration;

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

    #[test]
    fn who_fails_does_not_cover_up_what_it_did_to_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            memory: directory.path().to_owned(),
            ..options(&["--size=4M", "--runs=2", "--aio=io_uring"])
        };
        let bench = Bench {
            options: &options,
            cells: Vec::new(),
        };
        let stage = Stage::new(&bench, Medium::Memory, Format::Raw).unwrap();
        let contestants = stage.contestants(
            &["spoils"],
            |_, variant| Some(variant.to_owned()),
            |_, _| {
                stage.disk.spoil()?;
                Err("no more of this".into())
            },
        );
        let cell = bench.compete(&stage, "cell".into(), "spoilers", COLUMNS, contestants);
        let failure = cell.failure.unwrap();
        assert!(failure.contains("WRONG DATA"), "{failure}");
        stage.make_good().unwrap();
        assert_eq!(stage.verify_disk(), Ok(()));
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
