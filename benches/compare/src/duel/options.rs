//! What is asked for.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::disks::{parse_disk_size, parse_seconds};
use crate::drive::Pace;
use crate::guest::{Area, Load, Order, SMALL};
use crate::images::Format;
use crate::place::Medium;

/// What is compared.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The program under test
    #[arg(long, value_name = "FILE", default_value = "target/release/ringback")]
    pub(super) ringback: PathBuf,
    /// A short look: a disk of 128M, 3 runs, 0.3 seconds, unless they are given
    #[arg(long)]
    pub(super) quick: bool,
    /// Scenarios to run
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Scenario::ALL)]
    pub(super) scenario: Vec<Scenario>,
    /// Only comparisons whose name, such as curve/raw/memory/rated, has each of
    /// these words
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    pub(super) only: Vec<String>,
    /// Where disks lie
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["file", "memory"])]
    pub(super) medium: Vec<Medium>,
    /// How disks are kept
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["raw"])]
    pub(super) format: Vec<Format>,
    /// Guests of a curve
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["rated", "random"])]
    pub(super) guest: Vec<Kind>,
    /// Copies in flight, each a point of a curve
    #[arg(long, value_delimiter = ',', default_values = ["1", "2", "4", "8", "16", "64"])]
    pub(super) workers: Vec<u32>,
    /// Where files are made
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(super) directory: PathBuf,
    /// Where files in memory are made
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(super) memory: PathBuf,
    /// Size of a disk, a multiple of 1M; the very large disks of incremental have their
    /// own
    #[arg(
        long, value_parser = parse_disk_size, default_value = "512M",
        default_value_if("quick", "true", "128M")
    )]
    pub(super) size: u64,
    /// Runs of each
    #[arg(
        long, value_parser = clap::value_parser!(u16).range(1..), default_value = "5",
        default_value_if("quick", "true", "3")
    )]
    pub(super) runs: u16,
    /// Seconds that a guest runs before a backup, or that a run takes
    #[arg(
        long, value_parser = parse_seconds, default_value = "1",
        default_value_if("quick", "true", "0.3")
    )]
    pub(super) seconds: Duration,
    /// Seconds of rest before each run, but for incremental: a disk that has been written a
    /// lot may stall now and then, for a while, whoever uses it
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(super) pause: Option<Duration>,
    /// How qemu-storage-daemon does its I/O: auto tries each and takes the best, but for
    /// incremental, where it is io_uring
    #[arg(long, value_enum, default_value_t = Aio::Auto)]
    pub(super) aio: Aio,
    /// Members that blockdev-backup gets in addition where it is ringback's, as a JSON
    /// object: extensions that QEMU does not have
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    pub(super) extension: Option<Value>,
    /// Every figure as JSON, too
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Tables and curves as one page for a browser
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
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
pub(super) enum Scenario {
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
    pub(super) const ALL: [Self; 7] = [
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
pub(super) enum Kind {
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
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Rated => "rated",
            Self::Random => "random",
            Self::Sequential => "sequential",
        }
    }

    pub(super) fn load(self) -> Option<Load> {
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

    pub(super) fn describe(self) -> &'static str {
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
pub(super) enum Aio {
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Native,
    Threads,
}

impl Aio {
    /// As QEMU calls it; none if it is to be found out.
    pub(super) fn named(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::IoUring => Some("io_uring"),
            Self::Native => Some("native"),
            Self::Threads => Some("threads"),
        }
    }
}
