//! The report: as JSON, as histograms, as a table, and where it cannot go.

use std::fs::{self, File};
use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::process::run;
use ringback_tests::report::Report;
use ringback_tests::scratch::names_in;

use crate::harness::{Bench, scratch};

const SIZE: u64 = 16 << 20;

/// Where latencies are, and the field that counts them, if there is one.
const LATENCIES: [(&str, Option<&str>); 7] = [
    ("/baseline/read_latency", Some("/baseline/reads")),
    ("/baseline/write_latency", Some("/baseline/writes")),
    ("/during/read_latency", Some("/during/reads")),
    ("/during/write_latency", Some("/during/writes")),
    ("/copy_before_write/save_latency", None),
    (
        "/copy_before_write/reader_wait_latency",
        Some("/copy_before_write/reader_waits"),
    ),
    ("/fleecing/read_latency", None),
];

const SETTINGS: [&str; 34] = [
    "source",
    "target",
    "image-opts",
    "overwrite",
    "size",
    "directory",
    "cache",
    "fill",
    "no-guest",
    "block",
    "read-share",
    "depth",
    "rate",
    "queues",
    "order",
    "baseline",
    "seed",
    "sync",
    "workers",
    "max-chunk",
    "latency-target",
    "speed",
    "min-cluster-size",
    "on-cbw-error",
    "cbw-timeout",
    "save-buffer",
    "duration",
    "fleece-depth",
    "fleece-block",
    "shards",
    "no-pin",
    "ring-entries",
    "poll",
    "mask",
];

#[test]
fn the_numbers_of_a_report_fit_each_other() {
    let scratch = scratch();
    let report = Bench::quick(&scratch)
        .with("--shards 2 --fleece-depth 2")
        .baseline(1)
        .report();
    assert_eq!(report.count("/format"), 1);
    assert!(!report.text("/version").is_empty());
    let release = run(Command::new("uname").arg("-r")).succeeded().stdout;
    assert_eq!(report.text("/kernel"), release.trim());
    assert_eq!(report.count("/disk/size_bytes"), SIZE);
    assert_eq!(report.text("/disk/kind"), "raw file");
    assert_settings(&report);
    assert_eq!(report.count("/fill/bytes"), SIZE);
    assert!(report.number("/fill/seconds") > 0.0);
    for phase in ["baseline", "during"] {
        assert!(report.number(&format!("/{phase}/seconds")) > 0.0, "{phase}");
    }
    assert_backup(&report);
    assert!(report.count("/point_in_time/drain_pause_ns") > 0);
    for (pointer, count) in LATENCIES {
        assert_latencies(&report, pointer, count);
    }
    assert_verification(&report);
}

fn assert_settings(report: &Report) {
    for setting in SETTINGS {
        let _ = report.get(&format!("/settings/{setting}"));
    }
    let settings = report.get("/settings").as_object().expect("an object");
    assert_eq!(
        settings.len(),
        SETTINGS.len(),
        "one that is not listed here"
    );
    assert_eq!(report.count("/settings/size"), SIZE);
    assert_eq!(report.text("/settings/sync"), "full");
}

#[expect(clippy::cast_precision_loss, reason = "compared loosely")]
fn assert_backup(report: &Report) {
    let total = report.count("/backup/bytes_total");
    assert_eq!(total, SIZE);
    let saved = report.count("/copy_before_write/saved_bytes");
    let copied = report.count("/backup/bytes_copied");
    assert_eq!(copied + report.count("/backup/bytes_zero") + saved, total);
    let seconds = report.number("/backup/seconds");
    let rate = report.number("/backup/bytes_per_second");
    assert!((rate * seconds / total as f64 - 1.0).abs() < 0.01, "{rate}");
    assert!(seconds <= report.number("/during/seconds"));
    assert_eq!(report.count("/backup/workers"), 64);
    assert_eq!(report.text("/backup/result"), "completed");
    assert_eq!(saved % 4096, 0);
    assert_eq!(
        saved / 4096,
        report.count("/copy_before_write/saves"),
        "a save is one block"
    );
    assert!(!report.flag("/copy_before_write/broken"));
}

/// Null if there was none, else in order.
#[expect(clippy::cast_precision_loss, reason = "compared loosely")]
fn assert_latencies(report: &Report, pointer: &str, count: Option<&str>) {
    if report.is_null(pointer) {
        assert!(count.is_none_or(|count| report.count(count) == 0));
        return;
    }
    let field = |name: &str| report.count(&format!("{pointer}/{name}"));
    assert!(field("count") > 0, "{pointer}");
    if let Some(count) = count {
        assert_eq!(report.count(count), field("count"), "{pointer}");
    }
    let names = [
        "min_ns",
        "p50_ns",
        "p90_ns",
        "p99_ns",
        "p99_9_ns",
        "p99_99_ns",
        "max_ns",
    ];
    let steps = names.map(field);
    assert!(steps.is_sorted(), "{pointer}: {steps:?}");
    let mean = report.number(&format!("{pointer}/mean_ns"));
    assert!(steps[0] as f64 * 0.99 <= mean, "{pointer}: {mean}");
    assert!(mean <= steps[6] as f64 * 1.01, "{pointer}: {mean}");
    assert!(report.number(&format!("{pointer}/stdev_ns")) >= 0.0);
}

