//! New images beside qemu-img's: the same bytes, and where space is reserved
//! the same map.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringback_block::format::qcow2::Compression;
use ringback_block::format::qcow2::create::{CreateError, CreateOptions};
use ringback_block::graph::{Graph, GraphError, NodeSpec};
use ringback_block::protocol::create_file;
use ringback_block::request::Preallocation;
use ringback_ring::file::Cache;
use ringback_ring::shards::Config;
use ringback_ring::{Shard, Shards};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::run;
use ringback_tests::scratch::Scratch;

/// As qemu-img takes them.
fn words(options: &CreateOptions) -> String {
    let on = |is_on: bool| if is_on { "on" } else { "off" };
    let mut words = vec![
        format!("compat=v{}", options.version),
        format!("cluster_size={}", options.cluster_size),
        format!("refcount_bits={}", options.refcount_bits),
        format!("lazy_refcounts={}", on(options.lazy_refcounts)),
        format!("extended_l2={}", on(options.extended_l2)),
        format!("data_file_raw={}", on(options.data_file_raw)),
        format!("preallocation={}", options.preallocation.name()),
    ];
    if options.compression == Compression::Zstd {
        words.push("compression_type=zstd".into());
    }
    words.extend(
        options
            .data_file
            .iter()
            .map(|name| format!("data_file={name}")),
    );
    words.extend(
        options
            .backing_file
            .iter()
            .map(|name| format!("backing_file={name}")),
    );
    words.extend(
        options
            .backing_format
            .iter()
            .map(|name| format!("backing_fmt={name}")),
    );
    words.join(",")
}

fn qemu_creates(directory: &Path, options: &CreateOptions) -> Result<(), String> {
    let finished = run(Command::new("qemu-img")
        .args([
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-o",
            &words(options),
            "disk",
        ])
        .arg(options.size.to_string())
        .current_dir(directory));
    if finished.status.success() {
        return Ok(());
    }
    Err(finished.stderr.trim().replace("qemu-img: disk: ", ""))
}

async fn create(
    shard: &Shard,
    directory: &Path,
    options: &CreateOptions,
) -> Result<(), GraphError> {
    let mut graph = Graph::new();
    let mut nodes = vec!["disk".to_owned()];
    nodes.extend(options.data_file.clone());
    for name in &nodes {
        let path = directory.join(name);
        create_file(shard, path.clone(), 0, Preallocation::Off)
            .await
            .expect("a file");
        let spec = NodeSpec::File {
            path,
            write: true,
            cache: Cache::Buffered,
            discard: true,
        };
        graph.add(shard, name, spec).await?;
    }
    let data_file = options.data_file.as_deref();
    graph
        .create_qcow2(shard, "disk", data_file, options)
        .await?;
    for name in &nodes {
        graph.remove(shard, name).await?;
    }
    Ok(())
}

/// A directory without files. A program that is being started by another test of
/// this process may still hold the locks of a file that was open when it began, so
/// none is made anew.
fn empty(scratch: &Scratch, name: &str) -> PathBuf {
    // There may be none yet.
    let _ = std::fs::remove_dir_all(scratch.join(name));
    scratch.directory(name)
}

/// Makes both; answers where they are.
fn both(shards: &Shards, scratch: &Scratch, options: &CreateOptions) -> (PathBuf, PathBuf) {
    let (theirs, ours) = (empty(scratch, "theirs"), empty(scratch, "ours"));
    qemu_creates(&theirs, options).unwrap_or_else(|error| panic!("{options:?}: {error}"));
    let (place, wanted) = (ours.clone(), options.clone());
    shards
        .spawn_on(0, move |shard| async move {
            create(&shard, &place, &wanted).await
        })
        .wait()
        .expect("it ends")
        .unwrap_or_else(|error| panic!("{options:?}: {error}"));
    (theirs, ours)
}

fn start() -> Shards {
    Shards::start(&Config {
        count: 1,
        arena_bytes: 32 << 20,
        ..Config::default()
    })
    .expect("shards start")
}

fn assert_same_bytes(shards: &Shards, options: &CreateOptions) {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let (theirs, ours) = both(shards, &scratch, options);
    for name in ["disk", "data"] {
        let read = |directory: &Path| std::fs::read(directory.join(name)).unwrap_or_default();
        let (theirs, ours) = (read(&theirs), read(&ours));
        let differs = theirs.iter().zip(&ours).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{name}: a byte of {options:?}");
        assert_eq!(
            theirs.len(),
            ours.len(),
            "{name}: the length of {options:?}"
        );
    }
}

