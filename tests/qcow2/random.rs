//! Random requests from several shards at once, on images that qemu-img made,
//! checked against a model in memory, and afterwards by qemu-img.
//!
//! `RINGBACK_QCOW2_SEED=N` replays one seed; `RINGBACK_QCOW2_COUNT=N` runs that
//! many.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use ringback_block::format::qcow2;
use ringback_block::graph::{Access, Graph, NodeSpec, Qcow2Spec, UserId};
use ringback_block::port::{Attachment, Port};
use ringback_block::request::ZeroFlags;
use ringback_block::span::Span;
use ringback_ring::file::Cache;
use ringback_ring::shards::Config;
use ringback_ring::sim::Random;
use ringback_ring::{Errno, Shard, Shards};
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

use crate::tools::tool;

const SHARDS: usize = 2;
const GUESTS: usize = 4;
/// Each guest has a part of the disk to itself; parts meet inside clusters.
const OPERATIONS: usize = 60;

/// An image as it is to be made.
#[derive(Clone, Debug)]
struct Shape {
    size: u64,
    cluster_bits: u32,
    options: Vec<String>,
    /// Format and size of the backing file.
    backing: Option<(&'static str, u64)>,
    can_compress: bool,
}

impl Shape {
    fn new(random: &mut Random) -> Self {
        let cluster_bits = [9, 12, 14, 16, 16, 16, 18, 21][random.index(8)];
        let size = (1 + random.below(80)) * [512, 65_536][random.index(2)] * 5;
        let mut options = vec![format!("cluster_size={}", 1_u64 << cluster_bits)];
        let old = random.below(6) == 0;
        let mut can_compress = true;
        if old {
            options.push("compat=0.10".into());
        } else {
            let bits = [1, 2, 4, 8, 16, 16, 32, 64][random.index(8)];
            options.push(format!("refcount_bits={bits}"));
            if cluster_bits >= 14 && random.below(3) == 0 {
                options.push("extended_l2=on".into());
            }
            if random.below(4) == 0 {
                options.push("lazy_refcounts=on".into());
            }
            if random.below(3) == 0 {
                options.push("compression_type=zstd".into());
            }
            if random.below(8) == 0 {
                options.push("data_file=data".into());
                can_compress = false;
                if random.below(2) == 0 {
                    options.push("data_file_raw=on".into());
                }
            }
        }
        let is_raw = options.iter().any(|option| option == "data_file_raw=on");
        let backing = (random.below(2) == 0 && !is_raw).then(|| {
            let format = ["raw", "qcow2"][random.index(2)];
            (format, (1 + random.below(size / 512 * 3 / 2)) * 512)
        });
        if backing.is_none() && random.below(5) == 0 {
            options.push("preallocation=metadata".into());
            can_compress = false;
        }
        Self {
            size,
            cluster_bits,
            options,
            backing,
            can_compress,
        }
    }
}

fn make(directory: &Path, shape: &Shape, random: &mut Random) {
    let mut create = vec!["qemu-img", "create", "-q", "-f", "qcow2"];
    let mut options = shape.options.clone();
    let data = directory.join("data");
    if let Some(option) = options
        .iter_mut()
        .find(|option| *option == "data_file=data")
    {
        *option = format!("data_file={}", data.display());
    }
    let options = options.join(",");
    let size = shape.size.to_string();
    create.extend(["-o", &options]);
    if let Some((format, bytes)) = shape.backing {
        tool(
            directory,
            &[
                "qemu-img",
                "create",
                "-q",
                "-f",
                format,
                "base",
                &bytes.to_string(),
            ],
        );
        fill(directory, "base", format, bytes, random);
        create.extend(["-b", "base", "-F", format]);
    }
    create.extend(["disk", &size]);
    tool(directory, &create);
    if random.below(2) == 0 {
        fill(directory, "disk", "qcow2", shape.size, random);
    }
}

/// Some writes and zero writes of QEMU's.
fn fill(directory: &Path, name: &str, format: &str, bytes: u64, random: &mut Random) {
    let mut words = vec!["qemu-io".to_owned(), "-f".into(), format.into()];
    for _ in 0..random.below(6) {
        let offset = random.below(bytes);
        let len = 1 + random.below(bytes - offset);
        let command = match random.below(4) {
            0 => format!("write -z {offset} {len}"),
            _ => format!("write -P {} {offset} {len}", 1 + random.below(255)),
        };
        words.extend(["-c".into(), command]);
    }
    words.extend(["-c".into(), "flush".into(), name.into()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    tool(directory, &words);
}

/// What the disk holds, as QEMU reads it.
fn content(directory: &Path, name: &str) -> Vec<u8> {
    tool(
        directory,
        &[
            "qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "raw",
        ],
    );
    std::fs::read(directory.join("raw")).expect("the converted image")
}

type Model = Arc<Mutex<Vec<u8>>>;

async fn open(
    shard: &Shard,
    directory: &Path,
    shape: &Shape,
    random: &mut Random,
) -> (Graph, UserId, Attachment) {
    let mut graph = Graph::new();
    let cache = [Cache::Auto, Cache::Buffered][random.index(2)];
    let file = |name: &str, write: bool| NodeSpec::File {
        path: directory.join(name),
        write,
        cache,
        discard: true,
    };
    let mut backing = None;
    if let Some((format, _)) = shape.backing {
        let spec = file("base", false);
        graph.add(shard, "base-file", spec).await.expect("a file");
        let spec = match format {
            "raw" => NodeSpec::Raw {
                file: "base-file".into(),
                offset: 0,
                size: None,
            },
            _ => NodeSpec::Qcow2(Qcow2Spec {
                file: "base-file".into(),
                backing: None,
                data_file: None,
                options: qcow2::OpenOptions::new(false),
                force_share: false,
            }),
        };
        graph.add(shard, "base", spec).await.expect("a backing");
        backing = Some("base".to_owned());
    }
    graph
        .add(shard, "file", file("disk", true))
        .await
        .expect("a file");
    let mut data_file = None;
    if directory.join("data").exists() {
        let spec = file("data", true);
        graph.add(shard, "data", spec).await.expect("a file");
        data_file = Some("data".to_owned());
    }
    let mut options = qcow2::OpenOptions::new(true);
    if random.below(2) == 0 {
        // Caches so small that everything is thrown out all the time.
        options.l2_cache_size = Some(0);
        options.l2_cache_entry_size = Some(512);
        options.refcount_cache_size = Some(0);
    }
    let spec = NodeSpec::Qcow2(Qcow2Spec {
        file: "file".into(),
        backing,
        data_file,
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

/// One guest: random requests inside its part of the disk.
struct Guest {
    shard: Shard,
    port: std::rc::Rc<Port>,
    part: Span,
    cluster: u64,
    can_compress: bool,
    model: Model,
    random: Random,
}

impl Guest {
    async fn run(mut self) -> Result<(), String> {
        for step in 0..OPERATIONS {
            let span = self.span();
            let what = self.random.below(10);
            let result = match what {
                0..4 => self.write(span).await,
                4 => self.zero(span).await,
                5 => self.discard(span).await,
                6 if self.can_compress => self.compress(span).await,
                7 => self.port.flush(&self.shard).await,
                _ => Ok(()),
            };
            result.map_err(|errno| format!("step {step}, {what} of {span:?}: {errno}"))?;
            self.compare(span)
                .await
                .map_err(|error| format!("step {step}, after {what} of {span:?}: {error}"))?;
        }
        self.compare(self.part).await
    }

    fn span(&mut self) -> Span {
        let offset = self.random.below(self.part.len);
        let longest = match self.random.below(3) {
            0 => 600,
            1 => self.cluster + 700,
            _ => self.cluster * 5,
        };
        let len = 1 + self.random.below((self.part.len - offset).min(longest));
        let span = Span::new(self.part.offset + offset, len);
        match self.random.below(3) {
            0 => Some(span.widen(self.cluster).clip(&self.part)).filter(|span| !span.is_empty()),
            _ => None,
        }
        .unwrap_or(span)
    }

    fn expect(&self, span: Span, bytes: &[u8]) {
        let mut model = self.model.lock().expect("no panic");
        model[span.offset as usize..span.end() as usize].copy_from_slice(bytes);
    }

    async fn write(&mut self, span: Span) -> Result<(), Errno> {
        let len = span.len as usize;
        let mut buf = self.shard.buffer(len).await;
        let seed = self.random.bits() | 1;
        let zeroes = self.random.below(8) == 0;
        for (index, byte) in buf.iter_mut().enumerate() {
            let value = seed.rotate_left(index as u32 / 64 % 64).to_le_bytes()[index % 8];
            *byte = if zeroes { 0 } else { value };
        }
        self.expect(span, &buf[..len]);
        self.port
            .write(&self.shard, span.offset, buf, 0..len)
            .await
            .0
    }

    async fn zero(&mut self, span: Span) -> Result<(), Errno> {
        let flags = ZeroFlags {
            may_unmap: self.random.below(2) == 0,
            no_fallback: false,
        };
        self.expect(span, &vec![0; span.len as usize]);
        self.port.write_zeroes(&self.shard, span, flags).await
    }

    /// What was discarded is zero, or what it was; or what the backing file
    /// holds, in old images. Reading settles it.
    async fn discard(&mut self, span: Span) -> Result<(), Errno> {
        self.port.discard(&self.shard, span).await?;
        let found = self.read(span).await?;
        self.expect(span, &found);
        Ok(())
    }

    /// Whole clusters; those that hold something already refuse.
    async fn compress(&mut self, span: Span) -> Result<(), Errno> {
        let span = span.shrink(self.cluster);
        if span.is_empty() {
            return Ok(());
        }
        let span = Span::new(span.offset, self.cluster);
        let value = self.random.bits().to_le_bytes()[0];
        let bytes: Vec<u8> = (0..span.len as usize)
            .map(|index| value.wrapping_add((index / 100) as u8))
            .collect();
        match self
            .port
            .write_compressed(&self.shard, span.offset, &bytes)
            .await
        {
            Ok(()) => self.expect(span, &bytes),
            Err(Errno::EIO) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    async fn read(&self, span: Span) -> Result<Vec<u8>, Errno> {
        let len = span.len as usize;
        let buf = self.shard.buffer(len).await;
        let (result, buf) = self.port.read(&self.shard, span.offset, buf, 0..len).await;
        result.map(|()| buf[..len].to_vec())
    }

    async fn compare(&self, span: Span) -> Result<(), String> {
        let found = self
            .read(span)
            .await
            .map_err(|errno| format!("read of {span:?}: {errno}"))?;
        let model = self.model.lock().expect("no panic");
        let expected = &model[span.offset as usize..span.end() as usize];
        match found.iter().zip(expected).position(|(a, b)| a != b) {
            Some(at) => Err(format!(
                "byte {} is {:#04x}, not {:#04x}",
                span.offset as usize + at,
                found[at],
                expected[at]
            )),
            None => Ok(()),
        }
    }
}

/// Opens, lets guests work, closes.
async fn session(
    shard: Shard,
    directory: PathBuf,
    shape: Shape,
    model: Model,
    seed: u64,
) -> Result<(), String> {
    let mut random = Random::new(seed);
    let (mut graph, user, disk) = open(&shard, &directory, &shape, &mut random).await;
    let mut guests = Vec::new();
    for number in 0..GUESTS {
        let bound = |index: usize| shape.size * index as u64 / GUESTS as u64;
        let part = Span::between(bound(number), bound(number + 1));
        let (disk, model, seed) = (disk.clone(), Arc::clone(&model), random.bits());
        let (cluster, can_compress) = (1 << shape.cluster_bits, shape.can_compress);
        let guest = shard
            .set()
            .spawn_on(number % SHARDS, move |shard| async move {
                let guest = Guest {
                    port: disk.port(&shard),
                    shard,
                    part,
                    cluster,
                    can_compress,
                    model,
                    random: Random::new(seed),
                };
                guest.run().await
            });
        guests.push(guest);
    }
    let mut result = Ok(());
    for (number, guest) in guests.into_iter().enumerate() {
        let ended = guest.await.expect("guests end");
        result = result.and(ended.map_err(|error| format!("guest {number}: {error}")));
    }
    graph.detach(user).await;
    graph
        .remove(&shard, "disk")
        .await
        .map_err(|error| error.to_string())?;
    result
}

fn run(shards: &Shards, seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let shape = Shape::new(&mut random);
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path().to_owned();
    make(&directory, &shape, &mut random);
    let model: Model = Arc::new(Mutex::new(content(&directory, "disk")));
    for round in 0..2 {
        let (place, form, shared, seed) = (
            directory.clone(),
            shape.clone(),
            Arc::clone(&model),
            random.bits(),
        );
        let ended = shards
            .spawn_on(0, move |shard| session(shard, place, form, shared, seed))
            .wait()
            .expect("sessions end");
        ended.map_err(|error| format!("round {round}: {error} ({shape:?})"))?;
        let check = Command::new("qemu-img")
            .args(["check", "-f", "qcow2", "disk"])
            .current_dir(&directory)
            .output()
            .expect("qemu-img runs");
        if !check.status.success() {
            return Err(format!(
                "round {round}: check: {}{} ({shape:?})",
                String::from_utf8_lossy(&check.stdout),
                String::from_utf8_lossy(&check.stderr)
            ));
        }
        let found = content(&directory, "disk");
        let model = model.lock().expect("no panic");
        if let Some(at) = found.iter().zip(&*model).position(|(a, b)| a != b) {
            return Err(format!(
                "round {round}: QEMU reads {:#04x} at {at}, not {:#04x} ({shape:?})",
                found[at], model[at]
            ));
        }
    }
    Ok(())
}

#[test]
fn random_requests_leave_images_that_qemu_agrees_with() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let config = Config {
        count: SHARDS,
        arena_bytes: 64 << 20,
        ..Config::default()
    };
    let shards = Shards::start(&config).expect("shards start");
    let seeds = match number("RINGBACK_QCOW2_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGBACK_QCOW2_COUNT").unwrap_or(60),
    };
    for seed in seeds {
        if let Err(error) = run(&shards, seed) {
            panic!("RINGBACK_QCOW2_SEED={seed}: {error}");
        }
    }
    shards.stop();
}
