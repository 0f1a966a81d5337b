//! What goes well: reports, dumps, patterns, and the bytes afterwards.

use crate::beside::Beside;

fn each(lines: &str) {
    if let Some(beside) = Beside::new() {
        beside.agree_on_each(lines);
    }
}

#[test]
fn reading() {
    each(
        "read 0 512
          r 0 1
          read 1M 0
          read 0 0
          read -C 0 512
          read -q 0 512
          read -q -v -C 0 512
          read -C -v 0 16
          read -v 65530 40
          read -v 0 33
          read -v 0 0
          read -p -r 0 512
          read 0 512 -v
          read -vq 0 16
          read 64k 64k
          read -- 0 512
          readv 0 512 512
          readv -v 64k 5 6 7
          readv -C 0 1
          readv -q -v 0 1
          readv 0 0 0",
    );
}

#[test]
fn patterns() {
    each(
        "read -P 0 0 512
          read -P 7 256k 4096
          read -P 7 256k 4097
          read -P 1 0 10
          read -q -P 1 0 10
          read -C -P 1 0 10
          read -v -P 1 0 10
          read -P 7 -s 10 262134 20
          read -P 7 -s 9 262134 20
          read -P 0 -l 10 262134 20
          read -P 0 -s 5 -l 5 262134 20
          read -P 0 -s 5 -l 6 262134 20
          read -P 1 -l 0 0 10
          read -P 1 -s 10 0 10
          read -P 1 0 0
          readv -P 7 256k 1k 1k
          readv -P 8 256k 1k 1k
          readv -q -P 8 256k 1k 1k
          read -P 0x7 256k 4k",
    );
}

#[test]
fn writing() {
    each(
        "write 0 512
          w 1 1
          write -P 9 100 1000
          write 64k 64k
          write 0 0
          write 1M 0
          write -C 0 512
          write -q 0 512
          write -f -r -p 512 512
          write -s pattern 1000 100
          write -s pattern 2000 5
          write -q -s pattern 0 13
          writev 3k 1 2 3
          writev -P 5 -f 4k 512 512
          writev -C 5k 512
          writev -q 5k 512
          writev -r 0 0
          write 1048575 1",
    );
}

#[test]
fn zeroes_and_discards() {
    each(
        "write -z 64k 4k
          write -zu 70k 4k
          write -z -f 80k 100
          write -z 90001 1001
          write -z 0 0
          write -z 1M 0
          write -c -z 0 512
          write -z -C 0 512
          write -z -q 0 512
          discard 100k 8k
          discard 110001 5001
          d 0 0
          discard -C 0 512
          discard -q 0 512
          discard 0 1M",
    );
}

#[test]
fn beside_the_commands() {
    each(
        "aio_read 0 512
          aio_read -v 64k 20
          aio_read -C 0 512
          aio_read -q -v 0 512
          aio_read -P 1 0 512
          aio_read -q -P 1 0 512
          aio_read 0 1 2
          aio_read -i 0 512
          aio_write 0 512
          aio_write -P 3 1k 512 512
          aio_write -f -C 2k 512
          aio_write -q 3k 512
          aio_write -z 64k 4k
          aio_write -zu 70k 4k
          aio_write -z -P 1 72k 4k
          aio_write -i 0 512",
    );
}

#[test]
fn many_beside_each_other() {
    let Some(beside) = Beside::new() else { return };
    let mut words = vec!["-f", "raw", "-t", "unsafe", "a.img"];
    let lines: Vec<String> = (0..64)
        .map(|n| format!("aio_write -q -P {n} {}k 4k", 4 * n))
        .collect();
    for line in &lines {
        words.extend(["-c", line]);
    }
    words.extend(["-c", "aio_flush", "-c", "read -v 0 256k"]);
    beside.agree_on(&words, "");
    beside.same_images();
}

/// Commands that went before are not undone by one that fails.
#[test]
fn one_failure_makes_the_end_a_failure() {
    let Some(beside) = Beside::new() else { return };
    let words = ["-f", "raw", "a.img"];
    let good = ["-c", "write -P 1 0 512", "-c", "read -P 1 0 512"];
    beside.agree_on(&[&words[..], &good].concat(), "");
    let bad = ["-c", "read 2M 1", "-c", "write -P 2 0 512"];
    beside.agree_on(&[&words[..], &bad, &good].concat(), "");
    let quit = ["-c", "q 1", "-c", "read 2M 1"];
    beside.agree_on(&[&words[..], &good, &quit].concat(), "");
    beside.agree_on(&["-f", "raw", "a.img", "-c", "", "-c", "  "], "");
    beside.same_images();
}
