//! ringback itself: its qcow2, or its raw, through the block graph in this
//! process.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::resource::UsageWho;
use ringback_block::format::qcow2;
use ringback_block::graph::{Access, Graph, NodeSpec, Qcow2Spec, UserId};
use ringback_block::port::Attachment;
use ringback_ring::file::Cache;
use ringback_ring::{Shard, Shards, error_text};

use crate::images::Format;
use crate::load::{Direction, Load, Meter, Outcome, Program};

/// One format on a set of shards.
pub(crate) struct Engine {
    pub(crate) shards: Shards,
    pub(crate) format: Format,
}

/// An open disk with one user.
struct Disk {
    graph: Graph,
    user: UserId,
    attachment: Attachment,
}

impl Engine {
    /// Runs something on the first shard and waits for it.
    fn control<T, F>(&self, make: impl FnOnce(Shard) -> F + Send + 'static) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, String>> + 'static,
    {
        let answer = self.shards.spawn_on(0, make).wait();
        answer.map_err(|_| "a shard has ended".to_owned())?
    }

    fn with_disk<T: Send + 'static>(
        &self,
        file: &Path,
        load: &Load,
        act: impl AsyncFnOnce(&Shard, &Attachment, &Load) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (file, load, format) = (file.to_owned(), load.clone(), self.format);
        self.control(move |shard| async move {
            let disk = open(&shard, file, format, &load).await?;
            let result = act(&shard, &disk.attachment, &load).await;
            close(&shard, disk).await?;
            result
        })
    }

    /// Reads and checks blocks of `len` bytes at these offsets, `depth` at a
    /// time.
    pub(crate) fn verify(&self, file: &Path, load: &Load, offsets: Vec<u64>) -> Result<(), String> {
        let load = Load {
            direction: Direction::Read,
            ..load.clone()
        };
        self.with_disk(file, &load, async move |shard, attachment, load| {
            let next = Rc::new(Cell::new(0));
            let offsets: Rc<[u64]> = offsets.into();
            let workers: Vec<_> = (0..load.depth)
                .map(|_| {
                    let (next, offsets) = (Rc::clone(&next), Rc::clone(&offsets));
                    let requests = std::iter::from_fn(move || {
                        let index = next.get();
                        next.set(index + 1);
                        offsets.get(index).copied()
                    });
                    shard.spawn(work(
                        shard.clone(),
                        attachment.clone(),
                        load.clone(),
                        requests,
                    ))
                })
                .collect();
            let mut result = Ok(0);
            for worker in workers {
                result = result.and(worker.join().await);
            }
            result.map(drop)
        })
    }
}

impl Program for Engine {
    fn run(&self, file: &Path, load: &Load) -> Result<Outcome, String> {
        self.with_disk(file, load, async move |shard, attachment, load| {
            warm_up(shard, attachment, load).await?;
            let meter = Meter::start(UsageWho::RUSAGE_SELF)?;
            let (attachment_of_all, load_of_all) = (attachment.clone(), load.clone());
            let counts = shard
                .set()
                .on_each(move |shard| {
                    run_shard(shard, attachment_of_all.clone(), load_of_all.clone())
                })
                .await;
            let mut requests = 0;
            for count in counts {
                requests += count?;
            }
            if load.writes() {
                let flushed = attachment.port(shard).flush(shard).await;
                flushed.map_err(|errno| format!("flush: {}", error_text(errno)))?;
            }
            meter.stop(requests)
        })
    }
}

async fn open(shard: &Shard, path: PathBuf, format: Format, load: &Load) -> Result<Disk, String> {
    let mut graph = Graph::new();
    let write = load.writes();
    let cache = if load.direct {
        Cache::Direct
    } else {
        Cache::Buffered
    };
    let file = NodeSpec::File {
        path,
        write,
        cache,
        discard: true,
    };
    let node = match format {
        Format::Raw => NodeSpec::Raw {
            file: "file".into(),
            offset: 0,
            size: None,
        },
        Format::Qcow2 => NodeSpec::Qcow2(Qcow2Spec {
            file: "file".into(),
            backing: None,
            data_file: None,
            options: qcow2::OpenOptions::new(write),
            force_share: false,
        }),
    };
    for (name, spec) in [("file", file), ("disk", node)] {
        let added = graph.add(shard, name, spec).await;
        added.map_err(|error| error.to_string())?;
    }
    let access = Access {
        read: true,
        write,
        alone_writing: true,
        ..Access::default()
    };
    let attached = graph.attach(shard, "disk", "guest", access).await;
    let (user, attachment) = attached.map_err(|error| error.to_string())?;
    Ok(Disk {
        graph,
        user,
        attachment,
    })
}

async fn close(shard: &Shard, mut disk: Disk) -> Result<(), String> {
    disk.graph.detach(disk.user).await;
    let removed = disk.graph.remove(shard, "disk").await;
    removed.map_err(|error| error.to_string())
}

async fn warm_up(shard: &Shard, attachment: &Attachment, load: &Load) -> Result<(), String> {
    let port = attachment.port(shard);
    let mut buf = shard.buffer(4096).await;
    for offset in load.warm_up() {
        let result;
        (result, buf) = port.read(shard, offset, buf, 0..4096).await;
        result.map_err(|errno| format!("read at {offset}: {}", error_text(errno)))?;
    }
    Ok(())
}

/// This shard's part of a load: answers how many requests.
async fn run_shard(shard: Shard, attachment: Attachment, load: Load) -> Result<u64, String> {
    let shards = shard.set().count();
    // Numbers are given out in order, so that a stride is one.
    let requests = load.requests(shard.index() as u64, shards as u64);
    let shared = Rc::new(RefCell::new(requests));
    let workers: Vec<_> = (0..(load.depth / shards).max(1))
        .map(|_| {
            let shared = Rc::clone(&shared);
            let requests = std::iter::from_fn(move || shared.borrow_mut().next());
            shard.spawn(work(
                shard.clone(),
                attachment.clone(),
                load.clone(),
                requests,
            ))
        })
        .collect();
    let mut total = Ok(0);
    for worker in workers {
        let count = worker.join().await;
        total = total.and_then(|total| Ok(total + count?));
    }
    total
}

/// One request after the other.
async fn work(
    shard: Shard,
    attachment: Attachment,
    load: Load,
    requests: impl Iterator<Item = u64>,
) -> Result<u64, String> {
    let port = attachment.port(&shard);
    let mut buf = shard.buffer(load.len).await;
    let mut count = 0;
    for offset in requests {
        let window = 0..load.len;
        let result;
        if load.writes() {
            load.prepare(&mut buf[window.clone()], offset);
            (result, buf) = port.write(&shard, offset, buf, window).await;
        } else {
            (result, buf) = port.read(&shard, offset, buf, window).await;
        }
        result.map_err(|errno| format!("request at {offset}: {}", error_text(errno)))?;
        if !load.writes() {
            load.content.check(&buf[..load.len], offset)?;
        }
        count += 1;
    }
    Ok(count)
}
