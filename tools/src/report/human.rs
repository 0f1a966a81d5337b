//! Numbers for people: durations, bytes and rates as short text.
//!
//! # Convention
//!
//! - Durations and bytes have three significant digits and one unit: `84.2 us`, `1.31 ms`,
//!   `1.00 GiB`, `64.0 KiB`. Whole nanoseconds and bytes have no decimals: `850 ns`, `512 B`.
//! - Bytes are binary (`KiB` is 1,024), rates are decimal (`MB/s` is 1,000,000 bytes a second), as
//!   disks and their benchmarks are sold. A rate has one decimal: `512.3 MB/s`.
//! - `us` stands for microseconds: plain ASCII goes through every terminal and log.
//!
//! Programs read the JSON report instead, where nothing is rounded to text.

const BYTE_UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const RATE_UNITS: [&str; 5] = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"];
const TIME_UNITS: [&str; 4] = ["ns", "us", "ms", "s"];

/// A duration: `850 ns`, `84.2 us`, `1.31 ms`, `2.05 s`.
pub(crate) fn duration(ns: u64) -> String {
    scaled(float(ns), 1_000.0, &TIME_UNITS, three_digits)
}

/// A number of bytes: `512 B`, `64.0 KiB`, `1.00 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    scaled(float(count), 1_024.0, &BYTE_UNITS, three_digits)
}

/// Bytes a second: `512.3 MB/s`; a dash for what took no time, and so has no rate.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    if !bytes_per_second.is_finite() {
        return "-".to_owned();
    }
    scaled(bytes_per_second, 1_000.0, &RATE_UNITS, |_| 1)
}

/// How many times as large one number is as another: `1.02x`, `13.5x`.
pub(crate) fn ratio(number: u64, base: u64) -> String {
    if base == 0 {
        return "-".to_owned();
    }
    let ratio = float(number) / float(base);
    format!("{ratio:.*}x", three_digits(ratio))
}

/// A count with commas between its thousands: `1,234,567`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The number with its unit, the largest of which the rounded number has at least one.
fn scaled(value: f64, base: f64, units: &[&str], decimals: impl Fn(f64) -> usize) -> String {
    let mut value = value;
    let mut unit = 0;
    // Compared as rounded: 999.6 us has to become 1.00 ms, and not 1000 us.
    while unit + 1 < units.len() && value >= base - rounding(decimals(value)) {
        value /= base;
        unit += 1;
    }
    // There are no parts of a nanosecond or of a byte to show.
    let decimals = if unit == 0 { 0 } else { decimals(value) };
    format!("{value:.decimals$} {}", units[unit])
}

/// The decimals that leave three significant digits of a number from one on.
fn three_digits(value: f64) -> usize {
    // The limits lie half a last digit low, because 9.996 is rounded to 10.0.
    if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    }
}

/// The most that rounding to so many decimals may add.
fn rounding(decimals: usize) -> f64 {
    match decimals {
        0 => 0.5,
        1 => 0.05,
        _ => 0.005,
    }
}

/// As a float, which is exact up to 2^53 and close enough for three digits above.
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (850, "850 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (9_994, "9.99 us"),
            (9_996, "10.0 us"),
            (84_213, "84.2 us"),
            (999_499, "999 us"),
            (999_600, "1.00 ms"),
            (1_310_000, "1.31 ms"),
            (2_050_000_000, "2.05 s"),
            (4_000_000_000_000, "4000 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn bytes_are_binary() {
        for (count, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.00 KiB"),
            (65_536, "64.0 KiB"),
            (1_023 << 10, "1023 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (1 << 30, "1.00 GiB"),
            (8 << 40, "8.00 TiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn rates_are_decimal() {
        for (per_second, text) in [
            (0.0, "0 B/s"),
            (999.96, "1.0 kB/s"),
            (512_345_000.0, "512.3 MB/s"),
            (999_970_000.0, "1.0 GB/s"),
            (7_000_000_000.0, "7.0 GB/s"),
            (f64::INFINITY, "-"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(rate(per_second), text);
        }
    }

    #[test]
    fn ratios_and_counts() {
        assert_eq!(ratio(102, 100), "1.02x");
        assert_eq!(ratio(1_350, 100), "13.5x");
        assert_eq!(ratio(123_456, 100), "1235x");
        assert_eq!(ratio(1, 0), "-");
        let counts = [0, 999, 1_000, 1_234_567].map(count);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567"]);
    }
}
