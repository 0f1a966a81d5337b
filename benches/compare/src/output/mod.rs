//! What came of comparisons, for people: tables, curves, a page with both.

pub(crate) mod page;
mod plot;
pub(crate) mod table;

use crate::figures::Spread;

/// A figure with as many digits as it is worth.
fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Median, and from where to where.
fn spread(spread: Option<Spread>) -> String {
    match spread {
        None => "-".into(),
        Some(Spread { low, middle, high }) => {
            format!("{} ({}-{})", figure(middle), figure(low), figure(high))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let text = [12_345.6, 99.94, 1.234, 0.0123, 0.0, f64::NAN].map(figure);
        assert_eq!(text, ["12346", "99.9", "1.23", "0.012", "0.00", "-"]);
        assert_eq!(
            spread(Some(Spread::new([1.0, 2.0, 4.0]))),
            "2.00 (1.00-4.00)"
        );
    }
}
