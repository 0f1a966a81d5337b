//! One run from a seed: guests write to a disk, a point in time is taken, a
//! backup and fleecing readers work against the guests, things go wrong.
//!
//! What is promised and checked:
//!
//! 1. A guest reads what it last wrote, at any offset and length.
//! 2. A fleecing reader and the backup see the disk at the point in time.
//! 3. When a write is acknowledged, the bitmap that records has it.
//! 4. A job that ended, well or not, holds no claim, and guests go on.
//! 5. At the end the disk holds what the guests wrote.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringback_block::bitmap::DirtyBitmap;
use ringback_block::copy::chunk::Side;
use ringback_block::copy::control::{Event, JobError, OnError};
use ringback_block::copy::governor::LatencyTarget;
use ringback_block::filter::copy_before_write::{self, CopyBeforeWrite, OnCbwError};
use ringback_block::graph::{Access, BitmapEnd, Graph, Insertion, NodeSpec, Scope, UserId};
use ringback_block::job::backup::{self, Backup};
use ringback_block::port::{Attachment, Port};
use ringback_block::request::ZeroFlags;
use ringback_block::span::Span;
use ringback_ring::file::Cache;
use ringback_ring::sim::{FileOptions, Random, Sim};
use ringback_ring::{Errno, Shard};

use crate::model::{Image, Model};

const CLUSTER: u64 = 65536;

type Shared = Arc<Mutex<Model>>;

fn lock(model: &Shared) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that a seed decides before the run.
#[derive(Clone, Debug)]
struct Plan {
    size: u64,
    shards: usize,
    guests: u64,
    stripe: u64,
    unaligned: bool,
    readers: u64,
    discards: bool,
    on_cbw_error: OnCbwError,
    cbw_timeout_ns: u64,
    save_buffer: u64,
    /// Whole clusters are saved for guests, not only what they overwrite.
    saves_clusters: bool,
    with_bitmap: bool,
    source: FileOptions,
    target: FileOptions,
    job: backup::Options,
    cancel_after_ns: Option<u64>,
    pause_after_ns: Option<u64>,
    /// Requests of each guest before and after the point in time.
    requests: u64,
}

fn plan(random: &mut Random) -> Plan {
    let unaligned = random.below(2) == 0;
    let alignment = if random.below(3) == 0 { 4096 } else { 512 };
    let faulty = random.below(3) == 0;
    let rate = |on: bool, random: &mut Random| if on { random.below(30_000) as u32 } else { 0 };
    let mut file = |slow: u64| FileOptions {
        request_alignment: alignment,
        latency_ns: (10_000, 20_000 + random.below(400_000) * slow),
        short_rate: rate(true, random),
        again_rate: rate(true, random),
        read_error_rate: rate(faulty, random),
        write_error_rate: rate(faulty, random),
        ..FileOptions::default()
    };
    let (source, mut target) = (file(1), file(1));
    let timeout = random.below(3) == 0;
    if timeout {
        target.latency_ns.1 = 5_000_000;
    }
    let policies = [
        OnError::Report,
        OnError::Ignore,
        OnError::Stop,
        OnError::Enospc,
    ];
    let targets = [
        LatencyTarget::Auto,
        LatencyTarget::Bound(100_000),
        LatencyTarget::Bound(10_000_000),
        LatencyTarget::Off,
    ];
    let job = backup::Options {
        discard_source: false,
        sync: if random.below(6) == 0 {
            backup::Sync::None
        } else {
            backup::Sync::Full
        },
        max_workers: [1, 2, 4, 16, 64][random.index(5)],
        max_chunk: [0, CLUSTER, 2 * CLUSTER][random.index(3)],
        speed: if random.below(4) == 0 { 100_000_000 } else { 0 },
        latency_target: targets[random.index(4)],
        on_source_error: policies[random.index(4)],
        on_target_error: policies[random.index(4)],
    };
    let stripe_max = if random.below(4) == 0 {
        200_000
    } else {
        20_000
    };
    let cancelled = job.sync == backup::Sync::None || random.below(4) == 0;
    Plan {
        size: CLUSTER * (2 + random.below(10)) + 512 * random.below(100) * 8,
        shards: 1 + random.index(2),
        guests: 1 + random.below(5),
        stripe: 500 + random.below(stripe_max),
        unaligned,
        readers: random.below(8),
        discards: random.below(4) == 0,
        on_cbw_error: [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot][random.index(2)],
        cbw_timeout_ns: if timeout {
            200_000 + random.below(2_000_000)
        } else {
            0
        },
        save_buffer: [0, 1, CLUSTER, 64 * CLUSTER][random.index(4)],
        saves_clusters: random.below(2) == 0,
        with_bitmap: random.below(3) == 0,
        source,
        target,
        job,
        cancel_after_ns: cancelled.then(|| random.below(20_000_000)),
        pause_after_ns: (random.below(4) == 0).then(|| random.below(5_000_000)),
        requests: 20 + random.below(60),
    }
}

