//! A report for a terminal: the guest's latencies with and without the backup side by side, then a
//! line for everything else.
//!
//! At most `WIDTH` columns, plain ASCII, no colours. Phases that did not take place are left out.
//! It rounds; programs read the JSON form.

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table};

use super::human::{bytes, count, duration, rate, ratio};
use super::latency::{COLUMNS, LatencySummary};
use super::{
    Backup, BenchReport, CopyBeforeWrite, Disk, Fill, Fleecing, GuestPhase, LatencyFrom,
    Verification,
};

/// The widest line.
const WIDTH: u16 = 100;

/// The whole report; it ends with a newline.
pub(crate) fn render_table(report: &BenchReport) -> String {
    let mut text = String::new();
    if report.baseline.is_some() || report.during.is_some() {
        text.push_str(&latencies(report));
        text.push_str("\n\n");
    }
    text.push_str(&facts(report));
    text.push('\n');
    text
}

/// One of the two classes of guest requests.
struct Class {
    name: &'static str,
    count: fn(&GuestPhase) -> u64,
    latency: fn(&GuestPhase) -> Option<LatencySummary>,
}

const CLASSES: [Class; 2] = [
    Class {
        name: "read",
        count: |guest| guest.reads,
        latency: |guest| guest.read_latency,
    },
    Class {
        name: "write",
        count: |guest| guest.writes,
        latency: |guest| guest.write_latency,
    },
];

