//! What the engine itself costs a guest request: the whole path above a disk
//! that answers at once, without a filter, with a filter whose clusters are
//! *passed*, and with a bitmap. The figures include the executor, not the
//! kernel.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ringback_block::filter::copy_before_write::Options;
use ringback_block::graph::{Access, Graph, Insertion, NodeSpec, Scope};
use ringback_block::port::Attachment;
use ringback_block::span::Span;
use ringback_ring::shards::Config;
use ringback_ring::{Shard, Shards};

const SIZE: u64 = 1 << 30;
const BLOCK: usize = 4096;

#[derive(Clone, Copy)]
struct Scene {
    filter: bool,
    bitmap: bool,
}

async fn build(shard: &Shard, scene: Scene) -> (Graph, Attachment) {
    let mut graph = Graph::new();
    for name in ["disk", "target"] {
        let spec = NodeSpec::Null {
            size: SIZE,
            latency_ns: 0,
            read_zeroes: true,
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
        .attach(shard, "disk", "guest", access)
        .await
        .expect("a guest");
    if scene.bitmap {
        let added = graph.change_bitmaps("disk", |bitmaps| {
            bitmaps.add("b", 65536, false, false).map(drop)
        });
        added.await.expect("a bitmap");
    }
    if scene.filter {
        let insertion = Insertion {
            node_name: Some("cbw"),
            file: "disk",
            target: "target",
            bitmap: None,
            scope: Scope::Everything,
            options: Options::default(),
        };
        graph
            .insert_copy_before_write(shard, &[insertion], || ())
            .await
            .expect("a filter");
        // Everything is saved once; what is measured comes afterwards.
        let port = disk.port(shard);
        port.discard(shard, Span::new(0, SIZE))
            .await
            .expect("a discard");
    }
    (graph, disk)
}

/// How long so many 4 KiB writes take, one after the other.
async fn write(shard: &Shard, scene: Scene, count: u64) -> Duration {
    let (_graph, disk) = build(shard, scene).await;
    let port = disk.port(shard);
    let mut buf = shard.buffer(BLOCK).await;
    let start = shard.now_ns();
    for index in 0..count {
        let offset = index * 7919 % (SIZE / BLOCK as u64) * BLOCK as u64;
        let result;
        (result, buf) = port.write(shard, offset, buf, 0..BLOCK).await;
        result.expect("nothing can fail");
    }
    Duration::from_nanos(shard.now_ns() - start)
}

fn writes(criterion: &mut Criterion) {
    let config = Config {
        count: 1,
        ..Config::default()
    };
    let shards = Shards::start(&config).expect("io_uring");
    let scenes = [
        (
            "write, nothing above the disk",
            Scene {
                filter: false,
                bitmap: false,
            },
        ),
        (
            "write, one bitmap",
            Scene {
                filter: false,
                bitmap: true,
            },
        ),
        (
            "write, copy-before-write passed",
            Scene {
                filter: true,
                bitmap: false,
            },
        ),
        (
            "write, both",
            Scene {
                filter: true,
                bitmap: true,
            },
        ),
    ];
    for (name, scene) in scenes {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let run =
                    shards.spawn_on(
                        0,
                        move |shard| async move { write(&shard, scene, count).await },
                    );
                run.wait().expect("the shard lives")
            });
        });
    }
    shards.stop();
}

criterion_group!(benches, writes);
criterion_main!(benches);
