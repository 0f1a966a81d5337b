//! Sizes that change, with writes in between: checked against a model in
//! memory, and beside a twin that QEMU resizes.
//!
//! `RINGBACK_QCOW2_SEED=N` replays one seed; `RINGBACK_QCOW2_COUNT=N` runs that
//! many.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_block::format::qcow2;
use ringback_block::graph::{Access, Graph, GraphError, NodeSpec, Qcow2Spec, UserId};
use ringback_block::port::Attachment;
use ringback_block::request::{Preallocation, ZeroFlags};
use ringback_block::span::Span;
use ringback_ring::file::Cache;
use ringback_ring::shards::Config;
use ringback_ring::sim::Random;
use ringback_ring::{Errno, Shard, Shards};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{Finished, run};
use ringback_tests::scratch::Scratch;

const SESSIONS: usize = 3;
const STEPS: usize = 6;
/// Of a disk, in sectors.
const SECTORS_MAX: u64 = 6000;

fn tool(directory: &Path, words: &[&str]) -> Finished {
    run(Command::new(words[0])
        .args(&words[1..])
        .current_dir(directory))
}

/// What happens to both images.
#[derive(Clone, Debug)]
enum Step {
    Write { span: Span, value: u8 },
    Zero { span: Span },
    Resize { size: u64, mode: Preallocation },
}

#[derive(Clone, Debug)]
struct Shape {
    size: u64,
    cluster_size: u64,
    options: String,
    /// Bytes of the backing file.
    backing: Option<u64>,
    has_data_file: bool,
    is_old: bool,
}

impl Shape {
    fn new(random: &mut Random) -> Self {
        let cluster_size = 1 << [9, 12, 14, 16, 16, 18][random.index(6)];
        let mut options = vec![format!("cluster_size={cluster_size}")];
        let is_old = random.below(5) == 0;
        let mut has_data_file = false;
        let mut is_raw = false;
        if is_old {
            options.push("compat=v2".into());
        } else {
            let bits = [1, 8, 16, 16, 64][random.index(5)];
            options.push(format!("refcount_bits={bits}"));
            if cluster_size >= 1 << 14 && random.below(3) == 0 {
                options.push("extended_l2=on".into());
            }
            if random.below(4) == 0 {
                options.push("data_file=data".into());
                has_data_file = true;
                is_raw = random.below(2) == 0;
                if is_raw {
                    options.push("data_file_raw=on".into());
                }
            }
        }
        let backing =
            (!is_raw && random.below(2) == 0).then(|| 512 * (1 + random.below(SECTORS_MAX)));
        Self {
            size: 512 * (1 + random.below(SECTORS_MAX)),
            cluster_size,
            options: options.join(","),
            backing,
            has_data_file,
            is_old,
        }
    }

    fn make(&self, directory: &Path) {
        if let Some(bytes) = self.backing {
            let content = ringback_tests::image::noise(bytes, bytes);
            std::fs::write(directory.join("base"), content).expect("a backing file");
        }
        let size = self.size.to_string();
        let mut words = vec![
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &self.options,
        ];
        if self.backing.is_some() {
            words.extend(["-b", "base", "-F", "raw"]);
        }
        words.extend(["disk", &size]);
        tool(directory, &words).succeeded();
    }

    fn model(&self, directory: &Path) -> Vec<u8> {
        let mut model = match self.backing {
            Some(_) => std::fs::read(directory.join("base")).expect("a backing file"),
            None => Vec::new(),
        };
        model.resize(self.size as usize, 0);
        model
    }

    fn step(&self, random: &mut Random, size: u64) -> Step {
        let sectors = size / 512;
        let offset = random.below(sectors);
        let longest = (sectors - offset).min(self.cluster_size / 512 * 3 + 3);
        let span = Span::new(offset * 512, (1 + random.below(longest)) * 512);
        match random.below(5) {
            0 | 1 => Step::Write {
                span,
                value: 1 + random.below(255) as u8,
            },
            2 => Step::Zero { span },
            _ => {
                let new = 512 * (1 + random.below(SECTORS_MAX));
                let mode = [
                    Preallocation::Off,
                    Preallocation::Off,
                    Preallocation::Metadata,
                    Preallocation::Falloc,
                    Preallocation::Full,
                ][random.index(5)];
                Step::Resize {
                    size: new,
                    mode: if new < size { Preallocation::Off } else { mode },
                }
            }
        }
    }
}

