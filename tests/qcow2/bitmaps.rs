//! Persistent bitmaps: QEMU and ringback take turns on one image, and both must
//! find what a model in memory says.
//!
//! `RINGBACK_BITMAPS_SEED=N` replays one seed; `RINGBACK_BITMAPS_COUNT=N` runs
//! that many.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_block::format::qcow2::OpenOptions;
use ringback_block::graph::{BitmapSpec, GraphError, MergeFrom};
use ringback_ring::sim::Random;
use ringback_ring::{Shard, Shards};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{Running, wait_for};
use ringback_tests::scratch::Scratch;

use crate::qemu;
use crate::session::{Session, on_shard, start_shards};
use crate::stored::{self, Stored};

const AUTO: u32 = 2;
const IN_USE: u32 = 1;

/// What is done to an image, by whomever.
#[derive(Clone, Debug)]
enum Action {
    Add {
        name: String,
        granularity: u64,
        disabled: bool,
    },
    Remove(String),
    Enable(String),
    Disable(String),
    Clear(String),
    Merge {
        source: String,
        target: String,
    },
    Write {
        offset: u64,
        len: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Bitmap {
    granularity: u64,
    auto: bool,
    dirty: Vec<bool>,
}

impl Bitmap {
    fn mark(&mut self, offset: u64, len: u64) {
        let last = (offset + len - 1) / self.granularity;
        for granule in offset / self.granularity..=last {
            if let Some(bit) = self.dirty.get_mut(granule as usize) {
                *bit = true;
            }
        }
    }
}

/// What the image should hold.
#[derive(Clone, Debug)]
struct Model {
    size: u64,
    bitmaps: BTreeMap<String, Bitmap>,
}

impl Model {
    fn action(&self, random: &mut Random) -> Action {
        let names: Vec<&String> = self.bitmaps.keys().collect();
        let offset = random.below(self.size / 512) * 512;
        let write = Action::Write {
            offset,
            len: (1 + random.below(40)).min((self.size - offset) / 512) * 512,
        };
        if names.is_empty() || random.below(4) == 0 {
            let number = random.below(1000);
            let name = format!("b{number}{}", "x".repeat(random.index(20)));
            return match self.bitmaps.contains_key(&name) {
                true => write,
                false => Action::Add {
                    name,
                    granularity: 512 << random.below(12),
                    disabled: random.below(4) == 0,
                },
            };
        }
        let mut any = || names[random.index(names.len())].clone();
        let (one, other) = (any(), any());
        match random.below(12) {
            0 => Action::Remove(one),
            1 => Action::Enable(one),
            2 => Action::Disable(one),
            3 => Action::Clear(one),
            4 | 5 if one != other => Action::Merge {
                source: one,
                target: other,
            },
            _ => write,
        }
    }

    fn bitmap(&mut self, name: &str) -> &mut Bitmap {
        self.bitmaps.get_mut(name).expect("it is there")
    }

    fn apply(&mut self, action: &Action) {
        let size = self.size;
        match action {
            Action::Add {
                name,
                granularity,
                disabled,
            } => {
                let bitmap = Bitmap {
                    granularity: *granularity,
                    auto: !disabled,
                    dirty: vec![false; size.div_ceil(*granularity) as usize],
                };
                self.bitmaps.insert(name.clone(), bitmap);
            }
            Action::Remove(name) => drop(self.bitmaps.remove(name)),
            Action::Enable(name) => self.bitmap(name).auto = true,
            Action::Disable(name) => self.bitmap(name).auto = false,
            Action::Clear(name) => self.bitmap(name).dirty.fill(false),
            Action::Merge { source, target } => {
                let source = self.bitmap(source).clone();
                for (granule, _) in source.dirty.iter().enumerate().filter(|(_, dirty)| **dirty) {
                    let offset = granule as u64 * source.granularity;
                    self.bitmap(target)
                        .mark(offset, source.granularity.min(size - offset));
                }
            }
            Action::Write { offset, len } => {
                for bitmap in self.bitmaps.values_mut().filter(|bitmap| bitmap.auto) {
                    bitmap.mark(*offset, *len);
                }
            }
        }
    }
}

fn by_qemu(directory: &Path, action: &Action) {
    let mut words: Vec<String> = ["qemu-img", "bitmap", "-f", "qcow2"].map(Into::into).into();
    let mut add = |more: &[&str]| words.extend(more.iter().map(|&word| word.into()));
    match action {
        Action::Add {
            name,
            granularity,
            disabled,
        } => {
            add(&["--add", "-g", &granularity.to_string()]);
            if *disabled {
                add(&["--disable"]);
            }
            add(&["disk", name]);
        }
        Action::Remove(name) => add(&["--remove", "disk", name]),
        Action::Enable(name) => add(&["--enable", "disk", name]),
        Action::Disable(name) => add(&["--disable", "disk", name]),
        Action::Clear(name) => add(&["--clear", "disk", name]),
        Action::Merge { source, target } => add(&["--merge", source, "disk", target]),
        Action::Write { offset, len } => {
            let command = format!("write {offset} {len}");
            qemu::run(
                directory,
                &["qemu-io", "-f", "qcow2", "-c", &command, "disk"],
            );
            return;
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    qemu::run(directory, &words);
}

async fn by_ringback(session: &mut Session, action: Action) -> Result<(), GraphError> {
    let (graph, shard) = (&mut session.graph, session.shard.clone());
    match action {
        Action::Add {
            name,
            granularity,
            disabled,
        } => {
            let spec = BitmapSpec {
                name,
                granularity: Some(granularity),
                disabled,
                persistent: true,
            };
            graph
                .transact(&shard, &["disk"], async |transaction| {
                    transaction.add_bitmap("disk", &spec)
                })
                .await
        }
        Action::Remove(name) => {
            graph
                .transact(&shard, &["disk"], async |transaction| {
                    transaction.remove_bitmap("disk", &name).await
                })
                .await
        }
        Action::Enable(name) => {
            graph
                .change_bitmaps("disk", |bitmaps| bitmaps.enable(&name))
                .await
        }
        Action::Disable(name) => {
            graph
                .change_bitmaps("disk", |bitmaps| bitmaps.disable(&name))
                .await
        }
        Action::Clear(name) => {
            graph
                .change_bitmaps("disk", |bitmaps| bitmaps.clear(&name))
                .await
        }
        Action::Merge { source, target } => {
            let source = MergeFrom {
                node: None,
                name: &source,
            };
            graph
                .transact(&shard, &["disk"], async |transaction| {
                    transaction.merge_bitmaps("disk", &target, &[source])
                })
                .await
        }
        Action::Write { offset, len } => {
            session
                .write(offset, len as usize, 7)
                .await
                .expect("the write");
            Ok(())
        }
    }
}

/// The bitmaps of an open image, as ringback shows them.
fn shown(session: &Session) -> BTreeMap<String, Bitmap> {
    let bitmaps = session.graph.bitmaps("disk").expect("the node");
    let infos = bitmaps.list().into_iter();
    infos
        .map(|info| {
            let flags = info.flags;
            assert!(flags.persistent && !flags.inconsistent, "{info:?}");
            let name = info.name.expect("nothing is frozen");
            let bits = bitmaps.get(&name).expect("it is listed").bits();
            let granules = bits.size().div_ceil(info.granularity);
            let dirty = |granule| bits.is_dirty(granule * info.granularity);
            let bitmap = Bitmap {
                granularity: info.granularity,
                auto: flags.recording,
                dirty: (0..granules).map(dirty).collect(),
            };
            (name, bitmap)
        })
        .collect()
}

/// Opens, does, closes; what was shown at first.
async fn session(shard: Shard, path: PathBuf, actions: Vec<Action>) -> BTreeMap<String, Bitmap> {
    let mut options = OpenOptions::new(true);
    // Blocks are thrown out all the time.
    options.refcount_cache_size = Some(0);
    let mut session = Session::open(&shard, &path, options)
        .await
        .expect("an image");
    let found = shown(&session);
    for action in actions {
        let text = format!("{action:?}");
        let done = by_ringback(&mut session, action).await;
        done.unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    session.close().await.expect("it is closed");
    found
}

/// Image, model, QEMU and `qemu-img check` agree.
fn compare(directory: &Path, model: &Model) {
    let found: BTreeMap<String, Bitmap> = stored::bitmaps(&directory.join("disk"))
        .into_iter()
        .map(|stored| {
            let Stored {
                name,
                granularity,
                flags,
                dirty,
            } = stored;
            assert_eq!(flags & !AUTO, 0, "not in use");
            let auto = flags == AUTO;
            let bitmap = Bitmap {
                granularity,
                auto,
                dirty,
            };
            (name, bitmap)
        })
        .collect();
    assert_eq!(found, model.bitmaps);
    let mut listed = qemu::bitmaps(directory, "disk");
    listed.sort();
    let expected: Vec<_> = model
        .bitmaps
        .iter()
        .map(|(name, bitmap)| {
            let flags: &[&str] = if bitmap.auto { &["auto"] } else { &[] };
            let flags = flags.iter().map(ToString::to_string).collect();
            (name.clone(), bitmap.granularity, flags)
        })
        .collect();
    assert_eq!(listed, expected);
    qemu::check(directory, "disk");
}

fn create(directory: &Path, options: &str, size: u64) {
    let size = size.to_string();
    let words = [
        "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "disk", &size,
    ];
    qemu::run(directory, &words);
}

fn take_turns(shards: &Shards, seed: u64) {
    let mut random = Random::new(seed);
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    let cluster_bits = [9, 9, 12, 16, 16, 21][random.index(6)];
    let bits = [1, 8, 16, 64][random.index(4)];
    let lazy = ["on", "off"][random.index(2)];
    let options = format!(
        "cluster_size={},refcount_bits={bits},lazy_refcounts={lazy}",
        1 << cluster_bits
    );
    let size = (1 + random.below(16_000)) * 512;
    create(directory, &options, size);
    println!("RINGBACK_BITMAPS_SEED={seed}: {options}, {size} bytes");
    let mut model = Model {
        size,
        bitmaps: BTreeMap::new(),
    };
    for _ in 0..6 {
        for _ in 0..random.below(4) {
            let action = model.action(&mut random);
            println!("QEMU: {action:?}");
            by_qemu(directory, &action);
            model.apply(&action);
        }
        let before = model.clone();
        let mut actions = Vec::new();
        for _ in 0..random.below(8) {
            let action = model.action(&mut random);
            println!("ringback: {action:?}");
            model.apply(&action);
            actions.push(action);
        }
        let path = directory.join("disk");
        let found = on_shard(shards, move |shard| session(shard, path, actions));
        assert_eq!(found, before.bitmaps, "what ringback loads");
        compare(directory, &model);
    }
}

const TOOLS: [Need; 3] = [
    Need::Program("qemu-img"),
    Need::Program("qemu-io"),
    Need::Program("qemu-nbd"),
];

#[test]
fn qemu_and_ringback_take_turns() {
    if !needs(&TOOLS) {
        return;
    }
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let shards = start_shards(1);
    let seeds = match number("RINGBACK_BITMAPS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGBACK_BITMAPS_COUNT").unwrap_or(10),
    };
    for seed in seeds {
        take_turns(&shards, seed);
    }
    shards.stop();
}

#[test]
fn qemu_exports_what_ringback_marked() {
    if !needs(&TOOLS) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    create(directory, "cluster_size=65536", 16 << 20);
    let shards = start_shards(1);
    let path = directory.join("disk");
    let add = Action::Add {
        name: "b".into(),
        granularity: 65_536,
        disabled: false,
    };
    let write = |offset: u64, len: u64| Action::Write { offset, len };
    let mut actions = vec![add, write(1 << 20, 512), write((3 << 20) + 512, 65_536)];
    // QEMU serves disabled bitmaps only, on a read-only export.
    actions.push(Action::Disable("b".into()));
    on_shard(&shards, move |shard| session(shard, path, actions));
    let server = serve(directory, &["-r", "-B", "b"]);
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:b",
        directory.join("socket").display()
    );
    let map = qemu::run(
        directory,
        &["qemu-img", "map", "--output=json", "--image-opts", &image],
    );
    server.finish().succeeded();
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let dirty: Vec<(u64, u64)> = map
        .as_array()
        .expect("a list")
        .iter()
        .filter(|area| area["data"] == false)
        .map(|area| {
            let number = |key: &str| area[key].as_u64().expect("a number");
            (number("start"), number("length"))
        })
        .collect();
    assert_eq!(dirty, [(1 << 20, 65_536), (3 << 20, 131_072)]);
    shards.stop();
}

/// Starts a server and waits until its socket is there.
fn serve(directory: &Path, words: &[&str]) -> Running {
    let socket = directory.join("socket");
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "qcow2", "-k"]).arg(&socket);
    command.args(words).arg("disk").current_dir(directory);
    let server = Running::start(&mut command);
    wait_for("a socket", || socket.exists());
    server
}

#[test]
fn a_crash_leaves_bitmaps_that_nobody_trusts() {
    if !needs(&TOOLS) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path().to_owned();
    create(&directory, "cluster_size=4096", 4 << 20);
    qemu::run(&directory, &["qemu-img", "bitmap", "--add", "disk", "old"]);
    let shards = start_shards(1);
    let (place, copy) = (directory.join("disk"), directory.join("copy"));
    on_shard(&shards, move |shard| async move {
        let options = OpenOptions::new(true);
        let mut session = Session::open(&shard, &place, options).await.expect("open");
        std::fs::copy(&place, copy.with_file_name("early")).expect("a copy");
        let add = Action::Add {
            name: "new".into(),
            granularity: 4096,
            disabled: false,
        };
        by_ringback(&mut session, add).await.expect("a bitmap");
        session.write(8192, 4096, 1).await.expect("a write");
        session.flush().await.expect("a flush");
        std::fs::copy(&place, copy).expect("a copy");
        session.close().await.expect("closed");
    });
    for name in ["early", "copy"] {
        let found = qemu::bitmaps(&directory, name);
        let flags = vec!["in-use".to_owned(), "auto".into()];
        assert_eq!(found, [("old".into(), 4096, flags)], "{name}");
        qemu::check(&directory, name);
    }
    let place = directory.join("copy");
    on_shard(&shards, move |shard| async move {
        let options = OpenOptions::new(true);
        let mut session = Session::open(&shard, &place, options).await.expect("open");
        let info = session.graph.bitmaps("disk").expect("the node").list();
        assert!(info[0].flags.inconsistent && !info[0].flags.recording);
        let clear = by_ringback(&mut session, Action::Clear("old".into())).await;
        let error = clear.expect_err("it means nothing").to_string();
        assert_eq!(error, "Bitmap 'old' is inconsistent and cannot be used");
        session.write(0, 512, 1).await.expect("a write");
        session.close().await.expect("closed");
    });
    let found = &qemu::bitmaps(&directory, "copy")[0];
    assert_eq!(found.2, ["in-use", "auto"], "closing does not heal it");
    qemu::check(&directory, "copy");
    let place = directory.join("copy");
    let remove = vec![Action::Remove("old".into())];
    on_shard(&shards, move |shard| async move {
        let options = OpenOptions::new(true);
        let mut session = Session::open(&shard, &place, options).await.expect("open");
        for action in remove {
            by_ringback(&mut session, action).await.expect("removed");
        }
        let copy = place.with_file_name("at-once");
        session.flush().await.expect("a flush");
        std::fs::copy(&place, copy).expect("a copy");
        session.close().await.expect("closed");
    });
    for name in ["copy", "at-once"] {
        assert!(qemu::bitmaps(&directory, name).is_empty());
        assert!(
            stored::places(&directory.join(name)).is_none(),
            "no extension"
        );
        qemu::check(&directory, name);
    }
    shards.stop();
}

#[test]
fn bitmaps_that_qemu_died_with_are_inconsistent() {
    if !needs(&TOOLS) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    create(directory, "cluster_size=65536", 4 << 20);
    qemu::run(directory, &["qemu-img", "bitmap", "--add", "disk", "b"]);
    let server = serve(directory, &["-t"]);
    let url = format!("nbd+unix:///?socket={}", directory.join("socket").display());
    qemu::run(
        directory,
        &["qemu-io", "-f", "raw", "-c", "write 0 512", &url],
    );
    // It is killed.
    drop(server);
    let place = directory.join("disk");
    assert_eq!(stored::bitmaps(&place)[0].flags, IN_USE | AUTO);
    let shards = start_shards(1);
    let inconsistent = on_shard(&shards, move |shard| async move {
        let options = OpenOptions::new(false);
        let session = Session::open(&shard, &place, options).await.expect("open");
        let info = session.graph.bitmaps("disk").expect("the node").list();
        session.close().await.expect("closed");
        (info[0].flags.inconsistent, info[0].flags.read_only)
    });
    assert_eq!(inconsistent, (true, true));
    shards.stop();
}

#[test]
fn many_bitmaps_in_the_smallest_clusters() {
    if !needs(&TOOLS) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    create(directory, "cluster_size=512", 4 << 20);
    let shards = start_shards(1);
    let mut model = Model {
        size: 4 << 20,
        bitmaps: BTreeMap::new(),
    };
    let mut actions: Vec<_> = (0..200)
        .map(|number| Action::Add {
            name: format!("{number}{}", "n".repeat(number * 5)),
            granularity: 512 << (number % 23),
            disabled: number % 3 == 0,
        })
        .collect();
    actions.push(Action::Write {
        offset: (1 << 20) - 512,
        len: 2 << 20,
    });
    for round in 0..2 {
        for action in &actions {
            model.apply(action);
        }
        let (path, actions) = (directory.join("disk"), std::mem::take(&mut actions));
        on_shard(&shards, move |shard| session(shard, path, actions));
        compare(directory, &model);
        assert_eq!(
            stored::bitmaps(&directory.join("disk")).len(),
            200,
            "{round}"
        );
    }
    let actions: Vec<_> = model.bitmaps.keys().cloned().map(Action::Remove).collect();
    let path = directory.join("disk");
    on_shard(&shards, move |shard| session(shard, path, actions));
    model.bitmaps.clear();
    compare(directory, &model);
    shards.stop();
}

#[test]
fn what_an_image_cannot_store_is_refused_in_the_words_of_qemu() {
    if !needs(&TOOLS) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    let long = "n".repeat(1024);
    let shards = start_shards(1);
    for (options, size, name, granularity) in [
        ("compat=0.10", 1 << 20, "b", 65_536),
        ("compat=1.1", 1 << 20, long.as_str(), 65_536),
        ("compat=1.1", (2 << 40) + 512, "b", 512),
        ("compat=1.1", 1 << 20, "b", 1000),
        ("compat=1.1", 1 << 20, "taken", 65_536),
    ] {
        create(directory, options, size);
        if options == "compat=1.1" {
            qemu::run(directory, &["qemu-img", "bitmap", "--add", "disk", "taken"]);
        }
        let text = granularity.to_string();
        let words = ["qemu-img", "bitmap", "--add", "-g", &text, "disk", name];
        let expected = qemu::try_run(directory, &words).expect_err("QEMU refuses");
        let (path, name) = (directory.join("disk"), name.to_owned());
        let found = on_shard(&shards, move |shard| async move {
            let options = OpenOptions::new(true);
            let mut session = Session::open(&shard, &path, options).await.expect("open");
            let add = Action::Add {
                name,
                granularity,
                disabled: false,
            };
            let refused = by_ringback(&mut session, add).await.expect_err("refused");
            session.close().await.expect("closed");
            refused.to_string()
        });
        // QEMU names the node as it likes.
        let reason = |text: &str| {
            text.trim()
                .rsplit(": ")
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        assert_eq!(reason(&found), reason(&expected));
        assert_eq!(
            found.contains("persistent"),
            expected.contains("persistent")
        );
    }
    shards.stop();
}

#[test]
fn bitmaps_that_somebody_passed_by_are_dropped() {
    if !needs(&TOOLS) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = scratch.path();
    create(directory, "cluster_size=65536", 4 << 20);
    qemu::run(directory, &["qemu-img", "bitmap", "--add", "disk", "b"]);
    let path = directory.join("disk");
    // Autoclear bit 0 is gone, and one of the future has come.
    let mut image = std::fs::read(&path).expect("an image");
    image[88..96].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    std::fs::write(&path, image).expect("written");
    let shards = start_shards(1);
    on_shard(&shards, {
        let path = path.clone();
        move |shard| async move {
            let options = OpenOptions::new(true);
            let session = Session::open(&shard, &path, options).await.expect("open");
            let list = session.graph.bitmaps("disk").expect("the node").list();
            assert!(list.is_empty(), "{list:?}");
            session.close().await.expect("closed");
        }
    });
    let image = std::fs::read(&path).expect("an image");
    assert_eq!(image[88..96], [0; 8]);
    assert!(stored::places(&path).is_none());
    qemu::run(
        directory,
        &["qemu-img", "check", "-q", "-r", "leaks", "disk"],
    );
    qemu::check(directory, "disk");
    shards.stop();
}
