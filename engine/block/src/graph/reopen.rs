//! Options of nodes that change while the nodes are in use.
//!
//! Several nodes change at one instant, all of them or none. Whoever sends
//! requests that could reach one of them is drained meanwhile.
//!
//! # Order
//!
//! 1. The new structure, in names only: children, windows, groups, who writes
//!    what. Everything that needs no I/O to be refused is refused here.
//! 2. Images that will be opened anew write what they hold, top down; one that
//!    becomes read-only stores its bitmaps.
//! 3. Files whose mode changes are opened anew, and take the locks over.
//! 4. Permissions, here and towards other processes.
//! 5. Images are opened anew, bottom up; one that becomes writable marks its
//!    bitmaps in use.
//! 6. Copy-before-write filters above get their new paths; bitmaps their new
//!    flags and sizes.
//!
//! If something fails, the old files and images, which are all still open, take
//! their places again. An image that had stored its bitmaps marks them again.
//!
//! # What is opened anew
//!
//! An open image works with its file as it found it. When a node between the two
//! changes, or an option of the image, the image is opened once more, from what
//! it has just written: so it is also made sure that the new child holds the
//! same image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringback_ring::file::{Cache, OpenOptions};
use ringback_ring::{File, Shard};

use super::bitmaps::to_store;
use super::permissions::ChildClaim;
use super::{Graph, GraphError, Kind, Qcow2Spec, UserId, children};
use crate::bitmap::BitmapError;
use crate::child::Child;
use crate::filter::copy_before_write::CopyBeforeWrite;
use crate::format::qcow2::{self, Qcow2, Qcow2Error};
use crate::path::Treatment;
use crate::protocol::{FileProtocol, Protocol};
use crate::storage::Storage;

/// What every node can be told, whatever its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Nobody may write through it. (What opens files for reading only is an
    /// option of those nodes.)
    pub read_only: bool,
    /// What becomes of zeroes and discards.
    pub treatment: Treatment,
    /// Flushes end here, if bytes live here (`cache.no-flush`).
    pub no_flush: bool,
}

/// A node with other options.
#[derive(Clone, Debug)]
pub struct Reopening {
    /// Which node.
    pub node: String,
    /// Its new policy.
    pub policy: Policy,
    /// What else changes.
    pub change: Change,
}

/// What changes in a node, beside its policy.
#[derive(Clone, Debug)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// How a file is open.
    File {
        /// For writing too.
        write: bool,
        /// Direct or buffered.
        cache: Cache,
    },
    /// A window onto a node.
    Raw {
        /// The node below.
        file: String,
        /// Where the window starts.
        offset: u64,
        /// How long it is; none: to the end.
        size: Option<u64>,
    },
    /// A member of a group.
    Throttle {
        /// The node below.
        file: String,
        /// Name of the group.
        group: String,
    },
    /// A qcow2 image.
    Qcow2 {
        /// The node that holds the image: the same bytes as before.
        file: String,
        /// The node that shows through, if any.
        backing: Option<String>,
        /// How it is open from now on; none: as before.
        options: Option<Box<qcow2::OpenOptions>>,
    },
}

/// A node as it was.
struct Before {
    kind: Kind,
    policy: Policy,
    claims: Vec<ChildClaim>,
    size: u64,
}

/// What has been done so far, and how it was before.
#[derive(Default)]
struct Progress {
    before: BTreeMap<String, Before>,
    /// Images that have stored their bitmaps.
    stored: Vec<String>,
    /// Files that were opened anew: the new one and the old one.
    files: Vec<(File, File)>,
    /// Images that have become writable.
    begun: Vec<(String, Arc<Qcow2>)>,
}

impl Graph {
    /// What a node is told beside its kind.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`].
    pub fn policy(&self, name: &str) -> Result<Policy, GraphError> {
        Ok(self.node(name)?.policy)
    }

