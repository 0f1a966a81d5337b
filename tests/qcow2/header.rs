//! Headers: of every damage ringback says what QEMU says, and it writes a
//! header as QEMU writes it.

use std::path::Path;
use std::process::Command;

use ringback_block::format::qcow2::header::{COMPATIBLE_LAZY_REFCOUNTS, Header, OpenMode};
use ringback_tests::image::{content, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::run;
use ringback_tests::scratch::Scratch;

const CLUSTER: usize = 65_536;
const LUKS: u32 = 0x0537_be77;
const NAMES: u32 = 0x6803_f857;
const FORMAT: u32 = 0xe279_2aca;
const BITMAPS: u32 = 0x2385_2875;

/// What is changed in a good header.
type Patch = (usize, Vec<u8>);

fn word(offset: usize, value: u64) -> Patch {
    (offset, value.to_be_bytes().to_vec())
}

fn half(offset: usize, value: u32) -> Patch {
    (offset, value.to_be_bytes().to_vec())
}

/// The extensions of a header of version 3, and the end mark.
fn extensions(list: &[(u32, &[u8])]) -> Patch {
    let mut bytes = Vec::new();
    for (kind, content) in list {
        let len = u32::try_from(content.len()).expect("short");
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend_from_slice(&[0; 8]);
    (112, bytes)
}

fn feature(bit: u8, name: &str) -> Vec<u8> {
    let mut entry = vec![0, bit];
    entry.extend_from_slice(name.as_bytes());
    entry.resize(48, 0);
    entry
}

/// A bitmaps extension: count, reserved, size, offset.
fn bitmaps(count: u32, reserved: u32, size: u64, offset: u64) -> Vec<u8> {
    let mut content = [count, reserved].map(u32::to_be_bytes).concat();
    content.extend_from_slice(&[size, offset].map(u64::to_be_bytes).concat());
    content
}

fn create(image: &Path, options: &str) {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-o", options]);
    run(create.arg(image).arg("64M")).succeeded();
}

/// Why QEMU does not open an image. None: it does.
fn qemu_verdict(image: &Path, mode: OpenMode) -> Option<String> {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "qcow2", "-c", "length"]);
    if mode == OpenMode::ReadOnly {
        qemu_io.arg("-r");
    }
    let output = qemu_io.arg(image).output().expect("qemu-io runs");
    if output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let prefix = format!("qemu-io: can't open device {}: ", image.display());
    let start = text.find(&prefix).expect("a message");
    Some(text[start + prefix.len()..].trim_end().to_owned())
}

fn our_verdict(image: &Path, mode: OpenMode) -> Option<String> {
    let mut cluster = content(image);
    let verdict = Header::peek_cluster_size(&cluster).and_then(|size| {
        cluster.resize(usize::try_from(size).expect("at most 2 MiB"), 0);
        Header::parse(&cluster, mode)
    });
    verdict.err().map(|error| error.to_string())
}

#[track_caller]
fn compare(scratch: &Scratch, options: &str, patches: &[Patch]) {
    let image = scratch.join("damaged.qcow2");
    for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
        create(&image, options);
        for (offset, bytes) in patches {
            write_at(&image, *offset as u64, bytes);
        }
        // First ours: QEMU may change what it opens.
        let ours = our_verdict(&image, mode);
        assert_eq!(ours, qemu_verdict(&image, mode), "{mode:?}: {patches:x?}");
    }
}

#[test]
fn damaged_fields_are_told_in_the_words_of_qemu() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let cases: Vec<Vec<Patch>> = vec![
        vec![half(0, 0)],
        vec![half(4, 1)],
        vec![half(4, 4)],
        vec![half(20, 8)],
        vec![half(20, 22)],
        vec![half(20, u32::MAX)],
        vec![half(100, 103)],
        vec![half(100, 65_536)],
        vec![half(100, 65_537)],
        vec![half(100, 65_532)],
        vec![half(100, 105), (104, vec![7])],
        vec![word(8, 65_536), half(16, 0)],
        vec![word(8, 65_536), half(16, 1)],
        vec![word(8, 65_537)],
        vec![word(8, 50), half(16, 1_024)],
        vec![word(8, 500)],
        vec![word(8, 116)],
        vec![(104, vec![2])],
        vec![(104, vec![1])],
        vec![word(72, 8)],
        vec![half(100, 104), (104, vec![9]), extensions(&[])],
        vec![word(72, 2)],
        vec![word(72, 0x20)],
        vec![half(96, 7)],
        vec![half(96, 7), half(56, 0)],
        vec![half(56, 0)],
        vec![half(56, 129)],
        vec![word(48, 512)],
        vec![word(48, 1 << 63)],
        vec![word(48, (1 << 63) - 65_536)],
        vec![half(60, 65_537)],
        vec![word(64, 512)],
        vec![half(60, 65_536), word(64, (1 << 63) - 65_536)],
        vec![half(36, 4_194_305)],
        vec![word(40, 512)],
        vec![half(36, 4_194_304), word(40, (1 << 63) - 65_536)],
        vec![half(36, 0)],
        vec![word(24, 512 << 20)],
        vec![word(24, (512 << 20) + 1)],
        vec![word(24, 1 << 63)],
        vec![word(24, u64::MAX)],
        vec![word(24, 0_u64.wrapping_sub(512 << 20))],
        vec![word(24, 0_u64.wrapping_sub(512 << 20) + 1)],
        vec![half(32, 3)],
        vec![half(32, 2)],
    ];
    for patches in cases {
        compare(&scratch, "cluster_size=64k", &patches);
    }
    let small = "cluster_size=8k";
    compare(&scratch, small, &[word(72, 0x10)]);
    compare(&scratch, "compat=0.10", &[word(72, 0x7fff)]);
}

