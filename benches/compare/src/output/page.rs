//! All comparisons on one page that needs nothing else.

use std::fmt::Write;

use crate::duel::{Cell, P99, SPEED, UNBOUND, points};
use crate::output::plot::{Curve, Plot, render as draw};
use crate::output::table::rows;

const STYLE: &str = "body { font-family: sans-serif; max-width: 80em; margin: 2em auto; }
table { border-collapse: collapse; font-size: 85%; }
td, th { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child { text-align: left; }
tr.ratio { color: #555; }";

/// Text that means nothing to a browser.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The page.
pub(crate) fn render(machine: &str, cells: &[Cell]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>ringback and its peers</title><style>\n{STYLE}\n</style></head><body>\n\
         <h1>ringback and its peers</h1>\n\
         <p>Medians of runs in turn, in brackets minimum and maximum; ratios are taken \
         inside rounds. Taken on {}.</p>\n",
        plain(machine)
    );
    for cell in cells {
        // Writing to a string does not fail.
        let _ = writeln!(
            page,
            "<h2>{}</h2>\n<p>{}</p>",
            plain(&cell.name),
            plain(&cell.title)
        );
        page.push_str(&curves(cell));
        page.push_str(&table(cell));
        for note in cell.failure.iter().chain(&cell.notes) {
            let _ = writeln!(page, "<p>{}</p>", plain(note));
        }
    }
    page.push_str("</body></html>\n");
    page
}

fn table(cell: &Cell) -> String {
    let (figures, ratios) = rows(cell);
    let mut html = String::from("<table>\n");
    let mut row = |kind: &str, tag: &str, row: &[String]| {
        let _ = write!(html, "<tr{kind}>");
        for cell in row {
            let _ = write!(html, "<{tag}>{}</{tag}>", plain(cell));
        }
        html.push_str("</tr>\n");
    };
    for (index, cells) in figures.iter().enumerate() {
        row("", if index == 0 { "th" } else { "td" }, cells);
    }
    for cells in &ratios {
        row(" class=\"ratio\"", "td", cells);
    }
    html.push_str("</table>\n");
    html
}

/// The curves of a scenario that has any.
fn curves(cell: &Cell) -> String {
    if !cell.name.starts_with("curve/") {
        return String::new();
    }
    let curve = |name: &'static str| Curve {
        name,
        points: points(cell, &[name], SPEED, P99)
            .into_iter()
            .map(|(variant, point)| {
                let workers = variant.split(' ').next().unwrap_or_default().to_owned();
                (point.speed, point.latency, workers)
            })
            .collect(),
    };
    let plot = Plot {
        x: "backup MB/s",
        y: "guest p99, ms".into(),
        curves: ["ringback", UNBOUND, "qsd"].map(curve).into(),
    };
    draw(&plot).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(plain("a <b> & c"), "a &lt;b&gt; &amp; c");
    }
}
