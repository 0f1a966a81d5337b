//! Several changes at one instant: all of them, or none.
//!
//! Everybody who uses the nodes concerned is drained once. Then the changes are
//! made one after the other, each upon what the ones before have left; what has
//! been answered to guests by then lies before all of them, everything else
//! behind. At the end all go on, with the new paths or with the old ones.

use std::sync::Arc;

use ringback_ring::Shard;

use super::{BitmapSpec, Graph, GraphError, Insertion, Kind, UserId};
use crate::bitmap::{BitmapError, DirtyBitmap, NodeBitmaps, default_granularity};
use crate::filter::copy_before_write::CopyBeforeWrite;
use crate::format::qcow2::Qcow2Error;

/// A bitmap that is merged into another.
#[derive(Clone, Copy, Debug)]
pub struct MergeFrom<'a> {
    /// The node; none: that of the bitmap merged into.
    pub node: Option<&'a str>,
    /// Its name.
    pub name: &'a str,
}

/// Changes under way. It must be ended with [`Transaction::commit`] or
/// [`Transaction::abort`]: until then nobody's requests go on.
pub struct Transaction<'g> {
    graph: &'g mut Graph,
    shard: Shard,
    concerned: Vec<UserId>,
    started_ns: u64,
    /// How to take back what was done, newest last.
    undo: Vec<Undo>,
    /// Bitmaps that go away for good at the end.
    removals: Vec<(String, String)>,
}

enum Undo {
    Added {
        node: String,
        name: String,
    },
    Bits {
        node: String,
        name: String,
        bits: Arc<DirtyBitmap>,
    },
    Recording {
        node: String,
        name: String,
        recording: bool,
    },
    Removal {
        node: String,
        name: String,
    },
    Inserted {
        filter: String,
        file: String,
        bitmap: Option<String>,
    },
    Overlaid {
        node: String,
        overlay: String,
    },
}

impl Graph {
    /// Drains whoever uses one of the nodes; a name that nobody has is left to
    /// the change that needs it.
    pub async fn begin<'g>(&'g mut self, shard: &Shard, nodes: &[&str]) -> Transaction<'g> {
        let users = nodes.iter().flat_map(|node| self.users_above(node));
        let mut concerned: Vec<UserId> = users.collect();
        concerned.sort_unstable();
        concerned.dedup();
        let filters = self.filters_that_write(nodes);
        let started_ns = self.drain_with_saves(shard, &concerned, &filters).await;
        Transaction {
            graph: self,
            shard: shard.clone(),
            concerned,
            started_ns,
            undo: Vec::new(),
            removals: Vec::new(),
        }
    }

    /// Makes changes that belong together: all of them, or on an error none.
    ///
    /// # Errors
    ///
    /// Whatever `change` answers.
    pub async fn transact<T>(
        &mut self,
        shard: &Shard,
        nodes: &[&str],
        change: impl AsyncFnOnce(&mut Transaction<'_>) -> Result<T, GraphError>,
    ) -> Result<T, GraphError> {
        let mut transaction = self.begin(shard, nodes).await;
        match change(&mut transaction).await {
            Ok(value) => transaction.commit().await.map(|_| value),
            Err(error) => {
                transaction.abort().await;
                Err(error)
            }
        }
    }
}