/// Runs one seed.
///
/// # Errors
///
/// The first promise that was broken.
pub(crate) fn run(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let plan = plan(&mut random);
    let mut sim = Sim::new(random.bits(), plan.shards);
    sim.world().create("source", plan.size, plan.source.clone());
    sim.world().create("target", plan.size, plan.target.clone());
    let len = usize::try_from(plan.size).expect("small");
    let clusters = len.div_ceil(CLUSTER as usize);
    let model: Shared = Arc::new(Mutex::new(Model {
        live: Image::new(len),
        discard_begun: vec![false; clusters],
        discard_done: vec![false; clusters],
        ..Model::default()
    }));
    let control = Run {
        plan: plan.clone(),
        model: Arc::clone(&model),
        seed: random.bits(),
    };
    let answer = sim
        .shards()
        .spawn_on(0, |shard| async move { control.run(&shard).await });
    let outcome = sim
        .run(&answer)
        .map_err(|stalled| format!("{stalled}; {plan:?}"))?;
    let model = lock(&model);
    if let Some(violation) = &model.violation {
        return Err(format!("{violation}; {plan:?}"));
    }
    check_files(&sim, &model, &outcome).map_err(|wrong| format!("{wrong}; {plan:?}"))
}

fn check_files(sim: &Sim, model: &Model, outcome: &Outcome) -> Result<(), String> {
    if let Some(wrong) = model.live.mismatch(0, &sim.world().content("source")) {
        return Err(format!("at the end the source's {wrong}"));
    }
    let (Some(snapshot), true) = (&model.snapshot, outcome.backup_succeeded) else {
        return Ok(());
    };
    let target = sim.world().content("target");
    for &(start, end) in &outcome.wanted {
        for at in (start..end).step_by(CLUSTER as usize) {
            // What the fleecing client gave up belongs to nobody.
            let cluster = at..end.min(at + CLUSTER as usize);
            if model.discard_begun[at / CLUSTER as usize] {
                continue;
            }
            if let Some(wrong) = snapshot.mismatch(at, &target[cluster]) {
                return Err(format!("the backup's {wrong}"));
            }
        }
    }
    Ok(())
}

/// What the control task reports.
struct Outcome {
    backup_succeeded: bool,
    /// Byte ranges that the backup must hold.
    wanted: Vec<(usize, usize)>,
}

struct Run {
    plan: Plan,
    model: Shared,
    seed: u64,
}

