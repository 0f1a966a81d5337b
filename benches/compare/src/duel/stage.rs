//! A disk, a target, and the systems that work on them in turn.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command;
use crate::daemon::{Daemon, QSD, System};
use crate::duel::cell::Entrant;
use crate::duel::contest::Contestant;
use crate::duel::{Aio, Bench};
use crate::history::{History, PointInTime};
use crate::images::Format;
use crate::pattern::BLOCK;
use crate::place::{Image, Medium, Place};
use crate::verify;

/// Workers with which QEMU's ways of doing I/O are compared.
const TRIAL_WORKERS: u32 = 16;

/// What a comparison is made on.
pub(super) struct Stage {
    pub(super) place: Place,
    pub(super) disk: Image,
    pub(super) target: Image,
    /// Of the disk since it was filled.
    history: RefCell<Arc<History>>,
    pub(super) systems: Vec<System>,
    /// Before each run.
    pause: Duration,
    extension: Option<Value>,
}

/// How long a backup took, and what it cost the daemon, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
}

impl Stage {
    /// Fills a disk and a target, and finds out how QEMU is best used there.
    pub(super) fn new(bench: &Bench<'_>, medium: Medium, format: Format) -> Result<Self, String> {
        let options = bench.options;
        if format == Format::Qcow2 && !command::is_there("qemu-img") {
            return Err("qcow2 images are made by qemu-img, which is not there".into());
        }
        let place = Place::new(medium, &options.directory, &options.memory)?;
        let disk = place.disk(format, options.size)?;
        let target = place.target(format, options.size)?;
        let mut stage = Self {
            history: RefCell::new(Arc::new(History::new(options.size))),
            systems: vec![System::Ringback(options.ringback.clone())],
            pause: options.pause.unwrap_or_default(),
            extension: options.extension.clone(),
            place,
            disk,
            target,
        };
        if command::is_there(QSD) {
            let aio = stage.best_aio(options.aio)?;
            stage.systems.push(System::Qemu(aio));
        }
        Ok(stage)
    }

