//! The block graph: named nodes, who uses them for what, and how a node becomes
//! a path.
//!
//! This is control: it lives in one task, may take its time, and is never
//! walked by I/O. What it changes reaches the shards as new paths.
//!
//! | module | noun |
//! | --- | --- |
//! | `images`, `bitmaps`, `filters` | nodes of these kinds |
//! | `insertion` | copy-before-write filters that come and go under load |
//! | `ownership` | who keeps a node |
//! | [`reopen`] | options that change while a node is in use |
//! | `transaction` | several changes at one instant |
//! | `resolve` | from a node to its path |
//! | `claims`, `permissions` | who may do what beside whom |
//! | `edges` | the same, as questions about the graph see it |
//! | `drain` | who is held while the graph changes |
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
mod claims;
mod drain;
mod edges;
mod error;
mod filters;
mod images;
mod insertion;
mod ownership;
mod permissions;
pub mod reopen;
#[cfg(test)]
mod reopen_tests;
mod resolve;
mod transaction;

use std::collections::BTreeMap;
use std::sync::Arc;

use ringback_ring::file::{Cache, Geometry, OpenOptions};
use ringback_ring::{File, Shard};

use crate::bitmap::{BitmapError, NodeBitmaps};
use crate::child::Child;
use crate::filter::blkdebug::{self, BlkDebug};
use crate::filter::copy_before_write::{self, CopyBeforeWrite};
use crate::filter::copy_on_read::CopyOnRead;
use crate::filter::snapshot_access::SnapshotAccess;
use crate::filter::throttle::{Throttle, ThrottleGroup};
use crate::format::Raw;
use crate::format::qcow2::{self, Qcow2};
use crate::port::Attachment;
use crate::protocol::nbd;
use crate::protocol::{FileProtocol, NbdProtocol, NullProtocol, Protocol};
use crate::request::Preallocation;
use crate::span::Span;
use crate::storage::Storage;
use crate::traffic::Traffic;
pub use bitmaps::BitmapSpec;
pub use edges::{Edge, Parent};
pub use error::GraphError;
pub use images::Qcow2Spec;
pub use insertion::{BitmapEnd, Inserted, Insertion, Scope};
pub use ownership::Place;
pub use permissions::Access;
use permissions::{ChildClaim, Role};
use reopen::Policy;
pub use transaction::{MergeFrom, Transaction};

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
    /// An export of a server.
    Nbd(Box<nbd::Options>),
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
    /// Saves what is overwritten by whoever uses it.
    CopyBeforeWrite {
        /// The disk.
        file: String,
        /// Where old data goes.
        target: String,
        /// Save only what is dirty now in this bitmap: its node and its name.
        bitmap: Option<(String, String)>,
        /// Of the filter.
        options: copy_before_write::Options,
    },
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

