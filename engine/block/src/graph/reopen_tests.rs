//! Nodes that change while guests write to them, on a simulated machine.

use std::cell::Cell;
use std::rc::Rc;

use ringback_ring::file::Cache;
use ringback_ring::sim::{FileOptions, Sim};
use ringback_ring::{Errno, Shard};

use super::reopen::{Change, Policy, Reopening};
use super::{Access, BitmapSpec, Graph, GraphError, Insertion, NodeSpec, Qcow2Spec, Scope, UserId};
use crate::filter::copy_before_write;
use crate::filter::throttle::{Limits, Rate};
use crate::format::qcow2::OpenOptions;
use crate::format::qcow2::create::CreateOptions;
use crate::path::Treatment;
use crate::port::Attachment;
use crate::request::ZeroFlags;
use crate::span::Span;

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = BYTES as u64;
const BYTES: usize = 4096;

/// Runs `test` on a machine with disks `f`, `g`, `h` that take a while.
fn run<F: Future<Output = ()> + 'static>(
    seed: u64,
    test: impl FnOnce(Shard) -> F + Send + 'static,
) -> Sim {
    let mut sim = Sim::new(seed, 2);
    let options = FileOptions {
        latency_ns: (10_000, 300_000),
        ..FileOptions::default()
    };
    for name in ["f", "g", "h"] {
        sim.world().create(name, SIZE, options.clone());
    }
    let answer = sim.shards().spawn_on(0, test);
    sim.run(&answer).expect("it ends");
    sim
}

async fn add_file(graph: &mut Graph, shard: &Shard, name: &str, path: &str, write: bool) {
    let file = NodeSpec::File {
        path: path.into(),
        write,
        cache: Cache::Auto,
        discard: true,
    };
    graph.add(shard, name, file).await.expect("a file");
}

async fn add_raw(graph: &mut Graph, shard: &Shard, name: &str, file: &str) {
    let raw = NodeSpec::Raw {
        file: file.into(),
        offset: 0,
        size: None,
    };
    graph.add(shard, name, raw).await.expect("a window");
}

async fn add_throttle(graph: &mut Graph, shard: &Shard, name: &str, file: &str) {
    if graph.throttle_group("tg").is_err() {
        let mut limits = Limits::default();
        limits.iops.total = Rate {
            avg: 2000,
            ..Rate::default()
        };
        graph
            .add_throttle_group(shard, "tg", limits)
            .expect("a group");
    }
    let throttle = NodeSpec::Throttle {
        file: file.into(),
        group: "tg".into(),
    };
    graph.add(shard, name, throttle).await.expect("a throttle");
}

/// A new image in `file`, open for writing.
async fn add_qcow2(graph: &mut Graph, shard: &Shard, name: &str, file: &str, disk: u64) {
    graph
        .create_qcow2(shard, file, None, &CreateOptions::new(disk))
        .await
        .expect("an image");
    open_qcow2(graph, shard, name, file, true).await;
}

async fn open_qcow2(graph: &mut Graph, shard: &Shard, name: &str, file: &str, write: bool) {
    let spec = Qcow2Spec {
        file: file.into(),
        backing: None,
        data_file: None,
        options: OpenOptions::new(write),
        force_share: false,
    };
    graph
        .add(shard, name, NodeSpec::Qcow2(spec))
        .await
        .expect("opened");
}

async fn attach(graph: &mut Graph, shard: &Shard, node: &str, write: bool) -> (UserId, Attachment) {
    let access = Access {
        read: true,
        write,
        ..Access::default()
    };
    graph
        .attach(shard, node, "guest", access)
        .await
        .expect("it is free")
}

/// A filter `cbw` that saves the whole disk of one node to another.
async fn insert_filter(
    graph: &mut Graph,
    shard: &Shard,
    [file, target]: [&str; 2],
    options: copy_before_write::Options,
) {
    let insertion = Insertion {
        node_name: Some("cbw"),
        file,
        target,
        bitmap: None,
        scope: Scope::Everything,
        options,
    };
    graph
        .insert_copy_before_write(shard, &[insertion], || {})
        .await
        .expect("put in");
}

fn change(node: &str, change: Change) -> Reopening {
    Reopening {
        node: node.into(),
        policy: Policy::default(),
        change,
    }
}

fn raw(node: &str, file: &str) -> Reopening {
    let window = Change::Raw {
        file: file.into(),
        offset: 0,
        size: None,
    };
    change(node, window)
}