    /// The kind of I/O with which QEMU copies the idle disk fastest.
    fn best_aio(&self, wanted: Aio) -> Result<&'static str, String> {
        if let Some(aio) = wanted.named() {
            return Ok(aio);
        }
        // QEMU has native I/O only past the page cache.
        let candidates: &[&'static str] = match self.disk.direct {
            true => &["io_uring", "native", "threads"],
            false => &["io_uring", "threads"],
        };
        let mut times = vec![f64::INFINITY; candidates.len()];
        for _ in 0..2 {
            for (aio, time) in candidates.iter().zip(&mut times) {
                let (cost, _) = self.copy(&System::Qemu(aio), TRIAL_WORKERS)?;
                *time = time.min(cost.seconds);
            }
        }
        let best = (0..times.len()).min_by(|&one, &other| times[one].total_cmp(&times[other]));
        Ok(candidates[best.unwrap_or(0)])
    }

    /// What has been written since the disk was filled.
    pub(super) fn history(&self) -> Arc<History> {
        Arc::clone(&self.history.borrow())
    }

    /// Whether the disk may be what it is after a run that failed, and was ended: what
    /// was in flight may have been written, or not.
    pub(super) fn verify_disk_after_failure(&self) -> Result<(), String> {
        let history = self.history();
        self.verify_disk_at(&history.now().while_writing(1..=history.last()))
    }

    /// Fills the disk again, for nobody knows what is there after a run that failed.
    pub(super) fn make_good(&self) -> Result<(), String> {
        self.place.refill(&self.disk)?;
        *self.history.borrow_mut() = Arc::new(History::new(self.disk.size));
        self.rest()
    }

    /// Everybody in every variant that has a name for them. Neighbours are those who
    /// do the same.
    pub(super) fn contestants<'a, V: Copy + 'a>(
        &'a self,
        variants: &[V],
        name: impl Fn(&System, V) -> Option<String>,
        run: impl Fn(&System, V) -> Result<Vec<f64>, String> + Copy + 'a,
    ) -> Vec<Contestant<'a>> {
        let pairs = variants
            .iter()
            .flat_map(|&variant| self.systems.iter().map(move |system| (variant, system)));
        pairs
            .filter_map(|(variant, system)| {
                Some(Contestant {
                    entrant: entrant(system, name(system, variant)?),
                    run: Box::new(move || run(system, variant)),
                })
            })
            .collect()
    }

    /// A sentence on what is compared here.
    pub(super) fn describe(&self) -> String {
        let size = self.disk.size >> 20;
        let format = self.disk.format.name();
        let how = if self.disk.direct {
            "direct"
        } else {
            "buffered"
        };
        let aio = self.systems.iter().find_map(|system| match system {
            System::Qemu(aio) => Some(format!(", qsd with aio={aio}")),
            System::Ringback(_) => None,
        });
        format!("{format}, {size} MiB, {how}{}", aio.unwrap_or_default())
    }

    /// A daemon with the disk, after the target was spoiled and the page cache
    /// emptied.
    pub(super) fn start(&self, system: &System) -> Result<Daemon, String> {
        self.target.spoil()?;
        self.rest()?;
        let mut daemon = Daemon::start(system, self.place.path())?;
        daemon.add_image("disk", &self.disk, false)?;
        Ok(daemon)
    }

    /// Lets the disk come to rest.
    pub(super) fn rest(&self) -> Result<(), String> {
        self.target.settle()?;
        self.disk.settle()?;
        // For nothing that could be waited for: what the device does is its own affair.
        sleep(self.pause);
        Ok(())
    }

    /// The arguments of a backup with so many workers.
    pub(super) fn backup_arguments(&self, system: &System, workers: u32) -> Value {
        let arguments = json!({ "sync": "full", "x-perf": { "max-workers": workers } });
        self.extended(system, arguments)
    }

    /// Arguments of a backup with what is to be added to ringback's.
    pub(super) fn extended(&self, system: &System, arguments: Value) -> Value {
        extended(system, arguments, self.extension.as_ref())
    }

    /// A whole backup that somebody has started at `start`: to its end, and until all
    /// of it is durable.
    ///
    /// QEMU flushes nothing at the end of a job. So both are told to close the target,
    /// which writes what a format has in memory, and the file is flushed.
    pub(super) fn finish_backup(
        &self,
        daemon: &mut Daemon,
        start: Instant,
        cpu_at_start: f64,
    ) -> Result<Cost, String> {
        daemon.wait_backup()?;
        daemon.del_image("target")?;
        self.target.sync()?;
        Ok(Cost {
            seconds: start.elapsed().as_secs_f64(),
            cpu_seconds: daemon.cpu_seconds()? - cpu_at_start,
        })
    }

    /// Copies the idle disk, and verifies. Answers also the daemon's peak of memory in
    /// bytes.
    pub(super) fn copy(&self, system: &System, workers: u32) -> Result<(Cost, u64), String> {
        let mut daemon = self.start(system)?;
        daemon.add_image("target", &self.target, false)?;
        let point = self.history().now();
        let (start, cpu) = (Instant::now(), daemon.cpu_seconds()?);
        daemon.start_backup(&self.backup_arguments(system, workers))?;
        let cost = self.finish_backup(&mut daemon, start, cpu)?;
        let memory = daemon.process.memory_peak()?;
        daemon.quit()?;
        self.verify_target(&point)?;
        Ok((cost, memory))
    }

    /// Who reads qcow2 images at the end: QEMU if it is there.
    fn judge(&self) -> &System {
        let qemu = self.systems.iter().find(|system| system.name() == "qsd");
        qemu.unwrap_or(&self.systems[0])
    }

    /// Whether the target is the disk at that instant.
    pub(super) fn verify_target(&self, point: &PointInTime) -> Result<(), String> {
        let all = verify::whole(self.target.size);
        verify::image(&self.target, point, all, self.judge(), self.place.path())
    }

    /// The same for blocks whose old content a filter has saved; what lies around them
    /// is its own affair.
    pub(super) fn verify_saved(&self, point: &PointInTime, blocks: &[u64]) -> Result<(), String> {
        if blocks.is_empty() {
            return Err("the guest has overwritten nothing".into());
        }
        let pieces = blocks.iter().map(|&block| (block, BLOCK));
        verify::image(&self.target, point, pieces, self.judge(), self.place.path())
    }

    /// Whether the disk is what guests have written.
    pub(super) fn verify_disk(&self) -> Result<(), String> {
        self.verify_disk_at(&self.history().now())
    }

    fn verify_disk_at(&self, point: &PointInTime) -> Result<(), String> {
        let all = verify::whole(self.disk.size);
        let end = verify::image(&self.disk, point, all, self.judge(), self.place.path());
        end.map_err(|error| format!("the guest's own disk: {error}"))
    }

    /// Megabytes a second, where the whole disk takes so long.
    pub(super) fn speed(&self, seconds: f64) -> f64 {
        megabytes(self.disk.size) / seconds
    }

    /// Of what the whole disk takes, the part of a GiB.
    pub(super) fn per_gib(&self, whole: f64) -> f64 {
        whole / (mib(self.disk.size) / 1024.0)
    }
}

/// Arguments of a backup with these in addition where it is ringback's.
pub(super) fn extended(system: &System, mut arguments: Value, extension: Option<&Value>) -> Value {
    if let (System::Ringback(_), Some(extension)) = (system, extension) {
        merge(&mut arguments, extension);
    }
    arguments
}

/// Adds members to an object. Of objects that both have, members that are not named
/// stay.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "disks of whole MiB")]
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub(super) fn megabytes(bytes: u64) -> f64 {
    mib(bytes) * f64::from(1 << 20) / 1e6
}

pub(super) fn entrant(system: &System, variant: impl Into<String>) -> Entrant {
    Entrant {
        system: system.name(),
        variant: variant.into(),
    }
}

/// Such as `1 worker`.
pub(super) fn workers_name(workers: u32) -> String {
    match workers {
        1 => "1 worker".into(),
        _ => format!("{workers} workers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_leaves_the_other_arguments_alone() {
        let arguments = || json!({ "sync": "full", "x-perf": { "max-workers": 4 } });
        let extension = json!({ "speed": 0, "x-perf": { "latency-target": 0 } });
        let extension = Some(&extension);
        assert_eq!(
            extended(&System::Ringback("ringback".into()), arguments(), extension),
            json!({
                "sync": "full", "speed": 0,
                "x-perf": { "max-workers": 4, "latency-target": 0 },
            })
        );
        let qemu = extended(&System::Qemu("io_uring"), arguments(), extension);
        assert_eq!(qemu, arguments());
    }
}
