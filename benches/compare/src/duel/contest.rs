//! Everybody in turn, round by round.

use std::io::{IsTerminal, Write};

use crate::duel::cell::{Cell, Column, Entrant, Series};

/// One run: a figure for each column.
pub(crate) type Run<'a> = Box<dyn FnMut() -> Result<Vec<f64>, String> + 'a>;

/// Somebody who takes part, and how.
pub(crate) struct Contestant<'a> {
    pub(crate) entrant: Entrant,
    pub(crate) run: Run<'a>,
}

/// A round has everybody once, and each round begins with somebody else: machines
/// drift, ratios of neighbours do not. Who fails is left out from there on.
pub(crate) fn compete(
    name: String,
    title: String,
    columns: &'static [Column],
    mut contestants: Vec<Contestant<'_>>,
    rounds: usize,
) -> Cell {
    let mut series: Vec<Series> = contestants
        .iter()
        .map(|contestant| Series {
            entrant: contestant.entrant.clone(),
            rounds: Vec::new(),
            failure: None,
        })
        .collect();
    for round in 0..rounds {
        for place in 0..contestants.len() {
            let index = (place + round) % contestants.len();
            let series = &mut series[index];
            if series.failure.is_some() {
                continue;
            }
            let who = series.entrant.name();
            progress(&format!("{name}: round {} of {rounds}, {who}", round + 1));
            match (contestants[index].run)() {
                Ok(row) => {
                    assert_eq!(row.len(), columns.len(), "a figure for each column");
                    series.rounds.push(row);
                }
                Err(error) => {
                    progress("");
                    eprintln!("{name}: {who} FAILED: {error}");
                    series.failure = Some(error);
                }
            }
        }
    }
    progress("");
    Cell {
        name,
        title,
        columns,
        series,
        pairs: Vec::new(),
        notes: Vec::new(),
    }
}

/// Writes over the last line of a terminal.
fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        // Nobody has to see it.
        let _ = write!(stderr, "\r\x1b[K{text}");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::duel::cell::{Better, column};

    const COLUMNS: &[Column] = &[column("figure", "", Better::More)];

    #[test]
    fn rounds_begin_with_another_one_and_failures_stay_out() {
        let order = RefCell::new(String::new());
        let order = &order;
        let contestant = |name: &'static str, fails: bool| Contestant {
            entrant: Entrant {
                system: name,
                variant: String::new(),
            },
            run: Box::new(move || {
                order.borrow_mut().push_str(name);
                match fails {
                    true => Err("broken".into()),
                    false => Ok(vec![1.0]),
                }
            }),
        };
        let all = vec![
            contestant("a", false),
            contestant("b", true),
            contestant("c", false),
        ];
        let cell = compete("cell".into(), String::new(), COLUMNS, all, 3);
        assert_eq!(*order.borrow(), "abccaca");
        assert_eq!(cell.series[0].rounds.len(), 3);
        assert_eq!(cell.series[1].failure.as_deref(), Some("broken"));
    }
}