fn qcow2(node: &str, file: &str, write: bool) -> Reopening {
    let image = Change::Qcow2 {
        file: file.into(),
        backing: None,
        options: Some(Box::new(OpenOptions::new(write))),
    };
    change(node, image)
}

fn file(node: &str, write: bool) -> Reopening {
    let cache = Cache::Auto;
    change(node, Change::File { write, cache })
}

async fn write(
    port: &crate::port::Port,
    shard: &Shard,
    offset: u64,
    byte: u8,
) -> Result<(), Errno> {
    let mut buf = shard.buffer(BYTES).await;
    buf.fill(byte);
    port.write(shard, offset, buf, 0..BYTES).await.0
}

async fn read(port: &crate::port::Port, shard: &Shard, offset: u64) -> Result<Vec<u8>, Errno> {
    let buf = shard.buffer(BYTES).await;
    let (result, buf) = port.read(shard, offset, buf, 0..BYTES).await;
    result.map(|()| buf[..BYTES].to_vec())
}

/// Writes to its own blocks and reads them back until told to stop; answers how
/// many requests were served, and the last byte of each block.
async fn guest(
    shard: Shard,
    attachment: Attachment,
    stop: Rc<Cell<bool>>,
    number: u64,
) -> (u64, Vec<(u64, u8)>) {
    let port = attachment.port(&shard);
    let mut blocks: Vec<(u64, u8)> = (0..4).map(|at| ((number * 4 + at) * BLOCK, 0)).collect();
    let mut served = 0;
    for byte in (1..=u8::MAX).cycle() {
        if stop.get() {
            break;
        }
        let block = &mut blocks[usize::from(byte % 4)];
        write(&port, &shard, block.0, byte).await.expect("written");
        block.1 = byte;
        let found = read(&port, &shard, block.0).await.expect("read");
        assert!(found.iter().all(|&found| found == byte), "block {block:?}");
        served += 2;
    }
    (served, blocks)
}

/// Guests on `node`, `steps` meanwhile, and a look at everything at the end.
async fn under_load(graph: &mut Graph, shard: &Shard, node: &str, steps: &[Vec<Reopening>]) {
    let (user, attachment) = attach(graph, shard, node, true).await;
    let stop = Rc::new(Cell::new(false));
    let guests: Vec<_> = (0..3)
        .map(|number| {
            shard.spawn(guest(
                shard.clone(),
                attachment.clone(),
                Rc::clone(&stop),
                number,
            ))
        })
        .collect();
    for step in steps.iter().cycle().take(6) {
        shard.sleep_ns(2_000_000).await;
        graph.reopen(shard, step).await.expect("changed");
    }
    shard.sleep_ns(2_000_000).await;
    stop.set(true);
    let port = attachment.port(shard);
    for guest in guests {
        let (served, blocks) = guest.join().await;
        assert!(served > 0);
        for (offset, byte) in blocks {
            let found = read(&port, shard, offset).await.expect("read");
            assert!(found.iter().all(|&found| found == byte), "at {offset}");
        }
    }
    graph.detach(user).await;
}

#[test]
fn a_throttle_comes_and_goes_below_a_window_under_load() {
    for seed in 0..10 {
        run(seed, |shard| async move {
            let mut graph = Graph::new();
            add_file(&mut graph, &shard, "file", "f", true).await;
            add_raw(&mut graph, &shard, "raw", "file").await;
            add_throttle(&mut graph, &shard, "slow", "file").await;
            let there_and_back = [vec![raw("raw", "slow")], vec![raw("raw", "file")]];
            under_load(&mut graph, &shard, "raw", &there_and_back).await;
            assert_eq!(graph.children("raw"), [("file", "file")]);
        });
    }
}

#[test]
fn a_throttle_comes_and_goes_below_an_image_under_load() {
    for seed in 0..10 {
        run(seed, |shard| async move {
            let mut graph = Graph::new();
            add_file(&mut graph, &shard, "file", "f", true).await;
            add_qcow2(&mut graph, &shard, "image", "file", SIZE).await;
            add_throttle(&mut graph, &shard, "slow", "file").await;
            let step = |below| vec![qcow2("image", below, true)];
            let there_and_back = [step("slow"), step("file")];
            under_load(&mut graph, &shard, "image", &there_and_back).await;
            graph.remove(&shard, "image").await.expect("written");
            open_qcow2(&mut graph, &shard, "again", "file", false).await;
            let (_, attachment) = attach(&mut graph, &shard, "again", false).await;
            let port = attachment.port(&shard);
            let found = read(&port, &shard, 0).await.expect("read");
            assert_ne!(found[0], 0, "what was written is in the file");
        });
    }
}

