//! What a guest may feel of a copy, as a person writes it.

use ringback_block::copy::governor::LatencyTarget;

/// Units of a time, in nanoseconds.
const UNITS: [(&str, u64); 4] = [
    ("ns", 1),
    ("us", 1000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
];

/// `auto`, `off`, or a time with its unit.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn parse_latency_target(text: &str) -> Result<LatencyTarget, String> {
    match text {
        "auto" => return Ok(LatencyTarget::Auto),
        "off" => return Ok(LatencyTarget::Off),
        _ => {}
    }
    let wrong =
        || format!("'{text}' is neither auto nor off nor a time above 0 such as 500us, 2ms or 1s");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    let (_, unit_ns) = unit.ok_or_else(wrong)?;
    let bound_ns = number.checked_mul(*unit_ns).ok_or_else(wrong)?;
    if bound_ns == 0 {
        return Err(wrong());
    }
    Ok(LatencyTarget::Bound(bound_ns))
}

/// The same in words.
pub(crate) fn latency_target_text(target: LatencyTarget) -> String {
    match target {
        LatencyTarget::Auto => "auto".into(),
        LatencyTarget::Off => "off".into(),
        LatencyTarget::Bound(bound_ns) => format!("{bound_ns}ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_word_or_a_time() {
        let bound = |ns| Ok(LatencyTarget::Bound(ns));
        assert_eq!(parse_latency_target("auto"), Ok(LatencyTarget::Auto));
        assert_eq!(parse_latency_target("off"), Ok(LatencyTarget::Off));
        assert_eq!(parse_latency_target("500us"), bound(500_000));
        assert_eq!(parse_latency_target("2ms"), bound(2_000_000));
        assert_eq!(parse_latency_target("1s"), bound(1_000_000_000));
        for target in [
            LatencyTarget::Auto,
            LatencyTarget::Off,
            LatencyTarget::Bound(7),
        ] {
            assert_eq!(
                parse_latency_target(&latency_target_text(target)),
                Ok(target)
            );
        }
        for wrong in [
            "",
            "0ms",
            "5",
            "-1ms",
            "1.5ms",
            "ms",
            "18446744073709551615s",
        ] {
            let error = parse_latency_target(wrong).expect_err(wrong);
            assert!(error.contains("neither auto nor off"), "{error}");
        }
    }
}