fn assert_verification(report: &Report) {
    let count = |name: &str| report.count(&format!("/verification/{name}"));
    assert_eq!(count("backup_bytes_checked"), SIZE);
    assert_eq!(count("source_bytes_checked"), SIZE);
    let fleeced = report.count("/fleecing/bytes");
    assert_eq!(count("fleece_bytes_checked"), fleeced);
    assert!(fleeced <= report.count("/fleecing/reads") * (64 << 10));
    assert_eq!(report.count("/fleecing/refused"), 0);
    let reads = report.count("/baseline/reads") + report.count("/during/reads");
    assert!(count("guest_reads_checked") >= reads);
}

#[test]
fn the_same_seed_asks_the_same() {
    let fill = |seed: &str| {
        let scratch = scratch();
        let bench = Bench::quick(&scratch).with("--fill 50");
        bench.path("--seed", seed).report().count("/fill/bytes")
    };
    assert_eq!(fill("7"), fill("7"));
}

#[test]
fn histograms_are_percentile_files() {
    let scratch = scratch();
    let directory = scratch.join("deep/histograms");
    let bench = Bench::quick(&scratch).path("--hgrm", &directory);
    bench.baseline(1).report();
    let names = [
        "cbw-drain.hgrm",
        "cbw-reader-wait.hgrm",
        "cbw-room-wait.hgrm",
        "cbw-save-wait.hgrm",
        "cbw-save.hgrm",
        "copy-read.hgrm",
        "copy-write.hgrm",
        "drain-pause.hgrm",
        "guest-read-baseline.hgrm",
        "guest-read-during.hgrm",
        "guest-write-baseline.hgrm",
        "guest-write-during.hgrm",
        "snapshot-read.hgrm",
    ];
    assert_eq!(names_in(&directory), names);
    for name in names {
        let text = fs::read_to_string(directory.join(name)).expect(name);
        let filled = assert_histogram(name, &text);
        let always = [
            "guest-read-baseline.hgrm",
            "guest-write-baseline.hgrm",
            "copy-read.hgrm",
        ];
        assert!(filled || !always.contains(&name), "{name} is empty");
    }
}

/// Whether it has values.
fn assert_histogram(name: &str, text: &str) -> bool {
    let heading = "Value     Percentile TotalCount 1/(1-Percentile)";
    assert!(text.trim_start().starts_with(heading), "{name}: {text}");
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(2)
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let columns = line.split_whitespace();
            columns.map(|column| column.parse().expect(name)).collect()
        })
        .collect();
    for footer in ["#[Mean ", "#[Max ", "#[Buckets "] {
        assert!(text.contains(footer), "{name}: no {footer}");
    }
    let Some((last, others)) = rows.split_last() else {
        return false;
    };
    // The last has no fourth column: it would be infinite.
    assert!(others.iter().all(|row| row.len() == 4), "{name}");
    assert_eq!(last.len(), 3, "{name}");
    assert!(last[1] >= 1.0, "{name}: {last:?}");
    for column in 0..3 {
        assert!(rows.is_sorted_by(|a, b| a[column] <= b[column]), "{name}");
    }
    true
}

#[test]
fn an_old_report_is_overwritten() {
    let scratch = scratch();
    fs::write(scratch.join("report.json"), "x".repeat(100_000)).expect("a file");
    Bench::bare(&scratch).with("--size 16M").report();
}

fn to_standard_output() -> Command {
    let mut command = Command::new(ringback());
    command.args(["bench", "--no-progress", "--size", "16M", "--baseline", "0"]);
    command.args(["--directory", env!("CARGO_TARGET_TMPDIR")]);
    command
}

/// For `ringback bench --json - | jq`.
#[test]
fn json_on_standard_output_is_alone() {
    let finished = run(to_standard_output().args(["--json", "-"])).succeeded();
    let report = Report::parse(&finished.stdout);
    assert!(report.flag("/verification/held"));
}

#[test]
fn a_full_standard_output_is_an_error() {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" > /dev/full"]);
    let bench = to_standard_output();
    run(command.arg(bench.get_program()).args(bench.get_args()))
        .failed_with(1)
        .saying("No space left on device");
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let bench = to_standard_output();
    let mut command = Command::new("sh");
    command.args(["-c", "\"$0\" \"$@\" | true"]);
    let finished = run(command.arg(bench.get_program()).args(bench.get_args()));
    assert!(!finished.stderr.contains("panicked"), "{finished:#?}");
}

#[test]
fn nothing_but_the_report_on_standard_output_of_a_pipe() {
    let finished = run(&mut to_standard_output()).succeeded();
    assert!(!finished.stdout.contains('\u{1b}'), "{finished:#?}");
    assert_eq!(finished.stderr, "");
}

#[test]
fn a_report_that_cannot_be_written() {
    let scratch = scratch();
    let nowhere = scratch.join("none/report.json");
    let finished = run(to_standard_output().arg("--json").arg(&nowhere));
    finished
        .failed_with(1)
        .saying("none/report.json")
        .saying("such file or directory");
    assert_eq!(names_in(scratch.path()), [""; 0]);
}

/// Principle: what is wrong is refused before anything is written.
#[test]
fn a_report_that_cannot_be_written_is_refused_at_once() {
    let scratch = scratch();
    let target = scratch.join("target.raw");
    let nowhere = scratch.join("none/report.json");
    let mut command = to_standard_output();
    command.arg("--json").arg(&nowhere);
    run(command.arg("--target").arg(&target)).failed_with(1);
    assert!(!target.exists(), "the run took place");
}

#[test]
fn histograms_that_cannot_be_written() {
    let scratch = scratch();
    let file = scratch.join("file");
    drop(File::create(&file).expect("a file"));
    let finished = run(to_standard_output().arg("--hgrm").arg(file.join("deep")));
    finished.failed_with(1).saying("file/deep");
}
