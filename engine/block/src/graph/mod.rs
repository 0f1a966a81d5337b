//! The block graph: named nodes, who uses them for what, and how a node becomes
//! a path.
//!
//! This is control: it lives in one task, may take its time, and is never
//! walked by I/O. What it changes reaches the shards as new paths.
//!
//! # Permissions
//!
//! Each user of a node says what it does and what it does not let others do.
//! Two users that contradict each other are refused by name. On a file the
//! union of all users is also locked, in the way of QEMU, so that other
//! processes are refused too.
//!
//! # Changing a graph under load
//!
//! New nodes are made first. Then the attachments concerned are drained, all at
//! once; what defines the point in time (copy states, bitmaps) is made; every
//! attachment gets its new path; all resume. If something fails in between, the
//! old paths are resumed.

mod bitmaps;
mod error;
mod filters;
mod images;
mod permissions;

use std::collections::BTreeMap;
use std::sync::Arc;

use ringback_ring::file::{Cache, Geometry, OpenOptions};
use ringback_ring::{File, Shard};

use crate::bitmap::{BitmapError, DirtyBitmap, NodeBitmaps};
use crate::child::Child;
use crate::filter::blkdebug::{self, BlkDebug};
use crate::filter::copy_before_write::{self, CopyBeforeWrite};
use crate::filter::copy_on_read::CopyOnRead;
use crate::filter::snapshot_access::SnapshotAccess;
use crate::filter::throttle::{Throttle, ThrottleGroup};
use crate::format::qcow2::Qcow2;
use crate::format::{Image, Raw};
use crate::path::{Base, Layer, Path};
use crate::port::Attachment;
use crate::protocol::{FileProtocol, NullProtocol, Protocol};
use crate::request::Preallocation;
use crate::span::Span;
use crate::storage::Storage;
pub use bitmaps::BitmapSpec;
pub use error::GraphError;
pub use images::Qcow2Spec;
pub use permissions::Access;
use permissions::{ChildClaim, Claim, check_claims, lock};
use ringback_ring::lock::Permission;

/// How to make a node.
#[derive(Clone, Debug)]
pub enum NodeSpec {
    /// A regular file or block device.
    File {
        /// Where.
        path: std::path::PathBuf,
        /// For writing too.
        write: bool,
        /// Direct or buffered.
        cache: Cache,
        /// Discards reach the file.
        discard: bool,
    },
    /// A disk without a disk.
    Null {
        /// Bytes.
        size: u64,
        /// Of each request.
        latency_ns: u64,
        /// Reads bring zeroes.
        read_zeroes: bool,
    },
    /// A window of another node.
    Raw {
        /// The other node.
        file: String,
        /// Where the window starts.
        offset: u64,
        /// How long it is; none: to the end.
        size: Option<u64>,
    },
    /// A qcow2 image.
    Qcow2(Qcow2Spec),
    /// The point-in-time view of a copy-before-write node.
    SnapshotAccess {
        /// The filter.
        file: String,
    },
    /// Makes chosen requests fail, or holds them up.
    BlkDebug {
        /// The node below.
        image: String,
        /// Rules and limits.
        options: blkdebug::Options,
    },
    /// Lets no more pass than a group's limits.
    Throttle {
        /// The node below.
        file: String,
        /// Name of the group.
        group: String,
    },
    /// Copies what is read, and lives in a backing file, into the topmost
    /// image.
    CopyOnRead {
        /// That image.
        file: String,
    },
}

enum Kind {
    /// Bytes live here.
    Protocol {
        storage: Arc<Storage>,
        file: Option<File>,
        writable: bool,
    },
    Raw {
        raw: Raw,
        file: String,
    },
    Qcow2 {
        image: Arc<Qcow2>,
        writable: bool,
        file: String,
        backing: Option<String>,
        data_file: Option<String>,
    },
    CopyBeforeWrite {
        filter: Arc<CopyBeforeWrite>,
        file: String,
        target: String,
    },
    SnapshotAccess {
        snapshot: Arc<SnapshotAccess>,
        file: String,
    },
    BlkDebug {
        filter: Arc<BlkDebug>,
        image: String,
    },
    Throttle {
        throttle: Arc<Throttle>,
        group: String,
        file: String,
    },
    CopyOnRead {
        filter: Arc<CopyOnRead>,
        file: String,
    },
}

