//! `ringback io` on exports, beside `qemu-io`.

use ringback_tests::image::{blank, content};
use ringback_tests::needs::needs;

use crate::{NBDKIT, QEMU, Server, assert_same, io, program, qemu_io, scratch};

const MIB: u64 = 1 << 20;

/// Lines without times and rates.
fn lines(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.contains("ops/sec"));
    lines.filter(|line| !line.contains("ops; ")).collect()
}

/// Both shells say the same to the same commands, each on a disk of its own, and
/// leave the same bytes.
fn beside(words: &[&str], commands: &[&str]) {
    let scratch = scratch();
    let mut told = Vec::new();
    let mut disks = Vec::new();
    for name in ["ours", "theirs"] {
        let directory = scratch.directory(name);
        let disk = directory.join("disk.raw");
        blank(&disk, 4 * MIB);
        program(
            &directory,
            &[
                "qemu-io",
                "-f",
                "raw",
                "-c",
                "write -P 9 1M 64k",
                "disk.raw",
            ],
        );
        let server = Server::qemu_nbd(&directory, &[words, &["-f", "raw", "disk.raw"]].concat());
        let format = ["-f", "raw"];
        let finished = match name {
            "ours" => io(&server.url(""), &format, commands),
            _ => qemu_io(&server.url(""), &format, commands),
        };
        let directory = directory.display().to_string();
        told.push((
            finished.stdout.replace(&directory, ""),
            finished.stderr.replace(&directory, ""),
            finished.status.code(),
        ));
        drop(server);
        disks.push(content(&disk));
    }
    let (ours, theirs) = (&told[0], &told[1]);
    assert_eq!(lines(&ours.0), lines(&theirs.0));
    assert_eq!((&ours.1, ours.2), (&theirs.1, theirs.2));
    assert!(disks[0] == disks[1], "the disks differ");
}

#[test]
fn the_same_words_do_the_same() {
    if !needs(QEMU) {
        return;
    }
    beside(
        &[],
        &[
            "read -P 9 1M 64k",
            "read -P 0 0 1M",
            "write -P 1 0 512",
            "write -P 2 1000 100",
            "write -P 3 -f 2M 1M",
            "read -v 1000 20",
            "write -z 2560k 64k",
            "write -zu 2700k 64k",
            "discard 1M 32k",
            "read -P 0 2560k 64k",
            "flush",
            "length",
            "map",
            "alloc 0 4M",
            "read 4M 1",
            "truncate 8M",
            "truncate 1M",
            "length",
            "aio_write -P 7 3M 64k",
            "aio_flush",
            "aio_read -P 7 3M 64k",
            "aio_flush",
            "info",
        ],
    );
}

#[test]
fn an_export_for_reading_only_says_so() {
    if !needs(QEMU) {
        return;
    }
    beside(&["-r"], &["write 0 512"]);
}

/// What a server explains stands below the error.
#[test]
fn an_export_that_there_is_not() {
    if !needs(QEMU) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    blank(&directory.join("disk.raw"), MIB);
    let server = Server::qemu_nbd(directory, &["-f", "raw", "-x", "e", "disk.raw"]);
    let format = ["-f", "raw"];
    for name in ["other", "a".repeat(4096).as_str()] {
        let ours = io(&server.url(name), &format, &["length"]);
        let theirs = qemu_io(&server.url(name), &format, &["length"]);
        assert!(theirs.stderr.contains("server reported"), "{theirs:?}");
        assert_eq!(ours.stderr, theirs.stderr);
        assert_eq!(ours.status.code(), theirs.status.code());
    }
}

/// Zeroes that a qcow2 image knows, holes and data, as the server tells of them.
#[test]
fn the_map_of_an_image_behind_a_server() {
    if !needs(QEMU) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    program(
        directory,
        &["qemu-img", "create", "-q", "-f", "qcow2", "i.qcow2", "64M"],
    );
    let write = "write -P 5 3M 1M";
    let zero = "write -z 10M 2M";
    program(directory, &["qemu-io", "-c", write, "-c", zero, "i.qcow2"]);
    let server = Server::qemu_nbd(directory, &["-f", "qcow2", "i.qcow2"]);
    let commands = ["map", "read -P 5 3M 1M", "read -P 0 4M 60M"];
    let format = ["-f", "raw"];
    let ours = io(&server.url(""), &format, &commands).succeeded();
    let theirs = qemu_io(&server.url(""), &format, &commands).succeeded();
    assert_eq!(lines(&ours.stdout), lines(&theirs.stdout));
}

