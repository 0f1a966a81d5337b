//! Compressed clusters: what QEMU packs ringback unpacks, and the other way
//! round.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_block::format::qcow2::OpenOptions;
use ringback_block::graph::{Access, Graph, NodeSpec, Qcow2Spec};
use ringback_ring::file::Cache;
use ringback_ring::shards::Config;
use ringback_ring::{Shard, Shards};
use ringback_tests::image::{assert_identical, noise};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::run;
use ringback_tests::scratch::Scratch;

const SIZE: usize = 3 << 20;

/// Bytes that shrink in different ways: with repetitions near and far (farther
/// than the window of a small deflate), long runs, little at all, not at all.
fn material() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIZE);
    let words = noise(1, 6_000);
    let mut turn = 0_usize;
    while bytes.len() < SIZE {
        turn += 1;
        match turn % 5 {
            0 => bytes.extend_from_slice(&words),
            1 => bytes.extend_from_slice(&words[turn % 100..][..turn % 5_000]),
            2 => bytes.extend(std::iter::repeat_n(turn.to_le_bytes()[0], 9_000)),
            3 => bytes.extend(noise(turn as u64, 8_000).iter().map(|byte| byte & 0x11)),
            _ => bytes.extend(noise(turn as u64, 7_000)),
        }
    }
    bytes.truncate(SIZE);
    bytes
}

fn qemu_img(words: &[&str], directory: &Path) {
    let mut program = Command::new("qemu-img");
    run(program.args(words).current_dir(directory)).succeeded();
}

/// The image is sound, and some of its clusters are compressed.
#[track_caller]
fn assert_packed(image: &Path) {
    let mut check = Command::new("qemu-img");
    check.args(["check", "-f", "qcow2", "--output=json"]);
    let report = run(check.arg(image)).succeeded().stdout;
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let packed = report["compressed-clusters"].as_u64();
    assert!(packed.is_some_and(|count| count > 0), "{report}");
}

/// What is done with an image, on a shard.
enum Work {
    Read,
    WriteCompressed { bytes: Vec<u8>, cluster: usize },
}

async fn on_image(shard: Shard, path: PathBuf, work: Work) -> Vec<u8> {
    let write = matches!(work, Work::WriteCompressed { .. });
    let mut graph = Graph::new();
    let file = NodeSpec::File {
        path,
        write,
        cache: Cache::Buffered,
        discard: true,
    };
    graph.add(&shard, "file", file).await.expect("a file");
    let image = NodeSpec::Qcow2(Qcow2Spec {
        file: "file".into(),
        backing: None,
        data_file: None,
        options: OpenOptions::new(write),
        force_share: false,
    });
    graph.add(&shard, "image", image).await.expect("an image");
    let access = Access {
        read: true,
        write,
        alone_writing: write,
        ..Access::default()
    };
    let attached = graph.attach(&shard, "image", "test", access).await;
    let (user, disk) = attached.expect("an attachment");
    let port = disk.port(&shard);
    let mut found = Vec::new();
    match work {
        Work::Read => {
            let piece = 1 << 20;
            for offset in (0..SIZE).step_by(piece) {
                let len = piece.min(SIZE - offset);
                let buf = shard.buffer(len).await;
                let (result, buf) = port.read(&shard, offset as u64, buf, 0..len).await;
                result.expect("readable");
                found.extend_from_slice(&buf[..len]);
            }
        }
        Work::WriteCompressed { bytes, cluster } => {
            for (index, piece) in bytes.chunks(cluster).enumerate() {
                let offset = (index * cluster) as u64;
                let written = port.write_compressed(&shard, offset, piece).await;
                written.expect("writable");
            }
        }
    }
    drop(port);
    graph.detach(user).await;
    graph.remove(&shard, "image").await.expect("closed");
    found
}

#[test]
fn both_read_what_the_other_packs() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, image, back) = (
        scratch.join("source"),
        scratch.join("image"),
        scratch.join("back"),
    );
    let bytes = material();
    std::fs::write(&source, &bytes).expect("a source");
    let config = Config {
        count: 1,
        arena_bytes: 64 << 20,
        ..Config::default()
    };
    let shards = Shards::start(&config).expect("shards start");
    let work = |work: Work| {
        let path = image.clone();
        let ended = shards.spawn_on(0, move |shard| on_image(shard, path, work));
        ended.wait().expect("it ends")
    };
    for kind in ["zlib", "zstd"] {
        // The last cluster of 2 MiB ones is cut by the disk's end.
        for cluster in [512, 4096, 65_536, 2 << 20] {
            let options = format!("compression_type={kind},cluster_size={cluster}");
            let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options];
            let packing = [&convert[..], &["source", "image"]].concat();
            qemu_img(&packing, scratch.path());
            assert_packed(&image);
            let found = work(Work::Read);
            assert!(found == bytes, "{options}: QEMU's is read");

            let create = ["create", "-q", "-f", "qcow2", "-o", &options];
            let size = SIZE.to_string();
            qemu_img(&[&create[..], &["image", &size]].concat(), scratch.path());
            work(Work::WriteCompressed {
                bytes: bytes.clone(),
                cluster,
            });
            let unpack = ["convert", "-f", "qcow2", "-O", "raw", "image", "back"];
            qemu_img(&unpack, scratch.path());
            assert_identical(&source, &back);
            assert_packed(&image);
        }
    }
    shards.stop();
}
