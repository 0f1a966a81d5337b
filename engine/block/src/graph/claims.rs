//! Who does what with the nodes where bytes live: gathered from users, filters
//! and formats, checked against each other, and shown to other processes.

use super::permissions::{Access, Claim, Role, check_claims, lock};
use super::{Graph, GraphError, Kind, children};
use ringback_ring::lock::Permission;

impl Graph {
    /// Every node with bytes: do its users agree, here and in other processes?
    pub(super) fn check_permissions(&self) -> Result<(), GraphError> {
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
            .map(|user| {
                let label = format!("{} (uses node '{}' as 'root' child)", user.name, user.node);
                Claim::of_user(&user.node, &label, user.access)
            });
        let as_target = self
            .nodes
            .iter()
            .filter_map(|(name, node)| match &node.kind {
                Kind::CopyBeforeWrite { target, .. } if self.passes_through(target, bottom) => {
                    // While the filter stands, the target is its own.
                    let label = format!("node '{name}' (uses node '{target}' as 'target' child)");
                    Some(Claim::of_user(target, &label, Access::OF_TARGET))
                }
                Kind::BlkDebug { filter, image } if self.passes_through(image, bottom) => {
                    let options = filter.options();
                    Some(Claim {
                        entry: image.clone(),
                        name: format!("node '{name}' (uses node '{image}' as 'image' child)"),
                        held: options.take_child_perms.clone(),
                        unshared: options.unshare_child_perms.clone(),
                        filter: Some(name.clone()),
                    })
                }
                _ => None,
            });
        let by_formats = self
            .nodes
            .iter()
            .flat_map(|(name, node)| node.claims.iter().map(move |claim| (Some(name), claim)))
            .chain(self.opening.iter().map(|claim| (None, claim)))
            .filter(|(_, claim)| self.passes_through(&claim.child, bottom))
            .map(|(name, claim)| {
                let minds = claim.role != Role::Backing
                    || name.is_some_and(|name| self.is_minded_above(name));
                let access = Access {
                    alone_writing: claim.access.alone_writing && minds,
                    ..claim.access
                };
                Claim::of_user(&claim.child, &claim.label, access)
            });
        let does_something = |claim: &Claim| !claim.held.is_empty() || !claim.unshared.is_empty();
        used.chain(as_target)
            .chain(by_formats)
            .filter(does_something)
            .collect()
    }

    /// Whether somebody who uses an overlay would mind it if the disk below changed.
    /// Whoever comes to it as the target of a filter does not: the filter saves what
    /// changes.
    fn is_minded_above(&self, overlay: &str) -> bool {
        let mut users = self.users.values();
        users.any(|user| user.access.alone_writing && self.sees(&user.node, overlay))
    }

    /// Whether a node stands on another one, other than by a filter's target.
    fn sees(&self, from: &str, name: &str) -> bool {
        from == name
            || self.nodes.get(from).is_some_and(|node| match &node.kind {
                Kind::CopyBeforeWrite { file, .. } => self.sees(file, name),
                kind => children(kind).iter().any(|child| self.sees(child, name)),
            })
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
            let shares = match &node.kind {
                Kind::CopyBeforeWrite { filter, .. } => filter.shares_writes(),
                _ => fills,
            };
            if !self.passes_through(file, bottom) || self.is_idle_filter(name, &node.kind) {
                continue;
            }
            let label = format!("node '{name}' (uses node '{file}' as 'file' child)");
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
                alone_writing: !shares,
                ..Access::default()
            };
            let mut claim = Claim::of_user(name, &label, access);
            if fills {
                claim.held.push(Permission::WriteUnchanged);
            }
            found.push(claim);
        }
        Ok(found)
    }

    /// Whether nothing depends on a filter yet: neither requests nor a snapshot
    /// go through it.
    pub(super) fn is_idle_filter(&self, name: &str, kind: &Kind) -> bool {
        let is_exclusive = matches!(
            kind,
            Kind::CopyBeforeWrite {
                is_exclusive: true,
                ..
            }
        );
        !is_exclusive && self.users_above(name).is_empty() && !self.has_reader(name)
    }
}
