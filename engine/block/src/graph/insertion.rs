//! Copy-before-write filters that come and go under load, and the bitmaps that
//! are frozen for them.

use std::sync::Arc;

use ringback_ring::Shard;

use super::{Graph, GraphError, Kind, UserId, children};
use crate::bitmap::DirtyBitmap;
use crate::filter::copy_before_write::{self, CopyBeforeWrite};

/// A copy-before-write filter to be put above a node under load.
pub struct Insertion<'a> {
    /// Name of the new node.
    pub node_name: &'a str,
    /// Above which node.
    pub file: &'a str,
    /// Where old data goes.
    pub target: &'a str,
    /// Save only what is dirty here: a bitmap of `file`, which is frozen for the
    /// filter and must be given back by [`Graph::end_bitmap`].
    pub bitmap: Option<&'a str>,
    /// Of the filter.
    pub options: copy_before_write::Options,
}

/// Filters that have been put in.
#[derive(Debug)]
pub struct Inserted {
    /// Their states, in the order in which they were asked for.
    pub filters: Vec<Arc<CopyBeforeWrite>>,
    /// From the first gate closed to the last one open, in nanoseconds.
    pub pause_ns: u64,
}

/// What becomes of a frozen bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapEnd {
    /// Its successor takes its place: what was copied is no longer dirty.
    Abdicate,
    /// The successor is merged back: everything is dirty as before, and more.
    Reclaim,
}

