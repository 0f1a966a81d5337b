//! Filters by name: what belongs to them beside their place in the graph.

use std::sync::Arc;

use ringback_ring::lock::Permission;

use super::{Graph, GraphError, Kind};
use crate::filter::blkdebug::{self, BlkDebug};

impl Graph {
    /// A filter that makes requests fail, above a node.
    pub(super) fn blkdebug_on(
        &self,
        image: String,
        options: blkdebug::Options,
        shards: usize,
    ) -> Result<Kind, GraphError> {
        let takes = |permission| options.take_child_perms.contains(&permission);
        if takes(Permission::Write) || takes(Permission::WriteUnchanged) {
            self.check_writable(&image)?;
        }
        let below = self.child(&image)?.request_alignment();
        let filter = Arc::new(BlkDebug::new(options, below, shards)?);
        Ok(Kind::BlkDebug { filter, image })
    }

    /// The topmost `blkdebug` filter at or below a node: where breakpoints are
    /// set. None: there is none.
    pub fn blkdebug(&self, name: &str) -> Option<Arc<BlkDebug>> {
        let mut at = name;
        loop {
            let kind = &self.nodes.get(at)?.kind;
            if let Kind::BlkDebug { filter, .. } = kind {
                return Some(Arc::clone(filter));
            }
            at = match kind {
                Kind::Qcow2 { file, .. } => file,
                kind => super::main_child(kind)?,
            };
        }
    }
}
