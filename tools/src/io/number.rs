//! Numbers in commands: sizes with suffixes, pattern bytes, plain numbers.

/// Why a size is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// No number, or something behind it.
    Malformed,
    /// Beyond 2^63 - 1, or below zero.
    TooLarge,
}

impl SizeError {
    /// The line that blames an argument.
    pub(crate) fn line(self, argument: &str) -> String {
        match self {
            Self::Malformed => format!(
                "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- \
                 {argument}"
            ),
            Self::TooLarge => format!("Parsing error: argument too large -- {argument}"),
        }
    }
}

/// A size in bytes: decimal with an optional suffix of one letter, which may
/// have a fraction, or hexadecimal without suffix. Zeroes in front mean nothing.
///
/// # Errors
///
/// [`SizeError`].
pub(crate) fn size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches(is_space);
    if let Some(magnitude) = text.strip_prefix('-') {
        // A negative number is a number, but not in every form.
        let digits = magnitude.strip_prefix('.').unwrap_or(magnitude);
        return Err(match split_digits(digits, 10) {
            ("", _, _) => SizeError::Malformed,
            (_, "", _) => SizeError::TooLarge,
            _ => SizeError::Malformed,
        });
    }
    let digits = text.strip_prefix('+').unwrap_or(text);
    let bytes = match hexadecimal(digits) {
        Some(digits) => hexadecimal_size(digits)?,
        None => decimal_size(digits)?,
    };
    if i64::try_from(bytes).is_err() {
        return Err(SizeError::TooLarge);
    }
    Ok(bytes)
}

/// As isspace(3) in the C locale.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// What stands behind `0x`, if a digit does.
fn hexadecimal(text: &str) -> Option<&str> {
    let rest = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))?;
    rest.starts_with(|c: char| c.is_ascii_hexdigit())
        .then_some(rest)
}

/// The longest run of digits and the rest; the number is none if it does not
/// fit.
fn split_digits(text: &str, radix: u32) -> (&str, &str, Option<u64>) {
    let end = text
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let number = if digits.is_empty() {
        Some(0)
    } else {
        u64::from_str_radix(digits, radix).ok()
    };
    (digits, rest, number)
}

fn hexadecimal_size(text: &str) -> Result<u64, SizeError> {
    let (_, rest, number) = split_digits(text, 16);
    if !rest.is_empty() {
        return Err(SizeError::Malformed);
    }
    number.ok_or(SizeError::TooLarge)
}

fn decimal_size(text: &str) -> Result<u64, SizeError> {
    let (whole, rest, number) = split_digits(text, 10);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => {
            let (digits, suffix, _) = split_digits(rest, 10);
            (digits, suffix)
        }
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(SizeError::Malformed);
    }
    let Some(whole) = number else {
        return Err(if rest.is_empty() {
            SizeError::TooLarge
        } else {
            SizeError::Malformed
        });
    };
    let unit = unit(suffix).ok_or(SizeError::Malformed)?;
    let mut fraction: f64 = format!("0.{fraction}0")
        .parse()
        .map_err(|_| SizeError::Malformed)?;
    let mut units = Some(whole);
    if fraction >= 1.0 {
        // So many nines are one.
        units = whole.checked_add(1);
        fraction = 0.0;
    }
    if fraction > 0.0 && unit == 1 {
        return Err(SizeError::Malformed);
    }
    let part = rounded(fraction, unit);
    units
        .and_then(|units| units.checked_mul(unit))
        .and_then(|bytes| bytes.checked_add(part))
        .ok_or(SizeError::TooLarge)
}

/// A power of 1024 by its letter.
fn unit(suffix: &str) -> Option<u64> {
    let power = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        "p" | "P" => 5,
        "e" | "E" => 6,
        _ => return None,
    };
    Some(1 << (10 * power))
}

/// The part of a unit in whole bytes, to the nearest.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a fraction is at most 1, a unit a power of two below 2^61"
)]
fn rounded(fraction: f64, unit: u64) -> u64 {
    (fraction * unit as f64 + 0.5) as u64
}

