//! What queries answer of nodes.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `graph` | who uses which node for what |
//! | `stats` | what was asked of disks and nodes |
//! | `text` | nodes and disks for people |

mod graph;
mod stats;
mod text;

use std::collections::BTreeMap;

use ringback_block::format::qcow2::{ListedBitmap, Snapshot};
use ringback_qmp_shim::blockdev::DetectZeroes;
use ringback_qmp_shim::command::BlockSetWriteThreshold;
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::open::full_backing_name;
use serde_json::{Value, json};

use super::Reply;
use super::control::Control;
use crate::open::Opened;

/// Nodes as they are seen by one query.
pub(super) struct Look<'a> {
    control: &'a Control,
    /// What the files of qcow2 nodes hold, by node.
    bitmaps: BTreeMap<String, Vec<ListedBitmap>>,
}

impl Control {
    /// Newest first.
    pub(super) async fn named_block_nodes(&self, flat: bool) -> Reply {
        let look = self.look().await;
        let names = self.graph.names().rev();
        let entries = names.filter_map(|name| look.node_entry(name, flat));
        Ok(entries.collect())
    }

    pub(super) async fn query_block(&self) -> Value {
        let look = self.look().await;
        let backends = self.ordered_backends();
        let entries = backends.map(|backend| {
            let mut entry = backend.entry();
            let node = self.node_of_backend(backend);
            if let Some(inserted) = node.and_then(|node| look.node_entry(node, false)) {
                entry["inserted"] = inserted;
            }
            entry
        });
        entries.collect()
    }

    async fn look(&self) -> Look<'_> {
        let mut bitmaps = BTreeMap::new();
        for name in self.graph.names() {
            if let Some(image) = self.graph.qcow2(name) {
                bitmaps.insert(name.to_owned(), image.listed_bitmaps().await);
            }
        }
        let control = self;
        Look { control, bitmaps }
    }

    pub(super) fn set_write_threshold(&self, asked: &BlockSetWriteThreshold) -> Reply {
        let name = &asked.node_name;
        let Ok(traffic) = self.graph.traffic(name) else {
            return Err(CommandError::generic(format!("Device '{name}' not found")));
        };
        traffic.set_threshold(name, asked.write_threshold, self.notify());
        Ok(json!({}))
    }

    /// The backing file's node, if there is one.
    pub(super) fn backing_of(&self, name: &str) -> Option<&str> {
        self.child(name, &["backing"])
    }

    /// The first child by one of these edges.
    pub(super) fn child(&self, name: &str, edges: &[&str]) -> Option<&str> {
        let children = self.graph.children(name).into_iter();
        let mut found = children.filter(|(edge, _)| edges.contains(edge));
        found.next().map(|(_, child)| child)
    }
}

