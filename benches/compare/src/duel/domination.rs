//! Whether one curve leaves nothing to be had from the other.

use crate::duel::cell::Cell;

/// A point of a curve: what should be large, and what should be small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) speed: f64,
    pub(crate) latency: f64,
}

/// The points of `theirs` for which there is none of `ours` with no less speed and
/// no more latency.
pub(crate) fn not_dominated(ours: &[Point], theirs: &[Point]) -> Vec<usize> {
    let beaten = |theirs: &Point| {
        let mut ours = ours.iter();
        ours.any(|ours| ours.speed >= theirs.speed && ours.latency <= theirs.latency)
    };
    let theirs = theirs.iter().enumerate();
    theirs
        .filter(|(_, point)| !beaten(point))
        .map(|(index, _)| index)
        .collect()
}

/// The medians of some systems' runs with their variants, where both figures are
/// there.
pub(crate) fn points(
    cell: &Cell,
    systems: &[&str],
    speed: usize,
    latency: usize,
) -> Vec<(String, Point)> {
    let own = cell.series_of(systems);
    own.filter_map(|series| {
        let point = Point {
            speed: series.median(speed)?,
            latency: series.median(latency)?,
        };
        Some((series.entrant.variant.clone(), point))
    })
    .collect()
}

/// A sentence on it.
pub(crate) fn verdict(
    cell: &Cell,
    ours: &[&str],
    peer: &str,
    speed: usize,
    latency: usize,
) -> Option<String> {
    let name = cell.columns[latency].name;
    let goal = format!(
        "for every point of {peer} ringback has one with no less throughput and no more {name}"
    );
    cell.series_of(&[peer]).next()?;
    if let Some(why) = cell.why_not_judged(&[ours, &[peer]].concat()) {
        return Some(format!("{goal}: {why}"));
    }
    let ours = points(cell, ours, speed, latency);
    let theirs = points(cell, &[peer], speed, latency);
    if ours.is_empty() || theirs.is_empty() {
        return None;
    }
    let plain = |points: &[(String, Point)]| points.iter().map(|(_, point)| *point).collect();
    let (plain_ours, plain_theirs): (Vec<_>, Vec<_>) = (plain(&ours), plain(&theirs));
    let open = not_dominated(&plain_ours, &plain_theirs);
    let open: Vec<&str> = open.iter().map(|&index| theirs[index].0.as_str()).collect();
    Some(if open.is_empty() {
        format!("{goal}: met")
    } else {
        format!("{goal}: missed at {}", open.join("; "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duel::cell::tests::cell;

    fn point(speed: f64, latency: f64) -> Point {
        Point { speed, latency }
    }

    #[test]
    fn one_good_point_may_beat_them_all() {
        let ours = [point(500.0, 1.0)];
        let theirs = [point(400.0, 1.5), point(500.0, 1.0)];
        assert!(not_dominated(&ours, &theirs).is_empty());
    }

    #[test]
    fn faster_and_later_beats_nothing() {
        let ours = [point(600.0, 9.0), point(100.0, 0.5)];
        let theirs = [point(400.0, 1.5), point(50.0, 2.0)];
        assert_eq!(not_dominated(&ours, &theirs), [0]);
        assert_eq!(not_dominated(&[], &theirs), [0, 1]);
    }

    #[test]
    fn the_verdict_names_what_is_missed() {
        let mut cell = cell(&[
            ("ringback", "1 worker", &[[500.0, 3.0]]),
            ("qsd", "1 worker", &[[400.0, 2.0]]),
            ("qsd", "8 workers", &[[450.0, 9.0]]),
        ]);
        let verdict = verdict(&cell, &["ringback"], "qsd", 0, 1).unwrap();
        assert!(verdict.ends_with("missed at 1 worker"), "{verdict}");
        assert_eq!(super::verdict(&cell, &["ringback"], "fio", 0, 1), None);
        // It might have been beaten there, or not.
        cell.series[1].failure = Some("no more of this".into());
        let verdict = super::verdict(&cell, &["ringback"], "qsd", 0, 1).unwrap();
        assert!(
            verdict.ends_with("not judged: qsd, 1 worker failed"),
            "{verdict}"
        );
    }
}
