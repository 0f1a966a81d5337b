//! Groups on a simulated machine: turns, drains, changes of the limits.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use ringback_ring::file::Cache;
use ringback_ring::shard::Task;
use ringback_ring::sim::{FileOptions, Sim};
use ringback_ring::{IoResult, Shard};

use super::*;
use crate::filter::blkdebug;
use crate::graph::{Access, Graph, GraphError, NodeSpec};
use crate::port::{Attachment, Port};
use crate::request::ZeroFlags;
use crate::span::Span;

const MS: u64 = 1_000_000;
/// What the disk itself may take for a request.
const DISK_NS: u64 = MS;

const ANY: Access = Access {
    read: true,
    write: true,
    alone_writing: false,
    resize: false,
    keeps_size: false,
};

fn iops(total: u64) -> Limits {
    let total = Rate {
        avg: total,
        ..Rate::default()
    };
    Limits {
        iops: Rates {
            total,
            ..Rates::default()
        },
        ..Limits::default()
    }
}

/// A file, and throttles `t0`, `t1` of group `g` above it.
async fn graph(shard: &Shard, limits: Limits) -> Graph {
    let mut graph = Graph::new();
    let file = NodeSpec::File {
        path: PathBuf::from("disk"),
        write: true,
        cache: Cache::Auto,
        discard: true,
    };
    graph.add(shard, "file", file).await.expect("a file");
    graph
        .add_throttle_group(shard, "g", limits)
        .expect("a group");
    for name in ["t0", "t1"] {
        let spec = NodeSpec::Throttle {
            file: "file".into(),
            group: "g".into(),
        };
        graph.add(shard, name, spec).await.expect("a throttle");
    }
    graph
}

async fn attach(graph: &mut Graph, shard: &Shard, node: &str) -> Attachment {
    let (_, attachment) = graph
        .attach(shard, node, "test", ANY)
        .await
        .expect("a user");
    attachment
}

fn run<T: Send + 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    shards: usize,
    test: impl FnOnce(Shard) -> F + Send + 'static,
) -> T {
    let mut sim = Sim::new(seed, shards);
    sim.world().create("disk", 1 << 20, FileOptions::default());
    let answer = sim.shards().spawn_on(0, test);
    sim.run(&answer).expect("it ends")
}

async fn read(shard: &Shard, port: &Port, len: usize) -> IoResult<()> {
    let buf = shard.buffer(len.max(1)).await;
    port.read(shard, 0, buf, 0..len).await.0
}

/// Starts `count` reads; each notes its name when it has ended.
fn start_reads(
    shard: &Shard,
    port: &Rc<Port>,
    count: usize,
    name: u8,
    log: &Arc<Mutex<Vec<u8>>>,
) -> Vec<Task<()>> {
    (0..count)
        .map(|_| {
            let (own, port, log) = (shard.clone(), Rc::clone(port), Arc::clone(log));
            shard.spawn(async move {
                read(&own, &port, 512).await.expect("a read");
                log.lock().expect("not poisoned").push(name);
            })
        })
        .collect()
}

async fn join_all<T>(tasks: Vec<Task<T>>) {
    for task in tasks {
        task.join().await;
    }
}

#[test]
fn members_are_served_in_turn() {
    for seed in 0..20 {
        let log = run(seed, 1, |shard| async move {
            let mut graph = graph(&shard, iops(100)).await;
            let (one, two) = (
                attach(&mut graph, &shard, "t0").await.port(&shard),
                attach(&mut graph, &shard, "t1").await.port(&shard),
            );
            let log = Arc::new(Mutex::new(Vec::new()));
            // The first one asks for much more, and earlier.
            let mut tasks = start_reads(&shard, &one, 40, 1, &log);
            shard.sleep_ns(50 * MS).await;
            tasks.extend(start_reads(&shard, &two, 10, 2, &log));
            shard.sleep_ns(202 * MS).await;
            let seen = log.lock().expect("not poisoned").clone();
            join_all(tasks).await;
            seen
        });
        let of_two = log.iter().filter(|&&name| name == 2).count();
        // Eleven at once, five until the other came, then ten each.
        assert!((9..=11).contains(&of_two), "seed {seed}: {log:?}");
        assert!((34..=38).contains(&log.len()), "seed {seed}: {log:?}");
    }
}

