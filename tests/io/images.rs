//! Opening, closing, and what an image tells about itself.

use ringback_tests::image::blank;

use crate::beside::{Beside, IMAGE_BYTES};

#[test]
fn what_a_raw_image_tells() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on_each(
        "length
         info
         map
         alloc 0
         alloc 960k 1M
         alloc 2M
         alloc 0 0
         alloc 1.5k 0x10b
         a 3 1
         alloc 1024k 1
         flush
         f
         aio_flush
         close",
    );
}

#[test]
fn one_after_the_other() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on_session(
        &["-f", "raw", "-r", "a.img"],
        "length
         open a.img
         close
         close
         length
         open -o driver=raw a.img
         write -P 3 0 512
         info
         c
         open -o driver=file a.img
         info
         read -P 3 0 512
         close
         open -r a.img
         length
         write 0 1
         close
         open -o driver=raw -o offset=512 a.img
         length
         read -P 3 0 512
         close
         o -n -o driver=raw a.img
         write -P 4 100 5000
         read -P 4 100 5000
         close
         open -o foo a.img
         open -o driver=raw,foo=1 a.img
         open -o driver=bogus a.img
         open -d ignore -o driver=raw a.img
         discard 0 64k
         read -P 4 100 5000",
    );
}

#[test]
fn reopened() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on_session(
        &["-f", "raw", "a.img"],
        "write -P 1 0 512
         reopen -c none
         read -P 1 0 512
         write -P 2 1 512
         reopen -c writeback
         read -P 2 1 512
         reopen -o cache.direct=on
         reopen -o driver=raw
         reopen -r
         write 0 1
         reopen -w
         write 0 512
         reopen -o foo=bar -c bogus
         reopen
         reopen
         reopen -o foo=bar -r -r
         reopen -o driver=raw
         length",
    );
}

/// A guest must not turn an image of unknown format into another format.
#[test]
fn a_probed_image_keeps_its_format() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on_session(
        &["a.img"],
        "write -s header 0 512
         write -s header 0 8
         write -s header 0 7
         write -P 3 7 1
         write -P 1 0 1
         write -P 3 7 1
         write -s header 512 512
         write -z 0 512
         writev -P 2 0 1 1
         read -v 0 16
         close
         open -o driver=raw a.img
         write -s header 0 8",
    );
    let words = ["-r", "a.img", "-c", "length"];
    // Now it is one, cut short: each says so in its own way.
    let finished = crate::beside::alone(&beside.own_directory(), &words, "");
    finished
        .failed_with(1)
        .saying("qemu-io: can't open device a.img: ");
}

#[test]
fn named_by_options() {
    let Some(beside) = Beside::new() else { return };
    for options in [
        "driver=raw,file.filename=a.img",
        "driver=raw,file.driver=file,file.filename=a.img",
        "driver=file,filename=a.img",
        "file.filename=a.img",
        "driver=raw,file.filename=a.img,offset=512,size=512",
        "driver=raw,file.filename=a.img,offset=512,size=513",
        "driver=raw,file.filename=a.img,offset=2M",
        "driver=raw,file.filename=a.img,offset=x",
        "driver=raw,file.filename=a.img,read-only=on",
        "driver=raw,file.filename=a.img,cache.direct=on",
        "driver=raw,file.filename=a.img,foo=1",
        "driver=raw,file.filename=a.img,file.foo=1",
        "driver=raw,file.filename=nothing",
        "driver=raw",
        "driver=file",
        "driver=bogus,file.filename=a.img",
        "a.img",
    ] {
        let words = ["--image-opts", options, "-c", "length", "-c", "info"];
        beside.agree_on(&words, "");
    }
    beside.agree_on_session(
        &["--image-opts", "driver=raw,file.filename=a.img"],
        "length
         close
         open -o driver=raw a
         open a b
         open driver=raw,file.filename=a.img
         info",
    );
}

#[test]
fn an_image_of_nothing() {
    let Some(beside) = Beside::new() else { return };
    for name in ["qemu", "ringback"] {
        blank(&beside.join(name).join("a.img"), 0);
    }
    beside.agree_on_each(
        "length
         map
         read 0 0
         read 0 1
         alloc 0
         info",
    );
    assert_ne!(IMAGE_BYTES, 0);
}