impl Run {
    async fn run(self, shard: &Shard) -> Outcome {
        let mut random = Random::new(self.seed);
        let mut graph = Graph::new();
        for name in ["source", "target"] {
            let spec = NodeSpec::File {
                path: PathBuf::from(name),
                write: true,
                cache: Cache::Auto,
                discard: true,
            };
            graph.add(shard, name, spec).await.expect("a node");
        }
        let access = Access {
            read: true,
            write: true,
            alone_writing: true,
            ..Access::default()
        };
        let (_, disk) = graph
            .attach(shard, "source", "guest", access)
            .await
            .expect("a guest");
        // Some content before anybody watches.
        self.guests(shard, &disk, &mut random, None).await;
        if self.plan.with_bitmap {
            self.add_bitmap(&mut graph).await;
            let recorder = recorder(&graph);
            self.guests(shard, &disk, &mut random, recorder.as_ref())
                .await;
        }
        let phase = self.spawn_guests(shard, &disk, &mut random, None, true);
        shard.sleep_ns(random.below(3_000_000)).await;
        let filter = self.take_point_in_time(shard, &mut graph).await;
        let wanted = self.wanted(&filter);
        let (view, readers) = self.spawn_readers(shard, &mut graph, &mut random).await;
        let backup_succeeded = self.back_up(shard, &filter).await;
        lock(&self.model).stopping = true;
        for task in phase.into_iter().chain(readers) {
            task.await.expect("it ends");
        }
        // A save that timed out goes on behind the guest; a claim that was
        // leaked would hold us here for ever.
        filter.wait_for_saves_in_flight(shard).await;
        self.check_at_rest(&graph, &filter);
        graph.detach(view).await;
        self.take_down(shard, &mut graph, backup_succeeded).await;
        // The gates are open, the filter is gone: guests go on.
        lock(&self.model).stopping = false;
        let recorder = recorder(&graph);
        self.guests(shard, &disk, &mut random, recorder.as_ref())
            .await;
        Outcome {
            backup_succeeded,
            wanted,
        }
    }

    async fn add_bitmap(&self, graph: &mut Graph) {
        let added = graph.change_bitmaps("source", |bitmaps| {
            bitmaps.add("b0", CLUSTER / 4, false, false).map(drop)
        });
        added.await.expect("a bitmap");
    }

    async fn take_point_in_time(&self, shard: &Shard, graph: &mut Graph) -> Arc<CopyBeforeWrite> {
        let insertion = Insertion {
            node_name: Some("cbw"),
            file: "source",
            target: "target",
            bitmap: self.plan.with_bitmap.then_some("b0"),
            scope: Scope::Bitmap,
            options: copy_before_write::Options {
                on_cbw_error: self.plan.on_cbw_error,
                cbw_timeout_ns: self.plan.cbw_timeout_ns,
                save_buffer: self.plan.save_buffer,
                min_cluster_size: if self.plan.saves_clusters { CLUSTER } else { 0 },
                ..copy_before_write::Options::default()
            },
        };
        let model = Arc::clone(&self.model);
        let at_instant = move || {
            let mut model = lock(&model);
            model.snapshot = Some(model.live.clone());
        };
        let inserted = graph
            .insert_copy_before_write(shard, &[insertion], at_instant)
            .await;
        Arc::clone(&inserted.expect("a filter").filters[0])
    }

    /// Byte ranges that belong to the snapshot.
    fn wanted(&self, filter: &CopyBeforeWrite) -> Vec<(usize, usize)> {
        let small = |bytes: u64| usize::try_from(bytes).expect("small");
        let areas = filter.snapshot_areas();
        areas
            .map(|area| (small(area.offset), small(area.end())))
            .collect()
    }

    fn spawn_guests(
        &self,
        shard: &Shard,
        disk: &Attachment,
        random: &mut Random,
        recorder: Option<&Arc<DirtyBitmap>>,
        endless: bool,
    ) -> Vec<ringback_ring::remote::Answer<()>> {
        let set = shard.set();
        (0..self.plan.guests)
            .map(|number| {
                let guest = Guest {
                    number,
                    plan: self.plan.clone(),
                    model: Arc::clone(&self.model),
                    random: Random::new(random.bits()),
                    recorder: recorder.cloned(),
                    endless,
                };
                let disk = disk.clone();
                let index = random.index(set.count());
                set.spawn_on(index, |shard| async move {
                    let port = disk.port(&shard);
                    guest.run(&shard, &port).await;
                })
            })
            .collect()
    }