#[test]
fn shards_share_the_limits() {
    for seed in 0..10 {
        let elapsed = run(seed, 3, |shard| async move {
            let mut graph = graph(&shard, iops(1000)).await;
            let attachment = attach(&mut graph, &shard, "t0").await;
            let start = shard.now_ns();
            shard
                .set()
                .on_each(move |shard| {
                    let port = attachment.port(&shard);
                    async move {
                        let log = Arc::default();
                        join_all(start_reads(&shard, &port, 100, 0, &log)).await;
                    }
                })
                .await;
            shard.now_ns() - start
        });
        // 300 operations, of which 101 at once.
        assert!(
            (199 * MS..205 * MS).contains(&elapsed),
            "seed {seed}: {elapsed}"
        );
    }
}

#[test]
fn a_drain_releases_what_waits() {
    run(1, 1, |shard| async move {
        let mut graph = graph(&shard, iops(1)).await;
        let raw = NodeSpec::Raw {
            file: "t0".into(),
            offset: 0,
            size: None,
        };
        graph.add(&shard, "raw", raw).await.expect("a format");
        let attachment = attach(&mut graph, &shard, "raw").await;
        let port = attachment.port(&shard);
        let log = Arc::default();
        let tasks = start_reads(&shard, &port, 20, 0, &log);
        shard.sleep_ns(10 * MS).await;
        let start = shard.now_ns();
        attachment.drain().await;
        assert!(shard.now_ns() - start < 20 * DISK_NS);
        join_all(tasks).await;
        attachment.resume(None).await;
        // The end of another use is the end of its drain, too.
        attach(&mut graph, &shard, "t0").await.detach().await;
        // What was released counts, and who comes now waits again.
        let start = shard.now_ns();
        let tasks = start_reads(&shard, &port, 1, 0, &log);
        shard.sleep_ns(1000 * MS).await;
        assert!(!tasks[0].is_finished());
        let members = graph.throttle_group("g").expect("it is there");
        members
            .set_limits(&shard, Limits::default())
            .expect("no limits");
        join_all(tasks).await;
        assert!(shard.now_ns() - start < 1000 * MS + DISK_NS);
    });
}

#[test]
fn directions_and_free_requests() {
    run(2, 1, |shard| async move {
        let mut limits = Limits::default();
        limits.iops.write.avg = 10;
        let mut graph = graph(&shard, limits).await;
        let port = attach(&mut graph, &shard, "t0").await.port(&shard);
        let span = Span::new(0, 4096);
        let zero = async || {
            let zeroes = port.write_zeroes(&shard, span, ZeroFlags::KEEP);
            zeroes.await.expect("zeroes");
        };
        let start = shard.now_ns();
        zero().await;
        port.discard(&shard, span).await.expect("a discard");
        for _ in 0..50 {
            read(&shard, &port, 4096).await.expect("a read");
            port.flush(&shard).await.expect("a flush");
            port.extent(&shard, span).await.expect("a look");
        }
        assert!(shard.now_ns() - start < 100 * DISK_NS);
        zero().await;
        let buf = shard.buffer(512).await;
        port.write(&shard, 0, buf, 0..512).await.0.expect("a write");
        assert!(shard.now_ns() - start >= 200 * MS);
    });
}

