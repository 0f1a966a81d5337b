//! What is refused, in which order, and where that is said.

use crate::beside::Beside;

fn each(lines: &str) {
    if let Some(beside) = Beside::new() {
        beside.agree_on_each(lines);
    }
}

#[test]
fn by_the_dispatcher() {
    each(
        "foo
          READ 0 1
          read\t0 512
          r
          read 0
          length x
          truncate 1 2 3 4
          zone_append 0 1
          break a
          help a b
          sleep
          quit 1 2 3
          map x
          info x
          aio_flush x
          flush x
          close x
          abort x
          wait_break
          resume a b",
    );
}

#[test]
fn of_read() {
    each(
        "read -x 0 1
          read -a 0 1
          read --foo 0 1
          read -P
          read 0 1 -P
          read - 0
          read 0 1 2
          read -q 0
          read -C -q
          read -s 1 0 1
          read -l 1 0 1
          read -l 1 x 1
          read -P 0 -s 1 -l 10 0 10
          read -P 0 -s 11 0 10
          read -P 0 -l 11 0 10
          read x y
          read 0 y
          read 0 2147483137
          read 0 3G
          read 0 2147483136
          read 1M 1
          read 1048577 0
          read 9223372036854775807 1
          read -b 100 512
          read -b 0 100
          read -b 0 512
          read -b -r 0 512
          read -b -r 1 512
          readv 0
          readv -s 0 0 1
          readv 0 3G
          readv 0 1.5G 1.5G
          readv 0 1M x
          readv x 3G
          readv 1M 1 1
          readv -x 0 1",
    );
}

#[test]
fn of_write() {
    each(
        "write -x 0 1
          write 0 -q
          write 0 1 2
          write -b -z 0 x
          write -f -c 0 x
          write -f -b 0 x
          write -n 0 x
          write -u 0 x
          write -z -P 1 0 x
          write -P 1 -s pattern 0 x
          write -z -s pattern 0 x
          write -b -c -z -u
          write x y
          write 0 2147483137
          write -z 0 2147483137
          write 1M 1
          write 1048577 0
          write -z 1M 1
          write -z 1048577 0
          write -b 100 512
          write -b 0 1
          write -b 0 512
          write -c 0 512
          write -c 0 513
          write -c 512 512
          write -z -r 0 1
          write -s nothing 0 512
          write -s nothing 0 0
          write -s empty 0 512
          write -s pattern 0 0
          write -s . 0 512
          write -s nothing 2M 512
          writev -v 0 1
          writev 0
          writev 0 3G
          writev 0 1.5G 1.5G
          writev 1M 1
          writev -z 0 1",
    );
}

#[test]
fn of_what_runs_beside() {
    each(
        "aio_read -x 0 1
          aio_read 0 -q
          aio_read 0 3G
          aio_read x 1
          aio_read 1M 1
          aio_read -i -x
          aio_read -x -i
          aio_write -x 0 1
          aio_write -i -x
          aio_write -z 0 512 512
          aio_write -z -u -r 0 x
          aio_write -u 0 x
          aio_write -z -r 0 x
          aio_write 0 3G
          aio_write 1M 1
          aio_write -z 1M 1
          aio_write -z 0 x",
    );
}

#[test]
fn of_the_rest() {
    each(
        "discard 0 3G
          discard -x 0 1
          discard 0 -q
          discard 1M 1
          discard 1048577 0
          discard x 1
          alloc x
          alloc 0 x
          alloc 0 9E
          truncate x
          truncate -m foo 1
          truncate -m off
          truncate -m off x
          truncate x -m off
          truncate -x 1
          open b
          reopen foo
          reopen -x
          reopen -c bogus
          reopen -r -w
          reopen -r -r
          reopen -r -o read-only=on
          reopen -c none -o cache.direct=on
          reopen -c none -o cache.no-flush=on
          reopen -o driver=qcow2
          reopen -o foo=bar
          reopen -o foo
          reopen -o =x
          help nothing
          break a b
          resume a
          remove_break b",
    );
}

#[test]
fn of_zones() {
    each(
        "zone_report 0 1
          zone_report -1 1
          zone_report 1 x
          zrp 0 4294967296
          zone_open 0 1
          zone_open x 1
          zone_open 1 x
          zone_close 0 3E
          zone_finish 2M 1
          zone_reset 1M 0
          zone_append x 1 1
          zone_append -p x 1
          zone_append -x 1 x
          zone_append -p -p 1
          zone_append -p 0 512
          zone_append 0 1 513
          zone_append -p 0 3G",
    );
}

#[test]
fn without_an_image() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on_session(
        &[],
        "length
         read
         aio_flush
         close
         reopen
         foo
         open
         open -x
         open -o
         open a b
         open -r
         open -t bogus a.img
         open -i foo
         open -d foo
         open nothing
         open -f raw a.img
         open -r -C a.img
         open -U a.img
         open -k -o driver=raw a.img
         sleep 1
         sigraise 0",
    );
}

#[test]
fn on_an_image_for_reading_only() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on_session(
        &["-f", "raw", "-r", "a.img"],
        "write 0 1
         write -x 0
         writev 0 1
         aio_write 0 1
         discard 0 1
         truncate x
         truncate
         write 0
         read -q 0 512
         flush
         zone_open 0 1
         reopen -o read-only=off
         write 0 1
         reopen -w
         write 0 512
         reopen -r
         write 0 512
         reopen -o read-only=on
         length",
    );
}
