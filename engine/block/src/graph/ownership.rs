//! Who keeps a node: somebody outside who asked for it by name, the nodes above
//! it, or whoever sends requests. When nobody does any more, it goes.

use std::pin::Pin;
use std::sync::Arc;

use ringback_ring::Shard;

use super::{Graph, GraphError, Kind, UserId};
use crate::bitmap::{BitmapFlags, BitmapInfo};

/// A place in the order of ages.
#[derive(Clone, Copy, Debug)]
pub struct Place(u64);

impl Graph {
    /// Whether there is a node of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// All nodes, oldest first.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> {
        let mut names: Vec<_> = self.nodes.iter().collect();
        names.sort_unstable_by_key(|(_, node)| node.number);
        names.into_iter().map(|(name, _)| name.as_str())
    }

    /// Keeps a place in the order of ages for a node that is made only after
    /// those below it.
    pub fn keep_place(&mut self) -> Place {
        self.next_number += 1;
        Place(self.next_number)
    }

    /// Puts a node at a place that was kept.
    pub fn set_place(&mut self, name: &str, place: Place) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.number = place.0;
        }
    }

    /// Says whether somebody outside keeps the node, until he gives it up.
    pub fn set_owned(&mut self, name: &str, is_owned: bool) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.is_owned = is_owned;
        }
    }

    /// Whether somebody outside keeps the node.
    pub fn is_owned(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.is_owned)
    }

    /// The nodes above a node, each with the name of the edge.
    pub fn parents(&self, name: &str) -> Vec<(&str, &'static str)> {
        let mut parents = Vec::new();
        for (parent, node) in &self.nodes {
            let edges = edges(&node.kind).into_iter();
            let here = edges.filter(|(_, child)| *child == name);
            parents.extend(here.map(|(edge, _)| (parent.as_str(), edge)));
        }
        parents
    }

    /// The nodes below a node, each with the name of the edge.
    pub fn children(&self, name: &str) -> Vec<(&'static str, &str)> {
        self.nodes
            .get(name)
            .map_or_else(Vec::new, |node| edges(&node.kind))
    }

    /// Whether somebody sends requests to exactly this node.
    pub fn has_users(&self, name: &str) -> bool {
        self.users.values().any(|user| user.node == name)
    }

    /// The node that somebody uses.
    pub fn node_of(&self, user: UserId) -> Option<&str> {
        self.users.get(&user).map(|user| user.node.as_str())
    }

    /// Removes a node if nobody keeps it, and then those below it that nobody
    /// else keeps.
    ///
    /// # Errors
    ///
    /// The first error of closing one of them: see [`Graph::remove`]. All of them
    /// are gone then, too.
    pub async fn release(&mut self, shard: &Shard, name: &str) -> Result<(), GraphError> {
        let Some(node) = self.nodes.get(name) else {
            return Ok(());
        };
        let is_kept = match &node.kind {
            // A job's filter whose job has gone, but for a reader of its snapshot:
            // guests do not keep it.
            Kind::CopyBeforeWrite {
                filter,
                is_exclusive: true,
                ..
            } => filter.has_job() || self.has_reader(name),
            _ => node.is_owned || self.has_users(name) || !self.parents(name).is_empty(),
        };
        if is_kept {
            return Ok(());
        }
        let children = self.children(name).into_iter();
        let children: Vec<String> = children.map(|(_, child)| child.to_owned()).collect();
        let mut result = match &self.node(name)?.kind {
            Kind::CopyBeforeWrite { .. } => self.remove_copy_before_write(shard, name).await,
            _ => self.remove(shard, name).await,
        };
        for child in children {
            let below: Pin<Box<dyn Future<Output = _>>> = Box::pin(self.release(shard, &child));
            result = result.and(below.await);
        }
        result
    }

    /// Ends every use, after its requests in flight.
    pub async fn detach_all(&mut self) {
        let users: Vec<UserId> = self.users.keys().copied().collect();
        for user in users {
            self.detach(user).await;
        }
    }

    /// Lets somebody use another node, without a request lost: what is in flight
    /// ends first, what comes meanwhile waits.
    ///
    /// # Errors
    ///
    /// [`GraphError`] if the others mind; everything is as it was then.
    pub async fn move_user(&mut self, id: UserId, node: &str) -> Result<(), GraphError> {
        self.node(node)?;
        let Some(user) = self.users.get(&id) else {
            return Ok(());
        };
        if user.access.write {
            self.check_writable(node)?;
        }
        self.drain(&[id]).await;
        let old = self.set_user_node(id, node);
        let result = self.check_permissions();
        if result.is_err() {
            self.set_user_node(id, &old);
            self.relock();
        }
        self.resume(&[id]).await;
        result
    }

    fn set_user_node(&mut self, id: UserId, node: &str) -> String {
        let user = self.users.get_mut(&id);
        user.map_or_else(String::new, |user| {
            std::mem::replace(&mut user.node, node.to_owned())
        })
    }

    /// The bitmaps that queries show of a node, newest first. A filter shows what
    /// can be read from its snapshot, what has been overwritten, and what it has
    /// still to save. Of a backup's filter the last is shown at the disk, as its
    /// youngest bitmap: there it was first shown, and scripts look for it.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`].
    pub fn shown_bitmaps(&self, name: &str) -> Result<Vec<BitmapInfo>, GraphError> {
        let node = self.node(name)?;
        let mut shown = Vec::new();
        for above in self.nodes.values() {
            if let Kind::CopyBeforeWrite {
                filter,
                file,
                is_exclusive: true,
                ..
            } = &above.kind
                && file == name
            {
                shown.push(anonymous(filter.cluster_size(), filter.counts().copy));
            }
        }
        if let Kind::CopyBeforeWrite {
            filter,
            is_exclusive,
            ..
        } = &node.kind
        {
            let (unit, counts) = (filter.cluster_size(), filter.counts());
            shown.push(anonymous(unit, counts.access));
            shown.push(anonymous(unit, counts.done));
            if !is_exclusive {
                shown.push(anonymous(unit, counts.copy));
            }
        }
        shown.extend(node.bitmaps.list());
        Ok(shown)
    }

    /// The state of a copy-before-write filter.
    ///
    /// # Errors
    ///
    /// [`GraphError::NoSnapshot`] if the node is none.
    pub fn copy_before_write(
        &self,
        name: &str,
    ) -> Result<&Arc<crate::filter::copy_before_write::CopyBeforeWrite>, GraphError> {
        match &self.node(name)?.kind {
            Kind::CopyBeforeWrite { filter, .. } => Ok(filter),
            _ => Err(GraphError::NoSnapshot(name.into())),
        }
    }
}

fn anonymous(granularity: u64, count: u64) -> BitmapInfo {
    BitmapInfo {
        name: None,
        granularity,
        count,
        flags: BitmapFlags::default(),
    }
}

/// The nodes below, by what they are to this one.
pub(super) fn edges(kind: &Kind) -> Vec<(&'static str, &str)> {
    match kind {
        Kind::Protocol { .. } => Vec::new(),
        Kind::Qcow2 {
            file,
            backing,
            data_file,
            ..
        } => {
            let mut edges = vec![("file", file.as_str())];
            edges.extend(data_file.iter().map(|child| ("data-file", child.as_str())));
            edges.extend(backing.iter().map(|child| ("backing", child.as_str())));
            edges
        }
        Kind::CopyBeforeWrite { file, target, .. } => vec![("file", file), ("target", target)],
        Kind::BlkDebug { image, .. } => vec![("image", image)],
        Kind::Raw { file, .. }
        | Kind::SnapshotAccess { file, .. }
        | Kind::Throttle { file, .. }
        | Kind::CopyOnRead { file, .. } => vec![("file", file)],
    }
}