impl Transaction<'_> {
    /// The graph as the changes so far have left it.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// Makes a bitmap on a node. A persistent one is stored when the node is
    /// removed.
    ///
    /// # Errors
    ///
    /// [`GraphError::Bitmap`] if it cannot be made; [`GraphError::Qcow2`] or
    /// [`GraphError::NotStorable`] if the node cannot store it.
    pub fn add_bitmap(&mut self, node: &str, spec: &BitmapSpec) -> Result<(), GraphError> {
        let granularity = self.graph.check_new_bitmap(node, spec)?;
        self.bitmaps(node)?
            .add(&spec.name, granularity, spec.disabled, spec.persistent)?;
        self.undo.push(Undo::Added {
            node: node.into(),
            name: spec.name.clone(),
        });
        Ok(())
    }

    /// Takes a bitmap away; a persistent one is taken out of its image at once.
    /// Its name is free when the transaction has ended.
    ///
    /// # Errors
    ///
    /// [`GraphError::Bitmap`] if there is none, or it is busy or read-only;
    /// [`GraphError::Qcow2`] if the image could not be changed.
    pub async fn remove_bitmap(&mut self, node: &str, name: &str) -> Result<(), GraphError> {
        let image = self.graph.image_of(node)?;
        let bitmaps = self.bitmaps(node)?;
        bitmaps.check_removable(name)?;
        let is_persistent = bitmaps
            .get(name)
            .is_some_and(|bitmap| bitmap.flags().persistent);
        bitmaps.set_busy(name, true)?;
        let (node, name) = (node.to_owned(), name.to_owned());
        self.undo.push(Undo::Removal {
            node: node.clone(),
            name: name.clone(),
        });
        if let Some(image) = image.filter(|_| is_persistent) {
            image
                .remove_bitmap(&self.shard, &name)
                .await
                .map_err(Qcow2Error::Bitmaps)?;
        }
        self.removals.push((node, name));
        Ok(())
    }

    /// Clears a bitmap.
    ///
    /// # Errors
    ///
    /// [`GraphError::Bitmap`] if there is none, or it may not be changed.
    pub fn clear_bitmap(&mut self, node: &str, name: &str) -> Result<(), GraphError> {
        let bitmaps = self.bitmaps(node)?;
        let fresh = bitmaps.bits_of(name)?.fresh()?;
        self.replace_bits(node, name, fresh)
    }

    /// Lets writes mark a bitmap, or pass it by.
    ///
    /// # Errors
    ///
    /// [`GraphError::Bitmap`] if there is none, or it is busy or inconsistent.
    pub fn set_recording(
        &mut self,
        node: &str,
        name: &str,
        recording: bool,
    ) -> Result<(), GraphError> {
        let bitmaps = self.bitmaps(node)?;
        let before = bitmaps
            .get(name)
            .is_some_and(|bitmap| bitmap.flags().recording);
        if recording {
            bitmaps.enable(name)?;
        } else {
            bitmaps.disable(name)?;
        }
        self.undo.push(Undo::Recording {
            node: node.into(),
            name: name.into(),
            recording: before,
        });
        Ok(())
    }

    /// Marks in one bitmap what is dirty in others.
    ///
    /// # Errors
    ///
    /// [`GraphError::Bitmap`] if one of them is missing, may not be used, or is
    /// of another size; [`GraphError::NoNode`] for a node.
    pub fn merge_bitmaps(
        &mut self,
        node: &str,
        name: &str,
        sources: &[MergeFrom<'_>],
    ) -> Result<(), GraphError> {
        self.bitmaps(node)?.bits_of(name)?;
        let mut found = Vec::new();
        for source in sources {
            let bitmaps = self.graph.named_bitmaps(source.node.unwrap_or(node))?;
            let bitmap = bitmaps.get(source.name);
            found.push(
                bitmap
                    .cloned()
                    .ok_or_else(|| BitmapError::NotFound(source.name.into()))?,
            );
        }
        let merged = self.bitmaps(node)?.merged(name, &found)?;
        self.replace_bits(node, name, merged)
    }

    fn replace_bits(
        &mut self,
        node: &str,
        name: &str,
        bits: DirtyBitmap,
    ) -> Result<(), GraphError> {
        let old = self.bitmaps(node)?.replace(name, Arc::new(bits))?;
        self.undo.push(Undo::Bits {
            node: node.into(),
            name: name.into(),
            bits: old,
        });
        Ok(())
    }

    /// Puts a copy-before-write filter above a node: what has been answered by
    /// now belongs to its snapshot, and nothing else does. Everybody who uses
    /// the node uses the filter from then on. Answers the filter and its name.
    ///
    /// # Errors
    ///
    /// [`GraphError`].
    pub fn insert(
        &mut self,
        insertion: &Insertion<'_>,
    ) -> Result<(String, Arc<CopyBeforeWrite>), GraphError> {
        self.graph.check_insertion(insertion)?;
        let (name, filter) = self.graph.insert_one(&self.shard, insertion)?;
        self.undo.push(Undo::Inserted {
            filter: name.clone(),
            file: insertion.file.into(),
            bitmap: insertion.bitmap.map(str::to_owned),
        });
        self.graph.check_permissions()?;
        Ok((name, filter))
    }

    /// Puts an image without a backing file above a node, which becomes its
    /// backing file; whoever uses the node uses the image from then on.
    ///
    /// # Errors
    ///
    /// [`GraphError`].
    pub fn overlay(&mut self, node: &str, overlay: &str) -> Result<(), GraphError> {
        self.graph.check_overlay(node, overlay)?;
        self.graph.redirect(node, overlay)?;
        self.undo.push(Undo::Overlaid {
            node: node.into(),
            overlay: overlay.into(),
        });
        self.graph.replace_backing(overlay, Some(node))
    }

    fn bitmaps(&mut self, node: &str) -> Result<&mut NodeBitmaps, GraphError> {
        self.graph.changeable_bitmaps(node)
    }

    /// All changes are to stay. Answers how long requests were held, in
    /// nanoseconds.
    ///
    /// # Errors
    ///
    /// [`GraphError::Bitmap`] if a bitmap that was to be removed is gone.
    pub async fn commit(mut self) -> Result<u64, GraphError> {
        let mut result = Ok(());
        for (node, name) in std::mem::take(&mut self.removals) {
            let removed = self.graph.node_mut(&node).and_then(|node| {
                node.bitmaps.set_busy(&name, false)?;
                Ok(node.bitmaps.remove(&name)?)
            });
            result = result.and(removed.map(drop));
        }
        let pause_ns = self.resume().await;
        result?;
        Ok(pause_ns)
    }

    /// Everything is to be as it was.
    pub async fn abort(mut self) {
        while let Some(undo) = self.undo.pop() {
            if let Err(error) = self.graph.take_back(undo) {
                tracing::error!("a change could not be taken back: {error}");
            }
        }
        self.graph.relock();
        self.resume().await;
    }

    async fn resume(&mut self) -> u64 {
        self.graph.resume(&self.concerned).await;
        self.shard.now_ns() - self.started_ns
    }
}

