//! What has been measured, as text for Prometheus: one histogram a class, and one a kind of
//! request for each export.
//!
//! The boundaries are fixed, so that what is stored over months stays comparable.
//! A duration counts as the longest that the engine's own histograms cannot tell it
//! from, so nothing is shown below a boundary that was above it.

use std::fmt;

use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use ringback_block::metrics::clients::Request;
use ringback_block::metrics::{Class, Snapshot, total_ns};

/// Upper boundaries in nanoseconds: from what memory takes to what a guest takes for
/// a dead disk.
const BOUNDARIES_NS: [u64; 19] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// The whole text. It is what Prometheus reads by either name: its own text format, to
/// which the lines that only `OpenMetrics` knows are comments, or `OpenMetrics`.
pub(super) fn text(measured: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Latencies(measured)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a text takes whatever is written");
    text
}

#[derive(Debug)]
struct Latencies(Snapshot);

impl Collector for Latencies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut all = encoder.encode_descriptor(
            "ringback_latency",
            "How long operations of the engine took.",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for class in Class::ALL {
            encode_one(&mut all, &[("class", class.name())], self.0.class(class))?;
        }
        if self.0.exports().next().is_none() {
            return Ok(());
        }
        let mut all = encoder.encode_descriptor(
            "ringback_export_latency",
            "How long the clients of an export waited for requests.",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for waits in self.0.exports() {
            for request in Request::ALL {
                let labels = [("export", waits.id.as_str()), ("request", request.name())];
                encode_one(&mut all, &labels, waits.of(request))?;
            }
        }
        Ok(())
    }
}

fn encode_one<const N: usize>(
    all: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    histogram: &Histogram<u64>,
) -> fmt::Result {
    let seconds = total_ns(histogram) as f64 / 1e9;
    all.encode_family(labels)?.encode_histogram::<NoLabelSet>(
        seconds,
        histogram.len(),
        &buckets(histogram),
        None,
    )
}

/// Upper boundaries in seconds, and what lies between each and the one before.
fn buckets(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    let mut counts = [0; BOUNDARIES_NS.len() + 1];
    for step in histogram.iter_recorded() {
        let duration_ns = step.value_iterated_to();
        let index = BOUNDARIES_NS.partition_point(|&boundary| boundary < duration_ns);
        counts[index] += step.count_at_value();
    }
    let seconds = BOUNDARIES_NS.iter().map(|&ns| ns as f64 / 1e9);
    seconds.chain([f64::INFINITY]).zip(counts).collect()
}

#[cfg(test)]
mod tests {
    use ringback_block::metrics;

    use super::*;

    #[test]
    fn every_duration_has_its_bucket() {
        let mut histogram = metrics::histogram();
        for duration_ns in [
            1,
            9_000,
            11_000,
            600_000,
            9_000_000_000,
            metrics::LONGEST_NS,
        ] {
            histogram.record(duration_ns).expect("within bounds");
        }
        let found: Vec<_> = buckets(&histogram)
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        let wanted = [
            (1e-5, 2),
            (2.5e-5, 1),
            (1e-3, 1),
            (10.0, 1),
            (f64::INFINITY, 1),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn nothing_measured_is_a_whole_text() {
        let shards = ringback_ring::Shards::start(&ringback_ring::shards::Config {
            count: 1,
            ..Default::default()
        });
        let shards = shards.expect("a shard");
        let text = shards.spawn_on(
            0,
            |shard| async move { text(metrics::look(shard.set()).await) },
        );
        let text = text.wait().expect("the shard runs");
        shards.stop();
        let head = [
            "# HELP ringback_latency_seconds How long operations of the engine took.",
            "# TYPE ringback_latency_seconds histogram",
            "# UNIT ringback_latency_seconds seconds",
            "ringback_latency_seconds_sum{class=\"cbw-save\"} 0.0",
            "ringback_latency_seconds_count{class=\"cbw-save\"} 0",
            "ringback_latency_seconds_bucket{le=\"0.00001\",class=\"cbw-save\"} 0",
        ];
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..6], head);
        assert_eq!(lines.last(), Some(&"# EOF"));
        assert_eq!(lines.len(), 4 + Class::ALL.len() * (2 + 20));
    }
}
