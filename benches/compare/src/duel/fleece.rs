//! `fleece`: the snapshot is read over NBD while the guest writes as fast as it can.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::daemon::System;
use crate::drive::{Driven, Feed, Pace, Times, Work};
use crate::duel::cbw::Filter;
use crate::duel::cell::{Better, Cell, Column, column};
use crate::duel::stage::{Stage, megabytes};
use crate::duel::{Bench, Kind};
use crate::guest::{Area, Guest, Load};
use crate::history::PointInTime;
use crate::nbd_client::Client;

const COLUMNS: &[Column] = &[
    column("reader", "MB/s", Better::More),
    column("guest", "writes/s", Better::More),
    column("p50", "ms", Better::Less),
    column("p99", "ms", Better::Less),
    column("p99.9", "ms", Better::Less),
    column("max", "ms", Better::Less),
    column("CPU", "s/s", Better::Less),
    column("reader waits", "", Better::Less),
    column("reader wait p99", "ms", Better::Less),
];
const READER_WAITS: usize = 7;

const READ: usize = 64 << 10;
const DEPTH: usize = 16;

/// Who is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Places {
    /// Both everywhere: some writes overlap a read.
    Shared,
    /// Each in a half of its own: none does.
    Apart,
}

impl Places {
    fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Apart => "apart",
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Shared => "",
            Self::Apart => ", each in one half of the disk",
        }
    }

    fn of_guest(self) -> Area {
        match self {
            Self::Shared => Area::All,
            Self::Apart => Area::FirstHalf,
        }
    }

    fn of_reader(self) -> Area {
        match self {
            Self::Shared => Area::All,
            Self::Apart => Area::SecondHalf,
        }
    }
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    let seconds = bench.options.seconds;
    bench.on_stages(
        bench.disks(),
        &[Places::Shared, Places::Apart],
        |medium, format, places| {
            let (format, medium) = (format.name(), medium.name());
            format!("fleece/{format}/{medium}/{}", places.name())
        },
        |bench, stage, places, name| {
            let filters = [Filter::BreakGuestWrite, Filter::BreakSnapshot];
            let contestants = stage.contestants(
                &filters,
                |system, filter| filter.name_for(system).map(str::to_owned),
                move |system, filter| fleece(stage, system, filter, places, seconds),
            );
            let title = format!(
                "64 KiB reads of the snapshot, {DEPTH} in flight, beside {}{}",
                Kind::Random.describe(),
                places.describe(),
            );
            let mut cell = bench.compete(stage, name, &title, COLUMNS, contestants);
            if places == Places::Apart {
                cell.notes.extend(verdict(&cell));
            }
            cell
        },
    )
}

/// A sentence on what ringback's writes have waited for readers elsewhere, if that
/// is known.
fn verdict(cell: &Cell) -> Option<String> {
    let goal = "no write waits for a reader that is elsewhere";
    if let Some(why) = cell.why_not_judged(&["ringback"]) {
        return Some(format!("{goal}: {why}"));
    }
    let ours = cell.series_of(&["ringback"]);
    let waits = ours.filter_map(|series| series.spread(READER_WAITS));
    let most = waits.map(|waits| waits.high).max_by(f64::total_cmp)?;
    Some(if most > 0.0 {
        format!("{goal}: missed, {most:.0} in one run")
    } else {
        format!("{goal}: met")
    })
}

fn fleece(
    stage: &Stage,
    system: &System,
    filter: Filter,
    places: Places,
    seconds: Duration,
) -> Result<Vec<f64>, String> {
    let mut daemon = stage.start(system)?;
    daemon.add_image("target", &stage.target, false)?;
    let node = filter.insert(&mut daemon)?;
    let access = json!({ "driver": "snapshot-access", "node-name": "access", "file": node });
    daemon.run("blockdev-add", &access)?;
    daemon.export(node, true)?;
    daemon.export("access", false)?;
    let history = stage.history();
    let point = history.now();
    let load = Load {
        area: places.of_guest(),
        ..Kind::Random.load().ok_or("a guest without a load")?
    };
    let client = Client::connect(daemon.socket(), "access")?;
    // What was before does not count.
    daemon.reader_wait()?;
    let generation = history.fresh()?;
    let reader = Reader::start(client, places.of_reader(), point)?;
    let guest = Guest::start(daemon.socket(), node, load, &history, generation)?;
    // All figures are of the same window, in which both are there: it begins with the
    // guest, and ends when the guest is told to stop.
    let (start, cpu, bytes) = (Instant::now(), daemon.cpu_seconds()?, reader.bytes());
    sleep(seconds);
    let elapsed = start.elapsed().as_secs_f64();
    let (cpu, bytes) = (daemon.cpu_seconds()? - cpu, reader.bytes() - bytes);
    let phase = guest.stop_in_first_phase()?;
    reader.stop()?;
    let wait = daemon.reader_wait()?;
    daemon.unexport("access")?;
    daemon.del_node("access")?;
    filter.remove(&mut daemon, node)?;
    daemon.quit()?;
    let mut row = vec![megabytes(bytes) / elapsed, phase.rate()];
    row.extend(phase.percentiles([0.5, 0.99, 0.999, 1.0]));
    row.extend([cpu / elapsed, wait.count, wait.p99]);
    Ok(row)
}

/// A client that reads the snapshot from start to end, and again.
struct Reader {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    reads: Driven<()>,
}

impl Reader {
    fn start(client: Client, area: Area, point: PointInTime) -> Result<Self, String> {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let area = area.of(client.size);
        let reads = Reads {
            stop: Arc::clone(&stop),
            next: area.start,
            area,
            bytes: Arc::clone(&bytes),
            point,
        };
        let who = "the reader of the snapshot";
        let reads = Driven::start(who, client, Pace::Depth(DEPTH), reads, drop)?;
        Ok(Self { stop, bytes, reads })
    }

    /// How much it has read so far.
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn stop(self) -> Result<(), String> {
        self.stop.store(true, Ordering::SeqCst);
        self.reads.join()
    }
}

/// What it reads. Every byte is compared with the point in time, which costs both
/// systems the same.
struct Reads {
    stop: Arc<AtomicBool>,
    /// Where: whole reads.
    area: Range<u64>,
    next: u64,
    bytes: Arc<AtomicU64>,
    point: PointInTime,
}

impl Feed for Reads {
    fn next(&mut self, _due: Instant) -> Option<Work> {
        if self.stop.load(Ordering::SeqCst) {
            return None;
        }
        let offset = self.next;
        self.next = offset + READ as u64;
        if self.next >= self.area.end {
            self.next = self.area.start;
        }
        Some(Work {
            generation: None,
            offset,
            len: READ,
        })
    }

    fn done(&mut self, work: &Work, bytes: &[u8], _times: Times) -> Result<(), String> {
        self.bytes.fetch_add(work.len as u64, Ordering::Relaxed);
        self.point.check(bytes, work.offset)
    }
}