#[test]
fn a_snapshot_stays_the_same_when_the_way_to_its_disk_changes() {
    run(3, |shard| async move {
        let mut graph = Graph::new();
        add_file(&mut graph, &shard, "file", "f", true).await;
        add_file(&mut graph, &shard, "target", "g", true).await;
        add_qcow2(&mut graph, &shard, "copies", "target", SIZE).await;
        add_raw(&mut graph, &shard, "raw", "file").await;
        add_throttle(&mut graph, &shard, "slow", "file").await;
        let (user, attachment) = attach(&mut graph, &shard, "raw", true).await;
        let port = attachment.port(&shard);
        for at in 0..4 {
            write(&port, &shard, at * 65536, 1).await.expect("written");
        }
        let options = copy_before_write::Options::default();
        insert_filter(&mut graph, &shard, ["raw", "copies"], options).await;
        let access = NodeSpec::SnapshotAccess { file: "cbw".into() };
        graph.add(&shard, "snapshot", access).await.expect("a view");
        let (view_user, reader) = attach(&mut graph, &shard, "snapshot", false).await;
        for (at, below) in (0..).zip(["slow", "file", "slow", "file"]) {
            write(&port, &shard, at * 65536, 2).await.expect("written");
            graph
                .reopen(
                    &shard,
                    &[raw("raw", below), qcow2("copies", "target", true)],
                )
                .await
                .expect("changed");
        }
        // Another file could not be read through the filter.
        let shorter = Change::Raw {
            file: "file".into(),
            offset: 512,
            size: None,
        };
        let refused = graph.reopen(&shard, &[change("raw", shorter)]).await;
        assert!(matches!(refused, Err(GraphError::InUse(_))), "{refused:?}");
        let view = reader.port(&shard);
        for at in 0..4 {
            let old = read(&view, &shard, at * 65536).await.expect("read");
            assert_eq!(old[0], 1);
            let new = read(&port, &shard, at * 65536).await.expect("read");
            assert_eq!(new[0], 2);
        }
        for user in [view_user, user] {
            graph.detach(user).await;
        }
        graph.remove(&shard, "snapshot").await.expect("gone");
        graph
            .remove_copy_before_write(&shard, "cbw")
            .await
            .expect("taken out");
        graph.remove(&shard, "copies").await.expect("closed");
        // What was saved went into the image as it is open now.
        open_qcow2(&mut graph, &shard, "saved", "target", false).await;
        let (_, attachment) = attach(&mut graph, &shard, "saved", false).await;
        let port = attachment.port(&shard);
        for at in 0..4 {
            let old = read(&port, &shard, at * 65536).await.expect("read");
            assert_eq!(old[0], 1);
        }
    });
}

#[test]
fn what_a_write_waits_for_in_its_filter_is_watched() {
    run(6, |shard| async move {
        let mut graph = Graph::new();
        for (name, path) in [("file", "f"), ("target", "g")] {
            add_file(&mut graph, &shard, name, path, true).await;
        }
        let (_, attachment) = attach(&mut graph, &shard, "file", true).await;
        let port = attachment.port(&shard);
        let options = copy_before_write::Options::default();
        insert_filter(&mut graph, &shard, ["file", "target"], options).await;
        let super::Kind::CopyBeforeWrite { filter, .. } = &graph.nodes["cbw"].kind else {
            panic!("it is a filter");
        };
        filter.guests().want();
        let start_ns = shard.now_ns();
        write(&port, &shard, 0, 1).await.expect("written");
        let now_ns = shard.now_ns();
        // Old data is read and written first: two thirds of it.
        let busy_ns = filter.guests().counts(now_ns).busy_ns;
        assert!(busy_ns >= (now_ns - start_ns) * 9 / 10, "{busy_ns}");
    });
}

