//! `fleece`: the snapshot is read over NBD while the guest writes as fast as it can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::daemon::System;
use crate::duel::cbw::Filter;
use crate::duel::cell::{Better, Column, column};
use crate::duel::contest::{Contestant, Run, compete};
use crate::duel::stage::{Stage, entrant, mib};
use crate::duel::{Bench, Kind};
use crate::guest::Guest;
use crate::history::PointInTime;
use crate::nbd_client::{Client, Feed, Pace, Times, Work, drive};

const COLUMNS: &[Column] = &[
    column("reader", "MB/s", Better::More),
    column("guest", "writes/s", Better::More),
    column("p50", "ms", Better::Less),
    column("p99", "ms", Better::Less),
    column("p99.9", "ms", Better::Less),
    column("max", "ms", Better::Less),
    column("CPU", "s/s", Better::Less),
];

const READ: usize = 64 << 10;
const DEPTH: usize = 16;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    for (medium, format) in bench.disks() {
        let name = format!("fleece/{}/{}", format.name(), medium.name());
        if !bench.wants(&name) {
            continue;
        }
        let stage = Stage::new(bench, medium, format)?;
        let mut contestants = Vec::new();
        for (filter, variant) in [
            (Filter::BreakGuestWrite, "break-guest-write"),
            (Filter::BreakSnapshot, "break-snapshot"),
        ] {
            for system in &stage.systems {
                let (stage, seconds) = (&stage, bench.options.seconds);
                let run: Run<'_> = Box::new(move || fleece(stage, system, filter, seconds));
                contestants.push(Contestant {
                    entrant: entrant(system, variant),
                    run,
                });
            }
        }
        let title = format!(
            "64 KiB reads of the snapshot, {DEPTH} in flight, beside {}; {}",
            Kind::Random.describe(),
            stage.describe()
        );
        let mut cell = compete(name, title, COLUMNS, contestants, bench.rounds());
        cell.pair_variants("qsd");
        bench.keep(cell);
        stage.verify_disk()?;
    }
    Ok(())
}

fn fleece(
    stage: &Stage,
    system: &System,
    filter: Filter,
    seconds: Duration,
) -> Result<Vec<f64>, String> {
    let mut daemon = stage.start(system)?;
    daemon.add_image("target", &stage.target, false)?;
    let node = filter.insert(&mut daemon)?;
    let access = json!({ "driver": "snapshot-access", "node-name": "access", "file": node });
    daemon.run("blockdev-add", &access)?;
    daemon.export(node, true)?;
    daemon.export("access", false)?;
    let point = stage.history.now();
    let load = Kind::Random.load().ok_or("a guest without a load")?;
    let client = Client::connect(daemon.socket(), "access")?;
    let (start, cpu) = (Instant::now(), daemon.cpu_seconds()?);
    let generation = stage.history.fresh()?;
    let guest = Guest::start(daemon.socket(), node, load, &stage.history, generation)?;
    let reader = Reader::start(client, point);
    sleep(seconds);
    let elapsed = start.elapsed().as_secs_f64();
    let bytes = reader.stop();
    let phases = guest.stop()?;
    let cpu = daemon.cpu_seconds()? - cpu;
    let bytes = bytes?;
    daemon.unexport("access")?;
    daemon.del_node("access")?;
    filter.remove(&mut daemon, node)?;
    daemon.quit()?;
    let [phase] = &phases[..] else {
        return Err("a guest of one phase has another one".into());
    };
    let mut row = vec![
        mib(bytes) * f64::from(1 << 20) / 1e6 / elapsed,
        phase.rate(),
    ];
    row.extend([0.5, 0.99, 0.999, 1.0].map(|quantile| phase.percentile(quantile)));
    row.push(cpu / elapsed);
    Ok(row)
}

/// A client that reads the snapshot from start to end, and again.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Reader {
    fn start(mut client: Client, point: PointInTime) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut reads = Reads {
            stop: Arc::clone(&stop),
            size: client.size,
            next: 0,
            bytes: 0,
            point,
        };
        let thread = std::thread::spawn(move || {
            let end = drive(&mut client, Pace::Depth(DEPTH), &mut reads);
            end.map_err(|error| format!("the reader of the snapshot: {error}"))?;
            Ok(reads.bytes)
        });
        Self { stop, thread }
    }

    /// Answers how much it has read.
    fn stop(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::SeqCst);
        let end = self.thread.join();
        end.map_err(|_| "the reader panicked".to_owned())?
    }
}

/// What it reads. Every byte is compared with the point in time, which costs both
/// systems the same.
struct Reads {
    stop: Arc<AtomicBool>,
    size: u64,
    next: u64,
    bytes: u64,
    point: PointInTime,
}

impl Feed for Reads {
    fn next(&mut self, _due: Instant) -> Option<Work> {
        if self.stop.load(Ordering::SeqCst) {
            return None;
        }
        let offset = self.next;
        self.next = (offset + READ as u64) % (self.size - self.size % READ as u64);
        Some(Work {
            generation: None,
            offset,
            len: READ,
        })
    }

    fn done(&mut self, work: &Work, bytes: &[u8], _times: Times) -> Result<(), String> {
        self.bytes += work.len as u64;
        self.point.check(bytes, work.offset)
    }
}
