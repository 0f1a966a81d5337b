//! `qcow2-read` and `qcow2-write`: what a format costs, and how fast others are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use ringback_qmp_shim::size::parse_size;
use ringback_ring::Shards;
use ringback_ring::shards::Config;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::images::{self, Format, Images};
use crate::load::{Direction, Limit, Load};
use crate::pattern::{BLOCK, Content, Order};
use crate::peers::{Imago, Qcow2Rs, QemuImg};
use crate::tournament::{Aside, Comparison, Entrant, Pair, compete};

/// Speed of qcow2 by that of raw, at least.
const READ_GOAL: f64 = 0.95;
const WRITE_GOAL: f64 = 0.9;
/// Requests of a sequential write in flight.
const SEQUENTIAL_DEPTH: usize = 8;

const RAW: &str = "ringback raw";
const QCOW2: &str = "ringback qcow2";
const IMAGO: &str = "imago qcow2";
const QCOW2_RS: &str = "qcow2-rs qcow2";
const QEMU_RAW: &str = "qemu-img bench raw";
const QEMU: &str = "qemu-img bench qcow2";

/// What both need.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the files are made; /dev/shm for a disk that costs nothing
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    directory: PathBuf,
    /// Size of the disk: a multiple of 1M
    #[arg(long, value_parser = parse_disk_size, default_value = "1G")]
    size: u64,
    /// Size of a cluster
    #[arg(long, value_parser = parse_size, default_value = "64K")]
    cluster_size: u64,
    /// Counted runs of each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Seconds of each run of random requests
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    seconds: Duration,
    /// Random requests in flight, over all shards
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,
    /// Shards of ringback, each a thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// Step of the pattern that qemu-img bench walks in, a multiple of 4K; an odd
    /// one reaches every block
    #[arg(long, value_parser = parse_step, default_value = "37056512")]
    step: u64,
    /// How QEMU does its I/O: native, io_uring or threads
    #[arg(long, default_value = "native")]
    aio: String,
    /// Only ringback's own formats
    #[arg(long)]
    no_peers: bool,
    /// Every figure as JSON, too; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn parse_unit(text: &str, unit: u64) -> Result<u64, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    if size > 0 && size.is_multiple_of(unit) {
        Ok(size)
    } else {
        Err(format!("it must be a multiple of {unit} bytes"))
    }
}

pub(crate) fn parse_disk_size(text: &str) -> Result<u64, String> {
    parse_unit(text, 1 << 20)
}

fn parse_step(text: &str) -> Result<u64, String> {
    parse_unit(text, BLOCK as u64)
}

pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("it must be more than 0".into()),
    }
}

/// The files, the shards, and what is known about them.
struct Bench<'a> {
    options: &'a Options,
    images: Images,
    shards: Shards,
}

impl<'a> Bench<'a> {
    fn new(options: &'a Options) -> Result<Self, String> {
        let config = Config {
            count: options.shards.into(),
            ..Config::default()
        };
        Ok(Self {
            options,
            images: Images::new(&options.directory, options.cluster_size)?,
            shards: Shards::start(&config).map_err(|error| error.to_string())?,
        })
    }

    fn rounds(&self) -> usize {
        self.options.runs.into()
    }

    fn engine(&self, format: Format) -> Engine {
        Engine {
            shards: self.shards.clone(),
            format,
        }
    }

    fn qemu(&self, format: Format) -> QemuImg {
        QemuImg {
            format,
            aio: self.options.aio.clone(),
            rate: AtomicU64::new(10_000),
        }
    }

    /// 4 KiB requests at random for the time given.
    fn load(&self, content: &Arc<Content>, direction: Direction) -> Load {
        Load {
            size: self.options.size,
            cluster_size: self.options.cluster_size,
            len: BLOCK,
            depth: self.options.depth.into(),
            order: Order::Random { seed: 1 },
            direction,
            limit: Limit::Time(self.options.seconds),
            content: Arc::clone(content),
            direct: self.images.direct,
        }
    }

    /// Prints and writes down what was found.
    fn report(&self, comparisons: &[Comparison]) -> Result<(), String> {
        let Some(path) = &self.options.json else {
            return Ok(());
        };
        let comparisons: Vec<Value> = comparisons.iter().map(Comparison::to_json).collect();
        let report = json!({
            "size": self.options.size,
            "cluster_size": self.options.cluster_size,
            "depth": self.options.depth,
            "shards": self.options.shards,
            "runs": self.options.runs,
            "direct": self.images.direct,
            "comparisons": comparisons,
        });
        if path == Path::new("-") {
            println!("{report:#}");
            return Ok(());
        }
        std::fs::write(path, format!("{report:#}\n"))
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    fn describe(&self, what: &str) -> String {
        let Options {
            size,
            depth,
            shards,
            ..
        } = self.options;
        let how = if self.images.direct {
            "direct"
        } else {
            "buffered"
        };
        format!(
            "{what}, {} MiB, depth {depth}, shards {shards}, {how}",
            size >> 20
        )
    }
}

fn entrant<'a>(
    name: &'static str,
    program: impl crate::load::Program + 'a,
    file: &Path,
    load: &Load,
) -> Entrant<'a> {
    Entrant {
        name,
        program: Box::new(program),
        file: file.to_owned(),
        load: load.clone(),
        required: name == RAW || name == QCOW2,
        before: None,
        after: None,
    }
}

