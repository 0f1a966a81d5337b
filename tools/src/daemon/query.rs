//! What queries answer of nodes.

use serde_json::{Value, json};

use super::Reply;
use super::control::Control;
use crate::open::Opened;

impl Control {
    /// Newest first.
    pub(super) fn named_block_nodes(&self, flat: bool) -> Reply {
        let names: Vec<&str> = self.graph.names().rev().collect();
        let entries = names
            .into_iter()
            .filter_map(|name| self.node_entry(name, flat));
        Ok(entries.collect())
    }

    /// A node as queries show it.
    pub(super) fn node_entry(&self, name: &str, flat: bool) -> Option<Value> {
        let opened = self.nodes.get(name)?;
        let settings = &opened.settings;
        let backing = self.backing_of(name);
        let mut entry = json!({
            "iops_rd": 0,
            "detect_zeroes": match settings.detect_zeroes {
                ringback_qmp_shim::blockdev::DetectZeroes::Off => "off",
                ringback_qmp_shim::blockdev::DetectZeroes::On => "on",
                ringback_qmp_shim::blockdev::DetectZeroes::Unmap => "unmap",
            },
            "active": true,
            "image": self.image_entry(opened, flat),
            "iops_wr": 0,
            "ro": settings.read_only,
            "node-name": name,
            "backing_file_depth": if flat { 0 } else { self.backing_depth(name) },
            "drv": opened.driver,
            "iops": 0,
            "bps_wr": 0,
            "write_threshold": 0,
            "encrypted": false,
            "bps": 0,
            "bps_rd": 0,
            "cache": {
                "no-flush": settings.no_flush,
                "direct": settings.direct,
                "writeback": true,
            },
            "file": opened.name.to_string(),
        });
        if let Some(backing) = backing.and_then(|backing| self.nodes.get(backing)) {
            entry["backing_file"] = backing.name.to_string().into();
        }
        let bitmaps = self.bitmap_entries(name);
        if !bitmaps.is_empty() {
            entry["dirty-bitmaps"] = bitmaps.into();
        }
        Some(entry)
    }

    /// The node that shows through, if there is one.
    pub(super) fn backing_of(&self, name: &str) -> Option<&str> {
        let children = self.graph.children(name);
        let backing = children.into_iter().find(|(edge, _)| *edge == "backing");
        backing.map(|(_, child)| child)
    }

    fn backing_depth(&self, name: &str) -> u64 {
        let mut depth = 0;
        let mut at = name;
        while let Some(backing) = self.backing_of(at) {
            depth += 1;
            at = backing;
        }
        depth
    }

    /// What an image says of itself.
    fn image_entry(&self, opened: &Opened, flat: bool) -> Value {
        let size = self.graph.size(&opened.node).unwrap_or(0);
        let mut image = json!({
            "virtual-size": size.next_multiple_of(512),
            "filename": opened.name.to_string(),
            "format": opened.driver,
            "dirty-flag": false,
        });
        if let Some(actual) = self.graph.file(&opened.node).and_then(allocated_bytes) {
            image["actual-size"] = actual.into();
        }
        match (&opened.header, self.graph.qcow2(&opened.node)) {
            (Some(header), Some(qcow2)) => {
                image["cluster-size"] = qcow2.cluster_size().into();
                image["format-specific"] = json!({
                    "type": "qcow2",
                    "data": crate::open::describe_qcow2(header, qcow2.is_marked_corrupt()),
                });
            }
            _ if matches!(opened.driver, "file" | "host_device") => {
                image["format-specific"] = json!({ "type": opened.driver, "data": {} });
            }
            _ => {}
        }
        if let Some(backing) = self.backing_of(&opened.node)
            && let Some(backing) = self.nodes.get(backing)
        {
            image["backing-filename"] = backing.name.to_string().into();
            image["full-backing-filename"] = backing.name.to_string().into();
            image["backing-filename-format"] = backing.driver.into();
            if !flat {
                image["backing-image"] = self.image_entry(backing, flat);
            }
        }
        image
    }
}

fn allocated_bytes(file: &ringback_ring::File) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(file.path())
        .ok()
        .map(|metadata| metadata.blocks() * 512)
}