#[test]
fn damaged_extensions_are_told_in_the_words_of_qemu() {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let two_words = |a: u64, b: u64| [a, b].map(u64::to_be_bytes).concat();
    let autoclear = word(88, 1);
    let with_bitmaps =
        |content: Vec<u8>| vec![autoclear.clone(), extensions(&[(BITMAPS, &content)])];
    let cases: Vec<Vec<Patch>> = vec![
        vec![half(112, 7), half(116, 1_000_000)],
        vec![half(112, 0), half(116, 1_000_000)],
        vec![extensions(&[(FORMAT, &[b'x'; 15])])],
        vec![extensions(&[(FORMAT, &[b'x'; 16])])],
        vec![extensions(&[(LUKS, &two_words(65_536, 512))])],
        vec![half(32, 2), extensions(&[(LUKS, &[0; 8])])],
        vec![half(32, 2), extensions(&[(LUKS, &two_words(512, 512))])],
        vec![half(32, 2), half(112, 7), half(116, 1_000_000)],
        vec![half(32, 3), half(112, 7), half(116, 1_000_000)],
        vec![extensions(&[(BITMAPS, &[0; 16])])],
        with_bitmaps(vec![0; 23]),
        with_bitmaps(bitmaps(70_000, 1, u64::MAX, 1)),
        with_bitmaps(bitmaps(70_000, 0, u64::MAX, 1)),
        with_bitmaps(bitmaps(0, 0, u64::MAX, 1)),
        with_bitmaps(bitmaps(1, 0, u64::MAX, 1)),
        with_bitmaps(bitmaps(1, 0, 67_107_841, 0)),
        // Stale: not looked at.
        vec![extensions(&[(BITMAPS, &bitmaps(70_000, 1, u64::MAX, 1))])],
        // Names of features: the last table counts, its last entry may be cut,
        // and what is behind a bad extension is not read.
        vec![
            word(72, 0x60),
            extensions(&[(NAMES, &feature(5, "one")), (NAMES, &feature(6, "two"))]),
        ],
        vec![
            word(72, 0x60),
            extensions(&[(NAMES, &[&feature(5, "one")[..], b"\0\x06cut"].concat())]),
        ],
        vec![
            word(72, 0x20),
            extensions(&[(
                NAMES,
                &[feature(5, "one"), feature(5, "two"), feature(0, "dirt")].concat(),
            )]),
        ],
        vec![
            word(72, 0x61),
            extensions(&[(
                NAMES,
                &[feature(0, "dirt"), feature(5, ""), feature(5, "five")].concat(),
            )]),
        ],
        vec![
            word(72, 0x20),
            extensions(&[(FORMAT, &[b'x'; 20]), (NAMES, &feature(5, "one"))]),
        ],
        vec![
            word(72, 0x20),
            extensions(&[(NAMES, &feature(5, &"long".repeat(20)[..46]))]),
        ],
    ];
    for patches in cases {
        compare(&scratch, "cluster_size=64k", &patches);
    }
}

/// What a header becomes when one bit of it is changed by QEMU, and by us.
#[test]
fn a_header_is_rewritten_as_qemu_does_it() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let image = scratch.join("image.qcow2");
    let strange: &[(u32, &[u8])] = &[
        (7, b"seven"),
        (FORMAT, b"raw\0junk"),
        (8, b"eightfold"),
        (9, b""),
    ];
    let mut with_future = extensions(strange);
    with_future.0 = 120;
    let mut older = extensions(strange);
    older.0 = 104;
    let name = |bytes: &[u8]| vec![word(8, 600), half(16, 8), (600, bytes.to_vec())];
    let cases: Vec<Vec<Patch>> = vec![
        vec![],
        vec![extensions(strange)],
        vec![half(100, 104), older],
        vec![
            half(100, 120),
            word(112, 0x1234_5678_9abc_def0),
            with_future,
        ],
        [name(b"base.raw"), vec![extensions(strange)]].concat(),
        [name(b"base\0raw"), vec![extensions(&[])]].concat(),
        // Bits of the future, and a size that is no multiple of 512.
        vec![word(80, 1 << 40), word(24, 1_000_000)],
        // The name of a data file that the image has not.
        vec![extensions(&[(0x4441_5441, b"data")])],
        vec![extensions(&[(BITMAPS, &[0; 24])])],
    ];
    std::fs::write(scratch.join("base.raw"), [0; 512]).expect("a backing file");
    std::fs::write(scratch.join("base"), [0; 512]).expect("a backing file");
    for options in ["cluster_size=64k", "cluster_size=4k"] {
        for patches in &cases {
            create(&image, options);
            for (offset, bytes) in patches {
                write_at(&image, *offset as u64, bytes);
            }
            let mut ours = content(&image);
            let size = Header::peek_cluster_size(&ours).expect("valid");
            ours.truncate(usize::try_from(size).expect("small"));
            let mut header = Header::parse(&ours, OpenMode::ReadWrite).expect("valid");
            header.compatible |= COMPATIBLE_LAZY_REFCOUNTS;
            let mut ours = header.serialize().expect("room");
            let mut amend = Command::new("qemu-img");
            amend.args(["amend", "-f", "qcow2", "-o", "lazy_refcounts=on"]);
            run(amend.arg(&image)).succeeded();
            let mut qemus = content(&image);
            qemus.truncate(usize::try_from(size).expect("small"));
            ours.resize(qemus.len().min(CLUSTER), 0);
            assert!(ours == qemus, "{options} {patches:x?}");
        }
    }
}
