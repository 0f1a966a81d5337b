//! `incremental`: a thousand dirty clusters, far apart on a very large disk.

use std::time::Instant;

use serde_json::{Value, json};

use crate::command;
use crate::daemon::{Daemon, QSD, System};
use crate::drive::{Feed, Pace, Times, Work, drive};
use crate::duel::Bench;
use crate::duel::cell::{Better, Column, column};
use crate::duel::contest::{Contestant, Run, compete};
use crate::duel::stage::{entrant, extended, mib};
use crate::guest::CLUSTER;
use crate::history::PointInTime;
use crate::images::{self, Format};
use crate::nbd_client::Client;
use crate::place::{Image, Place};
use crate::verify;

const COLUMNS: &[Column] = &[
    column("backup", "s", Better::Less),
    column("CPU", "s", Better::Less),
    column("memory", "MiB", Better::Less),
    column("memory before", "MiB", Better::Less),
];

const DIRTY: u64 = 1000;
const SIZES: [(u64, &str); 2] = [(1 << 40, "1T"), (8 << 40, "8T")];
const WRITTEN: u16 = 1;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), String> {
    // Nothing much is copied: it is not worth a trial.
    let aio = bench.options.aio.named().unwrap_or("io_uring");
    let extension = bench.options.extension.as_ref();
    for &medium in &bench.options.medium {
        if let Some(why) = medium.missing(Format::Qcow2) {
            println!("{why}");
            continue;
        }
        for (size, size_name) in SIZES {
            let name = format!("incremental/qcow2/{}/{size_name}", medium.name());
            if !bench.wants(&name) {
                continue;
            }
            if !command::is_there("qemu-img") {
                println!("{name} is left out: qemu-img is not there");
                continue;
            }
            let mut systems = vec![System::Ringback(bench.options.ringback.clone())];
            if command::is_there(QSD) {
                systems.push(System::Qemu(aio));
            }
            let place = &Place::new(medium, &bench.options.directory, &bench.options.memory)?;
            let judge = systems.last().ok_or("no daemon")?;
            let contestant = |system| {
                let run: Run<'_> = Box::new(move || {
                    let job = json!({ "sync": "incremental", "bitmap": "changes" });
                    increment(
                        place,
                        system,
                        judge,
                        size,
                        &extended(system, job, extension),
                    )
                });
                Contestant {
                    entrant: entrant(system, ""),
                    run,
                }
            };
            let contestants = systems.iter().map(contestant).collect();
            let title = format!(
                "incremental backup of {DIRTY} dirty clusters of 64 KiB of a sparse qcow2 disk of {size_name}, qsd with aio={aio}"
            );
            // Every run makes its images anew.
            let good = || Ok(());
            let mut cell = compete(name, title, COLUMNS, contestants, bench.rounds(), good);
            cell.pair_variants("qsd");
            bench.keep(cell);
        }
    }
    Ok(())
}

fn increment(
    place: &Place,
    system: &System,
    judge: &System,
    size: u64,
    job: &Value,
) -> Result<Vec<f64>, String> {
    let disk = place.sparse("large.qcow2", size)?;
    let target = place.sparse("increment.qcow2", size)?;
    let mut daemon = Daemon::start(system, place.path())?;
    daemon.add_image("disk", &disk, false)?;
    daemon.add_image("target", &target, false)?;
    let bitmap = json!({ "node": "disk", "name": "changes", "granularity": CLUSTER });
    daemon.run("block-dirty-bitmap-add", &bitmap)?;
    daemon.export("disk", true)?;
    let mut client = Client::connect(daemon.socket(), "disk")?;
    drive(&mut client, Pace::Depth(16), &mut Scattered::new(size))?;
    client.flush()?;
    let before = daemon.process.memory_peak()?;
    let (start, cpu) = (Instant::now(), daemon.cpu_seconds()?);
    daemon.start_backup(job)?;
    daemon.wait_backup()?;
    daemon.del_image("target")?;
    target.sync()?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = daemon.cpu_seconds()? - cpu;
    let memory = daemon.process.memory_peak()?;
    drop(client);
    daemon.quit()?;
    verify_increment(place, &target, judge)?;
    Ok(vec![seconds, cpu, mib(memory), mib(before)])
}

/// All of the dirty clusters, and no other.
fn verify_increment(place: &Place, target: &Image, judge: &System) -> Result<(), String> {
    let mut scattered = Scattered::new(target.size);
    let now = Instant::now();
    let pieces = std::iter::from_fn(move || {
        let work = scattered.next(now)?;
        Some((work.offset, work.len))
    });
    let point = PointInTime::all(WRITTEN);
    verify::image(target, &point, pieces, judge, place.path())?;
    let report = images::check(&target.path)?;
    match report["allocated-clusters"].as_u64() {
        Some(DIRTY) => Ok(()),
        other => Err(format!(
            "WRONG DATA: {other:?} clusters of the increment are there, not {DIRTY}"
        )),
    }
}

/// Writes of whole clusters at equal distances.
struct Scattered {
    size: u64,
    next: u64,
}

impl Scattered {
    fn new(size: u64) -> Self {
        Self { size, next: 0 }
    }
}

impl Feed for Scattered {
    fn next(&mut self, _due: Instant) -> Option<Work> {
        if self.next == DIRTY {
            return None;
        }
        let offset = self.size / DIRTY * self.next / CLUSTER * CLUSTER;
        self.next += 1;
        Some(Work {
            generation: Some(WRITTEN),
            offset,
            len: usize::try_from(CLUSTER).ok()?,
        })
    }

    fn done(&mut self, _work: &Work, _bytes: &[u8], _times: Times) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_lie_apart_and_inside() {
        let mut scattered = Scattered::new(8 << 40);
        let offsets = std::iter::from_fn(|| Some(scattered.next(Instant::now())?.offset));
        let offsets: Vec<u64> = offsets.collect();
        assert_eq!(offsets.len(), 1000);
        assert!(offsets.windows(2).all(|pair| pair[0] + CLUSTER < pair[1]));
        assert!(offsets.iter().all(|offset| offset.is_multiple_of(CLUSTER)));
        assert!(offsets[999] + CLUSTER <= 8 << 40);
    }
}
