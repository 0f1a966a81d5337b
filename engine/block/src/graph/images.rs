//! Images with a structure of their own in the graph: their nodes, their
//! claims on the nodes below, their backing files.

use std::sync::Arc;

use ringback_ring::Shard;

use super::permissions::{ChildClaim, Role};
use super::{Graph, GraphError, Kind, children};
use crate::format::qcow2::create::CreateOptions;
use crate::format::qcow2::header::{Header, OpenMode};
use crate::format::qcow2::{self, Qcow2};

/// How to make a qcow2 node.
#[derive(Clone, Debug)]
pub struct Qcow2Spec {
    /// The node that holds the image.
    pub file: String,
    /// The node that shows through, if any.
    pub backing: Option<String>,
    /// The node that holds guest data, if the image has one.
    pub data_file: Option<String>,
    /// How to open it; the node's name is filled in.
    pub options: qcow2::OpenOptions,
    /// Open it although another process writes to it.
    pub force_share: bool,
}

impl Graph {
    /// Locks first: an image that somebody else writes must not be looked at.
    pub(super) async fn add_qcow2(
        &mut self,
        shard: &Shard,
        name: &str,
        spec: Qcow2Spec,
    ) -> Result<(), GraphError> {
        let claims = self.format_claims(name, &spec)?;
        self.opening.clone_from(&claims);
        let kind = match self.check_permissions() {
            Ok(()) => self.open_qcow2(shard, name, spec).await,
            Err(error) => Err(error),
        };
        self.opening.clear();
        match kind {
            Ok(kind) => {
                self.insert(shard, name, kind);
                self.node_mut(name)?.claims = claims;
                self.take_bitmaps(name)
            }
            Err(error) => {
                self.relock();
                Err(error)
            }
        }
    }

    /// What a qcow2 node does with the nodes below it.
    fn format_claims(&self, name: &str, spec: &Qcow2Spec) -> Result<Vec<ChildClaim>, GraphError> {
        let claims = Self::claims_of(name, spec);
        for claim in &claims {
            self.node(&claim.child)?;
            if claim.access.write {
                self.check_growable(&claim.child)?;
            }
        }
        Ok(claims)
    }

