//! Sizes in text: `4096`, `64k`, `1.5G`, `0x10000`.
//!
//! The rules are qemu-img's. A decimal number may have a fraction and one suffix
//! (b, k, m, g, t, p, e in either case; powers of 1024); a fraction of a byte is
//! rounded, half up, but only below a suffix that makes bytes of it. A hexadecimal
//! number has neither fraction nor suffix. There are no exponents: `e` is exa.

use thiserror::Error;

use crate::number::{skip_blanks, strip_hex};

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not of the form described in this module.
    #[error(
        "'{text}' is not a size; give a number of bytes, or a number with one of the \
         suffixes k, M, G, T, P, E (powers of 1024), such as 64k or 1.5G"
    )]
    Malformed {
        /// The text.
        text: String,
    },
    /// A fraction without a suffix.
    #[error(
        "'{text}' is not a whole number of bytes; round it, or give a larger unit, such as 1.5k"
    )]
    FractionOfByte {
        /// The text.
        text: String,
    },
    /// 2^64 or more.
    #[error("'{text}' is too large for a size; it must be below 16E")]
    TooLarge {
        /// The text.
        text: String,
    },
}

/// Reads a size in bytes; the whole text must be used up.
///
/// # Errors
///
/// See [`SizeError`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed {
        text: text.to_owned(),
    };
    let too_large = || SizeError::TooLarge {
        text: text.to_owned(),
    };
    let number = skip_blanks(text);
    let number = number.strip_prefix('+').unwrap_or(number);
    if let Some(digits) = strip_hex(number) {
        return parse_digits(digits, 16)
            .ok_or_else(malformed)?
            .ok_or_else(too_large);
    }
    let (number, unit) = split_suffix(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return Err(malformed());
    }
    let fraction = parse_fraction(fraction).ok_or_else(malformed)?;
    let whole = match whole {
        "" => 0,
        digits => parse_digits(digits, 10)
            .ok_or_else(malformed)?
            .ok_or_else(too_large)?,
    };
    if unit == 1 && fraction > 0.0 && fraction < 1.0 {
        return Err(SizeError::FractionOfByte {
            text: text.to_owned(),
        });
    }
    whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(round_part(fraction, unit)))
        .ok_or_else(too_large)
}

/// `None`: not digits; `Some(None)`: digits, but too many.
fn parse_digits(digits: &str, radix: u32) -> Option<Option<u64>> {
    let all_digits = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    all_digits.then(|| u64::from_str_radix(digits, radix).ok())
}

/// The suffix's factor and what stands before it.
fn split_suffix(number: &str) -> (&str, u64) {
    let Some(last) = number.chars().next_back() else {
        return (number, 1);
    };
    let shift = match last.to_ascii_lowercase() {
        'b' => 0,
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        'p' => 50,
        'e' => 60,
        _ => return (number, 1),
    };
    (&number[..number.len() - 1], 1 << shift)
}

/// The digits behind the point as a number from 0 to 1. It can be 1: a long row of
/// nines is nearer to 1 than to anything below that a double can hold.
fn parse_fraction(digits: &str) -> Option<f64> {
    if digits.is_empty() {
        return Some(0.0);
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("0.{digits}").parse().ok()
}

/// `fraction` of `unit`, in whole bytes. `unit` is at most 2^60 and `fraction` at most
/// 1, so the result fits; both are exact as doubles except for the fraction itself.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]
fn round_part(fraction: f64, unit: u64) -> u64 {
    (fraction * unit as f64).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_by_qemu_img() {
        for (text, wanted) in [
            ("1", 1),
            ("0", 0),
            ("010", 10),
            (" 1", 1),
            ("\t1", 1),
            ("+1k", 1024),
            ("0x10", 16),
            ("0X1F", 31),
            ("1b", 1),
            ("1B", 1),
            ("1k", 1024),
            ("1K", 1024),
            ("1M", 1 << 20),
            ("1g", 1 << 30),
            ("1T", 1 << 40),
            ("1p", 1 << 50),
            ("1e", 1 << 60),
            ("15.5e", 17_870_283_321_406_128_128),
            ("1.5k", 1536),
            ("1.1k", 1126),
            (".5k", 512),
            ("+.5k", 512),
            ("5.k", 5120),
            ("1.e", 1 << 60),
            ("1.", 1),
            (".0", 0),
            ("1.0", 1),
            ("1.0000b", 1),
            ("0.0001k", 0),
            ("0.00048828125k", 1),
            ("0.001463k", 1),
            ("0.00146484375k", 2),
            ("0.3m", 314_573),
            ("3.3333333333333333M", 3_495_253),
            ("0.1E", 115_292_150_460_684_704),
            ("1.1e", 1_268_213_655_067_531_680),
            ("1.9999999999999999999E", 2 << 60),
            ("0.9999999999999999999999b", 1),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(wanted), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "", " ", "k", ".", ".k", "-", "+", "-1", "-0", "+-1", "- 0", "1 ", "1kb", "1KiB",
            "1kk", "1e3", "1e0", "1,5k", "1_000", "inf", "nan", "0x", "0x10k", "0x1.8k", "0x1p3",
            "0x+1", ". 5k", ".+5k", "1.5.k", "\u{e9}", "1\u{e9}",
        ] {
            let wanted = SizeError::Malformed {
                text: text.to_owned(),
            };
            assert_eq!(parse_size(text), Err(wanted), "{text:?}");
        }
        for text in ["1.5", "1.5b", "0.5b"] {
            let wanted = SizeError::FractionOfByte {
                text: text.to_owned(),
            };
            assert_eq!(parse_size(text), Err(wanted), "{text:?}");
        }
        for text in [
            "16e",
            "18446744073709551616",
            "0x10000000000000000",
            "15.9999999999999999999E",
        ] {
            let wanted = SizeError::TooLarge {
                text: text.to_owned(),
            };
            assert_eq!(parse_size(text), Err(wanted), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in ".{0,40}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn every_number_of_bytes_is_itself(bytes: u64) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
            prop_assert_eq!(parse_size(&format!("{bytes:#x}")), Ok(bytes));
        }
    }
}
