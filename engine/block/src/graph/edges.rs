//! What each edge of the graph takes of the node below it and shares with others:
//! the claims of whoever stands above, as questions about the graph see them.
//!
//! A plain filter passes on what is above it; a format has claims of its own.

use std::collections::BTreeMap;

use ringback_ring::lock::Permission;

use super::permissions::{Access, Claim};
use super::{Graph, Kind, UserId, ownership};

/// Who uses a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent<'a> {
    /// A node above it.
    Node(&'a str),
    /// Somebody who sends requests.
    User(UserId),
}

/// One use of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge<'a> {
    /// Who uses it.
    pub parent: Parent<'a>,
    /// Which node.
    pub child: &'a str,
    /// What the node is to its user: `file`, say, or `root`.
    pub name: &'static str,
    /// What is done with it.
    pub taken: Vec<Permission>,
    /// What others may do meanwhile.
    pub shared: Vec<Permission>,
}

/// What is taken and what is shared, by permission.
#[derive(Clone, Copy)]
struct Rights {
    taken: [bool; 4],
    shared: [bool; 4],
}

impl Rights {
    const NONE: Self = Self {
        taken: [false; 4],
        shared: [true; 4],
    };

    fn of_access(access: Access) -> Self {
        Self::of_claim(&Claim::of_user("", "", access))
    }

    fn of_claim(claim: &Claim) -> Self {
        let mut rights = Self::NONE;
        rights.take(&claim.held);
        rights.unshare(&claim.unshared);
        rights
    }

    fn take(&mut self, permissions: &[Permission]) {
        for &permission in permissions {
            self.taken[permission as usize] = true;
        }
    }

    fn unshare(&mut self, permissions: &[Permission]) {
        for &permission in permissions {
            self.shared[permission as usize] = false;
        }
    }

    fn and(mut self, other: &Self) -> Self {
        for index in 0..4 {
            self.taken[index] |= other.taken[index];
            self.shared[index] &= other.shared[index];
        }
        self
    }

    fn edge<'a>(&self, parent: Parent<'a>, child: &'a str, name: &'static str) -> Edge<'a> {
        let list = |set: &[bool; 4]| {
            let all = Permission::ALL.into_iter();
            all.filter(|&permission| set[permission as usize]).collect()
        };
        Edge {
            parent,
            child,
            name,
            taken: list(&self.taken),
            shared: list(&self.shared),
        }
    }
}

impl Graph {
    /// Everybody who sends requests, in the order of coming, with his name in
    /// messages.
    pub fn users(&self) -> impl Iterator<Item = (UserId, &str)> {
        let users = self.users.iter();
        users.map(|(&id, user)| (id, user.name.as_str()))
    }

    /// Every edge: those of users in the order of their coming, then those of
    /// nodes, the oldest node first.
    pub fn edges(&self) -> Vec<Edge<'_>> {
        let mut found: Vec<_> = self
            .users
            .iter()
            .map(|(&id, user)| {
                Rights::of_access(user.access).edge(Parent::User(id), &user.node, "root")
            })
            .collect();
        let mut known = BTreeMap::new();
        for name in self.names() {
            let above = self.rights_above(name, &mut known);
            let kind = &self.nodes[name].kind;
            for (edge, child) in ownership::edges(kind) {
                let rights = self.rights_on_edge(name, edge, child, above);
                found.push(rights.edge(Parent::Node(name), child, edge));
            }
        }
        found
    }

    /// What all users and parents of a node do with it together.
    fn rights_above<'a>(&'a self, name: &'a str, known: &mut BTreeMap<&'a str, Rights>) -> Rights {
        if let Some(rights) = known.get(name) {
            return *rights;
        }
        let mut all = Rights::NONE;
        for user in self.users.values().filter(|user| user.node == name) {
            all = all.and(&Rights::of_access(user.access));
        }
        for (parent, edge) in self.parents(name) {
            let above = self.rights_above(parent, known);
            all = all.and(&self.rights_on_edge(parent, edge, name, above));
        }
        known.insert(name, all);
        all
    }

    /// What a node does with one below it while `above` is done with itself.
    fn rights_on_edge(&self, name: &str, edge: &str, child: &str, above: Rights) -> Rights {
        let node = &self.nodes[name];
        let mut rights = above;
        match &node.kind {
            Kind::Protocol { .. } | Kind::Throttle { .. } => {}
            Kind::Raw { raw, .. } => {
                if raw.is_window() {
                    rights.unshare(&[Permission::Resize]);
                }
            }
            Kind::Qcow2 { .. } => {
                if edge == "backing" {
                    rights = Rights::NONE;
                }
                rights.shared = Rights::NONE.shared;
                let mut claims = node.claims.iter();
                let claim = claims.find(|claim| claim.child == child && claim.role.name() == edge);
                if let Some(claim) = claim {
                    rights = rights.and(&Rights::of_access(claim.access));
                }
            }
            Kind::CopyBeforeWrite { .. } if edge == "target" => {
                rights = Rights::of_access(Access::OF_TARGET);
            }
            Kind::CopyBeforeWrite { .. } => {
                if !self.is_idle_filter(name, &node.kind) {
                    rights.take(&[Permission::ConsistentRead]);
                    rights.unshare(&[Permission::Write, Permission::Resize]);
                }
            }
            // Its reads go to the filter's own paths.
            Kind::SnapshotAccess { .. } => rights = Rights::NONE,
            Kind::BlkDebug { filter, .. } => {
                rights.take(&filter.options().take_child_perms);
                rights.unshare(&filter.options().unshare_child_perms);
            }
            Kind::CopyOnRead { .. } => rights.take(&[Permission::WriteUnchanged]),
        }
        rights
    }

    /// What was changed through a node.
    ///
    /// # Errors
    ///
    /// [`super::GraphError::NotFound`].
    pub fn traffic(&self, name: &str) -> Result<&crate::traffic::Traffic, super::GraphError> {
        let node = self.node(name)?;
        Ok(match &node.kind {
            Kind::Protocol { storage, .. } => storage.traffic(),
            _ => &node.traffic,
        })
    }
}