/// A bitmap, seen as holes: what a tool does to find out what has changed.
#[test]
fn the_map_of_a_bitmap() {
    if !needs(QEMU) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    program(
        directory,
        &["qemu-img", "create", "-q", "-f", "qcow2", "i.qcow2", "8M"],
    );
    program(
        directory,
        &["qemu-img", "bitmap", "--add", "-g", "65536", "i.qcow2", "b"],
    );
    program(
        directory,
        &["qemu-io", "-c", "write -P 5 1M 100k", "i.qcow2"],
    );
    program(
        directory,
        &["qemu-img", "bitmap", "--disable", "i.qcow2", "b"],
    );
    let server = Server::qemu_nbd(directory, &["-f", "qcow2", "-B", "b", "i.qcow2"]);
    let socket = server.socket.display();
    let options = |bitmap: &str| {
        format!(
            "driver=nbd,server.type=unix,server.path={socket},\
             x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
        )
    };
    let words = ["--image-opts"];
    let ours = io(&options("b"), &words, &["map"]).succeeded();
    let theirs = qemu_io(&options("b"), &words, &["map"]).succeeded();
    assert_eq!(ours.stdout, theirs.stdout);
    assert!(ours.stdout.contains("not allocated"), "{}", ours.stdout);
    let finished = io(&options("c"), &words, &["map"]);
    finished
        .failed_with(1)
        .saying("Could not open image: Invalid argument");
}

/// Many requests at once to a server that takes its time.
#[test]
fn many_requests_beside_each_other() {
    if !needs(NBDKIT) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let server = Server::nbdkit(
        directory,
        &[
            "--filter=delay",
            "memory",
            "64M",
            "delay-write=5ms",
            "delay-read=5ms",
        ],
    );
    // None overlaps another.
    let mut commands: Vec<String> = (0..200)
        .map(|n| {
            let (value, start, len) = (n % 255 + 1, n * 300, 1000 + n * 997);
            format!("aio_write -q -P {value} {start}k {len}")
        })
        .collect();
    commands.push("aio_flush".into());
    commands.extend((0..50).map(|n| format!("aio_read -q {}k 64k", n * 1200)));
    commands.push("aio_flush".into());
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let format = ["-f", "raw"];
    let ours = io(&server.url(""), &format, &commands).succeeded();
    assert_eq!(ours.stderr, "");
    let plain = directory.join("plain.raw");
    blank(&plain, 64 * MIB);
    let plain = plain.to_str().expect("a plain path");
    qemu_io(plain, &format, &commands).succeeded();
    assert_same(plain, &server.url(""));
}

/// A server that refuses what is no multiple of its unit, or longer than it likes.
#[test]
fn units_and_limits_of_a_strict_server() {
    if !needs(NBDKIT) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let disk = directory.join("disk.raw");
    blank(&disk, 8 * MIB);
    let server = Server::nbdkit(
        directory,
        &[
            "--filter=blocksize-policy",
            "file",
            "disk.raw",
            "blocksize-error-policy=error",
            "blocksize-minimum=4096",
            "blocksize-preferred=4096",
            "blocksize-maximum=64k",
        ],
    );
    let commands = [
        "write -P 1 0 8M",
        "write -P 2 100 200",
        "write -P 3 4000 10000",
        "write -z 20000 5000",
        "write -P 4 1M 3M",
        "write -z 2M 100k",
        "discard 5M 100k",
        "discard 6000001 9000",
        "read -P 1 0 100",
        "read -P 2 100 200",
        "read -P 3 4001 9998",
        "read -P 0 20000 5000",
        "read -P 0 2M 100k",
        "read 0 8M",
        "map",
    ];
    let ours = io(&server.url(""), &["-f", "raw"], &commands).succeeded();
    assert_eq!(ours.stderr, "");
    let plain = directory.join("plain.raw");
    blank(&plain, 8 * MIB);
    let plain = plain.to_str().expect("a plain path");
    let writes = &commands[..6];
    qemu_io(plain, &["-f", "raw"], writes).succeeded();
    // Discards are hints; what they covered is written on both.
    let over = ["write -P 6 5M 200k", "write -P 6 5800k 200k"];
    qemu_io(plain, &["-f", "raw"], &over).succeeded();
    io(&server.url(""), &["-f", "raw"], &over).succeeded();
    assert_same(plain, disk.to_str().expect("a plain path"));
}

