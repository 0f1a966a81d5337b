//! qcow2 images on a simulated machine: guests share clusters, requests fail,
//! the power goes.
//!
//! What is promised and checked:
//!
//! 1. A guest reads what was last written there, or what is being written.
//! 2. After a power cut at any instant the image has no contradiction, at worst
//!    leaks (Q1); every byte is one that was written to that place since the last
//!    flush, or was there then.
//! 3. Closed without a fault before, an image has no leaks.
//! 4. What the engine reads is what a parser reads that shares nothing with it,
//!    and `qemu-img check` agrees, for some seeds.
//! 5. Nobody ever calls the image corrupt.

mod made;
mod model;
mod parsed;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringback_block::format::qcow2::OpenOptions;
use ringback_block::graph::{Access, Graph, NodeSpec, Qcow2Spec, UserId};
use ringback_block::notice::{Notice, Notify};
use ringback_block::port::{Attachment, Port};
use ringback_block::request::ZeroFlags;
use ringback_block::span::Span;
use ringback_ring::file::Cache;
use ringback_ring::sim::{FileOptions, Random, Sim, World};
use ringback_ring::{Errno, Shard};
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

use made::Shape;
use model::{Cells, Model, Value, fill_byte};
use parsed::Parsed;

/// Of so many seeds one is shown to `qemu-img check`.
const CHECKED_SEEDS: u64 = 40;

type Shared = Arc<Mutex<Model>>;

fn lock(model: &Shared) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a seed decides once.
#[derive(Clone, Debug)]
struct Plan {
    shape: Shape,
    guests: usize,
    islands: Vec<Span>,
    grain: u64,
    /// Runs of cells, and the only guest that writes there.
    stripes: Vec<(Cells, usize)>,
    backing: Option<Vec<u8>>,
    discard_other: bool,
    /// Guests mostly make and discard compressed clusters.
    packing: bool,
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    CutAfter {
        nanoseconds: u64,
    },
    /// Right after so many flushes, give or take a few microseconds.
    CutAtFlush(usize),
    /// After so many requests of each guest.
    Close {
        requests: u64,
    },
}

/// What the machine does wrong while guests work.
#[derive(Clone, Debug, Default)]
struct Faults {
    read_error_rate: u32,
    write_error_rate: u32,
    sync_error_rate: u32,
    space_left: Option<u64>,
}

impl Faults {
    fn new(random: &mut Random) -> Self {
        let mut faults = Self::default();
        if random.below(3) == 0 {
            faults.write_error_rate = random.below(30_000) as u32;
            faults.read_error_rate = random.below(20_000) as u32;
            faults.sync_error_rate = random.below(100_000) as u32;
        }
        if random.below(6) == 0 {
            let blocks = [2, 40][random.index(2)];
            faults.space_left = Some(random.below(blocks) * 4096);
        }
        faults
    }

    fn any(&self) -> bool {
        self.write_error_rate + self.read_error_rate + self.sync_error_rate > 0
            || self.space_left.is_some()
    }
}

fn plan(random: &mut Random) -> Plan {
    let shape = Shape::new(random);
    let cluster = shape.cluster();
    let guests = 2 + random.index(3);
    let grain = match cluster {
        ..4096 => [36, 100, 128, 512][random.index(4)],
        4096 => [100, 128, 512, 1024][random.index(4)],
        _ => [500, 512, 2048, 4096][random.index(4)],
    };
    let islands = islands(&shape, grain, random);
    let stripes = stripes(&islands, grain, cluster, guests, random);
    let backing = (random.below(2) == 0).then(|| backing(&islands, random));
    Plan {
        shape,
        guests,
        islands,
        grain,
        stripes,
        backing,
        discard_other: random.below(2) == 0,
        packing: cluster.is_multiple_of(grain) && random.below(4) == 0,
    }
}

