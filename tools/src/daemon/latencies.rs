//! `x-query-latency-histograms`: what the engine has measured of itself.
//!
//! The engine's histograms only ever grow. A fresh start is a look that is
//! remembered and subtracted from later ones, so that whoever else reads them does
//! not see them fall.

use hdrhistogram::Histogram;
use ringback_block::metrics::clients::Request;
use ringback_block::metrics::{self, Class};
use serde_json::{Value, json};

use super::control::Control;
use crate::report::interchange;
use crate::report::latency::LatencySummary;

impl Control {
    /// Every class, since the last fresh start.
    pub(super) async fn query_latency_histograms(&mut self, reset: bool) -> Value {
        let now = metrics::look(self.shard.set()).await;
        let shown = match &self.measured_before {
            Some(before) => now.clone().since(before),
            None => now.clone(),
        };
        if reset {
            self.measured_before = Some(now);
        }
        let classes = Class::ALL.map(|class| entry(class.name(), shown.class(class)));
        let exports = shown.exports().flat_map(|waits| {
            Request::ALL.map(|request| {
                let class = format!("export-{}", request.name());
                let mut entry = entry(&class, waits.of(request));
                entry["export"] = waits.id.as_str().into();
                entry
            })
        });
        classes.into_iter().chain(exports).collect()
    }
}

/// A class of which there was nothing has a count and no durations.
fn entry(class: &str, histogram: &Histogram<u64>) -> Value {
    let Some(summary) = LatencySummary::of(histogram) else {
        return json!({ "class": class, "count": 0 });
    };
    json!({
        "class": class,
        "count": summary.count,
        "min-ns": summary.min_ns,
        "mean-ns": metrics::total_ns(histogram) / summary.count,
        "p50-ns": summary.p50_ns,
        "p90-ns": summary.p90_ns,
        "p99-ns": summary.p99_ns,
        "p999-ns": summary.p99_9_ns,
        "max-ns": summary.max_ns,
        "histogram": interchange::encode(histogram),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_nothing_has_no_durations() {
        let entry = entry("cbw-save", &metrics::histogram());
        assert_eq!(entry, json!({ "class": "cbw-save", "count": 0 }));
    }

    #[test]
    fn an_entry_sums_up_what_its_histogram_holds() {
        let mut histogram = metrics::histogram();
        (1..=1000).for_each(|n| histogram.record(n * 1000).expect("within bounds"));
        let entry = entry("copy-read", &histogram);
        assert_eq!(entry["count"], 1000);
        for (name, exact) in [
            ("min-ns", 1_000),
            ("mean-ns", 500_500),
            ("p50-ns", 500_000),
            ("p90-ns", 900_000),
            ("p99-ns", 990_000),
            ("p999-ns", 999_000),
            ("max-ns", 1_000_000),
        ] {
            let found = entry[name].as_u64().expect("a number");
            // Two digits of precision.
            assert!(found.abs_diff(exact) <= exact / 100, "{name}: {found}");
        }
        let text = entry["histogram"].as_str().expect("a text");
        assert_eq!(interchange::decode(text).as_ref(), Ok(&histogram));
    }
}