fn apply_to_model(model: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write { span, value } => {
            model[span.offset as usize..span.end() as usize].fill(*value);
        }
        Step::Zero { span } => model[span.offset as usize..span.end() as usize].fill(0),
        Step::Resize { size, .. } => model.resize(*size as usize, 0),
    }
}

/// QEMU lets the old bytes of the last cluster come back; in the twin they are
/// zeroed before they go.
fn qemu_applies(directory: &Path, shape: &Shape, size: u64, step: &Step) -> Result<(), String> {
    let io = |command: String| {
        tool(
            directory,
            &["qemu-io", "-f", "qcow2", "-c", &command, "disk"],
        )
        .succeeded();
    };
    match step {
        Step::Write { span, value } => {
            io(format!("write -P {value} {} {}", span.offset, span.len));
        }
        Step::Zero { span } => io(format!("write -z {} {}", span.offset, span.len)),
        Step::Resize { size: new, mode } => {
            let tail_end = new.next_multiple_of(shape.cluster_size).min(size);
            if *new < size && tail_end > *new {
                io(format!("write -P 0 {new} {}", tail_end - new));
            }
            let mode = format!("--preallocation={}", mode.name());
            let (new, shrink) = (new.to_string(), *new < size);
            let mut words = vec!["qemu-img", "resize", "-q", "-f", "qcow2", &mode];
            if shrink {
                words.push("--shrink");
            }
            words.extend(["disk", &new]);
            let finished = tool(directory, &words);
            if !finished.status.success() {
                return Err(finished.stderr);
            }
        }
    }
    Ok(())
}

async fn open(
    shard: &Shard,
    directory: &Path,
    shape: &Shape,
    tight: bool,
) -> (Graph, UserId, Attachment) {
    let mut graph = Graph::new();
    let file = |name: &str, write: bool| NodeSpec::File {
        path: directory.join(name),
        write,
        cache: Cache::Auto,
        discard: true,
    };
    let mut add = async |name: &str, write| {
        let added = graph.add(shard, name, file(name, write)).await;
        added.expect("a file");
        name.to_owned()
    };
    let image = add("disk", true).await;
    let backing = match shape.backing {
        Some(_) => Some(add("base", false).await),
        None => None,
    };
    let data_file = match shape.has_data_file {
        true => Some(add("data", true).await),
        false => None,
    };
    let mut options = qcow2::OpenOptions::new(true);
    if tight {
        options.l2_cache_size = Some(0);
        options.l2_cache_entry_size = Some(512);
        options.refcount_cache_size = Some(0);
    }
    let spec = NodeSpec::Qcow2(Qcow2Spec {
        file: image,
        backing,
        data_file,
        options,
        force_share: false,
    });
    graph.add(shard, "image", spec).await.expect("an image");
    let access = Access {
        read: true,
        write: true,
        alone_writing: true,
        ..Access::default()
    };
    let (user, disk) = graph
        .attach(shard, "image", "guest", access)
        .await
        .expect("a guest");
    (graph, user, disk)
}

async fn apply(
    shard: &Shard,
    graph: &mut Graph,
    disk: &Attachment,
    step: &Step,
) -> Result<(), String> {
    let port = disk.port(shard);
    let result = match step {
        Step::Write { span, value } => {
            let window = 0..span.len as usize;
            let mut buf = shard.buffer(window.len()).await;
            buf[window.clone()].fill(*value);
            port.write(shard, span.offset, buf, window).await.0
        }
        Step::Zero { span } => port.write_zeroes(shard, *span, ZeroFlags::UNMAP).await,
        Step::Resize { size, mode } => {
            let resized = graph.resize(shard, "image", *size, *mode).await;
            return resized.map_err(|error| error.to_string());
        }
    };
    result.map_err(|errno| errno.to_string())
}