impl Graph {
    /// Puts copy-before-write filters above nodes, all at one instant. Everybody
    /// who uses such a node uses its filter from then on. `at_instant` is called
    /// once, while nothing is in flight on any of them: what has been answered
    /// by then belongs to the snapshots, and nothing else does.
    ///
    /// # Errors
    ///
    /// [`GraphError`]; the graph is as it was then, and `at_instant` may or may
    /// not have been called.
    pub async fn insert_copy_before_write(
        &mut self,
        shard: &Shard,
        insertions: &[Insertion<'_>],
        at_instant: impl FnOnce(),
    ) -> Result<Inserted, GraphError> {
        for (index, insertion) in insertions.iter().enumerate() {
            self.check_insertion(insertion)?;
            if insertions[..index]
                .iter()
                .any(|other| other.node_name == insertion.node_name)
            {
                return Err(GraphError::Duplicate(insertion.node_name.into()));
            }
        }
        let mut concerned: Vec<UserId> = insertions
            .iter()
            .flat_map(|insertion| self.users_above(insertion.file))
            .collect();
        concerned.sort_unstable();
        concerned.dedup();
        let start = shard.now_ns();
        self.drain(&concerned).await;
        let result = self.insert_drained(shard, insertions);
        if result.is_ok() {
            at_instant();
        }
        self.resume(&concerned).await;
        let pause_ns = shard.now_ns() - start;
        result.map(|filters| Inserted { filters, pause_ns })
    }

    /// While nothing is in flight: all or nothing.
    fn insert_drained(
        &mut self,
        shard: &Shard,
        insertions: &[Insertion<'_>],
    ) -> Result<Vec<Arc<CopyBeforeWrite>>, GraphError> {
        let mut filters = Vec::new();
        let mut result = Ok(());
        for insertion in insertions {
            result = self
                .insert_one(shard, insertion)
                .map(|filter| filters.push(filter));
            if result.is_err() {
                break;
            }
        }
        let result = result.and_then(|()| self.check_permissions());
        if let Err(error) = result {
            for insertion in insertions[..filters.len()].iter().rev() {
                self.undo_insertion(insertion)?;
            }
            self.relock();
            return Err(error);
        }
        Ok(filters)
    }

    fn undo_insertion(&mut self, insertion: &Insertion<'_>) -> Result<(), GraphError> {
        self.redirect(insertion.node_name, insertion.file);
        self.nodes.remove(insertion.node_name);
        if let Some(name) = insertion.bitmap {
            self.node_mut(insertion.file)?.bitmaps.reclaim(name)?;
        }
        Ok(())
    }

    fn check_insertion(&self, insertion: &Insertion<'_>) -> Result<(), GraphError> {
        let (file, target) = (insertion.file, insertion.target);
        self.check_new_name(insertion.node_name)?;
        let has_parent = self.nodes.values().any(|node| {
            !matches!(
                node.kind,
                Kind::CopyBeforeWrite { .. } | Kind::SnapshotAccess { .. }
            ) && children(&node.kind).contains(&file)
        });
        if has_parent {
            // Whoever uses the parent would not pass through the filter.
            return Err(GraphError::InUse(file.into()));
        }
        let (source_size, target_size) = (self.size(file)?, self.size(target)?);
        if file == target || self.passes_through(target, file) || self.passes_through(file, target)
        {
            return Err(GraphError::SameNode);
        }
        if source_size != target_size {
            return Err(GraphError::Sizes {
                source_node: file.into(),
                source_size,
                target_node: target.into(),
                target_size,
            });
        }
        self.check_writable(target)
    }

    /// What defines the point in time: the bitmap's freeze, the copy states.
    fn insert_one(
        &mut self,
        shard: &Shard,
        insertion: &Insertion<'_>,
    ) -> Result<Arc<CopyBeforeWrite>, GraphError> {
        let frozen = match insertion.bitmap {
            Some(name) => Some(self.freeze(insertion.file, name)?),
            None => None,
        };
        match self.make_filter(shard, insertion, frozen.as_deref()) {
            Ok(filter) => {
                self.redirect(insertion.file, insertion.node_name);
                let kind = Kind::CopyBeforeWrite {
                    filter: Arc::clone(&filter),
                    file: insertion.file.into(),
                    target: insertion.target.into(),
                };
                self.insert(shard, insertion.node_name, kind);
                Ok(filter)
            }
            Err(error) => {
                if let Some(name) = insertion.bitmap {
                    self.node_mut(insertion.file)?.bitmaps.reclaim(name)?;
                }
                Err(error)
            }
        }
    }

    fn freeze(&mut self, node: &str, name: &str) -> Result<Arc<DirtyBitmap>, GraphError> {
        let bitmaps = &mut self.node_mut(node)?.bitmaps;
        if let Some(bitmap) = bitmaps.get(name) {
            bitmap.check_usable(true)?;
        }
        Ok(bitmaps.freeze(name)?)
    }

    fn make_filter(
        &self,
        shard: &Shard,
        insertion: &Insertion<'_>,
        bitmap: Option<&DirtyBitmap>,
    ) -> Result<Arc<CopyBeforeWrite>, GraphError> {
        // After the freeze: the source's recorders are part of its path.
        let (source, target) = (self.path(insertion.file)?, self.path(insertion.target)?);
        let shards = shard.set().count();
        let filter = CopyBeforeWrite::new(shards, source, target, bitmap, insertion.options)?;
        Ok(Arc::new(filter))
    }

    /// Users and parents of one node become those of another.
    fn redirect(&mut self, from: &str, to: &str) {
        for user in self.users.values_mut().filter(|user| user.node == from) {
            user.node = to.into();
        }
        for (_, node) in self.nodes.iter_mut().filter(|(name, _)| *name != to) {
            if let Kind::CopyBeforeWrite { file, .. } = &mut node.kind
                && file == from
            {
                *file = to.into();
            }
        }
    }

    /// Takes a filter out: its users use the node below again. Snapshot readers
    /// must have gone.
    ///
    /// # Errors
    ///
    /// [`GraphError`] if it is no such filter, or somebody reads its snapshot.
    pub async fn remove_copy_before_write(
        &mut self,
        shard: &Shard,
        name: &str,
    ) -> Result<(), GraphError> {
        let Kind::CopyBeforeWrite { file, filter, .. } = &self.node(name)?.kind else {
            return Err(GraphError::NoSnapshot(name.into()));
        };
        let (below, filter) = (file.clone(), Arc::clone(filter));
        let has_reader = self
            .nodes
            .values()
            .any(|node| matches!(&node.kind, Kind::SnapshotAccess { file, .. } if file == name));
        if has_reader || filter.has_job() {
            return Err(GraphError::InUse(name.into()));
        }
        let concerned = self.users_above(name);
        self.drain(&concerned).await;
        // A save that timed out may still write to the target.
        filter.wait_for_saves_in_flight(shard).await;
        self.redirect(name, &below);
        self.nodes.remove(name);
        self.relock();
        self.resume(&concerned).await;
        Ok(())
    }

    /// Gives a frozen bitmap back when the work that froze it has ended.
    ///
    /// # Errors
    ///
    /// [`GraphError`] if there is no such bitmap or it is not frozen.
    pub async fn end_bitmap(
        &mut self,
        node: &str,
        bitmap: &str,
        end: BitmapEnd,
    ) -> Result<(), GraphError> {
        self.change_bitmaps(node, |bitmaps| match end {
            BitmapEnd::Abdicate => bitmaps.abdicate(bitmap),
            BitmapEnd::Reclaim => bitmaps.reclaim(bitmap),
        })
        .await
        .map(drop)
    }
}