fn pair(of: &'static str, by: &'static str, goal: Option<f64>) -> Pair {
    Pair { of, by, goal }
}

/// Random reads of a fully allocated image.
pub(crate) fn read(options: &Options) -> Result<(), String> {
    let bench = Bench::new(options)?;
    let raw = bench.images.fill_raw("disk.raw", options.size)?;
    let image = bench.images.convert(&raw, "disk.qcow2")?;
    let content = Arc::new(Content::new(options.size));
    let load = bench.load(&content, Direction::Read);
    let mut entrants = vec![
        entrant(RAW, bench.engine(Format::Raw), &raw, &load),
        entrant(QCOW2, bench.engine(Format::Qcow2), &image, &load),
    ];
    if !options.no_peers {
        entrants.push(entrant(IMAGO, Imago, &image, &load));
        entrants.push(entrant(QCOW2_RS, Qcow2Rs, &image, &load));
    }
    let pairs = vec![
        pair(QCOW2, RAW, Some(READ_GOAL)),
        pair(QCOW2, IMAGO, None),
        pair(QCOW2, QCOW2_RS, None),
    ];
    let title = bench.describe("4 KiB random reads");
    let random = compete(title, &entrants, pairs, bench.rounds())?;
    random.print();
    let mut comparisons = vec![random];
    if !options.no_peers {
        let strides = Load {
            order: Order::Stride { step: options.step },
            ..load
        };
        let entrants = [
            entrant(QCOW2, bench.engine(Format::Qcow2), &image, &strides),
            entrant(QEMU, bench.qemu(Format::Qcow2), &image, &strides),
            entrant(RAW, bench.engine(Format::Raw), &raw, &strides),
            entrant(QEMU_RAW, bench.qemu(Format::Raw), &raw, &strides),
        ];
        let pairs = vec![
            pair(QCOW2, QEMU, None),
            pair(RAW, QEMU_RAW, None),
            pair(QCOW2, RAW, Some(READ_GOAL)),
            pair(QEMU, QEMU_RAW, None),
        ];
        let title = bench.describe("4 KiB reads in strides");
        let strides = compete(title, &entrants, pairs, bench.rounds())?;
        strides.print();
        comparisons.push(strides);
    }
    bench.shards.stop();
    bench.report(&comparisons)
}

/// What `qcow2-write` needs besides.
#[derive(Debug, Args)]
pub(crate) struct WriteOptions {
    #[command(flatten)]
    common: Options,
    /// Sizes of the sequential requests, divisors of the disk's size
    #[arg(long, value_parser = parse_step, value_delimiter = ',', default_value = "1M,64K")]
    requests: Vec<u64>,
    /// Leave the sequential writes out
    #[arg(long)]
    no_sequential: bool,
    /// Leave the random overwrites out
    #[arg(long)]
    no_overwrites: bool,
}

/// Sequential writes into a fresh image, and random overwrites.
pub(crate) fn write(options: &WriteOptions) -> Result<(), String> {
    let bench = Bench::new(&options.common)?;
    let mut comparisons = Vec::new();
    if !options.no_sequential {
        for &len in &options.requests {
            if !options.common.size.is_multiple_of(len) {
                return Err(format!("{len} does not divide the disk's size"));
            }
            comparisons.push(write_all(&bench, len)?);
        }
    }
    if !options.no_overwrites {
        comparisons.push(overwrite(&bench)?);
    }
    bench.shards.stop();
    bench.report(&comparisons)
}

/// One block of each 64 KiB of a disk that is all written; with a step that
/// reaches every place inside a cluster.
fn sample(size: u64) -> Vec<u64> {
    (0..size >> 16)
        .map(|part| (part << 16) + part % 16 * BLOCK as u64)
        .collect()
}

/// Reads blocks again, and has qemu-img look at an image. Any program's work
/// is read by ringback.
fn verify(
    bench: &Bench<'_>,
    format: Format,
    file: &Path,
    load: &Load,
    blocks: Vec<u64>,
) -> Result<(), String> {
    let load = Load {
        len: BLOCK,
        depth: 32,
        ..load.clone()
    };
    bench.engine(format).verify(file, &load, blocks)?;
    match format {
        Format::Raw => Ok(()),
        Format::Qcow2 => images::check(file).map(drop),
    }
}

