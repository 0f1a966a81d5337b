//! Percentile files (`.hgrm`) as Java's `HdrHistogram` prints them and the usual plotters read them.
//!
//! The plotters (`plotFiles.html` and its likes) take lines of four columns that do not start with
//! `#`, plot the first against the last, and know nothing of units: they label the axis with what
//! the user selects there. Milliseconds are what is selected at first, and what Java's own
//! `HistogramLogProcessor` writes, so that is what these files hold. Java prints as many decimals
//! as its histogram has significant digits; here there are six, because a fast disk answers in a
//! few microseconds and three decimals of a millisecond would make stairs of it.
//!
//! Interval logs (`.hlog`) are another format and not written here.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;

/// Divides nanoseconds into the milliseconds which plotters expect.
pub(crate) const MILLISECOND: f64 = 1e6;

/// Lines for every halving of the distance to 100%, as in all of Java's tools.
const TICKS_PER_HALF_DISTANCE: f64 = 5.0;

/// Writes one file a histogram into a directory, which is made if need be, and returns the paths.
///
/// The name is the class of operations with its phase, as in `guest-write-baseline`, and becomes
/// `guest-write-baseline.hgrm`. A class in which nothing happened gets its file too: what is
/// missing raises questions, what is empty answers them.
pub(crate) fn write_files(
    directory: &Path,
    histograms: &[(&str, &Histogram<u64>)],
) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)?;
    let write_one = |(name, histogram): &(&str, &Histogram<u64>)| {
        let path = directory.join(format!("{name}.hgrm"));
        let mut out = BufWriter::new(File::create(&path)?);
        write(histogram, MILLISECOND, &mut out)?;
        out.flush()?;
        Ok(path)
    };
    histograms.iter().map(write_one).collect()
}

/// Writes the percentiles of a histogram, its values divided by `unit`.
pub(crate) fn write(histogram: &Histogram<u64>, unit: f64, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}",
        "Value", "Percentile", "TotalCount", LAST_HEADING
    )?;
    writeln!(out)?;
    write_percentiles(histogram, unit, out)?;
    write_footer(histogram, unit, out)
}

const LAST_HEADING: &str = "1/(1-Percentile)";

/// Writes a line whenever the recorded values have reached the next percentile, and one for 100%.
///
/// Percentiles are stepped in percent, as Java does, and not by the crate's `iter_quantiles`: its
/// steps of 0.1 miss 0.3 and 0.6 by the last bit of a float, and so show the next value.
fn write_percentiles(
    histogram: &Histogram<u64>,
    unit: f64,
    out: &mut impl Write,
) -> io::Result<()> {
    let total = histogram.len();
    let mut count = 0;
    let mut percentile = 0.0;
    for step in histogram.iter_recorded() {
        count += step.count_at_value();
        let value = step.value_iterated_to() as f64 / unit;
        let reached = 100.0 * count as f64 / total as f64;
        while reached >= percentile {
            write!(out, "{value:>12.6} {:.12} {count:>10}", percentile / 100.0)?;
            writeln!(out, " {:>14.2}", 1.0 / (1.0 - percentile / 100.0))?;
            if count == total {
                // The last value has one line of its own: the steps up to 100% never end.
                return writeln!(out, "{value:>12.6} {:.12} {count:>10}", 1.0);
            }
            percentile += step_after(percentile);
        }
    }
    Ok(())
}

/// The distance to the next percentile, which is halved with every halving of the distance to 100.
fn step_after(percentile: f64) -> f64 {
    let halvings = (100.0 / (100.0 - percentile)).log2().floor();
    100.0 / (TICKS_PER_HALF_DISTANCE * (halvings + 1.0).exp2())
}

fn write_footer(histogram: &Histogram<u64>, unit: f64, out: &mut impl Write) -> io::Result<()> {
    let (mean, stdev) = (histogram.mean() / unit, histogram.stdev() / unit);
    writeln!(
        out,
        "#[Mean    = {mean:>12.6}, StdDeviation   = {stdev:>12.6}]"
    )?;
    let (max, count) = (histogram.max() as f64 / unit, histogram.len());
    writeln!(
        out,
        "#[Max     = {max:>12.6}, Total count    = {count:>12}]"
    )?;
    let (buckets, sub_buckets) = (histogram.buckets(), sub_bucket_count(histogram));
    writeln!(
        out,
        "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]"
    )
}