    async fn guests(
        &self,
        shard: &Shard,
        disk: &Attachment,
        random: &mut Random,
        recorder: Option<&Arc<DirtyBitmap>>,
    ) {
        for guest in self.spawn_guests(shard, disk, random, recorder, false) {
            guest.await.expect("it ends");
        }
    }

    async fn spawn_readers(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        random: &mut Random,
    ) -> (UserId, Vec<ringback_ring::remote::Answer<()>>) {
        let spec = NodeSpec::SnapshotAccess { file: "cbw".into() };
        graph.add(shard, "snap", spec).await.expect("a node");
        let access = Access {
            read: true,
            write: false,
            alone_writing: false,
            ..Access::default()
        };
        let (id, view) = graph
            .attach(shard, "snap", "fleecing", access)
            .await
            .expect("a view");
        let set = shard.set();
        let readers = (0..self.plan.readers)
            .map(|_| {
                let reader = Reader {
                    plan: self.plan.clone(),
                    model: Arc::clone(&self.model),
                    random: Random::new(random.bits()),
                };
                let view = view.clone();
                set.spawn_on(random.index(set.count()), |shard| async move {
                    let port = view.port(&shard);
                    reader.run(&shard, &port).await;
                })
            })
            .collect();
        (id, readers)
    }

    /// Starts the job, disturbs it as planned, waits for it.
    async fn back_up(&self, shard: &Shard, filter: &Arc<CopyBeforeWrite>) -> bool {
        let job = Arc::new(Backup::start(shard, filter, self.plan.job).expect("good options"));
        let keeper = {
            let (job, shard, plan) = (Arc::clone(&job), shard.clone(), self.plan.clone());
            shard
                .clone()
                .spawn(async move { keep(&shard, &job, &plan).await })
        };
        let outcome = job.ended(shard).await;
        keeper.join().await;
        self.check_outcome(filter, outcome.result);
        outcome.result.is_ok() && self.plan.job.sync == backup::Sync::Full
    }

    fn check_outcome(&self, filter: &CopyBeforeWrite, result: Result<(), JobError>) {
        let progress = filter.progress();
        let mut model = lock(&self.model);
        let complete = progress.offset == progress.len;
        match result {
            Ok(()) if self.plan.job.sync == backup::Sync::Full && !complete => {
                model.violate(|| format!("a job succeeded with {progress:?}"));
            }
            Ok(()) if self.plan.job.sync == backup::Sync::Full && filter.buffered_bytes() > 0 => {
                model.violate(|| "a job succeeded with old data in memory only".into());
            }
            Ok(()) if filter.broken().is_some() => {
                model.violate(|| "a job succeeded with a broken snapshot".into());
            }
            Err(JobError::SnapshotBroken(_)) if filter.broken().is_none() => {
                model.violate(|| "a job calls a good snapshot broken".into());
            }
            _ => {}
        }
    }

    /// Nobody works any more: no claim may be left.
    fn check_at_rest(&self, graph: &Graph, filter: &CopyBeforeWrite) {
        let open = filter.claimed_bytes();
        let mut model = lock(&self.model);
        if open != 0 {
            model.violate(|| format!("{open} bytes are still claimed"));
        }
        let lost = graph
            .bitmaps("source")
            .expect("a node")
            .list()
            .iter()
            .any(|info| info.flags.busy);
        if lost != self.plan.with_bitmap {
            model.violate(|| "the frozen bitmap is not busy".into());
        }
        let Some(successor) = recorder(graph) else {
            return;
        };
        for span in std::mem::take(&mut model.changed) {
            if successor.next_zero(span.offset, span.end()).is_some() {
                model.violate(|| format!("{span:?} was written and is not in the successor"));
            }
        }
    }

