//! Commands made up from a seed; the files are compared afterwards.

use crate::beside::{Beside, IMAGE_BYTES};

struct Random {
    state: u64,
    /// Discards of part of a unit are hints that nobody has to take.
    discard_unit: u64,
}

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % limit
    }

    /// Mostly inside the image, sometimes at or behind its end.
    fn range(&mut self) -> (u64, u64) {
        let unit = [1, 512, 4096][usize::try_from(self.below(3)).expect("small")];
        let len = self.below(40 * 1024 / unit) * unit;
        let offset = self.below((IMAGE_BYTES + len) / unit) * unit;
        match self.below(10) {
            0 => (offset, len),
            1 => (IMAGE_BYTES.saturating_sub(len), len),
            _ => (offset.min(IMAGE_BYTES - len), len),
        }
    }

    fn command(&mut self) -> String {
        let ((offset, len), byte) = (self.range(), self.below(4));
        let style = ["", "-q ", "-C "][usize::try_from(self.below(3)).expect("small")];
        let part = self.below(len + 1);
        let rest = len - part;
        match self.below(14) {
            0 => format!("read {style}{offset} {len}"),
            1 => format!("read {style}-P {byte} {offset} {len}"),
            2 => format!("read -v {offset} {}", len % 200),
            3 => format!("read {style}-P {byte} -s {part} {offset} {len}"),
            4 => format!(
                "read {style}-P {byte} -s {part} -l {} {offset} {len}",
                rest / 2
            ),
            5 => format!("readv {style}-P {byte} {offset} {part} {rest}"),
            6 => format!("write {style}{offset} {len}"),
            7 => format!("write {style}-P {byte} {offset} {len}"),
            // A file for no bytes at all is an error on which qemu-io -m crashes.
            8 => format!("write {style}-s pattern {offset} {}", len.max(1)),
            9 => format!("write {style}-z {offset} {len}"),
            10 => format!("write {style}-z -u {offset} {len}"),
            11 => format!("writev {style}-P {byte} {offset} {part} {rest}"),
            12 => {
                let unit = self.discard_unit;
                let (offset, len) = (offset / unit * unit, len / unit * unit);
                format!("discard {style}{offset} {len}")
            }
            _ => format!("alloc {offset} {len}"),
        }
    }

    /// A request beside the commands, and the wait for it: nobody promises an
    /// order to two of them.
    fn beside(&mut self) -> [String; 2] {
        let ((offset, len), byte) = (self.range(), self.below(4));
        let command = match self.below(4) {
            0 => format!("aio_read -P {byte} {offset} {len}"),
            1 => format!("aio_write -z {offset} {len}"),
            2 => format!("aio_write -z -u {offset} {len}"),
            _ => format!("aio_write -P {byte} {offset} {len} {}", len % 7),
        };
        [command, "aio_flush".into()]
    }
}

fn session(seed: u64, options: &[&str]) {
    let Some(beside) = Beside::new() else { return };
    let is_direct = options.contains(&"-n") || options.contains(&"none");
    let mut random = Random {
        state: seed,
        discard_unit: if is_direct { 4096 } else { 1 },
    };
    let mut commands = Vec::new();
    while commands.len() < 150 {
        if random.below(8) == 0 {
            commands.extend(random.beside());
        } else {
            commands.push(random.command());
        }
    }
    let mut words = [&["-f", "raw", "a.img"], options].concat();
    for command in &commands {
        words.extend(["-c", command]);
    }
    beside.agree_on(&words, "");
    beside.same_images_after(&words);
}

#[test]
fn through_the_page_cache() {
    for seed in 0..6 {
        session(seed, &["-t", "unsafe"]);
    }
}

#[test]
fn each_write_flushed() {
    session(100, &[]);
}

#[test]
fn beside_the_page_cache() {
    for seed in 200..203 {
        session(seed, &["-t", "none"]);
    }
}

#[test]
fn beside_the_alignment() {
    for seed in 300..303 {
        session(seed, &["-m", "-n"]);
    }
    session(303, &["-m", "-t", "unsafe"]);
}

#[test]
fn without_discards() {
    session(400, &["-d", "ignore", "-t", "unsafe"]);
}