#[test]
fn nothing_waits_for_old_data_that_lingers_in_memory() {
    run(5, |shard| async move {
        let mut graph = Graph::new();
        for (name, path) in [("file", "f"), ("target", "g")] {
            add_file(&mut graph, &shard, name, path, true).await;
        }
        add_raw(&mut graph, &shard, "raw", "file").await;
        add_throttle(&mut graph, &shard, "slow", "file").await;
        let (_, attachment) = attach(&mut graph, &shard, "raw", true).await;
        let port = attachment.port(&shard);
        let options = copy_before_write::Options {
            on_cbw_error: copy_before_write::OnCbwError::BreakSnapshot,
            save_buffer: SIZE,
            ..copy_before_write::Options::default()
        };
        insert_filter(&mut graph, &shard, ["raw", "target"], options).await;
        let start_ns = shard.now_ns();
        write(&port, &shard, 0, 1).await.expect("written");
        graph
            .reopen(&shard, &[raw("raw", "slow")])
            .await
            .expect("changed");
        write(&port, &shard, 65536, 1).await.expect("written");
        let mut transaction = graph.begin(&shard, &["target"]).await;
        let spec = BitmapSpec {
            name: "dirty".into(),
            granularity: None,
            disabled: false,
            persistent: false,
        };
        transaction
            .add_bitmap("target", &spec)
            .expect("nothing is on its way to the target");
        transaction.commit().await.expect("done");
        write(&port, &shard, 2 * 65536, 1).await.expect("written");
        graph
            .remove_copy_before_write(&shard, "cbw")
            .await
            .expect("taken out");
        let took_ns = shard.now_ns() - start_ns;
        assert!(took_ns < 100_000_000, "{took_ns}");
    });
}

/// Whether the bitmap in the file is marked in use, and how much is dirty in it.
async fn stored_bitmap(graph: &mut Graph, shard: &Shard) -> (bool, u64) {
    add_file(graph, shard, "look", "f", false).await;
    open_qcow2(graph, shard, "seen", "look", false).await;
    let found = graph.shown_bitmaps("seen").expect("it is there");
    let bitmap = found.first().expect("one is stored");
    let answer = (bitmap.flags.inconsistent, bitmap.count);
    for node in ["seen", "look"] {
        graph.remove(shard, node).await.expect("closed");
    }
    answer
}

async fn image_with_bitmap(graph: &mut Graph, shard: &Shard) {
    add_file(graph, shard, "file", "f", true).await;
    add_qcow2(graph, shard, "image", "file", SIZE).await;
    let spec = BitmapSpec {
        name: "dirty".into(),
        granularity: None,
        disabled: false,
        persistent: true,
    };
    graph
        .transact(shard, &["image"], async |transaction| {
            transaction.add_bitmap("image", &spec)
        })
        .await
        .expect("a bitmap");
}

async fn write_once(graph: &mut Graph, shard: &Shard, offset: u64) {
    let (user, attachment) = attach(graph, shard, "image", true).await;
    let port = attachment.port(shard);
    write(&port, shard, offset, 7).await.expect("written");
    graph.detach(user).await;
}

#[test]
fn bitmaps_are_stored_for_readers_and_marked_for_writers() {
    run(4, |shard| async move {
        let mut graph = Graph::new();
        image_with_bitmap(&mut graph, &shard).await;
        write_once(&mut graph, &shard, 0).await;
        let is_writable = |graph: &Graph, node: &str| {
            let file = graph.file(node).expect("a file");
            file.geometry().writable
        };
        for round in 1..3 {
            graph
                .reopen(
                    &shard,
                    &[file("file", false), qcow2("image", "file", false)],
                )
                .await
                .expect("read-only");
            assert!(!is_writable(&graph, "image"));
            let bitmaps = graph.bitmaps("image").expect("it is there");
            let bitmap = bitmaps.get("dirty").expect("kept");
            assert!(bitmap.flags().read_only && bitmap.flags().recording);
            assert_eq!(
                stored_bitmap(&mut graph, &shard).await,
                (false, round * 65536)
            );
            graph
                .reopen(&shard, &[qcow2("image", "file", true), file("file", true)])
                .await
                .expect("writable");
            assert!(is_writable(&graph, "image"));
            let bitmaps = graph.bitmaps("image").expect("it is there");
            assert!(!bitmaps.get("dirty").expect("kept").flags().read_only);
            assert!(stored_bitmap(&mut graph, &shard).await.0, "in use");
            write_once(&mut graph, &shard, round * 65536).await;
        }
        // Through another change of a writable image they stay what they are.
        graph
            .reopen(&shard, &[qcow2("image", "file", true)])
            .await
            .expect("changed");
        graph.remove(&shard, "image").await.expect("closed");
        assert_eq!(stored_bitmap(&mut graph, &shard).await, (false, 3 * 65536));
    });
}