    /// Gives a node a policy. Whoever uses the node already does not hear of it:
    /// for that there is [`Graph::reopen`].
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`].
    pub fn set_policy(&mut self, name: &str, policy: Policy) -> Result<(), GraphError> {
        let node = self.node_mut(name)?;
        node.policy = policy;
        if let Kind::Protocol { storage, .. } = &node.kind {
            let discard = !policy.treatment.ignores_discards;
            storage.protocol().set_policy(discard, policy.no_flush);
        }
        Ok(())
    }

    /// The nodes that are written to, each with whether the writer may make it
    /// grow.
    fn writers(&self) -> Vec<(String, bool)> {
        let users = self.users.values().filter(|user| user.access.write);
        let mut writers: Vec<_> = users.map(|user| (user.node.clone(), false)).collect();
        for node in self.nodes.values() {
            let claims = node.claims.iter().filter(|claim| claim.access.write);
            writers.extend(claims.map(|claim| (claim.child.clone(), true)));
            if let Kind::CopyBeforeWrite { target, .. } = &node.kind {
                writers.push((target.clone(), false));
            }
        }
        writers
    }

    /// Changes options of nodes at one instant, without a request lost. Jobs that
    /// work with one of these nodes must stand still meanwhile. Nodes that fall
    /// out of use stay where they are.
    ///
    /// # Errors
    ///
    /// [`GraphError`]; everything is as it was then.
    pub async fn reopen(&mut self, shard: &Shard, list: &[Reopening]) -> Result<(), GraphError> {
        for reopening in list {
            self.node(&reopening.node)?;
        }
        let (concerned, filters) = (self.users_reaching(list), self.filters_reaching(list));
        self.drain_with_saves(shard, &concerned, &filters).await;
        let mut progress = Progress::default();
        let result = self.reopen_drained(shard, list, &mut progress).await;
        if result.is_err() {
            self.go_back(shard, progress).await;
        }
        self.resume(&concerned).await;
        result
    }

    fn reaches_one_of(&self, from: &str, list: &[Reopening]) -> bool {
        list.iter().any(|one| self.reaches(from, &one.node))
    }

    fn users_reaching(&self, list: &[Reopening]) -> Vec<UserId> {
        let users = self.users.iter();
        let reaching = users.filter(|(_, user)| self.reaches_one_of(&user.node, list));
        reaching.map(|(&id, _)| id).collect()
    }

    fn filters_reaching(&self, list: &[Reopening]) -> Vec<Arc<CopyBeforeWrite>> {
        let nodes = self.nodes.iter();
        let filters = nodes.filter_map(|(name, node)| match &node.kind {
            Kind::CopyBeforeWrite { filter, .. } if self.reaches_one_of(name, list) => {
                Some(Arc::clone(filter))
            }
            _ => None,
        });
        filters.collect()
    }

    async fn reopen_drained(
        &mut self,
        shard: &Shard,
        list: &[Reopening],
        progress: &mut Progress,
    ) -> Result<(), GraphError> {
        self.remember(list, progress)?;
        for reopening in list {
            self.restructure(reopening)?;
        }
        self.check_writers(progress)?;
        self.check_targets()?;
        let mut images = self.images_to_reopen(list, progress)?;
        for name in images.iter().rev() {
            self.write_image(shard, name, progress).await?;
        }
        for reopening in list {
            if let Change::File { write, cache } = reopening.change {
                self.reopen_file(shard, &reopening.node, write, cache, progress)
                    .await?;
            }
        }
        for reopening in list {
            self.set_policy(&reopening.node, reopening.policy)?;
        }
        self.check_permissions()?;
        for name in images.drain(..) {
            self.reopen_image(shard, &name, progress).await?;
        }
        self.renew_filters()?;
        self.adapt_bitmaps(progress)
    }

    /// All nodes whose path or size may change.
    fn remember(&self, list: &[Reopening], progress: &mut Progress) -> Result<(), GraphError> {
        for (name, node) in &self.nodes {
            if self.reaches_one_of(name, list) {
                let before = Before {
                    kind: node.kind.clone(),
                    policy: node.policy,
                    claims: node.claims.clone(),
                    size: self.size(name)?,
                };
                progress.before.insert(name.clone(), before);
            }
        }
        Ok(())
    }

    /// A child must be there, and not stand on its parent.
    fn check_child(&self, parent: &str, edge: &'static str, child: &str) -> Result<(), GraphError> {
        self.node(child)?;
        if self.reaches(child, parent) {
            return Err(GraphError::Cycle {
                child: child.into(),
                edge,
                parent: parent.into(),
            });
        }
        Ok(())
    }

    /// The structure that a change asks for, and what the node claims then.
    fn restructure(&mut self, reopening: &Reopening) -> Result<(), GraphError> {
        let name = reopening.node.as_str();
        match &reopening.change {
            Change::Nothing => {}
            Change::File { write, .. } => match &mut self.node_mut(name)?.kind {
                Kind::Protocol {
                    writable, storage, ..
                } => {
                    *writable = *write;
                    if let Protocol::Nbd(nbd) = storage.protocol() {
                        nbd.set_writable(*write);
                    }
                }
                _ => return Err(GraphError::OtherDriver),
            },
            Change::Raw { file, offset, size } => {
                self.check_child(name, "file", file)?;
                let kind = self.raw_on(file.clone(), *offset, *size)?;
                self.replace_kind(name, kind)?;
            }
            Change::Throttle { file, group } => {
                self.check_child(name, "file", file)?;
                let kind = match &self.node(name)?.kind {
                    Kind::Throttle {
                        throttle,
                        group: old,
                        ..
                    } if old == group => Kind::Throttle {
                        throttle: Arc::clone(throttle),
                        group: group.clone(),
                        file: file.clone(),
                    },
                    _ => self.throttle_on(file.clone(), group.clone())?,
                };
                self.replace_kind(name, kind)?;
            }
            Change::Qcow2 {
                file,
                backing,
                options,
            } => {
                self.check_child(name, "file", file)?;
                if let Some(backing) = backing {
                    self.check_child(name, "backing", backing)?;
                }
                self.restructure_qcow2(name, file, backing.as_deref(), options.as_deref())?;
            }
        }
        let node = self.node_mut(name)?;
        node.policy = reopening.policy;
        Ok(())
    }

    fn replace_kind(&mut self, name: &str, kind: Kind) -> Result<(), GraphError> {
        let node = self.node_mut(name)?;
        if std::mem::discriminant(&node.kind) != std::mem::discriminant(&kind) {
            return Err(GraphError::OtherDriver);
        }
        node.kind = kind;
        Ok(())
    }

    fn restructure_qcow2(
        &mut self,
        name: &str,
        new_file: &str,
        new_backing: Option<&str>,
        new_options: Option<&qcow2::OpenOptions>,
    ) -> Result<(), GraphError> {
        let node = self.node_mut(name)?;
        let claims = node.claims.first();
        let force_share = claims.is_some_and(|claim| !claim.access.alone_writing);
        let Kind::Qcow2 {
            options,
            writable,
            file,
            backing,
            data_file,
            ..
        } = &mut node.kind
        else {
            return Err(GraphError::OtherDriver);
        };
        if let Some(new_options) = new_options {
            **options = qcow2::OpenOptions {
                name: name.into(),
                ..new_options.clone()
            };
        }
        *writable = options.write;
        *file = new_file.into();
        *backing = new_backing.map(str::to_owned);
        let spec = Qcow2Spec {
            file: new_file.into(),
            backing: backing.clone(),
            data_file: data_file.clone(),
            options: options.as_ref().clone(),
            force_share,
        };
        node.claims = Self::claims_of(name, &spec);
        Ok(())
    }

    /// Whoever writes can still do so.
    fn check_writers(&self, progress: &Progress) -> Result<(), GraphError> {
        for (entry, grows) in self.writers() {
            let checked = if grows {
                self.check_growable(&entry)
            } else {
                self.check_writable(&entry)
            };
            match checked {
                Ok(()) => {}
                Err(GraphError::ReadOnly) => return Err(self.read_only_below(&entry, progress)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// No filter's target shows its disk by now whose old data need not be there in
    /// time.
    fn check_targets(&self) -> Result<(), GraphError> {
        for node in self.nodes.values() {
            if let Kind::CopyBeforeWrite {
                filter,
                file,
                target,
                ..
            } = &node.kind
                && !filter.target_shows_source()
                && self.reaches(target, file)
            {
                return Err(GraphError::TargetShowsSource(target.clone()));
            }
        }
        Ok(())
    }

    /// Which message it deserves that a node cannot be written: that it never
    /// could, or that it could until now.
    fn read_only_below(&self, entry: &str, progress: &Progress) -> GraphError {
        let closed_now = progress.before.iter().find(|(name, before)| {
            let was_open = match &before.kind {
                Kind::Protocol { writable, .. } | Kind::Qcow2 { writable, .. } => *writable,
                _ => true,
            };
            let is_open = self.nodes.get(*name).is_some_and(|node| match &node.kind {
                Kind::Protocol { writable, .. } | Kind::Qcow2 { writable, .. } => *writable,
                _ => true,
            } && !node.policy.read_only);
            was_open && !before.policy.read_only && !is_open && self.passes_through(entry, name)
        });
        closed_now.map_or(GraphError::ReadOnly, |(name, _)| {
            GraphError::ReadOnlyUsers(name.clone())
        })
    }

    /// Images whose own way to their bytes, or whose options, change: those below
    /// come before those above.
    fn images_to_reopen(
        &self,
        list: &[Reopening],
        progress: &Progress,
    ) -> Result<Vec<String>, GraphError> {
        let mut waiting = BTreeSet::new();
        for (name, before) in &progress.before {
            let node = self.node(name)?;
            let (
                Kind::Qcow2 {
                    file, data_file, ..
                },
                Kind::Qcow2 { file: old_file, .. },
            ) = (&node.kind, &before.kind)
            else {
                continue;
            };
            let mut holders = std::iter::once(file).chain(data_file.as_ref());
            let has_options = list.iter().any(|one| {
                one.node == *name
                    && matches!(
                        &one.change,
                        Change::Qcow2 {
                            options: Some(_),
                            ..
                        }
                    )
            });
            let is_concerned = has_options
                || file != old_file
                || holders.any(|holder| self.reaches_one_of(holder, list));
            if is_concerned {
                waiting.insert(name.clone());
            }
        }
        let mut ordered = Vec::new();
        while let Some(next) = waiting
            .iter()
            .find(|name| {
                let mut others = waiting.iter().filter(|other| other != name);
                !others.any(|other| self.reaches(name, other))
            })
            .cloned()
        {
            waiting.remove(&next);
            ordered.push(next);
        }
        Ok(ordered)
    }

    /// Lets an image write everything that it holds, through its old children.
    async fn write_image(
        &mut self,
        shard: &Shard,
        name: &str,
        progress: &mut Progress,
    ) -> Result<(), GraphError> {
        let Some(Before {
            kind:
                Kind::Qcow2 {
                    image,
                    writable: true,
                    ..
                },
            ..
        }) = progress.before.get(name)
        else {
            return Ok(());
        };
        let image = Arc::clone(image);
        let stays_writable = matches!(self.node(name)?.kind, Kind::Qcow2 { writable: true, .. });
        let children: Vec<Child> = image.children().cloned().collect();
        let _free = Unthrottled::new(children);
        if !stays_writable {
            let bitmaps = &mut self.node_mut(name)?.bitmaps;
            if let Some(busy) = bitmaps.persistent().find(|bitmap| bitmap.flags().busy) {
                let name = busy.name().unwrap_or_default().to_owned();
                return Err(BitmapError::Busy(name).into());
            }
            let stored = to_store(bitmaps);
            progress.stored.push(name.to_owned());
            image
                .store_bitmaps(shard, &stored)
                .await
                .map_err(Qcow2Error::Bitmaps)?;
        }
        image.close(shard).await.map_err(|errno| GraphError::Close {
            node: name.into(),
            errno,
        })
    }

    /// Opens a file in another mode.
    async fn reopen_file(
        &mut self,
        shard: &Shard,
        name: &str,
        write: bool,
        cache: Cache,
        progress: &mut Progress,
    ) -> Result<(), GraphError> {
        let Kind::Protocol {
            file: Some(old),
            storage,
            ..
        } = &self.node(name)?.kind
        else {
            return Ok(());
        };
        let geometry = old.geometry();
        let is_cached_so = match cache {
            Cache::Auto => true,
            Cache::Direct => geometry.direct,
            Cache::Buffered => !geometry.direct,
        };
        if geometry.writable == write && is_cached_so {
            return Ok(());
        }
        let (old, storage) = (old.clone(), Arc::clone(storage));
        if geometry.writable
            && let Protocol::File(protocol) = storage.protocol()
        {
            // What was answered so far is durable, also if nobody asked for it:
            // the new file does not know what the old one has written.
            protocol.set_policy(true, false);
            let cut = storage.cut_ahead(shard).await;
            let flushed = cut.and(storage.flush(shard).await);
            flushed.map_err(|errno| GraphError::Close {
                node: name.into(),
                errno,
            })?;
        }
        let path = old.path().to_owned();
        let new = File::open(shard, OpenOptions { path, write, cache }).await?;
        let lock_error = |error| GraphError::Lock {
            path: new.path().display().to_string(),
            error,
        };
        new.take_locks_of(&old).map_err(lock_error)?;
        progress.files.push((new.clone(), old));
        let protocol = Protocol::File(FileProtocol::new(new.clone(), true));
        let shards = shard.set().count();
        self.node_mut(name)?.kind = Kind::Protocol {
            storage: Arc::new(Storage::continuing(protocol, shards, &storage)),
            file: Some(new),
            writable: write,
        };
        Ok(())
    }

    /// Opens an image once more.
    async fn reopen_image(
        &mut self,
        shard: &Shard,
        name: &str,
        progress: &mut Progress,
    ) -> Result<(), GraphError> {
        let Kind::Qcow2 {
            image: old,
            options,
            file,
            data_file,
            ..
        } = &self.node(name)?.kind
        else {
            return Ok(());
        };
        let (old, options) = (Arc::clone(old), options.clone());
        let child = self.child(file)?;
        let data_child = match data_file {
            Some(data_file) => Some(self.child(data_file)?),
            None => None,
        };
        let below = std::iter::once(&child).chain(&data_child).cloned();
        let _free = Unthrottled::new(below.collect());
        let opened = Qcow2::open(shard, child, data_child, &options).await?;
        let image = Arc::new(opened);
        let was_writable = matches!(
            progress.before.get(name),
            Some(Before {
                kind: Kind::Qcow2 { writable: true, .. },
                ..
            })
        );
        if options.write && !was_writable {
            progress.begun.push((name.to_owned(), Arc::clone(&image)));
        }
        // Without a writer here another process may have changed the mapping.
        let is_same = if was_writable {
            image.is_same_image(&old)
        } else {
            image.size() == old.size()
        };
        if !is_same {
            return Err(GraphError::OtherImage(name.into()));
        }
        if options.write && was_writable {
            image.take_bitmaps_over(&old).await;
        }
        // The node has them already.
        drop(image.take_loaded_bitmaps());
        image.clean_every(shard, options.cache_clean_interval);
        if let Kind::Qcow2 { image: place, .. } = &mut self.node_mut(name)?.kind {
            *place = image;
        }
        Ok(())
    }

    /// Filters save along paths of their own.
    fn renew_filters(&self) -> Result<(), GraphError> {
        for (name, node) in &self.nodes {
            if let Kind::CopyBeforeWrite {
                filter,
                file,
                target,
                ..
            } = &node.kind
            {
                let (source, target) = (self.path(file)?, self.path(target)?);
                if source.size() != filter.size() || target.size() < filter.size() {
                    return Err(GraphError::InUse(name.clone()));
                }
                filter.set_paths(source, target);
            }
        }
        Ok(())
    }

    /// Sizes and flags of bitmaps follow their nodes. Last: nothing else can fail.
    fn adapt_bitmaps(&mut self, progress: &Progress) -> Result<(), GraphError> {
        let mut resized = Vec::new();
        for (name, before) in &progress.before {
            let size = self.size(name)?;
            if size != before.size {
                self.node(name)?.bitmaps.check_resizable()?;
                resized.push((name, size));
            }
        }
        for (name, size) in resized {
            self.node_mut(name)?.bitmaps.resize(size)?;
        }
        for (name, before) in &progress.before {
            let node = self.node_mut(name)?;
            let (Kind::Qcow2 { writable, .. }, Kind::Qcow2 { writable: was, .. }) =
                (&node.kind, &before.kind)
            else {
                continue;
            };
            if writable == was {
                continue;
            }
            let read_only = !writable;
            let persistent = node.bitmaps.persistent();
            let names: Vec<String> = persistent
                .filter_map(|bitmap| bitmap.name().map(str::to_owned))
                .collect();
            for bitmap in names {
                node.bitmaps.set_read_only(&bitmap, read_only)?;
            }
        }
        Ok(())
    }

    /// Everything becomes what it was.
    async fn go_back(&mut self, shard: &Shard, progress: Progress) {
        for (name, image) in &progress.begun {
            if let Err(error) = self.unmark(shard, name, image).await {
                tracing::error!("node '{name}': bitmaps stay marked as in use: {error}");
            }
        }
        for (new, old) in progress.files.iter().rev() {
            if let Err(error) = old.take_locks_of(new) {
                tracing::error!("could not lock {}: {error}", old.path().display());
            }
        }
        for (name, before) in progress.before {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.kind = before.kind;
                node.claims = before.claims;
            }
            // The node exists, or it would not have been changed.
            let _ = self.set_policy(&name, before.policy);
        }
        for name in &progress.stored {
            if let Some(image) = self.qcow2(name).cloned()
                && let Err(errno) = image.mark_bitmaps_in_use(shard).await
            {
                tracing::error!("node '{name}': bitmaps could not be marked as in use: {errno}");
            }
        }
        self.relock();
        if let Err(error) = self.renew_filters() {
            tracing::error!("a filter could not be put back: {error}");
        }
    }

    /// An image that had begun to be written stays as it was.
    async fn unmark(&mut self, shard: &Shard, name: &str, image: &Qcow2) -> Result<(), GraphError> {
        let stored = to_store(&self.node(name)?.bitmaps);
        image
            .store_bitmaps(shard, &stored)
            .await
            .map_err(Qcow2Error::Bitmaps)?;
        image.close(shard).await.map_err(|errno| GraphError::Close {
            node: name.into(),
            errno,
        })
    }

    /// Whether a node uses another one as a child, in whatever way.
    pub fn is_child(&self, parent: &str, child: &str) -> bool {
        let parent = self.nodes.get(parent);
        parent.is_some_and(|node| children(&node.kind).contains(&child))
    }
}

/// Children on whose way nothing is held back, until dropped.
struct Unthrottled {
    children: Vec<Child>,
}

impl Unthrottled {
    fn new(children: Vec<Child>) -> Self {
        for child in &children {
            child.for_each_throttle(&|throttle| throttle.release());
        }
        Self { children }
    }
}

impl Drop for Unthrottled {
    fn drop(&mut self) {
        for child in &self.children {
            child.for_each_throttle(&|throttle| throttle.hold_again());
        }
    }
}
