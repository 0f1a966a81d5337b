//! Minimum, median and maximum of several runs.

use serde_json::{Value, json};

/// The figures of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) middle: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        Self {
            low: sorted[0],
            middle: match sorted.len() % 2 {
                0 => f64::midpoint(sorted[half - 1], sorted[half]),
                _ => sorted[half],
            },
            high: sorted[sorted.len() - 1],
        }
    }

    pub(crate) fn to_json(self) -> Value {
        json!({ "min": self.low, "median": self.middle, "max": self.high })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter() {
        let spread = Spread::new([3.0, 1.0, 9.0]);
        let (low, middle, high) = (1.0, 3.0, 9.0);
        assert_eq!(spread, Spread { low, middle, high });
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert_eq!(Spread::new([4.0, 1.0, 2.0, 9.0]).middle, 3.0);
        assert_eq!(Spread::new([7.0]).middle, 7.0);
    }
}
