//! What a run of `ringback bench` has found, as plain data: for programs (`to_json`), for people
//! (`table`) and for plotters (`hgrm`); and `ringback report` (`running`), which shows in the same
//! way what a running daemon has measured.
//!
//! Nothing is measured or judged here; who fills the report has done so. It holds no date and no
//! host name, so that two runs can be compared line by line.
//!
//! # Compatibility
//!
//! Fields keep their name, unit and meaning within one `format`; new ones may come. A phase which
//! did not take place is `null`, and so is a latency of which there was none.

pub(crate) mod hgrm;
pub(crate) mod human;
pub(crate) mod interchange;
pub(crate) mod latency;
pub(crate) mod running;
pub(crate) mod table;

use std::collections::BTreeMap;

use serde::Serialize;

use latency::LatencySummary;

/// The `format` of the reports which this program writes.
pub(crate) const FORMAT: u32 = 1;

/// Everything that a bench has found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct BenchReport {
    /// Which fields to expect: `FORMAT`.
    pub(crate) format: u32,
    /// The version of the program.
    pub(crate) version: String,
    /// The running kernel, as `uname -r` names it.
    pub(crate) kernel: String,
    /// The disk under load.
    pub(crate) disk: Disk,
    /// All options of the run by their long name, the defaults included.
    pub(crate) settings: BTreeMap<String, serde_json::Value>,
    /// From when on the latencies of the guest are counted.
    pub(crate) latency_from: LatencyFrom,
    /// The filling of the disk before the load.
    pub(crate) fill: Option<Fill>,
    /// The guest alone.
    pub(crate) baseline: Option<GuestPhase>,
    /// The guest while the backup ran.
    pub(crate) during: Option<GuestPhase>,
    /// The backup.
    pub(crate) backup: Option<Backup>,
    /// The instant that the backup shows.
    pub(crate) point_in_time: Option<PointInTime>,
    /// What guest writes cost the copy-before-write filter.
    pub(crate) copy_before_write: Option<CopyBeforeWrite>,
    /// The readers of the snapshot.
    pub(crate) fleecing: Option<Fleecing>,
    /// Whether all that was read was right.
    pub(crate) verification: Option<Verification>,
}

/// The disk under load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Disk {
    /// Its file or device.
    pub(crate) path: String,
    /// Its length.
    pub(crate) size_bytes: u64,
    /// What it is, as in `raw file` or `block device`.
    pub(crate) kind: String,
    /// Whether requests go past the page cache.
    pub(crate) direct: bool,
}

/// From when on a latency is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LatencyFrom {
    /// From the time at which the request was due, so that a stall counts for all requests which
    /// it held back (no coordinated omission): a load with a rate.
    IntendedStart,
    /// From the time at which it was submitted: a load without a rate.
    Submission,
}

/// The filling of the disk before the load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Fill {
    /// How much was written.
    pub(crate) bytes: u64,
    /// In what time.
    pub(crate) seconds: f64,
}

/// A stretch of guest load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct GuestPhase {
    /// How long it took.
    pub(crate) seconds: f64,
    /// How many reads were answered.
    pub(crate) reads: u64,
    /// How many writes were answered.
    pub(crate) writes: u64,
    /// How long reads took.
    pub(crate) read_latency: Option<LatencySummary>,
    /// How long writes took.
    pub(crate) write_latency: Option<LatencySummary>,
}

/// The backup.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Backup {
    /// What there was to back up.
    pub(crate) bytes_total: u64,
    /// What was read and written.
    pub(crate) bytes_copied: u64,
    /// What was found to be zero and not written as data.
    pub(crate) bytes_zero: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// `bytes_total` by `seconds`.
    pub(crate) bytes_per_second: f64,
    /// The most copies that were in flight at once.
    pub(crate) workers: u32,
    /// `completed`, or how it ended instead.
    pub(crate) result: String,
}

/// The instant which the backup shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PointInTime {
    /// For how long guest requests were held back.
    pub(crate) drain_pause_ns: u64,
}

/// What guest writes cost the copy-before-write filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct CopyBeforeWrite {
    /// How many times old data was saved before a guest write.
    pub(crate) saves: u64,
    /// How much.
    pub(crate) saved_bytes: u64,
    /// How long the guest's write waited for it.
    pub(crate) save_latency: Option<LatencySummary>,
    /// How many guest writes waited for readers of the snapshot.
    pub(crate) reader_waits: u64,
    /// How long.
    pub(crate) reader_wait_latency: Option<LatencySummary>,
    /// Whether the snapshot was given up to let the guest go on.
    pub(crate) broken: bool,
}

/// The readers of the snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Fleecing {
    /// How many reads were answered with data.
    pub(crate) reads: u64,
    /// With how much.
    pub(crate) bytes: u64,
    /// How long they took.
    pub(crate) read_latency: Option<LatencySummary>,
    /// How many were refused, because the snapshot no longer had the data.
    pub(crate) refused: u64,
}

