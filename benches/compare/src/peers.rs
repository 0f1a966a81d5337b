//! The other programs that read and write qcow2.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imago::file::File;
use imago::io_buffers::IoBuffer;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};
use nix::sys::resource::UsageWho;
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::uring::Qcow2IoUring;
use qcow2_rs::utils::qcow2_setup_dev_uring;

use crate::command;
use crate::images::{Format, qemu_cache};
use crate::load::{Limit, Load, Meter, Outcome, Program};
use crate::pattern::{BLOCK, Order};

/// The crate imago. Its file storage blocks the thread that polls it, so each
/// request in flight has a thread of its own.
pub(crate) struct Imago;

type ImagoDisk = Arc<FormatAccess<File>>;

fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.map_err(|error| error.to_string())?.block_on(future)
}

fn described<T>(what: &str, result: Result<T, impl ToString>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {}", error.to_string()))
}

impl Program for Imago {
    fn run(&self, file: &Path, load: &Load) -> Result<Outcome, String> {
        let disk = block_on(open_imago(file, load))?;
        let meter = Meter::start(UsageWho::RUSAGE_SELF)?;
        let workers: Vec<_> = (0..load.depth as u64)
            .map(|worker| {
                let (disk, load) = (Arc::clone(&disk), load.clone());
                std::thread::spawn(move || block_on(imago_worker(&disk, &load, worker)))
            })
            .collect();
        let mut requests: Result<u64, String> = Ok(0);
        for worker in workers {
            let count = worker.join().map_err(|_| "imago panicked".to_owned())?;
            requests = requests.and_then(|sum| Ok(sum + count?));
        }
        let requests = requests?;
        if load.writes() {
            block_on(async {
                described("imago: flush", disk.flush().await)?;
                described("imago: sync", disk.sync().await)
            })?;
        }
        meter.stop(requests)
    }
}

async fn open_imago(file: &Path, load: &Load) -> Result<ImagoDisk, String> {
    let options = StorageOpenOptions::new()
        .direct(load.direct)
        .write(load.writes());
    let storage = options.filename(file);
    let storage = described(
        "imago",
        <File as imago::storage::Storage>::open(storage).await,
    )?;
    let image = imago::qcow2::Qcow2::<File>::builder(storage)
        .write(load.writes())
        .backing(None)
        .open(DenyImplicitOpenGate::default())
        .await;
    let disk = Arc::new(FormatAccess::new(described("imago", image)?));
    let mut buf = described("imago", IoBuffer::new(BLOCK, BLOCK))?;
    for offset in load.warm_up() {
        described("imago", disk.read(&mut buf, offset).await)?;
    }
    Ok(disk)
}

async fn imago_worker(disk: &ImagoDisk, load: &Load, worker: u64) -> Result<u64, String> {
    let mut buf = described("imago", IoBuffer::new(load.len, BLOCK))?;
    let mut count = 0;
    for offset in load.requests(worker, load.depth as u64) {
        if load.writes() {
            load.prepare(buf.as_mut().into_slice(), offset);
            described("imago: write", disk.write(&buf, offset).await)?;
        } else {
            described("imago: read", disk.read(&mut buf, offset).await)?;
            load.content
                .check(buf.as_ref().into_slice(), offset)
                .map_err(|error| format!("imago: {error}"))?;
        }
        count += 1;
    }
    Ok(count)
}

/// The crate qcow2-rs, on tokio-uring.
pub(crate) struct Qcow2Rs;

type Qcow2RsDisk = Rc<Qcow2Dev<Qcow2IoUring>>;

impl Program for Qcow2Rs {
    fn run(&self, file: &Path, load: &Load) -> Result<Outcome, String> {
        let (file, load) = (file.to_owned(), load.clone());
        // It panics where others return errors.
        let run = std::thread::spawn(move || tokio_uring::start(run_qcow2_rs(&file, &load)));
        run.join().map_err(|_| "qcow2-rs panicked".to_owned())?
    }
}