    async fn take_down(&self, shard: &Shard, graph: &mut Graph, succeeded: bool) {
        graph
            .remove(shard, "snap")
            .await
            .expect("nobody reads it any more");
        graph
            .remove_copy_before_write(shard, "cbw")
            .await
            .expect("nobody needs it any more");
        if self.plan.with_bitmap {
            let end = if succeeded {
                BitmapEnd::Abdicate
            } else {
                BitmapEnd::Reclaim
            };
            graph
                .end_bitmap("source", "b0", end)
                .await
                .expect("it was frozen");
        }
    }
}

/// The bitmap of the source that records now.
fn recorder(graph: &Graph) -> Option<Arc<DirtyBitmap>> {
    graph
        .bitmaps("source")
        .expect("a node")
        .recorders()
        .into_iter()
        .next()
}

/// The job's owner: pauses, cancels, mends what the job stopped at.
async fn keep(shard: &Shard, job: &Backup, plan: &Plan) {
    let start = shard.now_ns();
    let (mut cancel, mut pause) = (plan.cancel_after_ns, plan.pause_after_ns);
    let mut errors = 0;
    while job.outcome().is_none() {
        let age = shard.now_ns() - start;
        if pause.is_some_and(|after| age >= after) {
            job.control().pause();
            pause = None;
        }
        if cancel.is_some_and(|after| age >= after) || errors > 200 {
            job.control().cancel();
            cancel = None;
        }
        while let Some(Event::Error { side, .. }) = job.control().next_event() {
            assert!(matches!(side, Side::Source | Side::Target));
            errors += 1;
        }
        shard.sleep_ns(500_000).await;
        if job.control().is_paused() {
            job.control().resume();
        }
    }
}

/// One guest: one request at a time, in stripes of its own.
struct Guest {
    number: u64,
    plan: Plan,
    model: Shared,
    random: Random,
    /// A bitmap that records what this guest writes.
    recorder: Option<Arc<DirtyBitmap>>,
    /// Until told to stop, instead of a number of requests.
    endless: bool,
}

impl Guest {
    async fn run(mut self, shard: &Shard, port: &Port) {
        let mut count = 0;
        while !lock(&self.model).stopping {
            if !self.endless && count == self.plan.requests {
                break;
            }
            if let Some(span) = self.choose_span() {
                self.request(shard, port, span).await;
            }
            count += 1;
            if self.random.below(3) == 0 {
                shard.sleep_ns(self.random.below(500_000)).await;
            }
        }
    }

    fn choose_span(&mut self) -> Option<Span> {
        let (size, stripe) = (self.plan.size, self.plan.stripe);
        let stripes = size.div_ceil(stripe);
        let mine = stripes.checked_sub(self.number)?.div_ceil(self.plan.guests);
        if mine == 0 {
            return None;
        }
        let number = self.random.below(mine) * self.plan.guests + self.number;
        let whole = Span::new(number * stripe, stripe.min(size - number * stripe));
        let span = match self.random.below(3) {
            0 => whole,
            _ => {
                let start = self.random.below(whole.len);
                Span::new(
                    whole.offset + start,
                    1 + self.random.below(whole.len - start),
                )
            }
        };
        let span = if self.plan.unaligned {
            span
        } else {
            span.shrink(512)
        };
        (!span.is_empty()).then_some(span)
    }

