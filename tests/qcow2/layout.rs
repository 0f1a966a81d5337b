//! New images: the same bytes as QEMU makes, and the same refusals.

use std::fs;
use std::path::Path;
use std::process::Command;

use ringback_block::format::qcow2::Compression;
use ringback_block::format::qcow2::layout::{
    CreateError, CreateOptions, Layout, Preallocation, Version,
};
use ringback_tests::image::content;
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn on_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// The options in QEMU's syntax.
fn arguments(options: &CreateOptions) -> String {
    let mut text = format!(
        "compat={},cluster_size={},refcount_bits={},lazy_refcounts={},extended_l2={},\
         data_file_raw={},compression_type={},preallocation={},size={}",
        match options.version {
            Version::Two => "0.10",
            Version::Three => "1.1",
        },
        options.cluster_size,
        options.refcount_bits,
        on_off(options.lazy_refcounts),
        on_off(options.extended_l2),
        on_off(options.data_file_raw),
        match options.compression {
            Compression::Zlib => "zlib",
            Compression::Zstd => "zstd",
        },
        match options.preallocation {
            Preallocation::Off => "off",
            Preallocation::Metadata => "metadata",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        },
        options.size,
    );
    let names = [
        ("data_file", &options.data_file),
        ("backing_file", &options.backing_file),
    ];
    for (key, name) in names {
        if let Some(name) = name {
            text = format!("{text},{key}={}", String::from_utf8_lossy(name));
        }
    }
    if let Some(format) = &options.backing_format {
        text = format!("{text},backing_fmt={format}");
    }
    text
}

/// QEMU's image, or what it says about the options.
fn qemu(directory: &Path, options: &CreateOptions) -> Result<Vec<u8>, String> {
    let mut create = Command::new("qemu-img");
    create.current_dir(directory).args(["create", "-q", "-u"]);
    create.args(["-f", "qcow2", "-o", &arguments(options), "image"]);
    let output = create.output().expect("qemu-img runs");
    let image = directory.join("image");
    if output.status.success() {
        return Ok(content(&image));
    }
    let _ = fs::remove_file(image);
    let text = String::from_utf8_lossy(&output.stderr)
        .trim_end()
        .to_owned();
    let message = text.strip_prefix("qemu-img: image: ").map(str::to_owned);
    Err(message.unwrap_or(text))
}

fn ours(options: &CreateOptions) -> Result<Layout, String> {
    Layout::new(options).map_err(|error: CreateError| error.to_string())
}

/// Equal but for what lies in clusters that are not used, which is whatever was
/// there before.
#[track_caller]
fn assert_same(options: &CreateOptions, image: &Layout, qemu: &[u8]) {
    assert_eq!(image.file_size(), qemu.len() as u64, "{options:?}");
    for piece in &image.pieces {
        let start = usize::try_from(piece.offset).expect("small");
        let found = &qemu[start..start + piece.bytes.len()];
        assert!(found == piece.bytes, "at {start:#x}: {options:?}");
    }
}

#[track_caller]
fn compare(scratch: &Scratch, options: &CreateOptions) {
    match (ours(options), qemu(scratch.path(), options)) {
        (Ok(image), Ok(qemu)) => assert_same(options, &image, &qemu),
        (ours, theirs) => assert_eq!(
            ours.map(|_| ()),
            theirs.map(|_| ()),
            "{options:?}: {}",
            arguments(options)
        ),
    }
}

fn sized(cluster_size: u64, size: u64) -> CreateOptions {
    CreateOptions {
        cluster_size,
        ..CreateOptions::new(size)
    }
}

#[test]
fn images_of_all_sizes_have_the_bytes_of_qemus() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let sizes = [
        0,
        512,
        64 * MIB,
        (2 * GIB) + 512,
        1 << 40,
        1 << 51,
        (1 << 51) + 512,
        1 << 61,
    ];
    for cluster_size in [512, 1024, 4096, 8192, 65_536, 2 * MIB] {
        for size in sizes {
            compare(&scratch, &sized(cluster_size, size));
        }
    }
}

/// A long L1 table of small clusters needs more refcounts than the first table
/// holds: at 1 bit a block covers much, at 64 bits little. The largest disks
/// take QEMU minutes.
#[test]
fn the_refcount_table_moves_where_qemu_moves_it() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
        for (cluster_size, size) in [
            (512, 2 * GIB),
            (512, 9 * GIB),
            (1024, 60 * GIB),
            (4096, 1 << 43),
        ] {
            let options = CreateOptions {
                refcount_bits,
                ..sized(cluster_size, size)
            };
            compare(&scratch, &options);
        }
    }
    let far = Layout::new(&CreateOptions {
        refcount_bits: 64,
        ..sized(512, 9 * GIB)
    });
    let header = far.expect("possible").header;
    assert!(
        header.refcount_table_offset > header.l1_offset,
        "it has moved"
    );
}

#[test]
fn images_of_all_kinds_have_the_bytes_of_qemus() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    for version in [Version::Two, Version::Three] {
        for cluster_size in [4096, 65_536] {
            for flags in 0..32 {
                let is_set = |bit: u32| flags >> bit & 1 != 0;
                let options = CreateOptions {
                    version,
                    lazy_refcounts: is_set(0),
                    extended_l2: is_set(1),
                    data_file: is_set(2).then(|| b"data.raw".to_vec()),
                    backing_file: is_set(3).then(|| b"some/where/base.qcow2".to_vec()),
                    backing_format: is_set(3).then(|| "qcow2".to_owned()),
                    compression: if is_set(4) {
                        Compression::Zstd
                    } else {
                        Compression::Zlib
                    },
                    ..sized(cluster_size, 64 * MIB)
                };
                compare(&scratch, &options);
            }
        }
    }
}

/// Of several mistakes the same one is told, in the same words.
#[test]
fn refusals_are_qemus() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let mistakes: &[fn(&mut CreateOptions)] = &[
        |options| options.version = Version::Two,
        |options| options.extended_l2 = true,
        |options| options.cluster_size = 3000,
        |options| options.cluster_size = 8192,
        |options| options.preallocation = Preallocation::Metadata,
        |options| options.backing_file = Some(b"base.raw".to_vec()),
        |options| options.backing_format = Some("raw".into()),
        |options| options.lazy_refcounts = true,
        |options| options.refcount_bits = 3,
        |options| options.refcount_bits = 8,
        |options| options.data_file = Some(b"data.raw".to_vec()),
        |options| options.data_file_raw = true,
        |options| options.compression = Compression::Zstd,
        |options| options.size = (1 << 63) - 512,
        |options| options.size = 1 << 61,
        |options| options.backing_file = Some(vec![b'x'; 1024]),
    ];
    let mut refused = 0;
    for (at, first) in mistakes.iter().enumerate() {
        for second in &mistakes[at..] {
            for version in [Version::Two, Version::Three] {
                let mut options = CreateOptions {
                    version,
                    ..sized(65_536, 64 * MIB)
                };
                first(&mut options);
                second(&mut options);
                if options.backing_file.is_some() {
                    // Without, qemu-img itself would ask for it.
                    options.backing_format = Some("raw".into());
                }
                let is_made = ours(&options).is_ok();
                refused += u32::from(!is_made);
                // What is preallocated is not laid out here.
                let is_more = options.effective_preallocation() != Preallocation::Off;
                if !(is_made && is_more) {
                    compare(&scratch, &options);
                }
            }
        }
    }
    assert!(refused > 100, "{refused} refusals");
}
