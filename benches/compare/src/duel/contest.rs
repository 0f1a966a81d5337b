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
/// drift, ratios of neighbours do not.
///
/// Who fails is left out from there on, and what all of them work on is made good
/// before the next one comes. If it cannot be, or was spoiled, nobody comes.
pub(crate) fn compete(
    name: String,
    title: String,
    columns: &'static [Column],
    mut contestants: Vec<Contestant<'_>>,
    rounds: usize,
    make_good: impl Fn() -> Result<(), String>,
) -> Cell {
    let mut series: Vec<Series> = contestants
        .iter()
        .map(|contestant| Series {
            entrant: contestant.entrant.clone(),
            rounds: Vec::new(),
            failure: None,
        })
        .collect();
    let mut failure = None;
    'rounds: for round in 0..rounds {
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
                    if let Err(error) = make_good() {
                        failure = Some(format!(
                            "abandoned in round {} of {rounds}: {who} has failed, and the disk \
                             is of no use any more: {error}",
                            round + 1
                        ));
                        break 'rounds;
                    }
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
        failure,
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
        let good = || {
            order.borrow_mut().push('+');
            Ok(())
        };
        let cell = compete("cell".into(), String::new(), COLUMNS, all, 3, good);
        // Made good at once, before the next one comes.
        assert_eq!(*order.borrow(), "ab+ccaca");
        assert_eq!(cell.series[0].rounds.len(), 3);
        assert_eq!(cell.series[1].failure.as_deref(), Some("broken"));
        assert_eq!(cell.failure, None);
    }

    #[test]
    fn nobody_works_on_a_disk_that_cannot_be_made_good() {
        let runs = RefCell::new(0);
        let runs = &runs;
        let contestant = |name: &'static str| Contestant {
            entrant: Entrant {
                system: name,
                variant: String::new(),
            },
            run: Box::new(move || {
                *runs.borrow_mut() += 1;
                match name {
                    "b" => Err("broken".into()),
                    _ => Ok(vec![1.0]),
                }
            }),
        };
        let all = ["a", "b", "c"].map(contestant).into();
        let good = || Err("it is full".into());
        let cell = compete("cell".into(), String::new(), COLUMNS, all, 3, good);
        assert_eq!(*runs.borrow(), 2);
        let failure = cell.failure.unwrap();
        assert!(
            failure.starts_with("abandoned in round 1 of 3"),
            "{failure}"
        );
        assert!(failure.ends_with("it is full"), "{failure}");
    }
}