#[test]
fn errors_of_a_server_are_told() {
    if !needs(NBDKIT) {
        return;
    }
    let scratch = scratch();
    let words = [
        "--filter=error",
        "memory",
        "1M",
        "error=ENOSPC",
        "error-rate=100%",
    ];
    let server = Server::nbdkit(scratch.path(), &words);
    let commands = [
        "write 0 512",
        "read 0 512",
        "discard 0 512",
        "write -z 0 512",
    ];
    let url = server.url("");
    let options = ["-f", "raw"];
    let ours = io(&url, &options, &commands);
    let theirs = qemu_io(&url, &options, &commands);
    assert_eq!(ours.stdout, theirs.stdout);
    assert_eq!(ours.status.code(), theirs.status.code());
    assert!(ours.stdout.contains("No space left on device"), "{ours:#?}");
}

/// Whoever is not there, or has something else, is told in QEMU's words.
#[test]
fn exports_that_cannot_be_opened() {
    if !needs(QEMU) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    blank(&directory.join("disk.raw"), MIB);
    let server = Server::qemu_nbd(directory, &["-f", "raw", "-x", "named", "disk.raw"]);
    let socket = server.socket.display();
    for name in [
        server.url("other"),
        server.url(""),
        format!("nbd:unix:{socket}:exportname=other"),
        "nbd+unix:///?socket=/nowhere/at/all".into(),
        "nbd:127.0.0.1:1".into(),
        "nbd://[::1]:1/x".into(),
        "nbd:localhost".into(),
        "nbd:".into(),
        "nbd:host:port".into(),
        "nbd+unix:///y?a=b".into(),
    ] {
        let ours = io(&name, &["-f", "raw"], &["quit"]);
        let theirs = qemu_io(&name, &["-f", "raw"], &["quit"]);
        assert_eq!(ours.status.code(), theirs.status.code(), "{name}");
        assert_eq!(ours.stderr, theirs.stderr, "{name}");
    }
    let tls = format!("driver=nbd,path={socket},export=named,tls-creds=t");
    let ours = io(&tls, &["--image-opts"], &["quit"]).failed_with(1);
    let theirs = qemu_io(&tls, &["--image-opts"], &["quit"]);
    assert_eq!(ours.stderr, theirs.stderr);
}

/// An image of a format on an export, with another one behind it.
#[test]
fn a_chain_of_images_on_exports() {
    if !needs(QEMU) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    program(
        directory,
        &["qemu-img", "create", "-q", "-f", "raw", "base.raw", "8M"],
    );
    program(
        directory,
        &["qemu-io", "-f", "raw", "-c", "write -P 3 0 8M", "base.raw"],
    );
    let base = Server::qemu_nbd(directory, &["-f", "raw", "base.raw"]);
    let upper = scratch.directory("upper");
    let url = base.url("");
    program(
        &upper,
        &[
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", &url, "i.qcow2",
        ],
    );
    // Room for clusters that are to come.
    program(&upper, &["truncate", "-s", "16M", "i.qcow2"]);
    let image = Server::qemu_nbd(&upper, &["-f", "raw", "i.qcow2"]);
    let commands = [
        "write -P 4 1M 1M",
        "read -P 3 0 1M",
        "read -P 4 1M 1M",
        "map",
    ];
    io(&image.url(""), &["-f", "qcow2"], &commands).succeeded();
    drop(image);
    let image = upper.join("i.qcow2");
    program(&upper, &["qemu-img", "check", "-q", "i.qcow2"]);
    let path = image.to_str().expect("a plain path");
    let reads = ["read -P 3 0 1M", "read -P 4 1M 1M", "read -P 3 2M 6M"];
    qemu_io(path, &["-f", "qcow2"], &reads).succeeded();
}