fn islands(shape: &Shape, grain: u64, random: &mut Random) -> Vec<Span> {
    let longest = match shape.cluster_bits {
        ..=12 => 24,
        14 => 8,
        _ => 4,
    };
    let zones = 1 + random.below(4);
    let zone = (shape.size / zones) & !(shape.cluster() - 1);
    (0..zones)
        .filter_map(|index| {
            let room = zone.min((1 + random.below(longest)) * shape.cluster()) / grain * grain;
            let last = zone - room;
            let start = match random.below(4) {
                0 if index + 1 == zones => shape.size - room - index * zone,
                1 => random.below(last + 1) & !(shape.cluster() - 1),
                _ => random.below(last / grain + 1) * grain,
            };
            (room > 0).then(|| Span::new(index * zone + start, room))
        })
        .collect()
}

fn stripes(
    islands: &[Span],
    grain: u64,
    cluster: u64,
    guests: usize,
    random: &mut Random,
) -> Vec<(Cells, usize)> {
    let longest = (3 * cluster / grain).max(1);
    let mut stripes = Vec::new();
    for (island, span) in islands.iter().enumerate() {
        let mut start = 0;
        while start < span.len / grain {
            let end = (start + 1 + random.below(longest)).min(span.len / grain);
            let cells = Cells {
                island,
                start: start as usize,
                end: end as usize,
            };
            stripes.push((cells, random.index(guests)));
            start = end;
        }
    }
    stripes
}

/// Below some of the islands, with holes.
fn backing(islands: &[Span], random: &mut Random) -> Vec<u8> {
    let end = islands[random.index(islands.len())].end();
    let len = (1 + random.below(end)).next_multiple_of(512);
    let mut bytes = vec![0; len as usize];
    for (index, block) in bytes.chunks_mut(512).enumerate() {
        let fill = random.bits().to_le_bytes()[0];
        if index % 64 < 40 {
            block.fill(fill);
        }
    }
    bytes
}

/// One seed.
pub(crate) fn run(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let plan = Arc::new(plan(&mut random));
    let shards = 1 + random.index(3);
    let mut sim = Sim::new(random.bits(), shards);
    let image = plan.shape.image();
    let fresh = Parsed::new(&image).map_err(|what| format!("made: {what}"))?;
    let mut leaks = fresh.leaks.clone();
    let options = FileOptions {
        request_alignment: [1, 512, 512, 4096][random.index(4)],
        no_fallocate: random.below(5) == 0,
        short_rate: 10_000,
        again_rate: 10_000,
        slow_rate: [0, 10_000, 60_000][random.index(3)],
        ..FileOptions::default()
    };
    if let Some(bytes) = &plan.backing {
        let options = FileOptions::default();
        sim.world().create_with("base", bytes.clone(), options);
    }
    let model = Arc::new(Mutex::new(Model::new(plan.grain, &plan.islands)));
    let mut contents = contents(&plan, &fresh)?;
    sim.world().create_with("disk", image, options);
    let sessions = 1 + random.index(3);
    for number in 0..=sessions {
        let end = match random.below(4) {
            _ if number == sessions => End::Close { requests: 0 },
            0 => End::Close {
                requests: random.below(40),
            },
            1 => End::CutAtFlush(1 + random.index(12)),
            _ => End::CutAfter {
                nanoseconds: random.below(15_000_000),
            },
        };
        let faults = Faults::new(&mut random);
        Session::mend(sim.world());
        let session = Session {
            plan: Arc::clone(&plan),
            model: Arc::clone(&model),
            contents: std::mem::take(&mut contents),
            faults: faults.clone(),
            end,
        };
        let where_ = format!("session {number} ({end:?}, {faults:?})");
        let closed;
        (sim, closed) = session
            .run(sim, random.bits())
            .map_err(|what| format!("{where_}: {what}"))?;
        let file = sim.world().content("disk");
        let may_leak = if closed && !faults.any() {
            Some(&leaks)
        } else {
            None
        };
        let parsed = check(&plan, &lock(&model), &file, may_leak)
            .map_err(|what| format!("{where_}: {what}; {plan:?}"))?;
        leaks = parsed.leaks.clone();
        contents = self::contents(&plan, &parsed)?;
        if seed.is_multiple_of(CHECKED_SEEDS) {
            qemu_check(&file).map_err(|what| format!("{where_}: {what}"))?;
        }
    }
    Ok(())
}