fn check_is_clean(directory: &Path, options: &CreateOptions) {
    let check = run(Command::new("qemu-img")
        .args(["check", "-f", "qcow2", "disk"])
        .current_dir(directory));
    assert!(check.status.success(), "{options:?}: {check:?}");
}

#[test]
fn new_images_are_those_of_qemu_byte_by_byte() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let shards = start();
    for size in [0, 512, 66_048, 64 << 20, (1 << 40) + 512] {
        for cluster_size in [512, 4096, 65_536, 1 << 21] {
            if size > 1 << 30 && cluster_size == 512 {
                continue;
            }
            let options = CreateOptions {
                cluster_size,
                ..CreateOptions::new(size)
            };
            assert_same_bytes(&shards, &options);
        }
    }
    let usual = CreateOptions::new(10 << 20);
    let some = |text: &str| Some(text.to_owned());
    let mut all = Vec::new();
    for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
        all.push(CreateOptions {
            refcount_bits,
            cluster_size: 512,
            ..usual.clone()
        });
    }
    all.extend([
        CreateOptions {
            version: 2,
            ..usual.clone()
        },
        CreateOptions {
            version: 2,
            backing_file: some("base"),
            backing_format: some("raw"),
            ..usual.clone()
        },
        CreateOptions {
            lazy_refcounts: true,
            compression: Compression::Zstd,
            ..usual.clone()
        },
        CreateOptions {
            extended_l2: true,
            backing_file: some("some/where/else.img"),
            backing_format: some("qcow2"),
            ..usual.clone()
        },
        CreateOptions {
            extended_l2: true,
            cluster_size: 16_384,
            size: 1 << 34,
            ..usual.clone()
        },
        CreateOptions {
            data_file: some("data"),
            size: 66_048,
            ..usual.clone()
        },
        CreateOptions {
            data_file: some("data"),
            data_file_raw: true,
            size: 66_048,
            ..usual.clone()
        },
        CreateOptions {
            data_file: some("data"),
            backing_file: some("base"),
            backing_format: some("raw"),
            cluster_size: 4096,
            ..usual.clone()
        },
        // A refcount block for the L1 table, which lies behind it, and one for
        // that block.
        CreateOptions {
            cluster_size: 512,
            size: 1 << 30,
            ..usual.clone()
        },
        // Metadata only: no byte depends on the order in which space is taken.
        CreateOptions {
            preallocation: Preallocation::Metadata,
            size: 66_048,
            ..usual.clone()
        },
        CreateOptions {
            preallocation: Preallocation::Metadata,
            cluster_size: 512,
            size: 1 << 20,
            ..usual.clone()
        },
        CreateOptions {
            preallocation: Preallocation::Metadata,
            extended_l2: true,
            size: 66_048,
            ..usual.clone()
        },
        CreateOptions {
            preallocation: Preallocation::Falloc,
            data_file: some("data"),
            size: 66_048,
            ..usual
        },
    ]);
    for options in &all {
        assert_same_bytes(&shards, options);
    }
    shards.stop();
}

/// Which guest bytes have a place in the file: start, end, and whether it is
/// here. Where exactly is nobody's business.
fn map(directory: &Path) -> Vec<(u64, u64, bool, bool)> {
    let text = run(Command::new("qemu-img")
        .args(["map", "--output=json", "-f", "qcow2", "disk"])
        .current_dir(directory))
    .succeeded()
    .stdout;
    let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut runs: Vec<(u64, u64, bool, bool)> = Vec::new();
    for extent in found.as_array().expect("a list") {
        let number = |name: &str| extent[name].as_u64().expect("a number");
        let start = number("start");
        let end = start + number("length");
        let (is_data, has_place) = (extent["data"] == true, extent.get("offset").is_some());
        match runs.last_mut() {
            Some(last) if (last.2, last.3) == (is_data, has_place) => last.1 = end,
            _ => runs.push((start, end, is_data, has_place)),
        }
    }
    runs
}

