//! From a node to the path that its I/O takes.

use std::sync::Arc;

use super::{Graph, GraphError, Kind};
use crate::filter::copy_before_write::CopyBeforeWrite;
use crate::format::Image;
use crate::path::{Base, Layer, Path};

impl Graph {
    /// The filter whose target is this node and whose disk is below it as well:
    /// what was not saved is read from that disk.
    fn fleecing(&self, name: &str) -> Option<Arc<CopyBeforeWrite>> {
        self.nodes.values().find_map(|node| match &node.kind {
            Kind::CopyBeforeWrite {
                filter,
                file,
                target,
                ..
            } if target == name && self.reaches(target, file) => Some(Arc::clone(filter)),
            _ => None,
        })
    }

    /// The data path from a node down.
    pub(super) fn path(&self, name: &str) -> Result<Path, GraphError> {
        let mut layers = Vec::new();
        let mut at = name;
        loop {
            let node = self.node(at)?;
            let recorders = node.bitmaps.recorders();
            let filter = match &node.kind {
                Kind::CopyBeforeWrite { filter, .. } => Some(Arc::clone(filter)),
                _ => None,
            };
            let throttle = match &node.kind {
                Kind::Throttle { throttle, .. } => Some(Arc::clone(throttle)),
                _ => None,
            };
            let traffic = match &node.kind {
                Kind::Protocol { .. } => None,
                _ => Some(Arc::clone(&node.traffic)),
            };
            layers.push(Layer {
                copy_before_write: filter,
                fleecing: self.fleecing(at),
                throttle,
                recorders,
                traffic,
                treatment: node.policy.treatment,
            });
            at = match &node.kind {
                Kind::Protocol { storage, .. } => {
                    let base = Base::Storage(Arc::clone(storage));
                    return Ok(Path::new(layers, base));
                }
                Kind::Raw { raw, file } => {
                    let image = Image::Raw {
                        raw: *raw,
                        file: self.child(file)?,
                    };
                    return Ok(Path::new(layers, Base::Image(Arc::new(image))));
                }
                Kind::Qcow2 { image, backing, .. } => {
                    let backing = match backing {
                        Some(backing) => Some(self.child(backing)?),
                        None => None,
                    };
                    let image = Image::Qcow2 {
                        image: Arc::clone(image),
                        backing,
                    };
                    return Ok(Path::new(layers, Base::Image(Arc::new(image))));
                }
                Kind::CopyBeforeWrite { file, .. } | Kind::Throttle { file, .. } => file,
                Kind::CopyOnRead { filter, file } => {
                    let base = Base::CopyOnRead(Arc::clone(filter), self.child(file)?);
                    return Ok(Path::new(layers, base));
                }
                Kind::SnapshotAccess { snapshot, .. } => {
                    return Ok(Path::new(layers, Base::Snapshot(Arc::clone(snapshot))));
                }
                Kind::BlkDebug { filter, image } => {
                    let base = Base::BlkDebug(Arc::clone(filter), self.child(image)?);
                    return Ok(Path::new(layers, base));
                }
            };
        }
    }
}
