//! New images on top of others.

use super::argument::arguments;
use crate::visit::words;

words! {
    /// Where a new image comes from.
    pub enum NewImageMode {
        /// It is there.
        Existing = "existing",
        /// It is made, with the absolute path of its backing file in it.
        AbsolutePaths = "absolute-paths",
    }
}

arguments! {
    /// Arguments of `blockdev-snapshot`.
    pub struct BlockdevSnapshot {
        /// The node that becomes a backing file.
        node: String = "node",
        /// The node that is put on top of it.
        overlay: String = "overlay",
    }

    /// Arguments of `blockdev-snapshot-sync`.
    pub struct BlockdevSnapshotSync {
        /// The device whose image becomes a backing file.
        device: Option<String> = "device",
        /// Or the node.
        node_name: Option<String> = "node-name",
        /// Name of the new image's file.
        snapshot_file: String = "snapshot-file",
        /// Node-name of the new image.
        snapshot_node_name: Option<String> = "snapshot-node-name",
        /// Format of the new image; default qcow2.
        format: Option<String> = "format",
        /// Whether the file is made; default: it is.
        mode: Option<NewImageMode> = "mode",
    }

    /// What a snapshot inside of an image is called.
    pub struct BlockdevSnapshotInternal {
        /// The device or node.
        device: String = "device",
        /// Name of the snapshot.
        name: String = "name",
    }
}
