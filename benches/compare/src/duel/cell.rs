//! What came of one comparison: a cell of the grid of scenarios and disks.

use serde_json::{Value, json};

use crate::figures::Spread;

/// Which way is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// A figure that every run brings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// Shorthand for tables of columns.
pub(crate) const fn column(name: &'static str, unit: &'static str, better: Better) -> Column {
    Column { name, unit, better }
}

/// Somebody who takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entrant {
    pub(crate) system: &'static str,
    /// Such as `16 workers`.
    pub(crate) variant: String,
}

impl Entrant {
    pub(crate) fn name(&self) -> String {
        if self.variant.is_empty() {
            return self.system.to_owned();
        }
        format!("{}, {}", self.system, self.variant)
    }
}

/// Their runs: one row of figures a round. NaN where there is none.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) entrant: Entrant,
    pub(crate) rounds: Vec<Vec<f64>>,
    /// Why there are no more.
    pub(crate) failure: Option<String>,
}

impl Series {
    /// Of one column, over all rounds.
    pub(crate) fn spread(&self, column: usize) -> Option<Spread> {
        spread(self.rounds.iter().map(|row| row[column]))
    }

    pub(crate) fn median(&self, column: usize) -> Option<f64> {
        self.spread(column).map(|spread| spread.middle)
    }
}

fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values = values.filter(|value| value.is_finite()).peekable();
    values.peek()?;
    Some(Spread::new(values))
}

/// One entrant by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) of: usize,
    pub(crate) by: usize,
}

/// A comparison.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// Such as `curve/raw/memory/rated`.
    pub(crate) name: String,
    /// For people.
    pub(crate) title: String,
    pub(crate) columns: &'static [Column],
    pub(crate) series: Vec<Series>,
    pub(crate) pairs: Vec<Pair>,
    pub(crate) notes: Vec<String>,
    /// What is wrong with all of it.
    pub(crate) failure: Option<String>,
}

impl Cell {
    pub(crate) fn find(&self, system: &str, variant: &str) -> Option<usize> {
        self.series
            .iter()
            .position(|series| series.entrant.system == system && series.entrant.variant == variant)
    }

    /// One system and variant by another one, if both take part.
    pub(crate) fn pair(&mut self, of: (&str, &str), by: (&str, &str)) {
        if let (Some(of), Some(by)) = (self.find(of.0, of.1), self.find(by.0, by.1)) {
            self.pairs.push(Pair { of, by });
        }
    }

    /// Each variant of ringback by the same of `system`'s.
    pub(crate) fn pair_variants(&mut self, system: &str) {
        for of in 0..self.series.len() {
            let entrant = &self.series[of].entrant;
            if !entrant.system.starts_with("ringback") {
                continue;
            }
            if let Some(by) = self.find(system, &entrant.variant) {
                self.pairs.push(Pair { of, by });
            }
        }
    }

    /// The series of some systems.
    pub(crate) fn series_of(&self, systems: &[&str]) -> impl Iterator<Item = &Series> {
        let all = self.series.iter();
        all.filter(|series| systems.contains(&series.entrant.system))
    }

    /// Why it cannot be said whether a goal is met that is about these systems: what is
    /// left of those that have failed proves nothing.
    pub(crate) fn why_not_judged(&self, systems: &[&str]) -> Option<String> {
        if self.failure.is_some() {
            return Some("not judged: the comparison failed".into());
        }
        let all = self.series_of(systems);
        let failed = all.filter(|series| series.failure.is_some());
        let failed: Vec<String> = failed.map(|series| series.entrant.name()).collect();
        (!failed.is_empty()).then(|| format!("not judged: {} failed", failed.join("; ")))
    }

    /// The series of a system with the best median of a column.
    pub(crate) fn best(&self, system: &str, column: usize) -> Option<usize> {
        let better = self.columns[column].better;
        let all = self.series.iter().enumerate();
        let own =
            all.filter(|(_, series)| series.entrant.system == system && series.failure.is_none());
        let medians = own.filter_map(|(index, series)| Some((index, series.median(column)?)));
        let best = medians.max_by(|(_, one), (_, other)| match better {
            Better::More => one.total_cmp(other),
            Better::Less => other.total_cmp(one),
        });
        best.map(|(index, _)| index)
    }

    /// The ratios of a pair in one column, each of two runs of the same round.
    pub(crate) fn ratio(&self, pair: Pair, column: usize) -> Option<Spread> {
        let (of, by) = (&self.series[pair.of].rounds, &self.series[pair.by].rounds);
        let rounds = of.iter().zip(by);
        spread(rounds.map(|(of, by)| of[column] / by[column]))
    }

