//! What commands say about a transfer: sizes, times, rates, bytes.

use std::fmt::Write;

const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// An amount with its unit: three decimals, or none if they begin with three
/// zeroes.
pub(crate) fn amount(value: f64) -> String {
    let mut value = value;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    // Bytes come with six decimals, as printf's %f has them.
    let decimals = if unit == 0 { 6 } else { 3 };
    let number = format!("{value:.decimals$}");
    let number = number.split(".000").next().unwrap_or(&number);
    format!("{number} {}", UNITS[unit])
}

/// A number of bytes as [`amount`] shows it.
#[expect(clippy::cast_precision_loss, reason = "shown with three decimals")]
pub(crate) fn size(bytes: u64) -> String {
    amount(bytes as f64)
}

/// How a command reports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    /// Not at all.
    pub(crate) quiet: bool,
    /// In one line for programs.
    pub(crate) machine: bool,
}

/// A transfer that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// As it begins the report: `read`, `wrote`, `discard`.
    pub(crate) verb: &'static str,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) duration_ns: u64,
}

impl Transfer {
    /// The lines to print, if any.
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    pub(crate) fn report(&self, style: Style) -> String {
        let Self {
            verb,
            offset,
            bytes,
            duration_ns,
        } = *self;
        let seconds = duration_ns as f64 / 1e9;
        let (rate, operations) = (bytes as f64 / seconds, 1.0 / seconds);
        if style.quiet {
            String::new()
        } else if style.machine {
            let time = clock(duration_ns);
            format!("{bytes},1,{time},{rate:.3},{operations:.3}\n")
        } else {
            let time = if duration_ns < 1_000_000_000 {
                format!("{seconds:05.2} sec")
            } else {
                clock(duration_ns)
            };
            format!(
                "{verb} {bytes}/{bytes} bytes at offset {offset}\n{}, 1 ops; {time} ({}/sec and \
                 {operations:.4} ops/sec)\n",
                size(bytes),
                amount(rate)
            )
        }
    }
}

/// Hours, minutes, seconds.
#[expect(clippy::cast_precision_loss, reason = "two decimals of a minute")]
fn clock(duration_ns: u64) -> String {
    const MINUTE_NS: u64 = 60_000_000_000;
    let minutes = duration_ns / MINUTE_NS;
    let seconds = (duration_ns % MINUTE_NS) as f64 / 1e9;
    format!("{}:{:02}:{seconds:05.2}", minutes / 60, minutes % 60)
}

/// Bytes in rows of 16, with letters and digits beside them.
pub(crate) fn dump(offset: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    for (row, bytes) in bytes.chunks(16).enumerate() {
        let address = offset.wrapping_add(16 * row as u64);
        let _ = write!(text, "{address:08x}:  ");
        for byte in bytes {
            let _ = write!(text, "{byte:02x} ");
        }
        text.push(' ');
        text.extend(bytes.iter().map(|&byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(byte)
            } else {
                '.'
            }
        }));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (value, expected) in [
            (0.0, "0 bytes"),
            (512.0, "512 bytes"),
            (1.5, "1.500000 bytes"),
            (0.0004, "0 bytes"),
            (391.340_572, "391.340572 bytes"),
            (1023.0, "1023 bytes"),
            (1024.0, "1 KiB"),
            (1536.0, "1.500 KiB"),
            (1_048_575.0, "1023.999 KiB"),
            (1_049_088.0, "1 MiB"),
            (f64::from(1 << 30), "1 GiB"),
            (8.0 * f64::from(1 << 30) * f64::from(1 << 30), "8 EiB"),
            (f64::INFINITY, "inf EiB"),
        ] {
            assert_eq!(amount(value), expected);
        }
    }

    const TRANSFER: Transfer = Transfer {
        verb: "wrote",
        offset: 1024,
        bytes: 512,
        duration_ns: 500_000_000,
    };

    #[test]
    fn a_report_for_people() {
        assert_eq!(
            TRANSFER.report(Style::default()),
            "wrote 512/512 bytes at offset 1024\n512 bytes, 1 ops; 00.50 sec (1 KiB/sec and \
             2.0000 ops/sec)\n"
        );
        let slow = Transfer {
            duration_ns: 3_725_500_000_000,
            bytes: 0,
            ..TRANSFER
        };
        assert_eq!(
            slow.report(Style::default()),
            "wrote 0/0 bytes at offset 1024\n0 bytes, 1 ops; 1:02:05.50 (0 bytes/sec and 0.0003 \
             ops/sec)\n"
        );
    }

    #[test]
    fn a_report_for_programs_or_none() {
        let machine = Style {
            machine: true,
            quiet: false,
        };
        assert_eq!(
            TRANSFER.report(machine),
            "512,1,0:00:00.50,1024.000,2.000\n"
        );
        let quiet = Style {
            machine: true,
            quiet: true,
        };
        assert_eq!(TRANSFER.report(quiet), "");
    }

    #[test]
    fn a_dump_begins_at_its_offset_and_ends_early() {
        let bytes: Vec<u8> = (0..20u8).map(|n| n + b'0').collect();
        assert_eq!(
            dump(5, &bytes),
            "00000005:  30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f  0123456789......\n\
             00000015:  40 41 42 43  .ABC\n"
        );
        assert_eq!(dump(0, &[]), "");
    }
}