/// The islands, widened to whole clusters, as the parser reads them.
fn contents(plan: &Plan, parsed: &Parsed<'_>) -> Result<Vec<Vec<u8>>, String> {
    let backing = plan.backing.as_deref().unwrap_or_default();
    let read = |island: &Span| {
        let wide = plan.surroundings(*island);
        parsed.read(wide.offset, wide.len, backing)
    };
    plan.islands.iter().map(read).collect()
}

impl Plan {
    /// Whole clusters around an island, as far as the disk goes.
    fn surroundings(&self, island: Span) -> Span {
        let disk = Span::new(0, self.shape.size);
        island.widen(self.shape.cluster()).clip(&disk)
    }

    /// The part of its surroundings that is the island.
    fn inside(&self, island: Span) -> std::ops::Range<usize> {
        let start = island.offset - self.surroundings(island).offset;
        start as usize..(start + island.len) as usize
    }
}

/// Everything that can be said about the file alone.
fn check<'a>(
    plan: &Plan,
    model: &Model,
    file: &'a [u8],
    may_leak: Option<&BTreeSet<u64>>,
) -> Result<Parsed<'a>, String> {
    let parsed = Parsed::new(file)?;
    if let Some(allowed) = may_leak
        && let Some(leak) = parsed.leaks.difference(allowed).next()
    {
        return Err(format!("host cluster {leak:#x} is leaked"));
    }
    let cluster = plan.shape.cluster();
    for guest in parsed.mapped() {
        let is_ours = |island: &Span| island.overlaps(&Span::new(guest, cluster));
        if !plan.islands.iter().any(is_ours) {
            return Err(format!("guest cluster {guest:#x} is mapped"));
        }
    }
    let backing = plan.backing.as_deref().unwrap_or_default();
    for (index, bytes) in contents(plan, &parsed)?.iter().enumerate() {
        let island = plan.islands[index];
        let inside = plan.inside(island);
        if let Some(wrong) = model.check_cut(index, &bytes[inside.clone()]) {
            return Err(wrong);
        }
        let start = plan.surroundings(island).offset as usize;
        for at in (0..inside.start).chain(inside.end..bytes.len()) {
            let in_other = plan
                .islands
                .iter()
                .any(|other| other.overlaps(&Span::new((start + at) as u64, 1)));
            let below = backing.get(start + at).copied().unwrap_or(0);
            if !in_other && bytes[at] != below {
                return Err(format!("byte {:#x} is not the backing file's", start + at));
            }
        }
    }
    Ok(parsed)
}