#[test]
fn reserved_space_is_where_qemu_reserves_it() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let shards = start();
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for (size, cluster_size, extended_l2) in [
            (66_048, 65_536, false),
            (66_048, 65_536, true),
            (9 << 20, 1 << 21, false),
            (300 << 10, 4096, false),
        ] {
            let options = CreateOptions {
                preallocation,
                cluster_size,
                extended_l2,
                ..CreateOptions::new(size)
            };
            let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
            let (theirs, ours) = both(&shards, &scratch, &options);
            check_is_clean(&ours, &options);
            assert_eq!(map(&theirs), map(&ours), "{options:?}");
            let file =
                |directory: &Path| std::fs::metadata(directory.join("disk")).expect("a disk");
            assert_eq!(file(&theirs).len(), file(&ours).len(), "{options:?}");
            if preallocation != Preallocation::Metadata {
                let allocated = ringback_tests::image::allocated(&ours.join("disk"));
                assert!(allocated >= size, "{allocated} for {options:?}");
            }
        }
    }
    shards.stop();
}

#[test]
fn what_cannot_be_is_refused_in_the_words_of_qemu() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let shards = start();
    let usual = CreateOptions::new(1 << 20);
    let some = |text: &str| Some(text.to_owned());
    let changes: [fn(&mut CreateOptions); 13] = [
        |options| options.cluster_size = 3000,
        |options| options.cluster_size = 256,
        |options| options.cluster_size = 4 << 20,
        |options| (options.version, options.extended_l2) = (2, true),
        |options| (options.version, options.lazy_refcounts) = (2, true),
        |options| options.refcount_bits = 3,
        |options| options.refcount_bits = 128,
        |options| (options.version, options.refcount_bits) = (2, 8),
        |options| options.data_file_raw = true,
        |options| (options.version, options.compression) = (2, Compression::Zstd),
        |options| (options.version, options.data_file) = (2, Some("data".into())),
        |options| (options.extended_l2, options.cluster_size) = (true, 4096),
        |options| options.backing_format = Some("raw".into()),
    ];
    let mut all = Vec::new();
    for (index, one) in changes.iter().enumerate() {
        for two in &changes[index..] {
            let mut options = usual.clone();
            one(&mut options);
            two(&mut options);
            all.push(options);
        }
    }
    let backed = CreateOptions {
        backing_file: some("base"),
        backing_format: some("raw"),
        ..usual
    };
    all.extend([
        CreateOptions {
            preallocation: Preallocation::Metadata,
            ..backed.clone()
        },
        CreateOptions {
            data_file: some("data"),
            data_file_raw: true,
            ..backed.clone()
        },
        CreateOptions {
            backing_file: Some("x".repeat(600)),
            cluster_size: 512,
            ..backed.clone()
        },
        CreateOptions {
            backing_file: Some("x".repeat(1024)),
            ..backed
        },
    ]);
    for options in all {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
        let theirs = qemu_creates(&empty(&scratch, "theirs"), &options);
        let Err(theirs) = theirs else {
            panic!("QEMU takes {options:?}");
        };
        let (place, wanted) = (empty(&scratch, "ours"), options.clone());
        let ours = shards
            .spawn_on(0, move |shard| async move {
                create(&shard, &place, &wanted).await
            })
            .wait()
            .expect("it ends");
        let ours = ours.expect_err("refused, too").to_string();
        assert_eq!(ours, theirs, "{options:?}");
    }
    shards.stop();
}

#[test]
fn disks_are_as_large_as_their_clusters_allow() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let shards = start();
    for (size, cluster_size) in [(128 << 30, 512), (1 << 51, 65_536)] {
        for size in [size, size + 512] {
            let options = CreateOptions {
                cluster_size,
                ..CreateOptions::new(size)
            };
            let place = empty(&scratch, "large");
            let result = shards
                .spawn_on(0, move |shard| async move {
                    create(&shard, &place, &options).await
                })
                .wait()
                .expect("it ends");
            let is_too_large = matches!(
                &result,
                Err(GraphError::CreateQcow2(error)) if error.is_too_large()
            );
            assert_eq!(is_too_large, !size.is_power_of_two(), "{size}: {result:?}");
            match result {
                Ok(()) => {}
                Err(GraphError::CreateQcow2(error @ CreateError::Resize(_))) => assert_eq!(
                    error.to_string(),
                    "Could not resize image: Failed to grow the L1 table: File too large"
                ),
                Err(error) => panic!("{error}"),
            }
        }
    }
    shards.stop();
}