async fn compare(shard: &Shard, disk: &Attachment, model: &[u8]) -> Result<(), String> {
    let port = disk.port(shard);
    if port.size() != model.len() as u64 {
        return Err(format!("{} bytes, not {}", port.size(), model.len()));
    }
    let buf = shard.buffer(model.len()).await;
    let (result, buf) = port.read(shard, 0, buf, 0..model.len()).await;
    result.map_err(|errno| format!("read: {errno}"))?;
    match buf[..model.len()]
        .iter()
        .zip(model)
        .position(|(a, b)| a != b)
    {
        Some(at) => Err(format!("byte {at} is {:#x}, not {:#x}", buf[at], model[at])),
        None => Ok(()),
    }
}

async fn session(
    shard: Shard,
    directory: PathBuf,
    shape: Shape,
    steps: Vec<Step>,
    mut model: Vec<u8>,
    tight: bool,
) -> Result<Vec<u8>, String> {
    let (mut graph, user, disk) = open(&shard, &directory, &shape, tight).await;
    for step in &steps {
        apply(&shard, &mut graph, &disk, step)
            .await
            .map_err(|error| format!("{step:?}: {error}"))?;
        apply_to_model(&mut model, step);
        compare(&shard, &disk, &model)
            .await
            .map_err(|error| format!("after {step:?}: {error}"))?;
    }
    graph.detach(user).await;
    let closed = graph.remove(&shard, "image").await;
    closed.map_err(|error| error.to_string())?;
    Ok(model)
}

fn verify(directory: &Path, model: &[u8]) -> Result<(), String> {
    let check = tool(directory, &["qemu-img", "check", "-f", "qcow2", "disk"]);
    if !check.status.success() {
        return Err(format!("check: {}{}", check.stdout, check.stderr));
    }
    let convert = [
        "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "disk", "raw",
    ];
    tool(directory, &convert).succeeded();
    let found = std::fs::read(directory.join("raw")).expect("the converted image");
    if found != model {
        let at = found.iter().zip(model).position(|(a, b)| a != b);
        return Err(format!("QEMU reads something else at {at:?}"));
    }
    Ok(())
}

fn run_seed(shards: &Shards, seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let shape = Shape::new(&mut random);
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let (ours, theirs) = (scratch.directory("ours"), scratch.directory("theirs"));
    shape.make(&ours);
    shape.make(&theirs);
    let mut model = shape.model(&ours);
    let mut twin_model = model.clone();
    for round in 0..SESSIONS {
        let mut size = model.len() as u64;
        let mut steps = Vec::new();
        for _ in 0..STEPS {
            let step = shape.step(&mut random, size);
            match qemu_applies(&theirs, &shape, size, &step) {
                Ok(()) => {}
                // What is added cannot be hidden in old images; QEMU gives up,
                // and we write zeroes.
                Err(error) if shape.is_old && error.contains("Failed to zero out") => continue,
                Err(error) => return Err(format!("the twin: {step:?}: {error} ({shape:?})")),
            }
            apply_to_model(&mut twin_model, &step);
            if let Step::Resize { size: new, .. } = step {
                size = new;
            }
            steps.push(step);
        }
        let (place, form, old) = (ours.clone(), shape.clone(), model);
        let (all, tight) = (steps.clone(), random.below(2) == 0);
        model = shards
            .spawn_on(0, move |shard| session(shard, place, form, all, old, tight))
            .wait()
            .expect("sessions end")
            .map_err(|error| format!("round {round}: {error} ({shape:?}, {steps:?})"))?;
        for (directory, model) in [(&ours, &model), (&theirs, &twin_model)] {
            verify(directory, model).map_err(|error| {
                format!(
                    "round {round}, {}: {error} ({shape:?}, {steps:?})",
                    directory.display()
                )
            })?;
        }
    }
    Ok(())
}

fn start() -> Shards {
    Shards::start(&Config {
        count: 1,
        arena_bytes: 64 << 20,
        ..Config::default()
    })
    .expect("shards start")
}

