//! Bitmaps that outlive the process: between a node and its image.
//!
//! A node's bitmaps are the graph's; an image only knows how to load and to
//! store them. They are loaded when the image is opened and stored when its node
//! is removed.

use std::sync::Arc;

use ringback_ring::Shard;

use super::{Graph, GraphError, Kind};
use crate::bitmap::{BitmapFlags, NodeBitmaps};
use crate::format::qcow2::{Qcow2, Qcow2Error, StoredBitmap};

/// A bitmap to be made.
#[derive(Clone, Debug)]
pub struct BitmapSpec {
    /// Unique on the node.
    pub name: String,
    /// Bytes that one bit stands for; none: the node's default.
    pub granularity: Option<u64>,
    /// Writes do not mark it.
    pub disabled: bool,
    /// It is stored in the node's image.
    pub persistent: bool,
}

impl Graph {
    /// The first node that has a bitmap of this name: this one, what a filter
    /// stands on, a backing file.
    pub fn node_with_bitmap(&self, node: &str, bitmap: &str) -> Option<&str> {
        let (mut name, mut entry) = self.nodes.get_key_value(node)?;
        while entry.bitmaps.get(bitmap).is_none() {
            let below = match &entry.kind {
                Kind::CopyBeforeWrite { file, .. }
                | Kind::Throttle { file, .. }
                | Kind::CopyOnRead { file, .. }
                | Kind::BlkDebug { image: file, .. } => file,
                Kind::Qcow2 { backing, .. } => backing.as_ref()?,
                Kind::Protocol { .. } | Kind::Raw { .. } | Kind::SnapshotAccess { .. } => {
                    return None;
                }
            };
            (name, entry) = self.nodes.get_key_value(below)?;
        }
        Some(name)
    }

    pub(super) fn image_of(&self, node: &str) -> Result<Option<Arc<Qcow2>>, GraphError> {
        match &self.node(node)?.kind {
            Kind::Qcow2 { image, .. } => Ok(Some(Arc::clone(image))),
            _ => Ok(None),
        }
    }

    /// Gives a node the bitmaps that its image held when it was opened.
    pub(super) fn take_bitmaps(&mut self, node: &str) -> Result<(), GraphError> {
        let Kind::Qcow2 {
            image, writable, ..
        } = &self.node(node)?.kind
        else {
            return Ok(());
        };
        let (loaded, read_only) = (image.take_loaded_bitmaps(), !writable);
        let bitmaps = &mut self.node_mut(node)?.bitmaps;
        for bitmap in loaded {
            let flags = BitmapFlags {
                recording: bitmap.recording,
                busy: false,
                persistent: true,
                read_only,
                inconsistent: bitmap.inconsistent,
            };
            bitmaps.insert(&bitmap.name, bitmap.bits, flags)?;
        }
        Ok(())
    }

    /// Stores the persistent bitmaps of a node that nobody uses any more.
    pub(super) async fn store_bitmaps(
        &mut self,
        shard: &Shard,
        node: &str,
    ) -> Result<(), GraphError> {
        let Kind::Qcow2 {
            image,
            writable: true,
            ..
        } = &self.node(node)?.kind
        else {
            return Ok(());
        };
        let image = Arc::clone(image);
        // Whoever froze one has gone without a word: its work is not done.
        let bitmaps = &mut self.node_mut(node)?.bitmaps;
        bitmaps.reclaim_all()?;
        let stored = to_store(bitmaps);
        image
            .store_bitmaps(shard, &stored)
            .await
            .map_err(Qcow2Error::Bitmaps)?;
        Ok(())
    }
}

/// The persistent bitmaps as they are to be stored.
pub(super) fn to_store(bitmaps: &NodeBitmaps) -> Vec<StoredBitmap> {
    // Those that the file does not know yet come behind the others, the youngest
    // first: so does QEMU.
    let youngest_first: Vec<_> = bitmaps.persistent().collect();
    let stored = youngest_first.into_iter().rev().filter_map(|bitmap| {
        Some(StoredBitmap {
            name: bitmap.name()?.to_owned(),
            bits: Arc::clone(bitmap.bits()),
            recording: bitmap.flags().recording,
            inconsistent: bitmap.flags().inconsistent,
        })
    });
    stored.collect()
}