/// QEMU's opinion: nothing, or leaks.
fn qemu_check(file: &[u8]) -> Result<(), String> {
    if !needs(&[Need::Program("qemu-img")]) {
        return Ok(());
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let path = scratch.path().join("disk");
    std::fs::write(&path, file).map_err(|error| error.to_string())?;
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(&path)
        .output()
        .map_err(|error| error.to_string())?;
    match output.status.code() {
        Some(0 | 3) => Ok(()),
        code => Err(format!(
            "qemu-img check: {code:?} {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// From opening the image to a cut or its end.
struct Session {
    plan: Arc<Plan>,
    model: Shared,
    contents: Vec<Vec<u8>>,
    faults: Faults,
    end: End,
}

/// Steps of the clock in which a flush is looked for.
const GLANCE_NS: u64 = 2_000;
/// No flush comes so late.
const PATIENCE_NS: u64 = 100_000_000;

impl Session {
    /// The machine afterwards, always after a power cut, and whether the image
    /// was closed.
    fn run(self, mut sim: Sim, seed: u64) -> Result<(Sim, bool), String> {
        let (model, end) = (Arc::clone(&self.model), self.end);
        let islands = self.contents.iter().zip(&self.plan.islands);
        let inside = islands.map(|(bytes, &island)| bytes[self.plan.inside(island)].to_vec());
        lock(&model).restart(inside.collect());
        let world = sim.world().clone();
        let answer = sim.shards().spawn_on(0, move |shard| async move {
            self.work(&shard, &world, seed).await
        });
        let now = sim.world().now_ns();
        let closed = match end {
            End::CutAfter { nanoseconds } => {
                sim.run_until(now + nanoseconds);
                if sim.world().now_ns() < now + nanoseconds {
                    lock(&model).violate("nothing goes on any more".into());
                }
                false
            }
            End::CutAtFlush(count) => {
                let count = lock(&model).flushes + count;
                while lock(&model).flushes < count && sim.world().now_ns() < now + PATIENCE_NS {
                    let glance = sim.world().now_ns() + GLANCE_NS;
                    sim.run_until(glance);
                    if sim.world().now_ns() < glance {
                        lock(&model).violate("nothing goes on any more".into());
                        break;
                    }
                }
                false
            }
            End::Close { .. } => sim.run(&answer).map_err(|stalled| stalled.to_string())?,
        };
        let violation = lock(&model).violation.take();
        match violation {
            Some(what) => Err(what),
            None => Ok((sim.cut_power(), closed)),
        }
    }

    /// Whether the image was closed.
    async fn work(self, shard: &Shard, world: &World, seed: u64) -> bool {
        let mut random = Random::new(seed);
        let (mut graph, user, disk) = self.open(shard, &mut random).await;
        self.compare(shard, &disk.port(shard)).await;
        self.spoil(world);
        let mut guests = Vec::new();
        for number in 0..self.plan.guests {
            let guest = Guest {
                number,
                plan: Arc::clone(&self.plan),
                model: Arc::clone(&self.model),
                random: Random::new(random.bits()),
                requests: match self.end {
                    End::Close { requests } => requests,
                    _ => u64::MAX,
                },
            };
            let disk = disk.clone();
            let index = random.index(shard.set().count());
            guests.push(shard.set().spawn_on(index, |shard| async move {
                let port = disk.port(&shard);
                guest.run(&shard, &port).await;
            }));
        }
        for guest in guests {
            guest.await.expect("it ends");
        }
        Self::mend(world);
        graph.detach(user).await;
        let everything = lock(&self.model).acknowledged();
        let closed = graph.remove(shard, "disk").await;
        let mut model = lock(&self.model);
        match &closed {
            Ok(()) => model.flushed(&everything),
            Err(_) if self.faults.any() => {}
            Err(error) => model.violate(format!("it cannot be closed: {error}")),
        }
        closed.is_ok()
    }

    /// The machine's faults begin.
    fn spoil(&self, world: &World) {
        let taken = world.content("disk").len() as u64;
        world.set_options("disk", |options| {
            options.read_error_rate = self.faults.read_error_rate;
            options.write_error_rate = self.faults.write_error_rate;
            options.sync_error_rate = self.faults.sync_error_rate;
            options.space_limit = self.faults.space_left.map(|left| taken + left);
        });
    }

    /// They end.
    fn mend(world: &World) {
        world.set_options("disk", |options| {
            options.read_error_rate = 0;
            options.write_error_rate = 0;
            options.sync_error_rate = 0;
            options.space_limit = None;
        });
    }

    async fn open(&self, shard: &Shard, random: &mut Random) -> (Graph, UserId, Attachment) {
        let mut graph = Graph::new();
        let file = |name: &str, write: bool| NodeSpec::File {
            path: PathBuf::from(name),
            write,
            cache: Cache::Auto,
            discard: true,
        };
        let backing = self.plan.backing.is_some().then(|| "base".to_owned());
        if backing.is_some() {
            let spec = file("base", false);
            graph.add(shard, "base", spec).await.expect("a file");
        }
        let spec = file("disk", true);
        graph.add(shard, "file", spec).await.expect("a file");
        let mut options = OpenOptions::new(true);
        if random.below(3) > 0 {
            // Caches so small that everything is thrown out all the time.
            options.l2_cache_size = Some(0);
            options.l2_cache_entry_size = Some(512);
            options.refcount_cache_size = Some(0);
        }
        options.discard.pass_request = random.below(4) > 0;
        options.discard.keep_clusters = random.below(8) == 0;
        options.discard.pass_other = self.plan.discard_other;
        let model = Arc::clone(&self.model);
        options.notify = Notify::new(move |notice| {
            if let Notice::ImageCorrupt { message, .. } = notice {
                lock(&model).violate(format!("the image is called corrupt: {message}"));
            }
        });
        let spec = NodeSpec::Qcow2(Qcow2Spec {
            file: "file".into(),
            backing,
            data_file: None,
            options,
            force_share: false,
        });
        graph.add(shard, "disk", spec).await.expect("an image");
        let access = Access {
            read: true,
            write: true,
            alone_writing: true,
            ..Access::default()
        };
        let (user, disk) = graph
            .attach(shard, "disk", "guest", access)
            .await
            .expect("a guest");
        (graph, user, disk)
    }

    /// The engine reads what the parser read.
    async fn compare(&self, shard: &Shard, port: &Port) {
        for (island, expected) in self.plan.islands.iter().zip(&self.contents) {
            let wide = self.plan.surroundings(*island);
            let len = wide.len as usize;
            let buf = shard.buffer(len).await;
            let (result, buf) = port.read(shard, wide.offset, buf, 0..len).await;
            let differs = buf.iter().zip(expected).position(|(a, b)| a != b);
            let what = match (result, differs) {
                (Ok(()), None) => continue,
                (Ok(()), Some(at)) => format!(
                    "byte {:#x} reads as {:#04x}, and as {:#04x} without the engine",
                    wide.offset as usize + at,
                    buf[at],
                    expected[at]
                ),
                (Err(errno), _) => format!("{wide:?} cannot be read: {errno}"),
            };
            lock(&self.model).violate(what);
        }
    }
}

/// One guest: one request at a time, now and then two, in stripes of its own.
struct Guest {
    number: usize,
    plan: Arc<Plan>,
    model: Shared,
    random: Random,
    requests: u64,
}

impl Guest {
    async fn run(mut self, shard: &Shard, port: &Rc<Port>) {
        let stripes = self.plan.stripes.iter();
        let mine = stripes.filter(|(_, owner)| *owner == self.number);
        let mine: Vec<Cells> = mine.map(|&(cells, _)| cells).collect();
        let mut count = 0;
        while count < self.requests && lock(&self.model).violation.is_none() {
            count += 1;
            match self.random.below(10) {
                0 | 1 => self.read(shard, port).await,
                2 => self.flush(shard, port).await,
                _ if mine.is_empty() => shard.sleep_ns(10_000).await,
                kind => {
                    let kind = match self.plan.packing {
                        true => [4, 5, 5, kind][self.random.index(4)],
                        false => kind,
                    };
                    let stripe = mine[self.random.index(mine.len())];
                    let cells = self.choose(stripe);
                    self.change(shard, port, cells, kind).await;
                }
            }
            if self.random.below(4) == 0 {
                shard.sleep_ns(self.random.below(300_000)).await;
            }
        }
    }

    /// The whole stripe, its whole clusters, or any part.
    fn choose(&mut self, stripe: Cells) -> Cells {
        match self.random.below(4) {
            _ if self.plan.packing => stripe,
            0 => stripe,
            1 => self.whole_clusters(stripe).unwrap_or(stripe),
            _ => {
                let len = stripe.end - stripe.start;
                let start = stripe.start + self.random.index(len);
                let end = start + 1 + self.random.index(stripe.end - start);
                Cells {
                    start,
                    end,
                    ..stripe
                }
            }
        }
    }

    /// The clusters that lie in a stripe as a whole, if its cells can say so.
    fn whole_clusters(&self, stripe: Cells) -> Option<Cells> {
        let (cluster, grain) = (self.plan.shape.cluster(), self.plan.grain);
        let island = self.plan.islands[stripe.island].offset;
        let inner = lock(&self.model).span(stripe).shrink(cluster);
        let fits = cluster.is_multiple_of(grain) && island.is_multiple_of(grain);
        (fits && !inner.is_empty()).then(|| Cells {
            start: ((inner.offset - island) / grain) as usize,
            end: ((inner.end() - island) / grain) as usize,
            ..stripe
        })
    }

    async fn change(&mut self, shard: &Shard, port: &Rc<Port>, cells: Cells, kind: u64) {
        let span = lock(&self.model).span(cells);
        match kind {
            3 => {
                lock(&self.model).propose(cells, Value::Zero);
                let flags = ZeroFlags {
                    may_unmap: self.random.below(2) == 0,
                    no_fallback: false,
                };
                let result = port.write_zeroes(shard, span, flags).await;
                self.ended(cells, result, 0);
            }
            4 => {
                // The old value may stay.
                lock(&self.model).propose(cells, Value::Zero);
                let _ = port.discard(shard, span).await;
            }
            5 => self.compress(shard, port, cells).await,
            _ => {
                let beside = self.random.below(8) == 0;
                self.write(shard, port, cells, beside).await;
            }
        }
    }

    fn ended(&self, cells: Cells, result: Result<(), Errno>, since: usize) {
        if result.is_ok() {
            lock(&self.model).acknowledge(cells, since);
        }
    }

    fn new_fill(&mut self, cells: Cells) -> (Span, Vec<u8>) {
        let fill = self.random.bits().to_le_bytes()[0];
        let mut model = lock(&self.model);
        let span = model.span(cells);
        model.propose(cells, Value::Fill(fill));
        let bytes = (span.offset..span.end()).map(|at| fill_byte(fill, at));
        (span, bytes.collect())
    }

    /// A write; `beside` it a discard of the same bytes may be under way.
    async fn write(&mut self, shard: &Shard, port: &Rc<Port>, cells: Cells, beside: bool) {
        let (span, bytes) = self.new_fill(cells);
        let discard = beside.then(|| {
            lock(&self.model).propose(cells, Value::Zero);
            let (port, shard) = (Rc::clone(port), shard.clone());
            shard.clone().spawn(async move {
                let _ = port.discard(&shard, span).await;
            })
        });
        let len = bytes.len();
        let mut buf = shard.buffer(len).await;
        buf[..len].copy_from_slice(&bytes);
        let (result, _) = port.write(shard, span.offset, buf, 0..len).await;
        let since = usize::from(discard.is_some());
        if let Some(discard) = discard {
            discard.join().await;
        }
        self.ended(cells, result, since);
    }

    /// One whole cluster, compressed. One that holds something refuses.
    async fn compress(&mut self, shard: &Shard, port: &Port, cells: Cells) {
        let Some(whole) = self.whole_clusters(cells) else {
            return;
        };
        let in_cluster = (self.plan.shape.cluster() / self.plan.grain) as usize;
        let count = (whole.end - whole.start) / in_cluster;
        let start = whole.start + self.random.index(count) * in_cluster;
        let one = Cells {
            start,
            end: start + in_cluster,
            ..whole
        };
        if self.random.below(2) == 0 {
            let span = lock(&self.model).span(one);
            lock(&self.model).propose(one, Value::Zero);
            let _ = port.discard(shard, span).await;
        }
        let (span, bytes) = self.new_fill(one);
        let result = port.write_compressed(shard, span.offset, &bytes).await;
        self.ended(one, result, 0);
    }

    async fn flush(&self, shard: &Shard, port: &Port) {
        let before = lock(&self.model).acknowledged();
        if port.flush(shard).await.is_ok() {
            lock(&self.model).flushed(&before);
        }
    }

    /// Anywhere, also where others write.
    async fn read(&mut self, shard: &Shard, port: &Port) {
        let stripes = &self.plan.stripes;
        let (stripe, owner) = stripes[self.random.index(stripes.len())];
        let cells = self.choose(stripe);
        let (span, then) = {
            let model = lock(&self.model);
            (model.span(cells), model.acknowledged_in(cells))
        };
        let len = span.len as usize;
        let buf = shard.buffer(len).await;
        let (result, buf) = port.read(shard, span.offset, buf, 0..len).await;
        let mut model = lock(&self.model);
        if result.is_ok()
            && let Some(wrong) = model.check_read(cells, &buf[..len], &then)
        {
            let number = self.number;
            model.violate(format!(
                "guest {number} read, where {owner} writes: {wrong}"
            ));
        }
    }
}