#[test]
fn requests_count_as_they_are_cut_below_and_empty_ones_too() {
    run(3, 1, |shard| async move {
        let mut graph = graph(&shard, iops(100)).await;
        let options = blkdebug::Options {
            max_transfer: 4096,
            ..blkdebug::Options::default()
        };
        let debug = NodeSpec::BlkDebug {
            image: "file".into(),
            options,
        };
        graph.add(&shard, "debug", debug).await.expect("a filter");
        let throttle = NodeSpec::Throttle {
            file: "debug".into(),
            group: "g".into(),
        };
        graph.add(&shard, "t2", throttle).await.expect("a throttle");
        let port = attach(&mut graph, &shard, "t2").await.port(&shard);
        let start = shard.now_ns();
        read(&shard, &port, 65_536).await.expect("a read");
        for _ in 0..15 {
            read(&shard, &port, 0).await.expect("nothing");
        }
        // 31 operations, of which eleven at once.
        let elapsed = shard.now_ns() - start;
        assert!(
            (200 * MS..200 * MS + 50 * DISK_NS).contains(&elapsed),
            "{elapsed}"
        );
    });
}

#[test]
fn a_request_that_is_dropped_gives_its_turn_away() {
    run(4, 1, |shard| async move {
        let group = Arc::new(ThrottleGroup::new(&shard, iops(10)).expect("limits"));
        let throttle = Rc::new(Throttle::new(&group));
        for _ in 0..2 {
            throttle.admit(&shard, Direction::Read, 1).await;
        }
        {
            let mut first = std::pin::pin!(throttle.admit(&shard, Direction::Read, 1));
            let poll_once = std::future::poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx)));
            assert!(poll_once.await.is_pending());
            let (own, second) = (shard.clone(), Rc::clone(&throttle));
            let second = shard.spawn(async move {
                second.admit(&own, Direction::Read, 1).await;
            });
            shard.sleep_ns(MS).await;
            assert!(!second.is_finished());
        }
        let start = shard.now_ns();
        throttle.admit(&shard, Direction::Read, 1).await;
        assert!(shard.now_ns() - start < 210 * MS);
    });
}

#[test]
fn groups_by_name() {
    run(5, 1, |shard| async move {
        let mut graph = graph(&shard, iops(1)).await;
        let text = |result: Result<(), GraphError>| result.map_err(|error| error.to_string());
        assert_eq!(
            text(graph.add_throttle_group(&shard, "g", Limits::default())),
            Err("attempt to add duplicate property 'g' to object (type 'container')".into())
        );
        assert_eq!(
            text(graph.add_throttle_group(&shard, "1", Limits::default())),
            Err("Parameter 'id' expects an identifier".into())
        );
        assert_eq!(
            text(graph.remove_throttle_group("g")),
            Err("object 'g' is in use, can not be deleted".into())
        );
        let spec = NodeSpec::Throttle {
            file: "file".into(),
            group: "h".into(),
        };
        assert_eq!(
            text(graph.add(&shard, "t2", spec).await),
            Err("Throttle group 'h' does not exist".into())
        );
        let bad = Limits {
            iops_size: 1,
            ..Limits::default()
        };
        assert!(graph.set_throttle_limits(&shard, "g", bad).is_err());
        assert_eq!(graph.throttle_group("g").expect("there").limits(), iops(1));
        graph
            .add_throttle_group(&shard, "h", Limits::default())
            .expect("a group");
        // Under load: what waits in the old group is released by the move.
        let port = attach(&mut graph, &shard, "t0").await.port(&shard);
        let log = Arc::default();
        let tasks = start_reads(&shard, &port, 10, 0, &log);
        shard.sleep_ns(MS).await;
        let start = shard.now_ns();
        graph.move_throttle("t0", "h").await.expect("both exist");
        join_all(tasks).await;
        join_all(start_reads(&shard, &port, 10, 0, &log)).await;
        assert!(shard.now_ns() - start < 30 * DISK_NS);
        assert_eq!(graph.group_of_throttle("t0").expect("a throttle"), "h");
        graph.remove(&shard, "t1").await.expect("nobody uses it");
        graph.remove_throttle_group("g").expect("no members");
    });
}