/// The whole disk once, from its start, into a new file.
fn write_all(bench: &Bench<'_>, len: u64) -> Result<Comparison, String> {
    let options = bench.options;
    let content = Arc::new(Content::new(options.size));
    let load = Load {
        len: usize::try_from(len).map_err(|error| error.to_string())?,
        depth: SEQUENTIAL_DEPTH.max(options.shards.into()),
        order: Order::Stride { step: len },
        limit: Limit::Requests(options.size / len),
        ..bench.load(&content, Direction::Write(1))
    };
    let file = bench.images.path("fresh");
    let fresh = |format: Format| -> Option<Aside<'_>> {
        Some(Box::new(move || {
            bench.images.create(format, "fresh", options.size)
        }))
    };
    let checked = |format: Format| -> Option<Aside<'_>> {
        let (file, load) = (file.clone(), load.clone());
        Some(Box::new(move || {
            verify(bench, format, &file, &load, sample(options.size))
        }))
    };
    let entrant = |name, program: Box<dyn crate::load::Program>, format: Format| Entrant {
        name,
        program,
        file: file.clone(),
        load: load.clone(),
        required: name == RAW || name == QCOW2,
        before: fresh(format),
        after: checked(format),
    };
    let mut entrants = vec![
        entrant(RAW, Box::new(bench.engine(Format::Raw)), Format::Raw),
        entrant(QCOW2, Box::new(bench.engine(Format::Qcow2)), Format::Qcow2),
    ];
    if !options.no_peers {
        entrants.push(entrant(IMAGO, Box::new(Imago), Format::Qcow2));
        entrants.push(entrant(QCOW2_RS, Box::new(Qcow2Rs), Format::Qcow2));
        entrants.push(Entrant {
            // It writes what it likes.
            after: Some(Box::new(|| images::check(&file).map(drop))),
            ..entrant(QEMU, Box::new(bench.qemu(Format::Qcow2)), Format::Qcow2)
        });
    }
    let pairs = vec![
        pair(QCOW2, RAW, Some(WRITE_GOAL)),
        pair(QCOW2, IMAGO, None),
        pair(QCOW2, QCOW2_RS, None),
        pair(QCOW2, QEMU, None),
    ];
    let title = format!(
        "sequential writes of {} KiB into a new file, {} MiB, depth {}, shards {}, and a flush",
        len >> 10,
        options.size >> 20,
        load.depth,
        options.shards
    );
    let comparison = compete(title, &entrants, pairs, bench.rounds())?;
    comparison.print();
    Ok(comparison)
}

/// A program whose every run writes something new.
struct Overwriting<'a, P> {
    program: P,
    generation: &'a AtomicU8,
}

impl<P: crate::load::Program> crate::load::Program for Overwriting<'_, P> {
    fn run(&self, file: &Path, load: &Load) -> Result<crate::load::Outcome, String> {
        // It must not be 0, the content before all overwrites.
        let generation = self.generation.fetch_add(1, Ordering::Relaxed).max(1);
        let load = Load {
            direction: Direction::Write(generation),
            order: Order::Random {
                seed: u64::from(generation) << 32,
            },
            ..load.clone()
        };
        self.program.run(file, &load)
    }
}

/// 4 KiB at random over what is there already.
fn overwrite(bench: &Bench<'_>) -> Result<Comparison, String> {
    let options = bench.options;
    let raw = bench.images.fill_raw("disk.raw", options.size)?;
    let image = bench.images.convert(&raw, "disk.qcow2")?;
    let content_of = || Arc::new(Content::new(options.size));
    let (raw_content, image_content) = (content_of(), content_of());
    let generation = AtomicU8::new(1);
    let load = |content| bench.load(content, Direction::Write(0));
    let (raw_load, image_load) = (load(&raw_content), load(&image_content));
    macro_rules! overwriting {
        ($program:expr) => {
            Overwriting {
                program: $program,
                generation: &generation,
            }
        };
    }
    let raw_engine = overwriting!(bench.engine(Format::Raw));
    let image_engine = overwriting!(bench.engine(Format::Qcow2));
    let mut entrants = vec![
        entrant(RAW, raw_engine, &raw, &raw_load),
        entrant(QCOW2, image_engine, &image, &image_load),
    ];
    if !options.no_peers {
        entrants.push(entrant(IMAGO, overwriting!(Imago), &image, &image_load));
        entrants.push(entrant(
            QCOW2_RS,
            overwriting!(Qcow2Rs),
            &image,
            &image_load,
        ));
    }
    let pairs = vec![
        pair(QCOW2, RAW, Some(WRITE_GOAL)),
        pair(QCOW2, IMAGO, None),
        pair(QCOW2, QCOW2_RS, None),
    ];
    let title = bench.describe("4 KiB random overwrites, and a flush");
    let comparison = compete(title, &entrants, pairs, bench.rounds())?;
    for (format, file, load) in [
        (Format::Raw, &raw, &raw_load),
        (Format::Qcow2, &image, &image_load),
    ] {
        let mut blocks: Vec<u64> = load.content.overwritten().collect();
        blocks.extend(sample(options.size));
        verify(bench, format, file, load, blocks)?;
    }
    comparison.print();
    Ok(comparison)
}