#[derive(Clone)]
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
        /// How it was opened.
        options: Box<qcow2::OpenOptions>,
        writable: bool,
        file: String,
        backing: Option<String>,
        data_file: Option<String>,
    },
    CopyBeforeWrite {
        filter: Arc<CopyBeforeWrite>,
        file: String,
        target: String,
        /// It was put above a disk in use: nobody goes around it.
        is_exclusive: bool,
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
    /// Nodes are numbered as they are made.
    number: u64,
    /// Somebody outside keeps it.
    is_owned: bool,
    kind: Kind,
    bitmaps: NodeBitmaps,
    /// Of a node that is no protocol.
    traffic: Arc<Traffic>,
    policy: Policy,
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
    next_number: u64,
    /// Claims of a node that is being opened.
    opening: Vec<ChildClaim>,
    throttle_groups: BTreeMap<String, Arc<ThrottleGroup>>,
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
        let name = self.make_name(shard);
        self.add_checked(shard, &name, spec).await?;
        Ok(name)
    }

    /// A name that nobody can have given: a counter, and two digits so that
    /// nobody counts on it.
    fn make_name(&mut self, shard: &Shard) -> String {
        let number = self.next_name;
        self.next_name += 1;
        let digits = scramble(shard.now_ns() ^ number) % 100;
        format!("#block{number}{digits:02}")
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
            NodeSpec::Nbd(options) => {
                let nbd = NbdProtocol::open(shard, *options).await?;
                protocol_on(shard, Protocol::Nbd(nbd), None)
            }
            NodeSpec::Raw { file, offset, size } => self.raw_on(file, offset, size)?,
            NodeSpec::Qcow2(spec) => return self.add_qcow2(shard, name, spec).await,
            NodeSpec::CopyBeforeWrite {
                file,
                target,
                bitmap,
                options,
            } => self.copy_before_write_on(shard, file, target, bitmap.as_ref(), options)?,
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
        let overlay = match &kind {
            Kind::CopyBeforeWrite { file, target, .. } if self.reaches(target, file) => {
                Some(target.clone())
            }
            _ => None,
        };
        self.insert(shard, name, kind);
        if let Some(overlay) = overlay {
            // Who reads there reads beside a guest from now on.
            let concerned = self.users_above(&overlay);
            self.drain(&concerned).await;
            self.resume(&concerned).await;
        }
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
        self.next_number += 1;
        let node = Node {
            number: self.next_number,
            is_owned: false,
            kind,
            bitmaps,
            traffic: Arc::new(Traffic::new(shard.set().count())),
            policy: Policy::default(),
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
            Kind::Protocol { storage, .. }
                if self.node(name)?.bitmaps.recorders().is_empty()
                    && self.node(name)?.policy.treatment.zeroes.is_none() =>
            {
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

    /// Whether writes to a node can be stored compressed.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`].
    pub fn can_compress(&self, name: &str) -> Result<bool, GraphError> {
        let kind = &self.node(name)?.kind;
        match kind {
            Kind::Qcow2 { image, .. } => Ok(image.can_compress()),
            kind => main_child(kind).map_or(Ok(false), |child| self.can_compress(child)),
        }
    }

    /// Whether a discard on a node may do something: on a disk that can be
    /// written, or in the view of a snapshot.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`].
    pub fn can_discard(&self, name: &str) -> Result<bool, GraphError> {
        match &self.node(name)?.kind {
            Kind::SnapshotAccess { .. } => Ok(true),
            _ => Ok(self.check_writable(name).is_ok()),
        }
    }

    /// Unit in which a node's disk is allocated, in bytes; 0 if it has none.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`].
    pub fn cluster_size(&self, name: &str) -> Result<u64, GraphError> {
        let kind = &self.node(name)?.kind;
        match kind {
            Kind::Qcow2 { image, .. } => Ok(image.cluster_size()),
            kind => main_child(kind).map_or(Ok(0), |child| self.cluster_size(child)),
        }
    }

    /// The least that can be written to a node without its reading or filling what
    /// lies beside it, in bytes.
    pub(super) fn block_size(&self, name: &str) -> Result<u64, GraphError> {
        let kind = &self.node(name)?.kind;
        match kind {
            Kind::Qcow2 { image, .. } => Ok(image.allocation_unit()),
            Kind::Protocol { storage, .. } => Ok(storage.protocol().request_alignment()),
            kind => main_child(kind).map_or(Ok(1), |child| self.block_size(child)),
        }
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

    /// The export that a node is, if it is one.
    pub fn export(&self, name: &str) -> Option<&NbdProtocol> {
        match &self.nodes.get(name)?.kind {
            Kind::Protocol { storage, .. } => match storage.protocol() {
                Protocol::Nbd(nbd) => Some(nbd),
                Protocol::File(_) | Protocol::Null(_) => None,
            },
            _ => None,
        }
    }

    /// Lets requests fail that wait below a node for a server that is gone.
    pub(crate) fn stop_waiting(&self, name: &str) {
        if let Some(export) = self.export(name) {
            export.stop_waiting();
        } else if let Some(node) = self.nodes.get(name) {
            for child in children(&node.kind) {
                self.stop_waiting(child);
            }
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
            Kind::Protocol { storage, .. } => {
                let storage = Arc::clone(storage);
                storage.protocol().close(shard).await;
                Ok(())
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
        self.changeable_bitmaps(name)?;
        let concerned = self.users_above(name);
        self.drain(&concerned).await;
        let result = change(&mut self.node_mut(name)?.bitmaps);
        self.resume(&concerned).await;
        Ok(result?)
    }

    /// Says whether an export holds a bitmap, which nobody else may then change.
    ///
    /// # Errors
    ///
    /// [`GraphError::NotFound`], or no such bitmap.
    pub fn hold_bitmap(&mut self, node: &str, name: &str, is_held: bool) -> Result<(), GraphError> {
        Ok(self.node_mut(node)?.bitmaps.set_busy(name, is_held)?)
    }

    /// The bitmaps of a node where a command names one.
    fn named_bitmaps(&self, name: &str) -> Result<&NodeBitmaps, GraphError> {
        let node = self.nodes.get(name);
        node.map(|node| &node.bitmaps)
            .ok_or_else(|| GraphError::NoNode(name.into()))
    }

    /// The bitmaps of a node, if a change reaches everybody who has to mark them.
    fn changeable_bitmaps(&mut self, name: &str) -> Result<&mut NodeBitmaps, GraphError> {
        self.named_bitmaps(name)?;
        if self.is_file_of_format(name) {
            // What a format reads and writes goes along a path made when it was
            // opened.
            return Err(GraphError::InUse(name.into()));
        }
        let is_written_by_itself = self.nodes.values().any(|node| {
            matches!(&node.kind, Kind::CopyBeforeWrite { filter, target, .. }
                if (filter.has_job() || filter.claimed_bytes() > 0)
                    && self.passes_through(target, name))
        });
        if is_written_by_itself {
            // What a job copies there is not drained.
            return Err(GraphError::InUse(name.into()));
        }
        Ok(&mut self.node_mut(name)?.bitmaps)
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
        if self.node(name)?.policy.read_only {
            return Err(GraphError::ReadOnly);
        }
        match &self.node(name)?.kind {
            Kind::Protocol {
                writable: false, ..
            }
            | Kind::Qcow2 {
                writable: false, ..
            } => Err(GraphError::ReadOnly),
            // Its last, partial unit could only be written by growing it.
            Kind::Protocol {
                file: Some(file), ..
            } if !is_whole(file.geometry()) => Err(GraphError::Unaligned(name.into())),
            Kind::Protocol { .. } | Kind::Qcow2 { writable: true, .. } => Ok(()),
            // Only discards go there, which drop what was saved.
            Kind::SnapshotAccess { .. } => Ok(()),
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

    /// Whether a format that was opened on it uses a node.
    fn is_under_format(&self, name: &str) -> bool {
        let mut claims = self.nodes.values().flat_map(|node| &node.claims);
        claims.any(|claim| self.passes_through(&claim.child, name))
    }

    /// Whether a format that was opened on it writes to a node.
    fn is_file_of_format(&self, name: &str) -> bool {
        let claims = self.nodes.values().flat_map(|node| &node.claims);
        let mut files = claims.filter(|claim| claim.role != Role::Backing);
        files.any(|claim| self.passes_through(&claim.child, name))
    }

    fn passes_through(&self, from: &str, name: &str) -> bool {
        from == name
            || self
                .nodes
                .get(from)
                .and_then(|node| main_child(&node.kind))
                .is_some_and(|child| self.passes_through(child, name))
    }
}

/// Spreads a number over all bits (the finaliser of splitmix64).
fn scramble(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// As names of nodes and groups have to be.
pub(crate) fn is_identifier(name: &str) -> bool {
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
