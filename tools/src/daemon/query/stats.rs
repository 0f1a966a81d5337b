//! `query-blockstats` and `block-latency-histogram-set`.
//!
//! Requests are counted where a guest's requests would enter. A node by itself
//! knows only how far writes went.

use ringback_block::usage::{Histogram, Operation, Usage};
use ringback_qmp_shim::command::BlockLatencyHistogramSet;
use ringback_qmp_shim::command_error::CommandError;
use serde_json::{Value, json};

use crate::daemon::Reply;
use crate::daemon::backends::Backend;
use crate::daemon::control::Control;

/// Kinds of request, with the beginning of their names in the answer.
const OPERATIONS: [(&str, Operation); 5] = [
    ("rd", Operation::Read),
    ("wr", Operation::Write),
    ("zone_append", Operation::ZoneAppend),
    ("flush", Operation::Flush),
    ("unmap", Operation::Unmap),
];

impl Control {
    /// All nodes, the oldest first, or all drives and devices.
    pub(in crate::daemon) async fn query_blockstats(&self, nodes: bool) -> Value {
        if nodes {
            let names = self.graph.names();
            return names.map(|name| self.node_stats(name, false)).collect();
        }
        let mut entries = Vec::new();
        for backend in self.ordered_backends() {
            let usage = backend.usage().await;
            let mut entry = match self.node_of_backend(backend) {
                Some(node) => self.node_stats(node, true),
                None => json!({}),
            };
            let end = self.highest_write_end(self.node_of_backend(backend));
            entry["stats"] = stats(&usage, end, true, self.shard.now_ns());
            entry["device"] = backend.name().into();
            if let Some(qdev) = backend.qdev() {
                entry["qdev"] = qdev.into();
            }
            entries.push(entry);
        }
        entries.into()
    }

    fn highest_write_end(&self, node: Option<&str>) -> u64 {
        let traffic = node.and_then(|node| self.graph.traffic(node).ok());
        traffic.map_or(0, |traffic| traffic.highest_write_end())
    }

    /// A node and those below; below a drive or device backing files, too.
    fn node_stats(&self, name: &str, of_backend: bool) -> Value {
        let end = self.highest_write_end(Some(name));
        let mut entry = json!({
            "node-name": name,
            "stats": stats(&Usage::default(), end, false, 0),
        });
        let driver = self.nodes.get(name).map(|opened| opened.driver);
        if let (Some(driver @ ("file" | "host_device")), Ok(traffic)) =
            (driver, self.graph.traffic(name))
        {
            let discards = traffic.discards();
            entry["driver-specific"] = json!({
                "driver": driver,
                "discard-nb-ok": discards.succeeded,
                "discard-nb-failed": discards.failed,
                "discard-bytes-ok": discards.bytes,
            });
        }
        // Where the data is.
        let data = self
            .child(name, &["data-file"])
            .or_else(|| self.child(name, &["file", "image"]));
        if let Some(data) = data {
            entry["parent"] = self.node_stats(data, of_backend);
        }
        if let Some(backing) = self.child(name, &["backing"]).filter(|_| of_backend) {
            entry["backing"] = self.node_stats(backing, of_backend);
        }
        entry
    }

    /// Histograms from now on, for each kind of request that has boundaries; if
    /// none has, no more histograms at all.
    pub(in crate::daemon) async fn set_latency_histograms(
        &mut self,
        asked: &BlockLatencyHistogramSet,
    ) -> Reply {
        let id = &asked.id;
        let index = self.find_disk(id)?;
        let own = [
            ("read", Operation::Read, &asked.boundaries_read),
            ("write", Operation::Write, &asked.boundaries_write),
            ("append write", Operation::ZoneAppend, &asked.boundaries_zap),
            ("flush", Operation::Flush, &asked.boundaries_flush),
        ];
        let own = own.map(|(word, operation, boundaries)| {
            let boundaries = boundaries.as_ref().or(asked.boundaries.as_ref());
            (word, operation, boundaries)
        });
        let ends = own.iter().all(|(_, _, boundaries)| boundaries.is_none());
        for (word, operation, boundaries) in own {
            let backend = &mut self.backends[index];
            match boundaries {
                Some(boundaries) => {
                    // As in QEMU, those before a bad one stay.
                    let histogram = Histogram::new(boundaries).map_err(|_| {
                        let text = format!("Device '{id}' set {word} boundaries fail");
                        CommandError::generic(text)
                    })?;
                    backend.set_histogram(operation, Some(histogram)).await;
                }
                None if ends => backend.set_histogram(operation, None).await,
                None => {}
            }
        }
        Ok(json!({}))
    }
}

impl Backend {
    /// What was asked of it, whatever node it had.
    async fn usage(&self) -> Usage {
        match self.attachment() {
            Some(attachment) => attachment.usage().await,
            None => self.past.clone(),
        }
    }

    async fn set_histogram(&mut self, operation: Operation, histogram: Option<Histogram>) {
        if let Some(attachment) = self.attachment() {
            attachment
                .set_histogram(operation, histogram.as_ref())
                .await;
        }
        self.past.set_histogram(operation, histogram);
    }
}

fn stats(usage: &Usage, highest_write_end: u64, is_guest: bool, now_ns: u64) -> Value {
    let mut stats = json!({
        "wr_highest_offset": highest_write_end,
        "account_invalid": is_guest,
        "account_failed": is_guest,
        "timed_stats": [],
    });
    for (name, operation) in OPERATIONS {
        let counter = usage.counter(operation);
        if operation != Operation::Flush {
            stats[format!("{name}_bytes")] = counter.bytes.into();
            // Every request goes down as it came.
            stats[format!("{name}_merged")] = 0.into();
        }
        stats[format!("{name}_operations")] = counter.operations.into();
        stats[format!("{name}_total_time_ns")] = counter.total_time_ns.into();
        stats[format!("failed_{name}_operations")] = counter.failed.into();
        stats[format!("invalid_{name}_operations")] = counter.invalid.into();
        if let Some(histogram) = usage.histogram(operation) {
            stats[format!("{name}_latency_histogram")] = json!({
                "boundaries": histogram.boundaries(),
                "bins": histogram.bins(),
            });
        }
    }
    if let Some(last_ns) = usage.last_access_ns() {
        stats["idle_time_ns"] = now_ns.saturating_sub(last_ns).into();
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_disk_shows_zeroes_and_no_idle_time() {
        let shown = stats(&Usage::default(), 512, true, 9);
        assert_eq!(shown["wr_highest_offset"], 512);
        assert_eq!(shown["account_failed"], true);
        assert_eq!(shown["zone_append_merged"], 0);
        assert_eq!(shown["invalid_flush_operations"], 0);
        assert_eq!(shown.get("flush_bytes"), None);
        assert_eq!(shown.get("idle_time_ns"), None);
        assert_eq!(shown.get("rd_latency_histogram"), None);
        // Five kinds of six figures, but for the two of flushes, and four more.
        assert_eq!(shown.as_object().map(serde_json::Map::len), Some(32));
    }

    #[test]
    fn histograms_are_shown_by_kind() {
        let mut usage = Usage::default();
        let histogram = Histogram::new(&[10, 20]).expect("they rise");
        usage.set_histogram(Operation::Flush, Some(histogram));
        let shown = stats(&usage, 0, true, 0);
        let wanted = json!({ "boundaries": [10, 20], "bins": [0, 0, 0] });
        assert_eq!(shown["flush_latency_histogram"], wanted);
    }
}