/// Whether all that was read was right, byte for byte.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Verification {
    /// Everything was.
    pub(crate) held: bool,
    /// How much of the backup was compared with the point in time.
    pub(crate) backup_bytes_checked: u64,
    /// How much of what fleecing readers saw.
    pub(crate) fleece_bytes_checked: u64,
    /// How many guest reads were compared with what the guest had written.
    pub(crate) guest_reads_checked: u64,
    /// How much of the disk was compared with the guest's writes at the end.
    pub(crate) source_bytes_checked: u64,
    /// What was wrong first, in one sentence.
    pub(crate) first_mismatch: Option<String>,
}

/// The report as one JSON object. Its fields stand in the order of the definition, so that two
/// reports can be compared as text.
pub(crate) fn to_json(report: &BenchReport) -> String {
    serde_json::to_string_pretty(report).expect("plain data with names for keys has a JSON form")
}

/// A report in which every phase took place, for tests.
#[cfg(test)]
mod example {
    use hdrhistogram::Histogram;
    use serde_json::json;

    use super::*;

    pub(super) fn latency(unit_ns: u64) -> Option<LatencySummary> {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        (1..=20_000).for_each(|n| histogram.record(unit_ns * (200 + n * n / 100_000)).unwrap());
        LatencySummary::of(&histogram)
    }

    fn guest(unit_ns: u64) -> GuestPhase {
        GuestPhase {
            seconds: 10.0,
            reads: 20_000,
            writes: 20_000,
            read_latency: latency(unit_ns),
            write_latency: latency(unit_ns * 2),
        }
    }

    fn backup() -> Backup {
        Backup {
            bytes_total: 1 << 30,
            bytes_copied: 900 << 20,
            bytes_zero: 124 << 20,
            seconds: 2.0957,
            bytes_per_second: 512_345_000.0,
            workers: 8,
            result: "completed".to_owned(),
        }
    }

    fn copy_before_write() -> CopyBeforeWrite {
        CopyBeforeWrite {
            saves: 20_000,
            saved_bytes: 20_000 * 4096,
            save_latency: latency(300),
            reader_waits: 12,
            reader_wait_latency: latency(100),
            broken: false,
        }
    }

    fn verification() -> Verification {
        Verification {
            held: true,
            backup_bytes_checked: 1 << 30,
            fleece_bytes_checked: 512 << 20,
            guest_reads_checked: 40_000,
            source_bytes_checked: 1 << 30,
            first_mismatch: None,
        }
    }

    pub(super) fn report() -> BenchReport {
        let settings = [
            ("block", json!(4096)),
            ("rate", json!(4000)),
            ("order", json!("random")),
        ];
        BenchReport {
            format: FORMAT,
            version: "0.1.0".to_owned(),
            kernel: "6.12.0".to_owned(),
            disk: Disk {
                path: "bench.raw".to_owned(),
                size_bytes: 1 << 30,
                kind: "raw file".to_owned(),
                direct: true,
            },
            settings: settings
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            latency_from: LatencyFrom::IntendedStart,
            fill: Some(Fill {
                bytes: 1 << 30,
                seconds: 2.0,
            }),
            baseline: Some(guest(400)),
            during: Some(guest(500)),
            backup: Some(backup()),
            point_in_time: Some(PointInTime {
                drain_pause_ns: 84_213,
            }),
            copy_before_write: Some(copy_before_write()),
            fleecing: Some(Fleecing {
                reads: 8_192,
                bytes: 512 << 20,
                read_latency: latency(600),
                refused: 0,
            }),
            verification: Some(verification()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_order_and_its_names() {
        let json = to_json(&example::report());
        let top: Vec<&str> = json
            .lines()
            .filter(|line| line.starts_with("  \""))
            .filter_map(|line| line.split('"').nth(1))
            .collect();
        assert_eq!(
            top,
            [
                "format",
                "version",
                "kernel",
                "disk",
                "settings",
                "latency_from",
                "fill",
                "baseline",
                "during",
                "backup",
                "point_in_time",
                "copy_before_write",
                "fleecing",
                "verification",
            ]
        );
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["latency_from"], "intended-start");
        assert_eq!(value["settings"]["block"], 4096);
        assert_eq!(value["during"]["write_latency"]["count"], 20_000);
        assert_eq!(value["point_in_time"]["drain_pause_ns"], 84_213);
    }

    #[test]
    fn a_phase_that_did_not_take_place_is_null() {
        let report = BenchReport {
            fleecing: None,
            ..example::report()
        };
        let value: serde_json::Value = serde_json::from_str(&to_json(&report)).unwrap();
        assert!(value["fleecing"].is_null());
    }
}