#[test]
fn sizes_that_change_leave_images_that_qemu_agrees_with() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let shards = start();
    let seeds = match number("RINGBACK_QCOW2_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGBACK_QCOW2_COUNT").unwrap_or(25),
    };
    for seed in seeds {
        if let Err(error) = run_seed(&shards, seed) {
            panic!("RINGBACK_QCOW2_SEED={seed}: {error}");
        }
    }
    shards.stop();
}

/// Runs something on an image that qemu-img made, and closes it.
fn with_image<T: Send + 'static>(
    shape: &Shape,
    directory: &Path,
    act: impl AsyncFnOnce(&Shard, &mut Graph, &Attachment) -> T + Send + 'static,
) -> T {
    let shards = start();
    let (place, shape) = (directory.to_owned(), shape.clone());
    let result = shards
        .spawn_on(0, move |shard| async move {
            let (mut graph, user, disk) = open(&shard, &place, &shape, false).await;
            let result = act(&shard, &mut graph, &disk).await;
            graph.detach(user).await;
            graph.remove(&shard, "image").await.expect("closed");
            result
        })
        .wait()
        .expect("it ends");
    shards.stop();
    result
}

fn plain(options: &str, size: u64) -> Shape {
    Shape {
        size,
        cluster_size: 65_536,
        options: options.into(),
        backing: None,
        has_data_file: false,
        is_old: false,
    }
}

#[test]
fn a_smaller_disk_takes_a_smaller_file() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let (ours, theirs) = (scratch.directory("ours"), scratch.directory("theirs"));
    let shape = plain("cluster_size=512", 2 << 20);
    for place in [&ours, &theirs] {
        shape.make(place);
        tool(place, &["qemu-io", "-c", "write -P 1 0 2M", "disk"]).succeeded();
    }
    tool(
        &theirs,
        &["qemu-img", "resize", "-q", "--shrink", "disk", "100k"],
    )
    .succeeded();
    with_image(
        &shape,
        &ours,
        async |shard: &Shard, graph: &mut Graph, _: &Attachment| {
            let resized = graph.resize(shard, "image", 100 << 10, Preallocation::Off);
            resized.await.expect("smaller");
        },
    );
    let len = |place: &Path| std::fs::metadata(place.join("disk")).expect("a disk").len();
    assert_eq!(len(&ours), len(&theirs));
    let mut model = vec![1; 100 << 10];
    verify(&ours, &model).expect("a clean image");
    // And longer again: nothing comes back.
    with_image(
        &shape,
        &ours,
        async |shard: &Shard, graph: &mut Graph, _: &Attachment| {
            let resized = graph.resize(shard, "image", 3 << 20, Preallocation::Off);
            resized.await.expect("longer");
        },
    );
    model.resize(3 << 20, 0);
    verify(&ours, &model).expect("a clean image");
}

#[test]
fn what_cannot_be_resized_says_why() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let shape = plain("compat=v2", 1 << 20);
    shape.make(scratch.path());
    tool(scratch.path(), &["qemu-img", "snapshot", "-c", "s", "disk"]).succeeded();
    let texts = with_image(
        &shape,
        scratch.path(),
        async |shard: &Shard, graph: &mut Graph, _: &Attachment| {
            let mut texts = Vec::new();
            for size in [2 << 20, 1000] {
                let resized = graph.resize(shard, "image", size, Preallocation::Off).await;
                texts.push(resized.expect_err("refused").to_string());
            }
            texts
        },
    );
    assert_eq!(
        texts,
        [
            "Can't resize a v2 image which has snapshots",
            "The new size must be a multiple of 512"
        ]
    );
    let shape = plain("compat=v3", 1 << 20);
    shape.make(scratch.path());
    tool(scratch.path(), &["qemu-img", "snapshot", "-c", "s", "disk"]).succeeded();
    let refused = with_image(
        &shape,
        scratch.path(),
        async |shard: &Shard, graph: &mut Graph, _: &Attachment| {
            let shrunk = graph.resize(shard, "image", 512, Preallocation::Full);
            let shrunk: Result<(), GraphError> = shrunk.await;
            let mut texts = vec![shrunk.expect_err("refused").to_string()];
            for size in [1 << 62, (1 << 63) - 512, 1 << 63] {
                let grown = graph.resize(shard, "image", size, Preallocation::Off);
                texts.push(grown.await.expect_err("too large").to_string());
            }
            graph
                .resize(shard, "image", 2 << 20, Preallocation::Off)
                .await
                .expect("new images may have snapshots");
            texts
        },
    );
    assert_eq!(
        refused,
        [
            "Preallocation can't be used for shrinking an image",
            "Failed to grow the L1 table: File too large",
            "offset(9223372036854775296) exceeds maximum(9223372035781033984)",
            "Image size cannot be negative"
        ]
    );
    verify(scratch.path(), &vec![0; 2 << 20]).expect("a clean image");
}

