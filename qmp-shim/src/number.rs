//! Integers in text, as C's `strtoll` with base 0 takes them: leading blanks, a sign,
//! `0x` for hexadecimal, a leading `0` for octal.
//!
//! An unsigned number may have a minus and then counts down from 2^64. That is how
//! QEMU's command line reads it, and `-1` for "as much as possible" is in use.

/// A sign and how much. Kept apart because the two readers below differ in the range.
struct Literal {
    negative: bool,
    magnitude: u64,
}

/// Reads a signed number; the whole text must be used up.
#[must_use]
pub fn parse_i64(text: &str) -> Option<i64> {
    let Literal {
        negative,
        magnitude,
    } = parse_literal(text)?;
    if negative {
        0i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

/// Reads an unsigned number; the whole text must be used up. See the module on `-1`.
#[must_use]
pub fn parse_u64(text: &str) -> Option<u64> {
    let Literal {
        negative,
        magnitude,
    } = parse_literal(text)?;
    Some(if negative {
        magnitude.wrapping_neg()
    } else {
        magnitude
    })
}

/// Cuts off the blanks which C's `isspace` knows. Rust's set is another one.
pub(crate) fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r'])
}

fn parse_literal(text: &str) -> Option<Literal> {
    let text = skip_blanks(text);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    // `from_str_radix` takes a sign of its own; here a second one is a mistake.
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (radix, digits) = split_radix(digits);
    if digits.starts_with('+') {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    Some(Literal {
        negative,
        magnitude,
    })
}

fn split_radix(digits: &str) -> (u32, &str) {
    if let Some(hex) = strip_hex(digits) {
        (16, hex)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (8, &digits[1..])
    } else {
        (10, digits)
    }
}

/// What follows a hexadecimal prefix, if there is one.
pub(crate) fn strip_hex(digits: &str) -> Option<&str> {
    digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_numbers_are_read_as_in_c() {
        for (text, wanted) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("+12", Some(12)),
            (" \t\x0b12", Some(12)),
            ("0x10", Some(16)),
            ("0X1f", Some(31)),
            ("-0x10", Some(-16)),
            ("010", Some(8)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("", None),
            (" ", None),
            ("-", None),
            ("--1", None),
            ("+-1", None),
            ("- 1", None),
            ("12 ", None),
            ("08", None),
            ("0+7", None),
            ("0x", None),
            ("0x+1", None),
            ("0b1", None),
            ("1k", None),
            ("1.5", None),
            ("\u{a0}1", None),
        ] {
            assert_eq!(parse_i64(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn unsigned_numbers_may_count_down_from_the_top() {
        for (text, wanted) in [
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-1", Some(u64::MAX)),
            ("-18446744073709551615", Some(1)),
            ("-18446744073709551616", None),
            ("-0", Some(0)),
        ] {
            assert_eq!(parse_u64(text), wanted, "{text:?}");
        }
    }
}
