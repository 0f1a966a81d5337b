//! Filters by name: what belongs to them beside their place in the graph.

use std::sync::Arc;

use ringback_ring::Shard;
use ringback_ring::lock::Permission;

use super::{Graph, GraphError, Kind};
use crate::filter::blkdebug::{self, BlkDebug};
use crate::filter::copy_on_read::CopyOnRead;
use crate::filter::throttle::{Limits, Throttle, ThrottleGroup};

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

    /// A member of a group, above a node.
    pub(super) fn throttle_on(&self, file: String, group: String) -> Result<Kind, GraphError> {
        self.node(&file)?;
        let throttle = Arc::new(Throttle::new(self.throttle_group(&group)?));
        Ok(Kind::Throttle {
            throttle,
            group,
            file,
        })
    }

    /// A filter that fills the image below.
    pub(super) fn copy_on_read_on(&self, file: String, shards: usize) -> Result<Kind, GraphError> {
        self.check_writable(&file).map_err(|error| match error {
            GraphError::ReadOnly => GraphError::CopyOnReadReadOnly,
            error => error,
        })?;
        let filter = Arc::new(CopyOnRead::new(shards));
        Ok(Kind::CopyOnRead { filter, file })
    }

    /// A group of throttles by name: its limits may be changed at any time.
    ///
    /// # Errors
    ///
    /// [`GraphError::NoGroup`].
    pub fn throttle_group(&self, id: &str) -> Result<&Arc<ThrottleGroup>, GraphError> {
        self.throttle_groups
            .get(id)
            .ok_or_else(|| GraphError::NoGroup(id.into()))
    }

    /// Makes a group of throttles.
    ///
    /// # Errors
    ///
    /// [`GraphError`] if the name is taken or no identifier, or the limits make
    /// no sense.
    pub fn add_throttle_group(
        &mut self,
        shard: &Shard,
        id: &str,
        limits: Limits,
    ) -> Result<(), GraphError> {
        if !super::is_identifier(id) {
            return Err(GraphError::InvalidId);
        }
        if self.throttle_groups.contains_key(id) {
            return Err(GraphError::DuplicateGroup(id.into()));
        }
        let group = Arc::new(ThrottleGroup::new(shard, limits)?);
        self.throttle_groups.insert(id.into(), group);
        Ok(())
    }

    /// Changes a group's limits, whatever waits there.
    ///
    /// # Errors
    ///
    /// [`GraphError`]; nothing has changed then.
    pub fn set_throttle_limits(
        &self,
        shard: &Shard,
        id: &str,
        limits: Limits,
    ) -> Result<(), GraphError> {
        Ok(self.throttle_group(id)?.set_limits(shard, limits)?)
    }

    /// Removes a group that has no members.
    ///
    /// # Errors
    ///
    /// [`GraphError::NoGroup`] or [`GraphError::GroupInUse`].
    pub fn remove_throttle_group(&mut self, id: &str) -> Result<(), GraphError> {
        self.throttle_group(id)?;
        let is_used = self
            .nodes
            .values()
            .any(|node| matches!(&node.kind, Kind::Throttle { group, .. } if group == id));
        if is_used {
            return Err(GraphError::GroupInUse(id.into()));
        }
        self.throttle_groups.remove(id);
        Ok(())
    }

    /// The group whose member a throttle node is.
    ///
    /// # Errors
    ///
    /// [`GraphError`] if it is no such node.
    pub fn group_of_throttle(&self, node: &str) -> Result<&str, GraphError> {
        match &self.node(node)?.kind {
            Kind::Throttle { group, .. } => Ok(group),
            _ => Err(GraphError::NoThrottle(node.into())),
        }
    }

    /// Makes a throttle node a member of another group.
    ///
    /// # Errors
    ///
    /// [`GraphError`] if there is no such node or group, or a copy-before-write
    /// filter works with the node.
    pub async fn move_throttle(&mut self, node: &str, id: &str) -> Result<(), GraphError> {
        let fresh = Arc::new(Throttle::new(self.throttle_group(id)?));
        self.group_of_throttle(node)?;
        let is_held = self.nodes.values().any(|other| match &other.kind {
            Kind::CopyBeforeWrite { file, target, .. } => {
                self.passes_through(file, node) || self.passes_through(target, node)
            }
            _ => false,
        });
        if is_held {
            // What a filter saves goes along paths made when it was put in.
            return Err(GraphError::InUse(node.into()));
        }
        let concerned = self.users_above(node);
        self.drain(&concerned).await;
        if let Kind::Throttle {
            throttle, group, ..
        } = &mut self.node_mut(node)?.kind
        {
            *throttle = fresh;
            *group = id.into();
        }
        self.resume(&concerned).await;
        Ok(())
    }

    /// Removes every breakpoint of every node and lets go what they hold.
    pub fn resume_all_requests(&self) {
        for node in self.nodes.values() {
            if let Kind::BlkDebug { filter, .. } = &node.kind {
                filter.resume_all();
            }
        }
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