async fn run_qcow2_rs(file: &Path, load: &Load) -> Result<Outcome, String> {
    let params = Qcow2DevParams::new(12, None, None, !load.writes(), load.direct);
    let disk = described("qcow2-rs", qcow2_setup_dev_uring(file, &params).await)?;
    let disk: Qcow2RsDisk = Rc::new(disk);
    let mut buf = Qcow2IoBuf::<u8>::new(BLOCK);
    for offset in load.warm_up() {
        described("qcow2-rs", disk.read_at(&mut buf, offset).await)?;
    }
    let meter = Meter::start(UsageWho::RUSAGE_SELF)?;
    let requests = Rc::new(RefCell::new(load.requests(0, 1)));
    let workers: Vec<_> = (0..load.depth)
        .map(|_| {
            let (disk, load, requests) = (Rc::clone(&disk), load.clone(), Rc::clone(&requests));
            tokio_uring::spawn(async move {
                let requests = std::iter::from_fn(move || requests.borrow_mut().next());
                qcow2_rs_worker(&disk, &load, requests).await
            })
        })
        .collect();
    let mut total: Result<u64, String> = Ok(0);
    for worker in workers {
        let count = described("qcow2-rs", worker.await)?;
        total = total.and_then(|total| Ok(total + count?));
    }
    let total = total?;
    if load.writes() {
        described("qcow2-rs: flush", disk.flush_meta().await)?;
        described("qcow2-rs: sync", disk.fsync_range(0, usize::MAX).await)?;
    }
    meter.stop(total)
}

async fn qcow2_rs_worker(
    disk: &Qcow2RsDisk,
    load: &Load,
    requests: impl Iterator<Item = u64>,
) -> Result<u64, String> {
    let mut buf = Qcow2IoBuf::<u8>::new(load.len);
    let mut count = 0;
    for offset in requests {
        if load.writes() {
            load.prepare(&mut buf, offset);
            described("qcow2-rs: write", disk.write_at(&buf, offset).await)?;
        } else {
            let read = described("qcow2-rs: read", disk.read_at(&mut buf, offset).await)?;
            if read != load.len {
                return Err(format!("qcow2-rs: {read} bytes at offset {offset}"));
            }
            load.content
                .check(&buf, offset)
                .map_err(|error| format!("qcow2-rs: {error}"))?;
        }
        count += 1;
    }
    Ok(count)
}

/// `qemu-img bench`: QEMU's block layer without a front end. It walks in
/// strides, and shows nobody what it reads.
pub(crate) struct QemuImg {
    pub(crate) format: Format,
    /// `native`, `io_uring` or `threads`.
    pub(crate) aio: String,
    /// Requests a second as far as is known: it takes a number, not a time.
    pub(crate) rate: AtomicU64,
}

impl Program for QemuImg {
    fn run(&self, file: &Path, load: &Load) -> Result<Outcome, String> {
        let Order::Stride { step } = load.order else {
            return Err("qemu-img bench walks in strides only".into());
        };
        let count = match load.limit {
            Limit::Requests(count) => count,
            Limit::Time(time) => {
                let rate = self.rate.load(Ordering::Relaxed);
                let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                (rate.saturating_mul(millis) / 1000).clamp(1000, 1 << 30)
            }
        };
        let mut command = Command::new("qemu-img");
        command.args(["bench", "-f", self.format.name(), "-i", &self.aio]);
        command.args(["-t", qemu_cache(load.direct)]);
        command.args(["-d", &load.depth.to_string(), "-s", &load.len.to_string()]);
        command.args(["-S", &step.to_string(), "-c", &count.to_string()]);
        if load.writes() {
            command.arg("-w");
        }
        let meter = Meter::start(UsageWho::RUSAGE_CHILDREN)?;
        let text = command::run(command.arg(file))?;
        let mut outcome = meter.stop(count)?;
        if !load.writes() {
            // The time without start and end. Of a write, the end counts: it
            // flushes.
            outcome.seconds = completed(&text).ok_or_else(|| format!("no time in: {text}"))?;
        }
        let rate = outcome.rate().min(1e9);
        let rate = std::time::Duration::from_secs_f64(rate).as_secs();
        self.rate.store(rate, Ordering::Relaxed);
        Ok(outcome)
    }
}

fn completed(text: &str) -> Option<f64> {
    let (_, rest) = text.split_once("completed in ")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_found() {
        let text = "Sending 10 read requests, ...\nRun completed in 0.125 seconds.\n";
        assert_eq!(completed(text), Some(0.125));
        assert_eq!(completed("nothing"), None);
    }
}
