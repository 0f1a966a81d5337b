//! Bitmaps that outlive the process: between a node and its image.
//!
//! A node's bitmaps are the graph's; an image only knows how to load and to
//! store them. They are loaded when the image is opened and stored when its node
//! is removed.

use std::sync::Arc;

use ringback_ring::Shard;

use super::{Graph, GraphError, Kind};
use crate::bitmap::{BitmapError, BitmapFlags, NodeBitmaps, default_granularity};
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
    /// Makes a bitmap on a node. A persistent one is stored when the node is
    /// removed.
    ///
    /// # Errors
    ///
    /// [`GraphError::Bitmap`] if it cannot be made; [`GraphError::Qcow2`] or
    /// [`GraphError::NotStorable`] if the node cannot store it. Nothing has
    /// happened then.
    pub async fn add_bitmap(&mut self, node: &str, spec: &BitmapSpec) -> Result<(), GraphError> {
        let image = self.image_of(node)?;
        let cluster_size = image.as_ref().map(|image| image.cluster_size());
        let granularity = spec
            .granularity
            .unwrap_or_else(|| default_granularity(cluster_size));
        if spec.persistent {
            let bitmaps = &self.node(node)?.bitmaps;
            match bitmaps.check_new(&spec.name, granularity) {
                // The image says so itself.
                Ok(()) | Err(BitmapError::NameTooLong(_)) => {}
                Err(error) => return Err(error.into()),
            }
            let Some(image) = image else {
                return Err(GraphError::NotStorable(node.into()));
            };
            self.check_writable(node)?;
            let others = bitmaps.persistent();
            let names = others.filter_map(|bitmap| bitmap.name());
            image
                .check_storable(&spec.name, granularity, names)
                .map_err(Qcow2Error::Bitmaps)?;
        }
        self.change_bitmaps(node, |bitmaps| {
            bitmaps.add(&spec.name, granularity, spec.disabled, spec.persistent)
        })
        .await
        .map(drop)
    }

    /// Takes a bitmap away; a persistent one is taken out of its image at once.
    ///
    /// # Errors
    ///
    /// [`GraphError::Bitmap`] if there is none, or it is busy or read-only;
    /// [`GraphError::Qcow2`] if the image could not be changed. The bitmap is
    /// there then.
    pub async fn remove_bitmap(
        &mut self,
        shard: &Shard,
        node: &str,
        name: &str,
    ) -> Result<(), GraphError> {
        let image = self.image_of(node)?;
        let bitmaps = &self.node(node)?.bitmaps;
        bitmaps.check_removable(name)?;
        let is_persistent = bitmaps
            .get(name)
            .is_some_and(|bitmap| bitmap.flags().persistent);
        if let Some(image) = image.filter(|_| is_persistent) {
            image
                .remove_bitmap(shard, name)
                .await
                .map_err(Qcow2Error::Bitmaps)?;
        }
        self.change_bitmaps(node, |bitmaps| bitmaps.remove(name))
            .await
            .map(drop)
    }

    fn image_of(&self, node: &str) -> Result<Option<Arc<Qcow2>>, GraphError> {
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
        let stored = to_store(&mut self.node_mut(node)?.bitmaps)?;
        image
            .store_bitmaps(shard, &stored)
            .await
            .map_err(Qcow2Error::Bitmaps)?;
        Ok(())
    }
}

/// The persistent bitmaps as they are to be stored. Whoever froze one has gone
/// without a word: its work is not done.
fn to_store(bitmaps: &mut NodeBitmaps) -> Result<Vec<StoredBitmap>, BitmapError> {
    bitmaps.reclaim_all()?;
    let stored = bitmaps.persistent().filter_map(|bitmap| {
        Some(StoredBitmap {
            name: bitmap.name()?.to_owned(),
            bits: Arc::clone(bitmap.bits()),
            recording: bitmap.flags().recording,
            inconsistent: bitmap.flags().inconsistent,
        })
    });
    Ok(stored.collect())
}