    async fn request(&mut self, shard: &Shard, port: &Port, span: Span) {
        let (start, len) = (
            usize::try_from(span.offset).expect("small"),
            span.len as usize,
        );
        match self.random.below(10) {
            0..=5 => {
                let mut buf = shard.buffer(len).await;
                let value = self.random.bits().to_le_bytes();
                for (index, byte) in buf.iter_mut().enumerate() {
                    *byte = value[index % 8] | 1;
                }
                let bytes = buf.to_vec();
                let (result, _) = port.write(shard, span.offset, buf, 0..len).await;
                self.written(span, result, &bytes);
            }
            6 => {
                let flags = ZeroFlags {
                    may_unmap: self.random.below(2) == 0,
                    no_fallback: false,
                };
                let result = port.write_zeroes(shard, span, flags).await;
                self.written(span, result, &vec![0; len]);
            }
            7 => {
                // The content of what was discarded is not defined.
                let _ = port.discard(shard, span).await;
                lock(&self.model).live.forget(start..start + len);
            }
            8 => {
                let _ = port.flush(shard).await;
            }
            _ => {
                let buf = shard.buffer(len).await;
                let (result, buf) = port.read(shard, span.offset, buf, 0..len).await;
                let mut model = lock(&self.model);
                if result.is_ok()
                    && let Some(wrong) = model.live.mismatch(start, &buf[..len])
                {
                    model.violate(|| format!("a guest read: {wrong}"));
                }
            }
        }
    }

    fn written(&self, span: Span, result: Result<(), Errno>, bytes: &[u8]) {
        let start = usize::try_from(span.offset).expect("small");
        let mut model = lock(&self.model);
        match result {
            Ok(()) => model.live.write(start, bytes),
            Err(_) => model.live.forget(start..start + bytes.len()),
        }
        // A failed write may have been refused by the filter: it then changed
        // nothing, and nothing is marked.
        if model.snapshot.is_some() && result.is_ok() {
            model.changed.push(span);
        }
        let missing = |bitmap: &Arc<DirtyBitmap>| bitmap.next_zero(span.offset, span.end());
        if let Some(at) = self.recorder.as_ref().and_then(missing) {
            model.violate(|| format!("byte {at} was written and is not dirty"));
        }
    }
}

/// One fleecing client.
struct Reader {
    plan: Plan,
    model: Shared,
    random: Random,
}

impl Reader {
    async fn run(mut self, shard: &Shard, port: &Port) {
        while !lock(&self.model).stopping {
            let start = self.random.below(self.plan.size);
            let len = 1 + self.random.below((self.plan.size - start).min(3 * CLUSTER));
            let span = Span::new(start, len);
            if self.plan.discards && self.random.below(5) == 0 {
                self.discard(shard, port, span).await;
            } else {
                self.read(shard, port, span).await;
            }
            if self.random.below(3) == 0 {
                shard.sleep_ns(self.random.below(300_000)).await;
            }
        }
    }

    fn clusters(&self, span: Span) -> std::ops::Range<usize> {
        (span.offset / CLUSTER) as usize..span.end().div_ceil(CLUSTER) as usize
    }

    async fn read(&mut self, shard: &Shard, port: &Port, span: Span) {
        let (start, len) = (
            usize::try_from(span.offset).expect("small"),
            span.len as usize,
        );
        let clusters = self.clusters(span);
        let gone = lock(&self.model).discard_done[clusters].contains(&true);
        let buf = shard.buffer(len).await;
        let (result, buf) = port.read(shard, span.offset, buf, 0..len).await;
        if result.is_err() {
            return;
        }
        let mut model = lock(&self.model);
        if gone {
            model.violate(|| format!("{span:?} was read after its discard"));
        }
        let wrong = model
            .snapshot
            .as_ref()
            .and_then(|image| image.mismatch(start, &buf[..len]));
        if let Some(wrong) = wrong {
            model.violate(|| format!("a fleecing read of {span:?}: {wrong}"));
        }
    }

    async fn discard(&mut self, shard: &Shard, port: &Port, span: Span) {
        let inner = span.shrink(CLUSTER);
        if inner.is_empty() {
            return;
        }
        let clusters = self.clusters(inner);
        lock(&self.model).discard_begun[clusters.clone()].fill(true);
        if port.discard(shard, inner).await.is_ok() {
            lock(&self.model).discard_done[clusters].fill(true);
        }
    }
}
