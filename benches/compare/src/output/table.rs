//! A comparison as text.

use std::fmt::Write;

use crate::duel::Cell;
use crate::output::spread;

/// Rows of columns, wide enough for what they hold.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (index, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string does not fail.
            let _ = match index {
                0 => write!(line, " {cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Headings, then who did what; then who by whom.
pub(super) fn rows(cell: &Cell) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let columns = 0..cell.columns.len();
    let mut heading = vec![String::new()];
    let named = cell.columns.iter();
    heading.extend(named.map(|column| format!("{} {}", column.name, column.unit)));
    let mut figures = vec![heading];
    for series in &cell.series {
        let mut row = vec![series.entrant.name()];
        match series.failure {
            Some(_) => row.push("FAILED".into()),
            None => row.extend(columns.clone().map(|column| spread(series.spread(column)))),
        }
        figures.push(row);
    }
    let whole = |pair: &&crate::duel::Pair| {
        let failed = |index: usize| cell.series[index].failure.is_some();
        !failed(pair.of) && !failed(pair.by)
    };
    let ratios = cell.pairs.iter().filter(whole).map(|&pair| {
        let (of, by) = (&cell.series[pair.of].entrant, &cell.series[pair.by].entrant);
        let name = if of.variant == by.variant {
            format!("{} / {}", of.name(), by.system)
        } else {
            format!("{} / {}", of.name(), by.name())
        };
        let mut row = vec![name];
        row.extend(
            columns
                .clone()
                .map(|column| spread(cell.ratio(pair, column))),
        );
        row
    });
    (figures, ratios.collect())
}

/// The whole comparison: median, and in brackets minimum and maximum.
pub(crate) fn render(cell: &Cell) -> String {
    let (mut rows, ratios) = rows(cell);
    rows.extend(ratios);
    let mut text = format!("{}: {}\n{}", cell.name, cell.title, aligned(&rows));
    for series in &cell.series {
        if let Some(failure) = &series.failure {
            let _ = writeln!(text, "  {} FAILED: {failure}", series.entrant.name());
        }
    }
    if let Some(failure) = &cell.failure {
        let _ = writeln!(text, "  FAILED: {failure}");
    }
    for note in &cell.notes {
        let _ = writeln!(text, "  {note}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["", "a"], ["long name", "123"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows), "               a\n  long name  123\n");
    }
}