/// Classes of operations with how many there were and how long they took; it ends with a newline.
pub(crate) fn render_classes(classes: &[(String, Option<LatencySummary>)]) -> String {
    let mut table = headed_table(&["class", ""], "count");
    for (name, latency) in classes {
        let durations = latency.map_or_else(
            || COLUMNS.map(|_| "-".to_owned()),
            |latency| latency.columns().map(duration),
        );
        let how_many = count(latency.map_or(0, |latency| latency.count));
        let cells = durations.into_iter().chain([how_many]).collect();
        add_row(&mut table, name, "", cells);
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// A table of latencies, with two columns of names before them and a number behind.
fn headed_table(names: &[&'static str; 2], last: &'static str) -> Table {
    let mut table = table();
    // A rule under the heading and no other line.
    table.style_mut().header_separator = LineStyle::none().fill('-').junction('-');
    let heading = names.iter().copied().chain(COLUMNS).chain([last]);
    table.set_header(
        heading
            .enumerate()
            .map(|(index, text)| aligned(index, text)),
    );
    table
}

fn latencies(report: &BenchReport) -> String {
    let mut table = headed_table(&["guest", "latency"], "per second");
    for class in &CLASSES {
        let (baseline, during) = (report.baseline.as_ref(), report.during.as_ref());
        let mut name = class.name;
        for (label, phase) in [("without backup", baseline), ("during backup", during)] {
            if let Some(cells) = phase.and_then(|phase| phase_cells(class, phase)) {
                add_row(&mut table, std::mem::take(&mut name), label, cells);
            }
        }
        if let Some(cells) = baseline
            .zip(during)
            .and_then(|both| ratio_cells(class, both))
        {
            add_row(&mut table, "", "ratio", cells);
        }
    }
    table.trim_fmt()
}

/// The latencies of a class in a phase, and its requests a second.
fn phase_cells(class: &Class, phase: &GuestPhase) -> Option<Vec<String>> {
    let latency = (class.latency)(phase)?;
    let per_second = if phase.seconds > 0.0 {
        format!("{:.0}", (class.count)(phase) as f64 / phase.seconds)
    } else {
        "-".to_owned()
    };
    Some(
        latency
            .columns()
            .map(duration)
            .into_iter()
            .chain([per_second])
            .collect(),
    )
}

/// How many times as long the same requests took during the backup.
fn ratio_cells(
    class: &Class,
    (baseline, during): (&GuestPhase, &GuestPhase),
) -> Option<Vec<String>> {
    let columns = (class.latency)(baseline)?.columns().into_iter();
    let during = (class.latency)(during)?.columns();
    Some(
        columns
            .zip(during)
            .map(|(baseline, during)| ratio(during, baseline))
            .collect(),
    )
}

fn add_row(table: &mut Table, name: &str, label: &str, cells: Vec<String>) {
    let texts = [name.to_owned(), label.to_owned()].into_iter().chain(cells);
    table.add_row(
        texts
            .enumerate()
            .map(|(index, text)| aligned(index, text))
            .collect::<Vec<_>>(),
    );
}

/// Numbers stand to the right, the two columns of names before them to the left.
fn aligned(index: usize, text: impl Into<String>) -> Cell {
    let side = if index < 2 {
        CellAlignment::Left
    } else {
        CellAlignment::Right
    };
    Cell::new(text.into()).set_alignment(side)
}

/// Everything that takes one line. The verdict comes last, where the eye ends.
fn facts(report: &BenchReport) -> String {
    let mut facts = vec![
        ("disk", disk_line(&report.disk)),
        (
            "system",
            format!("ringback {}, kernel {}", report.version, report.kernel),
        ),
    ];
    let mut add = |name, line: Option<String>| facts.extend(line.map(|line| (name, line)));
    let guest = report.baseline.as_ref().or(report.during.as_ref());
    add("latency", guest.map(|_| latency_line(report.latency_from)));
    add("fill", report.fill.as_ref().map(fill_line));
    add("backup", report.backup.as_ref().map(backup_line));
    add(
        "point in time",
        report
            .point_in_time
            .as_ref()
            .map(|point| format!("guest held back for {}", duration(point.drain_pause_ns))),
    );
    add("saves", report.copy_before_write.as_ref().map(save_line));
    add(
        "reader waits",
        report.copy_before_write.as_ref().map(wait_line),
    );
    add("fleecing", report.fleecing.as_ref().map(fleecing_line));
    add("verification", report.verification.as_ref().map(verdict));
    let mut table = table();
    table.add_rows(
        facts
            .into_iter()
            .map(|(name, line)| [name.to_owned(), line]),
    );
    table.trim_fmt()
}

/// A table without lines, which wraps what is too long for the terminal.
fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    table
}

fn disk_line(disk: &Disk) -> String {
    let cache = if disk.direct {
        "direct"
    } else {
        "through the page cache"
    };
    format!(
        "{}, {}, {}, {cache}",
        disk.path,
        bytes(disk.size_bytes),
        disk.kind
    )
}

fn latency_line(from: LatencyFrom) -> String {
    match from {
        LatencyFrom::IntendedStart => "counted from when a request was due (open loop)",
        LatencyFrom::Submission => "counted from submission (closed loop)",
    }
    .to_owned()
}

fn fill_line(fill: &Fill) -> String {
    format!("{} in {:.2} s", bytes(fill.bytes), fill.seconds)
}

fn backup_line(backup: &Backup) -> String {
    format!(
        "{} in {:.2} s, {}, {} workers, {} copied, {} zero: {}",
        bytes(backup.bytes_total),
        backup.seconds,
        rate(backup.bytes_per_second),
        backup.workers,
        bytes(backup.bytes_copied),
        bytes(backup.bytes_zero),
        backup.result,
    )
}

fn save_line(filter: &CopyBeforeWrite) -> String {
    let broken = if filter.broken {
        ": the snapshot BROKE"
    } else {
        ""
    };
    format!(
        "{}, {}{}{broken}",
        count(filter.saves),
        bytes(filter.saved_bytes),
        percentiles(filter.save_latency.as_ref()),
    )
}

fn wait_line(filter: &CopyBeforeWrite) -> String {
    let latency = percentiles(filter.reader_wait_latency.as_ref());
    format!(
        "{} guest writes waited for fleecing reads{latency}",
        count(filter.reader_waits)
    )
}

fn fleecing_line(fleecing: &Fleecing) -> String {
    format!(
        "{} reads, {}, {} refused{}",
        count(fleecing.reads),
        bytes(fleecing.bytes),
        count(fleecing.refused),
        percentiles(fleecing.read_latency.as_ref()),
    )
}

/// The middle and the end of a distribution, to be put after something else.
fn percentiles(latency: Option<&LatencySummary>) -> String {
    latency.map_or_else(String::new, |latency| {
        let [p50, p99, max] = [latency.p50_ns, latency.p99_ns, latency.max_ns].map(duration);
        format!(", p50 {p50}, p99 {p99}, max {max}")
    })
}

fn verdict(verification: &Verification) -> String {
    if !verification.held {
        let mismatch = verification.first_mismatch.as_deref();
        return format!("FAILED: {}", mismatch.unwrap_or("no mismatch was noted"));
    }
    format!(
        "held: backup {}, fleecing {}, disk {}, {} guest reads",
        bytes(verification.backup_bytes_checked),
        bytes(verification.fleece_bytes_checked),
        bytes(verification.source_bytes_checked),
        count(verification.guest_reads_checked),
    )
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn the_whole_report() {
        let text = render_table(&example::report());
        assert_eq!(text.lines().collect::<Vec<_>>(), WHOLE);
        assert!(text.ends_with('\n'));
    }

    const WHOLE: &[&str] = &[
        " guest   latency              p50       p90       p99     p99.9    p99.99       max   per second",
        "-------------------------------------------------------------------------------------------------",
        " read    without backup    480 us   1.38 ms   1.65 ms   1.68 ms   1.68 ms   1.68 ms         2000",
        "         during backup     600 us   1.72 ms   2.06 ms   2.10 ms   2.10 ms   2.10 ms         2000",
        "         ratio              1.25x     1.25x     1.25x     1.25x     1.25x     1.25x",
        " write   without backup    961 us   2.75 ms   3.30 ms   3.35 ms   3.36 ms   3.36 ms         2000",
        "         during backup    1.20 ms   3.44 ms   4.12 ms   4.19 ms   4.20 ms   4.20 ms         2000",
        "         ratio              1.25x     1.25x     1.25x     1.25x     1.25x     1.25x",
        "",
        " disk           bench.raw, 1.00 GiB, raw file, direct",
        " system         ringback 0.1.0, kernel 6.12.0",
        " latency        counted from when a request was due (open loop)",
        " fill           1.00 GiB in 2.00 s",
        " backup         1.00 GiB in 2.10 s, 512.3 MB/s, 8 workers, 900 MiB copied, 124 MiB zero: completed",
        " point in time  guest held back for 84.2 us",
        " saves          20,000, 78.1 MiB, p50 360 us, p99 1.24 ms, max 1.26 ms",
        " reader waits   12 guest writes waited for fleecing reads, p50 120 us, p99 412 us, max 420 us",
        " fleecing       8,192 reads, 512 MiB, 0 refused, p50 720 us, p99 2.47 ms, max 2.52 ms",
        " verification   held: backup 1.00 GiB, fleecing 512 MiB, disk 1.00 GiB, 40,000 guest reads",
    ];

    #[test]
    fn classes_of_a_daemon() {
        let classes = [
            ("cbw-save".to_owned(), example::latency(300)),
            ("drain-pause".to_owned(), None),
        ];
        let text = render_classes(&classes);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let heading = [
            "class", "p50", "p90", "p99", "p99.9", "p99.99", "max", "count",
        ];
        assert_eq!(lines[0], heading, "{text}");
        assert_eq!(lines[2][0], "cbw-save", "{text}");
        assert_eq!(lines[2].last(), Some(&"20,000"), "{text}");
        assert_eq!(
            lines[3],
            ["drain-pause", "-", "-", "-", "-", "-", "-", "0"],
            "{text}"
        );
        assert_eq!(lines.len(), 4, "{text}");
        assert!(text.ends_with('\n'));
    }

    fn bare() -> BenchReport {
        BenchReport {
            fill: None,
            baseline: None,
            during: None,
            backup: None,
            point_in_time: None,
            copy_before_write: None,
            fleecing: None,
            verification: None,
            ..example::report()
        }
    }

    #[test]
    fn absent_phases_leave_no_trace() {
        assert_eq!(
            render_table(&bare()),
            " disk    bench.raw, 1.00 GiB, raw file, direct\n \
             system  ringback 0.1.0, kernel 6.12.0\n"
        );
    }

    #[test]
    fn a_guest_that_only_writes_has_no_rows_for_reads() {
        let mut report = example::report();
        for phase in [&mut report.baseline, &mut report.during]
            .into_iter()
            .flatten()
        {
            phase.reads = 0;
            phase.read_latency = None;
        }
        let text = render_table(&report);
        assert!(!text.contains("\n read "), "{text}");
        assert!(text.contains(" write   without backup"), "{text}");
    }

    #[test]
    fn no_line_is_too_wide() {
        let mut report = example::report();
        report.disk.path = "/a/rather/long/path".repeat(12);
        for phase in [&mut report.baseline, &mut report.during]
            .into_iter()
            .flatten()
        {
            phase.read_latency = example::latency(999_000);
            phase.seconds = 1e-3;
            phase.reads = 9_999_999;
        }
        let sentence = "the byte at offset 18446744073709551615 is wrong: ".repeat(4);
        let verification = report.verification.as_mut().unwrap();
        verification.held = false;
        verification.first_mismatch = Some(sentence);
        let text = render_table(&report);
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= usize::from(WIDTH), "{widest} columns:\n{text}");
    }

    #[test]
    fn a_failure_says_what_was_wrong() {
        let mut report = bare();
        report.verification = Some(Verification {
            held: false,
            first_mismatch: Some("the byte at offset 7 is wrong".to_owned()),
            ..example::report().verification.unwrap()
        });
        let text = render_table(&report);
        assert!(
            text.ends_with(" verification  FAILED: the byte at offset 7 is wrong\n"),
            "{text}"
        );
    }
}