/// Nothing at the end of nothing was taken for the last cluster, which is not there.
#[test]
fn a_disk_of_no_bytes_takes_no_zeroes() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let shape = plain("compat=v3", 0);
    shape.make(scratch.path());
    let zeroed = async |shard: &Shard, _: &mut Graph, disk: &Attachment| {
        let (port, nothing) = (disk.port(shard), Span::new(0, 0));
        port.write_zeroes(shard, nothing, ZeroFlags::default())
            .await
    };
    assert_eq!(with_image(&shape, scratch.path(), zeroed), Ok(()));
}

#[test]
fn the_state_of_a_machine_lies_where_qemu_looks_for_it() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let shape = plain("cluster_size=512", 100 << 10);
    shape.make(scratch.path());
    let saved = async |shard: &Shard, _: &mut Graph, disk: &Attachment| {
        let port = disk.port(shard);
        for (position, value) in [(0, 1), (1 << 20, 2), (512, 3)] {
            let mut buf = shard.buffer(1024).await;
            buf[..1024].fill(value);
            let saved = port.save_vmstate(shard, position, buf, 0..1024).await;
            saved.0.expect("saved");
        }
        let buf = shard.buffer(4096).await;
        let (loaded, buf) = port.load_vmstate(shard, 0, buf, 0..4096).await;
        loaded.expect("loaded");
        let found: Vec<u8> = [0, 511, 512, 1535, 1536].map(|at| buf[at]).to_vec();
        let far = port.load_vmstate(shard, 1 << 50, buf, 0..4096).await;
        far.0.expect("zeroes");
        assert!(far.1[..4096].iter().all(|&byte| byte == 0));
        let huge = port.save_vmstate(shard, u64::MAX - 5, far.1, 0..4096).await;
        assert_eq!(huge.0, Err(Errno::EFBIG));
        let huge = port.save_vmstate(shard, 1 << 40, huge.1, 0..4096).await;
        assert_eq!(huge.0, Err(Errno::EFBIG));
        found
    };
    assert_eq!(with_image(&shape, scratch.path(), saved), [1, 1, 3, 3, 0]);
    let io = |command: &str| {
        let words = ["qemu-io", "-f", "qcow2", "-c", command, "disk"];
        tool(scratch.path(), &words).succeeded().stdout
    };
    for command in [
        "read -b -P 1 0 512",
        "read -b -P 3 512 1024",
        "read -b -P 2 1M 1024",
        "read -b -P 0 1024000 1024",
        "read -P 0 0 100k",
    ] {
        let said = io(command);
        assert!(!said.contains("failed"), "{command}: {said}");
    }
    verify(scratch.path(), &vec![0; 100 << 10]).expect("a clean image");
    io("write -b -P 9 5120 2048");
    let loaded = async |shard: &Shard, graph: &mut Graph, disk: &Attachment| {
        let port = disk.port(shard);
        let buf = shard.buffer(2000).await;
        let (loaded, buf) = port.load_vmstate(shard, 5130, buf, 0..2000).await;
        loaded.expect("loaded");
        let found = buf[..2000].iter().all(|&byte| byte == 9);
        // The disk grows over it.
        let resized = graph.resize(shard, "image", 4 << 20, Preallocation::Off);
        resized.await.expect("longer");
        found
    };
    assert!(with_image(&shape, scratch.path(), loaded));
    verify(scratch.path(), &vec![0; 4 << 20]).expect("nothing of it on the disk");
}
