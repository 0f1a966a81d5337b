//! Copy-before-write filters that come and go under load, and the bitmaps that
//! are frozen for them.

use std::sync::Arc;

use ringback_ring::Shard;

use super::{Graph, GraphError, Kind};
use crate::bitmap::{BitmapError, DirtyBitmap};
use crate::filter::copy_before_write::{self, CopyBeforeWrite};

/// A copy-before-write filter to be put above a node under load.
pub struct Insertion<'a> {
    /// Name of the new node; none: one is made.
    pub node_name: Option<&'a str>,
    /// Above which node.
    pub file: &'a str,
    /// Where old data goes.
    pub target: &'a str,
    /// A bitmap of `file`, which is frozen for the filter and must be given back
    /// by [`Graph::end_bitmap`].
    pub bitmap: Option<&'a str>,
    /// What is saved.
    pub scope: Scope,
    /// Of the filter.
    pub options: copy_before_write::Options,
}

/// What a filter saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The whole disk.
    #[default]
    Everything,
    /// What is dirty in the bitmap; only that can be read from the snapshot.
    Bitmap,
    /// What is dirty in the bitmap; the rest counts as readable as long as it is
    /// not overwritten.
    BitmapAlone,
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
        let nodes: Vec<&str> = insertions
            .iter()
            .flat_map(|insertion| [insertion.file, insertion.target])
            .collect();
        let mut transaction = self.begin(shard, &nodes).await;
        let mut filters = Vec::new();
        for insertion in insertions {
            match transaction.insert(insertion) {
                Ok((_, filter)) => filters.push(filter),
                Err(error) => {
                    transaction.abort().await;
                    return Err(error);
                }
            }
        }
        at_instant();
        let pause_ns = transaction.commit().await?;
        Ok(Inserted { filters, pause_ns })
    }

    pub(super) fn check_insertion(&self, insertion: &Insertion<'_>) -> Result<(), GraphError> {
        let (file, target) = (insertion.file, insertion.target);
        if let Some(name) = insertion.node_name {
            self.check_new_name(name)?;
        }
        self.check_redirectable(file)?;
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

    /// Whether everybody who uses a node can be made to use another one.
    pub(super) fn check_redirectable(&self, name: &str) -> Result<(), GraphError> {
        let is_held = self.nodes.values().any(|node| match &node.kind {
            // An open image works with its file as it found it.
            Kind::Qcow2 {
                file, data_file, ..
            } => file == name || data_file.as_deref() == Some(name),
            Kind::SnapshotAccess { file, .. } => file == name,
            Kind::CopyBeforeWrite { target, .. } => target == name,
            _ => false,
        });
        if is_held {
            return Err(GraphError::InUse(name.into()));
        }
        Ok(())
    }

    /// What defines the point in time: the bitmap's freeze, the copy states.
    pub(super) fn insert_one(
        &mut self,
        shard: &Shard,
        insertion: &Insertion<'_>,
    ) -> Result<(String, Arc<CopyBeforeWrite>), GraphError> {
        let name = match insertion.node_name {
            Some(name) => name.to_owned(),
            None => self.make_name(shard),
        };
        let frozen = match insertion.bitmap {
            Some(name) => Some(self.freeze(insertion.file, name)?),
            None => None,
        };
        match self.make_filter(shard, insertion, frozen.as_deref()) {
            Ok(filter) => {
                // An overlay of the disk goes on reading the disk.
                self.redirect_all_but(insertion.file, &name, Some(insertion.target))?;
                let kind = Kind::CopyBeforeWrite {
                    filter: Arc::clone(&filter),
                    file: insertion.file.into(),
                    target: insertion.target.into(),
                    is_exclusive: true,
                };
                self.insert(shard, &name, kind);
                Ok((name, filter))
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
        let is_target = self.nodes.values().any(|other| {
            matches!(&other.kind, Kind::CopyBeforeWrite { target, .. } if self.passes_through(target, node))
        });
        if is_target {
            // What a filter saves there is not drained, and would mark a bitmap that
            // stands still.
            return Err(GraphError::InUse(node.into()));
        }
        let bitmaps = &mut self.node_mut(node)?.bitmaps;
        if let Some(bitmap) = bitmaps.get(name) {
            bitmap.check_usable(true)?;
        }
        Ok(bitmaps.freeze(name)?)
    }

    /// A filter that nobody uses yet. Whoever comes to use it later has his
    /// writes saved from then on.
    pub(super) fn copy_before_write_on(
        &self,
        shard: &Shard,
        file: String,
        target: String,
        bitmap: Option<&(String, String)>,
        options: copy_before_write::Options,
    ) -> Result<Kind, GraphError> {
        if file == target || self.passes_through(&target, &file) || self.reaches(&file, &target) {
            return Err(GraphError::SameNode);
        }
        self.check_writable(&target)?;
        let bits = match bitmap {
            None => None,
            Some((node, name)) => {
                let bitmap = self.named_bitmaps(node)?.get(name);
                let bitmap = bitmap.ok_or_else(|| BitmapError::NotFound(name.clone()))?;
                bitmap.check_usable(true)?;
                Some(Arc::clone(bitmap.bits()))
            }
        };
        let scope = bits.as_deref().map_or(
            copy_before_write::Scope::Everything,
            copy_before_write::Scope::Snapshot,
        );
        let options = self.know_target(options, &file, &target)?;
        let (source_path, target_path) = (self.path(&file)?, self.path(&target)?);
        let shards = shard.set().count();
        let filter = CopyBeforeWrite::new(shards, source_path, target_path, scope, options)?;
        Ok(Kind::CopyBeforeWrite {
            filter: Arc::new(filter),
            file,
            target,
            is_exclusive: false,
        })
    }

    fn make_filter(
        &self,
        shard: &Shard,
        insertion: &Insertion<'_>,
        bitmap: Option<&DirtyBitmap>,
    ) -> Result<Arc<CopyBeforeWrite>, GraphError> {
        // After the freeze: the source's recorders are part of its path.
        let (source, target) = (self.path(insertion.file)?, self.path(insertion.target)?);
        let options = self.know_target(insertion.options, insertion.file, insertion.target)?;
        let scope = match (insertion.scope, bitmap) {
            (Scope::Everything, _) | (_, None) => copy_before_write::Scope::Everything,
            (Scope::Bitmap, Some(bitmap)) => copy_before_write::Scope::Snapshot(bitmap),
            (Scope::BitmapAlone, Some(bitmap)) => copy_before_write::Scope::Saved(bitmap),
        };
        let shards = shard.set().count();
        let filter = CopyBeforeWrite::new(shards, source, target, scope, options)?;
        Ok(Arc::new(filter))
    }

    /// What a filter's options say of its target is taken from the target.
    fn know_target(
        &self,
        options: copy_before_write::Options,
        file: &str,
        target: &str,
    ) -> Result<copy_before_write::Options, GraphError> {
        Ok(copy_before_write::Options {
            target_cluster_size: self.cluster_size(target)?,
            target_block_size: self.block_size(target)?,
            target_shows_source: self.reaches(target, file),
            ..options
        })
    }

    /// Users and parents of one node become those of another. What the other one
    /// stands on stays where it is.
    pub(super) fn redirect(&mut self, from: &str, to: &str) -> Result<(), GraphError> {
        self.redirect_all_but(from, to, None)
    }

    fn redirect_all_but(
        &mut self,
        from: &str,
        to: &str,
        target: Option<&str>,
    ) -> Result<(), GraphError> {
        self.check_redirectable(from)?;
        for user in self.users.values_mut().filter(|user| user.node == from) {
            user.node = to.into();
        }
        let stays = |name: &str| {
            self.reaches(to, name) || target.is_some_and(|target| self.reaches(target, name))
        };
        let parents: Vec<String> = self
            .nodes
            .keys()
            .filter(|name| name.as_str() != to && !stays(name))
            .cloned()
            .collect();
        for parent in parents {
            let node = self.node_mut(&parent)?;
            for claim in &mut node.claims {
                if claim.child == from {
                    claim.child = to.into();
                }
            }
            if let Some(child) = exchangeable_child(&mut node.kind)
                && child == from
            {
                *child = to.into();
            }
        }
        Ok(())
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
        let Kind::CopyBeforeWrite {
            file,
            target,
            filter,
            ..
        } = &self.node(name)?.kind
        else {
            return Err(GraphError::NoSnapshot(name.into()));
        };
        let (below, target, filter) = (file.clone(), target.clone(), Arc::clone(filter));
        if self.has_reader(name) || filter.has_job() {
            return Err(GraphError::InUse(name.into()));
        }
        self.check_redirectable(name)?;
        // A save that timed out may still write to the target. Guests are held only
        // for what comes after this wait.
        filter.wait_for_saves_in_flight(shard).await;
        let mut concerned = self.users_above(name);
        // Who reads the target reads it without regard to guests from now on.
        concerned.extend(self.users_above(&target));
        concerned.sort_unstable();
        concerned.dedup();
        self.drain(&concerned).await;
        filter.wait_for_saves_in_flight(shard).await;
        let redirected = self.redirect(name, &below);
        debug_assert!(redirected.is_ok(), "looked at before");
        self.nodes.remove(name);
        self.relock();
        self.resume(&concerned).await;
        Ok(())
    }

    /// Whether a filter's snapshot can be read through another node.
    pub(super) fn has_reader(&self, name: &str) -> bool {
        let mut nodes = self.nodes.values();
        nodes.any(|node| matches!(&node.kind, Kind::SnapshotAccess { file, .. } if file == name))
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

/// The child that another node can take the place of while the parent is open.
fn exchangeable_child(kind: &mut Kind) -> Option<&mut String> {
    match kind {
        Kind::Protocol { .. } | Kind::SnapshotAccess { .. } => None,
        Kind::Qcow2 { backing, .. } => backing.as_mut(),
        Kind::Raw { file, .. }
        | Kind::CopyBeforeWrite { file, .. }
        | Kind::BlkDebug { image: file, .. }
        | Kind::Throttle { file, .. }
        | Kind::CopyOnRead { file, .. } => Some(file),
    }
}
