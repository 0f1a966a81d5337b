//! Random commands of the shell.

use ringback_ring::sim::Random;

/// Makes commands for an image.
pub(crate) struct Commands<'a> {
    pub(crate) random: &'a mut Random,
    /// Bytes of the image now.
    pub(crate) size: u64,
    pub(crate) cluster: u64,
    pub(crate) can_truncate: bool,
    /// So many compressed writes come first. QEMU puts a compressed cluster behind
    /// the last one, also when that has been freed and given to something else in
    /// the meantime: then it damages the image. So nothing is freed before them.
    pub(crate) packed: u64,
}

impl Commands<'_> {
    /// So many, some of which need several lines.
    pub(crate) fn list(&mut self, count: u64) -> Vec<String> {
        let mut commands = Vec::new();
        for _ in 0..count {
            self.push(&mut commands);
        }
        commands
    }

    fn push(&mut self, commands: &mut Vec<String>) {
        let ((offset, len), byte) = (self.range(), self.byte());
        if self.packed > 0 {
            self.packed -= 1;
            let command = self.compressed(byte);
            return commands.push(command);
        }
        let command = match self.random.below(31) {
            0..8 => format!("write -P {byte} {offset} {len}"),
            8..10 => format!("write -z {offset} {len}"),
            10..13 => format!("write -z -u {offset} {len}"),
            13..17 => format!("discard {offset} {len}"),
            17..19 => {
                let part = self.random.below(len + 1);
                format!("writev -P {byte} {offset} {part} {}", len - part)
            }
            19..21 => return self.beside(commands),
            21 => "flush".into(),
            22 => self.reopen(),
            23 if self.can_truncate => self.truncate(),
            24 => format!("write -q -P {byte} {offset} {len}"),
            25 => "length".into(),
            26..28 => format!("read -v {offset} {}", len.min(300)),
            _ => format!("read -P {byte} {offset} {len}"),
        };
        // What was changed, and a little around it, is looked at.
        let from = offset.saturating_sub(self.random.below(40));
        let until = (offset + len + self.random.below(40)).min(self.size);
        commands.push(command);
        if from < until && self.random.below(2) == 0 {
            commands.push(format!("read -P {byte} {from} {}", until - from));
            commands.push(format!("read -v {from} {}", (until - from).min(100)));
            let tail = until.saturating_sub(100).max(from);
            commands.push(format!("read -v {tail} {}", until - tail));
        }
    }

    fn byte(&mut self) -> u64 {
        match self.random.below(8) {
            0 => 0,
            _ => 1 + self.random.below(3),
        }
    }

    /// Whole clusters, parts of one, some sectors, any bytes; also at the end of
    /// the image, and now and then beyond.
    fn range(&mut self) -> (u64, u64) {
        let unit = [1, 512, self.cluster, self.cluster][self.random.index(4)];
        let longest = match self.random.below(4) {
            0 => 700,
            1 => self.cluster,
            2 => self.cluster * 4,
            _ => self.size,
        };
        let offset = self.random.below(self.size) / unit * unit;
        let len = (1 + self.random.below(longest)).div_ceil(unit) * unit;
        match self.random.below(12) {
            0 => (self.size - offset.min(self.size), offset),
            1 if self.random.below(4) == 0 => (offset, len),
            _ => (offset, len.min(self.size - offset)),
        }
    }

    /// Mostly as the format wants it; some clusters are taken already.
    fn compressed(&mut self, byte: u64) -> String {
        if self.random.below(6) == 0 {
            let (offset, len) = self.range();
            return format!("write -c -P {byte} {offset} {}", len.min(self.cluster * 8));
        }
        let clusters = self.size.div_ceil(self.cluster);
        let offset = self.random.below(clusters) * self.cluster;
        let len = (self.cluster * (1 + self.random.below(3))).min(self.size - offset);
        format!("write -c -P {byte} {offset} {len}")
    }

    /// Several at once that do not meet.
    fn beside(&mut self, commands: &mut Vec<String>) {
        let parts = 2 + self.random.below(4);
        for part in 0..parts {
            let (from, until) = (self.size * part / parts, self.size * (part + 1) / parts);
            if from == until {
                continue;
            }
            let offset = from + self.random.below(until - from);
            let len = 1 + self.random.below((until - offset).min(self.cluster * 3));
            let byte = self.byte();
            commands.push(match self.random.below(4) {
                0 => format!("aio_write -z -u -q {offset} {len}"),
                1 => format!("aio_read -q -P {byte} {offset} {len}"),
                _ => format!("aio_write -q -P {byte} {offset} {len}"),
            });
            // Mismatches are told as requests end, in any order.
            if commands.last().is_some_and(|last| last.contains("read")) {
                commands.push("aio_flush".into());
            }
        }
        commands.push("aio_flush".into());
    }

    fn reopen(&mut self) -> String {
        let all = [
            "reopen",
            "reopen -c writeback",
            "reopen -c none",
            "reopen -c writethrough",
            "reopen -o l2-cache-entry-size=512,l2-cache-size=512",
            "reopen -o l2-cache-size=1M",
            "reopen -o overlap-check=all",
            "reopen -o overlap-check=none",
            "reopen -o discard=ignore",
            "reopen -o discard=unmap",
            "reopen -o detect-zeroes=on",
            "reopen -o detect-zeroes=off",
            "reopen -o pass-discard-request=off",
            "reopen -o discard-no-unref=on",
            "reopen -o lazy-refcounts=on",
            "reopen -o lazy-refcounts=off",
            "reopen -o cache-clean-interval=1",
        ];
        all[self.random.index(all.len())].into()
    }

    fn truncate(&mut self) -> String {
        let size = match self.random.below(3) {
            0 => self.size + 512 * self.random.below(200),
            1 => self.size.div_ceil(self.cluster) * self.cluster,
            _ => 512 * (1 + self.random.below(self.size / 512)),
        };
        // Should it be refused, what follows lies inside of both.
        self.size = self.size.min(size).max(512);
        let mode = ["", "", "-m off ", "-m metadata "][self.random.index(4)];
        format!("truncate {mode}{size}")
    }
}
