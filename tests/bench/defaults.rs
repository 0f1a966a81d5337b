//! The first thing that anybody does: no options but a small size.

use ringback_tests::scratch::names_in;

use crate::harness::{Bench, scratch};

#[test]
fn the_table_has_everything_that_took_place() {
    let scratch = scratch();
    let bench = Bench::bare(&scratch).with("--size 64M").baseline(1);
    let (finished, report) = bench.held();
    let table = finished.stdout;
    for heading in ["p50", "p90", "p99", "p99.9", "p99.99", "max", "per second"] {
        assert!(table.contains(heading), "no '{heading}' in\n{table}");
    }
    for class in [" read ", " write "] {
        assert!(table.contains(class), "no '{class}' in\n{table}");
    }
    for line in ["without backup", "during backup", "ratio"] {
        assert_eq!(table.matches(line).count(), 2, "'{line}' in\n{table}");
    }
    let starts = [
        "disk",
        "system",
        "latency",
        "fill",
        "backup",
        "point in time",
        "saves",
        "reader waits",
        "fleecing",
        "verification",
    ];
    for start in starts {
        let mut lines = table.lines().map(str::trim_start);
        assert!(
            lines.any(|line| line.starts_with(start)),
            "no '{start}' in\n{table}"
        );
    }
    assert!(table.contains("verification   held:"), "{table}");
    assert!(table.lines().all(|line| line.len() <= 100), "{table}");
    assert_eq!(finished.stderr, "");
    assert_eq!(report.count("/disk/size_bytes"), 64 << 20);
    assert_eq!(names_in(scratch.path()), ["report.json", "work"]);
}

#[test]
fn one_queue_a_shard_is_the_default() {
    let scratch = scratch();
    let report = Bench::quick(&scratch).with("--shards 2").report();
    assert_eq!(report.count("/settings/shards"), 2);
    assert_eq!(report.count("/settings/queues"), 2);
}

#[test]
fn one_shard_a_core_is_the_default() {
    let scratch = scratch();
    let cores = std::thread::available_parallelism().expect("a number of cores");
    let report = Bench::quick(&scratch).report();
    let shards = u64::try_from(cores.get()).expect("few cores").min(64);
    assert_eq!(report.count("/settings/shards"), shards);
    assert_eq!(report.count("/settings/queues"), shards);
}

#[test]
fn without_a_guest_there_is_no_table_of_latencies() {
    let scratch = scratch();
    let (finished, report) = Bench::quick(&scratch).with("--no-guest").held();
    assert!(
        !finished.stdout.contains("without backup"),
        "{}",
        finished.stdout
    );
    for phase in ["/baseline", "/during"] {
        assert!(report.is_null(phase), "{phase}");
    }
    // A disk that was made for the run is worth backing up.
    assert_eq!(report.count("/fill/bytes"), 16 << 20);
    assert_eq!(report.count("/verification/backup_bytes_checked"), 16 << 20);
}