/// A number as strtol(3) with base 0 reads it: octal after a zero. None: it is
/// none, or not between 0 and `max`.
fn c_number(text: &str, max: u64) -> Option<u64> {
    let text = text.trim_start_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, rest, number) = match hexadecimal(digits) {
        Some(digits) => split_digits(digits, 16),
        None if digits.starts_with('0') => split_digits(digits, 8),
        None => split_digits(digits, 10),
    };
    if digits.is_empty() || !rest.is_empty() {
        return None;
    }
    number.filter(|&number| number <= max && (!negative || number == 0))
}

/// The byte of a pattern.
///
/// # Errors
///
/// The line that says so.
pub(crate) fn pattern(text: &str) -> Result<u8, String> {
    c_number(text, 255)
        .and_then(|number| u8::try_from(number).ok())
        .ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

/// Milliseconds, not negative.
///
/// # Errors
///
/// The line that says so.
pub(crate) fn milliseconds(text: &str) -> Result<u64, String> {
    c_number(text, i64::MAX as u64).ok_or_else(|| format!("{text} is not a valid number"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("512", 512),
            ("+512", 512),
            ("08", 8),
            ("010", 10),
            ("0x200", 0x200),
            ("0X200", 0x200),
            ("+0x10", 16),
            ("0x10b", 267),
            ("0x1e", 30),
            ("1b", 1),
            ("2K", 2048),
            ("3m", 3 << 20),
            ("1G", 1 << 30),
            ("1t", 1 << 40),
            ("1P", 1 << 50),
            ("7e", 7 << 60),
            ("1.5k", 1536),
            (".5k", 512),
            ("0.5k", 512),
            ("0.1k", 102),
            ("0.7k", 717),
            ("0.9999k", 1024),
            ("1.00049k", 1025),
            ("0.0001k", 0),
            ("1.", 1),
            ("1.0", 1),
            ("0.0", 0),
            ("1.k", 1024),
            ("1.99999999999999999999", 2),
            (".99999999999999999999b", 1),
            ("9223372036854775807", (1 << 63) - 1),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_size() {
        for text in [
            "",
            "x",
            "1.1",
            "0.5",
            "0.3b",
            ".",
            ".k",
            "1e3",
            "1.5e3",
            "nan",
            "inf",
            "0x",
            "0b1",
            "512_",
            "0x1k",
            "kb",
            "1kb",
            "1KiB",
            "1MB",
            "-1k",
            "-0x1",
            "-1.5",
            "-1.",
            "-.",
            "-.5k",
            "18446744073709551616b",
            "99999999999999999999k",
            "-",
            "--1",
            "+-1",
            "- 1",
        ] {
            assert_eq!(size(text), Err(SizeError::Malformed), "{text}");
        }
        for text in [
            "-1",
            "-0",
            "-512",
            "8e",
            "9223372036854775808",
            "18446744073709551616",
            "-.5",
            "0xffffffffffffffff",
            "0x10000000000000000",
        ] {
            assert_eq!(size(text), Err(SizeError::TooLarge), "{text}");
        }
    }

    #[test]
    fn patterns_are_c_numbers() {
        for (text, expected) in [
            ("0377", Some(255)),
            ("0xff", Some(255)),
            ("10", Some(10)),
            ("-0", Some(0)),
            ("+7", Some(7)),
            ("08", None),
            ("256", None),
            ("-1", None),
            ("0x", None),
            ("1k", None),
            ("", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(pattern(text).ok(), expected, "{text}");
        }
        assert_eq!(milliseconds("010"), Ok(8));
        let line = milliseconds("x").expect_err("no number");
        assert_eq!(line, "x is not a valid number");
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "[-+0-9a-fxX.kKmMgGtTpPeE \t]{0,24}") {
            let _ = (size(&text), pattern(&text), milliseconds(&text));
        }

        #[test]
        fn every_size_is_read_back(bytes in 0u64..1 << 63) {
            prop_assert_eq!(size(&bytes.to_string()), Ok(bytes));
            prop_assert_eq!(size(&format!("{bytes:#x}")), Ok(bytes));
        }
    }
}