#[test]
fn nothing_changes_if_one_node_cannot() {
    run(5, |shard| async move {
        let mut graph = Graph::new();
        image_with_bitmap(&mut graph, &shard).await;
        add_file(&mut graph, &shard, "other", "g", true).await;
        add_qcow2(&mut graph, &shard, "stranger", "other", SIZE).await;
        graph.remove(&shard, "stranger").await.expect("closed");
        // Told apart only after the image has written everything: it has marked
        // nothing there, and its own file is as before.
        write_once(&mut graph, &shard, 0).await;
        let elsewhere = graph
            .reopen(&shard, &[qcow2("image", "other", false)])
            .await;
        assert!(
            matches!(elsewhere, Err(GraphError::OtherImage(_))),
            "{elsewhere:?}"
        );
        assert!(stored_bitmap(&mut graph, &shard).await.0, "still in use");
        write_once(&mut graph, &shard, 65536).await;

        let cycle = graph
            .reopen(
                &shard,
                &[qcow2("image", "file", false), qcow2("image", "image", true)],
            )
            .await
            .expect_err("a cycle");
        assert_eq!(
            cycle.to_string(),
            "Making 'image' a file child of 'image' would create a cycle"
        );
        write_once(&mut graph, &shard, 2 * 65536).await;
        graph.remove(&shard, "image").await.expect("closed");
        assert_eq!(stored_bitmap(&mut graph, &shard).await, (false, 3 * 65536));
    });
}

#[test]
fn writers_are_not_left_above_what_is_read_only() {
    run(6, |shard| async move {
        let mut graph = Graph::new();
        add_file(&mut graph, &shard, "file", "f", true).await;
        add_qcow2(&mut graph, &shard, "image", "file", SIZE).await;
        let refused = |result: Result<(), GraphError>| result.expect_err("refused").to_string();
        assert_eq!(
            refused(graph.reopen(&shard, &[file("file", false)]).await),
            "Read-only block node 'file' cannot support read-write users"
        );
        let (user, _) = attach(&mut graph, &shard, "image", true).await;
        assert_eq!(
            refused(graph.reopen(&shard, &[qcow2("image", "file", false)]).await),
            "Read-only block node 'image' cannot support read-write users"
        );
        graph.detach(user).await;
        let down = [qcow2("image", "file", false), file("file", false)];
        graph.reopen(&shard, &down).await.expect("both");
        assert_eq!(
            refused(graph.reopen(&shard, &[qcow2("image", "file", true)]).await),
            "Block node is read-only"
        );
        let up = [qcow2("image", "file", true), file("file", true)];
        graph.reopen(&shard, &up).await.expect("both");
        write_once(&mut graph, &shard, 0).await;
    });
}

#[test]
fn zeroes_and_discards_are_treated_as_each_node_says() {
    run(7, |shard| async move {
        let mut graph = Graph::new();
        add_file(&mut graph, &shard, "file", "f", true).await;
        add_raw(&mut graph, &shard, "raw", "file").await;
        let (_, attachment) = attach(&mut graph, &shard, "raw", true).await;
        let port = attachment.port(&shard);
        let with = |treatment| Reopening {
            policy: Policy {
                treatment,
                ..Policy::default()
            },
            ..raw("raw", "file")
        };
        let ignores = Treatment {
            ignores_discards: true,
            zeroes: Some(ZeroFlags::UNMAP),
        };
        graph.reopen(&shard, &[with(ignores)]).await.expect("told");
        write(&port, &shard, 0, 9).await.expect("written");
        let block = Span::new(0, BLOCK);
        port.discard(&shard, block).await.expect("ignored");
        assert_eq!(read(&port, &shard, 0).await.expect("read")[0], 9);
        write(&port, &shard, 0, 0).await.expect("zeroes");
        assert_eq!(read(&port, &shard, 0).await.expect("read")[0], 0);
        let kept = graph.traffic("file").expect("it is there");
        assert_eq!(kept.highest_write_end(), BLOCK);

        write(&port, &shard, 0, 9).await.expect("written");
        let passes = Treatment::default();
        graph.reopen(&shard, &[with(passes)]).await.expect("told");
        port.discard(&shard, block).await.expect("passed on");
        assert_eq!(read(&port, &shard, 0).await.expect("read")[0], 0);
    });
}