/// How many counters the first bucket has. All others have half as many, because their lower half
/// is covered by the bucket before.
fn sub_bucket_count(histogram: &Histogram<u64>) -> usize {
    histogram.distinct_values() / (usize::from(histogram.buckets()) + 1) * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(histogram: &Histogram<u64>, unit: f64) -> String {
        let mut out = Vec::new();
        write(histogram, unit, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn ten_latencies() -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        for us in [80, 82, 84, 86, 90, 95, 120, 150, 900, 12_000] {
            histogram.record(us * 1_000).unwrap();
        }
        histogram
    }

    #[test]
    fn ten_latencies_as_text() {
        assert_eq!(
            text(&ten_latencies(), MILLISECOND)
                .lines()
                .collect::<Vec<_>>(),
            GOLDEN
        );
    }

    const GOLDEN: &[&str] = &[
        "       Value     Percentile TotalCount 1/(1-Percentile)",
        "",
        "    0.080063 0.000000000000          1           1.00",
        "    0.080063 0.100000000000          1           1.11",
        "    0.082047 0.200000000000          2           1.25",
        "    0.084031 0.300000000000          3           1.43",
        "    0.086015 0.400000000000          4           1.67",
        "    0.090047 0.500000000000          5           2.00",
        "    0.095039 0.550000000000          6           2.22",
        "    0.095039 0.600000000000          6           2.50",
        "    0.120063 0.650000000000          7           2.86",
        "    0.120063 0.700000000000          7           3.33",
        "    0.150015 0.750000000000          8           4.00",
        "    0.150015 0.775000000000          8           4.44",
        "    0.150015 0.800000000000          8           5.00",
        "    0.900095 0.825000000000          9           5.71",
        "    0.900095 0.850000000000          9           6.67",
        "    0.900095 0.875000000000          9           8.00",
        "    0.900095 0.887500000000          9           8.89",
        "    0.900095 0.900000000000          9          10.00",
        "   12.001279 0.912500000000         10          11.43",
        "   12.001279 1.000000000000         10",
        "#[Mean    =     1.368406, StdDeviation   =     3.551033]",
        "#[Max     =    12.001279, Total count    =           10]",
        "#[Buckets =           32, SubBuckets     =         2048]",
    ];

    #[test]
    fn an_empty_histogram_has_a_heading_and_a_footer() {
        let text = text(
            &Histogram::new_with_bounds(1, 1_000_000, 3).unwrap(),
            MILLISECOND,
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(
            lines[3],
            "#[Max     =     0.000000, Total count    =            0]"
        );
    }

    #[test]
    fn a_plotter_finds_four_rising_columns() {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        (1..=100_000_u64).for_each(|n| histogram.record(n * n).unwrap());
        let text = text(&histogram, MILLISECOND);
        let points: Vec<(f64, f64)> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|columns| columns.len() == 4 && columns[0] != "Value")
            .map(|columns| (columns[0].parse().unwrap(), columns[3].parse().unwrap()))
            .collect();
        assert!(points.len() > 50);
        assert!(points.is_sorted());
        assert!(
            text.contains("#[Buckets =           32, SubBuckets     =         2048]"),
            "{text}"
        );
    }

    #[test]
    fn every_histogram_gets_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("deep/er");
        let (full, empty) = (ten_latencies(), Histogram::new(3).unwrap());
        let paths = write_files(
            &target,
            &[
                ("guest-write-baseline", &full),
                ("guest-read-baseline", &empty),
            ],
        )
        .unwrap();
        assert_eq!(paths[0], target.join("guest-write-baseline.hgrm"));
        assert_eq!(
            fs::read_to_string(&paths[0]).unwrap(),
            text(&full, MILLISECOND)
        );
        assert!(paths[1].exists());
    }
}