    /// Whether a node can be written by a format, which may make it grow.
    pub(super) fn check_growable(&self, name: &str) -> Result<(), GraphError> {
        match self.check_writable(name) {
            // Its last, partial unit is grown into.
            Ok(()) | Err(GraphError::Unaligned(_) | GraphError::NotWhole) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn claims_of(name: &str, spec: &Qcow2Spec) -> Vec<ChildClaim> {
        let write = spec.options.write;
        let claim = |child: &String, role, write| {
            ChildClaim::new(name, child, role, write, spec.force_share)
        };
        let mut claims = vec![claim(&spec.file, Role::File, write)];
        let backing = spec.backing.iter();
        claims.extend(backing.map(|child| claim(child, Role::Backing, false)));
        let data_file = spec.data_file.iter();
        claims.extend(data_file.map(|child| claim(child, Role::DataFile, write)));
        claims
    }

    async fn open_qcow2(
        &self,
        shard: &Shard,
        name: &str,
        spec: Qcow2Spec,
    ) -> Result<Kind, GraphError> {
        let options = qcow2::OpenOptions {
            name: name.into(),
            ..spec.options
        };
        let data_child = match &spec.data_file {
            Some(data_file) => Some(self.child(data_file)?),
            None => None,
        };
        let image = Qcow2::open(shard, self.child(&spec.file)?, data_child, &options).await?;
        let image = Arc::new(image);
        image.clean_every(shard, options.cache_clean_interval);
        Ok(Kind::Qcow2 {
            image,
            writable: options.write,
            options: Box::new(options),
            file: spec.file,
            backing: spec.backing,
            data_file: spec.data_file,
        })
    }

    /// Makes a new, empty qcow2 image in a node, whose content is lost. Guest
    /// data goes into the node `data_file` if the options name such a file.
    ///
    /// # Errors
    ///
    /// [`GraphError`] if somebody else uses these nodes, or they are read-only;
    /// [`GraphError::CreateQcow2`] if there can be no such image.
    pub async fn create_qcow2(
        &mut self,
        shard: &Shard,
        file: &str,
        data_file: Option<&str>,
        options: &CreateOptions,
    ) -> Result<(), GraphError> {
        options.check()?;
        let spec = Qcow2Spec {
            file: file.into(),
            backing: None,
            data_file: data_file.map(str::to_owned),
            options: qcow2::OpenOptions::new(true),
            force_share: false,
        };
        self.opening = self.format_claims("new image", &spec)?;
        let result = match self.check_permissions() {
            Ok(()) => self.create_qcow2_in(shard, file, data_file, options).await,
            Err(error) => Err(error),
        };
        self.opening.clear();
        self.relock();
        result
    }

    async fn create_qcow2_in(
        &self,
        shard: &Shard,
        file: &str,
        data_file: Option<&str>,
        options: &CreateOptions,
    ) -> Result<(), GraphError> {
        let data_child = match data_file {
            Some(data_file) => Some(self.child(data_file)?),
            None => None,
        };
        let file = self.child(file)?;
        Ok(qcow2::create::create(shard, &file, data_child.as_ref(), options).await?)
    }

    /// The header of the qcow2 image that a node holds.
    ///
    /// # Errors
    ///
    /// [`GraphError::Qcow2`] if it is none, or not in order.
    pub async fn qcow2_header(
        &self,
        shard: &Shard,
        name: &str,
        mode: OpenMode,
    ) -> Result<Header, GraphError> {
        Ok(qcow2::read_header(shard, &self.child(name)?, mode).await?)
    }

    /// The qcow2 image which a node is.
    pub fn qcow2(&self, name: &str) -> Option<&Arc<Qcow2>> {
        match &self.nodes.get(name)?.kind {
            Kind::Qcow2 { image, .. } => Some(image),
            _ => None,
        }
    }

    /// Lets another node, or none, show through where a qcow2 image holds
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`GraphError`]; everything is as it was then.
    pub async fn set_backing(
        &mut self,
        name: &str,
        backing: Option<&str>,
    ) -> Result<(), GraphError> {
        if let Some(backing) = backing {
            self.node(backing)?;
            if self.reaches(backing, name) {
                return Err(GraphError::InUse(name.into()));
            }
        }
        let concerned = self.users_above(name);
        self.drain(&concerned).await;
        let result = self.replace_backing(name, backing);
        self.resume(&concerned).await;
        result
    }

    pub(super) fn replace_backing(
        &mut self,
        name: &str,
        new: Option<&str>,
    ) -> Result<(), GraphError> {
        let node = self.node_mut(name)?;
        let Kind::Qcow2 { backing, .. } = &mut node.kind else {
            return Err(GraphError::NoBacking(name.into()));
        };
        let old = std::mem::replace(backing, new.map(str::to_owned));
        let old_claims = node.claims.clone();
        let shares = old_claims
            .first()
            .is_some_and(|claim| !claim.access.alone_writing);
        node.claims.retain(|claim| claim.role != Role::Backing);
        let claim = |child| ChildClaim::new(name, child, Role::Backing, false, shares);
        node.claims.extend(new.map(claim));
        let result = self.check_permissions();
        if result.is_err() {
            let node = self.node_mut(name)?;
            node.claims = old_claims;
            if let Kind::Qcow2 { backing, .. } = &mut node.kind {
                *backing = old;
            }
            self.relock();
        }
        result
    }

    /// Whether a node stands on another one, in whatever way.
    pub(super) fn reaches(&self, from: &str, name: &str) -> bool {
        from == name
            || self.nodes.get(from).is_some_and(|node| {
                children(&node.kind)
                    .into_iter()
                    .any(|child| self.reaches(child, name))
            })
    }
}