struct Node {
    kind: Kind,
    bitmaps: NodeBitmaps,
    /// What it does with its children by itself, whoever uses it.
    claims: Vec<ChildClaim>,
}

struct User {
    node: String,
    name: String,
    access: Access,
    attachment: Attachment,
}

/// Names an attachment in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserId(u64);

/// All nodes of a process and who uses them.
#[derive(Default)]
pub struct Graph {
    nodes: BTreeMap<String, Node>,
    users: BTreeMap<UserId, User>,
    next_user: u64,
    next_name: u64,
    /// Claims of a node that is being opened.
    opening: Vec<ChildClaim>,
    throttle_groups: BTreeMap<String, Arc<ThrottleGroup>>,
}

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
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    fn node(&self, name: &str) -> Result<&Node, GraphError> {
        self.nodes
            .get(name)
            .ok_or_else(|| GraphError::NotFound(name.into()))
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut Node, GraphError> {
        self.nodes
            .get_mut(name)
            .ok_or_else(|| GraphError::NotFound(name.into()))
    }

    fn check_new_name(&self, name: &str) -> Result<(), GraphError> {
        if !is_identifier(name) || name.len() > 31 {
            return Err(GraphError::InvalidName(name.into()));
        }
        if self.nodes.contains_key(name) {
            return Err(GraphError::Duplicate(name.into()));
        }
        Ok(())
    }

    /// Makes a node.
    ///
    /// # Errors
    ///
    /// [`GraphError`]; the graph is as it was then.
    pub async fn add(
        &mut self,
        shard: &Shard,
        name: &str,
        spec: NodeSpec,
    ) -> Result<(), GraphError> {
        self.check_new_name(name)?;
        self.add_checked(shard, name, spec).await
    }

    /// Makes a node that nobody gave a name; answers the name that it got.
    ///
    /// # Errors
    ///
    /// As [`Graph::add`].
    pub async fn add_unnamed(
        &mut self,
        shard: &Shard,
        spec: NodeSpec,
    ) -> Result<String, GraphError> {
        self.next_name += 1;
        let name = format!("#block{:03}", self.next_name);
        self.add_checked(shard, &name, spec).await?;
        Ok(name)
    }

    async fn add_checked(
        &mut self,
        shard: &Shard,
        name: &str,
        spec: NodeSpec,
    ) -> Result<(), GraphError> {
        let kind = match spec {
            NodeSpec::File {
                path,
                write,
                cache,
                discard,
            } => {
                let file = File::open(shard, OpenOptions { path, write, cache }).await?;
                protocol_on(
                    shard,
                    Protocol::File(FileProtocol::new(file.clone(), discard)),
                    Some(file),
                )
            }
            NodeSpec::Null {
                size,
                latency_ns,
                read_zeroes,
            } => {
                let null = NullProtocol::new(size, latency_ns, read_zeroes);
                protocol_on(shard, Protocol::Null(null), None)
            }
            NodeSpec::Raw { file, offset, size } => self.raw_on(file, offset, size)?,
            NodeSpec::Qcow2(spec) => return self.add_qcow2(shard, name, spec).await,
            NodeSpec::SnapshotAccess { file } => match &self.node(&file)?.kind {
                Kind::CopyBeforeWrite { filter, .. } => {
                    let snapshot = Arc::new(SnapshotAccess::new(Arc::clone(filter)));
                    Kind::SnapshotAccess { snapshot, file }
                }
                _ => return Err(GraphError::NoSnapshot(file)),
            },
            NodeSpec::BlkDebug { image, options } => {
                self.blkdebug_on(image, options, shard.set().count())?
            }
            NodeSpec::Throttle { file, group } => self.throttle_on(file, group)?,
            NodeSpec::CopyOnRead { file } => self.copy_on_read_on(file, shard.set().count())?,
        };
        self.insert(shard, name, kind);
        if let Err(error) = self.check_permissions() {
            // What the node itself does with the one below.
            self.nodes.remove(name);
            self.relock();
            return Err(error);
        }
        Ok(())
    }

    fn insert(&mut self, shard: &Shard, name: &str, kind: Kind) {
        let bitmaps = NodeBitmaps::new(self.size_of(&kind), shard.set().count());
        let node = Node {
            kind,
            bitmaps,
            claims: Vec::new(),
        };
        self.nodes.insert(name.into(), node);
    }

    fn raw_on(&self, file: String, offset: u64, size: Option<u64>) -> Result<Kind, GraphError> {
        let raw = Raw::new(offset, size, self.size(&file)?)?;
        Ok(Kind::Raw { raw, file })
    }

    /// A node as a format or a filter above uses it.
    fn child(&self, name: &str) -> Result<Child, GraphError> {
        match &self.node(name)?.kind {
            Kind::Protocol { storage, .. } if self.node(name)?.bitmaps.recorders().is_empty() => {
                Ok(Child::Storage(Arc::clone(storage)))
            }
            _ => Ok(Child::Path(Arc::new(self.path(name)?))),
        }
    }

    fn size_of(&self, kind: &Kind) -> u64 {
        match kind {
            Kind::Protocol { storage, .. } => storage.size(),
            Kind::Raw { raw, file } => raw.size(self.size(file).unwrap_or(0)),
            Kind::Qcow2 { image, .. } => image.size(),
            Kind::CopyBeforeWrite { filter, .. } => filter.size(),
            Kind::SnapshotAccess { snapshot, .. } => snapshot.size(),
            Kind::BlkDebug { image: file, .. }
            | Kind::Throttle { file, .. }
            | Kind::CopyOnRead { file, .. } => self.size(file).unwrap_or(0),
        }
    }

    /// Size of a node's disk in bytes.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`].
    pub fn size(&self, name: &str) -> Result<u64, GraphError> {
        Ok(self.size_of(&self.node(name)?.kind))
    }

    /// The first bytes of a node, at most `len`, for finding out what it is.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`]; [`GraphError::Peek`] if they cannot be read.
    pub async fn peek(&self, shard: &Shard, name: &str, len: usize) -> Result<Vec<u8>, GraphError> {
        let child = self.child(name)?;
        let len = len.min(usize::try_from(child.size()).unwrap_or(len));
        if len == 0 {
            return Ok(Vec::new());
        }
        let buf = shard.buffer(len).await;
        let (result, buf) = child
            .read(shard, Span::new(0, len as u64), buf, 0..len)
            .await;
        result.map_err(GraphError::Peek)?;
        Ok(buf[..len].to_vec())
    }

    /// Makes a node's disk exactly `size` bytes long, while nothing is in flight
    /// above it.
    ///
    /// # Errors
    ///
    /// [`GraphError::Resize`] with what the node answered; its size is as it was
    /// then. Nodes under a filter or with bitmaps keep their size.
    pub async fn resize(
        &mut self,
        shard: &Shard,
        name: &str,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), GraphError> {
        if self.is_under_format(name) {
            return Err(GraphError::InUse(name.into()));
        }
        let path = self.path(name)?;
        let stack: Vec<String> = self
            .nodes
            .keys()
            .filter(|other| self.passes_through(name, other) || self.passes_through(other, name))
            .cloned()
            .collect();
        for member in &stack {
            if matches!(self.nodes[member].kind, Kind::CopyBeforeWrite { .. }) {
                return Err(GraphError::InUse(member.clone()));
            }
            self.nodes[member].bitmaps.check_resizable()?;
        }
        let concerned = self.users_above(name);
        self.drain(&concerned).await;
        let result = path.truncate(shard, size, preallocation).await;
        for member in &stack {
            let size = self.size(member)?;
            self.node_mut(member)?.bitmaps.resize(size)?;
        }
        self.resume(&concerned).await;
        Ok(result?)
    }

    /// The file at the bottom of a node, if it is one.
    pub fn file(&self, name: &str) -> Option<&File> {
        match &self.nodes.get(name)?.kind {
            Kind::Protocol { file, .. } => file.as_ref(),
            Kind::Qcow2 { file, .. } | Kind::SnapshotAccess { file, .. } => self.file(file),
            kind => self.file(main_child(kind)?),
        }
    }

    /// Removes a node that nothing uses. An image is written and closed first.
    ///
    /// # Errors
    ///
    /// [`GraphError::InUse`] or [`GraphError::NotFound`]; [`GraphError::Close`]
    /// if an image could not be written, [`GraphError::Qcow2`] if its bitmaps
    /// could not, and then it is gone all the same.
    pub async fn remove(&mut self, shard: &Shard, name: &str) -> Result<(), GraphError> {
        self.node(name)?;
        let is_child = self
            .nodes
            .values()
            .any(|node| children(&node.kind).contains(&name));
        let is_filter = matches!(self.node(name)?.kind, Kind::CopyBeforeWrite { .. });
        if is_filter {
            // Its users and saves must be looked after.
            return Err(GraphError::InUse(name.into()));
        }
        if is_child || self.users.values().any(|user| user.node == name) {
            return Err(GraphError::InUse(name.into()));
        }
        let stored = self.store_bitmaps(shard, name).await;
        let closed = match &self.node(name)?.kind {
            Kind::Qcow2 { image, .. } => {
                let image = Arc::clone(image);
                image.close(shard).await
            }
            _ => Ok(()),
        };
        self.nodes.remove(name);
        self.relock();
        stored?;
        closed.map_err(|errno| GraphError::Close {
            node: name.into(),
            errno,
        })
    }

    /// The bitmaps of a node, for queries and for what needs no drain.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`].
    pub fn bitmaps(&self, name: &str) -> Result<&NodeBitmaps, GraphError> {
        Ok(&self.node(name)?.bitmaps)
    }

    /// Changes the bitmaps of a node while nothing is in flight above it, so
    /// that the change falls between two writes (B3).
    ///
    /// # Errors
    ///
    /// Whatever `change` answers; the paths are as they were then.
    pub async fn change_bitmaps<T>(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut NodeBitmaps) -> Result<T, BitmapError>,
    ) -> Result<T, GraphError> {
        self.node(name)?;
        let is_target = self.nodes.values().any(|node| {
            matches!(&node.kind, Kind::CopyBeforeWrite { target, .. } if self.passes_through(target, name))
        });
        if is_target || self.is_under_format(name) {
            // What a filter saves, and what a format reads and writes, goes along
            // a path made when it was put in.
            return Err(GraphError::InUse(name.into()));
        }
        let concerned = self.users_above(name);
        self.drain(&concerned).await;
        let result = change(&mut self.node_mut(name)?.bitmaps);
        self.resume(&concerned).await;
        Ok(result?)
    }

    /// Lets somebody use a node: an export, a guest load, a job's reader.
    ///
    /// # Errors
    ///
    /// [`GraphError::Conflict`] or [`GraphError::Lock`] if others do not share.
    pub async fn attach(
        &mut self,
        shard: &Shard,
        node: &str,
        user: &str,
        access: Access,
    ) -> Result<(UserId, Attachment), GraphError> {
        let path = self.path(node)?;
        if access.write {
            self.check_writable(node)?;
        }
        let attachment = Attachment::new(shard.set(), path).await;
        let id = UserId(self.next_user);
        let user = User {
            node: node.into(),
            name: user.into(),
            access,
            attachment: attachment.clone(),
        };
        self.users.insert(id, user);
        if let Err(error) = self.check_permissions() {
            self.users.remove(&id);
            self.relock();
            attachment.detach().await;
            return Err(error);
        }
        self.next_user += 1;
        Ok((id, attachment))
    }

    /// Ends a use, after its requests in flight.
    pub async fn detach(&mut self, id: UserId) {
        if let Some(user) = self.users.remove(&id) {
            user.attachment.detach().await;
            self.relock();
        }
    }

    /// After a user has gone: fewer permissions never conflict.
    fn relock(&self) {
        if let Err(error) = self.check_permissions() {
            tracing::warn!("could not lock less: {error}");
        }
    }

    /// Whether a node can be written at all.
    fn check_writable(&self, name: &str) -> Result<(), GraphError> {
        match &self.node(name)?.kind {
            Kind::Protocol {
                writable: false, ..
            }
            | Kind::Qcow2 {
                writable: false, ..
            }
            | Kind::SnapshotAccess { .. } => Err(GraphError::ReadOnly),
            // Its last, partial unit could only be written by growing it.
            Kind::Protocol {
                file: Some(file), ..
            } if !is_whole(file.geometry()) => Err(GraphError::Unaligned(name.into())),
            Kind::Protocol { .. } | Kind::Qcow2 { writable: true, .. } => Ok(()),
            Kind::Raw { file, .. }
            | Kind::CopyBeforeWrite { file, .. }
            | Kind::Throttle { file, .. }
            | Kind::CopyOnRead { file, .. } => self.check_writable(file),
            Kind::BlkDebug { filter, image } => {
                self.check_writable(image)?;
                if self.size(image)?.is_multiple_of(filter.request_alignment()) {
                    Ok(())
                } else {
                    Err(GraphError::NotWhole)
                }
            }
        }
    }

    /// The data path from a node down.
    fn path(&self, name: &str) -> Result<Path, GraphError> {
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
            layers.push(Layer {
                copy_before_write: filter,
                throttle,
                recorders,
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

    /// Whether a format that was opened on it uses a node.
    fn is_under_format(&self, name: &str) -> bool {
        let mut claims = self.nodes.values().flat_map(|node| &node.claims);
        claims.any(|claim| self.passes_through(&claim.child, name))
    }

    /// Users whose requests pass through a node.
    fn users_above(&self, name: &str) -> Vec<UserId> {
        self.users
            .iter()
            .filter(|(_, user)| self.passes_through(&user.node, name))
            .map(|(&id, _)| id)
            .collect()
    }

    fn passes_through(&self, from: &str, name: &str) -> bool {
        from == name
            || self
                .nodes
                .get(from)
                .and_then(|node| main_child(&node.kind))
                .is_some_and(|child| self.passes_through(child, name))
    }

    /// All gates are closed before anybody is waited for.
    async fn drain(&self, users: &[UserId]) {
        for id in users {
            self.users[id].attachment.close().await;
        }
        for id in users {
            self.users[id].attachment.drain().await;
        }
    }

    /// Opens the gates onto the paths as the graph is now.
    async fn resume(&self, users: &[UserId]) {
        for id in users {
            let user = &self.users[id];
            let path = self
                .path(&user.node)
                .expect("a used node and its children exist");
            user.attachment.resume(Some(path)).await;
        }
    }

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

    /// Every node with bytes: do its users agree, here and in other processes?
    fn check_permissions(&self) -> Result<(), GraphError> {
        for (name, node) in &self.nodes {
            let file = match &node.kind {
                Kind::Protocol { file, .. } => file.as_ref(),
                Kind::Qcow2 { .. } => None,
                _ => continue,
            };
            let mut claims = self.claims_on(name);
            let is_apart = |one: &Claim, other: &Claim| {
                let is_above = |user: &Claim, filter: &Claim| {
                    let node = filter.filter.as_deref();
                    node.is_some_and(|node| self.passes_through(&user.entry, node))
                };
                !is_above(one, other) && !is_above(other, one)
            };
            check_claims(name, &claims, is_apart)?;
            claims.extend(self.filter_claims_on(name, &claims)?);
            if let Some(file) = file {
                lock(file, &claims)?;
            }
        }
        Ok(())
    }

    /// What users, and filters with this as their target, do on the node at the
    /// bottom.
    fn claims_on(&self, bottom: &str) -> Vec<Claim> {
        let used = self
            .users
            .values()
            .filter(|user| self.passes_through(&user.node, bottom))
            .map(|user| Claim::of_user(&user.node, &user.name, user.access));
        let as_target = self
            .nodes
            .iter()
            .filter_map(|(name, node)| match &node.kind {
                Kind::CopyBeforeWrite { target, .. } if self.passes_through(target, bottom) => {
                    // While the filter stands, the target is its own.
                    let label = format!("node '{name}' (uses it as 'target' child)");
                    let access = Access {
                        read: true,
                        write: true,
                        alone_writing: true,
                        resize: false,
                    };
                    Some(Claim::of_user(target, &label, access))
                }
                Kind::BlkDebug { filter, image } if self.passes_through(image, bottom) => {
                    let options = filter.options();
                    Some(Claim {
                        entry: image.clone(),
                        name: format!("node '{name}' (uses it as 'image' child)"),
                        held: options.take_child_perms.clone(),
                        unshared: options.unshare_child_perms.clone(),
                        filter: Some(name.clone()),
                    })
                }
                _ => None,
            });
        let by_formats = self
            .nodes
            .values()
            .flat_map(|node| &node.claims)
            .chain(&self.opening)
            .filter(|claim| self.passes_through(&claim.child, bottom))
            .map(|claim| Claim::of_user(&claim.child, &claim.label, claim.access));
        let does_something = |claim: &Claim| !claim.held.is_empty() || !claim.unshared.is_empty();
        used.chain(as_target)
            .chain(by_formats)
            .filter(does_something)
            .collect()
    }

    /// What filters do on the disk below them. Whoever writes there must come
    /// through the filter, or the snapshot would change, or a copy overwrite
    /// what was written.
    fn filter_claims_on(&self, bottom: &str, claims: &[Claim]) -> Result<Vec<Claim>, GraphError> {
        let mut found = Vec::new();
        for (name, node) in &self.nodes {
            let (Kind::CopyBeforeWrite { file, .. } | Kind::CopyOnRead { file, .. }) = &node.kind
            else {
                continue;
            };
            let fills = matches!(node.kind, Kind::CopyOnRead { .. });
            if !self.passes_through(file, bottom) || (fills && self.users_above(name).is_empty()) {
                continue;
            }
            let label = format!("node '{name}' (uses it as 'file' child)");
            let around = claims.iter().find(|claim| {
                claim.holds(Permission::Write) && !self.passes_through(&claim.entry, name)
            });
            if let Some(writer) = around {
                return Err(GraphError::Conflict {
                    permission: Permission::Write,
                    node: bottom.into(),
                    writer: writer.name.clone(),
                    other: label,
                });
            }
            let access = Access {
                read: true,
                write: false,
                alone_writing: !fills,
                resize: false,
            };
            let mut claim = Claim::of_user(name, &label, access);
            if fills {
                claim.held.push(Permission::WriteUnchanged);
            }
            found.push(claim);
        }
        Ok(found)
    }
}

/// As names of nodes and groups have to be.
fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    let starts_well = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic());
    starts_well && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// Whether writes can reach the last byte without growing the file.
fn is_whole(geometry: &Geometry) -> bool {
    geometry
        .size
        .is_multiple_of(geometry.request_alignment.into())
}

fn protocol_on(shard: &Shard, protocol: Protocol, file: Option<File>) -> Kind {
    Kind::Protocol {
        writable: protocol.is_writable(),
        storage: Arc::new(Storage::new(protocol, shard.set().count())),
        file,
    }
}

fn children(kind: &Kind) -> Vec<&str> {
    match kind {
        Kind::SnapshotAccess { file, .. } => vec![file],
        Kind::Qcow2 {
            file,
            backing,
            data_file,
            ..
        } => [Some(file), backing.as_ref(), data_file.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect(),
        Kind::CopyBeforeWrite { file, target, .. } => vec![file, target],
        kind => main_child(kind).into_iter().collect(),
    }
}

/// The node that a node's own requests go down to.
fn main_child(kind: &Kind) -> Option<&str> {
    match kind {
        // A format makes requests of its own.
        Kind::Protocol { .. } | Kind::SnapshotAccess { .. } | Kind::Qcow2 { .. } => None,
        Kind::Raw { file, .. }
        | Kind::CopyBeforeWrite { file, .. }
        | Kind::BlkDebug { image: file, .. }
        | Kind::Throttle { file, .. }
        | Kind::CopyOnRead { file, .. } => Some(file),
    }
}