impl Look<'_> {
    /// A node as queries show it.
    pub(super) fn node_entry(&self, name: &str, flat: bool) -> Option<Value> {
        let opened = self.control.nodes.get(name)?;
        let settings = &opened.settings;
        let threshold = self
            .control
            .graph
            .traffic(name)
            .map(|node| node.threshold());
        let mut entry = json!({
            "iops_rd": 0,
            "detect_zeroes": match settings.detect_zeroes {
                DetectZeroes::Off => "off",
                DetectZeroes::On => "on",
                DetectZeroes::Unmap => "unmap",
            },
            "active": true,
            "image": self.image_chain(opened, flat),
            "iops_wr": 0,
            "ro": settings.read_only,
            "node-name": name,
            "backing_file_depth": if flat { 0 } else { self.depth(name) },
            "drv": opened.driver,
            "iops": 0,
            "bps_wr": 0,
            "write_threshold": threshold.unwrap_or(0),
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
        let backing = self.control.child(name, &["backing"]);
        if let Some(backing) = backing.and_then(|backing| self.control.nodes.get(backing)) {
            entry["backing_file"] = backing.name.to_string().into();
        }
        let bitmaps = self.control.bitmap_entries(name);
        if !bitmaps.is_empty() {
            entry["dirty-bitmaps"] = bitmaps.into();
        }
        Some(entry)
    }

    /// The node that shows through: the one below a filter, or a backing file.
    fn next_in_chain(&self, name: &str) -> Option<&str> {
        let edges: &[&str] = match self.control.nodes.get(name)?.driver {
            "throttle" | "copy-on-read" | "copy-before-write" => &["file"],
            "blkdebug" => &["image"],
            _ => &["backing"],
        };
        self.control.child(name, edges)
    }

    fn depth(&self, name: &str) -> u64 {
        let mut depth = 0;
        let mut at = name;
        while let Some(next) = self.next_in_chain(at) {
            depth += 1;
            at = next;
        }
        depth
    }

    /// An image, and with it those that show through, unless that is `flat`.
    fn image_chain(&self, opened: &Opened, flat: bool) -> Value {
        let mut image = self.image(opened);
        if !flat
            && let Some(next) = self.next_in_chain(&opened.node)
            && let Some(next) = self.control.nodes.get(next)
        {
            image["backing-image"] = self.image_chain(next, flat);
        }
        image
    }

    /// What an image says of itself.
    fn image(&self, opened: &Opened) -> Value {
        let (control, node) = (self.control, &opened.node);
        let size = control.graph.size(node).unwrap_or(0);
        let mut image = json!({
            "virtual-size": size.next_multiple_of(512),
            "filename": opened.name.to_string(),
            "format": opened.driver,
        });
        if let Some(cluster_size) = self.cluster_size(node) {
            image["dirty-flag"] = false.into();
            if cluster_size > 0 {
                image["cluster-size"] = cluster_size.into();
            }
        }
        if let Some(bytes) = self.allocated_bytes(node) {
            image["actual-size"] = bytes.into();
        }
        if let (Some(header), Some(qcow2)) = (&opened.header, control.graph.qcow2(node)) {
            let mut data = crate::open::describe_qcow2(header, qcow2.is_marked_corrupt());
            let bitmaps = self.bitmaps.get(node).map_or(&[][..], Vec::as_slice);
            if !bitmaps.is_empty() {
                data["bitmaps"] = bitmaps.iter().map(bitmap_entry).collect();
            }
            image["format-specific"] = json!({ "type": "qcow2", "data": data });
            if !qcow2.snapshots().is_empty() {
                image["snapshots"] = qcow2.snapshots().iter().map(snapshot_entry).collect();
            }
            self.add_backing_name(opened, &mut image);
        } else if opened.driver == "file" {
            image["format-specific"] = json!({ "type": "file", "data": {} });
        }
        image
    }

    /// The backing file as the image itself calls it.
    fn add_backing_name(&self, opened: &Opened, image: &mut Value) {
        let Some(header) = &opened.header else {
            return;
        };
        let Some(backing) = &header.backing_file else {
            return;
        };
        let backing = String::from_utf8_lossy(backing);
        let file = self.control.child(&opened.node, &["file"]);
        let file = file.and_then(|file| self.control.nodes.get(file));
        let overlay = file.and_then(|file| file.name.base());
        if let Ok(Some(full)) = full_backing_name(overlay, &backing, opened.driver) {
            image["full-backing-filename"] = full.into();
        }
        image["backing-filename"] = backing.into();
        if let Some(format) = &header.extensions.backing_format {
            image["backing-filename-format"] = format.as_str().into();
        }
    }

    /// Unit of allocation in bytes, 0 for one that does not matter; none if
    /// the driver has nothing to say of itself.
    fn cluster_size(&self, name: &str) -> Option<u64> {
        match self.control.nodes.get(name)?.driver {
            "null-co" | "snapshot-access" => None,
            "file" | "host_device" => Some(0),
            "qcow2" => self.control.graph.cluster_size(name).ok(),
            _ => self.cluster_size(self.control.child(name, &["file", "image"])?),
        }
    }

    /// What an image takes on its storage, without what shows through.
    fn allocated_bytes(&self, name: &str) -> Option<u64> {
        let control = self.control;
        match control.nodes.get(name)?.driver {
            "null-co" => Some(0),
            // QEMU takes it for a protocol which cannot tell.
            "blkdebug" => None,
            "file" | "host_device" => control
                .graph
                .file(name)
                .and_then(ringback_ring::File::allocated_bytes),
            _ => {
                let children = control.graph.children(name).into_iter();
                let own = children.filter(|(edge, _)| !matches!(*edge, "backing" | "target"));
                own.map(|(_, child)| self.allocated_bytes(child)).sum()
            }
        }
    }
}

fn bitmap_entry(bitmap: &ListedBitmap) -> Value {
    let flags = [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
    json!({
        "name": bitmap.name,
        "granularity": bitmap.granularity,
        "flags": flags.map(|(_, name)| name).collect::<Vec<_>>(),
    })
}

fn snapshot_entry(snapshot: &Snapshot) -> Value {
    let mut entry = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
    });
    if let Some(icount) = snapshot.icount {
        entry["icount"] = icount.into();
    }
    entry
}