    pub(crate) fn to_json(&self) -> Value {
        let spread = |spread: Option<Spread>| spread.map(Spread::to_json);
        let columns = |figure: &dyn Fn(usize) -> Option<Spread>| -> Value {
            let figures = self.columns.iter().enumerate();
            figures
                .map(|(index, column)| (column.name.to_owned(), json!(spread(figure(index)))))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let series = self.series.iter().map(|series| {
            json!({
                "system": series.entrant.system,
                "variant": series.entrant.variant,
                "figures": columns(&|column| series.spread(column)),
                "runs": series.rounds,
                "failure": series.failure,
            })
        });
        let ratios = self.pairs.iter().map(|&pair| {
            json!({
                "of": self.series[pair.of].entrant.name(),
                "by": self.series[pair.by].entrant.name(),
                "ratios": columns(&|column| self.ratio(pair, column)),
            })
        });
        let described = self.columns.iter().map(|column| {
            let more = column.better == Better::More;
            json!({ "name": column.name, "unit": column.unit, "more_is_better": more })
        });
        json!({
            "name": self.name,
            "title": self.title,
            "columns": described.collect::<Vec<_>>(),
            "series": series.collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
            "notes": self.notes,
            "failure": self.failure,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        column("backup", "MB/s", Better::More),
        column("p99", "ms", Better::Less),
    ];

    pub(crate) fn cell(series: &[(&'static str, &str, &[[f64; 2]])]) -> Cell {
        let series = series.iter().map(|(system, variant, rounds)| Series {
            entrant: Entrant {
                system,
                variant: (*variant).to_owned(),
            },
            rounds: rounds.iter().map(|row| row.to_vec()).collect(),
            failure: None,
        });
        Cell {
            name: "curve/raw".into(),
            title: "a <title>".into(),
            columns: COLUMNS,
            series: series.collect(),
            pairs: Vec::new(),
            notes: Vec::new(),
            failure: None,
        }
    }

    #[test]
    fn ratios_are_taken_inside_rounds() {
        // The machine was twice as slow in the second round; the ratio is the same.
        let mut cell = cell(&[
            ("ringback", "1", &[[200.0, 1.0], [100.0, 2.0], [190.0, 1.0]]),
            ("qsd", "1", &[[100.0, 2.0], [50.0, 4.0], [100.0, 3.0]]),
        ]);
        cell.pair_variants("qsd");
        assert_eq!(cell.pairs, [Pair { of: 0, by: 1 }]);
        let ratio = cell.ratio(cell.pairs[0], 0).unwrap();
        assert_eq!((ratio.low, ratio.middle, ratio.high), (1.9, 2.0, 2.0));
        assert_eq!(cell.ratio(cell.pairs[0], 1).unwrap().middle, 0.5);
    }

    #[test]
    fn what_is_not_there_does_not_count() {
        let cell = cell(&[
            ("ringback", "", &[[200.0, f64::NAN], [100.0, 4.0]]),
            ("qsd", "", &[[100.0, 1.0], [0.0, 2.0]]),
        ]);
        let pair = Pair { of: 0, by: 1 };
        assert_eq!(cell.series[0].median(1), Some(4.0));
        assert_eq!(cell.ratio(pair, 0).unwrap().high, 2.0);
        assert_eq!(cell.ratio(pair, 1).unwrap().middle, 2.0);
        let json = cell.to_json();
        assert!(json["series"][0]["runs"][0][1].is_null());
        assert_eq!(json["series"][0]["figures"]["p99"]["median"], 4.0);
    }

    #[test]
    fn what_has_failed_is_not_judged() {
        let mut cell = cell(&[
            ("ringback", "1", &[[100.0, 1.0]]),
            ("qsd", "1", &[[100.0, 1.0]]),
        ]);
        assert_eq!(cell.why_not_judged(&["ringback", "qsd"]), None);
        cell.series[1].failure = Some("no more of this".into());
        assert_eq!(cell.why_not_judged(&["ringback"]), None);
        let why = cell.why_not_judged(&["ringback", "qsd"]);
        assert_eq!(why.as_deref(), Some("not judged: qsd, 1 failed"));
        cell.failure = Some("the disk is wrong".into());
        assert!(cell.why_not_judged(&["ringback"]).is_some());
    }

    #[test]
    fn the_best_is_the_fastest_or_the_least() {
        let cell = cell(&[
            ("qsd", "1", &[[100.0, 1.0]]),
            ("qsd", "8", &[[300.0, 9.0]]),
            ("ringback", "1", &[[999.0, 0.1]]),
        ]);
        assert_eq!(cell.best("qsd", 0), Some(1));
        assert_eq!(cell.best("qsd", 1), Some(0));
        assert_eq!(cell.best("fio", 1), None);
    }
}