#[cfg(test)]
mod tests {
    use ringback_ring::sim::Sim;

    use super::*;
    use crate::filter::copy_before_write;
    use crate::graph::NodeSpec;
    use crate::usage::{Histogram, Operation};

    const SIZE: u64 = 1 << 20;

    async fn add_null(graph: &mut Graph, shard: &ringback_ring::Shard, name: &str) {
        let null = NodeSpec::Null {
            size: SIZE,
            latency_ns: 1000,
            read_zeroes: true,
        };
        graph.add(shard, name, null).await.expect("a disk");
    }

    fn of<'a>(edges: &'a [Edge<'_>], parent: Parent<'_>, name: &str) -> &'a Edge<'a> {
        let mut edges = edges.iter();
        let found = edges.find(|edge| edge.parent == parent && edge.name == name);
        found.expect("there is such an edge")
    }

    #[test]
    fn plain_filters_pass_on_what_is_above_them() {
        use Permission::{ConsistentRead, Resize, Write, WriteUnchanged};
        let mut sim = Sim::new(1, 1);
        let answer = sim.shards().spawn_on(0, |shard| async move {
            let mut graph = Graph::new();
            for name in ["disk", "target"] {
                add_null(&mut graph, &shard, name).await;
            }
            let window = NodeSpec::Raw {
                file: "disk".into(),
                offset: 512,
                size: None,
            };
            graph.add(&shard, "window", window).await.expect("a window");
            let cbw = NodeSpec::CopyBeforeWrite {
                file: "disk".into(),
                target: "target".into(),
                bitmap: None,
                options: copy_before_write::Options::default(),
            };
            graph.add(&shard, "cbw", cbw).await.expect("a filter");
            let edges = graph.edges();
            let idle = of(&edges, Parent::Node("cbw"), "file");
            assert_eq!(
                (&idle.taken[..], &idle.shared[..]),
                (&[][..], &Permission::ALL[..])
            );
            let target = of(&edges, Parent::Node("cbw"), "target");
            assert_eq!(target.taken, [ConsistentRead, Write]);
            assert_eq!(target.shared, [ConsistentRead, WriteUnchanged]);
            let window = of(&edges, Parent::Node("window"), "file");
            assert_eq!(window.shared, [ConsistentRead, Write, WriteUnchanged]);

            let access = Access {
                write: true,
                ..Access::default()
            };
            let (user, _) = graph
                .attach(&shard, "cbw", "guest", access)
                .await
                .expect("it fits");
            let edges = graph.edges();
            let root = of(&edges, Parent::User(user), "root");
            assert_eq!((root.child, &root.taken[..]), ("cbw", &[Write][..]));
            assert!(root.shared.contains(&Resize));
            let used = of(&edges, Parent::Node("cbw"), "file");
            assert_eq!(used.taken, [ConsistentRead, Write]);
            assert_eq!(used.shared, [ConsistentRead, WriteUnchanged]);
        });
        sim.run(&answer).expect("it ends");
    }

    #[test]
    fn what_is_done_is_counted_on_every_shard() {
        let mut sim = Sim::new(2, 2);
        let answer = sim.shards().spawn_on(0, |shard| async move {
            let mut graph = Graph::new();
            add_null(&mut graph, &shard, "disk").await;
            let access = Access {
                read: true,
                write: true,
                ..Access::default()
            };
            let attached = graph.attach(&shard, "disk", "guest", access).await;
            let (user, attachment) = attached.expect("it is free");
            let histogram = Histogram::new(&[1000]).expect("it rises");
            attachment
                .set_histogram(Operation::Write, Some(&histogram))
                .await;
            let guest = attachment.clone();
            shard
                .set()
                .on_each(move |shard| {
                    let port = guest.port(&shard);
                    async move {
                        let end = 4096 * (shard.index() as u64 + 1);
                        let write = port.start_request(&shard, Operation::Write, 512);
                        let buf = shard.buffer(512).await;
                        let (result, _) = port.write(&shard, end - 512, buf, 0..512).await;
                        port.end_request(&shard, write, result.is_ok());
                        port.refuse_request(&shard, Operation::Read);
                    }
                })
                .await;
            let usage = attachment.usage().await;
            let written = usage.counter(Operation::Write);
            assert_eq!((written.operations, written.bytes), (2, 1024));
            assert!(written.total_time_ns >= 2000);
            assert_eq!(usage.counter(Operation::Read).invalid, 2);
            let bins = usage.histogram(Operation::Write).map(Histogram::bins);
            assert_eq!(bins, Some(&[0, 2][..]));
            let traffic = graph.traffic("disk").expect("it is there");
            assert_eq!(traffic.highest_write_end(), 8192);

            // Another attachment goes on from there, and counts nothing twice.
            graph.detach(user).await;
            let attached = graph.attach(&shard, "disk", "guest", access).await;
            let (_, next) = attached.expect("it is free");
            next.continue_usage(&shard, &usage).await;
            assert_eq!(next.usage().await, usage);
        });
        sim.run(&answer).expect("it ends");
    }
}