impl Graph {
    fn take_back(&mut self, undo: Undo) -> Result<(), GraphError> {
        match undo {
            Undo::Added { node, name } => drop(self.node_mut(&node)?.bitmaps.remove(&name)?),
            Undo::Bits { node, name, bits } => {
                drop(self.node_mut(&node)?.bitmaps.replace(&name, bits)?);
            }
            Undo::Recording {
                node,
                name,
                recording,
            } => {
                let bitmaps = &mut self.node_mut(&node)?.bitmaps;
                if recording {
                    bitmaps.enable(&name)?;
                } else {
                    bitmaps.disable(&name)?;
                }
            }
            // Its image stores it again when it is closed.
            Undo::Removal { node, name } => self.node_mut(&node)?.bitmaps.set_busy(&name, false)?,
            Undo::Inserted {
                filter,
                file,
                bitmap,
            } => {
                self.redirect(&filter, &file)?;
                self.nodes.remove(&filter);
                if let Some(name) = bitmap {
                    self.node_mut(&file)?.bitmaps.reclaim(&name)?;
                }
            }
            Undo::Overlaid { node, overlay } => {
                if matches!(
                    &self.node(&overlay)?.kind,
                    Kind::Qcow2 {
                        backing: Some(_),
                        ..
                    }
                ) {
                    self.replace_backing(&overlay, None)?;
                }
                self.redirect(&overlay, &node)?;
            }
        }
        Ok(())
    }

    /// Whether an image can be put above a node with [`Transaction::overlay`].
    fn check_overlay(&self, node: &str, overlay: &str) -> Result<(), GraphError> {
        self.node(node)?;
        match &self.node(overlay)?.kind {
            Kind::Qcow2 { backing: None, .. } => {}
            Kind::Qcow2 { .. } => return Err(GraphError::HasBacking),
            _ => return Err(GraphError::NoBacking(overlay.into())),
        }
        // Whoever stands on it already would be taken for one who came with the node.
        let is_used = self.has_users(overlay) || !self.parents(overlay).is_empty();
        if self.reaches(node, overlay) || is_used {
            return Err(GraphError::InUse(overlay.into()));
        }
        self.check_redirectable(node)
    }

    /// Whether a bitmap can be made on a node, and with which granularity.
    fn check_new_bitmap(&self, node: &str, spec: &BitmapSpec) -> Result<u64, GraphError> {
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
        Ok(granularity)
    }
}
